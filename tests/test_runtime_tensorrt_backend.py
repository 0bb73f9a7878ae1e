"""runtime.cuda and runtime.tensorrt_backend: an engine with memory, stream and graph.

Without a GPU, the CUDA functions are those of `HostCuda`, which does with this machine's memory what the real ones do with the GPU's, and the engine is one that
has what NVIDIA's bindings name and adds up its inputs. On a machine with a GPU the same tests run on it with cuda-python, with copies as the computation.
"""

from __future__ import annotations

import ctypes
import enum
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actlet.errors import BundleError, MissingLibraryError, RobotFault, UnknownNameError
from runtime import tensorrt_library
from runtime.bundle import load_bundle
from runtime.cuda import load_cuda
from runtime.policy import BundlePolicy
from runtime.policy_network import PolicyNetwork, sessions_kept
from runtime.tensorrt_backend import TensorrtModel
from runtime.tensorrt_library import find_engine, save_engine

NAMES: dict[str, dict[str, list[str]]] = json.loads((Path(__file__).parent / "data" / "tensorrt_names.json").read_text())
SUCCESS, OUT_OF_MEMORY, NOT_CAPTURED = 0, 2, 900


class HostCuda:
    """The functions of CUDA's runtime that are used, on this machine's memory. Work on the stream is done at once, or recorded while it is captured."""

    cudaMemcpyKind = enum.IntEnum("cudaMemcpyKind", {"cudaMemcpyHostToDevice": 1, "cudaMemcpyDeviceToHost": 2})
    cudaStreamCaptureMode = enum.IntEnum("cudaStreamCaptureMode", {"cudaStreamCaptureModeThreadLocal": 1})

    def __init__(self, *, room: int = 1 << 20, captures: bool = True) -> None:
        self.memory: dict[int, ctypes.Array[Any]] = {}
        self.room, self.captures, self.recording, self.launches, self.copied = room, captures, None, 0, 0

    def cudaMalloc(self, size: int) -> tuple[int, int]:
        if size > self.room:
            return OUT_OF_MEMORY, 0
        block = (ctypes.c_uint8 * size)()
        self.memory[ctypes.addressof(block)] = block
        return SUCCESS, ctypes.addressof(block)

    cudaMallocHost = cudaMalloc

    def cudaFree(self, pointer: int) -> tuple[int]:
        del self.memory[pointer]
        return (SUCCESS,)

    cudaFreeHost = cudaFree

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, int]:
        return SUCCESS, 7

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:
        return (SUCCESS,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        assert self.recording is None, "a stream that is captured may not be waited for"
        return (SUCCESS,)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> tuple[int]:
        self.do(lambda: (ctypes.memmove(target, source, size), setattr(self, "copied", self.copied + size)))
        return (SUCCESS,)

    def do(self, work: Callable[[], Any]) -> None:
        work() if self.recording is None else self.recording.append(work)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[int]:
        self.recording = []
        return (SUCCESS,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, Any]:
        recorded, self.recording = self.recording, None
        return (SUCCESS, recorded) if self.captures else (NOT_CAPTURED, None)

    def cudaGraphInstantiateWithFlags(self, graph: Any, flags: int) -> tuple[int, Any]:
        return SUCCESS, graph

    def cudaGraphLaunch(self, graph: list[Callable[[], Any]], stream: int) -> tuple[int]:
        self.launches += 1
        for work in graph:
            work()
        return (SUCCESS,)

    def cudaGraphDestroy(self, graph: Any) -> tuple[int]:
        return (SUCCESS,)

    cudaGraphExecDestroy = cudaGraphDestroy

    def cudaGetLastError(self) -> tuple[int]:
        return (SUCCESS,)

    def cudaGetErrorString(self, status: int) -> tuple[int, bytes]:
        return SUCCESS, {OUT_OF_MEMORY: b"out of memory"}.get(int(status), b"another error")


class Only:
    """An object that has the names of the bindings and no others."""

    def __init__(self, names: list[str], **has: Any) -> None:
        assert not (missing := set(has) - set(names)), missing
        vars(self).update(has)


class Library:
    """A TensorRT whose engines add up what the network of `tests/conftest.py` is fed with, as far as it is told."""

    def __init__(
        self, version: str, cuda: Any, signature: dict[str, tuple[str, str, tuple[int, ...]]], compute: Callable[..., None]
    ) -> None:
        names = NAMES[version]
        self.__name__, self.__version__ = version.split()
        self.TensorIOMode = enum.Enum("TensorIOMode", names["TensorIOMode"])
        kinds = enum.Enum("DataType", names["DataType"])
        addresses: dict[str, int] = {}

        class ILogger:
            Severity = enum.IntEnum("Severity", ["INTERNAL_ERROR", "ERROR"], start=0)

        def set_tensor_address(name: str, address: int) -> bool:
            addresses[name] = address
            return True

        def execute_async_v3(stream: int) -> bool:
            assert stream == 7 or not isinstance(cuda, HostCuda)
            compute(cuda, addresses, stream)
            return True

        context = Only(names["IExecutionContext"], set_tensor_address=set_tensor_address, execute_async_v3=execute_async_v3)
        engine = Only(
            names["ICudaEngine"],
            num_io_tensors=len(signature),
            get_tensor_name=lambda i: list(signature)[i],
            get_tensor_mode=lambda name: self.TensorIOMode[signature[name][0]],
            get_tensor_dtype=lambda name: kinds[signature[name][1]],
            get_tensor_shape=lambda name: signature[name][2],
            create_execution_context=lambda: context,
        )
        self.ILogger = ILogger

        def deserialize(plan: bytes) -> Any:
            if plan == b"plan":
                return engine
            logger.log(ILogger.Severity.ERROR, "serialized by another version")
            return None

        def runtime(given: Any) -> Only:
            nonlocal logger
            logger = given
            return Only(names["Runtime"], deserialize_cuda_engine=deserialize)

        logger: Any = None
        self.Runtime = runtime


SIGNATURE = {
    "a": ("INPUT", "FLOAT", (1, 3)),
    "scale": ("INPUT", "FLOAT", (1, 3)),
    "b": ("OUTPUT", "FLOAT", (1, 3)),
    "c": ("OUTPUT", "FLOAT", (1, 3)),
}


def copies(cuda: Any, addresses: dict[str, int], stream: int) -> None:
    """b = a, c = scale: a computation that a GPU can do without TensorRT."""
    kind = 3 if isinstance(cuda, HostCuda) else cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
    for source, target in (("a", "b"), ("scale", "c")):
        assert int(cuda.cudaMemcpyAsync(addresses[target], addresses[source], 12, kind, stream)[0]) == SUCCESS


@pytest.fixture(params=["host", pytest.param("gpu", marks=pytest.mark.gpu)])
def cuda(request: pytest.FixtureRequest) -> Any:
    if request.param == "host":
        return HostCuda()
    try:
        return load_cuda()
    except MissingLibraryError as error:
        pytest.skip(str(error))


def row(*values: float) -> np.ndarray:
    return np.array([values], np.float32)


@pytest.mark.parametrize("version", NAMES)
def test_an_engine_answers_from_memory_that_is_taken_once(version: str, cuda: Any) -> None:
    """With the calls that every TensorRT has; what is held goes to the GPU when it is told, and stays."""
    model = TensorrtModel(b"plan", Library(version, cuda, SIGNATURE, copies), held=("scale",), cuda=cuda)
    assert model.is_recorded
    assert model.inputs == {"a": ("float32", (1, 3)), "scale": ("float32", (1, 3))}
    assert model.providers == (version,)
    model.hold({"scale": row(7, 8, 9)})
    first = model.run({"a": row(1, 2, 3)})
    second = model.run({"a": row(4, 5, 6)})
    assert (first["b"].tolist(), first["c"].tolist()) == ([[1, 2, 3]], [[7, 8, 9]])
    assert (second["b"].tolist(), second["c"].tolist()) == ([[4, 5, 6]], [[7, 8, 9]])
    if isinstance(cuda, HostCuda):
        assert cuda.launches == 2
        before = cuda.copied
        model.run({"a": row(1, 2, 3)})
        assert cuda.copied - before == 12 * (1 + 2 + 2)  # a there, the two copies of the computation, b and c back; not scale.


def test_memory_is_given_back(cuda: Any) -> None:
    """With the model that took it."""
    model = TensorrtModel(b"plan", Library("tensorrt 10.3.0", cuda, SIGNATURE, copies), cuda=cuda)
    if isinstance(cuda, HostCuda):
        assert len(cuda.memory) == 8
    del model
    if isinstance(cuda, HostCuda):
        assert not cuda.memory


def test_a_run_that_cannot_be_recorded_is_made_anew() -> None:
    """Some layers wait for the processor; the answers are the same."""
    for cuda, compute in ((HostCuda(captures=False), copies), (HostCuda(), waits)):
        model = TensorrtModel(b"plan", Library("tensorrt 10.3.0", cuda, SIGNATURE, compute), cuda=cuda)
        assert not model.is_recorded
        answer = model.run({"a": row(1, 2, 3), "scale": row(0, 0, 1)})
        assert (answer["b"].tolist(), answer["c"].tolist(), cuda.launches) == ([[1, 2, 3]], [[0, 0, 1]], 0)


def waits(cuda: HostCuda, addresses: dict[str, int], stream: int) -> None:
    if cuda.recording is not None:
        raise RobotFault("not while it is captured")
    copies(cuda, addresses, stream)


def test_what_does_not_fit_is_said() -> None:
    """Another plan, other inputs, no memory, shapes that are not fixed, a kind that numpy does not have."""
    trt = Library("tensorrt 10.3.0", cuda := HostCuda(), SIGNATURE, copies)
    with pytest.raises(BundleError, match=r"tensorrt 10\.3\.0 cannot open it \(serialized by another version\).*actlet engine --rebuild"):
        TensorrtModel(b"other", trt, cuda=cuda)
    with pytest.raises(BundleError, match=r"has no inputs \['shift'\]"):
        TensorrtModel(b"plan", trt, held=("shift",), cuda=cuda)
    with pytest.raises(RobotFault, match="cudaMallocHost failed on the GPU: out of memory"):
        TensorrtModel(b"plan", trt, cuda=HostCuda(room=4))
    model = TensorrtModel(b"plan", trt, held=("scale",), cuda=cuda)
    for feeds in ({}, {"a": row(1, 2)}, {"a": row(1, 2, 3).astype(np.float64)}, {"a": row(1, 2, 3), "scale": row(1, 2, 3)}):
        with pytest.raises(BundleError, match=r"fed with .*, expected \{'a': \('float32', \(1, 3\)\)\}"):
            model.run(feeds)
    with pytest.raises(BundleError, match=r"expected \{'scale'"):
        model.hold({"a": row(1, 2, 3)})
    for kind, shape in (("FLOAT", (-1, 3)), ("FP8", (1, 3))):
        with pytest.raises(BundleError, match="of a fixed shape"):
            TensorrtModel(b"plan", Library("tensorrt 10.3.0", cuda, SIGNATURE | {"a": ("INPUT", kind, shape)}, copies), cuda=cuda)


def test_a_machine_without_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or without cuda-python; one has neither here, or both."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(MissingLibraryError, match="cuda-python is not installed here"):
        load_cuda()
    absent = HostCuda()
    absent.cudaGetDeviceCount = lambda: (100, None)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", absent)
    with pytest.raises(MissingLibraryError, match=r"no GPU answers \(another error\)"):
        load_cuda()


class Engine:
    """Answers like the session that it takes the place of, and remembers what it was told to hold."""

    def __init__(self, policy: bytes, held: tuple[str, ...]) -> None:
        self.network, self.held_names, self.values, self.told = PolicyNetwork(policy), held, {}, 0
        self.inputs, self.outputs, self.providers = self.network.inputs, self.network.outputs, ("engine",)

    def hold(self, values: Any) -> None:
        self.values, self.told = dict(values), self.told + 1

    def run(self, feeds: Any) -> Any:
        return self.network.run({**feeds, **self.values})


def test_an_instruction_is_told_to_an_engine_once(tiny_float_bundle: Path) -> None:
    """The values of condition.onnx; and the answers are those of the session of the instruction."""
    bundle = load_bundle(tiny_float_bundle)
    policy, condition = bundle.read("policy.onnx"), bundle.read("condition.onnx")
    made: list[Engine] = []

    def open_engine(held: tuple[str, ...]) -> Any:
        made.append(Engine(policy, held))
        return made[0]

    there, here = PolicyNetwork(policy, condition, engine=open_engine), PolicyNetwork(policy, condition)
    assert there.inputs == here.inputs
    rng = np.random.default_rng(0)
    feeds = {name: np.zeros(shape, dtype) for name, (dtype, shape) in here.inputs.items()}
    for told, vector in ((1, 0), (1, 0), (2, 1), (3, 0)):
        feeds["instruction"] = np.full(feeds["instruction"].shape, 0.1 * (vector + 1), np.float32)
        feeds["state"] = rng.normal(size=feeds["state"].shape).astype(np.float32)
        there.prepare(feeds["instruction"])
        got, expected = there.run(feeds), here.run(feeds)
        assert made[0].told == told
        for name, value in expected.items():
            np.testing.assert_allclose(got[name], value, atol=1e-5)
    assert made[0].held_names == tuple(here._condition.outputs)  # type: ignore[union-attr]


def test_a_large_policy_keeps_few_sessions() -> None:
    """A session holds the constants and what is packed of them."""
    assert [sessions_kept(size) for size in (1, 8 << 20, 40 << 20, 512 << 20)] == [16, 16, 3, 1]


def test_an_engine_is_found_by_what_it_was_built_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this device, library, version and bundle, whole; the last of several."""
    monkeypatch.setenv("ACTLET_ENGINES", str(tmp_path))
    monkeypatch.setattr(tensorrt_library, "device", lambda: "Orin, 540.4")
    trt = Only(
        [],
    )
    vars(trt).update(__name__="tensorrt", __version__="10.3.0")
    here = {"device": "Orin, 540.4", "library": "tensorrt", "version": "10.3.0", "bundle": "b" * 64}
    for other in ({"device": "Orin, 540.5"}, {"version": "8.6.1"}):
        save_engine(b"other", here | other | {"options": {}})
    with pytest.raises(
        MissingLibraryError,
        match=r"no engine of this bundle \(bbbbbbbbbbbb…\) for Orin, 540\.4 with tensorrt 10\.3\.0.*actlet engine b/int8",
    ):
        find_engine("b" * 64, trt, "b/int8")
    times = iter(["2026-01-01", "2026-01-02"])
    monkeypatch.setattr(tensorrt_library, "utc_now", lambda: next(times))
    first, second = (save_engine(plan, here | {"options": {"level": level}}) for level, plan in ((3, b"one"), (5, b"two")))
    assert find_engine("b" * 64, trt) == second
    second.write_bytes(b"tw")
    assert find_engine("b" * 64, trt) == first
    first.with_suffix(".json").write_text("{")
    with pytest.raises(MissingLibraryError):
        find_engine("b" * 64, trt)


def test_there_is_no_such_backend(tiny_bundle: Path) -> None:
    """Named, with those that there are."""
    with pytest.raises(UnknownNameError, match=r"unknown backend 'tensort'\. Did you mean 'tensorrt'\?"):
        BundlePolicy(tiny_bundle, backend="tensort")
