"""The simulated arm: end-effector displacements in, joint servo commands out.

What an action does. The commanded pose of the point between the fingers is integrated from the commanded pose of the step before,
after that was pulled to within `LEASH_M` and `LEASH_RAD` of the measured pose: a zero action holds still and does not
creep, and an arm that is pushed or blocked does not wind up. Damped least squares turns the pose into joint angles, and the servo runs to
them along a straight ramp with the ramp's speed fed forward, so that the measured displacement of a free step is the commanded one within a
millimetre or two.

Rotation is described relative to `DOWN` (fingers pointing down, opening along y), as a rotation vector in the base frame.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from episodes.rendering import import_mujoco
from episodes.tabletop_scene import ARM_HOME, ARM_JOINTS, TIMESTEP_S

__all__ = ["CONTROL_S", "DOWN", "Arm", "rotation_from_vector", "vector_from_rotation"]

CONTROL_S = 0.1
SLICES = 10  # The ramp has ten stairs; contacts are looked at after each.
STEPS_PER_SLICE = round(CONTROL_S / SLICES / TIMESTEP_S)

DOWN = np.diag([1.0, -1.0, -1.0])
# The lowest point keeps closed fingertips (18 mm below it) off the table; the box is what the arm reaches with its elbow up.
WORKSPACE_LOW, WORKSPACE_HIGH = np.array([0.27, -0.28, 0.021]), np.array([0.70, 0.28, 0.34])
LARGEST_TILT, LARGEST_YAW = 0.35, 1.6  # [rad]
SMALLEST_ELBOW = 0.25  # [rad]; a stretched elbow could fold the other way, and then the arm sweeps the table.
LEASH_M, LEASH_RAD = 0.01, 0.08
LARGEST_JOINT_STEP = 0.5  # [rad] in one control step.
DAMPING = 0.02


def rotation_from_vector(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation matrix (3, 3) of a rotation vector (3,) in [rad] (Rodrigues)."""
    angle = float(np.linalg.norm(vector))
    x, y, z = vector
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    if angle < 1e-9:
        return np.eye(3) + cross
    return np.eye(3) + np.sin(angle) / angle * cross + (1.0 - np.cos(angle)) / angle**2 * (cross @ cross)


def vector_from_rotation(rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation vector (3,) in [rad] of a rotation matrix; angles up to just under pi."""
    axis = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]]) / 2.0
    sine, cosine = float(np.linalg.norm(axis)), (float(np.trace(rotation)) - 1.0) / 2.0
    if sine < 1e-9:
        return axis
    return axis * (np.arctan2(sine, cosine) / sine)


def shortened(vector: NDArray[np.float64], length: float) -> NDArray[np.float64]:
    """The vector, no longer than `length`."""
    norm = float(np.linalg.norm(vector))
    return vector if norm <= length else vector * (length / norm)


class Arm:
    """The arm of one simulation; it writes to `data.ctrl` and reads the measured pose."""

    def __init__(self, model: Any, data: Any) -> None:
        self._mujoco = import_mujoco()
        self._model, self._data, self._scratch = model, data, self._mujoco.MjData(model)
        self._site = model.site("gripper/pinch").id
        self._qpos = np.array([model.joint(name).qposadr[0] for name in ARM_JOINTS])
        self._low, self._high = (model.jnt_range[[model.joint(name).id for name in ARM_JOINTS], side] for side in (0, 1))
        self._low[2] = SMALLEST_ELBOW
        self._finger_qpos = int(model.joint("gripper/right_driver_joint").qposadr[0])
        # The servo's force is kp (ctrl - q) - kd v; adding kd/kp v to ctrl removes its lag at speed v.
        self._lead_s = model.actuator_biasprm[:6, 2] / model.actuator_biasprm[:6, 1]
        self._jacobian = np.zeros((6, model.nv))
        self.commanded_xyz, self.commanded_rotation = np.zeros(3), DOWN.copy()
        self._joints = np.array(ARM_HOME)

    def place(self, xyz: NDArray[np.float64], yaw: float) -> None:
        """Put the arm at a pose at once, fingers open; for a reset."""
        self.commanded_xyz, self.commanded_rotation = xyz.copy(), rotation_from_vector(np.array([0.0, 0.0, yaw])) @ DOWN
        self._joints = self._inverse(np.array(ARM_HOME), iterations=60)
        self._data.qpos[self._qpos] = self._joints
        self._data.ctrl[:6], self._data.ctrl[6] = self._joints, 0.0

    @property
    def xyz(self) -> NDArray[np.float64]:
        """Measured position of the point between the fingers, float64 (3,), [m]."""
        return np.array(self._data.site_xpos[self._site])

    @property
    def rotation(self) -> NDArray[np.float64]:
        """Measured orientation, float64 (3, 3)."""
        return np.array(self._data.site_xmat[self._site]).reshape(3, 3)

    @property
    def rotation_vector(self) -> NDArray[np.float64]:
        """Measured orientation relative to `DOWN`, float64 (3,), [rad]."""
        return vector_from_rotation(self.rotation @ DOWN.T)

    @property
    def opening(self) -> float:
        """Measured opening of the fingers: 1 wide open (85 mm), 0 closed."""
        return float(np.clip(1.0 - self._data.qpos[self._finger_qpos] / 0.8, 0.0, 1.0))

    def move(self, displacement: NDArray[np.float64], rotation: NDArray[np.float64], closed: bool) -> Any:
        """Run one control step; a generator that pauses after each slice of physics.

        Args:
            displacement: float64 (3,), [m], base frame.
            rotation: float64 (3,), rotation vector in [rad], base frame.
            closed: The fingers are commanded to close.
        """
        xyz = self.xyz + shortened(self.commanded_xyz - self.xyz, LEASH_M)
        lag = shortened(vector_from_rotation(self.commanded_rotation @ self.rotation.T), LEASH_RAD)
        self.commanded_xyz = np.clip(xyz + displacement, WORKSPACE_LOW, WORKSPACE_HIGH)
        turned = vector_from_rotation(rotation_from_vector(rotation) @ rotation_from_vector(lag) @ self.rotation @ DOWN.T)
        turned[:2], turned[2] = shortened(turned[:2], LARGEST_TILT), np.clip(turned[2], -LARGEST_YAW, LARGEST_YAW)
        self.commanded_rotation = rotation_from_vector(turned) @ DOWN
        before = self._joints
        self._joints = self._inverse(before, iterations=12)
        speed = (self._joints - before) / CONTROL_S
        self._data.ctrl[6] = 255.0 if closed else 0.0
        for index in range(SLICES):
            self._data.ctrl[:6] = before + (self._joints - before) * ((index + 1) / SLICES) + speed * self._lead_s
            self._mujoco.mj_step(self._model, self._data, nstep=STEPS_PER_SLICE)
            yield

    def _inverse(self, joints: NDArray[np.float64], iterations: int) -> NDArray[np.float64]:
        """Joint angles (6,) for the commanded pose, by damped least squares from `joints`."""
        start, joints = joints, joints.copy()
        jacobian = self._jacobian
        for _ in range(iterations):
            self._scratch.qpos[self._qpos] = joints
            self._mujoco.mj_kinematics(self._model, self._scratch)
            self._mujoco.mj_comPos(self._model, self._scratch)
            rotation = self._scratch.site_xmat[self._site].reshape(3, 3)
            error = np.concatenate(
                [self.commanded_xyz - self._scratch.site_xpos[self._site], vector_from_rotation(self.commanded_rotation @ rotation.T)]
            )
            if np.abs(error).max() < 1e-5:
                break
            self._mujoco.mj_jacSite(self._model, self._scratch, jacobian[:3], jacobian[3:], self._site)
            arm = jacobian[:, :6]
            step = arm.T @ np.linalg.solve(arm @ arm.T + DAMPING**2 * np.eye(6), error)
            joints = np.clip(joints + np.clip(step, -0.3, 0.3), self._low, self._high)
        if iterations > 12:  # A reset may move as far as it likes.
            return joints
        return start + np.clip(joints - start, -LARGEST_JOINT_STEP, LARGEST_JOINT_STEP)
