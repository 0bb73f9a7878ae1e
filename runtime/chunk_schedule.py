"""Which action of which chunk is due at a control step. Pure: time is counted in control steps and comes from outside.

A chunk of H actions belongs to the step t at which its observation was taken: row i is meant for step t + i, whenever the chunk
arrives. What is due at step s is therefore row s - t, and rows that are past are skipped, never played late::

    step        0   1   2   3   4   5   6   7   8
    chunk A     a0  a1  a2  a3  a4  a5                  observed at 0
    chunk B                 --  b1  b2  b3  b4  b5      observed at 3, arrives in time for 4: b0 is never used
    due         a0  a1  a2  a3  ab  ab  b3  b4  b5      "newest", cross-faded over 2 steps of overlap, then None

Rule "newest": a newer chunk is used from the step at which it is there. Rule "receding": it has to wait until `execute_steps`
actions of the one before were due. In both an older chunk plays on to its horizon while there is no newer one; beyond it, and
before the first, nothing is due (None), and the control loop holds.

A policy that was told what is on its way (`Observation.committed`) answers from there on: its first `committed` rows are those very
actions, and what is due meanwhile is still the older chunk's, also when the answer comes sooner than was thought. It goes on from
what it was told by itself, so it is not faded: made of its own past, a student did 25 of 42 simulated episodes that it did 34 of
without (2 steps late; docs/lessons.md).

Cross-fade over the first m steps of overlap, j = 0 .. m-1, with w = (j + 1) / (m + 1)::

    due = (1 - w) old + w new          flags (binary dimensions) take the new value at once

m is `blend_steps`, but less than the number of steps that the old chunk was in use: a policy that answers at every step is not faded at
all, or every command would be made of its past (a student that did 39 of 42 simulated episodes did 20 so; docs/lessons.md).

Three more rules are what others do, to compare with or to keep what a policy was tuned for::

    "ensemble"  ACT's temporal ensembling (Zhao et al. 2023): the mean of all chunks that have a row for the step, weights exp(-decay i) with i = 0
                the oldest; flags are the newest chunk's. Ask at every step (`replan_steps` = 1). ACT takes an action of zeros for "no action"; here
                what is not there is not averaged.
    "queue"     LeRobot's asynchronous client: where the queue and the new chunk overlap, old (1 - weight) + new weight, all along; LeRobot's names
                are weighted_average (0.7), average (0.5), conservative (0.3).
    "open"      openpi's ActionChunkBroker: `execute_steps` actions from the moment at which the chunk is there, not from its observation, and only
                then is the next one asked for, while nothing is due: a pause at every chunk.

A policy that answers once and deterministically gains nothing from an average of old knowledge and new; so the default smooths the seam alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from actlet.errors import ActionError, CallerError
from actlet.specs import PolicySpec

__all__ = ["RULES", "ChunkSchedule", "DueAction", "Rule", "ScheduleConfig"]

Rule = Literal["newest", "receding", "ensemble", "queue", "open"]
RULES: tuple[Rule, ...] = get_args(Rule)
Verdict = Literal["used", "old", "late"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How chunks follow each other."""

    rule: Rule = "newest"
    """"newest": a newer chunk at once. "receding": after `execute_steps` actions of the one before. "ensemble", "queue", "open": as others do it."""
    blend_steps: int = 2
    """m, most steps of cross-fade at a seam of "newest" and "receding"; 0 for none. 2 at 10 Hz is 0.2 s, short against any reaction of the task."""
    ensemble_decay: float = 0.01
    """Of "ensemble": how much less each newer chunk weighs (ACT's 0.01: all about the same)."""
    queue_weight: float = 0.7
    """Of "queue": weight of the new chunk (LeRobot's weighted_average)."""

    def __post_init__(self) -> None:
        if self.rule not in RULES or self.blend_steps < 0:
            raise CallerError(f"schedule: rule {self.rule!r}, blend_steps {self.blend_steps}: expected one of {list(RULES)}, 0 or more.")
        if not (0 <= self.ensemble_decay < math.inf and 0 <= self.queue_weight <= 1):
            raise CallerError(
                f"schedule: ensemble_decay {self.ensemble_decay}, queue_weight {self.queue_weight}: expected 0 or more, and 0 .. 1."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DueAction:
    """What is due at a step."""

    action: NDArray[np.float32]
    """float32 (A,)."""
    observed_at: int
    """Step of the observation that it answers (of the newest chunk, where several are mixed)."""
    confidence: float
    """In 0 .. 1, as the policy says of it (of the newest chunk); 1 where it says nothing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Segment:
    start: int
    observed_at: int
    first: int  # The step for which row 0 is.
    actions: NDArray[np.float32]  # (n, A), cross-fade included
    confidence: NDArray[np.float32]  # (n,)

    def at(self, step: int) -> NDArray[np.float32] | None:
        index = step - self.first
        return self.actions[index] if 0 <= index < len(self.actions) else None

    @property
    def end(self) -> int:
        return self.first + len(self.actions)


class ChunkSchedule:
    """The chunks that are in use or about to be.

    Args:
        spec: Its timing gives H, `execute_steps` and the largest delay; its action spec says which dimensions are flags.
        config: The rule and the cross-fade.
        live_steps: Steps after its observation in which an action may be mixed with another one, None for all that a chunk has.
    """

    def __init__(self, spec: PolicySpec, config: ScheduleConfig | None = None, *, live_steps: int | None = None) -> None:
        self._spec = spec
        self._live_steps = live_steps or math.inf
        self._config = config or ScheduleConfig()
        self._is_binary = spec.action.is_binary
        self._segments: list[_Segment] = []  # By start; the last one that has started is in use.

    @property
    def runs_out(self) -> int:
        """The step from which on nothing is due, as far as is known; 0 without a chunk."""
        return self._segments[-1].end if self._segments else 0

    def add(
        self,
        actions: NDArray[np.float32],
        *,
        observed_at: int,
        now: int,
        confidence: NDArray[np.float32] | None = None,
        committed: int = 0,
        at_once: bool = False,
    ) -> Verdict:
        """Take in a chunk.

        Args:
            actions: float32 (H, A), finite.
            observed_at: Step at which its observation was taken.
            now: The step that is about to be commanded.
            confidence: float32 (H,), in 0 .. 1; None where it is not known.
            committed: How many actions the policy was told to be on their way; its own begin after them.
            at_once: Nothing of the chunk before is being executed, as in HOLD: "receding" need not wait for its end.

        Returns:
            "used"; "old" when a chunk of the same or a newer observation is there already; "late" when its first use would be
            more than `max_delay_steps` after its observation: the policy was not made for that.

        Raises:
            ActionError: Another shape, not finite, or an observation from the future.
        """
        timing, shape = self._spec.timing, (self._spec.timing.horizon, self._spec.action.dim)
        with np.errstate(over="ignore"):  # 1e300 is finite only until it becomes a float32.
            actions = np.array(actions, np.float32)
        if actions.shape != shape or not np.isfinite(actions).all():
            raise ActionError(f"chunk of shape {actions.shape}: expected {shape}, all finite; the chunk is refused.")
        if observed_at > now:
            raise ActionError(f"chunk observed at step {observed_at}, which is after the present step {now}; the chunk is refused.")
        if self._segments and observed_at <= self._segments[-1].observed_at:
            return "old"
        sure = np.ones(timing.horizon, np.float32) if confidence is None else np.array(confidence, np.float32)
        if sure.shape != (timing.horizon,) or not np.isfinite(sure).all():
            raise ActionError(f"confidence of shape {sure.shape}: expected {(timing.horizon,)}, all finite; the chunk is refused.")
        rule = self._config.rule
        in_use = [segment for segment in self._segments if segment.start <= now][-1:]
        start = max(now, observed_at + committed)
        if in_use and rule == "receding" and not at_once:
            start = max(start, min(in_use[0].start + timing.execute_steps, in_use[0].end))
        if start - observed_at > timing.max_delay_steps:
            return "late"
        first = start if rule == "open" else observed_at
        if rule == "open":
            actions, sure = actions[: timing.execute_steps], sure[: timing.execute_steps]
        if rule == "ensemble":
            kept = [segment for segment in self._segments if segment.end > now]
        else:  # One that waits for a step before the new one's is used until then, as the policy may have been told; any other is replaced.
            kept = [*in_use, *(segment for segment in self._segments if now < segment.start < start)]
            if not committed:
                actions = self._blend(actions, kept[-1:], first, start)
        self._segments = [*kept, _Segment(start=start, observed_at=observed_at, first=first, actions=actions, confidence=sure)]
        return "used"

    def at(self, step: int) -> DueAction | None:
        """What is due at a step, None beyond the last horizon: hold."""
        started = [segment for segment in self._segments if segment.start <= step]
        if not started or (newest := started[-1].at(step)) is None:
            return None
        if self._config.rule == "ensemble":
            living = [segment for segment in started if segment is started[-1] or step - segment.observed_at < self._live_steps]
            newest = self._mean([action for segment in living if (action := segment.at(step)) is not None])
        sure = float(started[-1].confidence[step - started[-1].first])
        return DueAction(action=newest, observed_at=started[-1].observed_at, confidence=sure)

    def clear(self) -> None:
        """Forget all chunks, as after a stop."""
        self._segments = []

    def _mean(self, actions: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Of what several chunks say of a step, the oldest first."""
        weights = np.exp(-self._config.ensemble_decay * np.arange(len(actions)))
        mean: NDArray[np.float32] = (np.asarray(actions) * (weights / weights.sum())[:, None]).sum(0).astype(np.float32)
        return np.where(self._is_binary, actions[-1], mean)

    def _blend(self, actions: NDArray[np.float32], in_use: list[_Segment], first: int, start: int) -> NDArray[np.float32]:
        """The chunk with what is left of the one before faded into it; weights of the new by the step of overlap."""
        if not in_use or self._config.rule == "open":
            return actions
        blended = actions.copy()
        if self._config.rule == "queue":
            weights = [self._config.queue_weight] * len(blended)
        else:
            steps = min(self._config.blend_steps, start - in_use[0].start - 1)
            weights = [(j + 1) / (steps + 1) for j in range(steps)]
        for j, share in enumerate(weights):
            old, index = in_use[0].at(start + j), start + j - first
            if old is None or index >= len(blended) or start + j - in_use[0].observed_at >= self._live_steps:
                break
            weight = np.float32(share)
            blended[index] = np.where(self._is_binary, blended[index], (1 - weight) * old + weight * blended[index])
        return blended
