"""Weights in 4 or 8 bits, in blocks with one scale each: for a small file.

How the grid of a block is chosen, and how weights are rounded to it: `quantize.block_rounding`. In the file a weight is an int4 or int8
constant, Cast, Mul by the scales, (Add of the offsets,) Reshape (opset 21: the first with int4), which ONNX Runtime computes once, at
load. The obvious form, DequantizeLinear with blocks, it does not fold (measured with 1.31): it would unpack all weights at every step,
and it has no 4-bit convolution at all. TensorRT reads the obvious form alone: the dialect "portable".

What is unpacked is one of two things, so that how a weight is stored and how it is computed with are two choices:

* the float weight: the speed is float's, the arithmetic too;
* the integers that an int8 operator reads (`quantize.int8`), in units of their own step, rounded to whole ones: a file of 4 bits at int8's
  speed.

Learned by measuring: see docs/quantization.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Literal

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray

from actlet.errors import QuantizationError
from actlet.rounding import INT4_BLOCK, INT4_MIN_WEIGHTS, MIN_CHANNELS
from quantize.block_rounding import BLOCKS, Method, blocks_of, gptq, make_grid
from quantize.frames import Frames
from quantize.graph import Graph, channel_axis
from quantize.input_products import input_products
from quantize.side_by_side import layers_of

__all__ = ["OPSET", "WeightConfig", "pack", "packed_nodes", "products_for", "quantize_weights", "require_stored", "will_be_packed"]

OPSET = 21
_UNPACKING = ("Reshape", "Slice", "Add", "Mul", "Round", "Clip", "Cast", "DequantizeLinear")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightConfig:
    """Which weights are stored in fewer bits, and how."""

    bits: int = 4
    """4 or 8."""
    block: int = INT4_BLOCK
    """Weights that share a scale: 16, 32, 64 or 128. Its 16 bits are half a bit a weight in blocks of 32."""
    symmetric: bool = True
    """Without an offset, which would be another 16 bits a block."""
    method: Method = "rtn"
    """Rounding to the nearest of a searched grid, "hqq" (its own grid, never symmetric), or "gptq", which looks at recorded inputs."""
    dialect: Literal["cpu", "portable"] = "cpu"
    """"cpu": unpacked by operators that ONNX Runtime folds when it loads the file. "portable": by DequantizeLinear with blocks, which TensorRT reads too;
    symmetric, with scales of 32 bits, and ONNX Runtime unpacks at every step."""
    exclude: tuple[str, ...] = ()
    """Names of nodes whose weights stay as they are."""
    min_weights: int = INT4_MIN_WEIGHTS
    """Nodes with fewer weights stay as they are: they are under a tenth of a percent of the file. So do products of fewer than 8 inputs or
    outputs, such as the two coordinates that keypoints are averaged over: see `quantize.int8`."""

    def __post_init__(self) -> None:
        if self.bits not in (4, 8) or self.block not in BLOCKS or self.method not in ("rtn", "hqq", "gptq"):
            raise QuantizationError(
                f"weights: {self.bits} bits in blocks of {self.block} by {self.method!r}, expected 4 or 8, one of {list(BLOCKS)}, and 'rtn', 'hqq' or 'gptq'."
            )
        if self.dialect not in ("cpu", "portable"):
            raise QuantizationError(f"dialect {self.dialect!r}, expected 'cpu' or 'portable'.")
        if self.dialect == "portable" and not self.symmetric:
            raise QuantizationError("TensorRT takes blocks without an offset: leave --asymmetric and hqq out, or take the dialect 'cpu'.")
        if self.method == "hqq" and self.symmetric:
            raise QuantizationError(
                "hqq moves the offset of a block, and a symmetric grid has none: pass symmetric=False, or take rtn or gptq."
            )


def will_be_packed(model: onnx.ModelProto, config: WeightConfig | None = None) -> list[str]:
    """Names of the nodes whose weights are stored in fewer bits; every other Conv, Gemm and MatMul keeps its own.

    Raises:
        UnknownNameError: `exclude` names a node that has no weights or does not exist.
        QuantizationError: Nothing would be left to quantize.
    """
    config, graph = config or WeightConfig(), Graph(model)
    nodes = graph.weight_nodes_by_name(config.exclude)
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


def quantize_weights(model: onnx.ModelProto, frames: Frames | None = None, config: WeightConfig | None = None) -> onnx.ModelProto:
    """The network with packed weights and float arithmetic.

    Args:
        model: policy.onnx of a float bundle.
        frames: Recorded inputs, which gptq alone needs.
        config: Which weights, and how.

    Raises:
        QuantizationError: Nothing to quantize, gptq without frames, or the result is not what was asked for.
        UnknownNameError: `exclude` names a node that does not exist.
    """
    config = config or WeightConfig()
    asked, graph = will_be_packed(model, config), Graph(model)
    products = products_for(model, asked, frames, config)
    for node in [node for node in graph.weight_nodes() if node.name in asked]:
        name = node.input[1]
        node.input[1] = pack(graph, name, graph.constant(name), channel_axis(node), config, products.get(node.name))
    graph.halve_large_weights()
    quantized = graph.finish(opset=OPSET)
    require_stored(asked, packed_nodes(quantized, config.bits), f"int{config.bits}")
    return quantized


def products_for(
    model: onnx.ModelProto, names: Collection[str], frames: Frames | None, config: WeightConfig
) -> Mapping[str, NDArray[np.float64]]:
    """What `gptq` needs of the named nodes; nothing for another method."""
    if config.method != "gptq":
        return {}
    if frames is None:
        raise QuantizationError("gptq rounds by recorded inputs: pass a dataset (--data data/table), or take rtn or hqq.")
    return input_products(model, names, frames)


def require_stored(asked: Collection[str], stored: Collection[str], what: str) -> None:
    """Refuse a file that is not what was asked for.

    Raises:
        QuantizationError: A node is missing, or one is there that was not asked for.
    """
    if set(stored) != set(asked):
        raise QuantizationError(
            f"{len(asked)} nodes were to become {what}, {len(stored)} did; missing: {sorted(set(asked) - set(stored))}, "
            f"unasked: {sorted(set(stored) - set(asked))}. The graph has a form that is not understood: exclude these nodes."
        )


def packed_nodes(model: onnx.ModelProto, bits: int) -> set[str]:
    """Names of the nodes of a file whose weights are packed in so many bits."""
    graph, kinds = Graph(model), {4: (ml_dtypes.int4, ml_dtypes.uint4), 8: (np.int8, np.uint8)}[bits]
    makers = {output: node for node in graph.nodes for output in node.output}
    found = set()
    for node in graph.nodes:
        for name, weight in layers_of(node, makers).items():
            value, unpacked = weight, False
            if value in makers and makers[value].op_type == "DequantizeLinear":
                value = makers[value].input[0]
            while value in makers and makers[value].op_type in _UNPACKING:
                value, unpacked = makers[value].input[0], True
            if unpacked and graph.is_constant(value) and graph.constant(value).dtype in kinds:
                found.add(name)
    return found


def pack(
    graph: Graph,
    name: str,
    weight: NDArray[np.float32],
    axis: int,
    config: WeightConfig,
    product: NDArray[np.float64] | None = None,
    levels: int | None = None,
) -> str:
    """Put a weight into the file in fewer bits, and the operators that unpack it into the graph.

    Args:
        graph: Gets them.
        name: Of the weight; what is added is called after it.
        weight: float32; with `levels` in units of the steps of an int8 operator.
        axis: Along which each slice makes one output.
        config: How.
        product: (K, K) of `input_products` for gptq; rounded to the nearest without.
        levels: Unpack to int8 of -levels .. levels instead of float.

    Returns:
        Name of the unpacked value; of one that is packed already, for another node that shares the weight, the same.
    """
    result = f"{name}.float" if levels is None else f"{name}.int8"
    if graph.producer(result) is not None:
        return result
    grid = make_grid(weight, bits=config.bits, block=config.block, symmetric=config.symmetric, method=config.method)
    if product is None:
        q = grid.nearest(blocks_of(weight, config.block))
    else:
        steps, offsets = (values.reshape(weight.shape) for values in grid.per_weight(config.block, weight.size))
        rows = [_outputs_first(values, axis) for values in (weight, steps, offsets)]
        rounded = gptq(*rows, grid.limits, product)
        shape = np.moveaxis(weight, axis, 0).shape
        q = blocks_of(np.moveaxis(rounded.reshape(shape), 0, axis).astype(np.float32), config.block).astype(np.int16)
    kind = {(4, True): ml_dtypes.int4, (4, False): ml_dtypes.uint4, (8, True): np.int8, (8, False): np.uint8}[config.bits, config.symmetric]
    graph.store(f"{name}.packed", q.astype(kind))
    if config.dialect == "portable":
        scale = graph.store(f"{name}.scale", grid.scale.astype(np.float32).reshape(-1, 1))
        parts = [f"{name}.packed", scale]
        unpacked = graph.add("DequantizeLinear", parts, f"{name}.blocks", axis=1, block_size=config.block)
    else:
        graph.store(f"{name}.scale", grid.scale)
        graph.add("Cast", [f"{name}.packed"], f"{name}.integers", to=onnx.TensorProto.FLOAT)
        graph.add("Cast", [f"{name}.scale"], f"{name}.scale_float", to=onnx.TensorProto.FLOAT)
        unpacked = graph.add("Mul", [f"{name}.integers", f"{name}.scale_float"], f"{name}.blocks")
    if grid.offset is not None:
        graph.store(f"{name}.offset", grid.offset)
        graph.add("Cast", [f"{name}.offset"], f"{name}.offset_float", to=onnx.TensorProto.FLOAT)
        unpacked = graph.add("Add", [unpacked, f"{name}.offset_float"], f"{name}.shifted")
    if weight.size % config.block:
        row = graph.add("Reshape", [unpacked, graph.store("packed.row", np.array([-1]))], f"{name}.row")
        ends = [graph.store(f"packed.from_{value}", np.array([value])) for value in (0, weight.size)]
        unpacked = graph.add("Slice", [row, *ends], f"{name}.cut")
    shape_name = graph.store(f"{name}.shape", np.array(weight.shape))
    unpacked = graph.add("Reshape", [unpacked, shape_name], f"{name}.float")
    if levels is None:
        return unpacked
    limits = [graph.store(f"packed.{end}_{levels}", np.array(sign * levels, np.float32)) for end, sign in (("least", -1), ("most", 1))]
    clipped = graph.add("Clip", [graph.add("Round", [unpacked], f"{name}.whole"), *limits], f"{name}.clipped")
    return graph.add("Cast", [clipped], result, to=onnx.TensorProto.INT8)


def _outputs_first(values: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """(N, K), the outputs first, the inputs in the order of memory."""
    moved = np.moveaxis(values, axis, 0)
    return np.ascontiguousarray(moved.reshape(len(moved), -1))
