"""What really runs: the precision of every node with weights, read from the graph that ONNX Runtime made of the file.

A file says what should happen. ONNX Runtime fuses, splits and drops, differs between versions and processors, and says
nothing when an int8 node falls back to float. So the optimised graph is written out, and every node of the file is looked
up in it. Fused nodes keep a name from which the origin can be told ("fused mix.0", "squeezes.0.0_token_47"); convolutions in
the blocked layout are named after the value that they make.

The same names stand in ONNX Runtime's profile, so a node's share of the time is read off a run on recorded frames.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from actlet.manifest import CONDITION_NAME, NodePrecision
from quantize.condition import INSTRUCTION, network_files, network_of
from quantize.frames import Frames
from quantize.graph import Graph
from quantize.side_by_side import layers_of
from runtime.ort_backend import OrtModel, SessionConfig
from runtime.policy_network import PolicyNetwork

__all__ = ["audit", "executed_operators", "node_seconds", "summary", "with_time_shares"]

_INTEGER = ("QLinearConv", "QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul")
_OPERATORS = ("Conv", "Gemm", "MatMul", "MatMulInteger")
_FLOAT = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")
_UNPACKING = ("Cast", "Concat", "Mul", "Add", "Reshape", "Slice", "Round", "Clip", "DequantizeLinear")


def executed_operators(model: onnx.ModelProto, config: SessionConfig | None = None) -> list[tuple[str, str]]:
    """(name, operator) of every node that ONNX Runtime runs on the processor of this machine: for an instruction, then for every decision."""
    files = network_files(model)
    condition = files.get(CONDITION_NAME)
    network = PolicyNetwork(files["policy.onnx"], condition, config=config)
    shape = network.inputs[INSTRUCTION][1] if INSTRUCTION in network.inputs else (1, 0)
    # Which kernels run does not depend on the instruction's numbers.
    parts = [*([condition] if condition is not None else []), network.fixed_content(np.zeros(shape, np.float32))]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for i, part in enumerate(parts):
            path = Path(folder) / f"{i}.onnx"
            OrtModel(part, config=dataclasses.replace(config or SessionConfig(), optimised_model=path), where="policy.onnx")
            found += [(node.name, node.op_type) for node in onnx.load(path, load_external_data=False).graph.node]
    return found


def audit(model: onnx.ModelProto, asked: Mapping[str, str] | None = None, config: SessionConfig | None = None) -> tuple[NodePrecision, ...]:
    """Asked and executed precision of every Conv, Gemm and MatMul with stored weights, in the order of the graph.

    Args:
        model: The network as it is in the file.
        asked: Node -> what its weights were to be stored as. Others are as they are: float32, or float16 if they are stored so.
        config: How it is run.

    Returns:
        One entry per node. `executed` is None where a node cannot be found in the optimised graph. Weights that are unpacked at load
        are executed in what they are unpacked to; large ones that stay float are stored as float16 and executed in float32.
    """
    graph = Graph(model)
    makers = {output: node for node in graph.nodes for output in node.output}
    running = {_origin(name): op for name, op in executed_operators(model, config)}
    entries = []
    for node in graph.nodes:
        others = list(node.input[4 if node.op_type == "QLinearConv" else 2 :])
        for layer, weight in layers_of(node, makers).items():
            stored, others = set(_stored_weights(graph, makers, weight, others)), []
            if not stored:
                continue
            op = next((running[name] for name in _known_as(graph, node) if running.get(name) in _INTEGER + _FLOAT), None)
            half = any(graph.constant(name).dtype == np.float16 for name in stored)
            precision = (asked or {}).get(layer, "float16" if half else "float32")
            executed = None if op is None else "int8" if op in _INTEGER else "float32"
            size = sum(graph.stored_bytes(name) for name in stored)
            kind = node.op_type.removeprefix("QLinear").removesuffix("Integer")
            entries.append(NodePrecision(name=layer, op=kind, weight_bytes=size, asked=precision, executed=executed))
    return tuple(entries)


def node_seconds(model: onnx.ModelProto, frames: Frames, config: SessionConfig | None = None, *, runs: int = 50) -> dict[str, float]:
    """Name of a node of the graph -> seconds in its operators, of `runs` decisions; "" for all operators without weights.

    What runs once per instruction is not among them.
    """
    graph = Graph(model)
    makers = {output: node for node in graph.nodes for output in node.output}
    origin = {
        name: list(layers_of(node, makers)) for node in graph.nodes for name in _known_as(graph, node) if node.op_type.endswith(_OPERATORS)
    }
    seconds: dict[str, float] = collections.defaultdict(float)
    with tempfile.TemporaryDirectory() as folder:
        network = network_of(model, dataclasses.replace(config or SessionConfig(), profile=Path(folder) / "run")).fixed(
            frames.instruction[:1]
        )
        for row in range(runs):
            network.run({name: values for name, values in frames.feeds(row % len(frames)).items() if name in network.inputs})
        events = json.loads(network.end_profile().read_text(encoding="utf-8"))
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = _origin(event["name"].removesuffix("_kernel_time"))
            layers = origin.get(name, [""])
            for layer in layers:  # Those that are computed at once share the time.
                seconds[layer] += event["dur"] / 1e6 / len(layers)
    return dict(seconds)


def with_time_shares(nodes: Collection[NodePrecision], seconds: Mapping[str, float]) -> tuple[NodePrecision, ...]:
    """The entries with each node's share of all operators' time; 0 for one that is not found."""
    total = sum(seconds.values()) or 1.0
    return tuple(dataclasses.replace(node, time_share=round(seconds.get(node.name, 0.0) / total, 4)) for node in nodes)


def summary(nodes: Collection[NodePrecision]) -> list[str]:
    """For people: how many nodes and bytes of each kind, and which stayed float."""
    lines = []
    for asked, executed in sorted({(node.asked, node.executed or "unknown") for node in nodes}):
        group = [node for node in nodes if (node.asked, node.executed or "unknown") == (asked, executed)]
        size = sum(node.weight_bytes for node in group)
        names = ", ".join(f"{node.name} ({node.weight_bytes} B)" for node in group)
        detail = f": {names}" if asked.startswith("float") or (asked == "int8" and executed != "int8") else ""
        times = [node.time_share for node in group if node.time_share is not None]
        share = f", {sum(times):5.1%} of the time" if times else ""
        lines.append(f"{len(group):3d} nodes, {size / 1e3:9.1f} kB{share}, stored {asked}, executed {executed}{detail}")
    return lines


def _known_as(graph: Graph, node: onnx.NodeProto) -> list[str]:
    """The names under which a node's operator may run: its own, its value's, or those of what is merged into it, as FiLM and ReLU are."""
    names, value = [node.name, node.output[0]], node.output[0]
    for op in ("Mul", "Add", "Relu"):
        merged = graph.sole_consumer(value, op)
        if merged is not None:
            value = merged.output[0]
            names.append(value)
    return names


def _origin(name: str) -> str:
    """The name that a node of the optimised graph had in the file."""
    return re.sub(r"(_pre_q)?(_nchwc)?(_token_\d+)?$", "", name.removeprefix("fused "))


def _stored_weights(graph: Graph, makers: dict[str, onnx.NodeProto], weight: str, others: Sequence[str]) -> Iterator[str]:
    """Names of the constants that a layer's weights, and its scales and bias, are made of; nothing for one without stored weights."""
    if not weight or not _made_of_constants(graph, makers, weight):
        return
    stack = [weight, *others]
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
