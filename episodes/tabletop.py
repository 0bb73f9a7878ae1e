"""The suite ``tabletop``: three skills with language on a simulated UR5e, where only the instruction says what to do.

Three coloured blocks and two coloured plates lie on a table. The same layouts, start poses and cameras serve all three tasks:

=====  ====================================  ==========================================================================
task   instruction                           success
=====  ====================================  ==========================================================================
touch  touch the green block                 the robot touches it; touching another block first ends the episode
lift   lift the blue block                   its underside is 5 cm above the table, held by both fingers; lifting another
                                             block ends the episode
put    put the red block on the yellow       it rests on that plate, the fingers are open and do not touch it
       plate
=====  ====================================  ==========================================================================

Observations: the cameras "front" and "wrist", and the measured pose and opening of the hand; nothing about the blocks. Actions are
RT-2's eight: terminate, displacement and rotation of the hand over one step of 0.1 s in the base frame, gripper (1 closed). The pose
is integrated as `episodes.tabletop_arm` describes. A layout is a function of the seed alone, and the target of the seed and the task.
Everything is deterministic: the same seed and actions give the same bits.
"""

from __future__ import annotations

import functools
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlet.errors import ActionError, UnknownNameError
from actlet.protocols import Observation, StepResult
from actlet.specs import ActionSpec, CameraSpec, ObservationSpec
from episodes.rendering import close_at_exit, import_mujoco
from episodes.tabletop_arm import Arm
from episodes.tabletop_expert import Situation, expert_action
from episodes.tabletop_scene import (
    BLOCK_HALF,
    BLOCKS,
    COLOURS,
    FAST_GROUPS,
    MESH_GROUPS,
    PLATES,
    Layout,
    build_model,
    draw_layout,
)

__all__ = ["TASKS", "TabletopTask", "make"]

TASKS = ("touch", "lift", "put")
MAX_STEPS = {"touch": 30, "lift": 40, "put": 60}  # About twice the expert's median.
LIFTED_M = 0.05
CAMERAS = {"front": "front", "wrist": "gripper/wrist"}
PICTURES = {"overview": "overview", **CAMERAS}  # What `render` knows: one camera more, which no policy sees.

STATE_NAMES = ("x", "y", "z", "rx", "ry", "rz", "gripper_opening")
STATE_UNITS = ("m", "m", "m", "rad", "rad", "rad", "1")
ACTION_SPEC = ActionSpec(
    names=("terminate", "dx", "dy", "dz", "drx", "dry", "drz", "gripper"),
    units=("1", "m", "m", "m", "rad", "rad", "rad", "1"),
    kinds=("binary", "continuous", "continuous", "continuous", "continuous", "continuous", "continuous", "binary"),
    low=(0.0, -0.05, -0.05, -0.05, -0.3, -0.3, -0.3, 0.0),
    high=(1.0, 0.05, 0.05, 0.05, 0.3, 0.3, 0.3, 1.0),
    frame="base",
    hold=("zero", "zero", "zero", "zero", "zero", "zero", "zero", "last"),
)


# Skill, block and plate of every instruction that a scene allows.
_WISHES = tuple((skill, block, dish) for skill in TASKS for block in range(BLOCKS) for dish in range(PLATES if skill == "put" else 1))


def make(task: str, *, image_px: int = 128) -> TabletopTask:
    """A task of the suite.

    Args:
        task: One of `TASKS`.
        image_px: Height and width of both cameras' frames.

    Raises:
        UnknownNameError: There is no such task.
        MissingExtraError: MuJoCo or the robot models are not installed.
        MissingLibraryError: No off-screen rendering backend can be loaded.
    """
    if task not in TASKS:
        raise UnknownNameError("tabletop task", task, TASKS)
    return TabletopTask(task, image_px=image_px)


class TabletopTask:
    """One of the three tasks; fits `actlet.protocols.Task`. Several may live side by side in a process."""

    rate_hz = 10.0

    def __init__(self, name: str, *, image_px: int) -> None:
        self.name, self.max_steps = name, MAX_STEPS[name]
        self.action_spec = ACTION_SPEC
        self.observation_spec = ObservationSpec(
            cameras=tuple(CameraSpec(name=camera, height=image_px, width=image_px) for camera in CAMERAS),
            state_names=STATE_NAMES,
            state_units=STATE_UNITS,
        )
        self._mujoco = import_mujoco()
        self._model = build_model()
        self._data = self._mujoco.MjData(self._model)
        self._arm = Arm(self._model, self._data)
        self._contacts = _ContactTable(self._model)
        self._layout: Layout | None = None

    def reset(self, seed: int) -> tuple[Observation, str]:
        """Lay the table; the same seed gives the same bits.

        Returns:
            The first observation and the instruction.
        """
        self._layout = layout = draw_layout(seed)
        self._target, self._plate = _draw_target(self.name, seed)
        self._steps, self._succeeded, self._failure, self._held = 0, False, "", False
        model, data = self._model, self._data
        self._mujoco.mj_resetData(model, data)
        for index in range(BLOCKS):
            address = model.joint(model.body(f"block{index}").jntadr[0]).qposadr[0]
            half_yaw = layout.block_yaw[index] / 2
            data.qpos[address : address + 7] = [*layout.block_xy[index], BLOCK_HALF, np.cos(half_yaw), 0.0, 0.0, np.sin(half_yaw)]
        for index in range(PLATES):
            data.mocap_pos[model.body(f"plate{index}").mocapid[0]] = [*layout.plate_xy[index], 0.0]
        self._arm.place(layout.start_xyz, layout.start_yaw)
        self._mujoco.mj_forward(model, data)
        return self._observe(), self.instruction

    @property
    def instruction(self) -> str:
        """What this episode asks for."""
        return _sentence(self._laid_out(), self.name, self._target, self._plate)

    @property
    def layout(self) -> Layout:
        """Where things lay at the reset, for tests and reports; privileged, not for policies."""
        return self._laid_out()

    @property
    def target(self) -> tuple[int, int]:
        """Indices of the block and the plate that the instruction names (the plate counts for "put" only)."""
        self._laid_out()
        return self._target, self._plate

    def step(self, action: NDArray[np.float32]) -> StepResult:
        """Run one control step of 0.1 s. With terminate > 0.5 the arm rests and the episode ends.

        Args:
            action: float32 (8,), clipped to the limits of `action_spec`.

        Returns:
            The observation after the step; `info` says "failure" (empty where there is none) and "steps".

        Raises:
            ActionError: Another shape, values that are not finite, or no reset before.
        """
        action = self.action_spec.check(action)
        self._laid_out()
        terminate = bool(action[0] > 0.5)
        if not terminate:
            motion = action.astype(np.float64)
            touched: list[int] = []
            for _ in self._arm.move(motion[1:4], motion[4:7], closed=bool(action[7] > 0.5)):
                touched += [block for block in self._contacts.touched(self._data) if block not in touched]
            self._mujoco.mj_forward(self._model, self._data)
            self._held = self._contacts.held(self._data, self._target)
            self._steps += 1
            self._judge(touched)
        done = self._succeeded or bool(self._failure) or terminate or self._steps >= self.max_steps
        info = {"failure": self._failure, "steps": self._steps}
        return StepResult(observation=self._observe(), success=self._succeeded, done=done, info=info)

    def expert_action(self) -> NDArray[np.float32]:
        """float32 (8,): the scripted expert's action in the present state; terminate once the instruction is carried out."""
        self._laid_out()
        block = self._data.body(f"block{self._target}")
        return expert_action(
            Situation(
                skill=self.name,
                hand_xyz=self._arm.xyz,
                hand_rotation=self._arm.rotation,
                opening=self._arm.opening,
                block_xyz=np.array(block.xpos),
                plate_xy=self._plate_xyz(self._plate)[:2] if self.name == "put" else None,
                held=self._held,
                succeeded=self._succeeded,
            )
        )

    def instructions(self, seed: int) -> tuple[str, ...]:
        """All twelve: three blocks to touch or lift, or to put on one of two plates; this episode's own among them."""
        layout = draw_layout(seed)
        return tuple(_sentence(layout, *wish) for wish in _WISHES)

    def other_instruction(self, seed: int) -> str:
        """Another instruction for the seed's layout, about another block or another plate; following it is not success here."""
        layout = draw_layout(seed)
        target, plate = _draw_target(self.name, seed)
        others = [
            _sentence(layout, skill, block, dish)
            for skill, block, dish in _WISHES
            if block != target or (self.name == skill == "put" and dish != plate)
        ]
        return others[int(np.random.default_rng([seed, 22, TASKS.index(self.name)]).integers(len(others)))]

    def render(self, camera: str | None = None, height: int = 480, width: int = 640, full_meshes: bool = False) -> NDArray[np.uint8]:
        """uint8 (height, width, 3): a picture for people, with shadows and smooth edges.

        Args:
            camera: "overview" (the whole arm; the default), "front" or "wrist".
            height: Rows.
            width: Columns.
            full_meshes: Draw the robot by its manufacturers' meshes instead of capsules.

        Raises:
            UnknownNameError: There is no such camera.
        """
        camera = "overview" if camera is None else camera
        if camera not in PICTURES:
            raise UnknownNameError("camera", camera, tuple(PICTURES))
        return self._picture(camera, height, width, MESH_GROUPS if full_meshes else FAST_GROUPS, True)

    def close(self) -> None:
        """Nothing to free: the model and the renderers belong to the process."""

    def _laid_out(self) -> Layout:
        if self._layout is None:
            raise ActionError("the task has no layout yet: call reset(seed) first.")
        return self._layout

    def _plate_xyz(self, index: int) -> NDArray[np.float64]:
        return np.array(self._data.body(f"plate{index}").xpos)

    def _observe(self) -> Observation:
        images = {
            spec.name: self._picture(spec.name, spec.height, spec.width, FAST_GROUPS, False) for spec in self.observation_spec.cameras
        }
        state = np.concatenate([self._arm.xyz, self._arm.rotation_vector, [self._arm.opening]]).astype(np.float32)
        return Observation(images=images, state=state)

    def _picture(self, camera: str, height: int, width: int, groups: tuple[int, ...], fine: bool) -> NDArray[np.uint8]:
        renderer, option = _renderer(height, width, fine), _draw_option(groups)
        layout = self._laid_out()
        # The model is shared, so the colours of this task's layout are put on just before drawing.
        for index, name in enumerate(layout.block_colours):
            self._model.geom(f"block{index}").rgba[:3] = COLOURS[name]
        for index, name in enumerate(layout.plate_colours):
            self._model.geom(f"plate{index}").rgba[:3] = COLOURS[name]
            self._model.geom(f"plate{index}_ring").rgba[:3] = 0.75 * np.array(COLOURS[name]) + 0.25
        renderer.update_scene(self._data, camera=PICTURES[camera], scene_option=option)
        return np.array(renderer.render())

    def _judge(self, touched: list[int]) -> None:
        """Update success and failure; both are kept once reached."""
        if self._succeeded or self._failure:
            return
        colours = self._laid_out().block_colours
        if self.name == "touch" and touched:
            self._succeeded = touched[0] == self._target
            self._failure = "" if self._succeeded else f"touched the {colours[touched[0]]} block first"
        elif self.name == "lift":
            lifted = [block for block in range(BLOCKS) if self._is_lifted(block)]
            self._succeeded = self._target in lifted
            self._failure = "" if self._succeeded or not lifted else f"lifted the {colours[lifted[0]]} block"
        elif self.name == "put":
            self._succeeded = self._is_put()

    def _is_lifted(self, block: int) -> bool:
        return bool(self._data.body(f"block{block}").xpos[2] >= LIFTED_M + BLOCK_HALF) and self._contacts.held(self._data, block)

    def _is_put(self) -> bool:
        block = self._data.body(f"block{self._target}")
        aside = np.linalg.norm(block.xpos[:2] - self._plate_xyz(self._plate)[:2])
        return bool(
            aside < 0.042
            and self._arm.opening > 0.7
            and np.linalg.norm(block.cvel[3:]) < 0.05
            and self._target not in self._contacts.touched(self._data)
            and self._contacts.rests(self._data, self._target, self._plate)
        )


class _ContactTable:
    """Which geom belongs to what, for reading MuJoCo's contacts."""

    def __init__(self, model: Any) -> None:
        blocks = [model.geom(f"block{index}").id for index in range(BLOCKS)]
        plates = [model.geom(f"plate{index}_top").id for index in range(PLATES)]
        robot = model.geom_contype == 2
        self._block_of = np.full(model.ngeom, -1)
        self._block_of[blocks] = np.arange(BLOCKS)
        self._plate_of = np.full(model.ngeom, -1)
        self._plate_of[plates] = np.arange(PLATES)
        self._is_robot = np.asarray(robot)
        self._pad_of = np.full(model.ngeom, -1)
        for side, name in enumerate(("left", "right")):
            self._pad_of[[model.geom(f"gripper/{name}_pad{index}").id for index in (1, 2)]] = side

    def _pairs(self, data: Any) -> NDArray[np.intp]:
        """Touching pairs of geoms, both ways round: (2 n, 2)."""
        pairs = data.contact.geom[data.contact.dist <= 0.0]
        return np.concatenate([pairs, pairs[:, ::-1]]) if len(pairs) else np.zeros((0, 2), np.intp)

    def touched(self, data: Any) -> list[int]:
        """Blocks that the robot touches."""
        pairs = self._pairs(data)
        return sorted({int(b) for b in self._block_of[pairs[self._is_robot[pairs[:, 0]], 1]] if b >= 0})

    def held(self, data: Any, block: int) -> bool:
        """Both fingers' pads touch the block."""
        pairs = self._pairs(data)
        sides = self._pad_of[pairs[self._block_of[pairs[:, 1]] == block, 0]]
        return bool({0, 1} <= set(sides.tolist()))

    def rests(self, data: Any, block: int, plate: int) -> bool:
        """The block touches the plate."""
        pairs = self._pairs(data)
        return bool(np.any((self._block_of[pairs[:, 0]] == block) & (self._plate_of[pairs[:, 1]] == plate)))


def _draw_target(task: str, seed: int) -> tuple[int, int]:
    """Indices of the block and plate that are asked for; independent of the layout."""
    rng = np.random.default_rng([seed, 21, zlib.crc32(task.encode())])
    return int(rng.integers(BLOCKS)), int(rng.integers(PLATES))


def _sentence(layout: Layout, skill: str, block: int, plate: int) -> str:
    name = f"the {layout.block_colours[block]} block"
    return f"put {name} on the {layout.plate_colours[plate]} plate" if skill == "put" else f"{skill} {name}"


@functools.cache
def _renderer(height: int, width: int, fine: bool) -> Any:
    """A renderer of this size for the whole process; `fine` adds shadows and smooth edges, at many times the cost."""
    mujoco, model = import_mujoco(), build_model()
    model.vis.global_.offwidth, model.vis.global_.offheight = width, height
    model.vis.quality.offsamples = 4 if fine else 0
    renderer = mujoco.Renderer(model, height, width)
    for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
        renderer.scene.flags[flag] = int(fine)
    close_at_exit(renderer)
    return renderer


@functools.cache
def _draw_option(groups: tuple[int, ...]) -> Any:
    option = import_mujoco().MjvOption()
    option.geomgroup[:] = 0
    option.geomgroup[list(groups)] = 1
    option.sitegroup[:] = 0
    return option
