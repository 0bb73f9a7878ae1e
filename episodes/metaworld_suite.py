"""The suite ``metaworld``: the 50 manipulation tasks of Meta-World (Yu et al. 2019), made and scripted by others, with a sentence each.

Its tasks are used as they are: a Sawyer arm at 80 Hz, 500 steps at most (200 in the suite ``metaworld-mt10``, which has ten of them), objects and
goals drawn anew from the seed, success as the benchmark defines it. What is added is what a policy on a robot has: two cameras, the measured hand, and words. Objects' places, which Meta-World puts
into its observations, are for the scripted experts alone.

Observations: camera "corner" (over the robot's shoulder; nearer than the benchmark's own cameras, in whose pictures the goal of reach, push
and pick-place, a sphere of 2 cm, is smaller than two pixels) and "wrist"; hand position and gripper opening.

Actions: terminate, the displacement of the hand's setpoint over one step in metres (the benchmark's -1 .. 1 is 1 cm), and the effort of the
gripper, from -1 (open) to 1 (closed).

A task's scene usually gives the task away, so this suite alone does not show whether a policy listens; ``tabletop`` does.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlet.errors import ActionError, MissingExtraError, UnknownNameError
from actlet.protocols import Observation, StepResult
from actlet.specs import ActionSpec, CameraSpec, ObservationSpec
from episodes.rendering import close_at_exit, import_mujoco

__all__ = ["INSTRUCTIONS", "MT10", "MT10_STEPS", "TASKS", "MetaworldTask", "make"]

# Task (Meta-World's name without its version) -> what to say.
INSTRUCTIONS: dict[str, str] = {
    "assembly": "put the ring on the peg",
    "basketball": "dunk the ball into the basket",
    "bin-picking": "move the cube from the red bin to the blue bin",
    "box-close": "put the lid on the box",
    "button-press-topdown": "press the button down from above",
    "button-press-topdown-wall": "press the button behind the wall down from above",
    "button-press": "push the button in",
    "button-press-wall": "reach over the wall and push the button in",
    "coffee-button": "press the button of the coffee machine",
    "coffee-pull": "pull the mug away from the coffee machine",
    "coffee-push": "push the mug under the coffee machine",
    "dial-turn": "turn the dial",
    "disassemble": "take the ring off the peg",
    "door-close": "close the door",
    "door-lock": "lock the door",
    "door-open": "open the door",
    "door-unlock": "unlock the door",
    "hand-insert": "put the hand into the hole",
    "drawer-close": "close the drawer",
    "drawer-open": "open the drawer",
    "faucet-open": "open the faucet",
    "faucet-close": "close the faucet",
    "hammer": "hammer the nail into the box",
    "handle-press-side": "press the handle on your left down",
    "handle-press": "press the handle down",
    "handle-pull-side": "pull the handle on your left up",
    "handle-pull": "pull the handle up",
    "lever-pull": "pull the lever up",
    "pick-place-wall": "lift the puck over the wall to the blue marker",
    "pick-out-of-hole": "take the puck out of the hole",
    "pick-place": "pick up the puck and bring it to the blue marker",
    "plate-slide": "slide the plate into the cabinet",
    "plate-slide-side": "slide the plate sideways into the cabinet",
    "plate-slide-back": "slide the plate back out of the cabinet",
    "plate-slide-back-side": "slide the plate sideways out of the cabinet",
    "peg-insert-side": "insert the peg into the side of the block",
    "peg-unplug-side": "unplug the peg",
    "soccer": "kick the ball into the goal",
    "stick-push": "push the thermos with the stick",
    "stick-pull": "pull the thermos with the stick",
    "push": "push the puck to the green marker",
    "push-wall": "push the puck around the wall to the green marker",
    "push-back": "pull the block back to the green marker",
    "reach": "move the hand to the red marker",
    "reach-wall": "move the hand over the wall to the red marker",
    "shelf-place": "put the cube on the shelf",
    "sweep-into": "sweep the cube into the hole",
    "sweep": "sweep the cube off the table",
    "window-open": "open the window",
    "window-close": "close the window",
}
TASKS = tuple(INSTRUCTIONS)
# The ten that the benchmark itself calls MT10. The scripted experts did 198 of 200 episodes (20 a task, report seeds from 0).
MT10 = (
    *("reach", "push", "pick-place", "door-open", "drawer-open"),
    *("drawer-close", "button-press-topdown", "peg-insert-side", "window-open", "window-close"),
)
# Their suite's limit. The slowest of 295 successes of the scripted experts took 96 steps, and failures cost what they last.
MT10_STEPS = 200

# Tasks with the same objects and the opposite aim: their sentences make the best wrong instructions.
OPPOSITES = (
    ("assembly", "disassemble"),
    ("coffee-pull", "coffee-push"),
    ("door-close", "door-open"),
    ("door-lock", "door-unlock"),
    ("drawer-close", "drawer-open"),
    ("faucet-open", "faucet-close"),
    ("handle-press-side", "handle-pull-side"),
    ("handle-press", "handle-pull"),
    ("plate-slide", "plate-slide-back"),
    ("plate-slide-side", "plate-slide-back-side"),
    ("peg-insert-side", "peg-unplug-side"),
    ("stick-push", "stick-pull"),
    ("window-open", "window-close"),
)
_OPPOSITE = {ours: theirs for pair in OPPOSITES for ours, theirs in (pair, pair[::-1])}

METRES_PER_UNIT = 0.01  # Meta-World's action_scale, the same in all 50 tasks.
ACTION_SPEC = ActionSpec(
    names=("terminate", "dx", "dy", "dz", "gripper"),
    units=("1", "m", "m", "m", "1"),
    kinds=("binary", "continuous", "continuous", "continuous", "continuous"),
    low=(0.0, -METRES_PER_UNIT, -METRES_PER_UNIT, -METRES_PER_UNIT, -1.0),
    high=(1.0, METRES_PER_UNIT, METRES_PER_UNIT, METRES_PER_UNIT, 1.0),
    frame="base",
    hold=("zero", "zero", "zero", "zero", "last"),
)
STATE_NAMES, STATE_UNITS = ("x", "y", "z", "gripper_opening"), ("m", "m", "m", "1")
CAMERAS = ("corner", "wrist")

# The picture holds the whole space in which Meta-World places objects and goals; a goal sphere is 5 of 128 pixels wide.
CORNER_EYE, CORNER_LOOK_AT = (0.75, 0.0, 0.75), (0.0, 0.70, 0.10)
# Half of the triangles are the pedestal and upper arm, at the picture's edge: policies' frames leave them out.
UNSEEN_BODIES = ("controller_box", "pedestal_feet", "torso", "pedestal", "right_arm_base_link", "head", "screen", "right_l0", "right_l1")
UNSEEN_GROUP = 5
# A renderer takes 0.5 s and 60 to 200 MB; this many stay, which covers the lanes of a usual batch.
KEPT_RENDERERS = 16
_renderers: OrderedDict[tuple[str, int, int, bool], Any] = OrderedDict()


def make(task: str, *, image_px: int = 128, max_steps: int | None = None) -> MetaworldTask:
    """A task of the suite.

    Args:
        task: One of `TASKS`.
        image_px: Height and width of both cameras' frames.
        max_steps: After how many steps an episode ends; as the benchmark has it, 500, when None.

    Raises:
        UnknownNameError: There is no such task.
        MissingExtraError: Meta-World or MuJoCo is not installed.
        MissingLibraryError: No off-screen rendering backend can be loaded.
    """
    if task not in TASKS:
        raise UnknownNameError("Meta-World task", task, TASKS)
    return MetaworldTask(task, image_px=image_px, max_steps=max_steps)


class MetaworldTask:
    """One of the 50 tasks; fits `actlet.protocols.Task`. Several may live side by side in a process."""

    def __init__(self, name: str, *, image_px: int, max_steps: int | None = None) -> None:
        self.name, self.action_spec = name, ACTION_SPEC
        self.observation_spec = ObservationSpec(
            cameras=tuple(CameraSpec(name=camera, height=image_px, width=image_px) for camera in CAMERAS),
            state_names=STATE_NAMES,
            state_units=STATE_UNITS,
        )
        self._mujoco = import_mujoco()
        environments, experts = _import_metaworld()
        self._expert = experts[f"{name}-v3"]()
        self._environment = _prepare(environments[f"{name}-v3"]())
        assert self._environment.action_scale == METRES_PER_UNIT
        self.rate_hz, longest = float(round(1.0 / self._environment.dt)), int(self._environment.max_path_length)
        self.max_steps = longest if max_steps is None else min(max_steps, longest)
        self._privileged: NDArray[np.float64] | None = None

    def reset(self, seed: int) -> tuple[Observation, str]:
        """Place objects, goal and hand; the same seed gives the same episode, in this instance and in another.

        Returns:
            The first observation and the instruction.
        """
        self._environment.seed(seed)
        self._privileged, _ = self._environment.reset()
        self._steps, self._succeeded = 0, False
        # Some tasks move a body of the model last of all: without this, the first picture shows it where it was.
        self._mujoco.mj_kinematics(self._environment.model, self._environment.data)
        self._mujoco.mj_camlight(self._environment.model, self._environment.data)
        return self._observe(), INSTRUCTIONS[self.name]

    def step(self, action: NDArray[np.float32]) -> StepResult:
        """Run one control step of 1/80 s. With terminate > 0.5 the arm rests and the episode ends.

        Args:
            action: float32 (5,), clipped to the limits of `action_spec`.

        Returns:
            The observation after the step; `info` holds "steps".

        Raises:
            ActionError: Another shape, values that are not finite, no reset before, or a step after the last.
        """
        action = self.action_spec.check(action)
        self._seen()
        terminate = bool(action[0] > 0.5)
        if not terminate:
            if self._steps >= self.max_steps:
                raise ActionError(f"task {self.name!r} has run its {self.max_steps} steps: call reset(seed).")
            scaled = np.concatenate([action[1:4].astype(np.float64) / METRES_PER_UNIT, action[4:]])
            self._privileged, _, _, _, info = self._environment.step(scaled.astype(np.float32))
            self._steps += 1
            self._succeeded = self._succeeded or bool(info["success"])
        done = self._succeeded or terminate or self._steps >= self.max_steps
        return StepResult(observation=self._observe(), success=self._succeeded, done=done, info={"steps": self._steps})

    def expert_action(self) -> NDArray[np.float32]:
        """float32 (5,): Meta-World's scripted policy in the present state; terminate once the task has succeeded."""
        privileged = self._seen()
        if self._succeeded:
            return np.array([1.0, 0.0, 0.0, 0.0, 0.0], np.float32)
        with warnings.catch_warnings():
            # "Constant(s) may be too high": the clipping that it announces is what its authors rely on.
            warnings.simplefilter("ignore")
            units = np.asarray(self._expert.get_action(privileged), np.float32)
        return self.action_spec.check(np.concatenate([[0.0], units[:3] * METRES_PER_UNIT, units[3:]]))

    def instructions(self, seed: int) -> tuple[str, ...]:
        """The task's own sentence: its scene has nothing else to do."""
        return (INSTRUCTIONS[self.name],)

    def other_instruction(self, seed: int) -> str:
        """The sentence of the opposite task where there is one, else that of a task with another object."""
        if self.name in _OPPOSITE:
            return INSTRUCTIONS[_OPPOSITE[self.name]]
        family = self.name.split("-")[0]
        others = [sentence for task, sentence in INSTRUCTIONS.items() if task.split("-")[0] != family]
        return others[int(np.random.default_rng([seed, 23]).integers(len(others)))]

    def render(self, camera: str | None = None, height: int = 480, width: int = 640, full_meshes: bool = False) -> NDArray[np.uint8]:
        """uint8 (height, width, 3): a picture for people, with shadows and smooth edges.

        Args:
            camera: "corner" (the default) or "wrist".
            height: Rows.
            width: Columns.
            full_meshes: Draw the pedestal and the upper arm too.

        Raises:
            UnknownNameError: There is no such camera.
        """
        camera = CAMERAS[0] if camera is None else camera
        if camera not in CAMERAS:
            raise UnknownNameError("camera", camera, CAMERAS)
        return self._picture(camera, height, width, full_meshes, True)

    def close(self) -> None:
        """Let the simulation go; renderers belong to the process."""
        self._environment.close()

    def _seen(self) -> NDArray[np.float64]:
        if self._privileged is None:
            raise ActionError("the task has not begun: call reset(seed) first.")
        return self._privileged

    def _observe(self) -> Observation:
        images = {spec.name: self._picture(spec.name, spec.height, spec.width, False, False) for spec in self.observation_spec.cameras}
        return Observation(images=images, state=self._seen()[:4].astype(np.float32))

    def _picture(self, camera: str, height: int, width: int, everything: bool, fine: bool) -> NDArray[np.uint8]:
        mujoco, environment = self._mujoco, self._environment
        self._seen()
        option = mujoco.MjvOption()
        option.geomgroup[UNSEEN_GROUP] = int(everything)
        renderer = _renderer(mujoco, self.name, environment.model, height, width, fine)
        # The goal's marker follows the goal for the picture only, so that drawing changes nothing.
        sites = environment.data.site_xpos.copy()
        for site, position in environment._target_site_config:
            environment._set_pos_site(site, position)
        renderer.update_scene(environment.data, camera=_corner(mujoco) if camera == "corner" else "gripperPOV", scene_option=option)
        environment.data.site_xpos[:] = sites
        return np.array(renderer.render())


def _import_metaworld() -> tuple[Any, Any]:
    """Meta-World's environments and scripted policies by name."""
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
        from metaworld.policies import ENV_POLICY_MAP
    except ImportError as error:
        raise MissingExtraError(error.name or "metaworld", "sim", "The suite metaworld") from error
    return ALL_V3_ENVIRONMENTS, ENV_POLICY_MAP


def _prepare(environment: Any) -> Any:
    """Draw goals from the environment's own seeded generator, and let the experts see them."""
    environment._partially_observable = False
    del environment.sawyer_observation_space  # Cached: it is made anew with the goal.
    environment._freeze_rand_vec, environment.seeded_rand_vec, environment._set_task_called = False, True, True
    model = environment.model
    for geom in range(model.ngeom):
        if model.body(model.geom_bodyid[geom]).name in UNSEEN_BODIES:
            model.geom_group[geom] = UNSEEN_GROUP
    return environment


def _corner(mujoco: Any) -> Any:
    camera = mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    x, y, z = np.subtract(CORNER_LOOK_AT, CORNER_EYE)
    camera.lookat = CORNER_LOOK_AT
    camera.distance = float(np.linalg.norm([x, y, z]))
    camera.azimuth, camera.elevation = np.degrees(np.arctan2(y, x)), np.degrees(np.arctan2(z, np.hypot(x, y)))
    return camera


def _renderer(mujoco: Any, task: str, model: Any, height: int, width: int, fine: bool) -> Any:
    """A renderer for this task and size, shared by its instances: their models differ in where bodies are, which the data tells."""
    key = (task, height, width, fine)
    if key not in _renderers:
        if len(_renderers) >= KEPT_RENDERERS:
            _renderers.popitem(last=False)[1].close()
        model.vis.global_.offwidth, model.vis.global_.offheight = max(width, 640), max(height, 480)
        # MuJoCo's defaults (shadow map, reflections, multisampling) cost 15 times as much.
        model.vis.quality.offsamples = 4 if fine else 0
        renderer = mujoco.Renderer(model, height, width)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            renderer.scene.flags[flag] = int(fine)
        # Surfaces seen from behind: a quarter of a frame's cost, for 4 pixels in 1000 (a gap in the arm; the pane of an open window).
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_CULL_FACE] = int(not fine)
        close_at_exit(renderer)
        _renderers[key] = renderer
    _renderers.move_to_end(key)
    return _renderers[key]
