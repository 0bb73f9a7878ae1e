"""runtime.wires.lerobot, pickles and tensors: what LeRobot, torch, numpy and safetensors write is read, and nothing hostile is run, or takes memory or time.

Pickles are made by pickle itself, of real arrays and tensors; classes of LeRobot's names stand in for its own, which tests/test_runtime_lerobot_peers.py uses.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import io
import os
import pickle
import random
import resource
import struct
import sys
import time
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_SPEC
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load, save  # the original

from actlet.errors import ObservationError, RemoteError, SpecError
from benchmarks.fault_messages import damage
from runtime.wires.lerobot import (
    PIECE_BYTES,
    PolicySetup,
    TimedActions,
    TimedObservation,
    data_message,
    pieces,
    read_actions,
    read_data,
    read_observation,
    read_piece,
    read_setup,
)
from runtime.wires.pickles import pickled_actions, read_pickle
from runtime.wires.tensors import pack_tensors, unpack_tensors

FRAME = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
VALUES = {"x": 1.5, "y.pos": np.float32(-2.5), "grip": np.float64(0.25), "front": FRAME, "task": "put the cup"}


@pytest.fixture(scope="module")
def helpers() -> Iterator[types.SimpleNamespace]:
    """Classes that pickle under LeRobot's names."""
    modules = {name: types.ModuleType(name) for name in ("lerobot", "lerobot.async_inference", "lerobot.async_inference.helpers")}
    modules |= {name: types.ModuleType(name) for name in ("lerobot.configs", "lerobot.configs.types")}
    made: dict[str, Any] = {}
    for name, attributes in (
        ("TimedObservation", ["timestamp", "timestep", "observation", "must_go"]),
        ("TimedAction", ["timestamp", "timestep", "action"]),
        ("RemotePolicyConfig", ["policy_type", "pretrained_name_or_path", "lerobot_features", "actions_per_chunk", "device", "rename_map"]),
        ("PolicyFeature", ["type", "shape"]),
    ):
        made[name] = dataclasses.make_dataclass(name, attributes)
        place = "lerobot.configs.types" if name == "PolicyFeature" else "lerobot.async_inference.helpers"
        made[name].__module__ = place
        setattr(modules[place], name, made[name])
    made["FeatureType"] = enum.Enum("FeatureType", {"STATE": "STATE", "VISUAL": "VISUAL"}, module="lerobot.configs.types")
    modules["lerobot.configs.types"].FeatureType = made["FeatureType"]  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        yield types.SimpleNamespace(**made)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_pickles_of_observations_are_read(helpers: types.SimpleNamespace, protocol: int) -> None:
    """Numbers of python and numpy, arrays in both orders, tensors, words, from every protocol that LeRobot's Pythons write."""
    values = {
        **VALUES,
        "columns": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "tensor": torch.arange(24, dtype=torch.uint8).reshape(2, 4, 3),
        "half": torch.arange(4, dtype=torch.float16),
        "slice": torch.arange(12.0).reshape(3, 4)[1],
        "flag": True,
        "none": None,
    }
    data = pickle.dumps(helpers.TimedObservation(12.5, 7, values, True), protocol=protocol)
    seen = read_observation(data, pickles=True)
    assert (seen.timestamp, seen.timestep, seen.must_go) == (12.5, 7, True)
    for key, value in values.items():
        wanted = value.numpy() if isinstance(value, torch.Tensor) else value
        np.testing.assert_array_equal(seen.values[key], wanted)
    observation, task = seen.observation(TINY_SPEC.observation, {})
    np.testing.assert_array_equal(observation.state, np.float32([1.5, -2.5, 0.25]))
    np.testing.assert_array_equal(observation.images["front"], FRAME)
    assert observation.images["front"].flags.writeable
    assert task == "put the cup"


def test_pickles_of_setups_are_read(helpers: types.SimpleNamespace) -> None:
    """Features as maps and as LeRobot's own objects."""
    features = {
        "observation.state": {"dtype": "float32", "shape": (3,), "names": ["x", "y.pos", "grip"]},
        "observation.images.top": helpers.PolicyFeature(helpers.FeatureType.VISUAL, (3, 6, 8)),
    }
    config = helpers.RemotePolicyConfig(
        "smolvla", "some/where", features, 50, "cuda", {"observation.images.top": "observation.images.front"}
    )
    setup = read_setup(pickle.dumps(config), pickles=True)
    assert (setup.policy_type, setup.place, setup.actions_per_chunk) == ("smolvla", "some/where", 50)
    assert setup.features["observation.images.top"] == {"type": "VISUAL", "shape": (3, 6, 8)}
    setup.require(TINY_SPEC.observation)


def test_our_pickle_of_actions_is_unpickled_as_lerobots_is(helpers: types.SimpleNamespace) -> None:
    """By pickle and torch themselves: float32 tensors that own their values."""
    actions = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    read = pickle.loads(pickled_actions(actions, list(range(300, 306)), [0.1 * i for i in range(6)]))
    assert [(type(action).__name__, action.timestep) for action in read] == [("TimedAction", 300 + i) for i in range(6)]
    assert [action.timestamp for action in read] == [0.1 * i for i in range(6)]
    for action, row in zip(read, actions, strict=True):
        assert action.action.dtype == torch.float32
        np.testing.assert_array_equal(action.action.numpy(), row)
    mine = read_pickle(pickle.dumps(read))
    np.testing.assert_array_equal(mine[5].fields["action"].values, actions[5])


ARRAYS = hnp.arrays(
    dtype=st.sampled_from(["uint8", "int64", "float16", "float32", ">f8", "bool", "int16"]),
    shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0),
)


@given(st.dictionaries(st.text(max_size=5).filter(lambda key: key != "__metadata__"), ARRAYS, max_size=3))
def test_tensors_are_those_of_safetensors(arrays: dict[str, np.ndarray]) -> None:
    """Ours to theirs, theirs to ours, bit for bit."""
    ours = load(pack_tensors(arrays))
    theirs = unpack_tensors(save({key: np.ascontiguousarray(value, value.dtype.newbyteorder("<")) for key, value in arrays.items()}))
    assert set(ours) == set(theirs) == set(arrays)
    for key, array in arrays.items():
        for read in (ours[key], theirs[key]):
            np.testing.assert_array_equal(read, array)


def header(**entry: Any) -> bytes:
    import json

    text = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **entry}}).encode()
    return struct.pack("<Q", len(text)) + text + b"\0" * 8


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (header(dtype="BF16"), "type 'BF16'"),
        (header(shape=[3]), "expected 12"),
        (header(shape=[-2]), "whole numbers"),
        (header(shape=[2**40, 2**40]), "whole numbers"),
        (header(shape=[1] * 9), "up to 8"),
        (header(data_offsets=[4, 12]), "has 8 bytes"),
        (header(data_offsets=[0]), "format of safetensors"),
        (struct.pack("<Q", 2**60), "a header of"),
        (b"\x01\0", "format of safetensors"),
        (struct.pack("<Q", 2) + b"[]", "format of safetensors"),
    ],
)
def test_tensors_that_contradict_themselves_are_refused(data: bytes, message: str) -> None:
    """Before any memory is taken."""
    with pytest.raises(RemoteError, match=message):
        unpack_tensors(data)


def test_the_safe_form_goes_both_ways() -> None:
    """Setup, observation and actions come back as they were; in pieces of 2 MB, the last of which says so."""
    setup = PolicySetup.of(TINY_SPEC.observation, 6)
    assert read_setup(read_data(data_message(setup.pack()))) == setup
    setup.require(TINY_SPEC.observation)
    frame = np.zeros((1500, 1000, 3), np.uint8)
    seen = TimedObservation(timestamp=3.5, timestep=12, must_go=True, values={**VALUES, "y.pos": -2.5, "front": frame})
    sent = list(pieces(seen.pack()))
    assert [read_piece(message)[0] for message in sent] == [1, 2, 3]
    assert all(len(message) <= PIECE_BYTES + 16 for message in sent)
    read = read_observation(b"".join(read_piece(message)[1] for message in sent))
    assert dataclasses.replace(read, values={}) == dataclasses.replace(seen, values={})
    np.testing.assert_array_equal(read.values["front"], frame)
    assert [read_piece(message)[0] for message in pieces(b"x")] == [3]
    actions = TimedActions(timesteps=[4, 5], timestamps=[0.5, 0.6], actions=np.float32([[1, 2], [3, 4]]))
    again = read_actions(actions.pack(), 2)
    assert (again.timesteps, again.timestamps) == (actions.timesteps, actions.timestamps)
    np.testing.assert_array_equal(again.actions, actions.actions)
    assert read_data(b"") == b""


class Runs:
    """Leaves a trace if it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.what = (function, arguments)

    def __reduce__(self) -> Any:
        return self.what


def torch_file(function: Any) -> bytes:
    """A storage's bytes whose first pickle runs something."""
    buffer = io.BytesIO()
    pickle.dump(Runs(function, "touch /tmp/run"), buffer)
    return buffer.getvalue()


def pushes(count: int) -> bytes:
    return b"\x80\x04" + b"]" * count + b"."


FRAMED = b"\x80\x04"
LIST_OF_LISTS = b"]q\0" + b"".join(b"](" + 8 * bytes([0x68, i]) + b"e" + bytes([0x71, i + 1]) for i in range(60))  # 8**60 in the last one.
HOSTILE = {
    "os.system": (pickle.dumps(Runs(os.system, "touch /tmp/run")), "posix.system"),
    "builtins.eval": (pickle.dumps(Runs(eval, "1")), "builtins.eval"),
    "builtins.eval, protocol 0": (pickle.dumps(Runs(eval, "1"), protocol=0), "opcode|begin|JSON|length"),
    "in a field": (b"\x80\x04clerobot.async_inference.helpers\nTimedObservation\n)\x81}X\x01\0\0\0acos\nsystem\nsb.", "os.system"),
    "numpy's own loader": (b"\x80\x04cnumpy.lib.npyio\nload\n.", "numpy.lib.npyio.load"),
    "torch's loader": (b"\x80\x04ctorch\nload\n.", "torch.load"),
    "a pickle in a storage": (
        b"\x80\x04ctorch.storage\n_load_from_bytes\n" + pickle.dumps(torch_file(os.system))[2:-1] + b"\x85R.",
        "opcode|names",
    ),
    "a record that is called": (b"\x80\x04clerobot.async_inference.helpers\nTimedObservation\n)R.", "calls what cannot be called"),
    "an attribute of a name": (b"\x80\x04\x8c\x08builtins\x8c\x0cgetattr.bits\x93.", "builtins.getattr.bits"),
    "a name that is no word": (b"\x80\x04" + LIST_OF_LISTS + b"K\x01\x93.", "what is no name"),
    "extension registry": (b"\x80\x04\x82\x01.", "opcode"),
    "INST": (b"\x80\x04(ios\nsystem\n.", "opcode"),
    "OBJ": (b"\x80\x04(cos\nsystem\no.", "os.system"),
    "persistent id": (b"\x80\x04K\x01Q.", "outside of it"),
    "huge memo": (b"\x80\x04]r\xff\xff\xff\xff.", ""),
    "huge frame": (b"\x80\x04\x95" + b"\xff" * 8 + b"].", ""),
    "huge bytes": (b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.", "too early"),
    "huge text": (b"\x80\x04X\xff\xff\xff\xff.", "too early"),
    "huge array": (
        b"\x80\x05cnumpy._core.numeric\n_frombuffer\n(C\x01acnumpy\ndtype\nX\x02\0\0\0u1\x89\x88\x87R\x8a\x06\0\0\0\0\0\x01\x85X\x01\0\0\0CtR.",
        "whole numbers",
    ),
    "deep lists": (b"\x80\x04" + b"](" * 9000 + b"e" * 9000 + b".", ""),
    "too many opcodes": (pushes(30_000), "more than 20000 opcodes"),
    "nested tuples": (b"\x80\x04)" + b"q\0h\0\x86" * 5000 + b".", ""),
    "a tuple as a key": (b"\x80\x04})" + b"q\0h\0\x86" * 60 + b"K\x01s.", "keys are not all words"),
    "a list in itself": (b"\x80\x04]q\0h\0a.", ""),
    "a map in itself": (b"\x80\x04}q\0X\x01\0\0\0ah\0s.", ""),
    "lists of lists": (b"\x80\x04" + LIST_OF_LISTS + b".", ""),
    "nothing": (b"\x80\x04.", "left over"),
    "cut": (pickle.dumps({"a": 1})[:-3], "too early"),
    "protocol 9": (b"\x80\x09].", "protocol 9"),
    "negative length": (b"\x80\x02T\xff\xff\xff\xff.", "opcode"),
    "objects": (pickle.dumps(np.array([None, {}], dtype=object)), "dtype|filled"),
    "structured": (pickle.dumps(np.zeros(2, dtype=[("a", "f4")])), "dtype|contradicts"),
    "a strided tensor": (pickle.dumps(torch.arange(12.0).reshape(3, 4).T), "not contiguous"),
    "an expanded tensor": (pickle.dumps(torch.zeros(1).expand(1000, 1000)), "not contiguous"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_nothing_hostile_is_run(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What names anything else is refused with the one declared error; what is merely large, deep or circular takes neither time nor memory."""
    for module, name in ((os, "system"), (sys.modules["builtins"], "eval")):
        monkeypatch.setattr(module, name, lambda *unused: pytest.fail("it was run"))
    data, message = HOSTILE[kind]
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    if message:
        with pytest.raises(RemoteError, match=message):
            read_observation(data, pickles=True)
    for read in (read_pickle, lambda d: read_observation(d, pickles=True), lambda d: read_setup(d, pickles=True)):
        with contextlib.suppress(RemoteError):
            read(data)
    assert time.process_time() - started < 10.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kilobytes"


def test_what_is_said_of_a_hostile_observation_is_short(helpers: types.SimpleNamespace) -> None:
    """8**60 lists in the place of words, names and sizes are not written out."""
    (*_, bomb) = read_pickle(FRAMED + b"(" + LIST_OF_LISTS + b"t.")
    for changes in ({"task": bomb}, {"x": bomb}, {"front": bomb}):
        seen = TimedObservation(timestamp=1.0, timestep=1, must_go=True, values={**VALUES, **changes})
        with pytest.raises(ObservationError, match="list"):
            seen.observation(TINY_SPEC.observation, {})
    for features in (
        {"observation.state": {"names": bomb}},
        {"observation.state": {"names": ["x", "y", "grip"]}, "observation.images.front": {"shape": bomb}},
    ):
        with pytest.raises(SpecError):
            PolicySetup(features=features).require(TINY_SPEC.observation)


def test_many_views_of_the_same_bytes_take_no_memory() -> None:
    """A message of four megabytes, whose bytes a thousand arrays and tensors share."""
    raw = b"B" + struct.pack("<I", 4_000_000) + bytes(4_000_000)
    dtype = b"cnumpy\ndtype\nX\x02\0\0\0u1\x89\x88\x87R"
    array = b"cnumpy._core.numeric\n_frombuffer\n(h\0" + dtype + b"J" + struct.pack("<i", 4_000_000) + b"\x85X\x01\0\0\0CtR"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read = read_pickle(FRAMED + b"(" + raw + b"q\0" + array * 900 + b"t.")
    assert len(read) == 901
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kilobytes"
    with pytest.raises(RemoteError, match="more than 1024 arrays"):
        read_pickle(FRAMED + b"(" + raw + b"q\0" + array * 1100 + b"t.")


@pytest.mark.parametrize("pickles", [True, False])
def test_damaged_messages_raise_what_is_declared(pickles: bool, helpers: types.SimpleNamespace) -> None:
    """Bits flipped, bytes lost, doubled and put in, thousands of times; the whole way to an observation."""
    seen = helpers.TimedObservation(12.5, 7, {**VALUES, "tensor": torch.arange(6.0)}, True)
    data = (
        pickle.dumps(seen)
        if pickles
        else TimedObservation(timestamp=12.5, timestep=7, must_go=True, values={**VALUES, "y.pos": 1.0}).pack()
    )
    setup = PolicySetup.of(TINY_SPEC.observation, 6).pack()
    rng, refused = random.Random(3), 0
    for _ in range(4000):
        with contextlib.suppress(ObservationError, SpecError):
            try:
                read_observation(damage(data, rng), pickles=pickles).observation(TINY_SPEC.observation, {})
                read_setup(damage(setup, rng)).require(TINY_SPEC.observation)
            except RemoteError:
                refused += 1
    assert refused > 1000


def test_opcodes_at_random_raise_what_is_declared() -> None:
    """Programs of the opcodes that the machine knows, with arguments that are often sound."""
    from runtime.wires.pickles import _CALLS, _OPERATIONS

    rng = random.Random(5)
    names = [b"c" + path.rpartition(".")[0].encode() + b"\n" + path.rpartition(".")[2].encode() + b"\n" for path in _CALLS]
    values = [
        b"K\x02",
        b"]",
        b"}",
        b")",
        b"N",
        b"X\x02\0\0\0u1",
        b"X\x01\0\0\0<",
        b"C\x04abcd",
        b"K\x04\x85",
        b"K\x02K\x02\x86",
        b"\x88",
        b"\x8a\x01\xff",
    ]
    codes = [code for code in _OPERATIONS if code not in b"XBC\x8e\x8d\x96\x8c\x95"]
    for _ in range(6000):
        program = b"".join(
            rng.choice([rng.choice(names), *rng.choices(values, k=3), *rng.choices(codes, k=2)]) for _ in range(rng.randint(1, 40))
        )
        with contextlib.suppress(RemoteError):
            read_pickle(FRAMED + program + b".")


def test_pickles_are_refused_unless_they_are_allowed() -> None:
    """The message says which flag, and what to send instead."""
    with pytest.raises(RemoteError, match=r"--allow-pickle.*\[u32 length\]\[JSON\]\[safetensors\]"):
        read_observation(pickle.dumps({}))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "a length, JSON and tensors"),
        (struct.pack(">I", 2**30) + b"{}", "says that its JSON has"),
        (struct.pack(">I", 2) + b"[]", "not of the type"),
        (struct.pack(">I", 2) + b"{]", "holds no JSON"),
        (struct.pack(">I", 400_000) + b"[" * 400_000, "holds no JSON"),
        (PolicySetup.of(TINY_SPEC.observation, 6).pack(), "not of the type TimedObservation"),
        (TimedObservation(timestamp=float("nan"), timestep=1, must_go=True, values={}).pack(), "'timestamp'"),
        (TimedObservation(timestamp=1.0, timestep=-1, must_go=True, values={}).pack(), "'timestep'"),
        (TimedObservation(timestamp=1.0, timestep=2**60, must_go=True, values={}).pack(), "'timestep'"),
    ],
)
def test_messages_that_are_none_are_refused(data: bytes, message: str) -> None:
    """With what is wrong."""
    with pytest.raises(RemoteError, match=message):
        read_observation(data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": None}, "state 'x' is NoneType"),
        ({"x": True}, "state 'x' is bool"),
        ({"x": float("nan")}, "not finite"),
        ({"x": 10**400}, "state 'x' is int"),
        ({"front": None}, "camera 'front' is NoneType"),
        ({"front": np.zeros((8, 6, 3), np.uint8)}, "front"),
        ({"front": np.zeros((6, 8, 3), np.float32)}, "front"),
        ({"task": ""}, "expected words"),
        ({"task": "x" * 5000}, "5000 characters"),
        ({"task": None}, "expected words"),
    ],
)
def test_what_is_not_the_observation_is_refused(changes: dict[str, Any], message: str) -> None:
    """The message names the part."""
    seen = TimedObservation(timestamp=1.0, timestep=1, must_go=True, values={**VALUES, **changes})
    with pytest.raises(ObservationError, match=message):
        seen.observation(TINY_SPEC.observation, {})


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"observation.state": {"names": ["x", "y"]}}, r"needs \['grip'\]"),
        ({"observation.state": {"names": 7}}, "needs"),
        ({"observation.state": {"names": ["x", "y", "grip"]}}, "'front' is missing"),
        ({"observation.state": {"names": ["x", "y", "grip"]}, "observation.images.front": {"shape": [6, 8, 4]}}, r"is \(6, 8, 4\)"),
        ({"observation.state": {"names": ["x", "y", "grip"]}, "observation.images.front": {"shape": "6"}}, r"is \(\)"),
    ],
)
def test_a_robot_that_differs_is_refused(features: dict[str, Any], message: str) -> None:
    """Before any observation."""
    with pytest.raises(SpecError, match=message):
        PolicySetup(features=features).require(TINY_SPEC.observation)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (TimedActions(timesteps=[], timestamps=[], actions=np.zeros((0, 2), np.float32)).pack(), "no list of actions"),
        (TimedActions(timesteps=[1], timestamps=[0.0], actions=np.float32([[1, np.nan]])).pack(), "finite"),
        (TimedActions(timesteps=[1], timestamps=[0.0], actions=np.float32([[1, 2, 3]])).pack(), r"shape \(3,\)"),
        (TimedActions(timesteps=[1, 2], timestamps=[0.0, 0.1], actions=np.float32([[1, 2]])).pack(), "an action is nothing"),
        (pickled_actions(np.float32([[1, 2]]), [1], [0.0]), "the message is a pickle"),
    ],
)
def test_actions_that_cannot_be_used_are_refused(data: bytes, message: str) -> None:
    """On the robot's side; a pickle always."""
    with pytest.raises(RemoteError, match=message):
        read_actions(data, 2)


@given(st.binary(max_size=300))
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    """Whatever they are."""
    for read in (
        read_data,
        read_piece,
        read_observation,
        read_setup,
        unpack_tensors,
        lambda d: read_observation(b"\x80" + d, pickles=True),
    ):
        with contextlib.suppress(RemoteError):
            read(data)
