"""How a run of the control loop is set up, and how it ended."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from actlet.errors import CallerError
from runtime.chunk_schedule import ScheduleConfig
from runtime.failsafe import FailsafeConfig, Verdict
from runtime.loop_statistics import LoopStatistics

__all__ = ["LoopConfig", "LoopResult", "StopReason"]

StopReason = Literal["steps", "done", "terminate", "policy", "hold", "robot", "fault", "interrupted", "emergency"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How the loop runs."""

    max_steps: int | None = None
    """Steps after which it stops, None for no end."""
    realtime: bool = True
    """Keep the rate by the clock; False runs step after step, for robots whose time only passes with commands."""
    rate_hz: float | None = None
    """Steps in a second, None for the policy's own rate. An action is still one step: another rate is faster or slower motion."""
    inference: Literal["thread", "inline"] = "thread"
    """Where the policy runs; "inline" makes the loop wait for it."""
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    """How chunks follow each other."""
    replan_steps: int | None = None
    """Ask for a new chunk this many steps after the one before, None for the policy's `execute_steps`."""
    max_change: tuple[float, ...] | None = None
    """Largest change per step of each action dimension, None for no limit beside the position limits."""
    time_to_live_steps: int | None = None
    """Steps after its observation in which an action may be sent, None for as many as a chunk has actions: all of them."""
    failsafe: FailsafeConfig = dataclasses.field(default_factory=FailsafeConfig)
    """What counts as trouble, and how long it is borne."""

    def __post_init__(self) -> None:
        counts = [n for n in (self.max_steps, self.replan_steps, self.time_to_live_steps) if n is not None]
        if min(counts, default=1) < 1 or not (self.rate_hz is None or 0 < self.rate_hz < math.inf):
            raise CallerError(f"control loop: {self}: expected counts of at least 1 and a positive rate.")
        if not self.realtime and self.inference == "thread":
            raise CallerError("control loop: inference in a thread needs real time; use inference='inline' to run as fast as possible.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopResult:
    """How a run ended."""

    stopped_by: StopReason
    """"steps": max_steps reached; "done": the robot said so; "terminate": the policy commanded it; "policy": bad answers;
    "hold": no valid action for too long; "robot": the robot or its observations failed; "fault": the loop itself failed, or `on_step` did;
    "interrupted": Ctrl-C or an operator's stop; "emergency": an operator's emergency stop."""
    message: str
    """The reason in words."""
    verdict: Verdict
    """The failsafe's last one: how far it went, and why."""
    statistics: LoopStatistics
