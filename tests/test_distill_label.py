"""distill.label: many processes label one dataset, whatever dies; and distill.train learns from what they wrote."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import point_reach
import pytest
import torch
from test_distill_train import ONE_STEP, SUITE, TINY_TEACHER, tiny

from actlet.action_tokens import ActionTokenizer
from actlet.errors import DatasetError, SpecError
from actlet.storage import read_json
from distill.frames import Frames
from distill.label import LabelConfig, label
from distill.label_store import LabelStore, read_labels
from distill.labels import label_frames
from distill.rt2_teacher import Rt2Teacher
from distill.student import load_student
from distill.teacher_checkpoint import load_teacher, save_teacher
from distill.train import distill
from episodes.collect import collect
from episodes.lerobot_dataset import open_dataset

ROOT = Path(__file__).parent.parent
EXACT = LabelConfig(top_k=256)
FINE = LabelConfig(top_k=256, shard_frames=1, batch_size=1)  # A shard an episode: many, so that a run can be stopped half-way.


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("points") / "data"
    collect(SUITE, path, 24, workers=1)
    return path


def save_tiny_teacher(folder: Path, seed: int) -> Path:
    """An untrained teacher: what it says is nonsense, but it is a real one."""
    torch.manual_seed(seed)
    folder.mkdir()
    tokenizer = ActionTokenizer(np.float32([0, -0.08, -0.08, 0]), np.float32([1, 0.08, 0.08, 1]))
    save_teacher(Rt2Teacher(ONE_STEP, tokenizer, config=TINY_TEACHER), folder, lineage={})
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_teacher(tmp_path_factory.mktemp("teachers") / "tiny", 0)


@pytest.fixture(scope="module")
def exact(data: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels with all bins kept."""
    folder = tmp_path_factory.mktemp("labels") / "exact"
    label(data, teacher, folder, EXACT)
    return folder


def command(data: Path, teacher: Path, out: Path, config: LabelConfig = FINE) -> list[str]:
    return [
        *("-m", "distill.label", "--data", str(data), "--teacher", str(teacher), "--out", str(out)),
        *("--top-k", str(config.top_k), "--shard-frames", str(config.shard_frames), "--batch-size", str(config.batch_size)),
    ]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_labels_are_what_the_teacher_says(data: Path, teacher: Path, exact: Path) -> None:
    """With all bins kept they equal, bit for bit, what `label_frames` gets by asking."""
    dataset, asked = open_dataset(data), load_teacher(teacher)
    frames = Frames.from_episodes(dataset.read_all(progress=False), dataset.observation_spec, dataset.action_spec)
    assert len(frames) < EXACT.shard_frames  # More would be asked about in other batches, and differ in the last bit.
    told = label_frames(asked, frames, exact.parent / "asked")
    np.testing.assert_array_equal(read_labels(exact, dataset), told, strict=True)


def test_a_second_run_labels_nothing(data: Path, teacher: Path, exact: Path) -> None:
    """It says what was there."""
    before = {file.name: file.stat().st_mtime_ns for file in exact.iterdir()}
    report = label(data, teacher, exact, EXACT)
    assert report.found == report.frames > 0
    assert f"{report.frames} were there, 0 labelled" in str(report)
    assert before == {file.name: file.stat().st_mtime_ns for file in exact.iterdir()}


def test_a_cut_shard_is_said_and_made_anew(data: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The others stay as they are."""
    label(data, teacher, tmp_path, FINE)
    dataset = open_dataset(data)
    shards, whole = LabelStore.open(tmp_path, dataset).shards, read_labels(tmp_path, dataset)
    kept = {shard.file: shard.file.stat().st_mtime_ns for shard in shards}
    cut = shards[3]
    cut.file.write_bytes(cut.file.read_bytes()[:-20])
    report = label(data, teacher, tmp_path, FINE)
    assert report.frames - report.found == len(cut)
    assert f"{cut.file} cannot be used" in capsys.readouterr().err
    np.testing.assert_array_equal(read_labels(tmp_path, dataset), whole)
    assert [shard for shard in shards if shard.file.stat().st_mtime_ns != kept[shard.file]] == [cut]


@pytest.mark.parametrize("config", [LabelConfig(top_k=32), LabelConfig(top_k=256, shard_frames=100)])
def test_other_settings_in_the_same_folder_are_refused(data: Path, teacher: Path, exact: Path, config: LabelConfig) -> None:
    """Another k, or another size of shards."""
    with pytest.raises(SpecError, match=r"(top_k is 256, expected 32|shard_frames is 512, expected 100).*into another folder"):
        label(data, teacher, exact, config)


def test_another_teacher_in_the_same_folder_is_refused(data: Path, exact: Path, tmp_path: Path) -> None:
    """Its answers would be mixed with the first one's."""
    with pytest.raises(SpecError, match=r"teacher is '\w{64}', expected '\w{64}'"):
        label(data, save_tiny_teacher(tmp_path / "other", 1), exact, EXACT)


def test_settings_that_cannot_be_are_refused() -> None:
    """A question about no frames."""
    with pytest.raises(SpecError, match="batch_size 0: expected at least 1"):
        LabelConfig(batch_size=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
        ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"],
    ],
)
def test_processes_that_are_launched_together_share_the_work(
    data: Path, teacher: Path, exact: Path, tmp_path: Path, launcher: list[str]
) -> None:
    """Two processes, one report, and the labels of one process."""
    process = start(["-m", *launcher, *command(data, teacher, tmp_path)])
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert output.count("0 were there") == 1
    assert "2 processes" in output
    dataset = open_dataset(data)
    np.testing.assert_allclose(read_labels(tmp_path, dataset), read_labels(exact, dataset), atol=1e-3)


@pytest.mark.slow
def test_a_killed_process_loses_one_shard_and_the_next_run_makes_what_is_missing(data: Path, teacher: Path, tmp_path: Path) -> None:
    """SIGKILL half-way: what was whole is found and stays, nothing else looks like a shard."""
    process = start(command(data, teacher, tmp_path))
    while process.poll() is None and len(list(tmp_path.glob("*.parquet"))) < 3:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    dataset = open_dataset(data)
    store = LabelStore.open(tmp_path, dataset)
    whole = [shard for shard in store.shards if shard not in store.missing()]
    kept = {shard.file: shard.file.stat().st_mtime_ns for shard in whole}
    assert 3 <= len(whole) < len(store.shards)
    with pytest.raises(DatasetError, match="frames are missing"):
        read_labels(tmp_path, dataset)
    report = label(data, teacher, tmp_path, FINE)
    assert report.found == sum(map(len, whole))
    assert kept == {file: file.stat().st_mtime_ns for file in kept}
    assert len(read_labels(tmp_path, dataset)) == report.frames


@pytest.mark.slow
def test_runs_that_know_nothing_of_each_other_share_a_folder(data: Path, teacher: Path, exact: Path, tmp_path: Path) -> None:
    """Two at once; one is killed, and the other makes what that one leaves."""
    doomed, other = (start(command(data, teacher, tmp_path)) for _ in range(2))
    while other.poll() is None and len(list(tmp_path.glob("*.parquet"))) < 3:
        time.sleep(0.005)
    doomed.send_signal(signal.SIGKILL)
    doomed.communicate(timeout=60)
    output, _ = other.communicate(timeout=300)
    assert other.returncode == 0, output
    dataset = open_dataset(data)
    np.testing.assert_allclose(read_labels(tmp_path, dataset), read_labels(exact, dataset), atol=1e-3)


def weights(folder: Path) -> torch.Tensor:
    return torch.cat([value.flatten() for value in load_student(folder).state_dict().values() if value.is_floating_point()])


def test_a_student_learns_from_labels_what_it_learns_from_the_teacher(data: Path, teacher: Path, exact: Path, tmp_path: Path) -> None:
    """All bins kept: the same weights, also where only some episodes are labelled; the lineage says so."""
    config = tiny(rounds=1, scenes=0, labelled_share=0.5)
    asked = distill(data, tmp_path / "asked", teacher=teacher, suite=SUITE, config=config)
    read = distill(data, tmp_path / "read", teacher=teacher, suite=SUITE, labels=exact, config=config)
    torch.testing.assert_close(weights(read), weights(asked), rtol=0, atol=1e-6)
    lineages = [read_json(folder / "config.json")["lineage"] for folder in (asked, read)]
    assert lineages[0]["teacher"] == lineages[1]["teacher"]
    assert [lineage["labels_top_k"] for lineage in lineages] == [None, 256]


def test_fewer_bins_teach_nearly_the_same(data: Path, teacher: Path, exact: Path, tmp_path: Path) -> None:
    """The same updates of the same start; the weights differ by less than without a teacher."""
    label(data, teacher, tmp_path / "labels", LabelConfig(top_k=192))
    config = tiny(rounds=1, scenes=0)
    folders = {
        name: distill(data, tmp_path / name, teacher=None, suite=SUITE, labels=labels, config=config)
        for name, labels in {"all": exact, "some": tmp_path / "labels", "none": None}.items()
    }
    everything, some, none = (weights(folders[name]) for name in ("all", "some", "none"))
    assert 0 < (some - everything).norm() < 0.5 * (none - everything).norm()


def test_on_policy_rounds_still_ask_the_teacher(data: Path, teacher: Path, exact: Path, tmp_path: Path) -> None:
    """Demonstrations from the labels, what the student reached from the teacher."""
    out = distill(data, tmp_path / "student", teacher=teacher, suite=SUITE, labels=exact, config=tiny())
    lines = (out / "train_log.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert load_student(out).tokenizer.to_dict() == load_teacher(teacher).tokenizer.to_dict()


def test_recordings_with_labels_hold_out_episodes(data: Path, teacher: Path, exact: Path, tmp_path: Path) -> None:
    """Without a suite the rows of the training episodes are taken, and the others are not looked at."""
    out = distill(data, tmp_path / "student", teacher=None, suite=None, labels=exact, config=tiny())
    lineage = read_json(out / "config.json")["lineage"]
    assert lineage["held_out"]["episodes"] > 0
    assert lineage["teacher"] == load_teacher(teacher).content_hash
    assert "with the teacher" in (out / "README.md").read_text()


def test_labels_of_another_teacher_are_refused(data: Path, exact: Path, tmp_path: Path) -> None:
    """Before anything is read or removed: an unfinished run at this place stays."""
    other = save_tiny_teacher(tmp_path / "other", 1)
    with pytest.raises(SpecError, match=r"labels of the teacher \w{64}, expected those of \w{64}.*--teacher none"):
        distill(data, tmp_path / "student", teacher=other, suite=SUITE, labels=exact, config=tiny())
    assert [file.name for file in tmp_path.iterdir()] == ["other"]


def test_a_teacher_for_another_robot_is_refused(data: Path, tmp_path: Path) -> None:
    """Before a folder is begun."""
    other = type(ONE_STEP)(
        observation=point_reach.OBSERVATION,
        action=dataclasses.replace(point_reach.ACTION, frame="tool"),
        timing=ONE_STEP.timing,
    )
    (tmp_path / "teacher").mkdir()
    tokenizer = ActionTokenizer(np.float32([0, -1, -1, 0]), np.float32([1, 1, 1, 1]))
    save_teacher(Rt2Teacher(other, tokenizer, config=TINY_TEACHER), tmp_path / "teacher", lineage={})
    with pytest.raises(SpecError, match="frame"):
        label(data, tmp_path / "teacher", tmp_path / "labels")
    assert not (tmp_path / "labels").exists()
