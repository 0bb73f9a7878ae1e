"""The topics of a recording and their JSON schemas, so that Foxglove and others show it without being told more.

Log and pictures have Foxglove's well-known schemas (foxglove.Log, CompressedImage, RawImage); the others are plain numbers with names.
A number that is not finite, which JSON does not know, is the text "nan", "inf" or "-inf".
"""

from __future__ import annotations

from typing import Any

__all__ = ["CAMERA_TOPIC", "NOTE_NAME", "PICTURE_SCHEMAS", "SCHEMAS", "TOPICS"]

_NUMBER, _COUNT, _TEXT = {"type": "number"}, {"type": "integer"}, {"type": "string"}
_NUMBERS = {"type": "array", "items": _NUMBER}
_TIME = {
    "type": "object",
    "title": "time",
    "properties": {"sec": {"type": "integer", "minimum": 0}, "nsec": {"type": "integer", "minimum": 0, "maximum": 999_999_999}},
}
_STEP_AND_TIME = {"step": _COUNT, "time_s": _NUMBER}


def _schema(title: str, **properties: Any) -> dict[str, Any]:
    return {"title": title, "type": "object", "properties": properties}


TOPICS = {
    "/command": "actlet.Command",
    "/observation": "actlet.Observation",
    "/answer": "actlet.Answer",
    "/failsafe": "actlet.Failsafe",
    "/instruction": "actlet.Instruction",
    "/result": "actlet.Result",
    "/log": "foxglove.Log",
}
"""Topic -> schema, beside the cameras'."""

CAMERA_TOPIC = "/camera/"
"""And the camera's name."""

NOTE_NAME = "actlet.note"
"""Name in the log of what is a record of its own; "actlet" for lines that say once more what other topics have."""

SCHEMAS: dict[str, dict[str, Any]] = {
    "actlet.Command": _schema("actlet.Command", **_STEP_AND_TIME, tick=_COUNT, sent=_NUMBERS, due=_NUMBERS, limited=_COUNT),
    "actlet.Observation": _schema(
        "actlet.Observation",
        **_STEP_AND_TIME,
        taken_s=_NUMBER,
        state=_NUMBERS,
        committed={"type": "array", "items": _NUMBERS},
        refused=_TEXT,
    ),
    "actlet.Answer": _schema(
        "actlet.Answer",
        **_STEP_AND_TIME,
        observed_at=_COUNT,
        verdict=_TEXT,
        elsewhere={"type": "boolean"},
        error=_TEXT,
        submitted_s=_NUMBER,
        finished_s=_NUMBER,
        latency_ms=_NUMBER,
        actions={"type": "array", "items": _NUMBERS},
        confidence=_NUMBERS,
    ),
    "actlet.Failsafe": _schema(
        "actlet.Failsafe", **_STEP_AND_TIME, state=_TEXT, severity=_COUNT, cause=_TEXT, since_s=_NUMBER, words=_TEXT
    ),
    "actlet.Instruction": _schema("actlet.Instruction", time_s=_NUMBER, text=_TEXT),
    "actlet.Result": _schema("actlet.Result", time_s=_NUMBER, stopped_by=_TEXT, message=_TEXT, success={"type": "boolean"}),
    "foxglove.Log": _schema(
        "foxglove.Log",
        timestamp=_TIME,
        level={
            "title": "foxglove.LogLevel",
            "oneOf": [
                {"title": name, "const": level} for level, name in enumerate(("UNKNOWN", "DEBUG", "INFO", "WARNING", "ERROR", "FATAL"))
            ],
        },
        message=_TEXT,
        name=_TEXT,
        file=_TEXT,
        line={"type": "integer", "minimum": 0},
    ),
}

_DATA = {"type": "string", "contentEncoding": "base64"}
PICTURE_SCHEMAS: dict[str, dict[str, Any]] = {
    "foxglove.CompressedImage": _schema("foxglove.CompressedImage", timestamp=_TIME, frame_id=_TEXT, data=_DATA, format=_TEXT),
    "foxglove.RawImage": _schema(
        "foxglove.RawImage", timestamp=_TIME, frame_id=_TEXT, width=_COUNT, height=_COUNT, encoding=_TEXT, step=_COUNT, data=_DATA
    ),
}
