"""A camera's first convolution, straight from the camera's bytes.

The student's preprocessing is exported as float operators in front of its first convolution::

    frame uint8 (1, h, w, 3) ─ Cast ─ Transpose ─ AveragePool k x k ─ Mul gain ─ Sub offset ─ Conv

Bytes are integers already, so rounding a float picture to 8 bits again is wasted, and so is the pool: a convolution of
pooled pixels is one of k times larger filters, stride and padding on the pixels, each weight repeated k x k times and divided by k^2.
With the integer zero z = round(offset / gain) the rest, d = z gain - offset, goes into the bias::

    sum_i w_i (gain p_i - offset) + b  =  gain sum_i w_i (p_i - z) + (b + d sum_i w_i)

which is exact but at the border, where padding stands for d instead of 0 (d is half a grey level: 1/256 of the range).
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from actlet.rounding import MAX_CAMERA_POOL
from quantize.graph import Graph

__all__ = ["CHANNELS_FIRST", "CameraInput", "find_camera_inputs"]

CHANNELS_FIRST = [0, 3, 1, 2]


@dataclasses.dataclass(frozen=True)
class CameraInput:
    """The bytes behind the input of a first convolution."""

    source: str
    """The network's input, uint8 (1, h, w, 3)."""
    pool: int
    """k."""
    gain: float
    offset: float

    @property
    def frame(self) -> str:
        """The transposed frame, uint8 (1, 3, h, w)."""
        return f"{self.source}.channels_first"

    @property
    def zero(self) -> int:
        """z, the grey level that stands for 0."""
        return round(self.offset / self.gain)

    @property
    def rest(self) -> float:
        """d, what the zero is off by."""
        return self.zero * self.gain - self.offset

    def weight(self, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 (C, 3, a, b) on pooled pixels -> (C, 3, k a, k b) on pixels."""
        k = self.pool
        return (weight.repeat(k, axis=2).repeat(k, axis=3) / (k * k)).astype(np.float32)

    def bias(self, bias: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """The convolution's bias (C,) with the rest of the zero in it."""
        return (bias + self.rest * weight.sum(axis=(1, 2, 3))).astype(np.float32)

    def attributes(self, conv: onnx.NodeProto) -> list[onnx.AttributeProto]:
        """The convolution's attributes for pixels."""
        size = {"kernel_shape": self.pool, "strides": self.pool, "pads": self.pool}
        return [helper.make_attribute(a.name, [v * size[a.name] for v in a.ints]) if a.name in size else a for a in conv.attribute]


def find_camera_inputs(graph: Graph) -> dict[str, CameraInput]:
    """Name of a first convolution -> the bytes that it can read instead; convolutions with another preprocessing are left out."""
    found = {node.name: _match(graph, node) for node in graph.weight_nodes() if node.op_type == "Conv"}
    return {name: camera for name, camera in found.items() if camera is not None}


def _match(graph: Graph, conv: onnx.NodeProto) -> CameraInput | None:
    attributes = {a.name: helper.get_attribute_value(a) for a in conv.attribute}
    # Every pooled pixel must be as far from the next as a filter's, and strides must be written out to be multiplied.
    plain = set(attributes.get("dilations", [1])) == {1} and attributes.get("auto_pad", b"NOTSET") == b"NOTSET" and "strides" in attributes
    value, offset = _constant_side(graph, conv.input[0], "Sub")
    value, gain = _constant_side(graph, value, "Mul")
    if not plain or offset is None or gain is None or not 0 <= round(offset / gain) <= 255:
        return None
    pool, node = 1, graph.producer(value)
    if node is not None and node.op_type == "AveragePool":
        settings = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        pool = settings["kernel_shape"][0]
        square = list(settings["kernel_shape"]) == list(settings.get("strides", [1, 1])) == [pool, pool]
        if not square or pool > MAX_CAMERA_POOL or any(settings.get("pads", [])) or settings.get("ceil_mode", 0):
            return None
        node = graph.producer(node.input[0])
    before = graph.producer(node.input[0]) if node is not None else None
    if node is None or before is None or {node.op_type, before.op_type} != {"Cast", "Transpose"} or before.input[0] not in graph.inputs:
        return None
    perm = next(list(a.ints) for a in (*node.attribute, *before.attribute) if a.name == "perm")
    return CameraInput(before.input[0], pool, gain, offset) if perm == CHANNELS_FIRST else None


def _constant_side(graph: Graph, value: str, op: str) -> tuple[str, float | None]:
    """(v, c) if a value is v * c or v - c with a stored number c, else (value, None)."""
    node = graph.producer(value)
    if node is None or node.op_type != op or not graph.is_constant(node.input[1]) or graph.constant(node.input[1]).size != 1:
        return value, None
    return node.input[0], float(graph.constant(node.input[1]).item())
