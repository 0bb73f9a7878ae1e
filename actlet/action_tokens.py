"""Actions as tokens, the way RT-2 does it: every dimension is one of K = 256 bins, every bin is one token id.

Equation (per dimension, bounds l < h, K bins)::

    bin(x)    = round((clip(x, l, h) - l) / (h - l) * (K - 1))          in 0 .. K-1
    value(b)  = l + b / (K - 1) * (h - l)                               |value(bin(x)) - x| <= (h - l) / (2 (K - 1))

Bounds of a continuous dimension are the 1st and 99th percentile of the training data (Brohan et al. 2023, RT-2; the
percentiles are OpenVLA's, Kim et al. 2024). Centres lie on the bounds, so that 0 and 1 of a binary dimension are exact:
this is RT-1's rounding rule, not OpenVLA's 255 mid-points.

Tokens are handled as integer ids, never as strings: some tokens do not survive decoding and encoding as text. An id that
is not an action id is refused: OpenVLA's clamp turns it into a nearly full-scale motion.

RT-2's reference action is 8 tokens: terminate, dx dy dz, drx dry drz, gripper.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlet.errors import ActionError, SpecError
from actlet.plain import PlainJson
from actlet.specs import ActionSpec

__all__ = ["ActionTokenizer", "ActionVocabulary"]

_CONSTANT_HALF_WIDTH = 1e-6  # A dimension that never moved in the data still needs bounds that differ.


@dataclasses.dataclass(frozen=True, eq=False)
class ActionTokenizer:
    """Maps actions in physical units to bins and back."""

    low: NDArray[np.float32]
    """float32 (A,): value of bin 0."""
    high: NDArray[np.float32]
    """float32 (A,): value of bin K - 1."""
    bins: int = 256

    def __post_init__(self) -> None:
        object.__setattr__(self, "low", np.asarray(self.low, dtype=np.float32))
        object.__setattr__(self, "high", np.asarray(self.high, dtype=np.float32))
        if self.low.ndim != 1 or self.low.shape != self.high.shape or self.bins < 2:
            raise SpecError(
                f"action bounds {self.low.shape} and {self.high.shape}, {self.bins} bins: expected two (A,) and at least 2 bins."
            )
        if not (np.isfinite(self.low).all() and np.isfinite(self.high).all() and (self.low < self.high).all()):
            raise SpecError(f"action bounds low {self.low.tolist()}, high {self.high.tolist()}: expected finite, low < high.")

    @classmethod
    def fit(cls, actions: NDArray[np.float32], spec: ActionSpec, *, bins: int = 256) -> ActionTokenizer:
        """Bounds from data: 1st and 99th percentile, {0, 1} for binary dimensions.

        Args:
            actions: float32 (N, A), all actions of the training data.
            spec: Says which dimensions are binary.
            bins: K.

        Raises:
            ActionError: No actions, another A, or values that are not finite.
        """
        if actions.ndim != 2 or actions.shape[1] != spec.dim or not len(actions):
            raise ActionError(f"actions of shape {actions.shape}: expected (N > 0, {spec.dim}).")
        if not np.isfinite(actions).all():
            raise ActionError("actions hold values that are not finite: mend the dataset first.")
        low, high = np.percentile(actions, [1, 99], axis=0)
        # At 500 two neighbours in float32 are 3e-5 apart: there the least width is a few of these steps.
        half_width = np.maximum(_CONSTANT_HALF_WIDTH, 4.0 * np.spacing(np.abs(low).astype(np.float32)))
        flat = high - low < 2 * half_width
        low, high = np.where(flat, low - half_width, low), np.where(flat, high + half_width, high)
        low[spec.is_binary], high[spec.is_binary] = 0.0, 1.0
        return cls(low.astype(np.float32), high.astype(np.float32), bins)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActionTokenizer) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.low.tobytes(), self.high.tobytes(), self.bins))

    @property
    def dim(self) -> int:
        """A, the number of tokens of one action."""
        return len(self.low)

    def encode(self, actions: NDArray[np.float32]) -> NDArray[np.int64]:
        """float (..., A) in physical units -> int64 bins (..., A) in 0 .. K-1.

        Raises:
            ActionError: Another A, or values that are not finite.
        """
        actions = np.asarray(actions)
        if actions.shape[-1:] != (self.dim,):
            raise ActionError(f"action: got shape {actions.shape}, expected (..., {self.dim}).")
        if not np.isfinite(actions).all():
            raise ActionError("action: not finite; refused.")
        unit = (np.clip(actions, self.low, self.high) - self.low) / (self.high - self.low)
        return np.asarray(np.rint(unit * (self.bins - 1)), dtype=np.int64)

    def decode(self, bins: NDArray[np.int64]) -> NDArray[np.float32]:
        """int bins (..., A) -> float32 (..., A) in physical units.

        Raises:
            ActionError: Another A, or a bin outside 0 .. K-1.
        """
        bins = np.asarray(bins)
        if bins.shape[-1:] != (self.dim,) or not np.issubdtype(bins.dtype, np.integer):
            raise ActionError(f"bins: got {bins.dtype} {bins.shape}, expected integers (..., {self.dim}).")
        if bins.size and (bins.min() < 0 or bins.max() >= self.bins):
            raise ActionError(f"bins {bins.min()} .. {bins.max()}: expected 0 .. {self.bins - 1}.")
        return (self.low + bins.astype(np.float32) / (self.bins - 1) * (self.high - self.low)).astype(np.float32)

    def centres(self) -> NDArray[np.float32]:
        """float32 (A, K): the value of every bin, in physical units."""
        steps = np.linspace(0.0, 1.0, self.bins, dtype=np.float32)
        return (self.low[:, None] + steps[None] * (self.high - self.low)[:, None]).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"low": self.low.tolist(), "high": self.high.tolist(), "bins": self.bins}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ActionTokenizer:
        """The inverse of `to_dict`; raises SpecError on unknown or missing keys, and on bounds that are not numbers."""
        plain = _PlainTokenizer.from_dict(data, where="action tokenizer")
        with np.errstate(over="ignore"):  # What does not fit into a float32 becomes infinite, and is refused as that.
            low, high = np.array(plain.low, np.float32), np.array(plain.high, np.float32)
        return cls(low, high, plain.bins)


@dataclasses.dataclass(frozen=True)
class _PlainTokenizer(PlainJson):
    low: tuple[float, ...]
    high: tuple[float, ...]
    bins: int


@dataclasses.dataclass(frozen=True)
class ActionVocabulary:
    """Which K token ids of a language model are action tokens; `ids[b]` is the id of bin b."""

    ids: NDArray[np.int64]
    """int64 (K,), all different."""
    vocab_size: int

    def __post_init__(self) -> None:
        ids = np.asarray(self.ids, dtype=np.int64)
        object.__setattr__(self, "ids", ids)
        if ids.ndim != 1 or len(np.unique(ids)) != len(ids) or ids.min() < 0 or ids.max() >= self.vocab_size:
            raise SpecError(f"action ids: {ids.shape}, expected different ids in 0 .. {self.vocab_size - 1}.")

    @classmethod
    def least_used(cls, counts: NDArray[np.int64], *, bins: int = 256, forbidden: Sequence[int] = ()) -> ActionVocabulary:
        """The `bins` least used tokens of a corpus (RT-2 on PaLM-E overwrites these), highest ids first among equals.

        Args:
            counts: int (V,), how often each token id occurs.
            bins: K.
            forbidden: Ids that keep their meaning, such as special tokens.
        """
        order = np.lexsort((-np.arange(len(counts)), counts))
        usable = order[~np.isin(order, np.asarray(forbidden, dtype=np.int64))]
        if len(usable) < bins:
            raise SpecError(f"{len(usable)} usable tokens, {bins} action tokens needed: use a larger vocabulary or fewer bins.")
        return cls(np.sort(usable[:bins]), len(counts))

    @classmethod
    def last(cls, vocab_size: int, *, bins: int = 256) -> ActionVocabulary:
        """The last ids, bin 0 at the very end: OpenVLA's choice. `vocab_size` is without padding."""
        return cls(vocab_size - 1 - np.arange(bins), vocab_size)

    @classmethod
    def integers(cls, encode: Callable[[str], Sequence[int]], vocab_size: int, *, bins: int = 256) -> ActionVocabulary:
        """The tokens of the numbers "0" .. "255", where each has one of its own: RT-2's choice on PaLI-X.

        Args:
            encode: The language model's tokenizer without special tokens, text -> ids.
            vocab_size: V, without padding.
            bins: K.

        Raises:
            SpecError: A number that is written with several tokens, as where digits are split, or two numbers with one token.
        """
        ids = []
        for number in range(bins):
            pieces = list(encode(str(number)))
            if len(pieces) != 1:
                raise SpecError(
                    f"the number {number} is {len(pieces)} tokens of this vocabulary, expected one: "
                    "its integers have no tokens of their own; use the least used tokens or the last ids."
                )
            ids += pieces
        return cls(np.array(ids), vocab_size)

    def encode(self, bins: NDArray[np.int64]) -> NDArray[np.int64]:
        """Bins -> token ids, same shape."""
        return np.asarray(self.ids[bins], dtype=np.int64)

    def decode(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Token ids -> bins, same shape.

        Raises:
            ActionError: An id that is not an action: an ordinary word never becomes a motion.
        """
        bins_of = np.full(self.vocab_size, -1, dtype=np.int64)
        bins_of[self.ids] = np.arange(len(self.ids))
        ids = np.asarray(ids)
        inside = (ids >= 0) & (ids < self.vocab_size)
        bins = np.where(inside, bins_of[np.where(inside, ids, 0)], -1)
        if (bins < 0).any():
            raise ActionError(f"token ids {np.unique(ids[bins < 0]).tolist()[:8]} are not action tokens; refused.")
        return np.asarray(bins, dtype=np.int64)
