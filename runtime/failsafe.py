"""Whether the robot may move, and what it does when it may not: a state machine without a clock, whose time and causes come from outside.

Five states, ordered by severity. A cause asks for one of them, the most severe active cause wins, and what lasts becomes worse::

                cause             hold_s            ramp_s                 safe_pose_s
    RUN ────────────▶ HOLD ────────────▶ RAMP ────────────▶ SAFE_POSE ────────────▶ ESTOP
     ◀────────────────┘                  └───────── latched until `reset()` ────────────┘
        good_chunks in a row

    RUN        the due action            HOLD       the last safe setpoint, again and again (never silence)
    RAMP       what moves comes to rest  SAFE_POSE  a way that the robot knows     ESTOP      nothing but standing still

Two budgets end a HOLD, and each counts only its own time: `hold_s` while a cause is active, `wait_s` while none is and good chunks are awaited.
At the start of a run it waits too: nothing was commanded yet, so that nothing is due is no trouble, and one good chunk is enough. Time::

    t        0    0.1  0.2  0.3  0.4  0.5  0.6  0.7
    cause    no   yes  yes  no   no   no   no   no
    chunks   .    .    .    good .    good .    good
    state    RUN  HOLD HOLD HOLD HOLD HOLD HOLD RUN          (good_chunks = 3)

A clock that goes back or jumps is a cause like the others, and the jump is no time that passed: no budget is spent by it. The order by
severity, and holding before acting, are PX4's (failsafe.cpp); hence also that it is tested in simulated time.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Iterable

from actlet.errors import RobotFault
from actlet.ranges import require_fields

__all__ = ["RULES", "Cause", "Failsafe", "FailsafeConfig", "Rule", "State", "StopButtons", "Verdict"]

_LONGEST_GAP_STEPS = 4
"""Steps that may be missed in a row at any rate before it counts as a clock jump."""
_MOMENT_S = 1e-6
"""Forgives the rounding of differences of clock readings."""


class State(enum.IntEnum):
    """What the robot is made to do; a higher number is more severe."""

    RUN = 0
    HOLD = 1
    RAMP = 2
    SAFE_POSE = 3
    ESTOP = 4


class Cause(enum.Enum):
    """Why it may not run. Among causes that ask for the same state the later one here is named: it explains the ones before it."""

    NO_ACTION = "no action due"
    UNSURE = "policy unsure"
    CLAMPED = "too many values clamped"
    CHUNKS_REJECTED = "chunks rejected"
    INFERENCE_LOST = "answer lost"
    CLOCK_JUMP = "clock jump"
    BAD_OBSERVATION = "bad observation"
    FROZEN_FRAME = "frozen frame"
    STALE_FRAME = "stale frame"
    LOOP_FAULT = "failure of the loop"
    ROBOT_LOST = "robot lost"
    OPERATOR_STOP = "operator stop"
    EMERGENCY_STOP = "emergency stop"

    __hash__ = object.__hash__  # Every step asks sets for causes; the hash of Enum is a function in Python.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """What a cause leads to."""

    asks: State
    safe_pose: bool
    """After the ramp the robot may go to its safe pose by itself. Not where someone said stop, or where robot or loop cannot be relied on."""

    @property
    def clears(self) -> bool:
        """It runs again by itself once the cause has gone; all else is latched."""
        return self.asks < State.RAMP


_HOLDS = Rule(asks=State.HOLD, safe_pose=True)
_STOPS = Rule(asks=State.RAMP, safe_pose=False)
RULES: dict[Cause, Rule] = {
    Cause.NO_ACTION: _HOLDS,
    Cause.UNSURE: _HOLDS,
    Cause.CLAMPED: _HOLDS,
    Cause.CHUNKS_REJECTED: _HOLDS,
    Cause.INFERENCE_LOST: _HOLDS,
    Cause.CLOCK_JUMP: _HOLDS,
    Cause.BAD_OBSERVATION: _HOLDS,
    Cause.FROZEN_FRAME: _HOLDS,
    Cause.STALE_FRAME: _HOLDS,
    Cause.LOOP_FAULT: _STOPS,
    Cause.ROBOT_LOST: _STOPS,
    Cause.OPERATOR_STOP: _STOPS,
    Cause.EMERGENCY_STOP: Rule(asks=State.ESTOP, safe_pose=False),
}
_RANK = {cause: (int(RULES[cause].asks), place) for place, cause in enumerate(Cause)}
_AWAITED = frozenset({Cause.NO_ACTION, Cause.INFERENCE_LOST})
"""No trouble before the first chunk of a run: a first answer may take its time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FailsafeConfig:
    """How long each state is borne, and from when on something counts as a cause. Times in seconds."""

    hold_s: float = 0.5
    """HOLD with a cause active becomes RAMP after this."""
    wait_s: float = 5.0
    """HOLD without one becomes RAMP when the good chunks have not come after this: at the start of a run, and after a cause has gone."""
    good_chunks: int = 3
    """Usable chunks in a row, since the causes have gone, that lead from HOLD back to RUN."""
    ramp_s: float = 0.5
    """Time in which RAMP brings to rest what moves."""
    safe_pose_s: float | None = 5.0
    """Longest way to the safe pose before ESTOP; None: there is none, RAMP is the end."""
    max_gap_s: float = 2.0
    """A longer time between two updates is a clock jump, or a loop that stood still (ArduPilot's Copter takes 2 s for the latter)."""
    max_bad_chunks: int = 5
    """Unusable answers in a row (failed, not finite, wrong shape, too late) that are a cause."""
    answer_s: float | None = None
    """An answer that takes longer is lost; None for the time of a whole chunk, after which it could not be used any more."""
    max_bad_observations: int = 3
    """Observations in a row that are not as specified; none of them is shown to the policy."""
    max_frame_age_s: float = 0.5
    """Oldest observation that the policy is shown, where observations say when they were taken (LeRobot's cameras: 500 ms)."""
    frozen_frames: int | None = 5
    """Observations in a row with the same pixels of a camera that are a cause, if they also span `frozen_s`; None to look for none."""
    frozen_s: float = 1.0
    """A loop may ask more often than a camera has a new frame: so long the same frame is no trouble."""
    clamp_window: int = 100
    """Steps over which clamped values are counted (libfranka's window for its success rate)."""
    clamp_share: float = 0.5
    """Largest share of clamped values, clipped or slowed, among those of a whole window."""

    def __post_init__(self) -> None:
        times = ("hold_s", "wait_s", "ramp_s", "frozen_s")
        counts = ("good_chunks", "max_bad_chunks", "max_bad_observations", "clamp_window")
        require_fields(self, times, lambda time: 0 <= time < math.inf, "0 s or more")
        require_fields(self, ("safe_pose_s", "answer_s"), lambda time: 0 <= time < math.inf, "0 s or more", optional=True)
        require_fields(self, ("max_gap_s", "max_frame_age_s"), lambda time: time > 0, "more than 0 s")
        require_fields(self, counts, lambda count: count >= 1, "1 or more")
        require_fields(self, ("frozen_frames",), lambda count: count >= 2, "2 or more, or None to look for none", optional=True)
        require_fields(self, ("clamp_share",), lambda share: 0 <= share <= 1, "0 .. 1")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What holds now."""

    state: State
    cause: Cause | None
    """Why it is not RUN; of a HOLD that waits for good chunks, what led to it. None in RUN."""
    since_s: float
    """The caller's time at which the state began; NaN before the first update."""


class Failsafe:
    """The ladder.

    Args:
        config: How long each state is borne.
    """

    def __init__(self, config: FailsafeConfig | None = None) -> None:
        self.config = config or FailsafeConfig()
        self.active: frozenset[Cause] = frozenset()
        """The causes of the last update that counted, a clock jump among them."""
        self.jump_s = 0.0
        """The newest clock jump, from one update to the next."""
        self._last_s: float | None = None  # The caller's time.
        self._time_s = 0.0  # Time that has passed, jumps left out.
        self._verdict = Verdict(State.HOLD, Cause.NO_ACTION, math.nan)
        self._entered_s = self._mark_s = 0.0  # Since when it is in this state, and, in HOLD, spends the present budget.
        self._budgets = [0.0, 0.0]  # What is left of hold_s and wait_s.
        self._troubled = False  # In HOLD: a cause is active, so hold_s is spent; else wait_s.
        self._is_first = True  # There was no RUN yet in this run.
        self._good, self._needed = 0, 1  # Chunks in a row, for RUN.
        self._has_safe_pose, self._max_gap_s = True, self.config.max_gap_s
        self._wait(math.nan, needed=1)

    @property
    def verdict(self) -> Verdict:
        """That of the last update."""
        return self._verdict

    @property
    def in_state_s(self) -> float:
        """Time in the present state at the last update, jumps left out."""
        return self._time_s - self._entered_s

    @property
    def may_reach_safe_pose(self) -> bool:
        """In RAMP: SAFE_POSE comes next. Not before the first RUN: a robot that never moved stays where it is."""
        if self._verdict.state is not State.RAMP or self._is_first or not self._has_safe_pose or self.config.safe_pose_s is None:
            return False
        causes = {*self.active, self._verdict.cause}
        return all(RULES[cause].safe_pose for cause in causes if cause is not None)

    @property
    def is_about_to_run(self) -> bool:
        """In HOLD: enough good chunks were noted, and the next update leads to RUN unless a cause is active then."""
        return self._verdict.state is State.HOLD and self._good >= self._needed

    def require_free(self) -> None:
        """Refuse to begin a run while a state is latched.

        Raises:
            RobotFault: It is.
        """
        if self._verdict.state >= State.RAMP:
            raise RobotFault(f"{self._latched()}. See to the robot, then call reset().")

    def begin(self, now_s: float, *, safe_pose: bool = True, step_s: float = 0.0) -> None:
        """A run begins: HOLD, until its first good chunk. The time since the run before does not count.

        Args:
            now_s: The caller's time.
            safe_pose: The robot knows one.
            step_s: Time of a control step: at a low rate, longer gaps than `max_gap_s` are no jumps.

        Raises:
            RobotFault: It is latched.
        """
        self.require_free()
        self._has_safe_pose, self._max_gap_s = safe_pose, max(self.config.max_gap_s, _LONGEST_GAP_STEPS * step_s)
        self._last_s, self._good, self.active = now_s, 0, frozenset()
        self._wait(now_s, needed=self._needed if self._is_first else 1)

    def note_chunk(self, good: bool) -> None:
        """A chunk came, usable or not; the next update counts it."""
        self._good = self._good + 1 if good else 0

    def update(self, now_s: float, causes: Iterable[Cause] = (), *, waited_s: float = 0.0) -> Verdict:
        """Take in what is wrong now, all of it, once a control step or more often. Never raises.

        Args:
            now_s: The caller's time.
            causes: Every cause that is active now.
            waited_s: How much of the time since the update before the caller spent on purpose, as waiting for a policy: that is no jump.

        Returns:
            What holds now; the same object while nothing changes.
        """
        active = frozenset(causes)
        if self._jumped(now_s, waited_s):
            active |= {Cause.CLOCK_JUMP}
        if self._is_first:
            active -= _AWAITED
        self.active = active
        state = self._verdict.state
        if state is State.RUN and not active:
            return self._verdict
        worst = max(active, key=_RANK.__getitem__) if active else None
        asked = State.RUN if worst is None else RULES[worst].asks
        if asked > state:
            if asked is State.HOLD:
                self._budgets = [self.config.hold_s, self.config.wait_s]
                self._troubled, self._mark_s, self._needed, self._good = True, self._time_s, self.config.good_chunks, 0
            self._enter(asked, worst, now_s)
        elif state is State.HOLD:
            self._hold(worst, now_s)
        elif state is State.RAMP:
            if self.may_reach_safe_pose and self._is_over(self._entered_s, self.config.ramp_s):
                self._enter(State.SAFE_POSE, self._verdict.cause, now_s)
        elif state is State.SAFE_POSE:
            refused = worst is not None and not all(RULES[cause].safe_pose for cause in active)
            if refused or self._is_over(self._entered_s, self.config.safe_pose_s or 0.0):
                self._enter(State.ESTOP, worst if refused else self._verdict.cause, now_s)
        return self._verdict

    def reset(self, *, operator: bool = False) -> None:
        """Give the robot free: HOLD, until `good_chunks` came. Does nothing where nothing is latched.

        Args:
            operator: A person has seen to it. Without one ESTOP stays.

        Raises:
            RobotFault: What led here is still active at the last update, or it is ESTOP and no operator says so. Nothing has changed then.
        """
        if self._verdict.state < State.RAMP:
            return
        over = Cause.CLOCK_JUMP  # A jump is over as soon as it is seen.
        here = [cause for cause in self.active if (not RULES[cause].clears or cause is self._verdict.cause) and cause is not over]
        if still := sorted(here, key=_RANK.__getitem__):
            raise RobotFault(f"{self._latched()}, and still active: {', '.join(cause.value for cause in still)}. Mend that first.")
        if self._verdict.state is State.ESTOP and not operator:
            raise RobotFault(f"{self._latched()}. Only an operator may end an emergency stop: reset(operator=True).")
        self._good = 0
        self._wait(math.nan if self._last_s is None else self._last_s, needed=self.config.good_chunks)

    def _jumped(self, now_s: float, waited_s: float) -> bool:
        """Let time pass, unless the clock went back or too far."""
        if self._last_s is None:
            if not math.isfinite(now_s):
                return True
            self._last_s = now_s
            self._wait(now_s, needed=self._needed)
        gap = now_s - self._last_s
        is_jump = not 0.0 <= gap <= self._max_gap_s + max(0.0, waited_s)
        if is_jump:
            self.jump_s = gap
        else:
            self._time_s += gap
        if math.isfinite(now_s):
            self._last_s = now_s
        return is_jump

    def _hold(self, worst: Cause | None, now_s: float) -> None:
        """HOLD goes on, or ends: by good chunks, or by the budget of what it is spent on."""
        was_troubled = self._troubled
        if worst is not None:
            self._good, self._needed = 0, self.config.good_chunks
        elif self._good >= self._needed:
            self._is_first = False
            self._enter(State.RUN, None, now_s)
            return
        if (worst is not None) is not was_troubled:
            self._budgets[0 if was_troubled else 1] -= self._time_s - self._mark_s
            self._troubled, self._mark_s = not was_troubled, self._time_s
        cause = worst or self._verdict.cause
        if self._is_over(self._mark_s, self._budgets[0 if self._troubled else 1]):
            self._enter(State.RAMP, cause, now_s)
        elif cause is not self._verdict.cause:
            self._verdict = dataclasses.replace(self._verdict, cause=cause)

    def _wait(self, now_s: float, *, needed: int) -> None:
        """HOLD before the first chunk of a run."""
        self._is_first, self._needed = True, needed
        self._budgets, self._troubled = [self.config.hold_s, self.config.wait_s], False
        self._enter(State.HOLD, Cause.NO_ACTION, now_s)
        self._mark_s = self._time_s

    def _enter(self, state: State, cause: Cause | None, now_s: float) -> None:
        self._entered_s = self._time_s
        self._verdict = Verdict(state, cause, now_s)

    def _is_over(self, since_s: float, budget_s: float) -> bool:
        return self._time_s - since_s >= budget_s - _MOMENT_S

    def _latched(self) -> str:
        return f"the failsafe is latched in {self._verdict.state.name} ({self._verdict.cause.value if self._verdict.cause else 'no cause'})"


class StopButtons:
    """What an operator may press at any time, from any thread or signal handler; a pressed button stays pressed until it is released."""

    def __init__(self) -> None:
        self._pressed: frozenset[Cause] = frozenset()

    def stop(self) -> None:
        """Come to rest and end the run."""
        self._pressed |= {Cause.OPERATOR_STOP}

    def emergency_stop(self) -> None:
        """Stop as the robot can do it quickest. It reaches the robot with the next command: no substitute for a button that cuts its power."""
        self._pressed |= {Cause.EMERGENCY_STOP}

    def release(self) -> None:
        """Let go of both."""
        self._pressed = frozenset()

    @property
    def pressed(self) -> frozenset[Cause]:
        """The causes that they are."""
        return self._pressed
