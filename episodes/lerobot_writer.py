"""Write LeRobotDataset version 3.0: episodes go in, and at the end a whole dataset appears, or nothing.

    with DatasetWriter("data/table", observation_spec=..., action_spec=..., rate_hz=10.0) as writer:
        writer.add(episode)

The dataset grows in a hidden folder beside its place and is renamed when every file is closed. Frames are PNG, so what is read back is
bit-identical to what was added. Each episode is a parquet row group of its own. The content depends on the episodes and their order
alone: no time, no host, no path.

Encoding frames is most of the work. `encode_episode` does it apart from the writer, so that other processes can share it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from actlet.errors import DatasetError
from actlet.specs import ActionSpec, ObservationSpec
from actlet.storage import new_folder, write_json
from episodes.episode import Episode
from episodes.lerobot_layout import INFO_PATH
from episodes.lerobot_specs import ACTLET_SCHEMA_VERSION
from episodes.lerobot_statistics import frame_histogram, frame_statistics, vector_statistics
from episodes.lerobot_steps import encode_frame, vector_column, vectors
from episodes.lerobot_v30 import (
    ACTION,
    ACTLET_PATH,
    DATA_PATH,
    EPISODES_PATH,
    EXECUTED,
    IMAGES,
    INDEX_COLUMNS,
    STATE,
    STATS_PATH,
    TASKS_PATH,
    lerobot_features,
    tasks_table,
)

__all__ = ["DatasetWriter", "EncodedEpisode", "encode_episode"]

# LeRobot's own defaults.
FILES_PER_CHUNK, DATA_FILE_MB, VIDEO_FILE_MB = 1000, 100, 200
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedEpisode:
    """An episode as it goes into the file."""

    steps: pa.Table
    """Columns of `lerobot_features` but for those that depend on the episode's place in the dataset."""
    histograms: dict[str, NDArray[np.int64]]
    """Camera column -> int64 (3, 256)."""
    instruction: str
    success: bool
    seed: int | None
    task: str

    def to_bytes(self) -> bytes:
        """As an Arrow stream, for another process or a file."""
        about = {
            "instruction": self.instruction,
            "success": self.success,
            "seed": self.seed,
            "task": self.task,
            "histograms": {name: values.tolist() for name, values in self.histograms.items()},
        }
        table = self.steps.replace_schema_metadata({"episode": json.dumps(about)})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        return bytes(sink.getvalue())

    @classmethod
    def from_bytes(cls, data: bytes) -> EncodedEpisode:
        """The inverse of `to_bytes`."""
        with pa.ipc.open_stream(data) as stream:
            table = stream.read_all()
        about = json.loads(table.schema.metadata[b"episode"])
        histograms = {name: np.array(values, np.int64) for name, values in about.pop("histograms").items()}
        return cls(steps=table.replace_schema_metadata(None), histograms=histograms, **about)


def encode_episode(episode: Episode, observation: ObservationSpec, action: ActionSpec, rate_hz: float) -> EncodedEpisode:
    """Check an episode and encode its frames.

    Raises:
        DatasetError: It differs from the specifications, is empty, or is not finite.
    """
    episode.check(observation, action)
    steps = len(episode)
    columns: dict[str, pa.Array] = {}
    if observation.state_dim:
        columns[STATE] = vector_column(episode.state.astype(np.float32))
    columns[ACTION] = vector_column(episode.action.astype(np.float32))
    columns[EXECUTED] = vector_column(episode.commanded.astype(np.float32))
    for camera in observation.cameras:
        frames = pa.array([encode_frame(frame) for frame in episode.images[camera.name]], pa.binary())
        columns[f"{IMAGES}{camera.name}"] = pa.StructArray.from_arrays([frames, pa.nulls(steps, pa.string())], fields=list(IMAGE_TYPE))
    last = np.arange(steps) == steps - 1
    columns["timestamp"] = pa.array((np.arange(steps) / rate_hz).astype(np.float32))
    columns["frame_index"] = pa.array(np.arange(steps))
    columns["next.done"] = pa.array(last)
    columns["next.success"] = pa.array(last & episode.success)
    return EncodedEpisode(
        steps=pa.table(columns),
        histograms={f"{IMAGES}{camera.name}": frame_histogram(episode.images[camera.name]) for camera in observation.cameras},
        instruction=episode.instruction,
        success=episode.success,
        seed=episode.seed,
        task=episode.task,
    )


class DatasetWriter:
    """A context manager that makes a whole dataset, or none.

    Args:
        path: The dataset's folder, which must not exist unless `overwrite`.
        observation_spec: What is seen.
        action_spec: What is commanded.
        rate_hz: Steps in a second; LeRobot keeps whole numbers only.
        robot_type: The robot's name, for LeRobot's tools.
        overwrite: Replace a dataset that is there.
        provenance: Whatever says where the episodes come from, as plain JSON; kept in meta/actlet.json. The attribute of this name may be
            added to until the block ends.

    Raises:
        DatasetError: The rate is not a whole number, or no episode was added by the end of the block.
        StorageError: The folder exists, cannot be written, or the disk is full; nothing is left of it.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        observation_spec: ObservationSpec,
        action_spec: ActionSpec,
        rate_hz: float,
        robot_type: str = "unknown",
        overwrite: bool = False,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        if rate_hz != int(rate_hz) or rate_hz < 1:
            raise DatasetError(
                f"{path}: rate_hz {rate_hz}; a LeRobotDataset has a whole number of steps a second. Resample, or round the rate."
            )
        self.path, self._overwrite = Path(path), overwrite
        self._observation, self._action, self._rate_hz = observation_spec, action_spec, float(rate_hz)
        self._robot_type = robot_type
        self.provenance: dict[str, Any] = dict(provenance or {})
        self._features = lerobot_features(observation_spec, action_spec)
        self._stack = contextlib.ExitStack()
        self._file: pq.ParquetWriter | None = None
        self._file_path = Path()
        self._files = 0
        self._instructions: dict[str, int] = {}
        self._rows: list[dict[str, Any]] = []
        self._frames = 0
        self._vectors: dict[str, list[NDArray[Any]]] = {name: [] for name in self._features if not name.startswith(IMAGES)}
        self._histograms = {name: np.zeros((3, 256), np.int64) for name in self._features if name.startswith(IMAGES)}

    def __len__(self) -> int:
        return len(self._rows)

    def __enter__(self) -> DatasetWriter:
        self._folder = self._stack.enter_context(new_folder(self.path, overwrite=self._overwrite))
        self._stack.push(self._finish)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, trace)

    def add(self, episode: Episode) -> None:
        """Append an episode.

        Raises:
            DatasetError: It differs from the specifications, is empty, or is not finite.
        """
        self.add_encoded(encode_episode(episode, self._observation, self._action, self._rate_hz))

    def add_encoded(self, episode: EncodedEpisode) -> None:
        """Append an episode whose frames `encode_episode` has encoded with the same specifications."""
        number, steps = len(self._rows), episode.steps.num_rows
        task_index = self._instructions.setdefault(episode.instruction, len(self._instructions))
        table = episode.steps
        for name, values in (
            ("episode_index", np.full(steps, number)),
            ("index", self._frames + np.arange(steps)),
            ("task_index", np.full(steps, task_index)),
        ):
            table = table.append_column(name, pa.array(values.astype(np.int64)))
        table = table.select(list(self._features))
        # A new file begins before an episode, never within one.
        if self._file is not None and self._file_path.stat().st_size > DATA_FILE_MB * 2**20:
            self._file.close()
            self._file = None
        if self._file is None:
            self._open_file(table.schema)
        assert self._file is not None
        self._file.write_table(table, row_group_size=steps)
        numbers = {name: _column_values(table, name) for name in self._vectors}
        for name, values in numbers.items():
            self._vectors[name].append(values)
        for name, histogram in episode.histograms.items():
            self._histograms[name] += histogram
        stats = {name: vector_statistics(values) for name, values in numbers.items()}
        stats |= {name: frame_statistics(histogram) for name, histogram in episode.histograms.items()}
        self._rows.append(
            {
                "episode_index": number,
                "tasks": [episode.instruction],
                "length": steps,
                "dataset_from_index": self._frames,
                "dataset_to_index": self._frames + steps,
                "data/chunk_index": (self._files - 1) // FILES_PER_CHUNK,
                "data/file_index": (self._files - 1) % FILES_PER_CHUNK,
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
                "actlet/success": episode.success,
                "actlet/seed": episode.seed,
                "actlet/task": episode.task,
                **{f"stats/{name}/{stat}": value for name, values in stats.items() for stat, value in values.items()},
            }
        )
        self._frames += steps

    def _open_file(self, schema: pa.Schema) -> None:
        chunk, file = divmod(self._files, FILES_PER_CHUNK)
        self._file_path = self._folder / DATA_PATH.format(chunk_index=chunk, file_index=file)
        self._file_path.parent.mkdir(parents=True, exist_ok=True)
        # Frames are all different and compressed already: no dictionary; statistics are for finding rows.
        self._file = pq.ParquetWriter(
            self._file_path, schema, compression="snappy", use_dictionary=False, write_statistics=list(INDEX_COLUMNS)
        )
        self._files += 1

    def _finish(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close every file; after an error only so that the folder can be removed."""
        if kind is not None:
            with contextlib.suppress(Exception):
                if self._file is not None:
                    self._file.close()
            return
        if self._file is None:
            raise DatasetError(f"{self.path}: no episode was added, and an empty dataset is of no use. Add at least one.")
        self._file.close()
        meta = self._folder / "meta"
        episodes = self._folder / EPISODES_PATH.format(chunk_index=0, file_index=0)
        episodes.parent.mkdir(parents=True)
        schema = pa.Table.from_pylist(self._rows).schema
        for name, kind_of in (("actlet/seed", pa.int64()), ("actlet/task", pa.string())):  # Also where every entry is missing.
            schema = schema.set(schema.get_field_index(name), pa.field(name, kind_of))
        pq.write_table(pa.Table.from_pylist(self._rows, schema), episodes, compression="snappy")
        pq.write_table(tasks_table(self._instructions), meta / Path(TASKS_PATH).name, compression="snappy")
        stats = {name: vector_statistics(np.concatenate(values)) for name, values in self._vectors.items()}
        stats |= {name: frame_statistics(histogram) for name, histogram in self._histograms.items()}
        write_json(self._folder / STATS_PATH, stats)
        write_json(self._folder / INFO_PATH, self._info())
        about = {"observation": self._observation.to_dict(), "action": self._action.to_dict(), "provenance": self.provenance}
        write_json(self._folder / ACTLET_PATH, {"schema_version": ACTLET_SCHEMA_VERSION, **about})

    def _info(self) -> dict[str, Any]:
        return {
            "codebase_version": "v3.0",
            "robot_type": self._robot_type,
            "total_episodes": len(self._rows),
            "total_frames": self._frames,
            "total_tasks": len(self._instructions),
            "chunks_size": FILES_PER_CHUNK,
            "data_files_size_in_mb": DATA_FILE_MB,
            "video_files_size_in_mb": VIDEO_FILE_MB,
            "fps": int(self._rate_hz),
            "splits": {"train": f"0:{len(self._rows)}"},
            "data_path": DATA_PATH,
            "video_path": None,
            "features": self._features,
        }


def _column_values(table: pa.Table, name: str) -> NDArray[Any]:
    column = table.column(name)
    if pa.types.is_boolean(column.type) or pa.types.is_integer(column.type):
        return np.asarray(column.to_numpy(zero_copy_only=False)).reshape(-1, 1)
    return vectors(column, name)
