"""Recorded frames that quantization looks at: some to calibrate with, others to judge by.

The two never come from the same episode, since neighbouring frames are nearly the same picture, nor from the same scene
(`episodes.split`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlet.errors import DatasetError, QuantizationError
from actlet.protocols import Observation, committed_rows
from actlet.specs import PolicySpec, require_same
from episodes.episode import Episode
from episodes.lerobot_dataset import LeRobotDataset, open_dataset
from episodes.split import split_episodes
from runtime.golden import Golden
from runtime.networks import Networks

__all__ = ["Frames", "frames_of_dataset", "frames_of_golden"]


@dataclasses.dataclass(frozen=True)
class Frames:
    """N recorded inputs of a policy."""

    images: dict[str, NDArray[np.uint8]]
    """Camera name -> (N, h, w, 3)."""
    state: NDArray[np.float32]
    """(N, S), physical units."""
    instruction: NDArray[np.float32]
    """(N, E), what the bundle's own instruction.onnx says; E is 0 for a policy that reads no instruction."""
    committed: NDArray[np.float32]
    """(N, D, 1 + A), what was on its way, see `actlet.protocols.committed_rows`."""

    def __len__(self) -> int:
        return len(self.state)

    def feeds(self, row: int) -> dict[str, NDArray[Any]]:
        """Inputs of policy.onnx for one frame."""
        images = {f"images.{name}": frames[row : row + 1] for name, frames in self.images.items()}
        asked = {"instruction": self.instruction[row : row + 1]} if self.instruction.shape[1] else {}
        told = {"committed": self.committed[row : row + 1]} if self.committed.shape[1] else {}
        return {**images, "state": self.state[row : row + 1], **asked, **told}

    def require_variety(self) -> None:
        """Refuse frames that say nothing of what occurs.

        Raises:
            QuantizationError: There are none, or all are the same.
        """
        if not len(self):
            raise QuantizationError("no frames to calibrate with: ranges cannot be guessed. Give a recorded dataset.")
        parts = {"state": self.state, **{f"images.{name}": frames for name, frames in self.images.items()}}
        if len(self) > 1 and all((values == values[:1]).all() for values in parts.values()):
            raise QuantizationError(
                f"all {len(self)} frames to calibrate with are the same, in {', '.join(parts)}: their ranges are those of one moment. Give a dataset "
                "of whole episodes."
            )

    def take(self, rows: NDArray[np.int64]) -> Frames:
        """Some of the frames, in the given order."""
        images = {name: frames[rows] for name, frames in self.images.items()}
        return Frames(images, self.state[rows], self.instruction[rows], self.committed[rows])


def frames_of_golden(golden: Golden) -> Frames:
    """The inputs of a bundle's self-test: enough to try something out, too few to calibrate a real policy."""
    return Frames(dict(golden.images), golden.state, golden.instruction, golden.committed)


def frames_of_dataset(
    path: str | Path, spec: PolicySpec, networks: Networks, *, calibration: int, held_out: int, seed: int = 0
) -> tuple[Frames, Frames, str]:
    """Frames of a recorded dataset, spread evenly over its episodes.

    Args:
        path: A LeRobotDataset folder.
        spec: What the policy sees; the dataset must have been recorded with it.
        networks: Encodes the instructions.
        calibration: How many frames to calibrate with, at most.
        held_out: How many to judge by, at most; they come from a fifth of the episodes, in scenes that calibration never sees.
        seed: Decides which episodes and frames.

    Returns:
        Frames to calibrate with, frames to judge by, and the dataset's content hash.

    Raises:
        DatasetError: The dataset cannot be read, or has a single scene.
        SpecError: It was recorded with other cameras, states or actions.
    """
    dataset = open_dataset(path)
    require_same(spec.observation, dataset.observation_spec, what=f"observations of the bundle and of {path}")
    require_same(spec.action, dataset.action_spec, what=f"actions of the bundle and of {path}")
    if calibration < 1 or held_out < 1:
        raise DatasetError(f"{calibration} frames to calibrate with and {held_out} to judge by: at least one of each is needed.")
    rng = np.random.default_rng([seed, len(dataset)])
    seen, unseen = split_episodes(dataset, 0.2, seed)
    vectors: dict[str, NDArray[np.float32]] = {}
    parts = [_choose(dataset, rows, count, spec, networks, vectors, rng) for rows, count in ((seen, calibration), (unseen, held_out))]
    return parts[0], parts[1], dataset.content_hash


def _choose(
    dataset: LeRobotDataset,
    rows: Sequence[int],
    count: int,
    spec: PolicySpec,
    networks: Networks,
    vectors: dict[str, NDArray[np.float32]],
    rng: np.random.Generator,
) -> Frames:
    """About `count` frames: the same number from each of at most `count` / 4 episodes."""
    episodes = sorted(rng.permutation(rows)[: max(1, count // 4)].tolist())
    share, told = -(-count // len(episodes)), spec.timing.committed_steps
    chosen: dict[str, list[NDArray[Any]]] = {camera.name: [] for camera in dataset.observation_spec.cameras}
    states, instructions, committed = [], [], []
    for episode in dataset.iterate(episodes):
        steps = np.sort(rng.permutation(len(episode))[:share])
        for name, frames in episode.images.items():
            chosen[name].append(frames[steps])
        states.append(episode.state[steps])
        committed.append(np.stack([_on_its_way(episode, step, int(rng.integers(told + 1)) if told else 0, spec) for step in steps]))
        if episode.instruction not in vectors:
            vectors[episode.instruction] = networks.embed(episode.instruction)
        instructions.append(np.repeat(vectors[episode.instruction][None], len(steps), axis=0))
    images = {name: np.concatenate(blocks)[:count] for name, blocks in chosen.items()}
    return Frames(
        images, np.concatenate(states)[:count].astype(np.float32), np.concatenate(instructions)[:count], np.concatenate(committed)[:count]
    )


def _on_its_way(episode: Episode, step: int, delay: int, spec: PolicySpec) -> NDArray[np.float32]:
    """float32 (D, 1 + A): the commands of the next `delay` steps; past the end the last one repeats, as in training."""
    following = np.minimum(np.arange(step, step + delay), len(episode) - 1)
    seen = Observation({}, episode.state[step], episode.commanded[following])
    return committed_rows(seen, spec)
