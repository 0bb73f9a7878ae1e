"""Datasets of recorded episodes on disk: LeRobotDataset version 3.0, written and read, and version 2.1, read.

    dataset = open_dataset("data/table")          # metadata and file footers only
    episode = dataset.read(0)                     # decodes the frames of one episode
    train, held_out = split_episodes(dataset, 0.1, seed=0)    # by scene: `episodes.split`
    episodes = dataset.read_all(train)            # decodes with threads, shows progress

Ours and foreign datasets are read alike; `episodes.lerobot_specs` says what is inferred about a foreign one. Whatever is wrong with a
dataset is a DatasetError that names the file and says what was expected.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm import tqdm

from actlet.errors import DatasetError
from actlet.specs import ActionSpec, CameraSpec, ObservationSpec
from episodes.episode import Episode
from episodes.lerobot_layout import COPY_AGAIN, INFO_PATH, EpisodeRow, Layout, read_info
from episodes.lerobot_specs import Columns, infer_columns, recorded_columns
from episodes.lerobot_steps import StepFile, decode_frames, finite_vectors, vectors
from episodes.lerobot_v21 import read_v21
from episodes.lerobot_v30 import ACTION, EXECUTED, STATE, read_v30
from episodes.lerobot_video import read_film
from episodes.lerobot_writer import DatasetWriter

__all__ = ["DatasetWriter", "EpisodeInfo", "LeRobotDataset", "open_dataset"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpisodeInfo:
    """What is known of an episode before it is read."""

    index: int
    """Its position in the dataset, for `LeRobotDataset.read`."""
    instruction: str
    length: int
    """T, its steps."""
    success: bool
    """The instruction was carried out; True where a foreign dataset does not say."""
    seed: int | None
    """The seed of the simulated episode, None for recordings."""
    task: str
    """The task's name within its suite, empty for recordings."""


def open_dataset(path: str | Path, *, state: str = STATE, action: str = ACTION, cameras: Sequence[str] | None = None) -> LeRobotDataset:
    """Open a dataset: read its metadata and check that every file is whole. No frame is decoded.

    Args:
        path: The dataset's folder.
        state: Column of the state vector.
        action: Column of the action vector.
        cameras: Names of the cameras to read, in the order in which networks take them; None for all.

    Raises:
        DatasetError: Something is missing, cut, empty, contradicts itself, or has a version that is not read.
        UnknownNameError: There is no such column or camera; names the closest.
    """
    root = Path(path)
    info = read_info(root)
    version = str(info["codebase_version"])
    if version.startswith("v3."):
        layout = read_v30(root, info)
    elif version == "v2.1":
        layout = read_v21(root, info)
    else:
        raise DatasetError(f"{root}: codebase_version {version!r}, expected 'v3.0' or 'v2.1'. Convert it with LeRobot's own script first.")
    _check_totals(layout, info)
    files = _open_files(layout)
    if layout.actlet is not None and (state, action) == (STATE, ACTION):
        return LeRobotDataset(layout, files, recorded_columns(layout, cameras))
    known = action not in layout.features or {"min", "max"} <= set(layout.stats.get(action, {}))
    action_range = None if known else _action_range(files, action)
    return LeRobotDataset(layout, files, infer_columns(layout, state, action, cameras, action_range))


class LeRobotDataset:
    """Episodes on disk. Made by `open_dataset`; holds no open file, and may be sent to other processes."""

    observation_spec: ObservationSpec
    action_spec: ActionSpec
    rate_hz: float
    episodes: tuple[EpisodeInfo, ...]

    def __init__(self, layout: Layout, files: dict[Path, StepFile], columns: Columns) -> None:
        self.path, self.rate_hz = layout.root, layout.rate_hz
        self.observation_spec, self.action_spec = columns.observation, columns.action
        self.provenance: dict[str, Any] = dict((layout.actlet or {}).get("provenance", {}))
        self._layout, self._files, self._columns = layout, files, columns
        self._keeps_executed = layout.actlet is not None and columns.action_column == ACTION and EXECUTED in layout.features
        self.episodes = tuple(
            EpisodeInfo(index=index, instruction=row.instruction, length=row.length, success=success, seed=row.seed, task=row.task)
            for index, (row, success) in enumerate(zip(layout.episodes, _successes(layout, files), strict=True))
        )

    def __len__(self) -> int:
        return len(self.episodes)

    def __repr__(self) -> str:
        steps = sum(episode.length for episode in self.episodes)
        return f"LeRobotDataset({str(self.path)!r}, episodes={len(self)}, steps={steps}, rate_hz={self.rate_hz:g})"

    def read(self, index: int) -> Episode:
        """Read and check one episode.

        Args:
            index: 0 .. len(self) - 1.

        Raises:
            DatasetError: The data differ from what the metadata says, hold NaN, or a frame cannot be decoded.
            IndexError: There is no such episode.
        """
        return self._decode(index, self._rows(index))

    def iterate(self, indices: Sequence[int] | None = None, *, progress: bool = False, workers: int | None = None) -> Iterator[Episode]:
        """Read episodes in the given order, decoding a few of them ahead; memory holds those few only.

        Args:
            indices: Which episodes; None for all.
            progress: Show a progress bar.
            workers: Decoding threads; None for one per core.

        Raises:
            DatasetError: As `read`.
        """
        chosen = range(len(self)) if indices is None else indices
        workers = workers or len(os.sched_getaffinity(0))
        with (
            ThreadPoolExecutor(workers) as pool,
            tqdm(total=len(chosen), desc=f"reading {self.path.name}", unit="episode", disable=not progress) as bar,
        ):
            waiting: deque[Future[Episode]] = deque()
            try:
                for index in chosen:
                    waiting.append(pool.submit(self._decode, index, self._rows(index)))
                    if len(waiting) > 2 * workers:
                        yield waiting.popleft().result()
                        bar.update()
                while waiting:
                    yield waiting.popleft().result()
                    bar.update()
            finally:
                for future in waiting:
                    future.cancel()

    def read_all(self, indices: Sequence[int] | None = None, *, progress: bool = True, workers: int | None = None) -> list[Episode]:
        """All episodes, or some, in memory: about T x height x width x 3 bytes for each camera and episode. Arguments as `iterate`."""
        return list(self.iterate(indices, progress=progress, workers=workers))

    def read_vectors(self, indices: Sequence[int] | None = None) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """States (N, S) and actions (N, A) of all episodes, or some, one after the other; no frame is decoded.

        Raises:
            DatasetError: Vectors of another width than the metadata says, or values that are not finite.
        """
        states, actions = [], []
        for index in range(len(self)) if indices is None else indices:
            row, columns = self._layout.episodes[index], self._columns
            names = (*([columns.state_column] if columns.state_column else []), columns.action_column)
            table, where = self._files[row.file].read(row.first_row, row.length, names), f"{row.file}, episode {row.index}"
            states.append(self._states(row, table, where))
            actions.append(self._actions(table, where))
        return np.concatenate(states), np.concatenate(actions)

    @functools.cached_property
    def content_hash(self) -> str:
        """Hex SHA-256 over the names and contents of all files under meta/, data/ and videos/, in the order of their names.

        Two datasets have the same hash exactly if these files are the same bytes; the folder's name and files beside them do not count.
        """
        digest = hashlib.sha256()
        files = [file for part in ("data", "meta", "videos") for file in sorted((self.path / part).rglob("*")) if file.is_file()]
        for file in files:
            digest.update(f"{file.relative_to(self.path).as_posix()}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as content:
                while block := content.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()

    def _rows(self, index: int) -> pa.Table:
        row, columns = self._layout.episodes[index], self._columns
        stored = [column for column in columns.camera_columns.values() if self._layout.features[column]["dtype"] == "image"]
        states = [columns.state_column] if columns.state_column else []
        executed = [EXECUTED] if self._keeps_executed else []
        names = ("episode_index", "frame_index", *states, columns.action_column, *executed, *stored)
        return self._files[row.file].read(row.first_row, row.length, names)

    def _decode(self, index: int, table: pa.Table) -> Episode:
        row, info = self._layout.episodes[index], self.episodes[index]
        where = f"{row.file}, episode {row.index}"
        numbers, order = table.column("episode_index").to_numpy(), table.column("frame_index").to_numpy()
        if (numbers != row.index).any() or (order != np.arange(row.length)).any():
            raise DatasetError(
                f"{where}: rows {row.first_row} .. {row.first_row + row.length - 1} belong to episodes {sorted(set(numbers.tolist()))[:5]} "
                f"and begin with step {order[0]}, expected all {row.length} steps of this one. {COPY_AGAIN}"
            )
        state, action = self._states(row, table, where), self._actions(table, where)
        executed = None
        if self._keeps_executed:
            executed = finite_vectors(table.column(EXECUTED), self.action_spec.names, f"{where}, column {EXECUTED!r}")
            executed = None if np.array_equal(executed, action) else executed
        images = {camera.name: self._frames(row, camera, table, where) for camera in self.observation_spec.cameras}
        return Episode(
            instruction=info.instruction,
            images=images,
            state=state,
            action=action,
            success=info.success,
            seed=info.seed,
            task=info.task,
            executed=executed,
        )

    def _states(self, row: EpisodeRow, table: pa.Table, where: str) -> NDArray[np.float32]:
        column = self._columns.state_column
        if not column:
            return np.zeros((row.length, 0), np.float32)
        return finite_vectors(table.column(column), self.observation_spec.state_names, f"{where}, column {column!r}")

    def _actions(self, table: pa.Table, where: str) -> NDArray[np.float32]:
        column = self._columns.action_column
        return finite_vectors(table.column(column), self.action_spec.names, f"{where}, column {column!r}")

    def _frames(self, row: EpisodeRow, camera: CameraSpec, table: pa.Table, where: str) -> NDArray[np.uint8]:
        """uint8 (T, height, width, 3) of one camera."""
        column, where = self._columns.camera_columns[camera.name], f"{where}, camera {camera.name!r}"
        if self._layout.features[column]["dtype"] == "image":
            return decode_frames(table.column(column), camera, where)
        if column not in row.videos:
            raise DatasetError(f"{where}: the metadata name no video for it. {COPY_AGAIN}")
        film, start_s = row.videos[column]
        return read_film(film, start_s, self.rate_hz, row.length, camera, where)


def _check_totals(layout: Layout, info: dict[str, Any]) -> None:
    if not layout.episodes or info["total_episodes"] == 0:
        raise DatasetError(f"{layout.root}: the dataset has no episodes. Record some, or choose another folder.")
    steps = sum(row.length for row in layout.episodes)
    for what, got, said in (("episodes", len(layout.episodes), info["total_episodes"]), ("steps", steps, info["total_frames"])):
        if got != said:
            raise DatasetError(f"{layout.root}: the table of episodes counts {got} {what}, but {INFO_PATH} says {said}. {COPY_AGAIN}")
    empty = [row.index for row in layout.episodes if row.length < 1]
    if empty:
        raise DatasetError(f"{layout.root}: episodes {empty[:5]} have no steps, expected at least one each. Remove them at their source.")


def _open_files(layout: Layout) -> dict[Path, StepFile]:
    """Every data file, by its path; each must hold exactly the rows of its episodes."""
    expected: Counter[Path] = Counter()
    for row in layout.episodes:
        expected[row.file] += row.length
    files = {path: StepFile(path) for path in expected}
    for path, file in files.items():
        if file.rows != expected[path]:
            raise DatasetError(f"{path}: {file.rows} rows, but the table of episodes counts {expected[path]} steps in it. {COPY_AGAIN}")
    return files


def _action_range(files: dict[Path, StepFile], action: str) -> NDArray[np.float64]:
    """Smallest and largest action of a dataset without statistics, float64 (2, A)."""
    blocks = [vectors(file.read(0, file.rows, (action,)).column(action), f"{file.path}, {action}") for file in files.values()]
    values = np.concatenate(blocks).astype(np.float64)
    return np.stack([np.nanmin(values, axis=0), np.nanmax(values, axis=0)])


def _successes(layout: Layout, files: dict[Path, StepFile]) -> list[bool]:
    """From the metadata, else from the column next.success, else True."""
    flags: dict[Path, NDArray[np.bool_]] = {}
    result = []
    for row in layout.episodes:
        if row.success is not None or "next.success" not in files[row.file].columns:
            result.append(row.success is not False)
            continue
        if row.file not in flags:
            column = files[row.file].read(0, files[row.file].rows, ("next.success",)).column("next.success")
            flags[row.file] = np.asarray(column.to_numpy(zero_copy_only=False), dtype=bool)
        result.append(bool(flags[row.file][row.first_row : row.first_row + row.length].any()))
    return result
