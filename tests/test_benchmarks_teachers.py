"""benchmarks.teachers: rows of the ablation, and the rates of every way of decoding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from actlet.action_tokens import ActionTokenizer
from actlet.errors import CallerError
from actlet.storage import read_json, write_json
from benchmarks.teachers import DECODINGS, RECIPES, compact_service, decoding_rows, main, quality_row, teachers_table
from distill.rt2_teacher import Rt2Teacher
from distill.teach import TeachConfig
from distill.teacher_checkpoint import save_teacher
from distill.teacher_config import TeacherConfig
from episodes import tabletop
from episodes.rollout import EpisodeResult

TINY = TeacherConfig(layers=1, lora_rank=2, channels=(8, 8, 8), blocks=(1, 1, 1), condition_dim=8, features=16, scene_tokens=2)


def episode(seed: int, success: bool, kind: str = "usual") -> dict[str, object]:
    result = EpisodeResult(
        task="touch",
        seed=seed,
        instruction="touch the red block",
        success=success,
        steps=9,
        terminated_early=False,
        mean_squared_jerk=1.0,
        path_length=0.1,
        gripper_flips=0,
        kind=kind,
        error="",
    )
    return result.to_dict()


@pytest.fixture
def card(tmp_path: Path) -> Path:
    scores = {"after the web alone": 0.8, "at the end": 0.9}
    lineage = {"held_out_questions": {"set": "easy-vqa, test", "questions": 10, "answered right": scores}}
    write_json(tmp_path / "config.json", {"architecture": {"layers": 6}, "lineage": lineage})
    return tmp_path


def test_every_recipe_is_a_way_to_train() -> None:
    """The settings are those of TeachConfig."""
    for settings in RECIPES.values():
        TeachConfig(**({"web": ("easy-vqa",), "web_steps": 3} | settings))


def test_a_row_keeps_rates_intervals_scores_and_every_outcome(card: Path) -> None:
    """What the table says can be counted again from the row."""
    found = {
        "seen": [episode(0, True), episode(1, False)],
        "objects": [episode(0, True, "can"), episode(1, True, "post")],
    }
    row = quality_row("co-fine-tuned", card, found, plan=False)
    assert row["seen_success"] == 0.5
    assert row["unseen_success"] == {"objects": 1.0}
    assert row["per_kind"]["objects"] == {"can": 1.0, "post": 1.0}
    assert (row["vqa_accuracy"], row["vqa_accuracy_before"], row["episodes"]) == (0.9, 0.8, 2)
    assert row["outcomes"] == {"seen": "10", "objects": "11"}
    table = teachers_table([row])
    assert "50 % [9, 91]" in table
    assert "90 %" in table


@pytest.mark.slow
def test_every_way_of_decoding_is_timed_and_weighed(tmp_path: Path) -> None:
    """By turns on a tiny teacher of the simulated robot; a plan takes longer than none, 4 bits less memory than 32 do in the process."""
    from actlet.specs import PolicySpec, TimingSpec

    task = tabletop.make("touch", image_px=32)
    timing = TimingSpec(rate_hz=10.0, horizon=1, execute_steps=1, max_delay_steps=0)
    spec = PolicySpec(observation=task.observation_spec, action=task.action_spec, timing=timing)
    low, high = np.float32(spec.action.low), np.float32(spec.action.high)
    save_teacher(Rt2Teacher(spec, ActionTokenizer(low, high), config=TINY), tmp_path, lineage={})
    rows = decoding_rows(tmp_path, "co-fine-tuned", 2)
    assert [(row["load"], row["plan"]) for row in rows] == list(DECODINGS)
    assert all(row["decision_rate_hz"] > 0 and row["peak_memory_bytes"] > 1e8 for row in rows)
    assert "nf4" in teachers_table(rows)


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    """A recipe that is none, a folder without a teacher, no place to write."""
    with pytest.raises(CallerError, match="expected RECIPE=FOLDER"):
        main(["--out", str(tmp_path), "--teacher", f"best={tmp_path}"])
    with pytest.raises(CallerError, match="--out is missing"):
        main([])


def test_the_published_figures_are_counted_from_their_outcomes() -> None:
    """benchmarks/results/teachers.json: each rate is the share of ones in its outcomes."""
    document = read_json(Path(__file__).parent.parent / "benchmarks" / "results" / "teachers.json")
    judged = [row for row in document["rows"] if "outcomes" in row]
    assert {row["recipe"] for row in judged} >= set(RECIPES)
    for row in judged:
        for axis, outcomes in row["outcomes"].items():
            rate = row[f"{axis}_success"] if axis in ("seen", "put") else row["unseen_success"][axis]
            assert len(outcomes) == row["episodes"]
            assert rate == pytest.approx(outcomes.count("1") / len(outcomes))


def test_a_service_is_kept_with_the_best_way_to_run_each_policy() -> None:
    """Every condition stays; of a policy on the robot the row with the most successes."""
    row = {
        "robots": 4,
        "delay_ms": 50.0,
        "loss": 0.01,
        "decision_rate_hz": 2.0,
        "total_rate_hz": 8.0,
        "batch_mean": 3.5,
        "server_cpu_ms_per_decision": 60.0,
        "latency_ms": {"p50": 400.0, "p99": 700.0},
        "late": {},
        "success": 0.5,
        "success_ci95": [0.3, 0.7],
        "episodes": 42,
    }
    boards = [{"policy": "student", "success": success, "latency_ms": {"p50": 1.0}} for success in (0.4, 0.9, 0.2)]
    document = {"date": "", "machine": {}, "versions": {}, "conditions": {"threads": 1}, "rows": [row], "late": [], "on_board": boards}
    kept = compact_service(document, "so")
    assert [board["success"] for board in kept["on_board"]] == [0.9]
    assert (kept["rows"][0]["latency_p50_ms"], kept["rows"][0]["loss"], kept["conditions"]) == (400.0, 0.01, "so")
