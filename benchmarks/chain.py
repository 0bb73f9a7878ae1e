"""A chain of stages that can be stopped and started again: what is done and still fits is not done twice.

Every stage writes one whole folder (or file). Beside them, ``.stages/<name>.json`` keeps the stage's fingerprint (a hash of
its arguments, of its inputs' content and of actlet's version), the hash of what it wrote, and what it cost. A stage is
skipped if its fingerprint is the same and its output is unaltered. Otherwise it says what differs and is made again, which
changes the fingerprint of the stages after it; what it had made before is kept as ``<name>.before`` until the new one stands.
"""

from __future__ import annotations

import hashlib
import json
import resource
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from actlet import __version__
from actlet.provenance import utc_now
from actlet.storage import read_json, sha256, write_json

__all__ = ["Chain", "cpu_seconds", "tree_hash"]


def tree_hash(path: str | Path) -> str | None:
    """SHA-256 over names and contents of a file or of all files in a folder; None where there is nothing."""
    path = Path(path)
    if path.is_file():
        return sha256(path)
    if not path.is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\0{sha256(file)}\n".encode())
    return digest.hexdigest()


def cpu_seconds() -> float:
    """CPU time of this process and of its finished children."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


class Chain:
    """Runs stages below one folder.

    Args:
        root: Where the stages write.
        total: How many stages are planned, for the headings.
    """

    def __init__(self, root: Path, *, total: int) -> None:
        self.root, self.total = root, total
        self.records: list[dict[str, Any]] = []
        """One entry per stage so far: name, title, wall_s, cpu_s, date, skipped."""

    def stage(
        self, name: str, title: str, work: Callable[[Path], object], *, arguments: Mapping[str, Any], inputs: Mapping[str, Path | str]
    ) -> Path:
        """Run one stage, unless it is done.

        Args:
            name: Its folder (or file) below the root.
            title: What it does, for people.
            work: Called with the path that it must make.
            arguments: Everything that its output depends on, as JSON types. One that is None is as good as one that is not there, so a new
                setting that is off leaves what was made without it.
            inputs: Name -> a path, whose content counts, or a string that stands for one.

        Returns:
            The path that it made.
        """
        place, stamp = self.root / name, self.root / ".stages" / f"{name.replace('/', '-')}.json"
        hashes = {key: tree_hash(value) if isinstance(value, Path) else value for key, value in inputs.items()}
        given = {key: value for key, value in arguments.items() if value is not None}
        asked = json.loads(json.dumps({"stage": name, "arguments": given, "inputs": hashes, "actlet": __version__}))
        fingerprint = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        heading = f"[{len(self.records) + 1}/{self.total}] {title}"
        before = read_json(stamp) if stamp.is_file() else {}
        if before.get("fingerprint") == fingerprint and before.get("output") == tree_hash(place):
            self.records.append({**before["record"], "title": title, "skipped": True})
            print(f"{heading}: done before ({_cost(before['record'])})", file=sys.stderr, flush=True)
            return place
        print(f"{heading} ...{_why(before, asked)}", file=sys.stderr, flush=True)
        kept = place.with_name(f"{place.name}.before")
        if before and place.exists():
            _remove(kept)
            place.rename(kept)
        stamp.unlink(missing_ok=True)
        _remove(place)
        wall, cpu = time.monotonic(), cpu_seconds()
        work(place)
        record = {"name": name, "title": title, "wall_s": time.monotonic() - wall, "cpu_s": cpu_seconds() - cpu, "date": utc_now()}
        write_json(stamp, {"fingerprint": fingerprint, "asked": asked, "output": tree_hash(place), "record": record})
        _remove(kept)
        self.records.append({**record, "skipped": False})
        print(f"    {_cost(record)}", file=sys.stderr, flush=True)
        return place


def _remove(place: Path) -> None:
    shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)


def _why(before: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """Why a stage that was done is not taken as done; empty for one that was not."""
    if not before:
        return ""
    old, new = (
        {f"{part}.{key}": value for part in ("arguments", "inputs") for key, value in record[part].items()}
        for record in (before["asked"], asked)
    )
    other = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    other += ["actlet"] * (before["asked"]["actlet"] != asked["actlet"])
    return f" again: {', '.join(other) or 'its output'} changed"


def _cost(record: Mapping[str, Any]) -> str:
    return f"{record['wall_s']:.1f} s, {record['cpu_s']:.1f} s of CPU"
