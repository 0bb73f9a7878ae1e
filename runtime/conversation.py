"""The loop's side of the talk with the policy: what it is shown and when, what it is told, and what of its answers is used.

    take       a finished chunk is checked and goes into the schedule
    ask        if a new chunk is due and the policy is idle: robot.get_observation(), looked at (`runtime.watch`) -> inference
    due        the schedule's action for a step, unless it is older than its time to live

Nothing here moves the robot, and what goes wrong is told to the `Judge`.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from actlet.errors import ActionError
from actlet.protocols import Observation, Policy, Robot
from runtime.chunk_schedule import ChunkSchedule, DueAction
from runtime.failsafe import Cause, State
from runtime.inference import Answer, Inference
from runtime.journal import NOT_ASKED, Journal
from runtime.judge import Judge
from runtime.limits import CommandLimiter
from runtime.loop_config import LoopConfig
from runtime.loop_statistics import LoopStatistics
from runtime.watch import ObservationWatch

__all__ = ["Conversation"]

_MOMENT_S = 1e-6
"""Forgives the rounding of differences of clock readings."""
_DELAYS_KEPT = 8
"""Answers of late by whose delays the next one is judged."""
_OF_OBSERVATIONS = (Cause.BAD_OBSERVATION, Cause.FROZEN_FRAME, Cause.STALE_FRAME)


class Conversation:
    """One run's questions and answers.

    Args:
        robot: What is looked at.
        policy: Who answers; here it only says what it was made for.
        inference: Where it runs.
        instruction: What to do.
        config: How the loop runs.
        judge: Is told what is wrong.
        statistics: Where it is counted.
        clock: Monotonic seconds.
        dt_s: Time of a step.
        journal: Writes down what was seen and answered.
    """

    def __init__(
        self,
        *,
        robot: Robot,
        policy: Policy,
        inference: Inference,
        instruction: str,
        config: LoopConfig,
        judge: Judge,
        statistics: LoopStatistics,
        clock: Callable[[], float],
        dt_s: float,
        journal: Journal | None,
    ) -> None:
        self._robot, self._inference, self._instruction, self._config = robot, inference, instruction, config
        self._judge, self._statistics, self._clock, self._journal = judge, statistics, clock, journal
        self._timing, limits = policy.spec.timing, judge.failsafe.config
        self._replan_steps = config.replan_steps or self._timing.execute_steps
        self._live_steps = min(config.time_to_live_steps or self._timing.horizon, self._timing.horizon)
        self._live_s = self._live_steps * dt_s
        self._answer_s = self._timing.horizon * dt_s if limits.answer_s is None else limits.answer_s
        self._schedule = ChunkSchedule(policy.spec, config.schedule, live_steps=self._live_steps)
        drawn = bool(getattr(robot, "virtual_time", False))
        self._watch = ObservationWatch(policy.spec.observation, limits, noiseless=drawn)
        self._next_ask = 0
        self._told: dict[int, int] = {}  # Step of an observation -> how many actions were on their way, as the policy was told.
        # Answers of late came so many steps after their observation; from a thread, one at least.
        self._delays = collections.deque([int(config.inference == "thread")], maxlen=_DELAYS_KEPT)
        self._observed_s: dict[int, float] = {}  # Step -> clock, of the observations whose chunks may still be in use.
        self._asked_s: float | None = None  # Since when an answer is awaited, in the loop's time.
        self._bad_in_a_row = 0
        self._seen_at = self._expired_at = -1
        self.waited_s = 0.0
        """Time that was spent waiting for an inline policy; the loop sets it back."""
        self.last_error = ""
        """What was wrong with the newest observation or answer, empty once one was used."""

    def take(self, step: int, now_s: float) -> bool:
        """Take what the policy answered since, if anything, for the step that is about to be commanded; whether there is a new chunk."""
        answer = self._inference.poll()
        return answer is not None and self._check(answer, step, now_s)

    def is_time_to_ask(self, step: int) -> bool:
        """The schedule wants a new chunk, or it is HOLD and the policy is idle."""
        if step >= self._next_ask:
            return True
        return self._judge.state is State.HOLD and self._asked_s is None and not self._judge.failsafe.is_about_to_run

    def ask(self, step: int, now_s: float, limiter: CommandLimiter) -> bool:
        """Observe and hand over, if the policy is idle and what is seen is sound; whether it was asked.

        Args:
            step: The present one.
            now_s: The loop's time.
            limiter: As it is before the command of this step; it is not touched.
        """
        try:
            observed = self._clock()
            observation: Observation = self._robot.get_observation()
        except Exception as error:
            self._judge.set(Cause.ROBOT_LOST, f"no observation ({type(error).__name__}: {error})")
            return False
        finding = self._watch.look(observation, now_s=now_s, clock_s=self._clock())
        for cause in _OF_OBSERVATIONS:
            self._judge.set(cause, finding.error if finding is not None and finding.cause is cause else "")
        if finding is not None:
            self._statistics.bad_observations += 1
            self.last_error = finding.error
            self._note_observed(step, now_s, observation, finding.error)
            return False
        committed = self._on_its_way(step, limiter)
        if committed is not None:
            observation = dataclasses.replace(observation, committed=committed)
        before = self._clock()
        if not self._inference.submit(observation, self._instruction, step):
            return False
        if self._config.inference == "inline":
            self.waited_s += self._clock() - before
        self._asked_s = now_s
        self._observed_s[step], self._told[step] = observed, 0 if committed is None else len(committed)
        for old in [key for key in self._observed_s if key < step - 2 * self._timing.horizon]:
            del self._observed_s[old]
            self._told.pop(old, None)
        self._next_ask = step + (self._timing.horizon if self._config.schedule.rule == "open" else self._replan_steps)
        self._note_observed(step, now_s, observation, "")
        return True

    def look_along(self, step: int, now_s: float) -> None:
        """Observe for the journal alone, if it wants to see every step; what fails here is found when the policy is asked."""
        if step > self._seen_at and getattr(self._journal, "every_step", False):
            try:
                self._note_observed(step, now_s, self._robot.get_observation(), NOT_ASKED)
            except Exception:
                self._statistics.journal_errors += 1

    def due(self, step: int) -> DueAction | None:
        """What the schedule has for this step, unless it has outlived its time: by the steps, and by the clock if the loop was held up within one."""
        due = self._schedule.at(step)
        if due is None:
            return None
        if self.has_outlived(due, step):
            self._statistics.expired += step != self._expired_at  # It may be asked more than once in a step.
            self._expired_at = step
            return None
        return due

    def planned(self, step: int) -> DueAction | None:
        """What the schedule has for a step that is not there yet; whether it has outlived its time is asked when it is (`has_outlived`)."""
        return self._schedule.at(step)

    def has_outlived(self, due: DueAction, step: int) -> bool:
        """Whether an action is too old for a step, now."""
        observed = self._observed_s.get(due.observed_at) if self._config.realtime else None
        return step - due.observed_at >= self._live_steps or (observed is not None and self._clock() - observed >= self._live_s)

    def is_unsure(self, due: DueAction) -> bool:
        """The policy is less sure of it than it should be."""
        return due.confidence < self._config.least_confidence

    def is_held_back(self, due: DueAction) -> bool:
        """The policy is unsure of it, and such an action leads to HOLD."""
        return self._config.unsure == "hold" and self.is_unsure(due)

    def following(self, step: int, count: int, limiter: CommandLimiter, *, holds: bool = False) -> tuple[list[NDArray[np.float32]], int]:
        """What will be commanded at the next steps, as it looks now: float32 (A,) each, limited, and a hold from where nothing is due.

        Args:
            step: The first of them.
            count: How many; fewer come back where there is nothing yet to hold.
            limiter: As it is before the command of that step; it is not touched.
            holds: Nothing but holds.

        Returns:
            The commands, and how many of them, from the first on, are the policy's actions.
        """
        ahead = copy.copy(limiter)  # It remembers the command before; the loop's own must not hear of commands that are not sent yet.
        commands: list[NDArray[np.float32]] = []
        known = 0
        for i in range(count):
            due = None if holds else self._schedule.at(step + i)
            holds = due is None or step + i - due.observed_at >= self._live_steps or self.is_held_back(due)
            known += not holds
            try:
                limited = ahead.hold() if holds or due is None else ahead.limit(self.wanted(due, ahead))
            except ActionError:
                limited = ahead.hold()
            if limited is None:
                break
            commands.append(limited.command)
        return commands, known

    def wanted(self, due: DueAction, limiter: CommandLimiter) -> NDArray[np.float32]:
        """The due action, or a share of its motion where the policy is unsure and that is what is wanted then.

        Args:
            due: What is due.
            limiter: As it is before its command.
        """
        if self._config.unsure != "slow" or not self.is_unsure(due):
            return due.action
        return limiter.share(due.action, self._config.slow_share)

    def seen_s(self, due: DueAction) -> float | None:
        """The clock when the observation was taken that an action answers."""
        return self._observed_s.get(due.observed_at)

    def late_s(self, now_s: float) -> float:
        """How long an answer has been awaited, if that is longer than it may take; else 0."""
        late_s = 0.0 if self._asked_s is None else now_s - self._asked_s
        return late_s if late_s > self._answer_s + _MOMENT_S else 0.0

    def _on_its_way(self, step: int, limiter: CommandLimiter) -> NDArray[np.float32] | None:
        """float32 (d, A): what will be commanded until an answer to an observation of this step is there, limited as it will be; None where the
        policy is not told, and before there is anything to command.

        A loop that asks in a thread goes by the longest delay of late: an answer that comes sooner waits. One that waits for its answers goes by
        the shortest, since it can command nothing that it has told in place of an answer that is there already. In HOLD these are holds, and so
        is what comes after a step for which nothing is due: when it will run again nobody knows, and what it was told of those steps may be wrong.
        """
        inline = self._config.inference == "inline"
        delay = min(min(self._delays) if inline else max(self._delays), self._timing.committed_steps)
        holds = inline or not (self._judge.state is State.RUN or self._judge.failsafe.is_about_to_run)
        commands, _ = self.following(step, delay, limiter, holds=holds)
        return np.stack(commands) if commands else None

    def _check(self, answer: Answer, step: int, now_s: float) -> bool:
        """Check an answer and schedule it."""
        self._asked_s = None
        if answer.finished_s >= answer.submitted_s:  # Not where the clock went back meanwhile.
            self._statistics.latencies_s.append(answer.finished_s - answer.submitted_s)
        told = self._told.get(answer.observed_at, 0)
        self._delays.append(step - answer.observed_at)
        verdict, error = "bad", answer.error or "the policy answered with nothing"
        if answer.chunk is not None:
            try:
                at_once = self._judge.state is State.HOLD  # What runs again shall not do so with what was decided before the trouble.
                verdict = self._schedule.add(
                    answer.chunk.actions,
                    observed_at=answer.observed_at,
                    now=step,
                    confidence=answer.chunk.confidence,
                    committed=told,
                    at_once=at_once,
                )
                error = ""
                if verdict == "late":
                    most = self._timing.max_delay_steps
                    error = f"chunk of step {answer.observed_at} came at step {step}, later than the {most} steps the policy was made for"
                elif verdict == "old":
                    error = f"chunk of step {answer.observed_at} came after one of the same step or a later one"
            except Exception as failure:  # A hostile chunk may be anything: no array, no numbers, no attribute.
                error = f"{type(failure).__name__}: {failure}"
        self._judge.failsafe.note_chunk(verdict == "used")
        if self._journal is not None:
            try:
                self._journal.answered(step, now_s, answer, verdict, error)
            except Exception:
                self._statistics.journal_errors += 1
        if verdict == "used":
            self._statistics.chunks += 1
            self._statistics.misjudged_chunks += bool(self._timing.committed_steps) and step - answer.observed_at > told
            self._bad_in_a_row, self.last_error = 0, ""
            self._judge.set(Cause.CHUNKS_REJECTED, "")
            if self._config.schedule.rule == "open":
                self._next_ask = self._schedule.runs_out
            return True
        self._next_ask = min(self._next_ask, step + 1)  # Ask again soon.
        self._statistics.late_chunks += verdict == "late"
        self._statistics.bad_chunks += verdict != "late"
        self._bad_in_a_row += 1
        self.last_error = error
        if self._bad_in_a_row >= self._judge.failsafe.config.max_bad_chunks:
            self._judge.set(Cause.CHUNKS_REJECTED, f"{self._bad_in_a_row} unusable answers in a row, the last: {error}")
        return False

    def _note_observed(self, step: int, now_s: float, observation: Observation, refused: str) -> None:
        self._seen_at = step
        if self._journal is not None:
            try:
                self._journal.observed(step, now_s, observation, refused)
            except Exception:
                self._statistics.journal_errors += 1
