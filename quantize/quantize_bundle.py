"""Float bundle -> a smaller or faster one. The ways there are: `quantize.schemes`; the verb is in `quantize.quantize_command`.

The child has the parent's instruction encoder, tokenizer and specifications, its own policy.onnx, condition.onnx and golden answers, the
audited precision of every node, and the parent's hash in its lineage.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx

from actlet.errors import QuantizationError
from actlet.manifest import (
    CONDITION_NAME,
    LANGUAGE_FILES,
    GoldenTolerance,
    Manifest,
    NodePrecision,
    manifest_hash,
    read_manifest,
    record_files,
    write_manifest,
)
from actlet.provenance import git_commit, package_versions, utc_now
from actlet.storage import new_folder, write_bytes
from quantize.audit import audit, node_seconds, summary, with_time_shares
from quantize.condition import graph_of, network_files, network_of
from quantize.frames import Frames, frames_of_dataset, frames_of_golden
from quantize.output_error import Latency, OutputError, compare_latency, compare_outputs
from quantize.schemes import Scheme
from runtime.bundle import Bundle
from runtime.golden import Golden
from runtime.networks import Networks
from runtime.ort_backend import SessionConfig
from runtime.policy import BundlePolicy

__all__ = ["QuantizeReport", "quantize_bundle", "require_other_place"]

_VERSIONS = ("actlet", "numpy", "onnx", "onnxruntime")
# Integer kernels of another processor may round a value to the neighbouring step, which the layers after it carry on.
_INT8_TOLERANCE = {"actions": 0.02, "confidence": 0.02}
SLOWER = 0.97
"""A speed-up below this is slower: medians of CPU time by turns differ by 2 to 3 % from run to run on a busy machine."""


@dataclasses.dataclass(frozen=True)
class QuantizeReport:
    """What a quantization made, and what it cost."""

    out: Path
    bundle_hash: str
    precision: str
    parent_bytes: int
    """Size of the parent's policy.onnx and condition.onnx."""
    child_bytes: int
    """Size of the child's policy.onnx and condition.onnx."""
    calibration_frames: int
    judged_on: str
    """Which frames the error was measured on."""
    error: OutputError
    latency: Latency
    nodes: tuple[NodePrecision, ...]

    @property
    def share(self) -> float:
        """Size of the child's networks as a share of the parent's."""
        return self.child_bytes / self.parent_bytes

    def lines(self) -> list[str]:
        """For people."""
        e, t = self.error, self.latency
        return [
            f"{'':10}{'networks':>12}{'share':>8}{'error mean':>12}{'max':>9}{'SQNR':>9}{'flags':>8}{'CPU, 1 thread':>15}{'speed':>8}",
            f"{'float32':10}{self.parent_bytes / 1e6:>9.2f} MB{1:>8.1%}{'-':>12}{'-':>9}{'-':>9}{'-':>8}{t.parent_ms:>12.2f} ms{'1.00x':>8}",
            f"{self.precision:10}{self.child_bytes / 1e6:>9.2f} MB{self.share:>8.1%}{e.mean:>12.3%}{e.largest:>9.2%}{e.sqnr_db:>6.1f} dB"
            f"{e.flags_changed:>8.2%}{t.child_ms:>12.2f} ms{t.speed_up:>7.2f}x",
            f"error: share of an action's range, against the parent, on {e.frames} {self.judged_on}; flags: share that changed",
            *([f"calibrated on {self.calibration_frames} frames of other episodes"] if self.calibration_frames else []),
            *summary(self.nodes),
            f"bundle {self.bundle_hash[:12]} written to {self.out}",
        ]


def quantize_bundle(
    parent: str | Path,
    out: str | Path,
    *,
    scheme: Scheme,
    data: str | Path | None = None,
    frames: tuple[Frames, Frames] | None = None,
    calibration_frames: int = 128,
    held_out_frames: int = 128,
    seed: int = 0,
    allow_slower: bool = False,
    overwrite: bool = False,
) -> QuantizeReport:
    """Make a smaller or faster bundle from a float bundle.

    Args:
        parent: A float bundle; it is only read.
        out: The bundle's folder to make.
        scheme: The precision, and what stays as it is.
        data: A LeRobotDataset folder to calibrate with and to judge by.
        frames: The same as frames in memory, (to calibrate with, to judge by), instead of `data`.
        calibration_frames: How many frames to calibrate with.
        held_out_frames: How many frames, of other episodes, to judge by.
        seed: Decides which episodes and frames.
        allow_slower: Write an int8 bundle that is slower here than its parent, or whose nodes run in float here: for another machine.
        overwrite: Replace a bundle that exists.

    Raises:
        BundleError: The parent is not a sound bundle.
        QuantizationError: The parent is not float, frames are needed and there are none or they do not vary, not what was asked for was
            quantized, or its integers gain nothing on this machine.
        DatasetError: The dataset cannot be used.
        StorageError: `out` exists, or cannot be written.
    """
    require_other_place(parent, out)
    policy = BundlePolicy(parent)
    bundle = policy.bundle
    if bundle.manifest.precision != "float32":
        raise QuantizationError(
            f"{parent} is {bundle.manifest.precision} already: rounding twice costs more than once. Quantize its float parent instead."
        )
    judged_on, dataset = "frames of the parent's self-test", None
    if data is not None:
        calibrate, judge, dataset = frames_of_dataset(
            data, policy.spec, policy.networks, calibration=calibration_frames, held_out=held_out_frames, seed=seed
        )
        judged_on = "held-out recorded frames"
    elif frames is not None:
        (calibrate, judge), judged_on = frames, "given frames"
    elif scheme.needs_frames:
        raise QuantizationError(f"{scheme.precision} needs recorded frames to calibrate with: pass a dataset (--data data/table).")
    else:
        calibrate = judge = frames_of_golden(bundle.golden)
    if scheme.needs_frames:
        calibrate.require_variety()
    float_model = graph_of(bundle)
    model, how = scheme.quantize(float_model, calibrate), SessionConfig(integers=scheme.precision != "float8")
    nodes = with_time_shares(audit(model, scheme.asked(float_model), how), node_seconds(model, judge, how))
    networks = network_of(float_model), network_of(model, how)
    error = compare_outputs(*networks, judge, policy.spec, bundle.manifest.tokenizer)
    latency = compare_latency(*networks, judge)
    if not allow_slower:
        _require_gain(scheme.integer_nodes(float_model), nodes, latency)
    _write(bundle, Path(out), model, scheme, nodes, dataset, seed, overwrite=overwrite)
    return QuantizeReport(
        out=Path(out),
        bundle_hash=manifest_hash(out),
        precision=scheme.precision,
        parent_bytes=bundle.manifest.network_bytes,
        child_bytes=read_manifest(out).network_bytes,
        calibration_frames=len(calibrate) if scheme.needs_frames else 0,
        judged_on=judged_on,
        error=error,
        latency=latency,
        nodes=nodes,
    )


def require_other_place(parent: str | Path, out: str | Path) -> None:
    """Refuse to write over the bundle that is read.

    Raises:
        QuantizationError: Both are the same folder.
    """
    if Path(parent).resolve() == Path(out).resolve():
        raise QuantizationError(
            f"{out} is the float bundle itself, which is needed to compare with: choose another name for the smaller one."
        )


def _require_gain(integers: list[str], nodes: tuple[NodePrecision, ...], latency: Latency) -> None:
    """Refuse int8 that is none, or that costs time."""
    if not integers:
        return
    executed = {node.name for node in nodes if node.executed == "int8"}
    if not executed & set(integers):
        raise QuantizationError(
            f"{len(integers)} nodes were to run in int8, and ONNX Runtime runs all of them in float on this machine; nothing was written. Pass "
            "--allow-slower if the bundle is for another machine."
        )
    if latency.speed_up < SLOWER:
        raise QuantizationError(
            f"the int8 network takes {latency.child_ms:.2f} ms of CPU and its float parent {latency.parent_ms:.2f} ms on this machine; nothing was "
            "written. Exclude the nodes that gain nothing (--exclude), take int4 if the file's size is what counts, or pass --allow-slower if the "
            "bundle is for another machine."
        )


def _write(
    parent: Bundle,
    out: Path,
    model: onnx.ModelProto,
    scheme: Scheme,
    nodes: tuple[NodePrecision, ...],
    dataset: str | None,
    seed: int,
    *,
    overwrite: bool,
) -> None:
    """The child's folder, whole; its self-test is run once before it is moved into place."""
    manifest = parent.manifest
    with new_folder(out, overwrite=overwrite) as folder:
        contents = network_files(model)
        for name, content in contents.items():
            write_bytes(folder / name, content)
        language = {name: parent.read(name) for name in LANGUAGE_FILES if name in manifest.files}
        for name, content in language.items():
            write_bytes(folder / name, content)
        networks = Networks(
            policy=contents["policy.onnx"],
            condition=contents.get(CONDITION_NAME),
            instruction=language.get("instruction.onnx"),
            tokenizer=language.get("tokenizer.json"),
            spec=manifest.spec,
            text_encoder=manifest.text_encoder,
            config=SessionConfig(integers=scheme.precision != "float8"),
        )
        _golden(networks, parent.golden, manifest).save(folder / "golden.npz")
        tolerance = manifest.golden_tolerance
        if scheme.int8 is not None or scheme.dynamic is not None:
            tolerance = GoldenTolerance(embedding=tolerance.embedding, **_INT8_TOLERANCE)
        lineage = dataclasses.replace(
            manifest.lineage,
            parents=(parent.hash,),
            dataset=manifest.lineage.dataset or dataset,
            git_commit=git_commit(),
            versions={**manifest.lineage.versions, **package_versions(_VERSIONS)},
            seeds={**manifest.lineage.seeds, "quantize": seed},
            created=utc_now(),
        )
        child = dataclasses.replace(
            manifest,
            precision=scheme.precision,
            nodes=nodes,
            files=record_files(folder),
            lineage=lineage,
            golden_tolerance=tolerance,
            made_for=tuple(runtime for runtime in scheme.made_for if runtime in manifest.made_for),
        )
        write_manifest(folder, child)
        BundlePolicy(folder)


def _golden(networks: Networks, golden: Golden, manifest: Manifest) -> Golden:
    """The child's own answers to the parent's questions; questions whose flags changed are on the edge and are left out."""
    answers = networks.record(golden.images, golden.state, golden.text, golden.committed)
    binary = manifest.spec.action.is_binary
    same = (answers.actions[..., binary] == golden.actions[..., binary]).all(axis=(1, 2))  # (N,)
    if not same.any():
        return answers
    return Golden(
        images={name: frames[same] for name, frames in answers.images.items()},
        state=answers.state[same],
        text=tuple(np.array(answers.text)[same].tolist()),
        instruction=answers.instruction[same],
        committed=answers.committed[same],
        actions=answers.actions[same],
        confidence=answers.confidence[same],
    )
