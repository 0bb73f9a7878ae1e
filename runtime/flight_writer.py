"""The process that writes a recording: takes records out of the rings, and puts them into an MCAP file, chunk by chunk.

It has an ordinary priority and is nice, whatever the loop has. A chunk holds at most `flush_s` seconds or a mebibyte and a record, and is on the disk
(fdatasync) before the next begins, so a file that is cut anywhere is whole up to its last chunk. A chunk that the system refuses to write is kept and tried again, and the
rings fill up meanwhile: nothing is lost but what they have no room for. It ends when the control process does, however that ends, after what is in the rings.

MCAP's time of a record is the monotonic time of the loop plus one offset, so that it reads as UTC and yet never jumps; records carry the loop's own
time as `time_s`, and the metadata "actlet" the two readings of the clocks.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import struct
import sys
import time
from collections.abc import Sequence
from typing import Any

from actlet.specs import PolicySpec
from runtime.flight_messages import Message, Messages
from runtime.flight_records import CLOSING, LANE_OF, PAGE_BYTES, Kind, Page
from runtime.flight_schemas import CAMERA_TOPIC, PICTURE_SCHEMAS, SCHEMAS, TOPICS
from runtime.record_ring import Lane

__all__ = ["SCHEMA_VERSION"]

SCHEMA_VERSION = 1
_NICENESS = 10
_POLL_S, _PAUSE_S, _RETRY_S = 0.01, 0.001, 0.2
_ORPHAN_PATIENCE_S = 60.0
"""With the disk, where the control process died: nobody waits for the end then."""
_CHUNK_BYTES = 1 << 20
_PICTURES_A_ROUND = 8
"""Pictures that are encoded before the other lanes are looked at again."""
_ENDLESS = 1 << 62
_RECORD = struct.Struct("<BQ")  # Opcode and length of an MCAP record.


class _Disk:
    """What mcap's writer writes to: memory, until `commit` puts it at the end of the file."""

    def __init__(self, handle: int, page: Page) -> None:
        self._handle, self._page = handle, page
        self.kept, self._coming = 0, bytearray()

    def write(self, data: bytes) -> int:
        """Keep it."""
        self._coming += data
        return len(data)

    def tell(self) -> int:
        """Where the next byte will be."""
        return self.kept + len(self._coming)

    def flush(self) -> None:
        """`commit` does."""

    @property
    def is_waiting(self) -> bool:
        """Something is not on the disk yet."""
        return bool(self._coming)

    def commit(self, records: Sequence[int]) -> bool:
        """Put what was written on the disk, all of it or nothing.

        Args:
            records: How many there will be then in all, by kind.
        """
        if not self._coming:
            return True
        page = self._page
        for kind, count in enumerate(records):
            page.set("coming", count, kind)
        # A reader finds a chunk from its own end on, though the index after it is cut.
        page.set("coming_end", self.kept + _RECORD.size + _RECORD.unpack_from(self._coming)[1])
        try:
            data, place = memoryview(self._coming), self.kept
            while data:
                done = os.pwrite(self._handle, data, place)
                data, place = data[done:], place + done
            os.fdatasync(self._handle)
        except OSError as error:
            data.release()
            page.set("error", error.errno or 0)
            page.set("failures", page.get("failures") + 1)
            page.set("coming_end", self.kept)
            page.set("is_failing", 1)
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, self.kept)  # No half chunk, should this be the end.
            return False
        data.release()
        self.kept = place
        for kind, count in enumerate(records):
            page.set("kept", count, kind)
        page.set("kept_bytes", place)
        page.set("is_failing", 0)
        self._coming = bytearray()
        return True


class _Recording:
    """The file: records in, messages of MCAP out."""

    def __init__(self, asked: dict[str, Any], page: Page) -> None:
        from mcap.writer import CompressionType, Writer

        document = asked["document"]
        self.spec, self.page = PolicySpec.from_dict(document["spec"]), page
        self.flush_s, pictures = asked["flush_s"], document["pictures"]
        begun_s, begun_ns = document["clock"]["monotonic_s"], document["clock"]["utc_ns"]
        self.messages = Messages(self.spec, pictures=pictures, quality=asked["quality"], begun_s=begun_s, begun_ns=begun_ns)
        self.counts = [0] * len(Kind)
        self.disk = _Disk(asked["file"], page)
        self.writer = Writer(self.disk, chunk_size=_ENDLESS, compression=CompressionType.ZSTD)  # type: ignore[arg-type]
        self.writer.start(profile="actlet", library=f"actlet {document['versions']['actlet']}, mcap {document['versions'].get('mcap', '')}")
        self.writer.add_metadata(
            "actlet", {"schema_version": str(SCHEMA_VERSION)} | {key: json.dumps(value) for key, value in document.items()}
        )
        schemas = {
            name: self.writer.register_schema(name, "jsonschema", json.dumps(schema).encode())
            for name, schema in (SCHEMAS | PICTURE_SCHEMAS).items()
        }
        picture = "foxglove.RawImage" if pictures == "raw" else "foxglove.CompressedImage"
        topics = TOPICS | (
            {} if pictures == "none" else {f"{CAMERA_TOPIC}{camera.name}": picture for camera in self.spec.observation.cameras}
        )
        self.channels = {topic: self.writer.register_channel(topic, "json", schemas[name]) for topic, name in topics.items()}
        self.bytes, self.since_s = 0, math.inf
        text = f"recording begins: {document['about'].get('instruction') or 'no instruction'}"
        self._add(self.messages.log(begun_s, 2, text, 0))
        self.messages.begin()

    def take(self, kind: int, number: int, content: memoryview) -> None:
        """A record of the rings."""
        messages = self.messages.of(kind, number, content)
        self.counts[kind] += 1
        self._add(*messages)

    def is_due(self, now_s: float) -> bool:
        """The chunk is large or old enough."""
        return self.bytes >= _CHUNK_BYTES or now_s - self.since_s >= self.flush_s

    def flush(self) -> bool:
        """End the chunk and put it on the disk; False where the disk refuses: then nothing may be added."""
        self.writer.flush()
        self.bytes, self.since_s = 0, math.inf
        return self.disk.commit(self.counts)

    def finish(self) -> bool:
        """Write what was lost and the index."""
        self.writer.flush()
        if not self.disk.commit(self.counts):
            return False
        made = {kind.label: self.page.get("made", kind) for kind in Kind}
        kept = {kind.label: self.counts[kind] for kind in Kind}
        self.writer.add_metadata(
            "actlet.end", {"made": json.dumps(made), "kept": json.dumps(kept), "failures": str(self.page.get("failures"))}
        )
        self.writer.finish()
        return self.disk.commit(self.counts)

    def _add(self, *messages: Message) -> None:
        if self.since_s == math.inf:
            self.since_s = time.monotonic()
        for topic, time_ns, sequence, data in messages:
            self.writer.add_message(self.channels[topic], log_time=time_ns, data=data, publish_time=time_ns, sequence=sequence)
            self.bytes += len(data)


def _write(recording: _Recording, lanes: Sequence[Lane], parent: int, patience_s: float) -> bool:
    """Until the control process is gone and the rings are empty; whether all is on the disk."""
    end_s = math.inf
    pictures = lanes[LANE_OF[Kind.PICTURED]]
    while True:
        now_s = time.monotonic()
        if recording.disk.is_waiting and not recording.disk.commit(recording.counts):
            if now_s >= end_s:
                return False
            end_s = _wait(parent, _RETRY_S, end_s, patience_s)
            continue
        took = 0
        for lane in lanes:
            lane.look()
            most = _PICTURES_A_ROUND if lane is pictures else _ENDLESS
            for kind, number, content in lane.take():
                recording.take(kind, number, content)
                took += 1
                most -= 1
                if most <= 0 or (recording.bytes >= _CHUNK_BYTES and lane is pictures):
                    break
        if recording.is_due(time.monotonic()) and not recording.flush():
            continue
        if end_s < math.inf and not any(lane.waiting for lane in lanes):
            return recording.finish()
        if now_s >= end_s:
            recording.flush()
            return False
        end_s = _wait(parent, _PAUSE_S if took else _POLL_S, end_s, patience_s)


def _wait(parent: int, wait_s: float, end_s: float, patience_s: float) -> float:
    """Some time, or less if the control process ends meanwhile; until when there is patience then."""
    if end_s < math.inf:
        time.sleep(wait_s)
    elif select.select([parent], [], [], wait_s)[0]:
        return time.monotonic() + (patience_s if os.read(parent, 1) == CLOSING else _ORPHAN_PATIENCE_S)
    return end_s


def main() -> int:
    """The writer; reads what to do from stdin."""
    asked = json.loads(sys.stdin.buffer.read())
    if hasattr(os, "sched_setscheduler"):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    os.nice(max(0, _NICENESS - os.nice(0)))
    memory = asked["memory"]
    page, lanes, offset = Page.at(memory), [], PAGE_BYTES
    for size in asked["sizes"]:
        lanes.append(Lane(memory, offset, size))
        offset += Lane.size_of(size)
    recording = _Recording(asked, page)
    error = "" if recording.flush() else os.strerror(page.get("error"))
    os.write(asked["say"], json.dumps({"error": error}).encode() + b"\n")
    os.close(asked["say"])
    if error:
        return 1
    done = _write(recording, lanes, asked["parent"], asked["patience_s"])
    page.set("finished", int(done))
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
