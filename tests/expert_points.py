"""Suites for tests of collection: points with an expert that terminates, and one in which some episodes go wrong."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
from numpy.typing import NDArray
from point_reach import PointReach

from actlet.protocols import Observation, StepResult
from episodes.suites import TaskSuite


class ExpertPoint(PointReach):
    """The expert asks for termination once the target is reached."""

    def expert_action(self) -> NDArray[np.float32]:
        if np.linalg.norm(self._xy - self._goal()) < 0.04:
            return np.array([1.0, 0.0, 0.0, 0.0], np.float32)
        return super().expert_action()


class TroubledPoint(ExpertPoint):
    """By the last two digits of the seed: red raises in 04, blue kills its process in 08, red fails in those that end in 6."""

    def reset(self, seed: int) -> tuple[Observation, str]:
        if (self.name, seed % 100) == ("red", 4):
            raise RuntimeError("the arm hit the table")
        if (self.name, seed % 100) == ("blue", 8):
            os.kill(os.getpid(), signal.SIGKILL)
        self._hopeless = (self.name, seed % 10) == ("red", 6)
        return super().reset(seed)

    def step(self, action: NDArray[np.float32]) -> StepResult:
        result = super().step(action)
        return StepResult(observation=result.observation, success=False, done=True) if self._hopeless else result


class SlowPoint(ExpertPoint):
    """Takes its time, so that a test can interrupt it."""

    def reset(self, seed: int) -> tuple[Observation, str]:
        time.sleep(0.1)
        return super().reset(seed)


class BrokenPoint(ExpertPoint):
    """Never works."""

    def reset(self, seed: int) -> tuple[Observation, str]:
        raise RuntimeError("no scene")


class HopelessPoint(ExpertPoint):
    """Never succeeds."""

    max_steps = 1

    def step(self, action: NDArray[np.float32]) -> StepResult:
        return StepResult(observation=self._observe(), success=False, done=True)


def make_suite() -> TaskSuite:
    """Everything works."""
    return TaskSuite(name="points", tasks=("red", "blue"), factory=ExpertPoint)


def make_troubled() -> TaskSuite:
    """Some episodes go wrong."""
    return TaskSuite(name="points", tasks=("red", "blue"), factory=TroubledPoint)


def make_slow() -> TaskSuite:
    """A tenth of a second an episode."""
    return TaskSuite(name="points", tasks=("red", "blue"), factory=SlowPoint)


def make_broken() -> TaskSuite:
    """Every episode raises."""
    return TaskSuite(name="points", tasks=("red",), factory=BrokenPoint)


def make_hopeless() -> TaskSuite:
    """No episode succeeds."""
    return TaskSuite(name="points", tasks=("red",), factory=HopelessPoint)
