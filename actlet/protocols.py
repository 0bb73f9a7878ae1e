"""The seams of the house: what passes between a task, a policy, a teacher and a robot.

All are structural: any object with these attributes fits, nothing has to be inherited.

One control step, seen from the robot::

    t=0   robot.get_observation()   -> Observation
    t=0+  policy.predict(...)       -> ActionChunk: actions[0] is meant for t=0, actions[i] for t=i
    t=0+  robot.send_action(actions[0])
    t=1   robot.send_action(actions[1]), or actions[0] of a newer chunk
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from actlet.errors import ObservationError
from actlet.specs import ActionSpec, ObservationSpec, PolicySpec

__all__ = ["ActionChunk", "Observation", "Policy", "Robot", "SamplingTeacher", "StepResult", "Suite", "Task", "Teacher", "committed_rows"]


@dataclasses.dataclass(frozen=True)
class Observation:
    """What was seen at one moment."""

    images: dict[str, NDArray[np.uint8]]
    """Camera name -> uint8 RGB frame, shape (height, width, 3), range 0..255."""
    state: NDArray[np.float32]
    """float32 (S,), physical units of `ObservationSpec.state_units`."""
    committed: NDArray[np.float32] | None = None
    """float32 (d, A), physical units: what will be commanded at the next d steps, this one first, whatever the answer; None or d = 0: nothing.
    A policy that is told (`TimingSpec.committed_steps`) answers from row d on for what will then have happened."""
    taken_s: float | None = None
    """When the oldest of it was taken, in seconds of `time.monotonic()`; None: not known. The control loop shows no policy what is too old. It is of
    one machine's clock, so no wire carries it, and no policy looks at it."""


def committed_rows(observation: Observation, spec: PolicySpec) -> NDArray[np.float32]:
    """What is on its way, as a network takes it.

    Returns:
        float32 (D, 1 + A) with D = `committed_steps`: a row for each step, 1 and the action where one is on its way, else 0.

    Raises:
        ObservationError: More actions than the policy can be told of, of another shape, or not finite.
    """
    most, dim = spec.timing.committed_steps, spec.action.dim
    rows = np.zeros((most, 1 + dim), np.float32)
    actions = observation.committed
    if most and actions is not None and len(actions):
        if actions.ndim != 2 or actions.shape[1] != dim or len(actions) > most or not np.isfinite(actions).all():
            raise ObservationError(
                f"committed actions of shape {actions.shape}: expected at most {most} (committed_steps) of {dim} finite values each."
            )
        rows[: len(actions), 0], rows[: len(actions), 1:] = 1.0, actions
    return rows


@dataclasses.dataclass(frozen=True)
class ActionChunk:
    """What a policy answers: the next H actions."""

    actions: NDArray[np.float32]
    """float32 (H, A), physical units of `ActionSpec.units`; row 0 is for the time of the observation."""
    confidence: NDArray[np.float32]
    """float32 (H,), in [0, 1]: 1 - mean normalised entropy of the action distribution."""


@runtime_checkable
class Policy(Protocol):
    """Anything that turns observations and an instruction into action chunks."""

    spec: PolicySpec

    def predict(self, observations: Sequence[Observation], instructions: Sequence[str]) -> list[ActionChunk]:
        """One chunk per observation. On the robot the batch is 1; simulated episodes run in lockstep."""
        ...


@runtime_checkable
class Teacher(Policy, Protocol):
    """A policy that can say how probable every one of its K bins is."""

    def action_distribution(self, observations: Sequence[Observation], instructions: Sequence[str]) -> NDArray[np.float32]:
        """float32 (B, A, K): for each action token the distribution over its bins, given the tokens before it."""
        ...


@runtime_checkable
class SamplingTeacher(Policy, Protocol):
    """A policy that draws what it answers (flow matching, diffusion), and can be asked for several answers to one observation."""

    def sample_actions(self, observations: Sequence[Observation], instructions: Sequence[str], count: int) -> NDArray[np.float32]:
        """float32 (B, N, H, A), physical units: N = `count` independent chunks for each observation; row 0 is for the time of the observation."""
        ...


@dataclasses.dataclass(frozen=True)
class StepResult:
    """What a task answers to one action."""

    observation: Observation
    success: bool
    """The instruction has been carried out."""
    done: bool
    """The episode is over: success, a failure that cannot be undone, or terminate was commanded."""
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Task(Protocol):
    """One simulated task with language, success and a scripted expert."""

    name: str
    observation_spec: ObservationSpec
    action_spec: ActionSpec
    rate_hz: float
    max_steps: int

    def reset(self, seed: int) -> tuple[Observation, str]:
        """A new episode, fully determined by the seed: the first observation and the instruction."""
        ...

    def step(self, action: NDArray[np.float32]) -> StepResult:
        """One control step of 1 / rate_hz seconds. `action`: float32 (A,)."""
        ...

    def expert_action(self) -> NDArray[np.float32]:
        """float32 (A,): what the scripted expert would do now, a function of the simulated state."""
        ...

    def instructions(self, seed: int) -> tuple[str, ...]:
        """Every valid instruction for the scene of a seed, this episode's own among them."""
        ...

    def other_instruction(self, seed: int) -> str:
        """Another valid instruction for the same scene, whose fulfilment is not success of this episode."""
        ...

    def render(self, camera: str | None = None, height: int = 480, width: int = 640, full_meshes: bool = False) -> NDArray[np.uint8]:
        """uint8 (height, width, 3): a picture for people."""
        ...

    def close(self) -> None:
        """Free what the task holds."""
        ...


class Suite(Protocol):
    """A family of tasks under one name."""

    name: str
    tasks: tuple[str, ...]

    def make(self, task: str) -> Task:
        """A task of this suite; raises UnknownNameError."""
        ...


@runtime_checkable
class Robot(Protocol):
    """Anything that the control loop can drive."""

    observation_spec: ObservationSpec
    action_spec: ActionSpec
    rate_hz: float

    def connect(self) -> None:
        """Make ready to move."""
        ...

    def get_observation(self) -> Observation:
        """The newest frames and state."""
        ...

    def send_action(self, action: NDArray[np.float32]) -> None:
        """Command one action, float32 (A,), already checked and limited.

        Raises:
            Exception: The robot did not take it. Of one that takes a command and raises all the same, limits of acceleration and jerk are not kept.
        """
        ...

    def disconnect(self) -> None:
        """Stop moving and let go. Never raises when called twice."""
        ...
