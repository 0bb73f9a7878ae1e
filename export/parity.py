"""Torch student == policy.onnx == the bundle on the robot's runtime, checked at every export on recorded inputs.

Three comparisons, each on all samples, one at a time (batch 1, as on the robot):

=========================  ==================================  =====================================================
what                       against                             allowed
=========================  ==================================  =====================================================
policy.onnx                torch student, same inputs          1e-4 of an action's range, 1e-4 of confidence
bundle (`BundlePolicy`)    torch student, given the vector     the same: adds the tokenizer, the manifest, clipping
                           that the bundle makes of the text
instruction.onnx           torch encoder, same text            cosine >= 0.999 (its weights are stored as int8)
=========================  ==================================  =====================================================

An action's range is the tokenizer's high - low, at least a thousandth of what the robot may be told. Float32 kernels that
add in another order differ by about 1e-6 of it; 1e-4 is a fortieth of one of the 256 bins, far below what a robot can
follow. What the int8 instruction vector changes in the actions is reported besides, not judged: it is a price, not a fault.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from actlet.action_tokens import ActionTokenizer
from actlet.errors import BundleError
from actlet.protocols import Observation
from actlet.specs import PolicySpec
from distill.student import Student
from distill.text_encoder import TextEncoder
from export.samples import Samples
from runtime.policy import BundlePolicy

__all__ = ["MIN_COSINE", "TOLERANCE", "ParityReport", "Worst", "action_units", "check_parity", "worst_of"]

TOLERANCE = 1e-4
MIN_COSINE = 0.999
# Instructions besides the samples' own, so that the encoder is also checked on words that this student never met.
PROBES = (
    "pick up the red cup",
    "put the carrot on the plate",
    "push the small green button",
    "open the drawer and put the spoon inside it, then close the drawer",
    "nudge the purple cylinder to the left of the white box",
    "stop",
)


@dataclasses.dataclass(frozen=True)
class Worst:
    """The largest difference of one output, and where."""

    output: str
    difference: float
    """Share of the action's range; absolute for a confidence."""
    where: str
    """As in "sample 3, step 2, dx"."""


@dataclasses.dataclass(frozen=True)
class ParityReport:
    """What was compared, and how far apart it was at worst."""

    samples: int
    worst: tuple[Worst, ...]
    cosine: float
    """Smallest cosine of an instruction vector with torch's."""
    cosine_text: str
    instruction_effect: float
    """Largest difference of an action, share of its range, that the bundle's instruction vectors make; flags left out."""

    def lines(self) -> list[str]:
        """For people."""
        rows = [f"  {w.output:<28} {w.difference:9.2e}   at {w.where}" for w in self.worst]
        return [
            f"parity on {self.samples} recorded samples, largest difference (actions: share of their range; allowed {TOLERANCE:g})",
            *rows,
            f"  {'instruction.onnx, cosine':<28} {self.cosine:9.6f}   at {self.cosine_text!r} (allowed {MIN_COSINE} or more)",
            f"  {'actions, by its rounding':<28} {self.instruction_effect:9.2e}   what int8 weights of instruction.onnx change, for information",
        ]


def action_units(spec: PolicySpec, tokenizer: ActionTokenizer) -> NDArray[np.float32]:
    """float32 (A,): the range of every action dimension, in which differences are expressed."""
    limits = np.asarray(spec.action.high, np.float32) - np.asarray(spec.action.low, np.float32)
    return np.maximum(tokenizer.high - tokenizer.low, 1e-3 * limits)


def check_parity(student: Student, encoder: TextEncoder, policy: BundlePolicy, samples: Samples) -> ParityReport:
    """Compare, and refuse a bundle that answers differently.

    Raises:
        BundleError: A difference is above the tolerance; the message says which output, where, and how far.
    """
    exported, text = student.exportable().eval(), list(samples.text)
    vectors = np.stack([policy.networks.embed(line) for line in text])
    torch_actions, torch_confidence = _torch_answers(exported, samples, samples.instruction)
    rounded_actions, rounded_confidence = _torch_answers(exported, samples, vectors)
    onnx_answers = [
        policy.networks.answer(_images(samples, row), samples.state[row], samples.instruction[row], samples.committed[row])
        for row in range(len(samples))
    ]
    observations = [Observation(_images(samples, row), samples.state[row], _on_its_way(samples, row)) for row in range(len(samples))]
    chunks = policy.predict(observations, text)
    unit, names = action_units(student.spec, student.tokenizer), student.spec.action.names
    worst = (
        worst_of("policy.onnx, actions", (np.stack([a for a, _ in onnx_answers]) - torch_actions) / unit, names),
        worst_of("policy.onnx, confidence", np.stack([c for _, c in onnx_answers]) - torch_confidence),
        worst_of("bundle, actions", (np.stack([chunk.actions for chunk in chunks]) - rounded_actions) / unit, names),
        worst_of("bundle, confidence", np.stack([chunk.confidence for chunk in chunks]) - rounded_confidence),
    )
    cosine, cosine_text = _worst_cosine(encoder, policy, [*dict.fromkeys(text), *PROBES])
    effect = np.abs((rounded_actions - torch_actions) / unit)[..., ~student.spec.action.is_binary]
    report = ParityReport(len(samples), worst, cosine, cosine_text, float(effect.max(initial=0.0)))
    _judge(report)
    return report


def _judge(report: ParityReport) -> None:
    for entry in report.worst:
        if not entry.difference <= TOLERANCE:  # Written so that NaN fails.
            raise BundleError(
                f"parity: {entry.output} differs from the torch student by {entry.difference:.3g} at {entry.where}, at most {TOLERANCE:g} "
                "is allowed; no bundle was written. The exported graph is not the network that was trained: "
                "check the newest change to the student, or the versions of torch and onnxruntime."
            )
    if not report.cosine >= MIN_COSINE:
        raise BundleError(
            f"parity: instruction.onnx has cosine {report.cosine:.5f} with the torch encoder at {report.cosine_text!r}, expected {MIN_COSINE} or more; "
            "no bundle was written. Storing its weights as int8 cost too much."
        )


@torch.inference_mode()
def _torch_answers(
    exported: torch.nn.Module, samples: Samples, vectors: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Actions (N, H, A) and confidence (N, H) of the torch student, one sample at a time."""
    answers = [exported(*samples.tensors(row, vectors[row])) for row in range(len(samples))]
    return torch.cat([actions for actions, _ in answers]).numpy(), torch.cat([confidence for _, confidence in answers]).numpy()


def _images(samples: Samples, row: int) -> dict[str, NDArray[np.uint8]]:
    return {name: frames[row] for name, frames in samples.images.items()}


def _on_its_way(samples: Samples, row: int) -> NDArray[np.float32]:
    """(d, A) of (D, 1 + A)."""
    rows = samples.committed[row]
    return rows[rows[:, 0] > 0, 1:]


def worst_of(output: str, difference: NDArray[np.float32], names: Sequence[str] = ()) -> Worst:
    """The largest of differences (N, H, A) or (N, H), and where; NaN is larger than all."""
    size = np.abs(difference)
    place = np.unravel_index(int(np.argmax(np.where(np.isnan(size), np.inf, size))), size.shape)
    where = f"sample {place[0]}, step {place[1]}" + (f", {names[int(place[2])]}" if names else "")
    return Worst(output, float(size[place]), where)


def _worst_cosine(encoder: TextEncoder, policy: BundlePolicy, texts: Sequence[str]) -> tuple[float, str]:
    wanted = encoder.encode(texts)
    got = np.stack([policy.networks.embed(text) for text in texts])
    cosines = (wanted * got).sum(axis=1) / (np.linalg.norm(wanted, axis=1) * np.linalg.norm(got, axis=1))
    row = int(np.argmin(np.where(np.isnan(cosines), -np.inf, cosines)))
    return float(cosines[row]), texts[row]
