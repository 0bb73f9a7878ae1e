"""Action tokens from a language model, one after the other: constrained to the K action ids, with its keys and values cached.

    logits (B, V) ─ the K action ids alone ─ softmax = p(bin | tokens before) (B, K) ─ choose ─ the chosen bin's id ─ back into the model

Ordinary words are left out before the softmax, so that none can become a motion. The distribution equals the one that a whole
pass without a cache gives for the same tokens.

Models of transformers are driven through their own `generate`, which knows what each architecture needs between two tokens
(positions of padded batches, of pictures, of bidirectional prefixes). A model whose code comes with its checkpoint has only
`forward`; it is driven by the loop in `decode_by_forward`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from actlet.errors import ActionError, SpecError
from actlet.plain import PlainJson

__all__ = ["Chooser", "DecodingConfig", "Emitted", "decode_by_forward", "decode_by_generate"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodingConfig(PlainJson):
    """Which of the K bins is emitted."""

    choose: Literal["greedy", "sampled"] = "greedy"
    """The most probable bin, the lower of two that are equal; or one drawn from the distribution."""
    temperature: float = 1.0
    """Of the draw; the distributions that are reported are those at 1."""
    seed: int = 0
    """Of the draw: two teachers that are opened alike and asked the same questions in the same order give the same answers."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise SpecError(f"temperature {self.temperature}: expected a positive number; 'greedy' is the limit at 0.")


class Chooser:
    """Chooses bins; see `DecodingConfig`."""

    def __init__(self, config: DecodingConfig) -> None:
        self.config = config
        self._generator = torch.Generator().manual_seed(config.seed)

    def __call__(self, probabilities: Tensor) -> Tensor:
        """float32 (B, K) -> int64 (B,)."""
        if self.config.choose == "greedy":
            return probabilities.argmax(-1)
        weights = probabilities.cpu().double() ** (1.0 / self.config.temperature)
        return torch.multinomial(weights, 1, generator=self._generator)[:, 0].to(probabilities.device)


@dataclasses.dataclass(frozen=True)
class Emitted:
    """A decoded action."""

    probabilities: Tensor
    """float32 (B, A, K): of each token, given those emitted before it."""
    token_ids: Tensor
    """int64 (B, A): what the model emitted."""


def decode_by_generate(
    model: Any, inputs: Mapping[str, Tensor], action_ids: Tensor, count: int, choose: Callable[[Tensor], Tensor]
) -> Emitted:
    """Decode with the model's own `generate`.

    Args:
        model: Of transformers, in evaluation mode.
        inputs: What its processor made, padded on the left; batch B.
        action_ids: int64 (K,), all different: the id of each bin.
        count: A, tokens of an action.
        choose: (B, K) -> (B,).

    Raises:
        ActionError: Logits that are not finite.
    """
    from transformers import LogitsProcessorList

    constraint = _ActionsOnly(action_ids, choose)
    ids = model.generate(**inputs, max_new_tokens=count, logits_processor=LogitsProcessorList([constraint]))
    return Emitted(torch.stack(constraint.probabilities, dim=1), ids[:, -count:])


def decode_by_forward(
    model: Any, inputs: Mapping[str, Tensor], action_ids: Tensor, count: int, choose: Callable[[Tensor], Tensor]
) -> Emitted:
    """Decode with `model(input_ids=..., past_key_values=..., use_cache=True)` alone; arguments as in `decode_by_generate`, without padding."""
    probabilities, emitted = [], []
    output = model(**inputs, use_cache=True)
    for index in range(count):
        probabilities.append(_distribution(output.logits[:, -1], action_ids))
        emitted.append(action_ids[choose(probabilities[-1])])  # (B,)
        if index + 1 < count:
            output = model(input_ids=emitted[-1][:, None], past_key_values=output.past_key_values, use_cache=True)
    return Emitted(torch.stack(probabilities, dim=1), torch.stack(emitted, dim=1))


class _ActionsOnly:
    """A logits processor: keeps the distribution over the action ids, and leaves only the chosen one possible."""

    def __init__(self, action_ids: Tensor, choose: Callable[[Tensor], Tensor]) -> None:
        self.action_ids, self.choose = action_ids, choose
        self.probabilities: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.probabilities.append(_distribution(scores, self.action_ids))
        chosen = self.action_ids[self.choose(self.probabilities[-1])]  # (B,)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)


def _distribution(logits: Tensor, action_ids: Tensor) -> Tensor:
    """(B, V) -> float32 (B, K)."""
    actions = logits[:, action_ids].float()
    if not torch.isfinite(actions).all():
        raise ActionError("the teacher's logits are not finite; refused. Load it in another precision, as float32.")
    return torch.softmax(actions, dim=-1)
