"""benchmarks.export: damaged bundles are refused or answer as before, and what would slip through is counted."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import tiny_policy_onnx

from actlet.errors import BundleError
from actlet.manifest import manifest_hash
from benchmarks import export
from benchmarks.export import CHANGES, damage, measure_hostile, measure_load, outcome_of
from runtime.policy import BundlePolicy


def test_damaged_bundles_are_refused(tiny_bundle: Path) -> None:
    """Every change some times; the bundle itself stays as it is."""
    before = manifest_hash(tiny_bundle)
    found = measure_hostile(tiny_bundle, 5 * len(CHANGES), resealed=20, progress=False)
    assert (found["tried"], found["accepted"], found["faults"]) == (5 * len(CHANGES), 0, [])
    assert sum(found["outcomes"].values()) == found["tried"]
    assert set(found["outcomes"]) <= {"refused", "same"}
    assert set(found["by_change"]) == set(CHANGES)
    assert found["resealed"]["tried"] == 20
    assert found["resealed"]["accepted"] == 0
    assert manifest_hash(tiny_bundle) == before
    BundlePolicy(tiny_bundle)


def test_every_change_changes(tiny_bundle: Path) -> None:
    """By the names of the files and what is in them."""
    before = {path.name: path.read_bytes() for path in tiny_bundle.iterdir()}
    for change in CHANGES:
        said = damage(tiny_bundle, change, random.Random(1))
        assert said
        assert {path.name: path.read_bytes() for path in tiny_bundle.iterdir()} != before
        for name, content in before.items():
            (tiny_bundle / name).write_bytes(content)


def test_what_would_slip_through_is_seen(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash, an error of another kind, and a network that answers otherwise."""
    policy = BundlePolicy(tiny_bundle)
    golden = policy.bundle.golden
    assert outcome_of(tiny_bundle, golden)[0] == "same"

    class Other:
        def __init__(self, path: Path) -> None:
            self.networks = type(policy.networks)(
                policy=tiny_policy_onnx(gain=1.01),
                instruction=policy.bundle.read("instruction.onnx"),
                tokenizer=policy.bundle.read("tokenizer.json"),
                spec=policy.spec,
                text_encoder=policy.bundle.manifest.text_encoder,
            )

    def fails(path: Path) -> Any:
        raise KeyError("oops")

    def dies(path: Path) -> Any:
        import os

        os.abort()

    for stand_in, outcome in ((Other, "other answers"), (fails, "undeclared error"), (dies, "crash")):
        monkeypatch.setattr(export, "BundlePolicy", stand_in)
        assert outcome_of(tiny_bundle, golden)[0] == outcome


def test_loading_is_timed(tiny_bundle: Path) -> None:
    """Here and in another process, which takes its own time to start."""
    found = measure_load(tiny_bundle, runs=2)
    assert found["size_bytes"] > 0
    assert found["tried"]["wall_s"] > found["opened"]["wall_s"] > 0
    assert np.isfinite(found["tried"]["cpu_s"])


def test_an_unsound_bundle_is_not_damaged(tiny_bundle: Path) -> None:
    """There would be nothing to compare with."""
    (tiny_bundle / "policy.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match="not sound, so there is nothing to damage"):
        measure_hostile(tiny_bundle, 1, progress=False)
