"""Distributions over K bins in a few of them: the k most probable bins, and one number for all the others.

    kept bins i    q_i = float16(p_i)
    other bins     q_i = tail / (K - k),    tail = float16(sum of all p - sum of the kept q), so that a row sums to 1

The total variation distance to what the teacher said is at most the mass outside the kept bins, plus float16's rounding (2^-11). With
k = K nothing is lost but the rounding. An action distribution has few bins that matter: neighbours of one peak, or the two ends of a flag.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

__all__ = ["TopK"]

_SUM_TOLERANCE = 2.0**-9  # Kept values and tail are rounded to 2^-11 of themselves, and sum to 1 before it.


@dataclasses.dataclass(frozen=True)
class TopK:
    """Distributions of any leading shape, over `count` bins each."""

    bins: NDArray[np.unsignedinteger]
    """uint8 (..., k) for up to 256 bins, else uint16: the kept bins, ascending."""
    probability: NDArray[np.float16]
    """float16 (..., k), of the kept bins."""
    tail: NDArray[np.float16]
    """float16 (...), the mass of all other bins together."""
    count: int
    """K."""

    @classmethod
    def of(cls, distribution: NDArray[np.floating], k: int) -> TopK:
        """Keep the k most probable bins of distributions (..., K), 1 <= k <= K <= 65536."""
        count = distribution.shape[-1]
        bins = np.sort(np.argpartition(distribution, count - k, axis=-1)[..., count - k :], axis=-1)
        kept = np.take_along_axis(distribution, bins, axis=-1).astype(np.float16)
        rest = distribution.sum(-1, dtype=np.float64) - kept.sum(-1, dtype=np.float64)
        tail = np.maximum(rest, 0.0) if k < count else np.zeros_like(rest)
        return cls(bins.astype(np.uint8 if count <= 256 else np.uint16), kept, tail.astype(np.float16), count)

    def dense(self) -> NDArray[np.float16]:
        """float16 (..., K): all bins, the tail spread evenly over those that were not kept."""
        others = max(1, self.count - self.bins.shape[-1])
        whole = np.repeat((self.tail / np.float32(others)).astype(np.float16)[..., None], self.count, axis=-1)
        np.put_along_axis(whole, self.bins.astype(np.intp), self.probability, axis=-1)
        return whole

    def fault(self) -> str:
        """What keeps these from being distributions, "" if nothing does."""
        if not (np.isfinite(self.probability).all() and np.isfinite(self.tail).all()):
            return "a probability is not finite"
        if (self.probability < 0).any() or (self.tail < 0).any():
            return "a probability is negative"
        bins = self.bins.astype(np.int64)
        if (np.diff(bins, axis=-1) <= 0).any() or (bins >= self.count).any():
            return f"bins are not ascending in 0 .. {self.count - 1}"
        mass = self.probability.sum(-1, dtype=np.float64) + self.tail
        if (np.abs(mass - 1.0) > _SUM_TOLERANCE).any():
            return f"probabilities sum to {mass.min():.4f} .. {mass.max():.4f} instead of 1"
        return ""
