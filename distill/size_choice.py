"""Which size of student a command line asks for: by name, or the largest that decides within a latency budget.

Measuring a latency takes export, quantization and the robot's runtime, which training does not import: whoever calls lends
the function that measures, as `actlet.command_line` does. A run that was cut off keeps the size that was measured when it began,
since a second measurement may come out on the other side of the budget, and what was trained would be thrown away.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from actlet.errors import CallerError
from actlet.specs import PolicySpec
from actlet.storage import read_json, write_json
from distill.student import StudentConfig
from distill.student_sizes import DEFAULT_SIZE, SIZES, require_size, student_size

__all__ = ["add_size_arguments", "asked_architecture", "forget_choice"]


def add_size_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare --size, --budget-ms, --target and --precision."""
    limits = ", ".join(f"{size.name} {size.max_parameters // 1_000_000} M" for size in SIZES.values())
    parser.add_argument("--size", choices=tuple(SIZES), help=f"size of the student, parameters at most: {limits} (default: {DEFAULT_SIZE})")
    parser.add_argument(
        "--budget-ms", type=float, help="in place of --size: time all sizes on this machine, and take the largest that decides in this time"
    )
    parser.add_argument("--target", help="with --budget-ms: where the student will run; 'cpu' so far (default: cpu)")
    parser.add_argument("--precision", choices=("float", "int8"), help="with --budget-ms: in which bits it will run (default: float)")


def asked_architecture(arguments: argparse.Namespace, spec: Callable[[], PolicySpec]) -> StudentConfig:
    """The network that the options ask for.

    Args:
        arguments: Parsed options. `size_within_budget`, called as `benchmarks.student_latency.size_within_budget` is, measures.
        spec: Says what the student will see and command; asked only where that matters.

    Raises:
        CallerError: Options that exclude each other, a budget that is no time, or a budget, target or size that cannot be had.
    """
    budget_ms = arguments.budget_ms
    if budget_ms is None:
        alone = [name for name in ("target", "precision") if getattr(arguments, name) is not None]
        if alone:
            raise CallerError(f"--{' and --'.join(alone)} belong to --budget-ms: give a budget, or leave them out.")
        return require_size(arguments.size, spec()).architecture if arguments.size else SIZES[DEFAULT_SIZE].architecture
    if arguments.size is not None:
        raise CallerError(f"--size {arguments.size} and --budget-ms {budget_ms:g}: the budget chooses the size; leave one of them out.")
    if not (math.isfinite(budget_ms) and budget_ms > 0):
        raise CallerError(f"--budget-ms {budget_ms:g}: expected milliseconds above 0.")
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise CallerError(
            f"--budget-ms in one of {processes} processes: they would slow each other down. Measure in one, then launch with --size."
        )
    options = {"target": arguments.target or "cpu", "precision": arguments.precision or "float"}
    sees, note = spec(), _note(arguments.out)
    question: dict[str, Any] = {"budget_ms": budget_ms, **options, "spec": sees.to_dict()}
    if note.is_file() and (earlier := read_json(note)).get("question") == question:
        print(f"student size {earlier['size']}, as measured when this run began; remove {note} to measure again.")
        return student_size(earlier["size"]).architecture
    size = arguments.size_within_budget(sees, budget_ms, **options)
    write_json(note, {"question": question, "size": size})
    return student_size(size).architecture


def forget_choice(out: str | Path) -> None:
    """Remove what was kept of a measurement, once the student is whole."""
    _note(out).unlink(missing_ok=True)


def _note(out: str | Path) -> Path:
    return Path(out).parent / f".{Path(out).name}.size.json"
