"""Bytes of ROS 2's messages, names and marks: against pycdr2, which knows nothing of rosbags, and against bytes written out by hand."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import ros_peer
import zenoh.ext
from hypothesis import given, settings
from hypothesis import strategies as st
from rosbags.typesys import Stores, get_typestore

from actlet.errors import ObservationError, SpecError
from actlet.specs import CameraSpec
from runtime.robots import ros_messages as messages
from runtime.robots.rmw_zenoh import Qos, TopicName, attachment, gid, node_token, require_name, require_topic

CAMERA = CameraSpec(name="front", height=6, width=8)
FRAME = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
HASHES = {
    messages.JOINT_STATE: ros_peer.JOINT_STATE_HASH,
    messages.IMAGE: ros_peer.IMAGE_HASH,
    messages.JOINT_TRAJECTORY: ros_peer.TRAJECTORY_HASH,
}


def test_a_joint_state_byte_by_byte() -> None:
    """Little-endian CDR with plain alignment: encapsulation, stamp, frame, names with their zero bytes, three sequences."""
    raw = messages.encode_joint_state(["a", "bcd"], "position", np.array([0.5, -2.0], np.float32), 7 * 10**9 + 9)
    expected = b"\x00\x01\x00\x00" + struct.pack("<iI", 7, 9)  # CDR_LE; sec, nanosec
    expected += struct.pack("<I", 1) + b"\0" + b"\0" * 3  # frame_id: one byte of length 1, padded
    expected += struct.pack("<I", 2) + struct.pack("<I", 2) + b"a\0" + b"\0" * 2 + struct.pack("<I", 4) + b"bcd\0"
    expected += struct.pack("<I", 2)
    assert (len(expected) - 4) % 8 == 0  # Doubles begin at a multiple of 8 after the encapsulation: here they do.
    expected += struct.pack("<dd", 0.5, -2.0) + struct.pack("<II", 0, 0)
    assert raw == expected


def test_a_joint_trajectory_byte_by_byte() -> None:
    """One point with its time, and a stamp of zero."""
    raw = messages.encode_joint_trajectory(["joint"], "velocity", np.array([0.25], np.float32), 1.5)
    expected = b"\x00\x01\x00\x00" + struct.pack("<iI", 0, 0) + struct.pack("<I", 1) + b"\0" + b"\0" * 3
    expected += struct.pack("<I", 1) + struct.pack("<I", 6) + b"joint\0" + b"\0" * 2  # joint_names
    expected += struct.pack("<I", 1) + struct.pack("<I", 0)  # one point; no positions
    expected += struct.pack("<I", 1)
    assert (len(expected) - 4) % 8 == 4  # Doubles begin at a multiple of 8 after the encapsulation: here they need four bytes.
    expected += b"\0" * 4 + struct.pack("<d", 0.25)  # velocities
    expected += struct.pack("<II", 0, 0) + struct.pack("<iI", 1, 500_000_000)
    assert raw == expected


def test_an_image_byte_by_byte() -> None:
    """Written by hand, two padded rows of two pixels, big-endian and little-endian."""
    for order, mark in (("<", b"\x00\x01"), (">", b"\x00\x00")):
        raw = mark + b"\0\0" + struct.pack(order + "iI", 1, 2) + struct.pack(order + "I", 4) + b"cam\0"
        raw += struct.pack(order + "II", 2, 2) + struct.pack(order + "I", 5) + b"bgr8\0" + b"\0"  # is_bigendian is the byte after the text
        raw += b"\0" * (-(len(raw) - 4) % 4) + struct.pack(order + "I", 8) + struct.pack(order + "I", 16)
        raw += bytes([1, 2, 3, 4, 5, 6, 99, 99, 7, 8, 9, 10, 11, 12, 99, 99])
        frame = messages.decode_image(raw, CameraSpec(name="x", height=2, width=2))
        assert frame.tolist() == [[[3, 2, 1], [6, 5, 4]], [[9, 8, 7], [12, 11, 10]]]


@given(
    st.lists(st.text("abc_é", min_size=1, max_size=9), min_size=1, max_size=8, unique=True),
    st.sampled_from(["position", "velocity"]),
    st.floats(0.5, 100, width=32),
    st.integers(0, 2**31 * 10**9 - 1),
)
@settings(max_examples=60, deadline=None)
def test_what_is_sent_is_what_pycdr2_writes(names: list[str], quantity: str, value: float, time_ns: int) -> None:
    """JointState and JointTrajectory, byte by byte, for any names."""
    values = np.full(len(names), value, np.float32)
    doubles = [float(entry) for entry in values]
    first, second = (doubles, []) if quantity == "position" else ([], doubles)
    state = ros_peer.JointState(ros_peer.header(time_ns // 10**9, time_ns % 10**9), names, first, second, [])
    assert messages.encode_joint_state(names, quantity, values, time_ns) == state.serialize()
    after = ros_peer.Duration(sec=2, nanosec=250_000_000)
    point = ros_peer.JointTrajectoryPoint(first, second, [], [], after)
    assert (
        messages.encode_joint_trajectory(names, quantity, values, 2.25)
        == ros_peer.JointTrajectory(ros_peer.header(), names, [point]).serialize()
    )


@given(st.sampled_from(["rgb8", "bgr8"]), st.integers(0, 40))
@settings(max_examples=30, deadline=None)
def test_images_come_as_they_were_taken(encoding: str, padding: int) -> None:
    """Both orders of colours and any padding of rows; the frame is a copy of its own."""
    raw = ros_peer.image(FRAME if encoding == "rgb8" else FRAME[..., ::-1], encoding, padding)
    frame = messages.decode_image(raw, CAMERA)
    assert np.array_equal(frame, FRAME)
    assert (frame.dtype, frame.flags.owndata, frame.flags.writeable, frame.flags.c_contiguous) == (np.uint8, True, True, True)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (ros_peer.image(FRAME[..., :1], "mono8"), "camera 'front': encoding 'mono8', expected 'rgb8' or 'bgr8': set the camera driver's"),
        (ros_peer.image(FRAME, "rgba8"), "encoding 'rgba8'"),
        (ros_peer.image(FRAME[:3]), "3x8, expected 6x8; nothing is resized here: set the camera driver's size"),
        (ros_peer.image(FRAME)[:-5], "does not decode"),
        (ros_peer.image(FRAME, padding=messages.largest_image(CAMERA)), r"Image: \d+ bytes, \d+ at most"),
        (
            ros_peer.Image(ros_peer.header(), 6, 8, "rgb8", 0, 23, [0] * 138).serialize(),
            "138 bytes in rows of 23, expected 6 rows of at least 24",
        ),
        (ros_peer.Image(ros_peer.header(), 6, 8, "rgb8", 0, 30, [0] * 179).serialize(), "179 bytes in rows of 30"),
        (ros_peer.Image(ros_peer.header(), 6, 8, "rgb8", 0, 2**32 - 1, [0] * 144).serialize(), "144 bytes in rows of 4294967295"),
        (b"", "does not decode"),
        (b"\x00\x03" + ros_peer.image(FRAME)[2:], "does not decode"),  # parameter lists
        (ros_peer.joint_state({"a": 1.0}), "does not decode"),
    ],
)
def test_an_image_that_is_none_is_refused(raw: bytes, message: str) -> None:
    """In words, and never with another error."""
    with pytest.raises(ObservationError, match=message):
        messages.decode_image(raw, CAMERA)


def test_joint_states_are_read_by_name() -> None:
    """What is not said is None, what is not finite is passed on."""
    raw = ros_peer.joint_state({"a": 1.5, "b": float("nan")})
    joints = messages.decode_joint_state(raw)
    assert joints["a"] == messages.Joint(1.5, None)
    assert np.isnan(joints["b"].position)
    joints = messages.decode_joint_state(ros_peer.JointState(ros_peer.header(), ["a"], [], [0.5], []).serialize())
    assert joints == {"a": messages.Joint(None, 0.5)}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (ros_peer.JointState(ros_peer.header(), ["a", "a"], [1.0, 2.0], [], []).serialize(), r"a joint is named twice: \['a', 'a'\]"),
        (
            ros_peer.JointState(ros_peer.header(), ["a", "b"], [1.0], [], []).serialize(),
            "1 values of position for 2 joints, expected one each, or none",
        ),
        (ros_peer.JointState(ros_peer.header(), ["a"], [1.0], [], [1.0, 2.0]).serialize(), "2 values of effort for 1 joints"),
        (ros_peer.joint_state({"a" * 2**16: 1.0}), "65[0-9]* bytes, 65536 at most"),
        (ros_peer.joint_state({"a": 1.0})[:20], "does not decode"),
        (b"\0\1\0\0" + b"\xff" * 200, "does not decode"),
    ],
)
def test_a_joint_state_that_is_none_is_refused(raw: bytes, message: str) -> None:
    """In words, and never with another error."""
    with pytest.raises(ObservationError, match=message):
        messages.decode_joint_state(raw)


@given(st.binary(max_size=300), st.integers(0, 400), st.integers(0, 255))
@settings(max_examples=400, deadline=None)
def test_any_bytes_are_a_message_or_one_error(noise: bytes, place: int, value: int) -> None:
    """Noise, and sound messages with a byte changed or cut off."""
    for sound, decode in (
        (ros_peer.joint_state({"a": 1.0, "bcde": 2.0}), messages.decode_joint_state),
        (ros_peer.image(FRAME), lambda raw: messages.decode_image(raw, CAMERA)),
    ):
        changed = bytearray(sound)
        changed[place % len(sound)] = value
        for raw in (noise, b"\0\1\0\0" + noise, bytes(changed), sound[: place % len(sound)]):
            try:
                decode(raw)
            except ObservationError:
                continue


@pytest.mark.parametrize("store", [store for store in Stores if store.name.startswith("ROS2_")], ids=lambda store: store.name)
def test_the_types_are_the_same_in_every_ros_2(store: Stores) -> None:
    """By their RIHS01, so that one set of types stands for all."""
    types = get_typestore(store)
    for name, expected in HASHES.items():
        assert messages.type_hash(name) == types.hash_rihs01(name) == expected


def test_keys_and_tokens_are_as_rmw_zenoh_writes_them() -> None:
    """The examples of rmw_zenoh's design.md, and a topic inside a namespace."""
    string = "RIHS01_df668c740482bbd48fb39d76a70dfd4bd59db1288021743503259e948f6b1a18"
    chatter = TopicName(domain_id=2, name="/chatter", type_name="std_msgs/msg/String", type_hash=string)
    assert chatter.key == f"2/chatter/std_msgs::msg::dds_::String_/{string}"
    assert (
        node_token(2, "aac3178e146ba6f1fc6e6a4085e77f21", "listener") == "@ros2_lv/2/aac3178e146ba6f1fc6e6a4085e77f21/0/0/NN/%/%/listener"
    )
    assert (
        chatter.token("aac3178e146ba6f1fc6e6a4085e77f21", "listener", 10, "MS", Qos(reliable=True, depth=10))
        == f"@ros2_lv/2/aac3178e146ba6f1fc6e6a4085e77f21/0/10/MS/%/%/listener/%chatter/std_msgs::msg::dds_::String_/{string}/::,10:,:,:,,"
    )
    assert (
        chatter.token("8b20917502ee955ac4476e0266340d5c", "talker", 10, "MP", Qos(reliable=True, depth=7))
        == f"@ros2_lv/2/8b20917502ee955ac4476e0266340d5c/0/10/MP/%/%/talker/%chatter/std_msgs::msg::dds_::String_/{string}/::,7:,:,:,,"
    )
    image = TopicName(domain_id=0, name="/camera/image_raw", type_name="sensor_msgs/msg/Image", type_hash=ros_peer.IMAGE_HASH)
    assert image.key == ros_peer.IMAGE_KEY
    token = image.token("1f", "actlet", 3, "MS", Qos(reliable=False, depth=1))
    assert token == f"@ros2_lv/0/1f/0/3/MS/%/%/actlet/%camera%image_raw/sensor_msgs::msg::dds_::Image_/{ros_peer.IMAGE_HASH}/2::,1:,:,:,,"


def test_attachments_are_as_zenoh_serializes_them() -> None:
    """Two numbers and an array of bytes, as Zenoh's own serializer writes them, and byte by byte."""
    mark = bytes(range(16))
    raw = attachment(3, 0x0102030405060708, mark)
    assert raw == b"\x03" + b"\0" * 7 + bytes.fromhex("0807060504030201") + b"\x10" + mark
    number = zenoh.ext.Int64
    parts = [zenoh.ext.z_serialize(entry).to_bytes() for entry in (number(3), number(0x0102030405060708), mark)]
    assert raw == b"".join(parts)
    assert len(gid("a")) == 16
    assert gid("a") != gid("b")


@pytest.mark.parametrize("name", ["", "/", "joint_states", "/a//b", "/a/", "/a/**", "/a b", "/1a", "/a/$*", "/a?b"])
def test_what_is_no_topic_is_refused(name: str) -> None:
    """Nothing that Zenoh would take for a pattern passes."""
    with pytest.raises(SpecError, match=r"topic .*: expected a full name of letters"):
        require_topic(name)
    require_topic("/a/B_1")


@pytest.mark.parametrize("name", ["", "/", "a/b", "a b", "1a", "*"])
def test_what_is_no_node_is_refused(name: str) -> None:
    """It stands in a key, too."""
    with pytest.raises(SpecError, match=r"node .*: expected a name of letters"):
        require_name(name)
