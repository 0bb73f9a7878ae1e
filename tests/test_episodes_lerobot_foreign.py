"""Laws of reading datasets that others recorded: without our metadata, of version 2.1, with videos, from real robots."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_dataset import (
    ACTION,
    OBSERVATION,
    an_episode,
    edit_json,
    make_foreign,
    write,
    write_v21,
)

from actlet.errors import DatasetError, MissingExtraError
from actlet.specs import CameraSpec
from episodes.lerobot_dataset import LeRobotDataset, open_dataset

DROID = Path(__file__).resolve().parents[2] / "shared" / "data" / "droid46_lerobot_v3"


@pytest.fixture
def dataset(tmp_path: Path) -> LeRobotDataset:
    """Seven episodes of our own."""
    return write(tmp_path / "set", [an_episode(seed) for seed in range(7)])


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
    features = json.loads((tmp_path / "set/meta/info.json").read_text())["features"]
    features["observation.images.front"]["shape"] = [6, 8, 1]
    edit_json(tmp_path / "set/meta/info.json", features=features)
    with pytest.raises(DatasetError, match=r"'observation.images.front' has the shape \[6, 8, 1\].*leave the camera out"):
        open_dataset(tmp_path / "set")
    assert len(open_dataset(tmp_path / "set", cameras=["wrist"]).read(0).images) == 1


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
