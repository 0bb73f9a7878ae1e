"""The range of every value that is to become an integer, read off recorded frames.

Three rules, all from one histogram per value (Nagel et al. 2021, A White Paper on Neural Network Quantization, section 3.1):

* minmax: everything that occurred. Never clips, but one outlier makes all steps coarse.
* percentile: all but 0.01 % at each end (the two ends of a value that is never negative: one).
* mse: the range, of 48 fractions of minmax, with the least expected squared error: rounding, step^2 / 12 inside, and
  clipping outside.

The network is run in float, with every wanted value as an extra output, once for the ranges and once for the histograms.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from actlet.errors import QuantizationError
from quantize.frames import Frames
from runtime.ort_backend import OrtModel, SessionConfig

__all__ = ["Histogram", "RangeRule", "inner_values", "observe", "value_range"]

RangeRule = Literal["minmax", "percentile", "mse"]
BINS = 2048
TAIL = 1e-4
LEVELS = 255


@dataclasses.dataclass
class Histogram:
    """How often a value was how large."""

    low: float = np.inf
    high: float = -np.inf
    counts: NDArray[np.int64] = dataclasses.field(default_factory=lambda: np.zeros(BINS, np.int64))

    @property
    def centres(self) -> NDArray[np.float64]:
        """float64 (BINS,), the middle of every bin."""
        return self.low + (np.arange(BINS) + 0.5) / BINS * (self.high - self.low)


def observe(model: onnx.ModelProto, names: Sequence[str], frames: Frames) -> dict[str, Histogram]:
    """Run the float network on all frames and count the sizes of some of its values.

    Args:
        model: The float network.
        names: Values inside it, or inputs of it.
        frames: Recorded inputs.

    Raises:
        QuantizationError: There are no frames, or a value is not finite.
    """
    if not len(frames):
        raise QuantizationError("no frames to calibrate with: ranges cannot be guessed. Give a recorded dataset.")
    histograms = {name: Histogram() for name in names}
    for counting in (False, True):
        for values in inner_values(model, names, frames):
            for name, histogram in histograms.items():
                _add(histogram, values[name], name, counting=counting)
    return histograms


def inner_values(model: onnx.ModelProto, names: Sequence[str], frames: Frames) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Run the float network frame by frame; name -> the value of that frame, for values inside it and inputs of it.

    Raises:
        QuantizationError: A name is no float value of the network.
    """
    network = _with_outputs(model, names)
    for row in range(len(frames)):
        feeds = frames.feeds(row)
        values = feeds | network.run(feeds)
        yield {name: values[name] for name in names}


def value_range(histogram: Histogram, rule: RangeRule) -> tuple[float, float]:
    """The range (low, high) that the integers should cover; it contains 0, so that 0 is exact (padding, ReLU)."""
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if rule == "minmax" or low == high:
        return low, high
    if rule == "percentile":
        share = np.cumsum(histogram.counts) / histogram.counts.sum()
        inside = histogram.centres[(share >= TAIL) & (share <= 1 - TAIL)]
        if not len(inside):
            return low, high
        return min(float(inside[0]), 0.0), max(float(inside[-1]), 0.0)
    fractions = np.linspace(0.06, 1.0, 48)
    errors = [_expected_error(histogram, low * fraction, high * fraction) for fraction in fractions]
    best = float(fractions[int(np.argmin(errors))])
    return low * best, high * best


def _expected_error(histogram: Histogram, low: float, high: float) -> float:
    """Sum over all values of the squared error of an integer grid of 255 steps over the range."""
    centres = histogram.centres
    clipped = np.clip(centres, low, high) - centres
    step = (high - low) / LEVELS
    return float((histogram.counts * (clipped**2 + np.where(clipped == 0, step * step / 12, 0.0))).sum())


def _add(histogram: Histogram, values: NDArray[np.float32], name: str, *, counting: bool) -> None:
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise QuantizationError(f"value {name!r} is not finite on a recorded frame: the float network is broken; export it again.")
    if not counting:
        histogram.low, histogram.high = min(histogram.low, low), max(histogram.high, high)
    elif histogram.high > histogram.low:
        histogram.counts += np.histogram(values, BINS, (histogram.low, histogram.high))[0]


def _with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> OrtModel:
    """The network with more outputs; unoptimised, so that every value is really there."""
    copy = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    shapes = {value.name: value for value in copy.graph.value_info}
    outside = {value.name for value in (*copy.graph.input, *copy.graph.output)}
    for name in dict.fromkeys(names):
        if name in outside:
            continue
        if name not in shapes or shapes[name].type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
            raise QuantizationError(f"value {name!r} is not a float value of the network.")
        sizes = [dim.dim_value for dim in shapes[name].type.tensor_type.shape.dim]
        copy.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sizes))
    return OrtModel(copy.SerializeToString(), config=SessionConfig(optimise=False), where="float network")
