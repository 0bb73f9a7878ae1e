"""Float bundle -> int8 or int4 bundle; the verb `quantize`.

The child has the parent's instruction encoder, tokenizer and specifications, its own policy.onnx and golden answers, the
audited precision of every node, and the parent's hash in its lineage.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
import onnx

from actlet.errors import QuantizationError
from actlet.manifest import GoldenTolerance, Manifest, NodePrecision, manifest_hash, record_files, write_manifest
from actlet.provenance import git_commit, package_versions, utc_now
from actlet.storage import new_folder, write_bytes
from quantize.audit import audit, summary
from quantize.frames import Frames, frames_of_dataset, frames_of_golden
from quantize.int4 import Int4Config, quantize_int4, will_be_int4
from quantize.int8 import Int8Config, quantize_int8, will_be_int8
from quantize.output_error import Latency, OutputError, compare_latency, compare_outputs
from runtime.bundle import Bundle
from runtime.golden import Golden
from runtime.networks import Networks
from runtime.ort_backend import OrtModel
from runtime.policy import BundlePolicy

__all__ = ["QuantizeReport", "add_arguments", "quantize_bundle", "run"]

_VERSIONS = ("actlet", "numpy", "onnx", "onnxruntime")
# Integer kernels of another processor may round a value to the neighbouring step, which the layers after it carry on.
_INT8_TOLERANCE = {"actions": 0.02, "confidence": 0.02}


@dataclasses.dataclass(frozen=True)
class QuantizeReport:
    """What a quantization made, and what it cost."""

    out: Path
    bundle_hash: str
    precision: str
    parent_bytes: int
    """Size of the parent's policy.onnx."""
    child_bytes: int
    """Size of the child's policy.onnx."""
    calibration_frames: int
    judged_on: str
    """Which frames the error was measured on."""
    error: OutputError
    latency: Latency
    nodes: tuple[NodePrecision, ...]

    @property
    def share(self) -> float:
        """Size of the child's policy.onnx as a share of the parent's."""
        return self.child_bytes / self.parent_bytes

    def lines(self) -> list[str]:
        """For people."""
        e, t = self.error, self.latency
        return [
            f"{'':10}{'policy.onnx':>12}{'share':>8}{'error mean':>12}{'max':>9}{'SQNR':>9}{'flags':>8}{'CPU, 1 thread':>15}{'speed':>8}",
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
    config: Int8Config | Int4Config,
    data: str | Path | None = None,
    frames: tuple[Frames, Frames] | None = None,
    calibration_frames: int = 128,
    held_out_frames: int = 128,
    seed: int = 0,
    overwrite: bool = False,
) -> QuantizeReport:
    """Make a smaller bundle from a float bundle.

    Args:
        parent: A float bundle.
        out: The bundle's folder to make.
        config: Int8Config or Int4Config: the precision, and what stays float.
        data: A LeRobotDataset folder to calibrate with and to judge by.
        frames: The same as frames in memory, (to calibrate with, to judge by), instead of `data`.
        calibration_frames: How many frames to calibrate with.
        held_out_frames: How many frames, of other episodes, to judge by.
        seed: Decides which episodes and frames.
        overwrite: Replace a bundle that exists.

    Raises:
        BundleError: The parent is not a sound bundle.
        QuantizationError: The parent is not float, int8 has no frames, or not what was asked for was quantized.
        DatasetError: The dataset cannot be used.
        StorageError: `out` exists, or cannot be written.
    """
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
    elif isinstance(config, Int8Config):
        raise QuantizationError("int8 needs recorded frames to calibrate with: pass a dataset (--data data/table).")
    else:
        calibrate = judge = frames_of_golden(bundle.golden)
    precision: Literal["int8", "int4"] = "int8" if isinstance(config, Int8Config) else "int4"
    float_model = onnx.load_from_string(bundle.read("policy.onnx"))
    if isinstance(config, Int8Config):
        model = quantize_int8(float_model, calibrate, config)
        nodes = audit(model, int8=will_be_int8(float_model, config))
    else:
        model = quantize_int4(float_model, config)
        nodes = audit(model, int4=will_be_int4(float_model, config))
    child, before = model.SerializeToString(deterministic=True), bundle.read("policy.onnx")
    networks = [OrtModel(before, where="policy.onnx of the parent"), OrtModel(child, where="the quantized policy.onnx")]
    error = compare_outputs(networks[0], networks[1], judge, policy.spec, bundle.manifest.tokenizer)
    _write(bundle, Path(out), child, precision, nodes, dataset, seed, overwrite=overwrite)
    return QuantizeReport(
        out=Path(out),
        bundle_hash=manifest_hash(out),
        precision=precision,
        parent_bytes=len(before),
        child_bytes=len(child),
        calibration_frames=len(calibrate) if precision == "int8" else 0,
        judged_on=judged_on,
        error=error,
        latency=compare_latency(networks[0], networks[1], judge),
        nodes=nodes,
    )


def _write(
    parent: Bundle,
    out: Path,
    policy: bytes,
    precision: Literal["int8", "int4"],
    nodes: tuple[NodePrecision, ...],
    dataset: str | None,
    seed: int,
    *,
    overwrite: bool,
) -> None:
    """The child's folder, whole; its self-test is run once before it is moved into place."""
    manifest = parent.manifest
    with new_folder(out, overwrite=overwrite) as folder:
        write_bytes(folder / "policy.onnx", policy)
        for name in ("instruction.onnx", "tokenizer.json"):
            write_bytes(folder / name, parent.read(name))
        networks = Networks(
            policy=policy,
            instruction=parent.read("instruction.onnx"),
            tokenizer=parent.read("tokenizer.json"),
            spec=manifest.spec,
            text_encoder=manifest.text_encoder,
        )
        _golden(networks, parent.golden, manifest).save(folder / "golden.npz")
        tolerance = manifest.golden_tolerance
        if precision == "int8":
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
            manifest, precision=precision, nodes=nodes, files=record_files(folder), lineage=lineage, golden_tolerance=tolerance
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


EPILOG = """\
examples:
  actlet quantize bundles/float --precision int8 --data data/table --out bundles/int8
  actlet quantize bundles/float --precision int8 --dialect portable --data data/table --out bundles/int8-tensorrt
  actlet quantize bundles/float --precision int4 --data data/table --out bundles/int4
  actlet quantize bundles/float --precision int8 --exclude queries --exclude mix.2 --data data/table --out bundles/int8
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb `quantize`."""
    parser.epilog = EPILOG
    parser.add_argument("bundle", help="a float bundle, as `actlet export` makes it")
    parser.add_argument(
        "--precision", required=True, choices=("int8", "int4"), help="int8: faster and smaller; int4: smallest, float speed"
    )
    parser.add_argument("--out", required=True, help="the bundle folder to make")
    parser.add_argument("--data", help="a LeRobotDataset folder: calibrates int8, judges both")
    parser.add_argument("--dialect", choices=("cpu", "portable"), help="int8 for ONNX Runtime (default) or also for TensorRT")
    parser.add_argument(
        "--rule", choices=("minmax", "percentile", "mse"), help=f"int8: how ranges are chosen (default: {Int8Config().rule})"
    )
    parser.add_argument(
        "--weight-levels",
        type=int,
        help=f"int8: largest integer of a weight (default: {Int8Config().weight_levels}, safe without VNNI; up to 127)",
    )
    parser.add_argument("--exclude", action="append", default=[], metavar="NODE", help="a node that stays float; may be repeated")
    parser.add_argument("--frames", type=int, default=128, help="frames to calibrate with, and as many to judge by (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="decides which frames (default: %(default)s)")
    parser.add_argument("--overwrite", action="store_true", help="replace a bundle that exists")


def run(arguments: argparse.Namespace) -> int:
    """The verb `quantize`."""
    exclude = tuple(arguments.exclude)
    chosen = {name: getattr(arguments, name) for name in ("dialect", "rule", "weight_levels") if getattr(arguments, name) is not None}
    if arguments.precision == "int4" and chosen:
        raise QuantizationError(f"--{' and --'.join(chosen).replace('_', '-')} belong to int8; int4 rounds weights alone. Leave them out.")
    config = Int8Config(exclude=exclude, **chosen) if arguments.precision == "int8" else Int4Config(exclude=exclude)
    report = quantize_bundle(
        arguments.bundle,
        arguments.out,
        config=config,
        data=arguments.data,
        calibration_frames=arguments.frames,
        held_out_frames=arguments.frames,
        seed=arguments.seed,
        overwrite=arguments.overwrite,
    )
    print("\n".join(report.lines()))
    return 0
