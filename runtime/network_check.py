"""What an .onnx file is made of, read from its bytes before anything else reads it.

A bundle's networks are plain graphs: known operators of the standard, fixed shapes, weights inside the file. Everything else that the format
can hold is refused here, by what it is, and not by what a library does with it:

* weights in other files (wherever they would lie), sparse ones, and tensors that are larger than the bytes that they are written in;
* operators outside `OPERATORS`: of other domains, control flow (an endless loop), sequences and texts, and what is random;
* graphs inside attributes, functions, training graphs, a second graph (a parser would merge the two);
* operator sets outside `OPSETS`.

What is left is arithmetic on tensors. How much memory and time it takes is limited where it is first run (`runtime.trial`).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from actlet.errors import BundleError
from runtime.protobuf import fields

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


def check_network(content: bytes, where: str) -> NetworkFacts:
    """Look at a network before it is loaded.

    Args:
        content: The content of an .onnx file.
        where: The file's name, for messages.

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
    operators, stored = _check_graph(graphs[0], where)
    return NetworkFacts(versions[0], dict(operators.most_common()), stored)


def _check_graph(graph: memoryview, where: str) -> tuple[Counter[str], int]:
    operators, stored = Counter[str](), 0
    for number, _, value, field in fields(graph, where):
        _require_kind(number, field, {1: _LENGTH, 5: _LENGTH}, where)
        if number in _REFUSED_IN_GRAPH:
            raise _refused(where, _REFUSED_IN_GRAPH[number])
        if number == 1:
            operator, inside = _check_node(value, where)
            operators[operator] += 1
            stored += inside
        elif number == 5:
            stored += _check_tensor(value, where)
    if sum(operators.values()) > MAX_NODES:
        raise BundleError(f"{where}: {sum(operators.values())} operators, expected at most {MAX_NODES}.")
    return operators, stored


def _check_node(node: memoryview, where: str) -> tuple[str, int]:
    """Its operator, and the bytes of the constants in its attributes."""
    operator, domain, name, stored = "", "", "", 0
    seen = set[int]()
    for number, _, value, field in fields(node, where):
        _require_kind(number, field, {3: _LENGTH, 4: _LENGTH, 5: _LENGTH, 7: _LENGTH}, where)
        _require_once(number, seen, (3, 4, 7), where)
        if number == 3:
            name = _text(value)
        elif number == 4:
            operator = _text(value)
        elif number == 7:
            domain = _text(value)
        elif number == 5:
            of_attribute = set[int]()
            for inner, _, part, inside in fields(value, where):
                _require_kind(inner, inside, {1: _LENGTH, 5: _LENGTH, 10: _LENGTH}, where)
                _require_once(inner, of_attribute, (1, 5, 20), where)
                if inner in _REFUSED_IN_ATTRIBUTE:
                    raise _refused(f"{where}: node {name!r}", _REFUSED_IN_ATTRIBUTE[inner])
                if inner in (5, 10):
                    stored += _check_tensor(part, where)
    if domain not in ("", "ai.onnx") or operator not in OPERATORS:
        shown = f"{domain}.{operator}" if domain not in ("", "ai.onnx") else operator
        raise BundleError(
            f"{where}: node {name!r} is a {shown}, which is not among the operators that a bundle may have (`runtime.network_check.OPERATORS`): "
            "export the policy without it."
        )
    return operator, stored


def _check_tensor(tensor: memoryview, where: str) -> int:
    """Bytes of a stored tensor."""
    count, name = 1, ""
    seen = set[int]()
    for number, whole, value, field in fields(tensor, where):
        _require_kind(number, field, {2: _NUMBER, 8: _LENGTH, 9: _LENGTH, 14: _NUMBER}, where)
        _require_once(number, seen, (2, 8, 9, 14), where)
        if number == 1:
            for size in [whole] if whole is not None else _packed(value, where):
                count = count * size if size < 1 << 63 else 1 << 63
        elif number == 8:
            name = _text(value)
        elif number == 13 or (number == 14 and whole == _EXTERNAL):
            raise _refused(where, f"weights in another file ({name!r})")
    # The smallest numbers take half a byte, so more of them than this cannot be in there.
    if count > 2 * len(tensor):
        raise BundleError(
            f"{where}: {name!r} claims {count} numbers in {len(tensor)} bytes: the file was cut or made up; copy the bundle again."
        )
    return len(tensor)


def _packed(values: memoryview, where: str) -> Iterator[int]:
    """Whole numbers one after the other, without keys: as a message, each is a field's value behind a key of our own."""
    at = 0
    while at < len(values):
        end = at
        while end < len(values) and values[end] >= 0x80:
            end += 1
        for _, whole, _, _ in fields(memoryview(b"\x08" + bytes(values[at : end + 1])), where):
            assert whole is not None
            yield whole
        at = end + 1


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


def _text(value: memoryview) -> str:
    return bytes(value).decode("utf-8", "replace")


def _refused(where: str, what: str) -> BundleError:
    return BundleError(f"{where}: holds {what}, which a bundle's network may not: export the policy again as one plain graph.")
