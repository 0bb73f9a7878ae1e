"""Laws of closed-loop evaluation, on a point that reaches coloured targets."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from actlet.errors import ActletError, CallerError, SpecError, UnknownNameError
from actlet.protocols import ActionChunk, Observation, Policy
from actlet.specs import TimingSpec
from episodes.motion_quality import motion_quality
from episodes.rollout import EpisodeResult, collect_states, evaluate, success_summary

SUITE = "point_reach:make_suite"
SEEDS = range(10, 34)


@pytest.fixture(autouse=True)
def points(monkeypatch: pytest.MonkeyPatch) -> None:
    """The helper module is importable, here and in spawned processes."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def reader() -> Policy:
    """A policy that succeeds."""
    from point_reach import PictureReader

    return PictureReader()


def run(factory: Callable[[], Policy] = reader, **options: object) -> list[EpisodeResult]:
    return evaluate(factory, SUITE, SEEDS, **{"workers": 1, "progress": False, **options})


def test_a_policy_that_reads_the_picture_succeeds_everywhere() -> None:
    """Every seed has a result, in the order of the seeds, on the task that the seed stands for."""
    results = run()
    assert [result.seed for result in results] == list(SEEDS)
    assert [result.task for result in results] == [("red", "blue")[seed % 2] for seed in SEEDS]
    assert all(result.success and not result.error for result in results)


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_results_do_not_depend_on_the_batch(batch: int) -> None:
    """Company in a batch changes nothing."""
    assert run(batch=batch) == run()


def test_results_do_not_depend_on_the_number_of_processes() -> None:
    """Two spawned workers give what this process gives."""
    import point_reach

    assert run(point_reach.PictureReader, workers=2, batch=5) == run()


def test_the_order_is_that_of_the_seeds_given() -> None:
    """Seeds need not be sorted."""
    seeds = [7, 3, 12, 0]
    assert [result.seed for result in evaluate(reader, SUITE, seeds, workers=1, batch=3, progress=False)] == seeds


def test_the_policy_is_asked_for_whole_batches() -> None:
    """Lanes advance in lockstep."""
    policy = reader()
    run(lambda: policy, batch=8)
    assert policy.largest_batch == 8


def test_execute_steps_actions_are_executed_before_the_policy_is_asked_again() -> None:
    """With 3 of 4 executed, an episode of n steps asks ceil(n / 3) times."""

    class Counting:
        spec = reader().spec

        def __init__(self) -> None:
            self.inner, self.calls = reader(), 0

        def predict(self, observations: list[Observation], instructions: list[str]) -> list[ActionChunk]:
            self.calls += 1
            return self.inner.predict(observations, instructions)

    policy = Counting()
    results = evaluate(lambda: policy, SUITE, SEEDS, workers=1, batch=1, progress=False)
    assert policy.calls == sum(math.ceil(result.steps / 3) for result in results)


def test_a_wrong_instruction_is_given_and_the_original_task_judged() -> None:
    """A policy that listens fails then."""
    results = run(wrong_instruction=True)
    assert all(result.task not in result.instruction for result in results)
    assert sum(result.success for result in results) <= 4 < sum(result.success for result in run())


def test_terminate_before_success_is_a_failure() -> None:
    """Terminate ends the episode at once, and the result says so."""
    from point_reach import PictureReader

    results = run(lambda: PictureReader(terminate_at_m=10.0))
    assert all(result.terminated_early and not result.success and result.steps == 1 for result in results)


def test_an_exception_fails_its_own_episode_only(capsys: pytest.CaptureFixture[str]) -> None:
    """Within a shared batch, only the episodes whose observation raises fail, with the message, and it is reported."""
    from point_reach import Fragile, PointReach

    results = run(Fragile)
    left = [PointReach("red").reset(seed)[0].state[0] < 0.4 for seed in SEEDS]
    assert any(left)
    assert not all(left)
    for result, started_left in zip(results, left, strict=True):
        if started_left:
            assert not result.success
            assert result.error == "RuntimeError: the left half is not for me"
    assert any(result.success for result in results)
    failed = sum(bool(result.error) for result in results)
    assert f"{failed} of 24 episodes failed with an error: RuntimeError: the left half" in capsys.readouterr().err


def test_an_action_that_is_not_finite_is_never_executed() -> None:
    """The episode fails with the name of the dimension."""

    class NotANumber:
        spec = reader().spec

        def predict(self, observations: list[Observation], instructions: list[str]) -> list[ActionChunk]:
            return [ActionChunk(np.full((4, 4), np.nan, np.float32), np.ones(4, np.float32)) for _ in observations]

    results = run(NotANumber)
    assert all(result.steps == 0 and "ActionError: action: ['terminate'" in result.error for result in results)


def test_a_dead_worker_leaves_failures_that_say_so() -> None:
    """Every episode is accounted for, even when a process ends without a word."""
    import point_reach

    results = run(point_reach.Deadly, workers=2)
    assert [result.seed for result in results] == list(SEEDS)
    assert all(result.error == "WorkerDied: the worker process ended with exit code 7" for result in results)


def test_a_factory_that_fails_in_a_worker_raises_with_its_traceback() -> None:
    """Not one failed episode each: the policy never was."""
    with pytest.raises(ActletError, match=r"(?s)ValueError.*math domain error.*Traceback"):
        run(functools.partial(math.sqrt, -1.0), workers=2)


def test_a_factory_that_cannot_travel_is_refused() -> None:
    """The message says what to give instead."""
    with pytest.raises(CallerError, match=r"cannot be sent to another process .*workers=1"):
        run(lambda: reader(), workers=2)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_policy_for_another_rate_is_refused(workers: int) -> None:
    """Before any motion, naming both rates, from this process and from a worker."""
    import point_reach

    timing = TimingSpec(rate_hz=50.0, horizon=4, execute_steps=3, max_delay_steps=0)
    factory = functools.partial(point_reach.PictureReader, dataclasses.replace(point_reach.SPEC, timing=timing))
    with pytest.raises(SpecError, match=r"policy acts at 50.0 Hz, the task at 5.0 Hz"):
        run(factory, workers=workers)


def test_worker_threads_are_limited_without_touching_this_process() -> None:
    """The parent's environment is as before."""
    import point_reach

    before = dict(os.environ)
    run(point_reach.PictureReader, workers=2)
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ("green",)}, "unknown task of suite"),
        ({"workers": 0}, "at least 1"),
        ({"batch": 0}, "at least 1"),
        ({"tasks": ()}, "at least one task"),
    ],
)
def test_requests_without_sense_are_refused(options: dict[str, object], message: str) -> None:
    """Before anything runs."""
    with pytest.raises(CallerError, match=message):
        run(**options)


def test_a_seed_given_twice_is_refused() -> None:
    """It would count one episode as two."""
    with pytest.raises(CallerError, match=r"seeds repeated \[4\]"):
        evaluate(reader, SUITE, [4, 5, 4], workers=1, progress=False)


def test_an_unknown_suite_is_refused() -> None:
    """With the closest name."""
    with pytest.raises(UnknownNameError, match="Did you mean 'tabletop'"):
        evaluate(reader, "tabeltop", SEEDS)


def test_collected_states_replay_to_the_same_episode() -> None:
    """Executing the recorded actions again visits the recorded states."""
    from point_reach import ACTION, OBSERVATION, PointReach

    episodes = collect_states(reader, SUITE, SEEDS, workers=1, batch=4, progress=False)
    assert [episode.seed for episode in episodes] == list(SEEDS)
    for episode in episodes:
        episode.check(OBSERVATION, ACTION)
        task = PointReach(episode.task)
        observation, _ = task.reset(episode.seed or 0)
        for index in range(len(episode)):
            assert np.array_equal(observation.state, episode.state[index])
            assert np.array_equal(observation.images["above"], episode.images["above"][index])
            observation = task.step(episode.action[index]).observation


def test_collected_states_come_with_the_experts_answers_if_asked() -> None:
    """The expert points from the state to the target of the original task, whatever was executed."""
    import point_reach

    episodes, labels = collect_states(point_reach.PictureReader, SUITE, SEEDS, expert=True, workers=2, progress=False)
    assert len(episodes) == len(labels) == len(SEEDS)
    for episode, label in zip(episodes, labels, strict=True):
        y, x = np.argwhere((episode.images["above"][0] == point_reach.COLOURS[episode.task]).all(-1))[0]
        away = (np.array([x, y]) + 0.5) * point_reach.METRES_PER_PX - episode.state
        np.testing.assert_allclose(label[:, 1:3], np.clip(away, -0.08, 0.08), atol=1e-6)


def test_the_summary_counts_and_is_json() -> None:
    """Overall and per task, with intervals that hold the rate."""
    results = run(wrong_instruction=True, tasks=("red",)) + run(tasks=("blue",))
    summary = json.loads(json.dumps(success_summary(results)))
    assert summary["n"] == 48
    assert summary["successes"] == sum(task["successes"] for task in summary["tasks"].values())
    assert summary["tasks"]["blue"]["rate"] == 1.0
    rounding = 1e-9
    assert all(row["low"] - rounding <= row["rate"] <= row["high"] + rounding for row in (summary, *summary["tasks"].values()))
    assert success_summary([])["rate"] is None


def test_motion_quality_of_known_motions() -> None:
    """A straight line at constant speed has no jerk; a cubic has its own; a path's length and the gripper's flips are counted."""
    from point_reach import ACTION, OBSERVATION

    t = np.arange(11) / 5.0
    actions = np.zeros((10, 4), np.float32)
    actions[:, 3] = [0, 0, 1, 1, 0, 0, 0, 1, 1, 1]
    line = motion_quality(np.stack([3 * t, 4 * t], axis=1), actions, OBSERVATION, ACTION, 5.0)
    assert line.mean_squared_jerk == pytest.approx(0.0, abs=1e-12)
    assert line.path_length == pytest.approx(10.0)
    assert line.gripper_flips == 3
    cubic = motion_quality(np.stack([t**3, 0 * t], axis=1), actions, OBSERVATION, ACTION, 5.0)
    assert cubic.mean_squared_jerk == pytest.approx(36.0)
    assert motion_quality(np.zeros((3, 2)), actions[:2], OBSERVATION, ACTION, 5.0).mean_squared_jerk is None


@pytest.mark.parametrize(
    ("delay", "rows"),
    [(0, [10, 20, 30, 40, 50, 60]), (1, [0, 11, 21, 31, 41, 51]), (2, [0, 0, 12, 13, 22, 23]), (3, [0, 0, 0, 13, 23, 33])],
)
def test_under_a_delay_the_rows_from_d_on_are_executed_until_the_next_answer(delay: int, rows: list[int]) -> None:
    """Zeros first, then of each chunk the rows that are in time, as many as pass until the next answer. The policy is told what is on its way as far as
    it can be told of it."""

    class Numbered:
        """Row i of its n-th answer is a displacement that says n and i."""

        spec = dataclasses.replace(
            reader().spec, timing=TimingSpec(rate_hz=5, horizon=4, execute_steps=1, max_delay_steps=3, committed_steps=1)
        )

        def __init__(self) -> None:
            self.heard: list[np.ndarray | None] = []

        def predict(self, observations: list[Observation], instructions: list[str]) -> list[ActionChunk]:
            self.heard.append(observations[0].committed)
            actions = np.zeros((4, 4), np.float32)
            actions[:, 1] = 1e-4 * (10 * len(self.heard) + np.arange(4))
            return [ActionChunk(actions, np.ones(4, np.float32))]

    policy = Numbered()
    (episode,) = collect_states(lambda: policy, SUITE, [10], workers=1, delays=[delay], progress=False)
    moves = episode.action[:, 1]
    np.testing.assert_allclose(moves[:6], 1e-4 * np.float32(rows), rtol=1e-4)
    between = {0: 1, 1: 1, 2: 2, 3: 1}[delay]  # Steps from question to question.
    assert len(policy.heard) == -(-len(moves) // between)
    if delay == 0:
        assert not any(told is not None for told in policy.heard)
    else:
        np.testing.assert_allclose([told[0, 1] for told in policy.heard if told is not None], moves[::between], rtol=1e-4)


def test_a_delay_as_long_as_a_chunk_is_refused() -> None:
    """No row is meant for then."""
    with pytest.raises(SpecError, match="none of which is meant for then"):
        run(delays=[4])
