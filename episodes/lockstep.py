"""Running episodes of one policy side by side in one process, so that the policy is asked for batches.

The policy works with a receding horizon: of every chunk `execute_steps` actions are executed, then it is asked again. One round::

    refill   lanes whose episode ended take the next one of the plan (reset)
    predict  one call with the observations of all lanes
    execute  every lane executes up to execute_steps actions of its own chunk

With a delay of d steps (`PlannedEpisode.delay_steps`) a chunk comes too late for its first d rows, and a policy that thinks is not asked anew, as in
the control loop: it is asked at t, told what is on its way (`Observation.committed`), its rows d .. 2d - 1 are commanded from step t + d on, and
it is asked again at t + d. Of a chunk of H < 2d rows there are fewer, and it is asked again after H - d steps, as if it could think of two
things at once. In the first d steps zeros are commanded, which is to stand still where actions are displacements.

An episode depends on its seed and on the policy alone, so neither the number of lanes nor the company in a batch changes it, up to the
rounding of the policy's own batched arithmetic. Every planned episode has exactly one outcome: an exception in one is its outcome.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from actlet.errors import ActionError, CallerError, SpecError
from actlet.protocols import ActionChunk, Observation, Policy, Suite, Task
from actlet.specs import PolicySpec, require_same
from episodes.episode import Episode
from episodes.motion_quality import motion_quality

__all__ = ["EpisodeResult", "Outcome", "PlannedEpisode", "failed_outcome", "run_in_lockstep"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpisodeResult:
    """What became of one episode."""

    task: str
    seed: int
    instruction: str
    """What the policy was told; empty when the episode failed before it was told anything."""
    success: bool
    """The task (always the original one, also under a wrong instruction) was carried out."""
    steps: int
    """Actions executed."""
    terminated_early: bool = False
    """The policy commanded terminate before success."""
    mean_squared_jerk: float | None = None
    """See `MotionQuality`, as the next two; None where it is not defined."""
    path_length: float | None = None
    gripper_flips: int | None = None
    kind: str = ""
    """What kind of instruction it was, where the task has the attribute ``instruction_kind``; results may be split by it."""
    error: str = ""
    """Type and message of the exception that ended the episode, empty when there was none."""

    def to_dict(self) -> dict[str, object]:
        """Plain JSON types."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedEpisode:
    """One episode that is to be run; `index` is its place in the order that the caller asked for."""

    index: int
    task: str
    seed: int
    delay_steps: int = 0
    """d, control steps from an observation to the first command that answers it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """One episode that was run, with what was recorded if that was asked for."""

    index: int
    result: EpisodeResult
    episode: Episode | None = None
    """Observations and executed actions; None unless recording, and for an episode that ended in an exception."""
    expert: NDArray[np.float32] | None = None
    """float32 (T, A): what the scripted expert would have done in every state of `episode`."""


def failed_outcome(plan: PlannedEpisode, error: str, *, instruction: str = "", steps: int = 0, kind: str = "") -> Outcome:
    """The outcome of an episode that an exception ended."""
    result = EpisodeResult(task=plan.task, seed=plan.seed, instruction=instruction, success=False, steps=steps, kind=kind, error=error)
    return Outcome(index=plan.index, result=result)


def run_in_lockstep(
    policy: Policy,
    suite: Suite,
    plans: Sequence[PlannedEpisode],
    *,
    batch: int,
    wrong_instruction: bool = False,
    record: bool = False,
    expert: bool = False,
) -> Iterator[Outcome]:
    """Run planned episodes, `batch` at a time, and yield each outcome when it is known (in no particular order).

    Args:
        policy: Asked for at most `batch` chunks at once.
        suite: Makes the tasks; instances are used again for later episodes.
        plans: What to run.
        batch: Number of lanes.
        wrong_instruction: Tell the policy `task.other_instruction(seed)`, and still judge the original task.
        record: Keep observations and executed actions.
        expert: Keep the scripted expert's action for every state; needs `record`.

    Raises:
        SpecError: Policy and task differ in what they see or command, or a delay is as long as a chunk.
        CallerError: A task cannot be made at all, such as for a missing package.
    """
    latest = max((plan.delay_steps for plan in plans), default=0)
    if latest and not latest < policy.spec.timing.horizon:
        raise SpecError(
            f"a delay of {latest} steps: the policy answers {policy.spec.timing.horizon} actions, none of which is meant for then."
        )
    waiting, lanes = deque(plans), list[_Lane]()
    pool = _TaskPool(suite, policy.spec, keep=batch)
    try:
        while waiting or lanes:
            while waiting and len(lanes) < batch:
                lane = _Lane(waiting.popleft(), record=record, expert=expert)
                lane.start(pool, wrong_instruction)
                lanes.append(lane)
            ready = [lane for lane in lanes if not lane.over]
            for lane, chunk in zip(ready, _predict(policy, ready), strict=True):
                lane.execute(chunk, policy.spec)
            for lane in [lane for lane in lanes if lane.over]:
                lanes.remove(lane)
                yield lane.outcome(pool)
    finally:
        for lane in lanes:
            lane.close()
        pool.close()


def _predict(policy: Policy, lanes: Sequence[_Lane]) -> list[ActionChunk | Exception]:
    """One chunk for every lane. When a batch raises, its members are asked one by one, so that only the guilty one fails."""
    if not lanes:
        return []
    try:
        chunks = policy.predict([lane.asks(policy.spec) for lane in lanes], [lane.instruction for lane in lanes])
        if len(chunks) != len(lanes):
            raise ActionError(f"the policy answered {len(chunks)} chunks to {len(lanes)} observations: one each is expected.")
        return list(chunks)
    except Exception as error:
        if len(lanes) == 1:
            return [error]
        return [answer for lane in lanes for answer in _predict(policy, [lane])]


class _TaskPool:
    """Task instances that wait for their next episode; at most `keep` of them, since each holds a simulator and a renderer."""

    def __init__(self, suite: Suite, spec: PolicySpec, *, keep: int) -> None:
        self._suite, self._spec, self._keep = suite, spec, keep
        self._idle: list[tuple[str, Task]] = []

    def take(self, name: str) -> Task:
        for entry in self._idle:
            if entry[0] == name:
                self._idle.remove(entry)
                return entry[1]
        task = self._suite.make(name)
        what = f"policy and task {name!r} of suite {self._suite.name!r}"
        require_same(self._spec.observation, task.observation_spec, what=f"{what}: what they see")
        # Limits may differ: the task clips to its own.
        ours = dataclasses.replace(self._spec.action, low=task.action_spec.low, high=task.action_spec.high)
        require_same(ours, task.action_spec, what=f"{what}: what they command")
        if self._spec.timing.rate_hz != task.rate_hz:
            raise SpecError(f"{what} differ: the policy acts at {self._spec.timing.rate_hz} Hz, the task at {task.rate_hz} Hz.")
        return task

    def give_back(self, name: str, task: Task) -> None:
        self._idle.append((name, task))
        if len(self._idle) > self._keep:
            self._idle.pop(0)[1].close()

    def close(self) -> None:
        while self._idle:
            self._idle.pop()[1].close()


class _Lane:
    """One episode on its way."""

    observation: Observation

    def __init__(self, plan: PlannedEpisode, *, record: bool, expert: bool) -> None:
        self._plan, self._record, self._expert = plan, record, expert
        self._task: Task | None = None
        self._seen: list[Observation] = []
        self._states: list[NDArray[np.float32]] = []
        self._actions: list[NDArray[np.float32]] = []
        self._labels: list[NDArray[np.float32]] = []
        self.instruction = ""
        self._success = self._terminated = self.over = False
        self._error = self._kind = ""
        self._on_its_way: deque[NDArray[np.float32]] = deque()

    def start(self, pool: _TaskPool, wrong_instruction: bool) -> None:
        """Reset the task. A task that cannot be made for the caller's fault ends the run; any other exception ends this episode."""
        try:
            self._task = pool.take(self._plan.task)
        except CallerError:
            raise
        except Exception as error:
            self._fail(error)
            return
        try:
            self.observation, self.instruction = self._task.reset(self._plan.seed)
            still = self._task.action_spec.check(np.zeros(self._task.action_spec.dim, np.float32))
            self._on_its_way.extend([still] * self._plan.delay_steps)
            self._kind = str(getattr(self._task, "instruction_kind", ""))
            if wrong_instruction:
                self.instruction = self._task.other_instruction(self._plan.seed)
            self._states.append(self.observation.state)
        except Exception as error:
            self._fail(error)

    def asks(self, spec: PolicySpec) -> Observation:
        """What the policy is shown: the newest observation, and what is on its way as far as it is told of that."""
        told = min(len(self._on_its_way), spec.timing.committed_steps)
        return dataclasses.replace(self.observation, committed=np.stack(list(self._on_its_way)[:told])) if told else self.observation

    def execute(self, chunk: ActionChunk | Exception, spec: PolicySpec) -> None:
        """Execute the first `execute_steps` actions of a chunk, or fewer when the episode ends."""
        try:
            if isinstance(chunk, Exception):
                raise chunk
            if chunk.actions.shape != (spec.timing.horizon, spec.action.dim):
                expected = (spec.timing.horizon, spec.action.dim)
                raise ActionError(
                    f"the policy answered actions of shape {chunk.actions.shape}, expected {expected} (H, A) of its specification."
                )
            late, actions = self._plan.delay_steps, list(chunk.actions[: spec.timing.execute_steps])
            if late:
                answered = chunk.actions[late : 2 * late]
                self._on_its_way.extend(answered)
                actions = [self._on_its_way.popleft() for _ in answered]
            for action in actions:
                if not self.over:
                    self._step(action)
        except Exception as error:
            self._fail(error)

    def _step(self, action: NDArray[np.float32]) -> None:
        task = self._task
        assert task is not None
        action = task.action_spec.check(action)
        if self._record:
            self._seen.append(self.observation)
        if self._expert:
            self._labels.append(np.asarray(task.expert_action(), np.float32))
        result = task.step(action)
        self._actions.append(action)
        self.observation, self._success = result.observation, result.success
        self._states.append(result.observation.state)
        names = task.action_spec.names
        commanded = "terminate" in names and bool(action[names.index("terminate")] > 0.5)
        self._terminated = commanded and not result.success
        self.over = result.success or result.done or commanded or len(self._actions) >= task.max_steps

    def _fail(self, error: Exception) -> None:
        self._error, self._success, self.over = f"{type(error).__name__}: {error}", False, True

    def outcome(self, pool: _TaskPool) -> Outcome:
        """What became of the episode. The task goes back to the pool, unless an exception left it in an unknown state."""
        task, steps = self._task, len(self._actions)
        if self._error or task is None:
            self.close()
            return failed_outcome(self._plan, self._error, instruction=self.instruction, steps=steps, kind=self._kind)
        actions = np.stack(self._actions)
        quality = motion_quality(np.stack(self._states), actions, task.observation_spec, task.action_spec, task.rate_hz)
        result = EpisodeResult(
            task=self._plan.task,
            seed=self._plan.seed,
            instruction=self.instruction,
            success=self._success,
            steps=steps,
            terminated_early=self._terminated,
            kind=self._kind,
            **dataclasses.asdict(quality),
        )
        pool.give_back(self._plan.task, task)
        return Outcome(
            index=self._plan.index,
            result=result,
            episode=self._episode(actions) if self._record else None,
            expert=np.stack(self._labels) if self._expert else None,
        )

    def _episode(self, actions: NDArray[np.float32]) -> Episode:
        return Episode(
            instruction=self.instruction,
            images={camera: np.stack([seen.images[camera] for seen in self._seen]) for camera in self._seen[0].images},
            state=np.stack(self._states[:-1]),
            action=actions,
            success=self._success,
            seed=self._plan.seed,
            task=self._plan.task,
        )

    def close(self) -> None:
        """Close the task; one that failed may fail again, which changes nothing."""
        if self._task is not None:
            with contextlib.suppress(Exception):
                self._task.close()
            self._task = None
