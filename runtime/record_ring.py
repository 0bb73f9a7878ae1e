"""Records from the process that must not wait to the one that writes them down: rings in shared memory, one producer, one consumer.

A lane is a ring of bytes for one sort of record, so that pictures, which are many bytes, cannot take the place of commands, which are few. Head and
tail count bytes since the beginning and never go back::

    head: u64    written by the producer      (one cache line each: what one process writes and the other reads should not lie in one)
    tail: u64    written by the consumer
    record       size: u32   kind: u32   number: u64   content …, filled up to 8 bytes

A record that would not fit before the end of the memory goes to its beginning; a size of 0 says so. A record for which there is no room is dropped: the
newest, since what is in the ring may be being read. `number` counts the records of a kind, dropped ones too, so a gap in what was written says what is
lost.

No checksum: a picture's takes longer than its copy. Processors that let others see writes in another order (Arm) do so for far less than a microsecond,
and the consumer takes only what was there when it looked the time before, a millisecond ago or more.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence

__all__ = ["CONTENT", "HEAD", "TAIL", "Lane", "Record"]

HEAD = struct.Struct("<IIQ")
"""size, kind and number of a record."""
TAIL = 8
"""Word of the tail; the head's is 0."""
CONTENT = 128
"""Byte at which records begin."""

Record = tuple[int, int, memoryview]
"""kind, number, content; the content is the ring's own memory, until the next is taken."""


class Lane:
    """One end of a ring; the two ends are made alike.

    Args:
        handle: File descriptor of `runtime.mailbox.shared_memory`.
        offset: Where the lane begins in it, a multiple of the page size.
        capacity: Bytes of records, a multiple of 8; `size_of` says what the lane takes.
    """

    def __init__(self, handle: int, offset: int, capacity: int) -> None:
        self.capacity = capacity
        self.memory: mmap.mmap = mmap.mmap(handle, self.size_of(capacity), offset=offset)
        self._view = memoryview(self.memory)
        self.words: memoryview = self._view.cast("Q")  # Its items are stored and loaded as a whole.
        self._head, self._tail = self.words[0], self.words[TAIL]
        self._next = self._head
        self._seen = self._until = self._taken = self._tail

    @staticmethod
    def size_of(capacity: int) -> int:
        """Memory that a lane takes, whole pages."""
        return -(-(CONTENT + capacity) // mmap.PAGESIZE) * mmap.PAGESIZE

    @staticmethod
    def record_bytes(content: int) -> int:
        """Bytes of a ring that a record takes with so much content."""
        return (HEAD.size + content + 7) & ~7

    def touch(self) -> None:
        """Producer, before the first record: have every page in memory, so that none is missing when it matters."""
        zeros = bytes(1 << 16)
        for place in range(CONTENT, CONTENT + self.capacity, len(zeros)):
            end = min(place + len(zeros), CONTENT + self.capacity)
            self._view[place:end] = zeros[: end - place]

    def reserve(self, size: int) -> int:
        """Producer: room for a record of so many bytes in all (`record_bytes`).

        Returns:
            Where it goes in `memory`; -1 where there is no room, then the record is dropped.
        """
        head, capacity = self._head, self.capacity
        place = head % capacity
        left = capacity - place
        skipped = left if size > left else 0
        end = head + skipped + size
        if end - self._tail > capacity:
            self._tail = self.words[TAIL]
            if end - self._tail > capacity:
                return -1
        if skipped:
            if left >= HEAD.size:  # Else the consumer knows by that alone.
                HEAD.pack_into(self.memory, CONTENT + place, 0, 0, 0)
            place = 0
        self._next = end
        return CONTENT + place

    def publish(self) -> None:
        """Producer: what was reserved last is written."""
        self._head = self.words[0] = self._next

    def put(self, kind: int, number: int, parts: Sequence[bytes | memoryview]) -> bool:
        """Producer: a record of several parts; False where there is no room."""
        content = sum(map(len, parts))
        place = self.reserve(self.record_bytes(content))
        if place < 0:
            return False
        HEAD.pack_into(self.memory, place, HEAD.size + content, kind, number)
        place += HEAD.size
        for part in parts:
            self._view[place : place + len(part)] = part
            place += len(part)
        self.publish()
        return True

    def look(self) -> None:
        """Consumer: what was there at the look before may be taken from now on."""
        self._until, self._seen = self._seen, self.words[0]

    def take(self) -> Iterator[Record]:
        """Consumer: the records that may be taken; each counts as taken, and its memory is the producer's again, when the next is asked for or no more."""
        while self._taken < self._until:
            place = self._taken % self.capacity
            size, kind, number = 0, 0, 0
            if self.capacity - place >= HEAD.size:
                size, kind, number = HEAD.unpack_from(self.memory, CONTENT + place)
            if size == 0:
                self._taken += self.capacity - place
                continue
            start = CONTENT + place
            try:
                with self._view[start + HEAD.size : start + size] as content:
                    yield kind, number, content
            finally:
                self._taken += (size + 7) & ~7
                self.words[TAIL] = self._taken
        self.words[TAIL] = self._taken

    @property
    def waiting(self) -> int:
        """Bytes that were not taken yet."""
        return int(self.words[0] - self.words[TAIL])

    def close(self) -> None:
        """Let the memory go; the other end keeps it."""
        self.words.release()
        self._view.release()
        self.memory.close()
