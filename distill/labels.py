"""A teacher's answers for recorded frames: float16 (N, A, K), written shard by shard so that a cut-off run goes on.

The answer for a frame is the distribution that the teacher decodes there, token by token from its own tokens. A chunk's
target is made of the answers along the trajectory: what the teacher would do at t, at t+1, ... each in the state that was
really reached then.
"""

from __future__ import annotations

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
    teacher: Teacher, frames: Frames, folder: Path, *, batch_size: int = 32, label: str = "teacher's answers"
) -> NDArray[np.float16]:
    """Ask the teacher about every frame.

    Args:
        teacher: Whom to ask.
        frames: N frames.
        folder: Where shards are kept; those that exist are not asked for again.
        batch_size: Frames per question.
        label: Text of the progress bar.

    Returns:
        float16 (N, A, K).
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    with tqdm(total=len(frames), desc=label, unit="frame", mininterval=2.0) as progress:
        for start in range(0, len(frames), SHARD):
            stop = min(start + SHARD, len(frames))
            file = folder / f"{start:08d}-{stop:08d}.safetensors"
            if not file.is_file():
                answers = np.concatenate([_ask(teacher, frames, i, min(i + batch_size, stop)) for i in range(start, stop, batch_size)])
                write_bytes(file, save({"distribution": answers}))
            shards.append(load_file(file)["distribution"])
            progress.update(stop - start)
    return np.concatenate(shards)


def _ask(teacher: Teacher, frames: Frames, start: int, stop: int) -> NDArray[np.float16]:
    observations = [Observation({name: images[i] for name, images in frames.images.items()}, frames.state[i]) for i in range(start, stop)]
    instructions = [frames.instructions[frames.episode[i]] for i in range(start, stop)]
    return teacher.action_distribution(observations, instructions).astype(np.float16)
