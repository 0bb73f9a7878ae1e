"""What every wire asks before anything is made of a message: arrays of numbers, and nothing that could be made to run; words that are no book."""

from __future__ import annotations

from typing import Any

import numpy as np

from actlet.errors import ObservationError, RemoteError

__all__ = ["KINDS", "instruction_in", "numeric_dtype"]

KINDS = "biuf"  # booleans, integers, floats: neither objects nor anything with a constructor


_LONGEST_INSTRUCTION = 4096  # Characters; encoders read some dozens of words, and a tokenizer's time grows with what it is given.


def instruction_in(value: Any, key: str) -> str:
    """A message's instruction.

    Raises:
        ObservationError: It is no words, or too many.
    """
    if not isinstance(value, str) or not value.strip():
        got = repr(value) if isinstance(value, str) else type(value).__name__  # What a pickle says may be too large to be written out.
        raise ObservationError(f"{key!r} is {got:.60}: expected words.")
    if len(value) > _LONGEST_INSTRUCTION:
        raise ObservationError(f"{key!r} has {len(value)} characters: expected at most {_LONGEST_INSTRUCTION}.")
    return value


def numeric_dtype(name: Any) -> np.dtype[Any]:
    """The type of a name as numpy writes it, such as "<f4".

    Raises:
        RemoteError: It is no name, too long for one, or of another kind.
    """
    try:
        dtype = np.dtype(name) if isinstance(name, str) and len(name) <= 8 else None
    except (TypeError, ValueError, SyntaxError):
        dtype = None
    if dtype is None or dtype.kind not in KINDS or dtype.shape:
        raise RemoteError(f"an array's dtype is {name!r:.40}: expected booleans, integers or floats, as in '<f4'.")
    return dtype
