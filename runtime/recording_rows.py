"""What a recording holds, row by row: the loop's own words (`runtime.journal`), read back."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

__all__ = ["AnswerRow", "CommandRow", "JudgedRow", "LogRow", "ObservedRow"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CommandRow:
    """One command."""

    step: int
    tick: int
    time_s: float
    due: tuple[float, ...] | None
    """What the schedule had for it, None for nothing."""
    sent: tuple[float, ...]
    limited: int
    """Values that were clipped or slowed."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class ObservedRow:
    """One look at the robot; the pictures are `Recording.pictures`'s."""

    step: int
    time_s: float
    taken_s: float | None
    state: NDArray[np.float32]
    """float32 (S,)."""
    committed: NDArray[np.float32] | None
    """float32 (d, A), what the policy was told to be on its way."""
    refused: str
    """Why the policy was not shown it, empty if it was."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AnswerRow:
    """One answer of the policy."""

    step: int
    observed_at: int
    time_s: float
    verdict: str
    error: str
    submitted_s: float
    finished_s: float
    actions: NDArray[np.float32]
    """float32 (H, A); (0, 0) where there was no chunk."""
    confidence: NDArray[np.float32]
    """float32 (H,)."""
    elsewhere: bool = False
    """Of the policy that is asked when the robot's own is unsure."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class JudgedRow:
    """The failsafe has changed."""

    step: int
    time_s: float
    state: str
    cause: str
    since_s: float
    words: str


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LogRow:
    """A line of the log."""

    time_ns: int
    level: int
    message: str
