"""distill.rt2_teacher on the real pretrained parts: one layer of the language model, so that it takes seconds."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from actlet.action_tokens import ActionTokenizer
from actlet.errors import ActionError, CheckpointError
from actlet.protocols import Observation, Teacher
from actlet.specs import ActionSpec, CameraSpec, ObservationSpec, PolicySpec, TimingSpec
from distill.rt2_teacher import PROMPT, Rt2Teacher, TeacherConfig, load_teacher, save_teacher

SPEC = PolicySpec(
    observation=ObservationSpec(cameras=(CameraSpec(name="top", height=64, width=64),), state_names=("x", "y"), state_units=("m", "m")),
    action=ActionSpec(
        names=("terminate", "dx", "dy", "grip"),
        units=("1", "m", "m", "1"),
        kinds=("binary", "continuous", "continuous", "binary"),
        low=(0, -1, -1, 0),
        high=(1, 1, 1, 1),
        frame="base",
    ),
    timing=TimingSpec(rate_hz=10, horizon=1, execute_steps=1, max_delay_steps=0),
)
TOKENIZER = ActionTokenizer(np.float32([0, -0.5, -0.5, 0]), np.float32([1, 0.5, 0.5, 1]), 256)
TINY = TeacherConfig(layers=1, lora_rank=2, channels=(8, 8, 8), blocks=(1, 1, 1), condition_dim=8, features=16, scene_tokens=2)


@pytest.fixture(scope="module")
def teacher() -> Rt2Teacher:
    torch.manual_seed(0)
    teacher = Rt2Teacher(SPEC, TOKENIZER, config=TINY)
    for name, parameter in teacher.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)  # an adapter that does something, as after training
    return teacher.eval()


def observations(count: int) -> list[Observation]:
    random = np.random.default_rng(0)
    return [
        Observation({"top": random.integers(0, 256, (64, 64, 3), dtype=np.uint8)}, random.normal(size=2).astype(np.float32))
        for _ in range(count)
    ]


INSTRUCTIONS = ["lift the red block", "put the red block on the yellow plate", "lift the red block"]


def test_distributions_are_over_the_action_tokens_alone(teacher: Rt2Teacher) -> None:
    """(B, A, K), each row sums to 1: no probability is left for words."""
    assert isinstance(teacher, Teacher)
    answers = teacher.action_distribution(observations(3), INSTRUCTIONS)
    assert answers.shape == (3, 4, 256)
    assert np.allclose(answers.sum(-1), 1, atol=1e-5)


def test_decoding_token_by_token_equals_one_forced_pass(teacher: Rt2Teacher) -> None:
    """Cached keys and values, padding of instructions and positions are right: the chain rule holds to rounding."""
    seen = observations(3)
    answers = teacher.action_distribution(seen, INSTRUCTIONS)
    chunks = teacher.predict(seen, INSTRUCTIONS)
    bins = torch.from_numpy(TOKENIZER.encode(np.stack([chunk.actions[0] for chunk in chunks])))
    unique = list(dict.fromkeys(INSTRUCTIONS))
    which = torch.tensor([unique.index(text) for text in INSTRUCTIONS])
    with torch.no_grad():
        maps = [teacher.features(torch.from_numpy(np.stack([o.images["top"] for o in seen])))]
        prompts = [PROMPT.format(instruction=line) for line in unique]
        logits, _, _ = teacher(maps, torch.from_numpy(np.stack([o.state for o in seen])), prompts, which, bins)
    assert np.abs(torch.softmax(logits, -1).numpy() - answers).max() < 1e-5


def test_one_answer_does_not_depend_on_the_batch(teacher: Rt2Teacher) -> None:
    """A longer instruction beside it pads the batch and changes nothing."""
    seen = observations(3)
    together = teacher.action_distribution(seen, INSTRUCTIONS)
    alone = teacher.action_distribution(seen[:1], INSTRUCTIONS[:1])
    assert np.abs(together[:1] - alone).max() < 1e-5


def test_the_instruction_matters(teacher: Rt2Teacher) -> None:
    """The same picture with other words gives another answer."""
    seen = observations(1)
    a, b = (teacher.action_distribution(seen, [text]) for text in ("lift the red block", "lift the blue block"))
    assert np.abs(a - b).max() > 1e-6


def test_action_tokens_are_least_used_and_words_never_move_the_robot(teacher: Rt2Teacher) -> None:
    """256 different ids, none special; the id of a word is refused."""
    assert len(set(teacher.vocabulary.ids.tolist())) == 256
    word = teacher._text_tokenizer("block")["input_ids"][0]
    with pytest.raises(ActionError, match="not action tokens"):
        teacher.vocabulary.decode(np.array([word]))


def test_actions_respect_the_limits(teacher: Rt2Teacher) -> None:
    """Flags are 0 or 1, motions inside the tokenizer's bounds."""
    action = teacher.predict(observations(1), INSTRUCTIONS[:1])[0].actions
    assert action.shape == (1, 4)
    assert set(action[0, [0, 3]]) <= {0.0, 1.0}
    assert (np.abs(action[0, 1:3]) <= 0.5).all()


def test_checkpoint_round_trip(teacher: Rt2Teacher, tmp_path: Path) -> None:
    """Weights come back to the rounding of float16, and the teacher answers as before; the file holds what was trained alone."""
    save_teacher(teacher, tmp_path, lineage={})
    loaded, kept = load_teacher(tmp_path), load_file(tmp_path / "adapter.safetensors")
    for name, value in kept.items():
        torch.testing.assert_close(value.to(teacher.state_dict()[name].dtype), teacher.state_dict()[name], rtol=2**-11, atol=2**-24)
    rounded = copy.deepcopy(teacher)
    rounded.load_state_dict(kept, strict=False)
    a, b = (t.action_distribution(observations(2), INSTRUCTIONS[:2]) for t in (rounded, loaded))
    assert np.abs(a - b).max() < 1e-5
    trained = sum(p.numel() for p in teacher.parameters() if p.requires_grad)
    assert (tmp_path / "adapter.safetensors").stat().st_size < 2 * trained + 40_000


def test_a_missing_checkpoint_says_how_to_make_one(tmp_path: Path) -> None:
    """The message names the command."""
    with pytest.raises(CheckpointError, match="actlet teach"):
        load_teacher(tmp_path)
