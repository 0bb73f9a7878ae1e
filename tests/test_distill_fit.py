"""distill.fit: the loop learns, and a run that was cut off ends where an uncut one ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from actlet.errors import SpecError
from distill.fit import FitConfig, fit, work_folder

LossOfBatch = Callable[[nn.Module, torch.Generator], dict[str, Tensor]]
TRUTH = torch.tensor([[1.0, -2.0, 0.5]])


def loss_of_batch(module: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    x = torch.randn(16, 3, generator=generator)
    loss = nn.functional.mse_loss(module(x), x @ TRUTH.T)
    return {"loss": loss}


def line() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def test_it_learns_a_line(tmp_path: Path) -> None:
    """A linear map is recovered, and the log holds falling losses."""
    config = FitConfig(steps=300, learning_rate=0.05, weight_decay=0.0, average_decay=0.9)
    trained = fit(line(), loss_of_batch, config, state_folder=tmp_path / "state", log_file=tmp_path / "log.jsonl", label="line")
    assert torch.allclose(trained.weight, TRUTH, atol=0.02)
    losses = [json.loads(row)["loss"] for row in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] / 100


@pytest.mark.parametrize("muon", [False, True])
def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(tmp_path: Path, muon: bool) -> None:
    """Ctrl-C at step 7, then the same call again: bit for bit the weights of a run that nobody stopped."""
    config = FitConfig(steps=20, learning_rate=0.05, save_seconds=0.0)
    calls = 0

    def interrupted(module: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise KeyboardInterrupt
        return loss_of_batch(module, generator)

    def run(loss: LossOfBatch, name: str, label: str) -> nn.Module:
        module = line()
        groups = [{"params": [module.bias]}, {"params": [module.weight], "lr_scale": 0.5, "muon": muon}]
        log = tmp_path / f"{name}.jsonl"
        return fit(module, loss, config, state_folder=tmp_path / name, log_file=log, label=label, parameter_groups=groups)

    with pytest.raises(KeyboardInterrupt):
        run(interrupted, "a", "cut")
    resumed = run(loss_of_batch, "a", "on")
    uncut = run(loss_of_batch, "b", "uncut")
    assert torch.equal(resumed.weight, uncut.weight)
    assert torch.equal(resumed.bias, uncut.bias)


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    """The same call after the end returns the same weights without a step."""
    config = FitConfig(steps=5)
    first = fit(line(), loss_of_batch, config, state_folder=tmp_path / "s", log_file=tmp_path / "l.jsonl", label="once")

    def never(module: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        raise AssertionError("no step is left")

    again = fit(line(), never, config, state_folder=tmp_path / "s", log_file=tmp_path / "l.jsonl", label="again")
    assert torch.equal(first.weight, again.weight)


def test_contradictions_are_refused() -> None:
    """No steps is the caller's mistake."""
    with pytest.raises(SpecError, match="steps 0"):
        FitConfig(steps=0)


def test_work_of_other_arguments_is_not_gone_on_with(tmp_path: Path) -> None:
    """The same arguments find what was left behind, others start clean."""
    left = work_folder(tmp_path / "student", {"steps": 5}) / "state"
    left.write_text("half a run")
    assert (work_folder(tmp_path / "student", {"steps": 5}) / "state").read_text() == "half a run"
    assert not (work_folder(tmp_path / "student", {"steps": 6}) / "state").exists()
