"""The messages of OpenVLA's and OpenVLA-OFT's servers: JSON over ``POST /act``, with numpy arrays as objects of their own (json_numpy).

    OpenVLA   {"image": array, "instruction": "...", "unnorm_key": "..."}                   -> array (A,)
    OFT       {"full_image": array, "wrist_image": array, "state": array, "instruction": "..."} -> list of H arrays (A,)
    either    {"encoded": "the same as JSON text"}                                        -> the answer as JSON text
    failure   "error", with status 200

An array is ``{"__numpy__": base64, "dtype": "<f4", "shape": [...]}``. Upstream trusts what it reads; here an array of objects, one whose
bytes do not fill its shape, and text that is no JSON are refused, before memory for an array is taken.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlet.errors import RemoteError
from runtime.wires.arrays import KINDS, numeric_dtype

__all__ = ["as_actions", "pack", "unpack"]

_LARGEST_RANK = 8
_FAILURE = "error"


def pack(message: Any, *, encoded: bool = False) -> bytes:
    """A message as JSON; `encoded`: as text inside JSON, for clients and servers without json_numpy's patch."""
    text = json.dumps(message, default=_pack_array)
    return (json.dumps({"encoded": text}) if encoded else text).encode()


def unpack(body: bytes | str) -> Any:
    """JSON as a message; arrays are copies. Text that itself is JSON (an "encoded" answer) is read once more.

    Raises:
        RemoteError: No JSON, an array that contradicts itself, or "error", which is how these servers say that they failed.
    """
    message = _load(body)
    if not isinstance(message, str):
        return message
    if message == _FAILURE:
        raise RemoteError("the server answered 'error': it failed on this question; its own log says why.")
    return _load(message)


def as_actions(answer: Any, horizon: int, dim: int) -> NDArray[np.float32]:
    """An answer as float32 (H, A): an array, a list of arrays, or lists of numbers; (A,) where H is 1.

    Raises:
        RemoteError: Another shape, something that is no number, or a value that is not finite in float32.
    """
    try:
        rows = [_numbers(row) for row in answer] if isinstance(answer, list) else _numbers(answer)
        values = np.asarray(rows, dtype=np.float64)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise RemoteError(
            f"the answer is {str(answer)[:80] if not isinstance(error, RecursionError) else 'lists of lists of lists'}: expected {horizon} actions of {dim} numbers."
        ) from error
    if horizon == 1 and values.shape == (dim,):
        values = values[None]
    if values.shape != (horizon, dim):
        raise RemoteError(f"the answer has the shape {values.shape}: expected {(horizon, dim)}: {horizon} actions of {dim} numbers.")
    with np.errstate(over="ignore"):  # 1e300 is finite only until it becomes a float32.
        actions = values.astype(np.float32)
    if not np.isfinite(actions).all():
        step, entry = (int(i) for i in np.argwhere(~np.isfinite(actions))[0])
        raise RemoteError(f"actions[{step}, {entry}] is {values[step, entry]}: a value that is not finite; the answer is refused.")
    return actions


def _numbers(value: Any) -> Any:
    """Arrays of numbers, numbers, and lists of them; neither booleans nor text, which numpy would convert."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
        return value
    if isinstance(value, list):
        return [_numbers(entry) for entry in value]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    raise TypeError(f"{value!r:.40} is no number")


def _load(body: bytes | str) -> Any:
    try:
        return json.loads(body, object_hook=_unpack_array)
    except RemoteError:
        raise
    except (ValueError, RecursionError) as error:
        raise RemoteError(f"{len(body)} bytes are not JSON ({error}); is it an OpenVLA server?") from error


def _pack_array(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        if value.dtype.kind not in KINDS:
            raise RemoteError(f"an array of {value.dtype} cannot be sent: expected booleans, integers or floats.")
        return {"__numpy__": base64.b64encode(value.tobytes()).decode(), "dtype": value.dtype.str, "shape": list(value.shape)}
    raise TypeError(f"{type(value).__name__} cannot be sent")


def _unpack_array(value: dict[str, Any]) -> Any:
    if "__numpy__" not in value:
        return value
    text, shape, dtype = value["__numpy__"], value.get("shape"), numeric_dtype(value.get("dtype"))
    if not isinstance(shape, list) or len(shape) > _LARGEST_RANK or not all(type(n) is int and n >= 0 for n in shape):
        raise RemoteError(f"an array's shape is {shape!r:.60}: expected up to {_LARGEST_RANK} whole numbers.")
    wanted = math.prod(shape) * dtype.itemsize
    if not isinstance(text, str) or len(text) != 4 * math.ceil(wanted / 3):
        held = f"{len(text)} characters" if isinstance(text, str) else type(text).__name__
        raise RemoteError(f"an array of {dtype} and shape {tuple(shape)} holds {held}: expected {wanted} bytes in base64.")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RemoteError(f"an array's bytes are not base64: {error}.") from error
    if len(data) != wanted:
        raise RemoteError(f"an array of {dtype} and shape {tuple(shape)} holds {len(data)} bytes: expected {wanted}.")
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="))
