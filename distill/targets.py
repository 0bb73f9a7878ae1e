"""What the tokens of a chunk are taught.

A teacher of one step at a time makes the target of a whole chunk by its answers along the trajectory, each for the state that was really
reached then, whoever drove::

    chunk at t, H = 4:    answer at t    answer at t+1    answer at t+2    (past the end: weight 0)

`TrainConfig.target` says what an answer becomes. On a demonstration it is mixed with the demonstrated action, teacher_weight to
1 - teacher_weight; the demonstrated action stands alone where the teacher was not asked, the answer where the student drove.

    soft         the teacher's distribution p(k), mixed with a Gaussian of `sigma` bins around the demonstrated bin     cross-entropy
    hard         a Gaussian of `sigma` bins around its most probable bin, mixed in the same way                         cross-entropy
    regression   its expected bin E[k], mixed with the demonstrated one: smooth L1 of the student's expected bin, in units of 12 bins

A flag's tokens are bins 0 and K - 1 (its bounds are 0 and 1), and it always has cross-entropy; where the target is hard it is what the teacher
would do, so terminate takes nearly all of its probability. A student that is regressed is decoded as any other, by expectation, but
the spread of its distribution was taught by nothing, and so the confidence that is read off it means nothing.

A flag changes once or twice in an episode, and only near those steps is it uncertain. `flag_weight` counts its token more often there, before
and after the change alike: what is as likely 0 as 1 stays so, where drawing the later frames more often would end episodes too early
(docs/lessons.md). Cloned on 220 episodes of `tabletop` in 500 updates of 32, one seed, 60 held-out episodes, with a weight of 1 and of 4: terminate was wrong
near its change (at one half) in 29 and 19 % of the frames, the gripper in 19 and 19 %, elsewhere 0.0 and 0.3 %, 2.0 and 2.1 %; the other dimensions
were off by 21 bins either way. One seed and no closed loop: the default stays 1. A flag's 256 bins cost nothing: all others than its two held
0.02 % of the mass.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from actlet.action_tokens import ActionTokenizer
from actlet.errors import DatasetError
from actlet.specs import ActionSpec
from distill.frames import Frames
from distill.losses import gaussian_labels, mean_over_actions, token_cross_entropy, token_losses
from distill.student import flag_thresholds
from distill.train_config import TrainConfig

__all__ = ["Targets", "near_flag_changes"]

_UNIT_BINS = 12.0  # Where smooth L1 turns from squares to distances: the width of a label around a demonstrated bin.
_NEAR_STEPS = 2  # Steps on each side of a change in which a flag is uncertain.
_BLOCK = 2048  # Frames that are worked on at once.


class Targets:
    """The targets of all frames.

    Args:
        action: Which dimensions are flags.
        tokenizer: Bounds and number of the bins.
        frames: N frames, with or without a teacher's answers.
        config: What an answer becomes.
        device: Where batches are made; the targets move there once.

    Raises:
        DatasetError: A student drove in frames about which the teacher was not asked: its own actions would be its targets.
    """

    def __init__(
        self, action: ActionSpec, tokenizer: ActionTokenizer, frames: Frames, config: TrainConfig, *, device: torch.device | str = "cpu"
    ) -> None:
        self._config, self._count, self._names = config, tokenizer.bins, action.names
        self._is_binary = torch.from_numpy(action.is_binary)
        self._bins = torch.from_numpy(tokenizer.encode(frames.action))
        self._expert = torch.from_numpy(frames.by_expert)
        self._answers = None if frames.distribution is None else torch.from_numpy(frames.distribution)
        self._require_answers(frames)
        thresholds = flag_thresholds(action)
        if self._answers is not None and config.teacher_sigma > 0:
            self._answers = _smoothed(self._answers, self._is_binary, config.teacher_sigma)
        self._values = self._chosen = None
        if config.target == "hard" and self._answers is not None:
            self._chosen = torch.cat([_chosen(part, self._is_binary, thresholds) for part in self._answers.split(_BLOCK)])
        if config.target == "regression":
            self._values = torch.from_numpy(_places(tokenizer, frames.action))  # (N, A), in bins
            if self._answers is not None:
                taught = torch.cat([_expected(part) for part in self._answers.split(_BLOCK)])
                self._values = torch.lerp(self._values, taught, self._share())
        self._token_weight = None
        if config.flag_weight != 1:
            flags = frames.action > 0.5
            if self._answers is not None:  # Where a student drove, the flag that counts is the teacher's.
                said = torch.cat([_expected(part) / (self._count - 1) > thresholds for part in self._answers.split(_BLOCK)])
                flags = np.where(frames.by_expert[:, None], flags, said.numpy())
            near = torch.from_numpy(near_flag_changes(flags & action.is_binary, frames.episode))
            self._token_weight = torch.where(near, config.flag_weight, 1.0)
        for name, value in list(vars(self).items()):
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))

    def ends(self, index: Tensor) -> Tensor:
        """int64 (B, H), frames -> bool (B, H): what is taught there is to terminate rather than to go on."""
        column = [self._names.index("terminate")] if "terminate" in self._names else []
        if not column:
            return torch.zeros_like(index, dtype=torch.bool)
        label = self._bins[index][..., column[0]] > self._count // 2
        if self._answers is None:
            return label
        said = _expected(self._answers[index][..., column[0], :]) > self._count // 2
        return torch.where(self._expert[index], label, said)

    def is_finite(self, frame: int) -> bool:
        """Whether the teacher's answer for a frame is; states and actions were refused when they were read."""
        return self._answers is None or bool(self._answers[frame].isfinite().all())

    def loss(self, logits: Tensor, index: Tensor, weight: Tensor, token_weight: Tensor | None = None) -> Tensor:
        """What the student loses on chunks.

        Args:
            logits: float32 (B, H, A, K).
            index: int64 (B, H), the frames whose actions form each chunk.
            weight: float32 (B, H), 0 past the end.
            token_weight: float32 (B, H, A), how often each token counts beside what `flag_weight` says, or None for once.

        Returns:
            Scalar: the mean over the steps with a weight.
        """
        if self._token_weight is not None:
            token_weight = self._token_weight[index] * (1.0 if token_weight is None else token_weight)
        if self._values is None:
            return token_cross_entropy(logits, self.distributions(index), weight, token_weight)
        expected = (torch.softmax(logits, dim=-1) * torch.arange(self._count, device=logits.device)).sum(-1)  # (B, H, A)
        away = torch.nn.functional.smooth_l1_loss(expected / _UNIT_BINS, self._values[index] / _UNIT_BINS, reduction="none")
        losses = torch.where(self._is_binary, token_losses(logits, self.distributions(index)), away)
        return mean_over_actions(losses, weight, token_weight)

    def distributions(self, index: Tensor) -> Tensor:
        """int64 (B, H), frames -> float32 (B, H, A, K), each row sums to 1."""
        demonstrated = gaussian_labels(self._bins[index], self._is_binary, count=self._count, sigma=self._config.sigma)
        if self._answers is None:
            return demonstrated
        taught = self._answers[index].float()
        total = taught.sum(-1, keepdim=True)  # (B, H, A, 1), 0 where the teacher was not asked
        if self._chosen is not None:
            taught = gaussian_labels(self._chosen[index], self._is_binary, count=self._count, sigma=self._config.sigma)
            total = (total > 0).float()
        share = torch.where(self._expert[index], self._config.teacher_weight, 1.0)[..., None, None] * (total > 0)
        return share * taught / total.clamp(min=0.5) + (1 - share) * demonstrated

    def _share(self) -> Tensor:
        """float32 (N, 1): the teacher's part."""
        assert self._answers is not None
        return (torch.where(self._expert, self._config.teacher_weight, 1.0) * _asked(self._answers))[:, None]

    def _require_answers(self, frames: Frames) -> None:
        lacking = ~self._expert if self._answers is None else ~self._expert & ~_asked(self._answers)
        if lacking.any():
            raise DatasetError(
                f"{int(lacking.sum())} of {int((~self._expert).sum())} frames in which a student drove have no teacher's answer: nobody knows what "
                "would have been right there. Give --teacher, or labels for them (actlet label)."
            )


def near_flag_changes(flags: NDArray[np.bool_], episode: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where a flag is about to change, or has just changed.

    Args:
        flags: bool (N, A).
        episode: int64 (N,), which episode a frame belongs to.

    Returns:
        bool (N, A): True in the two steps before a flag differs from the step before, and in the first two in which it does.
    """
    changes = np.zeros_like(flags)
    changes[1:] = (flags[1:] != flags[:-1]) & (episode[1:] == episode[:-1])[:, None]
    near = np.zeros_like(flags)
    for offset in range(-_NEAR_STEPS, _NEAR_STEPS):
        rows, columns = np.nonzero(changes)
        places = rows + offset
        inside = (places >= 0) & (places < len(flags))
        rows, columns, places = rows[inside], columns[inside], places[inside]
        same = episode[places] == episode[rows]
        near[places[same], columns[same]] = True
    return near


def _places(tokenizer: ActionTokenizer, action: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, A) in physical units -> float32 (N, A) in bins, not rounded."""
    unit = (np.clip(action, tokenizer.low, tokenizer.high) - tokenizer.low) / (tokenizer.high - tokenizer.low)
    return (unit * (tokenizer.bins - 1)).astype(np.float32)


def _asked(answers: Tensor) -> Tensor:
    """(N, A, K) -> bool (N,): whether there is an answer at all."""
    return (answers[:, 0] > 0).any(-1)


def _expected(answers: Tensor) -> Tensor:
    """(..., K) -> float32 (...), in bins; 0 where the teacher was not asked."""
    p = answers.float()
    return (p * torch.arange(p.shape[-1], device=p.device)).sum(-1) / p.sum(-1).clamp(min=0.5)


def _chosen(answers: Tensor, is_binary: Tensor, thresholds: Tensor) -> Tensor:
    """(N, A, K) -> int64 (N, A): the most probable bin, and of a flag the one that the teacher would say."""
    last = answers.shape[-1] - 1
    flags = (_expected(answers) / last > thresholds).long() * last
    return torch.where(is_binary, flags, answers.float().argmax(-1))


def _smoothed(answers: Tensor, is_binary: Tensor, sigma: float) -> Tensor:
    """float16 (N, A, K): what a bin holds is spread over its neighbours, as a label around it would be; flags stay."""
    count = answers.shape[-1]
    around = gaussian_labels(torch.arange(count)[:, None], torch.tensor([False]), count=count, sigma=sigma)[:, 0]  # (K, K)
    smooth = torch.cat([(part.float() @ around).to(answers.dtype) for part in answers.split(_BLOCK)])
    return torch.where(is_binary[:, None], answers, smooth)
