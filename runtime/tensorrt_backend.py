"""One network as a TensorRT engine: memory taken once, the whole run recorded as a CUDA graph, the interface of `runtime.ort_backend.OrtModel`.

What is called exists in TensorRT 8.6, 10, 11 and RTX alike (named tensors, `execute_async_v3`), checked against the names in NVIDIA's own bindings by a
test. No torch, no PyCUDA: cuda-python moves the memory (`runtime.cuda`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlet.errors import BundleError, RobotFault
from runtime.cuda import CudaBuffers, load_cuda
from runtime.ort_backend import Signature
from runtime.tensorrt_library import Said

__all__ = ["TensorrtModel"]

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "UINT8": "uint8",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
}  # trt.DataType's members -> numpy.


class TensorrtModel:
    """An engine, ready to run.

    Args:
        plan: The engine, as `export.tensorrt_engine` builds it on this device.
        trt: TensorRT's module.
        held: Inputs that stay what `hold` makes them: they go to the GPU then, not in every run.
        where: The file's name, for messages.
        cuda: cuda-python's runtime; None for the one that is installed.

    Raises:
        BundleError: The library does not open it (of another device or version), or its shapes are not fixed.
        MissingLibraryError: No cuda-python, or no GPU.
        RobotFault: The GPU has no memory for it.
    """

    def __init__(self, plan: bytes, trt: Any, *, held: tuple[str, ...] = (), where: str = "policy.engine", cuda: Any = None) -> None:
        self.where, self._said = where, Said()
        cuda = load_cuda() if cuda is None else cuda
        self._logger = self._said.logger(trt)  # The library keeps a pointer to it.
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise BundleError(
                f"{where}: {trt.__name__} {trt.__version__} cannot open it ({self._said.last()}). Engines are of one device, driver and version: build it "
                "again with `actlet engine --rebuild`."
            )
        self.inputs, self.outputs = _signature(self._engine, trt, where)
        if missing := sorted(set(held) - set(self.inputs)):
            raise BundleError(
                f"{where}: has no inputs {missing}, which condition.onnx gives; it has {sorted(self.inputs)}: build it again."
            )
        self._held, self._fed = held, tuple(name for name in self.inputs if name not in held)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise RobotFault(f"{where}: no memory on the GPU to run it ({self._said.last()}).")
        self._buffers = CudaBuffers(self.inputs | self.outputs, self._fed, tuple(self.outputs), cuda)
        for name, address in self._buffers.address.items():
            if not self._context.set_tensor_address(name, address):
                raise RobotFault(f"{where}: {name!r}: its memory is refused ({self._said.last()}).")
        for name in held:
            self._buffers.send(name)
        self.is_recorded = self._buffers.capture(functools.partial(_enqueue, self._context, self._said, where))
        """Whether a run is one CUDA graph."""
        self.providers = (f"{trt.__name__} {trt.__version__}",)

    def hold(self, values: Mapping[str, NDArray[Any]]) -> None:
        """Set the inputs that stay.

        Args:
            values: Every input of `held` by name.

        Raises:
            BundleError: Another set, or one of another type or shape.
        """
        self._copy_in(values, self._held)
        for name in self._held:
            self._buffers.send(name)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """One inference.

        Args:
            feeds: Every input by name, without those that are held.

        Returns:
            Every output by name, each a copy.

        Raises:
            BundleError: Another set of inputs, or one of another type or shape.
            RobotFault: The GPU failed.
        """
        self._copy_in(feeds, self._fed)
        self._buffers.run()
        return {name: self._buffers.host[name].copy() for name in self.outputs}

    def _copy_in(self, feeds: Mapping[str, NDArray[Any]], expected: tuple[str, ...]) -> None:
        host = self._buffers.host
        if set(feeds) != set(expected) or any(
            array.dtype != host[name].dtype or array.shape != host[name].shape for name, array in feeds.items()
        ):
            got = {name: (str(array.dtype), array.shape) for name, array in feeds.items()}
            raise BundleError(f"{self.where}: fed with {got}, expected { {name: self.inputs[name] for name in expected} }.")
        for name, array in feeds.items():
            np.copyto(host[name], array)


def _enqueue(context: Any, said: Said, where: str, stream: int) -> None:
    if not context.execute_async_v3(stream):
        raise RobotFault(f"{where}: inference failed ({said.last()}).")


def _signature(engine: Any, trt: Any, where: str) -> tuple[Signature, Signature]:
    inputs: Signature = {}
    outputs: Signature = {}
    for i in range(engine.num_io_tensors):
        name = engine.get_tensor_name(i)
        kind, shape = engine.get_tensor_dtype(name).name, tuple(int(size) for size in engine.get_tensor_shape(name))
        if kind not in _DTYPES or any(size < 1 for size in shape):
            raise BundleError(f"{where}: {name!r} is {kind} {shape}, expected one of {sorted(_DTYPES)} of a fixed shape: export it again.")
        side = inputs if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else outputs
        side[name] = (_DTYPES[kind], shape)
    return inputs, outputs
