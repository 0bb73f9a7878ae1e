"""Any robot of LeRobot's in the control loop: ``actlet run BUNDLE --robot runtime.robots.lerobot:make_robot --robot-config my_so101.json``.

LeRobot is never imported here. The file names a function of yours that returns a LeRobot `Robot` (any object with its attributes), and says
what LeRobot's features do not say: the order, the units, the limits, how it stands still, and the rate. docs/robots.md has an example.

LeRobot's `get_observation` waits for motors and cameras, and motors on one bus can only be asked and told by turns. So one thread owns the robot::

    control loop   send_action ──▶ newest command ──▶ ┐
                                                      ├─ thread: send what waits, else read, once in 1 / rate_hz
                   get_observation ◀── newest, stamped ┘

The loop never waits. A command waits for at most one read; one that is overtaken by a newer one before it could be sent is counted. A read that fails
`max_failures` times in a row, a thread that died, a command that was not sent and one that waits too long are errors that the loop sees; a read
that hangs makes the newest observation old, which the loop sees, too. Values that are not finite are passed on: `runtime.watch` refuses them.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlet.errors import ObservationError, RobotFault
from actlet.protocols import Observation
from runtime.robots.config_file import read_config
from runtime.robots.lerobot_config import LeRobotConfig, LeRobotDevice
from runtime.run import load_factory

__all__ = ["LeRobotRobot", "make_robot"]

_LET_GO_S = 2.0
"""How long `disconnect` waits for a read or a command that is under way."""
_SAME = 1e-4
"""Share of a dimension's range by which what was sent may differ from what was asked for without being another command: float32, degrees, encoder steps."""


class LeRobotRobot:
    """Implements `actlet.protocols.Robot` with a robot of LeRobot's.

    Args:
        device: The LeRobot robot.
        config: What its features do not say.

    Raises:
        CallerError: It has not the attributes of a LeRobot robot.
        SpecError: Its features are not what the configuration says.
    """

    def __init__(self, device: LeRobotDevice, config: LeRobotConfig) -> None:
        config.require_fit(device)
        self.observation_spec, self.action_spec, self.rate_hz = config.observation, config.action, config.rate_hz
        self.config = config
        self.sent: NDArray[np.float32] | None = None
        """float32 (A,), what the robot says that it sent last; "terminate" is 0. None while it has said nothing."""
        self.altered = 0
        """Commands of which the robot sent something else, as with LeRobot's `max_relative_target`."""
        self.overtaken = 0
        """Commands that a newer one replaced before they could be sent."""
        self.failed_reads = 0
        """Reads that failed, all together."""
        self._device = device
        self._slots = [i for i, name in enumerate(config.action.names) if name != "terminate"]
        self._action_features = [config.feature(name) for name in config.sent_names]
        self._state_features = [config.feature(name) for name in config.observation.state_names]
        self._camera_features = {camera.name: config.feature(camera.name) for camera in config.observation.cameras}
        self._tolerance = _SAME * (np.asarray(config.action.high) - np.asarray(config.action.low))[self._slots]
        features = dict(device.observation_features)
        self._stands = [
            hold == "last" and name != "terminate" for name, hold in zip(config.action.names, config.action.hold or (), strict=True)
        ]
        self._place_features = [config.feature(name) for name, stands in zip(config.action.names, self._stands, strict=True) if stands]
        self.present_action = self._present if set(self._place_features) <= set(features) else None
        """The action that leaves the robot where it is: observed positions, and zero of what holds with zero. None where it does not observe them."""
        self._wake = threading.Condition()  # Guards what follows; the loop holds it for moments only.
        self._thread: threading.Thread | None = None
        self._closing = False
        self._command: NDArray[np.float32] | None = None
        self._command_since_s = 0.0
        self._observation: Observation | None = None
        self._places: list[float] = []
        self._failures, self._read_error, self._send_error = 0, "", ""

    def connect(self) -> None:
        """Connect, never calibrate, and wait for the first observation, which must be as specified.

        Raises:
            RobotFault: It is not calibrated, or there is no observation in time.
            ObservationError: The first observation is not as specified.
        """
        if self._thread is not None:
            raise RobotFault("the robot is connected already: call disconnect() first.")
        device = self._device
        try:
            if not device.is_connected:
                # Calibrating asks questions and moves; and a robot that was not calibrated would go somewhere else than it is told.
                takes = "calibrate" in inspect.signature(device.connect).parameters
                device.connect(**({"calibrate": False} if takes else {}))
            if getattr(device, "is_calibrated", True) is False:
                raise RobotFault(
                    "the robot is not calibrated, or not as its calibration file says: run lerobot-calibrate, then come again."
                )
            self._begin()
            self.observation_spec.check((first := self._first()).images, first.state)
        except BaseException:
            with contextlib.suppress(Exception):  # What went wrong first is told.
                self._end()
            with contextlib.suppress(Exception):
                device.disconnect()
            raise

    def get_observation(self) -> Observation:
        """The newest observation that was read, with the time at which its reading began.

        Raises:
            RobotFault: Not connected, reading failed too often, or the thread that reads has died.
        """
        with self._wake:
            observation, failures, error, thread = self._observation, self._failures, self._read_error, self._thread
        if thread is None or observation is None:
            raise RobotFault("the robot is not connected: call connect() first.")
        if failures >= self.config.max_failures:
            raise RobotFault(f"the robot's get_observation failed {failures} times in a row, the last: {error}")
        if not thread.is_alive():
            raise RobotFault(f"the thread that reads the robot has died ({error or 'no reason known'})")
        return observation

    def send_action(self, action: NDArray[np.float32]) -> None:
        """Hand one action over to the thread; never waits.

        Args:
            action: float32 (A,).

        Raises:
            ActionError: Another shape, or values that are not finite.
            RobotFault: Not connected, an earlier command could not be sent, or has been waiting for `stuck_s`. The action is handed over all the same.
        """
        action, now_s = self.action_spec.check(action), time.monotonic()
        with self._wake:
            if self._thread is None:
                raise RobotFault("the robot is not connected: call connect() first.")
            if self._command is None:
                self._command_since_s = now_s
            else:
                self.overtaken += 1
            waited_s = now_s - self._command_since_s
            self._command = action
            error, self._send_error = self._send_error, ""
            self._wake.notify()
        if error:
            raise RobotFault(f"an earlier command was not sent: {error}")
        if waited_s > self.config.stuck_s:
            raise RobotFault(
                f"no command was taken over for {waited_s:.2f} s: the thread hangs in the robot's get_observation or send_action."
            )

    def disconnect(self) -> None:
        """Send what still waits, end the thread, and disconnect. Called twice, the second call does nothing.

        Raises:
            RobotFault: A call into the robot has not returned; it was disconnected all the same.
        """
        if self._thread is None:
            return
        try:
            self._end()
        finally:
            self._device.disconnect()

    @property
    def remarks(self) -> str:
        """What a summary should say, empty if nothing."""
        words = {"altered by the robot": self.altered, "overtaken before they could be sent": self.overtaken}
        parts = [f"{count} commands {what}" for what, count in words.items() if count]
        return "; ".join([*parts, *([f"{self.failed_reads} reads failed, the last: {self._read_error}"] if self.failed_reads else [])])

    def _present(self) -> list[float]:
        self.get_observation()  # Nothing is known of a robot that is lost.
        places = iter(self._places)
        return [next(places) if stands else 0.0 for stands in self._stands]

    def _begin(self) -> None:
        self._closing, self._command, self._observation = False, None, None
        self._failures, self._read_error, self._send_error = 0, "", ""
        self._thread = threading.Thread(target=self._serve, name="lerobot", daemon=True)
        self._thread.start()

    def _end(self) -> None:
        thread, self._thread = self._thread, None
        if thread is None:
            return
        with self._wake:
            self._closing = True
            self._wake.notify()
        thread.join(_LET_GO_S)
        if thread.is_alive():
            raise RobotFault(f"a call into the robot has not returned for {_LET_GO_S:g} s; it was disconnected all the same.")

    def _first(self) -> Observation:
        deadline_s, thread = time.monotonic() + self.config.connect_timeout_s, self._thread
        with self._wake:
            while self._observation is None:
                remaining_s = deadline_s - time.monotonic()
                if self._failures >= self.config.max_failures or remaining_s <= 0 or thread is None or not thread.is_alive():
                    why = (
                        f"its get_observation failed, the last time with: {self._read_error}"
                        if self._read_error
                        else "get_observation hangs"
                    )
                    raise RobotFault(f"no observation within {self.config.connect_timeout_s:g} s of connecting: {why}")
                self._wake.wait(min(remaining_s, 0.1))
            return self._observation

    def _serve(self) -> None:
        """The thread: commands as they come, and a read when it is due."""
        due_s = time.monotonic()
        try:
            while True:
                with self._wake:
                    while not self._closing and self._command is None and (wait_s := due_s - time.monotonic()) > 0:
                        self._wake.wait(wait_s)
                    command, self._command = self._command, None
                    closing = self._closing
                if command is not None:
                    self._send(command)
                if closing:
                    return
                if (now_s := time.monotonic()) >= due_s:
                    due_s = max(due_s + 1 / self.rate_hz, now_s)
                    self._read()
        except BaseException as error:  # The loop hears of it from get_observation.
            self._read_error = f"{type(error).__name__}: {error}"

    def _send(self, command: NDArray[np.float32]) -> None:
        asked = command[self._slots]
        try:
            returned = self._device.send_action(
                {feature: float(value) for feature, value in zip(self._action_features, asked, strict=True)}
            )
        except Exception as error:
            with self._wake:
                self._send_error = f"{type(error).__name__}: {error}"
            return
        try:
            sent = np.array([returned[feature] for feature in self._action_features], np.float32)
        except (TypeError, KeyError, ValueError):  # It does not say.
            return
        self.altered += not bool((np.abs(sent - asked) <= self._tolerance).all())
        kept = np.zeros(self.action_spec.dim, np.float32)
        kept[self._slots] = sent
        self.sent = kept

    def _read(self) -> None:
        began_s = time.monotonic()
        try:
            raw = self._device.get_observation()
            observation = self._observed(raw, began_s)
            places = [float(raw[feature]) for feature in self._place_features] if self.present_action is not None else []
        except Exception as error:
            with self._wake:
                self._failures += 1
                self.failed_reads += 1
                self._read_error = f"{type(error).__name__}: {error}"
                self._wake.notify_all()
            return
        with self._wake:
            self._observation, self._places, self._failures = observation, places, 0
            self._wake.notify_all()

    def _observed(self, raw: Any, taken_s: float) -> Observation:
        if not isinstance(raw, Mapping):
            raise ObservationError(f"get_observation returned {type(raw).__name__}, expected a flat dict of features.")
        if missing := sorted({*self._state_features, *self._camera_features.values()} - set(raw)):
            raise ObservationError(f"get_observation has no {missing}; it has {sorted(raw)}.")
        return Observation(
            images={name: np.asarray(raw[feature]) for name, feature in self._camera_features.items()},
            state=np.array([raw[feature] for feature in self._state_features], np.float32),
            taken_s=taken_s,
        )


def make_robot(*, robot_config: str | Path | None = None, **_: Any) -> LeRobotRobot:
    """The robot that a file describes, not connected.

    Args:
        robot_config: File of a `LeRobotConfig`.

    Raises:
        CallerError: There is no such file, or its factory returns something else.
        SpecError: The file contradicts itself or the robot's features.
    """
    config = read_config(LeRobotConfig, robot_config)
    return LeRobotRobot(load_factory(config.factory)(), config)
