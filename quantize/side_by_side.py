"""Integer convolutions of one place that read the same bytes, as one: their filters side by side.

ONNX Runtime takes longer for 8 filters (9 us on 8 x 8 places of 96 channels) than for 48 (6 us), and for both at once what the 48 take. Each keeps the grid of
its result, since an output channel has a scale of its own anyway, and its zero z is part of its bias::

    round(s_x s_w acc / s_y) + z  =  round(s_x (s_w / s_y) (acc + z s_y / (s_x s_w)))          results on steps of 1, from 0 on

A layer does not lose its name by it: `layers_of`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from quantize.film import MAX_BIAS
from quantize.graph import Graph, weight_value

__all__ = ["FEW_FILTERS", "join_convolutions", "layers_of"]

FEW_FILTERS = 16
"""Convolutions of fewer filters are put beside another."""
_BETWEEN = " + "


def join_convolutions(graph: Graph) -> None:
    """Put every QLinearConv of few filters beside the one with the most that reads the same bytes; both 1 x 1, with strides of 1 and without padding."""
    found: dict[tuple[str, ...], list[onnx.NodeProto]] = {}
    for node in graph.nodes:
        if node.op_type == "QLinearConv" and _is_plain(node):
            found.setdefault(tuple(node.input[:3]), []).append(node)
    for nodes in found.values():
        few = [node for node in nodes if _filters(graph, node) < FEW_FILTERS]
        if few and len(nodes) > len(few):
            _join(graph, [max(nodes, key=lambda node: _filters(graph, node)), *few])


def layers_of(node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> dict[str, str]:
    """Name of every layer of the float network that a node computes -> the value that holds its weights, as `quantize.graph.weight_value` says.

    Args:
        node: A node of a quantized or a float graph.
        makers: Value -> the node that makes it.
    """
    maker = makers.get(node.input[3]) if node.op_type == "QLinearConv" else None
    if maker is None or maker.output[0] != f"{node.name}.weights":
        return {node.name: weight_value(node, makers)}
    return {name: weight_value(node, makers, start=weight) for name, weight in zip(node.name.split(_BETWEEN), maker.input, strict=True)}


def _is_plain(node: onnx.NodeProto) -> bool:
    usual = {"kernel_shape": {1}, "strides": {1}, "dilations": {1}, "pads": {0}}
    settings = {a.name: a for a in node.attribute}
    alike = all(set(settings[name].ints) == values for name, values in usual.items() if name in settings)
    return (
        alike
        and "kernel_shape" in settings
        and not {"auto_pad", "group"} & {name for name, a in settings.items() if a.s not in (b"", b"NOTSET") or a.i > 1}
    )


def _filters(graph: Graph, node: onnx.NodeProto) -> int:
    """As many as there are zeros, which are stored, however the filters are made."""
    return int(graph.constant(node.input[5]).size)


def _join(graph: Graph, nodes: list[onnx.NodeProto]) -> None:
    name = _BETWEEN.join(node.name for node in nodes)
    x_scale = float(graph.constant(nodes[0].input[1]))
    scales, biases, sizes = [], [], [_filters(graph, node) for node in nodes]
    for node in nodes:
        y_scale, zero = float(graph.constant(node.input[6])), int(graph.constant(node.input[7]))
        # A filter of nothing has the step of nothing, for which its zero would be more than a bias can be.
        least = graph.store(f"{node.name}.least_step", np.array(max(zero * y_scale / (x_scale * MAX_BIAS), 1e-30), np.float32))
        steps = graph.add("Max", [node.input[4], least], f"{node.name}.usable_steps")
        per_step = graph.store(f"{node.name}.per_result_step", np.array(1 / y_scale, np.float32))
        scales.append(graph.add("Mul", [steps, per_step], f"{node.name}.steps_of_result"))
        zeros = graph.store(f"{node.name}.zero_over_steps", np.array(zero * y_scale / x_scale, np.float32))
        rounded = graph.add("Round", [graph.add("Div", [zeros, steps], f"{node.name}.zero_sums")], f"{node.name}.zero_rounded")
        whole = graph.add("Cast", [rounded], f"{node.name}.zero_int32", to=onnx.TensorProto.INT32)
        biases.append(graph.add("Add", [node.input[8], whole], f"{node.name}.bias_with_zero"))
    parts = {"weights": [node.input[3] for node in nodes], "steps": scales, "biases": biases}
    weight, scale, bias = (graph.add("Concat", values, f"{name}.{part}", axis=0) for part, values in parts.items())
    one, none = graph.store("side_by_side.one", np.array(1, np.float32)), graph.store("side_by_side.zero", np.array(0, np.uint8))
    inputs = [*nodes[0].input[:3], weight, scale, graph.store(f"{name}.zeros", np.zeros(sum(sizes), np.int8)), one, none, bias]
    outputs = [node.output[0] for node in nodes]
    for node in nodes:
        graph.remove(node)
    graph.add("QLinearConv", inputs, f"{name}.maps", name=name, kernel_shape=[1, 1])
    graph.add("Split", [f"{name}.maps", graph.store(f"{name}.sizes", np.array(sizes))], outputs, axis=1)
