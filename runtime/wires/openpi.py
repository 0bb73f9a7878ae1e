"""The openpi websocket's messages: msgpack maps, with numpy arrays as maps of their own.

    client ─ connects ─▶ server
           ◀─ metadata ─                      (the server speaks first)
           ─ observation, prompt ─▶           one binary frame each, in lock-step
           ◀─ {"actions": (H, D), ...} ─      or a text frame: what went wrong

An array is ``{b"__ndarray__": true, b"data": bytes, b"dtype": "<f4", b"shape": [...]}`` (openpi-client 0.1.2). Upstream trusts
what it reads; here a frame that is not such a map, an array of objects, or one whose bytes do not fill its shape is refused.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlet.errors import MissingExtraError, ObservationError, RemoteError, SpecError
from actlet.protocols import Observation
from actlet.specs import ObservationSpec
from runtime.wires.arrays import KINDS, instruction_in, numeric_dtype

__all__ = ["COMMITTED_KEY", "DISTRIBUTION_KEY", "ObservationKeys", "pack", "unpack"]

DISTRIBUTION_KEY = "action_distribution"
"""In a question, True: answer with the distribution over the bins instead of actions. In the answer: floats (A, K). actlet's own."""

COMMITTED_KEY = "committed"
"""In a question: floats (d, A), what is on its way (`Observation.committed`), for a policy that is told. actlet's own."""

_LARGEST_RANK = 8


def pack(message: Mapping[str, Any]) -> bytes:
    """A message as one frame."""
    packed: bytes = _msgpack().packb(message, default=_pack_array)
    return packed


def unpack(frame: bytes | str) -> dict[str, Any]:
    """One frame as a message; arrays are copies.

    Raises:
        RemoteError: A text frame (the other side's error), no msgpack map with names as keys, or an array that contradicts itself.
    """
    if isinstance(frame, str):
        raise RemoteError(f"the other side reports an error: {frame.strip()[-2000:]}")
    try:
        message = _msgpack().unpackb(frame, object_hook=_unpack_array)
    except RemoteError:
        raise
    except Exception as error:  # msgpack raises a dozen types on bytes that are not its own
        raise RemoteError(
            f"a frame of {len(frame)} bytes is not msgpack ({type(error).__name__}: {error}); is it an openpi server?"
        ) from error
    if not isinstance(message, dict):
        raise RemoteError(f"a frame holds {type(message).__name__}, expected a map.")
    return message


def _pack_array(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        if value.dtype.kind not in KINDS:
            raise RemoteError(f"an array of {value.dtype} cannot be sent: expected booleans, integers or floats.")
        if isinstance(value, np.generic):
            return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    raise TypeError(f"{type(value).__name__} cannot be sent")


def _unpack_array(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" in value:
        dtype, shape, data = numeric_dtype(value.get(b"dtype")), value.get(b"shape"), value.get(b"data")
        if not isinstance(shape, (list, tuple)) or len(shape) > _LARGEST_RANK or not all(isinstance(n, int) and n >= 0 for n in shape):
            raise RemoteError(f"an array's shape is {shape!r}: expected up to {_LARGEST_RANK} whole numbers.")
        if not isinstance(data, bytes) or len(data) != math.prod(shape) * dtype.itemsize:
            held = f"{len(data)} bytes" if isinstance(data, bytes) else type(data).__name__
            raise RemoteError(
                f"an array of {dtype} and shape {tuple(shape)} holds {held}: expected {math.prod(shape) * dtype.itemsize} bytes."
            )
        return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="))
    if b"__npgeneric__" in value:
        try:
            return numeric_dtype(value.get(b"dtype")).type(value.get(b"data"))
        except (TypeError, ValueError, OverflowError) as error:
            raise RemoteError(f"a number cannot be read: {error}") from error
    return value


def _msgpack() -> Any:
    try:
        import msgpack
    except ModuleNotFoundError as error:
        raise MissingExtraError("msgpack", "remote", "a policy over the network") from error
    return msgpack


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObservationKeys:
    """Under which names an observation travels. openpi's own policies differ by embodiment; for LIBERO it is::

    ObservationKeys(images={"front": "observation/image", "wrist": "observation/wrist_image"}, state={"observation/state": 8})
    """

    images: Mapping[str, str]
    """Camera name -> key of its frame."""
    state: Mapping[str, int]
    """Key -> how many entries of the state it holds, in the state's order."""
    prompt: str = "prompt"
    """Key of the instruction."""

    @classmethod
    def of(cls, spec: ObservationSpec) -> ObservationKeys:
        """The names that `actlet serve` uses: "observation/<camera>" and "observation/state"."""
        return cls(
            images={camera.name: f"observation/{camera.name}" for camera in spec.cameras}, state={"observation/state": spec.state_dim}
        )

    def require_all(self, spec: ObservationSpec) -> None:
        """Refuse names that leave a camera or a part of the state out, or name what is not there.

        Raises:
            SpecError: They do.
        """
        cameras = {camera.name for camera in spec.cameras}
        if set(self.images) != cameras or sum(self.state.values()) != spec.state_dim:
            raise SpecError(
                f"observation keys: cameras {sorted(self.images)} and {sum(self.state.values())} entries of state; "
                f"expected cameras {sorted(cameras)} and {spec.state_dim} entries: give every part a key."
            )

    def message(self, observation: Observation, instruction: str) -> dict[str, Any]:
        """An observation as a message."""
        pieces = np.split(observation.state, np.cumsum(list(self.state.values()))[:-1])
        told = observation.committed is not None and len(observation.committed) > 0
        return {
            **{key: observation.images[camera] for camera, key in self.images.items()},
            **dict(zip(self.state, pieces, strict=True)),
            self.prompt: instruction,
            **({COMMITTED_KEY: observation.committed} if told else {}),
        }

    def observation(self, message: Mapping[str, Any], spec: ObservationSpec) -> tuple[Observation, str]:
        """A message as an observation and its instruction; other keys are ignored, as upstream does.

        Raises:
            ObservationError: A key is missing, or holds something else than the specification says.
        """
        wanted = [*self.images.values(), *self.state, self.prompt]
        missing = [key for key in wanted if key not in message]
        if missing:
            raise ObservationError(f"the message has the keys {sorted(map(str, message))}; missing: {missing}.")
        instruction = instruction_in(message[self.prompt], self.prompt)
        images = {camera: _array(message, key) for camera, key in self.images.items()}
        state = np.concatenate([_vector(message, key, count) for key, count in self.state.items()])
        spec.check(images, state)
        return Observation(images, state, _committed(message)), instruction


def _committed(message: Mapping[str, Any]) -> NDArray[np.float32] | None:
    if COMMITTED_KEY not in message:
        return None
    value = _array(message, COMMITTED_KEY)
    if value.ndim != 2 or value.dtype.kind != "f" or not np.isfinite(value).all():
        raise ObservationError(f"{COMMITTED_KEY!r} is {value.dtype} of shape {value.shape}: expected finite floats (d, A).")
    return value.astype(np.float32)


def _array(message: Mapping[str, Any], key: str) -> NDArray[Any]:
    value = message[key]
    if not isinstance(value, np.ndarray):
        raise ObservationError(f"{key!r} is {type(value).__name__}: expected an array.")
    return value


def _vector(message: Mapping[str, Any], key: str, count: int) -> NDArray[np.float32]:
    value = message[key]
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = np.asarray(value, np.float32) if all(isinstance(x, (int, float)) for x in value) else None
    if not isinstance(value, np.ndarray) or value.shape != (count,):
        got = f"of shape {value.shape}" if isinstance(value, np.ndarray) else type(message[key]).__name__
        raise ObservationError(f"{key!r} is {got}: expected {count} numbers.")
    return value.astype(np.float32)
