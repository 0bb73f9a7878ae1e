"""Keypoints of all cameras at once: the operators behind their integer maps, once for a stack instead of once a camera.

A student looks for points in every camera's picture in the same way (`distill.student`), on maps of a few thousand numbers, which take less time than
starting the operators on them. Per camera, behind the convolution that makes the maps m and the squeeze s (`quantize.side_by_side`)::

    m + s ─ Split ┬ Reshape ─ DequantizeLinear ─ Softmax ─ MatMul grid ─ Reshape ─ points (1, 2 P)
                  └ Reshape ─ squeeze (1, c h w)

becomes, for n cameras, each with the grid of its bytes, so that the numbers are the same::

    Concat (n, P + c, h, w) ─ Split ┬ Reshape ─ DequantizeLinear ─ Softmax ─ MatMul grid ─ Reshape ─ Split ─ points of each
                                    └ Reshape ─ Split ─ squeeze of each
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
from onnx import helper

from quantize.graph import Graph

__all__ = ["join_cameras"]


@dataclasses.dataclass(frozen=True)
class _Camera:
    """What stands behind one camera's maps."""

    split: onnx.NodeProto
    flat: onnx.NodeProto
    dequantize: onnx.NodeProto
    softmax: onnx.NodeProto
    product: onnx.NodeProto
    points: onnx.NodeProto
    squeeze: onnx.NodeProto

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        """All of them."""
        return [self.split, self.flat, self.dequantize, self.softmax, self.product, self.points, self.squeeze]


def join_cameras(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network with the keypoints of all cameras whose maps are of one shape in one stack; one with fewer than two of them stays as it is."""
    graph, found = Graph(model), dict[tuple[object, ...], list[_Camera]]()
    for node in graph.nodes:
        camera = _match(graph, node) if node.op_type == "Split" else None
        if camera is not None:
            constants = (
                camera.split.input[1],
                camera.flat.input[1],
                camera.product.input[1],
                camera.points.input[1],
                camera.squeeze.input[1],
            )
            found.setdefault(tuple(graph.constant(name).tobytes() for name in constants), []).append(camera)
    several = [cameras for cameras in found.values() if len(cameras) > 1]
    for cameras in several:
        _join(graph, cameras)
    return graph.finish() if several else model


def _match(graph: Graph, split: onnx.NodeProto) -> _Camera | None:
    maker = graph.producer(split.input[0])
    if maker is None or maker.op_type != "QLinearConv" or len(graph.consumers(split.input[0])) != 1:
        return None
    if len(split.output) != 2 or len(split.input) != 2 or _axis(split) != 1:
        return None
    chain, value = list[onnx.NodeProto](), split.output[0]
    for op in ("Reshape", "DequantizeLinear", "Softmax", "MatMul", "Reshape"):
        node = graph.sole_consumer(value, op)
        if node is None or node.input[0] != value or (op in ("Reshape", "MatMul") and not graph.is_constant(node.input[1])):
            return None
        chain.append(node)
        value = node.output[0]
    flat, dequantize, softmax, product, points = chain
    squeeze = graph.sole_consumer(split.output[1], "Reshape")
    if squeeze is None or not all(graph.is_constant(name) for name in (split.input[1], squeeze.input[1], *dequantize.input[1:])):
        return None
    per_value = len(dequantize.input) == 3 and all(graph.constant(name).ndim == 0 for name in dequantize.input[1:])
    shapes = [graph.constant(node.input[1]).tolist() for node in (flat, points, squeeze)]
    one_row = [len(shape) for shape in shapes] == [3, 2, 2] and all(shape[0] == 1 for shape in shapes)
    plain = per_value and one_row and graph.constant(product.input[1]).ndim == 2 and _axis(softmax) in (-1, 2)
    return _Camera(split, flat, dequantize, softmax, product, points, squeeze) if plain else None


def _join(graph: Graph, cameras: list[_Camera]) -> None:
    first, count = cameras[0], len(cameras)
    name = " + ".join(camera.flat.output[0] for camera in cameras)

    def reshaped(value: str, like: onnx.NodeProto, part: str) -> str:
        shape = graph.constant(like.input[1]).copy()
        shape[0] = count
        return graph.add("Reshape", [value, graph.store(f"{name}.{part}_shape", shape)], f"{name}.{part}")

    def apart(value: str, outputs: list[str]) -> None:
        graph.add("Split", [value, graph.store(f"{name}.rows", np.ones(count, np.int64))], outputs, axis=0)

    for camera in cameras:
        for node in camera.nodes:
            graph.remove(node)
    stack = graph.add("Concat", [camera.split.input[0] for camera in cameras], f"{name}.stack", axis=0)
    maps, squeezes = f"{name}.maps", f"{name}.squeezes"
    graph.add("Split", [stack, first.split.input[1]], [maps, squeezes], axis=1)
    grids = [
        graph.store(f"{name}.{part}", np.array([graph.constant(camera.dequantize.input[i]) for camera in cameras]))
        for i, part in ((1, "scales"), (2, "zeros"))
    ]
    numbers = graph.add("DequantizeLinear", [reshaped(maps, first.flat, "flat"), *grids], f"{name}.numbers", axis=0)
    where = graph.add("Softmax", [numbers], f"{name}.where", axis=-1)
    products = " + ".join(camera.product.name for camera in cameras)
    points = graph.add("MatMul", [where, first.product.input[1]], f"{name}.points", name=products)
    apart(reshaped(points, first.points, "coordinates"), [camera.points.output[0] for camera in cameras])
    apart(reshaped(squeezes, first.squeeze, "rows_of_squeezes"), [camera.squeeze.output[0] for camera in cameras])


def _axis(node: onnx.NodeProto) -> int | None:
    return next((int(helper.get_attribute_value(a)) for a in node.attribute if a.name == "axis"), None)
