"""int8 whose activations are rounded to a range that is found while it runs: nothing to calibrate, for products alone.

With x's own range at each call, s_x and z from it (uint8), and one s_w per output channel::

    x W + b  =  s_x s_w (q_x - z) q_w + b

A convolution is left as it is: ONNX Runtime's integer convolution without fixed ranges took 2.3 times the time of float
(1.31, one thread, a student of 1.9 M weights), and its own `quantize_dynamic` leaves the Gemm nodes that a student is made of as
they are, without a word. A student's time is in its convolutions, so this is for policies that are made of products: transformers.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx

from actlet.errors import QuantizationError
from actlet.rounding import INT8_LEVELS, INT8_MIN_WEIGHTS, MIN_CHANNELS, int8_channels
from quantize.graph import Graph, channel_axis
from quantize.weights import require_stored

__all__ = ["DynamicConfig", "dynamic_nodes", "quantize_dynamic", "will_be_dynamic"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DynamicConfig:
    """Which products become int8."""

    exclude: tuple[str, ...] = ()
    """Names of nodes that stay float."""
    min_weights: int = INT8_MIN_WEIGHTS
    """Nodes with fewer weights stay float; so do those of fewer than 8 inputs or outputs."""
    weight_levels: int = INT8_LEVELS
    """Largest |q| of a weight: see `quantize.int8.Int8Config`."""

    def __post_init__(self) -> None:
        if not 1 <= self.weight_levels <= 127:
            raise QuantizationError(f"weight_levels {self.weight_levels}, expected 1 .. 127.")


def will_be_dynamic(model: onnx.ModelProto, config: DynamicConfig | None = None) -> list[str]:
    """Names of the nodes that become int8.

    Raises:
        UnknownNameError: `exclude` names a node that has no weights or does not exist.
        QuantizationError: Nothing would be left to quantize.
    """
    config, graph = config or DynamicConfig(), Graph(model)
    nodes = graph.weight_nodes_by_name(config.exclude)
    shapes = {name: graph.constant(node.input[1]).shape for name, node in nodes.items() if node.op_type != "Conv" and _is_plain(node)}
    chosen = [
        name
        for name, shape in shapes.items()
        if name not in config.exclude and len(shape) == 2 and min(shape) >= MIN_CHANNELS and np.prod(shape) >= config.min_weights
    ]
    if not chosen:
        raise QuantizationError(
            f"nothing to quantize: of {len(nodes)} nodes with weights {len(shapes)} are plain products, {len(config.exclude)} are excluded, and the "
            f"rest have fewer than {config.min_weights} weights or {MIN_CHANNELS} channels. Take int8, which rounds convolutions too."
        )
    return chosen


def quantize_dynamic(model: onnx.ModelProto, config: DynamicConfig | None = None) -> onnx.ModelProto:
    """The network with integer products.

    Raises:
        QuantizationError: Nothing to quantize.
        UnknownNameError: `exclude` names a node that does not exist.
    """
    config = config or DynamicConfig()
    asked, graph = will_be_dynamic(model, config), Graph(model)
    for node in [node for node in graph.weight_nodes() if node.name in asked]:
        _product(graph, node, config.weight_levels)
    graph.halve_large_weights()
    quantized = graph.finish()
    require_stored(asked, dynamic_nodes(quantized), "int8")
    return quantized


def dynamic_nodes(model: onnx.ModelProto) -> set[str]:
    """Names of the nodes of a file that are integer products."""
    return {node.name for node in model.graph.node if node.op_type == "MatMulInteger"}


def _is_plain(node: onnx.NodeProto) -> bool:
    """x W + b with neither x turned nor anything scaled."""
    settings = {a.name: a.i or a.f for a in node.attribute}
    return not settings.get("transA", 0) and settings.get("alpha", 1.0) == settings.get("beta", 1.0) == 1.0


def _product(graph: Graph, node: onnx.NodeProto, levels: int) -> None:
    weight, axis = graph.constant(node.input[1]), channel_axis(node)
    values, scale = int8_channels(weight, axis, levels)
    if axis == 0:  # Outputs first, as a Gemm has them: the integer product has them last.
        values = np.ascontiguousarray(values.T)
    name, result = node.input[1], node.output[0]
    stored = [graph.store(f"{name}.int8", values), graph.store(f"{name}.zero", np.zeros(len(scale), np.int8))]
    steps = graph.store(f"{name}.scale", scale)
    source = node.input[0]
    parts = [f"{source}.{part}" for part in ("uint8", "step", "zero")]
    if graph.producer(parts[0]) is None:
        graph.add("DynamicQuantizeLinear", [source], parts)
    graph.remove(node)
    whole = graph.add("MatMulInteger", [parts[0], stored[0], parts[2], stored[1]], f"{result}.sum", name=node.name)
    scaled = graph.add("Mul", [parts[1], steps], f"{result}.steps")
    product = graph.add("Cast", [whole], f"{result}.whole", to=onnx.TensorProto.FLOAT)
    if len(node.input) > 2:
        graph.add("Add", [graph.add("Mul", [product, scaled], f"{result}.raw"), node.input[2]], result, name=f"{node.name}.bias")
    else:
        graph.add("Mul", [product, scaled], result, name=f"{node.name}.scaled")
