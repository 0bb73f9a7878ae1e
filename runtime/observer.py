"""A robot whose cameras take their time: looked at by a thread of its own, so that the control loop never waits for a frame.

    thread       robot.get_observation() ... robot.get_observation() ...      one after the other, no more often than `rate_hz`
    control loop get_observation() = the newest, stamped with the moment before it was taken

What the thread raises is raised in the loop, as often as it is asked; a read that hangs makes the newest observation old, which the failsafe sees
(`FailsafeConfig.max_frame_age_s`). The robot is read in one thread and commanded in another: it must bear that, or be a robot that does
this itself (`runtime.robots.lerobot`).
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlet.errors import CallerError, RobotFault
from actlet.protocols import Observation, Robot

__all__ = ["Observer"]

_LET_GO_S = 2.0
"""How long `disconnect` waits for a read that is under way."""


class Observer:
    """Implements `actlet.protocols.Robot`, and has all that the robot has.

    Args:
        robot: What is read.
        rate_hz: How often at most; None for twice the robot's rate, so that what is seen is at most half a step old.
        first_s: How long the first observation may take.
        clock: That of `Observation.taken_s`.
    """

    def __init__(
        self, robot: Robot, *, rate_hz: float | None = None, first_s: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        rate_hz = 2 * robot.rate_hz if rate_hz is None else rate_hz
        if not rate_hz > 0 or not first_s > 0:
            raise CallerError(f"observer: rate_hz {rate_hz}, first_s {first_s}: expected positive numbers.")
        self.robot = robot
        self.observation_spec, self.action_spec, self.rate_hz = robot.observation_spec, robot.action_spec, robot.rate_hz
        self._period_s, self._first_s, self._clock = 1.0 / rate_hz, first_s, clock
        self._newest: Observation | Exception | None = None
        self._there, self._stop = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.robot, name)  # What a robot may offer besides: instruction, done, safe_action, ...

    def connect(self) -> None:
        """Connect the robot, and wait for the first observation.

        Raises:
            RobotFault: There is none in time. The robot is disconnected again.
        """
        self.robot.connect()
        # Events of its own: a thread of a run before whose read hung then does not go on when it returns, beside this one.
        self._there, self._stop, self._newest = threading.Event(), threading.Event(), None
        self._thread = threading.Thread(target=self._read, args=(self._there, self._stop), name="actlet-observer", daemon=True)
        self._thread.start()
        if not self._there.wait(self._first_s):
            self.disconnect()
            raise RobotFault(f"no observation within {self._first_s:g} s of connecting: see to cameras and sensors.")

    def get_observation(self) -> Observation:
        """The newest; never waits.

        Raises:
            Exception: What the robot raised instead of its newest one.
        """
        newest = self._newest
        if isinstance(newest, Observation):
            return newest
        raise RobotFault("not connected.") if newest is None else newest

    def send_action(self, action: NDArray[np.float32]) -> None:
        """Hand the command to the robot."""
        self.robot.send_action(action)

    def disconnect(self) -> None:
        """Stop reading and let the robot go; a read that hangs is left behind after two seconds."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_LET_GO_S)
        self.robot.disconnect()

    def _read(self, there: threading.Event, stop: threading.Event) -> None:
        while not stop.is_set():
            began = self._clock()
            newest: Observation | Exception
            try:
                seen = self.robot.get_observation()
                newest = seen if seen.taken_s is not None else dataclasses.replace(seen, taken_s=began)
            except Exception as error:  # Whatever a camera raises, the loop must hear of it.
                newest = error
            if stop.is_set():
                return
            self._newest = newest
            there.set()
            stop.wait(max(0.0, began + self._period_s - self._clock()))
