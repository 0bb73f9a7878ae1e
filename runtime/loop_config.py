"""How a run of the control loop is set up, and how it ended."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from actlet.errors import CallerError
from actlet.ranges import require_fields
from runtime.chunk_schedule import ScheduleConfig
from runtime.failsafe import FailsafeConfig, Verdict
from runtime.loop_statistics import LoopStatistics
from runtime.resampler import Shape

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
    command_rate_hz: float | None = None
    """Commands in a second, at least the rate of the steps (`runtime.command_ticks`); None for the robot's `command_rate_hz`, or one a step."""
    interpolation: Shape = "linear"
    """How positions and velocities get from one step to the next, where there are more commands than steps."""
    inference: Literal["thread", "inline"] = "thread"
    """Where the policy runs; "inline" makes the loop wait for it."""
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    """How chunks follow each other."""
    replan_steps: int | None = None
    """Ask for a new chunk this many steps after the one before, None for the policy's `execute_steps`."""
    max_change: tuple[float, ...] | None = None
    """Largest change per step of each action dimension, None for no limit beside the position limits. Not beside
    `ActionSpec.motion`, nor where there are more commands than steps."""
    time_to_live_steps: int | None = None
    """Steps after its observation in which an action may be sent, None for as many as a chunk has actions: all of them."""
    unsure: Literal["ignore", "slow", "hold"] = "ignore"
    """What an action whose confidence is below `least_confidence` leads to: nothing, `slow_share` of its motion, or HOLD while it lasts. To ask a
    teacher elsewhere instead is `runtime.edge_first`'s business."""
    least_confidence: float = 0.0
    """In 0 .. 1, of `ActionChunk.confidence`. What is low is a matter of the policy: look at a recorded run."""
    slow_share: float = 0.5
    """Of "slow": the share of a displacement, a velocity, or the way to a position."""
    failsafe: FailsafeConfig = dataclasses.field(default_factory=FailsafeConfig)
    """What counts as trouble, and how long it is borne."""

    def __post_init__(self) -> None:
        require_fields(self, ("max_steps", "replan_steps", "time_to_live_steps"), lambda count: count >= 1, "1 or more", optional=True)
        require_fields(self, ("rate_hz", "command_rate_hz"), lambda rate: 0 < rate < math.inf, "a rate above 0 Hz", optional=True)
        require_fields(self, ("least_confidence", "slow_share"), lambda share: 0 <= share <= 1, "0 .. 1")
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
