"""Is a command safe? Told in plain numbers and apart from the loop's own limits, so that a mistake there is seen here: a soak asks a hundred million times.

once a step             of the right shape, finite, in range; flags 0 or 1; no larger change than `max_change` (rounding of float32 forgiven)
several in a step       the same range, of a displacement its share of a tick; and the differences that `ActionSpec.motion` allows from one command to
                        the next, the first three of a position, the second and third of a share (rounding of doubles forgiven)
"""

from __future__ import annotations

import math
from typing import Any

from actlet.specs import ActionSpec, MotionLimits

__all__ = ["CommandCheck"]

_ROUNDING = 1e-12


class CommandCheck:
    """Looks at one command after the other.

    Args:
        spec: Names, kinds, limits and, where there are several commands in a step, motion.
        max_change: Largest change of each dimension, for one command a step.
        ticks: Commands in a step.
        tick_s: Time of one, in [s].
    """

    def __init__(self, spec: ActionSpec, *, max_change: tuple[float, ...] | None = None, ticks: int = 1, tick_s: float = 1.0) -> None:
        assert spec.hold is not None
        self._dim, self._flags = spec.dim, [i for i, kind in enumerate(spec.kinds) if kind == "binary"]
        motion = spec.motion or (None,) * spec.dim
        self._bounds: list[tuple[int, float, float, float, float, float]] = []
        for i in range(spec.dim):
            low, high = spec.low[i], spec.high[i]
            limits = motion[i] or MotionLimits()
            v, a, j = (math.inf if most is None else most for most in (limits.velocity, limits.acceleration, limits.jerk))
            first, second, third = v * tick_s, a * tick_s**2, j * tick_s**3
            if spec.kinds[i] == "continuous" and spec.hold[i] == "zero" and ticks > 1:  # A share, which is a speed.
                low, high = max(low / ticks, -first), min(high / ticks, first)
                first, second, third = second, third, math.inf
            slack = _ROUNDING * max(abs(low), abs(high))
            if max_change is not None and spec.kinds[i] == "continuous":
                first, slack = max_change[i] * (1 + 1e-5) + 1e-7, 1e-6
            self._bounds.append((i, low - slack, high + slack, first + slack, second + 4 * slack, third + 8 * slack))
        start = [0.0] * spec.dim if spec.motion is not None else None  # Where the robot stands before its first command.
        self._before: tuple[list[float] | None, ...] = (start, start, start)

    def is_safe(self, action: Any) -> bool:
        """Whether the next command is."""
        if getattr(action, "shape", None) != (self._dim,):
            self._before = (None, None, None)
            return False
        values: list[float] = action.tolist()
        one, two, three = self._before
        self._before = (values, one, two)
        for i, low, high, first, second, third in self._bounds:
            value = values[i]
            if not low <= value <= high:  # Neither is NaN.
                return False
            if one is None:
                continue
            change = value - one[i]
            if not -first <= change <= first:
                return False
            if two is None or second == math.inf:
                continue
            bend = change - (one[i] - two[i])
            if not -second <= bend <= second:
                return False
            if three is not None and not -third <= bend - (one[i] - 2 * two[i] + three[i]) <= third:
                return False
        return all(values[i] in (0.0, 1.0) for i in self._flags)
