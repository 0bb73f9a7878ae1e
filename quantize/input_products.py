"""How the inputs of a layer go together: the mean of x x^T over recorded frames, which `block_rounding.gptq` rounds by.

For a convolution x is what a filter sees at one place, (C kh kw,) in the order of the filter's weights; every place of a frame counts.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx import helper

from actlet.errors import QuantizationError
from quantize.calibration import inner_values
from quantize.frames import Frames
from quantize.graph import Graph

__all__ = ["input_products"]


def input_products(model: onnx.ModelProto, names: Collection[str], frames: Frames) -> dict[str, NDArray[np.float64]]:
    """Run the float network on all frames.

    Args:
        model: The float network.
        names: Conv, Gemm and MatMul nodes of it. Left out of the answer: convolutions in groups, whose filters see different inputs.
        frames: Recorded inputs.

    Returns:
        Node -> float64 (K, K).

    Raises:
        QuantizationError: There are no frames.
    """
    if not len(frames):
        raise QuantizationError("no frames to round by: gptq needs recorded inputs. Give a recorded dataset, or take rtn.")
    graph = Graph(model)
    nodes = {node.name: node for node in graph.weight_nodes() if node.name in names and _attributes(node).get("group", 1) == 1}
    sums: dict[str, NDArray[np.float64]] = {}
    counts = dict.fromkeys(nodes, 0)
    for values in inner_values(model, [node.input[0] for node in nodes.values()], frames):
        for name, node in nodes.items():
            rows = _rows(node, values[node.input[0]], graph.constant(node.input[1]).shape).astype(np.float64)
            product = rows.T @ rows
            sums[name] = sums[name] + product if name in sums else product
            counts[name] += len(rows)
    return {name: total / counts[name] for name, total in sums.items()}


def _rows(node: onnx.NodeProto, x: NDArray[np.float32], weight: tuple[int, ...]) -> NDArray[np.float32]:
    """(M, K): every vector that is multiplied by the weight."""
    if node.op_type != "Conv":
        turned = node.op_type == "Gemm" and _attributes(node).get("transA", 0)
        return (x.T if turned else x).reshape(-1, x.shape[0] if turned else x.shape[-1])
    settings = _attributes(node)
    height, width = weight[2:]
    down, right = settings.get("dilations", [1, 1])
    top, left, bottom, end = settings.get("pads", [0, 0, 0, 0])
    padded = np.pad(x[0], ((0, 0), (top, bottom), (left, end)))
    windows = sliding_window_view(padded, ((height - 1) * down + 1, (width - 1) * right + 1), axis=(1, 2))
    rows, columns = settings.get("strides", [1, 1])
    seen = windows[:, ::rows, ::columns, ::down, ::right]  # (C, h, w, kh, kw)
    return seen.transpose(1, 2, 0, 3, 4).reshape(-1, weight[1] * height * width)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}
