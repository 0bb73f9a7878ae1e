"""Positions that a robot can follow: velocity, acceleration and jerk are limited at every tick, whatever the targets do. Pure.

A command is a position per dimension, one a tick of `tick_s`. With y[n] the command of tick n and y[n] = `start` for n < 0, the promise
holds for EVERY sequence of targets (jumps, alternating extremes, targets outside the limits; NaN and Inf are refused)::

    low <= y <= high                                                   exactly
    |y[n] -   y[n-1]                      | <= velocity     tick_s      up to 2 u
    |y[n] - 2 y[n-1] +   y[n-2]           | <= acceleration tick_s^2    up to 4 u
    |y[n] - 3 y[n-1] + 3 y[n-2] - y[n-3]  | <= jerk         tick_s^3    up to 8 u      u = 2^-52 max(|low|, |high|)

u is the rounding of y itself, of which a difference takes several. It is all there is: inside, everything is counted in whole grid
units and exact (below). A command that is rounded to float32 on its way to the robot carries that rounding (2^29 u) into the
differences: at 1 kHz and 3 rad that alone is a jerk of about 1000 rad/s^3, so send doubles, or count it.

Two stages, because each can be proved in a few lines, where the one-stage limiter of third order (Berscheid and Kroeger, Ruckig, 2021)
needs the roots of polynomials and libfranka's `limitRate` knows nothing of the stopping distance, so that it can run over a limit:

1. Velocity and acceleration. State p, v in units per tick; next v' = v + a', p' = p + v'. Stopping as hard as allowed, v travels
   f(v) = sum over k >= 1 of max(0, v - k A) after this tick. The fastest next velocity that can still stop within a distance e is
   x(e) = the largest x with x + f(x) <= e = min over m of e / (m + 1) + A m / 2, reached at m = floor((sqrt(1 + 8 e / A) - 1) / 2).
   (The discrete time-optimal law of a double integrator; Han 2009 has it as fhan.) So

       v' = clamp(sign(e) x(|e|) with e = target - p, to [-V, V], then to [v - A, v + A])

   *Viable*: p + f(v) <= high for v > 0, and its mirror image. A viable state stays so, by induction: the brake v' = v - A always is
   open, since (v - A) + f(v - A) = f(v) <= high - p says v - A <= x(high - p); any v' <= x(high - p) leads to a viable state; and
   the law takes nothing above x(target - p) <= x(high - p) except v - A itself. At rest inside the limits is viable.

2. Jerk. y is the mean of the last N positions p. A mean of numbers inside a limit is inside it: y keeps low, high, velocity and
   acceleration of stage 1. Its jerk is (a[n] - a[n-N]) / N, at most 2 A / N: N is chosen so that this is at most the jerk limit.
   One N for all dimensions, so that a path in several dimensions stays that path.

*Convergence.* From the tick on at which the target is constant, p reaches it and stays, without overshoot if it can still be stopped at,
within (high - low) / velocity + 3 velocity / A + 3 ticks; y does N - 1 ticks later. It stays at the target rounded to the
grid, which is finer than 2^-45 N max(|low|, |high|); outside the limits it is the nearest limit.

*Lag.* A target of constant speed w is followed, after it is caught, with delay `delay_s` = (N - 1) / 2 ticks plus f(w) / w, which is at
most w / (2 A), and 0 where w <= A tick_s. `step` takes the speed of the target too if it is known: then f(w) / w is
0 at every speed within the limit, but a target that stops without having slowed down is overshot by f(w). `delay_s` is known in
advance: ask the `Resampler` for the setpoint that much later, and the robot is on time.

*Price.* Building up A takes 2 A / J where the optimum takes A / J, so a long move from rest to rest ends A / J later than the time-optimal
one. Where velocity or range are so small that A is hardly reached, A is lowered to what makes the move shortest (`accelerations` says to
what; it is the A of all that is said here). Moves of 0.01 to 5 rad at 1 kHz ended 0.001 to 0.002 s after the time-optimal ones with 2 rad/s,
10 rad/s^2, 5000 rad/s^3 (N = 5), and 0.08 to 0.10 s with 1 rad/s, 4 rad/s^2, 40 rad/s^3 (N = 201; 5 rad take 5.35 s at best).

*Exactness.* Positions are whole numbers of a grid unit (a power of two) below 2^47 / N, held in floats: all sums, also the running sum
of N positions, are exact and never drift. x(e) is rounded down by more than its rounding error, which only makes it stop sooner.

Ticks are counted, not timed: a tick that is skipped is not made up. The robot then sees a slower motion, never a faster one, but the
dent in its speed is the missing command's, and no rule for the commands that do come can keep an acceleration across it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from itertools import repeat
from math import isfinite, sqrt
from typing import NamedTuple

from actlet.errors import ActionError, SpecError
from actlet.specs import MotionLimits

__all__ = ["MotionLimiter"]

_GRID_BITS = 46  # N max(|low|, |high|) is below 2^46 units: x(e) of |e| <= 2^47 is then off by less than 0.2 units.
_SMALLEST_UNITS = 16.0  # A limit of fewer units would be rounded down by more than 6 %.
_LONGEST_WINDOW = 100_000  # Ticks; 100 s at 1 kHz: beyond it a limit is meant in another unit.
_ROUND = 1.5 * 2.0**52  # x + _ROUND - _ROUND is the integer nearest to x, for |x| < 2^51.


class MotionLimiter:
    """Turns targets into commands that keep the limits. The module's text says what holds and why.

    Args:
        limits: One for each of the A dimensions, which must be positions (not flags, displacements or velocities).
        low: (A,) smallest positions.
        high: (A,) largest positions.
        start: (A,) the robot's present position, at rest.
        tick_s: Time between two commands in [s].

    Raises:
        SpecError: Lengths differ, limits are not finite or empty, or a limit is too small for the tick or the range.
        ActionError: The start is not inside [low, high]: no command could be given there without a jump.
    """

    def __init__(
        self, limits: Sequence[MotionLimits], *, low: Sequence[float], high: Sequence[float], start: Sequence[float], tick_s: float
    ) -> None:
        lengths = {"limits": len(limits), "low": len(low), "high": len(high), "start": len(start)}
        if len(set(lengths.values())) != 1 or not limits:
            raise SpecError(f"motion limiter: fields of different or zero length {lengths}: give one entry per dimension.")
        if not 0 < tick_s < math.inf:
            raise SpecError(f"motion limiter: tick_s {tick_s}, expected a positive number of seconds.")
        for i, (smallest, largest, position) in enumerate(zip(low, high, start, strict=True)):
            if not (isfinite(smallest) and isfinite(largest) and smallest < largest):
                raise SpecError(
                    f"motion limiter: dimension {i} has limits [{smallest}, {largest}], expected finite numbers with low < high."
                )
            if not smallest <= position <= largest:
                raise ActionError(
                    f"motion limiter: dimension {i} starts at {position}, expected a position inside [{smallest}, {largest}]: "
                    "move the robot there first, or correct the limits."
                )
        self.window = max(_window(own, high[i] - low[i], tick_s) for i, own in enumerate(limits)) | 1
        """N, ticks that a command is the mean of; odd, so that `delay_s` is a whole number of ticks."""
        if self.window > _LONGEST_WINDOW:
            raise SpecError(
                f"motion limiter: the jerk limits need a mean of {self.window} ticks of {tick_s} s, expected at most {_LONGEST_WINDOW}: "
                "check the units of acceleration (unit/s^2) and jerk (unit/s^3), and tick_s."
            )
        self.delay_s = (self.window - 1) // 2 * tick_s
        """By how much a slow target is followed late, in [s]."""
        self._tick_s = tick_s
        dimensions = [_Dimension.make(i, own, low[i], high[i], tick_s, self.window) for i, own in enumerate(limits)]
        self.accelerations = tuple(d.acceleration / d.scale / tick_s**2 for d in dimensions)
        """(A,) what is used in [unit/s^2], at most the limits: less where the jerk limit makes less faster; finite also without a limit."""
        self._constants = tuple((d.scale, d.low, d.high, d.velocity, d.acceleration) for d in dimensions)
        self._speed_scales = tuple(d.scale * tick_s for d in dimensions)
        self._divisors = tuple(d.scale * self.window for d in dimensions)
        positions = [d.nearest(position) for d, position in zip(dimensions, start, strict=True)]
        self.start = [position / d.scale for d, position in zip(dimensions, positions, strict=True)]
        """(A,) where the commands begin: the position given, rounded to the grid."""
        self._past = [positions] * self.window
        still = [0.0] * len(dimensions)
        self._now = _Now(positions, still, [position * self.window for position in positions], 0, self.window)
        self._before = self._now

    @property
    def at_rest(self) -> bool:
        """Whether the last N positions were the same: the commands stand still until the next `step`."""
        return self._now.still_ticks >= self.window

    @property
    def stopping_points(self) -> list[float]:
        """(A,) where `brake` would come to rest; as targets of `step` they are commanded as `brake` commands them."""
        found = []
        for position, velocity, (scale, _, _, _, change) in zip(self._now.positions, self._now.velocities, self._constants, strict=True):
            m = abs(velocity) // change  # Ticks in which it still moves.
            found.append((position + math.copysign(m * abs(velocity) - 0.5 * change * m * (m + 1.0), velocity)) / scale)
        return found

    @property
    def stopping_s(self) -> float:
        """Longest time in which `brake` comes to rest, in [s]."""
        ticks = max(fastest / change for _, _, _, fastest, change in self._constants)
        return (math.ceil(ticks) + self.window) * self._tick_s

    def step(self, targets: Sequence[float], velocities: Sequence[float] | None = None) -> list[float]:
        """The command of this tick.

        Args:
            targets: (A,) where to be, as far as the limits allow; those outside [low, high] are taken as the nearest limit.
            velocities: (A,) speed of the targets in [unit/s] where it is known; None to stop at the targets.

        Raises:
            ActionError: Another length, or not finite. Nothing has changed then; the next command may be `brake` or `step`.
        """
        count = len(self._constants)
        if len(targets) != count or not all(map(isfinite, targets)):
            raise ActionError(
                f"targets {list(targets)}: expected {count} finite numbers; refused, call brake() for a command that is safe."
            )
        if velocities is None:
            speeds: Sequence[float] | repeat[float] = repeat(0.0)
        elif len(velocities) != count or not all(map(isfinite, velocities)):
            raise ActionError(f"velocities {list(velocities)}: expected {count} finite numbers, or None; refused.")
        else:
            speeds = [velocity * scale for velocity, scale in zip(velocities, self._speed_scales, strict=True)]
        new_positions, new_velocities = [], []
        for target, speed, position, velocity, (scale, low, high, fastest, change) in zip(
            targets, speeds, self._now.positions, self._now.velocities, self._constants, strict=False
        ):
            goal = target * scale + _ROUND - _ROUND
            goal = high if goal > high else low if goal < low else goal
            if speed:
                wanted = _wanted_beside(goal, speed, position, low, high, fastest, change)
            else:  # _stoppable, written out: calls would cost a third more.
                wanted = goal - position
                if wanted > change:
                    m = (sqrt(1.0 + 8.0 * wanted / change) - 1.0) // 2.0
                    wanted = (wanted / (m + 1.0) + 0.5 * change * m - 1.0) // 1.0
                elif wanted < -change:
                    m = (sqrt(1.0 - 8.0 * wanted / change) - 1.0) // 2.0
                    wanted = -((0.5 * change * m - wanted / (m + 1.0) - 1.0) // 1.0)
            if wanted > fastest:
                wanted = fastest
            elif wanted < -fastest:
                wanted = -fastest
            if wanted > velocity + change:
                wanted = velocity + change
            elif wanted < velocity - change:
                wanted = velocity - change
            new_velocities.append(wanted)
            new_positions.append(position + wanted)
        return self._advance(new_positions, new_velocities)

    def brake(self) -> list[float]:
        """The command of this tick that comes to rest as soon as allowed, whatever was before; always there, for a failsafe.

        At rest after at most velocity / (A tick_s) + N ticks of nothing but `brake`, A of `accelerations`. `step` may follow at any time.
        """
        velocities = [
            velocity - change if velocity > change else velocity + change if velocity < -change else 0.0
            for velocity, (_, _, _, _, change) in zip(self._now.velocities, self._constants, strict=True)
        ]
        positions = [position + velocity for position, velocity in zip(self._now.positions, velocities, strict=True)]
        return self._advance(positions, velocities)

    def take_back(self) -> None:
        """Forget the last command: it was not sent, and everything is as if it had not been asked for. Once after a `step` or `brake`."""
        self._now = self._before

    def _advance(self, positions: list[float], velocities: list[float]) -> list[float]:
        """Every change is one assignment, so that a Ctrl-C in between leaves the one state or the other, and nothing half done."""
        before, _, sums, place, still_ticks = now = self._now
        self._past[place] = before
        place = place + 1 if place + 1 < self.window else 0
        # Sums of N whole numbers below 2^53: exact.
        sums = [total + new - old for total, new, old in zip(sums, positions, self._past[place], strict=False)]
        found = [total / divisor for total, divisor in zip(sums, self._divisors, strict=False)]
        self._before = now
        self._now = _Now(positions, velocities, sums, place, 0 if any(velocities) else still_ticks + 1)
        return found


class _Now(NamedTuple):
    """What a command leaves behind, in whole grid units and ticks."""

    positions: list[float]
    velocities: list[float]
    sums: list[float]
    """Of the last N positions."""
    place: int
    """Of the positions among the last N; they are put there with the next command."""
    still_ticks: int
    """How long nothing has moved."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Dimension:
    """One dimension in whole grid units and ticks."""

    scale: float  # Grid units in a unit, a power of two.
    low: float
    high: float
    velocity: float  # Units per tick.
    acceleration: float  # Units per tick, per tick.

    @classmethod
    def make(cls, index: int, limits: MotionLimits, low: float, high: float, tick_s: float, window: int) -> _Dimension:
        scale: float = 2.0 ** (_GRID_BITS - math.frexp(window * max(abs(low), abs(high)))[1])
        lowest, highest = float(math.ceil(low * scale)), float(math.floor(high * scale))
        span = highest - lowest
        velocity = span if limits.velocity is None else min(limits.velocity * tick_s * scale // 1, span)
        acceleration = 2 * velocity  # From one direction to the other in a tick: no limit.
        if limits.acceleration is not None:
            acceleration = min(acceleration, limits.acceleration * tick_s**2 * scale // 1)
        if limits.jerk is not None:
            acceleration = min(acceleration, limits.jerk * tick_s**3 * scale * window / 2 // 1)
        if velocity < _SMALLEST_UNITS or acceleration < _SMALLEST_UNITS:
            raise SpecError(
                f"motion limiter: dimension {index} moves less than rounding of its positions in [{low}, {high}] in a tick of {tick_s} s "
                f"with {limits}: expected larger limits, a longer tick, or a wider range."
            )
        return cls(scale=scale, low=lowest, high=highest, velocity=velocity, acceleration=acceleration)

    def nearest(self, position: float) -> float:
        return min(max(float(round(position * self.scale)), self.low), self.high)


def _window(limits: MotionLimits, span: float, tick_s: float) -> int:
    """The number of ticks over which a change of acceleration has to be spread for the jerk limit, at least 1."""
    if limits.jerk is None:
        return 1
    return max(1, math.ceil(min(2 * _acceleration(limits, span) / (limits.jerk * tick_s), 2.0 * _LONGEST_WINDOW)))


def _acceleration(limits: MotionLimits, span: float) -> float:
    """The acceleration A to use with jerk J: the limit, or less where less is faster.

    To a velocity V it takes V / A + 2 A / J, least for A = sqrt(V J / 2); from rest to rest over a distance R, without a limit of
    velocity, 2 sqrt(R / A) + 2 A / J, least for A = (R J^2 / 4)^(1/3).
    """
    assert limits.jerk is not None
    best: float = (span * limits.jerk**2 / 4) ** (1 / 3)
    if limits.velocity is not None:
        best = min(best, sqrt(limits.velocity * limits.jerk / 2))
    return best if limits.acceleration is None else min(best, limits.acceleration)


def _stoppable(distance: float, change: float) -> float:
    """x(e), rounded down: the fastest next velocity that can stop within a distance e >= 0, all in whole units; exact for e <= A."""
    if distance <= change:
        return distance
    m = (sqrt(1.0 + 8.0 * distance / change) - 1.0) // 2.0
    return (distance / (m + 1.0) + 0.5 * change * m - 1.0) // 1.0


def _wanted_beside(goal: float, speed: float, position: float, low: float, high: float, fastest: float, change: float) -> float:
    """The next velocity towards a target that moves: the law of stage 1 in the frame of the target, then viable at the walls."""
    speed = (fastest if speed > fastest else -fastest if speed < -fastest else speed) + _ROUND - _ROUND
    rest = goal - speed - position
    wanted = speed + (_stoppable(rest, change) if rest >= 0.0 else -_stoppable(-rest, change))
    room = high - position if wanted > 0.0 else position - low
    pace = abs(wanted)
    if pace + pace * pace / (2.0 * change) <= room:  # f(v) <= v^2 / (2 A): far from the wall, which is nearly always.
        return wanted
    pace = min(pace, _stoppable(room, change))
    return pace if wanted > 0.0 else -pace
