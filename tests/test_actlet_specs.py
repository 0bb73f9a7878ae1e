"""Specifications: they check themselves, survive JSON, and name every difference."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from actlet.errors import ActionError, ObservationError, SpecError
from actlet.specs import ActionSpec, CameraSpec, ObservationSpec, PolicySpec, TimingSpec, require_same

names = st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=5, unique=True).map(tuple)
bounds = st.tuples(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@st.composite
def action_specs(draw: st.DrawFn) -> ActionSpec:
    """Any valid action specification."""
    dims = draw(names)
    kinds = tuple(draw(st.sampled_from(["continuous", "binary"])) for _ in dims)
    limits = [(0.0, 1.0) if kind == "binary" else draw(bounds) for kind in kinds]
    hold = tuple(draw(st.sampled_from(["zero", "last"])) if low <= 0 <= high else "last" for low, high in limits)
    return ActionSpec(
        names=dims,
        units=("1",) * len(dims),
        kinds=kinds,
        low=tuple(low for low, _ in limits),
        high=tuple(high for _, high in limits),
        frame=draw(st.text(max_size=5)),
        hold=draw(st.sampled_from([None, hold])),
    )


@st.composite
def policy_specs(draw: st.DrawFn) -> PolicySpec:
    """Any valid policy specification."""
    cameras = tuple(CameraSpec(name=name, height=draw(st.integers(1, 999)), width=draw(st.integers(1, 999))) for name in draw(names))
    state = draw(names)
    horizon = draw(st.integers(1, 50))
    return PolicySpec(
        observation=ObservationSpec(cameras=cameras, state_names=state, state_units=("m",) * len(state)),
        action=draw(action_specs()),
        timing=TimingSpec(
            rate_hz=draw(st.floats(0.1, 1000)),
            horizon=horizon,
            execute_steps=draw(st.integers(1, horizon)),
            max_delay_steps=draw(st.integers(0, horizon - 1)),
        ),
    )


@given(policy_specs())
@settings(deadline=None)
def test_a_specification_survives_json(spec: PolicySpec) -> None:
    """Through text and back it is the same object."""
    assert PolicySpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@given(policy_specs())
@settings(deadline=None)
def test_a_specification_is_the_same_as_itself(spec: PolicySpec) -> None:
    """No false alarm."""
    require_same(spec, PolicySpec.from_dict(spec.to_dict()), what="two copies")


def test_every_difference_is_named(tiny_spec: PolicySpec) -> None:
    """Path, value found, value expected; several at once."""
    theirs = dataclasses.replace(
        tiny_spec.action,
        names=("terminate", "dx", "dz", "gripper"),
        high=(1, 0.05, 0.5, 1),
        frame="tool",
        hold=("zero", "zero", "last", "last"),
    )
    with pytest.raises(SpecError) as error:
        require_same(tiny_spec.action, theirs, what="bundle and robot")
    assert str(error.value) == (
        "bundle and robot differ: names[2] is 'dz', expected 'dy'; high[2] is 0.5, expected 0.05; frame is 'tool', expected 'base'; "
        "hold[2] is 'last', expected 'zero'."
    )


def test_another_number_of_entries_is_a_difference(tiny_spec: PolicySpec) -> None:
    """A robot with one camera more."""
    two = (*tiny_spec.observation.cameras, CameraSpec(name="wrist", height=2, width=2))
    with pytest.raises(SpecError, match=r"cameras is .*wrist.*, expected"):
        require_same(tiny_spec.observation, dataclasses.replace(tiny_spec.observation, cameras=two), what="bundle and robot")


def test_what_ours_leaves_open_may_be_anything(tiny_spec: PolicySpec) -> None:
    """A policy that was learned from recordings does not know how the robot holds; the robot does."""
    open_spec = dataclasses.replace(tiny_spec.action, hold=None)
    require_same(open_spec, tiny_spec.action, what="bundle and robot")
    with pytest.raises(SpecError, match="hold is None, expected"):
        require_same(tiny_spec.action, open_spec, what="bundle and robot")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ("a", "a", "b", "c")}, "not unique"),
        ({"names": ("a",)}, "different or zero length"),
        ({"low": (0, 1, -1, 0), "high": (1, 1, 1, 1)}, r"'dx': limits \[1, 1\], expected finite numbers with low < high"),
        ({"low": (0, float("nan"), -1, 0)}, "limits .nan"),
        ({"high": (1, float("inf"), 1, 1)}, "expected finite numbers"),
        ({"kinds": ("binary", "discrete", "continuous", "binary")}, "kind 'discrete'"),
        ({"low": (-1, -0.05, -0.05, 0)}, r"'terminate': a binary dimension has the limits \[0, 1\], got \[-1"),
        ({"hold": ("zero",)}, "different or zero length"),
        ({"hold": ("zero", "zero", "stay", "last")}, "'dy': hold 'stay', expected 'zero' or 'last'"),
        ({"low": (0, 0.01, -0.05, 0)}, "'dx': cannot hold with zero, which is outside its limits"),
    ],
)
def test_an_action_specification_that_contradicts_itself_is_refused(tiny_spec: PolicySpec, changes: dict, message: str) -> None:
    """Found when it is made."""
    with pytest.raises(SpecError, match=message):
        dataclasses.replace(tiny_spec.action, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate_hz": 0}, "rate_hz 0, expected a positive number"),
        ({"rate_hz": float("nan")}, "rate_hz nan"),
        ({"execute_steps": 7}, r"execute_steps 7, expected 1 .. horizon \(6\)"),
        ({"max_delay_steps": 6}, r"max_delay_steps 6, expected 0 .. horizon - 1 \(5\)"),
    ],
)
def test_a_timing_that_contradicts_itself_is_refused(tiny_spec: PolicySpec, changes: dict, message: str) -> None:
    """Found when it is made."""
    with pytest.raises(SpecError, match=message):
        dataclasses.replace(tiny_spec.timing, **changes)


def test_an_observation_that_contradicts_itself_is_refused() -> None:
    """No camera, a name twice, a camera without size, a unit too few."""
    camera = CameraSpec(name="front", height=2, width=2)
    with pytest.raises(SpecError, match="at least one is needed"):
        ObservationSpec(cameras=(), state_names=(), state_units=())
    with pytest.raises(SpecError, match="each name once"):
        ObservationSpec(cameras=(camera, camera), state_names=(), state_units=())
    with pytest.raises(SpecError, match="size of at least 1x1"):
        CameraSpec(name="front", height=0, width=2)
    with pytest.raises(SpecError, match="give one unit per name"):
        ObservationSpec(cameras=(camera,), state_names=("x",), state_units=())


@given(values=hnp.arrays(np.float64, st.integers(3, 5), elements=st.floats(width=32) | st.sampled_from([1e300, -0.0])))
@settings(deadline=None)
def test_check_gives_a_safe_action_or_refuses(tiny_spec: PolicySpec, values: np.ndarray) -> None:
    """Finite and inside the limits, or an ActionError; never anything else."""
    try:
        action = tiny_spec.action.check(values)
    except ActionError:
        assert values.shape != (4,) or (np.abs(values) > 1e38).any() or np.isnan(values).any()
        return
    low, high = np.array(tiny_spec.action.low, np.float32), np.array(tiny_spec.action.high, np.float32)
    assert action.dtype == np.float32
    assert ((action >= low) & (action <= high)).all()


@pytest.mark.parametrize(
    ("images", "state", "message"),
    [
        ({}, np.zeros(3, np.float32), r"cameras"),
        ({"back": np.zeros((6, 8, 3), np.uint8)}, np.zeros(3, np.float32), "cameras"),
        ({"front": np.zeros((6, 8, 3), np.float32)}, np.zeros(3, np.float32), r"camera 'front': got float32 .*resize or convert"),
        ({"front": np.zeros((8, 6, 3), np.uint8)}, np.zeros(3, np.float32), r"got uint8 \(8, 6, 3\), expected uint8 \(6, 8, 3\)"),
        ({"front": np.zeros((6, 8, 3), np.uint8)}, np.zeros(2, np.float32), r"state: got float32 \(2,\), expected float32 \(3,\)"),
        ({"front": np.zeros((6, 8, 3), np.uint8)}, np.zeros(3, np.int64), "state: got int64"),
        ({"front": np.zeros((6, 8, 3), np.uint8)}, np.array([0, np.inf, 0]), r"state: \['y'\] not finite"),
    ],
)
def test_an_observation_of_another_form_is_refused(tiny_spec: PolicySpec, images: dict, state: np.ndarray, message: str) -> None:
    """Missing cameras, other sizes and types, values that are not finite."""
    with pytest.raises(ObservationError, match=message):
        tiny_spec.observation.check(images, state)


def test_a_timing_that_tells_nothing_reads_as_before() -> None:
    """`committed_steps` is written where there are some, and may be missing."""
    timing = TimingSpec(rate_hz=10, horizon=8, execute_steps=1, max_delay_steps=2)
    assert "committed_steps" not in timing.to_dict()
    assert TimingSpec.from_dict(timing.to_dict()) == timing
    told = dataclasses.replace(timing, committed_steps=2)
    assert TimingSpec.from_dict(told.to_dict()) == told
    with pytest.raises(SpecError, match="committed_steps 3"):
        dataclasses.replace(timing, committed_steps=3)
