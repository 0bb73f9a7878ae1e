"""Opening a bundle: everything that can be checked is checked before a network is made from it.

The checks, in order, one function each:

1. the manifest parses, and its specifications agree with themselves (`actlet.manifest.read_named_manifest`);
2. the folder holds the listed files and no others (signature.json apart), all plain files: no links, no folders, no devices;
3. every file has the listed size, below a cap, and the listed SHA-256;
4. golden.npz has the arrays that the specification asks for, and nothing pickled.

The networks are made from bytes that `Bundle.read` has just hashed, never from a path: a file that is exchanged after the
check is noticed, and a network cannot refer to other files on the disk. The self-test that follows is `runtime.policy`'s.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
from pathlib import Path

from actlet.errors import BundleError
from actlet.manifest import MANIFEST_NAME, SIGNATURE_NAME, FileRecord, Manifest, read_named_manifest
from runtime.golden import Golden

__all__ = ["MAX_FILE_BYTES", "Bundle", "load_bundle"]

MAX_FILE_BYTES = 512 << 20
"""Largest file of a bundle: a robot's policy of a few hundred million float32 weights. Protobuf itself ends at 2 GiB."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bundle:
    """A folder that agrees with its manifest."""

    path: Path
    manifest: Manifest
    hash: str
    """The bundle's name: SHA-256 of its manifest."""
    golden: Golden

    def read(self, name: str) -> bytes:
        """The content of a listed file, hashed while it is read.

        Raises:
            BundleError: The file is not listed, or not (or no longer) what the manifest says.
        """
        if name not in self.manifest.files:
            raise BundleError(f"{self.path}: {name!r} is not listed in {MANIFEST_NAME}; listed: {sorted(self.manifest.files)}.")
        return _read_listed(self.path / name, self.manifest.files[name])


def load_bundle(path: str | Path) -> Bundle:
    """Check a bundle's folder and read its manifest and its golden answers.

    Args:
        path: The bundle's folder (which may itself be reached through a link, such as `current`).

    Raises:
        BundleError: It is missing, incomplete, altered, or holds what a bundle does not hold.
    """
    folder = Path(path)
    _check_is_folder(folder)
    folder = folder.resolve()
    _check_manifest_is_plain(folder)
    manifest, name = read_named_manifest(folder)
    _check_listing(folder, manifest)
    for file, record in manifest.files.items():
        if file != "golden.npz":
            _read_listed(folder / file, record)
    golden = Golden.load(_read_listed(folder / "golden.npz", manifest.files["golden.npz"]), manifest, where=str(folder / "golden.npz"))
    return Bundle(path=folder, manifest=manifest, hash=name, golden=golden)


def _check_is_folder(folder: Path) -> None:
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise BundleError(
            f"bundle {folder}: {what}, expected a folder with {MANIFEST_NAME}. `actlet export` and `actlet quantize` make one."
        )


def _check_manifest_is_plain(folder: Path) -> None:
    if (folder / MANIFEST_NAME).is_symlink():
        raise BundleError(f"{folder / MANIFEST_NAME}: is a link; a bundle holds plain files only. Copy the file in its place.")


def _check_listing(folder: Path, manifest: Manifest) -> None:
    """The folder holds exactly the listed files, all plain."""
    found = {entry.name: entry for entry in os.scandir(folder) if entry.name != MANIFEST_NAME}
    signature = found.pop(SIGNATURE_NAME, None)
    if signature is not None and not signature.is_file(follow_symlinks=False):
        raise BundleError(f"{signature.path}: is a link, folder or device; expected a plain file, or none.")
    missing, unlisted = sorted(set(manifest.files) - set(found)), sorted(set(found) - set(manifest.files))
    if missing:
        raise BundleError(f"bundle {folder}: {missing} listed in {MANIFEST_NAME} but missing: copy the whole folder again.")
    if unlisted:
        raise BundleError(
            f"bundle {folder}: {unlisted} not listed in {MANIFEST_NAME} {sorted(manifest.files)}: remove what does not belong there."
        )
    for name, entry in sorted(found.items()):
        if not stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
            raise BundleError(f"bundle {folder}: {name!r} is a link, folder or device; a bundle holds plain files only.")


def _read_listed(path: Path, record: FileRecord) -> bytes:
    """A file's content, if it is what the manifest says."""
    if record.size_bytes > MAX_FILE_BYTES:
        raise BundleError(f"{path}: {record.size_bytes} bytes listed, expected at most {MAX_FILE_BYTES}.")
    try:
        # O_NOFOLLOW and O_NONBLOCK: a link or a pipe that took the file's place since the listing is refused, not followed or waited for.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(record.size_bytes + 1) if size == record.size_bytes else b""
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}): copy the whole bundle again.") from error
    if size != record.size_bytes or len(data) != record.size_bytes:
        raise BundleError(f"{path}: {size} bytes, expected {record.size_bytes}: the file was cut or altered; copy the whole bundle again.")
    digest = hashlib.sha256(data).hexdigest()
    if digest != record.sha256:
        raise BundleError(
            f"{path}: SHA-256 {digest[:12]}…, expected {record.sha256[:12]}…: the file was altered after the bundle was made; "
            "copy the bundle again, or export it again if the change was meant."
        )
    return data
