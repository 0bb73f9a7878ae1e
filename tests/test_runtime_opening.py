"""runtime.opening: what is in a folder says what it is, and opens as a policy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actlet.errors import BundleError, CallerError
from actlet.manifest import manifest_hash, read_manifest, write_manifest
from actlet.protocols import Observation
from runtime import opening
from runtime.bundle import load_bundle
from runtime.opening import kind_of, open_policy
from runtime.signature import make_key, sign_bundle


def test_kinds_of_policies_are_told_apart(tiny_bundle: Path, tmp_path: Path) -> None:
    """By what is in the folder; anything else is refused, a config.json of another form too."""
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text('{"kind": "student"}')
    assert (kind_of(tiny_bundle), kind_of(checkpoint)) == ("bundle", "student")
    for text in ("{}", "[1]", '{"kind": "cat"}'):
        (checkpoint / "config.json").write_text(text)
        with pytest.raises(CallerError, match=r"holds neither manifest\.json nor a config\.json"):
            kind_of(checkpoint)
    with pytest.raises(CallerError, match="does not exist"):
        kind_of(tmp_path / "nothing")


def test_a_bundle_opens_as_a_policy(tiny_bundle: Path) -> None:
    """And answers."""
    seen = Observation({"front": np.zeros((6, 8, 3), np.uint8)}, np.zeros(3, np.float32))
    assert open_policy(tiny_bundle).predict([seen], ["lift the cup"])[0].actions.shape == (6, 4)


def _exchange(bundle: Path) -> None:
    """Another sound manifest in the place of the one that was signed: the robot is to move twice as fast."""
    manifest = read_manifest(bundle)
    timing = dataclasses.replace(manifest.spec.timing, rate_hz=2 * manifest.spec.timing.rate_hz)
    write_manifest(bundle, dataclasses.replace(manifest, spec=dataclasses.replace(manifest.spec, timing=timing)))


def test_a_manifest_exchanged_while_it_is_read_has_the_name_of_what_was_read(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read once: what is parsed is what was hashed, although the file on the disk is another by then."""
    before, name, real = read_manifest(tiny_bundle), manifest_hash(tiny_bundle), Path.read_bytes
    exchanged: list[Path] = []

    def read_bytes(path: Path) -> bytes:
        content = real(path)
        if path.name == "manifest.json" and not exchanged:
            exchanged.append(path)
            _exchange(tiny_bundle)
        return content

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    bundle = load_bundle(tiny_bundle)
    assert exchanged
    assert (bundle.manifest, bundle.hash) == (before, name)
    assert manifest_hash(tiny_bundle) != name
    assert load_bundle(tiny_bundle).manifest.spec != before.spec


@pytest.mark.parametrize("step", ["require_signature", "try_bundle"])
def test_a_manifest_exchanged_between_check_and_use_is_refused(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """After its signature was checked, or after it was tried: both really happen, and another sound manifest takes its place."""
    private, public = make_key(tiny_bundle.parent / "lab")
    sign_bundle(tiny_bundle, private)
    assert open_policy(tiny_bundle, trusted_keys=public).spec == read_manifest(tiny_bundle).spec
    real: Callable[..., str] = getattr(opening, step)

    def then_exchanged(*arguments: Any, **options: Any) -> str:
        name = real(*arguments, **options)
        _exchange(tiny_bundle)
        return name

    monkeypatch.setattr(opening, step, then_exchanged)
    with pytest.raises(
        BundleError, match=r"was exchanged while it was opened \(\['[0-9a-f]{64}', '[0-9a-f]{64}', '[0-9a-f]{64}'\]\): it is refused"
    ):
        open_policy(tiny_bundle, trusted_keys=public)
