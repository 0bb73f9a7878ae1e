"""An ONNX graph that can be edited: constants as arrays, who makes and who reads a value, order restored at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from actlet.errors import UnknownNameError

__all__ = ["WEIGHT_OPS", "Graph", "channel_axis", "weight_value"]

WEIGHT_OPS = ("Conv", "Gemm", "MatMul")
"""Operators whose second input is a matrix or a stack of filters: nearly all weights and nearly all arithmetic."""


class Graph:
    """A copy of a model, to be changed and turned into a model again.

    Args:
        model: Left as it is.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.nodes: list[onnx.NodeProto] = list(self.model.graph.node)
        self._constants: dict[str, onnx.TensorProto] = {c.name: c for c in self.model.graph.initializer}

    @property
    def inputs(self) -> list[str]:
        """Names of the model's inputs."""
        return [value.name for value in self.model.graph.input]

    def shape(self, name: str) -> tuple[int, ...]:
        """The fixed shape of an input."""
        value = next(value for value in self.model.graph.input if value.name == name)
        return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)

    @property
    def outputs(self) -> list[str]:
        """Names of the model's outputs."""
        return [value.name for value in self.model.graph.output]

    def is_constant(self, name: str) -> bool:
        """Whether a value is stored in the file."""
        return name in self._constants

    def constant(self, name: str) -> NDArray[Any]:
        """The content of a stored value."""
        return numpy_helper.to_array(self._constants[name])

    def stored_bytes(self, name: str) -> int:
        """Size of a stored value in the file (two int4 values take one byte)."""
        tensor = self._constants[name]
        return len(tensor.raw_data) or numpy_helper.to_array(tensor).nbytes

    def store(self, name: str, value: NDArray[Any]) -> str:
        """Store a value under a name that is free, or that holds the same value; returns the name."""
        if name in self._constants:
            kept = self.constant(name)
            if kept.dtype == value.dtype and np.array_equal(kept, value):
                return name
            raise ValueError(f"the graph has another constant {name!r}")
        self._constants[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def add(self, op: str, inputs: Sequence[str], output: str | Sequence[str], *, name: str = "", **attributes: Any) -> str:
        """Add a node; returns its first output. Order does not matter: `finish` sorts.

        Raises:
            ValueError: Another node makes one of its outputs.
        """
        outputs = [output] if isinstance(output, str) else list(output)
        if taken := [name for name in outputs if self.producer(name) is not None]:
            raise ValueError(f"the graph has other nodes that make {taken}")
        self.nodes.append(helper.make_node(op, list(inputs), outputs, name=name or outputs[0], **attributes))
        return outputs[0]

    def remove(self, node: onnx.NodeProto) -> None:
        """Take a node out."""
        self.nodes = [other for other in self.nodes if other is not node]

    def producer(self, value: str) -> onnx.NodeProto | None:
        """The node that makes a value; None for an input or a constant."""
        return next((node for node in self.nodes if value in node.output), None)

    def consumers(self, value: str) -> list[onnx.NodeProto]:
        """The nodes that read a value."""
        return [node for node in self.nodes if value in node.input]

    def sole_consumer(self, value: str, op: str) -> onnx.NodeProto | None:
        """The one node that reads a value, if it is of this operator and the value is not an output of the model."""
        readers = self.consumers(value)
        alone = len(readers) == 1 and readers[0].op_type == op and value not in self.outputs
        return readers[0] if alone else None

    def redirect(self, old: str, new: str, *, only: Sequence[onnx.NodeProto] | None = None) -> None:
        """Let the readers of one value (or some of them) read another."""
        for node in self.nodes if only is None else only:
            node.input[:] = [new if name == old else name for name in node.input]

    def weight_nodes(self) -> Iterator[onnx.NodeProto]:
        """Conv, Gemm and MatMul nodes whose weights are stored in the file, in the order of the graph."""
        for node in self.nodes:
            if node.op_type in WEIGHT_OPS and self.is_constant(node.input[1]):
                yield node

    def weight_nodes_by_name(self, exclude: Sequence[str] = ()) -> dict[str, onnx.NodeProto]:
        """Name -> node, of all `weight_nodes`.

        Raises:
            UnknownNameError: A name of `exclude` is not among them.
        """
        nodes = {node.name: node for node in self.weight_nodes()}
        for name in exclude:
            if name not in nodes:
                raise UnknownNameError("node with weights", name, list(nodes))
        return nodes

    def halve_large_weights(self) -> None:
        """Store the weights that stayed float, from 4096 on, as float16; ONNX Runtime unpacks them once, at load.

        Their error is 2^-11 of each weight, and the file has no use for the other half. Arithmetic stays float32.
        """
        for node in list(self.weight_nodes()):
            name = node.input[1]
            weight = self.constant(name)
            if weight.dtype == np.float32 and weight.size >= 4096 and np.abs(weight).max() < np.finfo(np.float16).max:
                half, whole = self.store(f"{name}.half", weight.astype(np.float16)), f"{name}.float"
                if self.producer(whole) is None:  # Two nodes may share a weight.
                    self.add("Cast", [half], whole, to=onnx.TensorProto.FLOAT)
                node.input[1] = whole

    def finish(
        self,
        *,
        opset: int | None = None,
        inputs: Sequence[onnx.ValueInfoProto] | None = None,
        outputs: Sequence[onnx.ValueInfoProto] | None = None,
    ) -> onnx.ModelProto:
        """The model: nodes in order, what no output needs removed, checked in full.

        Args:
            opset: Another version of the standard operators.
            inputs: Other inputs, with types and shapes; nodes that make one of them are left out.
            outputs: Other outputs.
        """
        graph = self.model.graph
        for values, new in ((graph.input, inputs), (graph.output, outputs)):
            if new is not None:
                copies = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in new]
                del values[:]
                values.extend(copies)
        ordered = self._needed_in_order()
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(ordered)
        used = {name for node in ordered for name in node.input}
        graph.initializer.extend(tensor for name, tensor in self._constants.items() if name in used)
        if opset is not None:
            del self.model.opset_import[:]
            self.model.opset_import.extend([helper.make_opsetid("", opset)])
        onnx.checker.check_model(self.model, full_check=True)
        return self.model

    def _needed_in_order(self) -> list[onnx.NodeProto]:
        """The nodes that the outputs need, each after those that it reads; copies, since the graph's own list is rewritten."""
        given = set(self.inputs)
        makers = {output: node for node in self.nodes for output in node.output if output not in given}
        ordered: list[onnx.NodeProto] = []
        done: set[int] = set()
        stack = [(makers[name], False) for name in reversed(self.outputs)]
        while stack:
            node, ready = stack.pop()
            if id(node) in done:
                continue
            if ready:
                done.add(id(node))
                ordered.append(onnx.NodeProto.FromString(node.SerializeToString()))
                continue
            stack.append((node, True))
            stack.extend((makers[name], False) for name in reversed(node.input) if name in makers)
        return ordered


def weight_value(node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto], *, start: str | None = None) -> str:
    """The value that holds or makes the stored weights of an operator; "" for one that multiplies by none.

    Args:
        node: A node of a quantized or a float graph.
        makers: Value -> the node that makes it.
        start: One of several values that its weights are put together from (`quantize.side_by_side`).
    """
    place = {"QLinearConv": 3, "MatMulInteger": 1, **dict.fromkeys(WEIGHT_OPS, 1)}.get(node.op_type)
    value = start or (node.input[place] if place is not None else "")
    # Filters that the instruction makes stand behind the stored ones (`quantize.asked_maps`), a camera's are put twice side by side (`quantize.camera_input`).
    while (maker := makers.get(value)) is not None and maker.op_type == "Concat":
        value = maker.input[0]
    return value


def channel_axis(node: onnx.NodeProto) -> int:
    """The axis of a weight along which each slice makes one output: the axis that has a scale of its own per channel."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    return -1
