"""One demonstration or rollout in memory, as every dataset reader returns it and every writer takes it."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from actlet.errors import DatasetError
from actlet.specs import ActionSpec, ObservationSpec

__all__ = ["Episode"]


@dataclasses.dataclass(frozen=True)
class Episode:
    """T steps of one episode: at step t the observation was seen, and `action[t]` is the answer to learn."""

    instruction: str
    images: dict[str, NDArray[np.uint8]]
    """Camera name -> uint8 RGB (T, height, width, 3)."""
    state: NDArray[np.float32]
    """float32 (T, S)."""
    action: NDArray[np.float32]
    """float32 (T, A), physical units."""
    success: bool
    """The instruction was carried out at the end."""
    seed: int | None = None
    """The seed of the simulated episode, None for recordings."""
    task: str = ""
    """The task's name within its suite, empty for recordings."""
    executed: NDArray[np.float32] | None = None
    """float32 (T, A), what was really commanded where that is not `action` (a demonstration that was disturbed on purpose); None where it is."""

    @property
    def commanded(self) -> NDArray[np.float32]:
        """float32 (T, A): what the robot was really told to do."""
        return self.action if self.executed is None else self.executed

    def __len__(self) -> int:
        return len(self.action)

    def check(self, observation: ObservationSpec, action: ActionSpec) -> None:
        """Refuse an episode whose arrays differ from the specifications, are empty, or are not finite.

        Raises:
            DatasetError: With what differs.
        """
        steps = len(self)
        if steps == 0:
            raise DatasetError(f"episode {self.instruction!r} has no steps.")
        if set(self.images) != {camera.name for camera in observation.cameras}:
            raise DatasetError(
                f"episode {self.instruction!r}: cameras {sorted(self.images)}, expected {[c.name for c in observation.cameras]}."
            )
        for camera in observation.cameras:
            frames, expected = self.images[camera.name], (steps, camera.height, camera.width, 3)
            if frames.dtype != np.uint8 or frames.shape != expected:
                raise DatasetError(
                    f"episode {self.instruction!r}, camera {camera.name!r}: {frames.dtype} {frames.shape}, expected uint8 {expected}."
                )
        for name, values, dim in (
            ("state", self.state, observation.state_dim),
            ("action", self.action, action.dim),
            ("executed action", self.commanded, action.dim),
        ):
            if values.shape != (steps, dim):
                raise DatasetError(f"episode {self.instruction!r}: {name} {values.shape}, expected {(steps, dim)}.")
            if not np.isfinite(values).all():
                raise DatasetError(f"episode {self.instruction!r}: {name} holds values that are not finite.")
