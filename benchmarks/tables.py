"""Tables of figures for the terminal and for README.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.units import as_bytes, as_count, as_number, as_percent

__all__ = ["closed_loop_table", "latency_table", "markdown_table", "results_table", "text_table"]


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they must be; the first is flush left, the others flush right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = []
    for row in [header, ["-" * width for width in widths], *rows]:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same for a Markdown page."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _success(policy: Mapping[str, Any]) -> str:
    low, high = policy["success_ci95"]
    return f"{as_percent(policy['success'])} [{100 * low:.0f}, {100 * high:.0f}]"


def _wrong(policy: Mapping[str, Any]) -> str:
    return f"{as_percent(policy['success_wrong_instruction'])} (n = {policy['episodes_wrong_instruction']})"


def results_table(policies: Sequence[Mapping[str, Any]], *, markdown: bool = False) -> str:
    """The one table that says it all."""
    header = ["policy", "parameters", "weights", "success [95 %]", "told otherwise", "decisions/s", "p50", "p99", "memory"]
    rows = [
        [
            policy["name"],
            as_count(policy["parameters"]),
            as_bytes(policy["size_bytes"]),
            _success(policy),
            _wrong(policy),
            as_number(policy["decision_rate_hz"]),
            f"{as_number(policy['latency_ms']['p50'])} ms",
            f"{as_number(policy['latency_ms']['p99'])} ms",
            as_bytes(policy["peak_memory_bytes"]),
        ]
        for policy in policies
    ]
    return markdown_table(header, rows) if markdown else text_table(header, rows)


def closed_loop_table(policies: Mapping[str, Mapping[str, Any]]) -> str:
    """Success alone, in all and per task."""
    tasks = list(next(iter(policies.values()))["per_task"])
    rows = []
    for name, policy in policies.items():
        per_task = [f"{row['successes']}/{row['episodes']}" for row in (policy["per_task"][task] for task in tasks)]
        pairs = policy.get("compared")
        against = f"{100 * pairs['difference']:+.1f} points, p = {pairs['mcnemar_p']:.2f}" if pairs else "–"
        rows.append([name, str(policy["episodes"]), _success(policy), *per_task, _wrong(policy), against])
    return text_table(["policy", "episodes", "success [95 %]", *tasks, "told otherwise", "against its parent"], rows)


def latency_table(policies: Mapping[str, Mapping[str, Any]]) -> str:
    """Time, size and memory alone."""
    rows = [
        [
            name,
            as_count(policy["parameters"]),
            as_bytes(policy["size_bytes"]),
            as_number(policy["decision_rate_hz"]),
            *(f"{policy['latency_ms'][key]:.2f}" for key in ("p50", "p95", "p99", "max")),
            f"{policy['latency_cpu_ms']['p50']:.2f}",
            str(policy["latency_calls"]),
            as_count(policy["macs"]),
            as_percent(policy["share_of_ceiling"]),
            as_bytes(policy["peak_memory_bytes"]),
        ]
        for name, policy in policies.items()
    ]
    return text_table(
        [
            "policy",
            "parameters",
            "weights",
            "decisions/s",
            "p50 ms",
            "p95",
            "p99",
            "max",
            "CPU p50",
            "calls",
            "MACs",
            "of ceiling",
            "memory",
        ],
        rows,
    )
