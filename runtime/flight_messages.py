"""Records of the rings as messages of MCAP: topic, time, and JSON that Foxglove reads (`runtime.flight_schemas`)."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from actlet.specs import PolicySpec
from runtime.failsafe import Cause, State
from runtime.flight_records import ANSWERED, JUDGED, NO_CAUSE, NOTED, OBSERVED, PICTURED, RESULT, TOLD, Kind, commanded_struct
from runtime.flight_schemas import CAMERA_TOPIC, NOTE_NAME

__all__ = ["Message", "Messages"]

_STATES, _CAUSES = tuple(State), tuple(Cause)
_OTHER_CLOCK_S = 3600.0
"""A first record so far from the clock's reading is of another clock: that of a simulation, whose time begins at 0."""

Message = tuple[str, int, int, bytes]
"""Topic, time in [ns], sequence, content."""


class Messages:
    """Makes messages.

    Args:
        spec: The policy's.
        pictures: What they become: "jpeg", "png", "raw" or "none".
        quality: Of jpeg.
        begun_s: The loop's clock when the recording began.
        begun_ns: UTC then. What is between the two is added to the loop's time, so that it reads as UTC.
    """

    def __init__(self, spec: PolicySpec, *, pictures: str, quality: int, begun_s: float, begun_ns: int) -> None:
        self.spec, self.pictures = spec, pictures
        self._begun_s, self._begun_ns, self._offset_ns = begun_s, begun_ns, begun_ns - round(1e9 * begun_s)
        self._is_first = False
        self.encode = _encoder(pictures, quality)
        self.command, self.dim = commanded_struct(spec.action.dim), spec.action.dim
        self._of: dict[int, Callable[[memoryview, int], list[Message]]] = {
            Kind.COMMANDED: self._commanded,
            Kind.OBSERVED: self._observed,
            Kind.ANSWERED: self._answered,
            Kind.JUDGED: self._judged,
            Kind.NOTED: self._noted,
            Kind.PICTURED: self._pictured,
        }

    def begin(self) -> None:
        """The next record is the loop's first."""
        self._is_first = True

    def of(self, kind: int, number: int, content: memoryview) -> list[Message]:
        """A record's messages; `number` becomes their sequence."""
        return self._of[kind](content, number)

    def log(self, now_s: float, level: int, text: str, number: int, name: str = "actlet") -> Message:
        """A line of the log."""
        time_ns = self._ns(now_s)
        fields = {"timestamp": _stamp(time_ns), "level": level, "message": text, "name": name, "file": "", "line": 0}
        return "/log", time_ns, number, _json(fields).encode()

    def _message(self, topic: str, number: int, now_s: float, **fields: Any) -> Message:
        return topic, self._ns(now_s), number, _json({**fields, "time_s": now_s}).encode()

    def _ns(self, now_s: float) -> int:
        if not math.isfinite(now_s):
            return 0
        if self._is_first and abs(now_s - self._begun_s) > _OTHER_CLOCK_S:
            self._offset_ns = self._begun_ns - round(1e9 * now_s)
        self._is_first = False
        return max(0, self._offset_ns + round(1e9 * now_s))

    def _commanded(self, content: memoryview, number: int) -> list[Message]:
        step, tick, now_s, limited, was_due, *values = self.command.unpack_from(content)
        sent, due = _plain(values[: self.dim]), _plain(values[self.dim :]) if was_due else None
        return [self._message("/command", number, now_s, step=step, tick=tick, sent=sent, due=due, limited=limited)]

    def _observed(self, content: memoryview, number: int) -> list[Message]:
        step, now_s, taken_s, states, told = OBSERVED.unpack_from(content)
        values = np.frombuffer(content, "<f4", states + told, OBSERVED.size).astype(float).tolist()
        refused = bytes(content[OBSERVED.size + 4 * (states + told) :]).decode("utf-8", "replace")
        rows = [_plain(values[states + i : states + i + self.dim]) for i in range(0, told, self.dim)]
        taken = taken_s if math.isfinite(taken_s) else None
        return [
            self._message(
                "/observation", number, now_s, step=step, taken_s=taken, state=_plain(values[:states]), committed=rows, refused=refused
            )
        ]

    def _answered(self, content: memoryview, number: int) -> list[Message]:
        step, observed_at, now_s, submitted_s, finished_s, rows, columns = ANSWERED.unpack_from(content)
        values = np.frombuffer(content, "<f4", rows * (columns + 1), ANSWERED.size).astype(float)
        where, verdict, error = bytes(content[ANSWERED.size + 4 * len(values) :]).decode("utf-8", "replace").split("\0", 2)
        actions = [_plain(row) for row in values[: rows * columns].reshape(rows, columns).tolist()]
        fields = {"step": step, "observed_at": observed_at, "verdict": verdict, "error": error, "submitted_s": submitted_s}
        fields |= {"elsewhere": bool(where), "finished_s": finished_s, "latency_ms": 1e3 * (finished_s - submitted_s)}
        fields |= {"actions": actions, "confidence": _plain(values[rows * columns :].tolist())}
        messages = [self._message("/answer", number, now_s, **fields)]
        if verdict != "used":
            messages.append(self.log(now_s, 3, f"step {step}: answer {verdict}: {error}", number))
        return messages

    def _judged(self, content: memoryview, number: int) -> list[Message]:
        step, now_s, since_s, state, cause = JUDGED.unpack_from(content)
        words = bytes(content[JUDGED.size :]).decode("utf-8", "replace")
        name = "" if cause == NO_CAUSE else _CAUSES[cause].value
        about = {"state": _STATES[state].name, "severity": state, "cause": name, "since_s": since_s, "words": words}
        text = f"step {step}: {_STATES[state].name}{f', {name}' if name else ''}{f': {words}' if words else ''}"
        level = 2 if state == State.RUN else 3 if state == State.HOLD else 4
        return [self._message("/failsafe", number, now_s, step=step, **about), self.log(now_s, level, text, number)]

    def _noted(self, content: memoryview, number: int) -> list[Message]:
        now_s, level = NOTED.unpack_from(content)
        text = bytes(content[NOTED.size :]).decode("utf-8", "replace")
        if level == RESULT:
            return [self._message("/result", number, now_s, **json.loads(text))]
        if level == TOLD:
            return [self._message("/instruction", number, now_s, text=text)]
        return [self.log(now_s, level, text, number, NOTE_NAME)]

    def _pictured(self, content: memoryview, number: int) -> list[Message]:
        step, now_s, which = PICTURED.unpack_from(content)
        place, messages, time_ns = PICTURED.size, [], self._ns(now_s)
        for bit, camera in enumerate(self.spec.observation.cameras):
            if not which >> bit & 1:
                continue
            size = camera.height * camera.width * 3
            frame = np.frombuffer(content, np.uint8, size, place).reshape(camera.height, camera.width, 3)
            place += size
            fields = {"timestamp": _stamp(time_ns), "frame_id": camera.name, "policy_step": step, "time_s": now_s}
            if self.pictures == "raw":
                fields |= {"width": camera.width, "height": camera.height, "encoding": "rgb8", "step": 3 * camera.width}
            else:
                fields |= {"format": self.pictures}
            fields["data"] = base64.b64encode(self.encode(frame)).decode()
            messages.append((f"{CAMERA_TOPIC}{camera.name}", time_ns, number, json.dumps(fields).encode()))
            del frame
        return messages


def _encoder(pictures: str, quality: int) -> Callable[[Any], bytes]:
    if pictures in ("raw", "none"):
        return lambda frame: bytes(frame.data)
    from PIL import Image

    options: dict[str, Any] = {"quality": quality} if pictures == "jpeg" else {"compress_level": 1}

    def encode(frame: Any) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, pictures.upper(), **options)
        return buffer.getvalue()

    encode(np.zeros((8, 8, 3), np.uint8))  # Loads what it needs now, not when there may be no file handle left.
    return encode


def _plain(values: list[float]) -> list[Any]:
    """As JSON knows numbers."""
    return values if all(map(math.isfinite, values)) else [value if math.isfinite(value) else str(value) for value in values]


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _stamp(time_ns: int) -> dict[str, int]:
    return {"sec": time_ns // 1_000_000_000, "nsec": time_ns % 1_000_000_000}
