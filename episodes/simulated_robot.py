"""A simulated task in a robot's place: what the control loop drives when there is no robot.

Simulated time advances with the actions, one control step each, however fast or slow the loop is; so the simulation waits for a late loop,
which a robot would not. Frames are drawn within `send_action`. All calls must come from one thread: an OpenGL context belongs to a thread.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from actlet.errors import CallerError, RobotFault
from actlet.protocols import Observation, Task
from actlet.specs import ActionSpec, ObservationSpec
from episodes.suites import make_suite

__all__ = ["SimulatedRobot", "make_robot"]


class SimulatedRobot:
    """One episode of a task; fits `actlet.protocols.Robot`.

    Args:
        task: The task; it stays the caller's, who closes it.
        seed: The episode that `connect` begins.
    """

    virtual_time = True
    """Time passes with actions only: a run need not keep the clock."""

    def __init__(self, task: Task, *, seed: int = 0) -> None:
        self.observation_spec: ObservationSpec = task.observation_spec
        self.action_spec: ActionSpec = task.action_spec
        self.rate_hz: float = task.rate_hz
        self.seed = seed
        self._task = task
        self._observation: Observation | None = None
        self._instruction = ""
        self._success = self._done = False
        self._steps = 0

    def connect(self) -> None:
        """Begin the episode of `seed`, again if one is under way."""
        self._observation, self._instruction = self._task.reset(self.seed)
        self._success, self._done, self._steps = False, False, 0

    def get_observation(self) -> Observation:
        """What was seen after the last action.

        Raises:
            RobotFault: Not connected.
        """
        return self._connected()

    def send_action(self, action: NDArray[np.float32]) -> None:
        """Run one control step. Once the episode is over the arm rests, and actions are ignored.

        Args:
            action: float32 (A,).

        Raises:
            RobotFault: Not connected.
            ActionError: Another shape, or values that are not finite.
        """
        self._connected()
        action = self.action_spec.check(action)
        if self._done:
            return
        result = self._task.step(action)
        self._observation, self._success = result.observation, result.success
        self._steps += 1
        self._done = result.success or result.done or self._steps >= self._task.max_steps

    def disconnect(self) -> None:
        """Stop; the outcome can still be read."""
        self._observation = None

    @property
    def instruction(self) -> str:
        """What the episode asks for; empty before the first `connect`."""
        return self._instruction

    @property
    def success(self) -> bool:
        """The instruction has been carried out."""
        return self._success

    @property
    def done(self) -> bool:
        """The episode is over, for whatever reason."""
        return self._done

    @property
    def steps(self) -> int:
        """Actions executed in this episode."""
        return self._steps

    def _connected(self) -> Observation:
        if self._observation is None:
            raise RobotFault("the simulated robot is not connected: call connect() first.")
        return self._observation


def make_robot(*, suite: str = "tabletop", task: str | None = None, seed: int = 0) -> SimulatedRobot:
    """The simulated robot of the verb `run`; its task is freed with the process.

    Args:
        suite: A suite of `episodes.suites.make_suite`.
        task: One of the suite's tasks.
        seed: The episode.

    Raises:
        UnknownNameError: There is no such suite or task.
        CallerError: No task, or a negative seed.
    """
    tasks = make_suite(suite)
    if task is None:
        raise CallerError(f"which task of suite {suite!r}? Say --task with one of: {', '.join(tasks.tasks)}.")
    if seed < 0:
        raise CallerError(f"seed {seed}: expected 0 or more.")
    return SimulatedRobot(tasks.make(task), seed=seed)
