"""`actlet_teacher.json`: what a foreign checkpoint's tokens mean, in a file beside it; and what every such teacher refuses.

The file's fields are those of `distill.foreign_teacher.ForeignTeacherConfig` or `distill.openvla.OpenVlaConfig`, told apart by its `kind`.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actlet.errors import CheckpointError, ObservationError, SpecError
from actlet.specs import PolicySpec
from actlet.storage import read_json

__all__ = [
    "TEACHER_FILE",
    "TEACHER_SCHEMA_VERSION",
    "read_teacher_file",
    "require_cameras",
    "require_one_action",
    "require_plain_words",
    "require_prompt",
    "require_version",
    "special_ids",
    "special_words",
]

TEACHER_FILE = "actlet_teacher.json"
TEACHER_SCHEMA_VERSION = 1


def read_teacher_file(folder: Path) -> dict[str, Any]:
    """The document in `actlet_teacher.json`.

    Raises:
        CheckpointError: There is none, it is no JSON object, or has no version.
    """
    file = folder / TEACHER_FILE
    if not file.is_file():
        raise CheckpointError(
            f"{file} is missing: it says what the model's tokens mean. Write it with ForeignTeacherConfig(...).write(...)."
        )
    try:
        document = read_json(file)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if not isinstance(document, dict) or "schema_version" not in document:
        raise CheckpointError(f"{file}: expected an object with a schema_version.")
    return document


def require_version(version: int) -> None:
    """Refuse a file of another version."""
    if version != TEACHER_SCHEMA_VERSION:
        raise SpecError(f"{TEACHER_FILE}: schema_version {version}, expected {TEACHER_SCHEMA_VERSION}.")


def require_one_action(spec: PolicySpec) -> None:
    """Refuse chunks: a token-by-token teacher answers with one action."""
    if spec.timing.horizon != 1:
        raise SpecError(f"{TEACHER_FILE}: horizon {spec.timing.horizon}, expected 1: this teacher answers with one action.")


def require_cameras(spec: PolicySpec, cameras: Sequence[str]) -> None:
    """Refuse no camera, one that does not exist, and one named twice."""
    known = [camera.name for camera in spec.observation.cameras]
    if not cameras or len(set(cameras)) != len(cameras) or not set(cameras) <= set(known):
        raise SpecError(f"{TEACHER_FILE}: cameras {list(cameras)}: expected one or more of {known}, each once.")


def require_prompt(prompt: str) -> None:
    """Refuse a prompt without the instruction, or with other places to fill in."""
    try:
        places = [name for _, name, _, _ in string.Formatter().parse(prompt) if name is not None]
    except ValueError as error:
        raise SpecError(f"{TEACHER_FILE}: prompt {prompt!r}: {error}.") from error
    if places != ["instruction"]:
        raise SpecError(f"{TEACHER_FILE}: prompt {prompt!r} has the places {places}, expected {{instruction}} once.")


def require_plain_words(instruction: str, special_words: Sequence[str]) -> None:
    """Refuse an instruction that a tokenizer would not read as words: a picture's or a turn's token in it changes the question.

    Raises:
        ObservationError: It is empty, or holds one.
    """
    held = [word for word in special_words if word in instruction]
    if held or not instruction.strip():
        raise ObservationError(f"instruction {instruction!r}: expected words" + (f", without the special tokens {held}." if held else "."))


def special_words(text_tokenizer: Any) -> list[str]:
    """The texts that a tokenizer of transformers does not read as words."""
    added = {token.content for token in text_tokenizer.added_tokens_decoder.values() if token.special}
    return sorted(added | set(text_tokenizer.all_special_tokens))


def special_ids(text_tokenizer: Any) -> set[int]:
    """Their ids."""
    added = {number for number, token in text_tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(text_tokenizer.all_special_ids)
