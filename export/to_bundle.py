"""Student checkpoint -> float bundle; and the verb `export`, which makes one of LeRobot's ACT (`export.lerobot_checkpoint`) and of policies of your own
(`export.own_policy`) as well.

model.safetensors ─ to_onnx ─ policy.onnx ──────┐
MiniLM ─ to_onnx ─ weight_only ─ instruction.onnx ┼─ bundle_writer ─ parity ─ bundle, or an error and no bundle
samples.safetensors ─ golden.npz ───────────────┘
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from actlet.errors import CallerError
from actlet.manifest import TextEncoderInfo, manifest_hash
from actlet.storage import read_json, sha256
from distill.student import load_student
from distill.text_encoder import EMBEDDING_DIM, TOKEN_LENGTH, load_text_encoder
from export.bundle_writer import lineage_of_checkpoint, new_bundle
from export.lerobot_checkpoint import export_lerobot, is_lerobot
from export.own_policy import OwnExportReport, export_module, export_onnx, find_policy
from export.parity import ParityReport, check_parity
from export.samples import load_samples
from export.to_onnx import OPSET, operators, student_to_onnx, text_encoder_to_onnx
from export.weight_only import store_weights_int8
from runtime.policy import BundlePolicy

__all__ = ["ExportReport", "add_arguments", "export_student", "run"]


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What an export made."""

    out: Path
    bundle_hash: str
    operators: dict[str, int]
    """Operator type of policy.onnx -> how often."""
    sizes: dict[str, int]
    """File -> bytes."""
    parity: ParityReport

    def lines(self) -> list[str]:
        """For people."""
        listed = ", ".join(f"{count} {name}" for name, count in self.operators.items())
        files = ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in self.sizes.items())
        return [f"policy.onnx: {listed}", f"files: {files}", *self.parity.lines(), f"bundle {self.bundle_hash[:12]} written to {self.out}"]


def export_student(checkpoint: str | Path, out: str | Path, *, overwrite: bool = False) -> ExportReport:
    """Export a student checkpoint as a float bundle and check it on the robot's runtime.

    Args:
        checkpoint: A student's folder.
        out: The bundle's folder to make.
        overwrite: Replace a bundle that exists.

    Raises:
        CheckpointError: The checkpoint cannot be used.
        BundleError: The exported networks answer differently from torch, or a robot would refuse the bundle; nothing is written.
        StorageError: `out` exists, or cannot be written.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    student, encoder = load_student(checkpoint), load_text_encoder()
    samples = load_samples(checkpoint, student)
    policy = student_to_onnx(student)
    bundle = new_bundle(
        out,
        policy=policy,
        instruction=store_weights_int8(text_encoder_to_onnx(encoder)),
        tokenizer_json=encoder.tokenizer_file.read_bytes(),
        spec=student.spec,
        tokenizer=student.tokenizer,
        text_encoder=TextEncoderInfo(max_tokens=TOKEN_LENGTH, embedding_dim=EMBEDDING_DIM),
        samples=samples.decisive(student),
        lineage=lineage_of_checkpoint(sha256(checkpoint / "model.safetensors"), read_json(checkpoint / "config.json")["lineage"]),
        overwrite=overwrite,
    )
    with bundle as folder:
        report = check_parity(student, encoder, BundlePolicy(folder), samples)
        sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    return ExportReport(out, manifest_hash(out), operators(policy), sizes, report)


EPILOG = """\
examples:
  actlet export checkpoints/student --out bundles/float
  actlet export outputs/train/act/checkpoints/last/pretrained_model --data data/my_robot --out bundles/act      LeRobot's ACT
  actlet export my_policies:make --data data/table --out bundles/mine             a torch module of yours (`export.own_policy`)
  actlet export theirs.onnx --mapping theirs.json --data data/table --out bundles/theirs   somebody's ONNX policy (`export.foreign_onnx`)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb `export`."""
    parser.epilog = EPILOG
    parser.add_argument(
        "policy",
        help="a checkpoint folder: a student's, as `actlet distill` makes it, or of an ACT policy that LeRobot saved; package.module:function of an "
        "OwnPolicy; or an .onnx file",
    )
    parser.add_argument("--data", help="recordings of the robot, for what is not a student: its specifications, and samples to compare on")
    parser.add_argument("--mapping", help="what an .onnx file takes and gives")
    parser.add_argument(
        "--opset", type=int, help="version of the operators, 17 to 23, of what is neither a student nor an .onnx file (default: 18)"
    )
    parser.add_argument("--out", required=True, help="the bundle folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace a bundle that exists")


def run(arguments: argparse.Namespace) -> int:
    """The verb `export`."""
    place, data = str(arguments.policy), arguments.data
    is_network, is_module, is_theirs = place.endswith(".onnx"), ":" in place and not Path(place).exists(), is_lerobot(place)
    given = {"--data": data, "--mapping": arguments.mapping, "--opset": arguments.opset}
    takes = {"--data", "--mapping"} if is_network else {"--data", "--opset"} if is_module or is_theirs else set()
    if wrong := [name for name, value in given.items() if value is not None and name not in takes]:
        raise CallerError(f"{', '.join(wrong)} with {place}: only {sorted(takes) or 'nothing of the kind'} belongs to it.")
    if missing := [name for name in sorted(takes - {"--opset"}) if given[name] is None]:
        raise CallerError(f"{place}: {', '.join(missing)} is needed; see `actlet export --help`.")
    opset = OPSET if arguments.opset is None else arguments.opset
    report: ExportReport | OwnExportReport
    if is_network:
        report = export_onnx(place, arguments.mapping, data, arguments.out, overwrite=arguments.overwrite)
    elif is_theirs:
        report = export_lerobot(place, data, arguments.out, opset=opset, overwrite=arguments.overwrite)
    elif is_module:
        report = export_module(find_policy(place), data, arguments.out, opset=opset, overwrite=arguments.overwrite)
    else:
        report = export_student(place, arguments.out, overwrite=arguments.overwrite)
    print("\n".join(report.lines()))
    return 0
