"""Weights as integers of 4 or 8 bits in blocks of neighbours: how the grid of a block is chosen, and how weights are rounded to it.

A block is 16 to 128 weights that are neighbours in memory; the last one of a tensor is filled up with zeros. With a float16 step s, and
where the grid is not symmetric a float16 offset m::

    symmetric      w' = s q          q = clip(round(w / s), -8 .. 7)          or -128 .. 127
    not            w' = s q + m      q = clip(round((w - m) / s), 0 .. 15)    or    0 .. 255

Grids:

* search: of 16 fractions of the block's range (symmetric: and both signs of s) the one with the least squared error, as in AWQ's
  clipping (Lin et al. 2024) but on the weights alone;
* hqq: the range as it is, and m such that few large errors are left and the many small ones count less: half-quadratic splitting of
  |w - w'|^0.7 (Badri and Shaji 2023). Never symmetric.

Rounding: to the nearest, or by `gptq`, one input after the other, each error made good by the weights of the inputs that are still to
come, as far as recorded inputs say that they go together (Frantar et al. 2023).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from actlet.errors import QuantizationError
from actlet.rounding import int4_blocks

__all__ = ["BLOCKS", "BlockGrid", "Method", "blocks_of", "gptq", "make_grid"]

Method = Literal["rtn", "hqq", "gptq"]
BLOCKS = (16, 32, 64, 128)
FRACTIONS = np.linspace(0.6, 1.0, 16)
HQQ_STEPS, HQQ_NORM, HQQ_BETA, HQQ_GROWTH = 20, 0.7, 10.0, 1.01
DAMPING = 0.01
"""Of a Hessian's mean diagonal, added to its diagonal, as in GPTQ's own code."""


@dataclasses.dataclass(frozen=True)
class BlockGrid:
    """The grid of M blocks."""

    bits: int
    scale: NDArray[np.float16]
    """(M, 1)."""
    offset: NDArray[np.float16] | None
    """(M, 1), None for a symmetric grid."""

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest q."""
        levels = 1 << self.bits
        return (0, levels - 1) if self.offset is not None else (-levels // 2, levels // 2 - 1)

    def per_weight(self, block: int, size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """float32 (size,) each: step and offset of every weight."""
        scale = self.scale.astype(np.float32).repeat(block)[:size]
        if self.offset is None:
            return scale, np.zeros(size, np.float32)
        return scale, self.offset.astype(np.float32).repeat(block)[:size]

    def nearest(self, blocks: NDArray[np.float32]) -> NDArray[np.int16]:
        """(M, B) -> q."""
        shifted = blocks if self.offset is None else blocks - self.offset.astype(np.float32)
        return np.clip(np.rint(shifted / self.scale.astype(np.float32)), *self.limits).astype(np.int16)

    def weights(self, q: NDArray[np.int16]) -> NDArray[np.float32]:
        """(M, B), what the integers stand for."""
        scaled: NDArray[np.float32] = q * self.scale.astype(np.float32)
        return scaled if self.offset is None else scaled + self.offset.astype(np.float32)


def blocks_of(weight: NDArray[np.float32], block: int) -> NDArray[np.float32]:
    """float32 (M, block), the weights in the order of memory, filled up with zeros."""
    flat = weight.reshape(-1)
    return np.pad(flat, (0, -len(flat) % block)).reshape(-1, block)


def make_grid(weight: NDArray[np.float32], *, bits: int, block: int, symmetric: bool, method: Method) -> BlockGrid:
    """Choose the grid of every block of a weight.

    Args:
        weight: float32, any shape.
        bits: 4 or 8.
        block: Weights that share a step, one of `BLOCKS`.
        symmetric: Without an offset.
        method: "hqq" for its own grid; "rtn" and "gptq" search.

    Raises:
        QuantizationError: hqq with a symmetric grid.
    """
    if method == "hqq" and symmetric:
        raise QuantizationError("hqq moves the offset of a block, and a symmetric grid has none: take it as not symmetric, or rtn or gptq.")
    if bits == 4 and symmetric:
        return BlockGrid(4, int4_blocks(weight, block)[1], None)
    blocks = blocks_of(weight, block)
    if symmetric:  # Eight bits: 32 candidates differ by less than their rounding.
        return BlockGrid(bits, _half(np.abs(blocks).max(-1, keepdims=True) / ((1 << bits - 1) - 1)), None)
    low, high = np.minimum(blocks.min(-1, keepdims=True), 0), np.maximum(blocks.max(-1, keepdims=True), 0)
    steps = (1 << bits) - 1
    if method == "hqq":
        return _hqq(blocks, BlockGrid(bits, _half((high - low) / steps), low.astype(np.float16)))
    best, error = BlockGrid(bits, _half((high - low) / steps), low.astype(np.float16)), np.full(low.shape, np.inf, np.float32)
    for fraction in FRACTIONS:
        tried = BlockGrid(bits, _half(fraction * (high - low) / steps), (fraction * low).astype(np.float16))
        assert tried.offset is not None
        assert best.offset is not None
        got = np.square(tried.weights(tried.nearest(blocks)) - blocks).sum(-1, keepdims=True)
        better = got < error
        best = BlockGrid(bits, np.where(better, tried.scale, best.scale), np.where(better, tried.offset, best.offset))
        error = np.minimum(got, error)
    return best


def gptq(
    weight: NDArray[np.float32],
    scale: NDArray[np.float32],
    offset: NDArray[np.float32],
    limits: tuple[int, int],
    hessian: NDArray[np.float64],
) -> NDArray[np.int16]:
    """Round a matrix so that its products with the recorded inputs change little.

    Args:
        weight: float32 (N, K): N outputs, K inputs.
        scale: float32 (N, K), the step of every weight.
        offset: float32 (N, K).
        limits: Smallest and largest q.
        hessian: float64 (K, K), the mean of x x^T over recorded inputs x.

    Returns:
        q, int16 (N, K).
    """
    order = np.argsort(-np.diag(hessian), kind="stable")  # The inputs that matter most come first, while there is most to make good with.
    damped = hessian[np.ix_(order, order)] + np.eye(len(order)) * max(DAMPING * float(np.diag(hessian).mean()), 1e-12)
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)  # of the inverse
    left, step, base = weight[:, order].copy(), scale[:, order], offset[:, order]
    q = np.empty(weight.shape, np.int16)
    for begin in range(0, len(order), 128):
        end = min(begin + 128, len(order))
        errors = np.empty((len(weight), end - begin), np.float32)
        for k in range(begin, end):
            value = np.clip(np.rint((left[:, k] - base[:, k]) / step[:, k]), *limits)
            q[:, order[k]] = value
            errors[:, k - begin] = (left[:, k] - base[:, k] - value * step[:, k]) / upper[k, k]
            left[:, k:end] -= np.outer(errors[:, k - begin], upper[k, k:end])
        left[:, end:] -= errors @ upper[begin:end, end:]
    return q


def _hqq(blocks: NDArray[np.float32], grid: BlockGrid) -> BlockGrid:
    """Half-quadratic splitting, all blocks at once; errors in steps, so that one threshold fits all. The best offsets met are kept."""
    assert grid.offset is not None
    scale, zero, beta = grid.scale.astype(np.float32), -grid.offset.astype(np.float32) / grid.scale.astype(np.float32), HQQ_BETA
    inside, best, least = blocks / scale, zero, np.full(zero.shape, np.inf, np.float32)
    for _ in range(HQQ_STEPS):
        q = np.clip(np.rint(inside + zero), *grid.limits)
        error = inside - (q - zero)
        cost = (np.abs(error) ** HQQ_NORM).mean(-1, keepdims=True)
        best, least = np.where(cost < least, zero, best), np.minimum(cost, least)
        size = np.abs(error)
        kept = np.sign(error) * np.maximum(size - np.maximum(size, 1e-6) ** (HQQ_NORM - 1) / beta, 0)
        zero, beta = (q - (inside - kept)).mean(-1, keepdims=True), beta * HQQ_GROWTH
    return BlockGrid(grid.bits, grid.scale, (-best * scale).astype(np.float16))


def _half(scale: NDArray[np.float32]) -> NDArray[np.float16]:
    """float16, kept away from 0 (a block of zeros, or weights below float16's reach)."""
    half = scale.astype(np.float16)
    return np.where(half == 0, np.float16(6e-8), half)
