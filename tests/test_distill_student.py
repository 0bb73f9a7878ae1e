"""distill.student: the network, its decoding, its checkpoint."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from actlet.action_tokens import ActionTokenizer
from actlet.errors import CheckpointError, ObservationError, SpecError
from actlet.protocols import Observation, Policy
from actlet.specs import ActionSpec, CameraSpec, ObservationSpec, PolicySpec, TimingSpec
from actlet.storage import read_json, write_json
from distill.driving import write_checkpoint
from distill.student import Student, StudentConfig, StudentPolicy, load_student
from distill.text_encoder import EMBEDDING_DIM

ACTION = ActionSpec(
    names=("dx", "dy", "grip"),
    units=("m", "m", "1"),
    kinds=("continuous", "continuous", "binary"),
    low=(-1, -1, 0),
    high=(1, 1, 1),
    frame="base",
)
SPEC = PolicySpec(
    observation=ObservationSpec(
        cameras=(CameraSpec(name="top", height=24, width=32), CameraSpec(name="hand", height=16, width=16)),
        state_names=("x", "y"),
        state_units=("m", "m"),
    ),
    action=ACTION,
    timing=TimingSpec(rate_hz=10, horizon=5, execute_steps=2, max_delay_steps=1),
)
TOKENIZER = ActionTokenizer(np.float32([-0.5, -0.1, 0]), np.float32([0.5, 0.1, 1]), 32)
TINY = StudentConfig(image_px=16, channels=(4, 8), blocks=(1, 2), condition_dim=8, squeeze_channels=2, features=16, token_rank=4)


@pytest.fixture
def student() -> Student:
    torch.manual_seed(0)
    return Student(SPEC, TOKENIZER, TINY).eval()


def inputs(batch: int) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = [
        torch.randint(0, 256, (batch, c.height, c.width, 3), generator=generator, dtype=torch.uint8) for c in SPEC.observation.cameras
    ]
    return (
        images,
        torch.randn(batch, 2, generator=generator),
        torch.nn.functional.normalize(torch.randn(batch, EMBEDDING_DIM, generator=generator), dim=1),
    )


def test_output_shapes(student: Student) -> None:
    """Logits (B, H, A, K) and two key moments (B, 2, S)."""
    output = student(*inputs(3))
    assert output.logits.shape == (3, 5, 3, 32)
    assert output.waypoints.shape == (3, 2, 2)


def test_every_input_reaches_the_output(student: Student) -> None:
    """Changing a camera, the state or the instruction changes the logits."""
    images, state, instruction = inputs(1)
    base = student(images, state, instruction).logits
    changed = [
        student([255 - images[0], images[1]], state, instruction),
        student([images[0], 255 - images[1]], state, instruction),
        student(images, state + 1, instruction),
        student(images, state, -instruction),
    ]
    for output in changed:
        assert not torch.allclose(output.logits, base)


def test_decoding_inverts_confident_tokens(student: Student) -> None:
    """Logits that put all weight on one bin decode to that bin's value, with full confidence."""
    actions = np.float32([[0.2, -0.05, 1.0], [-0.5, 0.1, 0.0], [0.5, 0.0, 1.0], [0.0, -0.1, 0.0], [0.1, 0.02, 1.0]])
    bins = torch.from_numpy(TOKENIZER.encode(actions))
    logits = torch.full((1, 5, 3, 32), -50.0).scatter(-1, bins[None, :, :, None], 50.0)
    decoded, confidence = student.decode(logits)
    assert torch.allclose(decoded[0], torch.from_numpy(TOKENIZER.decode(bins.numpy())), atol=1e-5)
    assert torch.allclose(confidence, torch.ones(1, 5), atol=1e-4)


def test_of_two_ways_the_likelier_one_is_decoded(student: Student) -> None:
    """By expectation the answer lies between them; with a reach it is the middle of the likelier hump, and flags are decoded as ever."""
    grid = torch.arange(32.0)
    humps = 0.55 * torch.exp(-0.5 * (grid - 8.4) ** 2 / 2) + 0.45 * torch.exp(-0.5 * (grid - 24) ** 2 / 2)
    logits = torch.log(humps + 1e-30).expand(1, 5, 3, 32)
    between, flags = student.decode(logits)[0][0, 0, 0], student.decode(logits)[0][..., 2]
    student.config = dataclasses.replace(TINY, mode_reach=6)
    decoded = student.decode(logits)[0]
    assert between == pytest.approx(-0.5 + (0.55 * 8.4 + 0.45 * 24) / 31, abs=2e-3)
    assert decoded[0, 0, 0] == pytest.approx(-0.5 + 8.4 / 31, abs=2e-3)
    assert torch.equal(decoded[..., 2], flags)


def test_a_reach_below_nothing_is_refused() -> None:
    """With the value."""
    with pytest.raises(SpecError, match="mode_reach -1"):
        dataclasses.replace(TINY, mode_reach=-1)


def test_only_a_chunks_first_step_ends_an_episode() -> None:
    """Terminate is said on what is seen, nearly certain, and never for a step that is only foreseen."""
    action = dataclasses.replace(ACTION, names=("dx", "dy", "terminate"))
    student = Student(dataclasses.replace(SPEC, action=action), TOKENIZER, TINY)
    certain = torch.full((1, 5, 3, 32), 0.0)
    certain[..., 2, -1] = 50.0
    assert student.decode(certain)[0][0, :, 2].tolist() == [1, 0, 0, 0, 0]
    probable = torch.full((1, 5, 3, 32), -50.0)
    probable[..., 2, 0], probable[..., 2, -1] = 0.0, math.log(19)  # nineteen parts in twenty
    assert student.decode(probable)[0][0, :, 2].tolist() == [0, 0, 0, 0, 0]


def test_what_is_exported_answers_as_the_checkpoint_does(student: Student) -> None:
    """Its head is in another order, which changes no answer, nor the student that it is a copy of."""
    weight = student.queries.weight.clone()
    exported = student.exportable().eval()
    images, state, instruction = inputs(3)
    with torch.no_grad():
        answer, confidence = exported(*images, state, instruction)
        expected, certain = student.eval().decode(student(images, state, instruction).logits)
    assert torch.equal(student.queries.weight, weight)
    assert not torch.equal(exported.student.queries.weight, weight)
    torch.testing.assert_close(answer, expected)
    torch.testing.assert_close(confidence, certain)


def test_decoded_actions_stay_inside_the_limits(student: Student) -> None:
    """Whatever the logits, actions respect the specification, flags are 0 or 1, confidence is in [0, 1]."""
    torch.manual_seed(3)
    actions, confidence = student.decode(torch.randn(64, 5, 3, 32) * 30)
    assert (actions.abs() <= 1).all()
    assert set(actions[..., 2].unique().tolist()) <= {0.0, 1.0}
    assert ((confidence >= 0) & (confidence <= 1)).all()


def test_answers_do_not_depend_on_the_batch(student: Student) -> None:
    """One observation alone or among others: the same chunk."""
    images, state, instruction = inputs(4)
    together = student(images, state, instruction).logits
    alone = student([x[:1] for x in images], state[:1], instruction[:1]).logits
    assert torch.allclose(together[:1], alone, atol=1e-5)


def test_checkpoint_round_trip(student: Student, tmp_path: Path) -> None:
    """What is loaded answers bit for bit what was saved."""
    write_checkpoint(student, tmp_path, {}, [])
    loaded = load_student(tmp_path)
    assert loaded.spec == SPEC
    assert torch.equal(loaded(*inputs(2)).logits, student(*inputs(2)).logits)


def test_a_checkpoint_of_another_kind_is_refused(student: Student, tmp_path: Path) -> None:
    """The message says what it is and what was expected."""
    write_checkpoint(student, tmp_path, {}, [])
    write_json(tmp_path / "config.json", {**read_json(tmp_path / "config.json"), "kind": "teacher"})
    with pytest.raises(CheckpointError, match=r"kind 'teacher'.*expected 'student'"):
        load_student(tmp_path)


def test_a_cut_checkpoint_is_refused(student: Student, tmp_path: Path) -> None:
    """Half a weights file is not taken for whole."""
    write_checkpoint(student, tmp_path, {}, [])
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be read as a student checkpoint"):
        load_student(tmp_path)


def test_a_missing_checkpoint_says_how_to_make_one(tmp_path: Path) -> None:
    """The message names the command."""
    with pytest.raises(CheckpointError, match="actlet distill"):
        load_student(tmp_path / "none")


def test_policy_answers_one_chunk_per_observation(student: Student) -> None:
    """StudentPolicy fits the Policy protocol."""
    policy = StudentPolicy(student)
    assert isinstance(policy, Policy)
    images, state, _ = inputs(2)
    observations = [
        Observation({c.name: x[i].numpy() for c, x in zip(SPEC.observation.cameras, images, strict=True)}, state[i].numpy())
        for i in range(2)
    ]
    chunks = policy.predict(observations, ["lift the cup", "touch the cup"])
    assert [chunk.actions.shape for chunk in chunks] == [(5, 3), (5, 3)]
    assert chunks[0].confidence.shape == (5,)


def test_pooled_frames_are_the_whole_ones(student: Student) -> None:
    """Frames that were pooled beforehand give the same logits up to the rounding to bytes, and are smaller."""
    images, state, instruction = inputs(4)
    pooled = [torch.from_numpy(small) for small in student.pool([frames.numpy() for frames in images])]
    assert [tuple(small.shape[1:3]) for small in pooled] == [
        (c.height // f, c.width // f) for c, (f, _) in zip(SPEC.observation.cameras, student.pooling, strict=True)
    ]
    whole, small = student(images, state, instruction).logits, student(pooled, state, instruction).logits
    assert (whole - small).abs().max() < 0.02 * whole.abs().max()


@pytest.fixture
def told_student() -> Student:
    """A student that is told of up to two actions on their way, and may end."""
    torch.manual_seed(0)
    action = dataclasses.replace(ACTION, names=("dx", "dy", "terminate"))
    timing = TimingSpec(rate_hz=10, horizon=5, execute_steps=1, max_delay_steps=2, committed_steps=2)
    return Student(PolicySpec(observation=SPEC.observation, action=action, timing=timing), TOKENIZER, TINY).eval()


def test_what_is_on_its_way_changes_the_answer(told_student: Student) -> None:
    """Once it has learned from it: other actions on their way, another answer; and none at all is another answer still."""
    assert told_student.committed_layer is not None
    torch.nn.init.normal_(told_student.committed_layer[1].weight)
    told = [torch.tensor([[[1.0, dx, 0, 0], [0, 0, 0, 0]]]) for dx in (-0.4, 0.4)] + [torch.zeros(1, 2, 4)]
    answers = [told_student(*inputs(1), committed).logits for committed in told]
    assert all(not torch.equal(answers[i], answers[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_a_policy_that_is_told_ends_on_what_it_sees(told_student: Student) -> None:
    """Row 0 says terminate for the rows up to the first that is not on its way; what later rows foresee ends nothing."""
    logits = torch.zeros(4, 5, 3, TOKENIZER.bins)
    logits[:3, 0, 2, -1] = 50.0  # Terminate, as seen.
    logits[3, 1:, 2, -1] = 50.0  # Terminate, as foreseen.
    committed = torch.zeros(4, 2, 4)
    committed[1, :1, 0] = committed[2:, :, 0] = 1
    actions, _ = told_student.decode(logits, committed)
    assert actions[..., 2].tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 0, 0]]


def test_more_on_its_way_than_it_can_be_told_is_refused(told_student: Student) -> None:
    """Three actions to a policy that hears of two."""
    *_, state, _ = inputs(1)
    images = {camera.name: np.zeros((camera.height, camera.width, 3), np.uint8) for camera in SPEC.observation.cameras}
    observation = Observation(images, state[0].numpy(), np.zeros((3, 3), np.float32))
    with pytest.raises(ObservationError, match="at most 2"):
        StudentPolicy(told_student).predict([observation], ["go"])
