"""benchmarks.faults: a few thousand faults of every class, none of which may come out as an unsafe command or an undeclared error."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.faults import FAULTS, SPEC, _World, fuzz, inject, main


@pytest.mark.parametrize("classes", [*([name] for name in FAULTS), list(FAULTS)])
def test_no_command_is_unsafe(classes: list[str]) -> None:
    """And nothing leaves the loop."""
    found = inject(400, classes, seed=3)
    assert found["injected"] >= 400
    assert (found["unsafe"], found["crashes"], found["first"]) == (0, 0, [])
    assert found["commands"] > 0
    assert sum(found["ends"].values()) == found["runs"]


def test_decoders_raise_what_they_declare() -> None:
    """Some messages are still read."""
    for row in fuzz(1500, seed=5):
        assert row["undeclared"] == 0, row
        assert row["read"] + row["refused"] == 1500
        assert row["read"] > 0


@pytest.mark.parametrize("action", [[0, 0, np.nan, 1], [0.06, 0, 0, 1], [0, 0, 0, 0.5], [0, 0, 0.2, 1], [0, 0, 0]])
def test_an_unsafe_command_is_noticed(action: list[float]) -> None:
    """Not finite, outside, no flag, a jump, another shape: the judge is no blind one."""
    import random

    world = _World(random.Random(0), {})
    world.send_action(np.array([0, 0, 0, 1], np.float32))
    assert not world.unsafe
    world.send_action(np.array(action, np.float32))
    assert len(world.unsafe) == 1
    assert SPEC.action.dim == 4


def test_the_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Has what is promised; exit code 0 where nothing is at fault."""
    out = tmp_path / "faults.json"
    assert main(["--events", "500", "--messages", "100", "--out", str(out)]) == 0
    document = json.loads(out.read_text())
    assert {"class", "injected", "unsafe", "crashes"} <= set(document["faults"][0])
    assert {"decoder", "messages", "undeclared"} <= set(document["fuzz"][0])
    assert set(document["soak"]) == {"ticks", "faults", "memory_growth_bytes", "seconds"}
    assert "memory grew by" in capsys.readouterr().out
