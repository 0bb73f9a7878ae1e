"""One network on ONNX Runtime: fixed shapes, memory bound once, and the provider that was asked for or an error.

Three things that ONNX Runtime does by itself are undone here:

* its threads spin while they wait, which doubles the policy's own latency when the control loop needs the core too
  (p50 22 -> 40 ms was measured on two busy cores): spinning is off and one thread is the default;
* a provider that cannot load is replaced by the CPU with a line on stderr: the session's real providers are compared
  with the request;
* outputs are new memory at each call: inputs and outputs are bound once, float32 outputs in one block. It saves little time (9 us), but nothing grows.

On a GPU the memory that is bound is the GPU's, and the whole run is recorded as a CUDA graph, so that one launch takes the place of one per operator.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from actlet.errors import BundleError, CallerError, MissingLibraryError, RobotFault

__all__ = ["GPU_PROVIDERS", "OrtModel", "SessionConfig", "Signature", "places_in_block"]

Signature = dict[str, tuple[str, tuple[int, ...]]]
"""Name -> (numpy dtype name, fixed shape) of a network's inputs or outputs."""

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
}
GPU_PROVIDERS = ("CUDAExecutionProvider", "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")
_GPU_OPTIONS: dict[str, dict[str, str]] = {
    # TF32 would round float32's products to 10 bits, and the self-test would notice.
    "CUDAExecutionProvider": {"enable_cuda_graph": "1", "use_tf32": "0"},
    "TensorrtExecutionProvider": {"trt_cuda_graph_enable": "1"},
    "NvTensorRTRTXExecutionProvider": {"enable_cuda_graph": "1"},
}
_LINE = 16  # float32 in a cache line.
_ERRORS_ONLY = 3  # ONNX Runtime's severity: what is worth knowing is checked here and raised.


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionConfig:
    """How ONNX Runtime runs a network."""

    threads: int = 1
    """Threads of one operator. More than one only pays on cores that nothing else needs."""
    spinning: bool = False
    """Threads burn their core while they wait for work."""
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    """Providers in order of preference; all of them must really be there."""
    optimise: bool = True
    """All of ONNX Runtime's graph optimisations, or none (to compare with)."""
    integers: bool = True
    """Compute in integers where the graph rounds. Off for float8, which ONNX Runtime 1.31 takes for integers, and then cannot load."""
    optimised_model: Path | None = None
    """Write the optimised graph here: it shows which kernels really run."""
    profile: Path | None = None
    """Time every operator, and write it below this name: see `OrtModel.end_profile`."""

    def __post_init__(self) -> None:
        if self.threads < 1 or not self.providers:
            raise CallerError(f"session: {self.threads} threads, providers {self.providers}: expected at least one of each.")

    def options(self) -> onnxruntime.SessionOptions:
        """The same as ONNX Runtime's own options."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = _ERRORS_ONLY
        levels = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if self.optimise else levels.ORT_DISABLE_ALL
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if self.spinning else "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        options.add_session_config_entry("session.load_model_format", "ONNX")  # Never its own format, which nobody here has looked at.
        options.add_session_config_entry("session.disable_quant_qdq", "0" if self.integers else "1")
        if "CPUExecutionProvider" not in self.providers:  # Otherwise nodes that the provider lacks would run on the CPU unnoticed.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        if self.optimised_model is not None:
            options.optimized_model_filepath = str(self.optimised_model)
        if self.profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(self.profile)
        return options


class OrtModel:
    """One network, ready to run.

    Args:
        model: The content of an .onnx file (never a path: such a network cannot refer to other files).
        config: Threads and providers.
        where: The file's name, for messages.

    Raises:
        BundleError: Not a network that ONNX Runtime can run, or one whose shapes are not fixed.
        MissingLibraryError: A provider that was asked for is not what runs.
    """

    def __init__(self, model: bytes, *, config: SessionConfig | None = None, where: str = "model") -> None:
        self.where = where
        config = config or SessionConfig()
        _require_available(config.providers, onnxruntime.get_available_providers())
        self._on_gpu = config.providers[0] in GPU_PROVIDERS
        if self._on_gpu:
            _load_cuda_libraries()
        try:
            providers = [(name, _GPU_OPTIONS.get(name, {})) for name in config.providers]
            # Without its fallback, which would make another session on whatever loads, and say so on stdout alone.
            self._session = onnxruntime.InferenceSession(model, config.options(), providers=providers, enable_fallback=0)
        except Exception as error:  # ONNX Runtime's errors have no common class below Exception.
            if self._on_gpu and (why := _of_provider(error)):
                raise MissingLibraryError(
                    f"{where}: ONNX Runtime provider {config.providers[0]} cannot run it here ({why})", "actlet doctor"
                ) from error
            raise BundleError(f"{where}: ONNX Runtime {onnxruntime.__version__} cannot load it ({_first_line(error)}).") from error
        self.providers = tuple(self._session.get_providers())
        _require_running(config.providers, self.providers)
        self.inputs = _signature(self._session.get_inputs(), where)
        self.outputs = _signature(self._session.get_outputs(), where)
        self._binding = self._session.io_binding()
        self.bound = {name: np.zeros(shape, dtype) for name, (dtype, shape) in self.inputs.items()}
        """Name -> what the next `infer` is fed with."""
        self._out = {name: np.zeros(shape, dtype) for name, (dtype, shape) in self.outputs.items()}
        places = places_in_block(self.outputs)
        self._block = np.zeros(max((place.stop for place in places.values()), default=0), np.float32)
        self._out |= {name: self._block[place].reshape(self.outputs[name][1]) for name, place in places.items()}
        if self._on_gpu:
            self._bind_gpu()
            return
        for name, array in self.bound.items():
            self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in self._out.items():
            self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def _bind_gpu(self) -> None:
        """Memory of the GPU for everything: a graph is recorded with its addresses."""
        make = onnxruntime.OrtValue.ortvalue_from_numpy
        try:
            self._gpu_in = {name: make(array, "cuda", 0) for name, array in self.bound.items()}
            self._gpu_out = {name: make(array, "cuda", 0) for name, array in self._out.items()}
        except Exception as error:
            raise RobotFault(f"{self.where}: no memory on the GPU to run it ({_first_line(error)}).") from error
        for name, value in self._gpu_in.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._gpu_out.items():
            self._binding.bind_ortvalue_output(name, value)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """One inference.

        Args:
            feeds: Every input by name; copied into the bound memory.

        Returns:
            Every output by name, each a copy that later runs leave alone.

        Raises:
            BundleError: Another set of inputs, or one of another type or shape.
            RobotFault: ONNX Runtime failed while it ran.
        """
        if len(feeds) != len(self.bound):
            raise self._unlike(feeds)
        for name, array in feeds.items():
            bound = self.bound.get(name)
            if bound is None or array.dtype != bound.dtype or array.shape != bound.shape:
                raise self._unlike(feeds)
            np.copyto(bound, array)
        self.infer()
        return {name: array.copy() for name, array in self._out.items()}

    def infer(self) -> NDArray[np.float32]:
        """One inference on what lies in `bound`.

        Returns:
            The float32 outputs at their `places_in_block`; the next run writes over it.

        Raises:
            RobotFault: ONNX Runtime failed while it ran.
        """
        try:
            if self._on_gpu:
                for name, value in self._gpu_in.items():
                    value.update_inplace(self.bound[name])
            self._session.run_with_iobinding(self._binding)
            if self._on_gpu:
                for name, value in self._gpu_out.items():
                    np.copyto(self._out[name], value.numpy())
        except Exception as error:
            raise RobotFault(f"{self.where}: inference failed ({_first_line(error)}).") from error
        return self._block

    def _unlike(self, feeds: Mapping[str, NDArray[Any]]) -> BundleError:
        got = {name: (str(array.dtype), array.shape) for name, array in feeds.items()}
        return BundleError(f"{self.where}: fed with {got}, expected {self.inputs}.")

    def end_profile(self) -> Path:
        """Where ONNX Runtime wrote its profile (a list of events as JSON); of a network with `SessionConfig.profile`, once."""
        return Path(self._session.end_profiling())


def places_in_block(outputs: Signature) -> dict[str, slice]:
    """Name -> where a float32 output lies in the block that `OrtModel.infer` returns."""
    places, start = dict[str, slice](), 0
    for name, (dtype, shape) in outputs.items():
        if dtype == "float32":
            places[name] = slice(start, start + math.prod(shape))
            start += -(-math.prod(shape) // _LINE) * _LINE
    return places


@functools.cache
def _load_cuda_libraries() -> None:
    """CUDA and cuDNN as NVIDIA's packages of PyPI hold them, where they are: a provider finds them when they are loaded. What it lacks, it says itself."""
    with contextlib.suppress(AttributeError), contextlib.redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls()


def _require_available(asked: tuple[str, ...], available: list[str]) -> None:
    missing = [name for name in asked if name not in available]
    if missing:
        raise MissingLibraryError(
            f"ONNX Runtime provider {missing} asked for, but this onnxruntime {onnxruntime.__version__} has {available}.",
            "actlet doctor",
        )


def _require_running(asked: tuple[str, ...], running: tuple[str, ...]) -> None:
    missing = [name for name in asked if name not in running]
    if missing:
        raise MissingLibraryError(
            f"ONNX Runtime provider {missing} asked for, but the session runs on {list(running)}: a library of the provider is absent.",
            "actlet doctor",
        )


def _signature(values: list[Any], where: str) -> Signature:
    signature: Signature = {}
    for value in values:
        if value.type not in _DTYPES or not all(isinstance(size, int) and size > 0 for size in value.shape):
            raise BundleError(
                f"{where}: {value.name!r} is {value.type} {value.shape}, expected {sorted(_DTYPES)} of a fixed shape: "
                "export it with fixed shapes (batch 1)."
            )
        signature[value.name] = (_DTYPES[value.type], tuple(value.shape))
    return signature


def _of_provider(error: Exception) -> str:
    """Why a GPU's provider refused, where it is not the network's fault; empty where it is."""
    said = " ".join(str(error).split())
    if "not been partitioned" in said or "fallback to CPU EP has been explicitly disabled" in said:
        return "it lacks an operator of this network: take float32, float16 or int4 for a GPU"
    missing = ("Please install", "Failed to load", "Require cuDNN", "cannot open shared object")
    return f"a library of it is absent: {said[:200]}" if any(words in said for words in missing) else ""


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]
