"""A thread that looks at the robot: the loop gets the newest and never waits; what fails or hangs is seen."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from actlet.errors import CallerError, RobotFault
from actlet.protocols import ActionChunk, Observation, Robot
from actlet.specs import PolicySpec
from runtime.control_loop import LoopConfig, drive
from runtime.failsafe import Cause
from runtime.observer import Observer


class SlowCamera:
    """Its frames take a while, or for ever."""

    instruction = "wave"

    def __init__(self, spec: PolicySpec) -> None:
        self.observation_spec, self.action_spec, self.rate_hz = spec.observation, spec.action, spec.timing.rate_hz
        self.go, self.seen, self.disconnects = threading.Event(), 0, 0
        self.go.set()
        self.error: Exception | None = None
        self.readers: set[str] = set()
        self.commands: list[np.ndarray] = []

    def connect(self) -> None: ...

    def get_observation(self) -> Observation:
        self.readers.add(threading.current_thread().name)
        self.go.wait()
        time.sleep(0.01)
        if self.error is not None:
            raise self.error
        self.seen += 1
        return Observation({"front": np.full((6, 8, 3), self.seen % 251, np.uint8)}, np.zeros(3, np.float32))

    def send_action(self, action: np.ndarray) -> None:
        self.commands.append(action)

    def disconnect(self) -> None:
        self.go.set()
        self.disconnects += 1


def test_the_newest_is_there_without_waiting(tiny_spec: PolicySpec) -> None:
    """Stamped with the moment before it was taken; all that the robot offers is there too; nothing is read after the end."""
    camera = SlowCamera(tiny_spec)
    robot = Observer(camera, rate_hz=200)
    assert isinstance(robot, Robot)
    assert robot.instruction == "wave"
    assert not hasattr(robot, "safe_action")
    robot.connect()
    before = robot.get_observation()
    assert before.taken_s is not None
    assert before.taken_s <= time.monotonic()
    while robot.get_observation() is before:
        time.sleep(0.001)
    assert robot.get_observation().images["front"][0, 0, 0] > before.images["front"][0, 0, 0]
    robot.send_action(np.zeros(4, np.float32))
    assert len(camera.commands) == 1
    robot.disconnect()
    seen = camera.seen
    time.sleep(0.05)
    assert (camera.seen, camera.readers, camera.disconnects) == (seen, {"actlet-observer"}, 1)


def test_a_read_that_hung_in_the_run_before_is_not_heard_in_the_next(tiny_spec: PolicySpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread is left behind at the end of the run; when the read returns in the next one, the thread ends."""
    monkeypatch.setattr("runtime.observer._LET_GO_S", 0.01)
    camera, goes_on, readers = SlowCamera(tiny_spec), threading.Event(), []
    look = camera.get_observation

    def get_observation() -> Observation:
        readers.append(threading.current_thread())
        if len(readers) == 2:
            goes_on.wait(10)
        return look()

    camera.get_observation = get_observation
    robot = Observer(camera, rate_hz=200)
    robot.connect()
    while len(readers) < 2:
        time.sleep(0.001)
    robot.disconnect()
    camera.go.set()
    robot.connect()
    goes_on.set()
    readers[1].join(5)
    assert not readers[1].is_alive()
    assert readers[2].is_alive()
    robot.disconnect()


def test_what_the_camera_raises_is_raised_in_the_loop(tiny_spec: PolicySpec) -> None:
    """Until it has recovered."""
    camera = SlowCamera(tiny_spec)
    camera.error = OSError("no frame")
    robot = Observer(camera, rate_hz=200)
    robot.connect()
    with pytest.raises(OSError, match="no frame"):
        robot.get_observation()
    camera.error = None
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            robot.get_observation()
            break
        except OSError:
            time.sleep(0.001)
    assert camera.seen > 0
    robot.disconnect()


def test_a_camera_that_hangs_is_seen_by_the_failsafe(tiny_spec: PolicySpec) -> None:
    """The loop goes on with commands, and ends for a frame that is too old."""

    class Still:
        spec = tiny_spec

        def predict(self, observations: list[Observation], instructions: list[str]) -> list[ActionChunk]:
            shape = (tiny_spec.timing.horizon, tiny_spec.action.dim)
            return [ActionChunk(np.full(shape, 0.01, np.float32), np.ones(shape[0], np.float32))]

    camera = SlowCamera(tiny_spec)
    robot = Observer(camera, rate_hz=200)
    result = drive(
        robot, Still(), None, LoopConfig(max_steps=200), on_step=lambda step, statistics: camera.go.clear() if step == 5 else None
    )
    assert result.stopped_by == "robot"
    assert result.verdict.cause is Cause.STALE_FRAME
    assert len(camera.commands) > 10
    assert camera.disconnects == 1


def test_a_robot_that_shows_nothing_does_not_begin(tiny_spec: PolicySpec) -> None:
    """In the time that its first observation may take."""
    camera = SlowCamera(tiny_spec)
    camera.go.clear()
    with pytest.raises(RobotFault, match=r"no observation within 0\.05 s"):
        Observer(camera, first_s=0.05).connect()
    assert camera.disconnects == 1
    with pytest.raises(CallerError, match="rate_hz -1"):
        Observer(camera, rate_hz=-1)
