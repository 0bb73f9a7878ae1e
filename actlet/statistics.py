"""The few statistics that behaviour is judged by."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["latency_summary", "mcnemar_p", "paired_difference", "wilson_interval"]


def wilson_interval(successes: int, trials: int, *, z: float = 1.959964) -> tuple[float, float]:
    """Wilson score interval of a success rate (Wilson 1927); z = 1.96 for 95 %.

    Returns:
        (low, high), each in [0, 1]; (0, 1) when there are no trials.
    """
    if trials == 0:
        return (0.0, 1.0)
    p = successes / trials
    centre = p + z * z / (2 * trials)
    half = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return (max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale))


def mcnemar_p(ours: Sequence[bool], theirs: Sequence[bool]) -> float:
    """Exact two-sided McNemar test of two policies on the same episodes (McNemar 1947).

    Only episodes where the two differ count: under the null hypothesis each is as likely to win one.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} and {len(theirs)} episodes: the same episodes, in the same order, are needed.")
    only_ours = sum(a and not b for a, b in zip(ours, theirs, strict=True))
    only_theirs = sum(b and not a for a, b in zip(ours, theirs, strict=True))
    n, k = only_ours + only_theirs, min(only_ours, only_theirs)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / (1 << n))


def paired_difference(ours: Sequence[bool], theirs: Sequence[bool], *, z: float = 1.959964) -> tuple[float, float, float]:
    """Difference of two success rates on the same episodes, with the adjusted Wald interval of Bonett and Price (2012); z = 1.96 for 95 %.

    With n episodes, of which a are ours alone and b theirs alone, p = (a + 1) / (n + 2) and q = (b + 1) / (n + 2)::

        p - q  -+  z sqrt((p + q - (p - q)^2) / (n + 2))

    Returns:
        (difference, low, high), each in [-1, 1]; (0, -1, 1) when there are no episodes.

    Raises:
        ValueError: Not the same number of episodes.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} and {len(theirs)} episodes: the same episodes, in the same order, are needed.")
    if not ours:
        return (0.0, -1.0, 1.0)
    only_ours = sum(a and not b for a, b in zip(ours, theirs, strict=True))
    only_theirs = sum(b and not a for a, b in zip(ours, theirs, strict=True))
    n = len(ours)
    p, q = (only_ours + 1) / (n + 2), (only_theirs + 1) / (n + 2)
    half = z * math.sqrt((p + q - (p - q) ** 2) / (n + 2))
    return ((only_ours - only_theirs) / n, max(-1.0, p - q - half), min(1.0, p - q + half))


def latency_summary(seconds: Sequence[float] | NDArray[np.float64]) -> dict[str, float]:
    """Milliseconds: p50, p95, p99 and max of a series of durations in seconds.

    Raises:
        ValueError: An empty series.
    """
    values = np.asarray(seconds, dtype=np.float64) * 1e3
    if not values.size:
        raise ValueError("no durations to summarise: nothing was measured.")
    p50, p95, p99 = np.percentile(values, [50, 95, 99])
    return {"p50": float(p50), "p95": float(p95), "p99": float(p99), "max": float(values.max())}
