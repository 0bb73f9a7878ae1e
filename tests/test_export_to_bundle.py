"""Export: the bundle answers as the torch student does, or there is no bundle."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from actlet.command_line import main
from actlet.errors import BundleError, CheckpointError, StorageError
from actlet.manifest import read_manifest
from actlet.protocols import Observation
from distill.student import StudentPolicy, load_student
from export import parity, to_bundle
from export.samples import load_samples
from export.to_bundle import export_student
from export.to_onnx import operators, student_to_onnx
from quantize.condition import graph_of, network_files
from runtime import trial
from runtime.bundle import load_bundle
from runtime.ort_backend import OrtModel
from runtime.policy import BundlePolicy


def test_the_bundle_answers_as_the_torch_student(tiny_checkpoint: Path, tiny_float_bundle: Path) -> None:
    """On fresh inputs, through text, tokenizer and limits; the int8 instruction weights are the only difference."""
    student = StudentPolicy(load_student(tiny_checkpoint))
    bundle = BundlePolicy(tiny_float_bundle)
    rng = np.random.default_rng(99)
    for text in ("lift the red block", "move away"):
        images = {c.name: rng.integers(0, 256, (c.height, c.width, 3), dtype=np.uint8) for c in bundle.spec.observation.cameras}
        seen = Observation(images, rng.normal(size=3).astype(np.float32))
        ours, theirs = bundle.predict([seen], [text])[0], student.predict([seen], [text])[0]
        continuous = ~bundle.spec.action.is_binary
        np.testing.assert_allclose(ours.actions[:, continuous], theirs.actions[:, continuous], atol=5e-3 * 0.1)
        np.testing.assert_allclose(ours.confidence, theirs.confidence, atol=5e-3)


def test_policy_onnx_agrees_to_the_last_bits(tiny_checkpoint: Path, tiny_float_bundle: Path) -> None:
    """With the same vector torch and ONNX Runtime differ by the order of additions only: 1e-5 of the range."""
    student = load_student(tiny_checkpoint)
    samples, networks = load_samples(tiny_checkpoint, student), BundlePolicy(tiny_float_bundle).networks
    unit = parity.action_units(student.spec, student.tokenizer)
    assert len(samples) == 12
    for row in range(len(samples)):
        with torch.inference_mode():
            expected = student.exportable()(*samples.tensors(row))[0][0].numpy()
        got, _ = networks.answer({n: f[row] for n, f in samples.images.items()}, samples.state[row], samples.instruction[row])
        np.testing.assert_allclose(got / unit, expected / unit, atol=1e-5)


def test_a_certain_student_has_a_confidence_too(tiny_checkpoint: Path) -> None:
    """Logits far apart: bins of probability 0 make no confidence that is not a number, in the exported network either."""
    student = load_student(tiny_checkpoint)
    with torch.no_grad():
        student.queries.weight.mul_(1000)
    samples = load_samples(tiny_checkpoint, student)
    network = OrtModel(student_to_onnx(student).SerializeToString())
    probabilities = torch.softmax(student(list(samples.tensors(0)[:-2]), *samples.tensors(0)[-2:]).logits, dim=-1)
    assert (probabilities == 0).any()
    for row in range(len(samples)):
        expected = student.exportable()(*samples.tensors(row))[1].detach().numpy()
        feeds = dict(zip(network.inputs, (tensor.numpy() for tensor in samples.tensors(row)), strict=True))
        np.testing.assert_allclose(network.run(feeds)["confidence"], expected, atol=1e-4)


def test_decoding_around_the_likeliest_bin_is_exported(tiny_checkpoint: Path) -> None:
    """The network in ONNX Runtime answers as torch does, and not as decoding by expectation does."""
    student = load_student(tiny_checkpoint)
    with torch.no_grad():
        student.queries.weight.mul_(30)  # Peaks that differ from the mean.
    samples, by_expectation = load_samples(tiny_checkpoint, student), []
    for row in range(len(samples)):
        by_expectation.append(student.exportable()(*samples.tensors(row))[0].detach().numpy())
    student.config = dataclasses.replace(student.config, mode_reach=16)
    network = OrtModel(student_to_onnx(student).SerializeToString())
    differs = 0
    for row in range(len(samples)):
        expected = student.exportable()(*samples.tensors(row))[0].detach().numpy()
        feeds = dict(zip(network.inputs, (tensor.numpy() for tensor in samples.tensors(row)), strict=True))
        np.testing.assert_allclose(network.run(feeds)["actions"], expected, atol=1e-5)
        differs += not np.allclose(expected, by_expectation[row], atol=1e-3)
    assert differs >= 6


def test_the_manifest_says_where_it_comes_from(tiny_checkpoint: Path, tiny_float_bundle: Path) -> None:
    """Checkpoint hash, dataset, seed and versions; every node with weights is there, in float."""
    manifest = read_manifest(tiny_float_bundle)
    assert manifest.lineage.checkpoint is not None
    assert len(manifest.lineage.checkpoint) == 64
    assert (manifest.lineage.dataset, manifest.lineage.seeds) == ("d" * 64, {"train": 5})
    assert {"torch", "onnx", "onnxruntime"} <= set(manifest.lineage.versions)
    graph = graph_of(load_bundle(tiny_float_bundle)).graph
    stored = {constant.name for constant in graph.initializer}
    names = [node.name for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul") and stored & set(node.input)]
    assert sorted(node.name for node in manifest.nodes) == sorted(names)
    assert {(node.asked, node.executed) for node in manifest.nodes} == {("float32", "float32")}
    assert "trunks.0.blocks.1.convolution" in names


def test_nothing_of_this_machine_is_inside(tiny_float_bundle: Path) -> None:
    """No paths, no stack traces: the graph's bytes name no folder."""
    content = b"".join(path.read_bytes() for path in sorted(tiny_float_bundle.glob("*.onnx")))
    for word in (b"site-packages", b"/home", b".py", str(Path.cwd()).encode()):
        assert word not in content


def test_export_gives_the_same_bytes_twice(tiny_checkpoint: Path, tiny_float_bundle: Path) -> None:
    """The same checkpoint is the same policy.onnx and condition.onnx."""
    again = network_files(student_to_onnx(load_student(tiny_checkpoint)))
    assert again == {name: (tiny_float_bundle / name).read_bytes() for name in ("policy.onnx", "condition.onnx")}


def test_only_plain_operators_with_fixed_shapes(tiny_float_bundle: Path) -> None:
    """Opset 18, one domain, normalisation folded away, and every input and output of known size."""
    model = graph_of(load_bundle(tiny_float_bundle))
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert not {"BatchNormalization", "Loop", "If", "Resize", "Einsum"} & set(operators(model))
    for value in (*model.graph.input, *model.graph.output):
        assert all(dim.dim_value > 0 for dim in value.type.tensor_type.shape.dim), value.name


def test_golden_samples_are_decisive(tiny_checkpoint: Path) -> None:
    """A sample whose flag is nearly one half is left out: another processor may answer the other way."""
    student = load_student(tiny_checkpoint)
    samples = load_samples(tiny_checkpoint, student)
    with torch.no_grad():
        student.queries.weight.zero_()
        student.queries.bias.zero_()  # Every flag is exactly one half now: nothing decisive, so all are kept.
    assert len(samples.decisive(student)) == len(samples)
    decisive = samples.decisive(load_student(tiny_checkpoint))
    assert 0 < len(decisive) < len(samples)


def test_a_network_that_differs_is_not_exported(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_float_bundle: Path
) -> None:
    """One changed weight in the graph: an error that names output and place, and no folder."""

    def wrong(student: object) -> onnx.ModelProto:
        model = graph_of(load_bundle(tiny_float_bundle))
        bias = next(c for c in model.graph.initializer if c.name == "queries.bias")
        changed = onnx.numpy_helper.to_array(bias) + 0.05 * np.arange(bias.dims[0], dtype=np.float32) / bias.dims[0]
        bias.CopyFrom(onnx.numpy_helper.from_array(changed.astype(np.float32), bias.name))
        return model

    monkeypatch.setattr(to_bundle, "student_to_onnx", wrong)
    monkeypatch.setattr(to_bundle, "text_encoder_to_onnx", lambda encoder: onnx.load(tiny_float_bundle / "instruction.onnx"))
    monkeypatch.setattr(to_bundle, "store_weights_int8", lambda model: model)
    with pytest.raises(
        BundleError, match=r"parity: policy.onnx, actions differs from the torch student by .* at sample \d+, step \d, \w+, at most 0.0001"
    ):
        export_student(tiny_checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_a_robot_would_refuse_is_not_exported(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_float_bundle: Path
) -> None:
    """A student's bundle is tried as a robot tries it, within a trial's memory, before it takes its place."""
    monkeypatch.setattr(to_bundle, "text_encoder_to_onnx", lambda encoder: onnx.load(tiny_float_bundle / "instruction.onnx"))
    monkeypatch.setattr(to_bundle, "store_weights_int8", lambda model: model)
    monkeypatch.setattr(trial, "_BASE_BYTES", 1 << 20)
    with pytest.raises(BundleError, match=r"^as a robot opens it: .*Nothing was written\.$"):
        export_student(tiny_checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_that_lost_too_much_is_not_exported() -> None:
    """The judge refuses a cosine below the bound, and NaN."""
    worst = (parity.Worst("policy.onnx, actions", 1e-7, "sample 0"),)
    for cosine in (0.99, float("nan")):
        with pytest.raises(BundleError, match=r"instruction.onnx has cosine .* at 'stop', expected 0.999 or more"):
            parity._judge(parity.ParityReport(1, worst, cosine, "stop", 0.0))
    with pytest.raises(BundleError, match="differs from the torch student by nan"):
        parity._judge(parity.ParityReport(1, (parity.Worst("bundle, actions", float("nan"), "sample 0"),), 1.0, "stop", 0.0))


def test_weights_that_are_not_finite_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A diverged training run never becomes a bundle."""
    folder = tmp_path / "student"
    shutil.copytree(tiny_checkpoint, folder)
    weights = load_file(folder / "model.safetensors")
    weights["queries.bias"][3] = float("nan")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"weights that are not finite: \['queries.bias'\]"):
        export_student(folder, tmp_path / "out")


def test_samples_that_do_not_fit_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Missing samples, or samples of another shape, are named."""
    folder = tmp_path / "student"
    shutil.copytree(tiny_checkpoint, folder)
    samples = load_file(folder / "samples.safetensors")
    student = load_student(folder)
    save_file({**samples, "state": samples["state"][:5].contiguous()}, folder / "samples.safetensors")
    with pytest.raises(CheckpointError, match=r"samples.safetensors holds .*expected .*for 12 sample_instructions"):
        load_samples(folder, student)
    (folder / "samples.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"samples.safetensors is missing: without recorded samples"):
        load_samples(folder, student)


def test_an_existing_bundle_is_kept(tiny_checkpoint: Path, tiny_float_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --overwrite the verb exits with 2 and leaves the bundle as it was."""
    monkeypatch.setattr(to_bundle, "text_encoder_to_onnx", lambda encoder: onnx.load(tiny_float_bundle / "instruction.onnx"))
    monkeypatch.setattr(to_bundle, "store_weights_int8", lambda model: model)
    before = (tiny_float_bundle / "manifest.json").read_bytes()
    assert main(["export", str(tiny_checkpoint), "--out", str(tiny_float_bundle)]) == 2
    with pytest.raises(StorageError, match="exists already"):
        export_student(tiny_checkpoint, tiny_float_bundle)
    assert (tiny_float_bundle / "manifest.json").read_bytes() == before
