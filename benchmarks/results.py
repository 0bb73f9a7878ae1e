"""results.json: every figure of a run in one document, and the check that it is one.

    schema_version  1
    date            UTC, ISO 8601
    machine         processor, memory, load … (`benchmarks.machine`)
    versions        Python, packages, commit
    suite           the simulated suite
    policies        a list, from teacher to int4, each with
        name, parameters, size_bytes                            weights of the network that answers every decision
        episodes, success, success_ci95, success_wrong_instruction
        decision_rate_hz, latency_ms {p50, p95, p99, max}       see `benchmarks.latency` for where it starts and ends
        peak_memory_bytes
    real_data       held-out action error on recordings of a real robot, or {"skipped": why}

Other keys may follow; a reader ignores those that it does not know. A figure that was not measured is null, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actlet.errors import SpecError
from actlet.storage import read_json, write_json

__all__ = ["POLICY_NAMES", "SCHEMA_VERSION", "check_results", "make_results", "read_results", "write_results"]

SCHEMA_VERSION = 1
POLICY_NAMES = ("teacher", "student-float", "student-int8", "student-int4")

_TOP_KEYS = ("schema_version", "date", "machine", "versions", "suite", "policies", "real_data")
_NUMBERS = ("parameters", "size_bytes", "episodes", "success", "success_wrong_instruction", "decision_rate_hz", "peak_memory_bytes")
_PERCENTILES = ("p50", "p95", "p99", "max")


def make_results(
    *,
    suite: str,
    latency: Mapping[str, Any],
    closed_loop: Mapping[str, Mapping[str, Any]],
    real_data: Mapping[str, Any],
    **more: Any,
) -> dict[str, Any]:
    """Put the parts together.

    Args:
        suite: Name of the simulated suite.
        latency: What `measure_latency` returned; its policies are the ones of the document, in their order.
        closed_loop: Name -> what `closed_loop.summarise` returned (with ``compared`` where there is a parent).
        real_data: The entry of that name.
        more: Further top-level entries.

    Raises:
        SpecError: The parts do not make a valid document.
    """
    policies = [{"name": name, **closed_loop[name], **row} for name, row in latency["policies"].items()]
    results = {
        "schema_version": SCHEMA_VERSION,
        "date": latency["date"],
        "machine": latency["machine"],
        "versions": latency["versions"],
        "suite": suite,
        "policies": policies,
        "real_data": dict(real_data),
        "ceiling_gflops": latency["ceiling_gflops"],
        "latency_conditions": latency["conditions"],
        **more,
    }
    check_results(results)
    return results


def check_results(data: Any, *, where: str = "results") -> None:
    """Refuse what is not a results document.

    Raises:
        SpecError: A key is missing, of another type or out of range; the message names it.
    """
    if not isinstance(data, dict) or data.get("schema_version") != SCHEMA_VERSION:
        found = data.get("schema_version") if isinstance(data, dict) else type(data).__name__
        raise SpecError(f"{where}: schema_version {found!r}, expected {SCHEMA_VERSION}; make it again with this version of actlet.")
    missing = [key for key in _TOP_KEYS if key not in data]
    if missing:
        raise SpecError(f"{where}: {missing} missing; expected {list(_TOP_KEYS)}.")
    for key, kind in (("machine", dict), ("versions", dict), ("real_data", dict), ("policies", list), ("suite", str), ("date", str)):
        if not isinstance(data[key], kind):
            raise SpecError(f"{where}: {key} is {type(data[key]).__name__}, expected {kind.__name__}.")
    if not data["policies"]:
        raise SpecError(f"{where}: no policies.")
    for policy in data["policies"]:
        _check_policy(policy, where)


def _check_policy(policy: Any, where: str) -> None:
    name = policy.get("name") if isinstance(policy, dict) else None
    if not isinstance(name, str):
        raise SpecError(f"{where}: a policy without a name: {policy!r:.120}.")
    for key in _NUMBERS:
        if not _is_number(policy.get(key, "missing")) and policy.get(key, "missing") is not None:
            raise SpecError(
                f"{where}: policy {name!r}: {key} is {policy.get(key, 'missing')!r}, expected a number, or null if not measured."
            )
    for key in ("success", "success_wrong_instruction"):
        if policy[key] is not None and not 0 <= policy[key] <= 1:
            raise SpecError(f"{where}: policy {name!r}: {key} is {policy[key]}, expected 0 .. 1.")
    interval = policy.get("success_ci95")
    if not (_is_numbers(interval, 2) and 0 <= interval[0] <= interval[1] <= 1):
        raise SpecError(f"{where}: policy {name!r}: success_ci95 is {interval!r}, expected [low, high] in 0 .. 1.")
    latency = policy.get("latency_ms")
    if not isinstance(latency, dict) or not _is_numbers([latency.get(key) for key in _PERCENTILES], 4):
        raise SpecError(f"{where}: policy {name!r}: latency_ms is {latency!r}, expected numbers under {list(_PERCENTILES)}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_numbers(values: Any, count: int) -> bool:
    return isinstance(values, Sequence) and len(values) == count and all(_is_number(value) for value in values)


def write_results(path: str | Path, results: Mapping[str, Any]) -> None:
    """Check and write results.json, whole."""
    check_results(results, where=str(path))
    write_json(path, results)


def read_results(path: str | Path) -> dict[str, Any]:
    """Read and check results.json.

    Raises:
        SpecError: It is missing, not JSON, or not a results document.
    """
    path = Path(path)
    if not path.is_file():
        raise SpecError(f"{path} does not exist. Make it with: actlet demo")
    try:
        data = read_json(path)
    except ValueError as error:
        raise SpecError(f"{path} cannot be read: {error}") from error
    check_results(data, where=str(path))
    return dict(data)
