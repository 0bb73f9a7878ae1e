"""LeRobotDataset version 2.1, the layout before 3.0: one parquet file, and one film per camera, for each episode.

meta/info.json              as in 3.0, with path templates in {episode_chunk} and {episode_index}
meta/tasks.jsonl            {"task_index", "task"}
meta/episodes.jsonl         {"episode_index", "tasks", "length"}
meta/episodes_stats.jsonl   {"episode_index", "stats": {feature: {min, max, mean, std, count}}}
data/chunk-000/episode_000000.parquet
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from actlet.errors import DatasetError
from episodes.lerobot_layout import COPY_AGAIN, EpisodeRow, Layout, fill_template, first_instruction, read_json_lines

__all__ = ["read_v21"]

DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
EPISODES_PATH, EPISODES_STATS_PATH = "meta/episodes.jsonl", "meta/episodes_stats.jsonl"


def read_v21(root: Path, info: dict[str, Any]) -> Layout:
    """The layout of a version 2.1 dataset.

    Raises:
        DatasetError: A metadata file is missing, cut, or lacks a key.
    """
    rows = read_json_lines(root / EPISODES_PATH)
    for number, row in enumerate(rows, start=1):
        if not {"episode_index", "length"} <= set(row):
            raise DatasetError(
                f"{root / EPISODES_PATH}, line {number}: got the keys {sorted(row)}, expected episode_index, tasks, length. {COPY_AGAIN}"
            )
    rows.sort(key=lambda row: int(row["episode_index"]))
    films = [key for key, feature in info["features"].items() if feature["dtype"] == "video"]
    data_path, video_path = info.get("data_path") or DATA_PATH, info.get("video_path") or VIDEO_PATH
    episodes = []
    for row in rows:
        index = int(row["episode_index"])
        places = {"episode_chunk": index // int(info.get("chunks_size", 1000)), "episode_index": index}
        episodes.append(
            EpisodeRow(
                index=index,
                instruction=first_instruction(row),
                length=int(row["length"]),
                file=root / fill_template(data_path, DATA_PATH, **places),
                first_row=0,
                videos={key: (root / fill_template(video_path, VIDEO_PATH, video_key=key, **places), 0.0) for key in films},
            )
        )
    return Layout(root=root, rate_hz=float(info["fps"]), features=info["features"], episodes=tuple(episodes), stats=_extremes(root))


def _extremes(root: Path) -> dict[str, dict[str, Any]]:
    """min and max of every feature over all episodes; empty where the dataset has no statistics."""
    path = root / EPISODES_STATS_PATH
    result: dict[str, dict[str, Any]] = {}
    for row in read_json_lines(path) if path.exists() else []:
        for key, stats in row["stats"].items():
            if {"min", "max"} <= set(stats):
                seen = result.setdefault(key, {"min": stats["min"], "max": stats["max"]})
                seen["min"] = np.minimum(seen["min"], stats["min"]).tolist()
                seen["max"] = np.maximum(seen["max"], stats["max"]).tolist()
    return result
