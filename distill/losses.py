"""Objectives over action tokens.

Neighbouring bins are neighbours: a token's label is a Gaussian over bins, not one bin. With hard labels and argmax a
small network solved 20 of 126 simulated episodes, with Gaussian labels of 12 bins and decoding by expectation 124 of 126
(same network, data and time; docs/lessons.md). Binary dimensions keep hard labels.

    target(k) = exp(-(k - bin)^2 / (2 sigma^2)) / Z          loss = - sum_k target(k) log p(k)
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["gaussian_labels", "mean_over_actions", "token_cross_entropy", "token_losses"]


def gaussian_labels(bins: Tensor, is_binary: Tensor, *, count: int, sigma: float) -> Tensor:
    """Soft labels over bins.

    Args:
        bins: int64 (..., A), the true bins.
        is_binary: bool (A,), dimensions that keep a hard label.
        count: K.
        sigma: Width in bins; 0 gives hard labels everywhere.

    Returns:
        float32 (..., A, K), each row sums to 1.
    """
    grid = torch.arange(count, device=bins.device)
    hard = torch.nn.functional.one_hot(bins, count).to(torch.float32)
    if sigma <= 0:
        return hard
    soft = torch.softmax(-((grid - bins[..., None]).to(torch.float32) ** 2) / (2 * sigma * sigma), dim=-1)
    return torch.where(is_binary[:, None], hard, soft)


def token_cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None, token_weight: Tensor | None = None) -> Tensor:
    """Mean cross-entropy between distributions.

    Args:
        logits: (..., A, K).
        target: (..., A, K), rows sum to 1.
        weight: (...,), weight of each action, or None for 1.
        token_weight: (..., A), how often each token counts, or None for once.

    Returns:
        Scalar: the weighted mean over actions of the mean over dimensions.
    """
    return mean_over_actions(token_losses(logits, target), weight, token_weight)


def token_losses(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of each token: logits (..., A, K), target (..., A, K) -> (..., A)."""
    return -(target * torch.log_softmax(logits, dim=-1)).sum(-1)


def mean_over_actions(losses: Tensor, weight: Tensor | None = None, token_weight: Tensor | None = None) -> Tensor:
    """Losses of tokens (..., A) -> scalar; the weights are those of `token_cross_entropy`."""
    loss = (losses if token_weight is None else losses * token_weight).mean(-1)  # (...)
    if weight is None:
        return loss.mean()
    return (loss * weight).sum() / weight.sum().clamp(min=1.0)
