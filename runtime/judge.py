"""What is wrong now, in words, what the failsafe says to it, and how often and for how long."""

from __future__ import annotations

from runtime.failsafe import RULES, Cause, Failsafe, State, Verdict
from runtime.loop_config import StopReason
from runtime.loop_statistics import LoopStatistics

__all__ = ["REASONS", "Judge"]

REASONS: dict[Cause, StopReason] = {
    Cause.NO_ACTION: "hold",
    Cause.UNSURE: "hold",
    Cause.CLAMPED: "policy",
    Cause.CHUNKS_REJECTED: "policy",
    Cause.INFERENCE_LOST: "hold",
    Cause.CLOCK_JUMP: "fault",
    Cause.BAD_OBSERVATION: "robot",
    Cause.FROZEN_FRAME: "robot",
    Cause.STALE_FRAME: "robot",
    Cause.LOOP_FAULT: "fault",
    Cause.ROBOT_LOST: "robot",
    Cause.OPERATOR_STOP: "interrupted",
    Cause.EMERGENCY_STOP: "emergency",
}
_NAMES = {state: state.name for state in State}


class Judge:
    """Keeps the causes that are active between two verdicts.

    Args:
        failsafe: Whose verdicts they are.
        statistics: Where states and causes are counted.
    """

    def __init__(self, failsafe: Failsafe, statistics: LoopStatistics) -> None:
        self.failsafe = failsafe
        self.active: set[Cause] = set()
        """What is wrong now."""
        self.verdict = failsafe.verdict
        """The newest."""
        self.state = self.verdict.state
        """Its state."""
        self._statistics = statistics
        self._words: dict[Cause, str] = {}  # Kept when a cause has gone.
        self._now_s = 0.0

    def begin(self, now_s: float, *, safe_pose: bool, step_s: float) -> None:
        """A run begins; see `Failsafe.begin`."""
        self._now_s = now_s
        self.failsafe.begin(now_s, safe_pose=safe_pose, step_s=step_s)
        self.verdict = self.failsafe.verdict
        self.state = self.verdict.state

    def set(self, cause: Cause, words: str) -> None:
        """A cause is active, in words; or it has gone, without. Of one that stays active the first words are kept."""
        if not words:
            if self.active:
                self.active.discard(cause)
        elif cause not in self.active:
            self.active.add(cause)
            self._words[cause] = words

    def replace(self, cause: Cause, words: str) -> None:
        """As `set`, but the newest words are kept."""
        self.active.discard(cause)
        self.set(cause, words)

    def decide(self, now_s: float, waited_s: float, *, step: bool = True) -> Verdict:
        """The failsafe's verdict on all that is active; see `Failsafe.update`. `step`: a step is commanded by it, and counted in its state."""
        before, known = self.verdict, self.failsafe.active
        self.verdict = verdict = self.failsafe.update(now_s, self.active, waited_s=waited_s)
        self.state = verdict.state
        found, counted, passed_s = self.failsafe.active, self._statistics, now_s - self._now_s
        self._now_s = now_s
        if Cause.CLOCK_JUMP in found:
            self._words[Cause.CLOCK_JUMP] = f"the clock jumped by {self.failsafe.jump_s:.2f} s, or the loop stood still"
            passed_s = 0.0
        was, now = _NAMES[before.state], _NAMES[verdict.state]
        counted.state_s[was] = counted.state_s.get(was, 0.0) + passed_s
        if step:
            counted.state_ticks[now] = counted.state_ticks.get(now, 0) + 1
        if found != known:
            for cause in Cause:
                if cause in found and cause not in known:
                    counted.causes[cause.value] = counted.causes.get(cause.value, 0) + 1
        why = verdict.cause
        if verdict.state is State.RAMP and before.state is State.HOLD and why is not None and why not in self.active | found:
            limits = self.failsafe.config
            missed = f"; then not {limits.good_chunks} good chunks in a row within {limits.wait_s:g} s"
            self._words[why] = f"{self._words.get(why, '')}{missed}"
        return verdict

    @property
    def must_end(self) -> bool:
        """The run comes to an end: the ladder is there, or what is wrong leads there with the next verdict."""
        return self.state >= State.RAMP or (bool(self.active) and not all(RULES[cause].clears for cause in self.active))

    def end(self, remark: str = "") -> tuple[StopReason, str]:
        """Why the run ends here, as a reason and in words that name the cause."""
        cause = self.verdict.cause or Cause.NO_ACTION
        words = self._words.get(cause, "").rstrip(".")
        return REASONS[cause], f"{words}{remark}; cause: {cause.value}, ended in {self.verdict.state.name}"

    def words(self, cause: Cause) -> str:
        """What was seen of a cause, empty if nothing."""
        return self._words.get(cause, "")
