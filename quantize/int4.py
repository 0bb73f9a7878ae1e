"""int4: weights only, in blocks of 32 with one scale each: for a small file, not for speed.

Equation, for every block of 32 neighbouring weights, with a float16 scale s::

    q = clip(round(w / s), -8 .. 7)          w' = s q          |w - w'| <= |s| / 2  where nothing is clipped

s is the one of 32 candidates, among them the sign that puts the largest weight on -8, with the least sum of squared
errors (a search as in AWQ's clipping, Lin et al. 2024, but on the weights alone).

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
from numpy.typing import NDArray

from actlet.errors import QuantizationError, UnknownNameError
from quantize.graph import Graph

__all__ = ["BLOCK", "Int4Config", "int4_nodes", "quantize_blocks", "quantize_int4", "will_be_int4"]

BLOCK = 32
OPSET = 21
_LEAST, _MOST = -8, 7
# Fractions of the largest |weight| that -8 or 7 may stand for; below 0.6 clipping always lost on normal and heavy-tailed weights.
_FRACTIONS = np.linspace(0.6, 1.0, 16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Int4Config:
    """What becomes int4."""

    exclude: tuple[str, ...] = ()
    """Names of nodes that stay float."""
    min_weights: int = 1024
    """Nodes with fewer weights stay float: they are under a tenth of a percent of the file."""


def quantize_blocks(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Blocks of 32 neighbours in memory; the last one is filled up with zeros.

    Args:
        weight: float32, any shape.

    Returns:
        Values -8 .. 7, int8 (M, 32), and scales, float16 (M, 1); a scale may be negative.
    """
    flat = weight.reshape(-1)
    blocks = np.pad(flat, (0, -len(flat) % BLOCK)).reshape(-1, BLOCK)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1, keepdims=True), -1)
    best = np.full(largest.shape, np.inf)
    scale = np.ones(largest.shape, np.float16)
    for divisor in (*(_LEAST / _FRACTIONS), *(_MOST / _FRACTIONS)):
        # Rounded to float16 before it is judged: what is stored is what is compared.
        candidate = _usable(largest / divisor)
        error = ((blocks - _round(blocks, candidate) * candidate.astype(np.float32)) ** 2).sum(-1, keepdims=True)
        scale, best = np.where(error < best, candidate, scale), np.minimum(error, best)
    return _round(blocks, scale).astype(np.int8), scale


def _usable(scale: NDArray[np.float32]) -> NDArray[np.float16]:
    """float16, kept away from 0 (a block of zeros, or weights below float16's reach)."""
    half = scale.astype(np.float16)
    return np.where(half == 0, np.float16(6e-8), half)


def _round(blocks: NDArray[np.float32], scale: NDArray[np.float16]) -> NDArray[np.float32]:
    return np.clip(np.rint(blocks / scale.astype(np.float32)), _LEAST, _MOST)


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
        name for name, shape in shapes.items() if name not in config.exclude and np.prod(shape) >= config.min_weights and len(shape) != 3
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
    values, scale = quantize_blocks(weight)
    graph.store(f"{name}.int4", values.astype(ml_dtypes.int4))
    graph.store(f"{name}.scale", scale)
    graph.add("Cast", [f"{name}.int4"], f"{name}.integers", to=onnx.TensorProto.FLOAT)
    graph.add("Cast", [f"{name}.scale"], f"{name}.scale_float", to=onnx.TensorProto.FLOAT)
    unpacked = graph.add("Mul", [f"{name}.integers", f"{name}.scale_float"], f"{name}.blocks")
    if weight.size % BLOCK:
        row = graph.add("Reshape", [unpacked, graph.store("int4.row", np.array([-1]))], f"{name}.row")
        ends = [graph.store(f"int4.from_{value}", np.array([value])) for value in (0, weight.size)]
        unpacked = graph.add("Slice", [row, *ends], f"{name}.cut")
    node.input[1] = graph.add("Reshape", [unpacked, graph.store(f"{name}.shape", np.array(weight.shape))], f"{name}.float")
