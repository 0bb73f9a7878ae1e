"""What quantization does to a policy's answers, and to its speed, against its float parent on the same frames.

An error is a share of an action dimension's range (the tokenizer's high - low, at least a thousandth of what the robot
may be told). Flags (terminate, gripper) are counted where they differ, since "by how much" has no meaning for them.

These figures say where to look; whether the robot still succeeds is only seen in closed loop.
"""

from __future__ import annotations

import dataclasses
import time

import numpy as np
from numpy.typing import NDArray

from actlet.action_tokens import ActionTokenizer
from actlet.errors import QuantizationError
from actlet.specs import PolicySpec
from quantize.frames import Frames
from runtime.ort_backend import OrtModel
from runtime.policy_network import PolicyNetwork

__all__ = ["Latency", "Network", "OutputError", "compare_latency", "compare_outputs"]

Network = OrtModel | PolicyNetwork
"""A whole graph, or a policy in two files."""


@dataclasses.dataclass(frozen=True)
class OutputError:
    """The difference of two networks on N frames, all H steps of a chunk."""

    frames: int
    mean: float
    """Mean |difference| of a continuous action, share of its range."""
    largest: float
    """Largest |difference| of a continuous action, share of its range."""
    sqnr_db: float
    """Signal (variance of the parent's continuous actions) to noise (mean squared difference), in dB."""
    flags_changed: float
    """Share of binary values that came out the other way."""
    confidence: float
    """Mean |difference| of the confidence."""


@dataclasses.dataclass(frozen=True)
class Latency:
    """CPU time of one inference with one thread, measured turn by turn so that both meet the same load."""

    parent_ms: float
    """Median."""
    child_ms: float
    """Median."""

    @property
    def speed_up(self) -> float:
        """How many times faster the child is."""
        return self.parent_ms / self.child_ms


def compare_outputs(parent: Network, child: Network, frames: Frames, spec: PolicySpec, tokenizer: ActionTokenizer) -> OutputError:
    """Run both on every frame.

    Raises:
        QuantizationError: There are no frames, or the child's answers are not finite.
    """
    if not len(frames):
        raise QuantizationError("no frames to compare on: give a recorded dataset.")
    answers = [[network.run(frames.feeds(row)) for row in range(len(frames))] for network in (parent, child)]
    actions, confidence = ([np.concatenate([answer[name] for answer in rows]) for rows in answers] for name in ("actions", "confidence"))
    if not (np.isfinite(actions[1]).all() and np.isfinite(confidence[1]).all()):
        raise QuantizationError("the quantized network answers with values that are not finite; nothing was written. Exclude more nodes.")
    binary = spec.action.is_binary
    limits = np.asarray(spec.action.high, np.float32) - np.asarray(spec.action.low, np.float32)
    unit = np.maximum(tokenizer.high - tokenizer.low, 1e-3 * limits)
    signal, other = (values[..., ~binary] / unit[~binary] for values in actions)  # (N, H, A')
    noise = np.abs(other - signal)
    return OutputError(
        frames=len(frames),
        mean=float(noise.mean()) if noise.size else 0.0,
        largest=float(noise.max(initial=0.0)),
        sqnr_db=_decibel(signal, noise),
        flags_changed=float((actions[0][..., binary] != actions[1][..., binary]).mean()) if binary.any() else 0.0,
        confidence=float(np.abs(confidence[0] - confidence[1]).mean()),
    )


def _decibel(signal: NDArray[np.float32], noise: NDArray[np.float32]) -> float:
    """10 log10 of the variance of the signal over the frames, by the mean squared noise; at most 200."""
    power = float(((signal - signal.mean(axis=0)) ** 2).mean()) if signal.size else 0.0
    error = float((noise**2).mean()) if noise.size else 0.0
    return float(np.clip(10 * np.log10(max(power, 1e-30) / max(error, 1e-30)), -200, 200))


def compare_latency(parent: PolicyNetwork, child: PolicyNetwork, frames: Frames, *, runs: int = 200) -> Latency:
    """Time both under the first frame's instruction, one inference each in turn, after a tenth of the runs as a warm-up.

    CPU time of the calling thread, which is all there is with one thread: what other programs do beside it hardly counts.
    """
    seconds: dict[int, list[float]] = {0: [], 1: []}
    networks = [network.fixed(frames.instruction[:1]) for network in (parent, child)]
    for i in range(-max(1, runs // 10), runs):
        feeds = {name: values for name, values in frames.feeds(i % len(frames)).items() if name in networks[0].inputs}
        for which, network in enumerate(networks):
            begin = time.thread_time()
            network.run(feeds)
            if i >= 0:
                seconds[which].append(time.thread_time() - begin)
    return Latency(1e3 * float(np.median(seconds[0])), 1e3 * float(np.median(seconds[1])))
