"""What passes between the loop and the process that writes a recording: records as bytes, and a page of counters.

    commanded   step, tick: i64   time: f64   limited: u32   was due: u32   A x sent: f64   A x due: f64
    observed    step: i64   time, taken: f64   S, committed values: u32   S x f32   committed x f32   why it was refused
    pictured    step: i64   time: f64   which cameras: u64   frames …
    answered    step, observed at: i64   time, submitted, finished: f64   H, A: u32   H x A x f32   H x f32   "elsewhere" or nothing, 0, verdict, 0, error
    judged      step: i64   time, since: f64   state, cause: u32   words
    noted       time: f64   level: u32   text

Commands, decisions (observed, answered), events (judged, noted) and pictures have a lane each, so none takes the place of another.
"""

from __future__ import annotations

import dataclasses
import enum
import mmap
import struct

from actlet.specs import PolicySpec
from runtime.record_ring import HEAD, Lane

__all__ = [
    "ANSWERED",
    "CLOSING",
    "JUDGED",
    "LANE_OF",
    "MOST_TEXT",
    "NOTED",
    "NO_CAUSE",
    "OBSERVED",
    "PAGE_BYTES",
    "PICTURED",
    "RESULT",
    "TOLD",
    "Kind",
    "Page",
    "command_record",
    "commanded_struct",
    "lane_sizes",
]

OBSERVED, PICTURED, ANSWERED = struct.Struct("<qddII"), struct.Struct("<qdQ"), struct.Struct("<qqdddII")
JUDGED, NOTED = struct.Struct("<qddII"), struct.Struct("<dI")
NO_CAUSE = 255
CLOSING = b"c"
"""What the writer is told before its pipe is closed by somebody who waits for it; nothing, where the control process died."""
MOST_TEXT = 4096
RESULT, TOLD = 100, 101
"""Levels of notes that are the run's result, as JSON, and its instruction; the others are foxglove.Log's: 2 info, 3 warning, 4 error."""


class Kind(enum.IntEnum):
    """Of records."""

    COMMANDED = 0
    OBSERVED = 1
    ANSWERED = 2
    JUDGED = 3
    NOTED = 4
    PICTURED = 5

    @property
    def label(self) -> str:
        """In words, many of them."""
        return _LABELS[self]


_LABELS = {
    Kind.COMMANDED: "commands",
    Kind.OBSERVED: "observations",
    Kind.ANSWERED: "answers",
    Kind.JUDGED: "verdicts",
    Kind.NOTED: "notes",
    Kind.PICTURED: "pictures",
}
LANE_OF = {Kind.COMMANDED: 0, Kind.OBSERVED: 1, Kind.ANSWERED: 1, Kind.JUDGED: 2, Kind.NOTED: 2, Kind.PICTURED: 3}
_COMMANDS_BYTES, _DECISIONS_BYTES, _EVENTS_BYTES = 2 << 20, 2 << 20, 256 << 10
_LEAST_COMMANDS, _LEAST_PICTURES = 4096, 4


def commanded_struct(dim: int) -> struct.Struct:
    """A command of `dim` numbers."""
    return struct.Struct(f"<qqdII{2 * dim}d")


def command_record(dim: int) -> struct.Struct:
    """The same with the head of a ring's record before it, so that one call writes both."""
    return struct.Struct(HEAD.format + commanded_struct(dim).format.lstrip("<"))


def lane_sizes(spec: PolicySpec, pictures_bytes: int) -> tuple[int, int, int, int]:
    """Bytes of each lane; that of pictures holds four observations at least."""
    frames = sum(camera.height * camera.width * 3 for camera in spec.observation.cameras)
    chunk = ANSWERED.size + 4 * spec.timing.horizon * (spec.action.dim + 1) + MOST_TEXT
    decisions = max(_DECISIONS_BYTES, 64 * Lane.record_bytes(chunk))
    pictures = max(pictures_bytes, _LEAST_PICTURES * Lane.record_bytes(PICTURED.size + frames))
    command = Lane.record_bytes(commanded_struct(spec.action.dim).size)  # A whole number of them: none is divided by the end of the ring.
    commands = max(_COMMANDS_BYTES // command, _LEAST_COMMANDS) * command
    return commands, -(-decisions // 8) * 8, _EVENTS_BYTES, -(-pictures // 8) * 8


PAGE_BYTES = mmap.PAGESIZE
_WORDS = {"made": 0, "dropped": 16, "kept": 64, "coming": 80}
_SINGLE = {"coming_end": 96, "kept_bytes": 97, "failures": 98, "error": 99, "finished": 100, "is_failing": 101}


@dataclasses.dataclass(frozen=True)
class Page:
    """Counters in shared memory; each is written by one side alone.

    The loop writes how many records of a kind it `made`, and how many it `dropped` because there was no room. The writer says how many are `kept` on the
    disk, in how many `kept_bytes`, and before it writes a chunk what it is `coming` to when the file is `coming_end` bytes long: so that it is known
    what is on the disk when it dies in between. `failures` counts writes that the system refused, for the reason `error` (errno); it `is_failing` if it
    refused the last.
    """

    memory: mmap.mmap
    words: memoryview

    @classmethod
    def at(cls, handle: int) -> Page:
        """The page at the beginning of a shared memory."""
        memory = mmap.mmap(handle, PAGE_BYTES)
        return cls(memory, memoryview(memory).cast("Q"))

    @staticmethod
    def index(name: str, kind: int = 0) -> int:
        """Its word in `words`."""
        return _WORDS[name] + kind if name in _WORDS else _SINGLE[name]

    def get(self, name: str, kind: int = 0) -> int:
        """A counter."""
        return int(self.words[self.index(name, kind)])

    def set(self, name: str, value: int, kind: int = 0) -> None:
        """Write a counter."""
        self.words[self.index(name, kind)] = value

    def close(self) -> None:
        """Let the memory go."""
        self.words.release()
        self.memory.close()
