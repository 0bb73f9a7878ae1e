"""Setpoints between policy steps: flags kept, positions between their neighbours, displacements that add up."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actlet.errors import ActionError, SpecError
from actlet.specs import ActionSpec
from runtime.motion_limits import MotionLimiter, MotionLimits
from runtime.resampler import Resampler, Rows

SPEC = ActionSpec(
    names=("terminate", "x", "joint", "turn", "grip"),
    units=("1", "m", "rad", "rad/s", "1"),
    kinds=("binary", "continuous", "continuous", "continuous", "binary"),
    low=(0, -0.1, -3, -2, 0),
    high=(1, 0.1, 3, 2, 1),
    frame="base",
    hold=("zero", "zero", "last", "zero", "last"),
)
FLAGS, DISPLACED, INTERPOLATED = (0, 4), (1,), (2, 3)

rates = st.tuples(st.sampled_from([3.0, 5.0, 10.0, 15.0, 29.97, 30.0, 50.0]), st.sampled_from([50.0, 60.0, 100.0, 125.0, 500.0, 1000.0]))
row = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=5, max_size=5)
shapes = st.sampled_from(["linear", "cubic"])


def ticks_of(resampler: Resampler, step: int) -> range:
    return range(resampler.first_tick(step), resampler.first_tick(step + 1))


def around(chunk: list[list[float]], k: int) -> Rows:
    """The rows of a chunk around step k, those outside it None."""

    def at(i: int) -> list[float] | None:
        return chunk[i] if 0 <= i < len(chunk) else None

    return Rows(now=chunk[k], after=at(k + 1), before=at(k - 1), later=at(k + 2))


@given(rates=rates, step=st.integers(0, 10**9))
@settings(max_examples=200, deadline=None)
def test_every_tick_belongs_to_one_step_and_nothing_drifts(rates: tuple[float, float], step: int) -> None:
    """The ticks of a step are those i with k <= i / r < k + 1 in exact arithmetic, also after a year."""
    resampler, ratio = Resampler(SPEC, step_hz=rates[0], tick_hz=rates[1]), Fraction(rates[1]) / Fraction(rates[0])
    ticks = ticks_of(resampler, step)
    assert math.floor(ratio) <= len(ticks) <= math.ceil(ratio)
    for tick in (ticks[0], ticks[-1]):
        assert resampler.step_of(tick) == step == math.floor(tick / ratio)
    assert resampler.step_of(ticks[-1] + 1) == step + 1


@given(
    rates=rates, step=st.integers(0, 10**6), rows=st.lists(row, min_size=4, max_size=4), known=st.tuples(*[st.booleans()] * 3), shape=shapes
)
@settings(max_examples=300, deadline=None)
def test_each_kind_gets_what_is_promised(
    rates: tuple[float, float], step: int, rows: list[list[float]], known: tuple[bool, ...], shape: Literal["linear", "cubic"]
) -> None:
    """Over a whole step: flags constant, positions and velocities monotone between neighbours, displacements add up."""
    resampler = Resampler(SPEC, step_hz=rates[0], tick_hz=rates[1], shape=shape)
    before, after, later = (r if known[i] else None for i, r in enumerate((rows[0], rows[2], rows[3])))
    given_rows = Rows(now=rows[1], after=after, before=before, later=later)
    setpoints = [resampler.at(tick, given_rows) for tick in ticks_of(resampler, step)]
    now = rows[1]
    for i in FLAGS:
        assert {s[i] for s in setpoints} == {now[i]}
    for i in DISPLACED:
        assert math.fsum(s[i] for s in setpoints) == pytest.approx(now[i], rel=len(setpoints) * 2.0**-52, abs=1e-300)
        assert len({s[i] for s in setpoints}) == 1
    for i in INTERPOLATED:
        low, high = sorted((now[i], now[i] if after is None else after[i]))
        assert all(low <= s[i] <= high for s in setpoints)
        way = 1 if after is None or after[i] >= now[i] else -1
        assert all(way * (b[i] - a[i]) >= -1e-14 * max(abs(low), abs(high)) for a, b in pairwise(setpoints))
        if resampler.first_tick(step) * rates[0] == step * rates[1]:
            assert setpoints[0][i] == now[i]


@given(chunk=st.lists(row, min_size=2, max_size=8), shape=shapes)
@settings(max_examples=100, deadline=None)
def test_speeds_are_those_of_the_setpoints(chunk: list[list[float]], shape: Literal["linear", "cubic"]) -> None:
    """They integrate (Simpson's rule, exact for a cubic) to the way between two actions; 0 for flags, displacements and at the end."""
    resampler = Resampler(SPEC, step_hz=10, tick_hz=1000, shape=shape)
    for k in range(len(chunk) - 1):
        rows, first = around(chunk, k), 100 * k
        a, b = np.array(resampler.speeds_at(first, rows)), np.array(resampler.speeds_at(first + 50, rows))
        way = np.array(resampler.at(first + 50, rows)) - np.array(resampler.at(first, rows))
        middle = np.array(resampler.speeds_at(first + 25, rows))
        size = 1e-12 * max(abs(x) for r in chunk for x in r)
        for i in INTERPOLATED:
            assert way[i] == pytest.approx((a[i] + 4 * middle[i] + b[i]) / 6 * 0.05, rel=1e-9, abs=size)
        assert not a[list(FLAGS + DISPLACED)].any()
    assert resampler.speeds_at(0, around(chunk, len(chunk) - 1)) == [0.0] * 5


@given(chunk=st.lists(st.lists(st.floats(-3, 3), min_size=5, max_size=5), min_size=3, max_size=8))
@settings(max_examples=100, deadline=None)
def test_the_cubics_speed_has_no_jumps_inside_a_chunk(chunk: list[list[float]]) -> None:
    """The speed at the end of a step (one tick before, extrapolated) is that at the begin of the next, within a tick's change."""
    resampler = Resampler(SPEC, step_hz=10, tick_hz=100_000, shape="cubic")
    for k in range(1, len(chunk) - 1):
        end = resampler.speeds_at(10_000 * k - 1, around(chunk, k - 1))
        begin = resampler.speeds_at(10_000 * k, around(chunk, k))
        for i in INTERPOLATED:
            assert end[i] == pytest.approx(begin[i], abs=6 * 6 * 2 * 10 / 10_000)


def test_the_linear_setpoint_is_on_the_line() -> None:
    """10 Hz at 1 kHz: after 30 of 100 ticks 0.3 of the way."""
    resampler = Resampler(SPEC, step_hz=10, tick_hz=1000)
    setpoints = resampler.at(230, Rows(now=[0, 0.1, 1, -1, 1], after=[1, 0.0, 2, 1, 0]))
    assert setpoints == pytest.approx([0, 0.001, 1.3, -0.4, 1], rel=1e-14)


def test_a_chunk_that_takes_over_in_mid_step_gets_the_rest_of_the_step() -> None:
    """Displacements: each chunk the share of its ticks. Positions: between the new neighbours from that tick on."""
    resampler = Resampler(SPEC, step_hz=10, tick_hz=1000)
    old, new = Rows(now=[0, 0.1, 1, 0, 0], after=[0, 0, 2, 0, 0]), Rows(now=[1, -0.1, 1.5, 0, 1], after=[1, 0, 1.6, 0, 1])
    setpoints = [resampler.at(tick, old if tick < 540 else new) for tick in ticks_of(resampler, 5)]
    assert math.fsum(s[1] for s in setpoints) == pytest.approx(0.4 * 0.1 + 0.6 * -0.1, abs=1e-15)
    assert all(1.5 <= s[2] <= 1.6 for s in setpoints[40:])
    assert [s[0] for s in setpoints] == [0] * 40 + [1] * 60


@given(skipped=st.sets(st.integers(0, 99)))
@settings(max_examples=50, deadline=None)
def test_skipped_ticks_are_not_made_up(skipped: set[int]) -> None:
    """Every other tick gets the very setpoint that it would have had: no displacement is larger, no position elsewhere."""
    rows, one, other = (
        Rows(now=[0, 0.1, 1, 0, 0], after=[0, 0, 2, 1, 0]),
        Resampler(SPEC, step_hz=10, tick_hz=1000),
        Resampler(SPEC, step_hz=10, tick_hz=1000),
    )
    whole = [one.at(tick, rows) for tick in range(100)]
    kept = {tick: other.at(tick, rows) for tick in range(100) if tick not in skipped}
    assert all(kept[tick] == whole[tick] for tick in kept)
    assert math.fsum(s[1] for s in kept.values()) == pytest.approx(0.001 * (100 - len(skipped)), abs=1e-15)


@pytest.mark.parametrize("shape", ["linear", "cubic"])
def test_looking_ahead_by_the_limiters_delay_puts_a_slow_motion_on_time(shape: Literal["linear", "cubic"]) -> None:
    """Setpoints `delay_s` later, with their speeds: the limiter's command is on the policy's path, far closer than its delay's way."""
    one = ActionSpec(names=("j",), units=("rad",), kinds=("continuous",), low=(-3,), high=(3,), frame="joint", hold=("last",))
    resampler = Resampler(one, step_hz=10, tick_hz=1000, shape=shape)
    path = [[math.sin(0.1 * k) * 0.5] for k in range(60)]  # 0.5 rad, 1 rad/s: at most 0.5 rad/s and 0.5 rad/s^2.
    limiter = MotionLimiter([MotionLimits(velocity=1, acceleration=4, jerk=40)], low=[-3], high=[3], start=[0], tick_s=1e-3)
    ahead = round(limiter.delay_s * 1000)
    errors = []
    for tick in range(5000):
        due = tick + ahead
        rows = around(path, resampler.step_of(due))
        command = limiter.step(resampler.at(due, rows), resampler.speeds_at(due, rows))[0]
        errors.append(abs(command - math.sin(tick / 1000) * 0.5))
    assert max(errors[1000:]) < 0.003 < 0.5 * limiter.delay_s / 10


def test_unusable_arguments_are_refused_with_what_to_do() -> None:
    """Each message says what was got and what was expected."""
    unknown = ActionSpec(names=("j",), units=("rad",), kinds=("continuous",), low=(-3,), high=(3,), frame="joint")
    with pytest.raises(SpecError, match="does not say how the robot stands still"):
        Resampler(unknown, step_hz=10, tick_hz=100)
    for step_hz, tick_hz in ((0, 100), (100, 10), (math.nan, 100), (10, math.inf)):
        with pytest.raises(SpecError, match="expected 0 < step_hz <= tick_hz"):
            Resampler(SPEC, step_hz=step_hz, tick_hz=tick_hz)
    with pytest.raises(SpecError, match="shape 'quintic', expected 'linear' or 'cubic'"):
        Resampler(SPEC, step_hz=10, tick_hz=100, shape="quintic")  # type: ignore[arg-type]
    resampler = Resampler(SPEC, step_hz=10, tick_hz=100)
    for ask in (resampler.at, resampler.speeds_at):
        with pytest.raises(ActionError, match="a row of 4 numbers, expected 5"):
            ask(0, Rows(now=[0] * 5, after=[0] * 4))
