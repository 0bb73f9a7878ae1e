"""Commands between two steps of a policy: what they add up to, and what they never do."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from actlet.errors import ActionError, SpecError
from actlet.specs import ActionSpec, MotionLimits
from runtime.command_ticks import CommandTicks

ARM = MotionLimits(velocity=2.0, acceleration=10.0, jerk=500.0)
SPEC = ActionSpec(
    names=("joint", "dx", "vy", "gripper"),
    units=("rad", "m", "m/s", "1"),
    kinds=("continuous", "continuous", "continuous", "binary"),
    low=(-3.0, -0.05, -0.5, 0.0),
    high=(3.0, 0.05, 0.5, 1.0),
    frame="base",
    hold=("last", "zero", "zero", "last"),
)
LIMITED = dataclasses.replace(
    SPEC, motion=(ARM, MotionLimits(velocity=0.4, acceleration=2.0, jerk=50.0), MotionLimits(acceleration=3.0), None)
)


def test_unlimited_ticks_are_the_steps_action() -> None:
    """Displacements add up to it, positions and velocities go from one to the next on a line, flags are what they are, and nothing else is done."""
    ticks = CommandTicks(SPEC, step_hz=10, tick_hz=250)
    actions = [[0.0, 0.05, 0.1, 1.0], [1.0, -0.02, 0.3, 0.0], [0.5, 0.0, 0.0, 0.0]]
    sent: list[list[float]] = []
    for step in range(2):
        ticks.plan(step, actions[step:], holds=False)
        sent += [ticks.at(tick) for tick in range(ticks.first_tick(step), ticks.first_tick(step + 1))]
    found = np.array(sent)
    assert len(found) == 50
    np.testing.assert_allclose([found[:25, 1].sum(), found[25:, 1].sum()], [0.05, -0.02], rtol=1e-12)
    np.testing.assert_allclose(found[:25, 0], np.arange(25) / 25, atol=1e-12)
    np.testing.assert_allclose(found[:25, 2], 0.1 + 0.2 * np.arange(25) / 25, atol=1e-12)
    np.testing.assert_array_equal(found[:, 3], [1.0] * 25 + [0.0] * 25)
    assert ticks.at_rest
    assert ticks.stopping_s == 0.0


def test_a_cubic_has_no_jump_of_speed_at_a_step() -> None:
    """Each step is planned anew, and goes on with the slope with which the one before ended; a chunk that replaces a step in its middle knows it too."""
    ticks = CommandTicks(SPEC, step_hz=10, tick_hz=1000, shape="cubic")
    places = np.array([0.0, 0.1, 0.5, 0.6, 1.4, 1.5, 1.4, 0.2, 0.0])
    sent = []
    for tick in range(600):
        step = ticks.step_of(tick)
        if tick == ticks.first_tick(step) or tick == 350:
            ticks.plan(step, [[place, 0.0, 0.0, 0.0] for place in places[step:]], holds=False)
        sent.append(ticks.at(tick)[0])
    np.testing.assert_allclose(sent[::100], places[:6], atol=1e-12)
    assert np.abs(np.diff(sent, 2)).max() < 6 * 0.8 / 100**2  # On lines 0.7 / 100 from one step to the next.


def test_no_command_is_out_of_range_by_a_rounding() -> None:
    """0.05 and 1.1 as float32 are more than 0.05 and 1.1: what was clipped as float32 is inside the range as doubles too."""
    spec = dataclasses.replace(SPEC, low=(-1.1, -0.05, -0.3, 0.0), high=(1.1, 0.05, 0.3, 1.0))
    ticks = CommandTicks(spec, step_hz=10, tick_hz=200, start=[5.0, 0.0, 0.0, 0.0])
    for side in (spec.low, spec.high):
        ticks.plan(0, [np.array(side, np.float32).tolist()], holds=False)
        for command in (ticks.at(0), ticks.at(5)):
            assert (np.array(command)[:3] * [1, 20, 1] >= spec.low[:3]).all()
            assert (np.array(command)[:3] * [1, 20, 1] <= spec.high[:3]).all()
    ticks = CommandTicks(spec, step_hz=10, tick_hz=200, start=[5.0, 0.0, 0.0, 0.0])
    ticks.plan(0, [[0.0, 0.0, 0.0, 0.0]], holds=True)
    assert ticks.at(0)[0] == 1.1


def assert_within(sent: np.ndarray, spec: ActionSpec, tick_s: float, start: float = 0.0) -> None:
    """All that `ActionSpec.motion` promises of commands, one a tick, with rest before the first."""
    assert spec.motion is not None
    for i, motion in enumerate(spec.motion):
        if motion is None:
            continue
        per_tick = spec.units[i] == "m"
        values = np.concatenate([[start if i == 0 else 0.0] * 4, sent[:, i]])
        speed = np.diff(values) / tick_s if i == 0 else values / tick_s if per_tick else values
        acceleration = np.diff(speed) / tick_s
        jerk = np.diff(acceleration) / tick_s
        for what, found, most in (
            ("velocity", speed, motion.velocity),
            ("acceleration", acceleration, motion.acceleration),
            ("jerk", jerk, motion.jerk),
        ):
            if most is not None:
                # Rounding of doubles, of which a third difference divides by the cube of a tick.
                assert np.abs(found).max() <= most * (1 + 1e-6) + 1e-14 / tick_s**3, (spec.names[i], what)
        low, high = (spec.low[i], spec.high[i]) if not per_tick else (spec.low[i] / 1, spec.high[i] / 1)
        assert values.min() >= low
        assert values.max() <= high


@pytest.mark.parametrize(("step_hz", "tick_hz"), [(10.0, 100.0), (30.0, 500.0), (20.0, 1000.0)])
def test_no_plan_makes_a_tick_break_a_limit(step_hz: float, tick_hz: float) -> None:
    """Random plans, replaced in the middle of a step, holds among them, ticks left out: range, velocity, acceleration and jerk are kept at each."""
    rng = np.random.default_rng(int(tick_hz))
    low, high = np.array(SPEC.low), np.array(SPEC.high)
    for _ in range(40):
        start = float(rng.uniform(-3, 3))
        ticks = CommandTicks(LIMITED, step_hz=step_hz, tick_hz=tick_hz, start=[start, 0.0, 0.0, 0.0])
        sent, tick = [], 0
        for _ in range(50):
            plan = rng.uniform(low, high, (int(rng.integers(1, 4)), 4))
            plan[:, 3] = rng.integers(0, 2)
            if rng.random() < 0.4:
                plan[:, :3] = np.where(rng.random(3) < 0.5, low[:3], high[:3])
            ticks.plan(ticks.step_of(tick), plan.tolist(), holds=bool(rng.random() < 0.2))
            for _ in range(int(rng.integers(1, 2 * tick_hz / step_hz))):
                sent.append(ticks.at(tick))
                tick += 1 + int(rng.random() < 0.02)
        found = np.array(sent)
        assert_within(found, LIMITED, 1 / tick_hz, start)
        assert set(found[:, 3]) <= {0.0, 1.0}


@pytest.mark.parametrize("spec", [SPEC, LIMITED], ids=["free", "limited"])
def test_a_command_made_ahead_of_its_time_is_the_one_that_would_have_been(spec: ActionSpec) -> None:
    """Plans come after it was made, ticks are left out, questions are asked between: bit by bit what is sent without making anything ahead."""
    rng = np.random.default_rng(11)
    for _ in range(40):
        start = [float(rng.uniform(-3, 3)), 0.0, 0.0, 0.0]
        late, early = (CommandTicks(spec, step_hz=20, tick_hz=500, start=start) for _ in range(2))
        tick = 0
        for _ in range(300):
            if tick == 0 or rng.random() < 0.1:
                plan, holds = rng.uniform(SPEC.low, SPEC.high, (int(rng.integers(1, 4)), 4)).tolist(), bool(rng.random() < 0.2)
                for ticks in (late, early):
                    ticks.plan(ticks.step_of(tick), plan, holds=holds)
            np.testing.assert_array_equal(early.at(tick), late.at(tick))
            for _ in range(int(rng.integers(0, 3))):
                early.prepare(tick + 1)
            if rng.random() < 0.1:
                assert (early.moving, early.at_rest, early.standing) == (late.moving, late.at_rest, late.standing)
            tick += 1 + int(rng.random() < 0.05)


def test_chunks_that_follow_each_other_make_no_jump() -> None:
    """Three hundred random schedules of two chunks that have nothing to do with each other: at the seam as everywhere, nothing is faster than allowed."""
    rng = np.random.default_rng(5)
    for _ in range(300):
        ticks = CommandTicks(LIMITED, step_hz=20, tick_hz=200, start=[0.0] * 4)
        chunks = rng.uniform(SPEC.low, SPEC.high, (2, 8, 4))
        chunks[:, :, 3] = 1.0
        seam, sent = int(rng.integers(1, 60)), []
        for tick in range(70):
            step = ticks.step_of(tick)
            if tick == seam or tick == ticks.first_tick(step):
                ticks.plan(step, chunks[int(tick >= seam)][min(step, 7) :].tolist(), holds=False)
            sent.append(ticks.at(tick))
        assert_within(np.array(sent), LIMITED, 1 / 200)


def test_a_hold_comes_to_rest_and_stays_there() -> None:
    """In no more than `stopping_s`, and where it stands is where it says it stands; then it goes on from there."""
    ticks = CommandTicks(LIMITED, step_hz=10, tick_hz=500, start=[0.0] * 4)
    plan = [[2.0, 0.04, 0.4, 1.0], [2.5, 0.04, 0.4, 1.0]]
    ticks.plan(0, plan, holds=False)
    for tick in range(50):
        ticks.at(tick)
    assert not ticks.at_rest
    ticks.plan(1, [[2.5, 0.0, 0.0, 1.0]], holds=True)
    count = int(np.ceil(ticks.stopping_s * 500)) + 1
    sent = [ticks.at(50 + i) for i in range(count + 20)]
    assert ticks.at_rest
    assert np.ptp([command[0] for command in sent[count:]]) == 0
    np.testing.assert_allclose(sent[-1], [ticks.standing[0], 0.0, 0.0, 1.0], atol=1e-12)
    assert 0.0 < ticks.standing[0] < 2.0
    ticks.plan(2, plan, holds=False)
    assert ticks.standing == {}
    assert ticks.at(50 + count + 20)[0] >= sent[-1][0]


def test_without_limits_a_hold_is_the_last_command() -> None:
    """Positions stay where the last tick put them, not where the policy wanted them."""
    ticks = CommandTicks(SPEC, step_hz=10, tick_hz=100)
    ticks.plan(0, [[0.0, 0.01, 0.0, 1.0], [1.0, 0.01, 0.0, 1.0]], holds=False)
    last = [ticks.at(tick) for tick in range(4)][-1]
    ticks.plan(0, [[1.0, 0.0, 0.0, 1.0]], holds=True)
    np.testing.assert_allclose([ticks.at(tick) for tick in range(4, 14)], [[last[0], 0.0, 0.0, 1.0]] * 10)


def test_the_smoothing_is_made_up_for() -> None:
    """A position that moves slowly is reached in time, although a limited jerk makes every command the mean of those before it."""
    spec = dataclasses.replace(SPEC, motion=(dataclasses.replace(ARM, jerk=200.0), None, None, None))
    ticks = CommandTicks(spec, step_hz=10, tick_hz=1000, start=[0.0] * 4)
    assert ticks.delay_s > 0.02
    sent = []
    for step in range(20):
        ticks.plan(step, [[0.02 * (step + i), 0.0, 0.0, 0.0] for i in range(ticks.steps_ahead)], holds=False)
        sent += [ticks.at(tick)[0] for tick in range(100 * step, 100 * (step + 1))]
    # 0.2 rad/s; without looking ahead it would be 0.2 x delay_s = 0.01 rad behind, and so it is by w^2 / (2 A) at most.
    np.testing.assert_allclose(sent[1000:], 0.2 * np.arange(1000, 2000) / 1000, atol=0.2**2 / 10 + 1e-4)


def test_what_does_not_fit_is_refused() -> None:
    """Speeds of positions without knowing where the robot is; a start out of range; fewer commands than steps; a flag with a speed."""
    with pytest.raises(SpecError, match=r"\['joint'\] is limited .* present_action"):
        CommandTicks(LIMITED, step_hz=10, tick_hz=100)
    with pytest.raises(ActionError, match=r"starts at 4\.0, expected a position inside"):
        CommandTicks(LIMITED, step_hz=10, tick_hz=100, start=[4.0, 0.0, 0.0, 0.0])
    with pytest.raises(SpecError, match="step_hz 10, tick_hz 5"):
        CommandTicks(SPEC, step_hz=10, tick_hz=5)
    with pytest.raises(SpecError, match="'gripper': a flag has no speed"):
        dataclasses.replace(SPEC, motion=(None, None, None, ARM))
    assert all(a == b for a, b in itertools.pairwise([LIMITED, ActionSpec.from_dict(LIMITED.to_dict())]))
    assert "motion" not in SPEC.to_dict()
