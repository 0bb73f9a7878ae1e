"""Scenes that nobody demonstrated, and what the teacher sees in each of them for every instruction that makes sense there.

A demonstration shows its scene under one instruction, so a student may learn "this scene: that block" by heart, and does
so before it learns which word names the block and which the plate. The teacher has no such limit: one look at a scene
serves all of its instructions, without an expert and without a rollout::

    new scene ─ first frames ─ teacher's frozen vision ─┬─ "touch the red block"                   ─ scene vector
                                                        ├─ "put the red block on the blue plate"   ─ scene vector
                                                        └─ ...

The student's features, through a linear layer that only training has, are drawn to these vectors (feature matching:
Romero et al. 2015, FitNets).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save
from tqdm.auto import tqdm

from actlet.protocols import Observation, Teacher
from actlet.storage import write_bytes
from episodes.suites import make_suite

__all__ = ["Scenes", "SeeingTeacher", "look_at_scenes"]

SHARD = 50


@runtime_checkable
class SeeingTeacher(Teacher, Protocol):
    """A teacher that can say what it sees."""

    def scene_vectors(self, observations: Sequence[Observation], instructions: Sequence[Sequence[str]]) -> NDArray[np.float32]:
        """float32 (M, F): for each observation one vector per instruction of its own list, M in all, in that order."""
        ...


@dataclasses.dataclass(frozen=True)
class Scenes:
    """N scenes and M pairs of a scene and an instruction."""

    images: dict[str, NDArray[np.uint8]]
    """Camera name -> (N, h, w, 3), the first frame of each scene."""
    state: NDArray[np.float32]
    """(N, S)."""
    scene: NDArray[np.int64]
    """(M,), the scene of a pair."""
    instructions: list[str]
    """(M,), its instruction."""
    features: NDArray[np.float32]
    """(M, F), what the teacher sees."""


def look_at_scenes(teacher: SeeingTeacher, suite_name: str, seeds: Sequence[int], folder: Path) -> Scenes:
    """Lay each seed's scene and ask the teacher what it sees there.

    Args:
        teacher: Whom to ask.
        suite_name: See `episodes.suites.make_suite`; the tasks take turns.
        seeds: One scene each, at least one.
        folder: Where finished shards are kept; those that exist are not asked for again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    suite = make_suite(suite_name)
    tasks = [suite.make(name) for name in suite.tasks]
    texts = [tasks[seed % len(tasks)].instructions(seed) for seed in seeds]
    shards = []
    with tqdm(total=len(seeds), desc="teacher looks at scenes", unit="scene", mininterval=2.0) as progress:
        for start in range(0, len(seeds), SHARD):
            part = seeds[start : start + SHARD]
            file = folder / f"{start:06d}-{start + len(part):06d}.safetensors"
            if not file.is_file():
                seen = [tasks[seed % len(tasks)].reset(seed)[0] for seed in part]
                shard: dict[str, NDArray[Any]] = {f"images.{name}": np.stack([o.images[name] for o in seen]) for name in seen[0].images}
                shard["state"] = np.stack([o.state for o in seen]).astype(np.float32)
                shard["features"] = teacher.scene_vectors(seen, texts[start : start + len(part)])
                write_bytes(file, save(shard))
            shards.append(load_file(file))
            progress.update(len(part))
    for task in tasks:
        task.close()
    whole = {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}
    return Scenes(
        images={name.removeprefix("images."): frames for name, frames in whole.items() if name.startswith("images.")},
        state=whole["state"],
        scene=np.repeat(np.arange(len(seeds)), [len(lines) for lines in texts]),
        instructions=[line for lines in texts for line in lines],
        features=whole["features"],
    )
