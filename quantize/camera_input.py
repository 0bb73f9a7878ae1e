"""A camera's first convolution, straight from the camera's bytes.

The student's preprocessing is exported as float operators in front of its first convolution::

    frame uint8 (1, h, w, 3) ─ Cast ─ Transpose ─ AveragePool k x k ─ Mul gain ─ Sub offset ─ Conv

Bytes are integers already, so rounding a float picture to 8 bits again is wasted, and so is the pool: a convolution of
pooled pixels is one of k times larger filters, stride and padding on the pixels, each weight repeated k x k times and divided by k^2.
With the integer zero z = round(offset / gain) the rest, d = z gain - offset, goes into the bias::

    sum_i w_i (gain p_i - offset) + b  =  gain sum_i w_i (p_i - z) + (b + d sum_i w_i)

which is exact but at the border, where padding stands for d instead of 0 (d is half a grey level: 1/256 of the range).

ONNX Runtime's fastest integer convolution takes channels by fours. A frame lies in memory pixel by pixel, so its g neighbouring pixels are 3 g
channels without a byte being moved, and filters that move on by g pixels are filters on such groups, with zeros where a group sticks out::

    (1, h, w, 3) ─ Reshape ─ (1, h, w / g, 3 g)          filter of 6 pixels, 2 before its place -> 2 groups of 4: . . x x | x x x x

A first convolution of 6 x 6 pixels took 0.6 of its time so, in a student whose scales and biases are constants (`runtime.policy_network`).

That convolution looks up the place of every group under every filter, which takes longer than the products. So few filters are put twice side by side,
the second time a group further, and move on by two groups: twice the channels at half the places, which lie in memory as they did::

    (1, h', w' / 2, 2 C) ─ Reshape ─ (1, h', w', C)          w w .     18 in place of 2 x 12 groups to look up for two places of 6 x 2,
                                                             . w w     and half as many products again: 0.8 of the time

Where pixels are pooled by an even k, two rows are added up first, on the grid of the pixels: the mean of two bytes, rounded to a byte, which is off by
half a grey level at most and by none on average. Filters then have half of the rows; pixels of one row lie three bytes apart, and adding up these
would take longer than it saves::

    (1, h, w, 3) ─ Reshape ─ (h / 2, 2 w 3) ─ Split ─ rows 0, 2, … and rows 1, 3, … ─ (a + b) / 2 ─ (1, h / 2, w / g, 3 g)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from actlet.rounding import MAX_CAMERA_POOL
from quantize.graph import Graph

__all__ = ["CHANNELS_FIRST", "CHANNELS_LAST", "CameraInput", "Columns", "find_camera_inputs", "group_columns"]

CHANNELS_FIRST = [0, 3, 1, 2]
CHANNELS_LAST = [0, 2, 3, 1]
MAX_PAIRED_FILTERS = 32
"""Filters that are put side by side at most: 64 are what ONNX Runtime's convolution makes at once."""


@dataclasses.dataclass(frozen=True)
class CameraInput:
    """The bytes behind the input of a first convolution."""

    source: str
    """The network's input, uint8 (1, h, w, 3)."""
    pool: int
    """k."""
    gain: float
    offset: float
    columns: Columns | None = None
    """How pixels are grouped; None for one by one."""
    filters: int = 0
    """C."""
    halves: bool = False
    """Whether two rows are added up first; k is even then."""
    size: tuple[int, int] | None = None
    """Height and width of what the pool sees of a frame whose size it does not divide; None for all of it."""

    @property
    def rows(self) -> int:
        """Rows that a filter's row becomes."""
        return self.pool // 2 if self.halves else self.pool

    @property
    def is_paired(self) -> bool:
        """Whether filters are put twice side by side."""
        return self.columns is not None and self.columns.places % 2 == 0 and self.filters <= MAX_PAIRED_FILTERS

    @property
    def frame(self) -> str:
        """The transposed frame, uint8 (1, 3 g, h, w / g), or half as high; convolutions that read it in the same way read the same."""
        return f"{self._name}.channels_first"

    @property
    def _name(self) -> str:
        how = [f"{self.size[0]} x {self.size[1]}"] if self.size is not None else []
        how += ["2 rows"] if self.halves else []
        how += [f"{self.columns.group} columns"] if self.columns is not None else []
        return ", ".join([self.source, *how])

    @property
    def zero(self) -> int:
        """z, the grey level that stands for 0."""
        return round(self.offset / self.gain)

    @property
    def rest(self) -> float:
        """d, what the zero is off by."""
        return self.zero * self.gain - self.offset

    def weight(self, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 (C, 3, a, b) on pooled pixels -> (C, 3, k a, k b) on pixels, or (C, 3 g, k a, n) on groups of pixels; `rows` a where two are added up."""
        k = self.pool
        pixels = (weight.repeat(self.rows, axis=2).repeat(k, axis=3) / (self.rows * k)).astype(np.float32)
        return pixels if self.columns is None else self.columns.weight(pixels)

    def bias(self, bias: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """The convolution's bias (C,) with the rest of the zero in it."""
        return (bias + self.rest * weight.sum(axis=(1, 2, 3))).astype(np.float32)

    def attributes(self, conv: onnx.NodeProto) -> list[onnx.AttributeProto]:
        """The convolution's attributes for pixels."""
        scales = [self.rows, self.pool]
        new = {
            a.name: [v * scales[i % 2] for i, v in enumerate(a.ints)]
            for a in conv.attribute
            if a.name in ("kernel_shape", "strides", "pads")  # Of height and width, by turns.
        }
        if self.columns is not None:
            new["kernel_shape"][1] = self.columns.count
            new["strides"][1] //= self.columns.group
            new["pads"][1], new["pads"][3] = self.columns.before, self.columns.behind
        if self.is_paired:
            new["kernel_shape"][1] += 1
            new["strides"][1] *= 2
        return [helper.make_attribute(a.name, new[a.name]) if a.name in new else a for a in conv.attribute]

    def add_frame(self, graph: Graph) -> str:
        """The transposed frame, made where it is first asked for."""
        if graph.producer(self.frame) is None:
            source, seen = self.source, list(graph.shape(self.source))
            if self.size is not None:
                seen[1:3] = self.size
                limits = [
                    graph.store(f"{self._name}.{what}", np.array(at))
                    for what, at in (("from", [0, 0]), ("to", seen[1:3]), ("axes", [1, 2]))
                ]
                source = graph.add("Slice", [source, *limits], f"{self._name}.seen")
            shape = seen if self.columns is None else list(self.columns.shape)
            if self.halves:
                source, shape[1] = self._add_rows(graph, source, seen), shape[1] // 2
            if self.halves or self.columns is not None:
                source = graph.add(
                    "Reshape", [source, graph.store(f"{self._name}.grouped_shape", np.array(shape))], f"{self._name}.grouped"
                )
            graph.add("Transpose", [source], self.frame, perm=CHANNELS_FIRST)
        return self.frame

    def _add_rows(self, graph: Graph, source: str, shape: Sequence[int]) -> str:
        """uint8 (1, h, w, 3) -> (h / 2, w 3), the mean of every two rows."""
        name, (_, height, width, channels) = self._name, shape
        row = width * channels
        pairs = graph.add("Reshape", [source, graph.store(f"{name}.pairs_shape", np.array([height // 2, 2 * row]))], f"{name}.pairs")
        both = [f"{name}.even", f"{name}.odd"]
        graph.add("Split", [pairs, graph.store(f"{name}.rows", np.array([row, row]))], both, axis=1)
        half, zero = (
            graph.store(f"{name}.half", np.array(self.gain / 2, np.float32)),
            graph.store(f"{name}.z", np.array(self.zero, np.uint8)),
        )
        values = [graph.add("DequantizeLinear", [rows, half, zero], f"{rows}.value") for rows in both]
        whole = graph.store(f"{name}.gain", np.array(self.gain, np.float32))
        return graph.add("QuantizeLinear", [graph.add("Add", values, f"{name}.sum"), whole, zero], f"{name}.halved")

    def add_pairs(self, graph: Graph, name: str, filters: Sequence[str], rows: int) -> list[str]:
        """The filters twice side by side.

        Args:
            graph: Gets operators on them, which are folded or run once per instruction.
            name: Of the convolution.
            filters: Names of int8 weight (C, 3 g, rows, n), scale, zero and bias (C,).
            rows: Of a filter, `rows` a.

        Returns:
            Names of weight (2 C, 3 g, rows, n + 1), scale, zero and bias (2 C,).
        """
        assert self.columns is not None
        weight, scale, zero, bias = filters
        blank = graph.store(f"{name}.blank", np.zeros((self.filters, self.columns.shape[3], rows, 1), np.int8))
        places = [
            graph.add("Concat", pair, f"{name}.{side}", axis=3) for pair, side in (([weight, blank], "left"), ([blank, weight], "right"))
        ]
        return [
            graph.add("Concat", places, f"{name}.pairs", axis=0),
            *(graph.add("Concat", [part] * 2, f"{part}.pairs", axis=0) for part in (scale, zero, bias)),
        ]

    def add_unpaired(self, graph: Graph, pairs: str, result: str) -> None:
        """uint8 (1, 2 C, h', w' / 2) -> (1, C, h', w'): no byte moves where channels lie last."""
        assert self.columns is not None
        shape = graph.store(f"{result}.unpaired_shape", np.array([1, -1, self.columns.places, self.filters]))
        last = graph.add("Transpose", [pairs], f"{result}.pairs_last", perm=CHANNELS_LAST)
        graph.add("Transpose", [graph.add("Reshape", [last, shape], f"{result}.last")], result, perm=CHANNELS_FIRST)


@dataclasses.dataclass(frozen=True)
class Columns:
    """Neighbouring pixels of a row as channels."""

    shape: tuple[int, int, int, int]
    """(1, h, w / g, 3 g)."""
    group: int
    """g."""
    count: int
    """n, the groups that a filter covers."""
    offset: int
    """Pixels of the first group that are before the filter."""
    before: int
    """Groups of padding."""
    behind: int
    places: int
    """w', where a filter is put in a row."""

    def weight(self, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 (C, 3, a, b) on pixels -> (C, 3 g, a, n)."""
        wide = np.zeros((*weight.shape[:3], self.count * self.group), np.float32)
        wide[..., self.offset : self.offset + weight.shape[3]] = weight
        grouped = wide.reshape(*weight.shape[:3], self.count, self.group).transpose(0, 4, 1, 2, 3)  # (C, g, 3, a, n)
        return grouped.reshape(len(weight), -1, weight.shape[2], self.count)


def group_columns(shape: tuple[int, ...], *, kernel: int, stride: int, pads: tuple[int, int]) -> Columns | None:
    """How the pixels of a row can be grouped for filters of `kernel` pixels.

    Args:
        shape: (1, h, w, 3) of the frame.
        kernel: Width of a filter in pixels.
        stride: Pixels from one filter to the next.
        pads: Pixels of padding on the left and on the right.

    Returns:
        None where groups of `stride` pixels do not divide the row, or are no multiple of four channels.
    """
    _, height, width, channels = shape
    if width % stride or channels * stride % 4:
        return None
    before = -(-pads[0] // stride)
    offset = before * stride - pads[0]
    count = -(-(offset + kernel) // stride)
    places = (width + sum(pads) - kernel) // stride + 1
    behind = places - 1 + count - before - width // stride
    return Columns((1, height, width // stride, channels * stride), stride, count, offset, before, behind, places) if behind >= 0 else None


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
    if perm != CHANNELS_FIRST:
        return None
    source, pads = before.input[0], [pool * pad for pad in attributes.get("pads", [0, 0, 0, 0])]
    batch, height, width, channels = graph.shape(source)
    height, width = seen = height // pool * pool, width // pool * pool  # What is left over, the pool does not see.
    columns = group_columns(
        (batch, height, width, channels),
        kernel=pool * graph.constant(conv.input[1]).shape[3],
        stride=pool * attributes["strides"][1],
        pads=(pads[1], pads[3]),
    )
    columns = columns if "pads" in attributes and "kernel_shape" in attributes else None
    halves = pool % 2 == 0 and batch == 1 and {"pads", "kernel_shape"} <= attributes.keys()
    whole = seen == graph.shape(source)[1:3]
    return CameraInput(source, pool, gain, offset, columns, len(graph.constant(conv.input[1])), halves, None if whole else seen)


def _constant_side(graph: Graph, value: str, op: str) -> tuple[str, float | None]:
    """(v, c) if a value is v * c or v - c with a stored number c, else (value, None)."""
    node = graph.producer(value)
    if node is None or node.op_type != op or not graph.is_constant(node.input[1]) or graph.constant(node.input[1]).size != 1:
        return value, None
    return node.input[0], float(graph.constant(node.input[1]).item())
