"""The chunk schedule: the right row at the right step, a seam without a jump, nothing beyond the horizon."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actlet.errors import ActionError, CallerError
from actlet.specs import PolicySpec, TimingSpec
from runtime.chunk_schedule import ChunkSchedule, ScheduleConfig


def _spec(tiny_spec: PolicySpec, **timing: int) -> PolicySpec:
    return dataclasses.replace(
        tiny_spec, timing=TimingSpec(**({"rate_hz": 10, "horizon": 6, "execute_steps": 3, "max_delay_steps": 5} | timing))
    )


def _chunk(observed_at: int, steps: int = 6) -> np.ndarray:
    """Every value says which chunk it is of (hundreds) and for which step it is meant."""
    return np.repeat((100 * observed_at + np.arange(observed_at, observed_at + steps))[:, None], 4, axis=1).astype(np.float32)


def test_row_i_is_due_i_steps_after_the_observation(tiny_spec: PolicySpec) -> None:
    """A chunk that arrives late is entered in the middle; beyond its horizon nothing is due."""
    schedule = ChunkSchedule(_spec(tiny_spec))
    assert schedule.at(0) is None
    assert schedule.add(_chunk(2), observed_at=2, now=4) == "used"
    assert [schedule.at(step).action[0] for step in range(4, 8)] == [204, 205, 206, 207]
    assert schedule.at(8) is None


def test_the_newest_chunk_wins_at_once(tiny_spec: PolicySpec) -> None:
    """Without a cross-fade the newer chunk's row is due from the step at which it is there."""
    schedule = ChunkSchedule(_spec(tiny_spec), ScheduleConfig(blend_steps=0))
    schedule.add(_chunk(0), observed_at=0, now=0)
    schedule.add(_chunk(3), observed_at=3, now=4)
    assert schedule.at(4).action[0] == 304
    assert schedule.at(4).observed_at == 3


@pytest.mark.parametrize("rule", ["newest", "ensemble", "queue"])
def test_what_has_outlived_its_time_is_not_mixed_in(tiny_spec: PolicySpec, rule: str) -> None:
    """Of a chunk of step 0 whose actions live for five steps, the one for step 4 is mixed with the newer chunk's, the one for step 5 is not."""
    schedule = ChunkSchedule(_spec(tiny_spec), ScheduleConfig(rule=rule), live_steps=5)  # type: ignore[arg-type]
    schedule.add(_chunk(0), observed_at=0, now=0)
    schedule.add(_chunk(3), observed_at=3, now=4)
    assert schedule.at(4).action[1] < 304
    assert schedule.at(5).action[1] == 305


def test_receding_horizon_waits_for_the_executed_steps(tiny_spec: PolicySpec) -> None:
    """The newer chunk waits until three actions of the one before were due, and a still newer one takes its place."""
    schedule = ChunkSchedule(_spec(tiny_spec), ScheduleConfig(rule="receding", blend_steps=0))
    schedule.add(_chunk(0), observed_at=0, now=0)
    schedule.add(_chunk(1), observed_at=1, now=1)
    assert [schedule.at(step).action[0] for step in (1, 2, 3)] == [1, 2, 103]
    schedule.add(_chunk(2), observed_at=2, now=2)
    assert [schedule.at(step).action[0] for step in (2, 3)] == [2, 203]


def test_where_nothing_is_executed_a_chunk_need_not_wait(tiny_spec: PolicySpec) -> None:
    """In HOLD the newest is due at once by either rule, and none becomes late by waiting."""
    schedule = ChunkSchedule(_spec(tiny_spec, execute_steps=6, max_delay_steps=1), ScheduleConfig(rule="receding", blend_steps=0))
    schedule.add(_chunk(0), observed_at=0, now=0)
    assert schedule.add(_chunk(2), observed_at=2, now=2) == "late"
    assert schedule.add(_chunk(2), observed_at=2, now=2, at_once=True) == "used"
    assert [schedule.at(step).action[0] for step in (2, 3)] == [202, 203]


def test_receding_horizon_goes_on_when_the_newer_chunk_is_late(tiny_spec: PolicySpec) -> None:
    """Without a newer chunk the old one plays to its horizon; the newer one is used as soon as it is there."""
    schedule = ChunkSchedule(_spec(tiny_spec), ScheduleConfig(rule="receding", blend_steps=0))
    schedule.add(_chunk(0), observed_at=0, now=0)
    assert schedule.at(4).action[0] == 4
    schedule.add(_chunk(3), observed_at=3, now=5)
    assert schedule.at(5).action[1] == 305


def test_the_cross_fade_is_linear_and_spares_flags(tiny_spec: PolicySpec) -> None:
    """Over two steps the weights are 1/3 and 2/3; binary dimensions (first and last) change at once."""
    schedule = ChunkSchedule(_spec(tiny_spec), ScheduleConfig(blend_steps=2))
    schedule.add(np.zeros((6, 4), np.float32), observed_at=0, now=0)
    schedule.add(np.ones((6, 4), np.float32), observed_at=3, now=3)
    np.testing.assert_allclose(schedule.at(3).action, [1, 1 / 3, 1 / 3, 1], rtol=1e-6)
    np.testing.assert_allclose(schedule.at(4).action, [1, 2 / 3, 2 / 3, 1], rtol=1e-6)
    np.testing.assert_array_equal(schedule.at(5).action, np.ones(4))


def test_a_policy_that_answers_at_every_step_is_not_held_back_by_its_past(tiny_spec: PolicySpec) -> None:
    """A chunk that was in use for n steps is faded out over less than n: over none for 1, over one for 2."""
    schedule = ChunkSchedule(_spec(tiny_spec), ScheduleConfig(blend_steps=2))
    for step in range(4):
        schedule.add(np.full((6, 4), step / 4, np.float32), observed_at=step, now=step)
        np.testing.assert_array_equal(schedule.at(step).action, np.full(4, step / 4))
    schedule.add(np.ones((6, 4), np.float32), observed_at=5, now=5)
    np.testing.assert_allclose(schedule.at(5).action[1], (0.75 + 1) / 2)
    np.testing.assert_array_equal(schedule.at(6).action, np.ones(4))


def test_no_cross_fade_from_a_chunk_that_ran_out(tiny_spec: PolicySpec) -> None:
    """After HOLD the new chunk starts as it is."""
    schedule = ChunkSchedule(_spec(tiny_spec), ScheduleConfig(blend_steps=2))
    schedule.add(np.zeros((6, 4), np.float32), observed_at=0, now=0)
    schedule.add(np.ones((6, 4), np.float32), observed_at=9, now=9)
    np.testing.assert_array_equal(schedule.at(9).action, np.ones(4))


def test_late_and_old_chunks_are_not_used(tiny_spec: PolicySpec) -> None:
    """Later than the policy was made for, or not newer than what is there: the schedule stays as it is."""
    schedule = ChunkSchedule(_spec(tiny_spec, max_delay_steps=1))
    assert schedule.add(_chunk(0), observed_at=0, now=2) == "late"
    assert schedule.at(2) is None
    assert schedule.add(_chunk(3), observed_at=3, now=4) == "used"
    assert schedule.add(_chunk(3), observed_at=3, now=4) == "old"
    assert schedule.add(_chunk(2), observed_at=2, now=4) == "old"
    assert schedule.at(4).action[0] == 304


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.zeros((5, 4), np.float32), r"shape \(5, 4\): expected \(6, 4\)"),
        (np.full((6, 4), np.nan), "all finite"),
        (np.full((6, 4), 1e300), "all finite"),
    ],
)
def test_unusable_chunks_are_refused(tiny_spec: PolicySpec, actions: np.ndarray, message: str) -> None:
    """Another shape, NaN, or a value that no float32 holds."""
    schedule = ChunkSchedule(_spec(tiny_spec))
    with pytest.raises(ActionError, match=message):
        schedule.add(actions, observed_at=0, now=0)
    assert schedule.at(0) is None


def test_a_chunk_from_the_future_is_refused(tiny_spec: PolicySpec) -> None:
    """Its observation cannot have been taken."""
    with pytest.raises(ActionError, match="observed at step 5, which is after the present step 4"):
        ChunkSchedule(_spec(tiny_spec)).add(_chunk(5), observed_at=5, now=4)


def test_clear_forgets(tiny_spec: PolicySpec) -> None:
    """After a stop nothing is due."""
    schedule = ChunkSchedule(_spec(tiny_spec))
    schedule.add(_chunk(0), observed_at=0, now=0)
    schedule.clear()
    assert schedule.at(0) is None


arrivals = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 8)), max_size=30)  # (steps until the next arrival, delay)


@given(arrivals=arrivals, rule=st.sampled_from(["newest", "receding"]), blend=st.integers(0, 4), most=st.integers(0, 5))
@settings(max_examples=400, deadline=None)
def test_laws_of_any_schedule(tiny_spec: PolicySpec, arrivals: list[tuple[int, int]], rule: str, blend: int, most: int) -> None:
    """Under any arrivals: rows of their own step only, observations never go back, no chunk beyond its horizon or delay."""
    spec = _spec(tiny_spec, max_delay_steps=most)
    schedule = ChunkSchedule(spec, ScheduleConfig(rule=rule, blend_steps=blend))
    events: dict[int, list[int]] = {}
    step = 0
    for gap, delay in arrivals:
        step += gap
        if step - delay >= 0:
            events.setdefault(step, []).append(step - delay)
    seen, first_use = -1, {}
    for now in range(step + 15):
        for observed_at in events.get(now, []):
            # The value of a row is the step that it is meant for: a blend of two right rows is the same value.
            rows = np.repeat(np.arange(observed_at, observed_at + 6, dtype=np.float32)[:, None], 4, axis=1)
            schedule.add(rows, observed_at=observed_at, now=now)
        due = schedule.at(now)
        if due is None:
            continue
        np.testing.assert_allclose(due.action, now, rtol=1e-6)
        assert due.observed_at >= seen
        assert 0 <= now - due.observed_at < 6
        seen = due.observed_at
        first_use.setdefault(seen, now)
        assert first_use[seen] - seen <= most


@given(values=st.lists(st.floats(0, 1, width=32), min_size=2, max_size=12), gap=st.integers(1, 7), blend=st.integers(1, 4))
@settings(max_examples=300, deadline=None)
def test_a_seam_goes_one_part_of_the_way(tiny_spec: PolicySpec, values: list[float], gap: int, blend: int) -> None:
    """Chunks of constant value, m < gap: the first step of a seam goes at most 1 / (m + 1) of the way to the new value, and never beyond."""
    schedule = ChunkSchedule(_spec(tiny_spec), ScheduleConfig(blend_steps=blend))
    for i, value in enumerate(values):
        now = i * gap
        before = schedule.at(now)
        schedule.add(np.full((6, 4), value, np.float32), observed_at=now, now=now)
        after = schedule.at(now).action[1]
        if before is None or gap == 1:
            assert after == np.float32(value)
        else:
            steps = min(blend, gap - 1)
            assert abs(after - before.action[1]) <= abs(np.float32(value) - before.action[1]) / (steps + 1) + 1e-6


def test_contradicting_settings_are_refused() -> None:
    """A rule that does not exist, a negative cross-fade."""
    with pytest.raises(CallerError, match=r"expected one of .*newest"):
        ScheduleConfig(rule="oldest")
    with pytest.raises(CallerError, match="blend_steps -1"):
        ScheduleConfig(blend_steps=-1)


def test_a_policy_that_was_told_is_used_after_what_was_on_its_way(tiny_spec: PolicySpec) -> None:
    """Its answer comes at once, but the two actions that it was told of are still the older chunk's."""
    schedule = ChunkSchedule(_spec(tiny_spec), ScheduleConfig(blend_steps=0))
    schedule.add(_chunk(0), observed_at=0, now=0)
    assert schedule.add(_chunk(1), observed_at=1, now=1, committed=2) == "used"
    assert [schedule.at(step).action[0] for step in (1, 2, 3, 4)] == [1, 2, 103, 104]


@pytest.mark.parametrize(("committed", "first"), [(0, 0.5), (2, 1.0)])
def test_what_a_policy_was_told_is_not_faded_into(tiny_spec: PolicySpec, committed: int, first: float) -> None:
    """It goes on from there by itself; the same answer of a policy that was told nothing is faded in over the one step that there is."""
    schedule = ChunkSchedule(_spec(tiny_spec))
    schedule.add(np.zeros((6, 4), np.float32), observed_at=0, now=1)
    schedule.add(np.ones((6, 4), np.float32), observed_at=1, now=3, committed=committed)
    assert [schedule.at(step).action[1] for step in (3, 4)] == [first, 1.0]


def test_the_ensemble_is_the_mean_of_all_chunks(tiny_spec: PolicySpec) -> None:
    """ACT's weights, the oldest weighs most; flags are the newest chunk's; chunks that have run out count no more."""
    schedule = ChunkSchedule(_spec(tiny_spec), ScheduleConfig(rule="ensemble", ensemble_decay=0.5))
    for step in range(3):
        chunk = np.full((6, 4), float(step), np.float32)
        chunk[:, 3] = step % 2
        assert schedule.add(chunk, observed_at=step, now=step) == "used"
    weights = np.exp(-0.5 * np.arange(3))
    due = schedule.at(2)
    np.testing.assert_allclose(due.action[1:3], [np.dot(weights, [0, 1, 2]) / weights.sum()] * 2, rtol=1e-6)
    assert (due.action[3], due.observed_at) == (0.0, 2)
    np.testing.assert_allclose(schedule.at(6).action[1], (1 + 2 * np.exp(-0.5)) / (1 + np.exp(-0.5)), rtol=1e-6)
    np.testing.assert_allclose(schedule.at(7).action[1], 2.0)
    assert schedule.at(8) is None
    assert schedule.runs_out == 8


def test_the_queue_mixes_all_of_the_overlap(tiny_spec: PolicySpec) -> None:
    """LeRobot's weighted average: 0.3 of what was queued and 0.7 of what is new, as far as both go; mixed again by the next chunk."""
    schedule = ChunkSchedule(_spec(tiny_spec), ScheduleConfig(rule="queue"))
    for step, value in ((0, 0.0), (3, 1.0), (5, 2.0)):
        schedule.add(np.full((6, 4), value, np.float32), observed_at=step, now=step)
    np.testing.assert_allclose([schedule.at(step).action[1] for step in (5, 8)], [0.3 * 0.7 + 0.7 * 2, 0.3 * 1 + 0.7 * 2], rtol=1e-6)
    np.testing.assert_allclose([schedule.at(step).action[1] for step in (9, 10)], 2.0)


def test_open_loop_begins_a_chunk_when_it_is_there(tiny_spec: PolicySpec) -> None:
    """As openpi's broker: from its first row on, `execute_steps` of them, and nothing before the next one."""
    spec = _spec(tiny_spec)
    schedule = ChunkSchedule(spec, ScheduleConfig(rule="open"))
    chunk = np.arange(24, dtype=np.float32).reshape(6, 4)
    schedule.add(chunk, observed_at=1, now=3)
    assert schedule.at(2) is None
    count = spec.timing.execute_steps
    assert [schedule.at(3 + i).action[0] for i in range(count)] == [4.0 * i for i in range(count)]
    assert schedule.at(3 + count) is None
    assert schedule.runs_out == 3 + count


def test_confidence_goes_with_its_row(tiny_spec: PolicySpec) -> None:
    """Of the chunk in use; 1 where a policy says nothing; a chunk whose confidence is no number is refused."""
    schedule = ChunkSchedule(_spec(tiny_spec))
    schedule.add(np.zeros((6, 4), np.float32), observed_at=0, now=0)
    assert schedule.at(0).confidence == 1.0
    schedule.add(np.zeros((6, 4), np.float32), observed_at=2, now=3, confidence=np.linspace(0, 1, 6).astype(np.float32))
    assert schedule.at(4).confidence == pytest.approx(0.4)
    with pytest.raises(ActionError, match="confidence of shape"):
        schedule.add(np.zeros((6, 4), np.float32), observed_at=4, now=4, confidence=np.full(6, np.nan, np.float32))
