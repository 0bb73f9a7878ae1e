"""Commands that a robot can follow: inside every limit for every sequence of targets, and at the target in the end."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from itertools import pairwise
from types import FrameType

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from actlet.errors import ActionError, SpecError
from actlet.specs import MotionLimits
from runtime.motion_limits import MotionLimiter, _stoppable

ARM = MotionLimits(velocity=2, acceleration=10, jerk=5000)
SLOW_ARM = MotionLimits(velocity=1, acceleration=4, jerk=40)


def limiter(*limits: MotionLimits, low: float = -3, high: float = 3, start: float = 0, tick_s: float = 1e-3) -> MotionLimiter:
    n = len(limits)
    return MotionLimiter(limits, low=[low] * n, high=[high] * n, start=[start] * n, tick_s=tick_s)


def excess(
    commands: list[list[float]], start: list[float], limits: list[MotionLimits], low: list[float], high: list[float], tick_s: float
) -> float:
    """By how many u = 2^-52 max(|low|, |high|) the commands exceed what the module promises, allowance taken off; <= 0 when kept."""
    y: NDArray[np.float64] = np.array([start] * 3 + commands)
    assert np.isfinite(y).all()
    assert (y >= np.array(low)).all()
    assert (y <= np.array(high)).all()
    worst = -math.inf
    for i, own in enumerate(limits):
        u = 2.0**-52 * max(abs(low[i]), abs(high[i]))
        for order, limit in enumerate((own.velocity, own.acceleration, own.jerk), 1):
            if limit is not None:
                # The differences are taken in floats too: each subtraction rounds once more, by at most as much as y.
                most = np.abs(np.diff(y[:, i], order)).max()
                worst = max(worst, (most - limit * tick_s**order * (1 + 2e-15)) / u - 2**order)
    return worst


positive = st.floats(0.3, 50)


@st.composite
def machines(draw: st.DrawFn) -> tuple[list[MotionLimits], list[float], list[float], list[float], float]:
    """Limits, low, high, start and tick of one to three dimensions, each limit there or not."""
    n = draw(st.integers(1, 3))
    maybe = st.none() | positive
    limits = [MotionLimits(velocity=draw(maybe), acceleration=draw(maybe), jerk=draw(st.none() | st.floats(1, 1e4))) for _ in range(n)]
    low = [draw(st.floats(-5, 4)) for _ in range(n)]
    high = [smallest + draw(st.floats(0.01, 5)) for smallest in low]
    start = [smallest + draw(st.sampled_from([0.0, 0.3, 1.0])) * (largest - smallest) for smallest, largest in zip(low, high, strict=True)]
    return limits, low, high, [min(x, b) for x, b in zip(start, high, strict=True)], draw(st.sampled_from([1e-3, 4e-3, 0.02, 0.1]))


@given(
    machine=machines(),
    moves=st.lists(
        st.tuples(
            st.sampled_from(["jump", "alternate", "ramp", "brake", "hold"]),
            st.integers(1, 60),
            st.floats(-10, 10),
            st.floats(allow_nan=False),
        ),
        max_size=12,
    ),
    told=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_no_sequence_of_targets_breaks_a_limit(
    machine: tuple[list[MotionLimits], list[float], list[float], list[float], float], moves: list[tuple[str, int, float, float]], told: bool
) -> None:
    """Jumps, alternating extremes, ramps with and without their speed told, brakes: position, velocity, acceleration, jerk are kept."""
    limits, low, high, start, tick_s = machine
    limiter = MotionLimiter(limits, low=low, high=high, start=start, tick_s=tick_s)
    n, commands, target = len(limits), [], 0.0
    for kind, ticks, size, wild in moves:
        for k in range(ticks):
            if kind == "brake":
                commands.append(limiter.brake())
                continue
            if kind == "jump":
                target = size
            elif kind == "alternate":
                target = size * (-1) ** k * 1e3
            elif kind == "ramp":
                target += size * tick_s
            speed = [size if kind == "ramp" else wild if math.isfinite(wild) else 0.0] * n
            commands.append(limiter.step([target] * n, speed if told else None))
    if commands:
        assert excess(commands, limiter.start, limits, low, high, tick_s) <= 0


def stopping_distance(pace: int, change: int) -> int:
    """f(v), summed as it is defined."""
    return sum(range(pace - change, 0, -change))


@given(distance=st.integers(0, 2**47), change=st.integers(16, 2**47))
@settings(max_examples=1000, deadline=None)
def test_the_speed_that_can_stop_is_never_too_fast_and_at_most_two_units_slow(distance: int, change: int) -> None:
    """x(e) against its definition in whole numbers: x + f(x) <= e, and two units more would be too fast."""
    assume(distance < change * 10**9)
    found = _stoppable(float(distance), float(change))
    assert found == int(found)
    pace = int(found)

    def way(pace: int) -> int:
        m = max(0, pace - 1) // change  # Summands of f; their sum in closed form, for there may be 10^4 of them.
        return pace + m * pace - change * m * (m + 1) // 2

    assert way(pace) == pace + stopping_distance(pace, change) if pace < 1000 * change else True
    assert way(pace) <= distance < way(pace + 2)


@pytest.mark.parametrize("speed", [-2, 2, -1, 1])
@pytest.mark.parametrize("limits", [MotionLimits(velocity=2, acceleration=0.5), MotionLimits(velocity=2, acceleration=2, jerk=100), ARM])
def test_a_target_that_runs_through_a_wall_is_left_in_time(speed: float, limits: MotionLimits) -> None:
    """At full speed or half of it, and told so: the robot brakes (over 4000 ticks, or 200), and stands at the wall at last."""
    begin = -math.copysign(3, speed)
    own = limiter(limits, start=begin)
    commands = [own.step([begin + speed * 1e-3 * k], [speed]) for k in range(15_000)]
    assert excess(commands, own.start, [limits], [-3], [3], 1e-3) <= 0
    assert abs(commands[-1][0] + begin) < 1e-10


def test_a_hundred_thousand_random_ticks_keep_every_limit() -> None:
    """Fixed seed: 2e4 ticks of each of five machines of 8 dimensions, targets of every kind, brakes and refusals in between."""
    rng = np.random.default_rng(7)
    ticks = 0
    for tick_s in (1e-3, 1e-3, 2e-3, 8e-3, 0.02):
        limits = [MotionLimits(velocity=v, acceleration=a, jerk=j) for v, a, j in 10 ** rng.uniform([-1, 0, 1], [1, 1.5, 4], (8, 3))]
        low, high = [-3.0] * 4 + [0.0] * 4, [3.0] * 4 + [0.1] * 4
        limiter = MotionLimiter(limits, low=low, high=high, start=low, tick_s=tick_s)
        commands, target = [], np.zeros(8)
        while len(commands) < 20_000:
            kind, length, away = rng.integers(6), int(rng.integers(1, 400)), rng.uniform(-4, 4, 8)
            with pytest.raises(ActionError):
                limiter.step([math.nan] * 8)
            for k in range(length):
                target = [
                    away,
                    away * (-1) ** k,
                    target + away * tick_s,
                    target + rng.normal(size=8) * 0.01,
                    np.sin(away * k * tick_s),
                    target,
                ][kind]
                speed = away.tolist() if kind == 2 else None
                commands.append(limiter.brake() if kind == 5 else limiter.step(target.tolist(), speed))
        assert excess(commands, limiter.start, limits, low, high, tick_s) <= 0
        ticks += len(commands)
    assert ticks >= 100_000


def ticks_to_settle(own: MotionLimiter, i: int, limits: MotionLimits, span: float, tick_s: float) -> int:
    """The module's bound for dimension i."""
    fastest = span / tick_s if limits.velocity is None else min(limits.velocity, span / tick_s)
    return math.ceil((span / fastest + 3 * fastest / own.accelerations[i]) / tick_s) + 3 + own.window - 1


@given(machine=machines(), before=st.lists(st.floats(-10, 10), max_size=60), target=st.floats(-12, 12))
@settings(max_examples=60, deadline=None)
def test_a_constant_target_is_reached_in_time_and_kept(
    machine: tuple[list[MotionLimits], list[float], list[float], list[float], float], before: list[float], target: float
) -> None:
    """Within the stated number of ticks from any state, the nearest place inside the limits is reached to the grid, for good."""
    limits, low, high, start, tick_s = machine
    limiter = MotionLimiter(limits, low=low, high=high, start=start, tick_s=tick_s)
    n = len(limits)
    for wild in before:
        limiter.step([wild] * n)
    bound = max(ticks_to_settle(limiter, i, own, high[i] - low[i], tick_s) for i, own in enumerate(limits))
    assume(bound < 8000)  # Longer ones only cost time.
    for _ in range(bound):
        command = limiter.step([target] * n)
    for i in range(n):
        grid = 2.0**-45 * limiter.window * max(abs(low[i]), abs(high[i]))
        assert abs(command[i] - min(max(target, low[i]), high[i])) <= grid
    assert all(limiter.step([target] * n) == command for _ in range(5))


@given(target=st.floats(-3, 3), start=st.floats(-3, 3), limits=st.sampled_from([ARM, SLOW_ARM, MotionLimits(velocity=1, acceleration=3)]))
@settings(max_examples=50, deadline=None)
def test_from_rest_the_way_to_a_constant_target_never_turns(target: float, start: float, limits: MotionLimits) -> None:
    """No overshoot: the commands are monotone, and none is beyond the target (its grid point)."""
    own = limiter(limits, start=start, tick_s=0.01)
    commands = [start] + [own.step([target])[0] for _ in range(1200)]
    way = math.copysign(1, target - start)
    assert all(way * (b - a) >= 0 for a, b in pairwise(commands[1:]))
    assert abs(commands[-1] - target) < 1e-10
    assert own.at_rest


@pytest.mark.parametrize("limits", [ARM, SLOW_ARM])
@pytest.mark.parametrize("speed", [0.004, 0.1, 0.9])
@pytest.mark.parametrize("told", [False, True])
def test_the_lag_behind_a_steady_target_is_as_stated(limits: MotionLimits, speed: float, told: bool) -> None:
    """`delay_s`, plus at most speed / (2 acceleration) when the speed is not told; nothing more than `delay_s` when it is, or slow."""
    own, tick_s = limiter(limits, start=-2.9), 1e-3
    for n in range(6000):
        target = -2.9 + speed * n * tick_s
        command = own.step([target], [speed] if told else None)[0]
    late_s = (target - command) / speed
    if told or speed <= own.accelerations[0] * tick_s:
        assert late_s == pytest.approx(own.delay_s, abs=1e-10 / speed)  # The grid.
    else:
        assert own.delay_s < late_s <= own.delay_s + speed / (2 * own.accelerations[0])


def test_the_delay_is_short_against_a_policy_step() -> None:
    """Limits of a fast arm at 1 kHz cost 2 ticks, those of a slow one their jerk's time; without jerk limit there is none."""
    assert limiter(ARM).delay_s == 0.002
    assert limiter(SLOW_ARM).delay_s == pytest.approx(0.1)
    assert limiter(MotionLimits(velocity=2, acceleration=10)).delay_s == 0


def test_without_limits_every_target_is_the_command() -> None:
    """Absent limits are infinite: from one end to the other in one tick."""
    own = limiter(MotionLimits())
    for target in (3, -3, 0.5, 7, -7, 0):
        assert own.step([target])[0] == min(max(target, -3), 3)


@given(targets=st.lists(st.floats(-5, 5), min_size=1, max_size=100), limits=st.sampled_from([ARM, SLOW_ARM]))
@settings(max_examples=100, deadline=None)
def test_the_brake_comes_to_rest_as_soon_as_stated(targets: list[float], limits: MotionLimits) -> None:
    """At most velocity / acceleration plus N ticks, at a place that stays; and `step` may follow."""
    own, tick_s = limiter(limits, tick_s=0.004), 0.004
    for target in targets:
        own.step([target])
    for _ in range(math.ceil(limits.velocity / own.accelerations[0] / tick_s) + own.window):
        last = own.brake()
    assert own.at_rest
    assert own.brake() == last
    assert own.step([5.0])[0] >= last[0]


@pytest.mark.parametrize("bad", [[math.nan, 0], [0, math.inf], [-math.inf, 0], [0], [0, 0, 0]])
def test_what_is_not_finite_or_of_another_length_is_refused_and_changes_nothing(bad: list[float]) -> None:
    """The commands afterwards are those of a limiter that never saw it."""
    one, other = limiter(ARM, ARM), limiter(ARM, ARM)
    for target in (1.0, -2.0, 0.3):
        with pytest.raises(ActionError, match=r"expected 2 finite numbers; refused, call brake\(\)"):
            one.step(bad)
        with pytest.raises(ActionError, match="expected 2 finite numbers, or None"):
            one.step([0, 0], bad)
        assert one.step([target] * 2) == other.step([target] * 2)


def test_dimensions_keep_their_own_limits_and_arrive_on_one_path() -> None:
    """A dimension's commands do not depend on its neighbours' targets."""
    alone, beside = limiter(SLOW_ARM, SLOW_ARM), limiter(SLOW_ARM, SLOW_ARM)
    for k in range(300):
        assert alone.step([1, 0])[0] == beside.step([1, 3 * (-1) ** k])[0]


def test_unusable_limits_are_refused_with_what_to_do() -> None:
    """Each message says what was got and what was expected."""
    for name in ("velocity", "acceleration", "jerk"):
        for value in (0, -1, math.nan, math.inf):
            with pytest.raises(SpecError, match=f"{name} {value}, expected a positive number, or None"):
                MotionLimits(**{name: value})
    with pytest.raises(SpecError, match="different or zero length"):
        MotionLimiter([ARM], low=[0, 0], high=[1], start=[0], tick_s=1e-3)
    with pytest.raises(SpecError, match="different or zero length"):
        MotionLimiter([], low=[], high=[], start=[], tick_s=1e-3)
    with pytest.raises(SpecError, match="expected a positive number of seconds"):
        limiter(ARM, tick_s=0)
    with pytest.raises(SpecError, match="low < high"):
        limiter(ARM, low=1, high=1)
    with pytest.raises(ActionError, match=r"starts at 4, expected a position inside \[-3, 3\]: move the robot"):
        limiter(ARM, start=4)
    with pytest.raises(ActionError, match="starts at nan"):
        limiter(ARM, start=math.nan)
    with pytest.raises(SpecError, match="check the units of acceleration"):
        limiter(MotionLimits(acceleration=10, jerk=1e-2), low=-1e5, high=1e5)
    with pytest.raises(SpecError, match="moves less than rounding"):
        limiter(MotionLimits(acceleration=1e-6), high=1e6)


def test_a_ctrl_c_in_the_middle_of_a_command_leaves_nothing_half_done() -> None:
    """At any line: what follows is what would have followed with that command or without it, and `take_back` is without."""
    rng = np.random.default_rng(3)
    targets = rng.uniform(-3, 3, 60)
    code = MotionLimiter._advance.__code__
    lines = sorted({line for _, _, line in code.co_lines() if line is not None and line > code.co_firstlineno})
    seen = set()
    for line in lines:
        own, with_it, without = (limiter(MotionLimits(velocity=2, acceleration=10, jerk=2000)) for _ in range(3))
        for target in targets[:30]:
            for each in (own, with_it, without):
                each.step([target])
        with_it.step([targets[30]])

        def trace(frame: FrameType, event: str, argument: object, line: int = line) -> Callable[..., object] | None:
            if frame.f_code is not code:
                return trace if event == "call" else None
            if event == "line" and frame.f_lineno == line:
                raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            with pytest.raises(KeyboardInterrupt):
                own.step([targets[30]])
        finally:
            sys.settrace(before)
        if own.stopping_points == with_it.stopping_points:
            seen.add("with it")
            own.take_back()
        seen.add("without")
        for target in targets[31:]:
            assert own.step([target]) == without.step([target])
    assert seen == {"with it", "without"}
