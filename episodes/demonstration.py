"""One demonstration of a scripted expert: the executed action is disturbed, the recorded label is not.

An expert that is left alone shows only its own smooth path, and a student that strays a little from it has seen nothing of what to do
there. So some executed actions are disturbed, and at every state that is met, the expert's clean answer is what is recorded
(Laskey et al. 2017, DART, noise injection; here with fixed noise, on a share of the steps, and with held kicks)::

    t=0  expert says a0   a0 is recorded   a0 + noise is executed
    t=1  expert says a1   a1 is recorded   a1 is executed              (a step without noise)
    t=2  expert says a2   a2 is recorded   a2 + kick is executed       (the same kick for `kick_steps` steps)
    ...
    t=T  success          the expert's answer, terminate, is recorded  nothing is executed

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
    """How executed actions are disturbed: the motions, that is the continuous dimensions whose `hold` is not "last"."""

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
    spared: tuple[str, ...] = ("terminate", "gripper")
    """Names of dimensions that are never disturbed: a gripper that flutters drops what it holds."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "spared", tuple(self.spared))
        if min(self.noise_sd, self.kick_sd) < 0 or self.kick_steps < 1:
            raise SpecError(f"{self}: standard deviations are 0 or more, and a kick lasts at least one step.")
        if not (0 <= self.noise_share <= 1 and 0 <= self.kick_share <= 1):
            raise SpecError(f"{self}: shares lie between 0 and 1.")


class _Disturbance:
    """Draws the difference between the executed action and the label, step by step."""

    def __init__(self, config: PerturbationConfig, spec: ActionSpec, rng: np.random.Generator) -> None:
        half = (np.asarray(spec.high) - np.asarray(spec.low)) / 2
        positions = np.array([hold == "last" for hold in spec.hold or ("zero",) * spec.dim])
        disturbed = ~spec.is_binary & ~positions & ~np.isin(spec.names, config.spared)
        self._scale = np.where(disturbed, half, 0.0)  # (A,)
        self._config, self._rng = config, rng
        self._kick, self._kick_left = np.zeros_like(self._scale), 0

    def draw(self) -> NDArray[np.float64]:
        """float64 (A,). The same number of random numbers is drawn at every step, whatever happens."""
        config = self._config
        starts, noisy = self._rng.random(2)
        noise, kick = self._rng.standard_normal((2, len(self._scale)))
        if self._kick_left == 0 and starts < config.kick_share:
            self._kick, self._kick_left = config.kick_sd * self._scale * kick, config.kick_steps
        if self._kick_left > 0:
            self._kick_left -= 1
            return self._kick
        return config.noise_sd * self._scale * noise if noisy < config.noise_share else np.zeros_like(self._scale)


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
    success = False
    for _ in range(task.max_steps):
        label = spec.check(task.expert_action())
        seen.append(observation)
        labels.append(label)
        result = task.step(spec.check((label + disturbance.draw()).astype(np.float32)))
        observation, success = result.observation, result.success
        if success or result.done:
            break
    if success and "terminate" in spec.names:
        seen.append(observation)
        labels.append(spec.check(task.expert_action()))
    return Episode(
        instruction=instruction,
        images={camera.name: np.stack([step.images[camera.name] for step in seen]) for camera in task.observation_spec.cameras},
        state=np.stack([step.state for step in seen]).astype(np.float32),
        action=np.stack(labels),
        success=success,
        seed=seed,
        task=task.name,
    )
