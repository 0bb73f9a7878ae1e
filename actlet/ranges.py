"""Fields of configurations, and the ranges that they must lie in."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from actlet.errors import CallerError

__all__ = ["require_fields"]


def require_fields(config: object, fields: Iterable[str], fits: Callable[[Any], bool], expected: str, *, optional: bool = False) -> None:
    """Refuses a configuration whose fields are out of range.

    Args:
        config: Has the fields.
        fields: Their names.
        fits: Of a value.
        expected: What fits, in words, as in "1 or more".
        optional: None fits too.

    Raises:
        CallerError: It names the fields that do not fit, and what they are.
    """
    values = {field: getattr(config, field) for field in fields}
    bad = [f"{field} {value!r}" for field, value in values.items() if not (optional if value is None else fits(value))]
    if bad:
        raise CallerError(f"{type(config).__name__}: {', '.join(bad)}: expected {expected}.")
