"""Runs that a robot's flight recorder kept (`actlet run --record`) as a LeRobotDataset: the writer is the one of `actlet collect`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from actlet.specs import PolicySpec
from episodes.episode import Episode
from episodes.lerobot_writer import DatasetWriter

__all__ = ["Recorded", "write_recorded"]


class Recorded(Protocol):
    """What of an episode is needed, as `runtime.replay_episodes` has it."""

    instruction: str
    images: dict[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    action: NDArray[np.float32]
    success: bool
    seed: int | None
    task: str


def write_recorded(
    out: str | Path, spec: PolicySpec, episodes: Sequence[Recorded], *, provenance: Mapping[str, Any], overwrite: bool = False
) -> None:
    """Write a dataset.

    Args:
        out: The dataset's folder.
        spec: What was seen and commanded, and how often.
        episodes: At least one.
        provenance: Where they come from, plain JSON.
        overwrite: Replace a dataset that is there.

    Raises:
        DatasetError: The rate is no whole number, or an episode is not as specified.
        StorageError: The folder exists, or cannot be written.
    """
    with DatasetWriter(
        out,
        observation_spec=spec.observation,
        action_spec=spec.action,
        rate_hz=spec.timing.rate_hz,
        overwrite=overwrite,
        provenance=provenance,
    ) as writer:
        for found in episodes:
            writer.add(
                Episode(
                    instruction=found.instruction,
                    images=found.images,
                    state=found.state,
                    action=found.action,
                    success=found.success,
                    seed=found.seed,
                    task=found.task,
                )
            )
