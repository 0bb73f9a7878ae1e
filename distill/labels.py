"""A teacher's answers for recorded frames: float16 (N, A, K), written shard by shard so that a cut-off run goes on.

The answer for a frame is the distribution that the teacher decodes there, token by token from its own tokens. A chunk's
target is made of the answers along the trajectory: what the teacher would do at t, at t+1, ... each in the state that was
really reached then.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save
from tqdm.auto import tqdm

from actlet.protocols import Observation, Teacher
from actlet.storage import write_bytes
from distill.frames import Frames

__all__ = ["label_frames"]

SHARD = 512


def label_frames(
    teacher: Teacher,
    frames: Frames,
    folder: Path,
    *,
    episodes: Collection[int] | None = None,
    batch_size: int = 32,
    label: str = "teacher's answers",
) -> NDArray[np.float16]:
    """Ask the teacher about frames.

    Args:
        teacher: Whom to ask.
        frames: N frames.
        folder: Where shards are kept; those that exist are not asked for again.
        episodes: Whose frames are asked about; None for all.
        batch_size: Frames per question.
        label: Text of the progress bar.

    Returns:
        float16 (N, A, K), zero for a frame that was not asked about.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = np.arange(len(frames)) if episodes is None else np.flatnonzero(np.isin(frames.episode, list(episodes)))
    shards = []
    with tqdm(total=len(rows), desc=label, unit="frame", mininterval=2.0) as progress:
        for start in range(0, len(rows), SHARD):
            asked = rows[start : start + SHARD]
            file = folder / f"{start:08d}-{start + len(asked):08d}.safetensors"
            if not file.is_file():
                answers = [_ask(teacher, frames, asked[i : i + batch_size]) for i in range(0, len(asked), batch_size)]
                write_bytes(file, save({"distribution": np.concatenate(answers)}))
            shards.append(load_file(file)["distribution"])
            progress.update(len(asked))
    everything = np.zeros((len(frames), *shards[0].shape[1:]), np.float16)
    everything[rows] = np.concatenate(shards)
    return everything


def _ask(teacher: Teacher, frames: Frames, rows: NDArray[np.int64]) -> NDArray[np.float16]:
    observations = [Observation({name: images[i] for name, images in frames.images.items()}, frames.state[i]) for i in rows]
    instructions = [frames.instructions[frames.episode[i]] for i in rows]
    return teacher.action_distribution(observations, instructions).astype(np.float16)
