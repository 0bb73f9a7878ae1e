"""Statistics against published values, laws, and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actlet.statistics import latency_summary, mcnemar_p, paired_difference, wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "expected"),
    # Newcombe 1998, table I, method 3 (score method without continuity correction).
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611)), (1, 29, (0.0061, 0.1718))],
)
def test_wilson_interval_gives_the_published_values(successes: int, trials: int, expected: tuple[float, float]) -> None:
    """Four examples of Newcombe's."""
    assert wilson_interval(successes, trials) == pytest.approx(expected, abs=5e-5)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_rate_and_is_symmetric(pair: tuple[int, int]) -> None:
    """low <= rate <= high in [0, 1], and counting failures mirrors the interval."""
    successes, trials = pair
    low, high = wilson_interval(successes, trials)
    assert 0 <= low <= successes / trials + 1e-12
    assert successes / trials - 1e-12 <= high <= 1
    assert wilson_interval(trials - successes, trials) == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_wilson_interval_of_nothing_is_everything() -> None:
    """No trials, no knowledge."""
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_mcnemar_agrees_with_brute_force() -> None:
    """All sign patterns of the differing episodes are equally likely: the share at least as uneven as the one seen."""
    for only_ours, only_theirs in itertools.product(range(5), repeat=2):
        n = only_ours + only_theirs
        ours = [True] * only_ours + [False] * only_theirs + [True, False, True]
        theirs = [False] * only_ours + [True] * only_theirs + [True, False, True]
        patterns = list(itertools.product([0, 1], repeat=n))
        uneven = sum(abs(2 * sum(p) - n) >= abs(only_ours - only_theirs) for p in patterns)
        assert mcnemar_p(ours, theirs) == pytest.approx(uneven / len(patterns))


@given(st.lists(st.tuples(st.booleans(), st.booleans())))
def test_mcnemar_is_symmetric_and_a_probability(pairs: list[tuple[bool, bool]]) -> None:
    """Swapping the policies changes nothing; equal policies give 1."""
    ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    p = mcnemar_p(ours, theirs)
    assert 0 < p <= 1
    assert p == mcnemar_p(theirs, ours)
    assert mcnemar_p(ours, ours) == 1


def test_mcnemar_needs_the_same_episodes() -> None:
    """Unequal lengths cannot be paired."""
    with pytest.raises(ValueError, match="2 and 1 episodes: the same episodes"):
        mcnemar_p([True, False], [True])


@given(st.lists(st.floats(0, 100), min_size=1))
def test_latency_is_ordered_and_in_milliseconds(seconds: list[float]) -> None:
    """p50 <= p95 <= p99 <= max, and max is the largest second times a thousand."""
    summary = latency_summary(seconds)
    values = [summary[name] for name in ("p50", "p95", "p99", "max")]
    assert (np.diff(values) >= -1e-9 * max(values)).all()
    assert summary["max"] == pytest.approx(1e3 * max(seconds))


def test_latency_of_nothing_is_an_error() -> None:
    """There is no percentile of no measurement."""
    with pytest.raises(ValueError, match="no durations"):
        latency_summary([])


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=300))
def test_a_paired_difference_lies_in_its_interval_and_is_antisymmetric(pairs: list[tuple[bool, bool]]) -> None:
    """low <= difference <= high in [-1, 1], and exchanging the two mirrors it."""
    ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    difference, low, high = paired_difference(ours, theirs)
    assert -1 <= low <= difference + 1e-12
    assert difference - 1e-12 <= high <= 1
    mirrored = paired_difference(theirs, ours)
    assert mirrored == pytest.approx((-difference, -high, -low), abs=1e-12)


def test_the_interval_of_a_paired_difference_covers_it() -> None:
    """In at least 94 of 100 simulated comparisons of 60 episodes, whose true difference is 10 points, and in 94 of 100 where it is none."""
    rng = np.random.default_rng(0)
    for shares in ((0.5, 0.2, 0.1, 0.2), (0.8, 0.05, 0.05, 0.1)):  # Both, ours alone, theirs alone, none.
        covered = 0
        for outcomes in rng.choice(4, (2000, 60), p=shares):
            _, low, high = paired_difference(list(np.isin(outcomes, (0, 1))), list(np.isin(outcomes, (0, 2))))
            covered += low <= shares[1] - shares[2] <= high
        assert covered >= 1880


def test_a_paired_difference_needs_the_same_episodes() -> None:
    """Another number is refused, none says nothing."""
    with pytest.raises(ValueError, match="the same episodes"):
        paired_difference([True], [])
    assert paired_difference([], []) == (0.0, -1.0, 1.0)
