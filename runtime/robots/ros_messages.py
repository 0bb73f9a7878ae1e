"""Three message types of ROS 2 as bytes (CDR): JointState and Image in, JointTrajectory or JointState out.

What comes in is looked at before it is believed: its size before it is decoded, lengths, names, encoding and rows after. Whatever is wrong is one
error, `ObservationError`. Images become uint8 RGB frames of the camera's size, rows without padding, bgr8 turned around; nothing is resized, and a
grey picture is not taken for a coloured one. CDR itself is the rosbags package's.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from actlet.errors import MissingExtraError, ObservationError
from actlet.specs import CameraSpec

__all__ = [
    "IMAGE",
    "JOINT_STATE",
    "JOINT_TRAJECTORY",
    "Joint",
    "Quantity",
    "decode_image",
    "decode_joint_state",
    "encode_joint_state",
    "encode_joint_trajectory",
    "largest_image",
    "load_types",
    "type_hash",
]

IMAGE, JOINT_STATE, JOINT_TRAJECTORY = "sensor_msgs/msg/Image", "sensor_msgs/msg/JointState", "trajectory_msgs/msg/JointTrajectory"
LARGEST_JOINT_STATE = 2**16
"""Bytes; a hundred joints with long names take a tenth of it."""
_LARGEST_PADDING, _LARGEST_REST = 4096, 4096
"""Bytes: of a row beyond its pixels, and of a message beyond its rows."""

Quantity = Literal["position", "velocity"]


@dataclasses.dataclass(frozen=True)
class Joint:
    """What a message says of one joint; None where it says nothing."""

    position: float | None
    velocity: float | None


@functools.cache
def load_types() -> Any:
    """The message types. They are the same in every ROS 2 from Foxy on (tested), so that Jazzy's stand for all.

    Raises:
        MissingExtraError: The package is not installed.
    """
    try:
        from rosbags.typesys import Stores, get_typestore
    except ModuleNotFoundError as error:
        raise MissingExtraError("rosbags", "ros2", "a robot on ROS 2") from error
    return get_typestore(Stores.ROS2_JAZZY)


def type_hash(type_name: str) -> str:
    """RIHS01 of a type, as in "RIHS01_a13e…"."""
    return str(load_types().hash_rihs01(type_name))


def largest_image(camera: CameraSpec) -> int:
    """Bytes of the largest message that is still an image of this camera."""
    return camera.height * (3 * camera.width + _LARGEST_PADDING) + _LARGEST_REST


def decode_image(raw: bytes, camera: CameraSpec) -> NDArray[np.uint8]:
    """uint8 (height, width, 3) RGB, a copy.

    Raises:
        ObservationError: It does not decode, or is not a colour image of the camera's size.
    """
    message = _decode(raw, IMAGE, largest_image(camera))
    if message.encoding not in ("rgb8", "bgr8"):
        raise ObservationError(
            f"camera {camera.name!r}: encoding {message.encoding[:32]!r}, expected 'rgb8' or 'bgr8': set the camera driver's, or convert with image_proc."
        )
    if (message.height, message.width) != (camera.height, camera.width):
        raise ObservationError(
            f"camera {camera.name!r}: {message.height}x{message.width}, expected {camera.height}x{camera.width}; nothing is resized here: set the camera "
            "driver's size, or resize with image_proc."
        )
    pixels, step = 3 * camera.width, message.step
    if step < pixels or message.data.size != step * camera.height:
        raise ObservationError(
            f"camera {camera.name!r}: {message.data.size} bytes in rows of {step}, expected {camera.height} rows of at least {pixels}."
        )
    rows = message.data.reshape(camera.height, step)[:, :pixels].reshape(camera.height, camera.width, 3)
    return np.array(rows if message.encoding == "rgb8" else rows[..., ::-1], np.uint8, order="C")


def decode_joint_state(raw: bytes) -> dict[str, Joint]:
    """What it says of which joint. Values may be anything, NaN included; the control loop looks at them.

    Raises:
        ObservationError: It does not decode, names a joint twice, or has not one value a joint.
    """
    message = _decode(raw, JOINT_STATE, LARGEST_JOINT_STATE)
    names: list[str] = message.name
    count = len(names)
    if len(set(names)) != count:
        raise ObservationError(f"JointState: a joint is named twice: {names[:20]}.")
    for field in ("position", "velocity", "effort"):
        if getattr(message, field).size not in (0, count):
            raise ObservationError(
                f"JointState: {getattr(message, field).size} values of {field} for {count} joints, expected one each, or none."
            )
    positions, velocities = (values.tolist() or [None] * count for values in (message.position, message.velocity))
    return {name: Joint(position, velocity) for name, position, velocity in zip(names, positions, velocities, strict=True)}


def encode_joint_state(names: Sequence[str], quantity: Quantity, values: NDArray[np.float32], time_ns: int) -> bytes:
    """A JointState that commands positions or velocities, stamped."""
    store, empty, filled = load_types(), np.zeros(0), values.astype(np.float64)
    seconds, nanoseconds = divmod(time_ns, 10**9)
    message = store.types[JOINT_STATE](
        header=_header(seconds, nanoseconds),
        name=list(names),
        position=filled if quantity == "position" else empty,
        velocity=filled if quantity == "velocity" else empty,
        effort=empty,
    )
    return bytes(store.serialize_cdr(message, JOINT_STATE, little_endian=True))


def encode_joint_trajectory(names: Sequence[str], quantity: Quantity, values: NDArray[np.float32], time_from_start_s: float) -> bytes:
    """A JointTrajectory of one point. Its stamp is zero, which means: from when it comes."""
    store, empty, filled = load_types(), np.zeros(0), values.astype(np.float64)
    fraction, seconds = math.modf(time_from_start_s)
    point = store.types["trajectory_msgs/msg/JointTrajectoryPoint"](
        positions=filled if quantity == "position" else empty,
        velocities=filled if quantity == "velocity" else empty,
        accelerations=empty,
        effort=empty,
        time_from_start=store.types["builtin_interfaces/msg/Duration"](sec=int(seconds), nanosec=min(round(fraction * 1e9), 10**9 - 1)),
    )
    message = store.types[JOINT_TRAJECTORY](header=_header(0, 0), joint_names=list(names), points=[point])
    return bytes(store.serialize_cdr(message, JOINT_TRAJECTORY, little_endian=True))


def _header(seconds: int, nanoseconds: int) -> Any:
    types = load_types().types
    return types["std_msgs/msg/Header"](stamp=types["builtin_interfaces/msg/Time"](sec=seconds, nanosec=nanoseconds), frame_id="")


def _decode(raw: bytes, type_name: str, most: int) -> Any:
    if len(raw) > most:
        raise ObservationError(f"{type_name}: {len(raw)} bytes, {most} at most.")
    try:
        return load_types().deserialize_cdr(raw, type_name)
    except Exception as error:  # Of bytes that may be anything.
        raise ObservationError(f"{type_name}: does not decode ({type(error).__name__}: {str(error)[:200]}).") from error
