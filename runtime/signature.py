"""Who stands for a bundle: an Ed25519 signature of its manifest, which names every other file by its hash.

signature.json, beside manifest.json::

    {"schema_version": 1, "algorithm": "ed25519", "manifest": SHA-256, "public_key": base64, "signature": base64 of "actlet bundle " + manifest}

A robot that is told whom to trust (``actlet run --trusted-keys``, or the variable ACTLET_TRUSTED_KEYS: a public key, or a folder of them) opens nothing
else. What a bundle says of its own key counts for nothing: the key must be among those. Keys are PEM files, as openssl makes and reads them. Needs
the package `cryptography`; where it is absent, a robot with trusted keys refuses every bundle.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actlet.errors import BundleError, CallerError, MissingLibraryError
from actlet.manifest import SIGNATURE_NAME, manifest_hash
from actlet.storage import read_json, write_bytes, write_json

__all__ = ["TRUSTED_KEYS_HELP", "TRUSTED_KEYS_VARIABLE", "keys_to_trust", "make_key", "require_signature", "sign_bundle"]

TRUSTED_KEYS_VARIABLE = "ACTLET_TRUSTED_KEYS"
TRUSTED_KEYS_HELP = f"a public key, or a folder of them: only bundles that one of them signed are opened (default: {TRUSTED_KEYS_VARIABLE})"
PUBLIC_SUFFIX = ".pub.pem"
_MAX_BYTES = 4096


def make_key(place: str | Path) -> tuple[Path, Path]:
    """A new pair of keys: `place`.pem, readable by its owner alone, and `place`.pub.pem, for the robots.

    Raises:
        CallerError: One of the files exists.
        MissingLibraryError: `cryptography` is not installed.
    """
    serialization, ed25519 = _library()
    place = Path(place)
    private, public = place.with_name(f"{place.name}.pem"), place.with_name(f"{place.name}{PUBLIC_SUFFIX}")
    for path in (private, public):
        if path.exists():
            raise CallerError(f"{path} exists already: a key is never replaced. Choose another name.")
    key = ed25519.Ed25519PrivateKey.generate()
    content = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    private.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    write_bytes(public, key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


def sign_bundle(bundle: str | Path, private_key: str | Path) -> Path:
    """Sign a bundle; a signature that it has is replaced.

    Args:
        bundle: Its folder. Whether it is sound is not asked here.
        private_key: A PEM file.

    Raises:
        CallerError: Not such a key.
        BundleError: Not a bundle.
        MissingLibraryError: `cryptography` is not installed.
    """
    serialization, ed25519 = _library()
    path = Path(private_key)
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise CallerError(
            f"{path}: cannot be read ({error.strerror}): give the private key's file (`actlet sign --new-key` makes one)."
        ) from error
    except (ValueError, TypeError) as error:
        raise CallerError(f"{path}: not a private key without a password in PEM ({error}).") from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise CallerError(f"{path}: a {type(key).__name__}, expected an Ed25519 key: make one with `actlet sign --new-key`.")
    name = manifest_hash(bundle)
    public = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    document = {
        "schema_version": 1,
        "algorithm": "ed25519",
        "manifest": name,
        "public_key": base64.b64encode(public).decode(),
        "signature": base64.b64encode(key.sign(_message(name))).decode(),
    }
    place = Path(bundle) / SIGNATURE_NAME
    write_json(place, document)
    return place


def keys_to_trust(given: str | Path | None = None) -> Path | None:
    """Where the trusted keys are: what is given, or what the variable says; None where nobody says anything."""
    place = given if given is not None else os.environ.get(TRUSTED_KEYS_VARIABLE)
    return Path(place) if place else None


def require_signature(bundle: str | Path, keys: str | Path) -> str:
    """Refuse a bundle that none of the trusted keys has signed.

    Args:
        bundle: Its folder.
        keys: A public key's PEM file, or a folder of them (`*.pub.pem`).

    Returns:
        The bundle's name, which the signature is of.

    Raises:
        CallerError: There are no keys.
        BundleError: No signature, one that is not by a trusted key, or not of this bundle.
        MissingLibraryError: `cryptography` is not installed.
    """
    trusted = _public_keys(Path(keys))
    place, name = Path(bundle) / SIGNATURE_NAME, manifest_hash(bundle)
    sign = "Sign it with `actlet sign`, with a key whose public half this robot has"
    if place.is_symlink() or not place.is_file() or place.stat().st_size > _MAX_BYTES:
        raise BundleError(f"bundle {bundle}: has no {SIGNATURE_NAME}, and this robot only opens what is signed ({keys}). {sign}.")
    try:
        document: dict[str, Any] = read_json(place)
        made = (document["schema_version"], document["algorithm"], document["manifest"])
        public, signature = (base64.b64decode(document[part], validate=True) for part in ("public_key", "signature"))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{place}: not a signature ({error}). {sign}.") from error
    if made != (1, "ed25519", name):
        raise BundleError(
            f"{place}: is version {made[0]!r}, {made[1]!r}, of a bundle {str(made[2])[:12]!r}; expected 1, 'ed25519', {name[:12]!r}: the bundle was changed "
            f"after it was signed. {sign}."
        )
    if public not in trusted:
        raise BundleError(f"{place}: by a key that this robot does not trust ({len(trusted)} keys in {keys}). {sign}.")
    invalid, verify = _verifier(public)
    try:
        verify(signature, _message(name))
    except invalid as error:
        raise BundleError(f"{place}: the signature is not that of its key: it was made up or damaged. {sign}.") from error
    return name


def _public_keys(place: Path) -> Sequence[bytes]:
    """32 bytes each."""
    serialization, ed25519 = _library()
    paths = sorted(place.glob(f"*{PUBLIC_SUFFIX}")) if place.is_dir() else [place]
    found = []
    for path in paths:
        try:
            key = serialization.load_pem_public_key(path.read_bytes())
        except (OSError, ValueError, TypeError) as error:
            raise CallerError(f"trusted key {path}: cannot be read as a public key in PEM ({error}).") from error
        if not isinstance(key, ed25519.Ed25519PublicKey):
            raise CallerError(f"trusted key {path}: a {type(key).__name__}, expected an Ed25519 key.")
        found.append(key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw))
    if not found:
        raise CallerError(f"trusted keys {place}: holds no *{PUBLIC_SUFFIX}; nothing can be opened so. Put the public keys there.")
    return found


def _verifier(public: bytes) -> Any:
    from cryptography.exceptions import InvalidSignature

    return InvalidSignature, _library()[1].Ed25519PublicKey.from_public_bytes(public).verify


def _message(name: str) -> bytes:
    return f"actlet bundle {name}".encode()


def _library() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise MissingLibraryError("signatures need the package cryptography", "pip install 'actlet[sign]'") from error
    return serialization, ed25519
