"""The fixed-rate control loop: any `Robot`, any `Policy`, and a command at every step.

One step k, at the absolute time t0 + k / rate::

    poll       a finished chunk is checked and goes into the schedule
    observe    if a new chunk is due and the policy is idle: robot.get_observation() -> inference
    due        the schedule's action for step k, or HOLD
    limit      finite, inside the limits, no jump (`runtime.limits`); what cannot be mended becomes HOLD
    send       robot.send_action
    wait       until the next step; steps that are over are skipped and counted, never caught up in a burst

A policy that is told what is on its way (`TimingSpec.committed_steps`) gets the commands that are due until its answer will be there, as far
as the delays of late tell; while an inline policy computes, these are holds. An answer that comes later than that is used all the same, and
counted as misjudged.

HOLD means commanding to stand still, not silence: zero for displacements, the last value for positions and flags.

No exception leaves the loop. A policy that fails leads to HOLD and, after `max_bad_chunks` in a row or `max_hold_steps` without a
valid action, to a stop; a robot that fails leads to a stop at once. Every end has a reason, and the robot is always
disconnected. Clock and sleep are injected, so that tests run in virtual time.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import math
import time
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from actlet.errors import ActionError, CallerError, SpecError
from actlet.protocols import Observation, Policy, Robot
from actlet.specs import require_same
from runtime.chunk_schedule import ChunkSchedule, DueAction, ScheduleConfig
from runtime.inference import Answer, Inference, InlineInference, ThreadInference
from runtime.limits import CommandLimiter, Limited
from runtime.loop_statistics import LoopStatistics

__all__ = ["LoopConfig", "LoopResult", "StopReason", "drive"]

_DELAYS_KEPT = 8
"""Answers of late by whose delays the next one is judged."""

StopReason = Literal["steps", "done", "terminate", "policy", "hold", "robot", "fault", "interrupted"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How the loop runs."""

    max_steps: int | None = None
    """Steps after which it stops, None for no end."""
    realtime: bool = True
    """Keep the rate by the clock; False runs step after step, for robots whose time only passes with commands."""
    rate_hz: float | None = None
    """Steps in a second, None for the policy's own rate. An action is still one step: another rate is faster or slower motion."""
    inference: Literal["thread", "inline"] = "thread"
    """Where the policy runs; "inline" makes the loop wait for it."""
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    """How chunks follow each other."""
    replan_steps: int | None = None
    """Ask for a new chunk this many steps after the one before, None for the policy's `execute_steps`."""
    max_change: tuple[float, ...] | None = None
    """Largest change per step of each action dimension, None for no limit beside the position limits."""
    max_bad_chunks: int = 5
    """Unusable answers in a row (failed, not finite, wrong shape, too late) after which the loop stops."""
    max_hold_steps: int = 50
    """Steps in a row without a valid action after which the loop stops: a policy that hangs gives no answers to count."""

    def __post_init__(self) -> None:
        counts = (self.max_bad_chunks, self.max_hold_steps, *(n for n in (self.max_steps, self.replan_steps) if n is not None))
        if min(counts) < 1 or not (self.rate_hz is None or 0 < self.rate_hz < math.inf):
            raise CallerError(f"control loop: {self}: expected counts of at least 1 and a positive rate.")
        if not self.realtime and self.inference == "thread":
            raise CallerError("control loop: inference in a thread needs real time; use inference='inline' to run as fast as possible.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopResult:
    """How a run ended."""

    stopped_by: StopReason
    """"steps": max_steps reached; "done": the robot said so; "terminate": the policy commanded it; "policy": bad answers;
    "hold": no valid action for too long; "robot": the robot failed; "fault": the loop itself failed, or `on_step` did;
    "interrupted": Ctrl-C."""
    message: str
    """The reason in words."""
    statistics: LoopStatistics


class _Stop(Exception):
    """Ends the loop from inside a step; never leaves this module."""

    def __init__(self, reason: StopReason, message: str) -> None:
        super().__init__(message)
        self.reason: StopReason = reason


def drive(
    robot: Robot,
    policy: Policy,
    instruction: str | None = None,
    config: LoopConfig | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    on_step: Callable[[int, LoopStatistics], None] | None = None,
    inference: Callable[[Policy, Callable[[], float]], Inference] | None = None,
) -> LoopResult:
    """Connect, run the loop, disconnect.

    Args:
        robot: What moves. Its specifications must be the policy's. Two attributes are optional: `instruction` (used when no
            instruction is given) and `done` (True ends the run).
        policy: What decides.
        instruction: What to do.
        config: How to run.
        clock: Monotonic seconds.
        sleep: Waits that many seconds.
        on_step: Called after every step, as for a status line. It must be quick.
        inference: Makes where the policy runs, of policy and clock; None for what `config.inference` names.

    Raises:
        SpecError: Robot and policy do not fit; found before the robot is connected.
        CallerError: No instruction (the robot is disconnected again). Everything that happens later is in the result.
    """
    config = config or LoopConfig()
    require_same(policy.spec.observation, robot.observation_spec, what="the policy's and the robot's observation")
    require_same(policy.spec.action, robot.action_spec, what="the policy's and the robot's action")
    if not math.isclose(policy.spec.timing.rate_hz, robot.rate_hz, rel_tol=1e-3):
        raise SpecError(f"the policy was made for {policy.spec.timing.rate_hz} steps in a second, the robot has {robot.rate_hz}.")
    limiter = CommandLimiter(robot.action_spec, config.max_change)
    _prepare(policy, instruction if instruction is not None else getattr(robot, "instruction", None))
    loop = _Loop(
        robot=robot,
        policy=policy,
        config=config,
        limiter=limiter,
        clock=clock,
        sleep=sleep,
        on_step=on_step,
        make_inference=inference or (ThreadInference if config.inference == "thread" else InlineInference),
    )
    stop = _Stop("interrupted", "interrupted")
    try:
        _connect(robot)
        loop.instruction = _instruction(robot, instruction)
        loop.run()
    except _Stop as reason:
        stop = reason
    except KeyboardInterrupt:
        stop = _Stop("interrupted", "interrupted by the user")
    finally:
        failures = _let_go(robot, limiter, hold=stop.reason != "done")
    return LoopResult(stopped_by=stop.reason, message=f"{stop}{failures}", statistics=loop.statistics)


def _prepare(policy: Policy, instruction: str | None) -> None:
    """Before anything moves, what the first decision of an instruction needs; some robots know theirs once they are connected."""
    prepare = getattr(policy, "prepare", None)
    if prepare is not None and instruction:
        prepare(instruction)


def _connect(robot: Robot) -> None:
    try:
        robot.connect()
    except Exception as error:
        raise _Stop("robot", f"cannot connect ({_text(error)})") from error


def _instruction(robot: Robot, given: str | None) -> str:
    words = given if given is not None else getattr(robot, "instruction", None)
    if not words or not words.strip():
        raise CallerError("no instruction: say what to do, as in --instruction 'put the red block on the plate'.")
    return str(words)


def _let_go(robot: Robot, limiter: CommandLimiter, *, hold: bool) -> str:
    """Stand still and disconnect; what fails here is told, not raised."""
    failures = []
    if hold and limiter.last is not None and (still := limiter.hold()) is not None:
        try:
            robot.send_action(still.command)
        except Exception as error:
            failures.append(f"; the last hold failed ({_text(error)})")
    try:
        robot.disconnect()
    except Exception as error:
        failures.append(f"; disconnecting failed ({_text(error)})")
    return "".join(failures)


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


@dataclasses.dataclass(kw_only=True)
class _Loop:
    """The state of one run."""

    robot: Robot
    policy: Policy
    config: LoopConfig
    limiter: CommandLimiter
    clock: Callable[[], float]
    sleep: Callable[[float], None]
    on_step: Callable[[int, LoopStatistics], None] | None
    make_inference: Callable[[Policy, Callable[[], float]], Inference]
    instruction: str = ""
    statistics: LoopStatistics = dataclasses.field(default_factory=LoopStatistics)
    next_ask: int = 0
    bad_in_a_row: int = 0
    holds_in_a_row: int = 0
    last_error: str = ""

    def __post_init__(self) -> None:
        timing = self.policy.spec.timing
        self.dt_s = 1.0 / (self.config.rate_hz or timing.rate_hz)
        self.replan_steps = self.config.replan_steps or timing.execute_steps
        self.schedule = ChunkSchedule(self.policy.spec, self.config.schedule)
        self.told: dict[int, int] = {}  # Step of an observation -> how many actions were on their way, as the policy was told.
        # Answers of late came so many steps after their observation; from a thread, one at least.
        self.delays = collections.deque([int(self.config.inference == "thread")], maxlen=_DELAYS_KEPT)
        self.observed_s: dict[int, float] = {}  # Step -> clock, of the observations whose chunks may still be in use.

    def run(self) -> None:
        """Steps until a `_Stop`."""
        inference = self.make_inference(self.policy, self.clock)
        self.statistics.started_s = self.clock()
        step = 0
        try:
            while True:
                self.statistics.ended_s = self.clock()
                if self.config.max_steps is not None and step >= self.config.max_steps:
                    raise _Stop("steps", f"{self.config.max_steps} steps done")
                step = self.step(step, inference)
                step = self.wait(step) if self.config.realtime else step + 1
        except (_Stop, KeyboardInterrupt):
            raise
        except Exception as error:  # Nothing is expected here; an unexpected failure stops the robot like any other.
            raise _Stop("fault", f"the loop itself failed ({_text(error)})") from error
        finally:
            self.statistics.ended_s = self.clock()
            inference.close()

    def step(self, step: int, inference: Inference) -> int:
        """One control step; returns its number, which is a later one when inline inference took longer than a period."""
        self.take(inference.poll(), step)
        if step >= self.next_ask and self.ask(step, inference):
            present = self.present(step)
            self.statistics.missed_deadlines += present - step
            step = present
            self.take(inference.poll(), step)  # An inline answer is there already; a thread's usually comes later.
        due = self.schedule.at(step)
        limited = self.limit(due)
        if limited is not None:
            self.send(limited)
        self.statistics.ticks += 1
        if due is not None and self.holds_in_a_row == 0:
            self.statistics.ages_s.append(self.clock() - self.observed_s.get(due.observed_at, self.clock()))
        if self.on_step is not None:
            self.on_step(step, self.statistics)
        self.stop_if_over(limited, is_hold=self.holds_in_a_row > 0)
        return step

    def present(self, step: int) -> int:
        """The step that the clock says, at least `step`."""
        if not self.config.realtime:
            return step
        # The millionth, here and in `wait`, forgives the rounding of the division.
        return max(step, math.floor((self.clock() - self.statistics.started_s) / self.dt_s + 1e-6))

    def ask(self, step: int, inference: Inference) -> bool:
        """Observe and hand over, if the policy is idle."""
        try:
            observed = self.clock()
            observation: Observation = self.robot.get_observation()
        except Exception as error:
            raise _Stop("robot", f"no observation ({_text(error)})") from error
        committed = self.on_its_way(step)
        if committed is not None:
            observation = dataclasses.replace(observation, committed=committed)
        if not inference.submit(observation, self.instruction, step):
            return False
        self.observed_s[step], self.told[step] = observed, 0 if committed is None else len(committed)
        for old in [key for key in self.observed_s if key < step - 2 * self.policy.spec.timing.horizon]:
            del self.observed_s[old], self.told[old]
        self.next_ask = step + self.replan_steps
        return True

    def on_its_way(self, step: int) -> NDArray[np.float32] | None:
        """float32 (d, A): what will be commanded until an answer to an observation of this step is there, limited as it will be; None where the
        policy is not told, and before there is anything to command.

        A loop that asks in a thread goes by the longest delay of late: an answer that comes sooner waits. One that waits for its answers goes by
        the shortest, since it can command nothing that it has told in place of an answer that is there already.
        """
        inline = self.config.inference == "inline"
        delay = min(min(self.delays) if inline else max(self.delays), self.policy.spec.timing.committed_steps)
        ahead = copy.copy(self.limiter)  # It remembers the command before; the loop's own must not hear of commands that are not sent yet.
        commands = []
        for i in range(delay):
            due = None if inline else self.schedule.at(step + i)
            try:
                limited = ahead.hold() if due is None else ahead.limit(due.action)
            except ActionError:
                limited = ahead.hold()
            if limited is None:
                break
            commands.append(limited.command)
        return np.stack(commands) if commands else None

    def take(self, answer: Answer | None, step: int) -> None:
        """Check an answer and schedule it."""
        if answer is None:
            return
        self.statistics.latencies_s.append(answer.finished_s - answer.submitted_s)
        told = self.told.get(answer.observed_at, 0)
        self.delays.append(step - answer.observed_at)
        verdict, error = "bad", answer.error or "the policy answered with nothing"
        if answer.chunk is not None:
            try:
                verdict = self.schedule.add(answer.chunk.actions, observed_at=answer.observed_at, now=step, committed=told)
                if verdict == "late":
                    most = self.policy.spec.timing.max_delay_steps
                    error = f"chunk of step {answer.observed_at} came at step {step}, later than the {most} steps the policy was made for"
            except Exception as failure:  # A hostile chunk may be anything: no array, no numbers, no attribute.
                error = _text(failure)
        if verdict == "used":
            self.statistics.chunks += 1
            self.statistics.misjudged_chunks += bool(self.policy.spec.timing.committed_steps) and step - answer.observed_at > told
            self.bad_in_a_row = 0
            return
        self.next_ask = min(self.next_ask, step + 1)  # Ask again soon.
        self.statistics.late_chunks += verdict == "late"
        self.statistics.bad_chunks += verdict != "late"
        self.bad_in_a_row += 1
        self.last_error = error
        if self.bad_in_a_row >= self.config.max_bad_chunks:
            raise _Stop("policy", f"{self.bad_in_a_row} unusable answers in a row, the last: {error}")

    def limit(self, due: DueAction | None) -> Limited | None:
        """The command to send: the due action, or HOLD; None when there is nothing yet to hold."""
        if due is not None:
            try:
                limited = self.limiter.limit(due.action)
            except ActionError as error:
                self.last_error = _text(error)
            else:
                self.holds_in_a_row = 0
                self.statistics.clipped += limited.clipped
                self.statistics.slowed += limited.slowed
                return limited
        self.holds_in_a_row += 1
        self.statistics.holds += 1
        return self.limiter.hold()

    def send(self, limited: Limited) -> None:
        """Hand the command to the robot."""
        try:
            self.robot.send_action(limited.command)
        except Exception as error:
            raise _Stop("robot", f"command refused ({_text(error)})") from error
        self.statistics.sent += 1

    def stop_if_over(self, limited: Limited | None, *, is_hold: bool) -> None:
        """The ends that are seen after a command."""
        names: tuple[str, ...] = self.robot.action_spec.names
        if not is_hold and limited is not None and "terminate" in names and limited.command[names.index("terminate")] >= 0.5:
            raise _Stop("terminate", "the policy commanded terminate")
        if getattr(self.robot, "done", False):
            raise _Stop("done", "the robot reports the end of the task")
        if self.holds_in_a_row >= self.config.max_hold_steps:
            why = f", the last error: {self.last_error}" if self.last_error else ""
            raise _Stop("hold", f"no valid action for {self.holds_in_a_row} steps{why}")

    def wait(self, step: int) -> int:
        """Sleep until the next step that has not begun yet; its number. A step that has begun is over: it is skipped and counted."""
        now, start = self.clock(), self.statistics.started_s
        following = max(step + 1, math.ceil((now - start) / self.dt_s - 1e-6))
        self.statistics.missed_deadlines += following - step - 1
        remaining = start + following * self.dt_s - now
        if remaining > 0:
            self.sleep(remaining)
        return following
