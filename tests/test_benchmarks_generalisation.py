"""What is left of success on things that no demonstration showed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from actlet.command_line import main
from actlet.errors import CallerError, SpecError, UnknownNameError
from actlet.specs import PolicySpec, TimingSpec
from actlet.storage import read_json
from benchmarks import generalisation
from benchmarks.generalisation import AXES, GeneralisationConfig, axes_table, measure_generalisation, summarise_axis, write_generalisation
from benchmarks.policies import Contender
from episodes.suites import SUITES


class Scripted(Contender):
    """A contender that reads pictures of points; where its folder says "deaf", it always goes to the red one."""

    @property
    def factory(self) -> Callable[[], object]:
        from point_reach import PictureReader
        from tiny_results import DeafReader

        return DeafReader if (self.path / "kind").read_text() == "deaf" else PictureReader


@pytest.fixture
def contenders(tmp_path: Path) -> list[Contender]:
    """A policy that listens, and one that does not."""
    found: list[Contender] = []
    for name in ("listener", "deaf"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "kind").write_text(name)
        found.append(Scripted(name, folder))
    return found


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> GeneralisationConfig:
    """Two axes of a suite that is quick; the first is the seen one."""
    for axis in ("seen", "objects"):
        monkeypatch.setitem(generalisation.AXES, axis, "point_reach:make_suite")
    return GeneralisationConfig(axes=("seen", "objects"), episodes=6, workers=1)


def test_every_axis_is_a_suite() -> None:
    """The suites of all axes have short names, and seen is the plain one."""
    assert set(AXES.values()) <= set(SUITES)
    assert AXES["seen"] == "tabletop"
    assert len(AXES) == 6


def test_every_policy_meets_every_axis(contenders: list[Contender], config: GeneralisationConfig) -> None:
    """Rates with intervals for each, and every single episode."""
    document = measure_generalisation(contenders, config)
    rates = {policy["name"]: {axis: row["success"] for axis, row in policy["axes"].items()} for policy in document["policies"]}
    assert rates == {"listener": {"seen": 1.0, "objects": 1.0}, "deaf": {"seen": 0.5, "objects": 0.5}}
    row = document["policies"][1]["axes"]["objects"]
    assert row["success_ci95"][0] < 0.5 < row["success_ci95"][1]
    assert [episode["seed"] for episode in document["episodes"]["deaf"]["objects"]] == list(range(6))
    json.dumps(document, allow_nan=False)


def test_an_axis_is_compared_with_the_seen_one() -> None:
    """In pairs, on the same seeds; the seen axis itself is compared with nothing."""
    episodes = [{"task": "lift", "seed": seed, "instruction": "", "success": seed < 2, "steps": 1} for seed in range(8)]
    seen = [{**episode, "success": True} for episode in episodes]
    pairs = summarise_axis(episodes, seen)["compared"]
    assert (pairs["parent"], pairs["only_this"], pairs["only_parent"]) == ("seen", 0, 6)
    assert pairs["difference"] == -0.75
    assert summarise_axis(seen)["compared"] is None


def test_kinds_add_up() -> None:
    """Rates are split by the kind of the instruction, and the table shows each below its axis."""
    kinds = ["size", "symbol", "size", "relation"]
    episodes = [
        {"task": "lift", "seed": seed, "instruction": "", "success": seed != 2, "steps": 1, "kind": kind} for seed, kind in enumerate(kinds)
    ]
    row = summarise_axis(episodes)
    assert {kind: (found["successes"], found["episodes"]) for kind, found in row["per_kind"].items()} == {
        "relation": (1, 1),
        "size": (1, 2),
        "symbol": (1, 1),
    }
    lines = axes_table([{"name": "ours", "axes": {"instructions": row}}]).splitlines()
    assert lines[2].split()[:3] == ["instructions", "4", "75"]
    assert [line.split()[0] for line in lines[3:]] == ["relation", "size", "symbol"]


def test_what_is_finished_is_kept(
    contenders: list[Contender], config: GeneralisationConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted between two axes, the same call goes on with the second, and the result is that of a whole run."""
    whole, evaluate, calls = measure_generalisation(contenders, config), generalisation.evaluate, []

    def interrupted(*arguments, **keywords):
        calls.append(arguments[1])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return evaluate(*arguments, **keywords)

    monkeypatch.setattr(generalisation, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure_generalisation(contenders, config, out=tmp_path / "out")
    document = measure_generalisation(contenders, config, out=tmp_path / "out")
    assert len(calls) == 5  # Two, the interrupted one, and the two that were left.
    assert document["episodes"] == whole["episodes"]


def test_another_policy_under_the_same_name_is_run_again(contenders: list[Contender], config: GeneralisationConfig, tmp_path: Path) -> None:
    """What counts is the content of its folder."""
    first = measure_generalisation(contenders[:1], config, out=tmp_path / "out")
    (contenders[0].path / "kind").write_text("deaf")
    second = measure_generalisation(contenders[:1], config, out=tmp_path / "out")
    assert [document["policies"][0]["axes"]["seen"]["success"] for document in (first, second)] == [1.0, 0.5]


def test_the_folder_holds_all_episodes_and_a_drawing(contenders: list[Contender], config: GeneralisationConfig, tmp_path: Path) -> None:
    """The drawing is a whole file that names the policies and axes."""
    document = measure_generalisation(contenders, config)
    write_generalisation(tmp_path, document)
    assert read_json(tmp_path / "generalisation.json")["episodes"] == document["episodes"]
    drawing = (tmp_path / "generalisation.svg").read_text()
    assert ElementTree.fromstring(drawing).tag == "{http://www.w3.org/2000/svg}svg"
    assert "var(" not in drawing
    assert all(word in drawing for word in ("listener", "deaf", "seen", "objects", "#2f6fde"))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"axes": ("colors",)}, UnknownNameError, "Did you mean 'colours'"),
        ({"axes": ()}, CallerError, "at least one"),
        ({"axes": ("seen", "seen")}, CallerError, "each once"),
        ({"first_seed": 50_000}, SpecError, "those kept for reports"),
    ],
)
def test_requests_that_make_no_sense_are_refused(options: dict[str, object], error: type[Exception], message: str) -> None:
    """Unknown and repeated axes, and seeds that something was tuned on."""
    with pytest.raises(error, match=message):
        GeneralisationConfig(**options)


def test_an_unknown_task_is_refused_before_the_work(contenders: list[Contender], config: GeneralisationConfig) -> None:
    """The suite's own tasks are named."""
    from dataclasses import replace

    with pytest.raises(UnknownNameError, match="Did you mean 'red'"):
        measure_generalisation(contenders, replace(config, tasks=("rad",)))


def test_axes_belong_to_generalise_alone(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another question says so instead of ignoring them."""
    assert main(["bench", "latency", str(tiny_bundle), "--axes", "seen"]) == 2
    assert "--axes is for `actlet bench generalise`" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_measures_a_bundle(make_tiny_bundle: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A bundle of the table's own specification, on two axes: a table, one JSON document as the last line, and the files."""
    pytest.importorskip("mujoco")
    from episodes import tabletop

    task = tabletop.make("touch")
    timing = TimingSpec(rate_hz=task.rate_hz, horizon=4, execute_steps=4, max_delay_steps=0)
    bundle = make_tiny_bundle(tmp_path / "tiny", spec=PolicySpec(observation=task.observation_spec, action=task.action_spec, timing=timing))
    words = ["bench", "generalise", str(bundle), "--axes", "seen", "instructions", "--episodes", "3", "--workers", "1"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    printed = json.loads(lines[-1])
    assert "episodes" not in printed
    assert printed["suites"] == {"seen": "tabletop", "instructions": "tabletop-instructions"}
    assert any(line.startswith("instructions ") for line in lines)
    kinds = [episode["kind"] for episode in read_json(tmp_path / "out" / "generalisation.json")["episodes"]["tiny"]["instructions"]]
    assert len(kinds) == 3
    assert set(kinds) <= {"paraphrase", "relation", "size", "symbol"}
