"""The statistics that a LeRobotDataset carries: min, max, mean, std, count and five quantiles for every feature.

Vectors are summarised per dimension, exactly, in float64. Frames are summarised per channel in [0, 1] from a histogram of the 256
values of every `FRAME_STRIDE`-th frame and pixel: histograms add up, so the dataset's statistics are those of all its episodes without
another look at the frames.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["frame_histogram", "frame_statistics", "vector_statistics"]

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
FRAME_STRIDE = 4  # Neighbouring pixels and frames are nearly alike: one in 64 of them is enough for a mean and a quantile.


def vector_statistics(values: NDArray[Any]) -> dict[str, list[float]]:
    """Statistics of numbers.

    Args:
        values: Any numeric or boolean type, shape (T, D).

    Returns:
        min, max, mean, std, count, q01 .. q99; each a list of D numbers, "count" a list of one.
    """
    values = np.asarray(values, dtype=np.float64)
    quantiles = np.quantile(values, list(QUANTILES.values()), axis=0)  # (5, D)
    return {
        "min": values.min(axis=0).tolist(),
        "max": values.max(axis=0).tolist(),
        "mean": values.mean(axis=0).tolist(),
        "std": values.std(axis=0).tolist(),
        "count": [len(values)],
        **{name: row.tolist() for name, row in zip(QUANTILES, quantiles, strict=True)},
    }


def frame_histogram(frames: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Count the values of each channel: uint8 (T, height, width, 3) -> int64 (3, 256)."""
    sample = frames[::FRAME_STRIDE, ::FRAME_STRIDE, ::FRAME_STRIDE]
    return np.stack([np.bincount(sample[..., channel].ravel(), minlength=256) for channel in range(3)]).astype(np.int64)


def frame_statistics(histogram: NDArray[np.int64]) -> dict[str, Any]:
    """Statistics of frames in [0, 1].

    Args:
        histogram: int64 (3, 256), from `frame_histogram`; may be a sum of several.

    Returns:
        The same keys as `vector_statistics`, each of shape (3, 1, 1) but for "count", a list of one: the pixels that were counted.
    """
    levels = np.arange(256) / 255.0
    total = histogram.sum(axis=1, keepdims=True)  # (3, 1)
    mean = (histogram * levels).sum(axis=1) / total[:, 0]
    variance = (histogram * (levels - mean[:, None]) ** 2).sum(axis=1) / total[:, 0]
    cumulative = np.cumsum(histogram, axis=1) / total  # (3, 256)
    present = histogram > 0
    result = {
        "min": levels[present.argmax(axis=1)],
        "max": levels[255 - present[:, ::-1].argmax(axis=1)],
        "mean": mean,
        "std": np.sqrt(variance),
        **{name: levels[(cumulative >= q).argmax(axis=1)] for name, q in QUANTILES.items()},
    }
    return {**{name: values.reshape(3, 1, 1).tolist() for name, values in result.items()}, "count": [int(total[0, 0])]}
