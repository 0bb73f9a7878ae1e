"""Muon (Jordan et al. 2024): updates of weight matrices that favour no direction.

Source: https://kellerjordan.github.io/posts/muon. The momentum of a matrix is replaced by the nearest orthogonal matrix, so that every direction in which the weights can change is
learned at the same pace; AdamW does this for single numbers only. torch.optim.Muon refuses the weights of convolutions and
multiplies in bfloat16, which processors without such units do slowly; here a convolution's weight counts as the matrix
(outputs, everything else), and products are in its own type.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from actlet.errors import SpecError

__all__ = ["Muon", "orthogonalize"]

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # steep at 0: five iterations bring singular values from 0.01 to 0.7 .. 1.2 (Jordan et al.)
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalized, at AdamW's scale (Liu et al. 2025): rates and weight decay of AdamW can be kept.

    Args:
        params: Weights of two or more dimensions, the first of which is the outputs; biases and scales belong to another optimizer.
        lr: Learning rate.
        momentum: Decay of the gradients' mean.
        weight_decay: Decoupled, as in AdamW.

    Raises:
        SpecError: A parameter is not a matrix.
    """

    def __init__(self, params: Iterable[Any], lr: float = 1e-3, *, momentum: float = 0.95, weight_decay: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.ndim < 2:
                    raise SpecError(
                        f"muon: a parameter of shape {tuple(weight.shape)}: expected two or more dimensions; leave it to AdamW."
                    )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike = defaultdict(list)  # matrices of one shape are orthogonalized together
            for weight in group["params"]:
                if weight.grad is not None:
                    alike[len(weight), weight[0].numel()].append(weight)
            for shape, weights in alike.items():
                updates = orthogonalize(torch.stack([self._momentum(weight, group["momentum"]).reshape(shape) for weight in weights]))
                for weight, update in zip(weights, updates, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.add_(update.reshape(weight.shape), alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)
        return loss

    def _momentum(self, weight: nn.Parameter, decay: float) -> Tensor:
        gradient, state = weight.grad, self.state[weight]
        assert gradient is not None
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight)
        mean: Tensor = state["momentum"]
        mean.lerp_(gradient, 1 - decay)
        return gradient.lerp(mean, decay)


def orthogonalize(matrices: Tensor) -> Tensor:
    """(N, rows, columns) -> the same shape: singular values brought near 1, singular vectors kept.

    Newton-Schulz iterations X <- (a + b XX' + c (XX')^2) X, which need XX' alone until the end: a third of the products where
    a matrix is long.
    """
    a, b, c = _NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    square = x @ x.mT
    total = None
    for iteration in range(_ITERATIONS):
        factor = torch.baddbmm(square, square, square, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        total = factor if total is None else factor @ total
        if iteration < _ITERATIONS - 1:
            square = factor @ square @ factor
    assert total is not None
    return (total @ x).mT if tall else total @ x
