"""distill.targets: what a chunk is taught, on hand-made answers of a teacher."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from actlet.action_tokens import ActionTokenizer
from actlet.errors import DatasetError, SpecError
from actlet.specs import ActionSpec, CameraSpec, ObservationSpec
from distill.frames import Frames
from distill.losses import gaussian_labels, token_cross_entropy
from distill.targets import Targets, near_flag_changes
from distill.train_config import TrainConfig
from episodes.episode import Episode

OBSERVATION = ObservationSpec(cameras=(CameraSpec(name="top", height=2, width=2),), state_names=("x",), state_units=("m",))
ACTION = ActionSpec(
    names=("dx", "gripper", "terminate"),
    units=("m", "1", "1"),
    kinds=("continuous", "binary", "binary"),
    low=(-1, 0, 0),
    high=(1, 1, 1),
    frame="b",
)
K = 16
TOKENIZER = ActionTokenizer(np.float32([-1, 0, 0]), np.float32([1, 1, 1]), K)
ALONE = TrainConfig(teacher_weight=1.0)


def episode(length: int, grips: list[int] | None = None) -> Episode:
    action = np.zeros((length, 3), np.float32)
    action[:, 0] = np.linspace(-1, 1, length)
    action[:, 1] = grips if grips is not None else 0
    return Episode("go", {"top": np.zeros((length, 2, 2, 3), np.uint8)}, np.zeros((length, 1), np.float32), action, success=True)


def frames(*, seed: int = 0, answers: bool = True) -> Frames:
    """Three demonstrated steps and four driven ones; the teacher says frame n's bin n for dx, and gripper from frame 5 on."""
    table = Frames.concatenate(
        [
            Frames.from_episodes([episode(3)], OBSERVATION, ACTION),
            Frames.from_episodes([episode(4)], OBSERVATION, ACTION, by_expert=False),
        ]
    )
    distribution = np.zeros((7, 3, K), np.float16)
    distribution[np.arange(7), 0, np.arange(7)] = 1
    distribution[np.arange(7), 1, np.where(np.arange(7) >= 5, K - 1, 0)] = 1
    distribution[:, 2] = 0.5 * np.eye(K, dtype=np.float16)[0] + 0.5 * np.eye(K, dtype=np.float16)[-1]
    table.distribution = distribution if answers else None
    return table


def index_of(table: Frames, row: int, horizon: int) -> tuple[torch.Tensor, torch.Tensor]:
    index, weight = table.chunk_index(np.array([row]), horizon)
    return torch.from_numpy(index), torch.from_numpy(weight)


@pytest.mark.parametrize(
    ("row", "said", "weights"), [(0, [0, 1, 2, 2], [1, 1, 1, 0]), (3, [3, 4, 5, 6], [1, 1, 1, 1]), (5, [5, 6, 6, 6], [1, 1, 0, 0])]
)
def test_a_chunk_is_what_the_teacher_said_along_the_way(row: int, said: list[int], weights: list[int]) -> None:
    """Its answers at t, t + 1, ... on demonstrated and on driven frames, never past the episode's end."""
    table = frames()
    index, weight = index_of(table, row, 4)
    target = Targets(ACTION, TOKENIZER, table, ALONE).distributions(index)
    assert target[0, :, 0].argmax(-1).tolist() == said
    assert target[0, :, 0].max(-1).values.tolist() == [1.0] * 4
    assert weight[0].tolist() == weights


def test_what_lies_past_the_end_costs_nothing() -> None:
    """The loss of a chunk at the last step is that of its first action."""
    table = frames()
    targets, logits = Targets(ACTION, TOKENIZER, table, ALONE), torch.randn(1, 4, 3, K, generator=torch.Generator().manual_seed(0))
    long, short = (targets.loss(logits[:, :h], *index_of(table, 6, h)) for h in (4, 1))
    torch.testing.assert_close(long, short)


def test_by_default_the_loss_is_as_it_was() -> None:
    """Bit for bit: half the teacher's distribution and half a Gaussian around the demonstrated bin, the teacher's alone where a student drove."""
    table = frames()
    random = np.random.default_rng(0)
    table.distribution = random.dirichlet(np.ones(K), (7, 3)).astype(np.float16)
    table.distribution[1] = 0  # was not asked
    index, weight = (torch.from_numpy(x) for x in table.chunk_index(np.arange(7), 3))
    logits = torch.from_numpy(random.standard_normal((7, 3, 3, K)).astype(np.float32))
    bins, expert = torch.from_numpy(TOKENIZER.encode(table.action)), torch.from_numpy(table.by_expert)
    demonstrated = gaussian_labels(bins[index], torch.from_numpy(ACTION.is_binary), count=K, sigma=12.0)
    taught = torch.from_numpy(table.distribution)[index].float()
    total = taught.sum(-1, keepdim=True)
    share = torch.where(expert[index], 0.5, 1.0)[..., None, None] * (total > 0)
    before = token_cross_entropy(logits, share * taught / total.clamp(min=0.5) + (1 - share) * demonstrated, weight)
    assert Targets(ACTION, TOKENIZER, table, TrainConfig()).loss(logits, index, weight) == before


def test_a_hard_target_is_what_the_teacher_would_do() -> None:
    """Its most probable bin, with sigma a label around it; terminate only where the teacher is nearly certain."""
    table = frames()
    index, _ = index_of(table, 3, 4)
    hard = Targets(ACTION, TOKENIZER, table, dataclasses.replace(ALONE, target="hard", sigma=0.0)).distributions(index)
    assert hard[0].argmax(-1).tolist() == [[3, 0, 0], [4, 0, 0], [5, K - 1, 0], [6, K - 1, 0]]
    assert (hard.max(-1).values == 1).all()
    wide = Targets(ACTION, TOKENIZER, table, dataclasses.replace(ALONE, target="hard", sigma=2.0)).distributions(index)
    expected = gaussian_labels(torch.tensor([[3, 0, 0]]), torch.from_numpy(ACTION.is_binary), count=K, sigma=2.0)
    torch.testing.assert_close(wide[0, 0], expected[0])


def test_a_regressed_student_is_drawn_to_the_expected_bin_alone() -> None:
    """Two distributions with the teacher's expectation cost the same, nothing for dx, and another expectation costs more; flags have cross-entropy."""
    table = frames()
    table.distribution[:, 0] = 0.5 * (np.eye(K)[2] + np.eye(K)[8])  # expects 5
    config = dataclasses.replace(ALONE, target="regression")
    targets, (index, weight) = Targets(ACTION, TOKENIZER, table, config), index_of(table, 3, 1)
    flags = torch.full((1, 1, 3, K), -20.0)
    flags[..., 1:, 0] = flags[..., 2, K - 1] = 0.0

    def loss(*bins: int) -> float:
        logits = flags.clone()
        logits[..., 0, list(bins)] = 0.0
        return float(targets.loss(logits, index, weight))

    entropy = np.log(2) / 3  # of terminate, which the teacher leaves open
    assert loss(5) == pytest.approx(entropy, abs=1e-4)
    assert loss(2, 8) == pytest.approx(entropy, abs=1e-4)
    assert loss(8) == pytest.approx(entropy + 0.5 * (3 / 12) ** 2 / 3, abs=1e-4)


def test_regression_on_a_demonstration_mixes_the_two_actions() -> None:
    """At teacher_weight 0.5 the target is half-way between the teacher's expectation and the demonstrated action, to less than a bin."""
    table = frames()
    targets = Targets(ACTION, TOKENIZER, table, TrainConfig(target="regression"))
    demonstrated = (table.action[1, 0] + 1) / 2 * (K - 1)
    assert targets._values[1, 0] == pytest.approx(0.5 * (1 + demonstrated))
    assert targets._values[4, 0] == pytest.approx(4.0)  # driven


def test_smoothing_spreads_continuous_bins_and_leaves_flags() -> None:
    """A single bin becomes a label around it; a flag stays as the teacher said it."""
    table = frames()
    index, _ = index_of(table, 5, 1)
    smooth = Targets(ACTION, TOKENIZER, table, dataclasses.replace(ALONE, teacher_sigma=2.0)).distributions(index)
    expected = gaussian_labels(torch.tensor([[5, K - 1, 0]]), torch.from_numpy(ACTION.is_binary), count=K, sigma=2.0)
    torch.testing.assert_close(smooth[0, 0, 0], expected[0, 0], atol=2e-3, rtol=0)
    assert smooth[0, 0, 1].argmax() == K - 1
    assert smooth[0, 0, 1].max() == 1


def test_a_flag_is_near_its_change_two_steps_on_each_side() -> None:
    """Of its own flag alone, and never in another episode."""
    flags = np.zeros((10, 2), bool)
    flags[3:6, 0] = True  # episode 0 ends with it at step 5
    flags[9, 1] = True
    near = near_flag_changes(flags, np.array([0] * 6 + [1] * 4))
    assert np.flatnonzero(near[:, 0]).tolist() == [1, 2, 3, 4]
    assert np.flatnonzero(near[:, 1]).tolist() == [7, 8, 9]


def test_flag_weight_counts_the_flag_near_its_change() -> None:
    """The loss grows by that token's share, where a student drove at the change that the teacher wants."""
    table = frames()
    logits = torch.randn(1, 1, 3, K, generator=torch.Generator().manual_seed(0))
    for row, near in ((3, True), (0, False)):
        index, weight = index_of(table, row, 1)
        once, often = (
            Targets(ACTION, TOKENIZER, table, dataclasses.replace(ALONE, flag_weight=w)).loss(logits, index, weight) for w in (1.0, 4.0)
        )
        target = Targets(ACTION, TOKENIZER, table, ALONE).distributions(index)
        gripper = -(target * torch.log_softmax(logits, -1)).sum(-1)[0, 0, 1]
        torch.testing.assert_close(often - once, 3 * gripper / 3 * near)


def test_frames_that_a_student_drove_need_a_teacher() -> None:
    """Without its answer the student's own action would be the target."""
    with pytest.raises(DatasetError, match="4 of 4 frames in which a student drove have no teacher's answer"):
        Targets(ACTION, TOKENIZER, frames(answers=False), ALONE)
    table = frames()
    table.distribution[4] = 0
    with pytest.raises(DatasetError, match="1 of 4 frames"):
        Targets(ACTION, TOKENIZER, table, ALONE)


@pytest.mark.parametrize("change", [{"target": "softer"}, {"sigma": -1.0}, {"flag_weight": 0.0}, {"samples": -1}, {"cut_off_share": 1.5}])
def test_settings_that_cannot_be_are_refused(change: dict[str, object]) -> None:
    """With the field and its value."""
    name, value = next(iter(change.items()))
    with pytest.raises(SpecError, match=f"{name} {value!r}"):
        TrainConfig(**change)  # type: ignore[arg-type]


def test_an_end_is_what_was_shown_or_what_the_teacher_says() -> None:
    """On demonstrations the label, where a student drove the teacher's answer, without terminate nothing."""
    table = frames()
    table.action[2, 2] = 1
    table.distribution[6, 2] = np.eye(K, dtype=np.float16)[-1]
    index = torch.arange(7)[None]
    assert Targets(ACTION, TOKENIZER, table, ALONE).ends(index)[0].tolist() == [False, False, True, False, False, False, True]
    endless = dataclasses.replace(ACTION, names=("dx", "gripper", "light"))
    assert not Targets(endless, TOKENIZER, table, ALONE).ends(index).any()


def test_a_token_that_does_not_count_costs_nothing() -> None:
    """Weights of tokens take away what they are zero for."""
    table = frames()
    index, weight = index_of(table, 0, 3)
    targets = Targets(ACTION, TOKENIZER, table, ALONE)
    logits = torch.randn(1, 3, 3, K, generator=torch.Generator().manual_seed(0))
    other = logits.clone()
    other[:, 0, :2] += torch.randn(2, K, generator=torch.Generator().manual_seed(1))
    tokens = torch.ones(1, 3, 3)
    tokens[:, 0, :2] = 0
    assert targets.loss(logits, index, weight, tokens) == targets.loss(other, index, weight, tokens)
    assert targets.loss(logits, index, weight) != targets.loss(other, index, weight)
