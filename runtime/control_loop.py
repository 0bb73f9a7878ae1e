"""The fixed-rate control loop: any `Robot`, any `Policy`, and a command at every step.

One step k, at the absolute time t0 + k / rate::

    poll       a finished chunk is checked and goes into the schedule
    observe    if a new chunk is due and the policy is idle: robot.get_observation(), looked at (`runtime.watch`) -> inference
    due        the schedule's action for step k, unless it is older than its time to live
    judge      all that is wrong now -> the failsafe (`runtime.failsafe`) -> RUN, HOLD, RAMP, SAFE_POSE or ESTOP
    limit      the command of that state: finite, inside the limits, no jump (`runtime.limits`)
    send       robot.send_action
    wait       until the next step; steps that are over are skipped and counted, never caught up in a burst

A policy that is told what is on its way (`TimingSpec.committed_steps`) gets the commands that are due until its answer will be there, as far
as the delays of late tell; while an inline policy computes, these are holds. An answer that comes later than that is used all the same, and
counted as misjudged.

HOLD means commanding to stand still, not silence: zero for displacements, the last value for positions and flags. While it lasts, the policy is
asked as often as it answers. From RAMP on it is not asked any more: what moves is brought to rest, the robot goes to its safe pose if it has
one, and the run ends; docs/runtime.md has the table.

No exception leaves the loop: what fails is a cause of the failsafe. Every end has a reason, and the robot is always disconnected. The first
Ctrl-C brings the robot to rest, a second one ends at once. Clock and sleep are injected, so that tests run in virtual time.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import math
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from actlet.errors import ActionError, CallerError, SpecError
from actlet.protocols import Observation, Policy, Robot
from actlet.specs import require_same
from runtime.chunk_schedule import ChunkSchedule, DueAction
from runtime.coming_to_rest import ComingToRest
from runtime.failsafe import Cause, Failsafe, State, StopButtons
from runtime.inference import Answer, Inference, InlineInference, ThreadInference
from runtime.judge import Judge
from runtime.limits import CommandLimiter, Limited
from runtime.loop_config import LoopConfig, LoopResult, StopReason
from runtime.loop_statistics import LoopStatistics
from runtime.watch import ClampWatch, ObservationWatch

__all__ = ["LoopConfig", "LoopResult", "StopReason", "drive"]

_INTERRUPTED = "interrupted by the user"
_MOMENT_S = 1e-6
"""Forgives the rounding of differences of clock readings."""
_DELAYS_KEPT = 8
"""Answers of late by whose delays the next one is judged."""

_OF_OBSERVATIONS = (Cause.BAD_OBSERVATION, Cause.FROZEN_FRAME, Cause.STALE_FRAME)


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
    failsafe: Failsafe | None = None,
    buttons: StopButtons | None = None,
) -> LoopResult:
    """Connect, run the loop, disconnect.

    Args:
        robot: What moves. Its specifications must be the policy's. Optional attributes: `instruction` (used when no instruction is
            given), `done` (True ends the run), `safe_action()` (an action toward a safe pose, None when it is there),
            `emergency_stop()`, and `virtual_time` (True: frames are drawn, so the same pixels again are no frozen camera).
        policy: What decides.
        instruction: What to do.
        config: How to run.
        clock: Monotonic seconds.
        sleep: Waits that many seconds.
        on_step: Called after every step, as for a status line. It must be quick.
        inference: Makes where the policy runs, of policy and clock; None for what `config.inference` names.
        failsafe: One that is kept from run to run, so that a robot that was stopped moves again only after its `reset()`; it has its own
            configuration. None for a new one of `config.failsafe`.
        buttons: What an operator may press meanwhile.

    Raises:
        RobotFault: The failsafe is latched; nothing was connected.
        SpecError: Robot and policy do not fit; found before the robot is connected.
        CallerError: No instruction (the robot is disconnected again). Everything that happens later is in the result.
    """
    config = config or LoopConfig()
    require_same(policy.spec.observation, robot.observation_spec, what="the policy's and the robot's observation")
    require_same(policy.spec.action, robot.action_spec, what="the policy's and the robot's action")
    if not math.isclose(policy.spec.timing.rate_hz, robot.rate_hz, rel_tol=1e-3):
        raise SpecError(f"the policy was made for {policy.spec.timing.rate_hz} steps in a second, the robot has {robot.rate_hz}.")
    limiter = CommandLimiter(robot.action_spec, config.max_change)
    failsafe = failsafe or Failsafe(config.failsafe)
    failsafe.require_free()
    _prepare(policy, instruction if instruction is not None else getattr(robot, "instruction", None))
    loop = _Loop(
        robot=robot,
        policy=policy,
        config=config,
        limiter=limiter,
        failsafe=failsafe,
        buttons=buttons or StopButtons(),
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
        stop = _Stop("interrupted", _INTERRUPTED)
    finally:
        failures = loop.failures + _let_go(robot, loop.limiter, hold=stop.reason != "done")
    return LoopResult(stopped_by=stop.reason, message=f"{stop}{failures}", verdict=failsafe.verdict, statistics=loop.statistics)


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
    failsafe: Failsafe
    buttons: StopButtons
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
    failures: str = ""
    """What failed after the end."""
    interrupted: bool = False
    """Ctrl-C was pressed once."""
    commanded: int = -1
    """The last step that was gone through to its command."""
    waited_s: float = 0.0
    """Time since the last verdict that was spent waiting for an inline policy."""

    def __post_init__(self) -> None:
        timing = self.policy.spec.timing
        self.dt_s = 1.0 / (self.config.rate_hz or timing.rate_hz)
        self.replan_steps = self.config.replan_steps or timing.execute_steps
        self.live_steps = min(self.config.time_to_live_steps or timing.horizon, timing.horizon)
        limits = self.failsafe.config
        self.answer_s = timing.horizon * self.dt_s if limits.answer_s is None else limits.answer_s
        self.schedule = ChunkSchedule(self.policy.spec, self.config.schedule)
        drawn = bool(getattr(self.robot, "virtual_time", False))
        self.observations = ObservationWatch(self.policy.spec.observation, limits, noiseless=drawn)
        self.clamps = ClampWatch(self.robot.action_spec.dim, limits)
        self.told: dict[int, int] = {}  # Step of an observation -> how many actions were on their way, as the policy was told.
        # Answers of late came so many steps after their observation; from a thread, one at least.
        self.delays = collections.deque([int(self.config.inference == "thread")], maxlen=_DELAYS_KEPT)
        self.observed_s: dict[int, float] = {}  # Step -> clock, of the observations whose chunks may still be in use.
        self.asked_s: float | None = None  # Since when an answer is awaited, in the loop's time.
        names = self.robot.action_spec.names
        self.terminate = names.index("terminate") if "terminate" in names else None
        self.judge = Judge(self.failsafe, self.statistics)
        self.rest = ComingToRest(self.robot, self.judge, self.dt_s)

    def run(self) -> None:
        """Steps until a `_Stop`."""
        try:
            inference = self.make_inference(self.policy, self.clock)
        except Exception as error:
            raise _Stop("fault", f"inference cannot begin ({_text(error)})") from error
        self.statistics.started_s = self.clock()
        self.judge.begin(self.now(0), safe_pose=callable(getattr(self.robot, "safe_action", None)), step_s=self.dt_s)
        step = 0
        try:
            while True:
                self.statistics.ended_s = self.clock()
                if self.config.max_steps is not None and step >= self.config.max_steps and not self.judge.must_end:
                    raise _Stop("steps", f"{self.config.max_steps} steps done")
                try:
                    if step > self.commanded:  # Else what came between was no earlier than the wait.
                        step = self.step(step, inference)
                    step = self.wait(step) if self.config.realtime else step + 1
                except KeyboardInterrupt:
                    if self.interrupted:
                        raise
                    self.interrupted = True
                    self.judge.set(Cause.OPERATOR_STOP, _INTERRUPTED)
                except _Stop:
                    raise
                except Exception as error:  # Nothing is expected here; what fails once may still come to rest, what fails twice may not.
                    if Cause.LOOP_FAULT in self.judge.active:
                        raise _Stop("fault", f"{self.judge.words(Cause.LOOP_FAULT)}, and again ({_text(error)})") from error
                    self.judge.set(Cause.LOOP_FAULT, f"the loop itself failed ({_text(error)})")
        finally:
            self.statistics.ended_s = self.clock()
            try:
                inference.close()
            except Exception as error:
                self.failures = f"; closing inference failed ({_text(error)})"

    def step(self, step: int, inference: Inference) -> int:
        """One control step; returns its number, which is a later one when inline inference or a slow camera took longer than a period."""
        self.heed_operator()
        if not self.judge.must_end:
            step = self.converse(step, inference)
            self.heed_operator()  # Inline inference takes its time.
        due = self.due(step)
        proposed = self.propose(due)
        self.judge_step(step, proposed)
        limited = self.command(proposed)
        if limited is not None:
            self.send(limited)
        self.commanded = step
        self.statistics.ticks += 1
        if due is not None and self.judge.state is State.RUN:
            observed = self.observed_s.get(due.observed_at)
            if observed is not None and (age_s := self.clock() - observed) >= 0:  # Not where the clock went back meanwhile.
                self.statistics.ages_s.append(age_s)
        if self.on_step is not None and Cause.LOOP_FAULT not in self.judge.active:
            self.on_step(step, self.statistics)
        self.stop_if_over(limited)
        return step

    def now(self, step: int) -> float:
        """The loop's time: the clock's, or that of the steps where it does not keep the clock."""
        return self.clock() if self.config.realtime else step * self.dt_s

    def present(self, step: int) -> int:
        """The step that the clock says, at least `step`."""
        if not self.config.realtime:
            return step
        # The millionth, here and in `wait`, forgives the rounding of the division.
        return max(step, math.floor((self.clock() - self.statistics.started_s) / self.dt_s + 1e-6))

    def converse(self, step: int, inference: Inference) -> int:
        """Take what the policy answered and ask it anew, if it is time; returns the step that it is then."""
        self.take(inference.poll(), step)
        is_idle_in_hold = self.judge.state is State.HOLD and self.asked_s is None and not self.failsafe.is_about_to_run
        if step >= self.next_ask or is_idle_in_hold:
            asked = self.ask(step, inference)
            present = self.present(step)
            self.statistics.missed_deadlines += present - step
            step = present
            if asked:
                self.take(inference.poll(), step)  # An inline answer is there already; a thread's usually comes later.
        return step

    def ask(self, step: int, inference: Inference) -> bool:
        """Observe and hand over, if the policy is idle and what is seen is sound."""
        try:
            observed = self.clock()
            observation: Observation = self.robot.get_observation()
        except Exception as error:
            self.judge.set(Cause.ROBOT_LOST, f"no observation ({_text(error)})")
            return False
        finding = self.observations.look(observation, now_s=self.now(step), clock_s=self.clock())
        for cause in _OF_OBSERVATIONS:
            self.judge.set(cause, finding.error if finding is not None and finding.cause is cause else "")
        if finding is not None:
            self.statistics.bad_observations += 1
            self.last_error = finding.error
            return False
        committed = self.on_its_way(step)
        if committed is not None:
            observation = dataclasses.replace(observation, committed=committed)
        before = self.clock()
        if not inference.submit(observation, self.instruction, step):
            return False
        if self.config.inference == "inline":
            self.waited_s += self.clock() - before
        self.asked_s = self.now(step)
        self.observed_s[step], self.told[step] = observed, 0 if committed is None else len(committed)
        for old in [key for key in self.observed_s if key < step - 2 * self.policy.spec.timing.horizon]:
            del self.observed_s[old]
            self.told.pop(old, None)
        self.next_ask = step + self.replan_steps
        return True

    def on_its_way(self, step: int) -> NDArray[np.float32] | None:
        """float32 (d, A): what will be commanded until an answer to an observation of this step is there, limited as it will be; None where the
        policy is not told, and before there is anything to command.

        A loop that asks in a thread goes by the longest delay of late: an answer that comes sooner waits. One that waits for its answers goes by
        the shortest, since it can command nothing that it has told in place of an answer that is there already. In HOLD these are holds, and so
        is what comes after a step for which nothing is due: when it will run again nobody knows, and what it was told of those steps may be wrong.
        """
        inline = self.config.inference == "inline"
        delay = min(min(self.delays) if inline else max(self.delays), self.policy.spec.timing.committed_steps)
        ahead = copy.copy(self.limiter)  # It remembers the command before; the loop's own must not hear of commands that are not sent yet.
        holds = inline or not (self.judge.state is State.RUN or self.failsafe.is_about_to_run)
        commands = []
        for i in range(delay):
            due = None if holds else self.schedule.at(step + i)
            holds = due is None or step + i - due.observed_at >= self.live_steps
            due = None if holds else due
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
        self.asked_s = None
        if answer.finished_s >= answer.submitted_s:  # Not where the clock went back meanwhile.
            self.statistics.latencies_s.append(answer.finished_s - answer.submitted_s)
        told = self.told.get(answer.observed_at, 0)
        self.delays.append(step - answer.observed_at)
        verdict, error = "bad", answer.error or "the policy answered with nothing"
        if answer.chunk is not None:
            try:
                at_once = self.judge.state is State.HOLD  # What runs again shall not do so with what was decided before the trouble.
                verdict = self.schedule.add(answer.chunk.actions, observed_at=answer.observed_at, now=step, committed=told, at_once=at_once)
                if verdict == "late":
                    most = self.policy.spec.timing.max_delay_steps
                    error = f"chunk of step {answer.observed_at} came at step {step}, later than the {most} steps the policy was made for"
            except Exception as failure:  # A hostile chunk may be anything: no array, no numbers, no attribute.
                error = _text(failure)
        self.failsafe.note_chunk(verdict == "used")
        if verdict == "used":
            self.statistics.chunks += 1
            self.statistics.misjudged_chunks += bool(self.policy.spec.timing.committed_steps) and step - answer.observed_at > told
            self.bad_in_a_row, self.last_error = 0, ""
            self.judge.set(Cause.CHUNKS_REJECTED, "")
            return
        self.next_ask = min(self.next_ask, step + 1)  # Ask again soon.
        self.statistics.late_chunks += verdict == "late"
        self.statistics.bad_chunks += verdict != "late"
        self.bad_in_a_row += 1
        self.last_error = error
        if self.bad_in_a_row >= self.failsafe.config.max_bad_chunks:
            self.judge.set(Cause.CHUNKS_REJECTED, f"{self.bad_in_a_row} unusable answers in a row, the last: {error}")

    def due(self, step: int) -> DueAction | None:
        """What the schedule has for this step, unless it has outlived its time: by the steps, and by the clock if the loop was held up within one."""
        due = self.schedule.at(step)
        if due is None:
            return None
        observed = self.observed_s.get(due.observed_at) if self.config.realtime else None
        if step - due.observed_at >= self.live_steps or (observed is not None and self.clock() - observed >= self.live_steps * self.dt_s):
            self.statistics.expired += 1
            return None
        return due

    def propose(self, due: DueAction | None) -> tuple[Limited, CommandLimiter] | None:
        """The due action as it would be commanded, and the limiter as it would be then; None when nothing valid is due."""
        if due is None:
            return None
        after = copy.copy(self.limiter)
        try:
            return after.limit(due.action), after
        except ActionError as error:
            self.last_error = _text(error)
            return None

    def heed_operator(self) -> None:
        """What was pressed, before and after what takes time."""
        pressed = self.buttons.pressed
        for cause in (Cause.OPERATOR_STOP, Cause.EMERGENCY_STOP):
            self.judge.set(cause, f"the operator pressed {cause.value}" if cause in pressed else "")
        if self.interrupted:
            self.judge.set(Cause.OPERATOR_STOP, _INTERRUPTED)

    def judge_step(self, step: int, proposed: tuple[Limited, CommandLimiter] | None) -> None:
        """Collect what is wrong in this step; the verdict on it."""
        now, judge = self.now(step), self.judge
        words = ""
        if proposed is None:
            words = f"no valid action for {self.holds_in_a_row} steps"
            words += f", the last error: {self.last_error}" if self.last_error else ""
        judge.replace(Cause.NO_ACTION, words)
        late_s = 0.0 if self.asked_s is None else now - self.asked_s
        judge.set(Cause.INFERENCE_LOST, f"no answer for {late_s:.2f} s" if late_s > self.answer_s + _MOMENT_S else "")
        # In HOLD the same actions go on being judged, so that it is known whether they have become better; there, a jump is none yet.
        clamped = 0 if proposed is None else proposed[0].clipped + (proposed[0].slowed if judge.state is State.RUN else 0)
        judge.set(Cause.CLAMPED, self.clamps.add(clamped))
        judge.decide(now, self.waited_s)
        self.waited_s = 0.0

    def command(self, proposed: tuple[Limited, CommandLimiter] | None) -> Limited | None:
        """The command of the state; None when there is nothing yet to hold."""
        if self.judge.state is State.RUN and proposed is not None:
            limited, self.limiter = proposed
            self.holds_in_a_row = 0
            self.statistics.clipped += limited.clipped
            self.statistics.slowed += limited.slowed
            return limited
        still = self.limiter.hold() if self.judge.state <= State.HOLD else self.rest.command(self.limiter)
        if self.rest.is_over:
            raise _Stop(*self.judge.end(self.rest.remark))
        self.holds_in_a_row += 1
        self.statistics.holds += 1
        return still

    def send(self, limited: Limited) -> None:
        """Hand the command to the robot."""
        try:
            self.robot.send_action(limited.command)
        except Exception as error:
            refused, verdict = f"command refused ({_text(error)})", self.judge.verdict
            if verdict.state >= State.RAMP:  # Nothing can be brought to rest that does not listen.
                raise _Stop(*self.judge.end("" if verdict.cause is Cause.ROBOT_LOST else f"; {refused}")) from error
            self.judge.set(Cause.ROBOT_LOST, refused)
        else:
            self.statistics.sent += 1

    def stop_if_over(self, limited: Limited | None) -> None:
        """The ends that are seen after a command."""
        if self.judge.must_end:
            return
        acts = self.judge.state is State.RUN and self.terminate is not None
        if acts and limited is not None and limited.command[self.terminate] >= 0.5:
            raise _Stop("terminate", "the policy commanded terminate")
        if getattr(self.robot, "done", False):
            raise _Stop("done", "the robot reports the end of the task")

    def wait(self, step: int) -> int:
        """Sleep until the next step that has not begun yet; its number. A step that has begun is over: it is skipped and counted."""
        now, start = self.clock(), self.statistics.started_s
        following = max(step + 1, math.ceil((now - start) / self.dt_s - 1e-6))
        self.statistics.missed_deadlines += following - step - 1
        remaining = start + following * self.dt_s - now
        if remaining > 2.5 * self.dt_s:  # The clock went back: the steps go on where they were, from now.
            self.statistics.started_s -= remaining - self.dt_s
            remaining = self.dt_s
        if remaining > 0:
            self.sleep(remaining)
        return following
