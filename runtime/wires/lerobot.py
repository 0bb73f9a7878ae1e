"""The messages of LeRobot's asynchronous inference, gRPC service ``transport.AsyncInference`` (lerobot 0.6.1)::

    robot ─ Ready(Empty) ─▶                    everything before is forgotten
          ─ SendPolicyInstructions(PolicySetup) ─▶
          ─ SendObservations(Observation ...) ─▶     one observation in pieces of 2 MB: BEGIN, MIDDLE ..., END; one that fits is an END alone
          ─ GetActions(Empty) ─▶  ◀─ Actions         no bytes: nothing was there to answer

A message is protocol buffers around bytes, and the bytes are one of two:

    safe form   u32 length, big-endian; JSON; tensors as in safetensors    as LeRobot's pull request 3048 proposes; what we send, and what is read
    pickle      as LeRobot 0.6.1 sends                                     read without unpickling (`runtime.wires.pickles`), and only where that is allowed

An observation is the robot's flat map: ``{"shoulder_pan.pos": 0.3, "front": uint8 (H, W, 3), "task": "put ..."}``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlet.errors import BundleError, ObservationError, RemoteError, SpecError
from actlet.protocols import Observation
from actlet.specs import ObservationSpec
from runtime.protobuf import fields, length_field, number_field
from runtime.wires.arrays import instruction_in
from runtime.wires.pickles import Array, Record, is_pickle, pickled_actions, read_pickle
from runtime.wires.tensors import pack_tensors, unpack_tensors

__all__ = [
    "BEGIN",
    "END",
    "MIDDLE",
    "PIECE_BYTES",
    "SERVICE",
    "PolicySetup",
    "TimedActions",
    "TimedObservation",
    "data_message",
    "pieces",
    "read_actions",
    "read_data",
    "read_observation",
    "read_piece",
    "read_setup",
]

SERVICE = "transport.AsyncInference"
PIECE_BYTES = 2 * 2**20
BEGIN, MIDDLE, END = 1, 2, 3
_LARGEST_JSON, _MOST_STEPS, _SHOWN = 2**20, 2**53, 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicySetup:
    """What a robot says of itself, and which policy it would like."""

    policy_type: str = "act"
    place: str = "actlet"
    """LeRobot's ``pretrained_name_or_path``; a server of ours has its policy already."""
    features: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """``{"observation.state": {"dtype", "shape", "names"}, "observation.images.front": {...}}``."""
    actions_per_chunk: int = 1
    rename: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The robot's names -> the policy's, as in "observation.images.top" -> "observation.images.front"."""

    def pack(self) -> bytes:
        """In the safe form."""
        features = {key: dict(value) for key, value in self.features.items()}
        return _pack(
            {
                "type": "RemotePolicyConfig",
                "policy_type": self.policy_type,
                "pretrained_name_or_path": self.place,
                "lerobot_features": features,
                "actions_per_chunk": self.actions_per_chunk,
                "device": "cpu",
                "rename_map": dict(self.rename),
            }
        )

    @classmethod
    def of(cls, spec: ObservationSpec, horizon: int) -> PolicySetup:
        """Of a robot that has what a policy sees."""
        features: dict[str, dict[str, Any]] = {
            "observation.state": {"dtype": "float32", "shape": [spec.state_dim], "names": list(spec.state_names)}
        }
        for camera in spec.cameras:
            features[f"observation.images.{camera.name}"] = {"dtype": "image", "shape": [camera.height, camera.width, 3]}
        return cls(features=features, actions_per_chunk=horizon)

    def require(self, spec: ObservationSpec) -> None:
        """Refuse a robot that cannot show the policy what it sees; one that says nothing of itself is looked at with every observation.

        Raises:
            SpecError: A state or camera is missing, or a camera has another size.
        """
        if not self.features:
            return
        names = _words(self.features.get("observation.state", {}).get("names"))
        missing = [name for name in spec.state_names if not {name, f"{name}.pos"} & set(names)]
        if missing:
            raise SpecError(f"the robot's state has {names[:_SHOWN]}; the policy needs {missing[:_SHOWN]} too.")
        for camera in spec.cameras:
            feature = self.features.get(f"observation.images.{_source(camera.name, self.rename)}")
            shape = None if feature is None else _sizes(feature.get("shape"))
            if shape not in ((camera.height, camera.width, 3), (3, camera.height, camera.width)):
                known = sorted(key.removeprefix("observation.images.") for key in self.features if key.startswith("observation.images."))
                has = f"is {shape}" if shape is not None else f"is missing among {known[:_SHOWN]}"
                raise SpecError(
                    f"camera {camera.name!r} {has}: expected {camera.height} x {camera.width} pixels, what the policy was made for."
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimedObservation:
    """What a robot saw."""

    timestamp: float
    """Seconds of the robot's wall clock."""
    timestep: int
    """The step that it is for; its first action is this step's."""
    must_go: bool
    """The robot has no actions left."""
    values: Mapping[str, Any]
    """Name -> number, words, or an array."""

    @classmethod
    def of(cls, observation: Observation, spec: ObservationSpec, instruction: str, *, timestep: int, timestamp: float) -> TimedObservation:
        """An observation of ours."""
        state = {name: float(value) for name, value in zip(spec.state_names, observation.state, strict=True)}
        return cls(timestamp=timestamp, timestep=timestep, must_go=True, values={**state, **observation.images, "task": instruction})

    def pack(self) -> bytes:
        """In the safe form."""
        arrays = {key: value for key, value in self.values.items() if isinstance(value, np.ndarray)}
        scalars = {key: value for key, value in self.values.items() if key not in arrays}
        head = {"type": "TimedObservation", "timestamp": self.timestamp, "timestep": self.timestep, "must_go": self.must_go}
        return _pack({**head, "scalar_data": scalars, "numpy_keys": list(arrays)}, arrays)

    def observation(self, spec: ObservationSpec, rename: Mapping[str, str]) -> tuple[Observation, str]:
        """What the policy sees of it, and the instruction.

        Raises:
            ObservationError: Something is missing, or is not what the specification says.
        """
        state = np.array([self._number(name) for name in spec.state_names], np.float64)
        with np.errstate(over="ignore"):  # 1e300 is finite only until it becomes a float32.
            seen = state.astype(np.float32)
        images = {}
        for camera in spec.cameras:
            frame = self.values.get(_source(camera.name, rename))
            if not isinstance(frame, np.ndarray):
                raise ObservationError(f"camera {camera.name!r} is {type(frame).__name__}: expected an array; {self._known()}.")
            images[camera.name] = frame
        spec.check(images, seen)
        task = instruction_in(self.values.get("task"), "task")
        return Observation({name: np.array(frame) for name, frame in images.items()}, seen), task

    def _number(self, name: str) -> float:
        value = self.values.get(name, self.values.get(f"{name}.pos"))
        if isinstance(value, (np.ndarray, np.generic)) and value.size == 1:
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 1e300:
            raise ObservationError(f"state {name!r} is {type(value).__name__}: expected a finite number; {self._known()}.")
        return float(value)

    def _known(self) -> str:
        return f"the observation has {sorted(self.values)[:_SHOWN]}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimedActions:
    """A chunk, with the steps that its rows are for."""

    timesteps: list[int]
    timestamps: list[float]
    actions: NDArray[np.float32]
    """float32 (H, A)."""

    def pack(self, *, pickled: bool = False) -> bytes:
        """In the safe form, or as LeRobot 0.6.1 reads it."""
        if pickled:
            return pickled_actions(self.actions, self.timesteps, self.timestamps)
        times = [{"timestamp": when, "timestep": step} for step, when in zip(self.timesteps, self.timestamps, strict=True)]
        return _pack({"type": "TimedActions", "actions": times}, {f"action_{i}": row for i, row in enumerate(self.actions)})


def read_setup(data: bytes, *, pickles: bool = False) -> PolicySetup:
    """The bytes of a PolicySetup.

    Args:
        data: In either form.
        pickles: Whether a pickle is read; it is refused otherwise.

    Raises:
        RemoteError: They are not what they should be.
    """
    said, _ = _read(data, "RemotePolicyConfig", pickles)
    features = {str(key): _map(value) for key, value in _map(said.get("lerobot_features")).items()}
    rename = {key: value for key, value in _map(said.get("rename_map")).items() if isinstance(value, str)}
    return PolicySetup(
        policy_type=_text(said, "policy_type"),
        place=_text(said, "pretrained_name_or_path"),
        features=features,
        actions_per_chunk=_whole(said, "actions_per_chunk", least=1),
        rename=rename,
    )


def read_observation(data: bytes, *, pickles: bool = False) -> TimedObservation:
    """The bytes of an Observation; arguments and errors as for `read_setup`."""
    said, arrays = _read(data, "TimedObservation", pickles)
    values = _map(said.get("observation" if is_pickle(data) else "scalar_data"))
    read = {key: value.values if isinstance(value, Array) else value for key, value in values.items()}
    return TimedObservation(
        timestamp=_seconds(said), timestep=_whole(said, "timestep", least=0), must_go=said.get("must_go") is True, values={**read, **arrays}
    )


def read_actions(data: bytes, dim: int) -> TimedActions:
    """The bytes of Actions, in the safe form.

    Args:
        data: What a server sent.
        dim: Values of an action.

    Raises:
        RemoteError: They are not what they should be, or a value is not finite.
    """
    said, arrays = _read(data, "TimedActions", pickles=False)
    times = said.get("actions")
    if not isinstance(times, list) or not times:
        raise RemoteError("the answer holds no list of actions.")
    rows = [arrays.get(f"action_{i}") for i in range(len(times))]
    for row in rows:
        if row is None or row.shape != (dim,) or row.dtype.kind != "f" or not np.isfinite(row).all():
            got = "nothing" if row is None else f"{row.dtype} of shape {row.shape}"
            raise RemoteError(f"an action is {got}: expected {dim} finite floats; the answer is refused.")
    with np.errstate(over="ignore"):  # 1e300 is finite only until it becomes a float32.
        actions = np.stack([np.asarray(row, np.float32) for row in rows])
    if not np.isfinite(actions).all():
        raise RemoteError("an action is not finite in float32; the answer is refused.")
    entries = [_map(entry) for entry in times]
    return TimedActions(
        timesteps=[_whole(entry, "timestep", least=0) for entry in entries],
        timestamps=[_seconds(entry) for entry in entries],
        actions=actions,
    )


def pieces(data: bytes) -> Iterator[bytes]:
    """An observation's bytes as messages that fit."""
    for place in range(0, len(data), PIECE_BYTES):
        state = END if place + PIECE_BYTES >= len(data) else BEGIN if place == 0 else MIDDLE
        yield number_field(1, state) + length_field(2, data[place : place + PIECE_BYTES])


def read_piece(message: bytes) -> tuple[int, bytes]:
    """Which piece of an observation a message is, and its bytes.

    Raises:
        RemoteError: It is none.
    """
    state, data = 0, b""
    for number, value, content, _ in _fields(message):
        state, data = (value or 0, data) if number == 1 else (state, bytes(content)) if number == 2 else (state, data)
    if state not in (BEGIN, MIDDLE, END):
        raise RemoteError(f"a piece of an observation has the state {state}: expected {BEGIN}, {MIDDLE} or {END}.")
    return state, data


def data_message(data: bytes) -> bytes:
    """Bytes as a message that holds nothing else: PolicySetup, Actions."""
    return length_field(1, data) if data else b""


def read_data(message: bytes) -> bytes:
    """The bytes of such a message; none where it is empty.

    Raises:
        RemoteError: It is no message.
    """
    data = b""
    for number, _, content, _ in _fields(message):
        data = bytes(content) if number == 1 else data
    return data


def _fields(message: bytes) -> Iterator[tuple[int, int | None, memoryview, memoryview]]:
    try:
        yield from fields(memoryview(message), "a message")
    except BundleError as error:
        raise RemoteError(f"a message of {len(message)} bytes is not in protocol buffers' format.") from error


def _pack(said: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None) -> bytes:
    text = json.dumps(said).encode()
    return struct.pack(">I", len(text)) + text + (pack_tensors(arrays) if arrays else b"")


def _read(data: bytes, kind: str, pickles: bool) -> tuple[Mapping[str, Any], dict[str, NDArray[Any]]]:
    """What a message says, and its arrays."""
    if is_pickle(data):
        if not pickles:
            raise RemoteError(
                "the message is a pickle, as LeRobot sends them; this server reads the safe form alone. Start it with --allow-pickle to have such pickles read "
                "(nothing in them is run), or send [u32 length][JSON][safetensors]."
            )
        record = read_pickle(data)
        if not isinstance(record, Record) or record.name != kind:
            raise RemoteError(f"a pickle says {record.name if isinstance(record, Record) else type(record).__name__}, expected {kind}.")
        return record.fields, {}
    if len(data) < 4:
        raise RemoteError(f"a message of {len(data)} bytes: expected a length, JSON and tensors.")
    (length,) = struct.unpack_from(">I", data)
    if length > min(_LARGEST_JSON, len(data) - 4):
        raise RemoteError(
            f"a message of {len(data)} bytes says that its JSON has {length}: expected at most {min(_LARGEST_JSON, len(data) - 4)}."
        )
    try:
        said = json.loads(data[4 : 4 + length])
    except (ValueError, RecursionError) as error:
        raise RemoteError(f"a message holds no JSON ({type(error).__name__}).") from error
    if not isinstance(said, dict) or said.get("type") != kind:
        raise RemoteError(f"a message's JSON is not of the type {kind}: it is refused.")
    rest = memoryview(data)[4 + length :]
    return said, unpack_tensors(rest) if len(rest) else {}


def _map(value: Any) -> dict[str, Any]:
    if isinstance(value, Record):
        return value.fields
    return value if isinstance(value, dict) else {}


def _text(said: Mapping[str, Any], key: str) -> str:
    value = said.get(key)
    if not isinstance(value, str) or len(value) > 4096:
        raise RemoteError(f"{key!r} is {type(value).__name__}: expected words.")
    return value


def _whole(said: Mapping[str, Any], key: str, *, least: int) -> int:
    value = said.get(key)
    if type(value) is not int or not least <= value < _MOST_STEPS:
        raise RemoteError(f"{key!r} is {type(value).__name__}: expected a whole number of {least} or more.")
    return value


def _seconds(said: Mapping[str, Any]) -> float:
    value = said.get("timestamp")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e15 or not math.isfinite(value):
        raise RemoteError(f"'timestamp' is {type(value).__name__}: expected seconds.")
    return float(value)


def _source(camera: str, rename: Mapping[str, str]) -> str:
    """The robot's name of a camera."""
    wanted = f"observation.images.{camera}"
    return next((theirs.removeprefix("observation.images.") for theirs, ours in rename.items() if ours == wanted), camera)


def _words(value: Any) -> list[str]:
    """The words of a list; nothing else of whatever it is."""
    return [word for word in value if isinstance(word, str)] if isinstance(value, (list, tuple)) else []


def _sizes(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) and len(value) == 3 and all(type(n) is int for n in value) else ()
