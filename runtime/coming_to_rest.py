"""The commands of RAMP, SAFE_POSE and ESTOP: how a robot that may not run any more comes to rest.

RAMP fades what moves: with v the command before it began and T = `ramp_s`, the command t seconds into it is v (1 - (t + dt) / T), and 0 from
T - dt on, in the dimensions that stand still at zero (displacements, velocities); the others hold. Where there are several commands in a step, v is
what the last of them was. The limiter may make that slower, so RAMP lasts until nothing moves, or for 2 T and the time in which limits of motion stop
everything.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from actlet.protocols import Robot
from runtime.command_ticks import CommandTicks
from runtime.failsafe import Cause, State
from runtime.judge import Judge
from runtime.limits import CommandLimiter, Limited

__all__ = ["ComingToRest"]

_MOMENT_S = 1e-6
"""Forgives the rounding of differences of clock readings."""


class ComingToRest:
    """What is commanded from RAMP on, step by step.

    Args:
        robot: May have `safe_action()`, an action toward a safe pose or None when it is there, and `emergency_stop()`.
        judge: Whose state it is; failures of the robot are told to it.
        dt_s: Time of a step.
        ticks: What makes the commands between two steps, if anything does: it may have to bring to rest more than a step says.
    """

    def __init__(self, robot: Robot, judge: Judge, dt_s: float, ticks: CommandTicks | None = None) -> None:
        self.is_over = False
        """Nothing is left to do: the run ends instead of another command."""
        self.remark = ""
        """What else is to be said of the end."""
        self._robot, self._judge, self._dt_s, self._ticks = robot, judge, dt_s, ticks
        self._state: State | None = None
        self._steps = 0  # In this state.
        self._from: NDArray[np.float32] | None = None
        self._emergency_told = False

    def command(self, limiter: CommandLimiter) -> Limited | None:
        """The next command; None before the first one, where there is nothing to hold, and once `is_over`."""
        if self._judge.state is not self._state:
            self._state, self._steps = self._judge.state, 0
            if self._ticks is not None:  # Between two steps it may have become slower than the step began, or not be as fast yet.
                limiter.stand_at(self._ticks.moving)
            self._from = limiter.last
        # Of the two the longer: a clock that does not move must not keep a robot from coming to rest.
        for_s = max(self._judge.failsafe.in_state_s, self._steps * self._dt_s)
        self._steps += 1
        if self._state is State.SAFE_POSE:
            return self._toward_safe_pose(limiter)
        if self._state is State.ESTOP:
            self.tell_emergency()
        ramp_s = self._judge.failsafe.config.ramp_s
        stopping_s = 0.0 if self._ticks is None else self._ticks.stopping_s
        is_at_rest = limiter.is_at_rest and (self._ticks is None or self._ticks.at_rest)
        if not self._judge.failsafe.may_reach_safe_pose and (is_at_rest or for_s >= 2 * ramp_s + stopping_s):
            self.is_over = True
            return None
        if self._state is State.ESTOP or self._from is None:
            return limiter.hold()
        left_s = ramp_s - for_s - self._dt_s
        return limiter.fade(self._from, left_s / ramp_s if left_s > _MOMENT_S else 0.0)

    def _toward_safe_pose(self, limiter: CommandLimiter) -> Limited | None:
        """The robot's own way."""
        try:
            action = self._robot.safe_action()  # type: ignore[attr-defined]  # Only a robot that has one gets here.
            if action is not None:
                return limiter.limit(action)
        except Exception as error:
            self._judge.set(Cause.ROBOT_LOST, f"no way to the safe pose ({type(error).__name__}: {error})")
            return limiter.hold()
        self.is_over, self.remark = True, "; the safe pose is reached"
        return None

    def tell_emergency(self) -> None:
        """The robot's own emergency stop, once a run."""
        if self._emergency_told:
            return
        self._emergency_told = True
        try:
            getattr(self._robot, "emergency_stop", lambda: None)()
        except Exception as error:
            self.remark = f"; the robot's emergency stop failed ({type(error).__name__}: {error})"
