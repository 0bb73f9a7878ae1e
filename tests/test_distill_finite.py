"""distill.finite, and what finds the rows: a loss that is not finite ends the run, names its frames, and never reaches a state."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import point_reach
import pytest
import torch
from test_distill_fit import line, loss_of_batch
from test_distill_train import ONE_STEP, TINY, tiny
from torch import Tensor, nn

from actlet.action_tokens import ActionTokenizer
from actlet.errors import DatasetError, TrainingError
from actlet.storage import read_json
from distill.finite import require_finite_weights
from distill.fit import FitConfig, fit
from distill.frames import Frames
from distill.scenes import Scenes
from distill.student import Student
from distill.student_batches import StudentBatches, StudentInTraining
from episodes.episode import Episode

SPEC = dataclasses.replace(ONE_STEP, timing=dataclasses.replace(ONE_STEP.timing, horizon=4))
TOKENIZER = ActionTokenizer(np.float32([0, -0.08, -0.08, 0]), np.float32([1, 0.08, 0.08, 1]))


def episode(steps: int, colour: str = "red") -> Episode:
    rng = np.random.default_rng(steps)
    pictures = {"above": rng.integers(0, 256, (steps, 16, 16, 3), dtype=np.uint8)}
    state = rng.random((steps, 2), dtype=np.float32)
    return Episode(f"reach the {colour} target", pictures, state, np.zeros((steps, 4), np.float32), success=True)


@pytest.fixture
def frames() -> Frames:
    """Episodes 7 and 9 of a dataset, 6 and 10 frames, with a teacher that knows nothing."""
    pair = [episode(6), episode(10, "blue")]
    table = Frames.from_episodes(pair, point_reach.OBSERVATION, point_reach.ACTION, names=["episode 7", "episode 9"])
    table.distribution = np.full((16, 4, 256), 1 / 256, np.float16)
    return table


@pytest.fixture
def scenes() -> Scenes:
    pictures = {"above": np.zeros((3, 16, 16, 3), np.uint8)}
    features = np.random.default_rng(0).random((3, 5), dtype=np.float32)
    lines = ["reach the red target", "reach the blue target", "reach the red target"]
    return Scenes(pictures, np.zeros((3, 2), np.float32), np.arange(3), lines, features)


def in_training(scenes: Scenes | None = None) -> StudentInTraining:
    torch.manual_seed(0)
    student = Student(SPEC, TOKENIZER, dataclasses.replace(TINY, dropout=0.0))
    return StudentInTraining(student, 0 if scenes is None else scenes.features.shape[1])


def run(module: nn.Module, batches: StudentBatches, folder: Path, poison: object = None, at: int = 3) -> None:
    """Six updates; before number `at` + 1 something breaks."""
    calls = 0

    def losses(model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        nonlocal calls
        if calls == at and callable(poison):
            poison()
        calls += 1
        return batches.losses(model, generator)

    settings = FitConfig(steps=6, save_seconds=0.0)
    fit(module, losses, settings, state_folder=folder / "state", log_file=folder / "log", label="student", blame=batches.blame)


def test_the_frames_whose_targets_are_not_numbers_are_named(frames: Frames, tmp_path: Path) -> None:
    """Episode of the dataset, frame in the episode, instruction, part of the loss, update; and the state of the update before is kept."""
    module = in_training()
    batches = StudentBatches(module.student, frames, None, tiny(batch_size=64))

    def poison() -> None:
        frames.distribution[6 + 9, 1, 3] = np.nan  # type: ignore[index]

    with pytest.raises(TrainingError) as caught:
        run(module, batches, tmp_path, poison)
    message = str(caught.value)
    assert "student, update 4 of 6: tokens not finite" in message
    assert "of the 64 rows of the batch" in message
    assert "episode 9, frame 9 ('reach the blue target'): tokens" in message
    assert "the teacher's answer is not finite for episode 9, frame 9" in message
    assert "episode 7" not in message
    assert "The state after update 3 is kept" in message
    assert read_json(tmp_path / "state" / "step.json") == {"step": 3}


def test_a_scene_is_named_too(frames: Frames, scenes: Scenes, tmp_path: Path) -> None:
    """With its instruction; the frames beside it are not accused."""
    module = in_training(scenes)
    batches = StudentBatches(module.student, frames, scenes, tiny(batch_size=32))

    def poison() -> None:
        batches._features[1, 0] = torch.inf

    with pytest.raises(TrainingError, match=r"features not finite") as caught:
        run(module, batches, tmp_path, poison)
    assert "scene 1 ('reach the blue target'): features; what the teacher sees there is not finite" in str(caught.value)
    assert "episode" not in str(caught.value)


def test_where_every_row_fails_the_settings_are_blamed(frames: Frames, tmp_path: Path) -> None:
    """Weights that have gone to infinity are nobody's data."""
    module = in_training()
    batches = StudentBatches(module.student, frames, None, tiny(batch_size=8))

    def poison() -> None:
        with torch.no_grad():
            module.student.queries.bias.fill_(torch.inf)

    with pytest.raises(TrainingError, match=r"All 8 rows of the batch are to blame.*lower the learning rate"):
        run(module, batches, tmp_path, poison)


def test_a_gradient_that_is_not_finite_is_refused_before_it_changes_the_weights(tmp_path: Path) -> None:
    """The loss is a number, its slope is none; the run that follows without the fault is as if nothing had happened."""
    config, faulty = FitConfig(steps=8, learning_rate=0.05, save_seconds=0.0), True
    calls = 0

    def steep(module: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        losses = loss_of_batch(module, generator)
        if faulty and calls == 5:
            losses["loss"] = losses["loss"] + torch.sqrt(0.0 * module.bias).sum()  # type: ignore[operator]
        return losses

    def train(folder: str) -> nn.Module:
        log = tmp_path / f"{folder}.jsonl"
        return fit(line(), steep, config, state_folder=tmp_path / folder, log_file=log, label="line")

    with pytest.raises(TrainingError, match=r"line, update 5 of 8: the gradient not finite.*\n.*state after update 4"):
        train("a")
    faulty = False
    assert torch.equal(train("a").weight, train("b").weight)


def test_weights_that_are_not_finite_are_not_kept() -> None:
    """They are named."""
    module = line()
    require_finite_weights(module, where="line", kept="")
    with torch.no_grad():
        module.weight[0, 1] = torch.nan
    with pytest.raises(TrainingError, match="the weights weight are not finite"):
        require_finite_weights(module, where="line", kept="")


@pytest.mark.parametrize(("what", "entry", "said"), [("state", 1, "state 'y' is nan"), ("action", 2, "action 'dy' is inf")])
def test_data_that_are_not_numbers_never_become_frames(what: str, entry: int, said: str) -> None:
    """Refused when they are read, with episode, frame and dimension."""
    bad = episode(5)
    getattr(bad, what)[3, entry] = np.nan if "nan" in said else np.inf
    with pytest.raises(DatasetError, match=rf"episode 1 'reach the red target': {said} at frame 3, 1 such in all; expected finite"):
        Frames.from_episodes([episode(6), bad], point_reach.OBSERVATION, point_reach.ACTION)


def test_the_parts_of_two_processes_are_the_batch(frames: Frames, scenes: Scenes) -> None:
    """The mean of their losses is the loss of one process on the whole, but for how the ends of episodes are weighted."""
    module = in_training(scenes).eval()

    def losses(part: tuple[int, int]) -> dict[str, float]:
        batches = StudentBatches(module.student, frames, scenes, tiny(batch_size=32), part=part)
        return {name: float(value.detach()) for name, value in batches.losses(module, torch.Generator().manual_seed(1)).items()}

    whole, parts = losses((0, 1)), [losses((0, 2)), losses((1, 2))]
    assert parts[0]["features"] != parts[1]["features"]
    for name, value in whole.items():
        assert (parts[0][name] + parts[1][name]) / 2 == pytest.approx(value, rel=2e-3 if name in ("loss", "tokens") else 1e-5)


def test_the_loss_takes_a_network_that_computes_in_bfloat16(frames: Frames, scenes: Scenes) -> None:
    """As Accelerate wraps it on a GPU, here on a processor: losses in float32 and close to those of float32, a gradient for every weight."""
    module = in_training(scenes).eval()
    batches = StudentBatches(module.student, frames, scenes, tiny(batch_size=16))
    exact = batches.losses(module, torch.Generator().manual_seed(1))["loss"]
    module.forward = torch.autocast("cpu", dtype=torch.bfloat16)(module.forward)  # type: ignore[method-assign]
    losses = batches.losses(module, torch.Generator().manual_seed(1))
    rough = losses["loss"]
    assert {value.dtype for value in losses.values()} == {torch.float32}
    rough.backward()
    assert rough.item() == pytest.approx(exact.item(), rel=0.01)
    assert rough.item() != exact.item()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
