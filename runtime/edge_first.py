"""Edge first, cloud when unsure: the student on the robot answers, and what it is not sure of is asked of a teacher elsewhere.

    the robot's policy answers ── sure ──▶ used
                               └─ unsure ─▶ kept back; the same observation goes to the other policy, unless that is busy
                                              answer in time ──▶ used
                                              failed, late   ──▶ the newest one that was kept back is used after all

Meanwhile the loop goes on with the chunk that it has, and asks anew; a newer answer that is sure is used at once, and what the other policy says of
an older observation comes too late then. Sure means that the least confidence among the rows that will be executed is `least_confidence` at least.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from actlet.errors import CallerError
from actlet.protocols import Observation
from actlet.specs import TimingSpec
from runtime.inference import Answer, Inference

__all__ = ["EdgeFirst", "longest_patience_s"]


def longest_patience_s(timing: TimingSpec, rate_hz: float) -> float:
    """After which an answer that is kept back can still be used, in [s]: half a step less than the largest delay, since the loop may look once a step."""
    return (timing.max_delay_steps - 0.5) / rate_hz


class EdgeFirst:
    """Implements `runtime.inference.Inference`.

    Args:
        edge: The robot's own policy.
        cloud: The other one.
        least_confidence: In 0 .. 1.
        rows: How many rows of a chunk count, `TimingSpec.execute_steps`.
        patience_s: How long an answer is kept back, from the moment at which it was asked for.
        clock: Monotonic seconds, that of the two.
    """

    def __init__(
        self, edge: Inference, cloud: Inference, *, least_confidence: float, rows: int, patience_s: float, clock: Callable[[], float]
    ) -> None:
        if not 0 <= least_confidence <= 1 or rows < 1 or not patience_s >= 0:
            raise CallerError(
                f"edge first: least_confidence {least_confidence}, rows {rows}, patience_s {patience_s}: expected 0 .. 1, 1 or more, 0 or more."
            )
        self._edge, self._cloud, self._clock = edge, cloud, clock
        self._least, self._rows, self._patience_s = least_confidence, rows, patience_s
        self._asked: tuple[Observation, str, int] | None = None  # What the edge is working on.
        self._kept: Answer | None = None  # The newest answer that was not sure enough.
        self._kept_s = 0.0  # When the first was asked for that is kept back since.
        self._newest = -1  # Step of the newest observation whose answer was handed out.
        self.asked_cloud = 0
        """Observations that the other policy was asked about."""
        self.used_cloud = 0
        """Its answers that came in time."""
        self.unsure = 0
        """Answers of the robot's policy that were not sure enough."""

    def submit(self, observation: Observation, instruction: str, step: int) -> bool:
        """Hand over to the robot's policy; False while it is busy."""
        if not self._edge.submit(observation, instruction, step):
            return False
        self._asked = (observation, instruction, step)
        return True

    def poll(self) -> Answer | None:
        """The answer that has arrived since, from either; never waits."""
        answer = self._cloud.poll()
        if answer is not None and answer.chunk is not None and answer.observed_at > self._newest:
            self.used_cloud += 1
            return self._hand_out(dataclasses.replace(answer, elsewhere=True))
        answer = self._edge.poll()
        if answer is not None:
            if answer.chunk is None:  # Nothing is known of a newer observation: what was kept back is as good as before.
                return answer
            if self._is_sure(answer):
                return self._hand_out(answer)
            self.unsure += 1
            if self._kept is None:
                self._kept_s = answer.submitted_s
            self._kept = answer
            asked = self._asked
            if asked is not None and asked[2] == answer.observed_at and self._cloud.submit(*asked):
                self.asked_cloud += 1
        if self._kept is not None and not 0 <= self._clock() - self._kept_s < self._patience_s:
            return self._hand_out(self._kept)
        return None

    def close(self) -> None:
        """End both."""
        try:
            self._edge.close()
        finally:
            self._cloud.close()

    def _is_sure(self, answer: Answer) -> bool:
        try:
            assert answer.chunk is not None
            return float(min(answer.chunk.confidence[: self._rows])) >= self._least
        except Exception:  # A policy that says nothing of itself, or nonsense: the loop will see to it.
            return True

    def _hand_out(self, answer: Answer) -> Answer:
        self._newest = max(self._newest, answer.observed_at)
        if self._kept is not None and self._kept.observed_at <= answer.observed_at:
            self._kept = None
        return answer
