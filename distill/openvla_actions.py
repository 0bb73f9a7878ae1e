"""OpenVLA's action tokens and statistics (Kim et al. 2024): its own rule on ids that are actions, and a refusal of all others.

Equation (256 edges e over [-1, 1], their 255 mid-points c, V = 32,000 tokens without padding)::

    e = linspace(-1, 1, 256)      c = (e[:-1] + e[1:]) / 2      d(x) = digitize(clip(x, -1, 1), e)  in 1 .. 256
    id(x) = V - d(x)              x(id) = c[min(V - id - 1, 254)]      for id in V - 256 .. V - 1
    value = 0.5 (x + 1) (high - low) + low  where the mask is set, x elsewhere (a gripper)

The edge 1 has a bin of its own, d = 256, but no mid-point: its id V - 256 means the same as V - 255. So there are 256 tokens and 255
values, and a distribution over values adds the probabilities of these two ids. The 255 values of a dimension are equally far apart,
so `ActionTokenizer` with 255 bins, from the first mid-point to the last, describes them.

Upstream clips any other id into the range, by which an ordinary word becomes the largest or smallest motion: refused here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from actlet.action_tokens import ActionTokenizer, ActionVocabulary
from actlet.errors import CheckpointError, UnknownNameError
from actlet.storage import read_json

__all__ = ["TOKENS", "VALUES", "ActionStatistics", "Rule", "bins_of_ids", "read_statistics", "value_distribution"]

TOKENS, VALUES = 256, 255
Rule = Literal["quantiles", "quantiles_oft", "min_max_oft"]
"""Which statistics the actions were scaled with: OpenVLA's 1st and 99th percentile; or OFT's, which adds 1e-8 to the range, over these
percentiles (its LIBERO and Bridge checkpoints) or over the extremes (ALOHA). OFT's code reads it off the words of the command line."""

_OFT_EPSILON = 1e-8
_STATISTICS_FILE = "dataset_statistics.json"
_CENTRES = np.linspace(-1.0, 1.0, TOKENS)
_CENTRES = (_CENTRES[:-1] + _CENTRES[1:]) / 2.0


def bins_of_ids(ids: NDArray[np.int64], vocab_size: int) -> NDArray[np.int64]:
    """Token ids -> bins 0 .. 254, same shape.

    Args:
        ids: int64, any shape.
        vocab_size: V, without padding.

    Raises:
        ActionError: An id that is not an action.
    """
    return np.minimum(ActionVocabulary.last(vocab_size, bins=TOKENS).decode(ids), VALUES - 1)


def value_distribution(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    """(..., 256) over tokens, lowest value first -> (..., 255) over values: the last two tokens mean the same."""
    last = probabilities[..., VALUES - 1 :].sum(-1, keepdims=True)
    return np.concatenate([probabilities[..., : VALUES - 1], last], axis=-1)


@dataclasses.dataclass(frozen=True, eq=False)
class ActionStatistics:
    """How far a robot of one dataset moves."""

    low: NDArray[np.float64]
    """(A,): what -1 means, where `mask` is set."""
    high: NDArray[np.float64]
    """(A,): what 1 means."""
    mask: NDArray[np.bool_]
    """(A,): False where actions are not scaled."""
    epsilon: float = 0.0
    """Added to the range."""

    def values(self, bins: NDArray[np.int64]) -> NDArray[np.float32]:
        """Bins 0 .. 254 (..., A) -> float32 (..., A), in the units of the dataset."""
        return self._scaled(_CENTRES[bins])

    def _scaled(self, normalised: NDArray[np.float64]) -> NDArray[np.float32]:
        scaled = 0.5 * (normalised + 1) * (self.high - self.low + self.epsilon) + self.low
        return np.where(self.mask, scaled, normalised).astype(np.float32)

    def tokenizer(self) -> ActionTokenizer:
        """The same values as 255 bins. A dimension that never moved, whose values are all one, gets a width of almost nothing."""
        low, high = (self._scaled(np.full(len(self.low), edge)) for edge in (_CENTRES[0], _CENTRES[-1]))
        flat = high <= low
        half = np.maximum(1e-6, 4.0 * np.spacing(np.abs(low)))
        return ActionTokenizer(np.where(flat, low - half, low), np.where(flat, high + half, high), VALUES)


def read_statistics(folder: Path, config: Mapping[str, Any], unnorm_key: str | None, rule: Rule) -> ActionStatistics:
    """The statistics of one dataset: of dataset_statistics.json, which fine-tuning writes, or else of config.json.

    Args:
        folder: The checkpoint.
        config: Its config.json.
        unnorm_key: Which dataset; None where there is only one.
        rule: Which of its statistics.

    Raises:
        CheckpointError: There are none, several and none was chosen, or they contradict themselves.
        UnknownNameError: There is no such dataset; names those that there are.
    """
    file = folder / _STATISTICS_FILE
    try:
        known = read_json(file) if file.is_file() else config.get("norm_stats")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if not isinstance(known, dict) or not known:
        raise CheckpointError(f"{folder}: neither {_STATISTICS_FILE} nor norm_stats in config.json: actions cannot be scaled.")
    if unnorm_key is None:
        if len(known) > 1:
            raise CheckpointError(f"{folder}: statistics of {len(known)} datasets, {sorted(known)}: choose one as unnorm_key.")
        (unnorm_key,) = known
    if unnorm_key not in known:
        raise UnknownNameError("unnorm_key", unnorm_key, sorted(known))
    return _parsed(known[unnorm_key], rule, where=f"{folder}: statistics of {unnorm_key!r}")


def _parsed(entry: Any, rule: Rule, *, where: str) -> ActionStatistics:
    names = ("min", "max") if rule == "min_max_oft" else ("q01", "q99")
    action = entry.get("action") if isinstance(entry, dict) else None
    if not isinstance(action, dict) or not set(names) <= set(action):
        held = sorted(action) if isinstance(action, dict) else type(action).__name__
        raise CheckpointError(f"{where}: 'action' holds {held}, expected {list(names)} for the rule {rule!r}.")
    try:
        low, high = (np.asarray(action[name], dtype=np.float64) for name in names)
        mask = np.asarray(action.get("mask", np.ones(low.shape, bool)))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: not numbers ({error}).") from error
    if low.ndim != 1 or not len(low) or low.shape != high.shape or low.shape != mask.shape or mask.dtype != bool:
        shapes = f"{names[0]} {low.shape}, {names[1]} {high.shape}, mask {mask.dtype} {mask.shape}"
        raise CheckpointError(f"{where}: {shapes}; expected three lists of one length, the mask of true and false.")
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low <= high)[mask].all()):
        raise CheckpointError(f"{where}: {names[0]} {low.tolist()}, {names[1]} {high.tolist()}: expected finite, low <= high.")
    return ActionStatistics(low, high, mask, 0.0 if rule == "quantiles" else _OFT_EPSILON)
