"""quantize.certificate: paired evidence inside the bundle, a verdict for a margin, and no certificate for what was changed afterwards."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import point_reach
import pytest

from actlet.command_line import main
from actlet.errors import ActletError, BundleError, QuantizationError, SpecError
from actlet.manifest import manifest_hash, read_manifest, record_files, write_manifest
from actlet.storage import read_json
from distill.student import StudentConfig
from distill.train import distill
from distill.train_config import TrainConfig
from episodes.collect import collect
from episodes.lockstep import EpisodeResult
from export.to_bundle import export_student
from quantize import certificate, paired_runs
from quantize.certificate import CertificateConfig, certificate_lines, certify, read_certificate, uncertified_hash, verify
from quantize.paired_runs import verdict
from quantize.quantize_bundle import quantize_bundle
from quantize.schemes import scheme
from runtime.policy import BundlePolicy

SUITE = "point_reach:make_suite"
CONFIG = CertificateConfig(suite=SUITE, episodes=6, delay_episodes=2, delays=(1,), workers=1, frames=16)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "points"
    collect(SUITE, out, 12, workers=1)
    return out


@pytest.fixture(scope="module")
def bundles(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A float bundle of a student that has hardly learned, and its int8."""
    folder = tmp_path_factory.mktemp("bundles")
    tiny = StudentConfig(image_px=16, channels=(16, 32), blocks=(1, 1), condition_dim=32, squeeze_channels=16, features=64, token_rank=8)
    student = distill(data, folder / "student", suite=SUITE, config=TrainConfig(steps=30, batch_size=16, horizon=4, architecture=tiny))
    parent = export_student(student, folder / "float").out
    return parent, quantize_bundle(
        parent, folder / "int8", scheme=scheme("int8"), data=data, calibration_frames=16, held_out_frames=8, allow_slower=True
    ).out


@pytest.fixture
def child(bundles: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy that a test may certify."""
    return Path(shutil.copytree(bundles[1], tmp_path / "int8"))


def test_a_certificate_is_in_the_bundle_and_can_be_run_again(bundles: tuple[Path, Path], child: Path, data: Path) -> None:
    """Both drove the same seeds; the parent is untouched; the bundle still opens, under a name of its own; the same outcomes come again."""
    parent, before, name = bundles[0], manifest_hash(bundles[0]), manifest_hash(child)
    document = certify(child, parent, CONFIG, data=data, machine={"cpu": "some"})
    assert manifest_hash(parent) == before
    assert manifest_hash(child) != name
    assert BundlePolicy(child).spec == read_manifest(parent).spec
    assert read_certificate(child) == json.loads(json.dumps(document)) == read_json(child / "certificate.json")
    assert document["parent"]["bundle"] == before
    closed = document["closed_loop"]
    assert (closed["episodes"], len(closed["outcomes"]["child"]), closed["at_delay"]["1"]["episodes"]) == (6, 6, 2)
    assert closed["success"]["child"] == closed["outcomes"]["child"].count("1") / 6
    assert closed["verdict"] == verdict(closed["difference_ci95"], 0.03) == "undecided"
    assert sum(group["nodes"] for group in document["audit"]) == len(read_manifest(child).nodes)
    assert document["recorded"]["frames"] > 0
    assert 0.5 < document["recorded"]["token_agreement"] <= 1
    assert "UNDECIDED for a margin of 3 points" in "\n".join(certificate_lines(document))
    assert not list(child.parent.glob(".*certify*"))
    again, found = verify(child, workers=1)
    assert again == read_certificate(child)
    assert (found["same"], found["outcomes"]) == (6, closed["outcomes"]["child"])


def test_a_bundle_that_was_changed_has_no_certificate(bundles: tuple[Path, Path], child: Path) -> None:
    """Another file under hashes that were put right, a certificate of another bundle, or one cut in half."""
    certify(child, bundles[0], CONFIG)
    manifest = read_manifest(child)
    other = child.parent / "other"
    shutil.copytree(child, other)
    timing = dataclasses.replace(manifest.spec.timing, max_delay_steps=3)
    write_manifest(other, dataclasses.replace(manifest, spec=dataclasses.replace(manifest.spec, timing=timing)))
    with pytest.raises(BundleError, match="changed after it was certified"):
        read_certificate(other)
    forged = read_json(child / "certificate.json")
    forged["closed_loop"]["verdict"] = "non-inferior"
    (other / "certificate.json").write_text(json.dumps(forged))
    write_manifest(other, dataclasses.replace(manifest, files=record_files(other)))
    with pytest.raises(BundleError, match="do not follow from its outcomes"):
        read_certificate(other)
    (other / "certificate.json").write_text("{}")
    write_manifest(other, dataclasses.replace(manifest, files=record_files(other)))
    with pytest.raises(BundleError, match=r"certificate.json cannot be read \('schema_version'\)"):
        verify(other)
    with pytest.raises(BundleError, match=r"has no certificate.json: `actlet certify` makes one"):
        read_certificate(bundles[1])


def test_certifying_again_replaces_the_certificate(bundles: tuple[Path, Path], child: Path) -> None:
    """The bundle's name without it stays."""
    name = uncertified_hash(child)
    for episodes in (4, 6):
        document = certify(child, bundles[0], dataclasses.replace(CONFIG, episodes=episodes))
        assert document["child"]["bundle"] == name == uncertified_hash(child)
        assert read_certificate(child)["closed_loop"]["episodes"] == episodes


def test_a_run_that_was_stopped_goes_on(bundles: tuple[Path, Path], child: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was driven is not driven again, and until all is there the bundle is as it was."""
    driven: list[tuple[str, int]] = []
    drive, name = certificate.drive, manifest_hash(child)

    def counted(path: Path, *settings: Any, delay: int, workers: int | None) -> list[EpisodeResult]:
        if delay and len(driven) == 2:
            raise KeyboardInterrupt
        driven.append((path.name, delay))
        return drive(path, *settings, delay=delay, workers=workers)

    monkeypatch.setattr(certificate, "drive", counted)
    with pytest.raises(KeyboardInterrupt):
        certify(child, bundles[0], CONFIG)
    assert manifest_hash(child) == name
    driven.append(("stopped", 0))
    certify(child, bundles[0], CONFIG)
    assert driven == [("int8", 0), ("float", 0), ("stopped", 0), ("int8", 1), ("float", 1)]


def test_an_episode_that_failed_is_not_judged(bundles: tuple[Path, Path], child: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A simulator that fails says nothing of a policy: no certificate, and nothing kept of that run."""

    def broken(*_: Any, **__: Any) -> list[EpisodeResult]:
        return [EpisodeResult(task="t", seed=0, instruction="", success=False, steps=0, error="no screen")]

    monkeypatch.setattr(paired_runs, "evaluate", broken)
    name = manifest_hash(child)
    with pytest.raises(ActletError, match=r"1 of 6 episodes of .* ended in an error, the first \(t, seed 0\): no screen"):
        certify(child, bundles[0], CONFIG)
    assert manifest_hash(child) == name
    assert not list(child.parent.glob(".*certify*/*.json"))


def test_a_bundle_that_is_replaced_meanwhile_is_not_certified(
    bundles: tuple[Path, Path], child: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its outcomes nor its files are taken for those of the other."""
    other = quantize_bundle(bundles[0], child.parent / "int4", scheme=scheme("int4")).out
    with pytest.raises(BundleError, match="it was replaced while it was being judged"):
        paired_runs.open_bundle(str(other), manifest_hash(child))
    manifest = read_manifest(child)
    document = certify(child, bundles[0], CONFIG)
    with pytest.raises(BundleError):
        certificate._put(other, manifest, document)
    assert read_manifest(other).precision == "int4"


def test_a_link_and_a_relative_place_are_followed(bundles: tuple[Path, Path], child: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle itself is certified, and the link stays one."""
    link = child.parent / "current"
    link.symlink_to(child)
    certify(link, bundles[0], CONFIG)
    assert link.is_symlink()
    monkeypatch.chdir(child)
    certify(".", bundles[0], dataclasses.replace(CONFIG, episodes=4))
    assert read_certificate(child)["closed_loop"]["episodes"] == 4


def test_motion_is_compared_where_both_succeed() -> None:
    """Sums over those episodes; a failed one counts for neither."""

    def episode(success: bool, jerk: float, flips: int) -> EpisodeResult:
        return EpisodeResult(
            task="t", seed=0, instruction="", success=success, steps=3, mean_squared_jerk=jerk, path_length=1.0, gripper_flips=flips
        )

    ours = [episode(True, 3.0, 2), episode(True, 100.0, 9), episode(False, 1.0, 0)]
    theirs = [episode(True, 2.0, 1), episode(False, 1.0, 0), episode(True, 1.0, 0)]
    assert paired_runs.motion_of(ours, theirs) == {"episodes": 1, "jerk_ratio": 1.5, "path_ratio": 1.0, "gripper_flips_difference": 1.0}
    assert paired_runs.motion_of(ours[2:], theirs[2:])["jerk_ratio"] is None


def test_jerk_of_a_chunk_is_what_its_moves_do(bundles: tuple[Path, Path]) -> None:
    """A straight line has none, and flags do not count."""
    spec = read_manifest(bundles[0]).spec
    chunks = np.zeros((2, 4, spec.action.dim), np.float32)
    chunks[:] = np.arange(4, dtype=np.float32)[None, :, None] * 0.01
    chunks[..., spec.action.is_binary] = np.array([0, 1, 0, 1], np.float32)[None, :, None]
    assert certificate._jerk(chunks, spec) == pytest.approx(0, abs=1e-9)
    chunks[:, 2] += 0.1
    assert certificate._jerk(chunks, spec) > 0


@pytest.mark.parametrize(
    ("interval", "expected"),
    [((-0.02, 0.01), "non-inferior"), ((-0.03, 0.0), "non-inferior"), ((-0.1, -0.04), "inferior"), ((-0.05, 0.02), "undecided")],
)
def test_the_verdict_is_of_the_whole_interval(interval: tuple[float, float], expected: str) -> None:
    """For a margin of three points."""
    assert verdict(interval, 0.03) == expected
    assert verdict(interval, 0.03, parent=0.0) == "undecided"  # Nothing to lose.


def test_what_cannot_be_shown_is_refused(bundles: tuple[Path, Path], child: Path, data: Path) -> None:
    """Another parent, neither suite nor data, settings without sense, and a closed loop that was never run."""
    with pytest.raises(QuantizationError, match="give the float bundle that it was quantized from"):
        certify(bundles[0], child, CONFIG)
    with pytest.raises(QuantizationError, match="neither a suite nor a dataset"):
        certify(child, bundles[0], dataclasses.replace(CONFIG, suite=None))
    settings: tuple[dict[str, Any], ...] = ({"episodes": 0}, {"margin": 0.0}, {"delays": (0,)}, {"delay_episodes": 7, "episodes": 6})
    for wrong in settings:
        with pytest.raises(SpecError, match="certificate"):
            CertificateConfig(**wrong)
    certify(child, bundles[0], CONFIG)
    with pytest.raises(SpecError, match="-2 episodes"):
        verify(child, episodes=-2)
    document = certify(child, bundles[0], dataclasses.replace(CONFIG, suite=None), data=data)
    assert "no closed loop was run" in "\n".join(certificate_lines(document))
    with pytest.raises(QuantizationError, match="recorded episodes alone"):
        verify(child)


def test_the_verbs(bundles: tuple[Path, Path], child: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One prints the verdict and writes it, the other finds it again."""
    arguments = ["--suite", SUITE, "--episodes", "4", "--delays", "1", "--delay-episodes", "2", "--workers", "1"]
    assert main(["certify", str(child), "--parent", str(bundles[0]), *arguments]) == 0
    said = capsys.readouterr().out
    assert "over 4 paired episodes" in said
    assert "1 steps late" in said
    assert read_certificate(child)["machine"]["cores"] >= 1
    assert main(["verify", str(child), "--workers", "1"]) == 0
    assert "4 of 4 episodes ended as they did then" in capsys.readouterr().out
    assert main(["verify", str(bundles[1])]) == 2


assert point_reach  # The suite's module, importable by name.
