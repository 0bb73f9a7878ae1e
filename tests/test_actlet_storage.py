"""Files and folders are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actlet import storage
from actlet.errors import StorageError
from actlet.storage import new_folder, read_json, sha256, write_bytes, write_json

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(value=json_values)
@settings(deadline=None, max_examples=60)
def test_json_survives_the_round_trip(tmp_path_factory: pytest.TempPathFactory, value: object) -> None:
    """Any JSON value, in any script."""
    path = tmp_path_factory.mktemp("json") / "a.json"
    write_json(path, value)
    assert read_json(path) == value


def test_numbers_that_are_not_json_are_refused(tmp_path: Path) -> None:
    """Neither written nor read; nothing is left behind."""
    with pytest.raises(ValueError, match="Out of range float values"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "b.json").write_text('{"x": Infinity}')
    with pytest.raises(ValueError, match="Infinity is not a JSON number"):
        read_json(tmp_path / "b.json")


def test_a_repeated_key_is_refused(tmp_path: Path) -> None:
    """Other readers would keep another one of the two."""
    (tmp_path / "a.json").write_text('{"x": 1, "x": 2}')
    with pytest.raises(ValueError, match="a key occurs twice"):
        read_json(tmp_path / "a.json")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk in the middle: the old content stays, no part of the new one is seen, and the message helps."""
    path = tmp_path / "a"
    write_bytes(path, b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(StorageError, match=r"no space left while writing .* Free some space"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["file/a", "folder", "a" * 300])
def test_a_place_that_cannot_be_written_says_so(tmp_path: Path, name: str) -> None:
    """A file where a folder is needed, a folder where a file is, a name that is too long."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match=r"cannot write .*: .*\. Choose another place, or change its permissions"):
        write_bytes(tmp_path / name, b"")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    """While one thread writes again and again, another one only ever reads whole contents."""
    path, contents = tmp_path / "a", [bytes([i]) * 20_000 for i in range(2)]
    write_bytes(path, contents[0])
    done = threading.Event()

    def write() -> None:
        for i in range(60):
            write_bytes(path, contents[i % 2])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    reads = 0
    while not done.is_set():
        assert path.read_bytes() in contents
        reads += 1
    writer.join()
    assert reads > 0


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    """Inside the block there is no folder yet; after an error there never is."""
    with new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "a").read_text() == "1"
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "other"):
        raise KeyboardInterrupt
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_an_existing_folder_is_only_replaced_when_asked(tmp_path: Path) -> None:
    """Refused with what to do; replaced as a whole, and kept when the new one fails."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("1")
    with (
        pytest.raises(StorageError, match="exists already: choose another name, remove it, or pass --overwrite"),
        new_folder(tmp_path / "out"),
    ):
        pass
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "out", overwrite=True):
        raise ZeroDivisionError
    assert (tmp_path / "out" / "old").exists()
    with new_folder(tmp_path / "out", overwrite=True) as folder:
        (folder / "new").write_text("2")
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["new"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    """The next write of the same folder removes the hidden rest."""
    left = tmp_path / ".out.partial-x1y2"
    left.mkdir()
    (left / "a").write_text("half")
    with new_folder(tmp_path / "out"):
        pass
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_sha256_is_that_of_the_content(tmp_path: Path) -> None:
    """Known answer of FIPS 180-2, and a file larger than one block."""
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "b").write_bytes(b"a" * 1_000_000)
    assert sha256(tmp_path / "b") == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"
