"""Who made a file, and with what: the parts of a bundle's lineage that every stage fills in alike."""

from __future__ import annotations

import datetime
import importlib.metadata
import subprocess
from collections.abc import Sequence
from pathlib import Path

__all__ = ["git_commit", "package_versions", "utc_now"]


def utc_now() -> str:
    """Date and time, ISO 8601, UTC, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def package_versions(packages: Sequence[str]) -> dict[str, str]:
    """Package -> installed version; packages that are absent are left out."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Commit of the work tree that actlet runs from, with "-dirty" if tracked files differ; None outside of one."""
    folder = Path(__file__).resolve().parent.parent
    if not (folder / ".git").exists():  # An installed wheel may lie inside somebody else's work tree.
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
