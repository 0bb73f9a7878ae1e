"""The student answers, and what it is not sure of is asked of somebody else: every path, in virtual time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from test_runtime_command_rate import After, Arm, Clock, Script, arm_spec, reach

from actlet.errors import CallerError
from actlet.protocols import ActionChunk, Observation, Policy
from actlet.specs import PolicySpec
from runtime.control_loop import LoopConfig, drive
from runtime.edge_first import EdgeFirst, longest_patience_s
from runtime.inference import Answer, Inference

SEEN = Observation({}, np.zeros(1, np.float32))


class Scripted:
    """Is busy from `submit` until `answer` says what comes of it."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.ready: Answer | None = None
        self.busy = self.closed = False

    def submit(self, observation: Observation, instruction: str, step: int) -> bool:
        if self.busy:
            return False
        self.busy = True
        self.asked.append(step)
        return True

    def answer(self, value: float, confidence: float | None) -> None:
        chunk = None if confidence is None else ActionChunk(np.full((4, 2), value, np.float32), np.array([confidence, 1, 0, 0], np.float32))
        self.ready = Answer(observed_at=self.asked[-1], chunk=chunk, error="no" if chunk is None else "", submitted_s=0, finished_s=0)

    def poll(self) -> Answer | None:
        ready, self.ready = self.ready, None
        self.busy = self.busy and ready is None
        return ready

    def close(self) -> None:
        self.closed = True


class Together:
    """Both, and a clock."""

    def __init__(self) -> None:
        self.now, self.edge, self.cloud = 0.0, Scripted(), Scripted()
        self.both = EdgeFirst(self.edge, self.cloud, least_confidence=0.6, rows=2, patience_s=0.3, clock=lambda: self.now)

    def ask(self, step: int, confidence: float | None) -> Answer | None:
        assert self.both.submit(SEEN, "go", step)
        self.edge.answer(step, confidence)
        return self.both.poll()


def test_a_sure_answer_is_used_and_nobody_else_asked() -> None:
    """The rows that will not be executed do not count."""
    both = Together()
    answer = both.ask(0, 0.6)
    assert answer is not None
    assert (answer.observed_at, answer.elsewhere, both.cloud.asked, both.both.unsure) == (0, False, [], 0)


def test_an_unsure_one_waits_for_the_other_policy() -> None:
    """Which is asked about the same observation; its answer is the only one that is handed out."""
    both = Together()
    assert both.ask(3, 0.5) is None
    assert both.cloud.asked == [3]
    both.now = 0.2
    assert both.both.poll() is None
    both.cloud.answer(9.0, 0.1)  # It is not asked how sure it is.
    answer = both.both.poll()
    assert answer is not None
    assert (answer.observed_at, answer.chunk.actions[0, 0], answer.elsewhere) == (3, 9.0, True)
    both.now = 1.0
    assert both.both.poll() is None
    assert (both.both.asked_cloud, both.both.used_cloud, both.both.unsure) == (1, 1, 1)


def test_what_was_kept_back_is_used_when_no_answer_comes() -> None:
    """After the patience since the first unsure one, the newest; and once only."""
    both = Together()
    assert both.ask(0, 0.2) is None
    both.now = 0.2
    assert both.ask(2, 0.3) is None
    assert both.cloud.asked == [0]  # It is busy.
    both.now = 0.31
    answer = both.both.poll()
    assert answer is not None
    assert answer.observed_at == 2
    assert both.both.poll() is None
    both.cloud.answer(9.0, 1.0)
    assert both.both.poll() is None  # It is of step 0, and step 2 was answered already.
    assert both.both.used_cloud == 0


def test_a_failure_of_either_leaves_the_other() -> None:
    """The loop hears of the robot's own failure; the other's is as if it had not been asked."""
    both = Together()
    answer = both.ask(0, None)
    assert answer is not None
    assert answer.error == "no"
    assert both.ask(1, 0.1) is None
    both.cloud.answer(0.0, None)
    assert both.both.poll() is None
    both.now = 5.0
    answer = both.both.poll()
    assert answer is not None
    assert answer.observed_at == 1


def test_a_newer_failure_takes_nothing_away() -> None:
    """What was kept back before it is used, and what the other policy says of it as well."""
    both = Together()
    assert both.ask(0, 0.1) is None
    answer = both.ask(1, None)
    assert answer is not None
    assert answer.chunk is None
    both.now = 0.31
    answer = both.both.poll()
    assert answer is not None
    assert answer.observed_at == 0


@pytest.mark.parametrize("delay_s", [0.012, 0.13])
@pytest.mark.parametrize("hz", [10.0, 200.0])
def test_what_was_kept_back_comes_in_time_to_be_used(tiny_spec: PolicySpec, delay_s: float, hz: float) -> None:
    """A policy that is never sure, and another one that never answers: the robot moves, more slowly, and no answer is too late."""
    spec, clock = arm_spec(tiny_spec, limited=False), Clock()
    arm = Arm(spec, clock, hz)
    policy = Script(spec, reach(0.1), lambda call: 0.2)

    def where(policy: Policy, clock: Callable[[], float]) -> Inference:
        edge, patience_s = After(policy, clock, delay_s), longest_patience_s(spec.timing, spec.timing.rate_hz)
        return EdgeFirst(edge, Scripted(), least_confidence=0.6, rows=3, patience_s=patience_s, clock=clock)

    config = LoopConfig(max_steps=60, least_confidence=0.6, unsure="slow")
    result = drive(arm, policy, None, config, clock=clock, sleep=clock.sleep, inference=where)
    assert result.stopped_by == "steps", result.message
    assert (result.statistics.late_chunks, result.statistics.bad_chunks) == (0, 0)
    assert result.statistics.state_ticks["RUN"] > 50


def test_a_newer_sure_answer_overtakes() -> None:
    """What was kept back and what the other policy says of it later is forgotten."""
    both = Together()
    assert both.ask(0, 0.1) is None
    answer = both.ask(1, 0.9)
    assert answer is not None
    assert answer.observed_at == 1
    both.cloud.answer(9.0, 1.0)
    both.now = 9.0
    assert both.both.poll() is None
    both.both.close()
    assert both.edge.closed
    assert both.cloud.closed


def test_contradictions_are_refused() -> None:
    """A confidence beyond 1."""
    with pytest.raises(CallerError, match=r"least_confidence 1\.5"):
        EdgeFirst(Scripted(), Scripted(), least_confidence=1.5, rows=1, patience_s=1, clock=lambda: 0.0)
