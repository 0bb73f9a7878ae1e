"""How an RT-2-style teacher is shaped, how it decodes, what it is asked in which words, and which tokens mean actions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlet.action_tokens import ActionVocabulary
from actlet.errors import SpecError

__all__ = ["ACTION", "ANSWER", "GREY", "PLAN", "PROMPT", "QUESTION", "VOCABULARIES", "Decision", "Decoding", "TeacherConfig", "action_ids"]

PROMPT = "Q: what action should the robot take to {instruction}?"
QUESTION = "Q: {question}"
ANSWER, PLAN, ACTION = " A:", " Plan:", " Action:"
VOCABULARIES = ("least-used", "integers", "last")
GREY = 128  # What a camera sees that has no picture.


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The shape of the network."""

    layers: int = 6
    """Layers of the language model that are kept, of 30."""
    lora_rank: int = 16
    channels: tuple[int, ...] = (96, 128, 192)
    blocks: tuple[int, ...] = (1, 2, 2)
    condition_dim: int = 256
    features: int = 256
    """Size of the scene vector."""
    dropout: float = 0.1
    """Share of what the scene vector is made of that is switched off in training."""
    scene_tokens: int = 4
    """T, tokens that the scene vector is shown to the language model as."""
    vocabulary: str = "least-used"
    """Which tokens mean actions: the "least-used" of the training texts (RT-2 on PaLM-E), the "integers" (RT-2 on PaLI-X; a vocabulary
    that splits digits has none), or the "last" ids (OpenVLA)."""
    pretrained: bool = True
    """False: language model and vision begin at random and learn everything, as in RT-2's ablation. Only the words' embeddings stay as
    they were drawn, so that the condition of the vision keeps its meaning."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        object.__setattr__(self, "blocks", tuple(self.blocks))
        if self.vocabulary not in VOCABULARIES:
            raise SpecError(f"action vocabulary {self.vocabulary!r}, expected one of {VOCABULARIES}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """How answers are decoded."""

    plan: bool = False
    """Say a plan in words before the action tokens."""
    max_words: int = 16
    """Tokens of a plan or an answer, at most."""
    sample: bool = False
    """Draw each token from its distribution in place of taking its expectation (or, of a flag, the more probable half)."""
    temperature: float = 1.0
    """Of the distributions that are drawn from; those that are returned are at 1."""
    seed: int = 0
    """Of the stream of draws, which goes on from answer to answer."""
    terminate_above: float = 0.97
    """How probable terminate must be to be said; see `distill.student.flag_thresholds`."""

    def __post_init__(self) -> None:
        if self.max_words < 1 or self.temperature <= 0 or not 0 < self.terminate_above < 1:
            raise SpecError(
                f"decoding: max_words {self.max_words}, temperature {self.temperature}, terminate_above {self.terminate_above}: "
                "expected positive numbers, the last below 1."
            )


@dataclasses.dataclass(frozen=True)
class Decision:
    """What was decoded for B observations."""

    probabilities: NDArray[np.float32]
    """(B, A, K): the distribution of each token, given those before it."""
    bins: NDArray[np.int64]
    """(B, A): the tokens that were emitted."""
    plans: list[str]
    """(B,): what was said before, empty without a plan."""


def action_ids(strategy: str, text_tokenizer: Any, said: Sequence[str], bins: int) -> NDArray[np.int64]:
    """The token ids that mean actions.

    Of the least used, those that occur least in what is said; among equals the highest, which byte-pair encoding merged last:
    the rarest words.

    Raises:
        SpecError: The vocabulary has no tokens for the integers, or too few tokens.
    """

    def encode(text: str) -> list[int]:
        ids: list[int] = text_tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    if strategy == "integers":
        return ActionVocabulary.integers(encode, len(text_tokenizer), bins=bins).ids
    if strategy == "last":
        return ActionVocabulary.last(len(text_tokenizer), bins=bins).ids
    counts = np.zeros(len(text_tokenizer), np.int64)
    for text in set(said):
        np.add.at(counts, text_tokenizer(text)["input_ids"], 1)
    return ActionVocabulary.least_used(counts, bins=bins, forbidden=text_tokenizer.all_special_ids).ids
