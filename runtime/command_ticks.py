"""Commands at a higher rate than the policy's steps: what is sent at each tick between two steps, in plain floats. Pure.

    step (10 .. 50 Hz)      due action -> CommandLimiter: finite, in range -> `plan`: this step's command and those that follow it as it looks now
    tick (100 .. 1000 Hz)   `at`: Resampler -> MotionLimiter -> A doubles for the robot

What a command means depends on its dimension (`runtime.resampler`): of a displacement each tick gets its share, so that a robot with a command
rate adds up what it is sent, as before; positions and velocities are interpolated; flags are what they are for the whole step.

**Limits** are those of `ActionSpec.motion`, kept from one tick to the next for every sequence of plans, in RUN as when it comes to rest; the promise
and its proof are `runtime.motion_limits`'. A displacement is a speed: its share of a tick is limited like a position whose velocity is the
acceleration that is allowed, and whose acceleration is the jerk. Where `motion` says nothing, a tick keeps the range alone.

**Standing still** (`plan(..., holds=True)`): displacements and velocities follow the plan, which says zero; positions come to rest as soon as the
limits allow and stay there, not where the policy wanted them.

**Ahead of time** (`prepare`): a command can be made before its tick, so that it only has to be handed over then; a plan that comes meanwhile, or a tick
that is left out, takes it back, and what is sent is what would have been sent without.

A command is smoothed over N ticks where the jerk is limited, and late by `delay_s`; so the plan is read that much ahead of time, as far as it
goes, and the robot is on time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from actlet.errors import SpecError
from actlet.specs import ActionSpec, MotionLimits
from runtime.motion_limits import MotionLimiter
from runtime.resampler import Resampler, Rows, Shape

__all__ = ["CommandTicks"]

_FREE = MotionLimits()


class CommandTicks:
    """Makes the commands of ticks.

    Args:
        spec: Names, kinds and limits. It must say how to hold.
        step_hz: Rate of the policy's steps.
        tick_hz: Rate of the commands, at least `step_hz`.
        shape: How positions and velocities are interpolated.
        start: (A,) the action that would leave the robot where it is, None where it is not known. Needed if speeds of positions are limited.

    Raises:
        SpecError: Rates or specification do not fit; or positions have limits of motion and it is not known where the robot is.
        ActionError: The start is out of range.
    """

    def __init__(
        self, spec: ActionSpec, *, step_hz: float, tick_hz: float, shape: Shape = "linear", start: Sequence[float] | None = None
    ) -> None:
        self._resampler = Resampler(spec, step_hz=step_hz, tick_hz=tick_hz, shape=shape)
        assert spec.hold is not None  # The resampler refuses others.
        self.tick_s = 1.0 / tick_hz
        """Time of a tick in [s]."""
        self.dim = spec.dim
        """A."""
        motion = spec.motion or (None,) * spec.dim
        continuous = [i for i, kind in enumerate(spec.kinds) if kind == "continuous"]
        self._positions = [i for i in continuous if spec.hold[i] == "last"]
        self._flags = [i for i, kind in enumerate(spec.kinds) if kind == "binary"]
        ranges = {i: self._range(spec, i, motion[i] or _FREE, math.floor(tick_hz / step_hz)) for i in continuous}
        self.start = list(start) if start is not None else None
        """Where positions begin, None where they begin with the first plan."""
        if start is None and (unknown := [spec.names[i] for i in self._positions if motion[i] not in (None, _FREE)]):
            raise SpecError(
                f"the speed of {unknown} is limited (ActionSpec.motion), so it must be known where the robot is before its first command: give the "
                "robot a method present_action() that returns the action which leaves it where it is, or limit nothing."
            )
        # A float32 next to a limit may lie beyond it by its rounding, which a driver that compares doubles refuses.
        self._ranges = [(i, ranges[i][0], ranges[i][1]) for i in continuous if motion[i] in (None, _FREE)]
        self._limited = [i for i in continuous if motion[i] not in (None, _FREE)]
        self._limiter: MotionLimiter | None = None
        if self._limited:
            self._limiter = MotionLimiter(
                [ranges[i][2] for i in self._limited],
                low=[ranges[i][0] for i in self._limited],
                high=[ranges[i][1] for i in self._limited],
                start=[start[i] if start is not None and spec.hold[i] == "last" else 0.0 for i in self._limited],
                tick_s=self.tick_s,
            )
        self._held = [i for i in self._positions if i in self._limited]
        self._ahead = 0 if self._limiter is None else round(self._limiter.delay_s / self.tick_s)
        self.steps_ahead = 2 + math.ceil(self._ahead * step_hz / tick_hz)
        """How many steps after the present one a plan should know."""
        self.delay_s = self._ahead * self.tick_s
        """How far the plan is read ahead of time, in [s]."""
        self._step = 0
        self._rows: list[Rows] = []
        self._stand: dict[int, float] | None = None  # Position -> where it rests, while it holds.
        self._per_step = {i: 1.0 if spec.units[i].endswith("/s") else tick_hz / step_hz for i in continuous if spec.hold[i] == "zero"}
        self._last = [float("nan")] * spec.dim
        self._before_last = self._last
        self._ready: tuple[int, NDArray[np.float64]] | None = None  # A tick and its command, made ahead of its time.
        if start is not None:
            self._last = self._before_last = [0.0 if i in self._per_step else value for i, value in enumerate(start)]

    def _range(self, spec: ActionSpec, i: int, motion: MotionLimits, ticks: int) -> tuple[float, float, MotionLimits]:
        """Smallest and largest value of a tick, and its limits as those of a position."""
        low, high = spec.low[i], spec.high[i]
        assert spec.hold is not None
        if spec.hold[i] == "last":
            return low, high, motion
        per_tick = 1.0
        if not spec.units[i].endswith("/s"):
            low, high, per_tick = low / ticks, high / ticks, self.tick_s
        if motion.velocity is not None:
            low, high = max(low, -motion.velocity * per_tick), min(high, motion.velocity * per_tick)
        velocity = None if motion.acceleration is None else motion.acceleration * per_tick
        return low, high, MotionLimits(velocity=velocity, acceleration=None if motion.jerk is None else motion.jerk * per_tick)

    def step_of(self, tick: int) -> int:
        """The step that a tick belongs to."""
        return self._resampler.step_of(tick)

    def first_tick(self, step: int) -> int:
        """The first tick of a step."""
        return self._resampler.first_tick(step)

    def plan(self, step: int, commands: Sequence[Sequence[float]], *, holds: bool) -> None:
        """What is to be commanded from a step on; replaces what was planned.

        Args:
            step: Of the first command.
            commands: (n, A) finite and in range, one for each step; the last one goes on if nothing else comes.
            holds: Nothing may move on: positions come to rest where they are.
        """
        self._drop_ready()
        rows = [
            Rows(now=now, after=after, before=before, later=later)
            for before, now, after, later in zip(
                [self._before(step), *commands], commands, [*commands[1:], None], [*commands[2:], None, None], strict=False
            )
        ]
        self._step, self._rows = step, rows
        if not holds:
            self._stand = None
        elif self._stand is None:
            self._stand = self._stopping_points(commands[0])

    def _before(self, step: int) -> Sequence[float] | None:
        """The command of the step before, as far as the present plan knows it; None where it held."""
        if not self._rows or self._stand is not None:
            return None
        index = step - 1 - self._step
        if index < 0:  # The plan of this very step is replaced.
            return self._rows[0].before
        return self._rows[index].now if index < len(self._rows) else None

    def _stopping_points(self, command: Sequence[float]) -> dict[int, float]:
        stand = {i: command[i] if math.isnan(self._last[i]) else self._last[i] for i in self._positions}
        if self._limiter is not None:
            stand |= {i: value for i, value in zip(self._limited, self._limiter.stopping_points, strict=True) if i in self._held}
        return stand

    @property
    def standing(self) -> dict[int, float]:
        """Position's dimension -> where it rests, while it holds; empty otherwise."""
        return self._stand or {}

    @property
    def moving(self) -> dict[int, float]:
        """Velocity's or displacement's dimension -> the command of a step that moves it as the last tick did; empty before the first."""
        self._drop_ready()
        return {i: self._last[i] * ticks for i, ticks in self._per_step.items() if not math.isnan(self._last[i])}

    def prepare(self, tick: int) -> None:
        """Make the command of the next tick ahead of its time; after `plan`."""
        self._drop_ready()
        self._ready = (tick, self._make(tick))

    def at(self, tick: int) -> NDArray[np.float64]:
        """float64 (A,), what to send at a tick; after `plan`, once for each tick, in order. A tick may be left out: it is not made up."""
        ready = self._ready
        if ready is not None and ready[0] == tick:
            self._ready = None
            return ready[1]
        self._drop_ready()
        return self._make(tick)

    def take_back(self) -> None:
        """The robot refused the command that `at` gave last: the next one goes on from the one before. Once, before anything else."""
        self._last = self._before_last
        if self._limiter is not None:
            self._limiter.take_back()

    def _drop_ready(self) -> None:
        if self._ready is not None:
            self._ready = None
            self.take_back()

    def _make(self, tick: int) -> NDArray[np.float64]:
        rows, step = self._rows, self._step
        index = self._resampler.step_of(tick + self._ahead) - step
        command = self._resampler.at(tick + self._ahead, rows[index if index < len(rows) else -1])
        if self._ahead:
            now = rows[min(max(0, self._resampler.step_of(tick) - step), len(rows) - 1)].now
            for i in self._flags:
                command[i] = now[i]
        if self._stand is not None:
            for i, value in self._stand.items():
                command[i] = value
        for i, low, high in self._ranges:
            if not low <= command[i] <= high:
                command[i] = low if command[i] < low else high
        if self._limiter is not None:
            limited = self._limiter.step([command[i] for i in self._limited])
            for i, value in zip(self._limited, limited, strict=True):
                command[i] = value
        self._before_last, self._last = self._last, command
        return np.array(command)

    @property
    def at_rest(self) -> bool:
        """Whether the limits have nothing left to bring to rest."""
        self._drop_ready()
        return self._limiter is None or self._limiter.at_rest

    @property
    def stopping_s(self) -> float:
        """Longest time in which everything comes to rest once it may not move any more, in [s]."""
        return 0.0 if self._limiter is None else self._limiter.stopping_s
