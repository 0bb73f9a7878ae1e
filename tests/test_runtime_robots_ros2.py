"""A robot on ROS 2: a Zenoh session in the place of its drivers, which names and packs messages with nothing of `runtime.robots` (ros_peer.py).

What this is not: a test with rmw_zenoh itself, for which ROS 2 would have to be there.
"""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ros_peer
import zenoh
from ros_peer import Peer

from actlet.command_line import main
from actlet.errors import ActionError, CallerError, RobotFault, SpecError
from actlet.protocols import ActionChunk, Observation, Robot
from actlet.specs import ActionSpec, CameraSpec, ObservationSpec, PolicySpec, TimingSpec
from runtime.control_loop import LoopConfig, drive
from runtime.failsafe import FailsafeConfig
from runtime.robots.ros2 import Ros2Robot, make_robot
from runtime.robots.ros2_config import Ros2Config

ROOT = Path(__file__).parent.parent
JOINTS = ("shoulder", "elbow", "finger")
OBSERVATION = ObservationSpec(
    cameras=(CameraSpec(name="front", height=6, width=8),), state_names=("elbow", "pan", "finger"), state_units=("rad", "rad", "m")
)
ACTION = ActionSpec(
    names=("pan", "elbow", "terminate", "finger"),
    units=("rad", "rad", "1", "m"),
    kinds=("continuous", "continuous", "binary", "continuous"),
    low=(-3, -2, 0, 0),
    high=(3, 2, 1, 0.08),
    frame="joint",
    hold=("last", "last", "zero", "last"),
)
CONFIG = Ros2Config(
    observation=OBSERVATION,
    action=ACTION,
    rate_hz=50.0,
    images={"front": "/camera/image_raw"},
    command_topic="/arm/joint_trajectory",
    joints={"pan": "shoulder"},
    connect_timeout_s=20.0,
)
SPEC = PolicySpec(observation=OBSERVATION, action=ACTION, timing=TimingSpec(rate_hz=50.0, horizon=4, execute_steps=2, max_delay_steps=2))


class Scripted:
    """A policy that goes on from where it sees the joints."""

    spec = SPEC

    def predict(self, observations: list[Observation], instructions: list[str]) -> list[ActionChunk]:
        elbow, pan, _ = observations[0].state
        rows = [(pan + i / 100, elbow - i / 200, 0.0, 0.04) for i in range(1, 5)]
        return [ActionChunk(actions=np.array(rows, np.float32), confidence=np.ones(4, np.float32))]


@pytest.fixture
def peer() -> Iterator[Peer]:
    """The robot's drivers."""
    peer = Peer(JOINTS)
    yield peer
    peer.close()


@pytest.fixture
def publishing(peer: Peer) -> Iterator[Peer]:
    """The same, publishing in a thread."""
    over = threading.Event()
    thread = threading.Thread(target=lambda: peer.publish_until(over.is_set, 0.01))
    thread.start()
    yield peer
    over.set()
    thread.join()


def at(peer: Peer, **changes: Any) -> Ros2Config:
    """The configuration for a peer's place."""
    return dataclasses.replace(CONFIG, connect=(peer.place,), **changes)


@pytest.fixture
def robot(publishing: Peer) -> Iterator[Ros2Robot]:
    """Connected."""
    robot = Ros2Robot(at(publishing))
    robot.connect()
    yield robot
    robot.disconnect()


def until(condition: Callable[[], Any]) -> None:
    """Waits for what another thread does."""
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s, "it did not come"
        time.sleep(0.002)


def write(folder: Path, config: Ros2Config, **changes: Any) -> Path:
    """The file of --robot-config, with other values for some keys."""
    path = folder / "robot.json"
    path.write_text(json.dumps({**config.to_dict(), **changes}))
    return path


def test_the_file_is_the_configuration(tmp_path: Path) -> None:
    """Written and read back it is the same, and a key that is not known is refused."""
    assert Ros2Config.from_dict(json.loads(write(tmp_path, CONFIG).read_text())) == CONFIG
    with pytest.raises(SpecError, match=r"robot.json: unknown keys \['topic'\]"):
        make_robot(robot_config=write(tmp_path, CONFIG, topic="/x"))
    with pytest.raises(CallerError, match=r"Say --robot-config FILE, JSON with the fields of Ros2Config; docs/robots.md"):
        make_robot()


def _with(spec: ObservationSpec | ActionSpec, **changes: Any) -> dict[str, Any]:
    return {"observation" if isinstance(spec, ObservationSpec) else "action": dataclasses.replace(spec, **changes)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, "ros2_robot: schema_version 2, expected 1"),
        ({"rate_hz": -1.0}, "rate_hz -1.0, .*expected positive numbers"),
        ({"time_from_start_s": 0.0}, r"time_from_start_s 0\.0: expected positive"),
        ({"domain_id": 300}, r"domain_id 300: expected 0 \.\. 232"),
        ({"connect": ()}, 'neither connect nor listen: say where the others are, as in "connect"'),
        ({"listen": ("tcp/0.0.0.0:7448",)}, "a client waits for nobody; use"),
        ({"node": "my/node"}, "node 'my/node': expected a name of letters"),
        ({"joint_states": "/**"}, r"topic '/\*\*': expected a full name"),
        ({"images": {"wrist": "/camera"}}, r"images of the cameras \['wrist'\]: expected a topic for each of \['front'\]"),
        (
            {"command": "JointState", "command_topic": "/joint_states"},
            "is the topic of the joints' states: commands would be taken for states",
        ),
        ({"joints": {"pna": "shoulder"}}, r"joints: \['pna'\] are no names of this file's"),
        ({"joints": {"pan": "elbow"}}, r"joints \['elbow', 'elbow', 'finger'\] are not unique"),
        (_with(OBSERVATION, state_units=("deg", "rad", "m")), r"state 'elbow': unit 'deg', expected one of \['rad', 'm', 'rad/s', 'm/s'\]"),
        (_with(ACTION, hold=None), "action: no hold; say how every joint stands still"),
        (_with(ACTION, units=("deg", "rad", "1", "m")), "action 'pan': continuous, unit 'deg'; expected a continuous joint in one of"),
        (_with(ACTION, hold=("zero", "last", "zero", "last")), "action 'pan': hold 'zero' for unit 'rad'; positions hold with"),
        (
            _with(ACTION, units=("rad/s", "rad", "1", "m"), hold=("zero", "last", "zero", "last")),
            r"action: \['position', 'velocity'\] commanded, expected positions or velocities, all of one kind",
        ),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    """In words that say what to correct."""
    with pytest.raises(SpecError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_a_loop_drives_it(publishing: Peer) -> None:
    """Pictures and joints come, commands arrive by name, numbered, and marked with one publisher; then the robot is let go."""
    robot = Ros2Robot(at(publishing))
    assert isinstance(robot, Robot)
    result = drive(robot, Scripted(), "reach", LoopConfig(max_steps=40))
    assert (result.stopped_by, result.message) == ("steps", "40 steps done")
    assert result.statistics.bad_observations == 0
    until(lambda: len(publishing.commands) == result.statistics.sent + 1)  # A hold at the end.
    last = publishing.commands[-1]
    assert last.joint_names == ["shoulder", "elbow", "finger"]
    assert len(last.points) == 1
    pan, elbow, finger = last.points[0].positions
    assert 0.05 < pan == pytest.approx(-2 * elbow, abs=1e-5)
    assert finger == np.float32(0.04)
    assert (last.header.stamp.sec, last.header.stamp.nanosec, last.points[0].velocities) == (0, 0, [])
    assert (last.points[0].time_from_start.sec, last.points[0].time_from_start.nanosec) == (0, 20_000_000)
    sequences, times_ns, sizes, marks = zip(*publishing.attachments, strict=True)
    assert sequences == tuple(range(1, len(sequences) + 1))
    assert set(sizes) == {16}
    assert len(set(marks)) == 1
    assert list(times_ns) == sorted(times_ns)
    assert abs(times_ns[-1] / 1e9 - time.time()) < 100
    assert robot.remarks == ""
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ros2")]


def test_it_is_listed_as_a_node_of_ros(publishing: Peer, robot: Ros2Robot) -> None:
    """One token for the node, one for each topic; and they go when it goes."""

    def tokens() -> list[str]:
        return sorted(str(reply.ok.key_expr) for reply in publishing.session.liveliness().get("@ros2_lv/0/**"))

    until(lambda: len(tokens()) == 4)
    session = str(robot._session.zid())
    types = {
        "JS": f"sensor_msgs::msg::dds_::JointState_/{ros_peer.JOINT_STATE_HASH}",
        "IM": f"sensor_msgs::msg::dds_::Image_/{ros_peer.IMAGE_HASH}",
        "JT": f"trajectory_msgs::msg::dds_::JointTrajectory_/{ros_peer.TRAJECTORY_HASH}",
    }
    assert tokens() == sorted(
        [
            f"@ros2_lv/0/{session}/0/0/NN/%/%/actlet",
            f"@ros2_lv/0/{session}/0/1/MP/%/%/actlet/%arm%joint_trajectory/{types['JT']}/::,1:,:,:,,",
            f"@ros2_lv/0/{session}/0/2/MS/%/%/actlet/%joint_states/{types['JS']}/2::,1:,:,:,,",
            f"@ros2_lv/0/{session}/0/3/MS/%/%/actlet/%camera%image_raw/{types['IM']}/2::,1:,:,:,,",
        ]
    )
    robot.disconnect()
    until(lambda: not tokens())


def test_observations_are_the_newest_and_stamped_at_receipt(publishing: Peer, robot: Ros2Robot) -> None:
    """By name, in the policy's order; the time is this machine's and that of the older of picture and joints."""
    before_s = time.monotonic()
    publishing.positions.update(shoulder=0.5, elbow=-0.25, finger=0.01)
    until(lambda: robot.get_observation().state[0] == -0.25 and robot.get_observation().taken_s > before_s)
    observation = robot.get_observation()
    OBSERVATION.check(observation.images, observation.state)
    assert observation.state.tolist() == [np.float32(-0.25), np.float32(0.5), np.float32(0.01)]
    assert before_s < observation.taken_s <= time.monotonic()


def test_it_says_where_it_stands(publishing: Peer, robot: Ros2Robot) -> None:
    """As an action, where it sees all joints that it commands; standing still is zero velocity."""
    publishing.positions.update(shoulder=0.5, elbow=-0.25, finger=0.01)
    until(lambda: robot.present_action() == [0.5, -0.25, 0.0, 0.01])
    few = dataclasses.replace(OBSERVATION, state_names=("elbow",), state_units=("rad",))
    assert Ros2Robot(dataclasses.replace(CONFIG, observation=few, joints={"pan": "shoulder"})).present_action is None
    speeds = dataclasses.replace(ACTION, units=("rad/s", "rad/s", "1", "m/s"), hold=("zero",) * 4)
    assert Ros2Robot(dataclasses.replace(CONFIG, observation=few, action=speeds)).present_action is not None


def test_joints_may_come_in_several_messages(peer: Peer) -> None:
    """An arm and a gripper with drivers of their own, and a velocity; the oldest of all gives the time."""
    observation = dataclasses.replace(OBSERVATION, state_names=("elbow", "pan", "finger"), state_units=("rad", "rad/s", "m"))
    robot = Ros2Robot(at(peer, observation=observation))
    over = threading.Event()

    def publish() -> None:
        while not over.wait(0.01):
            peer.session.put(ros_peer.STATES_KEY, ros_peer.joint_state({"elbow": 1.0, "shoulder": 2.0}, {"elbow": 3.0, "shoulder": 4.0}))
            if not arm_alone.is_set():
                peer.session.put(ros_peer.STATES_KEY, ros_peer.joint_state({"finger": 0.02}))
            peer.session.put(ros_peer.IMAGE_KEY, ros_peer.image(np.zeros((6, 8, 3), np.uint8)))

    arm_alone = threading.Event()
    thread = threading.Thread(target=publish)
    thread.start()
    robot.connect()
    assert robot.get_observation().state.tolist() == [1.0, 4.0, np.float32(0.02)]
    arm_alone.set()
    until(lambda: time.monotonic() - robot.get_observation().taken_s > 0.1)
    over.set()
    thread.join()
    robot.disconnect()


@pytest.mark.parametrize("quantity", ["position", "velocity"])
def test_commands_may_be_joint_states(quantity: str) -> None:
    """Positions or velocities, stamped with the wall's clock."""
    peer = Peer(JOINTS, listens_to=ros_peer.COMMAND_STATE_KEY)
    changes: dict[str, Any] = {"command": "JointState"}
    if quantity == "velocity":
        units, hold = ("rad/s", "rad/s", "1", "m/s"), ("zero",) * 4
        changes["action"] = dataclasses.replace(ACTION, units=units, hold=hold, low=(-3, -2, 0, -1), high=(3, 2, 1, 1))
    robot = Ros2Robot(at(peer, **changes))
    over = threading.Event()
    thread = threading.Thread(target=lambda: peer.publish_until(over.is_set))
    thread.start()
    robot.connect()
    robot.send_action(np.array([0.5, 0.25, 1, 0.0], np.float32))
    until(lambda: peer.commands)
    over.set()
    thread.join()
    robot.disconnect()
    peer.close()
    command = peer.commands[0]
    assert command.name == ["shoulder", "elbow", "finger"]
    assert (command.position, command.velocity) == (([0.5, 0.25, 0.0], []) if quantity == "position" else ([], [0.5, 0.25, 0.0]))
    assert abs(command.header.stamp.sec - time.time()) < 100


HOSTILE = [
    b"",
    b"\0\1\0\0" + b"\xff" * 100,
    ros_peer.joint_state({"shoulder": 9.0, "elbow": 9.0, "finger": 9.0})[:-9],
    ros_peer.JointState(ros_peer.header(), ["elbow", "elbow"], [9.0, 9.0], [], []).serialize(),
    ros_peer.joint_state({"somebody_else": 9.0}),
    b"\0" * 10_000_000,
    ros_peer.image(np.full((6, 8, 1), 9, np.uint8), "mono8"),
    ros_peer.image(np.full((8, 6, 3), 9, np.uint8)),
]


@pytest.mark.parametrize("raw", HOSTILE, ids=range(len(HOSTILE)))
def test_what_does_not_decode_is_counted_and_ignored(publishing: Peer, robot: Ros2Robot, raw: bytes) -> None:
    """On any topic, at any size, between sound messages: nothing is raised, nothing of it is seen, and the next message is taken."""

    def spoil() -> str:
        publishing.session.put(ros_peer.STATES_KEY, raw)
        publishing.session.put(ros_peer.IMAGE_KEY, raw)
        publishing.session.delete(ros_peer.IMAGE_KEY)
        return robot.remarks

    for _ in range(20):
        spoil()
    before_s = time.monotonic()
    until(lambda: robot.get_observation().taken_s > before_s)
    observation = robot.get_observation()
    OBSERVATION.check(observation.images, observation.state)
    assert 9.0 not in observation.state
    if len(raw) < 10_000_000:  # Larger than any image of this camera: Zenoh itself drops it.
        until(spoil)  # Again and again: what is overtaken by a newer message is never looked at.
        assert re.search(r"/(joint_states|camera/image_raw): \d+ messages ignored, the last: ", robot.remarks)


def test_nan_from_the_robot_is_caught_by_the_loop(publishing: Peer) -> None:
    """The policy is never shown it, and the run ends with the joint's name."""
    robot = Ros2Robot(at(publishing))
    config = LoopConfig(failsafe=FailsafeConfig(hold_s=2.0, ramp_s=0.05, max_frame_age_s=60.0))
    result = drive(robot, Scripted(), "reach", config, on_step=lambda step, _: publishing.broken.update(elbow=float("nan")))
    assert result.stopped_by == "robot"
    assert re.search(r"state: \['elbow'\] not finite", result.message)


def test_a_robot_that_falls_silent_is_stale(peer: Peer) -> None:
    """Sensors that stop make the observation old: the loop holds, goes on commanding, and ends."""
    robot = Ros2Robot(at(peer))
    over = threading.Event()
    thread = threading.Thread(target=lambda: peer.publish_until(over.is_set))
    thread.start()

    def silence(step: int, _: Any) -> None:
        if step >= 10:  # Steps may be skipped.
            over.set()

    config = LoopConfig(failsafe=FailsafeConfig(hold_s=2.0, ramp_s=0.05, max_frame_age_s=0.2))
    result = drive(robot, Scripted(), "reach", config, on_step=silence)
    thread.join()
    assert result.stopped_by == "robot"
    assert "an observation that is" in result.message
    assert "stale frame" in result.message
    until(lambda: len(peer.commands) == result.statistics.sent + 1)


def test_a_controller_that_goes_is_a_lost_robot(publishing: Peer) -> None:
    """A command to which nobody listens is refused, so that the loop hears of it."""
    robot = Ros2Robot(at(publishing))

    def leave(step: int, _: Any) -> None:
        if step >= 10:  # Steps may be skipped.
            publishing.stop_listening()

    result = drive(robot, Scripted(), "reach", LoopConfig(max_steps=1000), on_step=leave)
    assert result.stopped_by == "robot"
    assert "nobody listens to '/arm/joint_trajectory' any more: the controller, the router or the network has gone" in result.message


def test_a_peer_that_dies_is_a_lost_robot(peer: Peer) -> None:
    """The whole other side."""
    robot = Ros2Robot(at(peer))
    alive = [peer]
    over = threading.Event()
    thread = threading.Thread(target=lambda: peer.publish_until(over.is_set))
    thread.start()

    def die(step: int, _: Any) -> None:
        if step >= 10 and alive:  # Steps may be skipped.
            over.set()
            thread.join()
            alive.pop().close()

    result = drive(robot, Scripted(), "reach", LoopConfig(max_steps=1000), on_step=die)
    assert result.stopped_by == "robot"
    robot.disconnect()


def test_commands_that_are_none_are_refused(publishing: Peer, robot: Ros2Robot) -> None:
    """NaN never reaches the network."""
    with pytest.raises(ActionError, match="not finite; refused"):
        robot.send_action(np.array([np.nan, 0, 0, 0], np.float32))
    assert publishing.commands == []


def test_nobody_there_is_said(tmp_path: Path) -> None:
    """No router: with the line that starts one."""
    robot = Ros2Robot(dataclasses.replace(CONFIG, connect=(f"tcp/127.0.0.1:{ros_peer.free_port()}",), connect_timeout_s=0.3))
    with pytest.raises(
        RobotFault, match=r"no Zenoh session with \['tcp/127.0.0.1:\d+'\] .*is the router running \(ros2 run rmw_zenoh_cpp rmw_zenohd\)"
    ):
        robot.connect()
    robot.disconnect()
    with pytest.raises(RobotFault, match="not connected"):
        robot.get_observation()
    with pytest.raises(RobotFault, match="not connected"):
        robot.send_action(np.zeros(4, np.float32))


def test_what_does_not_come_is_named(peer: Peer) -> None:
    """Joints and cameras of which nothing came, and what came instead."""
    robot = Ros2Robot(at(peer, connect_timeout_s=0.4))
    with pytest.raises(RobotFault) as silent:
        robot.connect()
    assert str(silent.value) == (
        "within 0.4 s nothing usable of position of 'elbow', position of 'shoulder', position of 'finger' on '/joint_states', camera 'front' on "
        "'/camera/image_raw'. Are they published with rmw_zenoh, in domain 0, and with type hashes?"
    )
    peer.positions = {"shoulder": 0.0, "elbow_joint": 0.0, "finger": 0.0}
    over = threading.Event()
    thread = threading.Thread(target=lambda: peer.publish_until(over.is_set))
    thread.start()
    with pytest.raises(RobotFault, match=r"within 0.4 s nothing usable of position of 'elbow' on '/joint_states'"):
        robot.connect()
    peer.positions = {"elbow_joint": 0.0}
    with pytest.raises(
        RobotFault, match=r"messages ignored, the last: RobotFault: no position of 'elbow', .* in it; it has \['elbow_joint'\]"
    ):
        robot.connect()
    peer.positions = dict.fromkeys(JOINTS, 0.0)
    peer.stop_listening()
    with pytest.raises(
        RobotFault, match=r"nobody listens to '/arm/joint_trajectory' \(trajectory_msgs/msg/JointTrajectory\): is the controller running"
    ):
        robot.connect()
    over.set()
    thread.join()
    assert robot._session is None


def test_humbles_names_have_no_hash(peer: Peer) -> None:
    """`"type_hashes": false`."""
    received = []
    subscriber = peer.session.declare_subscriber("0/arm/joint_trajectory/*/TypeHashNotSupported", received.append)
    robot = Ros2Robot(at(peer, type_hashes=False))
    over = threading.Event()

    def publish() -> None:
        while not over.wait(0.01):
            peer.session.put(
                "0/joint_states/sensor_msgs::msg::dds_::JointState_/TypeHashNotSupported", ros_peer.joint_state(peer.positions)
            )
            peer.session.put(
                "0/camera/image_raw/sensor_msgs::msg::dds_::Image_/TypeHashNotSupported", ros_peer.image(np.zeros((6, 8, 3), np.uint8))
            )

    thread = threading.Thread(target=publish)
    thread.start()
    robot.connect()
    robot.send_action(np.zeros(4, np.float32))
    until(lambda: received)
    over.set()
    thread.join()
    robot.disconnect()
    subscriber.undeclare()


def command(bundle: Path, config: Path, *more: str) -> list[str]:
    """The words of `actlet run`."""
    robot = ["--robot", "runtime.robots.ros2:make_robot", "--robot-config", str(config)]
    return ["run", str(bundle), *robot, "--instruction", "lift the cup", "--inference", "thread", "--priority", "0", *more]


@pytest.fixture
def bundle(tmp_path: Path, make_tiny_bundle: Callable[..., Path]) -> Path:
    """One for this robot."""
    return make_tiny_bundle(tmp_path / "bundle", spec=SPEC)


def test_actlet_run_drives_it(bundle: Path, tmp_path: Path, publishing: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    """From the command line, to the end of the steps."""
    assert main(command(bundle, write(tmp_path, at(publishing)), "--steps", "10")) == 0
    assert "steps (10 steps done)" in capsys.readouterr().out
    until(lambda: publishing.commands)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"observation": OBSERVATION.to_dict() | {"state_names": ["pan", "elbow", "finger"]}},
            r"state_names\[0\] is 'pan', expected 'elbow'",
        ),
        ({"observation": OBSERVATION.to_dict() | {"state_units": ["rad", "rad", "rad"]}}, r"state_units\[2\] is 'rad', expected 'm'"),
        ({"action": ACTION.to_dict() | {"high": [3, 2, 1, 0.1]}}, r"high\[3\] is 0.1, expected 0.08"),
        ({"rate_hz": 30}, "the policy was made for 50.0 steps in a second, the robot has 30"),
    ],
)
def test_a_robot_that_differs_is_not_armed(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    """Exit code 2; the message names the difference and the file in which to mend it; there is no network that could be tried."""
    path = write(tmp_path, CONFIG, **changes)
    assert main(command(bundle, path)) == 2
    err = capsys.readouterr().err
    assert re.search(message, err)
    assert f"Nothing moved. Correct what {path} says of the robot, or use a policy that was made for it." in err


def test_a_wrong_unit_exits_with_2(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What ROS 2 does not know is refused before the policy is asked."""
    path = write(tmp_path, CONFIG, observation=OBSERVATION.to_dict() | {"state_units": ["deg", "rad", "m"]})
    assert main(command(bundle, path)) == 2
    assert "state 'elbow': unit 'deg', expected one of" in capsys.readouterr().err


@pytest.mark.parametrize(("package", "named"), [("zenoh", "eclipse-zenoh"), ("rosbags", "rosbags")])
def test_a_missing_package_names_its_extra(tmp_path: Path, package: str, named: str) -> None:
    """And nothing of ROS is imported before a robot is made."""
    path = write(tmp_path, CONFIG)
    code = f"""
import sys, runtime.robots.ros2 as ros2
assert not {{'zenoh', 'rosbags'}} & set(sys.modules)
sys.modules[{package!r}] = None
ros2.make_robot(robot_config={str(path)!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 1
    assert f"a robot on ROS 2 needs the package '{named}', which is not installed. Run: pip install 'actlet[ros2]'" in done.stderr


def test_a_message_larger_than_a_frame_is_not_received(publishing: Peer, robot: Ros2Robot) -> None:
    """Zenoh would take a gigabyte."""
    limit = int(json.loads(zenoh.Config().get_json("transport/link/rx"))["max_message_size"])
    assert limit == 2**30
    taken = [(topic.name, topic.ignored) for topic in robot.topics]
    publishing.session.put(ros_peer.IMAGE_KEY, b"\0" * 5_000_000)
    before_s = time.monotonic()
    until(lambda: robot.get_observation().taken_s > before_s)
    assert [(topic.name, topic.ignored) for topic in robot.topics] == taken
