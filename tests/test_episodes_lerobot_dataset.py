"""Laws of reading datasets: lazily, in any order, and damage is named."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from small_dataset import (
    DATA,
    EPISODES,
    OBSERVATION,
    an_episode,
    assert_same,
    edit_column,
    edit_json,
    with_first,
    write,
)

from actlet.errors import ActletError, DatasetError, UnknownNameError
from episodes import lerobot_dataset, lerobot_steps
from episodes.lerobot_dataset import LeRobotDataset, open_dataset
from episodes.lerobot_steps import encode_frame


@pytest.fixture
def dataset(tmp_path: Path) -> LeRobotDataset:
    """Seven episodes of our own."""
    return write(tmp_path / "set", [an_episode(seed) for seed in range(7)])


def test_reading_one_episode_decodes_its_frames_only(dataset: LeRobotDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cameras, as many frames as steps."""
    decoded: list[int] = []
    original = lerobot_steps.decode_frame
    monkeypatch.setattr(lerobot_steps, "decode_frame", lambda data: decoded.append(1) or original(data))
    dataset.read(4)
    assert len(decoded) == 2 * dataset.episodes[4].length


def test_opening_decodes_nothing(tmp_path: Path, dataset: LeRobotDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Footers and metadata alone."""
    monkeypatch.setattr(lerobot_steps, "decode_frame", lambda data: pytest.fail("decoded a frame"))
    monkeypatch.setattr(lerobot_steps.StepFile, "read", lambda *_: pytest.fail("read rows"))
    assert len(open_dataset(tmp_path / "set")) == 7


def test_reading_all_is_reading_each(dataset: LeRobotDataset, capsys: pytest.CaptureFixture[str]) -> None:
    """In the order asked for, whatever the number of threads; with a progress bar."""
    order = [5, 0, 3, 3]
    for episode, index in zip(dataset.read_all(order, workers=3), order, strict=True):
        assert_same(episode, an_episode(index))
    assert "4/4" in capsys.readouterr().err
    assert len(dataset.read_all(progress=False)) == 7


def test_vectors_are_read_without_frames(dataset: LeRobotDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """States and actions of the episodes asked for, in their order."""
    monkeypatch.setattr(lerobot_steps, "decode_frame", lambda data: pytest.fail("decoded a frame"))
    states, actions = dataset.read_vectors([5, 0])
    np.testing.assert_array_equal(states, np.concatenate([an_episode(5).state, an_episode(0).state]), strict=True)
    np.testing.assert_array_equal(actions, np.concatenate([an_episode(5).action, an_episode(0).action]), strict=True)
    assert len(dataset.read_vectors()[1]) == sum(episode.length for episode in dataset.episodes)


def test_iteration_can_be_left(dataset: LeRobotDataset) -> None:
    """Without waiting for the rest."""
    iterator = dataset.iterate(workers=1)
    assert_same(next(iterator), an_episode(0))
    iterator.close()


def test_cameras_can_be_chosen(tmp_path: Path, dataset: LeRobotDataset) -> None:
    """By name or by column, in the order given."""
    chosen = open_dataset(tmp_path / "set", cameras=["observation.images.wrist", "front"])
    assert [camera.name for camera in chosen.observation_spec.cameras] == ["wrist", "front"]
    assert set(open_dataset(tmp_path / "set", cameras=["wrist"]).read(0).images) == {"wrist"}


def test_a_dataset_can_be_sent_to_another_process(dataset: LeRobotDataset) -> None:
    """Pickled and back it reads the same, after reading too."""
    dataset.read(0)
    assert_same(pickle.loads(pickle.dumps(dataset)).read(2), an_episode(2))


def test_another_column_can_be_the_action(tmp_path: Path, dataset: LeRobotDataset) -> None:
    """Any vector feature."""
    other = open_dataset(tmp_path / "set", action="observation.state")
    assert other.action_spec.names == OBSERVATION.state_names
    np.testing.assert_array_equal(other.read(2).action, an_episode(2).state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"action": "actoin"}, "'actoin'. Did you mean 'action'"),
        ({"state": "observation.stat"}, "Did you mean 'observation.state'"),
        ({"cameras": ["wirst"]}, "unknown camera 'wirst'. Did you mean 'wrist'"),
    ],
)
def test_an_unknown_column_names_the_closest(tmp_path: Path, dataset: LeRobotDataset, options: dict[str, Any], message: str) -> None:
    """State, action and cameras."""
    with pytest.raises(UnknownNameError, match=message):
        open_dataset(tmp_path / "set", **options)


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "no such folder; expected a LeRobotDataset"),
    "no info": (lambda p: (p / "meta/info.json").unlink(), "info.json is missing"),
    "info is not JSON": (lambda p: (p / "meta/info.json").write_text("{"), "cannot be read as JSON"),
    "info is a list": (lambda p: (p / "meta/info.json").write_text("[]"), "got a JSON list, expected an object"),
    "info lacks a key": (lambda p: (p / "meta/info.json").write_text('{"fps": 10}'), "expected .*'features'.* too"),
    "later version": (lambda p: edit_json(p / "meta/info.json", codebase_version="v1.6"), "'v1.6', expected 'v3.0' or 'v2.1'"),
    "no template": (lambda p: edit_json(p / "meta/info.json", data_path="data/{episode}"), "got the path template .*expected one such as"),
    "data cut": (lambda p: (p / DATA).write_bytes((p / DATA).read_bytes()[:-100]), "is not a whole parquet file.*Copy the dataset again"),
    "data emptied": (lambda p: (p / DATA).write_bytes(b""), r"\(0 bytes\) is not a whole parquet file"),
    "data missing": (lambda p: (p / DATA).unlink(), "file-000.parquet is missing, though the metadata names it"),
    "episodes cut": (lambda p: (p / EPISODES).write_bytes((p / EPISODES).read_bytes()[:-9]), "is not a whole parquet file"),
    "episodes missing": (lambda p: (p / EPISODES).unlink(), "no parquet file; expected a table of episodes"),
    "episodes lack a column": (
        lambda p: pq.write_table(pq.read_table(p / EPISODES).drop_columns(["length"]), p / EPISODES),
        r"expected \['length'\] too",
    ),
    "fewer rows": (lambda p: pq.write_table(pq.read_table(p / DATA).slice(1), p / DATA), "rows, but the table of episodes counts"),
    "fewer episodes": (
        lambda p: pq.write_table(pq.read_table(p / EPISODES).slice(0, 6), p / EPISODES),
        "the table of episodes counts 6 episodes, but meta/info.json says 7",
    ),
    "other total": (lambda p: edit_json(p / "meta/info.json", total_frames=3), "steps, but meta/info.json says 3"),
    "no episodes": (
        lambda p: pq.write_table(pq.read_table(p / EPISODES).slice(0, 0), p / EPISODES),
        "the dataset has no episodes",
    ),
    "an episode without steps": (
        lambda p: edit_column(p / EPISODES, "length", lambda v: [0, v[0] + v[1], *v[2:]]),
        r"episodes \[0\] have no steps",
    ),
    "actlet.json of another version": (lambda p: edit_json(p / "meta/actlet.json", schema_version=9), "schema_version 9, expected 1"),
    "actlet.json without specs": (lambda p: edit_json(p / "meta/actlet.json", action={}), "does not hold an observation and an action"),
}


@pytest.mark.parametrize("damage", BAD)
def test_a_bad_dataset_is_refused_when_it_is_opened(tmp_path: Path, dataset: LeRobotDataset, damage: str) -> None:
    """With the file, what was found, what was expected, and what to do."""
    spoil, message = BAD[damage]
    spoil(tmp_path / "set")
    with pytest.raises(DatasetError, match=message):
        open_dataset(tmp_path / "set")


NAN = [float("nan"), 0.0, 0.0]
SMALL = {"bytes": encode_frame(np.zeros((3, 4, 3), np.uint8)), "path": None}
BAD_STEPS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "NaN in the state": (
        lambda p: edit_column(p / DATA, "observation.state", with_first(NAN)),
        r"episode 0, column 'observation.state': nan at step 0 \('x'\), 1 such in all; expected finite",
    ),
    "NaN in the action": (lambda p: edit_column(p / DATA, "action", with_first(NAN)), "column 'action': nan at step 0"),
    "small frame": (
        lambda p: edit_column(p / DATA, "observation.images.front", with_first(SMALL)),
        r"camera 'front': a frame of \(3, 4, 3\) at step 0, expected \(6, 8, 3\) as meta/info.json says",
    ),
    "no frame": (lambda p: edit_column(p / DATA, "observation.images.front", with_first(None)), "no whole picture at step 0"),
    "half a frame": (
        lambda p: edit_column(p / DATA, "observation.images.front", lambda v: [{**v[0], "bytes": v[0]["bytes"][:100]}, *v[1:]]),
        "no whole picture at step 0",
    ),
    "rows of another episode": (
        lambda p: edit_column(p / DATA, "episode_index", lambda v: [99] * len(v)),
        r"belong to episodes \[99\].*expected all .* steps of this one",
    ),
    "steps in disorder": (lambda p: edit_column(p / DATA, "frame_index", lambda v: [x + 1 for x in v]), "begin with step 1"),
    "a column gone": (
        lambda p: pq.write_table(pq.read_table(p / DATA).drop_columns(["action"]), p / DATA),
        r"expected \['action'\] too",
    ),
}


@pytest.mark.parametrize("damage", BAD_STEPS)
def test_bad_steps_are_refused_when_they_are_read(tmp_path: Path, dataset: LeRobotDataset, damage: str) -> None:
    """With the file, the episode, the column and the step."""
    spoil, message = BAD_STEPS[damage]
    spoil(tmp_path / "set")
    with pytest.raises(DatasetError, match=message):
        open_dataset(tmp_path / "set").read(0)


def test_damaged_bytes_inside_a_file_are_noticed(tmp_path: Path, dataset: LeRobotDataset) -> None:
    """Whatever a flipped block hits, it ends in one of our errors, or in the frames as they were (unused bytes)."""
    data = bytearray((tmp_path / "set" / DATA).read_bytes())
    middle = len(data) // 3
    data[middle : middle + 400] = bytes(400)
    (tmp_path / "set" / DATA).write_bytes(data)
    with pytest.raises(ActletError):
        open_dataset(tmp_path / "set").read_all(progress=False)


def test_the_public_names_are_these() -> None:
    """What other parts may rely on."""
    assert lerobot_dataset.__all__ == ["DatasetWriter", "EpisodeInfo", "LeRobotDataset", "open_dataset"]
