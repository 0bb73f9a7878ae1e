"""Success in closed loop when an answer comes late: the real control loop on the simulated arm, in virtual time.

A decision that takes L is based on an observation that is d control steps old when its action is carried out. What the arm does
meanwhile is one of two ways, both `runtime.control_loop` as it is::

    "stands still"   look ─ ask ─ wait ─ move one step ─ look ...                 L = 2.5 steps, d = 2
                     step   0    1    2    3    4    5    6                       openpi's client, RT-2 at 1 to 3 Hz: every decision is
                     arm    .    .    a0   .    .    a3   .                       carried out once, in a scene that has not moved

    "moves on"       the loop asks in a thread, the last decision goes on         L = 2.5 steps, d = 3
                     step   0    1    2    3    4    5    6    7                  until the next is there: nothing is lost to waiting,
                     arm    .    .    .    a0   a0   a0   a3   a3                 but every decision is for a scene that is gone

For "moves on" a policy of one action is given to the loop as a chunk that repeats it for the time until the next answer; as it is,
with a horizon of 1, the loop refuses every answer that is late by a step, holds, and stops: it was made for no delay. A policy that
answers chunks is taken as it is, and its later rows are what hides a delay.

Time is virtual: the loop's clock moves with its own waits and with L alone, so a result depends neither on the machine nor on its
load. The simulated arm goes with that clock, and stands still where no command came.

An episode has the task's own time. An arm that stands still decides as without delay, only d + 1 times more slowly: what it loses, it loses
to that limit; one that moves on loses by acting on what is gone.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from actlet.errors import SpecError
from actlet.protocols import ActionChunk, Observation, Policy, Task
from actlet.statistics import wilson_interval
from benchmarks.closed_loop import ClosedLoopConfig
from episodes.simulated_robot import SimulatedRobot
from episodes.suites import make_suite
from runtime.chunk_schedule import ScheduleConfig
from runtime.control_loop import LoopConfig, drive
from runtime.inference import Answer, InlineInference
from runtime.limits import CommandLimiter

__all__ = ["Delay", "VirtualClock", "WhileWaiting", "run_delayed", "summarise_delayed"]

WhileWaiting = Literal["stands still", "moves on"]
_MOMENT = 1e-6  # of a second: forgives rounding


@dataclasses.dataclass(frozen=True, kw_only=True)
class Delay:
    """How late answers are, and what the arm does meanwhile."""

    steps: int
    """d, control steps from an observation to the first command that answers it."""
    while_waiting: WhileWaiting

    def __post_init__(self) -> None:
        if self.while_waiting not in ("stands still", "moves on") or self.steps < (self.while_waiting == "moves on"):
            raise SpecError(f"{self}: expected 0 steps or more, 1 or more where the arm moves on: its loop never waits for an answer.")

    @classmethod
    def of(cls, latency_s: float, rate_hz: float, while_waiting: WhileWaiting) -> Delay:
        """The delay that a latency makes at a control rate: a loop that waits acts within the step in which the answer comes, one that
        does not takes it up at the next."""
        late = latency_s * rate_hz
        return cls(steps=int(late) if while_waiting == "stands still" else max(1, int(np.ceil(late))), while_waiting=while_waiting)

    def latency_s(self, rate_hz: float) -> float:
        """A latency that makes this delay: in the middle of those that do."""
        return (self.steps + (0.5 if self.while_waiting == "stands still" else -0.5)) / rate_hz


class VirtualClock:
    """Seconds that pass by `sleep` alone."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def __call__(self) -> float:
        return self._now_s

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self._now_s += seconds


class _Arm(SimulatedRobot):
    """The simulated arm in the time of a clock: where no command came for a step, it has stood still."""

    def __init__(self, task: Task, *, seed: int, clock: Callable[[], float]) -> None:
        super().__init__(task, seed=seed)
        self._clock = clock
        self._limiter = CommandLimiter(task.action_spec)

    def connect(self) -> None:
        super().connect()
        self._started_s = self._clock()

    def get_observation(self) -> Observation:
        self._catch_up()
        return super().get_observation()

    def send_action(self, action: NDArray[np.float32]) -> None:
        self._catch_up()
        super().send_action(self._limiter.limit(action).command)

    def _catch_up(self) -> None:
        while not self.done and self._started_s + (self.steps + 1) / self.rate_hz <= self._clock() + _MOMENT:
            still = self._limiter.hold() or self._limiter.limit(np.zeros(self.action_spec.dim, np.float32))
            super().send_action(still.command)


class _Repeated:
    """A policy of one action, as one whose chunk repeats it."""

    def __init__(self, policy: Policy, horizon: int) -> None:
        self._policy, self._horizon = policy, horizon
        timing = dataclasses.replace(policy.spec.timing, horizon=horizon, execute_steps=1, max_delay_steps=horizon - 1)
        self.spec = dataclasses.replace(policy.spec, timing=timing)

    def predict(self, observations: Sequence[Observation], instructions: Sequence[str]) -> list[ActionChunk]:
        return [
            ActionChunk(np.repeat(chunk.actions[:1], self._horizon, axis=0), np.repeat(chunk.confidence[:1], self._horizon))
            for chunk in self._policy.predict(observations, instructions)
        ]


class _LateInference:
    """Answers at once, and keeps the answer back for the latency: `ThreadInference` in virtual time."""

    def __init__(self, policy: Policy, clock: Callable[[], float], latency_s: float) -> None:
        self._inline, self._clock, self._latency_s = InlineInference(policy, clock), clock, latency_s
        self._answer: Answer | None = None

    def submit(self, observation: Observation, instruction: str, step: int) -> bool:
        if self._answer is not None:
            return False
        self._inline.submit(observation, instruction, step)
        answer = self._inline.poll()
        assert answer is not None
        self._answer = dataclasses.replace(answer, finished_s=answer.submitted_s + self._latency_s)
        return True

    def poll(self) -> Answer | None:
        if self._answer is None or self._clock() < self._answer.finished_s - _MOMENT:
            return None
        answer, self._answer = self._answer, None
        return answer

    def close(self) -> None:
        """Nothing to stop."""


class _Waiting(InlineInference):
    """The loop waits for the answer, in virtual time."""

    def __init__(self, policy: Policy, clock: VirtualClock, latency_s: float) -> None:
        super().__init__(policy, clock)
        self._virtual, self._latency_s = clock, latency_s

    def submit(self, observation: Observation, instruction: str, step: int) -> bool:
        done = super().submit(observation, instruction, step)
        self._virtual.sleep(self._latency_s)
        return done


def run_delayed(
    policy: Policy,
    delay: Delay,
    config: ClosedLoopConfig,
    *,
    schedule: ScheduleConfig | None = None,
    label: str = "",
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Run the episodes of `config.seeds` under a delay.

    Args:
        policy: What decides.
        delay: How late.
        config: Which episodes; one after the other, in this process.
        schedule: How chunks follow each other; the control loop's default when None.
        label: Text of the progress bar.
        progress: Show it.

    Returns:
        For every episode, in JSON types: ``task, seed, instruction, success, steps, decisions, holds, stopped_by, message``.
    """
    suite = make_suite(config.suite)
    names = config.tasks or suite.tasks
    tasks = {name: suite.make(name) for name in names}
    given = _as_the_loop_takes_it(policy, delay)
    latency_s = delay.latency_s(policy.spec.timing.rate_hz)
    inference: Literal["inline", "thread"] = "inline" if delay.while_waiting == "stands still" else "thread"
    loop = LoopConfig(realtime=True, inference=inference, schedule=schedule or ScheduleConfig())
    episodes: list[dict[str, Any]] = []
    try:
        with tqdm(config.seeds, desc=label, unit="episode", disable=not progress, file=sys.stderr) as seeds:
            for seed in seeds:
                name = names[seed % len(names)]
                clock = VirtualClock()

                def late(policy: Policy, _: Callable[[], float], clock: VirtualClock = clock) -> _Waiting | _LateInference:
                    kind = _Waiting if delay.while_waiting == "stands still" else _LateInference
                    return kind(policy, clock, latency_s)

                arm = _Arm(tasks[name], seed=seed, clock=clock)
                result = drive(arm, given, config=loop, clock=clock, sleep=clock.sleep, inference=late)
                episodes.append(
                    {
                        "task": name,
                        "seed": seed,
                        "instruction": arm.instruction,
                        "success": arm.success,
                        "steps": arm.steps,
                        "decisions": result.statistics.chunks,
                        "holds": result.statistics.holds,
                        "stopped_by": result.stopped_by,
                        "message": result.message,
                    }
                )
                done = sum(episode["success"] for episode in episodes)
                seeds.set_postfix_str(f"success {done}/{len(episodes)}", refresh=False)
    finally:
        for task in tasks.values():
            task.close()
    return episodes


def _as_the_loop_takes_it(policy: Policy, delay: Delay) -> Policy:
    """A policy of one action as a chunk that ends where the next answer's begins, so that neither is blended into the other."""
    if policy.spec.timing.horizon > 1:
        return policy
    return _Repeated(policy, delay.steps + 1 if delay.while_waiting == "stands still" else 2 * delay.steps)


def summarise_delayed(delay: Delay, episodes: Sequence[dict[str, Any]], rate_hz: float) -> dict[str, Any]:
    """Figures of one delay.

    Returns:
        ``delay_steps, while_waiting, episodes, success, success_ci95, mean_seconds`` (of those that succeeded; None without one),
        ``decisions_per_episode``, and ``stopped_by``: how often for which reason, "done" for the task's end.
    """
    n, done = len(episodes), [episode for episode in episodes if episode["success"]]
    reasons = [str(episode["stopped_by"]) for episode in episodes]
    return {
        "delay_steps": delay.steps,
        "while_waiting": delay.while_waiting,
        "episodes": n,
        "success": len(done) / n,
        "success_ci95": list(wilson_interval(len(done), n)),
        "mean_seconds": float(np.mean([episode["steps"] for episode in done])) / rate_hz if done else None,
        "decisions_per_episode": float(np.mean([episode["decisions"] for episode in episodes])),
        "stopped_by": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
    }
