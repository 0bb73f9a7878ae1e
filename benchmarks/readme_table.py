"""Write the demo's figures into README.md, between two markers: `python -m benchmarks.readme_table [RESULTS]`.

So the table is never typed, and says where it comes from. What is shown is ``benchmarks/results/demo.json``, a copy of the
``results.json`` of a whole run; given another file, that file becomes the copy.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actlet.errors import ActletError, CallerError
from actlet.storage import write_bytes, write_json
from benchmarks.results import read_results
from benchmarks.tables import results_table
from benchmarks.units import as_duration

__all__ = ["BEGIN", "END", "main", "put_between_markers", "table_text"]

BEGIN, END = "<!-- figures: written by `make readme` -->", "<!-- end of figures -->"
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


def put_between_markers(page: str, text: str) -> str:
    """Replace what stands between the markers.

    Raises:
        CallerError: The page does not have both, once and in order.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise CallerError(f"README.md: expected {BEGIN!r} and then {END!r}, once each.")
    head, tail = page[: page.index(BEGIN) + len(BEGIN)], page[page.index(END) :]
    return f"{head}\n{text}\n{tail}"


def main(argv: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme_table", description="Write the demo's figures into README.md.")
    parser.add_argument("results", type=Path, nargs="?", help=f"a results.json that shall become {KEPT.name} (default: keep it)")
    arguments = parser.parse_args(argv)
    try:
        results = read_results(arguments.results or KEPT)
        if results.get("quick"):
            raise CallerError(f"{arguments.results or KEPT}: a quick run says nothing about quality; give the results of a whole run.")
        page = put_between_markers(README.read_text(encoding="utf-8"), table_text(results))
        if arguments.results:
            write_json(KEPT, results)
        write_bytes(README, page.encode())
    except ActletError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{README.name} shows {KEPT.relative_to(README.parent)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
