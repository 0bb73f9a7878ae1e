"""Several journals told as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray

from actlet.protocols import Observation
from runtime.failsafe import Verdict
from runtime.inference import Answer
from runtime.journal import Journal

__all__ = ["Journals"]


class Journals:
    """Tells each; what one of them raises is raised after the others were told. Each is closed by who made it, who may have more to tell it.

    Args:
        journals: In the order in which they are told.
    """

    def __init__(self, *journals: Journal) -> None:
        self.every_step: bool = any(getattr(journal, "every_step", False) for journal in journals)
        """One of them wants to see every step."""
        self._observed = [journal.observed for journal in journals]
        self._answered = [journal.answered for journal in journals]
        self._judged = [journal.judged for journal in journals]
        self._commanded = [journal.commanded for journal in journals]

    def observed(self, step: int, now_s: float, observation: Observation, refused: str) -> None:
        """Each."""
        _tell(self._observed, step, now_s, observation, refused)

    def answered(self, step: int, now_s: float, answer: Answer, verdict: str, error: str) -> None:
        """Each."""
        _tell(self._answered, step, now_s, answer, verdict, error)

    def judged(self, step: int, now_s: float, verdict: Verdict, words: str) -> None:
        """Each."""
        _tell(self._judged, step, now_s, verdict, words)

    def commanded(
        self,
        step: int,
        tick: int,
        now_s: float,
        due: Sequence[float] | NDArray[Any] | None,
        sent: Sequence[float] | NDArray[Any],
        limited: int,
    ) -> None:
        """Each."""
        _tell(self._commanded, step, tick, now_s, due, sent, limited)

    def close(self) -> None:
        """Nothing."""


def _tell(calls: Sequence[Callable[..., None]], *arguments: Any) -> None:
    failure: Exception | None = None
    for call in calls:
        try:
            call(*arguments)
        except Exception as error:
            failure = failure or error
    if failure is not None:
        raise failure
