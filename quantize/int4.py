"""int4: weights only, in blocks of 32 with one scale each: for a small file, not for speed.

Equation, for every block of 32 neighbouring weights, with a float16 scale s::

    q = clip(round(w / s), -8 .. 7)          w' = s q          |w - w'| <= |s| / 2  where nothing is clipped

s is searched for in `actlet.rounding`, which training reads too.

In the file a weight is an int4 constant, Cast, Mul by the scales, Reshape (opset 21: the first with int4). ONNX Runtime
computes that once at load and runs its float kernels, convolutions included: the speed is float's, the arithmetic too. The
obvious form, DequantizeLinear with blocks, it does not fold (measured with 1.31): it would unpack all weights at every
step, and it has no 4-bit convolution at all.
"""

from __future__ import annotations

import dataclasses

import ml_dtypes
import numpy as np
import onnx

from actlet.errors import QuantizationError, UnknownNameError
from actlet.rounding import INT4_BLOCK, INT4_MIN_WEIGHTS, MIN_CHANNELS, int4_blocks
from quantize.graph import Graph

__all__ = ["Int4Config", "int4_nodes", "quantize_int4", "will_be_int4"]

OPSET = 21


@dataclasses.dataclass(frozen=True, kw_only=True)
class Int4Config:
    """What becomes int4."""

    exclude: tuple[str, ...] = ()
    """Names of nodes that stay float."""
    min_weights: int = INT4_MIN_WEIGHTS
    """Nodes with fewer weights stay float: they are under a tenth of a percent of the file. So do products of fewer than 8 inputs or
    outputs, such as the two coordinates that keypoints are averaged over: see `quantize.int8`."""


def will_be_int4(model: onnx.ModelProto, config: Int4Config | None = None) -> list[str]:
    """Names of the nodes whose weights become int4; every other Conv, Gemm and MatMul stays float.

    Raises:
        UnknownNameError: `exclude` names a node that has no weights or does not exist.
        QuantizationError: Nothing would be left to quantize.
    """
    config, graph = config or Int4Config(), Graph(model)
    nodes = {node.name: node for node in graph.weight_nodes()}
    for name in config.exclude:
        if name not in nodes:
            raise UnknownNameError("node with weights", name, list(nodes))
    shapes = {name: graph.constant(node.input[1]).shape for name, node in nodes.items()}
    chosen = [
        name
        for name, shape in shapes.items()
        if name not in config.exclude
        and np.prod(shape) >= config.min_weights
        and len(shape) != 3
        and (len(shape) > 3 or min(shape) >= MIN_CHANNELS)
    ]
    if not chosen:
        raise QuantizationError(
            f"nothing to quantize: of {len(nodes)} nodes with weights, {len(config.exclude)} are excluded and the rest have fewer than "
            f"{config.min_weights} weights or no plain matrix. Exclude fewer, or lower min_weights."
        )
    return chosen


def quantize_int4(model: onnx.ModelProto, config: Int4Config | None = None) -> onnx.ModelProto:
    """The int4 form of a float network; needs no recorded frames.

    Raises:
        QuantizationError: Nothing to quantize, or the result is not what was asked for.
        UnknownNameError: `exclude` names a node that does not exist.
    """
    asked, graph = will_be_int4(model, config), Graph(model)
    for node in [node for node in graph.weight_nodes() if node.name in asked]:
        _store(graph, node)
    graph.halve_large_weights()
    quantized = graph.finish(opset=OPSET)
    stored = int4_nodes(quantized)
    if stored != set(asked):
        raise QuantizationError(
            f"{len(asked)} nodes were to become int4, {len(stored)} did; missing: {sorted(set(asked) - stored)}, "
            f"unasked: {sorted(stored - set(asked))}. The graph has a form that is not understood: exclude these nodes."
        )
    return quantized


def int4_nodes(model: onnx.ModelProto) -> set[str]:
    """Names of the nodes of a file whose weights are stored as int4."""
    graph = Graph(model)
    makers = {output: node for node in graph.nodes for output in node.output}
    found = set()
    for node in graph.nodes:
        value = node.input[1] if len(node.input) > 1 else ""
        while value in makers and makers[value].op_type in ("Reshape", "Slice", "Mul", "Cast"):
            value = makers[value].input[0]
        if graph.is_constant(value) and graph.constant(value).dtype == ml_dtypes.int4:
            found.add(node.name)
    return found


def _store(graph: Graph, node: onnx.NodeProto) -> None:
    """Put a weight into the file as int4, and the operators that unpack it into the graph."""
    name = node.input[1]
    weight = graph.constant(name)
    values, scale = int4_blocks(weight)
    graph.store(f"{name}.int4", values.astype(ml_dtypes.int4))
    graph.store(f"{name}.scale", scale)
    graph.add("Cast", [f"{name}.int4"], f"{name}.integers", to=onnx.TensorProto.FLOAT)
    graph.add("Cast", [f"{name}.scale"], f"{name}.scale_float", to=onnx.TensorProto.FLOAT)
    unpacked = graph.add("Mul", [f"{name}.integers", f"{name}.scale_float"], f"{name}.blocks")
    if weight.size % INT4_BLOCK:
        row = graph.add("Reshape", [unpacked, graph.store("int4.row", np.array([-1]))], f"{name}.row")
        ends = [graph.store(f"int4.from_{value}", np.array([value])) for value in (0, weight.size)]
        unpacked = graph.add("Slice", [row, *ends], f"{name}.cut")
    node.input[1] = graph.add("Reshape", [unpacked, graph.store(f"{name}.shape", np.array(weight.shape))], f"{name}.float")
