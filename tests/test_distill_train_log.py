"""distill.train_log and distill.spent: what is written about a training, over all the times that it was started again."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path

import pytest

from actlet.errors import MissingLibraryError
from actlet.storage import write_json
from distill.spent import Spent
from distill.train_log import TrainLog, require_tensorboard


def test_what_was_logged_after_the_last_state_is_not_logged_twice(tmp_path: Path) -> None:
    """Nor is a line that was cut in the middle kept."""
    file = tmp_path / "log.jsonl"
    with TrainLog(file, 0) as log:
        for step in (0, 20, 40):
            log.write(step, 0.1, {"loss": 1.0}, 2.0)
    file.write_text(file.read_text() + '{"step": 6')
    with TrainLog(file, 30) as log:
        log.write(40, 0.1, {"loss": 0.5}, 1.0)
    assert [json.loads(row) for row in file.read_text().splitlines()][1:] == [
        {"step": 20, "lr": 0.1, "loss": 1.0, "seconds": 2.0},
        {"step": 40, "lr": 0.1, "loss": 0.5, "seconds": 1.0},
    ]
    with TrainLog(file, 0):
        assert file.read_text() == ""


def test_tensorboard_that_is_not_installed_is_refused_with_the_line_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is trained; what it would show is in the log anyway."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else find(name))
    with pytest.raises(MissingLibraryError, match=r"not installed.*train_log.jsonl.* Run: pip install tensorboard"):
        require_tensorboard()


@pytest.mark.filterwarnings("default")
def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    """Event files that TensorBoard's own reader reads."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed")
    with TrainLog(tmp_path / "log.jsonl", 0, tmp_path / "events") as log:
        for step in (0, 20):
            log.write(step, 0.25, {"loss": 1.5 + step}, 2.0)
    events = reader.EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(0, 1.5), (20, 21.5)]
    assert events.Scalars("lr")[0].value == 0.25


def test_what_was_spent_adds_up_over_processes_and_restarts(tmp_path: Path) -> None:
    """A process that burns its processor for a while says so, on top of what it noted before it was killed."""
    write_json(tmp_path / "spent-0.json", {"wall_s": 100.0, "cpu_s": 70.0})
    write_json(tmp_path / "spent-1.json", {"wall_s": 90.0, "cpu_s": 60.0})
    spent = Spent(tmp_path, 0)
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    spent.note()
    total = Spent.total(tmp_path)
    assert total["train_cpu_s"] >= 130.2
    assert total["train_wall_s"] >= 100.2
