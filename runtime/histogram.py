"""Durations, counted in classes: what a run of days needs no more memory for than one of seconds."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any

__all__ = ["DECISION_BOUNDS_S", "TICK_BOUNDS_S", "Histogram"]

TICK_BOUNDS_S = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
"""Of lateness and of the work of a tick: a wake-up takes tens of microseconds, a stall tens of milliseconds."""
DECISION_BOUNDS_S = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1, 2e-1, 5e-1, 1.0, 2.0, 5.0)
"""Of decisions: a student takes a millisecond, a teacher elsewhere a second."""


class Histogram:
    """Counts of values up to each bound, the last class without one.

    Args:
        bounds: Upper ends of the classes, ascending.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts: list[int] = [0] * (len(self.bounds) + 1)
        self.sum: float = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.sum += value

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"bounds": self.bounds, "counts": self.counts, "sum": self.sum}
