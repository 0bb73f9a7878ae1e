"""A policy's network in two: what depends on the instruction alone, and the rest.

A policy is one graph wherever graphs are made, changed and compared. In a bundle it is two files, because a robot is told what to do once and
decides many times (`runtime.policy_network`)::

    instruction ─ condition.onnx ─┬─ values ─┐
                                  └──────────┴─ policy.onnx ─ actions, confidence
                images, state, committed ────┘

The cut is found, not declared: a node whose inputs are constants or follow from the instruction is before it, every other behind it, and
the values that are read across it get the names that they have in the graph. So it holds for every precision, and for whatever reads an instruction.
Where one of them is of a type that the runtime does not feed (a bool), or of a shape that is not known, the policy stays one file.
"""

from __future__ import annotations

import onnx
from onnx import shape_inference

from actlet.manifest import CONDITION_NAME
from quantize.graph import Graph
from runtime.bundle import Bundle
from runtime.fixed_inputs import DATA_TYPES
from runtime.ort_backend import SessionConfig
from runtime.policy_network import PolicyNetwork

__all__ = ["INSTRUCTION", "graph_of", "join_condition", "network_files", "network_of", "split_condition"]

INSTRUCTION = "instruction"
"""The input that a policy's graph reads an instruction's vector from."""


def split_condition(model: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.ModelProto | None]:
    """policy.onnx and condition.onnx of a whole graph; the graph itself and None where nothing follows from an instruction alone, or it cannot be fed."""
    graph = Graph(model)
    known, follows = set[str](), {INSTRUCTION} & set(graph.inputs)
    """Values made of constants, and values that follow from the instruction."""
    before, behind = list[onnx.NodeProto](), list[onnx.NodeProto]()
    for node in graph.nodes:
        values = [name for name in node.input if name and name not in known and not graph.is_constant(name)]
        if values and all(name in follows for name in values):
            follows.update(node.output)
            before.append(node)
        elif values:
            behind.append(node)
        else:
            known.update(node.output)
    across = [name for name in dict.fromkeys(name for node in behind for name in node.input) if name in follows]
    if not before or INSTRUCTION in across or follows & set(graph.outputs):
        return model, None
    typed = shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {value.name: value for value in (*typed.value_info, *typed.input, *typed.output)}
    if not all(name in types and _can_be_fed(types[name]) for name in across):
        return model, None
    condition, policy = Graph(model), Graph(model)
    others = [name for name in graph.inputs if name != INSTRUCTION]
    return (
        policy.finish(inputs=[types[name] for name in (*others, *across)]),
        condition.finish(inputs=[types[INSTRUCTION]], outputs=[types[name] for name in across]),
    )


def _can_be_fed(value: onnx.ValueInfoProto) -> bool:
    """Whether it can be an input of policy.onnx: see `runtime.ort_backend`."""
    tensor = value.type.tensor_type
    return tensor.elem_type in DATA_TYPES.values() and tensor.HasField("shape") and all(dim.dim_value > 0 for dim in tensor.shape.dim)


def join_condition(policy: onnx.ModelProto, condition: onnx.ModelProto | None) -> onnx.ModelProto:
    """The whole graph of the two files of a bundle: the inverse of `split_condition`, up to the order of nodes that do not read each other."""
    if condition is None:
        return policy
    graph, first = Graph(policy), Graph(condition)
    given = set(first.outputs)
    for constant in condition.graph.initializer:
        graph.store(constant.name, first.constant(constant.name))
    made = {name for node in graph.nodes for name in node.output}
    # What is made of constants alone, such as an unpacked weight, may stand in both.
    graph.nodes = [*(node for node in first.nodes if not made & set(node.output)), *graph.nodes]
    values = [value for value in policy.graph.input if value.name not in given]
    place = next((i for i, value in enumerate(values) if value.name == "committed"), len(values))
    return graph.finish(inputs=[*values[:place], *condition.graph.input, *values[place:]])


def network_files(model: onnx.ModelProto) -> dict[str, bytes]:
    """Name -> content of the files of a bundle that a whole graph becomes."""
    policy, condition = split_condition(model)
    files = {"policy.onnx": policy.SerializeToString(deterministic=True)}
    return files if condition is None else {**files, CONDITION_NAME: condition.SerializeToString(deterministic=True)}


def graph_of(bundle: Bundle) -> onnx.ModelProto:
    """The whole graph of a bundle's policy."""
    condition = onnx.load_from_string(bundle.read(CONDITION_NAME)) if CONDITION_NAME in bundle.manifest.files else None
    return join_condition(onnx.load_from_string(bundle.read("policy.onnx")), condition)


def network_of(model: onnx.ModelProto, config: SessionConfig | None = None) -> PolicyNetwork:
    """A whole graph as a robot runs it."""
    files = network_files(model)
    return PolicyNetwork(files["policy.onnx"], files.get(CONDITION_NAME), config=config)
