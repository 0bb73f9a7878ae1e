"""The scripted expert: what to do now, from where things are now.

There is no plan and no counter: the label is a function of the pose of the hand, the opening of the fingers and the poses of the
objects, so it recovers by itself after a disturbance or a student's mistake. Every approach runs down a funnel: far from the goal
stay at a travelling height, close to it come down; too low and far away, first go up. The functions are continuous wherever they
can be, so that a small network can imitate them from pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from episodes.tabletop_arm import DOWN, shortened, vector_from_rotation
from episodes.tabletop_scene import PLATE_TOP

__all__ = ["Situation", "expert_action"]

LARGEST_STEP, LARGEST_TURN = 0.03, 0.2  # Slower than the limits allow: a policy has time to correct itself.
GAIN = 0.7  # Share of the remaining way in one step when near.
HOVER = 0.105  # Travelling height of the open hand: its tips (13 mm lower) clear a block (44 mm).
CARRY = 0.07  # Travelling height of a carried block's underside.
TOUCH_ABOVE = 0.008  # Over the block's top; closed fingertips reach 18 mm below the hand's point: this presses 10 mm into it.
FUNNEL_FLAT, FUNNEL_WIDTH = 0.008, 0.035


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What the expert looks at: measured, and for the one block (and plate) that the instruction names."""

    skill: str
    """"touch", "lift" or "put"."""
    hand_xyz: NDArray[np.float64]
    """float64 (3,), the point between the fingers, [m]."""
    hand_rotation: NDArray[np.float64]
    """float64 (3, 3)."""
    opening: float
    """1 open .. 0 closed."""
    block_xyz: NDArray[np.float64]
    """float64 (3,), the block's centre, [m]."""
    block_half: float
    """Half the block's height, [m]."""
    plate_xy: NDArray[np.float64] | None
    """float64 (2,), the plate's centre for "put", else None."""
    held: bool
    """Both fingers press on the block."""
    succeeded: bool
    """The instruction has been carried out."""


def expert_action(now: Situation) -> NDArray[np.float32]:
    """The action for the situation: float32 (8,), terminate, displacement [m], rotation vector [rad], gripper."""
    if now.succeeded:
        return _action(terminate=True, closed=now.opening < 0.7)
    if now.skill == "touch":
        goal = now.block_xyz + np.array([0.0, 0.0, now.block_half + TOUCH_ABOVE])
        return _action(_funnel(now.hand_xyz, goal, HOVER, 0.0), _straighten(now), closed=True)
    if now.skill == "put" and _is_placed(now):
        # Let go; should a finger still lean on the block, leave upwards.
        return _action(np.array([0.0, 0.0, 0.04 * np.clip((now.opening - 0.8) / 0.1, 0.0, 1.0)]), closed=False)
    if now.held:
        turn = _straighten(now)
        if now.skill == "lift":
            return _action(np.array([0.0, 0.0, LARGEST_STEP]), turn, closed=True)
        assert now.plate_xy is not None
        rest = np.array([*now.plate_xy, PLATE_TOP + now.block_half + 0.001])
        return _action(_funnel(now.block_xyz, rest, now.block_half + CARRY, 0.0), turn, closed=True)
    return _grasp(now)


def _grasp(now: Situation) -> NDArray[np.float32]:
    """Come down over the block with open fingers, and close."""
    goal = now.block_xyz  # The grasp is at the block's centre.
    error = goal - now.hand_xyz
    aside, above = float(np.linalg.norm(error[:2])), abs(float(error[2]))
    closing = now.opening < 0.9
    if aside < (0.022 if closing else 0.012) and above < (0.018 if closing else 0.009):
        return _action(closed=True)
    # Fingers that are not open yet count as being further away: wait above the block.
    away = 0.1 * max(0.0, 0.85 - now.opening)
    return _action(_funnel(now.hand_xyz, goal, goal[2] + HOVER - now.block_half, away), _straighten(now), closed=False)


def _is_placed(now: Situation) -> bool:
    """The block is over the named plate and low enough to be let go."""
    assert now.plate_xy is not None
    aside = float(np.linalg.norm(now.block_xyz[:2] - now.plate_xy))
    return aside < 0.025 and now.block_xyz[2] < PLATE_TOP + now.block_half + 0.008


def _funnel(point: NDArray[np.float64], goal: NDArray[np.float64], high: float, away: float) -> NDArray[np.float64]:
    """Displacement (3,) in [m] that brings `point` to `goal`, at the height `high` while it is far aside."""
    aside = goal[:2] - point[:2]
    distance = float(np.linalg.norm(aside)) + away
    height = goal[2] + (high - goal[2]) * float(np.clip((distance - FUNNEL_FLAT) / FUNNEL_WIDTH, 0.0, 1.0))
    too_low = height - float(point[2])
    # Further below the funnel than 1.5 cm: slow down sideways; than 4 cm: only up.
    free = float(np.clip((0.04 - too_low) / 0.025, 0.0, 1.0))
    return shortened(GAIN * np.array([free * aside[0], free * aside[1], too_low]), LARGEST_STEP)


def _straighten(now: Situation) -> NDArray[np.float64]:
    """Rotation vector (3,) in [rad] towards fingers down, along the table's y axis.

    The hand does not turn with the block: open fingers are wider than a turned cube and turn it as they close. A label that
    follows the cube's edges is +-0.2 rad by what a frame of 64 pixels does not show, and its mean, no turn, is what networks learned.
    """
    return shortened(GAIN * vector_from_rotation(DOWN @ now.hand_rotation.T), LARGEST_TURN)


def _action(
    displacement: NDArray[np.float64] | None = None,
    turn: NDArray[np.float64] | None = None,
    *,
    closed: bool,
    terminate: bool = False,
) -> NDArray[np.float32]:
    still = np.zeros(3)
    parts = [[terminate], still if displacement is None else displacement, still if turn is None else turn, [closed]]
    return np.concatenate([np.asarray(part, np.float64) for part in parts]).astype(np.float32)
