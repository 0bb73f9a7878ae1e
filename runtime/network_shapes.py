"""Where a network's shapes come from: constants stored in its file, and never what it is fed with.

Most operators give an array whose shape follows from the shapes of their inputs. Those of `SHAPE_INPUTS` read sizes from an input's values: where
that input is a stored constant, and so for every node, all shapes of a network with fixed inputs are known before it runs. Then it takes as much
memory for every question as for the one on which it was tried (`runtime.trial`). What a stored shape alone asks for is bounded here, before anything
is allocated: ten bytes are enough to say 10^12. Operators: https://github.com/onnx/onnx/blob/main/docs/Operators.md
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from actlet.errors import BundleError
from runtime.protobuf import fields, packed_numbers

__all__ = ["MAX_NUMBERS", "SHAPE_INPUTS", "ShapedNode", "check_shapes"]

_REDUCTIONS = ("L1", "L2", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
SHAPE_INPUTS: dict[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Unsqueeze": (1,),
    **{f"Reduce{name}": (1,) for name in _REDUCTIONS},
}
"""Operator -> its inputs whose values decide the shape of its output; of all others of `runtime.network_check.OPERATORS` no value does."""
MAX_NUMBERS = 1 << 26
"""Numbers that a stored shape may ask for: 256 MiB of float32. A picture of 3840 x 2160 has 25 million."""
_GROWING = {"ConstantOfShape": (0,), "Expand": (1,), "Pad": (1,), "Range": (0, 1, 2), "Resize": (1, 2, 3), "Tile": (1,)}
"""The same for operators whose output may be larger than what is fed to them."""
_FORMS = {1: ("<f4", 4), 6: ("<i4", 5), 7: ("<i8", 7)}
"""TensorProto's FLOAT, INT32 and INT64 -> how its raw_data is read, and its other field of numbers."""
_DATA_TYPE, _FLOATS, _WHOLE, _RAW, _DATA = 2, 4, (5, 7), 9, (3, 4, 5, 6, 7, 9, 10, 11)  # Fields of TensorProto.
_LARGEST_BYTES = 2048
"""Of a stored shape: one number for each axis, or two, a name and a few words."""


@dataclasses.dataclass(frozen=True)
class ShapedNode:
    """A node whose operator is one of `SHAPE_INPUTS`."""

    operator: str
    name: str
    inputs: tuple[bytes, ...]
    """Names of values; empty for an optional one that is left out."""


def check_shapes(nodes: Iterable[ShapedNode], constants: Mapping[bytes, memoryview], where: str, *, all_stored: bool = True) -> None:
    """Refuse shapes that are not stored, or ask for too much.

    Args:
        nodes: All nodes of `SHAPE_INPUTS` of a network.
        constants: Name -> TensorProto of every value that is stored in it.
        where: The file's name, for messages.
        all_stored: Refuse those that are not stored; otherwise only those that are stored are looked at.

    Raises:
        BundleError: One is; names the node, and the value that its shape depends on.
    """
    for node in nodes:
        place = f"{where}: node {node.name!r} ({node.operator})"
        given = {at: node.inputs[at] for at in SHAPE_INPUTS[node.operator] if at < len(node.inputs) and node.inputs[at]}
        for value in given.values():
            if all_stored and value not in constants:
                raise BundleError(
                    f"{place} takes its shape from the value {value.decode('utf-8', 'replace')!r}, expected a constant that is stored in the file: a bundle's "
                    "shapes do not depend on what it is fed with. Export the policy with fixed shapes."
                )
        growing = [_numbers(constants[given[at]], place) for at in _GROWING.get(node.operator, ()) if given.get(at) in constants]
        asked = _asked(node.operator, growing)
        if not asked <= MAX_NUMBERS:  # Written so that NaN fails.
            raise BundleError(
                f"{place} asks for {asked:.6g} numbers by {[values[:8] for values in growing]}, expected at most {MAX_NUMBERS}: the file was made up, or "
                "is not for a robot."
            )


def _asked(operator: str, growing: Sequence[list[float]]) -> float:
    """How large the output is at the least, or how many times as large as the input."""
    if operator == "Range":
        if len(growing) < 3:
            return 0  # One is computed.
        start, limit, step = (values[0] if len(values) == 1 else math.nan for values in growing)
        return (limit - start) / step if step else math.nan
    if operator == "Pad":
        return math.prod(1 + max(before + after, 0.0) for values in growing for before, after in _halves(values))
    return math.prod(max(abs(size), 1.0) if size == size else math.nan for values in growing for size in values)


def _halves(values: list[float]) -> list[tuple[float, float]]:
    """Pairs of what is put before and behind each axis; they are stored as all of the one, then all of the other."""
    half = len(values) // 2
    return list(zip(values[:half], values[half:], strict=False))


def _numbers(tensor: memoryview, place: str) -> list[float]:
    """The content of a stored tensor of sizes, repeats, scales or limits."""
    kind, raw, whole, used = 0, b"", list[int](), set[int]()
    if len(tensor) > _LARGEST_BYTES:
        raise BundleError(f"{place}: its sizes are stored in {len(tensor)} bytes, expected at most {_LARGEST_BYTES}: the file was made up.")
    for number, value, content, field in fields(tensor, place):
        if number in _DATA:
            used.add(number)
        if number == _DATA_TYPE and value is not None:
            kind = value
        elif number == _RAW:
            raw += bytes(content)
        elif number == _FLOATS:
            raw += bytes(content) or bytes(field[-4:])  # All in one field, or each in its own.
        elif number in _WHOLE:
            whole += [value] if value is not None else packed_numbers(content, place)
    form, own = _FORMS.get(kind, ("<i8", 0))
    if not own or len(used) > 1 or not used <= {own, _RAW} or len(raw) % np.dtype(form).itemsize:
        raise BundleError(
            f"{place}: its sizes are stored as type {kind} in {len(raw)} bytes and the fields {sorted(used)} of ONNX's TensorProto, expected int64, int32 or "
            "float32 in one field: export the policy again."
        )
    stored = np.array([value % (1 << 64) for value in whole], np.uint64).astype(np.int64) if whole else np.frombuffer(raw, form)
    return [float(value) for value in stored]
