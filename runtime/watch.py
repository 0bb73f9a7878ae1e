"""What the loop sees with its own eyes: observations that are not as specified, old, or frozen, and commands that are clamped too often.

Pure: time comes from outside. A camera that hangs goes on delivering frames, with new times even; what gives it away is that not one pixel of a
real sensor changes. All pixels need not be looked at for that: crc32 over a few rows of a frame (4.7 us for 8 rows of 480x640, 204 us for all).
"""

from __future__ import annotations

import collections
import dataclasses
import math
import zlib

import numpy as np
from numpy.typing import NDArray

from actlet.errors import ObservationError
from actlet.protocols import Observation
from actlet.specs import ObservationSpec
from runtime.failsafe import Cause, FailsafeConfig

__all__ = ["ClampWatch", "Finding", "ObservationWatch", "frame_checksum"]

_ROW_STRIDE, _FEWEST_ROWS = 64, 8
_MOMENT_S = 1e-3
"""How far an observation's time may lie ahead of the loop's clock: clocks of two threads that round differently."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """What is wrong with an observation: the policy must not be shown it."""

    error: str
    cause: Cause | None
    """What it is a cause for, None while it may be the slip of a moment."""


@dataclasses.dataclass(kw_only=True)
class _Same:
    """A camera's newest pixels: since when, and how many observations in a row."""

    checksum: int
    since_s: float
    count: int


def frame_checksum(frame: NDArray[np.uint8]) -> int:
    """crc32 over every 64th row of a frame (height, width, 3), and over 8 rows at least where there are so many."""
    stride = max(1, min(_ROW_STRIDE, len(frame) // _FEWEST_ROWS))
    return zlib.crc32(frame[::stride].tobytes())


class ObservationWatch:
    """Looks at every observation before the policy does.

    Args:
        spec: What cameras and state have to be.
        config: From when on something counts.
        noiseless: Frames are drawn, not taken: the same pixels mean nothing.
    """

    def __init__(self, spec: ObservationSpec, config: FailsafeConfig, *, noiseless: bool = False) -> None:
        self._spec, self._config = spec, config
        self._looks_for_frozen = config.frozen_frames is not None and not noiseless
        self._bad_in_a_row = 0
        self._same: dict[str, _Same] = {}
        self._taken_s: float | None = None

    def look(self, observation: Observation, *, now_s: float, clock_s: float) -> Finding | None:
        """What is wrong with the newest observation, if anything. Never raises: a robot may return anything.

        Args:
            observation: What the robot returned.
            now_s: The loop's time, in which `frozen_s` is counted.
            clock_s: The clock to which `taken_s` belongs.
        """
        try:
            self._spec.check(observation.images, observation.state)
            age_s = None if observation.taken_s is None else clock_s - float(observation.taken_s)
            if age_s is not None and not -_MOMENT_S <= age_s < math.inf:
                raise ObservationError(
                    f"taken_s {observation.taken_s} is not before the loop's clock, {clock_s}: give seconds of time.monotonic()."
                )
        except Exception as error:
            self._bad_in_a_row += 1
            is_enough = self._bad_in_a_row >= self._config.max_bad_observations
            words = f"{type(error).__name__}: {error}"
            text = f"{self._bad_in_a_row} observations in a row that are not as specified, the last: {words}" if is_enough else words
            return Finding(error=text, cause=Cause.BAD_OBSERVATION if is_enough else None)
        self._bad_in_a_row = 0
        if age_s is not None and age_s > self._config.max_frame_age_s:
            text = f"an observation that is {age_s:.3f} s old, {self._config.max_frame_age_s} s at most"
            return Finding(error=text, cause=Cause.STALE_FRAME)
        frozen = self._frozen(observation, now_s) if self._looks_for_frozen else ""
        return Finding(error=frozen, cause=Cause.FROZEN_FRAME) if frozen else None

    def _frozen(self, observation: Observation, now_s: float) -> str:
        """Which camera is frozen, in words; empty if none is."""
        is_new = observation.taken_s is None or observation.taken_s != self._taken_s  # The same frame again is old at worst, not frozen.
        self._taken_s = observation.taken_s
        words = ""
        for camera in self._spec.cameras:
            checksum, same = frame_checksum(observation.images[camera.name]), self._same.get(camera.name)
            if same is None or same.checksum != checksum:
                self._same[camera.name] = _Same(checksum=checksum, since_s=now_s, count=1)
                continue
            same.count += is_new
            for_s, most = now_s - same.since_s, self._config.frozen_frames
            if most is not None and same.count >= most and for_s >= self._config.frozen_s:
                words = words or f"camera {camera.name!r} is frozen: the same pixels in {same.count} observations, for {for_s:.1f} s"
        return words


class ClampWatch:
    """The share of clamped values among the commands of a window of steps.

    Args:
        values: Values of a command.
        config: Length of the window and largest share.
    """

    def __init__(self, values: int, config: FailsafeConfig) -> None:
        self._values, self._config = values, config
        self._counts: collections.deque[int] = collections.deque(maxlen=config.clamp_window)
        self._sum = 0

    def add(self, clamped: int) -> str:
        """Count a step's command; what is too much, in words, empty otherwise and while the window is not full."""
        if len(self._counts) == self._config.clamp_window:
            self._sum -= self._counts[0]
        self._counts.append(clamped)
        self._sum += clamped
        share = self._sum / (self._values * self._config.clamp_window)
        if len(self._counts) < self._config.clamp_window or share <= self._config.clamp_share:
            return ""
        return f"{share:.0%} of the values of the last {self._config.clamp_window} commands were out of limits, {self._config.clamp_share:.0%} at most"
