"""What every wire asks of an array's type before a byte of it is read: numbers, and nothing that could be made to run."""

from __future__ import annotations

from typing import Any

import numpy as np

from actlet.errors import RemoteError

__all__ = ["KINDS", "numeric_dtype"]

KINDS = "biuf"  # booleans, integers, floats: neither objects nor anything with a constructor


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
