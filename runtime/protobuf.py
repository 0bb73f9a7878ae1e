"""Protocol buffers as bytes: the fields of a message in, fields of a message out.

The robot has neither `onnx` nor `protobuf`, and needs two things of an .onnx file: to see what it is made of before anything else reads it
(`runtime.network_check`), and to put constants in the place of inputs (`runtime.fixed_inputs`). Encoding:
https://protobuf.dev/programming-guides/encoding/. A group (kinds 3 and 4, which nothing writes any more) is refused.
"""

from __future__ import annotations

from collections.abc import Iterator

from actlet.errors import BundleError

__all__ = ["fields", "length_field", "number_field", "packed_numbers"]

_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5


def fields(message: memoryview, where: str) -> Iterator[tuple[int, int | None, memoryview, memoryview]]:
    """The fields of a message, in their order.

    Args:
        message: Its bytes.
        where: The file's name, for messages.

    Yields:
        Number; value of a whole number, None for other kinds; content of what has a length, else nothing; and the field as it stands, key included.

    Raises:
        BundleError: The bytes are no message.
    """
    at = 0
    while at < len(message):
        begin = at
        key, at = _varint(message, at, where)
        kind, length, value = key & 7, 0, None
        if not 8 <= key < 1 << 32:  # Parsers cut longer keys off, and would see another field than is seen here.
            raise BundleError(f"{where}: not a network in ONNX's format (field {key >> 3} at byte {begin} of {len(message)}).")
        if kind == _VARINT:
            value, at = _varint(message, at, where)
        elif kind == _LENGTH:
            length, at = _varint(message, at, where)
            at += length
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            at += 8 if kind == _EIGHT_BYTES else 4
        else:
            raise BundleError(f"{where}: not a network in ONNX's format (a field of kind {kind} at byte {begin} of {len(message)}).")
        if at > len(message):
            raise BundleError(f"{where}: not a network in ONNX's format (a field ends at byte {at} of {len(message)}).")
        yield key >> 3, value, message[at - length : at], message[begin:at]


def packed_numbers(values: memoryview, where: str) -> Iterator[int]:
    """Whole numbers that stand one after the other in one field; arguments and errors as for `fields`."""
    at = 0
    while at < len(values):
        number, at = _varint(values, at, where)
        yield number


def number_field(number: int, value: int) -> bytes:
    """A field that holds a whole number of 0 or more."""
    return _encoded(number << 3 | _VARINT) + _encoded(value)


def length_field(number: int, content: bytes) -> bytes:
    """A field that holds bytes, a text or a message."""
    return _encoded(number << 3 | _LENGTH) + _encoded(len(content)) + content


def _varint(message: memoryview, at: int, where: str) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends."""
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        number |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            if byte == 0 and shift:
                break  # Longer than the number needs: no writer does so.
            return number, at
    raise BundleError(
        f"{where}: not a network in ONNX's format (a number that does not end, or not where it should, at byte {at} of {len(message)})."
    )


def _encoded(number: int) -> bytes:
    parts = bytearray()
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)
