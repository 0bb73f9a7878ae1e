"""What a run of the control loop is judged by: counts, and percentiles of times."""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Iterator
from typing import Any

from actlet.statistics import latency_summary

__all__ = ["Durations", "LoopStatistics"]

_KEPT = 100_000
"""Newest durations that percentiles are taken of, so that a run of days does not grow: at 1 kHz the last 100 s."""


class Durations:
    """The newest durations in [s], in memory that is there from the beginning: a loop that must not be late asks for none while it runs.

    Args:
        most: How many are kept.
    """

    def __init__(self, most: int = _KEPT) -> None:
        self._values, self._most = array("d", bytes(8 * most)), most
        self.count = 0
        """How many there were in all."""

    def append(self, value: float) -> None:
        """One more; where there is no room, in place of the oldest."""
        self._values[self.count % self._most] = value
        self.count += 1

    def after(self, count: int) -> list[float]:
        """Those that came after the first `count`, as far as they are kept, the oldest first."""
        first = max(count, self.count - self._most)
        start, end = first % self._most, (self.count - 1) % self._most + 1
        if first >= self.count:
            return []
        values = self._values[start:end] if start < end else self._values[start:] + self._values[:end]
        return values.tolist()

    @property
    def newest(self) -> float:
        """The last one; 0 before the first."""
        return self._values[(self.count - 1) % self._most]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Durations) and self.count == other.count and self.after(0) == other.after(0)

    __hash__ = None  # type: ignore[assignment]  # It changes.

    def __len__(self) -> int:
        return min(self.count, self._most)

    def __iter__(self) -> Iterator[float]:
        return iter(self.after(0))


@dataclasses.dataclass(kw_only=True)
class LoopStatistics:
    """Counts of one run; times are in seconds of the loop's clock."""

    ticks: int = 0
    """Steps that were run."""
    sent: int = 0
    """Commands that were sent, holds included."""
    commands: int = 0
    """Ticks that were run: as many as steps, unless there are more commands than steps."""
    missed_commands: int = 0
    """Ticks that were skipped because they were over; those of skipped steps among them."""
    missed_deadlines: int = 0
    """Steps that were skipped because they were over."""
    holds: int = 0
    """Steps without an action of the policy: nothing valid was due, or the failsafe said so."""
    clipped: int = 0
    """Values outside the position limits, set to the limit."""
    slowed: int = 0
    """Values whose change was too large, cut."""
    chunks: int = 0
    """Answers of the policy that were used."""
    bad_chunks: int = 0
    """Answers that failed, were not finite, of another shape, or older than one that was there."""
    late_chunks: int = 0
    """Answers that came later than the policy was made for."""
    misjudged_chunks: int = 0
    """Answers that came later than the policy was told, so that it did not know all that was commanded before them."""
    bad_observations: int = 0
    """Observations that the policy was not shown: not as specified, too old, or frozen."""
    expired: int = 0
    """Steps whose action was older than its time to live, and was not sent."""
    unsure: int = 0
    """Steps whose action the policy was less sure of than it should be."""
    asked_elsewhere: int = 0
    """Observations that a second policy was asked about, because the first was unsure (`runtime.edge_first`)."""
    used_elsewhere: int = 0
    """Its answers that came in time."""
    journal_errors: int = 0
    """Records that the journal failed on."""
    state_ticks: dict[str, int] = dataclasses.field(default_factory=dict)
    """State of the failsafe -> steps that were commanded in it."""
    state_s: dict[str, float] = dataclasses.field(default_factory=dict)
    """State of the failsafe -> time spent in it."""
    causes: dict[str, int] = dataclasses.field(default_factory=dict)
    """Cause of the failsafe -> how often it became active."""
    started_s: float = 0.0
    ended_s: float = 0.0
    latencies_s: Durations = dataclasses.field(default_factory=Durations)
    """From handing over the observation to having the chunk."""
    ages_s: Durations = dataclasses.field(default_factory=Durations)
    """From taking the observation to sending the action that answers it."""
    reactions_s: Durations = dataclasses.field(default_factory=Durations)
    """From taking an observation to the first command that is made of it."""
    lateness_s: Durations = dataclasses.field(default_factory=Durations)
    """From the moment for which a wake-up was asked to the moment at which the loop ran."""
    tick_s: Durations = dataclasses.field(default_factory=Durations)
    """From a wake-up to its command having been sent."""

    @property
    def elapsed_s(self) -> float:
        """Duration of the run."""
        return self.ended_s - self.started_s

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; percentiles in milliseconds, None where nothing was measured."""
        counts = (
            "ticks",
            "sent",
            "commands",
            "missed_commands",
            "missed_deadlines",
            "holds",
            "clipped",
            "slowed",
            "chunks",
            "bad_chunks",
            "late_chunks",
            "misjudged_chunks",
            "bad_observations",
            "expired",
            "unsure",
            "asked_elsewhere",
            "used_elsewhere",
            "journal_errors",
        )
        data: dict[str, Any] = {name: getattr(self, name) for name in counts}
        data["state_ticks"], data["state_s"], data["causes"] = dict(self.state_ticks), dict(self.state_s), dict(self.causes)
        data["elapsed_s"] = self.elapsed_s
        data["ticks_per_s"] = self.ticks / self.elapsed_s if self.elapsed_s > 0 else None
        data["decisions_per_s"] = self.chunks / self.elapsed_s if self.elapsed_s > 0 else None
        data["decision_latency_ms"] = latency_summary(list(self.latencies_s)) if self.latencies_s else None
        for name, times in (
            ("action_age", self.ages_s),
            ("reaction", self.reactions_s),
            ("lateness", self.lateness_s),
            ("tick", self.tick_s),
        ):
            data[f"{name}_ms"] = latency_summary(list(times)) if times else None
        return data
