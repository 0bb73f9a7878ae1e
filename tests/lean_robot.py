"""A robot of nothing but numpy, with the specifications of the bundle that the environment names: `actlet run … --robot lean_robot:make_robot`."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlet.manifest import read_manifest
from actlet.protocols import Observation

BUNDLE = "LEAN_ROBOT_BUNDLE"


class LeanRobot:
    """Sees noise, and does nothing."""

    instruction = "put the cup"

    def __init__(self, bundle: str) -> None:
        spec = read_manifest(bundle).spec
        self.observation_spec, self.action_spec, self.rate_hz = spec.observation, spec.action, spec.timing.rate_hz
        self._draw = np.random.default_rng(0)

    def connect(self) -> None:
        pass

    def get_observation(self) -> Observation:
        images = {c.name: self._draw.integers(0, 256, (c.height, c.width, 3), np.uint8) for c in self.observation_spec.cameras}
        return Observation(images, np.zeros(self.observation_spec.state_dim, np.float32))

    def send_action(self, action: NDArray[np.float32]) -> None:
        pass

    def disconnect(self) -> None:
        pass


def make_robot(**options: Any) -> LeanRobot:
    return LeanRobot(os.environ[BUNDLE])
