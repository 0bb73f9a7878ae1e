"""Which rates a machine holds with a bundle: what is advised is what the control loop's schedule accepts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_SPEC

from actlet.specs import TimingSpec
from benchmarks import doctor_rates
from benchmarks.doctor_rates import RATES_HZ, Rates, measure_rates, rates_of, rates_table
from runtime.chunk_schedule import ChunkSchedule
from runtime.policy import BundlePolicy


@pytest.mark.parametrize(("horizon", "execute", "delay"), [(6, 3, 2), (8, 1, 1), (16, 8, 4), (10, 10, 9), (20, 5, 12)])
@pytest.mark.parametrize("latency_s", [0.0004, 0.013, 0.31])
def test_an_advised_command_rate_is_one_that_the_loop_can_keep(horizon: int, execute: int, delay: int, latency_s: float) -> None:
    """At it, even twice the p99 is in time: the chunk is used, and is there before the next one is asked for. At 2.1 times it, twice the p99 is not."""
    timing = TimingSpec(rate_hz=10, horizon=horizon, execute_steps=execute, max_delay_steps=delay)
    decisions, commands = rates_of(timing, latency_s)

    def in_time(rate_hz: float) -> bool:
        arrives = math.ceil(2 * latency_s * rate_hz - 1e-9)  # The loop takes an answer at the step that follows it.
        schedule = ChunkSchedule(dataclasses.replace(TINY_SPEC, timing=timing))
        verdict = schedule.add(np.zeros((horizon, TINY_SPEC.action.dim), np.float32), observed_at=0, now=arrives)
        return verdict == "used" and arrives <= execute

    assert in_time(commands)
    assert not in_time(2.1 * commands)
    assert commands / execute <= decisions * (1 + 1e-9)  # So many decisions are needed then.


def test_a_policy_for_no_delay_must_answer_within_a_step() -> None:
    """The loop waits for it: half a step, however long its chunk is."""
    timing = TimingSpec(rate_hz=10, horizon=8, execute_steps=4, max_delay_steps=0)
    assert rates_of(timing, 0.02) == (25.0, 25.0)


def test_a_bundle_is_measured_and_judged(tiny_bundle: Path) -> None:
    """Figures in order, rates of the list, and by the p99 of CPU time."""
    (row,) = measure_rates({"tiny": BundlePolicy(tiny_bundle)}, turns=8)
    assert (row.bundle, row.precision, row.turns) == ("tiny", "float32", 8)
    assert 0 < row.wall_ms["p50"] <= row.wall_ms["p99"] <= row.wall_ms["max"]
    decisions, commands = rates_of(TINY_SPEC.timing, row.cpu_ms["p99"] / 1e3)
    assert row.decisions_hz == max((hz for hz in RATES_HZ if hz <= decisions), default=0)
    assert row.commands_hz == max((hz for hz in RATES_HZ if hz <= commands), default=0)
    assert (row.decisions_needed_hz, row.commands_own_hz) == (pytest.approx(10 / 3), 10)
    assert row.enough == (commands >= 10)


def test_calls_that_count_come_after_other_work(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call of a turn is counted, the others are warm ones."""
    asked: list[int] = []

    def ask(policy: BundlePolicy, row: int) -> tuple[float, float]:
        asked.append(row)
        return (1.0, 0.5) if len(asked) % 3 == 1 else (0.1, 0.05)

    monkeypatch.setattr(doctor_rates, "_ask", ask)
    (row,) = measure_rates({"tiny": BundlePolicy(tiny_bundle)}, turns=4)
    assert len(asked) == (1 + 4) * (1 + doctor_rates.WARM_CALLS)
    assert (row.wall_ms["p50"], row.wall_ms["p99"], row.cpu_ms["p99"], row.warm_p50_ms) == (1000.0, 1000.0, 500.0, 100.0)


def test_a_slow_bundle_gets_fewer_turns(tmp_path: Path, make_tiny_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A quick one beside it gets all of its own."""
    policies = {name: BundlePolicy(make_tiny_bundle(tmp_path / name)) for name in ("slow", "quick")}
    times = {id(policies["slow"]): 0.2, id(policies["quick"]): 0.001}
    monkeypatch.setattr(doctor_rates, "_ask", lambda policy, row: (times[id(policy)], times[id(policy)]))
    slow, quick = measure_rates(policies, turns=60)
    assert (slow.turns, quick.turns) == (doctor_rates.LEAST_TURNS, 60)
    text = rates_table([slow, quick], 0.0)
    assert text[1].endswith("2, needs 3.33         5, made for 10: TOO SLOW")
    assert text[2].endswith("500, needs 3.33       1000+, made for 10")
    assert "30 to 60 decisions" in text[3]


def test_the_tables_columns_stand_below_each_other() -> None:
    """Also with a long name and with figures of several digits."""
    times = {"p50": 1234.5, "p95": 1.0, "p99": 2345.67, "max": 3.0}
    row = Rates(
        bundle="a-bundle-of-a-long-name",
        precision="int4-int8",
        turns=200,
        wall_ms=times,
        cpu_ms=times,
        warm_p50_ms=0.5,
        decisions_hz=0,
        decisions_needed_hz=10.0,
        commands_hz=0,
        commands_own_hz=50.0,
        enough=False,
    )
    head, line, other, *_ = rates_table([row, dataclasses.replace(row, bundle="int8", precision="int8", warm_p50_ms=1.0)], 1.234)
    assert head.index("commands a second") == line.index("under 1, made for 50") == other.index("under 1, made for 50")
    assert line.index("under 1, needs") == other.index("under 1, needs") == head.index("decisions a second")


def test_a_gpus_rates_are_judged_by_the_clock(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor waits for it, which costs no CPU time."""
    monkeypatch.setattr(doctor_rates, "_ask", lambda policy, row: (0.1, 0.001))
    policy = BundlePolicy(tiny_bundle)
    assert measure_rates({"tiny": policy}, turns=2)[0].decisions_hz == 500
    monkeypatch.setattr(type(policy.networks), "providers", property(lambda networks: ("tensorrt 10.13",)))
    assert measure_rates({"tiny": policy}, turns=2)[0].decisions_hz == 5
