"""Laws of datasets on disk: what is written comes back bit for bit, foreign datasets are read, and damage is named."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from actlet.errors import ActletError, DatasetError, MissingExtraError, StorageError, UnknownNameError
from actlet.specs import ActionSpec, CameraSpec, ObservationSpec
from episodes import lerobot_dataset, lerobot_steps, lerobot_writer
from episodes.episode import Episode
from episodes.lerobot_dataset import DatasetWriter, LeRobotDataset, open_dataset, split_episodes
from episodes.lerobot_statistics import frame_histogram, frame_statistics, vector_statistics
from episodes.lerobot_steps import encode_frame

DROID = Path(__file__).resolve().parents[2] / "shared" / "data" / "droid46_lerobot_v3"
OBSERVATION = ObservationSpec(
    cameras=(CameraSpec(name="front", height=6, width=8), CameraSpec(name="wrist", height=5, width=4)),
    state_names=("x", "y", "opening"),
    state_units=("m", "m", "1"),
)
ACTION = ActionSpec(
    names=("terminate", "dx", "dy"),
    units=("1", "m", "m"),
    kinds=("binary", "continuous", "continuous"),
    low=(0, -1, -1),
    high=(1, 1, 1),
    frame="base",
)
DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


def an_episode(seed: int, *, observation: ObservationSpec = OBSERVATION, action: ActionSpec = ACTION, task: str = "lift") -> Episode:
    rng = np.random.default_rng(seed)
    steps = int(rng.integers(1, 9))
    return Episode(
        instruction=f"{task} the {('red', 'blue', 'grün')[seed % 3]} block",
        images={c.name: rng.integers(0, 256, (steps, c.height, c.width, 3), np.uint8) for c in observation.cameras},
        state=rng.standard_normal((steps, observation.state_dim)).astype(np.float32),
        action=rng.uniform(-1, 1, (steps, action.dim)).astype(np.float32),
        success=seed % 2 == 0,
        seed=seed,
        task=task,
    )


def write(path: Path, episodes: list[Episode], **options: Any) -> LeRobotDataset:
    arguments = {"observation_spec": OBSERVATION, "action_spec": ACTION, "rate_hz": 10.0, **options}
    with DatasetWriter(path, **arguments) as writer:
        for episode in episodes:
            writer.add(episode)
    return open_dataset(path)


def assert_same(ours: Episode, theirs: Episode) -> None:
    assert (ours.instruction, ours.success, ours.seed, ours.task) == (theirs.instruction, theirs.success, theirs.seed, theirs.task)
    assert set(ours.images) == set(theirs.images)
    for name, frames in ours.images.items():
        np.testing.assert_array_equal(frames, theirs.images[name], strict=True)
    np.testing.assert_array_equal(ours.state, theirs.state, strict=True)
    np.testing.assert_array_equal(ours.action, theirs.action, strict=True)


@pytest.fixture
def dataset(tmp_path: Path) -> LeRobotDataset:
    """Seven episodes of our own."""
    return write(tmp_path / "set", [an_episode(seed) for seed in range(7)])


# ---------------------------------------------------------------------------------------------------------------- round trip


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


# ------------------------------------------------------------------------------------------------------- the layout on disk


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


# ----------------------------------------------------------------------------------------------------------- whole or absent


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


# ------------------------------------------------------------------------------------------------------------------- reading


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


def make_foreign(path: Path, *, one_group: bool = False) -> None:
    """Take from our dataset everything that LeRobot does not know."""
    (path / "meta/actlet.json").unlink()
    table = pq.read_table(path / EPISODES)
    pq.write_table(table.select([name for name in table.column_names if not name.startswith("actlet/")]), path / EPISODES)
    if one_group:
        pq.write_table(pq.read_table(path / DATA), path / DATA)


@pytest.mark.parametrize("one_group", [False, True])
def test_a_foreign_dataset_is_read(tmp_path: Path, dataset: LeRobotDataset, one_group: bool) -> None:
    """Arrays, instructions and success (from next.success) are the same; seeds and tasks are unknown."""
    make_foreign(tmp_path / "set", one_group=one_group)
    foreign = open_dataset(tmp_path / "set")
    for seed in (3, 0, 6, 1):
        ours, theirs = an_episode(seed), foreign.read(seed)
        np.testing.assert_array_equal(theirs.images["wrist"], ours.images["wrist"])
        np.testing.assert_array_equal(theirs.action, ours.action)
        assert (theirs.instruction, theirs.success, theirs.seed, theirs.task) == (ours.instruction, ours.success, None, "")


def test_what_is_inferred_about_a_foreign_dataset(tmp_path: Path, dataset: LeRobotDataset) -> None:
    """Names from info.json, continuous, units 1, limits a tenth wider than the data."""
    make_foreign(tmp_path / "set")
    foreign = open_dataset(tmp_path / "set")
    assert foreign.observation_spec.cameras == OBSERVATION.cameras
    assert foreign.observation_spec.state_names == OBSERVATION.state_names
    assert (foreign.action_spec.names, foreign.action_spec.units) == (ACTION.names, ("1", "1", "1"))
    assert set(foreign.action_spec.kinds) == {"continuous"}
    actions = np.concatenate([an_episode(seed).action for seed in range(7)])
    span = actions.max(0) - actions.min(0)
    np.testing.assert_allclose(foreign.action_spec.low, actions.min(0) - 0.1 * span, rtol=1e-5)
    np.testing.assert_allclose(foreign.action_spec.high, actions.max(0) + 0.1 * span, rtol=1e-5)


def test_limits_without_statistics_come_from_the_data(tmp_path: Path, dataset: LeRobotDataset) -> None:
    """A dataset without stats.json gives the same limits."""
    make_foreign(tmp_path / "set")
    expected = open_dataset(tmp_path / "set").action_spec
    (tmp_path / "set/meta/stats.json").unlink()
    np.testing.assert_allclose(open_dataset(tmp_path / "set").action_spec.low, expected.low)


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


# ------------------------------------------------------------------------------------------------------------- bad datasets


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_column(path: Path, name: str, change: Callable[[list[Any]], list[Any]]) -> None:
    """Rewrite one column of a parquet file, episode by episode as before."""
    table = pq.read_table(path)
    index = table.column_names.index(name)
    field = table.schema.field(name)
    pq.write_table(table.set_column(index, field, pa.array(change(table.column(name).to_pylist()), field.type)), path)


def with_first(value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda values: [value, *values[1:]]


def shape_of_front(path: Path, shape: list[int]) -> None:
    info = json.loads((path / "meta/info.json").read_text())
    info["features"]["observation.images.front"]["shape"] = shape
    (path / "meta/info.json").write_text(json.dumps(info))


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


def test_a_foreign_dataset_without_cameras_is_refused(tmp_path: Path, dataset: LeRobotDataset) -> None:
    """There is nothing to see."""
    make_foreign(tmp_path / "set")
    info = json.loads((tmp_path / "set/meta/info.json").read_text())
    features = {name: feature for name, feature in info["features"].items() if feature["dtype"] != "image"}
    edit_json(tmp_path / "set/meta/info.json", features=features)
    with pytest.raises(DatasetError, match="expected at least one camera"):
        open_dataset(tmp_path / "set")


def test_a_camera_of_another_kind_is_refused(tmp_path: Path, dataset: LeRobotDataset) -> None:
    """Depth pictures, by name and with the way out."""
    make_foreign(tmp_path / "set")
    shape_of_front(tmp_path / "set", [6, 8, 1])
    with pytest.raises(DatasetError, match=r"'observation.images.front' has the shape \[6, 8, 1\].*leave the camera out"):
        open_dataset(tmp_path / "set")
    assert len(open_dataset(tmp_path / "set", cameras=["wrist"]).read(0).images) == 1


# -------------------------------------------------------------------------------------------------------------- version 2.1


def write_v21(path: Path, episodes: list[Episode], *, dtype: str = "image") -> None:
    """A version 2.1 dataset as LeRobot wrote them: a file an episode, lists of numbers, motors named in a dictionary."""
    (path / "meta").mkdir(parents=True)
    instructions = sorted({episode.instruction for episode in episodes})
    first = 0
    lines: dict[str, list[Any]] = {"tasks": [], "episodes": [], "episodes_stats": []}
    lines["tasks"] = [{"task_index": i, "task": task} for i, task in enumerate(instructions)]
    for index, episode in enumerate(episodes):
        steps = len(episode)
        columns: dict[str, pa.Array] = {
            "observation.state": pa.array(list(episode.state), pa.list_(pa.float32())),
            "action": pa.array(list(episode.action), pa.list_(pa.float32())),
            "timestamp": pa.array((np.arange(steps) / 10).astype(np.float32)),
            "frame_index": pa.array(np.arange(steps)),
            "episode_index": pa.array([index] * steps, pa.int64()),
            "index": pa.array(first + np.arange(steps)),
            "task_index": pa.array([instructions.index(episode.instruction)] * steps, pa.int64()),
        }
        if dtype == "image":
            columns["observation.images.front"] = pa.array(
                [{"bytes": encode_frame(f), "path": f"{i}.png"} for i, f in enumerate(episode.images["front"])]
            )
        file = path / f"data/chunk-{index // 2:03d}/episode_{index:06d}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), file)
        first += steps
        lines["episodes"].append({"episode_index": index, "tasks": [episode.instruction], "length": steps})
        action = episode.action.astype(float)
        stats = {"action": {"min": action.min(0).tolist(), "max": action.max(0).tolist(), "count": [steps]}}
        lines["episodes_stats"].append({"episode_index": index, "stats": stats})
    for name, rows in lines.items():
        (path / f"meta/{name}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    vector = {"dtype": "float32", "shape": [3]}
    info = {
        "codebase_version": "v2.1",
        "fps": 10,
        "chunks_size": 2,
        "total_episodes": len(episodes),
        "total_frames": first,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": {
            "observation.state": {**vector, "names": {"motors": ["shoulder", "elbow", "hand"]}},
            "action": {**vector, "names": None},
            "observation.images.front": {"dtype": dtype, "shape": [3, 6, 8], "names": ["channels", "height", "width"]},
        },
    }
    (path / "meta/info.json").write_text(json.dumps(info))


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Three episodes in version 2.1."""
    write_v21(tmp_path / "old", [an_episode(seed) for seed in range(3)])
    return tmp_path / "old"


def test_version_21_is_read(old: Path) -> None:
    """Frames, vectors and instructions; success is assumed where the dataset does not say."""
    dataset = open_dataset(old)
    for seed in range(3):
        ours, theirs = an_episode(seed), dataset.read(seed)
        np.testing.assert_array_equal(theirs.images["front"], ours.images["front"])
        np.testing.assert_array_equal(theirs.state, ours.state)
        np.testing.assert_array_equal(theirs.action, ours.action)
        assert (theirs.instruction, theirs.success) == (ours.instruction, True)


def test_what_is_inferred_about_version_21(old: Path) -> None:
    """Motor names from the dictionary, numbers where there are none, frames with channels first, limits from all episodes."""
    dataset = open_dataset(old)
    assert dataset.observation_spec.state_names == ("shoulder", "elbow", "hand")
    assert dataset.action_spec.names == ("action_0", "action_1", "action_2")
    assert dataset.observation_spec.cameras == (CameraSpec(name="front", height=6, width=8),)
    lowest = np.concatenate([an_episode(seed).action for seed in range(3)]).min(0)
    assert (np.array(dataset.action_spec.low) < lowest).all()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: (p / "meta/episodes.jsonl").unlink(), "episodes.jsonl is missing"),
        (lambda p: (p / "meta/episodes.jsonl").write_text('{"episode_index": 0'), "line 1: not JSON .*the file was cut"),
        (lambda p: (p / "meta/episodes.jsonl").write_text('{"index": 0}'), r"line 1: got the keys \['index'\], expected episode_index"),
        (lambda p: (p / "meta/episodes.jsonl").write_text(""), "the dataset has no episodes"),
        (lambda p: (p / "data/chunk-001/episode_000002.parquet").unlink(), "episode_000002.parquet is missing"),
        (lambda p: edit_json(p / "meta/info.json", data_path="{chunk_index}"), "expected one such as 'data/chunk-{episode_chunk"),
    ],
)
def test_a_bad_version_21_dataset_is_refused(old: Path, spoil: Callable[[Path], Any], message: str) -> None:
    """As in version 3.0."""
    spoil(old)
    with pytest.raises(DatasetError, match=message):
        open_dataset(old)


# ------------------------------------------------------------------------------------------------------------------- videos


def test_videos_without_the_decoder_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening works; reading says what to install."""
    write_v21(tmp_path / "films", [an_episode(0)], dtype="video")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"camera 'front': reading videos needs the package 'av'.*actlet\[video\]"):
        open_dataset(tmp_path / "films").read(0)


def film(path: Path, frames: np.ndarray, rate_hz: int) -> None:
    """Write a film that loses nothing: RGB, FFV1."""
    av = pytest.importorskip("av", reason="the extra 'video' is not installed")
    path.parent.mkdir(parents=True)
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=rate_hz)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "bgr0"
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="bgr0")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def test_videos_of_version_21_are_decoded(tmp_path: Path) -> None:
    """Frame by frame what went in."""
    episode = an_episode(1)
    write_v21(tmp_path / "films", [episode], dtype="video")
    film(tmp_path / "films/videos/chunk-000/observation.images.front/episode_000000.mp4", episode.images["front"], 10)
    np.testing.assert_array_equal(open_dataset(tmp_path / "films").read(0).images["front"], episode.images["front"])


def test_an_episode_is_found_in_the_middle_of_a_film(tmp_path: Path) -> None:
    """As in version 3.0, where a film holds many; a film that is too short is an error."""
    from episodes.lerobot_video import read_film

    frames = np.random.default_rng(0).integers(0, 256, (30, 6, 8, 3), np.uint8)
    film(tmp_path / "films/a.mp4", frames, 10)
    camera = CameraSpec(name="front", height=6, width=8)
    np.testing.assert_array_equal(read_film(tmp_path / "films/a.mp4", 1.2, 10.0, 9, camera, "here"), frames[12:21])
    with pytest.raises(DatasetError, match=r"here: the film .* has frames for 5 of 9 steps from 2.500 s on"):
        read_film(tmp_path / "films/a.mp4", 2.5, 10.0, 9, camera, "here")


# ------------------------------------------------------------------------------------------------------------------ splitting


def test_a_split_is_by_episode_and_complete(dataset: LeRobotDataset) -> None:
    """Every episode is on exactly one side, and the same seed gives the same split."""
    train, held_out = split_episodes(dataset, 0.3, seed=1)
    assert sorted(train + held_out) == list(range(7))
    assert len(held_out) == 2
    assert split_episodes(dataset, 0.3, seed=1) == (train, held_out)
    assert len({tuple(split_episodes(dataset, 0.3, seed=seed)[1]) for seed in range(10)}) > 1


@pytest.mark.parametrize("seed", range(5))
def test_each_task_gives_its_share(tmp_path: Path, seed: int) -> None:
    """30 episodes of each of three tasks, a fifth held out: six of each, to within one."""
    dataset = write(tmp_path / "set", [an_episode(i, task=("touch", "lift", "put")[i % 3]) for i in range(90)])
    held_out = split_episodes(dataset, 0.2, seed=seed)[1]
    assert len(held_out) == 18
    counts = [sum(dataset.episodes[index].task == task for index in held_out) for task in ("touch", "lift", "put")]
    assert all(5 <= count <= 7 for count in counts)


def test_the_limits_of_a_split(dataset: LeRobotDataset, tmp_path: Path) -> None:
    """Nothing held out, at least one of each side, and fractions that mean nothing."""
    assert split_episodes(dataset, 0.0, seed=0) == (list(range(7)), [])
    assert len(split_episodes(dataset, 0.01, seed=0)[1]) == 1
    assert len(split_episodes(dataset, 0.99, seed=0)[0]) == 1
    with pytest.raises(DatasetError, match="expected 0 <= fraction < 1"):
        split_episodes(dataset, 1.0, seed=0)
    with pytest.raises(DatasetError, match="cannot be split"):
        split_episodes(write(tmp_path / "one", [an_episode(0)]), 0.5, seed=0)


# ------------------------------------------------------------------------------------------------------- real robot recordings


@pytest.mark.skipif(not DROID.exists(), reason="the DROID sample ../shared/data/droid46_lerobot_v3 is absent")
def test_real_recordings_are_read() -> None:
    """46 DROID episodes in one row group, with frames that are not PNG."""
    dataset = open_dataset(DROID)
    assert len(dataset) == len({episode.instruction for episode in dataset.episodes}) == 46
    assert sum(episode.length for episode in dataset.episodes) == 15_898
    assert dataset.action_spec.names == ("dx", "dy", "dz", "drx", "dry", "drz", "gripper")
    episode = dataset.read(45)
    episode.check(dataset.observation_spec, dataset.action_spec)
    assert episode.success
    assert (episode.action >= dataset.action_spec.low).all()
    assert (episode.action <= dataset.action_spec.high).all()
    assert episode.images["wrist"].std() > 10


def test_the_public_names_are_these() -> None:
    """What other parts may rely on."""
    assert lerobot_dataset.__all__ == ["DatasetWriter", "EpisodeInfo", "LeRobotDataset", "open_dataset", "split_episodes"]
