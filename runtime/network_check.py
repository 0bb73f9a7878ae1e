"""What an .onnx file is made of, read from its bytes before anything else reads it.

A bundle's networks are plain graphs: known operators of the standard, fixed shapes, weights inside the file. Everything else that the format
can hold is refused here, by what it is, and not by what a library does with it:

* weights in other files (wherever they would lie), sparse ones, and tensors that are larger than the bytes that they are written in;
* operators outside `OPERATORS`: of other domains, control flow (an endless loop), sequences and texts, and what is random;
* graphs inside attributes, functions, training graphs, a second graph (a parser would merge the two), two values of one name;
* operator sets outside `OPSETS`;
* shapes that depend on what a network is fed with (`runtime.network_shapes`).

What is left is arithmetic on tensors of fixed shapes. How much memory and time it takes is limited where it is first run (`runtime.trial`).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

from actlet.errors import BundleError
from runtime.network_shapes import SHAPE_INPUTS, ShapedNode, check_shapes
from runtime.protobuf import fields, packed_numbers

__all__ = ["OPERATORS", "OPSETS", "NetworkFacts", "check_network"]

OPSETS = range(17, 24)
"""17 is the oldest that torch's exporter makes, 23 the newest that TensorRT 10 reads."""
OPERATORS = frozenset(
    [
        "Abs",
        "Add",
        "And",
        "ArgMax",
        "ArgMin",
        "Attention",
        "AveragePool",
        "BatchNormalization",
        "Cast",
        "Ceil",
        "Clip",
        "Concat",
        "Constant",
        "ConstantOfShape",
        "Conv",
        "ConvInteger",
        "ConvTranspose",
        "Cos",
        "DepthToSpace",
        "DequantizeLinear",
        "Div",
        "DynamicQuantizeLinear",
        "Einsum",
        "Elu",
        "Equal",
        "Erf",
        "Exp",
        "Expand",
        "Flatten",
        "Floor",
        "Gather",
        "GatherElements",
        "GatherND",
        "Gelu",
        "Gemm",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "Greater",
        "GreaterOrEqual",
        "GroupNormalization",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "InstanceNormalization",
        "LayerNormalization",
        "LeakyRelu",
        "Less",
        "LessOrEqual",
        "Log",
        "LogSoftmax",
        "MatMul",
        "MatMulInteger",
        "Max",
        "MaxPool",
        "Mean",
        "Min",
        "Mish",
        "Mod",
        "Mul",
        "Neg",
        "Not",
        "Or",
        "PRelu",
        "Pad",
        "Pow",
        "QLinearConv",
        "QLinearMatMul",
        "QuantizeLinear",
        "RMSNormalization",
        "Range",
        "Reciprocal",
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSumExp",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceProd",
        "ReduceSum",
        "ReduceSumSquare",
        "Relu",
        "Reshape",
        "Resize",
        "Round",
        "ScatterElements",
        "ScatterND",
        "Selu",
        "Shape",
        "Sigmoid",
        "Sign",
        "Sin",
        "Size",
        "Slice",
        "Softmax",
        "Softplus",
        "SpaceToDepth",
        "Split",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Sum",
        "Swish",
        "Tan",
        "Tanh",
        "Tile",
        "TopK",
        "Transpose",
        "Trilu",
        "Unsqueeze",
        "Where",
        "Xor",
    ]
)
"""Of the standard domain: arithmetic, shapes and choices. None calls another graph, reads a file, or answers twice differently."""
MAX_NODES = 200_000

_MODEL = {7: "graph", 8: "opset"}
_REFUSED_IN_MODEL = {20: "a graph for training", 25: "functions of its own"}
_REFUSED_IN_GRAPH = {15: "sparse weights"}
_REFUSED_IN_ATTRIBUTE = {6: "a graph inside an operator", 11: "graphs inside an operator", 22: "sparse weights", 23: "sparse weights"}
_EXTERNAL = 1
_NUMBER, _LENGTH = 0, 2


@dataclasses.dataclass(frozen=True)
class NetworkFacts:
    """What a network that passed is made of."""

    opset: int
    operators: dict[str, int]
    """Operator type -> how often."""
    stored_bytes: int
    """Of all its weights and constants."""


def check_network(content: bytes, where: str, *, stored_shapes: bool = True) -> NetworkFacts:
    """Look at a network before it is loaded.

    Args:
        content: The content of an .onnx file.
        where: The file's name, for messages.
        stored_shapes: Refuse shapes that are computed. A file that is to become a bundle's may have them (`export.foreign_onnx` stores them).

    Raises:
        BundleError: It is none, or it holds what a bundle's network does not hold.
    """
    graphs, opsets = list[memoryview](), list[tuple[str, int]]()
    for number, _, value, field in fields(memoryview(content), where):
        _require_kind(number, field, {7: _LENGTH, 8: _LENGTH}, where)
        if number in _REFUSED_IN_MODEL:
            raise _refused(where, _REFUSED_IN_MODEL[number])
        if _MODEL.get(number) == "graph":
            graphs.append(value)
        elif _MODEL.get(number) == "opset":
            opsets.append(_opset(value, where))
    if len(graphs) != 1:
        raise BundleError(f"{where}: {len(graphs)} graphs, expected one: export the bundle again.")
    foreign = [domain for domain, _ in opsets if domain not in ("", "ai.onnx")]
    versions = [version for domain, version in opsets if domain in ("", "ai.onnx")]
    if foreign or len(versions) != 1 or versions[0] not in OPSETS:
        raise BundleError(
            f"{where}: operator sets {opsets}, expected the standard one alone, of version {OPSETS.start} .. {OPSETS.stop - 1}: export it with such an opset."
        )
    graph = _check_graph(graphs[0], where)
    check_shapes(graph.shaped, graph.constants, where, all_stored=stored_shapes)
    return NetworkFacts(versions[0], dict(graph.operators.most_common()), graph.stored_bytes)


@dataclasses.dataclass
class _Graph:
    """What was seen of a graph so far."""

    operators: Counter[str] = dataclasses.field(default_factory=Counter)
    stored_bytes: int = 0
    shaped: list[ShapedNode] = dataclasses.field(default_factory=list)
    constants: dict[bytes, memoryview] = dataclasses.field(default_factory=dict)
    """Name -> TensorProto of what is stored."""
    made: set[bytes] = dataclasses.field(default_factory=set)
    """Names of what is stored, or made by a node."""

    def make(self, name: bytes, where: str) -> None:
        """Loaders take the last of two values of one name: what is checked must be what is loaded."""
        if name in self.made:
            raise BundleError(f"{where}: two values have the name {_text(name)!r}, expected one: export the policy again.")
        self.made.add(name)


def _check_graph(content: memoryview, where: str) -> _Graph:
    graph = _Graph()
    for number, _, value, field in fields(content, where):
        _require_kind(number, field, {1: _LENGTH, 5: _LENGTH}, where)
        if number in _REFUSED_IN_GRAPH:
            raise _refused(where, _REFUSED_IN_GRAPH[number])
        if number == 1:
            _check_node(value, graph, where)
        elif number == 5:
            name, size = _check_tensor(value, where)
            graph.stored_bytes += size
            graph.make(name, where)
            graph.constants[name] = value
    if (count := sum(graph.operators.values())) > MAX_NODES:
        raise BundleError(f"{where}: {count} operators, expected at most {MAX_NODES}.")
    return graph


def _check_node(node: memoryview, graph: _Graph, where: str) -> None:
    """One node, which is noted in the graph."""
    operator, domain, name = "", "", ""
    inputs, outputs, attributes = list[bytes](), list[bytes](), list[memoryview]()
    seen = set[int]()
    for number, _, value, field in fields(node, where):
        _require_kind(number, field, {1: _LENGTH, 2: _LENGTH, 3: _LENGTH, 4: _LENGTH, 5: _LENGTH, 7: _LENGTH}, where)
        _require_once(number, seen, (3, 4, 7), where)
        if number == 1:
            inputs.append(bytes(value))
        elif number == 2:
            outputs.append(bytes(value))
        elif number == 3:
            name = _text(value)
        elif number == 4:
            operator = _text(value)
        elif number == 7:
            domain = _text(value)
        elif number == 5:
            attributes.append(value)
    tensors = [tensor for attribute in attributes for tensor in _check_attribute(attribute, graph, name, where)]
    if domain not in ("", "ai.onnx") or operator not in OPERATORS:
        shown = f"{domain}.{operator}" if domain not in ("", "ai.onnx") else operator
        raise BundleError(
            f"{where}: node {name!r} is a {shown}, which is not among the operators that a bundle may have (`runtime.network_check.OPERATORS`): "
            "export the policy without it."
        )
    graph.operators[operator] += 1
    for output in filter(None, outputs):
        graph.make(output, where)
    if operator == "Constant" and (len(attributes), len(tensors), len(outputs)) == (1, 1, 1):
        graph.constants[outputs[0]] = tensors[0]
    if operator in SHAPE_INPUTS:
        graph.shaped.append(ShapedNode(operator, name, tuple(inputs)))


def _check_attribute(attribute: memoryview, graph: _Graph, node: str, where: str) -> list[memoryview]:
    """The tensors in it."""
    tensors, seen = list[memoryview](), set[int]()
    for number, _, value, field in fields(attribute, where):
        _require_kind(number, field, {1: _LENGTH, 5: _LENGTH, 10: _LENGTH}, where)
        _require_once(number, seen, (1, 5, 20), where)
        if number in _REFUSED_IN_ATTRIBUTE:
            raise _refused(f"{where}: node {node!r}", _REFUSED_IN_ATTRIBUTE[number])
        if number in (5, 10):
            graph.stored_bytes += _check_tensor(value, where)[1]
            tensors.append(value)
    return tensors


def _check_tensor(tensor: memoryview, where: str) -> tuple[bytes, int]:
    """Name and bytes of a stored tensor."""
    count, name = 1, b""
    seen = set[int]()
    for number, whole, value, field in fields(tensor, where):
        _require_kind(number, field, {2: _NUMBER, 8: _LENGTH, 9: _LENGTH, 14: _NUMBER}, where)
        _require_once(number, seen, (2, 8, 9, 14), where)
        if number == 1:
            for size in [whole] if whole is not None else packed_numbers(value, where):
                count = count * size if size < 1 << 63 else 1 << 63
        elif number == 8:
            name = bytes(value)
        elif number == 13 or (number == 14 and whole == _EXTERNAL):
            raise _refused(where, f"weights in another file ({_text(name)!r})")
    # The smallest numbers take half a byte, so more of them than this cannot be in there.
    if count > 2 * len(tensor):
        raise BundleError(
            f"{where}: {_text(name)!r} claims {count} numbers in {len(tensor)} bytes: the file was cut or made up; copy the bundle again."
        )
    return name, len(tensor)


def _opset(message: memoryview, where: str) -> tuple[str, int]:
    domain, version = "", 0
    seen = set[int]()
    for number, whole, value, field in fields(message, where):
        _require_kind(number, field, {1: _LENGTH, 2: _NUMBER}, where)
        _require_once(number, seen, (1, 2), where)
        if number == 1:
            domain = _text(value)
        elif number == 2 and whole is not None:
            version = whole
    return domain, version


def _require_kind(number: int, field: memoryview, kinds: Mapping[int, int], where: str) -> None:
    """A known field of another kind is one that some parsers skip and others read."""
    if number in kinds and field[0] & 7 != kinds[number]:
        raise BundleError(f"{where}: not a network in ONNX's format (field {number} is of kind {field[0] & 7}, expected {kinds[number]}).")


def _require_once(number: int, seen: set[int], singular: Sequence[int], where: str) -> None:
    """Parsers take the last of two, or merge them: what is checked must be what is loaded."""
    if number in singular and number in seen:
        raise BundleError(f"{where}: not a network in ONNX's format (field {number} occurs twice).")
    seen.add(number)


def _text(value: memoryview | bytes) -> str:
    return bytes(value).decode("utf-8", "replace")


def _refused(where: str, what: str) -> BundleError:
    return BundleError(f"{where}: holds {what}, which a bundle's network may not: export the policy again as one plain graph.")
