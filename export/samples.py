"""The recorded inputs that a checkpoint carries: what parity is checked on, and what golden.npz replays on the robot."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from actlet.errors import CheckpointError
from actlet.storage import read_json
from distill.student import Student
from distill.text_encoder import EMBEDDING_DIM

__all__ = ["DECISION_MARGIN", "Samples", "load_samples"]

DECISION_MARGIN = 0.02
"""A flag whose probability is this close to its threshold may come out the other way on another processor."""


@dataclasses.dataclass(frozen=True)
class Samples:
    """N recorded inputs."""

    images: dict[str, NDArray[np.uint8]]
    """Camera name -> (N, h, w, 3)."""
    state: NDArray[np.float32]
    """(N, S), physical units."""
    instruction: NDArray[np.float32]
    """(N, 1152), what the torch encoder says to `text`; (N, 0) for a policy that reads no instruction."""
    committed: NDArray[np.float32]
    """(N, D, 1 + A), what was on its way."""
    text: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.text)

    def take(self, rows: NDArray[np.int64]) -> Samples:
        """Some of the samples, in the given order."""
        images = {name: frames[rows] for name, frames in self.images.items()}
        return Samples(images, self.state[rows], self.instruction[rows], self.committed[rows], tuple(self.text[row] for row in rows))

    def tensors(self, row: int, instruction: NDArray[np.float32] | None = None) -> list[Tensor]:
        """One sample as the positional inputs of an exportable student, with another instruction vector (1152,) if given."""
        vector = self.instruction[row] if instruction is None else instruction
        arrays = [*(frames[row] for frames in self.images.values()), self.state[row]]
        arrays += [vector] if len(vector) else []
        arrays += [self.committed[row]] if self.committed.shape[1] else []
        return [torch.from_numpy(np.ascontiguousarray(array))[None] for array in arrays]

    @torch.inference_mode()
    def decisive(self, student: Student) -> Samples:
        """The samples in which the student decides every flag clearly; all of them if there is none."""
        binary = torch.from_numpy(student.spec.action.is_binary)
        rows = []
        for row in range(len(self)):
            inputs, cameras = self.tensors(row), len(self.images)
            probabilities = torch.softmax(student(inputs[:cameras], *inputs[cameras:]).logits, -1)  # (1, H, A, K)
            expectation = (probabilities * torch.from_numpy(student.tokenizer.centres())).sum(-1)[..., binary]
            if not ((expectation - student.level[binary]).abs() < DECISION_MARGIN).any():
                rows.append(row)
        return self.take(np.array(rows or range(len(self))))


def load_samples(folder: str | Path, student: Student) -> Samples:
    """Read `samples.safetensors` of a student checkpoint.

    Raises:
        CheckpointError: It is missing, or its arrays are not what the student sees.
    """
    file = Path(folder) / "samples.safetensors"
    if not file.is_file():
        raise CheckpointError(f"{file} is missing: without recorded samples an export cannot be checked. Distill the student again.")
    texts = tuple(read_json(Path(folder) / "config.json").get("sample_instructions", ()))
    count = len(texts)
    expected: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        f"images.{c.name}": (torch.uint8, (count, c.height, c.width, 3)) for c in student.spec.observation.cameras
    }
    expected |= {
        "state": (torch.float32, (count, student.spec.observation.state_dim)),
        "instruction": (torch.float32, (count, EMBEDDING_DIM)),
    }
    told = (count, student.spec.timing.committed_steps, 1 + student.spec.action.dim)
    expected |= {"committed": (torch.float32, told)} if student.spec.timing.committed_steps else {}
    try:
        tensors = load_file(file)
    except Exception as error:  # safetensors' own error has no base class of its own in every version.
        raise CheckpointError(f"{file} cannot be read ({error}): copy the checkpoint again.") from error
    got = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
    if got != expected or not count:
        raise CheckpointError(f"{file} holds {got}, expected {expected} for {count} sample_instructions: distill the student again.")
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    images = {camera.name: arrays[f"images.{camera.name}"] for camera in student.spec.observation.cameras}
    if not np.isfinite(arrays["state"]).all():
        raise CheckpointError(f"{file}: the recorded states are not finite: distill the student again.")
    return Samples(images, arrays["state"], arrays["instruction"], arrays.get("committed", np.zeros(told, np.float32)), texts)
