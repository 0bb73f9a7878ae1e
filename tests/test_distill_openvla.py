"""distill.openvla on a tiny folder with code of its own, and distill.openvla_actions against OpenVLA's rule written down independently."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_openvla import MODELING, STATISTICS, code_copied_to, save_tiny_openvla

from actlet.errors import ActionError, CheckpointError, ObservationError, SpecError, UnknownNameError
from actlet.protocols import Observation, Teacher
from actlet.specs import ActionSpec, CameraSpec, ObservationSpec, PolicySpec, TimingSpec
from distill.openvla import EMPTY_TOKEN, OpenVlaConfig, OpenVlaTeacher, load_openvla
from distill.openvla_actions import ActionStatistics, bins_of_ids, read_statistics, value_distribution
from distill.teacher_file import TEACHER_FILE
from distill.teachers import open_teacher
from runtime.opening import kind_of, open_policy

V = 32000
SPEC = PolicySpec(
    observation=ObservationSpec(cameras=(CameraSpec(name="front", height=40, width=48),), state_names=("x",), state_units=("m",)),
    action=ActionSpec(
        names=("dx", "dy", "dz", "drx", "dry", "drz", "gripper"),
        units=("m", "m", "m", "rad", "rad", "rad", "1"),
        kinds=("continuous",) * 6 + ("binary",),
        low=(-1,) * 6 + (0,),
        high=(1,) * 7,
        frame="base",
    ),
    timing=TimingSpec(rate_hz=5, horizon=1, execute_steps=1, max_delay_steps=0),
)
CONFIG = OpenVlaConfig(spec=SPEC, camera="front", unnorm_key="bridge_orig", precision="float32")
WORDS = ["put the red cup", "Lift the BLUE cup"]


# -- the rule, written down once more as OpenVLA has it -------------------------------------------------------------------


def openvla_encode(action: float) -> int:
    edges = np.linspace(-1, 1, 256)
    return V - int(np.digitize(np.clip(action, -1, 1), edges))


def openvla_decode(
    token_ids: np.ndarray, statistics: dict[str, Any], low: str = "q01", high: str = "q99", epsilon: float = 0.0
) -> np.ndarray:
    edges = np.linspace(-1, 1, 256)
    centres = (edges[:-1] + edges[1:]) / 2.0
    normalised = centres[np.clip(V - token_ids - 1, 0, 254)]
    mask = statistics.get("mask", np.ones_like(statistics[low], dtype=bool))
    top, bottom = np.array(statistics[high]), np.array(statistics[low])
    return np.where(mask, 0.5 * (normalised + 1) * (top - bottom + epsilon) + bottom, normalised)


RULES = [("quantiles", "q01", "q99", 0.0), ("quantiles_oft", "q01", "q99", 1e-8), ("min_max_oft", "min", "max", 1e-8)]


@pytest.mark.parametrize(("rule", "low", "high", "epsilon"), RULES)
def test_every_action_id_means_what_it_means_in_openvla(tmp_path: Path, rule: Any, low: str, high: str, epsilon: float) -> None:
    """All 256 ids in all dimensions, to the rounding of float32; by value and by the tokenizer with 255 bins."""
    statistics = read_statistics(tmp_path, {"norm_stats": STATISTICS}, "bridge_orig", rule)
    ids = np.repeat(np.arange(V - 256, V)[:, None], 7, axis=1)
    expected = openvla_decode(ids, STATISTICS["bridge_orig"]["action"], low, high, epsilon)
    bins = bins_of_ids(ids, V)
    np.testing.assert_allclose(statistics.values(bins), expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(statistics.tokenizer().decode(bins), expected, rtol=1e-6, atol=1e-6)
    assert statistics.tokenizer().bins == 255


@given(st.floats(-1.5, 1.5))
def test_an_action_comes_back_within_half_a_bin(action: float) -> None:
    """OpenVLA's encoding, our decoding; outside [-1, 1] the nearest value."""
    statistics = ActionStatistics(np.array([-1.0]), np.array([1.0]), np.array([True]))
    value = statistics.values(bins_of_ids(np.array([openvla_encode(action)]), V))[0]
    assert abs(value - np.clip(action, -1, 1)) <= 1 / 255 + 1e-6


@given(st.integers(-10, 40000))
def test_an_id_that_is_no_action_is_refused(token: int) -> None:
    """31744 .. 31999 are actions; a word, padding and nonsense are not, which OpenVLA's clip would turn into a full motion."""
    if V - 256 <= token < V:
        assert 0 <= bins_of_ids(np.array([token]), V)[0] <= 254
    else:
        with pytest.raises(ActionError, match="not action tokens"):
            bins_of_ids(np.array([token]), V)


def test_two_ids_mean_the_largest_value() -> None:
    """Their probabilities are added; nothing else changes, nothing is lost."""
    probabilities = np.random.default_rng(0).dirichlet(np.ones(256), size=(2, 7)).astype(np.float32)
    values = value_distribution(probabilities)
    assert values.shape == (2, 7, 255)
    np.testing.assert_array_equal(values[..., :254], probabilities[..., :254])
    np.testing.assert_allclose(values.sum(-1), 1, atol=1e-6)
    assert bins_of_ids(np.array([V - 256, V - 255, V - 254]), V).tolist() == [254, 254, 253]


def test_a_dimension_that_never_moved(tmp_path: Path) -> None:
    """One value for all ids, and a tokenizer that still has low < high."""
    entry = {"a": {"action": {"q01": [0.5, -1.0], "q99": [0.5, 1.0]}}}
    statistics = read_statistics(tmp_path, {"norm_stats": entry}, None, "quantiles")
    assert set(statistics.values(np.tile(np.arange(255)[:, None], 2))[:, 0]) == {np.float32(0.5)}
    np.testing.assert_allclose(statistics.tokenizer().centres()[0], 0.5, atol=2e-6)


# -- statistics -----------------------------------------------------------------------------------------------------------


def test_the_choice_of_a_dataset(tmp_path: Path) -> None:
    """Unknown: the known ones are listed; several and none chosen: refused; fine-tuning's file goes before config.json."""
    config = {"norm_stats": STATISTICS}
    with pytest.raises(
        UnknownNameError, match=r"unknown unnorm_key 'bridge'\. Did you mean 'bridge_orig'\? Known: 'bridge_orig', 'one_arm'"
    ):
        read_statistics(tmp_path, config, "bridge", "quantiles")
    with pytest.raises(CheckpointError, match=r"2 datasets, \['bridge_orig', 'one_arm'\]: choose one"):
        read_statistics(tmp_path, config, None, "quantiles")
    (tmp_path / "dataset_statistics.json").write_text(json.dumps({"mine": {"action": {"q01": [-3.0], "q99": [3.0]}}}))
    assert read_statistics(tmp_path, config, None, "quantiles").high.tolist() == [3.0]
    with pytest.raises(UnknownNameError, match="Known: 'mine'"):
        read_statistics(tmp_path, config, "bridge_orig", "quantiles")


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ({"mean": [0.0]}, r"holds \['mean'\], expected \['q01', 'q99'\]"),
        ({"q01": [0.0], "q99": [1.0, 2.0]}, r"q01 \(1,\), q99 \(2,\)"),
        ({"q01": [0.0], "q99": [1.0], "mask": [1]}, "mask of true and false"),
        ({"q01": [1.0], "q99": [0.0]}, "low <= high"),
        ({"q01": ["a"], "q99": [0.0]}, "not numbers"),
        ({"q01": [None], "q99": [0.0]}, "low <= high"),
        (None, "'action' holds NoneType"),
    ],
)
def test_statistics_that_contradict_themselves_are_refused(tmp_path: Path, action: Any, message: str) -> None:
    """Named, with the place."""
    with pytest.raises(CheckpointError, match=message):
        read_statistics(tmp_path, {"norm_stats": {"a": {"action": action}}}, "a", "quantiles")


def test_no_statistics_at_all(tmp_path: Path) -> None:
    """Nothing is scaled by guessing."""
    with pytest.raises(CheckpointError, match="actions cannot be scaled"):
        read_statistics(tmp_path, {}, None, "quantiles")


# -- a checkpoint ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only: copy it before you change anything."""
    path = tmp_path_factory.mktemp("openvla") / "tiny-openvla"
    save_tiny_openvla(path)
    CONFIG.write(path)
    return path


@pytest.fixture(scope="module", autouse=True)
def _code_is_copied_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with code_copied_to(tmp_path_factory.mktemp("modules")):
        yield


@pytest.fixture(scope="module")
def teacher(folder: Path) -> OpenVlaTeacher:
    return load_openvla(folder, trust_remote_code=True)


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copied-openvla"))


def observations(count: int) -> list[Observation]:
    random = np.random.default_rng(0)
    return [Observation({"front": random.integers(0, 256, (40, 48, 3), dtype=np.uint8)}, np.zeros(1, np.float32)) for _ in range(count)]


def test_the_code_of_a_checkpoint_is_run_only_when_allowed(folder: Path, copied: Path) -> None:
    """Refused with what would be run and how to allow it; nothing of it has been imported."""
    (copied / "modeling_prismatic.py").write_text("raise SystemExit('this was run')\n")
    with pytest.raises(
        CheckpointError, match=r"would be run: .*modeling_prismatic\.OpenVLAFor.*processing_prismatic.*trust_remote_code=True"
    ):
        load_openvla(copied)
    with pytest.raises(CheckpointError, match=f"ACTLET_TRUST_REMOTE_CODE={folder}"):
        open_policy(folder)


def test_code_of_other_repositories_is_never_run(copied: Path) -> None:
    """Checkpoints that name it must have it copied into their folder."""
    config = json.loads((copied / "preprocessor_config.json").read_text())
    config["auto_map"]["AutoProcessor"] = "someone/else--processing_prismatic.PrismaticProcessor"
    (copied / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"other repositories, \['someone/else--processing"):
        load_openvla(copied, trust_remote_code=True)


def test_a_folder_that_is_trusted_opens_everywhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the variable that names it, and no other folder."""
    monkeypatch.setenv("ACTLET_TRUST_REMOTE_CODE", os.pathsep.join(["/elsewhere", str(folder)]))
    assert kind_of(folder) == "openvla_teacher"
    policy, teacher = open_policy(folder), open_teacher(folder)
    (ours,), (theirs,) = (p.predict(observations(1), WORDS[:1]) for p in (policy, teacher))
    np.testing.assert_array_equal(ours.actions, theirs.actions)
    assert len(teacher.content_hash) == 64


def test_the_question_is_openvlas(teacher: OpenVlaTeacher) -> None:
    """Its prompt with the words in lower case, and token 29871 once at the end, also where it stands there already."""
    inputs = teacher.inputs(observations(1)[0], "Put the RED cup")
    text = teacher.processor.tokenizer("In: What action should the robot take to put the red cup?\nOut:")["input_ids"]
    assert inputs["input_ids"][0].tolist() == [*text, EMPTY_TOKEN]
    assert inputs["attention_mask"].tolist() == [[1] * (len(text) + 1)]
    assert inputs["pixel_values"].shape == (1, 6, 28, 28)


def test_decoding_token_by_token_equals_one_whole_pass(teacher: OpenVlaTeacher) -> None:
    """The constrained distribution is the softmax over the action ids of a pass without a cache over the same tokens."""
    assert isinstance(teacher, Teacher)
    (seen,) = observations(1)
    emitted = teacher.emit([seen], WORDS[:1])
    inputs = teacher.inputs(seen, WORDS[0])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], emitted.token_ids[:, :-1]], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        logits = teacher.model(**inputs).logits[:, -7:]
    whole = torch.softmax(logits[..., V - 1 - torch.arange(256)], -1)
    assert whole.max() > 3 / 256
    np.testing.assert_allclose(emitted.probabilities.numpy(), whole.numpy(), atol=2e-5)


def test_actions_are_openvlas(teacher: OpenVlaTeacher) -> None:
    """What the most probable ids mean by OpenVLA's rule; the gripper as a flag."""
    seen = observations(2)
    ids = teacher.emit(seen, WORDS).token_ids.numpy()
    expected = openvla_decode(ids, STATISTICS["bridge_orig"]["action"])
    actions = np.stack([chunk.actions[0] for chunk in teacher.predict(seen, WORDS)])
    np.testing.assert_allclose(actions[:, :6], expected[:, :6], rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(actions[:, 6], expected[:, 6] > 0.5)


def test_distributions_are_over_the_values(teacher: OpenVlaTeacher) -> None:
    """(B, A, 255), each row sums to 1; together as alone; and picture and words matter."""
    seen = observations(2)
    answers = teacher.action_distribution(seen, WORDS)
    assert (answers.shape, answers.dtype) == ((2, 7, 255), np.float32)
    np.testing.assert_allclose(answers.sum(-1), 1, atol=1e-5)
    np.testing.assert_array_equal(teacher.action_distribution(seen[1:], WORDS[1:]), answers[1:])
    assert np.abs(teacher.action_distribution(seen[:1], WORDS[1:]) - answers[:1]).max() > 1e-4
    assert np.abs(teacher.action_distribution(seen[1:], WORDS[:1]) - answers[:1]).max() > 1e-4


@pytest.mark.parametrize("precision", ["bfloat16", "nf4"])
def test_weights_in_fewer_bits(folder: Path, precision: Any) -> None:
    """Distributions still, from less memory."""
    small = load_openvla(folder, precision=precision, trust_remote_code=True)
    np.testing.assert_allclose(small.action_distribution(observations(1), WORDS[:1]).sum(-1), 1, atol=1e-5)


def change(folder: Path, name: str, **fields: Any) -> None:
    (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **fields}))


@pytest.mark.parametrize(
    ("name", "fields", "error", "message"),
    [
        (TEACHER_FILE, {"unnorm_key": "one_arm"}, SpecError, r"statistics of 3 dimensions for the 7 .*'gripper'.*another unnorm_key"),
        (TEACHER_FILE, {"unnorm_key": "kuka"}, UnknownNameError, "Known: 'bridge_orig', 'one_arm'"),
        (TEACHER_FILE, {"camera": "top"}, SpecError, r"cameras \['top'\]"),
        (TEACHER_FILE, {"colour": "red"}, SpecError, r"unknown keys \['colour'\]"),
        (TEACHER_FILE, {"rule": "mean"}, SpecError, "rule: got 'mean'"),
        ("config.json", {"model_type": "llava"}, CheckpointError, r"model_type 'llava', expected one of \['openvla', 'prismatic'\]"),
        ("config.json", {"auto_map": {"AutoConfig": "a.B"}}, CheckpointError, "copy OpenVLA's modeling_prismatic.py"),
        ("config.json", {"n_action_bins": 512}, CheckpointError, "n_action_bins 512, expected 256"),
        ("config.json", {"text_config": {"vocab_size": 300}}, CheckpointError, "expected Llama 2's, 32064 and 64"),
    ],
)
def test_what_does_not_fit_is_refused(copied: Path, name: str, fields: dict[str, Any], error: Any, message: str) -> None:
    """Statistics of another robot, another model, another vocabulary: named."""
    change(copied, name, **fields)
    with pytest.raises(error, match=message):
        load_openvla(copied, trust_remote_code=True)


def test_code_that_cannot_be_imported_says_the_other_way(copied: Path) -> None:
    """As where it needs a package or a version that is not there."""
    (copied / "modeling_prismatic.py").write_text(MODELING + "\nraise RuntimeError('timm must be 0.9')\n")
    with pytest.raises(CheckpointError, match=r"timm must be 0\.9.*runtime\.rest_policy"):
        load_openvla(copied, trust_remote_code=True)


def test_an_instruction_with_a_special_token_is_refused(teacher: OpenVlaTeacher) -> None:
    """The end of the text among the words would change the question."""
    with pytest.raises(ObservationError, match="</s>"):
        teacher.predict(observations(1), ["put </s> cup"])


def test_actlet_serve_says_what_it_would_run(folder: Path) -> None:
    """On the command line: refused with code 2 and the line that allows it."""
    environment = {key: value for key, value in os.environ.items() if key != "ACTLET_TRUST_REMOTE_CODE"}
    command = [sys.executable, "-m", "actlet", "serve", str(folder), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 2
    assert f"ACTLET_TRUST_REMOTE_CODE={folder}" in done.stderr
