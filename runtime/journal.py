"""What a recorder is told of a run: the seam between the control loop, which must never wait, and whatever writes things down.

The loop calls these methods in the control process, between a wake-up and the next: none may wait, and what one raises is counted
(`LoopStatistics.journal_errors`) and changes nothing else. Arrays belong to the caller, who may write over them later: copy what is kept.
Times are seconds of the loop's clock, `time.monotonic()` on a robot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from actlet.protocols import Observation
from runtime.failsafe import Verdict
from runtime.inference import Answer

__all__ = ["NOT_ASKED", "Journal"]

NOT_ASKED = "not asked"
"""Why the policy was not shown an observation that was taken for the journal alone."""


class Journal(Protocol):
    """Is told what the loop sees, is answered, judges and commands, in this order within a step.

    Optional attribute: `every_step`; true, it is shown an observation at every step, also where the policy is not asked (`NOT_ASKED`).
    """

    def observed(self, step: int, now_s: float, observation: Observation, refused: str) -> None:
        """The robot was looked at; `refused` says why the policy was not shown it, empty otherwise. Once per question, not once per step."""
        ...

    def answered(self, step: int, now_s: float, answer: Answer, verdict: str, error: str) -> None:
        """An answer came; verdict "used", "old", "late" or "bad", `error` why it was not used. `answer.observed_at` says which observation it answers."""
        ...

    def judged(self, step: int, now_s: float, verdict: Verdict, words: str) -> None:
        """The failsafe's state or its cause has changed; `words` is what was seen of the cause."""
        ...

    def commanded(
        self,
        step: int,
        tick: int,
        now_s: float,
        due: Sequence[float] | NDArray[Any] | None,
        sent: Sequence[float] | NDArray[Any],
        limited: int,
    ) -> None:
        """A command of A numbers was handed to the robot.

        Args:
            step: Of the policy.
            tick: Of the commands, counted from 0; the step where there is one command a step.
            now_s: The loop's clock.
            due: (A,) what the policy's schedule had for it, before all limits; None where nothing was due or the failsafe does not let it run.
            sent: (A,) what was sent.
            limited: Values that were clipped or slowed.
        """
        ...

    def close(self) -> None:
        """The run is over; waits a bounded time for what is not written yet."""
        ...
