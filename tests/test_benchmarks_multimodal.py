"""benchmarks.multimodal: a real flow is trained, and what becomes of its two ways in students."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from actlet.protocols import Observation, SamplingTeacher
from benchmarks.multimodal import SIDE_M, WORDS, demonstrations, measure, run, train_flow


def test_a_flow_draws_both_ways() -> None:
    """Where both are open, about half of its samples go to each, near what was demonstrated; later it stays on its side."""
    teacher = train_flow(demonstrations(100), steps=1500)
    assert isinstance(teacher, SamplingTeacher)
    frame = {"front": np.zeros((8, 8, 3), np.uint8)}
    samples = teacher.sample_actions(
        [Observation(frame, np.float32([0, -1])), Observation(frame, np.float32([0.4, -0.3]))], [WORDS] * 2, 200
    )
    assert samples.shape == (2, 200, 1, 3)
    assert 0.25 < (samples[0, :, 0, 0] > 0).mean() < 0.75
    assert (np.abs(np.abs(samples[0, :, 0, 0]) - SIDE_M) < 0.02).mean() > 0.6
    assert (samples[1, :, 0, 0] > 0).mean() > 0.9


def test_going_straight_hits_and_a_side_does_not() -> None:
    """The measure itself, on policies whose answer is known."""
    straight, right = (measure(lambda states, dx=dx: np.tile(np.float32([dx, 0.1, dx]), (len(states), 1))) for dx in (0.0, SIDE_M))
    assert (straight["hits"], straight["from_a_way_mm"]) == (1.0, pytest.approx(60, abs=0.01))
    assert (right["hits"], right["leans_where_it_goes"]) == (0.0, 1.0)


@pytest.mark.slow
def test_between_two_ways_lies_the_obstacle(tmp_path: Path) -> None:
    """Regression and expectation go between the two ways; around the likeliest bin one of them is taken."""
    found = run(tmp_path, steps=250, samples=8, episodes=60, seed=0)["policies"]
    straight = [found[name]["from_a_way_mm"] for name in ("binned; expectation", "regressed; expectation")]
    assert min(straight) > 30
    assert found["binned; 24 bins around the likeliest"]["from_a_way_mm"] < 10
    assert found["binned; 24 bins around the likeliest"]["hits"] < 0.5 * found["regressed; expectation"]["hits"]
