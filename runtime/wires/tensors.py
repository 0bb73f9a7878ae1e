"""Named arrays as bytes, in the format of safetensors: a length, a JSON header with every array's type, shape and place, then the values.

Read with numpy alone (https://github.com/huggingface/safetensors, "Format"). An array is a view of the bytes; one whose place does not fill its shape, or
whose type is none of numpy's, is refused.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlet.errors import RemoteError

__all__ = ["pack_tensors", "unpack_tensors"]

_LARGEST_HEADER, _LARGEST_RANK = 2**20, 8
_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
}
_NAMES = {code: name for name, code in _TYPES.items()}


def pack_tensors(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Arrays of numbers or booleans as bytes."""
    header, parts, place = {}, [], 0
    for key, array in arrays.items():
        data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
        code = array.dtype.newbyteorder("<").str
        if code not in _NAMES:
            raise RemoteError(f"an array of {array.dtype} cannot be sent: expected booleans, integers or floats.")
        header[key] = {"dtype": _NAMES[code], "shape": list(array.shape), "data_offsets": [place, place + len(data)]}
        parts.append(data)
        place += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # The values begin at a multiple of eight.
    return b"".join([struct.pack("<Q", len(text)), text, *parts])


def unpack_tensors(data: bytes | memoryview) -> dict[str, NDArray[Any]]:
    """Bytes as arrays, which are views of them and cannot be written to.

    Raises:
        RemoteError: They are not in this format, or contradict themselves.
    """
    try:
        (length,) = struct.unpack_from("<Q", data)
        if length > _LARGEST_HEADER:
            raise RemoteError(f"tensors: a header of {length} bytes, expected at most {_LARGEST_HEADER}.")
        header = json.loads(bytes(data[8 : 8 + length]))
        values = memoryview(data)[8 + length :]
        return {str(key): _array(entry, values) for key, entry in header.items() if key != "__metadata__"}
    except RemoteError:
        raise
    except Exception as error:  # No JSON, another length, nothing where something should be.
        raise RemoteError(f"tensors: {len(data)} bytes are not in the format of safetensors ({type(error).__name__}).") from error


def _array(entry: Any, values: memoryview) -> NDArray[Any]:
    shape, (begin, end), code = entry["shape"], entry["data_offsets"], _TYPES.get(entry["dtype"])
    if code is None:
        raise RemoteError(f"tensors: one of type {entry['dtype']!r:.20}, expected one of {sorted(_TYPES)}.")
    dtype = np.dtype(code)
    if len(shape) > _LARGEST_RANK or not all(type(n) is int and 0 <= n < 2**31 for n in (*shape, begin, end)):
        raise RemoteError(f"tensors: a shape or place that is not up to {_LARGEST_RANK} whole numbers.")
    if not begin <= end <= len(values) or end - begin != math.prod(shape) * dtype.itemsize:
        raise RemoteError(
            f"tensors: one of {dtype} and shape {shape!r:.60} has {end - begin} bytes, expected {math.prod(shape) * dtype.itemsize}."
        )
    return np.frombuffer(values[begin:end], dtype).reshape(shape)
