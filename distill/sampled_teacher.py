"""A teacher that gives samples, as one that gives distributions: flow matching, diffusion, or any policy that is asked several times.

    observation ─ teacher ─ N chunks (N, H, A) ─ their first actions (N, A) ─┬─ binned ─ (A, K): a density over the bins
                                                                             └─ mean ─── (A, K): all mass at the mean

Only the first action of each chunk is taken: a student's chunk is made of answers along the trajectory (`distill.targets`), and there the first
actions at t, t+1, ... belong to the way that was really taken, while a chunk drawn at t may have gone another way.

`binned` is a kernel density estimate with a Gaussian kernel, in bins. Its width is Silverman's rule of thumb (Silverman 1986, eq. 3.31),

    width = 0.9 * min(standard deviation, interquartile range / 1.34) * N^(-1/5)        within 1 .. 12 bins

for each dimension and frame. The rule is meant for one hump and too wide for two, so it is bounded by the width of a label around a
demonstrated bin: two modes that are 24 bins apart or more stay two. A kernel that reaches over the last bin is cut there and keeps its mass.
A flag's tokens are the shares of samples below and above one half, without a kernel.

`mean` puts all mass on the two bins around the mean of the samples, so that the expectation is the mean itself: what regression needs.
Where a teacher has two ways to go, the mean lies between them, and so does the expectation of a density: `benchmarks.multimodal` drove into the
obstacle with either (67 and 72 % of 200 episodes), and never with the density decoded around its likeliest bin (`StudentConfig.mode_reach`,
`--mode-reach 24`). So: `binned` with a reach for a teacher that draws among several ways, anything for one that has a single way.

A teacher that gives the same answer twice gives no distribution, however often it is asked: it is then asked once, its answer gets a label
12 bins wide, and a line on standard error says so.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from actlet.action_tokens import ActionTokenizer
from actlet.errors import ActionError, SpecError
from actlet.protocols import ActionChunk, Observation, Policy, SamplingTeacher

__all__ = ["RepeatedPolicy", "SampledTeacher", "bin_samples", "mean_of_samples", "silverman_width"]

_NARROWEST, _WIDEST = 1.0, 12.0  # Bins: less falls between them; more is wider than the label of a demonstrated bin.
_CHECKED = 3  # Observations for which the first two answers are compared.


class RepeatedPolicy:
    """Any policy as a `SamplingTeacher`: asked once for each sample.

    Args:
        policy: Whose answers differ from time to time.
        content_hash: What it is known by in the lineage.
    """

    def __init__(self, policy: Policy, content_hash: str) -> None:
        self.policy, self.spec, self.content_hash = policy, policy.spec, content_hash

    def predict(self, observations: Sequence[Observation], instructions: Sequence[str]) -> list[ActionChunk]:
        """See `actlet.protocols.Policy`."""
        return self.policy.predict(observations, instructions)

    def sample_actions(self, observations: Sequence[Observation], instructions: Sequence[str], count: int) -> NDArray[np.float32]:
        """float32 (B, N, H, A); see `actlet.protocols.SamplingTeacher`."""
        rounds = [np.stack([chunk.actions for chunk in self.policy.predict(observations, instructions)]) for _ in range(count)]
        return np.stack(rounds, axis=1).astype(np.float32)


class SampledTeacher:
    """Implements `actlet.protocols.Teacher` with the samples of a `SamplingTeacher`.

    Args:
        source: Whom to ask.
        tokenizer: Bounds of the bins, fitted to the dataset: a teacher that samples has none.
        count: N, samples for a frame, at least 2.
        form: What becomes of them; see the module's docstring.

    Raises:
        SpecError: Fewer than two samples, or bins of another number of dimensions.
    """

    def __init__(self, source: SamplingTeacher, tokenizer: ActionTokenizer, count: int, form: Literal["binned", "mean"] = "binned") -> None:
        if count < 2:
            raise SpecError(f"{count} samples for a frame: expected at least 2, better 8; one says nothing of how the others lie.")
        if tokenizer.dim != source.spec.action.dim:
            raise SpecError(f"bins of {tokenizer.dim} action dimensions, but the teacher's actions have {source.spec.action.dim}.")
        self.source, self.spec, self.tokenizer, self.form = source, source.spec, tokenizer, form
        self.count = count
        """Samples for a frame; 1 once the teacher has been found to give the same answer twice."""
        self.content_hash = str(getattr(source, "content_hash", ""))
        """The source's, empty where it has none."""
        self._compared = False

    def predict(self, observations: Sequence[Observation], instructions: Sequence[str]) -> list[ActionChunk]:
        """One drawn chunk per observation; see `actlet.protocols.Policy`."""
        return self.source.predict(observations, instructions)

    def action_distribution(self, observations: Sequence[Observation], instructions: Sequence[str]) -> NDArray[np.float32]:
        """float32 (B, A, K); see `actlet.protocols.Teacher`.

        Raises:
            ActionError: The teacher's samples have another shape, or hold values that are not finite.
        """
        if len(observations) and not self._compared:
            self._compare(observations[:_CHECKED], instructions[:_CHECKED])
        first = self._first_actions(observations, instructions, self.count)
        if self.form == "mean":
            return mean_of_samples(first, self.tokenizer)
        return bin_samples(first, self.tokenizer, self.spec.action.is_binary)

    def _compare(self, observations: Sequence[Observation], instructions: Sequence[str]) -> None:
        two = self._first_actions(observations, instructions, 2)
        if np.array_equal(two[:, 0], two[:, 1]):
            print(
                f"the teacher gives the same answer twice ({len(two)} frames): it is asked once for a frame, not {self.count} times, and "
                "its answer is taken for the middle of a distribution.",
                file=sys.stderr,
            )
            self.count = 1
        self._compared = True

    def _first_actions(self, observations: Sequence[Observation], instructions: Sequence[str], count: int) -> NDArray[np.float32]:
        """float32 (B, N, A)."""
        samples: Any = np.asarray(self.source.sample_actions(observations, instructions, count))
        expected = (len(observations), count, "H", self.spec.action.dim)
        if samples.ndim != 4 or samples.shape[2] < 1 or samples.shape[:2] + samples.shape[3:] != (*expected[:2], expected[3]):
            raise ActionError(f"the teacher's samples have the shape {samples.shape}, expected {expected}.".replace("'", ""))
        first = samples[:, :, 0].astype(np.float32)
        if not np.isfinite(first).all():
            raise ActionError("the teacher's samples hold values that are not finite; refused.")
        return first


def bin_samples(samples: NDArray[np.float32], tokenizer: ActionTokenizer, is_binary: NDArray[np.bool_]) -> NDArray[np.float32]:
    """A density over the bins; see the module's docstring.

    Args:
        samples: float32 (B, N, A), physical units; what lies outside the bounds counts for the outermost bin.
        tokenizer: The bins.
        is_binary: bool (A,).

    Returns:
        float32 (B, A, K), each row sums to 1.
    """
    places = _places(samples, tokenizer)  # (B, N, A)
    width = silverman_width(places)[:, None, :, None]  # (B, 1, A, 1)
    away = places[..., None] - np.arange(tokenizer.bins)
    kernels = np.exp(-0.5 * (away / width) ** 2)
    density = (kernels / kernels.sum(-1, keepdims=True)).mean(1)  # (B, A, K)
    flags = np.zeros_like(density)
    flags[..., -1] = (places > (tokenizer.bins - 1) / 2).mean(1)
    flags[..., 0] = 1 - flags[..., -1]
    return np.where(is_binary[:, None], flags, density).astype(np.float32)


def mean_of_samples(samples: NDArray[np.float32], tokenizer: ActionTokenizer) -> NDArray[np.float32]:
    """float32 (B, N, A) -> float32 (B, A, K), whose expectation is the mean of the samples, each within the bounds."""
    mean = _places(samples, tokenizer).mean(1)  # (B, A)
    return np.maximum(0.0, 1.0 - np.abs(mean[..., None] - np.arange(tokenizer.bins))).astype(np.float32)


def silverman_width(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bins (B, N, A) -> the kernel's width in bins (B, A); of a single sample the widest."""
    count = places.shape[1]
    if count == 1:
        return np.full((places.shape[0], places.shape[2]), _WIDEST)
    quarter, three_quarters = np.percentile(places, [25, 75], axis=1)
    spread = np.minimum(places.std(1, ddof=1), (three_quarters - quarter) / 1.34)
    return np.clip(0.9 * spread * count ** (-0.2), _NARROWEST, _WIDEST)


def _places(samples: NDArray[np.float32], tokenizer: ActionTokenizer) -> NDArray[np.float64]:
    """Physical units -> bins, not rounded."""
    inside = np.clip(samples.astype(np.float64), tokenizer.low, tokenizer.high)
    return (inside - tokenizer.low) / (tokenizer.high - tokenizer.low).astype(np.float64) * (tokenizer.bins - 1)
