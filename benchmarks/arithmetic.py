"""How much arithmetic one decision takes, and how fast one core of this machine does arithmetic at best.

A latency says little without these two: `macs` is the multiply-accumulates of one decision (1 MAC = 2 FLOP), and the
ceiling is the rate of a 512 x 512 x 512 float32 matrix product on one thread, measured beside the policies. The share

    share = 2 * macs / p50 / ceiling

says what part of a core's float32 rate a policy reaches. Integer arithmetic has a higher ceiling, so an int8 policy may
exceed 1. Element-wise work (activations, normalisation, softmax) is not counted, as usual.
"""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from actlet.manifest import CONDITION_NAME
from actlet.protocols import Policy

__all__ = ["GEMM_SIZE", "GraphCount", "count_bundle", "count_graph", "count_torch", "gemm_gflops", "gemm_seconds"]

GEMM_SIZE = 512  # Three matrices of 1 MiB: they fit in a second-level cache, so the product is bound by arithmetic.


@dataclasses.dataclass(frozen=True)
class GraphCount:
    """What an ONNX graph holds and does for one decision."""

    parameters: int
    """Weights, without scales, zero points and single numbers."""
    macs: int
    """Multiply-accumulates of convolutions and matrix products."""


def gemm_seconds() -> float:
    """Wall seconds of one float32 product of two GEMM_SIZE matrices with torch's current threads."""
    import torch

    a = torch.ones(GEMM_SIZE, GEMM_SIZE)
    b = torch.ones(GEMM_SIZE, GEMM_SIZE)
    started = time.perf_counter()
    torch.mm(a, b)
    return time.perf_counter() - started


def gemm_gflops(seconds: float) -> float:
    """GFLOP/s of a product that took this long."""
    return 2 * GEMM_SIZE**3 / seconds / 1e9


def count_torch(policy: Policy, observation: Any, instruction: str) -> int:
    """MACs of one decision of a policy that computes in torch, counted while it runs."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        policy.predict([observation], [instruction])
    return int(counter.get_total_flops()) // 2


def count_bundle(folder: str | Path) -> GraphCount:
    """Weights of a bundle's networks, and the MACs of one decision: condition.onnx runs once per instruction."""
    count = count_graph(Path(folder) / "policy.onnx")
    condition = Path(folder) / CONDITION_NAME
    return dataclasses.replace(count, parameters=count.parameters + (count_graph(condition).parameters if condition.exists() else 0))


def count_graph(path: str | Path) -> GraphCount:
    """Weights and MACs of an ONNX file with fixed shapes.

    A product whose shape cannot be inferred raises ValueError rather than being left out.
    """
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
    graph = model.graph
    shapes = {value.name: _shape(value) for value in [*graph.input, *graph.value_info, *graph.output]}
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    weights |= {
        node.output[0]: tuple(a.t.dims) for node in graph.node if node.op_type == "Constant" for a in node.attribute if a.name == "value"
    }
    shapes |= weights
    _pass_shapes_on(graph, shapes)
    return GraphCount(parameters=_parameters(graph, weights), macs=sum(_macs(node, shapes) for node in graph.node))


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


def _pass_shapes_on(graph: Any, shapes: dict[str, tuple[int, ...]]) -> None:
    """Quantize and Dequantize keep the shape; older inference leaves it out for 4-bit tensors."""
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[0] in shapes:
            shapes.setdefault(node.output[0], shapes[node.input[0]])


def _parameters(graph: Any, weights: dict[str, tuple[int, ...]]) -> int:
    helpers = {
        name
        for node in graph.node
        if node.op_type.endswith("QuantizeLinear") or node.op_type == "DequantizeLinear"
        for name in node.input[1:]
    }
    packed = 0
    for node in graph.node:
        if node.op_type == "MatMulNBits":  # Two 4-bit weights a byte: the true size stands in the attributes.
            packed += _attribute(node, "K") * _attribute(node, "N")
            helpers |= set(node.input[1:4])
    floats_and_codes = {1, 2, 3, 10, 11, 16, 21, 22}  # FLOAT, UINT8, INT8, FLOAT16, DOUBLE, BFLOAT16, UINT4, INT4
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    sizes = [math.prod(weights[name]) for name, kind in kinds.items() if name not in helpers and kind in floats_and_codes]
    return packed + sum(size for size in sizes if size > 1)


def _attribute(node: Any, name: str) -> int:
    return next(int(attribute.i) for attribute in node.attribute if attribute.name == name)


def _macs(node: Any, shapes: dict[str, tuple[int, ...]]) -> int:
    """MACs of one node: elements of the output times the length of each sum."""
    if node.op_type in ("Conv", "ConvInteger", "QLinearConv"):
        weight = _known(node, shapes, 3 if node.op_type == "QLinearConv" else 1)
        return math.prod(_known(node, shapes, None)) * math.prod(weight[1:])
    if node.op_type in ("MatMul", "MatMulInteger", "QLinearMatMul"):
        return math.prod(_known(node, shapes, None)) * _known(node, shapes, 0)[-1]
    if node.op_type == "Gemm":
        transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        return math.prod(_known(node, shapes, None)) * _known(node, shapes, 0)[0 if transposed else -1]
    if node.op_type == "MatMulNBits":
        rows = _known(node, shapes, 0)[:-1]
        return math.prod(rows) * _attribute(node, "K") * _attribute(node, "N")
    return 0


def _known(node: Any, shapes: dict[str, tuple[int, ...]], index: int | None) -> tuple[int, ...]:
    name = node.output[0] if index is None else node.input[index]
    shape = shapes.get(name)
    if shape is None or (shape and not np.all(np.array(shape) > 0)):
        raise ValueError(
            f"node {node.name!r} ({node.op_type}): shape of {name!r} is {shape}, expected fixed numbers; MACs cannot be counted."
        )
    return shape
