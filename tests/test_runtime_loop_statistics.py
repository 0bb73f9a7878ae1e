"""What a run is judged by: durations that are kept in memory of their own."""

from __future__ import annotations

import pytest

from runtime.loop_statistics import Durations, LoopStatistics


@pytest.mark.parametrize("count", [0, 1, 4, 5, 6, 13, 15])
def test_the_newest_durations_are_kept_in_their_order(count: int) -> None:
    """As many as there is room for; what came after a moment, too."""
    kept, every = Durations(5), [0.5 + i for i in range(count)]
    for value in every:
        kept.append(value)
    assert list(kept) == every[-5:]
    assert (len(kept), kept.count, bool(kept)) == (min(count, 5), count, count > 0)
    assert kept.newest == (every[-1] if every else 0.0)
    for seen in range(count + 2):
        assert kept.after(seen) == every[max(seen, count - 5) :]


def test_statistics_of_nothing_are_alike() -> None:
    """And differ by what was measured."""
    one, other = LoopStatistics(), LoopStatistics()
    assert one == other
    one.ages_s.append(0.1)
    assert one != other
