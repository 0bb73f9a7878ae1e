"""What really runs: the precision of every node with weights, read from the graph that ONNX Runtime made of the file.

A file says what should happen. ONNX Runtime fuses, splits and drops, differs between versions and processors, and says
nothing when an int8 node falls back to float. So the optimised graph is written out, and every node of the file is looked
up in it. Fused nodes keep a name from which the origin can be told ("fused mix.0", "squeezes.0.0_token_47"); convolutions in
the blocked layout are named after the value that they make.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import onnx

from actlet.manifest import NodePrecision
from quantize.graph import WEIGHT_OPS, Graph
from runtime.ort_backend import OrtModel, SessionConfig

__all__ = ["audit", "executed_operators", "summary"]

_INTEGER = ("QLinearConv", "QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul")
_FLOAT = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")
_UNPACKING = ("Cast", "Mul", "Reshape", "Slice", "DequantizeLinear")


def executed_operators(model: onnx.ModelProto) -> list[tuple[str, str]]:
    """(name, operator) of every node that ONNX Runtime runs on the processor of this machine."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        OrtModel(model.SerializeToString(), config=SessionConfig(optimised_model=path), where="policy.onnx")
        return [(node.name, node.op_type) for node in onnx.load(path, load_external_data=False).graph.node]


def audit(model: onnx.ModelProto, int8: Collection[str] = (), int4: Collection[str] = ()) -> tuple[NodePrecision, ...]:
    """Asked and executed precision of every Conv, Gemm and MatMul with stored weights, in the order of the graph.

    Args:
        model: The network as it is in the file.
        int8: Names of the nodes that were to become int8.
        int4: Names of the nodes whose weights were to become int4. They are stored so; what is executed is float32.

    Returns:
        One entry per node. `executed` is None where a node cannot be found in the optimised graph. Large weights that stay float
        are stored as float16 and executed in float32.
    """
    graph = Graph(model)
    makers = {output: node for node in graph.nodes for output in node.output}
    running = {_origin(name): op for name, op in executed_operators(model)}
    entries = []
    for node in graph.nodes:
        stored = set(_stored_weights(graph, makers, node))
        if not stored:
            continue
        relu = graph.sole_consumer(node.output[0], "Relu")
        known_as = [node.name, node.output[0], *([relu.output[0]] if relu is not None else [])]
        op = next((running[name] for name in known_as if running.get(name) in _INTEGER + _FLOAT), None)
        half = any(graph.constant(name).dtype == np.float16 for name in stored)
        asked = "int8" if node.name in int8 else "int4" if node.name in int4 else "float16" if half else "float32"
        executed = None if op is None else "int8" if op in _INTEGER else "float32"
        size = sum(graph.stored_bytes(name) for name in stored)
        kind = node.op_type.removeprefix("QLinear")
        entries.append(NodePrecision(name=node.name, op=kind, weight_bytes=size, asked=asked, executed=executed))
    return tuple(entries)


def summary(nodes: Collection[NodePrecision]) -> list[str]:
    """For people: how many nodes and bytes of each kind, and which stayed float."""
    lines = []
    for asked, executed in sorted({(node.asked, node.executed or "unknown") for node in nodes}):
        group = [node for node in nodes if (node.asked, node.executed or "unknown") == (asked, executed)]
        size = sum(node.weight_bytes for node in group)
        names = ", ".join(f"{node.name} ({node.weight_bytes} B)" for node in group)
        detail = f": {names}" if asked.startswith("float") or (asked == "int8" and executed != "int8") else ""
        lines.append(f"{len(group):3d} nodes, {size / 1e3:9.1f} kB, asked {asked}, executed {executed}{detail}")
    return lines


def _origin(name: str) -> str:
    """The name that a node of the optimised graph had in the file."""
    return re.sub(r"(_pre_q)?(_nchwc)?(_token_\d+)?$", "", name.removeprefix("fused "))


def _stored_weights(graph: Graph, makers: dict[str, onnx.NodeProto], node: onnx.NodeProto) -> Iterator[str]:
    """Names of the constants that a node's weights and bias are made of; nothing for a node without stored weights."""
    first = {"QLinearConv": 3, **dict.fromkeys(WEIGHT_OPS, 1)}.get(node.op_type)
    if first is None or not _made_of_constants(graph, makers, node.input[first]):
        return
    stack = list(node.input[first:])
    while stack:
        value = stack.pop()
        if graph.is_constant(value):
            yield value
        elif value in makers and makers[value].op_type in _UNPACKING and _made_of_constants(graph, makers, value):
            stack.extend(makers[value].input)


def _made_of_constants(graph: Graph, makers: dict[str, onnx.NodeProto], value: str) -> bool:
    if graph.is_constant(value):
        return True
    maker = makers.get(value)
    return maker is not None and maker.op_type in _UNPACKING and all(_made_of_constants(graph, makers, name) for name in maker.input)
