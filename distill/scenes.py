"""What the teacher sees, for every instruction that makes sense: in scenes that nobody demonstrated, and in the middle of episodes.

A demonstration shows its scene under one instruction, so a student may learn "this scene: that block" by heart, and does
so before it learns which word names the block and which the plate. The teacher has no such limit: one look at a scene
serves all of its instructions, without an expert and without a rollout::

    new scene ─ first frames ─┬─ teacher's frozen vision ─┬─ "touch the red block"                   ─ scene vector
    episode ─ frames half-way ┘                           ├─ "put the red block on the blue plate"   ─ scene vector
                                                          └─ ...

A scene's first frames ask which block is meant; frames half-way, above all those to which a student drove by itself, ask
whether this is the one.

The student's features, through a linear layer that only training has, are drawn to these vectors (feature matching:
Romero et al. 2015, FitNets).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save
from tqdm.auto import tqdm

from actlet.protocols import Observation, Teacher
from actlet.storage import write_bytes
from episodes.episode import Episode
from episodes.suites import make_suite

__all__ = ["Scenes", "SeeingTeacher", "look_at_episodes", "look_at_scenes"]

SHARD = 50


@runtime_checkable
class SeeingTeacher(Teacher, Protocol):
    """A teacher that can say what it sees."""

    def scene_vectors(self, observations: Sequence[Observation], instructions: Sequence[Sequence[str]]) -> NDArray[np.float32]:
        """float32 (M, F): for each observation one vector per instruction of its own list, M in all, in that order."""
        ...


@dataclasses.dataclass(frozen=True)
class Scenes:
    """N scenes, or frames of one, and M pairs of a scene and an instruction."""

    images: dict[str, NDArray[np.uint8]]
    """Camera name -> (N, h, w, 3)."""
    state: NDArray[np.float32]
    """(N, S)."""
    scene: NDArray[np.int64]
    """(M,), the scene of a pair."""
    instructions: list[str]
    """(M,), its instruction."""
    features: NDArray[np.float32]
    """(M, F), what the teacher sees."""

    @classmethod
    def concatenate(cls, parts: Sequence[Scenes]) -> Scenes:
        """Several as one, at least one."""
        offsets = np.cumsum([0, *(len(part.state) for part in parts)])
        return cls(
            images={name: np.concatenate([part.images[name] for part in parts]) for name in parts[0].images},
            state=np.concatenate([part.state for part in parts]),
            scene=np.concatenate([part.scene + offset for part, offset in zip(parts, offsets, strict=False)]),
            instructions=[line for part in parts for line in part.instructions],
            features=np.concatenate([part.features for part in parts]),
        )


def look_at_scenes(teacher: SeeingTeacher, suite_name: str, seeds: Sequence[int], folder: Path) -> Scenes:
    """Lay each seed's scene and ask the teacher what it sees there.

    Args:
        teacher: Whom to ask.
        suite_name: See `episodes.suites.make_suite`; the tasks take turns.
        seeds: One scene each, at least one.
        folder: Where finished shards are kept; those that exist are not asked for again.
    """
    suite = make_suite(suite_name)
    tasks = [suite.make(name) for name in suite.tasks]
    texts = [tasks[seed % len(tasks)].instructions(seed) for seed in seeds]
    try:
        return _look(teacher, lambda row: tasks[seeds[row] % len(tasks)].reset(seeds[row])[0], texts, folder, "teacher looks at new scenes")
    finally:
        for task in tasks:
            task.close()


def look_at_episodes(
    teacher: SeeingTeacher, suite_name: str, episodes: Sequence[Episode], count: int, folder: Path, *, seed: int
) -> Scenes:
    """Ask the teacher what it sees in frames of episodes, under every instruction that their scenes allow.

    Args:
        teacher: Whom to ask.
        suite_name: The suite in which the episodes were recorded.
        episodes: From which `count` frames are drawn, all frames alike; an episode without a seed has none to draw.
        count: How many; fewer where there are fewer.
        folder: As in `look_at_scenes`.
        seed: Of the draw.
    """
    suite = make_suite(suite_name)
    frames = [(episode, step) for episode in episodes if episode.seed is not None for step in range(len(episode))]
    chosen = [frames[i] for i in np.random.default_rng(seed).permutation(len(frames))[:count]]
    tasks = {name: suite.make(name) for name in sorted({episode.task for episode, _ in chosen})}
    try:
        texts = [tasks[episode.task].instructions(episode.seed) for episode, _ in chosen]
    finally:
        for task in tasks.values():
            task.close()

    def observe(row: int) -> Observation:
        episode, step = chosen[row]
        return Observation({name: images[step] for name, images in episode.images.items()}, episode.state[step])

    return _look(teacher, observe, texts, folder, "teacher looks at episodes")


def _look(
    teacher: SeeingTeacher, observe: Callable[[int], Observation], texts: Sequence[Sequence[str]], folder: Path, label: str
) -> Scenes:
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    with tqdm(total=len(texts), desc=label, unit="scene", mininterval=2.0) as progress:
        for start in range(0, len(texts), SHARD):
            rows = range(start, min(start + SHARD, len(texts)))
            file = folder / f"{rows.start:06d}-{rows.stop:06d}.safetensors"
            if not file.is_file():
                seen = [observe(row) for row in rows]
                shard: dict[str, NDArray[Any]] = {f"images.{name}": np.stack([o.images[name] for o in seen]) for name in seen[0].images}
                shard["state"] = np.stack([o.state for o in seen]).astype(np.float32)
                shard["features"] = teacher.scene_vectors(seen, [texts[row] for row in rows])
                write_bytes(file, save(shard))
            shards.append(load_file(file))
            progress.update(len(rows))
    whole = {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0]}
    return Scenes(
        images={name.removeprefix("images."): frames for name, frames in whole.items() if name.startswith("images.")},
        state=whole["state"],
        scene=np.repeat(np.arange(len(texts)), [len(lines) for lines in texts]),
        instructions=[line for lines in texts for line in lines],
        features=whole["features"],
    )
