"""Keep README.md true: figures and the file tree are written by a program: `python -m benchmarks.readme [RESULTS]`.

The figures are those of ``benchmarks/results/demo.json``, a copy of the ``results.json`` of a whole run; given another file,
that file becomes the copy. The teachers' figures are those of ``benchmarks/results/teachers.json``, the ablation of distillation's those of
``benchmarks/results/distillation*.json``, where there are any. A file's comment in the tree is the beginning of its own docstring.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actlet.errors import ActletError, CallerError
from actlet.storage import read_json, write_bytes, write_json
from benchmarks.distillation import distillation_text
from benchmarks.results import read_results
from benchmarks.tables import markdown_table, results_table
from benchmarks.teachers import teachers_table
from benchmarks.units import as_duration, as_percent

__all__ = [
    "DISTILLATION",
    "FIGURES",
    "PACKAGES",
    "TEACHERS",
    "TREE",
    "main",
    "put_between_markers",
    "table_text",
    "teachers_text",
    "tree_text",
]

FIGURES = ("<!-- figures: written by `make readme` -->", "<!-- end of figures -->")
TEACHERS = ("<!-- teachers: written by `make readme` -->", "<!-- end of teachers -->")
DISTILLATION = ("<!-- distillation: written by `make readme` -->", "<!-- end of distillation -->")
TREE = ("<!-- tree: written by `make readme` -->", "<!-- end of tree -->")
PACKAGES = ("actlet", "episodes", "distill", "export", "quantize", "runtime", "benchmarks")  # In the order of the chain.
COMMENT_WIDTH = 130
KEPT_TEACHERS = Path(__file__).with_name("results") / "teachers.json"
KEPT_DISTILLATION = Path(__file__).with_name("results")  # The folder of distillation*.json, one for each run.
KEPT = Path(__file__).with_name("results") / "demo.json"
README = Path(__file__).resolve().parents[1] / "README.md"


def table_text(results: Mapping[str, Any]) -> str:
    """The table in Markdown, and the conditions it holds under."""
    machine, versions = results["machine"], results["versions"]
    spent = results.get("stages", [])
    cost = (
        f" The run took {as_duration(sum(stage['wall_s'] for stage in spent))} of wall time and "
        f"{as_duration(sum(stage['cpu_s'] for stage in spent))} of CPU time."
        if spent
        else ""
    )
    teacher = "a teacher trained in the same run" if results.get("from_scratch") else "the teacher that comes with actlet"
    load = results["latency_conditions"]["load_average_before"][0]
    return (
        f"{results_table(results['policies'], markdown=True)}\n\n"
        f"Suite `{results['suite']}`, {teacher}; {results['date'][:10]}, {machine['cpu']}, {machine['cores_usable']} cores, load {load:.1f}, "
        f"Python {versions['python']}, onnxruntime {versions.get('onnxruntime', '–')}. Success on the same seeds for all, with 95 % Wilson intervals; "
        "“told otherwise” is the success of the original task when the policy is told another one (low is good). Latency: fresh observation to new "
        f"chunk, batch 1, one thread, all policies by turns in one run; memory: the whole process.{cost}"
    )


def teachers_text(document: Mapping[str, Any]) -> str:
    """The teachers' tables in Markdown, and the conditions they hold under."""
    served = document["service"]
    rows = [
        [
            str(r["robots"]),
            f"{r['delay_ms']:.0f} ms",
            f"{r['decision_rate_hz']:.1f}",
            f"{r['latency_p50_ms']:.0f} ms",
            as_percent(r["success"]),
        ]
        for r in served["rows"]
        if r["loss"] == 0 and r["robots"] in (served["rows"][0]["robots"], served["rows"][-1]["robots"])
    ]
    rows += [
        [f"{r['policy']} on the robot", "–", f"{r['decision_rate_hz']:.0f}", f"{r['latency_p50_ms']:.2f} ms", as_percent(r["success"])]
        for r in served["on_board"]
    ]
    cloud = markdown_table(["robots that ask one teacher", "network, one way", "decisions/s each", "p50", "success"], rows)
    return f"{teachers_table(document['rows'], markdown=True)}\n\n{document['conditions']}\n\n{cloud}\n\n{served['conditions']}"


def tree_text(root: Path = README.parent) -> str:
    """All modules with the beginning of their docstrings, as a block of Markdown."""
    lines = ["```"]
    for package in PACKAGES:
        lines.append(f"{package + '/':<28}{_comment(root / package / '__init__.py')}")
        lines += [f"    {path.name:<24}{_comment(path)}" for path in _modules(root / package)]
        for inner in sorted((root / package).glob("*/__init__.py")):
            lines.append(f"    {inner.parent.name + '/':<24}{_comment(inner)}")
            lines += [f"        {path.name:<20}{_comment(path)}" for path in _modules(inner.parent)]
    return "\n".join([*lines, "```"])


def _modules(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.py") if not path.name.startswith("__"))


def _comment(path: Path) -> str:
    """The first sentence of a module's docstring, or as much of it as fits."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    text = re.sub(r"\s+", " ", text.split("\n\n")[0])
    sentence = re.split(r"(?<!\bal)[.;] ", text)[0].rstrip(".:")
    if len(sentence) > COMMENT_WIDTH:
        sentence = re.sub(r"[,:]$", "", sentence[:COMMENT_WIDTH].rsplit(" ", 1)[0]) + " …"
    first = sentence.split(" ")[0]
    return sentence[:1].lower() + sentence[1:] if first[1:].islower() or len(first) == 1 else sentence


def put_between_markers(page: str, markers: tuple[str, str], text: str) -> str:
    """Replace what stands between two markers.

    Raises:
        CallerError: The page does not have both, once and in order.
    """
    begin, end = markers
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise CallerError(f"README.md: expected {begin!r} and then {end!r}, once each.")
    head, tail = page[: page.index(begin) + len(begin)], page[page.index(end) :]
    return f"{head}\n{text}\n{tail}"


def main(argv: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.readme", description="Write the demo's figures and the file tree into README.md."
    )
    parser.add_argument("results", type=Path, nargs="?", help=f"a results.json that shall become {KEPT.name} (default: keep it)")
    asked = parser.parse_args(argv).results
    try:
        page = put_between_markers(README.read_text(encoding="utf-8"), TREE, tree_text())
        if asked or KEPT.is_file():
            results = read_results(asked or KEPT)
            if results.get("quick"):
                raise CallerError(f"{asked or KEPT}: a quick run says nothing about quality; give the results of a whole run.")
            page = put_between_markers(page, FIGURES, table_text(results))
            if asked:
                write_json(KEPT, results)
        if KEPT_TEACHERS.is_file():
            page = put_between_markers(page, TEACHERS, teachers_text(read_json(KEPT_TEACHERS)))
        if ablations := {
            path: read_json(path) for path in sorted(KEPT_DISTILLATION.glob("distillation*.json"), key=lambda path: path.stem)
        }:
            for path, ablation in ablations.items():
                if ablation.get("quick"):
                    raise CallerError(f"{path}: a quick run says nothing about quality; keep the results of a whole run.")
            page = put_between_markers(page, DISTILLATION, "\n\n".join(distillation_text(ablation) for ablation in ablations.values()))
        write_bytes(README, page.encode())
    except ActletError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
