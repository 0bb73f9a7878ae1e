"""Another policy on the observations of a recorded run: what it would have answered, beside what was answered."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlet.errors import RecordingError
from actlet.protocols import Observation, Policy
from actlet.specs import require_same
from runtime.recording import Recording

__all__ = ["Comparison", "compare_policy"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Answers of a policy less those that were recorded."""

    names: tuple[str, ...]
    units: tuple[str, ...]
    steps: tuple[int, ...]
    """Of the observations that were answered by both."""
    left_out: int
    """Observations that were shown to the policy, and have no pictures of all cameras or no answer in the recording."""
    differences: NDArray[np.float32]
    """float32 (N, H, A), physical units."""
    range: NDArray[np.float32]
    """float32 (A,): from the lowest to the highest value that the robot may be told."""
    is_lossy: bool
    """Pictures were kept as JPEG: what the other policy is shown is not what was seen to the last bit."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        size = np.abs(self.differences)
        dims = {
            name: {"unit": unit, "rms": _rms(self.differences[..., i]), "max": float(size[..., i].max()), "range": float(self.range[i])}
            for i, (name, unit) in enumerate(zip(self.names, self.units, strict=True))
        }
        worst = {"step": self.steps[int(self._by_step.argmax())], "share_of_range": float(self._by_step.max())}
        return {"compared": len(self.steps), "left_out": self.left_out, "lossy_pictures": self.is_lossy, "dimensions": dims, "worst": worst}

    def lines(self) -> list[str]:
        """A table for the terminal."""
        data, width = self.to_dict(), max(9, *(len(name) for name in self.names))
        lines = [
            f"{data['compared']} observations answered by both, {self.left_out} left out{'; pictures are JPEG' if self.is_lossy else ''}"
        ]
        lines.append(f"{'':<{width}}  {'unit':<6} {'rms':>10} {'max':>10} {'max of range':>13}")
        for name, row in data["dimensions"].items():
            share = f"{100 * row['max'] / row['range']:.2f} %"
            lines.append(f"{name:<{width}}  {row['unit']:<6} {row['rms']:>10.5f} {row['max']:>10.5f} {share:>13}")
        lines.append(f"largest at step {data['worst']['step']}: {100 * data['worst']['share_of_range']:.2f} % of the range")
        return lines

    @property
    def _by_step(self) -> NDArray[np.float32]:
        return np.asarray((np.abs(self.differences) / self.range).max(axis=(1, 2)), np.float32)


def compare_policy(run: Recording, policy: Policy, instruction: str | None = None) -> Comparison:
    """Ask a policy again.

    Args:
        run: Its observations that were shown to the policy, and its answers to them: not those of one that was asked because it was unsure.
        policy: The other, or the same.
        instruction: What to do; None for the run's own.

    Raises:
        SpecError: It sees or commands something else.
        RecordingError: No observation has both pictures and an answer.
    """
    require_same(run.spec.observation, policy.spec.observation, what="the recording's and the policy's observation")
    require_same(run.spec.action, policy.spec.action, what="the recording's and the policy's action")
    usable = [row for row in run.answers if row.actions.size and np.isfinite(row.actions).all()]
    answers = {row.observed_at: row for row in usable if not row.elsewhere}
    pictured = set(run.pictured_steps)
    asked = [row for row in run.observations if not row.refused]
    both = [row for row in asked if row.step in answers and row.step in pictured]
    horizon = min(run.spec.timing.horizon, policy.spec.timing.horizon)
    differences = []
    for row in both:
        seen = Observation(run.pictures(row.step), row.state, row.committed)
        (chunk,) = policy.predict([seen], [instruction or run.instruction])
        differences.append(chunk.actions[:horizon] - answers[row.step].actions[:horizon])
    if not differences:
        raise RecordingError(
            f"{run.path}: of {len(asked)} observations that the policy was shown none has both pictures of all cameras and a usable answer. "
            "Record with pictures."
        )
    action = run.spec.action
    return Comparison(
        names=action.names,
        units=action.units,
        steps=tuple(row.step for row in both),
        left_out=len(asked) - len(both),
        differences=np.stack(differences),
        range=np.array(action.high, np.float32) - np.array(action.low, np.float32),
        is_lossy=run.about["pictures"] == "jpeg",
    )


def _rms(values: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
