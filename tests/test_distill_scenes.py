"""distill.scenes: which scenes and instructions the teacher is asked about, what it says, and what a cut-off run keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import point_reach
import pytest
import torch

from actlet.action_tokens import ActionTokenizer
from actlet.specs import PolicySpec, TimingSpec
from distill import scenes, train
from distill.rt2_teacher import Rt2Teacher
from distill.scenes import Scenes, SeeingTeacher, look_at_episodes, look_at_scenes
from distill.student import StudentConfig
from distill.teacher_checkpoint import save_teacher
from distill.teacher_config import PROMPT, TeacherConfig
from episodes.collect import collect
from episodes.demonstration import PerturbationConfig, demonstrate
from episodes.suites import TaskSuite

SUITE = "point_reach:make_suite"
SEEDS = range(40, 45)
TEXTS = ["reach the red target", "reach the blue target"]


@pytest.fixture(scope="module")
def teacher() -> Rt2Teacher:
    torch.manual_seed(0)
    spec = PolicySpec(
        observation=point_reach.OBSERVATION,
        action=point_reach.ACTION,
        timing=TimingSpec(rate_hz=5, horizon=1, execute_steps=1, max_delay_steps=0),
    )
    config = TeacherConfig(layers=1, lora_rank=2, channels=(8, 8, 8), blocks=(1, 1, 1), condition_dim=8, features=16, scene_tokens=2)
    return Rt2Teacher(spec, ActionTokenizer(np.float32([0, -1, -1, 0]), np.float32([1, 1, 1, 1])), config=config, corpus=TEXTS).eval()


def test_every_scene_is_seen_under_every_instruction(teacher: Rt2Teacher, tmp_path: Path) -> None:
    """Two instructions for each of five scenes, with the frames of the seeds' own resets."""
    seen = look_at_scenes(teacher, SUITE, SEEDS, tmp_path)
    assert isinstance(teacher, SeeingTeacher)
    assert sorted(seen.instructions[:2]) == sorted(TEXTS)
    assert seen.instructions == seen.instructions[:2] * 5
    np.testing.assert_array_equal(seen.scene, np.repeat(np.arange(5), 2))
    assert seen.features.shape == (10, 16)
    task = point_reach.make_suite().make("red")
    for row, seed in enumerate(SEEDS):
        observation, _ = task.reset(seed)
        np.testing.assert_array_equal(seen.images["above"][row], observation.images["above"])
        np.testing.assert_array_equal(seen.state[row], observation.state)


@torch.inference_mode()
def test_the_vectors_are_those_of_the_teachers_own_sight(teacher: Rt2Teacher, tmp_path: Path) -> None:
    """Asked together or one by one, the same; and the instruction matters."""
    seen = look_at_scenes(teacher, SUITE, SEEDS, tmp_path)
    row, scene = 7, 3
    maps = [teacher.features(torch.from_numpy(seen.images["above"][scene][None]))]
    condition = teacher.condition(teacher.texts([PROMPT.format(instruction=seen.instructions[row])]))
    alone = teacher.see(maps, torch.from_numpy(seen.state[scene][None]), condition)[0]
    np.testing.assert_allclose(seen.features[row], alone.numpy(), atol=1e-5)
    assert not np.allclose(seen.features[row], seen.features[row - 1], atol=1e-4)


def test_finished_shards_are_not_asked_for_again(teacher: Rt2Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was cut off after two of three shards asks about the last scene only, and ends with the same."""
    monkeypatch.setattr(scenes, "SHARD", 2)
    whole = look_at_scenes(teacher, SUITE, SEEDS, tmp_path)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3
    files[-1].unlink()
    asked: list[int] = []
    answer = teacher.scene_vectors

    def counted(observations, instructions):
        asked.append(len(observations))
        return answer(observations, instructions)

    monkeypatch.setattr(teacher, "scene_vectors", counted)
    again = look_at_scenes(teacher, SUITE, SEEDS, tmp_path)
    assert asked == [1]
    np.testing.assert_array_equal(again.features, whole.features)
    assert again.instructions == whole.instructions


def test_episodes_are_seen_half_way_under_every_instruction(teacher: Rt2Teacher, tmp_path: Path) -> None:
    """As many different frames as asked for, each one of an episode's own, with the vectors that the teacher has for it."""
    suite = point_reach.make_suite()
    episodes = [demonstrate(suite.make(name), seed, PerturbationConfig()) for name in suite.tasks for seed in (3, 4)]
    frames = {(frame.tobytes(), state.tobytes()) for e in episodes for frame, state in zip(e.images["above"], e.state, strict=True)}
    seen = look_at_episodes(teacher, SUITE, episodes, 6, tmp_path, seed=0)
    chosen = [(frame.tobytes(), state.tobytes()) for frame, state in zip(seen.images["above"], seen.state, strict=True)]
    assert len(chosen) == 6
    assert set(chosen) <= frames
    assert len(set(seen.state[:, 0].tolist())) > 2  # Not the first frames alone.
    assert sorted(seen.instructions[:2]) == sorted(TEXTS)
    observation = point_reach.Observation({"above": seen.images["above"][5]}, seen.state[5])
    np.testing.assert_allclose(seen.features[10:12], teacher.scene_vectors([observation], [seen.instructions[10:12]]), atol=1e-5)
    everything = look_at_episodes(teacher, SUITE, episodes, 10_000, tmp_path / "all", seed=0)
    assert len(everything.state) == sum(len(e) for e in episodes)


def test_scenes_are_joined_with_their_pairs(teacher: Rt2Teacher, tmp_path: Path) -> None:
    """Pairs of the second part point at its own pictures."""
    first = look_at_scenes(teacher, SUITE, range(2), tmp_path / "a")
    second = look_at_scenes(teacher, SUITE, range(2, 5), tmp_path / "b")
    both, at_once = Scenes.concatenate([first, second]), look_at_scenes(teacher, SUITE, range(5), tmp_path / "c")
    np.testing.assert_array_equal(both.scene, at_once.scene)
    np.testing.assert_array_equal(both.images["above"], at_once.images["above"])
    np.testing.assert_allclose(both.features, at_once.features, atol=1e-5)
    assert both.instructions == at_once.instructions


class OtherWords(point_reach.PointReach):
    """The same points in other words."""

    def instructions(self, seed: int) -> tuple[str, ...]:
        return tuple(f"go to the {colour} dot" for colour in point_reach.COLOURS)


def make_other_words() -> TaskSuite:
    """The suite "test_distill_scenes:make_other_words"."""
    return TaskSuite(name="other words", tasks=("red", "blue"), factory=OtherWords)


def test_demonstrations_are_seen_under_the_sentences_of_their_own_suite(
    teacher: Rt2Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where new scenes are another suite's: a seed may lay another scene there."""
    collect(SUITE, tmp_path / "data", 4, workers=1)
    save_teacher(teacher, tmp_path / "teacher", lineage={})
    seen: dict[str, Scenes] = {}
    monkeypatch.setattr(train, "look_at_episodes", lambda *given, **rest: seen.setdefault("glances", look_at_episodes(*given, **rest)))
    monkeypatch.setattr(train, "look_at_scenes", lambda *given: seen.setdefault("scenes", look_at_scenes(*given)))
    tiny = StudentConfig(image_px=16, channels=(8, 8), blocks=(1, 1), condition_dim=8, squeeze_channels=8, features=16, token_rank=4)
    config = train.TrainConfig(steps=1, batch_size=8, rounds=1, horizon=4, scenes=2, glances=3, architecture=tiny)
    suite = "test_distill_scenes:make_other_words"
    train.distill(tmp_path / "data", tmp_path / "student", teacher=tmp_path / "teacher", suite=suite, config=config)
    assert set(seen["glances"].instructions) == set(TEXTS)
    assert set(seen["scenes"].instructions) == {"go to the red dot", "go to the blue dot"}
