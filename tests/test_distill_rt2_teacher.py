"""distill.rt2_teacher on the real pretrained parts: one layer of the language model, so that it takes seconds."""

from __future__ import annotations

import copy
import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from actlet.action_tokens import ActionTokenizer
from actlet.errors import ActionError, CheckpointError, SpecError
from actlet.protocols import Observation, Teacher
from actlet.specs import ActionSpec, CameraSpec, ObservationSpec, PolicySpec, TimingSpec
from distill.rt2_teacher import Rt2Teacher
from distill.teacher_checkpoint import load_teacher, save_teacher
from distill.teacher_config import PROMPT, Decoding, TeacherConfig

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


def test_a_plan_in_words_comes_before_the_same_kind_of_action(teacher: Rt2Teacher) -> None:
    """Decoded word by word in a batch whose plans differ in length, then token by token: the chain rule holds to rounding."""
    seen, prompts = observations(3), [PROMPT.format(instruction=line) for line in dict.fromkeys(INSTRUCTIONS)]
    which = torch.tensor([0, 1, 0])
    plans = ["grasp the red block", "done", "carry the red block to the yellow plate"]
    decision = teacher.decide(seen, INSTRUCTIONS)
    bins = torch.from_numpy(decision.bins)
    state = torch.from_numpy(np.stack([o.state for o in seen]))
    with torch.no_grad():
        maps = [teacher.look(torch.from_numpy(np.stack([o.images["top"] for o in seen])))]
        together, words, _ = teacher(maps, state, prompts, which, bins, teacher.words(plans))
        assert together is not None
        assert words is not None
        for row in range(3):
            one = [tuple(part[row : row + 1] for part in pair) for pair in maps]
            alone, spoken, _ = teacher(
                one, state[row : row + 1], prompts, which[row : row + 1], bins[row : row + 1], teacher.words([plans[row]])
            )
            torch.testing.assert_close(alone[0], together[row], rtol=0, atol=2e-4)  # padding between plan and action changes nothing
            length = spoken.shape[1]
            finite = torch.isfinite(spoken[0])
            torch.testing.assert_close(spoken[0][finite], words[row, :length][finite], rtol=0, atol=2e-3)


def test_spoken_plans_are_what_the_logits_say(teacher: Rt2Teacher) -> None:
    """What is decoded with cached keys and values is the most probable word of one forced pass, for every row of a batch."""
    seen = observations(2)
    plans = teacher.decide(seen, INSTRUCTIONS[:2], Decoding(plan=True, max_words=4)).plans
    for row in range(2):
        assert plans[row] == teacher.decide(seen[row : row + 1], INSTRUCTIONS[row : row + 1], Decoding(plan=True, max_words=4)).plans[0]


def test_no_word_is_an_action_and_no_action_a_word(teacher: Rt2Teacher) -> None:
    """Action ids cannot be spoken; the same network's action tokens are another softmax."""
    logits = teacher._word_logits(torch.randn(2, 576))
    assert torch.isinf(logits[:, teacher.vocabulary.ids]).all()
    assert torch.isfinite(logits).sum() == 2 * (logits.shape[1] - 256)


def test_an_answer_whose_words_mean_actions_is_refused() -> None:
    """A word that lost its token cannot be taught; named beforehand it keeps it."""
    first = Rt2Teacher(SPEC, TOKENIZER, config=TINY)
    encode = first._text_tokenizer
    texts = [encode.decode([i]) for i in first.vocabulary.ids.tolist()]
    lost = next(text for text in texts if text.startswith(" ") and len(encode(text)["input_ids"]) == 1)
    with pytest.raises(SpecError, match="lost its token"):
        first.words([lost[1:]])
    Rt2Teacher(SPEC, TOKENIZER, config=TINY, other_texts=[lost]).words([lost[1:]])


def test_the_last_ids_are_openvlas_choice_and_integers_need_a_vocabulary_that_has_them() -> None:
    """SmolLM2 splits digits: the error says what to do instead."""
    last = Rt2Teacher(SPEC, TOKENIZER, config=dataclasses.replace(TINY, vocabulary="last"))
    assert last.vocabulary.ids.tolist() == list(range(49151, 49151 - 256, -1))
    with pytest.raises(SpecError, match="least used tokens or the last ids"):
        Rt2Teacher(SPEC, TOKENIZER, config=dataclasses.replace(TINY, vocabulary="integers"))
    with pytest.raises(SpecError, match="expected one of"):
        TeacherConfig(vocabulary="rarest")


def test_sampled_tokens_follow_their_distribution_and_the_seed(teacher: Rt2Teacher) -> None:
    """Two teachers with one seed draw the same; the first token's draws are spread as its distribution is."""
    seen, how = observations(1) * 64, Decoding(sample=True, seed=5)
    draws = []
    for _ in range(2):
        teacher._draws = None
        draws.append(np.concatenate([teacher.decide(seen, INSTRUCTIONS[:1] * 64, how).bins for _ in range(3)]))
    np.testing.assert_array_equal(draws[0], draws[1])
    p = teacher.decide(seen[:1], INSTRUCTIONS[:1]).probabilities[0, 0]
    expected = float((p * np.arange(256)).sum())
    spread = float(np.sqrt((p * (np.arange(256) - expected) ** 2).sum()))
    assert abs(draws[0][:, 0].mean() - expected) < 5 * spread / np.sqrt(len(draws[0])) + 1e-6


@pytest.mark.slow
def test_nothing_but_actions_is_ever_decoded(teacher: Rt2Teacher) -> None:
    """Random pictures, states and prompts, sampled at a high temperature: every id is an action's. ACTLET_DECODED_STEPS=1000000 for more."""
    random, steps, batch = np.random.default_rng(0), int(os.environ.get("ACTLET_DECODED_STEPS", "4000")), 250
    words = teacher._text_tokenizer
    teacher._draws, done = None, 0
    while done < steps:
        prompts = [words.decode(random.integers(3, 49152, random.integers(1, 8))) for _ in range(batch)]
        seen = [
            Observation({"top": random.integers(0, 256, (64, 64, 3), dtype=np.uint8)}, random.normal(size=2).astype(np.float32))
            for _ in range(batch)
        ]
        decision = teacher.decide(seen, prompts, Decoding(sample=True, temperature=3.0))
        teacher.vocabulary.decode(teacher.vocabulary.encode(decision.bins))  # raises at the first word
        assert np.isfinite(TOKENIZER.decode(decision.bins)).all()
        teacher._texts.clear()
        done += decision.bins.size
    assert done >= steps


@pytest.mark.slow
@pytest.mark.parametrize(("load", "bound"), [("int8", 0.1), ("nf4", 0.6)])
def test_fewer_bits_answer_nearly_the_same_in_less_memory(teacher: Rt2Teacher, tmp_path: Path, load: str, bound: float) -> None:
    """bitsandbytes on this machine: total variation of the first token below a bound, and matrices of a half or less of the size."""
    save_teacher(teacher, tmp_path, lineage={})
    whole, small = load_teacher(tmp_path), load_teacher(tmp_path, load=load)
    a, b = (t.action_distribution(observations(2), INSTRUCTIONS[:2]) for t in (whole, small))
    assert 0 < np.abs(a - b)[:, 0].sum(-1).max() / 2 < bound

    def size(t: Rt2Teacher) -> int:
        own = [p for name, p in t.language.layers.named_parameters() if "lora" not in name]
        return sum(p.numel() * p.element_size() for p in own)

    assert size(small) < size(whole) * (0.3 if load == "int8" else 0.2)
    with pytest.raises(SpecError, match="expected one of"):
        load_teacher(tmp_path, load="int2")


@pytest.mark.slow
def test_without_pretrained_weights_it_is_saved_and_loaded_whole(tmp_path: Path) -> None:
    """The language model's layers and the vision's are in the file then, the words' embeddings come from their seed."""
    scratch = Rt2Teacher(SPEC, TOKENIZER, config=dataclasses.replace(TINY, pretrained=False), corpus=INSTRUCTIONS).eval()
    save_teacher(scratch, tmp_path, lineage={})
    loaded = load_teacher(tmp_path)
    a, b = (t.action_distribution(observations(1), INSTRUCTIONS[:1]) for t in (scratch, loaded))
    assert np.abs(a - b).max() < 5e-3  # float16 on disk
    assert not torch.equal(loaded.language.embed_tokens.weight, Rt2Teacher(SPEC, TOKENIZER, config=TINY).language.embed_tokens.weight)


def test_terminate_is_said_above_its_threshold_alone(teacher: Rt2Teacher) -> None:
    """Just below what the teacher believes it is said, just above it is not; other flags go by one half."""
    seen = observations(1)
    p = teacher.decide(seen, INSTRUCTIONS[:1]).probabilities[0, 0]
    believed = float((p * np.arange(256)).sum() / 255)
    for above, expected in ((believed - 0.01, 255), (believed + 0.01, 0)):
        assert teacher.decide(seen, INSTRUCTIONS[:1], Decoding(terminate_above=above)).bins[0, 0] == expected
    with pytest.raises(SpecError, match=r"terminate_above 1\.0"):
        Decoding(terminate_above=1.0)
