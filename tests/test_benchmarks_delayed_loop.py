"""benchmarks.delayed_loop: late answers in virtual time, with the real control loop and a point that reaches targets."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from point_reach import SPEC, PictureReader

from actlet.errors import SpecError
from actlet.protocols import ActionChunk, Observation
from benchmarks.closed_loop import ClosedLoopConfig
from benchmarks.delayed_loop import Delay, VirtualClock, _Arm, run_delayed, summarise_delayed
from episodes.suites import make_suite

ONE_STEP = dataclasses.replace(SPEC, timing=dataclasses.replace(SPEC.timing, horizon=1, execute_steps=1, max_delay_steps=0))
RATE_HZ = SPEC.timing.rate_hz
EPISODES = ClosedLoopConfig(suite="point_reach:make_suite", episodes=12, wrong_episodes=0)


class OneStep(PictureReader):
    """The reader of pictures as a teacher would be: one action an answer. Remembers what it saw."""

    def __init__(self) -> None:
        super().__init__(ONE_STEP)
        self.seen: list[np.ndarray] = []

    def predict(self, observations: Sequence[Observation], instructions: Sequence[str]) -> list[ActionChunk]:
        self.seen += [observation.state.copy() for observation in observations]
        return [ActionChunk(chunk.actions[:1], chunk.confidence[:1]) for chunk in super().predict(observations, instructions)]


def run(delay: Delay, policy: PictureReader | None = None) -> dict[str, object]:
    return summarise_delayed(delay, run_delayed(policy or OneStep(), delay, EPISODES, progress=False), RATE_HZ)


@pytest.mark.parametrize(
    ("latency_s", "still", "on"), [(0.0, 0, 1), (0.05, 0, 1), (0.199, 0, 1), (0.2, 1, 1), (0.21, 1, 2), (0.5, 2, 3), (1.0, 5, 5)]
)
def test_a_latency_is_so_many_steps(latency_s: float, still: int, on: int) -> None:
    """At 5 steps a second: a loop that waits acts within the step, one that does not at the next. And back."""
    assert Delay.of(latency_s, RATE_HZ, "stands still").steps == still
    assert Delay.of(latency_s, RATE_HZ, "moves on").steps == on
    for steps in (1, 2, 7):
        for way in ("stands still", "moves on"):
            delay = Delay(steps=steps, while_waiting=way)  # type: ignore[arg-type]
            assert Delay.of(delay.latency_s(RATE_HZ), RATE_HZ, delay.while_waiting) == delay


@pytest.mark.parametrize("options", [{"steps": -1, "while_waiting": "stands still"}, {"steps": 0, "while_waiting": "moves on"}])
def test_delays_that_cannot_be_are_refused(options: dict[str, object]) -> None:
    """An answer before its question; a loop that never waits with an answer at once."""
    with pytest.raises(SpecError, match="expected 0 steps or more"):
        Delay(**options)  # type: ignore[arg-type]


def test_without_delay_it_succeeds_in_the_tasks_own_time() -> None:
    """Every episode, as in lockstep."""
    found = run(Delay(steps=0, while_waiting="stands still"))
    assert found["success"] == 1.0
    assert found["stopped_by"] == {"done": 12}


def test_an_arm_that_stands_still_decides_the_same_and_takes_longer() -> None:
    """Until its time is over it sees the same states in the same order, one in d + 1 steps; what took it too long is lost."""
    first = dataclasses.replace(EPISODES, episodes=1)
    seen, steps = {}, {}
    for late in (0, 1, 3):
        policy, delay = OneStep(), Delay(steps=late, while_waiting="stands still")
        (episode,) = run_delayed(policy, delay, first, progress=False)
        seen[late], steps[late] = np.array(policy.seen), episode["steps"]
        np.testing.assert_array_equal(seen[late], seen[0][: len(seen[late])])
        assert len(seen[late]) > 1
    assert steps[1] == 2 * steps[0]
    rates = [run(Delay(steps=late, while_waiting="stands still"))["success"] for late in (0, 2, 15)]
    assert rates[0] > rates[1] > rates[2]  # type: ignore[operator]


def test_an_arm_that_moves_on_acts_on_a_scene_that_is_gone() -> None:
    """Every decision is carried out d times, from d steps after what it saw: the commands that the task got, one by one."""
    got: list[np.ndarray] = []
    policy = OneStep()

    class Recorder:
        def __init__(self, task: object) -> None:
            self._task = task

        def __getattr__(self, name: str) -> object:
            return getattr(self._task, name)

        def step(self, action: np.ndarray) -> object:
            got.append(action.copy())
            return self._task.step(action)  # type: ignore[attr-defined]

    suite = make_suite("point_reach:make_suite")
    recorded = type("Suite", (), {"tasks": suite.tasks, "make": lambda self, name: Recorder(suite.make(name))})()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.delayed_loop.make_suite", lambda name: recorded)
        one = dataclasses.replace(EPISODES, episodes=1)
        run_delayed(policy, Delay(steps=2, while_waiting="moves on"), one, progress=False)
    moves = np.array(got)[:, 1:3]
    np.testing.assert_array_equal(moves[:2], 0)  # Nothing was decided yet.
    for start in range(2, len(moves) - 1, 2):
        np.testing.assert_array_equal(moves[start], moves[start + 1])
    assert moves[2].any()


def test_moving_on_takes_longer_the_later_it_is() -> None:
    """It overshoots and comes back."""
    soon, late = (run(Delay(steps=steps, while_waiting="moves on")) for steps in (1, 6))
    assert late["mean_seconds"] > soon["mean_seconds"]  # type: ignore[operator]


def test_a_policy_that_was_made_for_no_delay_is_refused_late() -> None:
    """Without the repetition the control loop takes none of its late answers, holds, and stops."""
    from benchmarks.delayed_loop import _Waiting
    from runtime.control_loop import LoopConfig, drive

    clock, task = VirtualClock(), make_suite("point_reach:make_suite").make("red")
    arm = _Arm(task, seed=0, clock=clock)
    result = drive(
        arm,
        OneStep(),
        config=LoopConfig(inference="inline"),
        clock=clock,
        sleep=clock.sleep,
        inference=lambda policy, _: _Waiting(policy, clock, 0.25),
    )
    assert result.stopped_by == "policy"
    assert "later than the 0 steps the policy was made for" in result.message
    assert not arm.success


def test_a_policy_of_chunks_hides_the_delay() -> None:
    """Its later rows are meant for later steps: as it is, nothing is repeated."""
    timing = dataclasses.replace(SPEC.timing, execute_steps=1, max_delay_steps=2)
    found = run(Delay(steps=1, while_waiting="moves on"), PictureReader(dataclasses.replace(SPEC, timing=timing)))
    assert found["success"] == 1.0


def test_the_same_again() -> None:
    """Nothing depends on the machine's time."""
    delay = Delay(steps=2, while_waiting="moves on")
    first, second = (run_delayed(OneStep(), delay, EPISODES, progress=False) for _ in range(2))
    assert first == second
