"""runtime.wires.openpi: what openpi's own client packs is read, what we pack it reads, and nothing that contradicts itself is."""

from __future__ import annotations

import contextlib
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from openpi_client import msgpack_numpy  # the original

from actlet.errors import ObservationError, RemoteError
from actlet.protocols import Observation
from actlet.specs import CameraSpec, ObservationSpec
from runtime.wires.openpi import ObservationKeys, pack, unpack

ARRAYS = hnp.arrays(
    dtype=st.sampled_from(["uint8", "int64", "float16", "float32", ">f8", "bool"]),
    shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0),
)
LIBERO = ObservationSpec(
    cameras=(CameraSpec(name="front", height=4, width=6), CameraSpec(name="wrist", height=2, width=2)),
    state_names=tuple("abcdefgh"),
    state_units=("1",) * 8,
)
LIBERO_KEYS = ObservationKeys(images={"front": "observation/image", "wrist": "observation/wrist_image"}, state={"observation/state": 8})


@given(ARRAYS)
def test_arrays_survive_both_ways(array: np.ndarray) -> None:
    """Ours to theirs, theirs to ours, and ours to ours, bit for bit; what we read can be written to."""
    for message in (unpack(pack({"x": array})), unpack(msgpack_numpy.packb({"x": array})), msgpack_numpy.unpackb(pack({"x": array}))):
        np.testing.assert_array_equal(message["x"], array)
        assert message["x"].shape == array.shape
    assert unpack(pack({"x": array}))["x"].flags.writeable


@given(st.binary(max_size=200))
def test_bytes_that_are_not_a_message_are_refused(frame: bytes) -> None:
    """Whatever the bytes, the answer is a map or a RemoteError."""
    with contextlib.suppress(RemoteError):
        assert isinstance(unpack(frame), dict)


def _array(**changes: Any) -> bytes:
    return msgpack.packb(
        {"x": {b"__ndarray__": True, b"data": b"\0" * 8, b"dtype": "<f4", b"shape": [2], **{k.encode(): v for k, v in changes.items()}}}
    )


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (_array(dtype="|O"), r"dtype is '\|O'"),
        (_array(dtype="<c8"), "dtype is '<c8'"),
        (_array(dtype="no such"), "dtype is 'no such'"),
        (_array(dtype="(2,)<f4"), r"dtype is '\(2,\)<f4'"),
        (_array(dtype=7), "dtype is 7"),
        (_array(shape=[3]), r"shape \(3,\) holds 8 bytes: expected 12 bytes"),
        (_array(shape=[-2]), r"shape is \[-2\]"),
        (_array(shape=[1] * 9), "expected up to 8 whole numbers"),
        (_array(shape=[2**40, 2**40]), "expected 4835703278458516698824704 bytes"),
        (_array(data="words"), "holds str"),
        (msgpack.packb([1, 2]), "holds list, expected a map"),
        (msgpack.packb({"x": {b"__npgeneric__": True, b"dtype": "<f4", b"data": "words"}}), "a number cannot be read"),
        ("Traceback: it broke", "reports an error: Traceback: it broke"),
    ],
)
def test_arrays_that_contradict_themselves_are_refused(frame: bytes | str, message: str) -> None:
    """The message says what is wrong with it."""
    with pytest.raises(RemoteError, match=message):
        unpack(frame)


def test_nothing_but_numbers_is_sent() -> None:
    """Objects would need pickle."""
    with pytest.raises(RemoteError, match="array of object cannot be sent"):
        pack({"x": np.array([None])})


def test_an_observation_travels_under_the_names_of_its_embodiment() -> None:
    """LIBERO's keys; and a state that is sent in two pieces, as for DROID."""
    rng = np.random.default_rng(0)
    images = {"front": rng.integers(0, 256, (4, 6, 3), dtype=np.uint8), "wrist": rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)}
    observation = Observation(images, np.arange(8, dtype=np.float32))
    for keys in (LIBERO_KEYS, ObservationKeys(images=LIBERO_KEYS.images, state={"joints": 7, "gripper": 1}, prompt="task")):
        message = unpack(pack(keys.message(observation, "lift it")))
        assert set(message) == {*keys.images.values(), *keys.state, keys.prompt}
        read, instruction = keys.observation({**message, "more": 1}, LIBERO)
        assert instruction == "lift it"
        np.testing.assert_array_equal(read.state, observation.state)
        for name, frame in images.items():
            np.testing.assert_array_equal(read.images[name], frame)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": None}, "missing: .'prompt'."),
        ({"prompt": "  "}, "expected words"),
        ({"prompt": "put " * 2000}, "8000 characters: expected at most 4096"),
        ({"observation/image": None}, "missing: .'observation/image'."),
        ({"observation/image": "a picture"}, "'observation/image' is str: expected an array"),
        ({"observation/image": np.zeros((6, 4, 3), np.uint8)}, "front"),
        ({"observation/image": np.zeros((4, 6, 3), np.float32)}, "front"),
        ({"observation/state": np.zeros(7)}, r"of shape \(7,\): expected 8 numbers"),
        ({"observation/state": [0.0, "x"]}, "is list: expected 8 numbers"),
        ({"observation/state": np.full(8, np.nan)}, "not finite"),
    ],
)
def test_what_is_not_the_observation_is_refused(changes: dict[str, Any], message: str) -> None:
    """The message names the key or the camera."""
    whole = LIBERO_KEYS.message(
        Observation({"front": np.zeros((4, 6, 3), np.uint8), "wrist": np.zeros((2, 2, 3), np.uint8)}, np.zeros(8, np.float32)), "go"
    )
    whole = {key: value for key, value in {**whole, **changes}.items() if value is not None}
    with pytest.raises(ObservationError, match=message):
        LIBERO_KEYS.observation(whole, LIBERO)


def test_what_is_on_its_way_travels_too() -> None:
    """The next commands as they are; without any there is no such key, and what is none is refused."""
    images = {camera.name: np.zeros((camera.height, camera.width, 3), np.uint8) for camera in LIBERO.cameras}
    committed = np.float32([[0.1, 0.2], [0.3, 0.4]])
    seen = Observation(images, np.zeros(8, np.float32), committed)
    message = unpack(pack(LIBERO_KEYS.message(seen, "go")))
    np.testing.assert_array_equal(LIBERO_KEYS.observation(message, LIBERO)[0].committed, committed)
    assert "committed" not in LIBERO_KEYS.message(Observation(images, seen.state), "go")
    for bad in (np.float32([1, 2]), np.float32([[np.nan, 0]]), np.array([[1, 2]]), "now"):
        with pytest.raises(ObservationError, match="committed"):
            LIBERO_KEYS.observation({**message, "committed": bad}, LIBERO)
