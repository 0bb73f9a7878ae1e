"""A robot with the attributes of LeRobot's `Robot`, without LeRobot: three joints, two cameras, one of them for depth."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

JOINTS = ("shoulder_pan.pos", "elbow_flex.pos", "gripper.pos")


class StandIn:
    """Moves at once to where it is told, at most `most` at a time; fails on request."""

    name = "stand_in"

    def __init__(self, most: float = 1000.0) -> None:
        self.most, self.calls, self.received = most, [], []
        self.positions = dict.fromkeys(JOINTS, 0.0)
        self.frames = 0
        self.calibrated = True
        self.on_read: Callable[[], None] = lambda: None
        self.on_send: Callable[[], None] = lambda: None
        self.shape = (6, 8, 3)
        self.threads: set[int] = set()
        self._connected = False

    @property
    def observation_features(self) -> dict[str, type | tuple]:
        return {**dict.fromkeys(JOINTS, float), "shoulder_pan.vel": float, "front": (6, 8, 3), "front_depth": (6, 8, 1)}

    @property
    def action_features(self) -> dict[str, type]:
        return dict.fromkeys(JOINTS, float)

    @property
    def is_connected(self) -> bool:
        return self._connected

    @property
    def is_calibrated(self) -> bool:
        return self.calibrated

    def connect(self, calibrate: bool = True) -> None:
        if self._connected:
            raise ConnectionError("StandIn is already connected.")
        self.calls.append(f"connect(calibrate={calibrate})")
        self._connected = True

    def calibrate(self) -> None:
        self.calls.append("calibrate")

    def configure(self) -> None:
        pass

    def get_observation(self) -> dict[str, float | np.ndarray]:
        self._require_connected()
        self.on_read()
        self.frames += 1
        frame = np.full(self.shape, self.frames % 251, np.uint8)
        return {**self.positions, "shoulder_pan.vel": 0.0, "front": frame, "front_depth": np.zeros((6, 8, 1), np.uint16)}

    def send_action(self, action: dict[str, float]) -> dict[str, float]:
        self._require_connected()
        self.on_send()
        self.received.append(dict(action))
        for name, goal in action.items():
            self.positions[name] += float(np.clip(goal - self.positions[name], -self.most, self.most))
        return dict(self.positions)

    def disconnect(self) -> None:
        self._require_connected()
        self.calls.append("disconnect")
        self._connected = False

    def _require_connected(self) -> None:
        if not self._connected:
            raise ConnectionError("StandIn is not connected. Run `.connect()` first.")
        self.threads.add(threading.get_ident())


made: list[StandIn] = []


def make_device() -> StandIn:
    """What the file of a robot names."""
    made.append(StandIn())
    return made[-1]


def make_slow_device() -> StandIn:
    """Goes a millionth of a degree at a time."""
    return StandIn(most=1e-6)


def make_nothing() -> object:
    """Not a robot."""
    return object()
