"""runtime.signature: a robot with trusted keys opens what one of them has signed, and nothing else."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from actlet.command_line import main
from actlet.errors import BundleError, CallerError, MissingLibraryError
from actlet.manifest import SIGNATURE_NAME, manifest_hash, record_files
from runtime.bundle import load_bundle
from runtime.opening import open_policy
from runtime.signature import TRUSTED_KEYS_VARIABLE, make_key, require_signature, sign_bundle


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return make_key(tmp_path / "keys" / "lab")


def test_a_signed_bundle_is_opened(tiny_bundle: Path, keys: tuple[Path, Path]) -> None:
    """By its key, or by a folder that holds it; the signature is no listed file and changes no name."""
    private, public = keys
    name = manifest_hash(tiny_bundle)
    sign_bundle(tiny_bundle, private)
    assert manifest_hash(tiny_bundle) == name == load_bundle(tiny_bundle).hash
    assert SIGNATURE_NAME not in record_files(tiny_bundle)
    for place in (public, public.parent):
        assert require_signature(tiny_bundle, place) == name
        assert open_policy(tiny_bundle, trusted_keys=place).spec
    assert stat.S_IMODE(private.stat().st_mode) == 0o600


def test_without_trusted_keys_nothing_is_asked(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And where they are set, an unsigned bundle, a checkpoint and a server are refused."""
    monkeypatch.delenv(TRUSTED_KEYS_VARIABLE, raising=False)
    open_policy(tiny_bundle)
    _, public = make_key(tiny_bundle.parent / "lab")
    monkeypatch.setenv(TRUSTED_KEYS_VARIABLE, str(public))
    with pytest.raises(
        BundleError, match=r"has no signature\.json, and this robot only opens what is signed .* Sign it with `actlet sign`"
    ):
        open_policy(tiny_bundle)
    with pytest.raises(CallerError, match="is a server, and this robot only opens bundles that are signed"):
        open_policy("ws://127.0.0.1:1")


def test_another_key_is_not_trusted(tiny_bundle: Path, keys: tuple[Path, Path]) -> None:
    """Whatever the signature says of itself."""
    stranger, _ = make_key(tiny_bundle.parent / "stranger")
    sign_bundle(tiny_bundle, stranger)
    with pytest.raises(BundleError, match="by a key that this robot does not trust"):
        require_signature(tiny_bundle, keys[1])
    document = json.loads((tiny_bundle / SIGNATURE_NAME).read_text())
    sign_bundle(tiny_bundle, keys[0])
    ours = json.loads((tiny_bundle / SIGNATURE_NAME).read_text())
    (tiny_bundle / SIGNATURE_NAME).write_text(json.dumps({**document, "public_key": ours["public_key"]}))
    with pytest.raises(BundleError, match="the signature is not that of its key"):
        require_signature(tiny_bundle, keys[1])


def test_a_bundle_changed_after_signing_is_refused(tiny_bundle: Path, keys: tuple[Path, Path]) -> None:
    """Also if somebody makes the name in the signature right again."""
    sign_bundle(tiny_bundle, keys[0])
    manifest, place = tiny_bundle / "manifest.json", tiny_bundle / SIGNATURE_NAME
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    with pytest.raises(BundleError, match="the bundle was changed after it was signed"):
        require_signature(tiny_bundle, keys[1])
    place.write_text(json.dumps({**json.loads(place.read_text()), "manifest": manifest_hash(tiny_bundle)}))
    with pytest.raises(BundleError, match="the signature is not that of its key"):
        require_signature(tiny_bundle, keys[1])


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema_version": 1', "\x00" * 100, "[" * 3000, '{"schema_version": 2}', "9" * 5000])
def test_what_is_no_signature_is_refused(tiny_bundle: Path, keys: tuple[Path, Path], content: str) -> None:
    """Cut, made up, too large."""
    (tiny_bundle / SIGNATURE_NAME).write_text(content)
    with pytest.raises(BundleError, match=r"not a signature|has no signature\.json"):
        require_signature(tiny_bundle, keys[1])


def test_a_linked_signature_is_refused(tiny_bundle: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    """A bundle holds plain files."""
    sign_bundle(tiny_bundle, keys[0]).rename(tmp_path / "elsewhere.json")
    (tiny_bundle / SIGNATURE_NAME).symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(BundleError, match="has no signature"):
        require_signature(tiny_bundle, keys[1])
    with pytest.raises(BundleError, match=r"signature\.json: is a link"):
        load_bundle(tiny_bundle)


def test_keys_that_are_none_are_refused(tiny_bundle: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    """A file that is missing, a folder without keys, a private key where a public one belongs, and another kind."""
    (tmp_path / "empty").mkdir()
    rsa = tmp_path / "rsa.pem"
    subprocess.run([sys.executable, "-c", _RSA, str(rsa)], check=True)
    sign_bundle(tiny_bundle, keys[0])
    for place, message in (
        (tmp_path / "none", "cannot be read"),
        (tmp_path / "empty", r"holds no \*\.pub\.pem"),
        (keys[0], "cannot be read as a public key"),
    ):
        with pytest.raises(CallerError, match=message):
            require_signature(tiny_bundle, place)
    with pytest.raises(CallerError, match="expected an Ed25519 key"):
        sign_bundle(tiny_bundle, rsa)
    with pytest.raises(CallerError, match="not a private key without a password"):
        sign_bundle(tiny_bundle, keys[1])
    with pytest.raises(CallerError, match="cannot be read"):
        sign_bundle(tiny_bundle, tmp_path / "none")
    with pytest.raises(CallerError, match="exists already: a key is never replaced"):
        make_key(tmp_path / "keys" / "lab")


_RSA = """
import sys
from cryptography.hazmat.primitives import serialization as s
from cryptography.hazmat.primitives.asymmetric import rsa
key = rsa.generate_private_key(65537, 2048)
open(sys.argv[1], "wb").write(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()))
"""


def test_a_robot_that_cannot_check_opens_nothing(tiny_bundle: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the library a trusted key is a reason to refuse, not to believe."""
    sign_bundle(tiny_bundle, keys[0])
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
    with pytest.raises(MissingLibraryError, match="signatures need the package cryptography"):
        open_policy(tiny_bundle, trusted_keys=keys[1])


def test_the_verb_makes_a_key_and_signs(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one go or in two; an unsound bundle is not signed."""
    assert main(["sign", str(tiny_bundle), "--new-key", str(tmp_path / "k" / "lab")]) == 0
    assert require_signature(tiny_bundle, tmp_path / "k" / "lab.pub.pem") == manifest_hash(tiny_bundle)
    assert "keep it secret" in capsys.readouterr().out
    assert main(["sign", str(tiny_bundle), "--key", str(tmp_path / "k" / "lab.pem")]) == 0
    assert main(["sign", str(tiny_bundle)]) == 2
    (tiny_bundle / "policy.onnx").write_bytes(b"short")
    assert main(["sign", str(tiny_bundle), "--key", str(tmp_path / "k" / "lab.pem")]) == 2
    assert "cut or altered" in capsys.readouterr().err
