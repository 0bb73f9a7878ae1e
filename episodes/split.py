"""Split a dataset into episodes for training and episodes held out, by scene: no scene is seen on both sides.

A collection records every scene with every task (`episodes.recording`), and the episodes of one scene show the same table: one that is
held out says little while another is trained on. So a scene, all episodes with one seed, goes to one side as a whole. A recording has no
seed and is a scene of its own. Nothing is ever split by frame: neighbouring frames are nearly the same picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from actlet.errors import DatasetError
from episodes.lerobot_dataset import EpisodeInfo, LeRobotDataset

__all__ = ["split_episodes"]


def split_episodes(dataset: LeRobotDataset, held_out_fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Split by whole scenes: by seed where episodes carry one, by episode where they carry none.

    Scenes with the same tasks (the same instructions, where the dataset names no tasks) give their share, as evenly as whole scenes
    allow. As many scenes are held out as bring the number of their episodes nearest to the fraction.

    Args:
        dataset: What to split.
        held_out_fraction: Of the episodes, 0 <= fraction < 1. Above 0 at least one scene is held out, and at least one is not.
        seed: Decides which.

    Returns:
        (indices for training, held-out indices), both in ascending order.

    Raises:
        DatasetError: The fraction is out of range, or there are too few scenes.
    """
    total = len(dataset)
    if not 0.0 <= held_out_fraction < 1.0:
        raise DatasetError(f"held_out_fraction {held_out_fraction}: expected 0 <= fraction < 1.")
    if held_out_fraction == 0.0:
        return list(range(total)), []
    scenes = _scenes(dataset.episodes)
    if len(scenes) < 2:
        raise DatasetError(
            f"{dataset.path}: one scene (of {total} episodes) cannot be split, expected two or more. Record another, or hold out nothing."
        )
    order = _spread(scenes, np.random.default_rng([seed, total]))
    episodes_held_out = np.cumsum([len(scene) for scene in order])[:-1]  # By the number of scenes held out, 1 .. all but one.
    count = 1 + int(np.abs(episodes_held_out - round(held_out_fraction * total)).argmin())
    held_out = sorted(episode.index for scene in order[:count] for episode in scene)
    return sorted(set(range(total)) - set(held_out)), held_out


def _scenes(episodes: Sequence[EpisodeInfo]) -> list[list[EpisodeInfo]]:
    """The episodes of each scene, in the order of their first ones."""
    scenes: dict[tuple[str, int], list[EpisodeInfo]] = {}
    for episode in episodes:
        key = ("recording", episode.index) if episode.seed is None else ("seed", episode.seed)
        scenes.setdefault(key, []).append(episode)
    return list(scenes.values())


def _spread(scenes: list[list[EpisodeInfo]], rng: np.random.Generator) -> list[list[EpisodeInfo]]:
    """Shuffled so that every beginning of the list holds about the same share of each group: the scenes with the same tasks."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for number, scene in enumerate(scenes):
        groups.setdefault(tuple(sorted(episode.task or episode.instruction for episode in scene)), []).append(number)
    # Every group is spread evenly over [0, 1) from a start of its own. Large groups give their share to within one scene, and
    # groups of one are chosen at random.
    ranked: list[tuple[float, int]] = []
    for name in sorted(groups):
        members = rng.permutation(groups[name])
        ranks = (np.arange(len(members)) + rng.random()) / len(members)
        ranked += zip(ranks.tolist(), members.tolist(), strict=True)
    return [scenes[number] for _, number in sorted(ranked)]
