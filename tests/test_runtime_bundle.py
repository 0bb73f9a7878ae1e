"""Opening a bundle: a sound one opens, and every way of being unsound has its message."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from actlet.errors import BundleError
from actlet.manifest import read_manifest, record_files, write_manifest
from runtime import bundle as bundle_module
from runtime import golden as golden_module
from runtime.bundle import load_bundle
from runtime.golden import Golden


def _relist(folder: Path) -> None:
    """Make the manifest agree with the folder's content again."""
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    document["files"] = {name: record.to_dict() for name, record in record_files(folder).items()}
    path.write_text(json.dumps(document))


def test_a_sound_bundle_opens(tiny_bundle: Path) -> None:
    """Its manifest, its golden answers and its files are there."""
    bundle = load_bundle(tiny_bundle)
    assert bundle.manifest.precision == "float32"
    assert len(bundle.golden) == 3
    assert bundle.read("policy.onnx") == (tiny_bundle / "policy.onnx").read_bytes()


def test_a_bundle_opens_through_a_link_to_its_folder(tiny_bundle: Path, tmp_path: Path) -> None:
    """`current -> v3` is how robots switch versions; only links inside the folder are refused."""
    (tmp_path / "current").symlink_to(tiny_bundle)
    assert load_bundle(tmp_path / "current").path == tiny_bundle.resolve()


def _flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _link(folder: Path) -> None:
    (folder / "policy.onnx").rename(folder.parent / "elsewhere.onnx")
    (folder / "policy.onnx").symlink_to(folder.parent / "elsewhere.onnx")


def _pipe(folder: Path) -> None:
    (folder / "golden.npz").unlink()
    os.mkfifo(folder / "golden.npz")


def _manifest_link(folder: Path) -> None:
    (folder / "manifest.json").rename(folder.parent / "m.json")
    (folder / "manifest.json").symlink_to(folder.parent / "m.json")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: _flip_a_byte(f / "policy.onnx"), "policy.onnx: SHA-256 .* expected .* altered"),
        (lambda f: (f / "instruction.onnx").write_bytes(b"short"), "instruction.onnx: 5 bytes, expected .* cut or altered"),
        (lambda f: (f / "tokenizer.json").unlink(), r"\['tokenizer.json'\] listed in manifest.json but missing"),
        (lambda f: (f / "extra.py").write_text("import os"), r"\['extra.py'\] not listed in manifest.json"),
        (lambda f: (f / "extra").mkdir(), r"\['extra'\] not listed"),
        (lambda f: (f / "engines").mkdir(), r"\['engines'\] not listed"),  # They lie in a folder of the user, not with what is copied.
        (_link, "'policy.onnx' is a link, folder or device"),
        (_pipe, "'golden.npz' is a link, folder or device"),
        (_manifest_link, "manifest.json: is a link"),
        (lambda f: (f / "manifest.json").unlink(), "no manifest.json"),
    ],
)
def test_an_unsound_bundle_is_refused(tiny_bundle: Path, harm: Callable[[Path], object], message: str) -> None:
    """Altered, cut, missing, unlisted, linked: refused before any network is made."""
    harm(tiny_bundle)
    with pytest.raises(BundleError, match=message):
        load_bundle(tiny_bundle)


def test_what_is_not_a_folder_is_refused(tmp_path: Path) -> None:
    """A missing path and a file each say what was expected."""
    with pytest.raises(BundleError, match="does not exist, expected a folder"):
        load_bundle(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="is a file, expected a folder"):
        load_bundle(tmp_path / "file")


def test_a_file_above_the_cap_is_not_read(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cap holds for the listed size, before anything is read."""
    monkeypatch.setattr(bundle_module, "MAX_FILE_BYTES", 100)
    with pytest.raises(BundleError, match="bytes listed, expected at most 100"):
        load_bundle(tiny_bundle)


def test_a_file_exchanged_after_loading_is_noticed(tiny_bundle: Path) -> None:
    """`read` hashes again: what is handed out is what was listed."""
    bundle = load_bundle(tiny_bundle)
    _flip_a_byte(tiny_bundle / "policy.onnx")
    with pytest.raises(BundleError, match="altered after the bundle was made"):
        bundle.read("policy.onnx")
    (tiny_bundle / "tokenizer.json").unlink()
    (tiny_bundle / "tokenizer.json").symlink_to("/etc/hostname")
    with pytest.raises(BundleError, match="cannot be read"):
        bundle.read("tokenizer.json")
    with pytest.raises(BundleError, match="'secret' is not listed"):
        bundle.read("secret")


class _Bomb:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return (os.system, ("touch /tmp/actlet-pickle-was-run",))


def _savez(folder: Path, **changes: object) -> None:
    with np.load(folder / "golden.npz") as file:
        arrays = dict(file)
    arrays.update(changes)
    buffer = io.BytesIO()
    np.savez(buffer, **{name: value for name, value in arrays.items() if value is not None})
    (folder / "golden.npz").write_bytes(buffer.getvalue())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state": np.array([_Bomb()], dtype=object)}, "not a readable .npz file of plain arrays .*allow_pickle"),
        ({"state": np.zeros((3, 3))}, r"state is float64 \(3, 3\), expected float32 \(3, 3\)"),
        ({"actions": np.full((3, 6, 4), np.nan, np.float32)}, "actions holds values that are not finite"),
        ({"actions": np.zeros((2, 6, 4), np.float32)}, r"actions is float32 \(2, 6, 4\), expected float32 \(3, 6, 4\)"),
        ({"confidence": None}, "arrays .* expected .*confidence"),
        ({"surprise": np.zeros(1)}, "arrays .*surprise"),
        ({"state": np.float32(1)}, "with 0 samples"),
        ({"text": np.zeros(3)}, r"text is float64 \(3,\), expected str"),
    ],
)
def test_golden_answers_of_another_form_are_refused(tiny_bundle: Path, changes: dict[str, object], message: str) -> None:
    """Names, types, shapes and values; nothing pickled is ever loaded."""
    _savez(tiny_bundle, **changes)
    _relist(tiny_bundle)
    with pytest.raises(BundleError, match=message):
        load_bundle(tiny_bundle)
    assert not Path("/tmp/actlet-pickle-was-run").exists()


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04broken", pickle.dumps([1])])
def test_golden_files_that_are_not_npz_are_refused(tiny_bundle: Path, data: bytes) -> None:
    """Any parser error is the one declared error."""
    (tiny_bundle / "golden.npz").write_bytes(data)
    _relist(tiny_bundle)
    with pytest.raises(BundleError, match=r"golden.npz: not a readable .npz file"):
        load_bundle(tiny_bundle)


def test_a_golden_file_that_unpacks_too_large_is_refused(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The unpacked size is looked at before anything is unpacked."""
    monkeypatch.setattr(golden_module, "MAX_UNPACKED_BYTES", 100)
    with pytest.raises(BundleError, match="bytes when unpacked, expected at most 100"):
        load_bundle(tiny_bundle)


def test_golden_answers_survive_the_round_trip(tiny_bundle: Path, tmp_path: Path) -> None:
    """Saved again, the file has the same bytes."""
    golden = load_bundle(tiny_bundle).golden
    assert isinstance(golden, Golden)
    golden.save(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == (tiny_bundle / "golden.npz").read_bytes()


def test_the_name_of_a_bundle_covers_its_files(tiny_bundle: Path) -> None:
    """Another file, another manifest, another name."""
    before = load_bundle(tiny_bundle).hash
    (tiny_bundle / "README.md").write_text("card")
    manifest = read_manifest(tiny_bundle)
    document = manifest.to_dict() | {"files": {name: record.to_dict() for name, record in record_files(tiny_bundle).items()}}
    write_manifest(tiny_bundle, type(manifest).from_dict(document))
    assert load_bundle(tiny_bundle).hash != before
