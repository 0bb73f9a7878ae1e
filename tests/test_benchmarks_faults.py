"""benchmarks.faults and its parts: a few of every fault, none of which may come out as an unsafe command, an undeclared error or a bundle that is accepted."""

from __future__ import annotations

import dataclasses
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actlet.command_line import main as actlet
from actlet.errors import CallerError
from benchmarks import fault_processes
from benchmarks.fault_bundles import HOSTILE, measure_artifacts
from benchmarks.fault_loop import SoakConfig, inconsistencies, inject, soak
from benchmarks.fault_messages import fuzz
from benchmarks.fault_processes import KINDS, measure_clock_jumps, measure_process_faults
from benchmarks.fault_sequences import check_sequences
from benchmarks.fault_world import FAULTS, SPEC, World
from benchmarks.faults import main, what_is_wrong
from benchmarks.wall_clock import compiler
from runtime.failsafe import Failsafe, State
from runtime.loop_statistics import LoopStatistics


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


@pytest.mark.parametrize("action", [[0, 0, np.nan, 1], [0.06, 0, 0, 1], [0, 0, 0, 0.5], [0, 0, 0.2, 1], [0, 0, 0], [0, 0, np.inf, 1]])
def test_an_unsafe_command_is_noticed(action: list[float]) -> None:
    """Not finite, outside, no flag, a jump, another shape: the judge is no blind one."""
    world = World(random.Random(0), {})
    world.send_action(np.array([0, 0, 0, 1], np.float32))
    world.send_action(np.array([0.02, 0, 0.1, 0], np.float32))
    assert not world.unsafe
    world.send_action(np.array([0, 0, 0, 1], np.float32))
    world.send_action(np.array(action, np.float32))
    assert len(world.unsafe) == 1
    assert SPEC.action.dim == 4


@pytest.mark.parametrize("rates", [(1000.0, None), (50.0, 1000.0)])
def test_a_soak_is_what_it_is_asked_to_be(rates: tuple[float, float | None]) -> None:
    """As many commands, faults of all classes as often as asked for, most of the time in RUN; limits are kept and everything adds up."""
    found = soak(SoakConfig(hours=0.003, policy_rate_hz=rates[0], command_rate_hz=rates[1]), seed=1)
    assert found["ticks"] >= 10_800
    in_states = sum(found["state_ticks"].values()) * (rates[1] or rates[0]) / rates[0]  # The rest is coming to rest at the end of each run.
    assert found["faults"] == pytest.approx(in_states / 50, rel=0.25)
    assert set(found["by_class"]) == set(FAULTS)
    assert (found["unsafe"], found["crashes"], found["inconsistent"], found["first"]) == (0, 0, 0, [])
    assert found["state_ticks"]["RUN"] > 0.3 * sum(found["state_ticks"].values())
    assert sum(found["ends"].values()) == found["runs"]
    assert abs(found["memory_growth_bytes"]) < 50 << 20


def test_motion_beyond_its_limits_is_noticed() -> None:
    """Speed, acceleration and jerk, of a position and of shares of a displacement, each by itself; and what is just within is not."""
    config = SoakConfig(policy_rate_hz=50.0, command_rate_hz=1000.0)
    speed, bend, jerk = 2.0e-3, 10.0e-6, 100.0e-9  # Of the angle, in a tick.
    within = [0, 0, 0, jerk, 4 * jerk, 10 * jerk]
    for angles, is_safe in (
        (within, True),
        ([*within, 10 * jerk + 6 * jerk + bend], False),
        ([*within, 10 * jerk + 7.5 * jerk + 4 * jerk], False),
        ([speed * 1.01], False),
    ):
        world = World(random.Random(0), {}, spec=config.spec, tick_s=1e-3)
        for angle in angles:
            world.send_action(np.array([0, 0, angle, 1.0]))
        assert (not world.unsafe) is is_safe, angles
    for shares, is_safe in (([2e-8, 6e-8], True), ([5e-8], False), ([2.1e-6], False), ([1.0], False)):
        world = World(random.Random(0), {}, spec=config.spec, tick_s=1e-3)
        for share in shares:
            world.send_action(np.array([share, 0, 0, 1.0]))
        assert (not world.unsafe) is is_safe, shares


def test_a_soak_that_cannot_be_is_refused() -> None:
    """With what was given."""
    for options in ({"hours": 0}, {"policy_rate_hz": -1}, {"every_ticks": 1}, {"policy_rate_hz": 50, "command_rate_hz": 20}):
        with pytest.raises(CallerError, match="expected positive hours and rates"):
            SoakConfig(**options)


def test_counts_that_do_not_add_up_are_noticed() -> None:
    """Each by its own words."""
    world = World(random.Random(0), {})
    world.commands, world.answers = 10, 5
    sound = {"ticks": 10, "commands": 10, "sent": 10, "state_ticks": {"RUN": 10}, "chunks": 3, "bad_chunks": 2}
    assert inconsistencies(world, LoopStatistics(**sound)) == []  # type: ignore[arg-type]
    wrong: dict[str, Any] = {"sent": 8, "chunks": 4, "state_ticks": {"RUN": 13}, "holds": 11, "bad_observations": 1, "misjudged_chunks": 4}
    for key, value in wrong.items():
        assert len(inconsistencies(world, LoopStatistics(**{**sound, key: value}))) == 1, key  # type: ignore[arg-type]


def test_random_histories_of_the_failsafe() -> None:
    """No law is broken, and every step of the ladder is gone."""
    found = check_sequences(400, seed=2)
    assert (found["broken"], found["first"], found["events"]) == (0, [], 20_000)
    steps = {tuple(name.split(" > ")) for name in found["transitions"]}
    assert {("HOLD", "RUN"), ("RUN", "HOLD"), ("HOLD", "RAMP"), ("RAMP", "SAFE_POSE"), ("SAFE_POSE", "ESTOP"), ("ESTOP", "HOLD")} <= steps


def test_a_broken_failsafe_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that forgets what was latched."""
    update = Failsafe.update

    def forgets(self: Failsafe, *arguments: Any, **options: Any) -> Any:
        verdict = update(self, *arguments, **options)
        if verdict.state is State.ESTOP and not self.active:
            self._verdict = verdict = dataclasses.replace(verdict, state=State.HOLD)
        return verdict

    monkeypatch.setattr(Failsafe, "update", forgets)
    found = check_sequences(200)
    assert found["broken"] > 0
    assert re.search("ESTOP became HOLD, expected ESTOP", " ".join(found["first"]))


def test_hostile_bundles_are_refused(tiny_bundle: Path) -> None:
    """Thirteen, each for its own reason, and a few damaged ones."""
    found = measure_artifacts(tiny_bundle, 10)
    made = found["hand_made"]
    assert (made["tried"], made["outcomes"], made["faults"]) == (13, {"refused": 13}, [])
    assert set(made["said"]) == set(HOSTILE)
    assert "holds weights in another file" in made["said"]["weights in /dev/zero"]
    assert "link.bin" in made["said"]["weights behind a link out of the folder"]
    assert "claims 274877906944 numbers" in made["said"]["a weight of a terabyte"]
    assert "asks for 3.51844e+13 numbers" in made["said"]["a constant of 128 TB"]
    assert "holds a graph inside an operator" in made["said"]["an endless loop"]
    assert (found["damaged"]["tried"], found["resealed"]["tried"]) == (10, 1)
    assert found["damaged"]["accepted"] == found["resealed"]["accepted"] == 0


@pytest.mark.slow
def test_a_loop_goes_on_whatever_happens_to_its_policy(tiny_bundle: Path) -> None:
    """Each kind once: the standby takes over, the loop does not end, and the death has its name; how many periods are missed is the machine's affair here."""
    rows = {row["kind"]: row for row in measure_process_faults(tiny_bundle, 1, rate_hz=100.0)}
    assert set(rows) == set(KINDS)
    for kind, row in rows.items():
        assert (row["faults"], row["stopped_by"]) == (1, "done"), row
        assert row["takeovers"] >= 1, row
        assert row["hangs"] >= (kind in ("stop", "loop")), row
        assert len(row["recovered_ms"]) == 1
        assert row["periods_during"] > 0
        assert row["missed_during"] <= row["periods_during"]
    assert "SIGSEGV" in rows["segfault"]["last_words"]
    assert "no memory left of what it may have" in rows["memory"]["last_words"]


@pytest.mark.slow
@pytest.mark.skipif(compiler() is None, reason="needs a C compiler")
def test_a_wall_clock_that_jumps_changes_no_command(tiny_bundle: Path) -> None:
    """Hours and days, forward and back; the clock really went there, and the failsafe saw nothing."""
    found = measure_clock_jumps(tiny_bundle, 10)
    if found["same"] is None:
        pytest.skip(f"the machine was too busy for 2 s without a missed step, in {found['tries']} tries")
    assert found["same"]
    assert found["jumping"]["clock_span_s"] == 2 * 30 * 86400
    assert found["steady"]["clock_span_s"] <= 1
    assert "clock jump" not in found["jumping"]["causes"]
    assert found["jumping"]["commands"] == found["steady"]["commands"] >= 40


def test_without_a_compiler_that_is_said(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing else happens."""
    monkeypatch.setattr(fault_processes, "compiler", lambda: None)
    assert "no C compiler" in measure_clock_jumps(tiny_bundle)["skipped"]


SMALL = ["--events", "500", "--messages", "100", "--sequences", "50", "--soak-hours", "0.0005"]


def test_the_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Has what is promised; exit code 0 where nothing is at fault; the last line is the document."""
    out = tmp_path / "faults.json"
    assert main([*SMALL, "--out", str(out)]) == 0
    document = json.loads(out.read_text())
    assert {"class", "injected", "unsafe", "crashes"} <= set(document["faults"][0])
    assert {"decoder", "messages", "undeclared"} <= set(document["fuzz"][0])
    assert {"ticks", "faults", "memory_growth_bytes", "seconds"} <= set(document["soak"])
    assert document["failsafe"]["sequences"] == 50
    assert document["artifacts"] == document["processes"] == {"skipped": "no bundle was given"}
    printed = capsys.readouterr().out
    assert "memory grew by" in printed
    assert "artifacts: left out (no bundle was given)" in printed
    assert "; runs ended by: " in printed
    assert not any("{" in line or "[" in line for line in printed.splitlines()[:-1])
    assert json.loads(printed.splitlines()[-1]) == document
    assert what_is_wrong(document) == []


def test_what_must_not_happen_is_said() -> None:
    """Every part has its words."""
    bad: dict[str, Any] = {
        "faults": [{"class": "clock", "unsafe": 1, "crashes": 2}],
        "soak": {"unsafe": 0, "crashes": 0, "inconsistent": 3},
        "failsafe": {"broken": 4},
        "fuzz": [{"decoder": "REST", "undeclared": 5}],
        "artifacts": {"damaged": {"accepted": 6}},
        "processes": [{"kind": "kill", "stopped_by": "hold", "message": "why", "faults": 2, "takeovers": 1}],
        "wall_clock": {"same": False},
    }
    assert len(what_is_wrong(bad)) == 8
    assert what_is_wrong({"artifacts": {"skipped": "x"}, "processes": {"skipped": "x"}, "wall_clock": {"skipped": "x"}}) == []


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path) -> None:
    """`actlet bench faults` counts; flags without effect, too many bundles, and folders that are none are refused."""
    import benchmarks.faults
    import benchmarks.real_time

    asked: list[Any] = []
    monkeypatch.setattr(benchmarks.faults, "run_faults", lambda config, bundle, out: asked.append((config, bundle, out)) or 0)
    monkeypatch.setattr(benchmarks.real_time, "run_real_time", lambda bundle, **options: asked.append((bundle, options)) or 0)
    assert actlet(["bench", "faults", "--quick", "--out", "x.json"]) == 0
    assert actlet(["bench", "faults", str(tiny_bundle), "--soak-hours", "24"]) == 0
    assert actlet(["bench", "realtime", str(tiny_bundle), "--quick"]) == 0
    quick, full, realtime = asked
    assert (quick[0].kills, quick[1], quick[2]) == (2, None, Path("x.json"))
    assert (full[0].soak.hours, full[0].copies, full[1]) == (24.0, 2000, tiny_bundle)
    assert (realtime[0], realtime[1]["kills"]) == (tiny_bundle, 2)
    for words, message in (
        (["faults", "a", "b"], "2 policies, expected the folder of one bundle or none"),
        (["realtime"], "0 policies, expected the folder of one bundle"),
        (["faults", "--episodes", "3"], "--episodes would have no effect"),
        (["realtime", str(tiny_bundle), "--soak-hours", "1"], "--soak-hours would have no effect"),
        (["faults", str(tmp_path / "none")], "none"),
        (["latency", "--soak-hours", "1"], "--soak-hours is for `actlet bench faults`"),
        (["latency"], "no policy was given"),
    ):
        assert actlet(["bench", *words]) == 2
        assert message in capsys.readouterr().err


def test_a_soak_in_two_processes_counts_both() -> None:
    """Their hours, from two seeds; the growth of the one that grew most."""
    found = soak(SoakConfig(hours=0.004), seed=3, workers=2)
    assert (found["workers"], found["unsafe"], found["crashes"], found["inconsistent"]) == (2, 0, 0, 0)
    assert found["ticks"] >= SoakConfig(hours=0.004).ticks
    assert found["faults"] == sum(found["by_class"].values()) > 0
    assert found["runs"] == sum(found["ends"].values())
