"""Opening a teacher of any kind: actlet's own, a model of transformers, or an OpenVLA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from actlet.errors import CheckpointError
from distill.rt2_teacher import load_teacher
from distill.teacher_file import TEACHER_FILE, read_teacher_file

__all__ = ["open_teacher"]


def open_teacher(folder: str | Path) -> Any:
    """An `actlet.protocols.Teacher` with a `content_hash`, for inference.

    Raises:
        CheckpointError: The folder holds none, or one that is not sound.
        SpecError: What it says of itself is contradictory.
        MissingExtraError: A package that it needs is not installed.
    """
    folder = Path(folder)
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
