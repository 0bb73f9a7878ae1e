"""Opening a teacher of any kind: actlet's own, a model of transformers, an OpenVLA, or one that `actlet serve` answers for elsewhere.

The client of a served teacher lives on the robot side, which training does not import: it is reached by name, and only for a URL.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from actlet.errors import CheckpointError
from distill.teacher_checkpoint import load_teacher
from distill.teacher_file import TEACHER_FILE, read_teacher_file

__all__ = ["is_served", "open_teacher"]


def is_served(teacher: str | Path | None) -> bool:
    """Whether it names a teacher on another machine."""
    return str(teacher).startswith(("ws://", "wss://"))


def open_teacher(teacher: str | Path) -> Any:
    """An `actlet.protocols.Teacher` with a `tokenizer` and a `content_hash`, for inference.

    Args:
        teacher: A folder, or the URL of a server.

    Raises:
        CheckpointError: The folder holds none, or one that is not sound.
        SpecError: What it says of itself is contradictory, or the server's policy is no teacher.
        MissingExtraError: A package that it needs is not installed.
        RemoteError: The server cannot be reached.
    """
    if is_served(teacher):
        return importlib.import_module("runtime.remote_teacher").RemoteTeacher(str(teacher))
    folder = Path(teacher)
    if not (folder / TEACHER_FILE).is_file():
        return load_teacher(folder)
    kind = read_teacher_file(folder).get("kind")
    if kind == "foreign_teacher":
        from distill.foreign_teacher import load_foreign_teacher

        return load_foreign_teacher(folder)
    if kind == "openvla_teacher":
        from distill.openvla import load_openvla

        return load_openvla(folder)
    raise CheckpointError(f"{folder / TEACHER_FILE}: kind {kind!r}, expected 'foreign_teacher' or 'openvla_teacher'.")
