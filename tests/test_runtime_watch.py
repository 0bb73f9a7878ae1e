"""What the loop sees with its own eyes: bad, stale and frozen observations, and clamped commands."""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actlet.protocols import Observation
from actlet.specs import CameraSpec, PolicySpec
from runtime.failsafe import Cause, FailsafeConfig
from runtime.watch import ClampWatch, ObservationWatch, frame_checksum

CONFIG = FailsafeConfig(max_bad_observations=3, max_frame_age_s=0.5, frozen_frames=4, frozen_s=1.0)


def seen(value: int = 0, taken_s: float | None = None, **changes: object) -> Observation:
    observation = Observation(images={"front": np.full((6, 8, 3), value, np.uint8)}, state=np.zeros(3, np.float32), taken_s=taken_s)
    return dataclasses.replace(observation, **changes)


def test_a_sound_observation_is_none_of_its_business(tiny_spec: PolicySpec) -> None:
    """With or without a time."""
    watch = ObservationWatch(tiny_spec.observation, CONFIG)
    assert watch.look(seen(1), now_s=0, clock_s=0) is None
    assert watch.look(seen(2, taken_s=9.5), now_s=1, clock_s=10.0) is None
    assert watch.look(seen(3, taken_s=11.0005), now_s=2, clock_s=11.0) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": {"back": np.zeros((6, 8, 3), np.uint8)}}, "cameras .'back'. differ from the expected .'front'."),
        ({"images": {"front": np.zeros((8, 6, 3), np.uint8)}}, r"camera 'front': got uint8 \(8, 6, 3\)"),
        ({"images": {"front": np.zeros((6, 8, 3), np.float32)}}, "camera 'front': got float32"),
        ({"images": None}, "TypeError"),
        ({"images": {"front": None}}, "AttributeError"),
        ({"state": np.zeros(2, np.float32)}, r"state: got float32 \(2,\), expected float32 \(3,\)"),
        ({"state": np.array([0, np.nan, 0], np.float32)}, r"state: \['y'\] not finite"),
        ({"state": "left"}, "AttributeError"),
        ({"taken_s": 20.0}, r"taken_s 20.0 is not before the loop's clock, 10.0: give seconds of time.monotonic\(\)"),
        ({"taken_s": math.nan}, "taken_s nan is not before"),
        ({"taken_s": -math.inf}, "taken_s -inf is not before"),
        ({"taken_s": "now"}, "ValueError"),
    ],
)
def test_what_is_not_as_specified_is_refused(tiny_spec: PolicySpec, changes: dict[str, object], message: str) -> None:
    """One is a slip, three in a row are a cause, a sound one in between begins the row again."""
    watch = ObservationWatch(tiny_spec.observation, CONFIG)
    for row in (2, 3):
        for number in range(1, row + 1):
            finding = watch.look(seen(**changes), now_s=0, clock_s=10.0)
            assert finding is not None
            assert re.search(message, finding.error)
            assert finding.cause is (Cause.BAD_OBSERVATION if number == 3 else None)
        assert watch.look(seen(row), now_s=0, clock_s=10.0) is None


@pytest.mark.parametrize("nothing", [None, 7, np.zeros(3), object()])
def test_a_robot_may_return_anything(tiny_spec: PolicySpec, nothing: object) -> None:
    """It is bad, and nothing is raised."""
    watch = ObservationWatch(tiny_spec.observation, CONFIG)
    finding = watch.look(nothing, now_s=0, clock_s=0)  # type: ignore[arg-type]
    assert finding is not None
    assert "AttributeError" in finding.error


def test_an_old_observation_is_stale(tiny_spec: PolicySpec) -> None:
    """At once: the age is what lasted."""
    watch = ObservationWatch(tiny_spec.observation, CONFIG)
    assert watch.look(seen(1, taken_s=1.0), now_s=0, clock_s=1.5) is None
    finding = watch.look(seen(2, taken_s=1.0), now_s=0, clock_s=1.625)
    assert finding is not None
    assert (finding.cause, finding.error) == (Cause.STALE_FRAME, "an observation that is 0.625 s old, 0.5 s at most")


def look_often(watch: ObservationWatch, values: list[int], every_s: float, **options: float) -> list[Cause | None]:
    findings = [watch.look(seen(value, **options), now_s=i * every_s, clock_s=i * every_s) for i, value in enumerate(values)]
    return [None if finding is None else finding.cause for finding in findings]


def test_the_same_pixels_again_and_again_are_a_frozen_camera(tiny_spec: PolicySpec) -> None:
    """From the fourth on, once they span a second; another picture ends it."""
    frozen = Cause.FROZEN_FRAME
    assert look_often(ObservationWatch(tiny_spec.observation, CONFIG), [5] * 5 + [6], 0.5) == [None, None, None, frozen, frozen, None]
    assert look_often(ObservationWatch(tiny_spec.observation, CONFIG), [5] * 12, 0.1) == [None] * 10 + [frozen] * 2
    assert look_often(ObservationWatch(tiny_spec.observation, CONFIG), [5, 5, 5, 6] * 5, 0.5) == [None] * 20


def test_drawn_frames_and_a_configuration_may_say_otherwise(tiny_spec: PolicySpec) -> None:
    """A simulation that stands still draws the same again."""
    assert look_often(ObservationWatch(tiny_spec.observation, CONFIG, noiseless=True), [5] * 9, 0.5) == [None] * 9
    off = dataclasses.replace(CONFIG, frozen_frames=None)
    assert look_often(ObservationWatch(tiny_spec.observation, off), [5] * 9, 0.5) == [None] * 9


def test_the_same_frame_is_not_a_new_one(tiny_spec: PolicySpec) -> None:
    """With its time, a frame that was seen before does not count: it may become stale, but the camera is not frozen."""
    watch = ObservationWatch(tiny_spec.observation, dataclasses.replace(CONFIG, max_frame_age_s=100))
    assert [watch.look(seen(5, taken_s=0.0), now_s=float(i), clock_s=float(i)) for i in range(9)] == [None] * 9
    causes = [watch.look(seen(5, taken_s=float(i)), now_s=float(i), clock_s=float(i)) for i in range(10, 14)]
    assert [finding is not None for finding in causes] == [False, False, True, True]


def test_one_frozen_camera_among_several_is_enough(tiny_spec: PolicySpec) -> None:
    """And it is named."""
    cameras = (*tiny_spec.observation.cameras, CameraSpec(name="wrist", height=6, width=8))
    watch = ObservationWatch(dataclasses.replace(tiny_spec.observation, cameras=cameras), CONFIG)
    for i in range(4):
        front, wrist = np.full((6, 8, 3), i, np.uint8), np.zeros((6, 8, 3), np.uint8)
        finding = watch.look(seen(images={"front": front, "wrist": wrist}), now_s=float(i), clock_s=0)
    assert finding is not None
    assert finding.error == "camera 'wrist' is frozen: the same pixels in 4 observations, for 3.0 s"


@pytest.mark.parametrize(("height", "rows"), [(480, 8), (1080, 17), (128, 8), (6, 6), (1, 1)])
def test_the_checksum_looks_at_some_rows(height: int, rows: int) -> None:
    """Every 64th, and eight at least: a change in one of them is seen, in others not."""
    frame = np.zeros((height, 16, 3), np.uint8)
    before, found = frame_checksum(frame), 0
    for row in range(height):
        frame[row, 3, 1] = 1
        found += frame_checksum(frame) != before
        frame[row, 3, 1] = 0
    assert found == rows


@given(
    window=st.integers(1, 9), values=st.integers(1, 4), share=st.floats(0, 1), counts=st.lists(st.integers(0, 4), min_size=1, max_size=40)
)
@settings(deadline=None)
def test_the_share_of_clamped_values_is_that_of_the_window(window: int, values: int, share: float, counts: list[int]) -> None:
    """Against a sum over the last steps; nothing is said before the window is full."""
    watch = ClampWatch(values, FailsafeConfig(clamp_window=window, clamp_share=share))
    counts = [min(count, values) for count in counts]
    for step in range(len(counts)):
        words = watch.add(counts[step])
        last = counts[max(0, step + 1 - window) : step + 1]
        assert bool(words) is (len(last) == window and sum(last) / (values * window) > share)
