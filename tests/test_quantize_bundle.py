"""The verb `quantize`: a child bundle that runs, knows its parent, and was judged on frames that it never saw."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import blob_frames

from actlet.command_line import main
from actlet.errors import BundleError, QuantizationError, SpecError, StorageError
from actlet.manifest import manifest_hash, read_manifest
from actlet.protocols import Observation
from episodes.episode import Episode
from episodes.lerobot_dataset import DatasetWriter
from quantize.condition import graph_of, network_of
from quantize.frames import Frames, frames_of_dataset, frames_of_golden
from quantize.output_error import compare_latency, compare_outputs
from quantize.quantize_bundle import quantize_bundle
from quantize.schemes import scheme
from runtime.bundle import load_bundle
from runtime.policy import BundlePolicy


@pytest.fixture(scope="module")
def dataset(tiny_float_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten short episodes in five scenes for the tiny student; every state says which scene it is from."""
    spec = read_manifest(tiny_float_bundle).spec
    rng, folder = np.random.default_rng(11), tmp_path_factory.mktemp("data") / "table"
    with DatasetWriter(folder, observation_spec=spec.observation, action_spec=spec.action, rate_hz=10.0, robot_type="arm") as writer:
        for number in range(10):
            steps = 6
            state = rng.normal(size=(steps, 3)).astype(np.float32)
            state[:, 0] = number // 2 / 5
            action = np.zeros((steps, spec.action.dim), np.float32)
            images = {camera.name: blob_frames(rng, steps, camera.height, camera.width) for camera in spec.observation.cameras}
            text = ("lift the red cup", "touch the blue block")[number % 2]
            writer.add(
                Episode(instruction=text, images=images, state=state, action=action, success=True, seed=number // 2, task=text.split()[0])
            )
    return folder


@pytest.fixture(scope="module")
def int8_bundle(tiny_float_bundle: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "int8"
    return quantize_bundle(
        tiny_float_bundle, out, scheme=scheme("int8"), allow_slower=True, data=dataset, calibration_frames=16, held_out_frames=8
    ).out


def test_the_child_runs_and_answers_like_its_parent(tiny_float_bundle: Path, int8_bundle: Path) -> None:
    """It loads with its self-test, and takes the same text and frames to nearly the same motion."""
    parent, child = BundlePolicy(tiny_float_bundle), BundlePolicy(int8_bundle)
    rng = np.random.default_rng(5)
    seen = Observation(
        {c.name: blob_frames(rng, 1, c.height, c.width)[0] for c in parent.spec.observation.cameras}, np.zeros(3, np.float32)
    )
    ours, theirs = (policy.predict([seen], ["lift the red cup"])[0].actions[:, 1:3] for policy in (child, parent))
    np.testing.assert_allclose(ours, theirs, atol=0.1 * 0.1)


def test_the_child_knows_its_parent(tiny_float_bundle: Path, int8_bundle: Path) -> None:
    """Same specifications, encoder and tokenizer; the parent's hash; nodes asked and executed; a smaller network."""
    parent, child = read_manifest(tiny_float_bundle), read_manifest(int8_bundle)
    assert child.lineage.parents == (manifest_hash(tiny_float_bundle),)
    assert (child.spec, child.precision, child.lineage.checkpoint) == (parent.spec, "int8", parent.lineage.checkpoint)
    for name in ("instruction.onnx", "tokenizer.json"):
        assert child.files[name] == parent.files[name]
    assert child.network_bytes < 0.6 * parent.network_bytes  # Tiny: names are a fifth of the file.
    assert any(node.asked == node.executed == "int8" for node in child.nodes)


def test_golden_answers_are_the_childs_own(tiny_float_bundle: Path, int8_bundle: Path) -> None:
    """Replaying them is exact, and they differ from the parent's; no question is on the edge of a flag."""
    bundle = load_bundle(int8_bundle)
    network = network_of(graph_of(bundle))
    frames = frames_of_golden(bundle.golden)
    for row in range(len(frames)):
        np.testing.assert_array_equal(network.run(frames.feeds(row))["actions"][0], bundle.golden.actions[row])
    parent = load_bundle(tiny_float_bundle).golden
    rows = [parent.state.tolist().index(state) for state in bundle.golden.state.tolist()]
    assert (parent.actions[rows] != bundle.golden.actions).any()
    binary = bundle.manifest.spec.action.is_binary
    np.testing.assert_array_equal(parent.actions[rows][..., binary], bundle.golden.actions[..., binary])


def test_judged_on_scenes_that_calibration_never_saw(tiny_float_bundle: Path, dataset: Path) -> None:
    """The two sets of frames share no scene, and the same seed gives the same frames."""
    policy = BundlePolicy(tiny_float_bundle)

    def choose() -> tuple[Frames, Frames]:
        return frames_of_dataset(dataset, policy.spec, policy.networks, calibration=24, held_out=6, seed=3)[:2]

    calibrate, judge = choose()
    assert (len(calibrate), len(judge)) == (24, 6)
    assert not set(calibrate.state[:, 0].tolist()) & set(judge.state[:, 0].tolist())
    np.testing.assert_array_equal(choose()[0].state, calibrate.state)


def test_the_verb_prints_the_table(tiny_float_bundle: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Size, share, error, latency, and what stayed float, for int4 and int8."""
    for precision in ("int8", "int4"):
        out = tmp_path / precision
        arguments = [
            "quantize",
            str(tiny_float_bundle),
            "--precision",
            precision,
            "--data",
            str(dataset),
            "--frames",
            "8",
            "--allow-slower",
        ]
        assert main([*arguments, "--out", str(out)]) == 0
        printed = capsys.readouterr().out
        assert "on 8 held-out recorded frames" in printed
        assert f"stored {precision}, executed" in printed
        assert "node_matmul" in printed
        assert read_manifest(out).precision == precision
        BundlePolicy(out)


def test_a_tampered_parent_is_refused(tiny_float_bundle: Path, tmp_path: Path) -> None:
    """One changed byte of policy.onnx, and nothing is made from it."""
    copy = tmp_path / "copy"
    shutil.copytree(tiny_float_bundle, copy)
    content = bytearray((copy / "policy.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "policy.onnx").write_bytes(bytes(content))
    with pytest.raises(BundleError, match="altered after the bundle was made"):
        quantize_bundle(copy, tmp_path / "out", scheme=scheme("int4"))
    assert not (tmp_path / "out").exists()


def test_a_quantized_parent_is_refused(int8_bundle: Path, tmp_path: Path) -> None:
    """Rounding twice is never what one wants."""
    with pytest.raises(QuantizationError, match=r"is int8 already.* Quantize its float parent instead"):
        quantize_bundle(int8_bundle, tmp_path / "out", scheme=scheme("int4"))


def test_int8_without_frames_is_refused(tiny_float_bundle: Path, tmp_path: Path) -> None:
    """Ranges are never guessed; options of int8 do not silently go unused in int4."""
    with pytest.raises(QuantizationError, match="int8 needs recorded frames"):
        quantize_bundle(tiny_float_bundle, tmp_path / "out", scheme=scheme("int8"), allow_slower=True)
    arguments = ["quantize", str(tiny_float_bundle), "--precision", "int4", "--rule", "mse", "--out", str(tmp_path / "out")]
    assert main(arguments) == 2


def test_a_dataset_of_another_robot_is_refused(tiny_bundle: Path, dataset: Path) -> None:
    """Cameras of another size are named before anything is decoded."""
    policy = BundlePolicy(tiny_bundle)
    with pytest.raises(SpecError, match=r"observations of the bundle and of .* differ: cameras"):
        frames_of_dataset(dataset, policy.spec, policy.networks, calibration=4, held_out=4)


def test_a_failed_quantization_leaves_nothing_and_keeps_what_was(
    tiny_float_bundle: Path, int8_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An existing bundle is not overwritten unasked; a failure while writing leaves no folder behind."""
    before = manifest_hash(int8_bundle)
    with pytest.raises(StorageError, match="exists already"):
        quantize_bundle(tiny_float_bundle, int8_bundle, scheme=scheme("int4"))
    assert manifest_hash(int8_bundle) == before

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("quantize.quantize_bundle.write_manifest", fail)
    with pytest.raises(KeyboardInterrupt):
        quantize_bundle(tiny_float_bundle, tmp_path / "out", scheme=scheme("int4"))
    assert list(tmp_path.iterdir()) == []


def test_a_network_differs_from_itself_by_nothing(tiny_float_bundle: Path) -> None:
    """The measures of error at their zero, and a latency that is there."""
    bundle = load_bundle(tiny_float_bundle)
    network, frames = network_of(graph_of(bundle)), frames_of_golden(bundle.golden)
    error = compare_outputs(network, network, frames, bundle.manifest.spec, bundle.manifest.tokenizer)
    assert (error.mean, error.largest, error.flags_changed, error.confidence, error.sqnr_db) == (0, 0, 0, 0, 200)
    latency = compare_latency(network, network, frames, runs=5)
    assert latency.parent_ms > 0
    assert latency.child_ms > 0
