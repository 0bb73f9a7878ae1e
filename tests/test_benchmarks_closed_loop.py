"""Judging policies on the same episodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actlet.errors import SpecError
from benchmarks.closed_loop import ClosedLoopConfig, compare, summarise


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """Six episodes of a policy that listens, and of one that always goes to the red target."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    from tiny_results import tiny_runs

    return tiny_runs()


def test_a_listener_and_a_deaf_policy_are_told_apart(runs: dict[str, dict[str, Any]]) -> None:
    """Told something else, the listener does that instead; the deaf one still does the red half."""
    listener, deaf = summarise(runs["student-float"]), summarise(runs["student-int8"])
    assert (listener["success"], listener["success_wrong_instruction"]) == (1.0, 0.0)
    assert (deaf["success"], deaf["success_wrong_instruction"]) == (0.5, 0.5)


def test_tasks_add_up(runs: dict[str, dict[str, Any]]) -> None:
    """Per-task counts sum to the whole."""
    found = summarise(runs["student-int8"])
    assert {task: row["successes"] for task, row in found["per_task"].items()} == {"red": 3, "blue": 0}
    assert sum(row["episodes"] for row in found["per_task"].values()) == found["episodes"] == 6


def test_a_policy_equals_itself(runs: dict[str, dict[str, Any]]) -> None:
    """No difference, p = 1."""
    episodes = runs["student-float"]["episodes"]
    pairs = compare(episodes, episodes, "itself")
    assert (pairs["difference"], pairs["only_this"], pairs["only_parent"], pairs["mcnemar_p"]) == (0.0, 0, 0, 1.0)


def test_only_common_episodes_are_compared(runs: dict[str, dict[str, Any]]) -> None:
    """A run over fewer seeds is compared on those; none in common is an error."""
    ours, theirs = runs["student-int8"]["episodes"], runs["student-float"]["episodes"]
    assert compare(ours[:4], theirs, "student-float")["episodes"] == 4
    with pytest.raises(SpecError, match="no episode in common with 'student-float'"):
        compare(ours[:2], theirs[2:], "student-float")


@pytest.mark.parametrize("options", [{"episodes": 0}, {"first_seed": 49_990, "episodes": 20}, {"first_seed": -1}])
def test_seeds_of_other_uses_are_refused(options: dict[str, int]) -> None:
    """Reports use the seeds that nothing was trained or tuned on."""
    with pytest.raises(SpecError, match="those kept for reports"):
        ClosedLoopConfig(**options)
