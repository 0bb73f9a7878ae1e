"""Backends at work on a tiny network: what `benchmarks.doctor_backends` runs in a process of its own, since it may crash or hang.

`python -m benchmarks.backend_probes PROBE [ARGUMENT ...]` prints one line of JSON at its end: ``works``, ``said`` (what it can do, or why it cannot), and facts.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from actlet.errors import MissingLibraryError
from runtime.backends import BACKENDS
from runtime.cuda import load_cuda
from runtime.protobuf import length_field, number_field
from runtime.tensorrt_library import Said, load_library

__all__ = ["PROBES", "main", "tiny_network"]

_SHOWN = 160
"""Characters of an error that are shown."""
_WEIGHT = np.arange(16, dtype=np.float32).reshape(4, 4)


def tiny_network() -> bytes:
    """An .onnx file, written without `onnx`, which a robot lacks: y = x w, float32 (1, 4) by (4, 4), w = 0, 1, .. 15."""

    def value(name: bytes, rows: int) -> bytes:
        dims = b"".join(length_field(1, number_field(1, size)) for size in (rows, 4))
        return length_field(1, name) + length_field(2, length_field(1, number_field(1, 1) + length_field(2, dims)))

    weight = _WEIGHT.astype("<f4").tobytes()
    tensor = number_field(1, 4) + number_field(1, 4) + number_field(2, 1) + length_field(8, b"w") + length_field(9, weight)
    node = length_field(1, b"x") + length_field(1, b"w") + length_field(2, b"y") + length_field(4, b"MatMul")
    graph = length_field(1, node) + length_field(2, b"tiny") + length_field(5, tensor)
    graph += length_field(11, value(b"x", 1)) + length_field(12, value(b"y", 1))
    return number_field(1, 8) + length_field(7, graph) + length_field(8, length_field(1, b"") + number_field(2, 17))


def _gpu() -> dict[str, Any]:
    cuda = ctypes.CDLL("libcuda.so.1")

    def call(name: str, *arguments: Any) -> None:
        code = getattr(cuda, name)(*arguments)
        if code:
            text = ctypes.c_char_p()
            cuda.cuGetErrorName(code, ctypes.byref(text))
            raise OSError(f"{name}: {(text.value or b'error').decode()} ({code})")

    version, count, value = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    call("cuInit", 0)
    call("cuDriverGetVersion", ctypes.byref(version))
    call("cuDeviceGetCount", ctypes.byref(count))
    named = []
    for number in range(count.value):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
        call("cuDeviceGet", ctypes.byref(device), number)
        call("cuDeviceGetName", name, len(name), device)
        capability = []
        for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
            call("cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
            capability.append(str(value.value))
        named.append(f"{name.value.decode(errors='replace')} (compute capability {'.'.join(capability)})")
    if not named:
        raise OSError("the driver sees no GPU")
    major, minor = version.value // 1000, version.value % 1000 // 10
    return {"said": f"{', '.join(named)}, its driver knows CUDA {major}.{minor}", "cuda_major": major}


def _onnxruntime(provider: str) -> dict[str, Any]:
    import onnxruntime

    from runtime.ort_backend import OrtModel, SessionConfig

    listed = {"providers": onnxruntime.get_available_providers()}
    # As a robot runs it: TensorRT's provider with CUDA's behind it.
    providers = next((names for names in BACKENDS.values() if names[0] == provider), (provider,))
    try:
        _require_right(OrtModel(tiny_network(), config=SessionConfig(providers=providers), where="a tiny network"))
    except Exception as error:
        return {"works": False, "said": _first_words(error), **listed}
    return {"said": f"{onnxruntime.__version__} runs a network", **listed}


def _tensorrt(name: str, *targets: str) -> dict[str, Any]:
    from export.tensorrt_engine import EngineOptions, serialize_engine

    trt = load_library(name)
    plan = serialize_engine(trt, tiny_network(), EngineOptions(targets=targets), where="a tiny network")
    if targets:
        return {"said": f"{trt.__version__} builds engines"}
    try:
        load_cuda()
    except MissingLibraryError:  # What it lacks is said of it alone.
        said = Said()
        if trt.Runtime(said.logger(trt)).deserialize_cuda_engine(plan) is None:
            raise OSError(f"builds an engine, and cannot open it ({said.last()})") from None
        return {"said": f"{trt.__version__} builds and opens engines"}
    from runtime.tensorrt_backend import TensorrtModel

    _require_right(TensorrtModel(plan, trt, where="an engine"))
    return {"said": f"{trt.__version__} builds and runs engines"}


def _require_right(model: Any) -> None:
    x = np.arange(4, dtype=np.float32)[None] / 4
    got, wanted = model.run({"x": x})["y"], x @ _WEIGHT
    if not np.allclose(got, wanted, rtol=1e-2):  # Some GPUs multiply with 10 bits.
        raise ArithmeticError(f"answers {got.tolist()}, expected {wanted.tolist()}")


def _cuda_bindings() -> dict[str, Any]:
    _, count = load_cuda().cudaGetDeviceCount()
    return {"said": f"{importlib.metadata.version('cuda-bindings')} reaches {count} GPU{'s' if count > 1 else ''}"}


def _first_words(error: Exception) -> str:
    """Without the line to run, which is the doctor's own."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].partition(" Run: ")[0][:_SHOWN]


PROBES: dict[str, Callable[..., dict[str, Any]]] = {
    "gpu": _gpu,
    "onnxruntime": _onnxruntime,
    "tensorrt": _tensorrt,
    "cuda-bindings": _cuda_bindings,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one probe."""
    probe, *arguments = sys.argv[1:] if argv is None else argv
    try:
        answer = PROBES[probe](*arguments)
    except Exception as error:
        answer = {"works": False, "said": _first_words(error)}
    print(json.dumps({"works": True, **answer}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
