"""Weights and activations as integers: the arithmetic, and which layers it is for.

One copy, because two read it: `quantize`, which stores the integers, and `distill`, whose quantization-aware training only
helps as far as it rounds as they do. What was measured to choose these numbers stands in `quantize.int8` and docs/quantization.md.

    int8   q = clip(rint(w / s), -levels, levels)      one s per channel, max|w| / levels
    int4   q = clip(rint(w / s), -8, 7)                one float16 s per block, of 32 by default
    uint8  q = clip(rint(x / s) + z, 0, 255)           one s and z per activation
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "INT4_BLOCK",
    "INT4_MIN_WEIGHTS",
    "INT8_LEVELS",
    "INT8_MIN_MATRIX",
    "INT8_MIN_WEIGHTS",
    "MAX_CAMERA_POOL",
    "MIN_CHANNELS",
    "int4_blocks",
    "int8_channels",
    "uint8_grid",
]

INT8_LEVELS = 63
"""Largest |q| of an int8 weight: `quantize.int8.Int8Config.weight_levels`."""
INT8_MIN_WEIGHTS = 512
INT8_MIN_MATRIX = 4096
"""Smaller matrices stay float in int8: they are multiplied once, where filters are at every place, and converting what goes in and comes out takes longer."""
MIN_CHANNELS = 8
"""Products of fewer inputs or outputs stay float: the coordinates of keypoints are one, and their rounding is an action's. So do, in int8,
convolutions of fewer input channels, unless they can read a camera's bytes."""
MAX_CAMERA_POOL = 3
"""Largest factor of pooling through which a first convolution reads bytes. Its filters grow with the square: from 4 on, pooling first is cheaper."""
INT4_BLOCK = 32
INT4_MIN_WEIGHTS = 1024
_LEAST, _MOST = -8, 7
# Fractions of the largest |weight| that -8 or 7 may stand for; below 0.6 clipping always lost on normal and heavy-tailed weights.
_FRACTIONS = np.linspace(0.6, 1.0, 16)


def int8_channels(weight: NDArray[np.float32], axis: int = 0, levels: int = INT8_LEVELS) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 with one scale per slice along `axis`: int8 values of the same shape, float32 scales (C,)."""
    others = tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    scale = (np.maximum(np.abs(weight).max(axis=others), 1e-12) / levels).astype(np.float32)
    values = np.rint(weight / np.expand_dims(scale, others))
    return np.clip(values, -levels, levels).astype(np.int8), scale


def int4_blocks(weight: NDArray[np.float32], block: int = INT4_BLOCK) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Blocks of neighbours in memory; the last one is filled up with zeros.

    The scale of a block is the one of 32 candidates, among them the sign that puts the largest weight on -8, with the least sum of
    squared errors (a search as in AWQ's clipping, Lin et al. 2024, but on the weights alone).

    Args:
        weight: float32, any shape.
        block: Weights of a block.

    Returns:
        Values -8 .. 7, int8 (M, block), and scales, float16 (M, 1); a scale may be negative.
    """
    flat = weight.reshape(-1)
    blocks = np.pad(flat, (0, -len(flat) % block)).reshape(-1, block)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1, keepdims=True), -1)
    best = np.full(largest.shape, np.inf, np.float32)
    scale, difference = np.ones(largest.shape, np.float16), np.empty_like(blocks)
    for divisor in (*(_LEAST / _FRACTIONS), *(_MOST / _FRACTIONS)):
        # Rounded to float16 before it is judged: what is stored is what is compared.
        candidate = _usable(largest / divisor)
        _round(blocks, candidate, difference)
        difference *= candidate.astype(np.float32)
        difference -= blocks
        error = np.einsum("mb,mb->m", difference, difference)[:, None]
        scale, best = np.where(error < best, candidate, scale), np.minimum(error, best)
    return _round(blocks, scale, difference).astype(np.int8), scale


def uint8_grid(low: float, high: float) -> tuple[float, int]:
    """Step (a float32) and zero of 256 steps over a range that contains 0."""
    step = max(high - low, 1e-8) / 255
    return float(np.float32(step)), int(np.clip(round(-low / step), 0, 255))


def _usable(scale: NDArray[np.float32]) -> NDArray[np.float16]:
    """float16, kept away from 0 (a block of zeros, or weights below float16's reach)."""
    half = scale.astype(np.float16)
    return np.where(half == 0, np.float16(6e-8), half)


def _round(blocks: NDArray[np.float32], scale: NDArray[np.float16], out: NDArray[np.float32]) -> NDArray[np.float32]:
    """In place: training asks for all weights at every update."""
    np.divide(blocks, scale.astype(np.float32), out=out)
    return np.clip(np.rint(out, out=out), _LEAST, _MOST, out=out)
