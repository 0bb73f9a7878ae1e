"""golden.npz: recorded inputs and outputs of a bundle, replayed when the bundle is loaded.

Arrays of the file, all with the same number of samples N in front::

    images.<camera>   uint8 (N, height, width, 3), one array per camera
    state             float32 (N, S), physical units
    text              unicode (N,), the instructions
    instruction       float32 (N, E), what instruction.onnx answered to `text`; absent for a policy that reads no instruction
    committed         float32 (N, D, 1 + A), what was on its way; absent where D = `committed_steps` is 0
    actions           float32 (N, H, A), what policy.onnx answered, physical units, before any clipping
    confidence        float32 (N, H)

The outputs are those of this very bundle (an int8 bundle records its own answers, not its parent's), so that a difference
means another processor, another runtime, or an altered file, and never the price of quantization.
"""

from __future__ import annotations

import dataclasses
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlet.errors import BundleError
from actlet.manifest import Manifest
from actlet.storage import write_bytes

__all__ = ["Golden"]

MAX_UNPACKED_BYTES = 512 << 20  # 16 samples of four 1920x1080 cameras take 400 MB.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Golden:
    """The content of golden.npz."""

    images: Mapping[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    text: tuple[str, ...]
    instruction: NDArray[np.float32]
    committed: NDArray[np.float32]
    actions: NDArray[np.float32]
    confidence: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.text)

    def save(self, path: str | Path) -> None:
        """Write the file whole; the same content gives the same bytes."""
        arrays: dict[str, NDArray[Any]] = {f"images.{name}": frames for name, frames in self.images.items()}
        arrays |= {"state": self.state, "text": np.array(self.text)}
        arrays |= {"instruction": self.instruction} if self.instruction.shape[1] else {}
        arrays |= {"committed": self.committed} if self.committed.shape[1] else {}
        arrays |= {"actions": self.actions, "confidence": self.confidence}
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # numpy's stub takes its own flag for an array's name.
        write_bytes(path, file.getvalue())

    @classmethod
    def load(cls, data: bytes, manifest: Manifest, *, where: str = "golden.npz") -> Golden:
        """Parse the content of golden.npz; nothing in it is ever unpickled.

        Args:
            data: The file's bytes.
            manifest: Says which arrays of which shape are expected.
            where: The file's name, for messages.

        Raises:
            BundleError: Not such a file, too large when unpacked, or arrays of another name, type, shape or not finite.
        """
        arrays = _unpack(data, where)
        spec, embedding = manifest.spec, manifest.embedding_dim
        steps, samples = spec.timing.horizon, (*np.shape(arrays.get("state", ())), 0)[0]
        expected: dict[str, tuple[str, tuple[int, ...]]] = {
            f"images.{camera.name}": ("uint8", (samples, camera.height, camera.width, 3)) for camera in spec.observation.cameras
        }
        expected |= {
            "state": ("float32", (samples, spec.observation.state_dim)),
            "text": ("str", (samples,)),
            "actions": ("float32", (samples, steps, spec.action.dim)),
            "confidence": ("float32", (samples, steps)),
        }
        expected |= {"instruction": ("float32", (samples, embedding))} if embedding else {}
        told = (samples, spec.timing.committed_steps, 1 + spec.action.dim)
        expected |= {"committed": ("float32", told)} if spec.timing.committed_steps else {}
        if set(arrays) != set(expected) or not samples:
            raise BundleError(f"{where}: arrays {sorted(arrays)} with {samples} samples, expected {sorted(expected)} with at least one.")
        for name, (kind, shape) in expected.items():
            array = arrays[name]
            got = "str" if array.dtype.kind == "U" else str(array.dtype)
            if (got, array.shape) != (kind, shape):
                raise BundleError(f"{where}: {name} is {got} {array.shape}, expected {kind} {shape}.")
            if kind == "float32" and not np.isfinite(array).all():
                raise BundleError(f"{where}: {name} holds values that are not finite.")
        return cls(
            images={camera.name: arrays[f"images.{camera.name}"] for camera in spec.observation.cameras},
            state=arrays["state"],
            text=tuple(str(text) for text in arrays["text"]),
            instruction=arrays.get("instruction", np.zeros((samples, 0), np.float32)),
            committed=arrays.get("committed", np.zeros(told, np.float32)),
            actions=arrays["actions"],
            confidence=arrays["confidence"],
        )


def _unpack(data: bytes, where: str) -> dict[str, NDArray[Any]]:
    """The arrays of an npz file; sizes are looked at before anything is unpacked."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_UNPACKED_BYTES:
            raise BundleError(f"{where}: {size} bytes when unpacked, expected at most {MAX_UNPACKED_BYTES}: record fewer samples.")
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return {name: np.asarray(file[name]) for name in file.files}
    except BundleError:
        raise
    except Exception as error:  # Parsers of hostile bytes raise many kinds; all mean the same to the caller.
        raise BundleError(f"{where}: not a readable .npz file of plain arrays ({type(error).__name__}: {error}).") from error
