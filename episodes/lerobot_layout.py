"""What the versions of LeRobotDataset have in common: the index of episodes, and readers that say what is wrong with a file.

`episodes.lerobot_v30` and `episodes.lerobot_v21` turn their metadata into one `Layout`; `episodes.lerobot_dataset` reads steps with it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actlet.errors import DatasetError
from actlet.storage import read_json

__all__ = [
    "INFO_PATH",
    "EpisodeRow",
    "Layout",
    "fill_template",
    "first_instruction",
    "read_info",
    "read_json_lines",
    "read_object",
    "unreadable",
]

INFO_PATH = "meta/info.json"
COPY_AGAIN = "Copy the dataset again from its source, or record it again."


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpisodeRow:
    """One episode as the metadata describes it."""

    index: int
    """Its number in the dataset (episode_index)."""
    instruction: str
    """The first of its instructions."""
    length: int
    """T, its steps."""
    file: Path
    """The parquet file that holds it."""
    first_row: int
    """Its first row in that file."""
    success: bool | None = None
    """None where only the column next.success says it, or nothing."""
    seed: int | None = None
    """The seed of a simulated episode."""
    task: str = ""
    """The task's name within its suite."""
    videos: dict[str, tuple[Path, float]] = dataclasses.field(default_factory=dict)
    """Column of dtype "video" -> (film, second at which this episode begins in it)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """A dataset's metadata, the same for every version of the format."""

    root: Path
    """The dataset's folder."""
    rate_hz: float
    """Steps in a second."""
    features: dict[str, dict[str, Any]]
    """Column -> {"dtype", "shape", "names"}."""
    episodes: tuple[EpisodeRow, ...]
    """In the order of their numbers."""
    stats: dict[str, dict[str, Any]]
    """Column -> statistic -> nested lists; empty where the dataset has none."""
    actlet: dict[str, Any] | None = None
    """Content of meta/actlet.json, None for a foreign dataset."""


def read_info(root: Path) -> dict[str, Any]:
    """meta/info.json with the keys that every version has.

    Raises:
        DatasetError: The folder or the file is missing, is not JSON, or lacks a key.
    """
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder; expected a LeRobotDataset, that is a folder with {INFO_PATH}. Check the path.")
    info = read_object(root / INFO_PATH)
    missing = sorted({"codebase_version", "fps", "features", "total_episodes", "total_frames"} - set(info))
    if missing:
        raise DatasetError(f"{root / INFO_PATH}: got the keys {sorted(info)}, expected {missing} too. {COPY_AGAIN}")
    return info


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file; raises DatasetError where it is missing or something else."""
    try:
        data = read_json(path)
    except FileNotFoundError as error:
        raise DatasetError(f"{path} is missing: the folder is not a complete LeRobotDataset. {COPY_AGAIN}") from error
    except (ValueError, OSError) as error:
        raise DatasetError(f"{path} cannot be read as JSON ({error}). {COPY_AGAIN}") from error
    if not isinstance(data, dict):
        raise DatasetError(f"{path}: got a JSON {type(data).__name__}, expected an object. {COPY_AGAIN}")
    return data


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file; raises DatasetError with the line that is not one."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise DatasetError(f"{path} is missing: the folder is not a complete LeRobotDataset. {COPY_AGAIN}") from error
    result = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                result.append(json.loads(line))
            except ValueError as error:
                raise DatasetError(f"{path}, line {number}: not JSON ({error}); the file was cut. {COPY_AGAIN}") from error
    return result


def read_table(path: Path, *, without: str) -> pa.Table:
    """A whole parquet file but for the columns whose names begin with `without`; raises DatasetError where it is missing or cut."""
    try:
        with pq.ParquetFile(path) as file:
            return file.read(columns=[name for name in file.schema_arrow.names if not name.startswith(without)], use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> DatasetError:
    """What to say about a parquet file that cannot be read."""
    if not path.exists():
        return DatasetError(f"{path} is missing, though the metadata names it. {COPY_AGAIN}")
    return DatasetError(
        f"{path} ({path.stat().st_size} bytes) is not a whole parquet file: {str(error).splitlines()[0]} "
        f"It was cut, or its writer was not closed. {COPY_AGAIN}"
    )


def fill_template(template: str, example: str, **places: Any) -> str:
    """Fill a path template of info.json; raises DatasetError where it is not one."""
    try:
        return template.format(**places)
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        raise DatasetError(
            f"{INFO_PATH}: got the path template {template!r}, expected one such as {example!r}. Correct it there."
        ) from error


def first_instruction(row: dict[str, Any]) -> str:
    """The first of an episode's instructions, empty where it has none."""
    tasks = row.get("tasks") or [""]
    return str(tasks[0])
