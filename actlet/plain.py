"""Frozen dataclasses as plain JSON types and back, strictly.

What is read back is what the fields' types say, or an error that names the place: an unknown key, a missing key, a string
where a number belongs, a float where a count belongs. Nothing is converted or guessed, except that JSON's lists become tuples
and its whole numbers may stand for floats. Only a field with a default may be absent: one that a later version added.

Understood field types: str, bool, int, float, Literal, `X | None`, tuple[X, ...], dict[str, X], and
classes with `to_dict` and `from_dict` (other PlainJson classes, and ActionTokenizer, which holds arrays).
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any, Literal, TypeVar

from actlet.errors import SpecError

__all__ = ["PlainJson"]

Self = TypeVar("Self", bound="PlainJson")


class PlainJson:
    """Gives a dataclass `to_dict` and `from_dict`."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_dict(cls: type[Self], data: Any, *, where: str = "") -> Self:
        """The inverse of `to_dict`.

        Args:
            data: An object with exactly the fields of this class.
            where: The place in the document, for messages.

        Raises:
            SpecError: Unknown or missing keys, a value of another type than the field's, or what the class itself refuses.
        """
        where = where or cls.__name__
        if not isinstance(data, dict):
            raise SpecError(f"{where}: got {_shown(data)}, expected an object with named fields.")
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]
        known, required = {field.name for field in fields}, {field.name for field in fields if field.default is dataclasses.MISSING}
        unknown, missing = sorted(set(data) - known, key=str), sorted(required - set(data))
        if unknown or missing:
            raise SpecError(f"{where}: unknown keys {unknown}, missing keys {missing}; expected exactly {sorted(known)}.")
        hints = typing.get_type_hints(cls)
        return cls(**{name: _value(hints[name], data[name], f"{where}.{name}") for name in sorted(data)})


def _plain(value: Any) -> Any:
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner = next(argument for argument in arguments if argument is not type(None))
        return None if value is None else _value(inner, value, where)
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in arguments):
            raise SpecError(f"{where}: got {_shown(value)}, expected one of {list(arguments)}.")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise SpecError(f"{where}: got {_shown(value)}, expected a list.")
        return tuple(_value(arguments[0], entry, f"{where}[{i}]") for i, entry in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise SpecError(f"{where}: got {_shown(value)}, expected an object with text keys.")
        return {key: _value(arguments[1], entry, f"{where}[{key!r}]") for key, entry in value.items()}
    if isinstance(hint, type) and issubclass(hint, PlainJson):
        return hint.from_dict(value, where=where)
    if hasattr(hint, "from_dict"):
        return hint.from_dict(value)
    return _scalar(hint, value, where)


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return value  # As it was written: 1 stays 1, so that a document survives a round trip unchanged.
    elif type(value) is hint:
        return value
    names = {str: "text", int: "a whole number", float: "a finite number", bool: "true or false"}
    raise SpecError(f"{where}: got {_shown(value)}, expected {names[hint]}.")


def _shown(value: Any) -> str:
    text = repr(value) if not isinstance(value, (dict, list)) else f"{type(value).__name__} of {len(value)}"
    return text if len(text) <= 60 else text[:57] + "..."
