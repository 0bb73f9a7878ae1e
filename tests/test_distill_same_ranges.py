"""distill.same_ranges: data in another unit, scale or place than a teacher's are refused; ordinary data pass."""

from __future__ import annotations

import json
import types
from pathlib import Path

import numpy as np
import pytest
import small_dataset
from test_distill_rollouts import save_teacher_of

from actlet.action_tokens import ActionTokenizer
from actlet.errors import SpecError
from distill import shipped_teacher
from distill.label import label
from distill.same_ranges import require_same_ranges
from distill.train import TrainConfig, distill
from episodes.collect import collect
from episodes.lerobot_dataset import open_dataset

DATASET = types.SimpleNamespace(action_spec=small_dataset.ACTION, observation_spec=small_dataset.OBSERVATION)
TOKENIZER = ActionTokenizer(np.float32([0, -0.5, -0.5]), np.float32([1, 0.5, 0.5]))


def moves(scale: float | list[float], count: int = 400) -> np.ndarray:
    return (np.random.default_rng(0).uniform(-1, 1, (count, 3)) * np.append(1, np.broadcast_to(scale, 2))).astype(np.float32)


def check(actions: np.ndarray, states: np.ndarray | None = None, teacher: object = None, **options: float) -> None:
    states = np.zeros((len(actions), 3), np.float32) if states is None else states
    require_same_ranges(states, actions, teacher, DATASET, TOKENIZER, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [0.5, 0.52, 0.1, [0.5, 0.0], [0.5, 0.004]])
def test_data_within_the_bins_pass(scale: float | list[float]) -> None:
    """The teacher's own range, a little more, a part of it, and one dimension that rests or hardly moves."""
    check(moves(scale))


def test_data_that_the_bins_would_cut_off_are_refused() -> None:
    """The message holds dimension, percentiles, bounds and what to do; where the cut is meant it is allowed."""
    wide = moves([0.5, 1.0])
    with pytest.raises(
        SpecError,
        match=r"action 'dy': 4\d\.\d% .* are cut off .*percentiles 1, 50, 99: -0\.9.*bounds \[-0\.5, 0\.5\] in \[m\].*--cut-off-share 0\.[45]",
    ):
        check(wide)
    check(wide, cut_off_share=0.5)


def test_a_few_frames_prove_nothing() -> None:
    """Two of twelve frames outside are chance; of four hundred a sixth are not."""
    short = moves(0.4, 12)
    short[:2, 1] = 0.9
    check(short)
    with pytest.raises(SpecError, match="'dx'"):
        check(np.tile(short, (33, 1)))


def test_another_unit_is_refused() -> None:
    """A teacher in thousandfold numbers: all of a unit that moves spans next to nothing of its bins."""
    with pytest.raises(
        SpecError, match=r"action 'd[xy]': the dataset spans 0\.10% of the teacher's range .*no other action in \[m\] spans more"
    ):
        check(moves(0.0005))
    check(moves(0.0005), cut_off_share=1.0)


def test_states_elsewhere_are_refused() -> None:
    """In millimetres for metres, or far too still; a teacher that says nothing of its states is not asked."""
    random = np.random.default_rng(0)
    states = random.normal([0.5, 0.0, 0.5], 0.1, (400, 3)).astype(np.float32)
    teacher = types.SimpleNamespace(state_mean=np.float32([0.5, 0, 0.5]), state_std=np.float32([0.1, 0.1, 0.3]))
    check(moves(0.5), states, teacher)
    with pytest.raises(
        SpecError, match=r"state 'x': most of the dataset lies further than 10 standard deviations.*the teacher's 0\.5 \+- 0\.1 in \[m\]"
    ):
        check(moves(0.5), states * np.float32([1000, 1000, 1]), teacher)
    still = np.float32([0.5, 0, 0.5]) + 0.0005 * states
    with pytest.raises(SpecError, match=r"state '[xyo].*spans .*the teacher's"):
        check(moves(0.5), still, teacher)
    check(moves(0.5), states * 1000)


@pytest.mark.slow
def test_the_teacher_that_comes_along_fits_the_table(tmp_path: Path) -> None:
    """Twelve demonstrations of the suite that it is made for pass."""
    collect("tabletop", tmp_path / "data", 12, workers=1)
    dataset = open_dataset(tmp_path / "data")
    states, actions = dataset.read_vectors()
    tokenizer = json.loads((shipped_teacher() / "config.json").read_text())["tokenizer"]
    require_same_ranges(states, actions, None, dataset, ActionTokenizer.from_dict(tokenizer))


def test_labelling_and_distilling_compare_first(tmp_path: Path) -> None:
    """Before the first question, and nothing is left behind."""
    collect("point_reach:make_suite", tmp_path / "data", 6, workers=1)
    teacher = save_teacher_of(0, tmp_path / "teacher")
    config = json.loads((teacher / "config.json").read_text())
    config["tokenizer"]["high"][1], config["tokenizer"]["low"][1] = 0.01, -0.01
    (teacher / "config.json").write_text(json.dumps(config))
    with pytest.raises(SpecError, match=r"action 'dx': .* are cut off"):
        label(tmp_path / "data", teacher, tmp_path / "labels")
    with pytest.raises(SpecError, match=r"action 'dx': .* are cut off"):
        distill(tmp_path / "data", tmp_path / "student", teacher=teacher, config=TrainConfig(steps=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "teacher"]
