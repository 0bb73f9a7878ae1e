"""distill.top_k: what is kept of a distribution, and what comes back."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from distill.top_k import TopK

ROUNDING = 2.0**-11  # float16 keeps 11 bits; a row of them is off by at most this share of its mass, 1.
TINY = 2.0**-25  # Half the smallest float16: what a single bin can be off by besides.


def distributions(seed: int, count: int, sharpness: float, rows: int = 7) -> NDArray[np.float32]:
    """Softmax of noise, from nearly uniform to nearly one bin."""
    logits = np.random.default_rng(seed).normal(size=(rows, count)) * sharpness
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)


any_distribution = st.tuples(st.integers(0, 2**32 - 1), st.integers(2, 300), st.floats(0.0, 30.0))


@given(any_distribution, st.data())
def test_the_distance_is_at_most_the_mass_left_out(seed: tuple[int, int, float], data: st.DataObject) -> None:
    """Total variation distance after a round trip, against the mass outside the k largest bins."""
    told = distributions(*seed)
    k = data.draw(st.integers(1, told.shape[-1]))
    back = TopK.of(told, k).dense().astype(np.float64)
    left_out = np.sort(told.astype(np.float64), axis=-1)[:, : told.shape[-1] - k].sum(-1)
    distance = 0.5 * np.abs(back - told).sum(-1)
    assert (distance <= left_out + 2 * ROUNDING + told.shape[-1] * TINY).all()


@given(any_distribution, st.data())
def test_rows_sum_to_one(seed: tuple[int, int, float], data: st.DataObject) -> None:
    """To the rounding of float16, whatever is kept; and nothing is found wrong with it."""
    told = distributions(*seed)
    answers = TopK.of(told, data.draw(st.integers(1, told.shape[-1])))
    assert (np.abs(answers.dense().sum(-1, dtype=np.float64) - 1.0) <= 2 * ROUNDING + told.shape[-1] * TINY).all()
    assert answers.fault() == ""


@given(any_distribution)
def test_all_bins_kept_lose_nothing_but_the_rounding(seed: tuple[int, int, float]) -> None:
    """k = K is float16 of the distribution, bit for bit."""
    told = distributions(*seed)
    np.testing.assert_array_equal(TopK.of(told, told.shape[-1]).dense(), told.astype(np.float16), strict=True)


def test_the_most_probable_bins_are_kept_and_the_others_share_the_rest() -> None:
    """Kept in the order of the bins; the tail is spread evenly."""
    answers = TopK.of(np.float32([[0.125, 0.5, 0.0, 0.25, 0.125, 0.0]]), 2)
    assert answers.bins.tolist() == [[1, 3]]
    assert answers.tail.tolist() == [0.25]
    assert answers.dense().tolist() == [[0.0625, 0.5, 0.0625, 0.25, 0.0625, 0.0625]]


@pytest.mark.parametrize(("count", "kind"), [(256, np.uint8), (257, np.uint16)])
def test_bins_take_as_few_bytes_as_they_need(count: int, kind: type) -> None:
    """One byte for 256 bins, two for more, and the last bin comes back."""
    told = np.zeros((1, count), np.float32)
    told[0, -1] = 1.0
    answers = TopK.of(told, 3)
    assert answers.bins.dtype == kind
    assert answers.dense()[0, -1] == 1.0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a: {"probability": np.where(a.probability == a.probability.max(), np.float16(np.nan), a.probability)}, "not finite"),
        (lambda a: {"tail": -a.tail}, "negative"),
        (lambda a: {"bins": a.bins[..., ::-1]}, "not ascending"),
        (lambda a: {"count": 9}, "not ascending in 0 .. 8"),
        (lambda a: {"probability": a.probability / np.float16(2)}, "instead of 1"),
    ],
)
def test_what_is_no_distribution_is_found(spoil: object, message: str) -> None:
    """NaN, negative numbers, bins out of order or range, and mass that is not 1."""
    answers = TopK.of(distributions(1, 10, 1.0), 4)
    assert answers.fault() == ""
    assert message in dataclasses.replace(answers, **spoil(answers)).fault()  # type: ignore[operator]


def test_a_teacher_that_does_not_sum_to_one_is_found() -> None:
    """The tail takes what rounding lost, and no more."""
    assert "instead of 1" in TopK.of(np.full((1, 8), 0.1, np.float32), 3).fault()
