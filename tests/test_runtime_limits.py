"""The last gate: nothing passes that is not finite, inside the limits and no jump."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from actlet.errors import ActionError, SpecError
from actlet.specs import ActionSpec, PolicySpec
from runtime.limits import CommandLimiter

ABSOLUTE = ActionSpec(
    names=("shoulder", "elbow"),
    units=("rad", "rad"),
    kinds=("continuous",) * 2,
    low=(-1, 1),
    high=(1, 2),
    frame="joint",
    hold=("last",) * 2,
)


@given(
    actions=st.lists(hnp.arrays(np.float64, st.integers(3, 5), elements=st.floats()), max_size=20),
    limited=st.booleans(),
    holds=st.lists(st.integers(0, 19)),
)
@settings(max_examples=300, deadline=None)
def test_whatever_comes_in_what_goes_out_is_safe(tiny_spec: PolicySpec, actions: list[np.ndarray], limited: bool, holds: list[int]) -> None:
    """Any numbers in any shape, holds in between: finite, in the limits, flags 0 or 1, changes within `max_change`."""
    spec = tiny_spec.action
    most = (1.0, 0.01, 0.02, 1.0)
    limiter = CommandLimiter(spec, most if limited else None)
    low, high = np.array(spec.low, np.float32), np.array(spec.high, np.float32)
    last = None
    for i, action in enumerate(actions):
        try:
            answer = limiter.hold() if i in holds else limiter.limit(action)
        except ActionError:
            continue
        if answer is None:
            assert last is None
            continue
        command = answer.command
        assert np.isfinite(command).all()
        assert ((command >= low) & (command <= high)).all()
        assert set(command[[0, 3]]) <= {0.0, 1.0}
        if limited and last is not None:
            assert (np.abs(command - last)[1:3] <= np.array(most[1:3]) + 1e-7).all()
        last = command


def test_a_good_action_passes_unchanged(tiny_spec: PolicySpec) -> None:
    """Nothing clipped, nothing slowed."""
    answer = CommandLimiter(tiny_spec.action).limit(np.array([0, 0.01, -0.05, 1], np.float32))
    np.testing.assert_array_equal(answer.command, np.array([0, 0.01, -0.05, 1], np.float32))
    assert (answer.clipped, answer.slowed) == (0, 0)


def test_clipped_and_slowed_values_are_counted(tiny_spec: PolicySpec) -> None:
    """Two values outside the limits; then one that changes too much, which goes as far as it may."""
    limiter = CommandLimiter(tiny_spec.action, (1, 0.01, 0.01, 1))
    assert limiter.limit(np.array([0, 9, -9, 0])).clipped == 2
    answer = limiter.limit(np.array([0, 0, -0.05, 0]))
    assert answer.slowed == 1
    np.testing.assert_allclose(answer.command, [0, 0.04, -0.05, 0], atol=1e-7)


@pytest.mark.parametrize("bad", [np.full(4, np.nan), np.full(4, np.inf), np.zeros(3), np.full(4, 1e300)])
def test_what_cannot_be_mended_is_refused(tiny_spec: PolicySpec, bad: np.ndarray) -> None:
    """NaN is not clipped, and the command before stays what it was."""
    limiter = CommandLimiter(tiny_spec.action)
    limiter.limit(np.zeros(4))
    with pytest.raises(ActionError):
        limiter.limit(bad)
    np.testing.assert_array_equal(limiter.last, np.zeros(4))


def test_holding_a_displacement_is_zero_and_keeps_the_gripper(tiny_spec: PolicySpec) -> None:
    """terminate and motion go to zero, the flag of the gripper stays."""
    limiter = CommandLimiter(tiny_spec.action)
    limiter.limit(np.array([1, 0.05, -0.02, 1]))
    np.testing.assert_array_equal(limiter.hold().command, [0, 0, 0, 1])


def test_holding_a_position_repeats_it() -> None:
    """Zero would be a motion; before the first command there is nothing to repeat."""
    limiter = CommandLimiter(ABSOLUTE)
    assert limiter.hold() is None
    limiter.limit(np.array([0.5, 1.5]))
    np.testing.assert_array_equal(limiter.hold().command, [0.5, 1.5])


def test_a_robot_that_does_not_say_how_to_hold_is_refused() -> None:
    """Neither zero nor the last value is safe for every robot, so nothing is assumed."""
    with pytest.raises(SpecError, match=r"does not say how the robot stands still .* Set hold in the robot's ActionSpec"):
        CommandLimiter(dataclasses.replace(ABSOLUTE, hold=None))


@pytest.mark.parametrize("change", [(1.0,), (0.0, 1.0), (-1.0, 1.0), (float("inf"), 1.0), (float("nan"), 1.0)])
def test_impossible_largest_changes_are_refused(change: tuple[float, ...]) -> None:
    """One positive number per dimension."""
    with pytest.raises(SpecError, match="expected 2 positive numbers"):
        CommandLimiter(ABSOLUTE, change)


@given(
    start=st.lists(st.floats(-0.05, 0.05), min_size=4, max_size=4),
    shares=st.lists(st.floats(0, 1), max_size=12),
    limited=st.booleans(),
)
@settings(deadline=None)
def test_what_fades_only_becomes_smaller(tiny_spec: PolicySpec, start: list[float], shares: list[float], limited: bool) -> None:
    """Displacements go to zero without turning back, also where the limiter slows that; flags hold."""
    limiter = CommandLimiter(tiny_spec.action, (1.0, 0.01, 0.01, 1.0) if limited else None)
    before = limiter.limit(np.array(start, np.float32) + np.array([0, 0, 0, 1], np.float32)).command
    start_command, gripper = before, before[3]
    for share in [*sorted(shares, reverse=True), 0.0]:
        command = limiter.fade(start_command, share).command
        assert (np.abs(command[1:3]) <= np.abs(before[1:3])).all()
        assert (command[1:3] * start_command[1:3] >= 0).all()
        assert (command[0], command[3]) == (0, gripper)
        if not limited:
            np.testing.assert_allclose(command[1:3], np.float32(share) * start_command[1:3], rtol=1e-6, atol=1e-30)
        before = command
    for _ in range(6):
        limiter.fade(start_command, 0.0)
    assert limiter.is_at_rest


def test_a_limiter_is_at_rest_when_nothing_moves() -> None:
    """Positions never move by being held; before the first command nothing does."""
    limiter = CommandLimiter(ABSOLUTE)
    assert limiter.is_at_rest
    limiter.limit(np.array([0.5, 1.5], np.float32))
    assert limiter.is_at_rest
    np.testing.assert_array_equal(limiter.fade(np.array([0.5, 1.5], np.float32), 0.0).command, [0.5, 1.5])


def test_a_copy_goes_on_by_itself(tiny_spec: PolicySpec) -> None:
    """What is asked of it, the limiter does not remember."""
    limiter = CommandLimiter(tiny_spec.action, (1.0, 0.01, 0.01, 1.0))
    limiter.limit(np.array([0, 0.01, 0, 1], np.float32))
    twin = copy.copy(limiter)
    assert twin.limit(np.array([0, 0.05, 0, 0], np.float32)).command[1] == np.float32(0.02)
    np.testing.assert_array_equal(limiter.last, np.array([0, 0.01, 0, 1], np.float32))
