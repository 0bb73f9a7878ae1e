"""Questions of several robots, put to one policy together: those that ask for actions in one call, those for distributions in another.

A question is answered with a chunk, or, where the policy is a teacher (`actlet.protocols.Teacher`) and the question says so, with the
distribution over the bins of every action token. A batch that fails is asked one by one, so that one question cannot spoil the others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlet.action_tokens import ActionTokenizer
from actlet.errors import ActletError
from actlet.protocols import ActionChunk, Observation, Policy, Teacher

__all__ = ["Answered", "Question", "answer_together", "describe_teacher"]


@dataclass(frozen=True)
class Answered:
    """What the policy said to one question."""

    content: ActionChunk | NDArray[np.float32]
    """A chunk, or float32 (A, K): the distribution over the bins of every action token."""
    infer_ms: float
    """How long the policy took for the batch."""
    batch: int
    """Questions that it answered at once."""


@dataclass
class Question:
    """One robot's question, and where its answer is awaited."""

    observation: Observation
    instruction: str
    distribution: bool
    """Ask for the distribution, not for actions."""
    answer: asyncio.Future[Answered]


def describe_teacher(policy: Policy) -> dict[str, Any] | None:
    """What a student has to know of a teacher: ``tokenizer`` (bounds and number of the bins) and ``content_hash``; None of another policy."""
    tokenizer = getattr(policy, "tokenizer", None)
    if not isinstance(policy, Teacher) or not isinstance(tokenizer, ActionTokenizer):
        return None
    return {"tokenizer": tokenizer.to_dict(), "content_hash": str(getattr(policy, "content_hash", ""))}


def answer_together(policy: Policy, batch: Sequence[Question]) -> list[Answered | ActletError]:
    """One answer or error per question, in their order; never raises."""
    answers: list[Answered | ActletError | None] = [None] * len(batch)
    for distribution in (False, True):
        rows = [row for row, question in enumerate(batch) if question.distribution == distribution]
        for row, answer in zip(rows, _answer_alike(policy, [batch[row] for row in rows]), strict=True):
            answers[row] = answer
    return [answer for answer in answers if answer is not None]


def _answer_alike(policy: Policy, batch: Sequence[Question]) -> list[Answered | ActletError]:
    if not batch:
        return []
    started = time.perf_counter()
    try:
        contents = _distributions(policy, batch) if batch[0].distribution else _chunks(policy, batch)
        if len(contents) != len(batch):
            raise ActletError(f"the policy gave {len(contents)} answers to {len(batch)} observations.")
    except BaseException as caught:  # Whatever it raises must not end the thread that answers everybody.
        error = caught if isinstance(caught, ActletError) else ActletError(f"{type(caught).__name__}: {caught}")
        return [error] if len(batch) == 1 else [answer for question in batch for answer in _answer_alike(policy, [question])]
    spent_ms = 1e3 * (time.perf_counter() - started)
    return [Answered(content, spent_ms, len(batch)) for content in contents]


def _chunks(policy: Policy, batch: Sequence[Question]) -> list[ActionChunk]:
    chunks = policy.predict([q.observation for q in batch], [q.instruction for q in batch])
    for chunk in chunks:
        if not np.isfinite(chunk.actions).all():
            raise ActletError("the policy answered with a value that is not finite; the chunk is refused.")
    return chunks


def _distributions(policy: Policy, batch: Sequence[Question]) -> list[NDArray[np.float32]]:
    assert isinstance(policy, Teacher)  # The server refuses the question of any other.
    answers = np.asarray(policy.action_distribution([q.observation for q in batch], [q.instruction for q in batch]), np.float32)
    if not np.isfinite(answers).all():
        raise ActletError("the teacher answered with a probability that is not finite; the distribution is refused.")
    return list(answers)
