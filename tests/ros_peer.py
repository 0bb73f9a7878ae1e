"""The ROS side of a robot, without ROS: a Zenoh session that names and packs messages with nothing of `runtime.robots`.

CDR is pycdr2's here, keys and type hashes are written out: rmw_zenoh's design.md has their form, the hashes are those of ROS 2's own type descriptions.
"""

import json
import socket
import struct
import time
from dataclasses import dataclass

import numpy as np
import zenoh
from pycdr2 import IdlStruct
from pycdr2.types import float64, int32, sequence, uint8, uint32

JOINT_STATE_HASH = "RIHS01_a13ee3a330e346c9d87b5aa18d24e11690752bd33a0350f11c5882bc9179260e"
IMAGE_HASH = "RIHS01_d31d41a9a4c4bc8eae9be757b0beed306564f7526c88ea6a4588fb9582527d47"
TRAJECTORY_HASH = "RIHS01_179b33eba59d676f6d967ac71fe35e7ca2f64b2f3928f4a018cec115e213796e"
STATES_KEY = f"0/joint_states/sensor_msgs::msg::dds_::JointState_/{JOINT_STATE_HASH}"
IMAGE_KEY = f"0/camera/image_raw/sensor_msgs::msg::dds_::Image_/{IMAGE_HASH}"
TRAJECTORY_KEY = f"0/arm/joint_trajectory/trajectory_msgs::msg::dds_::JointTrajectory_/{TRAJECTORY_HASH}"
COMMAND_STATE_KEY = f"0/arm/joint_trajectory/sensor_msgs::msg::dds_::JointState_/{JOINT_STATE_HASH}"


@dataclass
class Time(IdlStruct, typename="builtin_interfaces::msg::dds_::Time_"):
    sec: int32
    nanosec: uint32


@dataclass
class Duration(IdlStruct, typename="builtin_interfaces::msg::dds_::Duration_"):
    sec: int32
    nanosec: uint32


@dataclass
class Header(IdlStruct, typename="std_msgs::msg::dds_::Header_"):
    stamp: Time
    frame_id: str


@dataclass
class JointState(IdlStruct, typename="sensor_msgs::msg::dds_::JointState_"):
    header: Header
    name: sequence[str]
    position: sequence[float64]
    velocity: sequence[float64]
    effort: sequence[float64]


@dataclass
class Image(IdlStruct, typename="sensor_msgs::msg::dds_::Image_"):
    header: Header
    height: uint32
    width: uint32
    encoding: str
    is_bigendian: uint8
    step: uint32
    data: sequence[uint8]


@dataclass
class JointTrajectoryPoint(IdlStruct, typename="trajectory_msgs::msg::dds_::JointTrajectoryPoint_"):
    positions: sequence[float64]
    velocities: sequence[float64]
    accelerations: sequence[float64]
    effort: sequence[float64]
    time_from_start: Duration


@dataclass
class JointTrajectory(IdlStruct, typename="trajectory_msgs::msg::dds_::JointTrajectory_"):
    header: Header
    joint_names: sequence[str]
    points: sequence[JointTrajectoryPoint]


def header(sec: int = 0, nanosec: int = 0, frame_id: str = "") -> Header:
    """A header."""
    return Header(stamp=Time(sec=sec, nanosec=nanosec), frame_id=frame_id)


def joint_state(positions: dict[str, float], velocities: dict[str, float] | None = None) -> bytes:
    """A JointState."""
    names = list(positions)
    speeds = [] if velocities is None else [velocities[name] for name in names]
    return JointState(header(5, 7, "base"), names, list(positions.values()), speeds, []).serialize()


def image(frame: np.ndarray, encoding: str = "rgb8", padding: int = 0) -> bytes:
    """An Image of a frame (height, width, channels), rows padded with 77."""
    height, width = frame.shape[:2]
    rows = np.pad(frame.reshape(height, -1), ((0, 0), (0, padding)), constant_values=77)
    return Image(header(5, 7, "cam"), height, width, encoding, 0, rows.shape[1], rows.reshape(-1).tolist()).serialize()


def free_port() -> int:
    """A port that nobody has."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


class Peer:
    """A robot's drivers: answers with where it was told to go, and records commands with what came with them."""

    def __init__(self, joints: tuple[str, ...], *, listens_to: str = TRAJECTORY_KEY) -> None:
        self.place = f"tcp/127.0.0.1:{free_port()}"
        settings = zenoh.Config()
        for key, value in {"mode": "peer", "listen/endpoints": [self.place], "scouting/multicast/enabled": False}.items():
            settings.insert_json5(key, json.dumps(value))
        self.session = zenoh.open(settings)
        self.positions = dict.fromkeys(joints, 0.0)
        self.commands: list[JointTrajectory | JointState] = []
        self.attachments: list[tuple[int, int, int, bytes]] = []
        self.frames = 0
        self.broken: dict[str, float] = {}
        """Joint -> what its sensor says, wherever it is."""
        self._subscriber = self.session.declare_subscriber(listens_to, self._command) if listens_to else None

    def _command(self, sample: zenoh.Sample) -> None:
        raw = sample.payload.to_bytes()
        if "JointTrajectory_" in str(sample.key_expr):
            message = JointTrajectory.deserialize(raw)
            self.positions.update(zip(message.joint_names, message.points[0].positions, strict=True))
        else:
            message = JointState.deserialize(raw)
            self.positions.update(zip(message.name, message.position, strict=False))
        self.commands.append(message)
        self.attachments.append(struct.unpack("<qqB16s", sample.attachment.to_bytes()))

    def publish(self) -> None:
        """Every sensor once."""
        self.frames += 1
        self.session.put(STATES_KEY, joint_state({**self.positions, **self.broken}))
        self.session.put(IMAGE_KEY, image(np.full((6, 8, 3), self.frames % 251, np.uint8)))

    def publish_until(self, condition, every_s: float = 0.01) -> None:
        """Every sensor, until something is so."""
        deadline_s = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline_s, "it did not come"
            self.publish()
            time.sleep(every_s)

    def stop_listening(self) -> None:
        """Its controller leaves; if it has not left already."""
        subscriber, self._subscriber = self._subscriber, None
        if subscriber is not None:
            subscriber.undeclare()

    def close(self) -> None:
        """Its computer leaves."""
        self.session.close()
