"""Rows and tables of the ablation of policy distillation: rates, intervals, and differences on the same seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from actlet.statistics import mcnemar_p, paired_difference, wilson_interval
from benchmarks.closed_loop import summarise
from benchmarks.distillation_config import BASELINE
from benchmarks.tables import markdown_table, text_table
from benchmarks.units import as_duration, as_number, as_percent, as_significant

__all__ = [
    "compare_rows",
    "distillation_row",
    "distillation_table",
    "judged",
    "rate_text",
    "second_table",
    "variants_table",
    "with_differences",
]


def judged(episodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of one policy's episodes.

    Args:
        episodes: Results as plain JSON, from the first report seed on.

    Returns:
        ``episodes, success, success_ci95`` (Wilson) and ``outcomes``: "1" or "0" for each seed.
    """
    done = "".join(str(int(bool(episode["success"]))) for episode in episodes)
    n, successes = len(done), done.count("1")
    return {"episodes": n, "success": successes / n, "success_ci95": list(wilson_interval(successes, n)), "outcomes": done}


def distillation_row(
    *,
    suite: str,
    method: str,
    student: str,
    precision: str,
    episodes: Sequence[Mapping[str, Any]],
    delayed: Mapping[int, Sequence[Mapping[str, Any]]],
    timing: Mapping[str, Any],
    train_cpu_s: float | None,
    label_cpu_s: float | None = None,
) -> dict[str, Any]:
    """One policy of the table.

    Args:
        suite: Where.
        method: A key of `METHODS`, or "teacher".
        student: How many parameters it has, for people; the teacher's name for a teacher.
        precision: Of its weights.
        episodes: Results in lockstep as plain JSON, from the first report seed on.
        delayed: Control ticks -> results of the first of the same seeds with late answers.
        timing: What `benchmarks.latency.Timings.summary` says.
        train_cpu_s: CPU time of training and of the labels; None where it was not trained in this run.
        label_cpu_s: Of the labels alone.

    Returns:
        JSON types: ``suite, method, student, precision, episodes, success, success_ci95, success_at_delay_ticks`` (ticks -> rate over the first
        ``delay_episodes`` seeds; "0" is in lockstep), ``jerk`` (mean squared, [m^2/s^6]), ``path_length`` ([m]) and ``gripper_flips`` (means over
        successful episodes, None without one), ``decision_rate_hz`` (1 / p50), ``latency_ms, train_cpu_s, label_cpu_s``, ``outcomes`` ("1" or "0" for each
        seed) and ``outcomes_at_delay_ticks``.
    """
    motion = summarise({"episodes": episodes, "wrong_instruction": []})["motion"]
    late = {"0": list(episodes[: len(next(iter(delayed.values()), episodes))])} | {
        str(ticks): list(found) for ticks, found in delayed.items()
    }
    rates = {ticks: judged(found) for ticks, found in late.items()}
    return {
        "suite": suite,
        "method": method,
        "student": student,
        "precision": precision,
        **judged(episodes),
        "success_at_delay_ticks": {ticks: rate["success"] for ticks, rate in rates.items()},
        "delay_episodes": rates["0"]["episodes"],
        "outcomes_at_delay_ticks": {ticks: rate["outcomes"] for ticks, rate in rates.items()},
        "jerk": motion["mean_squared_jerk"],
        "path_length": motion["path_length"],
        "gripper_flips": motion["gripper_flips"],
        "decision_rate_hz": timing["decision_rate_hz"],
        "latency_ms": timing["latency_ms"],
        "train_cpu_s": train_cpu_s,
        "label_cpu_s": label_cpu_s,
    }


def compare_rows(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """A row against another on the same seeds, in lockstep.

    Returns:
        ``difference, difference_ci95`` (`actlet.statistics.paired_difference`), ``mcnemar_p``.
    """
    a, b = ([mark == "1" for mark in row["outcomes"]] for row in (ours, theirs))
    difference, low, high = paired_difference(a, b)
    return {"difference": difference, "difference_ci95": [low, high], "mcnemar_p": mcnemar_p(a, b)}


def with_differences(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every row with ``against``: how it compares with `BASELINE` in its own precision, with the teacher, and with its own float bundle.

    A comparison with itself, or with what is not among the rows, is left out.
    """
    places = {(row["suite"], row["method"], row["precision"]): row for row in rows}
    found = []
    for row in rows:
        others = {
            BASELINE: places.get((row["suite"], BASELINE, row["precision"])),
            "teacher": places.get((row["suite"], "teacher", "float")),
            "float": places.get((row["suite"], row["method"], "float")),
        }
        against = {name: compare_rows(row, other) for name, other in others.items() if other is not None and other is not row}
        found.append({**row, "against": against})
    return found


def distillation_table(rows: Sequence[Mapping[str, Any]], *, markdown: bool = False) -> str:
    """One row a policy."""
    delays = [ticks for ticks in rows[0]["success_at_delay_ticks"] if ticks != "0"]
    header = ["suite", "method", "weights", "success [95 %]", "against cloning", "against teacher", *(f"{ticks} late" for ticks in delays)]
    header += ["jerk", "path", "flips", "decisions/s", "CPU"]
    cells = [
        [
            row["suite"],
            row["method"],
            row["precision"],
            rate_text(row),
            *(_difference(row["against"].get(other)) for other in (BASELINE, "teacher")),
            *(as_percent(row["success_at_delay_ticks"][ticks]) for ticks in delays),
            as_significant(row["jerk"]),
            "–" if row["path_length"] is None else f"{row['path_length']:.2f} m",
            as_number(row["gripper_flips"]),
            as_number(row["decision_rate_hz"]),
            "–" if row["train_cpu_s"] is None else as_duration(row["train_cpu_s"]),
        ]
        for row in rows
    ]
    return (markdown_table if markdown else text_table)(header, cells)


def second_table(rows: Sequence[Mapping[str, Any]], key: str, *, markdown: bool = False) -> str:
    """What few demonstrations or new things leave of each method: one line a setting, one column a method.

    Args:
        rows: As ``few`` or ``unseen`` of the document.
        key: "demonstrations" or "axis".
        markdown: For a page, not for the terminal.
    """
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = []
    for setting in dict.fromkeys(row[key] for row in rows):
        here = {row["method"]: row for row in rows if row[key] == setting}
        taught = [row for row in here.values() if row["method"] not in (BASELINE, "teacher")]
        lines.append(
            [str(setting), *(rate_text(here[method]) for method in methods), *(_difference(row["against"][BASELINE]) for row in taught)]
        )
    return (markdown_table if markdown else text_table)([key, *methods, "difference"], lines)


def variants_table(rows: Sequence[Mapping[str, Any]], *, markdown: bool = False) -> str:
    """One row a student and precision, the full recipe's own first.

    Args:
        rows: As ``variants`` of the document.
        markdown: For a page, not for the terminal.
    """
    recipe = rows[0]["variant"]
    cells = [
        [
            row["variant"],
            row["student"],
            row["precision"],
            rate_text(row),
            _difference(row["against"].get(recipe)),
            as_duration(row["train_cpu_s"]),
        ]
        for row in rows
    ]
    header = ["student", "parameters", "weights", "success [95 %]", "against the first", "CPU"]
    return (markdown_table if markdown else text_table)(header, cells)


def rate_text(row: Mapping[str, Any]) -> str:
    """A rate with its interval."""
    low, high = row["success_ci95"]
    return f"{as_percent(row['success'])} [{100 * low:.0f}, {100 * high:.0f}]"


def _difference(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    low, high = found["difference_ci95"]
    return f"{100 * found['difference']:+.0f} [{100 * low:+.0f}, {100 * high:+.0f}]"
