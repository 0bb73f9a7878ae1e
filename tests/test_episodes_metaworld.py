"""Meta-World behind the task protocol: laws of reset, step, pictures and experts, on a few of its tasks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from actlet.errors import ActionError, UnknownNameError
from actlet.protocols import ActionChunk, Observation, StepResult
from actlet.specs import PolicySpec, TimingSpec
from episodes.metaworld_suite import INSTRUCTIONS, MT10, MT10_STEPS, TASKS, MetaworldTask, make
from episodes.rollout import evaluate
from episodes.suites import make_suite

PX = 128


def play(task: MetaworldTask, actions: Sequence[Sequence[float]]) -> StepResult:
    result = None
    for action in actions:
        result = task.step(np.array(action, np.float32))
    assert result is not None
    return result


def expert_episode(task: MetaworldTask, seed: int) -> StepResult:
    task.reset(seed)
    while not (result := task.step(task.expert_action())).done:
        pass
    return result


@pytest.fixture
def blank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames are not drawn, where a test is about motion alone."""

    def draw(self: MetaworldTask, camera: str, height: int, width: int, everything: bool, fine: bool) -> NDArray[np.uint8]:
        return np.zeros((height, width, 3), np.uint8)

    monkeypatch.setattr(MetaworldTask, "_picture", draw)


def test_every_task_of_the_benchmark_has_a_sentence_of_its_own() -> None:
    """Fifty names, fifty sentences."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    assert {f"{task}-v3" for task in TASKS} == set(ALL_V3_ENVIRONMENTS)
    assert len(TASKS) == len(set(INSTRUCTIONS.values())) == 50


@pytest.mark.usefixtures("blank")
@pytest.mark.parametrize("name", ["reach", "door-open", "pick-place", "drawer-close", "peg-insert-side"])
def test_experts_succeed_and_then_terminate(name: str) -> None:
    """Through the action specification, its units and its limits."""
    task = make(name)
    for seed in (0, 1):
        assert expert_episode(task, seed).success
        assert task.expert_action()[0] == 1.0


@pytest.mark.slow
@pytest.mark.usefixtures("blank")
def test_nearly_all_experts_succeed() -> None:
    """One episode of each task; about one in a hundred of the scripted policies' episodes fails."""
    failed = []
    for name in TASKS:
        task = make(name)
        if not expert_episode(task, 11).success:
            failed.append(name)
        task.close()
    assert len(failed) <= 3, failed


def test_a_seed_decides_the_episode_whatever_came_before() -> None:
    """The same bits in a used instance and in a new one; another seed, another scene."""
    used, fresh = make("window-open", image_px=PX), make("window-open", image_px=PX)
    used.reset(4)
    play(used, [[0.0, 0.01, 0.0, -0.01, 1.0]] * 20)
    ours, words = used.reset(5)
    theirs, same_words = fresh.reset(5)
    ours, theirs = (play(task, [[0.0, 0.0, 0.01, 0.0, -1.0]] * 5).observation for task in (used, fresh))
    assert words == same_words == "open the window"
    assert np.array_equal(ours.state, theirs.state)
    assert all(np.array_equal(ours.images[camera], theirs.images[camera]) for camera in ("corner", "wrist"))
    other, _ = fresh.reset(6)
    assert not np.array_equal(other.images["corner"], used.reset(5)[0].images["corner"])


def test_observations_fit_the_specification_and_hold_no_more() -> None:
    """Cameras and four numbers of the hand: nothing of the objects."""
    task = make("push", image_px=96)
    observation, _ = task.reset(0)
    task.observation_spec.check(observation.images, observation.state)
    assert observation.state.dtype == np.float32
    assert observation.images["corner"].shape == (96, 96, 3)


def test_drawing_changes_no_motion() -> None:
    """Steps with and without pictures between them end in the same state."""
    task = make("lever-pull", image_px=PX)
    states = []
    for pictures in (0, 1):
        task.reset(2)
        for _ in range(10):
            for _ in range(pictures):
                task.render(height=48, width=64)
            result = task.step(task.expert_action())
        states.append(result.observation.state)
    assert np.array_equal(*states)


def test_the_goal_can_be_seen() -> None:
    """The green sphere of "push" covers more than a few pixels of the policy's own frame, and moves with the goal."""
    task = make("push", image_px=PX)
    places = []
    for seed in (0, 1):
        red, green, blue = np.moveaxis(task.reset(seed)[0].images["corner"].astype(int), -1, 0)
        found = np.argwhere((green > 90) & (green > 2 * red) & (green > 2 * blue))
        assert len(found) >= 9
        places.append(found.mean(axis=0))
    assert np.linalg.norm(places[0] - places[1]) > 2


def test_the_corner_picture_is_upright() -> None:
    """A hand that rises moves up in the picture: its cyan finger is seen in an earlier row."""

    def row(observation: Observation) -> float:
        red, green, blue = np.moveaxis(observation.images["corner"].astype(int), -1, 0)
        return float(np.argwhere((green > 90) & (blue > 90) & (red < 60))[:, 0].mean())

    task = make("reach", image_px=PX)
    before, _ = task.reset(0)
    after = play(task, [[0.0, 0.0, 0.0, 0.01, -1.0]] * 15).observation
    assert after.state[2] > before.state[2] + 0.05
    assert row(after) < row(before) - 3


@pytest.mark.usefixtures("blank")
def test_displacements_are_metres() -> None:
    """Twenty steps of 5 mm to the right, and time to follow: 10 cm."""
    task = make("reach")
    start, _ = task.reset(0)
    end = play(task, [[0.0, 0.005, 0.0, 0.0, 0.0]] * 20 + [[0.0] * 5] * 40).observation
    assert end.state[0] - start.state[0] == pytest.approx(0.10, abs=0.01)


@pytest.mark.usefixtures("blank")
def test_terminate_ends_the_episode_without_moving() -> None:
    """A policy that gives up has not succeeded."""
    task = make("reach")
    start, _ = task.reset(0)
    result = play(task, [[1.0, 0.01, 0.01, 0.01, 1.0]])
    assert (result.done, result.success) == (True, False)
    assert np.array_equal(result.observation.state, start.state)


@pytest.mark.usefixtures("blank")
def test_an_episode_ends_after_its_last_step() -> None:
    """And refuses to go on."""
    task = make("hammer")
    task.reset(0)
    result = play(task, [[0.0] * 5] * task.max_steps)
    assert (result.done, result.success) == (True, False)
    with pytest.raises(ActionError, match=r"has run its 500 steps: call reset"):
        task.step(np.zeros(5, np.float32))


@pytest.mark.usefixtures("blank")
def test_the_ten_tasks_have_a_limit_of_their_own() -> None:
    """Twice what an expert needs; nobody gets more time than the benchmark gives."""
    suite = make_suite("metaworld-mt10")
    assert suite.tasks == MT10
    task = suite.make("reach")
    task.reset(0)
    result = play(task, [[0.0] * 5] * MT10_STEPS)
    assert (result.done, result.success, task.max_steps) == (True, False, 200)
    assert make("reach", max_steps=900).max_steps == 500


@pytest.mark.usefixtures("blank")
def test_the_other_instruction_is_another_tasks() -> None:
    """The opposite where there is one, else a sentence about another object; the seed decides."""
    assert make("door-open").other_instruction(3) == "close the door"
    assert make("door-open").instructions(3) == (INSTRUCTIONS["door-open"],)
    task = make("push-wall")
    others = [task.other_instruction(seed) for seed in range(20)]
    assert others == [task.other_instruction(seed) for seed in range(20)]
    assert len(set(others)) > 5
    assert all(sentence in INSTRUCTIONS.values() and not sentence.startswith("push the puck") for sentence in others)


@pytest.mark.usefixtures("blank")
def test_faults_of_the_caller_are_named() -> None:
    """Unknown names, and a step before the first reset."""
    with pytest.raises(UnknownNameError, match="Did you mean 'door-open'"):
        make("door-opne")
    task = make("reach")
    for act in (lambda: task.step(np.zeros(5, np.float32)), task.expert_action):
        with pytest.raises(ActionError, match=r"call reset\(seed\) first"):
            act()
    with pytest.raises(UnknownNameError, match="unknown camera 'front'"):
        task.render("front")


def test_pictures_for_people_have_the_size_asked_for() -> None:
    """With and without the arm's base."""
    task = make("reach", image_px=PX)
    task.reset(0)
    without, whole = (task.render(None, 120, 160, full_meshes=full) for full in (False, True))
    assert without.shape == whole.shape == (120, 160, 3)
    assert not np.array_equal(without, whole)


def test_a_policy_is_rolled_out_on_several_tasks_at_once() -> None:
    """One that gives up at once, so that this takes no time."""
    spec = make("reach").observation_spec

    class GivesUp:
        def __init__(self) -> None:
            timing = TimingSpec(rate_hz=80.0, horizon=2, execute_steps=2, max_delay_steps=0)
            self.spec = PolicySpec(observation=spec, action=make("reach").action_spec, timing=timing)

        def predict(self, observations: Sequence[Observation], instructions: Sequence[str]) -> list[ActionChunk]:
            return [ActionChunk(np.ones((2, 5), np.float32), np.ones(2, np.float32)) for _ in observations]

    results = evaluate(GivesUp, "metaworld", range(3), tasks=("reach", "push"), workers=1, progress=False)
    assert [result.task for result in results] == ["reach", "push", "reach"]
    assert all(result.terminated_early and not result.error for result in results)
