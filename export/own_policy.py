"""Your own policy as a bundle: a torch module, or an ONNX file with a mapping, checked on your recordings.

    recordings ─ specifications, bounds of the actions, samples ─┐
    module ─ torch.onnx ─────────────┐                           │
    policy.onnx + mapping ─ foreign_onnx ─ policy.onnx ─ bundle_writer ─ parity with the original ─ bundle, or an error and no bundle

A module is found by name, as "my_package.policies:make"; what the function returns is an `OwnPolicy`. Its forward takes positional tensors as they
come from the robot, preprocessing inside:

    forward(*frames uint8 (1, h, w, 3) in the recordings' order of cameras, state float32 (1, S)[, instruction float32 (1, 1152)])
        -> actions float32 (1, H, A) in physical units[, confidence float32 (1, H)]
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from actlet.action_tokens import ActionTokenizer
from actlet.errors import BundleError, CallerError, CheckpointError, SpecError
from actlet.manifest import Lineage, TextEncoderInfo, manifest_hash
from actlet.provenance import git_commit, package_versions, utc_now
from actlet.specs import PolicySpec, TimingSpec
from actlet.storage import sha256
from distill.text_encoder import EMBEDDING_DIM, TOKEN_LENGTH, load_text_encoder
from episodes.lerobot_dataset import LeRobotDataset, open_dataset
from export.bundle_writer import new_bundle
from export.foreign_onnx import ForeignMapping, foreign_graph, read_foreign_onnx, read_mapping
from export.parity import TOLERANCE, Worst, action_units, worst_of
from export.recorded_samples import MOMENTS, samples_of
from export.samples import Samples
from export.to_onnx import OPSET, module_to_onnx, operators, text_encoder_to_onnx
from export.weight_only import store_weights_int8
from runtime.network_check import OPSETS
from runtime.policy import BundlePolicy

__all__ = ["OwnExportReport", "OwnPolicy", "export_module", "export_onnx", "find_policy"]

Answer = Callable[[Samples, int], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""What the original answers to a recorded sample: actions (H, A) in physical units, flags 0 or 1, and confidence (H,)."""


@dataclasses.dataclass(frozen=True)
class OwnPolicy:
    """A torch policy of your own."""

    module: nn.Module
    """See the module's docstring for what it takes and gives."""
    timing: TimingSpec
    reads_instruction: bool = False


@dataclasses.dataclass(frozen=True)
class OwnExportReport:
    """What an export made."""

    out: Path
    bundle_hash: str
    operators: dict[str, int]
    sizes: dict[str, int]
    worst: tuple[Worst, ...]
    """Largest difference from the original, per output."""
    notes: tuple[str, ...] = ()
    """What a user should know besides."""

    def lines(self) -> list[str]:
        """For people."""
        listed = ", ".join(f"{count} {name}" for name, count in self.operators.items())
        files = ", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in self.sizes.items())
        rows = [f"  {worst.output:<28} {worst.difference:9.2e}   at {worst.where}" for worst in self.worst]
        parity = f"parity with the original on recorded samples, largest difference (actions: share of their range; allowed {TOLERANCE:g})"
        return [f"policy: {listed}", f"files: {files}", parity, *rows, *self.notes, f"bundle {self.bundle_hash[:12]} written to {self.out}"]


def find_policy(place: str) -> OwnPolicy:
    """The policy that a function by the name of "package.module:function" makes; the current folder is searched too.

    Whatever that module or function raises comes out as it is.

    Raises:
        CallerError: There is no such function, it takes arguments, or it makes something else.
    """
    module, _, function = place.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), function)):
        raise CallerError(f"{place!r}: expected package.module:function, the name of a function without arguments.")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    found = _imported(place, module)
    try:
        make = getattr(found, function)
    except AttributeError as error:
        raise CallerError(f"{place!r}: {error}. Name a function without arguments as package.module:function.") from error
    if not callable(make):
        raise CallerError(f"{place!r} is a {type(make).__name__}, expected a function without arguments that returns an OwnPolicy.")
    if needed := _arguments(make):
        raise CallerError(f"{place!r} takes {needed}, expected a function without arguments: write one that calls it.")
    try:
        made = make()
    except ModuleNotFoundError as error:
        raise _not_ours(place, error) from error
    if not isinstance(made, OwnPolicy):
        raise CallerError(f"{place!r} returned a {type(made).__name__}, expected an export.own_policy.OwnPolicy.")
    return made


def export_module(
    policy: OwnPolicy,
    data: str | Path | LeRobotDataset,
    out: str | Path,
    *,
    opset: int = OPSET,
    checkpoint: str | None = None,
    golden: int = MOMENTS,
    overwrite: bool = False,
) -> OwnExportReport:
    """A torch module as a bundle.

    Args:
        policy: The module, and when its actions are meant.
        data: Recordings of the robot (a LeRobotDataset, or its folder): what it sees and is told, in which ranges, and samples to compare on.
        out: The bundle's folder to make.
        opset: Version of the standard operators, 17 .. 23.
        checkpoint: SHA-256 of the module's weights, where they come from a file.
        golden: How many recorded inputs the bundle keeps; opening it answers them all.
        overwrite: Replace a bundle that exists.

    Raises:
        CheckpointError: Weights that are not finite, or the module cannot be exported; the message has torch's own words.
        SpecError: It gives another shape than its timing and the recordings say.
        BundleError: The bundle answers differently from the module, or a robot would refuse it; nothing is written.
        DatasetError: The recordings cannot be used.
        StorageError: `out` exists, or cannot be written.
    """
    if opset not in OPSETS:
        raise CallerError(f"opset {opset}, expected {OPSETS.start} .. {OPSETS.stop - 1}.")
    dataset = data if isinstance(data, LeRobotDataset) else open_dataset(data)
    spec = PolicySpec(observation=dataset.observation_spec, action=dataset.action_spec, timing=policy.timing)
    module = _WithConfidence(policy.module).eval()
    bad = [name for name, value in module.state_dict().items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if bad:
        raise CheckpointError(f"weights that are not finite: {bad[:5]}; such a policy is never exported.")
    samples = samples_of(dataset, reads_instruction=policy.reads_instruction)
    example = samples.tensors(0)
    names = [*(f"images.{name}" for name in samples.images), "state", *(["instruction"] if policy.reads_instruction else [])]
    with torch.no_grad():
        try:
            actions, confidence = module(*example)
        except Exception as error:  # Whatever a foreign module raises.
            raise CheckpointError(
                f"the policy fails on a recorded sample ({type(error).__name__}: {error}); it is called with {names}."
            ) from error
    expected = ((1, spec.timing.horizon, spec.action.dim), (1, spec.timing.horizon))
    if (tuple(actions.shape), tuple(confidence.shape)) != expected:
        raise SpecError(
            f"the policy gives {tuple(actions.shape)} and {tuple(confidence.shape)}, expected actions and confidence of {expected}."
        )
    try:
        model = module_to_onnx(module, example, names, ["actions", "confidence"], prefix="module.", opset=opset)
    except Exception as error:  # torch's exporter raises many kinds.
        raise CheckpointError(
            f"torch.onnx cannot export the policy ({type(error).__name__}: {str(error).splitlines()[0][:300]})."
        ) from error

    @torch.no_grad()
    def answer(recorded: Samples, row: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        got = module(*recorded.tensors(row))
        return got[0][0].numpy(), got[1][0].numpy()

    return _write(model, spec, dataset, samples, answer, out, checkpoint=checkpoint, golden=golden, overwrite=overwrite)


def export_onnx(
    network: str | Path, mapping: str | Path | ForeignMapping, data: str | Path, out: str | Path, *, overwrite: bool = False
) -> OwnExportReport:
    """A float ONNX policy as a bundle.

    Args:
        network: The .onnx file.
        mapping: What it takes and gives: a file, or what is in it.
        data: As for `export_module`.
        out: The bundle's folder to make.
        overwrite: Replace a bundle that exists.

    Raises:
        CheckpointError: The file is missing, not sound, or has dynamic axes.
        SpecError: The mapping does not fit the network or the recordings.
        BundleError: The network holds what a bundle may not, or the bundle answers differently from it, or a robot would refuse it; nothing is written.
        DatasetError: The recordings cannot be used.
        StorageError: `out` exists, or cannot be written.
    """
    said = mapping if isinstance(mapping, ForeignMapping) else read_mapping(mapping)
    model, dataset = read_foreign_onnx(network), open_dataset(data)
    spec = PolicySpec(observation=dataset.observation_spec, action=dataset.action_spec, timing=said.timing)
    whole = foreign_graph(model, said, spec)
    samples = samples_of(dataset, reads_instruction=said.instruction is not None)
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common class below Exception.
        raise CheckpointError(f"{network}: ONNX Runtime {onnxruntime.__version__} cannot load it ({str(error).strip()[:300]}).") from error

    def answer(recorded: Samples, row: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return _foreign_answer(session, said, spec, recorded, row)

    return _write(whole, spec, dataset, samples, answer, out, checkpoint=sha256(network), overwrite=overwrite)


class _WithConfidence(nn.Module):
    """Says 1 where the policy says nothing of it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """(actions, confidence) of the policy."""
        given = self.module(*inputs)
        if isinstance(given, tuple):
            return given[0], given[1]
        return given, given[..., 0] * 0 + 1


def _imported(place: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if f"{module}.".startswith(f"{error.name}."):
            raise CallerError(f"{place!r}: {error}, neither installed nor in {Path.cwd()}. Name it as package.module:function.") from error
        raise _not_ours(place, error) from error


def _not_ours(place: str, error: ModuleNotFoundError) -> ImportError:
    """The command line takes a ModuleNotFoundError for a package of actlet's own that is missing."""
    return ImportError(f"{place!r}: {error}", name=error.name)


def _arguments(function: Callable[..., Any]) -> list[str]:
    """Those that it cannot be called without."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # Some of those that are written in C have none.
        return []
    optional = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    return [parameter.name for parameter in parameters if parameter.default is inspect.Parameter.empty and parameter.kind not in optional]


def _foreign_answer(
    session: onnxruntime.InferenceSession, mapping: ForeignMapping, spec: PolicySpec, samples: Samples, row: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The original network, with what the mapping says done by torch and numpy instead of by the graph."""
    feeds: dict[str, NDArray[np.float32]] = {}
    for name, picture in mapping.images.items():
        frame = torch.from_numpy(samples.images[picture.camera][row]).permute(2, 0, 1)[None].float()
        if picture.size is not None and tuple(picture.size) != tuple(frame.shape[2:]):
            frame = nn.functional.interpolate(frame, tuple(picture.size), mode="bilinear", align_corners=False)
        mean, std = (torch.tensor(values)[:, None, None] for values in (picture.mean, picture.std))
        frame = (frame * picture.scale - mean) / std
        feeds[name] = (frame if picture.layout == "NCHW" else frame.permute(0, 2, 3, 1)).numpy().astype(np.float32)
    if mapping.state is not None:
        feeds[mapping.state.name] = ((samples.state[row] - np.array(mapping.state.mean)) / np.array(mapping.state.std)).astype(np.float32)[
            None
        ]
    if mapping.instruction is not None:
        feeds[mapping.instruction] = samples.instruction[row][None]
    names = [mapping.actions.name, *([mapping.confidence] if mapping.confidence else [])]
    answers = session.run(names, {name: np.ascontiguousarray(values) for name, values in feeds.items()})
    actions = answers[0].reshape(spec.timing.horizon, -1) * np.array(mapping.actions.std) + np.array(mapping.actions.mean)
    binary = spec.action.is_binary
    actions[:, binary] = actions[:, binary] > 0.5
    confidence = answers[1].reshape(-1) if mapping.confidence else np.ones(spec.timing.horizon)
    return actions.astype(np.float32), confidence.astype(np.float32)


def _write(
    model: onnx.ModelProto,
    spec: PolicySpec,
    dataset: LeRobotDataset,
    samples: Samples,
    answer: Answer,
    out: str | Path,
    *,
    checkpoint: str | None,
    golden: int = MOMENTS,
    overwrite: bool,
) -> OwnExportReport:
    reads_instruction = samples.instruction.shape[1] > 0
    encoder = load_text_encoder() if reads_instruction else None
    tokenizer = ActionTokenizer.fit(dataset.read_vectors()[1], spec.action)
    kept = np.unique(np.linspace(0, len(samples) - 1, golden).astype(np.int64))
    bundle = new_bundle(
        out,
        policy=model,
        instruction=store_weights_int8(text_encoder_to_onnx(encoder)) if encoder is not None else None,
        tokenizer_json=encoder.tokenizer_file.read_bytes() if encoder is not None else None,
        spec=spec,
        tokenizer=tokenizer,
        text_encoder=TextEncoderInfo(max_tokens=TOKEN_LENGTH, embedding_dim=EMBEDDING_DIM) if reads_instruction else None,
        samples=samples.take(kept),
        lineage=Lineage(
            parents=(),
            dataset=dataset.content_hash,
            checkpoint=checkpoint,
            git_commit=git_commit(),
            versions=package_versions(("actlet", "numpy", "torch", "onnx", "onnxscript", "onnxruntime")),
            seeds={},
            created=utc_now(),
        ),
        overwrite=overwrite,
    )
    with bundle as folder:
        policy = BundlePolicy(folder)
        worst = _compare(policy, samples, answer)
        sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    return OwnExportReport(Path(out), manifest_hash(out), operators(model), sizes, worst)


def _compare(policy: BundlePolicy, samples: Samples, answer: Answer) -> tuple[Worst, ...]:
    """Refuse a bundle that answers differently from the original, on the same vectors."""
    manifest, rows = policy.bundle.manifest, range(len(samples))
    images = [{name: frames[row] for name, frames in samples.images.items()} for row in rows]
    ours = [policy.networks.answer(images[row], samples.state[row], samples.instruction[row]) for row in rows]
    theirs = [answer(samples, row) for row in rows]
    unit, names = action_units(manifest.spec, manifest.tokenizer), manifest.spec.action.names
    actions, confidence = (np.stack([a[part] for a in ours]) - np.stack([a[part] for a in theirs]) for part in (0, 1))
    worst = worst_of("actions", actions / unit, names), worst_of("confidence", confidence)
    for one in worst:
        if not one.difference <= TOLERANCE:  # Written so that NaN fails.
            raise BundleError(
                f"parity: {one.output} differs from the original by {one.difference:.3g} at {one.where}, at most {TOLERANCE:g} allowed; nothing was written. Is "
                "the policy in evaluation mode, and does it answer the same twice?"
            )
    return worst
