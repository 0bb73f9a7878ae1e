"""One demonstration of a scripted expert: the executed action is disturbed, the recorded label is not.

An expert that is left alone shows only its own smooth path, and a student that strays a little from it has seen nothing of what to do
there. So some executed actions are disturbed, and at every state that is met, the expert's clean answer is what is recorded
(Laskey et al. 2017, DART, noise injection; here with fixed noise, on a share of the steps, and with held kicks)::

    t=0  expert says a0   a0 is recorded   a0 + noise is executed
    t=1  expert says a1   a1 is recorded   a1 is executed              (a step without noise)
    t=2  expert says a2   a2 is recorded   a2 + kick is executed       (the same kick for `kick_steps` steps)
    t=5  expert says a5   a5 is recorded   a5 is executed, but the gripper does the opposite (a slip, for `slip_steps` steps)
    ...
    t=T  success          the expert's answer, terminate, is recorded  nothing is executed

What was executed is kept beside it (`Episode.executed`): a policy that is told what is on its way learns from it what that does.

The disturbance is drawn from the task's name and the scene's seed: the episodes of one scene are disturbed differently.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from actlet.errors import SpecError
from actlet.protocols import Observation, Task
from actlet.specs import ActionSpec
from episodes.episode import Episode

__all__ = ["PerturbationConfig", "demonstrate"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerturbationConfig:
    """How executed actions are disturbed: the motions, that is the continuous dimensions whose `hold` is not "last", by noise and
    kicks; the switches, that is the binary dimensions whose `hold` is "last" (a gripper), by slips."""

    noise_sd: float = 0.3
    """Standard deviation of the Gaussian noise, as a share of half the range between a dimension's limits."""
    noise_share: float = 0.3
    """Share of steps with noise, 0 .. 1."""
    kick_sd: float = 0.5
    """Standard deviation of a kick, in the same unit as `noise_sd`."""
    kick_share: float = 0.02
    """Probability that a kick begins at a step, 0 .. 1."""
    kick_steps: int = 3
    """For how many steps a kick is held."""
    slip_share: float = 0.015
    """Probability that a slip begins at a step, 0 .. 1: a gripper that closed too early, or let go. Without slips the fingers are
    always as the next label wants them, a network learns to keep them as they are, and one early closing ends the episode."""
    slip_steps: int = 3
    """For how many steps a slip lasts."""
    spared: tuple[str, ...] = ("terminate",)
    """Names of dimensions that are never disturbed."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "spared", tuple(self.spared))
        if min(self.noise_sd, self.kick_sd) < 0 or min(self.kick_steps, self.slip_steps) < 1:
            raise SpecError(f"{self}: standard deviations are 0 or more, and a kick or slip lasts at least one step.")
        if not all(0 <= share <= 1 for share in (self.noise_share, self.kick_share, self.slip_share)):
            raise SpecError(f"{self}: shares lie between 0 and 1.")


class _Disturbance:
    """Turns labels into executed actions, step by step."""

    def __init__(self, config: PerturbationConfig, spec: ActionSpec, rng: np.random.Generator) -> None:
        half = (np.asarray(spec.high) - np.asarray(spec.low)) / 2
        kept = np.array([hold == "last" for hold in spec.hold or ("zero",) * spec.dim])
        spared = np.isin(spec.names, config.spared)
        self._scale = np.where(~spec.is_binary & ~kept & ~spared, half, 0.0)  # (A,)
        self._switches = spec.is_binary & kept & ~spared  # (A,)
        self._config, self._rng = config, rng
        self._slip_rng = rng.spawn(1)[0]  # Of its own: with slips or without, noise and kicks are the same.
        self._kick, self._kick_left, self._slip_left = np.zeros_like(self._scale), 0, 0

    def executed(self, label: NDArray[np.float32]) -> NDArray[np.float64]:
        """float64 (A,) -> float64 (A,). The same number of random numbers is drawn at every step, whatever happens."""
        config = self._config
        starts, noisy = self._rng.random(2)
        noise, kick = self._rng.standard_normal((2, len(self._scale)))
        if self._kick_left == 0 and starts < config.kick_share:
            self._kick, self._kick_left = config.kick_sd * self._scale * kick, config.kick_steps
        if self._slip_rng.random() < config.slip_share and self._slip_left == 0:
            self._slip_left = config.slip_steps
        action = label.astype(np.float64)
        if self._slip_left > 0:
            self._slip_left -= 1
            action = np.where(self._switches, 1.0 - action, action)
        if self._kick_left > 0:
            self._kick_left -= 1
            return action + self._kick
        return action + config.noise_sd * self._scale * noise if noisy < config.noise_share else action


def demonstrate(task: Task, seed: int, config: PerturbationConfig) -> Episode:
    """Let a task's expert carry out one episode, successful or not.

    A task with the action dimension "terminate" gets one last step after success: what is seen then, and the expert's answer to it,
    which is terminate 1 without motion.

    Args:
        task: Any task with an expert.
        seed: The scene's seed, which `Task.reset` gets; with the task's name it decides the disturbance too.
        config: How to disturb.

    Returns:
        The episode; T is at least 1.
    """
    spec = task.action_spec
    disturbance = _Disturbance(config, spec, np.random.default_rng([seed, 40, *task.name.encode()]))
    observation, instruction = task.reset(seed)
    seen: list[Observation] = []
    labels: list[NDArray[np.float32]] = []
    executed: list[NDArray[np.float32]] = []
    success = False
    for _ in range(task.max_steps):
        label = spec.check(task.expert_action())
        seen.append(observation)
        labels.append(label)
        executed.append(spec.check(disturbance.executed(label).astype(np.float32)))
        result = task.step(executed[-1])
        observation, success = result.observation, result.success
        if success or result.done:
            break
    if success and "terminate" in spec.names:
        seen.append(observation)
        labels.append(spec.check(task.expert_action()))
        executed.append(labels[-1])
    return Episode(
        instruction=instruction,
        images={camera.name: np.stack([step.images[camera.name] for step in seen]) for camera in task.observation_spec.cameras},
        state=np.stack([step.state for step in seen]).astype(np.float32),
        action=np.stack(labels),
        success=success,
        seed=seed,
        task=task.name,
        executed=np.stack(executed),
    )
