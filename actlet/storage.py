"""Files that are either whole or absent.

Everything that a stage writes is written beside its place, flushed, and renamed. A process that is killed, a full disk
or Ctrl-C leaves a hidden `.name.partial-*` behind, which nobody reads and the next successful write removes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from actlet.errors import StorageError

__all__ = ["new_folder", "read_json", "sha256", "write_bytes", "write_json"]


_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)


@contextlib.contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageError(
                f"no space left while writing {path}. Free some space, or write somewhere else; nothing half-written was kept."
            ) from error
        if error.errno in _NOT_WRITABLE:
            where = error.filename or path
            raise StorageError(f"cannot write {where}: {error.strerror}. Choose another place, or change its permissions.") from error
        raise


def _remove_partials(path: Path) -> None:
    for left in path.parent.glob(f".{path.name}.partial-*"):
        if "partial-old-" in left.name and not path.exists():
            continue  # A process was killed between two renames: what was there before is in it, and nowhere else.
        shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a whole file or none.

    Raises:
        StorageError: The disk is full, or the folder cannot be written.
    """
    path = Path(path)
    with _storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=f".{path.name}.partial-", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(partial, 0o644)
            os.replace(partial, path)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise


def write_json(path: str | Path, data: Any) -> None:
    """Write JSON with two spaces of indentation; NaN and infinity are refused (they are not JSON)."""
    write_bytes(path, (json.dumps(data, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode())


def read_json(path: str | Path) -> Any:
    """Read JSON; a repeated key is an error (json keeps the last one silently), so is NaN.

    Raises:
        ValueError: Not JSON, a key occurs twice, or a number is not finite.
    """
    return parse_json(Path(path).read_bytes(), path)


def parse_json(content: bytes, path: str | Path) -> Any:
    """The same of what was read already; `path` is for messages."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        data = dict(pairs)
        if len(data) != len(pairs):
            raise ValueError(f"{path}: a key occurs twice among {[key for key, _ in pairs]}.")
        return data

    def refuse(name: str) -> None:
        raise ValueError(f"{path}: {name} is not a JSON number.")

    return json.loads(content.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)


@contextlib.contextmanager
def new_folder(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Make a whole folder or none: yields a folder beside `path`, renamed to it when the block ends without an error.

    Args:
        path: The folder to make.
        overwrite: Replace a folder that exists; otherwise an existing one is an error.

    Raises:
        StorageError: It exists and `overwrite` is False, the disk is full, or the place cannot be written.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise StorageError(f"{path} exists already: choose another name, remove it, or pass --overwrite.")
    with _storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_partials(path)
        partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
        try:
            yield partial
            os.chmod(partial, 0o755)
            if path.exists():
                old = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-old-", dir=path.parent))
                os.replace(path, old / "old")
                try:
                    os.replace(partial, path)
                except BaseException:
                    os.replace(old / "old", path)
                    raise
                finally:
                    shutil.rmtree(old, ignore_errors=True)
            else:
                os.replace(partial, path)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def sha256(path: str | Path) -> str:
    """Hex SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
