"""Small datasets for tests: episodes of random frames and vectors, in our layout, in a foreign one, in version 2.1, and ways to spoil them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from actlet.specs import ActionSpec, CameraSpec, ObservationSpec
from episodes.episode import Episode
from episodes.lerobot_dataset import DatasetWriter, LeRobotDataset, open_dataset
from episodes.lerobot_steps import encode_frame

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


def make_foreign(path: Path, *, one_group: bool = False) -> None:
    """Take from our dataset everything that LeRobot does not know."""
    (path / "meta/actlet.json").unlink()
    table = pq.read_table(path / EPISODES)
    pq.write_table(table.select([name for name in table.column_names if not name.startswith("actlet/")]), path / EPISODES)
    if one_group:
        pq.write_table(pq.read_table(path / DATA), path / DATA)


def edit_json(path: Path, **changes: Any) -> None:
    """Replace keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_column(path: Path, name: str, change: Callable[[list[Any]], list[Any]]) -> None:
    """Rewrite one column of a parquet file; all rows end up in one row group."""
    table = pq.read_table(path)
    index = table.column_names.index(name)
    field = table.schema.field(name)
    pq.write_table(table.set_column(index, field, pa.array(change(table.column(name).to_pylist()), field.type)), path)


def with_first(value: Any) -> Callable[[list[Any]], list[Any]]:
    """A change for `edit_column`: another first value."""
    return lambda values: [value, *values[1:]]


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
