"""A recorded run, read back from its MCAP file: also from one that was cut, as by a crash, up to its last whole chunk.

    run = open_recording("runs/2026-11-28T10-08-00Z.mcap")
    run.commands[0].sent, run.state_of(run.commands[0]), run.pictures(step=0)

The file is walked record by record and not by its index, which a cut file does not have. A chunk that is damaged is left out, and said. Pictures stay on
the disk until they are asked for.
"""

from __future__ import annotations

import base64
import bisect
import collections
import dataclasses
import functools
import io
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from actlet.errors import MissingExtraError, RecordingError, StorageError
from actlet.specs import PolicySpec
from runtime.flight_records import Kind
from runtime.flight_schemas import CAMERA_TOPIC, NOTE_NAME
from runtime.recording_rows import AnswerRow, CommandRow, JudgedRow, LogRow, ObservedRow

__all__ = ["Recording", "open_recording", "recover"]

_MAGIC = b"\x89MCAP0\r\n"
_RECORD = struct.Struct("<BQ")
_CHUNK, _METADATA, _DATA_END = 0x06, 0x0C, 0x0F
_MOST_CHUNK_BYTES = 1 << 30
_KINDS = {"/command": Kind.COMMANDED, "/observation": Kind.OBSERVED, "/answer": Kind.ANSWERED, "/failsafe": Kind.JUDGED}


@dataclasses.dataclass(frozen=True)
class _Picture:
    chunk: int
    """Where its chunk's record begins in the file."""
    place: int
    """Which of the chunk's messages."""


class Recording:
    """One run. Made by `open_recording`; rows are in the order of their steps and times."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.about: dict[str, Any] = {}
        """What the recorder was told of the run, `versions`, `created`, `clock` and how `pictures` were kept."""
        self.commands: list[CommandRow] = []
        self.observations: list[ObservedRow] = []
        self.answers: list[AnswerRow] = []
        self.verdicts: list[JudgedRow] = []
        self.log: list[LogRow] = []
        self.result: dict[str, Any] | None = None
        """How the run ended; None where that is not in the file."""
        self.is_whole: bool = False
        """The file has its end."""
        self.damage: list[str] = []
        """What could not be read, in words."""
        self.present: collections.Counter[str] = collections.Counter()
        """Records by kind (`Kind.label`)."""
        self.lost: dict[str, int] = {}
        """Records by kind that were made and are not here. Of a file without its end, those between two that are here."""
        self._told = ""
        self._pictures: dict[int, dict[str, _Picture]] = {}

    @functools.cached_property
    def spec(self) -> PolicySpec:
        """The policy's."""
        return PolicySpec.from_dict(self.about["spec"], where=f"{self.path}, spec")

    @property
    def instruction(self) -> str:
        """What was asked for."""
        return str(self.about["about"].get("instruction") or self._told)

    @property
    def ticks_per_step(self) -> int:
        """Most commands of a step."""
        return max(collections.Counter(command.step for command in self.commands).values(), default=1)

    def state_of(self, command: CommandRow) -> JudgedRow | None:
        """The failsafe's verdict that a command was made in; None before the first that is here."""
        place = bisect.bisect_right(self._judged_at, (command.step, command.time_s)) - 1
        return self.verdicts[place] if place >= 0 else None

    @functools.cached_property
    def _judged_at(self) -> list[tuple[int, float]]:
        return [(row.step, row.time_s) for row in self.verdicts]

    @property
    def pictured_steps(self) -> list[int]:
        """Steps of which there are pictures of all cameras."""
        cameras = {camera.name for camera in self.spec.observation.cameras}
        return sorted(step for step, found in self._pictures.items() if cameras <= found.keys())

    def pictures(self, step: int) -> dict[str, NDArray[np.uint8]]:
        """Camera -> uint8 (height, width, 3), as far as they are here.

        Raises:
            RecordingError: A picture cannot be decoded.
            MissingExtraError: Pillow is not installed.
        """
        return {
            name: _decode(self._message(picture), f"{self.path}, step {step}, camera {name!r}")
            for name, picture in self._pictures.get(step, {}).items()
        }

    def encoded_pictures(self, step: int) -> dict[str, tuple[str, bytes]]:
        """Camera -> format and bytes, as they are in the file."""
        found = {name: self._message(picture) for name, picture in self._pictures.get(step, {}).items()}
        return {name: (message.get("format", "rgb8"), base64.b64decode(message["data"])) for name, message in found.items()}

    def _message(self, picture: _Picture) -> dict[str, Any]:
        return dict(json.loads(self._chunk(picture.chunk)[picture.place]))

    @functools.lru_cache(maxsize=4)  # noqa: B019  # A recording lives as long as the program that shows it.
    def _chunk(self, start: int) -> list[bytes]:
        with self.path.open("rb") as file:
            file.seek(start)
            length = _RECORD.unpack(file.read(_RECORD.size))[1]
            return [record.data for record in _records(file.read(length)) if hasattr(record, "log_time")]


def open_recording(path: str | Path) -> Recording:
    """Read a recording; of the pictures only where they are.

    Raises:
        RecordingError: There is no such file, it is none of ours, or it was cut before its first chunk was whole.
        MissingExtraError: mcap is not installed.
    """
    path = Path(path)
    run = Recording(path)
    topics: dict[int, str] = {}
    numbers: dict[str, list[int]] = collections.defaultdict(list)
    end: dict[str, str] = {}
    for opcode, start, content in _walk(path, run):
        if opcode == _METADATA:
            record = _metadata(content)
            if record.name == "actlet":
                run.about = {key: json.loads(value) for key, value in record.metadata.items()}
            elif record.name == "actlet.end":
                end = record.metadata
        elif opcode == _DATA_END:
            run.is_whole = True
        elif opcode == _CHUNK:
            try:
                records = list(_records(content))
            except Exception as error:  # Whatever the bytes make of the decoders.
                run.damage.append(f"the chunk at byte {start} is damaged ({type(error).__name__}: {error}), and left out")
                continue
            _read_chunk(run, records, start, topics, numbers)
    if not run.about or (not run.commands and not run.observations and not run.log):
        raise RecordingError(
            f"{path}: {'; '.join(run.damage) or 'nothing of a run is in it'}. Expected a recording of actlet run --record."
        )
    for rows in (run.commands, run.observations, run.answers, run.verdicts):
        rows.sort(key=lambda row: (row.step, row.time_s))
    made = json.loads(end["made"]) if end else {kind: max(found) for kind, found in numbers.items()}
    run.present.update({kind: len(set(found)) for kind, found in numbers.items()})
    run.lost = {kind: count - run.present[kind] for kind, count in made.items()}
    return run


def recover(path: str | Path, out: str | Path) -> Recording:
    """Write a whole file, with an index, from the chunks that can be read of a cut one.

    Raises:
        RecordingError: As `open_recording`.
        StorageError: `out` exists.
    """
    from mcap.writer import CompressionType, Writer

    run, out = open_recording(path), Path(out)
    if out.exists():
        raise StorageError(f"{out} exists already: choose another name.")
    with out.open("xb") as file:
        writer = Writer(file, chunk_size=1 << 20, compression=CompressionType.ZSTD)
        writer.start(profile="actlet", library="actlet replay --recover")
        schemas: dict[int, int] = {}
        channels: dict[int, int] = {}
        for opcode, _, content in _walk(run.path, Recording(run.path)):
            if opcode == _METADATA:
                record = _metadata(content)
                writer.add_metadata(record.name, record.metadata)
            if opcode != _CHUNK:
                continue
            try:
                records = list(_records(content))
            except Exception:  # Said by `open_recording`.
                continue
            for record in records:
                if hasattr(record, "encoding"):
                    schemas[record.id] = writer.register_schema(record.name, record.encoding, record.data)
                elif hasattr(record, "topic"):
                    channels[record.id] = writer.register_channel(
                        record.topic, record.message_encoding, schemas[record.schema_id], record.metadata
                    )
                else:
                    writer.add_message(channels[record.channel_id], record.log_time, record.data, record.publish_time, record.sequence)
        writer.finish()
    return run


def _walk(path: Path, run: Recording) -> Iterator[tuple[int, int, bytes]]:
    """Opcode, place and content of the records that matter, as far as they are whole."""
    try:
        import mcap.records  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError("mcap", "record", "reading a recording") from error
    try:
        file: BinaryIO = path.open("rb")
    except OSError as error:
        raise RecordingError(f"{path}: {error.strerror}. Give a file of actlet run --record.") from error
    with file:
        size = os.fstat(file.fileno()).st_size
        if file.read(len(_MAGIC)) != _MAGIC:
            raise RecordingError(f"{path} is no MCAP file: it does not begin like one. Give a file of actlet run --record.")
        place = len(_MAGIC)
        while size - place >= _RECORD.size:
            opcode, length = _RECORD.unpack(file.read(_RECORD.size))
            if opcode == 0 or length > size - place - _RECORD.size:
                run.damage.append(f"cut or damaged at byte {place}: {size - place} bytes after the last whole record are left out")
                return
            if opcode == _DATA_END:
                yield opcode, place, b""
                return
            if opcode in (_CHUNK, _METADATA):
                yield opcode, place, file.read(length)
            else:
                file.seek(length, os.SEEK_CUR)
            place += _RECORD.size + length
        run.damage.append(f"the file ends at byte {size} without its index: the writer did not come to its end")


def _metadata(content: bytes) -> Any:
    from mcap.data_stream import ReadDataStream
    from mcap.records import Metadata

    return Metadata.read(ReadDataStream(io.BytesIO(content)))


def _records(content: bytes) -> Iterator[Any]:
    """The records of a chunk, whose checksum must be right."""
    from mcap.data_stream import ReadDataStream
    from mcap.records import Chunk
    from mcap.stream_reader import breakup_chunk

    chunk = Chunk.read(ReadDataStream(io.BytesIO(content)))
    if chunk.uncompressed_size > _MOST_CHUNK_BYTES:
        raise ValueError(f"{chunk.uncompressed_size} bytes unpacked, expected at most {_MOST_CHUNK_BYTES}")
    yield from breakup_chunk(chunk, validate_crc=True)


def _read_chunk(run: Recording, records: list[Any], start: int, topics: dict[int, str], numbers: dict[str, list[int]]) -> None:
    place = -1
    for record in records:
        if hasattr(record, "topic"):
            topics[record.id] = record.topic
        if not hasattr(record, "log_time"):
            continue
        place += 1
        topic = topics.get(record.channel_id, "")
        if topic in _KINDS:
            numbers[_KINDS[topic].label].append(record.sequence)
            _add_row(run, topic, json.loads(record.data))
        elif topic.startswith(CAMERA_TOPIC):
            numbers[Kind.PICTURED.label].append(record.sequence)
            step = _policy_step(record.data)
            run._pictures.setdefault(step, {})[topic.removeprefix(CAMERA_TOPIC)] = _Picture(start, place)
        elif topic == "/instruction":
            numbers[Kind.NOTED.label].append(record.sequence)
            run._told = json.loads(record.data)["text"]
        elif topic == "/result":
            numbers[Kind.NOTED.label].append(record.sequence)
            run.result = json.loads(record.data)
        elif topic == "/log":
            said = json.loads(record.data)
            run.log.append(LogRow(time_ns=record.log_time, level=said["level"], message=said["message"]))
            if said["name"] == NOTE_NAME:
                numbers[Kind.NOTED.label].append(record.sequence)


def _add_row(run: Recording, topic: str, data: dict[str, Any]) -> None:
    if topic == "/command":
        due = None if data["due"] is None else _numbers(data["due"])
        data |= {"due": due, "sent": _numbers(data["sent"])}
        run.commands.append(CommandRow(**data))
    elif topic == "/observation":
        committed = np.array([_numbers(row) for row in data["committed"]], np.float32) if data["committed"] else None
        run.observations.append(ObservedRow(**data | {"state": np.array(_numbers(data["state"]), np.float32), "committed": committed}))
    elif topic == "/answer":
        del data["latency_ms"]
        actions = np.array([_numbers(row) for row in data["actions"]], np.float32) if data["actions"] else np.zeros((0, 0), np.float32)
        run.answers.append(AnswerRow(**data | {"actions": actions, "confidence": np.array(_numbers(data["confidence"]), np.float32)}))
    else:
        del data["severity"]
        run.verdicts.append(JudgedRow(**data))


def _numbers(values: list[Any]) -> tuple[float, ...]:
    return tuple(map(float, values))


def _policy_step(data: bytes) -> int:
    """Of a picture, without parsing what is large."""
    place = data.index(b'"policy_step":') + len(b'"policy_step":')
    return int(data[place : place + 24].split(b",")[0])


def _decode(message: dict[str, Any], where: str) -> NDArray[np.uint8]:
    data = base64.b64decode(message["data"])
    if "encoding" in message:
        return np.frombuffer(data, np.uint8).reshape(message["height"], message["width"], 3)
    try:
        from PIL import Image, UnidentifiedImageError
    except ModuleNotFoundError as error:
        raise MissingExtraError("pillow", "record", "showing recorded pictures") from error
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return np.asarray(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise RecordingError(f"{where}: the picture cannot be decoded ({error}).") from error
