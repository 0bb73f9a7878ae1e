"""A network with some of its inputs fixed: the inputs of an .onnx file turned into constants, on its bytes alone.

ONNX Runtime folds constants into the nodes that read them when a session is made, and has faster kernels for convolutions whose scale and
bias are constants than for those where they are inputs. What is changed in the file::

    ModelProto .graph (7) ─ GraphProto .input (11, repeated ValueInfoProto, .name 1)                                             left out
                                       .initializer (5, repeated TensorProto: .dims 1, .data_type 2, .name 8, .raw_data 9)    appended

Numbers: onnx.proto, https://github.com/onnx/onnx/blob/main/onnx/onnx.proto. Everything else is copied as it stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlet.errors import BundleError
from runtime.protobuf import fields, length_field, number_field

__all__ = ["DATA_TYPES", "fix_inputs"]

_GRAPH, _INITIALIZER, _INPUT, _NAME = 7, 5, 11, 1
DATA_TYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "float16": 10}
"""numpy dtype -> TensorProto.DataType, of what `runtime.ort_backend` can feed."""


def fix_inputs(model: bytes, values: Mapping[str, NDArray[Any]], *, where: str = "policy.onnx") -> bytes:
    """The network with constants in place of inputs.

    Args:
        model: The content of an .onnx file.
        values: Input -> what it is from now on.
        where: The file's name, for messages.

    Raises:
        BundleError: Not a network, or one without such an input.
    """
    parts: list[bytes | memoryview] = []
    found: set[str] = set()
    for number, _, content, field in fields(memoryview(model), where):
        if number != _GRAPH:
            parts.append(field)
            continue
        kept: list[bytes | memoryview] = []
        for inner, _, value, part in fields(content, where):
            name = _name(value, where) if inner == _INPUT else ""
            if name in values:
                found.add(name)
            else:
                kept.append(part)
        kept += [length_field(_INITIALIZER, _tensor(name, value)) for name, value in values.items()]
        parts.append(length_field(_GRAPH, b"".join(kept)))
    if missing := sorted(set(values) - found):
        raise BundleError(f"{where}: has no inputs {missing}, which another file of the bundle gives: export the bundle again.")
    return b"".join(parts)


def _name(value: memoryview, where: str) -> str:
    return next((bytes(content).decode("utf-8", "replace") for number, _, content, _ in fields(value, where) if number == _NAME), "")


def _tensor(name: str, value: NDArray[Any]) -> bytes:
    """A TensorProto."""
    dims = b"".join(number_field(1, size) for size in value.shape)
    little = np.ascontiguousarray(value, value.dtype.newbyteorder("<"))
    return dims + number_field(2, DATA_TYPES[str(value.dtype)]) + length_field(8, name.encode()) + length_field(9, little.tobytes())
