"""int8 storage of the instruction encoder: bounded error per weight, a quarter of the size, the same meaning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from actlet.errors import QuantizationError
from distill.text_encoder import load_text_encoder
from export.weight_only import BLOCK, quantize_blocks, store_weights_int8
from runtime.policy import BundlePolicy


@given(st.integers(0, 2**31), st.floats(1e-6, 1e3))
def test_no_weight_moves_by_more_than_half_a_step(seed: int, size: float) -> None:
    """|w - w'| <= s / 2 with s = max|w| / 127 of the block."""
    weight = (np.random.default_rng(seed).standard_t(3, (4, 2 * BLOCK)) * size).astype(np.float32)
    values, scale = quantize_blocks(weight)
    error = np.abs(weight.reshape(-1, BLOCK) - values * scale[:, None])
    assert values.dtype == np.int8
    assert (error <= scale[:, None] * (0.5 + 1e-4)).all()


def test_a_block_of_zeros_stays_zero() -> None:
    """No division by zero."""
    values, scale = quantize_blocks(np.zeros((1, BLOCK), np.float32))
    assert not values.any()
    assert np.isfinite(scale).all()


def test_the_encoder_keeps_its_meaning_at_a_quarter_of_the_size(tiny_float_bundle: Path) -> None:
    """22.7 M weights in under 25 MB, and a cosine of 0.999 on sentences that export did not look at."""
    texts = ["grasp the spoon", "wipe the table with the blue cloth", "turn the knob to the right"]
    networks = BundlePolicy(tiny_float_bundle).networks
    ours = np.stack([networks.embed(text) for text in texts])
    cosines = (ours * load_text_encoder().encode(texts)).sum(axis=1)
    assert (tiny_float_bundle / "instruction.onnx").stat().st_size < 25e6
    assert cosines.min() >= 0.999


def _model(width: int) -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones((width, width), np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, width]) for name in "xy")
    return helper.make_model(helper.make_graph([node], "g", [x], [y], [weight]), opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_nothing_to_store_is_an_error() -> None:
    """A graph without large matrices would come back as large as it was: said, not passed over."""
    assert len(store_weights_int8(_model(64)).graph.node) == 3
    with pytest.raises(QuantizationError, match="nothing was stored as int8"):
        store_weights_int8(_model(32))


def test_the_original_is_left_alone() -> None:
    """The function returns a copy."""
    model = _model(64)
    before = model.SerializeToString()
    store_weights_int8(model)
    assert model.SerializeToString() == before
