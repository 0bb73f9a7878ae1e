"""Laws of written datasets: what goes in comes back bit for bit, the layout is LeRobot's, and a dataset is whole or absent."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_dataset import (
    ACTION,
    DATA,
    OBSERVATION,
    an_episode,
    assert_same,
    write,
)

from actlet.errors import DatasetError, StorageError
from actlet.specs import ActionSpec, CameraSpec, ObservationSpec
from episodes import lerobot_writer
from episodes.lerobot_dataset import DatasetWriter, LeRobotDataset, open_dataset
from episodes.lerobot_statistics import frame_histogram, frame_statistics, vector_statistics


@pytest.fixture
def dataset(tmp_path: Path) -> LeRobotDataset:
    """Seven episodes of our own."""
    return write(tmp_path / "set", [an_episode(seed) for seed in range(7)])


def test_what_is_written_comes_back_bit_for_bit(dataset: LeRobotDataset) -> None:
    """Frames, vectors, instruction, success, seed and task."""
    assert len(dataset) == 7
    for seed in range(7):
        assert_same(dataset.read(seed), an_episode(seed))


def test_specifications_come_back(dataset: LeRobotDataset) -> None:
    """Names, units, kinds, limits, frame and rate."""
    assert (dataset.observation_spec, dataset.action_spec, dataset.rate_hz) == (OBSERVATION, ACTION, 10.0)


def test_episodes_are_known_without_reading_them(dataset: LeRobotDataset) -> None:
    """The table of episodes agrees with the episodes."""
    for info in dataset.episodes:
        episode = dataset.read(info.index)
        assert (info.instruction, info.length, info.success, info.seed, info.task) == (
            episode.instruction,
            len(episode),
            episode.success,
            episode.seed,
            episode.task,
        )


def test_vectors_of_one_entry_come_back(tmp_path: Path) -> None:
    """LeRobot stores them as plain numbers."""
    observation = ObservationSpec(cameras=OBSERVATION.cameras, state_names=("x",), state_units=("m",))
    action = ActionSpec(names=("dx",), units=("m",), kinds=("continuous",), low=(-1,), high=(1,), frame="base")
    episode = an_episode(3, observation=observation, action=action)
    dataset = write(tmp_path / "set", [episode], observation_spec=observation, action_spec=action)
    assert pq.read_schema(tmp_path / "set" / DATA).field("action").type == pa.float32()
    assert_same(dataset.read(0), episode)


def test_an_observation_without_a_state_comes_back(tmp_path: Path) -> None:
    """S may be 0."""
    observation = ObservationSpec(cameras=OBSERVATION.cameras, state_names=(), state_units=())
    episode = an_episode(3, observation=observation)
    dataset = write(tmp_path / "set", [episode], observation_spec=observation)
    assert_same(dataset.read(0), episode)


def test_large_datasets_roll_over_to_new_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and chunks are numbered as LeRobot numbers them, and every episode is found."""
    monkeypatch.setattr(lerobot_writer, "DATA_FILE_MB", 0)
    monkeypatch.setattr(lerobot_writer, "FILES_PER_CHUNK", 2)
    dataset = write(tmp_path / "set", [an_episode(seed) for seed in range(5)])
    files = sorted(str(file.relative_to(tmp_path / "set")) for file in (tmp_path / "set" / "data").rglob("*.parquet"))
    assert files == [f"data/chunk-{i // 2:03d}/file-{i % 2:03d}.parquet" for i in range(5)]
    for seed in range(5):
        assert_same(dataset.read(seed), an_episode(seed))


def test_encoding_apart_gives_the_same_dataset(tmp_path: Path, dataset: LeRobotDataset) -> None:
    """Episodes that another process has encoded and sent as bytes are the same to the writer."""
    with DatasetWriter(tmp_path / "other", observation_spec=OBSERVATION, action_spec=ACTION, rate_hz=10.0) as writer:
        for seed in range(7):
            encoded = lerobot_writer.encode_episode(an_episode(seed), OBSERVATION, ACTION, 10.0)
            writer.add_encoded(lerobot_writer.EncodedEpisode.from_bytes(encoded.to_bytes()))
    assert open_dataset(tmp_path / "other").content_hash == dataset.content_hash


def test_info_says_what_lerobot_asks_for(tmp_path: Path, dataset: LeRobotDataset) -> None:
    """Totals, rate, templates, and one feature per column of the data."""
    info = json.loads((tmp_path / "set/meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert (info["total_episodes"], info["total_tasks"], info["fps"]) == (7, 3, 10)
    assert info["total_frames"] == sum(episode.length for episode in dataset.episodes)
    assert info["features"]["observation.images.front"] == {"dtype": "image", "shape": [6, 8, 3], "names": ["height", "width", "channels"]}
    assert info["features"]["action"] == {"dtype": "float32", "shape": [3], "names": ["terminate", "dx", "dy"]}
    assert list(info["features"]) == pq.read_schema(tmp_path / "set" / DATA).names


def test_rows_are_numbered_as_lerobot_numbers_them(tmp_path: Path, dataset: LeRobotDataset) -> None:
    """index runs on, frame_index and timestamp begin anew, task_index points at the instruction, the last row is done."""
    table = pq.read_table(tmp_path / "set" / DATA).to_pylist()
    tasks = {row["task_index"]: row["task"] for row in pq.read_table(tmp_path / "set/meta/tasks.parquet").to_pylist()}
    rows = iter(table)
    assert [row["index"] for row in table] == list(range(len(table)))
    for info in dataset.episodes:
        for step in range(info.length):
            row = next(rows)
            assert (row["episode_index"], row["frame_index"], tasks[row["task_index"]]) == (info.index, step, info.instruction)
            assert row["timestamp"] == np.float32(step / 10)
            last = step == info.length - 1
            assert (row["next.done"], row["next.success"]) == (last, last and info.success)


def test_the_tasks_table_has_the_instruction_as_its_pandas_index(tmp_path: Path, dataset: LeRobotDataset) -> None:
    """LeRobot looks instructions up by that index."""
    about = json.loads(pq.read_schema(tmp_path / "set/meta/tasks.parquet").metadata[b"pandas"])
    assert about["index_columns"] == ["task"]


def test_each_episode_has_a_row_group_of_its_own(tmp_path: Path, dataset: LeRobotDataset) -> None:
    """So that one episode is read alone."""
    metadata = pq.read_metadata(tmp_path / "set" / DATA)
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [e.length for e in dataset.episodes]


def test_statistics_of_vectors_are_those_of_all_steps(tmp_path: Path, dataset: LeRobotDataset) -> None:
    """stats.json against numpy on the episodes."""
    stats = json.loads((tmp_path / "set/meta/stats.json").read_text())
    actions = np.concatenate([dataset.read(i).action for i in range(7)]).astype(np.float64)
    np.testing.assert_allclose(stats["action"]["mean"], actions.mean(0))
    np.testing.assert_allclose(stats["action"]["std"], actions.std(0))
    np.testing.assert_allclose(stats["action"]["q99"], np.quantile(actions, 0.99, axis=0))
    assert stats["action"]["count"] == [len(actions)]


def test_statistics_of_frames_are_those_of_the_sampled_pixels() -> None:
    """The histogram gives what numpy gives on the same pixels, per channel in [0, 1]."""
    frames = np.random.default_rng(0).integers(0, 200, (9, 12, 16, 3), np.uint8)
    stats = frame_statistics(frame_histogram(frames))
    pixels = frames[::4, ::4, ::4].reshape(-1, 3) / 255.0
    for name, expected in (("mean", pixels.mean(0)), ("std", pixels.std(0)), ("min", pixels.min(0)), ("max", pixels.max(0))):
        np.testing.assert_allclose(np.squeeze(stats[name]), expected, err_msg=name)
    assert np.shape(stats["q50"]) == (3, 1, 1)
    np.testing.assert_allclose(np.squeeze(stats["q50"]), np.quantile(pixels, 0.5, axis=0, method="inverted_cdf"))


def test_every_statistic_has_an_entry_per_dimension() -> None:
    """Also for flags."""
    stats = vector_statistics(np.array([[True], [False], [True]]))
    assert {name: len(values) for name, values in stats.items()} == dict.fromkeys(stats, 1)
    assert stats["mean"] == [pytest.approx(2 / 3)]


def test_the_hash_follows_the_content(tmp_path: Path, dataset: LeRobotDataset) -> None:
    """Same episodes, same hash, wherever they lie; one pixel makes another."""
    again = write(tmp_path / "again", [an_episode(seed) for seed in range(7)])
    (tmp_path / "again" / "notes.txt").write_text("beside the data")
    assert again.content_hash == dataset.content_hash
    changed = [an_episode(seed) for seed in range(7)]
    changed[3].images["front"][0, 0, 0, 0] ^= 1
    assert write(tmp_path / "changed", changed).content_hash != dataset.content_hash


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    """Neither the dataset nor the hidden folder."""

    def interrupted() -> None:
        with DatasetWriter(tmp_path / "set", observation_spec=OBSERVATION, action_spec=ACTION, rate_hz=10.0) as writer:
            writer.add(an_episode(0))
            raise RuntimeError("unplugged")

    with pytest.raises(RuntimeError, match="unplugged"):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_not_replaced(tmp_path: Path, dataset: LeRobotDataset) -> None:
    """Unless overwrite is asked for."""
    with pytest.raises(StorageError, match="exists already"):
        write(tmp_path / "set", [an_episode(0)])
    assert len(write(tmp_path / "set", [an_episode(0)], overwrite=True)) == 1


def test_an_empty_dataset_is_not_written(tmp_path: Path) -> None:
    """No episode, no folder."""
    with pytest.raises(DatasetError, match="no episode was added"):
        write(tmp_path / "set", [])
    assert not list(tmp_path.iterdir())


def test_a_rate_that_lerobot_cannot_say_is_refused(tmp_path: Path) -> None:
    """Before anything is written."""
    with pytest.raises(DatasetError, match=r"rate_hz 12.5; a LeRobotDataset has a whole number"):
        DatasetWriter(tmp_path / "set", observation_spec=OBSERVATION, action_spec=ACTION, rate_hz=12.5)


def test_an_episode_of_another_shape_is_refused(tmp_path: Path) -> None:
    """By the camera's name, and nothing is left."""
    other = ObservationSpec(
        cameras=(CameraSpec(name="front", height=7, width=8), OBSERVATION.cameras[1]), state_names=("x", "y", "z"), state_units=("m",) * 3
    )
    with pytest.raises(DatasetError, match="camera 'front'"):
        write(tmp_path / "set", [an_episode(0), an_episode(1, observation=other)])
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, where mounting is permitted."""
    place = tmp_path / "disk"
    place.mkdir()
    if (
        sys.platform != "linux"
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], capture_output=True).returncode
    ):
        pytest.skip("mounting a small tmpfs is not permitted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_leaves_nothing(small_disk: Path) -> None:
    """On a really full disk: a StorageError, and no file."""
    with pytest.raises(StorageError, match="no space left while writing"):
        write(small_disk / "set", [an_episode(seed % 5) for seed in range(2000)])
    assert not list(small_disk.iterdir())
