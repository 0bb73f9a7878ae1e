"""The results document, the report and README's table that are made of it."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from actlet.errors import CallerError, SpecError
from actlet.storage import write_json
from benchmarks.readme import FIGURES, PACKAGES, README, TREE, put_between_markers, table_text, tree_text
from benchmarks.report import render_report
from benchmarks.results import check_results, read_results, write_results
from benchmarks.tables import closed_loop_table, results_table, text_table
from benchmarks.thresholds import judge


@pytest.fixture(scope="module")
def document(make_tiny_bundle: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A genuine document of two tiny policies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        from tiny_results import tiny_results

        folder = tmp_path_factory.mktemp("policies")
        return tiny_results(make_tiny_bundle(folder / "a"), make_tiny_bundle(folder / "b"))


@pytest.fixture
def results(document: dict[str, Any]) -> dict[str, Any]:
    """A copy that a test may change."""
    return copy.deepcopy(document)


def test_results_survive_a_round_trip(results: dict[str, Any], tmp_path: Path) -> None:
    """What is read is what was written."""
    write_results(tmp_path / "results.json", results)
    assert read_results(tmp_path / "results.json") == json.loads(json.dumps(results))


def test_every_required_key_is_there(results: dict[str, Any]) -> None:
    """The schema that others read: these keys, under these names."""
    assert {"schema_version", "date", "machine", "versions", "suite", "policies", "real_data"} <= set(results)
    asked = (
        "name parameters size_bytes episodes success success_ci95 success_wrong_instruction decision_rate_hz latency_ms peak_memory_bytes"
    )
    for policy in results["policies"]:
        assert set(asked.split()) <= set(policy)
        assert set(policy["latency_ms"]) == {"p50", "p95", "p99", "max"}


@pytest.mark.parametrize("key", ["schema_version", "machine", "policies", "real_data"])
def test_a_missing_key_is_named(results: dict[str, Any], key: str) -> None:
    """A document without a required key is refused, and the message names it."""
    del results[key]
    with pytest.raises(SpecError, match=key):
        check_results(results)


@pytest.mark.parametrize(
    ("key", "value"),
    [("success", 1.5), ("success", "high"), ("success_ci95", [0.9, 0.1]), ("latency_ms", {"p50": 1.0}), ("parameters", float("nan"))],
)
def test_an_impossible_figure_is_refused(results: dict[str, Any], key: str, value: object) -> None:
    """The message names the policy and the figure."""
    results["policies"][1][key] = value
    with pytest.raises(SpecError, match=f"student-int8.*{key}"):
        check_results(results)


def test_a_missing_file_says_how_to_make_it(tmp_path: Path) -> None:
    """The line to run is in the message."""
    with pytest.raises(SpecError, match="actlet demo"):
        read_results(tmp_path / "results.json")


class _Page(HTMLParser):
    """Collects what a browser would fetch, and checks that elements nest."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "srcset", "data", "action") and not (value or "").startswith(("#", "data:")):
                self.fetched.append(f"{tag} {name}={value}")
            if name == "id":
                self.ids.append(value or "")
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_needs_nothing_else(results: dict[str, Any]) -> None:
    """No address, no file, no script: the page is whole by itself, and well formed."""
    page, parser = render_report(results), _Page()
    parser.feed(page)
    assert parser.fetched == []
    assert parser.open == []
    assert len(set(parser.ids)) == len(parser.ids) > 0
    assert not re.search(r"https?:|@import|url\((?!#)|<script", page)


def test_the_report_shows_every_policy_and_threshold(results: dict[str, Any]) -> None:
    """Names of policies, claims, and the machine are on the page."""
    page = render_report(results)
    thresholds = judge(results)
    assert thresholds
    for text in [policy["name"] for policy in results["policies"]] + [threshold.claim for threshold in thresholds]:
        assert text in page
    assert "no recordings in a test" in page


def test_the_report_shows_certificates(results: dict[str, Any]) -> None:
    """What was shown of a bundle, in the words of the command; nothing where there is none."""
    assert "What was certified" not in render_report(results)
    rates = {"child": 0.99, "parent": 0.98}
    closed = {
        "suite": "tabletop",
        "episodes": 300,
        "margin": 0.03,
        "verdict": "non-inferior",
        "difference": 0.01,
        "difference_ci95": [-0.01, 0.03],
    }
    closed |= {"success": rates, "mcnemar_p": 0.5, "at_delay": {}, "motion": {"episodes": 0}}
    sides = {name: {"bundle": name * 8, "policy": "", "precision": "int8"} for name in ("child", "parent")}
    certificate = {**sides, "closed_loop": closed, "recorded": None, "machine": {"cpu": "a processor"}, "date": "2026-11-27T00:00:00+00:00"}
    results["policies"][1]["certificate"] = certificate
    page = render_report(results)
    assert "NON-INFERIOR for a margin of 3 points: +1.0 points [-1.0, +3.0] over 300 paired episodes of tabletop" in page
    assert "a processor" in page


def test_the_report_embeds_pictures(results: dict[str, Any], tmp_path: Path) -> None:
    """A film's pictures are in the page as data."""
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
    write_json(
        tmp_path / "films.json", [{"caption": "lift <it>", "columns": 1, "rows": 1, "pictures": [{"file": "a.png", "alt": "front, 0.0 s"}]}]
    )
    page = render_report(results, pictures=tmp_path)
    assert 'src="data:image/png;base64,' in page
    assert "lift &lt;it&gt;" in page


def test_the_report_shows_held_out_error(results: dict[str, Any]) -> None:
    """Every dimension of the recordings has a line."""
    errors = {"student": 0.01, "repeat": 0.02, "mean": 0.03}
    results["real_data"] = {"summary": "46 episodes", "dimensions": {"dx": {"unit": "m", "next": errors, "chunk": errors}}}
    page = render_report(results)
    assert "46 episodes" in page
    assert "<td>dx</td><td>m</td>" in page


def test_a_policy_that_does_not_listen_is_found_out(results: dict[str, Any]) -> None:
    """The reader passes the language threshold, the deaf one does not, and is told what it would take."""
    verdicts = {threshold.claim: threshold for threshold in judge(results)}
    assert verdicts["student-float listens"].reached
    assert not verdicts["student-int8 listens"].reached
    assert verdicts["student-int8 listens"].advice
    assert not verdicts["student-float listens"].advice


def test_a_policy_that_does_nothing_reaches_nothing(results: dict[str, Any]) -> None:
    """Zero success keeps no success and shows no listening, however small the differences are."""
    for policy in results["policies"]:
        policy["success"] = policy["success_wrong_instruction"] = 0.0
    results["policies"][1]["compared"]["difference"] = 0.0
    behaviour = [threshold for threshold in judge(results) if "listens" in threshold.claim or "keeps" in threshold.claim]
    assert len(behaviour) == 3
    assert not any(threshold.reached for threshold in behaviour)


def test_a_quick_run_is_not_judged(results: dict[str, Any]) -> None:
    """Its report says so instead."""
    results["quick"] = True
    assert judge(results) == []
    assert "What was asked, and what was reached" not in render_report(results)


def test_a_loss_of_success_is_found_out(results: dict[str, Any]) -> None:
    """The deaf policy does half of the episodes of its parent."""
    pairs = results["policies"][1]["compared"]
    assert (pairs["parent"], pairs["episodes"], pairs["only_this"], pairs["only_parent"]) == ("student-float", 6, 0, 3)
    assert not next(threshold for threshold in judge(results) if "keeps the success" in threshold.claim).reached


def test_tables_line_up() -> None:
    """All lines of a column have one width."""
    table = text_table(["policy", "n"], [["a", "1000"], ["long name", "1"]]).splitlines()
    assert table[0] == "policy        n"
    assert [len(line) for line in table] == [15] * 4


def test_terminal_tables_name_every_policy(results: dict[str, Any]) -> None:
    """One line each."""
    for table in (results_table(results["policies"]), closed_loop_table({p["name"]: p for p in results["policies"]})):
        lines = table.splitlines()[2:]
        assert [line.split()[0] for line in lines] == ["student-float", "student-int8"]


def test_readme_is_changed_between_the_markers_alone(results: dict[str, Any]) -> None:
    """Writing twice is writing once, and the rest of the page stays."""
    begin, end = FIGURES
    once = put_between_markers(f"before\n{begin}\nstale figures\n{end}\nafter\n", FIGURES, table_text(results))
    assert once == put_between_markers(once, FIGURES, table_text(results))
    assert once.startswith(f"before\n{begin}\n| policy |")
    assert once.endswith(f"{end}\nafter\n")
    assert "stale figures" not in once


def test_a_page_without_markers_is_refused() -> None:
    """Nothing is written anywhere else."""
    with pytest.raises(CallerError, match="expected '<!-- figures"):
        put_between_markers("no markers", FIGURES, "table")


def test_the_tree_in_readme_names_every_module() -> None:
    """No file is missing there and none is gone; `make readme` brings it up to date."""
    assert set(PACKAGES) <= {path.parent.name for path in README.parent.glob("*/__init__.py")}
    page = README.read_text(encoding="utf-8")
    shown = page[page.index(TREE[0]) : page.index(TREE[1])]

    def modules(text: str) -> list[str]:
        return re.findall(r"^    (\w+\.py)", text, re.MULTILINE)

    assert modules(tree_text()) == modules(shown), "run: make readme"
