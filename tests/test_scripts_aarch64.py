"""scripts/aarch64.py: bundles answer on an emulated Arm processor as here, with nothing but numpy and ONNX Runtime installed there; and what it fetches
is what Debian signed."""

from __future__ import annotations

import hashlib
import importlib.util
import lzma
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from small_dataset import OBSERVATION, an_episode, write
from torch import Tensor, nn

from actlet.specs import TimingSpec
from export.own_policy import OwnPolicy, export_module
from quantize.quantize_bundle import quantize_bundle
from quantize.schemes import scheme

SCRIPT = Path(__file__).parent.parent / "scripts" / "aarch64.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("aarch64", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Mirror:
    """A mirror of one package for two suites, in a folder, signed with a key of its own; `publish` makes all of it anew."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder, self.home, self.keyring = folder, home, home / "keyring.gpg"
        self.gpg("--quick-gen-key", "mirror", "ed25519", "sign", "never")
        self.gpg("--output", str(self.keyring), "--export", "mirror")
        tree = folder / "tree"
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "DEBIAN" / "control").write_text("Package: hello\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: none\n")
        (tree / "usr").mkdir()
        (tree / "usr" / "hello.txt").write_text("hello")
        self.package = folder / "pool" / "hello.deb"
        self.package.parent.mkdir()
        subprocess.run(["dpkg-deb", "--root-owner-group", "-b", str(tree), str(self.package)], check=True, capture_output=True)
        self.release = folder / "dists" / "bookworm" / "InRelease"
        self.publish()

    def gpg(self, *arguments: str) -> None:
        command = [
            "gpg",
            "--batch",
            "--quiet",
            "--no-tty",
            "--passphrase",
            "",
            "--pinentry-mode",
            "loopback",
            "--homedir",
            str(self.home),
            *arguments,
        ]
        subprocess.run(command, check=True, capture_output=True)

    def publish(self, suite: str = "bookworm", digest: str | None = None) -> None:
        digest = digest or hashlib.sha256(self.package.read_bytes()).hexdigest()
        content = lzma.compress(
            f"Package: hello\nFilename: pool/hello.deb\nSHA256: {digest}\n\nPackage: other\nFilename: x\nSHA256: y\n".encode()
        )
        self.listed = self.release.parent / "main" / "binary-all" / "by-hash" / "SHA256" / hashlib.sha256(content).hexdigest()
        self.listed.parent.mkdir(parents=True, exist_ok=True)
        self.listed.write_bytes(content)
        plain = self.release.parent / "Release"
        head = f"Origin: test\nCodename: {suite}\nMD5Sum:\n {'0' * 32} 1 main/binary-all/Packages.xz\nSHA256:\n"
        plain.write_text(
            f"{head} {'0' * 64} 9 main/binary-arm64/Packages.xz\n {self.listed.name} {len(content)} main/binary-all/Packages.xz\n"
        )
        self.release.unlink(missing_ok=True)
        self.gpg("--output", str(self.release), "--clearsign", str(plain))


@pytest.fixture(scope="module")
def made_mirror(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirror]:
    if shutil.which("gpg") is None or shutil.which("gpgv") is None or shutil.which("dpkg-deb") is None:
        pytest.skip("needs gpg, gpgv and dpkg-deb, as Debian has")
    home = Path(tempfile.mkdtemp(prefix="k"))  # Short: gpg's agent listens on a socket in it.
    yield Mirror(tmp_path_factory.mktemp("mirror"), home)
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "gpg-agent"], check=True)
    shutil.rmtree(home)


@pytest.fixture
def mirror(made_mirror: Mirror, script: Any, monkeypatch: pytest.MonkeyPatch) -> Mirror:
    """The script's mirror and keyring are these."""
    made_mirror.publish()
    monkeypatch.setattr(script, "MIRROR", made_mirror.folder.as_uri())
    monkeypatch.setattr(script, "KEYRING", made_mirror.keyring)
    return made_mirror


def test_a_signed_mirror_is_unpacked(script: Any, mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The archive's signature vouches for the list, the list for the package; nothing is said against it."""
    script.unpack("bookworm", "all", ["hello"], tmp_path / "place")
    assert [path.read_text() for path in (tmp_path / "place").rglob("*.*")] == ["hello"]
    assert "NOT" not in capsys.readouterr().err


def _flip(path: Path, at: int = -20) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))


HOSTILE: dict[str, tuple[Callable[[Mirror], object], str]] = {
    "another package": (
        lambda m: m.publish(digest="0" * 64),
        r"pool/hello\.deb: not the file that the mirror lists \(SHA-256 000000000000",
    ),
    "another list": (lambda m: _flip(m.listed), "by-hash/SHA256/.*: not the file that the mirror lists"),
    "another list of lists": (
        lambda m: m.release.write_text(m.release.read_text().replace("Origin: test", "Origin: evil")),
        r"bookworm's list of lists: not signed with a key of .*keyring\.gpg \(.*BADSIG",
    ),
    "no signature": (lambda m: m.release.write_bytes((m.release.parent / "Release").read_bytes()), "not signed with a key of"),
    "another suite": (lambda m: m.publish(suite="buzz"), "the mirror's bookworm is another suite"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_another_file_on_the_mirror_is_refused(script: Any, mirror: Mirror, tmp_path: Path, name: str) -> None:
    """At every link of the chain; nothing is unpacked."""
    change, message = HOSTILE[name]
    change(mirror)
    with pytest.raises(SystemExit, match=message):
        script.unpack("bookworm", "all", ["hello"], tmp_path / "place")
    assert not (tmp_path / "place" / "usr").exists()


def test_what_stands_beside_the_signed_text_is_not_read(script: Any, mirror: Mirror) -> None:
    """A line put before what was signed does not count."""
    mirror.release.write_text("SHA256:\n 0 0 main/binary-evil/Packages.xz\n\n" + mirror.release.read_text())
    with pytest.raises(SystemExit, match="the mirror lists no main/binary-evil"):
        script.packages("bookworm", "evil")


def test_another_key_is_refused(script: Any, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is in nobody's keyring: Debian's own, here."""
    if not Path("/usr/share/keyrings/debian-archive-keyring.gpg").is_file():
        pytest.skip("needs Debian's keyring")
    monkeypatch.setattr(script, "KEYRING", Path("/usr/share/keyrings/debian-archive-keyring.gpg"))
    with pytest.raises(SystemExit, match="not signed with a key of /usr/share/keyrings"):
        script.packages("bookworm", "all")


def test_where_nobody_can_check_it_is_said(
    script: Any, mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a keyring, and without gpgv; hashes are checked all the same."""
    monkeypatch.setattr(script, "KEYRING", tmp_path / "none.gpg")
    script.unpack("bookworm", "all", ["hello"], tmp_path / "place")
    assert "its signature is NOT verified (Debian's keyring" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "")
    assert "hello" in script.packages("bookworm", "all")
    assert "its signature is NOT verified (gpgv is missing): file alone vouches for it" in capsys.readouterr().err
    _flip(mirror.listed)
    with pytest.raises(SystemExit, match="not the file that the mirror lists"):
        script.packages("bookworm", "all")


class Policy(nn.Module):
    """Convolutions of both cameras and the state."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.see = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU())
        self.act = nn.Sequential(nn.Linear(64 + 3, 96), nn.ReLU(), nn.Linear(96, 4 * 3))

    def forward(self, front: Tensor, wrist: Tensor, state: Tensor) -> Tensor:
        seen = [self.see(frame.float().permute(0, 3, 1, 2) / 127.5 - 1).mean((2, 3)) for frame in (front, wrist)]
        return 0.5 * torch.tanh(self.act(torch.cat([*seen, state], dim=1))).unflatten(1, (4, 3))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(platform.machine() != "x86_64" or shutil.which("dpkg-deb") is None, reason="needs x86-64 and dpkg-deb, as Debian has")
def test_an_arm_processor_answers_as_this_one(script: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    """Float within 1e-5 of an action's range, integers within the step that their tolerance allows; and nothing of the training side is imported."""
    data = write(tmp_path / "data", [an_episode(seed) for seed in range(20)], observation_spec=OBSERVATION).path
    timing = TimingSpec(rate_hz=10, horizon=4, execute_steps=2, max_delay_steps=1)
    bundles = {"tiny": tiny_bundle, "float32": export_module(OwnPolicy(Policy(), timing), data, tmp_path / "float32").out}
    for precision in ("int8", "int4", "int4-int8"):
        bundles[precision] = quantize_bundle(
            bundles["float32"], tmp_path / precision, scheme=scheme(precision), data=data, allow_slower=True
        ).out
    try:
        script.fetch()
    except OSError as error:  # What urllib raises is one.
        pytest.skip(f"Debian's mirror cannot be reached: {error}")
    found = script.ask(list(bundles.values()))
    assert found["machine"] == "aarch64"
    assert found["training_side"] == []
    rows = {name: found["bundles"][str(path.resolve())] for name, path in bundles.items()}
    for name, row in rows.items():
        most = 0.02 if "int8" in name else 1e-5
        assert row["questions"] > 0
        assert row["actions"] <= most, (name, row)
        assert row["confidence"] <= most, (name, row)
    print(rows, file=sys.stderr)
