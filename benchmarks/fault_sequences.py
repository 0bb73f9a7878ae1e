"""Random histories of the failsafe, each judged by a witness that keeps account by itself: 100,000 of them, 50 events long.

An event is an update with some causes after some time, chunks that came, a jump of the clock, or a reset. After each, the laws hold whatever was expected: never
a state below what an active cause asks for, never a lower state than before except from HOLD to RUN, and an emergency stop stays until an operator ends it.
"""

from __future__ import annotations

import collections
import random
import sys
import time
from typing import Any

from tqdm import tqdm

from actlet.errors import RobotFault
from runtime.failsafe import RULES, Cause, Failsafe, FailsafeConfig, State

__all__ = ["STEP_S", "Witness", "check_sequences"]

STEP_S = 1 / 64
"""A power of two, so that sums of it are exact."""
_BUDGET_STEPS, _MAX_GAP_STEPS = 12, 32
_HOLDING = [cause for cause in Cause if RULES[cause].asks is State.HOLD]
_CAUSES = list(Cause)


class Witness:
    """Uses a failsafe, keeps account of time and chunks by itself, and says what every verdict must be.

    Raises:
        AssertionError: By every method, where the failsafe did something else.
    """

    def __init__(self, config: FailsafeConfig, safe_pose: bool) -> None:
        self.failsafe, self.config, self.safe_pose, self.now_s = Failsafe(config), config, safe_pose, 1000.0
        self.failsafe.begin(self.now_s, safe_pose=safe_pose)
        self.cause: Cause | None = None
        self._fresh(needed=1)

    def _fresh(self, needed: int) -> None:
        self.state, self.is_first, self.needed, self.row, self.in_state_s = State.HOLD, True, needed, 0, 0.0
        self.cause = Cause.NO_ACTION
        self.spent, self.mode = {"trouble": 0.0, "wait": 0.0}, "wait"

    def chunk(self, good: bool) -> None:
        """A chunk came."""
        self.failsafe.note_chunk(good)
        self.row = self.row + 1 if good else 0

    def tick(self, gap_s: float, causes: frozenset[Cause]) -> None:
        """An update, so long after the one before."""
        self.now_s += gap_s
        is_jump = not 0 <= gap_s <= self.config.max_gap_s
        verdict = self.failsafe.update(self.now_s, causes)
        counted = causes | ({Cause.CLOCK_JUMP} if is_jump else set())
        if self.is_first:
            counted -= {Cause.NO_ACTION, Cause.INFERENCE_LOST}
        _claim(self.failsafe.active == counted, f"active {self.failsafe.active}, expected {counted}")
        before, asked = self.state, max((RULES[cause].asks for cause in counted), default=State.RUN)
        self.in_state_s += 0 if is_jump else gap_s
        if before is State.HOLD:
            self.spent[self.mode] += 0 if is_jump else gap_s
            self.mode = "trouble" if counted else "wait"
        if counted:
            self.row, self.needed = 0, self.config.good_chunks
        expected = self._expected(before, asked, counted)
        self.cause = verdict.cause
        _claim(verdict.state is expected, f"{before.name} became {verdict.state.name}, expected {expected.name}")
        _claim(verdict is self.failsafe.verdict, "another verdict than was returned")
        # The laws, whatever was expected.
        _claim(verdict.state >= asked, f"{verdict.state.name}, where {asked.name} was asked for")
        _claim(
            verdict.state >= before or (before, verdict.state) == (State.HOLD, State.RUN),
            f"from {before.name} down to {verdict.state.name}",
        )
        _claim((verdict.cause is None) is (verdict.state is State.RUN), f"cause {verdict.cause} in {verdict.state.name}")
        if expected is not before:
            self.state, self.in_state_s = expected, 0.0
            _claim(verdict.since_s == self.now_s, f"since {verdict.since_s}, expected {self.now_s}")
            self.is_first = self.is_first and expected is not State.RUN
            if expected is State.HOLD:
                self.spent, self.mode = {"trouble": 0.0, "wait": 0.0}, "trouble"
        _claim(
            abs(self.failsafe.in_state_s - self.in_state_s) < 1e-9, f"{self.failsafe.in_state_s} s in the state, expected {self.in_state_s}"
        )

    def _expected(self, before: State, asked: State, counted: frozenset[Cause]) -> State:
        if asked > before:
            return asked
        if before is State.HOLD:
            if not counted and self.row >= self.needed:
                return State.RUN
            budget = self.config.hold_s if self.mode == "trouble" else self.config.wait_s
            return State.RAMP if self.spent[self.mode] >= budget else State.HOLD
        forbidden = any(not RULES[cause].safe_pose for cause in {*counted, self.cause} if cause is not None)
        if before is State.RAMP:
            goes = self.safe_pose and self.config.safe_pose_s is not None and not forbidden and not self.is_first
            return State.SAFE_POSE if goes and self.in_state_s >= self.config.ramp_s else State.RAMP
        if before is State.SAFE_POSE:
            return State.ESTOP if forbidden or self.in_state_s >= (self.config.safe_pose_s or 0) else State.SAFE_POSE
        return before

    def reset(self, operator: bool) -> None:
        """Somebody asks for it."""
        was = self.failsafe.verdict
        still = {cause for cause in self.failsafe.active if not RULES[cause].clears or cause is was.cause} - {Cause.CLOCK_JUMP}
        refusal = was.state >= State.RAMP and (bool(still) or (was.state is State.ESTOP and not operator))
        try:
            self.failsafe.reset(operator=operator)
        except RobotFault:
            _claim(refusal, f"reset was refused in {was.state.name}, without {still}")
        else:
            _claim(not refusal, f"reset was granted in {was.state.name}, with {still}")
        if refusal or was.state < State.RAMP:
            _claim(self.failsafe.verdict is was, "a reset that does nothing changed the verdict")
        else:
            _claim(self.failsafe.verdict.state is State.HOLD, f"{self.failsafe.verdict.state.name} after a reset")
            self._fresh(self.config.good_chunks)


def _claim(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)


def _config(rng: random.Random) -> FailsafeConfig:
    """Budgets of a few steps, so that they run out."""
    hold, wait, ramp, pose = (STEP_S * rng.randint(0, _BUDGET_STEPS) for _ in range(4))
    return FailsafeConfig(
        hold_s=hold,
        wait_s=wait,
        ramp_s=ramp,
        safe_pose_s=None if rng.random() < 0.2 else pose,
        good_chunks=rng.randint(1, 4),
        max_gap_s=_MAX_GAP_STEPS * STEP_S,
    )


def _event(witness: Witness, rng: random.Random) -> str:
    """Let something happen; its name."""
    what = rng.choices(("nothing", "trouble", "anything", "chunks", "jump", "reset"), (4, 4, 1, 6, 1, 1))[0]
    if what == "nothing":
        witness.tick(rng.randint(0, 4) * STEP_S, frozenset())
    elif what == "trouble":
        witness.tick(rng.randint(0, 20) * STEP_S, frozenset(rng.sample(_HOLDING, rng.randint(0, 2))))
    elif what == "anything":
        witness.tick(rng.randint(0, 20) * STEP_S, frozenset(rng.sample(_CAUSES, rng.randint(0, 3))))
    elif what == "chunks":
        good = rng.random() < 0.7
        for _ in range(rng.randint(1, 4)):
            witness.chunk(good)
    elif what == "jump":
        causes = frozenset(rng.sample(_HOLDING, rng.randint(0, 1)))
        witness.tick(rng.choice((-3600.0, 3600.0, -STEP_S, (_MAX_GAP_STEPS + 1) * STEP_S)), causes)
    else:
        witness.reset(rng.random() < 0.5)
    return what


def check_sequences(sequences: int, events: int = 50, seed: int = 0, *, progress: bool = False) -> dict[str, Any]:
    """Random histories.

    Returns:
        ``sequences, events`` (in all), ``broken`` (histories that the witness objected to), ``transitions`` ("from > to" -> how often), ``seconds``, and the
        first few objections, with the history's number.
    """
    transitions, first, broken, start = collections.Counter[str](), list[str](), 0, time.perf_counter()
    for number in tqdm(range(sequences), desc="failsafe", unit="history", disable=not progress, file=sys.stderr, leave=False):
        rng = random.Random(f"{seed} {number}")
        witness = Witness(_config(rng), rng.random() < 0.5)
        what = ""
        try:
            for _ in range(events):
                before = witness.failsafe.verdict.state
                what = _event(witness, rng)
                after = witness.failsafe.verdict.state
                if after is not before:
                    transitions[f"{before.name} > {after.name}"] += 1
        except AssertionError as error:
            broken += 1
            first = [*first, f"history {number}, {what}: {error}"][:5]
    return {
        "sequences": sequences,
        "events": sequences * events,
        "broken": broken,
        "transitions": dict(transitions),
        "seconds": time.perf_counter() - start,
        "first": first,
    }
