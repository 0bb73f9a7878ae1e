"""The failsafe alone, in simulated time: every transition, every pair of causes, and laws over random histories."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from actlet.errors import CallerError, RobotFault
from benchmarks.fault_sequences import STEP_S, Witness
from runtime.failsafe import RULES, Cause, Failsafe, FailsafeConfig, State, StopButtons, Verdict
from runtime.judge import REASONS

CONFIG = FailsafeConfig(hold_s=0.5, wait_s=2.0, good_chunks=3, ramp_s=0.25, safe_pose_s=1.0, max_gap_s=1.0)
HOLDING = [cause for cause in Cause if RULES[cause].asks is State.HOLD]
STOPPING = [cause for cause in Cause if RULES[cause].asks is State.RAMP]


def running(config: FailsafeConfig = CONFIG, now_s: float = 100.0) -> Failsafe:
    """One that runs since `now_s`."""
    failsafe = Failsafe(config)
    failsafe.begin(now_s)
    failsafe.note_chunk(True)
    assert failsafe.update(now_s) == Verdict(State.RUN, None, now_s)
    return failsafe


def first_time(failsafe: Failsafe, state: State, causes: tuple[Cause, ...], from_s: float, until_s: float) -> float:
    """When it is first in a state, with the same causes at every step."""
    now_s = from_s
    while now_s <= until_s:
        if failsafe.update(now_s, causes).state is state:
            return now_s
        now_s += STEP_S
    raise AssertionError(f"never {state.name}, but {failsafe.verdict}")


def test_every_cause_has_a_rule() -> None:
    """HOLD clears by itself, what is worse never does; nobody is driven to a safe pose who said stop."""
    assert set(RULES) == set(Cause)
    assert [state.name for state in sorted(State)] == ["RUN", "HOLD", "RAMP", "SAFE_POSE", "ESTOP"]
    for cause, found in RULES.items():
        assert found.asks in (State.HOLD, State.RAMP, State.ESTOP)
        assert found.clears is (found.asks is State.HOLD)
        assert found.safe_pose is found.clears, cause
    assert len(HOLDING) + len(STOPPING) + 1 == len(Cause)


@pytest.mark.parametrize("cause", Cause)
def test_a_cause_leads_where_its_rule_says(cause: Cause) -> None:
    """From RUN at once, with its name and its time."""
    assert running().update(100.5, {cause}) == Verdict(RULES[cause].asks, cause, 100.5)


@pytest.mark.parametrize(("one", "other"), list(itertools.permutations(Cause, 2)))
def test_of_two_causes_the_more_severe_wins(one: Cause, other: Cause) -> None:
    """At once, or the second a moment later; of two that ask for the same the later in the list is named, unless the state is latched."""
    both = max(one, other, key=lambda cause: (RULES[cause].asks, list(Cause).index(cause)))
    assert running().update(100.5, [one, other]) == Verdict(RULES[both].asks, both, 100.5)
    failsafe = running()
    failsafe.update(100.5, [one])
    after = failsafe.update(100.6, [one, other])
    assert after.state is max(RULES[one].asks, RULES[other].asks)
    is_latched_by_one = RULES[one].asks >= State.RAMP and RULES[other].asks <= RULES[one].asks
    assert after.cause is (one if is_latched_by_one else both)
    assert after.since_s == (100.6 if RULES[other].asks > RULES[one].asks else 100.5)
    gone = failsafe.update(100.7, [])
    assert gone.state is after.state  # Neither waits for less than three good chunks.


@pytest.mark.parametrize("cause", HOLDING)
def test_hold_becomes_ramp_exactly_after_hold_s(cause: Cause) -> None:
    """Not one step before, and with the cause."""
    failsafe = running()
    failsafe.update(100.5, {cause})
    assert first_time(failsafe, State.RAMP, (cause,), 100.5 + STEP_S, 110) == 101.0
    assert failsafe.verdict.cause is cause


@pytest.mark.parametrize("hold_s", [0.0, 0.1, 0.3, 0.7])
def test_the_rounding_of_clocks_is_forgiven(hold_s: float) -> None:
    """Steps of a tenth of a second, whose sums are not exact, at an uptime of months."""
    for start in (0.0, 1000.0, 2e7):
        failsafe = running(dataclasses.replace(CONFIG, hold_s=hold_s), start)
        failsafe.update(start + 0.1, {Cause.NO_ACTION})
        steps = 1
        while failsafe.update(start + 0.1 + 0.1 * steps, {Cause.NO_ACTION}).state is State.HOLD:
            steps += 1
        assert steps == max(1, round(hold_s / 0.1))


def test_hold_ends_after_its_cause_and_good_chunks_in_a_row() -> None:
    """Chunks while a cause is active do not count, and an unusable one begins the row again."""
    failsafe = running()
    failsafe.update(100.1, {Cause.STALE_FRAME})
    for _ in range(5):
        failsafe.note_chunk(True)
    assert failsafe.update(100.2, {Cause.STALE_FRAME}).state is State.HOLD
    for good in (True, True, False, True, True):
        failsafe.note_chunk(good)
    assert failsafe.update(100.3).state is State.HOLD
    assert not failsafe.is_about_to_run
    failsafe.note_chunk(True)
    assert failsafe.is_about_to_run
    assert failsafe.update(100.4) == Verdict(State.RUN, None, 100.4)


def test_waiting_for_good_chunks_spends_another_budget() -> None:
    """Of hold_s only what a cause was active; the rest of it counts when it comes back; without good chunks the wait ends too."""
    failsafe = running()
    failsafe.update(101, {Cause.FROZEN_FRAME})
    assert failsafe.update(101.25).state is State.HOLD  # A quarter of a second is spent.
    assert failsafe.update(102.25).state is State.HOLD
    assert failsafe.update(102.5, {Cause.FROZEN_FRAME}).state is State.HOLD
    assert failsafe.update(102.625, {Cause.FROZEN_FRAME}).state is State.HOLD
    assert failsafe.update(102.75, {Cause.FROZEN_FRAME}).state is State.RAMP
    failsafe = running()
    failsafe.update(100.25, {Cause.FROZEN_FRAME})
    assert first_time(failsafe, State.RAMP, (), 100.5, 110) == 102.5
    assert failsafe.verdict.cause is Cause.FROZEN_FRAME


def test_a_run_begins_in_hold_and_waits_for_its_first_chunk() -> None:
    """One is enough, and no answer yet is no trouble until wait_s; other trouble asks for three, and counts as ever."""
    failsafe = Failsafe(CONFIG)
    assert failsafe.verdict.state is State.HOLD
    failsafe.begin(50.0)
    assert failsafe.update(51, {Cause.NO_ACTION, Cause.INFERENCE_LOST}) == Verdict(State.HOLD, Cause.NO_ACTION, 50.0)
    assert failsafe.active == frozenset()
    failsafe.note_chunk(True)
    assert failsafe.update(51.5).state is State.RUN
    failsafe = Failsafe(CONFIG)
    failsafe.begin(50.0)
    assert first_time(failsafe, State.RAMP, (Cause.NO_ACTION,), 50.0, 60) == 52.0
    failsafe = Failsafe(CONFIG)
    failsafe.begin(50.0)
    failsafe.update(50.25, {Cause.BAD_OBSERVATION})
    failsafe.note_chunk(True)
    assert failsafe.update(50.5).state is State.HOLD
    assert first_time(failsafe, State.RAMP, (Cause.BAD_OBSERVATION,), 50.5, 60) == 50.75


def test_it_may_be_used_without_begin() -> None:
    """The first update begins."""
    failsafe = Failsafe(CONFIG)
    assert math.isnan(failsafe.verdict.since_s)
    failsafe.note_chunk(True)
    assert failsafe.update(7.0) == Verdict(State.RUN, None, 7.0)


@pytest.mark.parametrize("cause", HOLDING)
def test_from_ramp_to_safe_pose_to_emergency_stop(cause: Cause) -> None:
    """Each after its own time, whether the cause lasts or not."""
    for stays in ((cause,), ()):
        failsafe = running()
        failsafe.update(100.5, {cause})
        assert failsafe.update(101.0, {cause}) == Verdict(State.RAMP, cause, 101.0)
        assert failsafe.may_reach_safe_pose
        assert first_time(failsafe, State.SAFE_POSE, stays, 101.0, 110) == 101.25
        assert first_time(failsafe, State.ESTOP, stays, 101.25, 110) == 102.25
        assert failsafe.verdict.cause is cause


@pytest.mark.parametrize("how", ["not configured", "not known", "asked to stop", "asked to stop later", "never ran"])
def test_without_a_safe_pose_ramp_is_the_end(how: str) -> None:
    """None configured, none that the robot knows, a cause that forbids it, or no reason to move at all."""
    failsafe = Failsafe(dataclasses.replace(CONFIG, safe_pose_s=None if how == "not configured" else 1.0))
    failsafe.begin(100.0, safe_pose=how != "not known")
    failsafe.note_chunk(how != "never ran")
    assert (failsafe.update(100.0).state is State.RUN) is (how != "never ran")
    causes = {Cause.ROBOT_LOST} if how == "asked to stop" else {Cause.STALE_FRAME}
    first_time(failsafe, State.RAMP, tuple(causes), 100.0, 110)
    causes |= {Cause.OPERATOR_STOP} if how == "asked to stop later" else set()
    for step in range(1000):
        assert failsafe.update(101.0 + step * STEP_S, causes).state is State.RAMP
    assert not failsafe.may_reach_safe_pose


@pytest.mark.parametrize("cause", STOPPING)
def test_on_the_way_to_the_safe_pose_a_stop_is_an_emergency(cause: Cause) -> None:
    """There is nothing less that stops it."""
    failsafe = running()
    first_time(failsafe, State.SAFE_POSE, (Cause.CLAMPED,), 100.0, 110)
    assert failsafe.update(101.0, {Cause.CLAMPED, cause}) == Verdict(State.ESTOP, cause, 101.0)


def test_a_clock_that_jumps_is_a_cause_and_no_time_that_passed() -> None:
    """Forward or back, by an hour or a moment back, or no number at all: HOLD, no budget spent, and three good chunks lead out."""
    for jump in (3600.0, -3600.0, -0.001, 1.001, 1e300, -1e300, math.nan, math.inf, -math.inf):
        failsafe = running()
        at = 100.5 + jump
        failsafe.update(100.5)
        verdict = failsafe.update(at)
        assert (verdict.state, verdict.cause, failsafe.active) == (State.HOLD, Cause.CLOCK_JUMP, {Cause.CLOCK_JUMP})
        assert failsafe.in_state_s == 0
        now = at if math.isfinite(at) else 100.5
        for step in range(1, 4):
            assert failsafe.verdict.state is State.HOLD
            failsafe.note_chunk(True)
            failsafe.update(now + step * STEP_S)
        assert failsafe.verdict.state is State.RUN
    failsafe = running()
    failsafe.update(100.5, {Cause.NO_ACTION})
    failsafe.update(100.75, {Cause.NO_ACTION})
    failsafe.update(3700.75, {Cause.NO_ACTION})  # Half of hold_s is left.
    assert first_time(failsafe, State.RAMP, (Cause.NO_ACTION,), 3700.75 + STEP_S, 3710) == 3701.0


def test_waiting_on_purpose_and_low_rates_are_no_jumps() -> None:
    """A policy that runs in the loop may take its time; at one step in two seconds a gap of two is none."""
    failsafe = running()
    assert failsafe.update(104.0, waited_s=3.5).state is State.RUN
    assert failsafe.update(108.0, waited_s=2.5).state is State.HOLD
    assert running().update(100.5, waited_s=math.nan).state is State.RUN
    failsafe = Failsafe(CONFIG)
    failsafe.begin(0.0, step_s=2.0)
    failsafe.note_chunk(True)
    assert failsafe.update(8.0).state is State.RUN


def test_reset_is_refused_while_the_cause_is_there() -> None:
    """Then it holds until three good chunks came; a jump is over once it is seen."""
    failsafe = running()
    failsafe.update(100.5, {Cause.ROBOT_LOST})
    with pytest.raises(RobotFault, match=r"latched in RAMP \(robot lost\), and still active: robot lost. Mend that first"):
        failsafe.reset()
    failsafe.update(4000.0, {Cause.OPERATOR_STOP})
    with pytest.raises(RobotFault, match="still active: operator stop"):
        failsafe.reset(operator=True)
    with pytest.raises(RobotFault, match="See to the robot, then call reset"):
        failsafe.begin(4000.0)
    failsafe.update(100.0)
    assert failsafe.verdict == Verdict(State.RAMP, Cause.ROBOT_LOST, 100.5)
    assert failsafe.active == {Cause.CLOCK_JUMP}
    failsafe.reset()
    failsafe.require_free()
    failsafe.begin(200.0)
    for step in range(1, 4):
        assert failsafe.verdict.state is State.HOLD
        failsafe.note_chunk(True)
        failsafe.update(200.0 + step * STEP_S)
    assert failsafe.verdict.state is State.RUN
    failsafe.reset()  # Nothing is latched.
    assert failsafe.verdict.state is State.RUN
    failsafe.begin(300.0)
    failsafe.note_chunk(True)
    assert failsafe.update(300.0).state is State.RUN


def test_only_an_operator_ends_an_emergency_stop() -> None:
    """And only once the button is released."""
    failsafe, buttons = running(), StopButtons()
    assert buttons.pressed == frozenset()
    buttons.stop()
    assert failsafe.update(100.1, buttons.pressed).state is State.RAMP
    buttons.emergency_stop()
    assert failsafe.update(100.2, buttons.pressed) == Verdict(State.ESTOP, Cause.EMERGENCY_STOP, 100.2)
    with pytest.raises(RobotFault, match="still active: operator stop, emergency stop"):
        failsafe.reset(operator=True)
    buttons.release()
    failsafe.update(100.3, buttons.pressed)
    with pytest.raises(RobotFault, match=r"Only an operator may end an emergency stop: reset\(operator=True\)"):
        failsafe.reset()
    assert failsafe.verdict.state is State.ESTOP
    failsafe.reset(operator=True)
    assert failsafe.verdict.state is State.HOLD


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hold_s": -1}, r"hold_s -1: expected 0 s or more\.$"),
        ({"wait_s": math.nan, "ramp_s": -1}, r"wait_s nan, ramp_s -1: expected 0 s or more\.$"),
        ({"safe_pose_s": math.inf}, "safe_pose_s inf: expected 0 s or more"),
        ({"answer_s": -0.1}, "answer_s -0.1: expected 0 s or more"),
        ({"good_chunks": 0}, "good_chunks 0: expected 1 or more"),
        ({"max_bad_chunks": 0}, "max_bad_chunks 0: expected 1 or more"),
        ({"frozen_frames": 1}, "frozen_frames 1: expected 2 or more, or None"),
        ({"max_gap_s": 0}, "max_gap_s 0: expected more than 0 s"),
        ({"max_frame_age_s": math.nan}, "max_frame_age_s nan: expected more than 0 s"),
        ({"hold_s": None}, "hold_s None: expected 0 s or more"),
        ({"clamp_share": 1.5}, r"clamp_share 1\.5: expected 0 \.\. 1"),
    ],
)
def test_contradicting_limits_are_refused(options: dict[str, float], message: str) -> None:
    """With the fields that are wrong, and no others, in the message."""
    with pytest.raises(CallerError, match=f"^FailsafeConfig: {message}"):
        FailsafeConfig(**options)  # type: ignore[arg-type]


# Multiples of a 64th, so that the witness's sums are exact; budgets are a few of them, so that they run out.
times = st.integers(0, 12).map(lambda n: n * STEP_S)
configs = st.builds(
    FailsafeConfig,
    hold_s=times,
    wait_s=times,
    ramp_s=times,
    safe_pose_s=st.none() | times,
    good_chunks=st.integers(1, 4),
    max_gap_s=st.just(32 * STEP_S),
)


class Histories(RuleBasedStateMachine):
    """Any history of causes, chunks, jumps and resets."""

    @initialize(config=configs, safe_pose=st.booleans())
    def begin(self, config: FailsafeConfig, safe_pose: bool) -> None:
        self.witness = Witness(config, safe_pose)

    @rule(gap=st.integers(0, 20), causes=st.frozensets(st.sampled_from(HOLDING), max_size=2))
    def trouble(self, gap: int, causes: frozenset[Cause]) -> None:
        self.witness.tick(gap * STEP_S, causes)

    @rule(gap=st.integers(0, 20), causes=st.frozensets(st.sampled_from(list(Cause)), max_size=3))
    def anything(self, gap: int, causes: frozenset[Cause]) -> None:
        self.witness.tick(gap * STEP_S, causes)

    @rule(gap=st.integers(0, 4))
    def nothing(self, gap: int) -> None:
        self.witness.tick(gap * STEP_S, frozenset())

    @rule(good=st.booleans(), count=st.integers(1, 4))
    def chunks(self, good: bool, count: int) -> None:
        for _ in range(count):
            self.witness.chunk(good)

    @rule(jump=st.sampled_from([-3600.0, 3600.0, -STEP_S, 33 * STEP_S]), causes=st.frozensets(st.sampled_from(HOLDING), max_size=1))
    def jump(self, jump: float, causes: frozenset[Cause]) -> None:
        self.witness.tick(jump, causes)

    @rule(operator=st.booleans())
    def reset(self, operator: bool) -> None:
        self.witness.reset(operator)


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)


@pytest.mark.slow
def test_long_random_histories() -> None:
    """20,000 histories of 50 events, with the same witness; every state is reached, and left where it can be."""
    draw, seen = random.Random(7), dict.fromkeys(State, 0)
    all_causes = list(Cause)
    for _ in range(20_000):
        n = [draw.randrange(13) * STEP_S for _ in range(4)]
        config = FailsafeConfig(
            hold_s=n[0], wait_s=n[1], ramp_s=n[2], safe_pose_s=draw.choice([None, n[3]]), good_chunks=draw.randrange(1, 4), max_gap_s=0.5
        )
        witness = Witness(config, draw.random() < 0.7)
        for _ in range(50):
            kind = draw.random()
            if kind < 0.4:
                witness.chunk(draw.random() < 0.9)
            elif kind < 0.43:
                witness.reset(draw.random() < 0.5)
            elif kind < 0.46:
                witness.tick(draw.choice([-3600.0, 3600.0, -STEP_S]), frozenset())
            elif kind < 0.8:
                witness.tick(draw.randrange(5) * STEP_S, frozenset())
            elif kind < 0.98:
                witness.tick(draw.randrange(12) * STEP_S, frozenset(draw.choices(HOLDING, k=draw.randrange(3))))
            else:
                witness.tick(draw.randrange(12) * STEP_S, frozenset(draw.choices(all_causes, k=2)))
            seen[witness.state] += 1
    assert min(seen.values()) > 1000


def test_the_table_in_the_documentation_is_that_of_the_code() -> None:
    """Every cause, in order, with the state it asks for, its safe pose and its reason; and every number is the configuration's."""
    page = (Path(__file__).parent.parent / "docs" / "runtime.md").read_text(encoding="utf-8")
    page = page[page.index("## The control loop under faults") : page.index("## Faults: what is injected")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| ")]
    causes = {row[0]: row[2:] for row in rows if len(row) == 5 and row[0] != "cause"}
    assert causes == {cause.value: [RULES[cause].asks.name, "yes" if RULES[cause].safe_pose else "no", REASONS[cause]] for cause in Cause}
    assert [row[0] for row in rows if len(row) == 3 and row[0] != "state"] == [state.name for state in State]
    defaults = FailsafeConfig()
    for words in (
        f"RUN after {defaults.good_chunks} good chunks in a row",
        f"RAMP after {defaults.hold_s} s with a cause active, or {defaults.wait_s:g} s without",
        f"to zero within {defaults.ramp_s} s",
        f"ESTOP after {defaults.safe_pose_s:g} s",
        f"of the last {defaults.clamp_window} commands",
        f"{defaults.max_bad_chunks} answers in a row",
        f"forward by more than {defaults.max_gap_s:g} s",
        f"{defaults.max_bad_observations} in a row whose cameras",
        f"in {defaults.frozen_frames} observations over {defaults.frozen_s:g} s",
        f"older than {defaults.max_frame_age_s} s",
    ):
        assert words in page, words
    assert defaults.clamp_share == 0.5  # "more than half"
