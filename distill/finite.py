"""What to say when a loss, a gradient or the weights are not finite: where, and which rows of the batch are to blame."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from actlet.errors import TrainingError

__all__ = ["Blame", "loss_not_finite", "require_finite_weights"]

Blame = Callable[[nn.Module, torch.Generator], tuple[list[str], int]]
"""(network, the generator that drew a batch) -> a line for each row on which the loss or its gradient is not finite, and how many rows there are."""

SHOWN = 5


def loss_not_finite(
    module: nn.Module, losses: dict[str, Tensor], blame: Blame | None, generator: torch.Generator, *, where: str, kept: str
) -> TrainingError:
    """The error to raise; all processes call this together, and get the same message.

    Args:
        module: The network as it was for this batch.
        losses: Of this process's part of it.
        blame: Asks the rows one by one, or None.
        generator: As it was before the batch was drawn.
        where: As "update 12 of 900".
        kept: What there is to go on from, a sentence.
    """
    parts = gather_object([name for name, value in losses.items() if not value.isfinite().all()])
    parts = sorted(set(parts) - {"loss"}) or sorted(set(parts)) or ["the gradient"]
    lines = [f"{where}: {', '.join(parts)} not finite. The weights were not changed by it."]
    if blame is not None:
        found, count = blame(module, generator)
        found, count = gather_object(found), sum(gather_object([count]))
        if len(found) == count:
            lines.append(
                f"All {count} rows of the batch are to blame, so it is the settings rather than the data: lower the learning rate."
            )
        elif found:
            lines.append(f"To blame are {len(found)} of the {count} rows of the batch; repair or remove them at their source:")
        else:
            lines.append(f"None of the {count} rows of the batch is to blame by itself: lower the learning rate.")
        lines += [f"  {line}" for line in found[:SHOWN]] + ([f"  and {len(found) - SHOWN} more"] if len(found) > SHOWN else [])
    return TrainingError("\n".join([*lines, kept]))


def require_finite_weights(module: nn.Module, *, where: str, kept: str) -> None:
    """Before a state is kept.

    Raises:
        TrainingError: Some weights are not finite, with their names.
    """
    bad = [name for name, p in module.named_parameters() if p.requires_grad and not p.detach().isfinite().all()]
    if bad:
        more = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        raise TrainingError(f"{where}: the weights {', '.join(bad[:SHOWN])}{more} are not finite: lower the learning rate. {kept}")
