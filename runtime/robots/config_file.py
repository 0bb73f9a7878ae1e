"""The file of ``--robot-config``: JSON with the fields of a robot's configuration, read strictly."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from actlet.errors import CallerError
from actlet.plain import PlainJson
from actlet.storage import read_json

__all__ = ["read_config"]

Config = TypeVar("Config", bound=PlainJson)


def read_config(kind: type[Config], path: str | Path | None) -> Config:
    """A configuration by its file.

    Raises:
        CallerError: No file was named, or it cannot be read.
        SpecError: It contradicts itself, or has unknown or missing keys.
    """
    if path is None:
        raise CallerError(f"which robot? Say --robot-config FILE, JSON with the fields of {kind.__name__}; docs/robots.md has an example.")
    try:
        document = read_json(path)
    except (OSError, ValueError) as error:
        raise CallerError(f"{path} cannot be read: {error}") from error
    return kind.from_dict(document, where=str(path))
