"""Memory, a stream and a captured graph of an NVIDIA GPU, through cuda-python (`cuda.bindings`): what a network's run needs, and no more.

A run is recorded once (`CudaBuffers.capture`): copy the inputs in, compute, copy the outputs out. From then on it is one launch and one wait, without
memory being taken or Python choosing anything. cuda-python 11.8, 12 and 13 have the same names for all of it.

Reference: CUDA Runtime API, https://docs.nvidia.com/cuda/cuda-runtime-api/ (stream capture, graphs).
"""

from __future__ import annotations

import ctypes
import importlib
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlet.errors import MissingLibraryError, RobotFault

__all__ = ["CudaBuffers", "load_cuda"]

_NON_BLOCKING = 1  # cudaStreamNonBlocking: nothing else that the process does on the GPU is waited for.


def load_cuda() -> Any:
    """cuda-python's runtime module, where a GPU answers.

    Raises:
        MissingLibraryError: It is not installed, or there is no GPU, or its driver is too old.
    """
    try:
        cuda = importlib.import_module("cuda.bindings.runtime")
    except (ImportError, OSError) as error:
        raise MissingLibraryError(
            f"cuda-python is not installed here ({str(error).splitlines()[0]}): it moves pictures and actions to the GPU and back",
            "pip install cuda-bindings   (11.8, 12 or 13, as the machine's CUDA)",
        ) from error
    status, count = cuda.cudaGetDeviceCount()
    if int(status) != 0 or not count:
        raise MissingLibraryError(f"no GPU answers ({_words(cuda, status)}). Is the driver there, and as new as cuda-python?", "nvidia-smi")
    return cuda


class CudaBuffers:
    """Arrays that lie on both sides, with the stream on which they go from one to the other.

    Args:
        shapes: Name -> (numpy dtype name, shape), inputs first.
        inputs: Which of them go to the GPU in every run; those that are neither these nor `outputs` go there when `send` is called.
        outputs: Which of them come back in every run.
        cuda: `load_cuda`.

    Raises:
        RobotFault: The GPU refused, with its words.
    """

    def __init__(
        self, shapes: Mapping[str, tuple[str, tuple[int, ...]]], inputs: tuple[str, ...], outputs: tuple[str, ...], cuda: Any
    ) -> None:
        self._cuda, self._inputs, self._outputs = cuda, inputs, outputs
        taken: list[tuple[Callable[[Any], Any], Any]] = []
        self._close = weakref.finalize(self, _give_back, taken)
        self.stream = self._call("cudaStreamCreateWithFlags", _NON_BLOCKING)
        taken.append((cuda.cudaStreamDestroy, self.stream))
        self._taken = taken
        self.host: dict[str, NDArray[Any]] = {}
        """Name -> array in this machine's memory, which the GPU reads and writes (page-locked)."""
        self.address: dict[str, int] = {}
        """Name -> address in the GPU's memory."""
        for name, (dtype, shape) in shapes.items():
            size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            pointer = int(self._call("cudaMallocHost", size))
            taken.append((cuda.cudaFreeHost, pointer))
            memory = (ctypes.c_uint8 * size).from_address(pointer)
            self.host[name] = np.frombuffer(memoryview(memory).cast("B"), dtype).reshape(shape)
            self.host[name][...] = 0
            self.address[name] = int(self._call("cudaMalloc", size))
            taken.append((cuda.cudaFree, self.address[name]))
        self._recorded: Any = None
        self._enqueue: Callable[[int], None] | None = None

    def send(self, name: str) -> None:
        """Copy one array to the GPU, and wait until it is there."""
        self._copy(name, to_gpu=True)
        self.wait()

    def wait(self) -> None:
        """Until everything on the stream is done.

        Raises:
            RobotFault: Something on it failed.
        """
        self._call("cudaStreamSynchronize", self.stream)

    def capture(self, enqueue: Callable[[int], None]) -> bool:
        """Record a run; it is made twice before, so that what is made at the first time is there.

        Args:
            enqueue: Puts the computation on the stream, whose number it is given.

        Returns:
            Whether it could be recorded; if not, every run puts its parts on the stream anew.
        """
        self._enqueue = enqueue
        for _ in range(2):
            self._whole()
            self.wait()
        cuda = self._cuda
        self._call("cudaStreamBeginCapture", self.stream, cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            self._whole()
        except Exception:
            cuda.cudaStreamEndCapture(self.stream)  # What cannot be captured has made the capture invalid: ended, and forgotten.
            cuda.cudaGetLastError()
            return False
        status, graph = cuda.cudaStreamEndCapture(self.stream)
        if int(status) != 0:
            cuda.cudaGetLastError()
            return False
        self._taken.append((cuda.cudaGraphDestroy, graph))
        self._recorded = self._call("cudaGraphInstantiateWithFlags", graph, 0)
        self._taken.append((cuda.cudaGraphExecDestroy, self._recorded))
        return True

    def run(self) -> None:
        """Inputs in, compute, outputs out; waits for it.

        Raises:
            RobotFault: The GPU failed, with its words.
        """
        if self._recorded is not None:
            self._call("cudaGraphLaunch", self._recorded, self.stream)
        else:
            self._whole()
        self.wait()

    def _whole(self) -> None:
        assert self._enqueue is not None
        for name in self._inputs:
            self._copy(name, to_gpu=True)
        self._enqueue(int(self.stream))
        for name in self._outputs:
            self._copy(name, to_gpu=False)

    def _copy(self, name: str, *, to_gpu: bool) -> None:
        kinds, array, there = self._cuda.cudaMemcpyKind, self.host[name], self.address[name]
        if to_gpu:
            self._call("cudaMemcpyAsync", there, array.ctypes.data, array.nbytes, kinds.cudaMemcpyHostToDevice, self.stream)
        else:
            self._call("cudaMemcpyAsync", array.ctypes.data, there, array.nbytes, kinds.cudaMemcpyDeviceToHost, self.stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        status, *found = getattr(self._cuda, name)(*arguments)
        if int(status) != 0:
            raise RobotFault(f"{name} failed on the GPU: {_words(self._cuda, status)}.")
        return found[0] if found else None


def _give_back(taken: list[tuple[Callable[[Any], Any], Any]]) -> None:
    for free, what in reversed(taken):
        free(what)


def _words(cuda: Any, status: Any) -> str:
    found, text = cuda.cudaGetErrorString(status)
    return text.decode() if int(found) == 0 else str(status)
