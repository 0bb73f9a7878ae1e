"""Weights stored as int8, arithmetic in float32: a quarter of the file for a network that runs once per instruction.

Equation, for every block of 64 neighbouring weights, with s = max|w| / 127::

    q = round(w / s) in -127 .. 127          w' = s q          |w - w'| <= s / 2

Blocks, not channels: in MiniLM a few weights of a column are far larger than the rest, and one scale a column loses 1 - cosine
up to 3.6e-3 of the instruction vector, one a block 0.5e-3 (the empty instruction is the worst in both; ten instructions).
ONNX has blocks only from opset 21 on; in opset 18 the same is a DequantizeLinear over rows of 64 and a Reshape, which ONNX Runtime
leaves alone (a plain per-column DequantizeLinear before a MatMul it turns into a kernel that also rounds the activations).

A matrix is unpacked at each run. A table that is looked up row by row stays int8 in memory too: the wanted rows are gathered
first and scaled afterwards, so that 30,522 rows are never unpacked to read 32.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from actlet.errors import QuantizationError

__all__ = ["BLOCK", "MIN_ELEMENTS", "quantize_blocks", "store_weights_int8"]

BLOCK = 64
MIN_ELEMENTS = 4096  # Smaller constants (biases, norms) are under 1 % of the file and would lose accuracy for nothing.


def store_weights_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the network whose MatMul matrices and Gather tables are stored as int8.

    Raises:
        QuantizationError: There is no such weight: the graph was exported in another form.
    """
    small = onnx.ModelProto()
    small.CopyFrom(model)
    graph = small.graph
    constants = {c.name: c for c in graph.initializer if len(c.dims) == 2 and c.dims[1] % BLOCK == 0 and np.prod(c.dims) >= MIN_ELEMENTS}
    nodes: list[onnx.NodeProto] = []
    added: dict[str, onnx.TensorProto] = {}
    count = 0
    for node in graph.node:
        source = {"MatMul": 1, "Gather": 0}.get(node.op_type)
        name = node.input[source] if source is not None else ""
        if name not in constants:
            nodes.append(node)
            continue
        count += 1
        weight = numpy_helper.to_array(constants[name])
        if node.op_type == "MatMul":
            nodes += _matrix(node, name, weight, added)
        else:
            nodes += _table(node, name, weight, added)
    if not count:
        raise QuantizationError("no MatMul or Gather with a constant matrix: nothing was stored as int8, so the file would stay as large.")
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    used = {name for node in graph.node for name in node.input}
    kept = [c for c in graph.initializer if c.name in used]
    del graph.initializer[:]
    graph.initializer.extend([*kept, *added.values()])
    onnx.checker.check_model(small, full_check=True)
    return small


def _matrix(node: onnx.NodeProto, name: str, weight: NDArray[np.float32], added: dict[str, onnx.TensorProto]) -> list[onnx.NodeProto]:
    """x W with W (K, N): rows of 64 unpacked, then the matrix's shape again."""
    shared = f"{name}.int8" in added
    quantized, scale = quantize_blocks(weight)
    _add(added, f"{name}.int8", quantized)
    _add(added, f"{name}.scale", scale)
    _add(added, f"{name}.zero", np.zeros(len(scale), np.int8))
    _add(added, f"{name}.shape", np.array(weight.shape, np.int64))
    node.input[1] = f"{name}.float"
    parts = [f"{name}.int8", f"{name}.scale", f"{name}.zero"]
    unpack = [
        helper.make_node("DequantizeLinear", parts, [f"{name}.rows"], name=f"{name}.unpack", axis=0),
        helper.make_node("Reshape", [f"{name}.rows", f"{name}.shape"], [f"{name}.float"], name=f"{name}.reshape"),
    ]
    return [node] if shared else [*unpack, node]


def _table(node: onnx.NodeProto, name: str, weight: NDArray[np.float32], added: dict[str, onnx.TensorProto]) -> list[onnx.NodeProto]:
    """Rows of W (V, D): D / 64 scales per row, gathered along with it."""
    quantized, scale = quantize_blocks(weight)
    rows, width = weight.shape
    _add(added, f"{name}.int8", quantized.reshape(rows, width // BLOCK, BLOCK))
    _add(added, f"{name}.scale", scale.reshape(rows, width // BLOCK, 1))
    out, ids = node.output[0], node.input[1]
    _add(added, f"{out}.shape", np.array([0, 0, width], np.int64))  # 0: as it is.
    return [
        helper.make_node("Gather", [f"{name}.int8", ids], [f"{out}.int8"], name=f"{node.name}.rows"),
        helper.make_node("Cast", [f"{out}.int8"], [f"{out}.float"], name=f"{node.name}.cast", to=TensorProto.FLOAT),
        helper.make_node("Gather", [f"{name}.scale", ids], [f"{out}.scale"], name=f"{node.name}.scales"),
        helper.make_node("Mul", [f"{out}.float", f"{out}.scale"], [f"{out}.blocks"], name=f"{node.name}.scaled"),
        helper.make_node("Reshape", [f"{out}.blocks", f"{out}.shape"], [out], name=f"{node.name}.reshape"),
    ]


def quantize_blocks(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """float32 (..., 64 n) -> int8 (M, 64) and the scale of each row, float32 (M,)."""
    blocks = weight.reshape(-1, BLOCK)
    scale = (np.maximum(np.abs(blocks).max(axis=1), 1e-12) / 127).astype(np.float32)
    return np.clip(np.rint(blocks / scale[:, None]), -127, 127).astype(np.int8), scale


def _add(added: dict[str, onnx.TensorProto], name: str, value: NDArray[np.generic]) -> None:
    added[name] = numpy_helper.from_array(value, name)
