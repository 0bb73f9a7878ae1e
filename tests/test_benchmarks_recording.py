"""What a recording costs: both measurements run, and lose nothing that they recorded."""

from __future__ import annotations

from pathlib import Path

from benchmarks.recording import measure_calls, measure_loop


def test_calls_are_timed_beside_a_call_that_does_nothing(tmp_path: Path) -> None:
    """One figure each."""
    calls = measure_calls(tmp_path, 20)
    assert {"nothing", "command"} <= calls.keys()
    assert all(0 < took["p50"] <= took["p99"] <= took["max"] for took in calls.values())


def test_the_loop_runs_by_turns(tmp_path: Path) -> None:
    """Without and with a recording, which is whole."""
    rows = measure_loop(tmp_path, 0.3, 1)
    assert [row["recorded"] for row in rows] == [False, True]
    assert all(row["ticks"] > 0 and row["lost"] == 0 for row in rows)
