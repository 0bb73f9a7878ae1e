"""Moments of recordings: what a policy of your own is compared on, and what its bundle's self-test replays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from distill.text_encoder import load_text_encoder
from episodes.lerobot_dataset import LeRobotDataset
from export.samples import Samples

__all__ = ["MOMENTS", "moments_of", "samples_of"]

MOMENTS = 16


def moments_of(lengths: Sequence[int], count: int = MOMENTS) -> list[tuple[int, int]]:
    """Which moments: the first frames of up to `count` // 2 episodes, where a policy starts, and others spread evenly over all other frames.

    Args:
        lengths: Steps of every episode, at least one each.
        count: How many moments.

    Returns:
        (episode, step) of `count` moments, or of all that there are, in the order of the recordings; the same for the same lengths.
    """
    ends = np.cumsum(lengths)
    starts = ends - lengths
    first = starts[_spread(len(lengths), max(count // 2, 1))]
    others = np.setdiff1d(np.arange(ends[-1]), first)
    chosen = np.sort(np.concatenate([first, others[_spread(len(others), count - len(first))]]))
    episodes = np.searchsorted(ends, chosen, side="right")
    return list(zip(episodes.tolist(), (chosen - starts[episodes]).tolist(), strict=True))


def samples_of(dataset: LeRobotDataset, *, reads_instruction: bool) -> Samples:
    """What was seen, and told, at these moments.

    Raises:
        DatasetError: An episode cannot be read.
    """
    steps: dict[int, list[int]] = {}
    for episode, step in moments_of([episode.length for episode in dataset.episodes]):
        steps.setdefault(episode, []).append(step)
    images: dict[str, list[NDArray[np.uint8]]] = {camera.name: [] for camera in dataset.observation_spec.cameras}
    states, texts = [], []
    for recorded, rows in zip(dataset.iterate(list(steps)), steps.values(), strict=True):
        for name, frames in recorded.images.items():
            images[name].append(frames[rows])  # A copy: the episode's other frames are let go.
        states.append(recorded.state[rows])
        texts += [recorded.instruction] * len(rows)
    vectors = load_text_encoder().encode(texts) if reads_instruction else np.zeros((len(texts), 0), np.float32)
    nothing = np.zeros((len(texts), 0, 1 + dataset.action_spec.dim), np.float32)
    stacked = {name: np.concatenate(frames) for name, frames in images.items()}
    return Samples(stacked, np.concatenate(states).astype(np.float32), vectors, nothing, tuple(texts))


def _spread(length: int, count: int) -> NDArray[np.int64]:
    """Up to `count` of 0 .. length - 1, the first and, if there are two, the last among them."""
    count = min(length, count)
    return np.arange(count) * (length - 1) // max(count - 1, 1)
