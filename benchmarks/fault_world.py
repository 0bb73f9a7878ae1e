"""A robot, a policy, a place of inference and a clock that fail as they are told, and look at every command: what `drive` is run in, in virtual time.

What a command must not be is `benchmarks.command_check`'s to say.
"""

from __future__ import annotations

import collections
import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlet.protocols import ActionChunk, Observation
from actlet.specs import ActionSpec, CameraSpec, ObservationSpec, PolicySpec, TimingSpec
from benchmarks.command_check import CommandCheck
from runtime.inference import Answer

__all__ = ["FAULTS", "MAX_CHANGE", "SPEC", "World", "spoil_chunk"]

SPEC = PolicySpec(
    observation=ObservationSpec(
        cameras=(CameraSpec(name="front", height=8, width=8),), state_names=("x", "y", "z"), state_units=("m", "m", "m")
    ),
    action=ActionSpec(
        names=("dx", "dy", "angle", "gripper"),
        units=("m", "m", "rad", "1"),
        kinds=("continuous", "continuous", "continuous", "binary"),
        low=(-0.05, -0.05, -3.0, 0),
        high=(0.05, 0.05, 3.0, 1),
        frame="base",
        hold=("zero", "zero", "last", "last"),
    ),
    timing=TimingSpec(rate_hz=20, horizon=8, execute_steps=2, max_delay_steps=4, committed_steps=2),
)
MAX_CHANGE = (0.02, 0.02, 0.1, 1.0)
_SHARE, _SHARE_OF_STEPS = 0.5, 0.15
"""Of the answers and observations that are spoiled, and of the steps in which the clock is."""
_VALUES = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf, "huge": 1e30, "-huge": -1e30, "denormal": 1e-42}
_SHAPES = ("all nan", "opposite", "short", "permuted", "wide", "double", "words", "objects", "none", "no chunk")
FAULTS: dict[str, tuple[str, ...]] = {
    "chunk": (*_VALUES, *_SHAPES),
    "timing": ("late", "very late", "dropped", "duplicate", "from the future", "from the past", "raised"),
    "camera": ("missing", "stale", "frozen", "black", "small", "float", "other name", "state nan", "state short", "raised"),
    "clock": ("forward", "back", "slow step"),
}
"""Class -> kinds."""
_WEIGHTS = {"clock": 0.1}
"""How often a class fails beside the others where faults are rare; each jump of a clock leads to HOLD, and a loop that hardly runs is no soak."""
_CLOCK_S = {"": 0.0, "forward": 3600.0, "back": -3600.0, "slow step": 0.3}


def spoil_chunk(kind: str, chunk: ActionChunk, rng: random.Random) -> Any:
    """A chunk that no policy should give."""
    actions = chunk.actions.copy()
    if kind in _VALUES:
        actions[rng.randrange(len(actions)), rng.randrange(actions.shape[1])] = _VALUES[kind]
    elif kind == "all nan":
        actions[:] = np.nan
    elif kind == "opposite":
        actions *= -1e3
    elif kind == "short":
        actions = actions[: rng.randrange(len(actions))]
    elif kind == "permuted":
        actions = actions.T.copy()
    elif kind == "wide":
        actions = np.concatenate([actions, actions], axis=1)
    elif kind == "double":
        return dataclasses.replace(chunk, actions=actions.astype(np.float64) * 1e300)
    elif kind == "words":
        return dataclasses.replace(chunk, actions=np.array([["a"] * actions.shape[1]] * len(actions)))
    elif kind == "objects":
        return dataclasses.replace(chunk, actions=np.full(actions.shape, None, dtype=object))
    elif kind == "none":
        return dataclasses.replace(chunk, actions=None)
    elif kind == "no chunk":
        return "nothing of the kind"
    return dataclasses.replace(chunk, actions=actions)


class World:
    """Everything that a loop meets.

    Args:
        rng: Draws faults and chunks.
        kinds: Class -> kinds of faults that happen.
        spec: Of the policy and the robot.
        tick_s: Virtual time of a command, which answers' delays are counted in.
        every_ticks: Commands from one fault to the next, on average, shared out among the classes; None to spoil half of all that can be spoiled.
        most_commands: The robot is done after so many; None for never.
    """

    def __init__(
        self,
        rng: random.Random,
        kinds: dict[str, Sequence[str]],
        *,
        spec: PolicySpec = SPEC,
        tick_s: float = 0.0,
        every_ticks: float | None = None,
        most_commands: int | None = None,
    ) -> None:
        self.rng, self.kinds, self.spec = rng, kinds, spec
        self.observation_spec, self.action_spec, self.rate_hz = spec.observation, spec.action, spec.timing.rate_hz
        self.now_s, self.done, self.most_commands = 1000.0, False, most_commands
        # Where it is the steps' own rate, the loop commands once a step.
        self.command_rate_hz = 1 / tick_s if tick_s and 1 / tick_s > 1.001 * spec.timing.rate_hz else None
        self.ticks_per_step = max(1, round(1 / (spec.timing.rate_hz * tick_s))) if tick_s else 1
        self.injected: collections.Counter[str] = collections.Counter()
        self.unsafe: list[str] = []
        self.commands = self.answers = self.tick = 0
        self.last: Any = None
        self.waiting: list[tuple[int, Answer]] = []  # Tick at which it arrives.
        self.frame = bytes(192)
        # As it happens by chance: the times between faults of a class are exponential.
        weights = {what: _WEIGHTS.get(what, 1.0) for what in kinds}
        self._mean = {} if every_ticks is None else {what: every_ticks * sum(weights.values()) / weight for what, weight in weights.items()}
        self._next = {what: rng.expovariate(1 / self._mean[what]) if self._mean else 0.0 for what in kinds}
        ticks = self.ticks_per_step
        self.check = CommandCheck(spec.action, max_change=MAX_CHANGE if ticks == 1 else None, ticks=ticks, tick_s=tick_s or 1.0)

    def fault(self, what: str) -> str:
        """A kind of fault of a class, or none this time."""
        at = self._next.get(what)
        if at is None:
            return ""
        if not self._mean:
            if self.rng.random() > (_SHARE_OF_STEPS if what == "clock" else _SHARE):
                return ""
        elif self.tick < at:
            return ""
        else:
            self._next[what] = at + self.rng.expovariate(1 / self._mean[what])
        self.injected[what] += 1
        return self.rng.choice(self.kinds[what])

    # --- the clock

    def clock(self) -> float:
        """Virtual seconds."""
        return self.now_s

    def sleep(self, seconds: float) -> None:
        """Let time pass, or more, or less."""
        self.now_s += seconds + _CLOCK_S[self.fault("clock")]
        self.tick += 1

    # --- the robot

    def connect(self) -> None:
        """A new run."""

    def disconnect(self) -> None:
        """Its end."""

    def get_observation(self) -> Observation:
        """What is seen, or what a broken camera makes of it."""
        kind = self.fault("camera")
        if kind != "frozen":
            self.frame = self.rng.randbytes(192)
        picture = np.frombuffer(self.frame, np.uint8).reshape(8, 8, 3)
        state, taken = np.zeros(3, np.float32), self.now_s
        if kind == "raised":
            raise OSError("the camera is gone")
        images = {"front": picture}
        if kind == "missing":
            images = {}
        elif kind == "other name":
            images = {"wrist": picture}
        elif kind == "black":
            images = {"front": np.zeros_like(picture)}
        elif kind == "small":
            images = {"front": picture[:4]}
        elif kind == "float":
            images = {"front": picture.astype(np.float32)}
        elif kind == "stale":
            taken -= 10.0
        elif kind == "state nan":
            state = np.array([0, np.nan, 0], np.float32)
        elif kind == "state short":
            state = state[:2]
        return Observation(images, state, taken_s=taken)

    def send_action(self, action: NDArray[np.float32]) -> None:
        """Is it safe?"""
        self.commands += 1
        self.done = self.most_commands is not None and self.commands >= self.most_commands
        last, self.last = self.last, action
        if not self.check.is_safe(action):
            self.unsafe.append(f"command {self.commands}: {last} -> {action}")

    def present_action(self) -> NDArray[np.float32]:
        """It stands at zero."""
        return np.zeros(self.action_spec.dim, np.float32)

    # --- inference

    def submit(self, observation: Observation, instruction: str, step: int) -> bool:
        """A chunk that wanders, spoiled or late."""
        if len(self.waiting) > 3:
            return False
        rng, length = self.rng, self.spec.timing.horizon
        wander = np.array([[rng.uniform(-0.06, 0.06), rng.uniform(-0.06, 0.06), rng.uniform(-3.2, 3.2), rng.random()]])
        chunk: Any = ActionChunk(np.repeat(wander, length, axis=0).astype(np.float32), np.ones(length, np.float32))
        if kind := self.fault("chunk"):
            chunk = spoil_chunk(kind, chunk, rng)
        kind = self.fault("timing")
        delay = {"late": rng.randint(2, 6), "very late": rng.randint(8, 40)}.get(kind, rng.randint(0, 1))
        observed = step + {"from the future": 50, "from the past": -50}.get(kind, 0)
        error = "it raised" if kind == "raised" else ""
        answer = Answer(
            observed_at=observed, chunk=None if error else chunk, error=error, submitted_s=self.now_s, finished_s=self.now_s + 0.01
        )
        if kind != "dropped":
            self.waiting += [(self.tick + delay * self.ticks_per_step, answer)] * (2 if kind == "duplicate" else 1)
        return True

    def poll(self) -> Answer | None:
        """What has arrived."""
        for place, (arrives, answer) in enumerate(self.waiting):
            if arrives <= self.tick:
                del self.waiting[place]
                self.answers += 1
                return answer
        return None

    def close(self) -> None:
        """Nothing to stop."""

    def predict(self, observations: Sequence[Observation], instructions: Sequence[str]) -> list[ActionChunk]:
        """Never asked: inference is above."""
        raise AssertionError
