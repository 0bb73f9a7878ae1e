"""What can run a bundle's policy.onnx, by name."""

from __future__ import annotations

import argparse

__all__ = ["BACKENDS", "add_backend"]

BACKENDS: dict[str, tuple[str, ...]] = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider",),
    "ort-tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider"),  # The second for what the first does not have.
    "tensorrt": ("CPUExecutionProvider",),  # For the instruction's part; policy.onnx is an engine.
}
"""Name -> ONNX Runtime's providers: the processor, a GPU through ONNX Runtime, or an engine that `actlet engine` has built."""


def add_backend(parser: argparse.ArgumentParser) -> None:
    """The flag --backend."""
    parser.add_argument(
        "--backend",
        choices=sorted(BACKENDS),
        default="cpu",
        help="what runs a bundle's policy: the processor, a GPU through ONNX Runtime (cuda, ort-tensorrt), or the engine that `actlet engine` built "
        "(tensorrt) (default: %(default)s)",
    )
