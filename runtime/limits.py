"""The last gate before the robot: whatever comes in, what goes out is finite, inside the limits, and no jump.

Every command passes here, also the one that holds. The promise, for every dimension of every command that is sent::

    low <= command <= high          |command - command before| <= max_change    (continuous dimensions, if configured)
    flags are 0 or 1

np.clip alone does not keep it: NaN passes through np.clip.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from actlet.errors import SpecError
from actlet.specs import ActionSpec

__all__ = ["CommandLimiter", "Limited"]

_HALF = np.float32(0.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limited:
    """A command that may be sent."""

    command: NDArray[np.float32]
    """float32 (A,)."""
    clipped: int
    """Values that were outside the position limits."""
    slowed: int
    """Values whose change was too large."""


class CommandLimiter:
    """Limits commands, remembering the one before.

    Args:
        spec: Names and limits. It must say how to hold.
        max_change: Largest change of each dimension from one command to the next, None for no limit. Ignored for flags.

    Raises:
        SpecError: The specification does not say how to hold, or `max_change` is of another length or not positive.
    """

    def __init__(self, spec: ActionSpec, max_change: tuple[float, ...] | None = None) -> None:
        if spec.hold is None:
            raise SpecError(
                f"action spec {spec.names} does not say how the robot stands still (hold is None). Set hold in the robot's ActionSpec: "
                "'zero' for displacements and velocities, 'last' for positions, openings and flags."
            )
        if max_change is not None and (len(max_change) != spec.dim or not all(0 < change < float("inf") for change in max_change)):
            raise SpecError(f"max_change {max_change}: expected {spec.dim} positive numbers, one for each of {spec.names}.")
        self.spec = spec
        self.last: NDArray[np.float32] | None = None
        """The command before, None before the first."""
        self._low, self._high = np.array(spec.low, np.float32), np.array(spec.high, np.float32)
        self._is_binary = spec.is_binary
        self._flags = np.flatnonzero(self._is_binary).tolist()
        self._holds_zero = np.array([hold == "zero" for hold in spec.hold])
        self._moves = self._holds_zero & ~self._is_binary
        self._max_change = None if max_change is None else np.array(max_change, np.float32)

    def __copy__(self) -> CommandLimiter:
        """One that goes on from the same command before: for asking what would be commanded. Every step does, so it is quick."""
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def limit(self, action: NDArray[np.float32]) -> Limited:
        """The nearest command that may be sent.

        Raises:
            ActionError: Another shape, or not finite: such an action is never mended, only refused.
        """
        command = self.spec.check(action)
        clipped = int(np.count_nonzero(command != np.asarray(action, np.float32)))
        for i in self._flags:
            command[i] = command[i] > _HALF
        slowed = 0
        if self._max_change is not None and self.last is not None:
            # The change is cut, then the result clipped: rounding may not carry a value over a limit.
            change = np.clip(command - self.last, -self._max_change, self._max_change)
            near = np.clip(self.last + change, self._low, self._high)
            slow = ~self._is_binary & (np.abs(command - self.last) > self._max_change)
            slowed = int(slow.sum())
            command = np.where(slow, near, command)
        self.last = command
        return Limited(command=command.copy(), clipped=clipped, slowed=slowed)

    def hold(self) -> Limited | None:
        """The command that stands still: zero or the last value, per dimension, as the specification says.

        Returns:
            None before the first command if a dimension holds its last value: there is none, and the robot stands as it connected.
        """
        if self.last is None:
            return self.limit(np.zeros(self.spec.dim, np.float32)) if self._holds_zero.all() else None
        return self.limit(np.where(self._holds_zero, np.float32(0), self.last))

    def fade(self, start: NDArray[np.float32], share: float) -> Limited:
        """What brings a motion to rest: a share of where it began, in the dimensions that stand still at zero; the others hold.

        Args:
            start: float32 (A,), the command from which on it slows down.
            share: From 1 down to 0.
        """
        still = np.where(self._holds_zero, np.float32(0), start if self.last is None else self.last)
        return self.limit(np.where(self._moves, np.float32(share) * start, still))

    def share(self, action: NDArray[np.float32], share: float) -> NDArray[np.float32]:
        """A share of an action's motion, float32 (A,): of a displacement or a velocity, and of the way from the command before to a position."""
        start = np.where(self._holds_zero, np.float32(0), action if self.last is None else self.last)
        return np.where(self._is_binary, action, start + np.float32(share) * (action - start)).astype(np.float32)

    def stand_at(self, values: Mapping[int, float]) -> None:
        """The robot was made to stand elsewhere, or moves at another speed, than the command before said: dimension -> value."""
        if values and self.last is not None:
            self.last = self.last.copy()
            self.last[list(values)] = list(values.values())

    @property
    def is_at_rest(self) -> bool:
        """Nothing was commanded yet, or the command before moves nothing."""
        return self.last is None or not self.last[self._moves].any()
