"""distill.rollouts: recorded runs of a student, labelled by the teacher; without one they are refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import point_reach
import pytest
import torch
from test_distill_train import ONE_STEP, SUITE, TINY_TEACHER, tiny

from actlet.action_tokens import ActionTokenizer
from actlet.errors import DatasetError, SpecError
from actlet.protocols import Observation
from actlet.storage import read_json
from distill.frames import Frames
from distill.label import LabelConfig, label
from distill.label_store import LabelStore
from distill.rollouts import driven_frames, open_rollouts, stores_by_dataset
from distill.rt2_teacher import Rt2Teacher
from distill.student import load_student
from distill.targets import Targets
from distill.teacher_checkpoint import load_teacher, save_teacher
from distill.train import distill
from episodes.collect import collect
from episodes.episode import Episode
from episodes.lerobot_dataset import DatasetWriter, LeRobotDataset, open_dataset
from episodes.rollout import collect_states

TOKENIZER = ActionTokenizer(np.float32([0, -0.08, -0.08, 0]), np.float32([1, 0.08, 0.08, 1]))
EXACT = LabelConfig(top_k=256)


def save_teacher_of(seed: int, folder: Path) -> Path:
    torch.manual_seed(seed)
    folder.mkdir()
    save_teacher(Rt2Teacher(ONE_STEP, TOKENIZER, config=TINY_TEACHER), folder, lineage={})
    return folder


def record(path: Path, episodes: Sequence[Episode], rate_hz: float = 5.0) -> Path:
    with DatasetWriter(path, observation_spec=point_reach.OBSERVATION, action_spec=point_reach.ACTION, rate_hz=rate_hz) as writer:
        for episode in episodes:
            writer.add(episode)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Demonstrations, an untrained teacher, and what an arbitrary policy drove, recorded as a robot does: without seeds."""
    root = tmp_path_factory.mktemp("rollouts")
    collect(SUITE, root / "data", 8, workers=1)
    driven = collect_states(point_reach.PictureReader, SUITE, [900, 901, 902], workers=1, progress=False)
    recorded = record(root / "driven", [dataclasses.replace(episode, seed=None, task="") for episode in driven])
    return {"root": root, "data": root / "data", "driven": recorded, "teacher": save_teacher_of(0, root / "teacher")}


class Asked:
    """The teacher, with a list of what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.teacher = load_teacher(folder)
        self.spec, self.tokenizer, self.content_hash = self.teacher.spec, self.teacher.tokenizer, self.teacher.content_hash
        self.states: list[np.ndarray] = []

    def predict(self, observations: Sequence[Observation], instructions: Sequence[str]) -> list:
        return self.teacher.predict(observations, instructions)

    def action_distribution(self, observations: Sequence[Observation], instructions: Sequence[str]) -> np.ndarray:
        self.states += [observation.state for observation in observations]
        return self.teacher.action_distribution(observations, instructions)


def opened(folders: dict[str, Path]) -> tuple[LeRobotDataset, list[LeRobotDataset]]:
    dataset = open_dataset(folders["data"])
    return dataset, open_rollouts([folders["driven"]], dataset)


def test_the_teacher_says_what_would_have_been_right(folders: dict[str, Path], tmp_path: Path) -> None:
    """It is asked about every frame, nothing is the student's own example, and beside the demonstrations the targets are the teacher's alone."""
    dataset, rollouts = opened(folders)
    teacher = Asked(folders["teacher"])
    [driven] = driven_frames(rollouts, {}, teacher, tmp_path)
    assert not driven.by_expert.any()
    np.testing.assert_array_equal(np.stack(teacher.states), driven.state)
    told = Frames.from_episodes(dataset.read_all(progress=False), dataset.observation_spec, dataset.action_spec)
    told.distribution = np.zeros((len(told), 4, 256), np.float16)
    whole = Frames.concatenate([told, driven])
    index = torch.tensor([[len(told), len(told) + 1]])
    target = Targets(point_reach.ACTION, TOKENIZER, whole, tiny()).distributions(index)[0]
    answers = torch.from_numpy(driven.distribution[:2]).float()
    torch.testing.assert_close(target, answers / answers.sum(-1, keepdim=True))


def test_rollouts_change_what_is_learned(folders: dict[str, Path]) -> None:
    """Trained beside the demonstrations, without a simulator; the lineage names them, and the bins, the held-out split and its baseline stay."""
    root, teacher = folders["root"], Asked(folders["teacher"])
    without = distill(folders["data"], root / "without", teacher=folders["teacher"], config=tiny())
    out = distill(folders["data"], root / "with", teacher=teacher, rollouts=[folders["driven"]], config=tiny())
    before, after = (read_json(folder / "config.json")["lineage"] for folder in (without, out))
    assert (before["rollouts"], after["rollouts"]) == ([], [open_dataset(folders["driven"]).content_hash])
    frames = sum(episode.length for episode in open_dataset(folders["driven"]).episodes)
    held_out = before["held_out"]["frames"] + before["held_out"]["episodes"]  # Its errors begin at the second step of an episode.
    assert len(teacher.states) == frames + sum(episode.length for episode in open_dataset(folders["data"]).episodes) - held_out
    assert before["held_out"]["dimensions"]["dx"]["next"]["mean"] == after["held_out"]["dimensions"]["dx"]["next"]["mean"]
    ours, theirs = load_student(without), load_student(out)
    assert ours.tokenizer == theirs.tokenizer
    assert not torch.equal(ours.queries.weight, theirs.queries.weight)


def test_without_a_teacher_nobody_knows_what_would_have_been_right(folders: dict[str, Path], tmp_path: Path) -> None:
    """Refused before any work, with both ways out."""
    with pytest.raises(DatasetError, match=r"nobody knows what would have been right\. Give --teacher, or --labels"):
        distill(folders["data"], tmp_path / "student", rollouts=[folders["driven"]], config=tiny())
    assert list(tmp_path.iterdir()) == []


def test_labels_take_the_teachers_place(folders: dict[str, Path], tmp_path: Path) -> None:
    """Folders of labels find their dataset whatever their order; for the rollouts alone they are enough, and demonstrations are then cloned."""
    for name in ("data", "driven"):
        label(folders[name], folders["teacher"], tmp_path / name, EXACT)
    dataset, rollouts = opened(folders)
    stores = stores_by_dataset([tmp_path / "driven", tmp_path / "data"], [dataset, *rollouts])
    assert stores[dataset.content_hash].folder == tmp_path / "data"
    [read], [asked] = (
        driven_frames(rollouts, stores, None, tmp_path),
        driven_frames(rollouts, {}, load_teacher(folders["teacher"]), tmp_path),
    )
    np.testing.assert_array_equal(read.distribution, asked.distribution)
    both = [tmp_path / "driven", tmp_path / "data"]
    for number, labels in enumerate((both, tmp_path / "driven")):
        out = distill(folders["data"], tmp_path / f"student-{number}", labels=labels, rollouts=[folders["driven"]], config=tiny())
        assert read_json(out / "config.json")["lineage"]["teacher"] == load_teacher(folders["teacher"]).content_hash
        assert load_student(out).tokenizer == TOKENIZER


def test_labels_of_two_teachers_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """One student learns from one teacher; labels of something else are nobody's."""
    label(folders["data"], save_teacher_of(1, tmp_path / "other"), tmp_path / "labels", EXACT)
    label(folders["driven"], folders["teacher"], tmp_path / "driven", EXACT)
    dataset, rollouts = opened(folders)
    with pytest.raises(SpecError, match="one student learns from one teacher"):
        stores_by_dataset([tmp_path / "driven", tmp_path / "labels"], [dataset, *rollouts])
    with pytest.raises(DatasetError, match="labels of the dataset"):
        stores_by_dataset([tmp_path / "driven"], [dataset])
    assert LabelStore.dataset_of(tmp_path / "driven") == rollouts[0].content_hash


def test_rollouts_of_something_else_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """The demonstrations themselves, another rate, and words that were never demonstrated, each named; another sentence of known words is taken."""
    dataset = open_dataset(folders["data"])
    episode = open_dataset(folders["driven"]).read(0)
    with pytest.raises(DatasetError, match="is the same data as"):
        open_rollouts([folders["data"]], dataset)
    with pytest.raises(DatasetError, match="is the same data as"):
        open_rollouts([folders["driven"], folders["driven"]], dataset)
    with pytest.raises(SpecError, match="control rate 5 Hz and 10 Hz"):
        open_rollouts([record(tmp_path / "fast", [episode], 10.0)], dataset)
    strange = record(tmp_path / "strange", [dataclasses.replace(episode, instruction="reach the reed target")])
    with pytest.raises(DatasetError, match=r"of 1 episodes have words that no demonstration has, as 'reed' in .*Did you mean 'red'\?"):
        open_rollouts([strange], dataset)
    known = record(tmp_path / "known", [dataclasses.replace(episode, instruction="Reach the target, the red target!")])
    assert len(open_rollouts([known], dataset)) == 1
