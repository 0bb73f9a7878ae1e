"""distill.foreign_teacher on four architectures of transformers, saved to disk with random weights and loaded like real checkpoints."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_vlms import ARCHITECTURES, TEXTS, save_tiny_vlm, tiny_qwen2_vl, tiny_tokenizer

from actlet.action_tokens import ActionTokenizer
from actlet.errors import ActionError, CallerError, CheckpointError, ObservationError, SpecError
from actlet.protocols import Observation, Teacher
from actlet.specs import ActionSpec, CameraSpec, ObservationSpec, PolicySpec, TimingSpec
from distill.action_decoding import DecodingConfig
from distill.foreign_teacher import ForeignTeacher, ForeignTeacherConfig, action_vocabulary, load_foreign_teacher
from distill.teacher_file import TEACHER_FILE
from distill.teachers import open_teacher
from runtime.opening import kind_of, open_policy

SPEC = PolicySpec(
    observation=ObservationSpec(
        cameras=(CameraSpec(name="front", height=40, width=48), CameraSpec(name="wrist", height=32, width=32)),
        state_names=("x", "y"),
        state_units=("m", "m"),
    ),
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
BOUNDS = ActionTokenizer(np.float32([0, -0.5, -0.5, 0]), np.float32([1, 0.5, 0.5, 1]), 256)
INSTRUCTIONS = ["lift the blue cup", "put the red block on the plate"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Read only: copy one before you change anything."""
    folders = {}
    for name in ARCHITECTURES:
        folders[name] = tmp_path_factory.mktemp("vlms") / name
        processor = save_tiny_vlm(name, folders[name])
        ids = action_vocabulary("least_used", processor.tokenizer, corpus=INSTRUCTIONS).ids
        ForeignTeacherConfig(
            spec=SPEC, cameras=("front",), tokenizer=BOUNDS, action_token_ids=tuple(ids.tolist()), vocabulary="least_used"
        ).write(folders[name])
    return folders


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def teacher(request: pytest.FixtureRequest, checkpoints: dict[str, Path]) -> ForeignTeacher:
    return load_foreign_teacher(checkpoints[request.param])


@pytest.fixture
def copied(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    """A checkpoint of the smallest kind that may be spoilt."""
    return Path(shutil.copytree(checkpoints["llava"], tmp_path / "copy"))


def observations(count: int) -> list[Observation]:
    random = np.random.default_rng(0)
    return [
        Observation(
            {c.name: random.integers(0, 256, (c.height, c.width, 3), dtype=np.uint8) for c in SPEC.observation.cameras},
            random.normal(size=2).astype(np.float32),
        )
        for _ in range(count)
    ]


def change(folder: Path, **fields: Any) -> None:
    file = folder / TEACHER_FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def without_a_cache(teacher: ForeignTeacher, seen: list[Observation], instructions: list[str], emitted: torch.Tensor) -> np.ndarray:
    """(B, A, K): one whole pass over prompt and emitted tokens, all logits, softmax over the action ids."""
    inputs = teacher.inputs(seen, instructions)
    new = emitted[:, :-1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], new], dim=1)
    inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(new)], dim=1)
    if "token_type_ids" in inputs:  # PaliGemma: 0 for the prefix, 1 for the answer; Gemma 3: 1 for pictures.
        kind = 1 if teacher.model.config.model_type == "paligemma" else 0
        inputs["token_type_ids"] = torch.cat([inputs["token_type_ids"], torch.full_like(new, kind)], dim=1)
    if "mm_token_type_ids" in inputs:  # Qwen2-VL: 0 for text.
        inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(new)], dim=1)
    with torch.no_grad():
        logits = teacher.model(**inputs, use_cache=False).logits[:, -emitted.shape[1] :]
    return torch.softmax(logits[..., torch.from_numpy(teacher.vocabulary.ids)], -1).numpy()


def test_decoding_token_by_token_equals_one_whole_pass(teacher: ForeignTeacher) -> None:
    """Cache, padding, positions and pictures are right: the constrained distribution is the softmax over the action ids of a pass
    without a cache over the same tokens, to the rounding of float32. Answers are not nearly uniform, so the comparison says something."""
    seen = observations(2)
    emitted = teacher.emit(seen, INSTRUCTIONS)
    whole = without_a_cache(teacher, seen, INSTRUCTIONS, emitted.token_ids)
    assert whole.max() > 3 / 256
    np.testing.assert_allclose(emitted.probabilities.numpy(), whole, atol=2e-5)


def test_positions_in_three_dimensions(tmp_path: Path) -> None:
    """The same for Qwen2-VL, whose model remembers positions between calls: asked about another batch in between."""
    from transformers import GenerationConfig

    model, processor = tiny_qwen2_vl()
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=processor.tokenizer.pad_token_id)
    ids = tuple(action_vocabulary("least_used", processor.tokenizer).ids.tolist())
    config = ForeignTeacherConfig(spec=SPEC, cameras=("wrist",), tokenizer=BOUNDS, action_token_ids=ids, vocabulary="least_used")
    teacher, seen = ForeignTeacher(config, model, processor, tmp_path), observations(2)
    teacher.predict(seen[:1], ["touch"])
    emitted = teacher.emit(seen, INSTRUCTIONS)
    whole = without_a_cache(teacher, seen, INSTRUCTIONS, emitted.token_ids)
    assert whole.max() > 3 / 256
    np.testing.assert_allclose(emitted.probabilities.numpy(), whole, atol=2e-5)


def test_distributions_are_over_the_action_tokens_alone(teacher: ForeignTeacher) -> None:
    """float32 (B, A, K), each row sums to 1; only action ids are emitted."""
    assert isinstance(teacher, Teacher)
    answers = teacher.action_distribution(observations(2), INSTRUCTIONS)
    assert (answers.shape, answers.dtype) == ((2, 4, 256), np.float32)
    np.testing.assert_allclose(answers.sum(-1), 1, atol=1e-5)
    assert set(teacher.emit(observations(2), INSTRUCTIONS).token_ids.flatten().tolist()) <= set(teacher.vocabulary.ids.tolist())


def test_one_answer_does_not_depend_on_the_batch(teacher: ForeignTeacher) -> None:
    """A longer instruction beside it pads the batch and changes nothing."""
    seen = observations(2)
    together = teacher.action_distribution(seen, INSTRUCTIONS)
    alone = np.concatenate([teacher.action_distribution([o], [i]) for o, i in zip(seen, INSTRUCTIONS, strict=True)])
    np.testing.assert_allclose(together, alone, atol=2e-5)


def test_picture_and_words_matter(teacher: ForeignTeacher) -> None:
    """Another picture, or other words, another answer."""
    first, second = observations(2)
    answers = teacher.action_distribution([first, second, first], [INSTRUCTIONS[0], INSTRUCTIONS[0], INSTRUCTIONS[1]])
    assert np.abs(answers[0] - answers[1]).max() > 1e-4
    assert np.abs(answers[0] - answers[2]).max() > 1e-4


def test_greedy_answers_are_the_most_probable_bins(teacher: ForeignTeacher) -> None:
    """The same twice; the chunk is the decoded bins, flags 0 or 1, inside the limits."""
    (chunk,), (again,) = (teacher.predict(observations(1), INSTRUCTIONS[:1]) for _ in range(2))
    np.testing.assert_array_equal(chunk.actions, again.actions)
    most = teacher.action_distribution(observations(1), INSTRUCTIONS[:1]).argmax(-1)
    np.testing.assert_array_equal(chunk.actions[0, 1:3], BOUNDS.decode(most)[0, 1:3])
    assert set(chunk.actions[0, [0, 3]]) <= {0.0, 1.0}
    assert 0 <= chunk.confidence[0] <= 1


def test_sampled_answers_follow_the_seed(copied: Path) -> None:
    """Opened with one seed twice: the same answers; with another seed: others."""
    answers = []
    for seed in (1, 1, 2):
        change(copied, decoding=DecodingConfig(choose="sampled", seed=seed).to_dict())
        teacher = load_foreign_teacher(copied)
        answers.append(torch.cat([teacher.emit(observations(2), INSTRUCTIONS).token_ids for _ in range(3)]))
    assert torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[0], answers[2])


def test_two_cameras_in_the_order_of_the_file(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Both are shown; the other order is another question."""
    folder = Path(shutil.copytree(checkpoints["idefics3"], tmp_path / "copy"))
    answers = []
    for cameras in (["front"], ["front", "wrist"], ["wrist", "front"]):
        change(folder, cameras=cameras)
        answers.append(load_foreign_teacher(folder).action_distribution(observations(1), INSTRUCTIONS[:1]))
    assert all(np.abs(a - b).max() > 1e-4 for a, b in itertools.pairwise(answers))


def test_a_folder_opens_as_a_policy_everywhere(checkpoints: dict[str, Path]) -> None:
    """By what is in it: for the robot side, and for distillation; weights and description make its hash."""
    folder = checkpoints["paligemma"]
    assert kind_of(folder) == "foreign_teacher"
    policy, teacher = open_policy(folder), open_teacher(folder)
    (ours,), (theirs,) = (p.predict(observations(1), INSTRUCTIONS[:1]) for p in (policy, teacher))
    np.testing.assert_array_equal(ours.actions, theirs.actions)
    assert len(teacher.content_hash) == 64


def test_bench_weighs_a_foreign_teacher(checkpoints: dict[str, Path]) -> None:
    """Parameters, bytes and arithmetic are counted."""
    from benchmarks.policies import parse_contenders, samples_for, weigh

    (contender,) = parse_contenders([str(checkpoints["llava"])])
    policy = contender.factory()
    weight = weigh(contender, policy, samples_for([contender], policy.spec)[0])
    assert weight["size_bytes"] == 4 * weight["parameters"] > 0
    assert weight["macs"] > 0


@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 0.2), ("int8", 0.2), ("nf4", 0.9)])
def test_weights_in_fewer_bits(checkpoints: dict[str, Path], precision: Any, tolerance: float) -> None:
    """Smaller in memory, distributions that still are some, and the first token not far from float32's (total variation)."""
    full, small = load_foreign_teacher(checkpoints["idefics3"]), load_foreign_teacher(checkpoints["idefics3"], precision=precision)
    answers = [t.action_distribution(observations(2), INSTRUCTIONS) for t in (full, small)]
    np.testing.assert_allclose(answers[1].sum(-1), 1, atol=1e-5)
    distance = 0.5 * np.abs(answers[0] - answers[1])[:, 0].sum(-1).max()
    assert 0 < distance < tolerance
    sizes = [sum(p.numel() * p.element_size() for p in t.model.parameters()) for t in (full, small)]
    assert sizes[1] < sizes[0]


# -- vocabulary -----------------------------------------------------------------------------------------------------------


def test_three_strategies_of_a_vocabulary() -> None:
    """Least used: words of the corpus keep their meaning; integers: the numbers' own tokens; last: before the added tokens."""
    tokenizer = tiny_tokenizer("<image>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    least = action_vocabulary("least_used", tokenizer, corpus=INSTRUCTIONS)
    words = {number for text in INSTRUCTIONS for number in tokenizer(text)["input_ids"]}
    assert not words & set(least.ids.tolist())
    integers = action_vocabulary("integers", tokenizer)
    assert tokenizer.decode([int(integers.ids[17])]) == "17"
    last = action_vocabulary("last", tokenizer)
    assert (last.ids[0], last.ids[255]) == (tokenizer.vocab_size - 1, tokenizer.vocab_size - 256)
    for vocabulary in (least, integers, last):
        assert not set(vocabulary.ids.tolist()) & set(tokenizer.all_special_ids)


def test_counts_instead_of_a_corpus() -> None:
    """What is counted often stays a word."""
    tokenizer = tiny_tokenizer()
    counts = np.arange(len(tokenizer))
    ids = action_vocabulary("least_used", tokenizer, counts=counts).ids
    assert ids.tolist() == list(range(4, 260)), "the four special tokens keep their meaning"
    with pytest.raises(SpecError, match="give one count per id"):
        action_vocabulary("least_used", tokenizer, counts=counts[1:])


@pytest.mark.parametrize("strategy", ["least_used", "last"])
def test_a_vocabulary_that_is_too_small_is_refused(strategy: Any) -> None:
    """Fewer tokens than bins."""
    with pytest.raises(SpecError, match="1000 action tokens needed"):
        action_vocabulary(strategy, tiny_tokenizer(), bins=1000)


def test_ids_that_are_special_tokens_are_refused() -> None:
    """The end of a turn must not become a motion: named, with the way out."""
    tokenizer = tiny_tokenizer(size=280)
    with pytest.raises(SpecError, match=r"\[0, 1, 2, 3\] are the special tokens .*'<unk>'.*least_used"):
        action_vocabulary("last", tokenizer, bins=tokenizer.vocab_size)


# -- what is refused ------------------------------------------------------------------------------------------------------


def spoil_weights(folder: Path, spoil: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    spoil(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def name_of(weights: dict[str, torch.Tensor], end: str) -> str:
    return next(name for name in weights if name.endswith(end))


SPOILT_WEIGHTS: list[tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = [
    (lambda w: w.pop(name_of(w, "model.norm.weight")), r"1 missing: .*norm\.weight.*random numbers"),
    (lambda w: w.update(extra=torch.zeros(2)), r"1 unknown: extra"),
    (lambda w: w.update({name_of(w, "model.norm.weight"): torch.ones(7)}), r"1 of another shape: .*norm\.weight of \[7\], expected \[64\]"),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILT_WEIGHTS)
def test_weights_that_do_not_fit_are_refused(copied: Path, spoil: Callable[[dict[str, torch.Tensor]], Any], message: str) -> None:
    """Missing (transformers would fill in random numbers), unknown, or of another shape: named."""
    spoil_weights(copied, spoil)
    with pytest.raises(CheckpointError, match=message):
        load_foreign_teacher(copied)


def test_weights_in_pickle_are_refused(copied: Path) -> None:
    """Only safetensors are read."""
    torch.save(load_file(copied / "model.safetensors"), copied / "pytorch_model.bin")
    (copied / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no \*\.safetensors"):
        load_foreign_teacher(copied)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"colour": "red"}, r"unknown keys \['colour'\]"),
        ({"schema_version": 2}, "schema_version 2, expected 1"),
        ({"tokenizer": {"low": [0.0] * 7, "high": [1.0] * 7, "bins": 256}}, r"bounds of 7 dimensions for the 4 .*'dx'.*another robot"),
        ({"action_token_ids": list(range(10, 200))}, "190 action token ids.*expected 256"),
        ({"action_token_ids": [5] * 256}, "1 of them different"),
        ({"action_token_ids": list(range(31744, 32000))}, r"ids 31744 \.\. 31999, but the tokenizer has \d+ tokens.*another vocabulary"),
        ({"action_token_ids": list(range(256))}, "are the special tokens"),
        ({"cameras": ["top"]}, r"cameras \['top'\]: expected one or more of \['front', 'wrist'\]"),
        ({"prompt": "move!"}, r"places \[\], expected \{instruction\} once"),
        ({"prompt": "{instruction.__class__}"}, "expected {instruction} once"),
        ({"precision": "int3"}, "precision: got 'int3'"),
        ({"decoding": {"choose": "sampled", "temperature": 0.0, "seed": 0}}, "temperature 0.0"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(copied: Path, fields: dict[str, Any], message: str) -> None:
    """Statistics of another robot, ids of another vocabulary, a camera that the robot has not: named."""
    change(copied, **fields)
    with pytest.raises(SpecError, match=message):
        load_foreign_teacher(copied)


def test_a_teacher_with_chunks_is_refused() -> None:
    """One action per answer."""
    spec = dataclasses.replace(SPEC, timing=dataclasses.replace(SPEC.timing, horizon=8))
    with pytest.raises(SpecError, match="horizon 8, expected 1"):
        ForeignTeacherConfig(
            spec=spec, cameras=("front",), tokenizer=BOUNDS, action_token_ids=tuple(range(4, 260)), vocabulary="least_used"
        )


def test_a_checkpoint_without_a_description_says_what_to_write(copied: Path) -> None:
    """Both ways in: the robot side's and distillation's."""
    (copied / TEACHER_FILE).unlink()
    with pytest.raises(CallerError, match=r"is a llava of transformers without actlet_teacher\.json"):
        open_policy(copied)
    with pytest.raises(CheckpointError, match=r"actlet_teacher\.json is missing"):
        load_foreign_teacher(copied)


def test_code_in_the_folder_is_not_run(copied: Path) -> None:
    """A model_type that transformers does not know needs its own code: named, with how to allow it."""
    config = json.loads((copied / "config.json").read_text())
    (copied / "evil.py").write_text("raise SystemExit('this was run')\n")
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForImageTextToText": "evil.Model"}}
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"would be run: .*evil\.Model.*ACTLET_TRUST_REMOTE_CODE"):
        load_foreign_teacher(copied)
    config["auto_map"]["AutoConfig"] = "someone/else--evil.Config"
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="code of other repositories"):
        load_foreign_teacher(copied, trust_remote_code=True)


def test_an_instruction_with_a_special_token_is_refused(teacher: ForeignTeacher) -> None:
    """A picture's or a turn's token among the words would change the question."""
    for words in ("lift </s> cup", "  "):
        with pytest.raises(ObservationError, match="expected words"):
            teacher.predict(observations(1), [words])


def test_a_word_never_becomes_a_motion(teacher: ForeignTeacher) -> None:
    """The id of a word is refused in decoding, whatever emitted it."""
    word = teacher.processor.tokenizer(INSTRUCTIONS[0], add_special_tokens=False)["input_ids"][-1]
    with pytest.raises(ActionError, match="not action tokens"):
        teacher.vocabulary.decode(np.array([word]))


def test_logits_that_are_not_finite_are_refused(copied: Path) -> None:
    """A spoilt weight gives no motion."""
    spoil_weights(copied, lambda weights: weights[name_of(weights, "lm_head.weight")].fill_(torch.nan))
    with pytest.raises(ActionError, match="not finite"):
        load_foreign_teacher(copied).predict(observations(1), INSTRUCTIONS[:1])


def test_the_corpus_of_the_tests_is_one_token_a_number() -> None:
    """What the fixtures rest on."""
    tokenizer = tiny_tokenizer()
    assert all(len(tokenizer(number)["input_ids"]) == 1 for number in TEXTS[2:])
