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
is integrated as `episodes.tabletop_arm` describes. A scene is a function of the seed alone, and the target of the seed and the task.
The suites ``tabletop-...`` vary the scene, as `episodes.tabletop_variations` says, and leave the rest as it is.
Everything is deterministic: the same seed and actions give the same bits.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlet.errors import ActionError, UnknownNameError
from actlet.protocols import Observation, StepResult
from actlet.specs import ActionSpec, CameraSpec, ObservationSpec
from episodes.rendering import import_mujoco
from episodes.tabletop_arm import Arm
from episodes.tabletop_contacts import ContactTable
from episodes.tabletop_drawing import Drawing
from episodes.tabletop_expert import Situation, expert_action
from episodes.tabletop_scene import BLOCKS, FAST_GROUPS, MESH_GROUPS, PLATES, Layout, ModelKind, build_model
from episodes.tabletop_variations import PLAIN, Scene, Variation, draw_scene
from episodes.tabletop_words import SKILLS, Wish, draw_wish, usual_wishes

__all__ = ["TASKS", "TabletopTask", "make"]

TASKS = SKILLS
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


def make(task: str, *, image_px: int = 128, variation: Variation = PLAIN) -> TabletopTask:
    """A task of the suite.

    Args:
        task: One of `TASKS`.
        image_px: Height and width of both cameras' frames.
        variation: How its scenes are varied; a value of `tabletop_variations.VARIATIONS`, or your own.

    Raises:
        UnknownNameError: There is no such task.
        MissingExtraError: MuJoCo or the robot models are not installed.
        MissingLibraryError: No off-screen rendering backend can be loaded.
    """
    if task not in TASKS:
        raise UnknownNameError("tabletop task", task, TASKS)
    return TabletopTask(task, image_px=image_px, variation=variation)


class TabletopTask:
    """One of the three tasks; fits `actlet.protocols.Task`. Several may live side by side in a process."""

    rate_hz = 10.0

    def __init__(self, name: str, *, image_px: int, variation: Variation = PLAIN) -> None:
        self.name, self.max_steps = name, MAX_STEPS[name]
        self.action_spec = ACTION_SPEC
        self.observation_spec = ObservationSpec(
            cameras=tuple(CameraSpec(name=camera, height=image_px, width=image_px) for camera in CAMERAS),
            state_names=STATE_NAMES,
            state_units=STATE_UNITS,
        )
        self._mujoco, self._variation = import_mujoco(), variation
        self._simulations: dict[ModelKind, _Simulation] = {}
        self._scene: Scene | None = None
        self._simulate(ModelKind())

    def reset(self, seed: int) -> tuple[Observation, str]:
        """Lay the table; the same seed gives the same bits.

        Returns:
            The first observation and the instruction.
        """
        self._scene = scene = draw_scene(self._variation, seed)
        self._wish, layout = draw_wish(scene, self.name, seed), scene.layout
        self._simulate(scene.kind)
        self._steps, self._succeeded, self._failure, self._held = 0, False, "", False
        model, data = self._model, self._data
        self._mujoco.mj_resetData(model, data)
        for index in range(BLOCKS):
            address = model.joint(model.body(f"block{index}").jntadr[0]).qposadr[0]
            half_yaw = layout.block_yaw[index] / 2
            data.qpos[address : address + 7] = [*layout.block_xy[index], self._half(index), np.cos(half_yaw), 0.0, 0.0, np.sin(half_yaw)]
        for index in range(PLATES):
            data.mocap_pos[model.body(f"plate{index}").mocapid[0]] = [*layout.plate_xy[index], 0.0]
        self._arm.place(layout.start_xyz, layout.start_yaw)
        self._mujoco.mj_forward(model, data)
        return self._observe(), self.instruction

    @property
    def instruction(self) -> str:
        """What this episode asks for."""
        self._laid_out()
        return self._wish.sentence

    @property
    def instruction_kind(self) -> str:
        """What kind of instruction that is, as `Wish.kind` says; results are split by it."""
        self._laid_out()
        return self._wish.kind

    @property
    def layout(self) -> Layout:
        """Where things lay at the reset, for tests and reports; privileged, not for policies."""
        return self._laid_out().layout

    @property
    def scene(self) -> Scene:
        """The whole scene, of which the layout is a part; privileged, as the layout."""
        return self._laid_out()

    @property
    def wish(self) -> Wish:
        """What this episode asks for, with its target and kind; privileged, as the layout."""
        self._laid_out()
        return self._wish

    @property
    def target(self) -> tuple[int, int]:
        """Indices of the block and the plate that the instruction names (the plate counts for "put" only)."""
        self._laid_out()
        return self._wish.block, self._wish.plate

    def step(self, action: NDArray[np.float32]) -> StepResult:
        """Run one control step of 0.1 s. With terminate > 0.5 the arm rests and the episode ends.

        Args:
            action: float32 (8,), clipped to the limits of `action_spec`.

        Returns:
            The observation after the step; `info` says "failure" (empty where there is none), "steps" and the "kind" of the wish.

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
            self._held = self._contacts.held(self._data, self._wish.block)
            self._steps += 1
            self._judge(touched)
        done = self._succeeded or bool(self._failure) or terminate or self._steps >= self.max_steps
        info = {"failure": self._failure, "steps": self._steps, "kind": self._wish.kind}
        return StepResult(observation=self._observe(), success=self._succeeded, done=done, info=info)

    def expert_action(self) -> NDArray[np.float32]:
        """float32 (8,): the scripted expert's action in the present state; terminate once the instruction is carried out."""
        self._laid_out()
        block = self._data.body(f"block{self._wish.block}")
        return expert_action(
            Situation(
                skill=self.name,
                hand_xyz=self._arm.xyz,
                hand_rotation=self._arm.rotation,
                opening=self._arm.opening,
                block_xyz=np.array(block.xpos),
                block_half=self._half(self._wish.block),
                plate_xy=self._plate_xyz(self._wish.plate)[:2] if self.name == "put" else None,
                held=self._held,
                succeeded=self._succeeded,
            )
        )

    def instructions(self, seed: int) -> tuple[str, ...]:
        """All that the scene allows in the usual words (twelve), and this episode's own among or after them."""
        scene = draw_scene(self._variation, seed)
        sentences = [wish.sentence for wish in usual_wishes(scene)]
        own = draw_wish(scene, self.name, seed).sentence
        return tuple(sentences if own in sentences else [*sentences, own])

    def other_instruction(self, seed: int) -> str:
        """Another instruction for the seed's scene, about another block or another plate; following it is not success here."""
        scene = draw_scene(self._variation, seed)
        own = draw_wish(scene, self.name, seed)
        others = [
            wish.sentence
            for wish in usual_wishes(scene)
            if wish.block != own.block or (self.name == wish.skill == "put" and wish.plate != own.plate)
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

    def _simulate(self, kind: ModelKind) -> None:
        """Go on with the simulation of this kind of model; each is made once."""
        if kind not in self._simulations:
            self._simulations[kind] = _Simulation.of(kind)
        chosen = self._simulations[kind]
        self._model, self._data, self._arm = chosen.model, chosen.data, chosen.arm
        self._contacts, self._drawing = chosen.contacts, chosen.drawing

    def _laid_out(self) -> Scene:
        if self._scene is None:
            raise ActionError("the task has no layout yet: call reset(seed) first.")
        return self._scene

    def _half(self, block: int) -> float:
        """Half the height of a block in [m]."""
        return self._laid_out().kind.shapes[block].half[2]

    def _plate_xyz(self, index: int) -> NDArray[np.float64]:
        return np.array(self._data.body(f"plate{index}").xpos)

    def _observe(self) -> Observation:
        images = {
            spec.name: self._picture(spec.name, spec.height, spec.width, FAST_GROUPS, False) for spec in self.observation_spec.cameras
        }
        state = np.concatenate([self._arm.xyz, self._arm.rotation_vector, [self._arm.opening]]).astype(np.float32)
        return Observation(images=images, state=state)

    def _picture(self, camera: str, height: int, width: int, groups: tuple[int, ...], fine: bool) -> NDArray[np.uint8]:
        scene = self._laid_out()
        return self._drawing.picture(self._data, scene.layout, scene.look, PICTURES[camera], (height, width), groups, fine)

    def _judge(self, touched: list[int]) -> None:
        """Update success and failure; both are kept once reached."""
        if self._succeeded or self._failure:
            return
        scene = self._laid_out()
        names = [f"{colour} {shape.noun}" for colour, shape in zip(scene.layout.block_colours, scene.kind.shapes, strict=True)]
        if self.name == "touch" and touched:
            self._succeeded = touched[0] == self._wish.block
            self._failure = "" if self._succeeded else f"touched the {names[touched[0]]} first"
        elif self.name == "lift":
            lifted = [block for block in range(BLOCKS) if self._is_lifted(block)]
            self._succeeded = self._wish.block in lifted
            self._failure = "" if self._succeeded or not lifted else f"lifted the {names[lifted[0]]}"
        elif self.name == "put":
            self._succeeded = self._is_put()

    def _is_lifted(self, block: int) -> bool:
        return bool(self._data.body(f"block{block}").xpos[2] >= LIFTED_M + self._half(block)) and self._contacts.held(self._data, block)

    def _is_put(self) -> bool:
        block = self._data.body(f"block{self._wish.block}")
        aside = np.linalg.norm(block.xpos[:2] - self._plate_xyz(self._wish.plate)[:2])
        return bool(
            aside < 0.042
            and self._arm.opening > 0.7
            and np.linalg.norm(block.cvel[3:]) < 0.05
            and self._wish.block not in self._contacts.touched(self._data)
            and self._contacts.rests(self._data, self._wish.block, self._wish.plate)
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Simulation:
    """A model with this task's own state of it."""

    model: Any
    data: Any
    arm: Arm
    contacts: ContactTable
    drawing: Drawing

    @classmethod
    def of(cls, kind: ModelKind) -> _Simulation:
        model = build_model(kind)
        data = import_mujoco().MjData(model)
        return cls(model=model, data=data, arm=Arm(model, data), contacts=ContactTable(model), drawing=Drawing(kind))
