"""How a motion looked, whether or not it succeeded: what a success rate does not show of a policy.

Positions p_0 .. p_T are sampled at `rate_hz` (1/dt). The jerk is their third difference, j_t = (p_t - 3 p_{t-1} + 3 p_{t-2} - p_{t-3}) / dt^3, and
the mean squared jerk is the mean of |j_t|^2 over t = 3 .. T: a policy that trembles has a large one at the same path length.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from actlet.specs import ActionSpec, ObservationSpec

__all__ = ["MotionQuality", "motion_quality", "position_columns"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MotionQuality:
    """Figures of one executed motion; positions in the unit of the state, metres for a hand."""

    mean_squared_jerk: float | None
    """In [m^2/s^6]; None when fewer than four positions were seen."""
    path_length: float
    """Sum of the distances between successive positions, in [m]."""
    gripper_flips: int
    """How often the executed gripper command crossed the middle of its range."""


def position_columns(spec: ObservationSpec) -> list[int]:
    """Which state entries are the position: those in metres named x, y, z (or ``..._x``, ``....x``), else all of them."""
    axes = [
        column
        for column, (name, unit) in enumerate(zip(spec.state_names, spec.state_units, strict=True))
        if unit == "m" and name.replace(".", "_").rsplit("_", 1)[-1] in ("x", "y", "z")
    ]
    return axes or list(range(spec.state_dim))


def motion_quality(
    states: NDArray[np.float32], actions: NDArray[np.float32], observation: ObservationSpec, action: ActionSpec, rate_hz: float
) -> MotionQuality:
    """Judge one episode.

    Args:
        states: float32 (T + 1, S), the state before every action and after the last.
        actions: float32 (T, A), as executed.
        observation: Names the entries of the state.
        action: Names the entries of the actions; without a "gripper" there are no flips.
        rate_hz: Samples in a second.
    """
    positions = np.asarray(states, np.float64)[:, position_columns(observation)]
    jerk = np.diff(positions, n=3, axis=0) * rate_hz**3  # (T - 2, columns)
    flips = 0
    if "gripper" in action.names and len(actions) > 1:
        column = action.names.index("gripper")
        flips = int(np.count_nonzero(np.diff(actions[:, column] > (action.low[column] + action.high[column]) / 2)))
    return MotionQuality(
        mean_squared_jerk=float(np.mean(np.sum(jerk**2, axis=1))) if len(positions) >= 4 else None,
        path_length=float(np.linalg.norm(np.diff(positions, axis=0), axis=1).sum()),
        gripper_flips=flips,
    )
