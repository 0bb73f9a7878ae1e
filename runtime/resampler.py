"""What to command between two policy steps: the actions of a chunk, due once a step, turned into a setpoint for every tick. Pure.

A policy acts at `step_hz` (10 .. 50 Hz), a robot wants a command at `tick_hz` (100 .. 1000 Hz). Ticks are counted from 0, and r = tick_hz /
step_hz is kept as a fraction, so nothing drifts: tick i belongs to step k = floor(i / r) and lies at the phase i / r - k in [0, 1) of it.
A step has n = floor(r) or ceil(r) ticks. With a[k] the action due at step k, what a dimension gets follows from its `ActionSpec`::

    flag (kind "binary")                          a[k] during the whole step
    position, opening (hold "last")               from a[k] at the step's first moment to a[k+1] at its end, on a line or a cubic
    velocity (hold "zero", unit ends in "/s")     the same
    displacement per step (hold "zero")           a[k] / n at each of the n ticks of the step

*What holds.* Interpolated values are never outside [a[k], a[k+1]]: exactly, the result is clipped to it. The cubic is monotone between its
neighbours (Fritsch and Butland 1984: the slope at a step is the harmonic mean of the slopes on both sides, 0 at an extreme, so at most
twice the smaller one, inside the region of Fritsch and Carlson 1980), and its speed has no jumps inside a chunk. The shares of a
displacement add up to the action within n roundings of it.

*No memory.* A setpoint depends on the tick and the rows alone. So a tick that is skipped is not made up: an interpolated dimension is
where it should be by then, and a displacement's missed share is lost, never sent in a burst. When a newer chunk takes over in mid-step,
the rest of the step follows its rows: displacements give each chunk the share of its ticks; a position may jump by at most the
difference of the two chunks' rows there, which is for `MotionLimiter` to spread.

*Beyond the horizon.* The last action has no successor: positions and velocities keep it until the step is over; then there is nothing
due, and to hold is the control loop's business.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

from actlet.errors import ActionError, SpecError
from actlet.specs import ActionSpec

__all__ = ["Resampler", "Rows"]

Shape = Literal["linear", "cubic"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """The actions due around a tick of step k, each A finite numbers; as plain floats (`array.tolist()`), made once a step."""

    now: Sequence[float]
    """Due at step k."""
    after: Sequence[float] | None = None
    """Due at step k + 1, None beyond the horizon."""
    before: Sequence[float] | None = None
    """Due at step k - 1, None where there was none; only the cubic looks at it."""
    later: Sequence[float] | None = None
    """Due at step k + 2, None beyond the horizon; only the cubic looks at it."""


class Resampler:
    """Setpoints at any tick.

    Args:
        spec: Says what each dimension means. It must say how to hold.
        step_hz: Rate of the actions, `TimingSpec.rate_hz`.
        tick_hz: Rate of the commands, at least `step_hz`.
        shape: "linear" looks at two actions and its speed jumps at each; "cubic" looks at four.

    Raises:
        SpecError: The specification does not say how to hold, or the rates are not positive or ticks rarer than steps.
    """

    def __init__(self, spec: ActionSpec, *, step_hz: float, tick_hz: float, shape: Shape = "linear") -> None:
        if spec.hold is None:
            raise SpecError(
                f"action spec {spec.names} does not say how the robot stands still (hold is None), which tells positions from displacements. "
                "Set hold in the robot's ActionSpec: 'zero' for displacements and velocities, 'last' for positions, openings and flags."
            )
        if not (0 < step_hz <= tick_hz < math.inf):
            raise SpecError(f"resampler: step_hz {step_hz}, tick_hz {tick_hz}: expected 0 < step_hz <= tick_hz, both finite.")
        if shape not in ("linear", "cubic"):
            raise SpecError(f"resampler: shape {shape!r}, expected 'linear' or 'cubic'.")
        self._dim, self._cubic, self._step_hz = spec.dim, shape == "cubic", step_hz
        ratio = Fraction(tick_hz) / Fraction(step_hz)
        self._ticks, self._steps = ratio.numerator, ratio.denominator  # So many ticks in so many steps.
        self._displaced: list[int] = []
        self._interpolated: list[int] = []
        for i, (kind, hold, unit) in enumerate(zip(spec.kinds, spec.hold, spec.units, strict=True)):
            if kind == "continuous":
                (self._displaced if hold == "zero" and not unit.endswith("/s") else self._interpolated).append(i)

    def step_of(self, tick: int) -> int:
        """k, the step that a tick belongs to: the rows to look up."""
        return tick * self._steps // self._ticks

    def first_tick(self, step: int) -> int:
        """The first tick of a step."""
        return -(-step * self._ticks // self._steps)

    def at(self, tick: int, rows: Rows) -> list[float]:
        """The (A,) setpoints of a tick; displacements are shares, one per tick.

        Raises:
            ActionError: A row is of another length.
        """
        self._check(rows)
        step, rest = divmod(tick * self._steps, self._ticks)
        setpoints = list(rows.now)
        if self._displaced:
            count = self.first_tick(step + 1) - self.first_tick(step)
            for i in self._displaced:
                setpoints[i] /= count
        if rows.after is None or not rest:
            return setpoints
        phase, now, after = rest / self._ticks, rows.now, rows.after
        for i in self._interpolated:
            a, b = now[i], after[i]
            if self._cubic:
                change = b - a
                begin, end = self._slopes(i, rows)
                value = a + phase * (begin + phase * (3.0 * change - 2.0 * begin - end + phase * (begin + end - 2.0 * change)))
            else:
                value = (1.0 - phase) * a + phase * b
            if a > b:
                a, b = b, a
            setpoints[i] = a if value < a else b if value > b else value
        return setpoints

    def speeds_at(self, tick: int, rows: Rows) -> list[float]:
        """How fast the setpoints of positions and velocities change after a tick, (A,) in [unit/s]; 0 for the others and beyond the horizon.

        What `MotionLimiter.step` takes as `velocities`.

        Raises:
            ActionError: A row is of another length.
        """
        self._check(rows)
        speeds = [0.0] * self._dim
        if rows.after is None:
            return speeds
        phase = tick * self._steps % self._ticks / self._ticks
        for i in self._interpolated:
            change = rows.after[i] - rows.now[i]
            if self._cubic:
                begin, end = self._slopes(i, rows)
                change = begin + phase * (6.0 * change - 4.0 * begin - 2.0 * end + phase * 3.0 * (begin + end - 2.0 * change))
            speeds[i] = change * self._step_hz
        return speeds

    def _slopes(self, i: int, rows: Rows) -> tuple[float, float]:
        """The cubic's slopes at its two ends, per step; that of the line where the neighbour is not known."""
        assert rows.after is not None
        a, b = rows.now[i], rows.after[i]
        begin = end = b - a
        if rows.before is not None:
            begin = _harmonic_mean(a - rows.before[i], begin)
        if rows.later is not None:
            end = _harmonic_mean(end, rows.later[i] - b)
        return begin, end

    def _check(self, rows: Rows) -> None:
        dim = self._dim
        for row in (rows.now, rows.after, rows.before, rows.later):
            if row is not None and len(row) != dim:
                raise ActionError(f"resampler: a row of {len(row)} numbers, expected {dim}, one for each dimension of the action spec.")


def _harmonic_mean(one: float, other: float) -> float:
    """0 where the signs differ: a place where the values turn."""
    if (one > 0.0 and other > 0.0) or (one < 0.0 and other < 0.0):
        return 2.0 * one / (1.0 + one / other) if abs(one) < abs(other) else 2.0 * other / (1.0 + other / one)
    return 0.0
