"""benchmarks.service and benchmarks.service_rate: a real service in its own process, several robots, and what is made of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from point_reach import SPEC

from actlet.command_line import main
from actlet.errors import ActletError, SpecError
from benchmarks.closed_loop import ClosedLoopConfig
from benchmarks.policies import Contender
from benchmarks.service import ServiceConfig, _row, measure_service, service_tables
from benchmarks.service_rate import Condition, Measured, RateConfig, measure_rates, served

ONE_STEP = dataclasses.replace(SPEC, timing=dataclasses.replace(SPEC.timing, horizon=1, execute_steps=1, max_delay_steps=0))
RATE = RateConfig(robots=(1, 3), delays_ms=(0.0, 30.0), losses=(0.0, 0.2), seconds=0.3, rounds=2)
LOOP = ClosedLoopConfig(suite="point_reach:make_suite", episodes=4, wrong_episodes=0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, make_tiny_bundle: Callable[..., Path]) -> Path:
    """Answers one action, as a teacher does."""
    return make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "one", spec=ONE_STEP)


@pytest.fixture(scope="module")
def document(bundle: Path, tmp_path_factory: pytest.TempPathFactory, make_tiny_bundle: Callable[..., Path]) -> dict[str, Any]:
    """A whole measurement, of tiny sizes."""
    student = make_tiny_bundle(tmp_path_factory.mktemp("bundles") / "chunks", spec=SPEC)
    config = ServiceConfig(rate=RATE, loop=LOOP, judged_steps=(0, 1, 2))
    return measure_service([Contender("teacher", bundle), Contender("student", student)], config, progress=False)


def test_every_condition_is_measured_and_every_delay_is_felt(document: dict[str, Any]) -> None:
    """Eight conditions with answers; none is faster than its two delays; robots share what there is."""
    rows = document["rows"]
    assert [(row["loss"], row["delay_ms"], row["robots"]) for row in rows] == [
        (loss, delay, robots) for loss in RATE.losses for delay in RATE.delays_ms for robots in RATE.robots
    ]
    for row, raw in zip(rows, document["raw"]["service"], strict=True):
        assert row["decisions"] == len(raw["latency_s"]) > 0
        assert min(raw["latency_s"]) >= 2 * row["delay_ms"] / 1e3 * (1 - RATE.jitter)
        assert row["decision_rate_hz"] * row["robots"] == pytest.approx(row["total_rate_hz"])
        assert 1 <= row["batch_mean"] <= row["batch_max"] <= row["robots"]
        assert row["server_cpu_ms_per_decision"] >= 0
        assert row["errors"] == 0
    assert sum(row["lost_packets"] for row in rows if row["loss"]) > 0 == sum(row["lost_packets"] for row in rows if not row["loss"])


def test_success_is_judged_by_lateness_and_rows_take_what_is_not_later(document: dict[str, Any]) -> None:
    """Every row names its own lateness and the one that it was judged at."""
    assert [(row["while_waiting"], row["delay_steps"]) for row in document["late"]] == [
        *(("stands still", steps) for steps in (0, 1, 2)),
        *(("moves on", steps) for steps in (1, 2)),
    ]
    assert all(row["episodes"] == 4 and len(row["success_ci95"]) == 2 for row in document["late"])
    for row in document["rows"]:
        for way in row["late"].values():
            assert way["judged_steps"] <= way["steps"]
        assert row["success"] == max(way["success"] for way in row["late"].values())
    assert [(row["policy"], row["while_waiting"], row["blend_steps"], row["episodes"]) for row in document["on_board"]] == [
        ("student", way, blend, 4) for way in ("stands still", "moves on") for blend in (0, 2)
    ]
    assert len(document["raw"]["episodes"]) == 5 + 4


def test_the_document_is_json_and_the_tables_name_every_row(document: dict[str, Any]) -> None:
    """With machine, versions and date; one line a condition."""
    assert json.loads(json.dumps(document, allow_nan=False))["versions"]["python"]
    assert document["machine"]["cpu"]
    text = service_tables(document)
    assert text.count(" robots ") == 8
    assert text.count("stands still") == 3 + 1 + 2
    assert "on the robot" in text


def test_a_row_between_two_judged_latenesses_takes_the_lower() -> None:
    """620 ms at 5 steps a second are 3 or 4 steps: judged at 2 and at 3."""
    late = [
        {"while_waiting": way, "delay_steps": steps, "success": 1 - steps / 10, "success_ci95": [0, 1], "episodes": 9, "mean_seconds": None}
        for way in ("stands still", "moves on")
        for steps in (0, 1, 2, 5)
        if steps or way == "stands still"
    ]
    row = _row(Measured(latency_s=[0.62], batch=[1], infer_ms=[1.0], seconds=1.0).summary(Condition(0.0, 0.0, 1)), late, 5.0)
    assert {way: (found["steps"], found["judged_steps"]) for way, found in row["late"].items()} == {
        "stands still": (3, 2),
        "moves on": (4, 2),
    }
    silent = _row(Measured(errors=["no answer"]).summary(Condition(0.0, 0.0, 1)), late, 5.0)
    assert (silent["success"], silent["decisions"], silent["errors"]) == (None, 0, 1)


def test_many_robots_are_answered_in_batches(bundle: Path) -> None:
    """Six at once: some answers are given together, and nobody is left out."""
    with served(bundle) as (process, port):
        found = measure_rates(
            process, port, RateConfig(robots=(6,), delays_ms=(0.0,), losses=(0.0,), seconds=1.0, rounds=1), progress=False
        )
        assert process.is_running()
    (measured,) = found.values()
    assert len(measured.latency_s) >= 6
    assert max(measured.batch) > 1
    assert not process.is_running()


def test_what_cannot_be_served_says_why(tmp_path: Path) -> None:
    """The server's own words."""
    with pytest.raises(ActletError, match="Give the folder of a bundle"), served(tmp_path):
        pass


@pytest.mark.parametrize("options", [{"robots": ()}, {"robots": (0,)}, {"losses": (1.0,)}, {"delays_ms": (-1.0,)}, {"seconds": 0}])
def test_conditions_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    """No robots, everything lost, answers before questions."""
    with pytest.raises(SpecError, match=r"service: |network: "):
        RateConfig(**options)


def test_the_command_writes_the_document(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`actlet bench service --quick`: tables, a last line of JSON without the raw figures, and the file with them."""
    out = tmp_path / "service.json"
    words = ["bench", "service", f"teacher={bundle}", "--suite", "point_reach:make_suite", "--quick", "--episodes", "2", "--out", str(out)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "teacher as a service" in printed
    last = json.loads(printed.splitlines()[-1])
    assert last["rows"] == json.loads(out.read_text())["rows"]
    assert "raw" not in last
    assert last["late"][0]["episodes"] == 2
