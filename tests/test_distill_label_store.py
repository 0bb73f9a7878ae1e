"""distill.label_store: shards that are whole and belong together, or are refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from small_dataset import ACTION, OBSERVATION, an_episode, write

from actlet.action_tokens import ActionTokenizer
from actlet.errors import CheckpointError, DatasetError, SpecError
from actlet.specs import PolicySpec, TimingSpec
from distill.label_store import INDEX, LabelIdentity, LabelStore, read_labels
from episodes.lerobot_dataset import LeRobotDataset

BINS, TOP_K = 16, 5
SPEC = PolicySpec(observation=OBSERVATION, action=ACTION, timing=TimingSpec(rate_hz=10, horizon=1, execute_steps=1, max_delay_steps=0))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LeRobotDataset:
    """Nine episodes of 1 to 8 frames."""
    return write(tmp_path_factory.mktemp("data") / "set", [an_episode(seed) for seed in range(9)])


def identity_of(data: LeRobotDataset, **changes: object) -> LabelIdentity:
    tokenizer = ActionTokenizer(np.float32([0, -1, -1]), np.float32([1, 1, 1]), BINS)
    made = LabelIdentity(teacher="a" * 64, dataset=data.content_hash, spec=SPEC, tokenizer=tokenizer, top_k=TOP_K, shard_frames=12)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def answers_for(count: int, seed: int) -> NDArray[np.float32]:
    weights = np.random.default_rng(seed).exponential(size=(count, ACTION.dim, BINS)) ** 4
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


def label_all(folder: Path, dataset: LeRobotDataset, **changes: object) -> LabelStore:
    store = LabelStore.create(folder, identity_of(dataset, **changes), dataset)
    for number, shard in enumerate(store.shards):
        store.write(shard, answers_for(len(shard), number))
    return store


def test_what_is_read_is_what_was_written_frame_by_frame(dataset: LeRobotDataset, tmp_path: Path) -> None:
    """All bins kept: float16 of the answers, in the dataset's order."""
    store = label_all(tmp_path, dataset, top_k=BINS)
    assert len(store.shards) > 2
    told = np.concatenate([answers_for(len(shard), number) for number, shard in enumerate(store.shards)])
    np.testing.assert_array_equal(read_labels(tmp_path, dataset), told.astype(np.float16), strict=True)


def test_some_episodes_come_in_the_order_that_was_asked_for(dataset: LeRobotDataset, tmp_path: Path) -> None:
    """Rows of an episode are the same whoever asks."""
    label_all(tmp_path, dataset)
    every, ends = read_labels(tmp_path, dataset), np.cumsum([episode.length for episode in dataset.episodes])
    parts = np.split(every, ends[:-1])
    np.testing.assert_array_equal(read_labels(tmp_path, dataset, [7, 2, 3]), np.concatenate([parts[7], parts[2], parts[3]]))


def test_shards_hold_whole_episodes_and_are_full(dataset: LeRobotDataset, tmp_path: Path) -> None:
    """Together they are the dataset; without its last episode a full one is below its size."""
    shards = LabelStore.create(tmp_path, identity_of(dataset), dataset).shards
    assert [episode for shard in shards for episode in shard.episodes] == list(range(9))
    assert [length for shard in shards for length in shard.lengths] == [episode.length for episode in dataset.episodes]
    assert all(len(shard) - shard.lengths[-1] < 12 <= len(shard) for shard in shards[:-1])


def test_a_shard_says_what_it_is(dataset: LeRobotDataset, tmp_path: Path) -> None:
    """Anything that reads Parquet sees the frame of each row, lists of k, and whose answers they are."""
    store = label_all(tmp_path, dataset)
    table = pq.read_table(store.shards[1].file)
    assert table.column_names[:5] == ["episode_index", "frame_index", "bins.terminate", "probability.terminate", "tail.terminate"]
    assert table.schema.field("bins.dx").type == pa.list_(pa.field("element", pa.uint8()), TOP_K)
    assert table.schema.field("probability.dx").type == pa.list_(pa.field("element", pa.float16()), TOP_K)
    document = json.loads(table.schema.metadata[b"actlet.labels"])
    assert document == json.loads((tmp_path / INDEX).read_text())
    assert (document["schema_version"], document["bins"], document["action_dim"], document["top_k"]) == (1, BINS, 3, TOP_K)


def test_missing_frames_are_counted_and_the_command_that_makes_them_is_named(dataset: LeRobotDataset, tmp_path: Path) -> None:
    """Of the episodes that were asked for alone: the others may be missing."""
    store = label_all(tmp_path, dataset)
    lost, total = store.shards[1], sum(episode.length for episode in dataset.episodes)
    lost.file.unlink()
    with pytest.raises(DatasetError, match=rf"labels of {len(lost)} of {total} frames are missing .*actlet label --data .* --top-k 5"):
        read_labels(tmp_path, dataset)
    assert len(read_labels(tmp_path, dataset, [0])) == dataset.episodes[0].length


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": "b" * 64}, r"teacher is 'aaaa.*expected 'bbbb"),
        ({"dataset": "c" * 64}, r"dataset is .*expected 'cccc"),
        ({"top_k": 6}, "top_k is 5, expected 6"),
        ({"shard_frames": 13}, "shard_frames is 12, expected 13"),
    ],
)
def test_a_folder_of_other_labels_is_refused(dataset: LeRobotDataset, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    """The message names what differs, and nothing in the folder changes."""
    label_all(tmp_path, dataset)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(SpecError, match=message + ".*Label into another folder"):
        LabelStore.create(tmp_path, identity_of(dataset, **changes), dataset)
    assert before == {file.name: file.read_bytes() for file in tmp_path.iterdir()}


def test_labels_of_another_dataset_are_refused(dataset: LeRobotDataset, tmp_path: Path) -> None:
    """Even where the number of frames is the same."""
    label_all(tmp_path / "labels", dataset)
    other = write(tmp_path / "other", [an_episode(seed, task="push") for seed in range(9)])
    with pytest.raises(DatasetError, match=f"labels of the dataset {dataset.content_hash}, expected those of .*{other.content_hash}"):
        read_labels(tmp_path / "labels", other)


def test_a_folder_without_labels_is_refused(dataset: LeRobotDataset, tmp_path: Path) -> None:
    """The message says how to make some."""
    with pytest.raises(DatasetError, match=r"labels\.json is missing.*actlet label"):
        read_labels(tmp_path, dataset)


def test_a_shard_of_another_teacher_is_refused(dataset: LeRobotDataset, tmp_path: Path) -> None:
    """A file that was copied into the folder, of the right name and size."""
    store = label_all(tmp_path / "ours", dataset)
    theirs = label_all(tmp_path / "theirs", dataset, teacher="b" * 64)
    store.shards[0].file.write_bytes(theirs.shards[0].file.read_bytes())
    with pytest.raises(SpecError, match=r"00000-of-.*teacher is 'bbbb"):
        read_labels(tmp_path / "ours", dataset)


def test_a_shard_under_another_shards_name_is_refused(dataset: LeRobotDataset, tmp_path: Path) -> None:
    """Its frames are not the ones that belong there."""
    store = label_all(tmp_path, dataset)
    store.shards[0].file.write_bytes(store.shards[1].file.read_bytes())
    with pytest.raises(DatasetError, match="episode_index differs"):
        store.read(store.shards[0])


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flip(data: bytes) -> bytes:
    middle = len(data) // 4
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]


@pytest.mark.parametrize("spoil", [_cut, _flip, lambda data: b"", lambda data: b"PAR1 no, PAR1"])
def test_a_damaged_shard_is_refused(dataset: LeRobotDataset, tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    """Cut, a byte changed in the middle, empty, something else: the message names the file and what makes it anew."""
    store = label_all(tmp_path, dataset)
    file = store.shards[0].file
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(DatasetError, match=r"00000-of-.*cannot be used.*actlet label"):
        read_labels(tmp_path, dataset)


def _with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.slice(1), "episode_index differs"),
        (lambda t: t.drop_columns(["tail.dx"]), "no column tail.dx"),
        (lambda t: _with_column(t, "tail.dx", pa.array([None] * len(t), pa.float16())), "tail.dx is halffloat"),
        (lambda t: _with_column(t, "tail.dx", pa.array(np.full(len(t), np.nan, np.float16))), "not finite"),
        (lambda t: _with_column(t, "tail.dx", pa.array(np.full(len(t), -0.5, np.float16))), "negative"),
        (lambda t: _with_column(t, "tail.dx", pa.array(np.full(len(t), 1.0, np.float16))), "instead of 1"),
        (lambda t: _with_column(t, "bins.dx", t.column("probability.dx")), "bins.dx is fixed_size_list"),
        (lambda t: t.replace_schema_metadata({}), "expected labels of version 1"),
    ],
)
def test_a_shard_that_is_whole_but_wrong_is_refused(
    dataset: LeRobotDataset, tmp_path: Path, change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    """A row or column less, gaps, NaN, negative or too much mass, another type, no word of whose it is."""
    store = label_all(tmp_path, dataset)
    pq.write_table(change(pq.read_table(store.shards[0].file)), store.shards[0].file)
    with pytest.raises(DatasetError, match=message):
        store.read(store.shards[0])


def test_answers_that_are_no_distributions_are_not_written(dataset: LeRobotDataset, tmp_path: Path) -> None:
    """A teacher with NaN in it, or with another number of bins, leaves no file."""
    store = LabelStore.create(tmp_path, identity_of(dataset), dataset)
    shard = store.shards[0]
    told = answers_for(len(shard), 0)
    with pytest.raises(CheckpointError, match="not finite"):
        store.write(shard, np.where(told == told.max(), np.float32(np.nan), told))
    with pytest.raises(CheckpointError, match=r"shape .*, 3, 15\); expected .*, 3, 16\)"):
        store.write(shard, told[..., 1:])
    assert [file.name for file in tmp_path.iterdir()] == [INDEX]


def test_more_bins_than_there_are_cannot_be_kept(dataset: LeRobotDataset) -> None:
    """k is one of 1 .. K."""
    with pytest.raises(SpecError, match=r"top_k 17.*expected 1 \.\. 16"):
        identity_of(dataset, top_k=17)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: {**d, "schema_version": 2}, "expected labels of version 1"),
        (lambda d: {**d, "extra": 1}, "unknown keys"),
        (lambda d: {**d, "bins": 8}, "contradict"),
        (lambda d: [d], "got list"),
    ],
)
def test_an_index_that_cannot_be_understood_is_refused(
    dataset: LeRobotDataset, tmp_path: Path, change: Callable[[dict], object], message: str
) -> None:
    """Another version, unknown keys, numbers that contradict each other, something else."""
    label_all(tmp_path, dataset)
    index = tmp_path / INDEX
    index.write_text(json.dumps(change(json.loads(index.read_text()))))
    with pytest.raises(DatasetError, match=message):
        read_labels(tmp_path, dataset)
