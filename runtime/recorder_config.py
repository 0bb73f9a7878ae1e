"""How a run is recorded, where, and what became of its records."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.util
from pathlib import Path
from typing import Literal

from actlet.errors import CallerError, MissingExtraError, StorageError

__all__ = ["RecorderConfig", "RecorderReport", "pictures_kept", "recording_place"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecorderConfig:
    """How a run is recorded."""

    pictures: Literal["auto", "jpeg", "png", "raw", "none"] = "auto"
    """"jpeg" is small, and what is read back is not what was seen to the last bit; "png" and "raw" are exact. "auto": jpeg where Pillow is installed."""
    quality: int = 90
    """Of jpeg, 1 .. 95."""
    every_step: bool = False
    """Observe at every step, also where the policy is not asked, so that the run can become a dataset. The loop calls `get_observation` as often."""
    pictures_bytes: int = 32 << 20
    """Memory for pictures that wait to be written; room for four observations at least."""
    flush_s: float = 0.5
    """Most time between a record and its being on the disk, where the disk keeps up: what a crash of the machine loses."""
    close_s: float = 5.0
    """Longest wait at the end for what is not written yet."""

    def __post_init__(self) -> None:
        if self.pictures not in ("auto", "jpeg", "png", "raw", "none") or not 1 <= self.quality <= 95:
            raise CallerError(
                f"recorder: pictures {self.pictures!r}, quality {self.quality}: expected auto, jpeg, png, raw or none, 1 .. 95."
            )
        if not 0.01 <= self.flush_s <= 1.0 or not self.close_s > 0 or self.pictures_bytes < 0:
            raise CallerError(
                f"recorder: flush_s {self.flush_s}, close_s {self.close_s}, pictures_bytes {self.pictures_bytes}: "
                "expected 0.01 .. 1 s, a positive time and 0 or more."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecorderReport:
    """What became of the records, by kind (`Kind.label`)."""

    path: Path
    made: dict[str, int]
    """Records that the loop made."""
    dropped: dict[str, int]
    """Those for which there was no room in the ring."""
    lost: dict[str, int]
    """Those that are not in whole chunks of the file; before the end, those that are not there yet."""
    size_bytes: int
    failures: int
    """Writes that the system refused; each was tried again."""
    error: str
    """Why, and what became of the writer, empty if all went well."""
    is_whole: bool
    """The file has its index. Without, `actlet replay` reads it all the same, and `--recover` makes one that has."""

    def __str__(self) -> str:
        kept = ", ".join(f"{count - self.lost[kind]} {kind}" for kind, count in self.made.items() if count)
        lost = ", ".join(f"{count} {kind}" for kind, count in self.lost.items() if count) or "nothing"
        error = f" ({self.error})" if self.error else ""
        index = "" if self.is_whole else "; the file has no index, actlet replay reads it all the same"
        return f"{self.path}: {kept or 'nothing'}, {self.size_bytes / 1e6:.1f} MB; lost: {lost}{error}{index}"


def recording_place(where: str | Path) -> Path:
    """The file to record into: `where` if it ends in .mcap, else a file of that folder, named after the time in UTC.

    Raises:
        StorageError: The file exists: a recording is never written over.
    """
    where = Path(where)
    if where.suffix != ".mcap":
        now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H-%M-%SZ")
        names = (f"{now}{f'-{i}' if i > 1 else ''}.mcap" for i in range(1, 1000))
        where = next(path for path in (where / name for name in names) if not path.exists())
    if where.exists():
        raise StorageError(f"{where} exists already, and a recording is never written over: choose another name, or a folder.")
    return where


def pictures_kept(wanted: str) -> str:
    """What pictures become, and whether the packages for it are there; none of them is imported in this process."""
    if importlib.util.find_spec("mcap") is None:
        raise MissingExtraError("mcap", "record", "recording a run")
    has_pillow = importlib.util.find_spec("PIL") is not None
    if wanted in ("jpeg", "png") and not has_pillow:
        raise MissingExtraError("pillow", "record", f"recording pictures as {wanted}")
    return ("jpeg" if has_pillow else "raw") if wanted == "auto" else wanted
