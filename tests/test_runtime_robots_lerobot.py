"""LeRobot's robots in the control loop: with a stand-in that has their attributes, and with LeRobot itself where its Python is named.

LeRobot needs Python 3.12 and torch, so it is not in the test environment. With ``ACTLET_LEROBOT_PYTHON=/path/to/python``, a Python that can import
lerobot, its Feetech motors and onnxruntime, the last tests drive a class of LeRobot's own.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lerobot_stand_in
import numpy as np
import pytest
from lerobot_stand_in import JOINTS, StandIn

from actlet.command_line import main
from actlet.errors import ActionError, ActletError, CallerError, ObservationError, RobotFault, SpecError
from actlet.protocols import ActionChunk, Observation, Robot
from actlet.specs import ActionSpec, CameraSpec, MotionLimits, ObservationSpec, PolicySpec, TimingSpec
from runtime.control_loop import LoopConfig, drive
from runtime.failsafe import FailsafeConfig
from runtime.robots.lerobot import LeRobotRobot, make_robot
from runtime.robots.lerobot_config import LeRobotConfig
from runtime.run import make_robot as robot_by_name

ROOT = Path(__file__).parent.parent
LEROBOT_PYTHON = os.environ.get("ACTLET_LEROBOT_PYTHON", "")
OBSERVATION = ObservationSpec(
    cameras=(CameraSpec(name="front", height=6, width=8),),
    state_names=("gripper.pos", "pan", "elbow_flex.pos"),
    state_units=("%", "deg", "deg"),
)
ACTION = ActionSpec(
    names=("elbow_flex.pos", "terminate", "pan", "gripper.pos"),
    units=("deg", "1", "deg", "%"),
    kinds=("continuous", "binary", "continuous", "continuous"),
    low=(-90, 0, -110, 0),
    high=(90, 1, 110, 100),
    frame="joint",
    hold=("last", "zero", "last", "last"),
)
CONFIG = LeRobotConfig(
    factory="lerobot_stand_in:make_device",
    observation=OBSERVATION,
    action=ACTION,
    rate_hz=50.0,
    features={"pan": "shoulder_pan.pos"},
    connect_timeout_s=20.0,
    stuck_s=20.0,
)
SPEC = PolicySpec(observation=OBSERVATION, action=ACTION, timing=TimingSpec(rate_hz=50.0, horizon=4, execute_steps=2, max_delay_steps=2))


class Scripted:
    """A policy that goes on by a degree from where it sees the arm."""

    spec = SPEC

    def predict(self, observations: list[Observation], instructions: list[str]) -> list[ActionChunk]:
        gripper, pan, elbow = observations[0].state
        rows = [(elbow + i, 0.0, pan - i, gripper) for i in range(1, 5)]
        return [ActionChunk(actions=np.array(rows, np.float32), confidence=np.ones(4, np.float32))]


@pytest.fixture
def device() -> StandIn:
    """Not connected."""
    return StandIn()


@pytest.fixture
def robot(device: StandIn) -> Iterator[LeRobotRobot]:
    """Connected."""
    robot = LeRobotRobot(device, CONFIG)
    robot.connect()
    yield robot
    device.on_read = device.on_send = lambda: None
    robot.disconnect()


def until(condition: Callable[[], Any]) -> None:
    """Waits for what another thread does."""
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s, "it did not come"
        time.sleep(0.002)


def write(folder: Path, config: LeRobotConfig = CONFIG, **changes: Any) -> Path:
    """The file of --robot-config, with other values for some keys."""
    path = folder / "robot.json"
    path.write_text(json.dumps({**config.to_dict(), **changes}))
    return path


def test_the_file_is_the_configuration(tmp_path: Path) -> None:
    """Written and read back it is the same, and a key that is not known is refused."""
    path = write(tmp_path)
    assert LeRobotConfig.from_dict(json.loads(path.read_text())) == CONFIG
    with pytest.raises(SpecError, match=r"robot.json: unknown keys \['rate'\]"):
        make_robot(robot_config=write(tmp_path, rate=10))
    with pytest.raises(CallerError, match=r"absent.json cannot be read"):
        make_robot(robot_config=tmp_path / "absent.json")
    with pytest.raises(CallerError, match=r"which robot. Say --robot-config FILE, JSON with the fields of LeRobotConfig; docs/robots.md"):
        make_robot()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, "lerobot_robot: schema_version 2, expected 1"),
        ({"rate_hz": 0.0}, "rate_hz 0.0, .*expected positive numbers"),
        ({"max_failures": 0}, "max_failures 0: expected positive numbers"),
        ({"action": dataclasses.replace(ACTION, hold=None)}, 'action: no hold; say how every dimension stands still: "last" for positions'),
        (
            {"features": {"pna": "shoulder_pan.pos"}},
            r"features: \['pna'\] are no names of this file's observation or action; known: \['elbow",
        ),
        ({"features": None}, r"state 'pan': the robot has no such feature 'pan'. It has \['shoulder_pan.pos', .*add it to features"),
        ({"features": {"pan": "shoulder_pan.pso"}}, "no such feature 'shoulder_pan.pso'. Did you mean 'shoulder_pan.pos'"),
        ({"features": {"pan": "front"}}, "state 'pan': the robot has no such feature 'front'"),
        (
            {"observation": dataclasses.replace(OBSERVATION, cameras=(CameraSpec(name="wrist", height=6, width=8),))},
            "camera 'wrist': .* no such",
        ),
        (
            {"observation": dataclasses.replace(OBSERVATION, cameras=(CameraSpec(name="front", height=8, width=8),))},
            r"the robot delivers \(6, 8, 3\), expected \(8, 8, 3\) .*Nothing is resized here: set height and width of LeRobot's camera",
        ),
        (
            {"observation": dataclasses.replace(OBSERVATION, cameras=(CameraSpec(name="front_depth", height=6, width=8),))},
            r"'front_depth': the robot delivers \(6, 8, 1\)",
        ),
        (
            {
                "action": ActionSpec(
                    names=("pan",), units=("deg",), kinds=("continuous",), low=(-1,), high=(1,), frame="joint", hold=("last",)
                )
            },
            r"the robot also wants \['elbow_flex.pos', 'gripper.pos'\], which the policy does not command",
        ),
    ],
)
def test_what_contradicts_the_robot_is_refused(changes: dict[str, Any], message: str) -> None:
    """Before anything is connected, in words that say what to correct."""
    device = StandIn()
    with pytest.raises(SpecError, match=message):
        LeRobotRobot(device, dataclasses.replace(CONFIG, **changes))
    assert device.calls == []


def test_what_is_no_lerobot_robot_is_refused(tmp_path: Path) -> None:
    """The attributes that it lacks are named."""
    with pytest.raises(CallerError, match=r"make_nothing: object has no \['observation_features', .*; a LeRobot robot has"):
        make_robot(robot_config=write(tmp_path, factory="lerobot_stand_in:make_nothing"))


def test_a_loop_drives_it(device: StandIn) -> None:
    """Names find their features, in any order; `terminate` is not sent; the robot is let go; and one thread has done it all."""
    robot = LeRobotRobot(device, CONFIG)
    assert isinstance(robot, Robot)
    result = drive(robot, Scripted(), "reach", LoopConfig(max_steps=30))
    assert (result.stopped_by, result.message) == ("steps", "30 steps done")
    assert device.calls == ["connect(calibrate=False)", "disconnect"]
    assert all(list(command) == ["elbow_flex.pos", "shoulder_pan.pos", "gripper.pos"] for command in device.received)
    last = device.received[-1]
    assert last["elbow_flex.pos"] == -last["shoulder_pan.pos"] > 3
    assert np.array_equal(robot.sent, np.array([last["elbow_flex.pos"], 0, last["shoulder_pan.pos"], 0], np.float32))
    assert robot.altered == 0
    assert len(device.threads - {threading.get_ident()}) == 1  # This thread only disconnected it.
    assert threading.active_count() == 1 or not [t for t in threading.enumerate() if t.name == "lerobot"]


def test_observations_are_stamped_and_in_the_policys_order(device: StandIn, robot: LeRobotRobot) -> None:
    """The time is that at which the reading began."""
    before_s = time.monotonic()
    device.positions.update(zip(JOINTS, (1.0, 2.0, 3.0), strict=True))
    until(lambda: robot.get_observation().taken_s > before_s)
    observation = robot.get_observation()
    OBSERVATION.check(observation.images, observation.state)
    assert observation.state.tolist() == [3.0, 1.0, 2.0]
    assert set(observation.images) == {"front"}
    assert before_s < observation.taken_s <= time.monotonic()


def test_it_says_where_it_stands(device: StandIn, robot: LeRobotRobot) -> None:
    """As an action: positions are those that it observes, whatever holds with zero is zero. The loop's limits begin there."""
    device.positions.update(zip(JOINTS, (1.0, 2.0, 3.0), strict=True))
    until(lambda: robot.present_action() == [2.0, 0.0, 1.0, 3.0])
    hidden = type("Hidden", (StandIn,), {"observation_features": {**dict.fromkeys(JOINTS[1:], float), "front": (6, 8, 3)}})()
    state = {"state_names": ("gripper.pos",), "state_units": ("%",)}
    blind = LeRobotRobot(hidden, dataclasses.replace(CONFIG, observation=dataclasses.replace(OBSERVATION, **state)))
    assert blind.present_action is None


def test_a_limited_loop_begins_where_the_arm_stands(device: StandIn) -> None:
    """At ten times the policy's rate, limited in velocity, acceleration and jerk: no command jumps, the first one neither."""
    device.positions.update(zip(JOINTS, (50.0, -40.0, 30.0), strict=True))
    limits = MotionLimits(velocity=300.0, acceleration=3e3, jerk=1e5)
    robot = LeRobotRobot(device, dataclasses.replace(CONFIG, action=dataclasses.replace(ACTION, motion=(limits, None, limits, limits))))
    sent, send = [], robot.send_action
    robot.send_action = lambda action: (sent.append(np.array(action)), send(action))  # type: ignore[method-assign]
    result = drive(robot, Scripted(), "reach", LoopConfig(max_steps=20, command_rate_hz=500.0))
    assert result.stopped_by == "steps"
    assert sent[0].tolist() == pytest.approx([-40.0, 0.0, 50.0, 30.0], abs=0.01)
    assert np.abs(np.diff(sent, axis=0)).max() <= 300.0 / 500.0 + 1e-4


def test_the_loop_never_waits_for_a_camera(device: StandIn, robot: LeRobotRobot) -> None:
    """While a read hangs, the newest observation is there, older and older, and commands are taken; the newest of them is sent."""
    hangs, goes_on = threading.Event(), threading.Event()
    device.on_read = lambda: (hangs.set(), goes_on.wait(60))
    assert hangs.wait(20)
    first = robot.get_observation()
    for degrees in (1, 2, 3):
        robot.send_action(np.array([degrees, 0, 0, 0], np.float32))
    assert robot.get_observation() is first
    assert device.received == []
    goes_on.set()
    until(lambda: device.received)
    assert [command["elbow_flex.pos"] for command in device.received] == [3.0]
    assert robot.overtaken == 2
    assert robot.remarks == "2 commands overtaken before they could be sent"


def test_commands_that_nobody_takes_are_an_error(device: StandIn) -> None:
    """A thread that hangs in the robot is noticed by the first command that has waited too long."""
    robot = LeRobotRobot(device, dataclasses.replace(CONFIG, stuck_s=0.01))
    robot.connect()
    hangs, goes_on = threading.Event(), threading.Event()
    device.on_read = lambda: (hangs.set(), goes_on.wait(60))
    assert hangs.wait(20)
    robot.send_action(np.zeros(4, np.float32))
    time.sleep(0.02)
    with pytest.raises(
        RobotFault, match=r"no command was taken over for 0.\d\d s: the thread hangs in the robot's get_observation or send_action"
    ):
        robot.send_action(np.zeros(4, np.float32))
    goes_on.set()
    robot.disconnect()


def test_reads_may_fail_now_and_then(device: StandIn, robot: LeRobotRobot) -> None:
    """Two in a row are borne and counted; three are a lost robot, with the reason, until one succeeds."""
    errors: list[int] = []

    def fail() -> None:
        if len(errors) < fail.most:
            errors.append(1)
            raise ConnectionError("Incorrect status packet!")

    fail.most = 2
    frames, device.on_read = device.frames, fail
    until(lambda: device.frames > frames + 1)
    robot.get_observation()
    assert robot.remarks == "2 reads failed, the last: ConnectionError: Incorrect status packet!"
    fail.most = 10**9
    until(lambda: len(errors) > 6)
    with pytest.raises(RobotFault, match=r"get_observation failed \d+ times in a row, the last: ConnectionError: Incorrect status packet!"):
        robot.get_observation()
    fail.most = 0
    frames = device.frames
    until(lambda: device.frames > frames + 1)
    robot.get_observation()


def test_a_dead_reader_is_an_error(device: StandIn, robot: LeRobotRobot) -> None:
    """Even of what no thread survives."""

    def die() -> None:
        raise SystemExit("the driver left")

    device.on_read = die
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == "lerobot"])
    with pytest.raises(RobotFault, match=r"the thread that reads the robot has died \(SystemExit: the driver left\)"):
        robot.get_observation()


def test_a_command_that_was_not_sent_is_an_error(device: StandIn, robot: LeRobotRobot) -> None:
    """Told with the next one, which is handed over all the same, so that what moves can be brought to rest."""
    failing = [ConnectionError("port is in use")]

    def fail() -> None:
        if failing:
            raise failing.pop()

    device.on_send = fail
    robot.send_action(np.zeros(4, np.float32))
    until(lambda: not failing)
    until(lambda: robot._send_error)
    with pytest.raises(RobotFault, match="an earlier command was not sent: ConnectionError: port is in use"):
        robot.send_action(np.ones(4, np.float32))
    until(lambda: device.received)
    robot.send_action(np.zeros(4, np.float32))


def test_what_the_robot_really_sent_is_kept_and_compared(device: StandIn, robot: LeRobotRobot) -> None:
    """A robot that goes no further than five degrees at a time says so."""
    device.most = 5.0
    robot.send_action(np.array([4, 0, -5, 1], np.float32))
    until(lambda: robot.sent is not None)
    assert (robot.sent.tolist(), robot.altered) == ([4, 0, -5, 1], 0)
    robot.send_action(np.array([30, 0, -5, 1], np.float32))
    until(lambda: robot.altered)
    assert robot.sent.tolist() == [9, 0, -5, 1]
    assert robot.remarks == "1 commands altered by the robot"


def test_a_command_that_is_not_one_is_refused(device: StandIn, robot: LeRobotRobot) -> None:
    """NaN maps to the end of the range in some motor drivers."""
    with pytest.raises(ActionError, match="not finite; refused"):
        robot.send_action(np.array([np.nan, 0, 0, 0], np.float32))
    assert device.received == []


def test_nan_from_the_robot_is_caught_by_the_loop(device: StandIn) -> None:
    """The policy is never shown it, and the run ends with the joint's name."""
    robot = LeRobotRobot(device, CONFIG)

    def broken() -> None:
        if device.frames > 3:
            device.positions["elbow_flex.pos"] = float("nan")

    device.on_read = broken
    config = LoopConfig(failsafe=FailsafeConfig(hold_s=2.0, ramp_s=0.05, max_frame_age_s=60.0))
    result = drive(robot, Scripted(), "reach", config)
    assert result.stopped_by == "robot"
    assert re.search(r"state: \['elbow_flex.pos'\] not finite", result.message)


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        ({"calibrated": False}, RobotFault, "not calibrated, .*run lerobot-calibrate"),
        ({"shape": (8, 6, 3)}, ObservationError, r"camera 'front': got uint8 \(8, 6, 3\), expected uint8 \(6, 8, 3\)"),
        (
            {"positions": {}},
            RobotFault,
            r"get_observation failed, .*no \['elbow_flex.pos', 'gripper.pos', 'shoulder_pan.pos'\]; it has \['front'",
        ),
        ({"positions": dict.fromkeys(JOINTS, float("nan"))}, ObservationError, "not finite"),
    ],
)
def test_a_robot_that_is_not_ready_is_not_driven(device: StandIn, spoil: dict[str, Any], error: type[ActletError], message: str) -> None:
    """Said by `connect`, which disconnects again, never calibrates, and may be tried anew."""
    vars(device).update(spoil)
    robot = LeRobotRobot(device, CONFIG)
    for _ in range(2):
        with pytest.raises(error, match=message):
            robot.connect()
    assert device.calls == ["connect(calibrate=False)", "disconnect"] * 2
    with pytest.raises(RobotFault, match="not connected"):
        robot.get_observation()


def test_a_first_observation_that_does_not_come_is_an_error(device: StandIn) -> None:
    """After the time that the file gives."""
    goes_on = threading.Event()
    device.on_read = lambda: goes_on.wait(60)
    robot = LeRobotRobot(device, dataclasses.replace(CONFIG, connect_timeout_s=0.05))
    threading.Timer(0.2, goes_on.set).start()
    with pytest.raises(RobotFault, match=r"no observation within 0.05 s of connecting: get_observation hangs"):
        robot.connect()


def test_the_last_command_is_sent_before_it_lets_go(device: StandIn) -> None:
    """Disconnecting twice is once."""
    robot = LeRobotRobot(device, CONFIG)
    robot.disconnect()
    robot.connect()
    robot.send_action(np.array([7, 0, 0, 0], np.float32))
    robot.disconnect()
    robot.disconnect()
    assert device.received[-1]["elbow_flex.pos"] == 7
    assert device.calls[-1] == "disconnect"
    for use in (robot.get_observation, lambda: robot.send_action(np.zeros(4, np.float32))):
        with pytest.raises(RobotFault, match="not connected"):
            use()


def test_a_robot_that_is_connected_already_is_taken_as_it_is(device: StandIn) -> None:
    """LeRobot's own refuses a second connect."""
    device.connect()
    robot = LeRobotRobot(device, CONFIG)
    robot.connect()
    with pytest.raises(RobotFault, match="connected already"):
        robot.connect()
    robot.disconnect()
    assert device.calls == ["connect(calibrate=True)", "disconnect"]


@pytest.fixture
def bundle(tmp_path: Path, make_tiny_bundle: Callable[..., Path]) -> Path:
    """One for this robot."""
    return make_tiny_bundle(tmp_path / "bundle", spec=SPEC)


def command(bundle: Path, config: Path, *more: str) -> list[str]:
    """The words of `actlet run`."""
    robot = ["--robot", "runtime.robots.lerobot:make_robot", "--robot-config", str(config)]
    return ["run", str(bundle), *robot, "--instruction", "lift the cup", "--inference", "thread", "--priority", "0", *more]


def test_actlet_run_drives_it(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the command line, to the end of the steps."""
    assert main(command(bundle, write(tmp_path), "--steps", "10")) == 0
    assert "steps (10 steps done)" in capsys.readouterr().out
    assert lerobot_stand_in.made[-1].calls == ["connect(calibrate=False)", "disconnect"]
    assert lerobot_stand_in.made[-1].received


DEGREES = OBSERVATION.to_dict() | {"state_units": ["%", "rad", "deg"]}
NARROW = ACTION.to_dict() | {"low": [-80, 0, -110, 0]}
ORDER = OBSERVATION.to_dict() | {"state_names": ["pan", "gripper.pos", "elbow_flex.pos"]}


def test_the_summary_says_what_the_robot_altered(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A robot that hardly moves; the summary of one that does as it is told says nothing of it."""
    assert main(command(bundle, write(tmp_path, factory="lerobot_stand_in:make_slow_device"), "--steps", "10")) == 0
    assert re.search(r"robot +\d+ commands altered by the robot", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observation": ORDER}, r"state_names\[0\] is 'pan', expected 'gripper.pos'"),
        ({"observation": DEGREES}, r"state_units\[1\] is 'rad', expected 'deg'"),
        ({"action": NARROW}, r"low\[0\] is -80, expected -90"),
        ({"rate_hz": 30}, "the policy was made for 50.0 steps in a second, the robot has 30"),
    ],
)
def test_a_robot_that_differs_is_not_armed(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    """Exit code 2; the message names the difference and the file in which to mend it; nothing was connected."""
    path = write(tmp_path, **changes)
    assert main(command(bundle, path)) == 2
    err = capsys.readouterr().err
    assert re.search(message, err)
    assert f"Nothing moved. Correct what {path} says of the robot, or use a policy that was made for it." in err
    assert lerobot_stand_in.made[-1].calls == []


def test_a_file_that_differs_from_the_robot_exits_with_2(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What LeRobot's features say is compared as well."""
    assert main(command(bundle, write(tmp_path, features={"pan": "shoulder_pna.pos"}))) == 2
    assert "no such feature 'shoulder_pna.pos'. Did you mean 'shoulder_pan.pos'?" in capsys.readouterr().err


def test_a_robot_that_takes_no_file_says_so() -> None:
    """The simulated arm, for example."""
    with pytest.raises(CallerError, match=r"takes no --robot-config, but 'x.json' was given: leave it out"):
        robot_by_name(suite="point_reach:make_suite", task="red", robot_config=Path("x.json"))


REAL = """
import sys, threading
from pathlib import Path
import numpy as np
import lerobot
from lerobot.robots import Robot
from lerobot.robots.so_follower import SO100Follower, SO100FollowerConfig
from actlet.command_line import main

class Bus:
    '''In the place of the servos, which are not here; all else is LeRobot's own.'''
    def __init__(self, bus):
        self.motors, self.is_connected, self.is_calibrated = bus.motors, False, True
        self.goal = dict.fromkeys(self.motors, 0.0)
        self.busy, self.writes = threading.Lock(), 0
    def connect(self): self.is_connected = True
    def disconnect(self, disable_torque=True): self.is_connected = False
    def sync_read(self, register, num_retry=0):
        assert self.busy.acquire(blocking=False), 'two threads on one bus'
        try: return dict(self.goal)
        finally: self.busy.release()
    def sync_write(self, register, goal):
        assert self.busy.acquire(blocking=False), 'two threads on one bus'
        try: self.goal.update(goal); self.writes += 1
        finally: self.busy.release()

class Camera:
    '''480 x 640 noise.'''
    height, width, is_connected = 480, 640, False
    def connect(self): self.is_connected = True
    def disconnect(self): self.is_connected = False
    def read_latest(self): return np.random.default_rng().integers(0, 256, (480, 640, 3), dtype=np.uint8)

made = []
def make():
    arm = SO100Follower(SO100FollowerConfig(port='/dev/null', id='test', calibration_dir=Path(sys.argv[1]), max_relative_target=5.0))
    arm.bus, arm.cameras = Bus(arm.bus), {'front': Camera()}
    arm.configure = lambda: None
    made.append(arm)
    return arm

if __name__ == '__main__':
    sys.modules['real_arm'] = sys.modules['__main__']
    arm = make()
    assert isinstance(arm, Robot)
    code = main(['run', sys.argv[2], '--robot', 'runtime.robots.lerobot:make_robot', '--robot-config', sys.argv[3], '--instruction', 'lift the cup',
                 '--inference', 'thread', '--priority', '0', '--steps', '20'])
    print('code', code, 'writes', made[-1].bus.writes, 'connected', made[-1].is_connected, 'lerobot', lerobot.__version__)
"""


@pytest.mark.slow
@pytest.mark.skipif(not LEROBOT_PYTHON, reason="ACTLET_LEROBOT_PYTHON names no Python with lerobot")
def test_lerobots_own_arm(tmp_path: Path, make_tiny_bundle: Callable[..., Path]) -> None:
    """SO100Follower of LeRobot, its bus and camera replaced, driven by `actlet run` in LeRobot's own environment."""
    joints = ("shoulder_pan.pos", "shoulder_lift.pos", "elbow_flex.pos", "wrist_flex.pos", "wrist_roll.pos", "gripper.pos")
    units = ("deg",) * 5 + ("%",)
    spec = PolicySpec(
        observation=ObservationSpec(cameras=(CameraSpec(name="front", height=480, width=640),), state_names=joints, state_units=units),
        action=ActionSpec(
            names=joints,
            units=units,
            kinds=("continuous",) * 6,
            low=(-100.0,) * 5 + (0.0,),
            high=(100.0,) * 6,
            frame="joint",
            hold=("last",) * 6,
        ),
        timing=TimingSpec(rate_hz=30, horizon=6, execute_steps=3, max_delay_steps=3),
    )
    bundle = make_tiny_bundle(tmp_path / "bundle", spec=spec)
    config = LeRobotConfig(factory="real_arm:make", observation=spec.observation, action=spec.action, rate_hz=30.0)
    path = write(tmp_path, config)
    script = tmp_path / "real_arm.py"
    script.write_text(REAL)
    words = [LEROBOT_PYTHON, str(script), str(tmp_path), str(bundle), str(path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "steps (20 steps done)" in done.stdout
    found = re.search(r"code 0 writes (\d+) connected False lerobot", done.stdout)
    assert found, done.stdout + done.stderr
    assert int(found[1]) >= 10


@pytest.mark.slow
@pytest.mark.skipif(not LEROBOT_PYTHON, reason="ACTLET_LEROBOT_PYTHON names no Python with lerobot")
def test_the_documents_factory_fits_its_file(tmp_path: Path) -> None:
    """docs/robots.md: the arm that its code makes is the one that its file describes."""
    page = (ROOT / "docs" / "robots.md").read_text()
    for name, language in (("my_so101.py", "python\n# my_so101.py"), ("my_so101.json", "json")):
        (tmp_path / name).write_text(page.split(f"```{language}\n", 1)[1].split("```", 1)[0])
    code = "from runtime.robots.lerobot import make_robot; print(make_robot(robot_config='my_so101.json').observation_spec.state_dim)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_LEROBOT_HOME": str(tmp_path)}
    done = subprocess.run([LEROBOT_PYTHON, "-c", code], capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stdout) == (0, "6\n"), done.stderr


def test_it_imports_neither_lerobot_nor_torch() -> None:
    """The robot's own code alone needs them."""
    code = "import sys, runtime.robots.lerobot; print([name for name in ('lerobot', 'torch', 'zenoh', 'rosbags') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
