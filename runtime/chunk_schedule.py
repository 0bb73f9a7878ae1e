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

ACT's temporal ensembling (Zhao et al. 2023) averages all past chunks instead; for a policy that answers once and
deterministically this averages old knowledge into new, so only the seam is smoothed here.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from actlet.errors import ActionError, CallerError
from actlet.specs import PolicySpec

__all__ = ["ChunkSchedule", "DueAction", "ScheduleConfig"]

Verdict = Literal["used", "old", "late"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How chunks follow each other."""

    rule: Literal["newest", "receding"] = "newest"
    """"newest": a newer chunk at once. "receding": after `execute_steps` actions of the one before."""
    blend_steps: int = 2
    """m, most steps of cross-fade at a seam; 0 for none. 2 at 10 Hz is 0.2 s, short against any reaction of the task."""

    def __post_init__(self) -> None:
        if self.rule not in ("newest", "receding") or self.blend_steps < 0:
            raise CallerError(f"schedule: rule {self.rule!r}, blend_steps {self.blend_steps}: expected 'newest' or 'receding', 0 or more.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DueAction:
    """What is due at a step."""

    action: NDArray[np.float32]
    """float32 (A,)."""
    observed_at: int
    """Step of the observation that it answers (of the newer chunk, during a cross-fade)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Segment:
    start: int
    observed_at: int
    actions: NDArray[np.float32]  # (H, A), cross-fade included

    def at(self, step: int) -> NDArray[np.float32] | None:
        index = step - self.observed_at
        return self.actions[index] if index < len(self.actions) else None


class ChunkSchedule:
    """The chunks that are in use or about to be.

    Args:
        spec: Its timing gives H, `execute_steps` and the largest delay; its action spec says which dimensions are flags.
        config: The rule and the cross-fade.
    """

    def __init__(self, spec: PolicySpec, config: ScheduleConfig | None = None) -> None:
        self._spec = spec
        self._config = config or ScheduleConfig()
        self._is_binary = spec.action.is_binary
        self._segments: list[_Segment] = []  # By start; the last one that has started is in use.

    def add(self, actions: NDArray[np.float32], *, observed_at: int, now: int, committed: int = 0, at_once: bool = False) -> Verdict:
        """Take in a chunk.

        Args:
            actions: float32 (H, A), finite.
            observed_at: Step at which its observation was taken.
            now: The step that is about to be commanded.
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
        in_use = [segment for segment in self._segments if segment.start <= now][-1:]
        start = max(now, observed_at + committed)
        if in_use and self._config.rule == "receding" and not at_once:
            runs_out = in_use[0].observed_at + timing.horizon
            start = max(start, min(in_use[0].start + timing.execute_steps, runs_out))
        if start - observed_at > timing.max_delay_steps:
            return "late"
        # One that waits for a step before the new one's is used until then, as the policy may have been told; any other is replaced.
        kept = [*in_use, *(segment for segment in self._segments if now < segment.start < start)]
        blended = actions if committed else self._blend(actions, kept[-1:], observed_at, start)
        self._segments = [*kept, _Segment(start=start, observed_at=observed_at, actions=blended)]
        return "used"

    def at(self, step: int) -> DueAction | None:
        """What is due at a step, None beyond the last horizon: hold."""
        for segment in reversed(self._segments):
            if segment.start <= step:
                action = segment.at(step)
                return None if action is None else DueAction(action=action, observed_at=segment.observed_at)
        return None

    def clear(self) -> None:
        """Forget all chunks, as after a stop."""
        self._segments = []

    def _blend(self, actions: NDArray[np.float32], in_use: list[_Segment], observed_at: int, start: int) -> NDArray[np.float32]:
        blended = actions.copy()
        steps = min(self._config.blend_steps, start - in_use[0].start - 1) if in_use else 0
        for j in range(steps):
            old, index = in_use[0].at(start + j), start + j - observed_at
            if old is None or index >= len(blended):
                break
            weight = np.float32((j + 1) / (steps + 1))
            blended[index] = np.where(self._is_binary, blended[index], (1 - weight) * old + weight * blended[index])
        return blended
