"""Shapes that a network computes from constants and from other shapes, stored in it.

A bundle's shapes are stored constants (`runtime.network_shapes`). Exporters like torch's older one write a chain of operators for each instead::

    x ─ Shape ─ Gather ─┐
            constant ─ Concat ─ Reshape                 becomes                 constant ─ Reshape

Where a network's inputs have fixed shapes, these values are always the same: ONNX Runtime computes them once, here.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from actlet.errors import CheckpointError
from quantize.graph import Graph
from runtime.network_shapes import SHAPE_INPUTS
from runtime.ort_backend import SessionConfig

__all__ = ["store_shapes"]


def store_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network with such shapes stored; itself where there are none.

    A shape that follows from an input's values stays what it is, and no bundle is made of the network.

    Args:
        model: A network whose inputs have fixed shapes, its nodes in order.

    Raises:
        CheckpointError: ONNX Runtime cannot compute them.
    """
    graph = Graph(model)
    fixed, wanted = {tensor.name for tensor in model.graph.initializer}, dict[str, None]()
    for node in graph.nodes:
        if node.op_type in ("Shape", "Size") or all(name in fixed for name in node.input if name):
            fixed.update(node.output)
        sizes = [node.input[at] for at in SHAPE_INPUTS.get(node.op_type, ()) if at < len(node.input)]
        wanted |= dict.fromkeys(name for name in sizes if name in fixed and not graph.is_constant(name))
    if not wanted:
        return model
    inputs = [value for value in model.graph.input if not graph.is_constant(value.name)]
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    zeros = {
        value.name: np.zeros(
            [dim.dim_value for dim in value.type.tensor_type.shape.dim], helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        )
        for value in inputs
    }
    try:
        session = onnxruntime.InferenceSession(probe.SerializeToString(), SessionConfig().options(), providers=["CPUExecutionProvider"])
        found = session.run(list(wanted), zeros)
    except Exception as error:  # ONNX Runtime's errors have no common class below Exception.
        raise CheckpointError(
            f"the network's shapes cannot be computed ({str(error).strip()[:300]}): export it with fixed shapes."
        ) from error
    stored = {name: graph.store(f"{name}.stored", value) for name, value in zip(wanted, found, strict=True)}
    for node in graph.nodes:
        for at in SHAPE_INPUTS.get(node.op_type, ()):
            if at < len(node.input):
                node.input[at] = stored.get(node.input[at], node.input[at])
    return graph.finish(inputs=inputs)
