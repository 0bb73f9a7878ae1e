"""Keypoints that the instruction asks for, as filters of the convolution that makes the other keypoints' maps.

A student looks for points in a picture with learned filters and with filters that the instruction makes (`distill.student`)::

    x ─┬─ Conv 1x1 (learned filters) ─ Reshape ──┐
       └─ Reshape ─ MatMul (asked filters) ──────┴─ Concat ─ maps (1, P, h w)

A product of every position with a filter is a convolution of 1x1, so both are one, with the filters side by side. The asked ones are rounded as stored
weights are, by operators that follow from the instruction and so run once (`quantize.condition`). Seven operators fewer a camera, and nothing
else reads x in float.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
from numpy.typing import NDArray

from quantize.graph import Graph

__all__ = ["AskedMaps", "find_asked_maps"]


@dataclasses.dataclass(frozen=True)
class AskedMaps:
    """One such place."""

    conv: onnx.NodeProto
    asked: str
    """The value that holds the asked filters, float32 (1, P', C)."""
    maps: str
    """All maps, float32 (1, P, h w): the learned filters' first."""
    count: int
    """P'."""
    channels: int
    """C."""
    shape: tuple[int, int, int]
    """(1, P, h w)."""
    replaced: tuple[onnx.NodeProto, ...]

    def round_filters(self, graph: Graph, levels: int) -> tuple[str, str]:
        """Add the operators that round the asked filters; names of int8 (P', C, 1, 1) and of their float32 steps (P',)."""
        name = f"{self.conv.name}.asked"
        column = graph.add(
            "Reshape", [self.asked, graph.store(f"{name}.shape", np.array([self.count, self.channels, 1, 1]))], f"{name}.column"
        )
        axes = graph.store(f"{name}.axes", np.array([1, 2, 3]))
        most = graph.add("ReduceMax", [graph.add("Abs", [column], f"{name}.abs"), axes], f"{name}.most", keepdims=0)
        least = graph.store(f"{name}.least", np.array(1e-12, np.float32))
        per_level = graph.store(f"{name}.per_level", np.array(1 / levels, np.float32))
        step = graph.add("Mul", [graph.add("Max", [most, least], f"{name}.largest"), per_level], f"{name}.step")
        wide = graph.add("Reshape", [step, graph.store(f"{name}.wide_shape", np.array([self.count, 1, 1, 1]))], f"{name}.wide")
        rounded = graph.add("Round", [graph.add("Div", [column, wide], f"{name}.steps")], f"{name}.rounded")
        return graph.add("Cast", [rounded], f"{name}.int8", to=onnx.TensorProto.INT8), step


def find_asked_maps(graph: Graph) -> dict[str, AskedMaps]:
    """Name of a convolution with learned filters -> the place; others are left out."""
    found = (_match(graph, node) for node in graph.weight_nodes() if node.op_type == "Conv")
    return {place.conv.name: place for place in found if place is not None}


def _match(graph: Graph, conv: onnx.NodeProto) -> AskedMaps | None:
    weight = graph.constant(conv.input[1])
    plain = {a.name: list(a.ints) for a in conv.attribute if a.name in ("strides", "pads", "dilations")}
    if weight.shape[2:] != (1, 1) or any(plain.get("pads", [])) or set(plain.get("strides", [1])) != {1}:
        return None
    flat = graph.sole_consumer(conv.output[0], "Reshape")
    concat = graph.sole_consumer(flat.output[0], "Concat") if flat is not None else None
    if flat is None or concat is None or len(concat.input) != 2 or concat.input[0] != flat.output[0] or concat.attribute[0].i != 1:
        return None
    product = graph.producer(concat.input[1])
    source = graph.producer(product.input[1]) if product is not None and product.op_type == "MatMul" else None
    if product is None or source is None or source.op_type != "Reshape" or source.input[0] != conv.input[0]:
        return None
    filters, target = graph.producer(product.input[0]), _sizes(graph, flat)
    sizes = _sizes(graph, filters) if filters is not None and filters.op_type == "Reshape" else None
    if target is None or sizes is None or len(sizes) != 3 or len(target) != 3 or len(graph.consumers(product.output[0])) != 1:
        return None
    count, channels = sizes[1] if sizes[1] > 0 else -1, weight.shape[1]
    if count < 1 or target[2] < 1 or sizes[2] not in (channels, -1):
        return None
    shape = (1, len(weight) + count, target[2])
    return AskedMaps(conv, product.input[0], concat.output[0], count, channels, shape, (conv, flat, product, concat))


def _sizes(graph: Graph, reshape: onnx.NodeProto) -> list[int] | None:
    sizes: NDArray[np.int64] | None = graph.constant(reshape.input[1]) if graph.is_constant(reshape.input[1]) else None
    return None if sizes is None else [int(size) for size in sizes]
