"""Whether a dataset moves and stands in the ranges that a teacher learned: another unit, another scale or another robot shows here first.

What a teacher cannot say, it cannot teach. Two ways to differ are refused, on the dataset's 1st and 99th percentiles:

    cut off      more than a share of a dimension's actions lie beyond the teacher's bins by over a twentieth of their range (about the width of a
                 label): fitted bounds cut 2 % by themselves, and on the suite `tabletop` no more than 2.6 % lay two bins outside (12,000 frames)
    too coarse   all dimensions of a unit that move at all span fewer than 8 of 256 bins, or a thirty-second of the range: a teacher in
                 millimetres, data in metres. One dimension alone may rest, as an arm does that never turns

A share counts as too large where it surely is (Wilson's lower limit at 95 %, frames taken as independent): short recordings differ from what a
teacher was trained on by chance. Where all may be cut off, nothing is compared. States are compared where the teacher says how its own were spread: no dimension may lie further than
10 standard deviations from its mean in most frames, nor all of a unit vary by less than a thirty-second of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlet.action_tokens import ActionTokenizer
from actlet.errors import SpecError
from actlet.statistics import wilson_interval
from episodes.lerobot_dataset import LeRobotDataset

__all__ = ["require_same_ranges"]

_MARGIN = 0.05
_COARSE = 32.0
_FAR_STDS = 10.0
_RESTS = 1e-6  # A dimension whose percentiles lie closer together than this share of their size does not move.


def require_same_ranges(
    states: NDArray[np.float32],
    actions: NDArray[np.float32],
    teacher: Any,
    dataset: LeRobotDataset,
    tokenizer: ActionTokenizer,
    *,
    cut_off_share: float = 0.05,
) -> None:
    """Refuse data outside the ranges of a teacher.

    Args:
        states: float32 (N, S) of the dataset.
        actions: float32 (N, A) of the dataset.
        teacher: Whose `state_mean` and `state_std` (S,) count where it has them; None where only its bins are known.
        dataset: Whose names and units they are.
        tokenizer: The teacher's.
        cut_off_share: Largest share of a dimension's actions that may be cut off; 1 allows any ranges.

    Raises:
        SpecError: They differ; says in which dimension, by how much, and what to do.
    """
    if cut_off_share >= 1:
        return
    action, observation = dataset.action_spec, dataset.observation_spec
    low, high = tokenizer.low.astype(np.float64), tokenizer.high.astype(np.float64)
    moves = ~action.is_binary
    margin = _MARGIN * (high - low)
    outside = (actions < low - margin) | (actions > high + margin)
    bounds = [f"[{a:.4g}, {b:.4g}]" for a, b in zip(low, high, strict=True)]
    for d in np.flatnonzero(moves):
        count = int(outside[:, d].sum())
        if count and wilson_interval(count, len(actions))[0] > cut_off_share:
            raise SpecError(
                f"action {action.names[d]!r}: {count / len(actions):.1%} of the dataset's values are cut off by the teacher's bins "
                f"({_percentiles(actions[:, d])}, the teacher's bounds {bounds[d]} in [{action.units[d]}]; at most {cut_off_share:.0%} are "
                "expected). Check units and rate of the dataset, teach a teacher on data like these (actlet teach), or, where the cut is meant, "
                f"allow more: --cut-off-share {min(1.0, np.ceil(20 * count / len(actions)) / 20):g}"
            )
    _require_spread("action", actions, action.names, action.units, high - low, moves, "the teacher's bounds", bounds)
    mean, std = (_vector(getattr(teacher, name, None), observation.state_dim) for name in ("state_mean", "state_std"))
    if mean is None or std is None:
        return
    far = (np.abs(states - mean) > _FAR_STDS * std).mean(0) > 0.5
    said = [f"{m:.4g} +- {s:.2g}" for m, s in zip(mean, std, strict=True)]
    for d in np.flatnonzero(far):
        raise SpecError(
            f"state {observation.state_names[d]!r}: most of the dataset lies further than {_FAR_STDS:g} standard deviations from what the teacher "
            f"learned ({_percentiles(states[:, d])}, the teacher's {said[d]} in [{observation.state_units[d]}]). Check units, zero and order of "
            "the state, or teach a teacher on data like these (actlet teach). --cut-off-share 1 allows any ranges."
        )
    everything = np.ones(observation.state_dim, bool)
    _require_spread("state", states, observation.state_names, observation.state_units, std, everything, "the teacher's", said)


def _require_spread(
    what: str,
    values: NDArray[np.float32],
    names: Sequence[str],
    units: Sequence[str],
    expected: NDArray[np.float64],
    counted: NDArray[np.bool_],
    whose: str,
    said: Sequence[str],
) -> None:
    low, high = np.percentile(values, [1, 99], axis=0)
    spread = high - low
    moves = counted & (spread > _RESTS * (np.abs(low) + np.abs(high)) + 1e-12)
    for unit in sorted(set(units)):
        rows = np.flatnonzero(moves & np.array([own == unit for own in units]))
        if len(rows) and (spread[rows] < expected[rows] / _COARSE).all():
            d = int(rows[np.argmax(spread[rows] / expected[rows])])
            raise SpecError(
                f"{what} {names[d]!r}: the dataset spans {spread[d] / expected[d]:.2%} of the teacher's range ({_percentiles(values[:, d])}, "
                f"{whose} {said[d]} in [{unit}]), and no other {what} in [{unit}] spans more; expected at least {1 / _COARSE:.1%}. "
                "Check the units of the dataset, or teach a teacher on data like these (actlet teach). --cut-off-share 1 allows any ranges."
            )


def _percentiles(values: NDArray[np.float32]) -> str:
    low, middle, high = np.percentile(values, [1, 50, 99])
    return f"percentiles 1, 50, 99: {low:.4g}, {middle:.4g}, {high:.4g}"


def _vector(value: Any, dim: int) -> NDArray[np.float64] | None:
    """A teacher's statistics as float64 (S,); None where it has none."""
    if value is None:
        return None
    vector = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value, dtype=np.float64)
    return vector if vector.shape == (dim,) else None
