"""LeRobotDataset version 3.0, in which one parquet file holds many episodes.

    meta/info.json                              version, rate, features (dtype, shape, names), totals, path templates
    meta/stats.json                             statistics per feature
    meta/tasks.parquet                          instruction -> task_index
    meta/episodes/chunk-000/file-000.parquet    a row per episode: length, instructions, place in the data, statistics
    data/chunk-000/file-000.parquet             a row per step; frames as encoded bytes where the dtype is "image"

`meta/actlet.json` and the columns ``actlet/*`` of the episodes table are ours: units, kinds and limits of actions, seeds and task names,
for which LeRobot has no place. LeRobot's own reader passes over them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from actlet.errors import DatasetError
from actlet.specs import ActionSpec, ObservationSpec
from episodes.lerobot_layout import COPY_AGAIN, EpisodeRow, Layout, fill_template, first_instruction, read_object, read_table

__all__ = [
    "ACTION",
    "ACTLET_PATH",
    "DATA_PATH",
    "EPISODES_PATH",
    "EXECUTED",
    "IMAGES",
    "INDEX_COLUMNS",
    "STATE",
    "STATS_PATH",
    "TASKS_PATH",
    "lerobot_features",
    "read_v30",
    "tasks_table",
]

DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
STATS_PATH, TASKS_PATH, ACTLET_PATH = "meta/stats.json", "meta/tasks.parquet", "meta/actlet.json"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
INDEX_COLUMNS = ("timestamp", "frame_index", "episode_index", "index", "task_index")
STATE, ACTION, IMAGES = "observation.state", "action", "observation.images."
EXECUTED = "executed_action"
"""What was really commanded; no column of LeRobot's, whose tools leave it alone."""
NEEDED = ("episode_index", "length", "dataset_from_index", "data/chunk_index", "data/file_index")


def read_v30(root: Path, info: dict[str, Any]) -> Layout:
    """The layout of a version 3.0 dataset.

    Raises:
        DatasetError: A metadata file is missing, cut, or lacks a column.
    """
    files = sorted((root / "meta" / "episodes").glob("*/*.parquet"))
    if not files:
        raise DatasetError(f"{root / 'meta' / 'episodes'}: no parquet file; expected a table of episodes. {COPY_AGAIN}")
    rows: list[dict[str, Any]] = []
    for file in files:
        table = read_table(file, without="stats/")
        missing = [name for name in NEEDED if name not in table.column_names]
        if missing:
            raise DatasetError(f"{file}: got the columns {table.column_names}, expected {missing} too. {COPY_AGAIN}")
        rows += table.to_pylist()
    rows.sort(key=lambda row: int(row["episode_index"]))
    template = info.get("data_path") or DATA_PATH
    places = [
        root / fill_template(template, DATA_PATH, chunk_index=row["data/chunk_index"], file_index=row["data/file_index"]) for row in rows
    ]
    # Rows in a file count from the first episode that is stored in it.
    starts: dict[Path, int] = {}
    for place, row in zip(places, rows, strict=True):
        starts[place] = min(starts.get(place, row["dataset_from_index"]), row["dataset_from_index"])
    episodes = tuple(
        EpisodeRow(
            index=row["episode_index"],
            instruction=first_instruction(row),
            length=row["length"],
            file=place,
            first_row=row["dataset_from_index"] - starts[place],
            success=row.get("actlet/success"),
            seed=row.get("actlet/seed"),
            task=row.get("actlet/task") or "",
            videos=_videos(root, info, row),
        )
        for place, row in zip(places, rows, strict=True)
    )
    return Layout(
        root=root,
        rate_hz=float(info["fps"]),
        features=info["features"],
        episodes=episodes,
        stats=read_object(root / STATS_PATH) if (root / STATS_PATH).exists() else {},
        actlet=read_object(root / ACTLET_PATH) if (root / ACTLET_PATH).exists() else None,
    )


def _videos(root: Path, info: dict[str, Any], row: dict[str, Any]) -> dict[str, tuple[Path, float]]:
    """Where the films of one episode are."""
    result = {}
    for key, feature in info["features"].items():
        if feature["dtype"] == "video" and f"videos/{key}/file_index" in row:
            chunk, file = row[f"videos/{key}/chunk_index"], row[f"videos/{key}/file_index"]
            template = info.get("video_path") or VIDEO_PATH
            film = root / fill_template(template, VIDEO_PATH, video_key=key, chunk_index=chunk, file_index=file)
            result[key] = (film, float(row[f"videos/{key}/from_timestamp"]))
    return result


def lerobot_features(observation: ObservationSpec, action: ActionSpec) -> dict[str, dict[str, Any]]:
    """The features that info.json lists: column -> dtype, shape, names."""

    def vector(dtype: str, names: tuple[str, ...] | None) -> dict[str, Any]:
        return {"dtype": dtype, "shape": [len(names) if names else 1], "names": list(names) if names else None}

    features = {STATE: vector("float32", observation.state_names)} if observation.state_dim else {}
    features[ACTION] = vector("float32", action.names)
    features[EXECUTED] = vector("float32", action.names)
    for camera in observation.cameras:
        shape = [camera.height, camera.width, 3]
        features[f"{IMAGES}{camera.name}"] = {"dtype": "image", "shape": shape, "names": ["height", "width", "channels"]}
    features |= {name: vector("float32" if name == "timestamp" else "int64", None) for name in INDEX_COLUMNS}
    return features | {name: vector("bool", None) for name in ("next.done", "next.success")}


def tasks_table(instructions: dict[str, int]) -> pa.Table:
    """LeRobot reads this table with pandas and takes the instruction from its index, which pandas finds in the schema's metadata."""
    about = {
        "index_columns": ["task"],
        "column_indexes": [
            {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object", "metadata": {"encoding": "UTF-8"}}
        ],
        "columns": [
            {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64", "metadata": None},
            {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object", "metadata": None},
        ],
        "pandas_version": "2.0.0",
    }
    table = pa.table({"task_index": pa.array(list(instructions.values()), pa.int64()), "task": pa.array(list(instructions), pa.string())})
    return table.replace_schema_metadata({"pandas": json.dumps(about)})
