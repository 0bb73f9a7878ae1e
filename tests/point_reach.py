"""A tiny task with language: a point moves on a plane to one of two coloured targets, seen in a 16x16 frame, and policies for it."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from actlet.protocols import ActionChunk, Observation, StepResult
from actlet.specs import ActionSpec, CameraSpec, ObservationSpec, PolicySpec, TimingSpec
from episodes.suites import TaskSuite

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255)}
PX, METRES_PER_PX = 16, 0.05
OBSERVATION = ObservationSpec(cameras=(CameraSpec(name="above", height=PX, width=PX),), state_names=("x", "y"), state_units=("m", "m"))
ACTION = ActionSpec(
    names=("terminate", "dx", "dy", "gripper"),
    units=("1", "m", "m", "1"),
    kinds=("binary", "continuous", "continuous", "binary"),
    low=(0.0, -0.08, -0.08, 0.0),
    high=(1.0, 0.08, 0.08, 1.0),
    frame="base",
    hold=("zero", "zero", "zero", "last"),
)
TIMING = TimingSpec(rate_hz=5.0, horizon=4, execute_steps=3, max_delay_steps=0)
SPEC = PolicySpec(observation=OBSERVATION, action=ACTION, timing=TIMING)


class PointReach:
    """Reach the target that the task is named after; reaching the other one does nothing."""

    observation_spec, action_spec, rate_hz, max_steps = OBSERVATION, ACTION, 5.0, 20

    def __init__(self, name: str) -> None:
        self.name = name

    def reset(self, seed: int) -> tuple[Observation, str]:
        rng = np.random.default_rng(seed)
        cells = rng.choice(PX * PX, 3, replace=False)
        places = [np.array(divmod(int(cell), PX)[::-1]) for cell in cells]
        self._targets = dict(zip(COLOURS, places[:2], strict=True))
        self._xy, self._steps = (places[2] + 0.5) * METRES_PER_PX, 0
        return self._observe(), f"reach the {self.name} target"

    def step(self, action: NDArray[np.float32]) -> StepResult:
        if action[0] < 0.5:
            self._xy = np.clip(self._xy + action[1:3], 0.0, PX * METRES_PER_PX)
        self._steps += 1
        success = bool(np.linalg.norm(self._xy - self._goal()) < 0.04)
        return StepResult(observation=self._observe(), success=success, done=success or self._steps >= self.max_steps)

    def expert_action(self) -> NDArray[np.float32]:
        return ACTION.check(np.array([0.0, *(self._goal() - self._xy), 0.0]))

    def instructions(self, seed: int) -> tuple[str, ...]:
        return tuple(f"reach the {colour} target" for colour in COLOURS)

    def other_instruction(self, seed: int) -> str:
        return "reach the blue target" if self.name == "red" else "reach the red target"

    def render(self, camera: str | None = None, height: int = 480, width: int = 640, full_meshes: bool = False) -> NDArray[np.uint8]:
        return self._observe().images["above"]

    def close(self) -> None:
        pass

    def _goal(self) -> NDArray[np.float64]:
        return (self._targets[self.name] + 0.5) * METRES_PER_PX

    def _observe(self) -> Observation:
        frame = np.zeros((PX, PX, 3), np.uint8)
        for colour, (x, y) in self._targets.items():
            frame[y, x] = COLOURS[colour]
        return Observation(images={"above": frame}, state=self._xy.astype(np.float32))


def make_suite() -> TaskSuite:
    """The suite "test_point_reach:make_suite"."""
    return TaskSuite(name="points", tasks=("red", "blue"), factory=PointReach)


class PictureReader:
    """Finds the named colour in the picture and goes there; the largest batch it was asked for is kept."""

    def __init__(self, spec: PolicySpec = SPEC, terminate_at_m: float = -1.0) -> None:
        self.spec, self.largest_batch, self._terminate_at_m = spec, 0, terminate_at_m

    def predict(self, observations: Sequence[Observation], instructions: Sequence[str]) -> list[ActionChunk]:
        self.largest_batch = max(self.largest_batch, len(observations))
        return [self._chunk(*pair) for pair in zip(observations, instructions, strict=True)]

    def _chunk(self, observation: Observation, instruction: str) -> ActionChunk:
        colour = COLOURS[next(name for name in COLOURS if name in instruction)]
        y, x = np.argwhere((observation.images["above"] == colour).all(-1))[0]
        away = (np.array([x, y]) + 0.5) * METRES_PER_PX - observation.state
        steps = self.spec.timing.horizon
        actions = np.zeros((steps, 4), np.float32)
        actions[:, 1:3] = away / max(steps, np.abs(away).max() / 0.06)
        actions[:, 0] = np.linalg.norm(away) < self._terminate_at_m
        return ActionChunk(actions=actions, confidence=np.ones(steps, np.float32))


class Fragile(PictureReader):
    """Raises when the point starts in the left half of the picture."""

    def _chunk(self, observation: Observation, instruction: str) -> ActionChunk:
        if observation.state[0] < PX * METRES_PER_PX / 2:
            raise RuntimeError("the left half is not for me")
        return super()._chunk(observation, instruction)


class Deadly(PictureReader):
    """Ends its process without a word, like a crash in native code."""

    def _chunk(self, observation: Observation, instruction: str) -> ActionChunk:
        os._exit(7)
