"""actlet.rounding: no number moves by more than half a step, and the search for int4's scales is no worse than the usual rule."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from actlet.rounding import INT4_BLOCK, int4_blocks, int8_channels, uint8_grid


@given(st.integers(0, 2**31), st.sampled_from([0, 1, -1]), st.sampled_from([63, 127]))
def test_no_int8_weight_moves_by_more_than_half_a_step(seed: int, axis: int, levels: int) -> None:
    """|w - s q| <= s / 2, |q| <= levels, one scale per channel."""
    weight = (np.random.default_rng(seed).standard_t(3, (6, 10)) * 10.0 ** (seed % 7 - 4)).astype(np.float32)
    values, scale = int8_channels(weight, axis, levels)
    step = scale[:, None] if axis == 0 else scale[None]
    assert values.dtype == np.int8
    assert np.abs(values.astype(int)).max() <= levels
    assert (np.abs(weight - values * step) <= step * (0.5 + 1e-4)).all()


def _weights(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_t(3 + seed % 9, (16, INT4_BLOCK)) * 10.0 ** rng.uniform(-4, 1)).astype(np.float32)


@given(st.integers(0, 2**31))
def test_no_int4_weight_moves_by_more_than_half_a_step(seed: int) -> None:
    """|w - s q| <= |s| / 2 wherever q is not at an end of -8 .. 7."""
    weight = _weights(seed)
    values, scale = int4_blocks(weight)
    step = scale.astype(np.float32)
    inside = (values > -8) & (values < 7)
    assert (values >= -8).all()
    assert (values <= 7).all()
    assert inside.any()
    assert (np.abs(weight - values * step) <= np.abs(step) * (0.5 + 1e-3))[inside].all()


@given(st.integers(0, 2**31))
def test_the_search_is_no_worse_than_plain_rounding(seed: int) -> None:
    """Squared error of every block against s = max|w| / 7, the usual rule, rounded to float16 like ours."""
    weight = _weights(seed)
    values, scale = int4_blocks(weight)
    plain = np.maximum((np.abs(weight).max(1, keepdims=True) / 7).astype(np.float16).astype(np.float32), 6e-8)
    usual = ((np.clip(np.rint(weight / plain), -8, 7) * plain - weight) ** 2).sum(1)
    ours = ((values * scale.astype(np.float32) - weight) ** 2).sum(1)
    assert (ours <= usual * (1 + 1e-5)).all()


def test_zeros_and_leftovers() -> None:
    """A block of zeros stays zero; what does not fill a block is filled up."""
    values, scale = int4_blocks(np.zeros((3, 11), np.float32))
    assert values.shape == (2, INT4_BLOCK)
    assert not values.any()
    assert np.isfinite(scale).all()


@given(st.floats(-1e3, 0.0), st.floats(0.0, 1e3))
def test_a_grid_covers_its_range_and_holds_zero(low: float, high: float) -> None:
    """0 is one of the 256 steps, and both ends are at most a step beyond the last one."""
    step, zero = uint8_grid(low, high)
    assert 0 <= zero <= 255
    assert -zero * step <= low + step
    assert (255 - zero) * step >= high - step
