"""distill.judge: training ends when success no longer rises, what is kept drove best, and a run that was cut off judges nothing twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from test_distill_fit import line, loss_of_batch
from torch import Tensor, nn

from distill.fit import FitConfig, fit
from distill.judge import Judge
from distill.processes import processes


class Driven:
    """Success as it was on a road that is known beforehand; how the network was at each judgement is kept."""

    def __init__(self, successes: Sequence[int]) -> None:
        self.successes, self.seen = iter(successes), []

    def __call__(self, module: nn.Module) -> tuple[int, int]:
        self.seen.append(module.weight.detach().clone())  # type: ignore[operator]
        torch.randn(7)  # A simulation may draw numbers.
        return next(self.successes), 50


def judge(work: Path, drive: Driven, *, round_number: int = 0, steps: int = 20, patience: int = 2) -> Judge:
    return Judge(work, round_number, steps=steps, every=5, patience=patience, drive=drive, state=processes())


def train(work: Path, judge: Judge, steps: int = 20, loss: object = loss_of_batch) -> nn.Module:
    settings = FitConfig(steps=steps, learning_rate=0.05, save_seconds=1e9)
    log = work / "log.jsonl"
    return fit(line(), loss, settings, state_folder=work / "state", log_file=log, label="line", judge=judge)  # type: ignore[arg-type]


def test_training_ends_when_success_no_longer_rises(tmp_path: Path) -> None:
    """Two judgements without more: the round is over, and the weights of the best one come back."""
    drive = Driven([10, 30, 30, 29])
    judged = judge(tmp_path, drive, steps=1000)
    module = train(tmp_path, judged, steps=1000)
    assert judged.updates == 20
    assert judged.best == {"round": 0, "updates": 10, "successes": 30, "episodes": 50}
    judged.restore(module)
    assert torch.equal(module.weight, drive.seen[1])
    assert not torch.equal(drive.seen[1], drive.seen[-1])


def test_the_last_weights_are_judged_too(tmp_path: Path) -> None:
    """Seven updates, one judgement every five."""
    judged = judge(tmp_path, Driven([1, 2]), steps=7)
    train(tmp_path, judged, steps=7)
    assert [each["updates"] for each in judged.judgements] == [5, 7]


def test_a_plateau_ends_its_round_alone(tmp_path: Path) -> None:
    """The next round has the same patience again, and is measured against the best of all rounds."""
    first = judge(tmp_path, Driven([30, 20, 10]))
    train(tmp_path, first)
    assert first.stopped
    second = judge(tmp_path, drive := Driven([25, 31, 24, 31]), round_number=1)
    assert not second.stopped
    for updates in (5, 10, 15):
        second.judge(updates, line())
        assert not second.stopped
    second.judge(20, line())
    assert second.stopped
    assert second.best["round"] == 1
    assert (second.best["updates"], second.updates, len(drive.seen)) == (10, 15 + 20, 4)


@pytest.mark.parametrize("cut_at", [3, 7, 12])
def test_a_run_that_was_cut_off_judges_nothing_twice(tmp_path: Path, cut_at: int) -> None:
    """The state is kept before each judgement: the same verdicts on the same weights as in a run in one go."""
    successes, calls = [10, 30, 20, 40], 0

    def interrupted(module: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        if calls == cut_at + 1:
            raise KeyboardInterrupt
        return loss_of_batch(module, generator)

    cut, whole = Driven(successes), Driven(successes)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", judge(tmp_path / "cut", cut), loss=interrupted)
    resumed = judge(tmp_path / "cut", cut)
    a, b = train(tmp_path / "cut", resumed), train(tmp_path / "whole", judge(tmp_path / "whole", whole))
    assert [each["successes"] for each in resumed.judgements] == successes
    assert all(torch.equal(x, y) for x, y in zip(cut.seen, whole.seen, strict=True))
    assert torch.equal(a.weight, b.weight)


def test_a_round_that_was_over_is_not_gone_on_with(tmp_path: Path) -> None:
    """The same call again makes no update and asks for no judgement."""
    train(tmp_path, judge(tmp_path, Driven([30, 20, 10]), steps=1000), steps=1000)

    def never(module: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        raise AssertionError("the round was over")

    train(tmp_path, judge(tmp_path, Driven([]), steps=1000), steps=1000, loss=never)
