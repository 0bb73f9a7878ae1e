"""distill.student_batches: what a student is told and what it learns from it, draw by draw."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from test_distill_train import ONE_STEP, TINY, tiny
from torch import Tensor, nn

from actlet.action_tokens import ActionTokenizer
from distill.frames import Frames
from distill.student import Student, StudentOutput
from distill.student_batches import StudentBatches, StudentInTraining
from episodes.episode import Episode

STEPS, HORIZON, TOLD = 6, 4, 2
TIMING = dataclasses.replace(ONE_STEP.timing, horizon=HORIZON, committed_steps=TOLD, max_delay_steps=TOLD)
SPEC = dataclasses.replace(ONE_STEP, action=dataclasses.replace(ONE_STEP.action, hold=("zero", "zero", "zero", "last")), timing=TIMING)
TOKENIZER = ActionTokenizer(np.float32([0, -0.08, -0.08, 0]), np.float32([1, 0.08, 0.08, 1]))


@pytest.fixture
def frames() -> Frames:
    """A demonstration and the same way driven by a student: a command that slows down on every step, a gripper that closes in the middle. The state
    tells the frame."""
    steps = np.arange(STEPS)
    action = np.stack([0 * steps, 0.08 * 0.5**steps, -0.08 * 0.5**steps, steps >= 3], axis=1).astype(np.float32)
    pair = []
    for first in (0, STEPS):
        state = np.stack([first + steps, steps], axis=1).astype(np.float32)
        episode = Episode("reach the red target", {"above": np.zeros((STEPS, 16, 16, 3), np.uint8)}, state, action, success=True)
        pair.append(Frames.from_episodes([episode], SPEC.observation, SPEC.action, by_expert=first == 0))
    both = Frames.concatenate(pair)
    both.distribution = np.full((2 * STEPS, 4, 256), 1 / 256, np.float16)
    return both


def drawn(frames: Frames, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A large batch: its frames (B,), what was told (B, D, 1 + A), which frames' answers were learned (B, H), and with which weights (B, H, A)."""
    seen: dict[str, Tensor] = {}
    student = Student(SPEC, TOKENIZER, TINY)
    config = tiny(batch_size=3000, delay_steps=TOLD, horizon=HORIZON, state_noise=0.0, undecided_share=0.0, scenes=0)
    batches = StudentBatches(student, frames, None, config)

    class Model(nn.Module):
        def forward(
            self, images: list[Tensor], state: Tensor, instruction: Tensor, committed: Tensor, looks: Tensor
        ) -> tuple[StudentOutput, None]:
            seen.update(state=state[looks], told=committed)
            count = len(looks)
            return StudentOutput(torch.zeros(count, HORIZON, 4, 256), torch.zeros(count, 2, 2), torch.zeros(count, 1)), None

    def loss(logits: Tensor, index: Tensor, weight: Tensor, token_weight: Tensor) -> Tensor:
        seen.update(index=index, weight=weight[..., None] * token_weight)
        return logits.sum()

    monkeypatch.setattr(batches._targets, "loss", loss)
    batches.losses(Model(), torch.Generator().manual_seed(0))
    rows, told, index, weight = (seen[name].numpy() for name in ("state", "told", "index", "weight"))
    return rows[:, 0].astype(int), told, index, weight


def test_where_a_student_drove_it_is_told_what_it_commanded(frames: Frames, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each frame is answered at once and late, all delays alike often; behind them the answers to what then came, and before them nothing but whether
    to end."""
    rows, told, index, weight = drawn(frames, monkeypatch)
    delays = told[:, :, 0].sum(1).astype(int)
    assert (delays[:3000] == 0).all()
    assert np.bincount(delays[3000:]).tolist()[0] == 0
    assert np.bincount(delays[3000:])[1:].min() > 1400
    np.testing.assert_array_equal(rows[:3000], rows[3000:])
    last = frames.last[rows]
    for row, end, delay, rows_told, learned, weights in zip(rows, last, delays, told, index, weight, strict=True):
        assert not rows_told[delay:].any()
        assert not weights[1:delay, 1:].any()
        if row >= STEPS:
            np.testing.assert_array_equal(rows_told[:delay, 1:], frames.commanded[np.minimum(row + np.arange(delay), end)])
            np.testing.assert_array_equal(learned, np.minimum(row + np.arange(HORIZON), end))
            assert (weights[delay:, 1:].any(1) == (row + np.arange(delay, HORIZON) <= end)).all()


def test_of_a_demonstration_it_is_told_to_rest(frames: Frames, monkeypatch: pytest.MonkeyPatch) -> None:
    """No word of what the expert did next: no motion, fingers as before, and behind it what would have come at once."""
    rows, told, index, _ = drawn(frames, monkeypatch)
    delays = told[:, :, 0].sum(1).astype(int)
    shown = rows < STEPS
    for row, delay, rows_told, learned in zip(rows[shown], delays[shown], told[shown], index[shown], strict=True):
        assert not rows_told[:, 1:4].any()
        assert (rows_told[:delay, 4] == frames.commanded[max(row - 1, 0), 3]).all()
        np.testing.assert_array_equal(learned[delay:], np.minimum(row + np.arange(HORIZON - delay), STEPS - 1))


def test_a_model_of_the_real_kind_learns_from_it(frames: Frames) -> None:
    """Commands that it was never told of change nothing in its answer, until it has been told of them."""
    torch.manual_seed(0)
    module = StudentInTraining(Student(SPEC, TOKENIZER, TINY), 0)
    batches = StudentBatches(module.student, frames, None, tiny(batch_size=16, delay_steps=TOLD, horizon=HORIZON))
    layer = module.student.committed_layer
    assert layer is not None
    batches.losses(module, torch.Generator().manual_seed(0))["loss"].backward()
    weight = layer[1].weight
    commands = torch.ones_like(weight, dtype=torch.bool).unflatten(1, (TOLD, 1 + SPEC.action.dim))
    commands[..., 0] = False
    assert not weight[commands.flatten(1)].any()
    assert weight[~commands.flatten(1)].all()
    assert weight.grad is not None
    assert weight.grad[commands.flatten(1)].abs().sum() > 0
