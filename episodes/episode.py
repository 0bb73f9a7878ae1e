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

    def check(self, observation: ObservationSpec, action: ActionSpec, name: str = "episode") -> None:
        """Refuse an episode whose arrays differ from the specifications, are empty, or are not finite.

        Args:
            observation: What it should show.
            action: What it should command.
            name: What messages call it, before its instruction.

        Raises:
            DatasetError: With what differs.
        """
        steps, name = len(self), f"{name} {self.instruction!r}"
        if steps == 0:
            raise DatasetError(f"{name} has no steps.")
        if set(self.images) != {camera.name for camera in observation.cameras}:
            raise DatasetError(f"{name}: cameras {sorted(self.images)}, expected {[c.name for c in observation.cameras]}.")
        for camera in observation.cameras:
            frames, expected = self.images[camera.name], (steps, camera.height, camera.width, 3)
            if frames.dtype != np.uint8 or frames.shape != expected:
                raise DatasetError(f"{name}, camera {camera.name!r}: {frames.dtype} {frames.shape}, expected uint8 {expected}.")
        for what, values, names in (
            ("state", self.state, observation.state_names),
            ("action", self.action, action.names),
            ("executed action", self.commanded, action.names),
        ):
            if values.shape != (steps, len(names)):
                raise DatasetError(f"{name}: {what} {values.shape}, expected {(steps, len(names))}.")
            bad = np.argwhere(~np.isfinite(values))
            if len(bad):
                step, entry = bad[0].tolist()
                raise DatasetError(
                    f"{name}: {what} {names[entry]!r} is {values[step, entry]} at frame {step}, {len(bad)} such in all; expected finite numbers. "
                    "Remove the episode, or repair it at its source."
                )
