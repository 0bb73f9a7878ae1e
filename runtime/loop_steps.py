"""The steps of a run of the control loop: when they happen, what is judged, and what is sent (`runtime.control_loop` says how it goes)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlet.errors import ActionError
from actlet.protocols import Policy, Robot
from runtime.chunk_schedule import DueAction
from runtime.coming_to_rest import ComingToRest
from runtime.command_ticks import CommandTicks
from runtime.conversation import Conversation
from runtime.failsafe import Cause, Failsafe, State, StopButtons, Verdict
from runtime.inference import Inference
from runtime.journal import Journal
from runtime.judge import Judge
from runtime.limits import CommandLimiter, Limited
from runtime.loop_config import LoopConfig, StopReason
from runtime.loop_statistics import LoopStatistics
from runtime.watch import ClampWatch

__all__ = ["INTERRUPTED", "LoopSteps", "Stop"]

INTERRUPTED = "interrupted by the user"
_BRISK_S = 2.5e-3
"""In shorter periods a command is sent first, as the plan of the step before has it, and what takes longer is done in the rest of its period."""
_MOMENT = 1e-6
"""Forgives the rounding of divisions of clock readings, in ticks."""
_EARLY_S = 1e-6
"""Forgives the rounding of differences of clock readings."""


class Stop(Exception):
    """Ends the loop from inside a step; never leaves `runtime.control_loop`."""

    def __init__(self, reason: StopReason, message: str) -> None:
        super().__init__(message)
        self.reason: StopReason = reason


class LoopSteps:
    """One run.

    Args:
        robot: What moves; it is connected.
        policy: What decides.
        inference: Where it runs.
        instruction: What to do.
        config: How to run.
        limiter: The gate of a step's command.
        ticks: Makes the commands between two steps, None where there is one a step.
        failsafe: Whether it may move.
        buttons: What an operator presses.
        statistics: What is counted.
        clock: Monotonic seconds.
        sleep: Waits that many seconds.
        on_step: Called after every step.
        journal: Writes down what happened.
    """

    def __init__(
        self,
        *,
        robot: Robot,
        policy: Policy,
        inference: Inference,
        instruction: str,
        config: LoopConfig,
        limiter: CommandLimiter,
        ticks: CommandTicks | None,
        failsafe: Failsafe,
        buttons: StopButtons,
        statistics: LoopStatistics,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
        on_step: Callable[[int, LoopStatistics], None] | None,
        journal: Journal | None,
    ) -> None:
        self._robot, self._config, self._statistics, self._buttons, self._journal = robot, config, statistics, buttons, journal
        self._clock, self._sleep, self._on_step, self._ticks = clock, sleep, on_step, ticks
        self._dt_s = 1.0 / (config.rate_hz or policy.spec.timing.rate_hz)
        self._tick_s = self._dt_s if ticks is None else ticks.tick_s
        self._brisk = ticks is not None and self._tick_s < _BRISK_S
        # An answer that is waited for is for the very step at which it was asked; and where time passes with commands alone, what is seen after one is
        # the next step's.
        self._asks_first = config.inference == "inline" or bool(getattr(robot, "virtual_time", False))
        self._judge = Judge(failsafe, statistics)
        self._talk = Conversation(
            robot=robot,
            policy=policy,
            inference=inference,
            instruction=instruction,
            config=config,
            judge=self._judge,
            statistics=statistics,
            clock=clock,
            dt_s=self._dt_s,
            journal=journal,
        )
        self._clamps = ClampWatch(robot.action_spec.dim, failsafe.config)
        self._rest = ComingToRest(robot, self._judge, self._dt_s, ticks)
        names = robot.action_spec.names
        self._terminate = names.index("terminate") if "terminate" in names else None
        self._limiter, self._before = limiter, limiter
        self._started_s = self._woke_s = 0.0
        self._interrupted = False  # Ctrl-C was pressed once.
        self._commanded = -1  # The last step that was gone through to its command.
        self._tick = 0  # The next one to be run.
        self._due: DueAction | None = None
        self._coming: tuple[int, DueAction | None] = (-1, None)  # A step that begins with the next tick, and what is due at it.
        self._planned = False  # There is a command for the ticks of this step.
        self._known_to = 0  # The step up to which the plan has actions of the policy.
        self._limited = 0  # Values that were clipped or slowed in it.
        self._holds_in_a_row = 0
        self._used = -1  # Step of the newest observation that a command was made of.
        self._told: Verdict | None = None  # The last one that the journal was told of.

    def run(self) -> None:
        """Steps until a `Stop`."""
        self._started_s = self._woke_s = self._statistics.started_s = self._clock()
        self._judge.begin(self._now(0), safe_pose=callable(getattr(self._robot, "safe_action", None)), step_s=self._dt_s)
        step = 0
        while True:
            self._statistics.ended_s = self._clock()
            if self._config.max_steps is not None and step >= self._config.max_steps and not self._judge.must_end:
                raise Stop("steps", f"{self._config.max_steps} steps done")
            try:
                if step > self._commanded:  # Else what came between was no earlier than the wait.
                    step = self._step(step)
                step = self._between(step)
            except KeyboardInterrupt:
                if self._interrupted or Cause.OPERATOR_STOP in self._buttons.pressed:
                    raise
                self._interrupted = True
                self._judge.set(Cause.OPERATOR_STOP, INTERRUPTED)
            except Stop:
                raise
            except Exception as error:  # Nothing is expected here; what fails once may still come to rest, what fails twice may not.
                words = f"{type(error).__name__}: {error}"
                if Cause.LOOP_FAULT in self._judge.active:
                    raise Stop("fault", f"{self._judge.words(Cause.LOOP_FAULT)}, and again ({words})") from error
                self._judge.set(Cause.LOOP_FAULT, f"the loop itself failed ({words})")

    def hold_still(self) -> None:
        """After the last step: come to rest, as the limits allow.

        Raises:
            Exception: What the robot raised, a Ctrl-C among it.
        """
        if self._limiter.last is None or (still := self._limiter.hold()) is None:
            return
        if self._ticks is None:
            self._robot.send_action(still.command)
            return
        self._plan(self._ticks.step_of(self._tick), [still.command], holds=True)
        due_s = self._started_s + self._tick * self._tick_s - self._clock()
        if self._config.realtime and due_s > 0:  # Not before its time.
            self._sleep(min(due_s, self._tick_s))
        for _ in range(1 + math.ceil(self._ticks.stopping_s / self._tick_s)):
            self._robot.send_action(self._ticks.at(self._tick))  # type: ignore[arg-type]  # Ticks are in doubles.
            self._tick += 1
            if self._ticks.at_rest:
                break
            if self._config.realtime:
                self._sleep(self._tick_s)

    def _step(self, step: int) -> int:
        """One control step to its first command; returns its number, which is a later one when an inline policy or a slow camera took longer than a
        period."""
        is_sent = self._brisk and not (self._buttons.pressed or self._interrupted) and self._send_as_planned(step)
        self._heed_operator()
        if not self._judge.must_end:
            self._talk.take(step, self._now(step))
            if self._asks_first:
                step = self._ask_and_wait(step)
                self._talk.look_along(step, self._now(step))
                self._heed_operator()
        self._before = self._limiter
        self._due = self._talk.due(step)
        proposed = self._propose(step)
        self._judge_step(step, proposed)
        limited = self._command(proposed)
        self._commanded = step
        self._statistics.ticks += 1
        self._planned = limited is not None
        if limited is not None:
            self._limited = limited.clipped + limited.slowed
            if self._ticks is not None:
                self._plan_ahead(step, limited)
        if self._ticks is not None:
            passed = max(0, self._ticks.first_tick(step) - self._tick)  # While an inline policy computed.
            self._statistics.missed_commands += passed
            self._tick += passed
        if not is_sent:
            self._send(step, None if limited is None else limited.command)
        if not self._asks_first and not self._judge.must_end and self._talk.is_time_to_ask(step):
            self._talk.ask(step, self._now(step), self._before)
        if not self._asks_first:
            self._talk.look_along(step, self._now(step))
        if self._on_step is not None and Cause.LOOP_FAULT not in self._judge.active:
            self._on_step(step, self._statistics)
        self._stop_if_over(limited)
        return step

    def _between(self, step: int) -> int:
        """What happens until the next step that has not begun yet: ticks, if there are any, and waiting. Returns its number."""
        if self._ticks is None:
            return self._wait(step) if self._config.realtime else step + 1
        end = self._ticks.first_tick(step + 1)
        self._prepare(step)
        while True:
            self._tick = self._wait(self._tick - 1) if self._config.realtime else self._tick
            if self._tick >= end:
                following = self._ticks.step_of(self._tick)
                self._statistics.missed_deadlines += following - step - 1
                return following
            self._heed_between(step)
            if self._brisk:
                self._send(step, None)
            self._use_answer(step)
            if not self._brisk:
                self._send(step, None)
            self._prepare(step)

    def _send_as_planned(self, step: int) -> bool:
        """The first command of a step before it is judged, if all is well and the step before knew what is due; whether it was sent."""
        ticks = self._ticks
        if ticks is None or not self._planned or step >= self._known_to or self._tick != ticks.first_tick(step):
            return False
        if self._judge.state is not State.RUN or self._judge.active:
            return False
        prepared, due = self._coming
        if prepared != step:
            due = self._talk.planned(step)
        if due is None or self._talk.has_outlived(due, step) or self._talk.is_held_back(due):
            return False
        self._due = due
        self._send(step, None)
        return True

    def _prepare(self, step: int) -> None:
        """After a command, in the rest of its period: the next one, as it will be if nothing comes between."""
        if self._ticks is None or not self._brisk or not self._planned:
            return
        self._ticks.prepare(self._tick)
        if self._tick >= self._ticks.first_tick(step + 1) and step + 1 < self._known_to:
            self._coming = step + 1, self._talk.planned(step + 1)

    def _heed_between(self, step: int) -> None:
        """A button, or a robot that does not listen, counts between two steps too."""
        if self._judge.state < State.ESTOP and (self._buttons.pressed or (self._judge.must_end and self._judge.state < State.RAMP)):
            self._heed_operator()
            self._judge.decide(self._now(step), 0.0, step=False)
            # RAMP begins with the next step, which fades what moves; an emergency does not wait for it.
            if self._judge.state is State.ESTOP:
                if (still := copy.copy(self._before).hold()) is not None:
                    self._plan(step, [still.command], holds=True)
                self._rest.tell_emergency()

    def _use_answer(self, step: int) -> None:
        """A new chunk counts between two steps too."""
        runs = self._judge.state is State.RUN
        # What holds can make something of it at the next step; a chunk that is counted from its arrival would lose its first action else.
        first = step if runs or self._config.schedule.rule != "open" else step + 1
        if self._judge.must_end or not self._talk.take(first, self._now(step)) or not runs:
            return
        due = self._talk.due(step)
        if due is None or not self._planned or self._talk.is_held_back(due):
            return  # The plan of the step goes on; the next one judges it.
        self._due = due
        limiter = copy.copy(self._before)
        try:
            limited = limiter.limit(self._talk.wanted(due, limiter))
        except ActionError:
            return
        self._limiter = limiter
        self._plan_ahead(step, limited)

    def _plan_ahead(self, step: int, limited: Limited) -> None:
        """Tell the ticks what is commanded in this step and, as it looks now, after it."""
        assert self._ticks is not None
        commands, self._known_to = [limited.command], step
        if self._judge.state is State.RUN:
            more, known = self._talk.following(step + 1, self._ticks.steps_ahead, self._limiter)
            commands += more
            self._known_to += 1 + known
        self._plan(step, commands, holds=self._judge.state not in (State.RUN, State.SAFE_POSE))

    def _plan(self, step: int, commands: Sequence[NDArray[np.float32]], *, holds: bool) -> None:
        assert self._ticks is not None
        self._ticks.plan(step, [command.tolist() for command in commands], holds=holds)
        self._limiter.stand_at(self._ticks.standing)

    def _now(self, step: int) -> float:
        """The loop's time: the clock's, or that of the steps where it does not keep the clock."""
        return self._clock() if self._config.realtime else step * self._dt_s

    def _ask_and_wait(self, step: int) -> int:
        """Ask the policy before the step is judged, if it is time; returns the step that it is then."""
        if not self._talk.is_time_to_ask(step):
            return step
        asked = self._talk.ask(step, self._now(step), self._limiter)
        if self._config.realtime:
            present = max(step, math.floor((self._clock() - self._started_s) / self._dt_s + _MOMENT))
            self._statistics.missed_deadlines += present - step
            if self._ticks is None:
                self._statistics.missed_commands += present - step
            step = present
        if asked:
            self._talk.take(step, self._now(step))
        return step

    def _propose(self, step: int) -> tuple[Limited, CommandLimiter] | None:
        """The due action as it would be commanded, and the limiter as it would be then; None when nothing valid is due."""
        if self._due is None:
            return None
        after = copy.copy(self._limiter)
        try:
            return after.limit(self._talk.wanted(self._due, after)), after
        except ActionError as error:
            self._talk.last_error = f"{type(error).__name__}: {error}"
            return None

    def _heed_operator(self) -> None:
        """What was pressed, before and after what takes time."""
        pressed = self._buttons.pressed
        for cause in (Cause.OPERATOR_STOP, Cause.EMERGENCY_STOP):
            self._judge.set(cause, f"the operator pressed {cause.value}" if cause in pressed else "")
        if self._interrupted:
            self._judge.set(Cause.OPERATOR_STOP, INTERRUPTED)

    def _judge_step(self, step: int, proposed: tuple[Limited, CommandLimiter] | None) -> None:
        """Collect what is wrong in this step; the verdict on it."""
        now, judge, talk = self._now(step), self._judge, self._talk
        words = ""
        if proposed is None:
            words = "no valid action" + (f" for {self._holds_in_a_row} steps" if self._holds_in_a_row else "")
            words += f", the last error: {talk.last_error}" if talk.last_error else ""
        judge.replace(Cause.NO_ACTION, words)
        late_s = talk.late_s(now)
        judge.set(Cause.INFERENCE_LOST, f"no answer for {late_s:.2f} s" if late_s else "")
        unsure = self._due is not None and talk.is_unsure(self._due)
        self._statistics.unsure += unsure
        if self._config.unsure == "hold":
            sure = 1.0 if self._due is None else self._due.confidence
            judge.set(Cause.UNSURE, f"confidence {sure:.2f}, at least {self._config.least_confidence:g} is wanted" if unsure else "")
        # In HOLD the same actions go on being judged, so that it is known whether they have become better; there, a jump is none yet.
        clamped = 0 if proposed is None else proposed[0].clipped + (proposed[0].slowed if judge.state is State.RUN else 0)
        judge.set(Cause.CLAMPED, self._clamps.add(clamped))
        verdict = judge.decide(now, talk.waited_s)
        talk.waited_s = 0.0
        if self._journal is not None and verdict is not self._told:
            self._told = verdict
            try:
                self._journal.judged(step, now, verdict, "" if verdict.cause is None else judge.words(verdict.cause))
            except Exception:
                self._statistics.journal_errors += 1

    def _command(self, proposed: tuple[Limited, CommandLimiter] | None) -> Limited | None:
        """The command of the state; None when there is nothing yet to hold."""
        if self._judge.state is State.RUN and proposed is not None:
            limited, self._limiter = proposed
            self._holds_in_a_row = 0
            self._statistics.clipped += limited.clipped
            self._statistics.slowed += limited.slowed
            return limited
        limiter = copy.copy(self._limiter)  # The one of before stays as it was.
        still = limiter.hold() if self._judge.state <= State.HOLD else self._rest.command(limiter)
        self._limiter = limiter
        if self._rest.is_over:
            raise Stop(*self._judge.end(self._rest.remark))
        self._holds_in_a_row += 1
        self._statistics.holds += 1
        return still

    def _send(self, step: int, command: NDArray[np.float32] | None) -> None:
        """Hand a tick's command to the robot, if there is one: what the ticks make of the plan, or this step's."""
        ticks, tick, counted = self._ticks, self._tick, self._statistics
        sent: NDArray[Any] | None = command
        if ticks is not None:
            sent = ticks.at(tick) if self._planned else None
            self._tick = tick + 1
        counted.commands += 1
        if sent is None:
            return
        try:
            self._robot.send_action(sent)
        except KeyboardInterrupt:
            self._take_back()
            raise
        except Exception as error:
            self._take_back()
            refused, verdict = f"command refused ({type(error).__name__}: {error})", self._judge.verdict
            if verdict.state >= State.RAMP:  # Nothing can be brought to rest that does not listen.
                raise Stop(*self._judge.end("" if verdict.cause is Cause.ROBOT_LOST else f"; {refused}")) from error
            self._judge.set(Cause.ROBOT_LOST, refused)
        else:
            counted.sent += 1
        if self._config.realtime and (took_s := self._clock() - self._woke_s) >= 0:
            counted.tick_s.append(took_s)
        due = self._due if self._judge.state is State.RUN else None
        if due is not None and (seen_s := self._talk.seen_s(due)) is not None:
            now_s = self._clock()
            if now_s >= seen_s:  # Not where the clock went back meanwhile.
                if ticks is None or tick == ticks.first_tick(step) or command is not None:
                    counted.ages_s.append(now_s - seen_s)
                if due.observed_at > self._used:
                    self._used = due.observed_at
                    counted.reactions_s.append(now_s - seen_s)
        if self._journal is not None:
            try:
                self._journal.commanded(
                    step, step if ticks is None else tick, self._now(step), None if due is None else due.action, sent, self._limited
                )
            except Exception:
                counted.journal_errors += 1

    def _take_back(self) -> None:
        """A command that did not arrive: what comes next goes on from the one before. One that arrived all the same is followed by its like: slower than
        might be, not faster, but with an acceleration that nobody limits."""
        if self._ticks is not None:
            self._ticks.take_back()
        else:
            self._limiter = copy.copy(self._before)

    def _stop_if_over(self, limited: Limited | None) -> None:
        """The ends that are seen after a command."""
        if self._judge.must_end:
            return
        acts = self._judge.state is State.RUN and self._terminate is not None
        if acts and limited is not None and limited.command[self._terminate] >= 0.5:
            raise Stop("terminate", "the policy commanded terminate")
        if getattr(self._robot, "done", False):
            raise Stop("done", "the robot reports the end of the task")

    def _wait(self, last: int) -> int:
        """Sleep until the next tick after the last one that has not begun yet; its number. A tick that has begun is over: it is skipped and counted."""
        now, counted = self._clock(), self._statistics
        following = max(last + 1, math.ceil((now - self._started_s) / self._tick_s - _MOMENT))
        counted.missed_commands += following - last - 1
        if self._ticks is None:
            counted.missed_deadlines += following - last - 1
        remaining = self._started_s + following * self._tick_s - now
        if remaining > 2.5 * self._tick_s:  # The clock went back: the steps go on where they were, from now.
            self._started_s -= remaining - self._tick_s
            remaining = self._tick_s
        if remaining > 0:
            self._sleep(remaining)
            self._woke_s = self._clock()
            if (late_s := self._woke_s - now - remaining) > -_EARLY_S:  # Not where the clock went back meanwhile.
                counted.lateness_s.append(late_s)
        else:
            self._woke_s = now
        return following
