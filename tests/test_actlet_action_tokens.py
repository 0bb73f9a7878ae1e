"""Action tokens: half a bin of error at most, exact flags, and no ordinary token ever becomes a motion."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from actlet.action_tokens import ActionTokenizer, ActionVocabulary
from actlet.errors import ActionError, SpecError
from actlet.specs import ActionSpec, PolicySpec

finite = st.floats(-1e3, 1e3, width=32)


@st.composite
def tokenizers(draw: st.DrawFn) -> ActionTokenizer:
    """Any tokenizer of one to six dimensions."""
    low = draw(hnp.arrays(np.float32, st.integers(1, 6), elements=finite))
    width = draw(hnp.arrays(np.float32, len(low), elements=st.floats(0.125, 1e3, width=32)))
    return ActionTokenizer(low, low + width, draw(st.integers(2, 300)))


@given(tokenizers(), st.data())
@settings(deadline=None)
def test_decoding_an_encoded_action_is_within_half_a_bin(tokenizer: ActionTokenizer, data: st.DataObject) -> None:
    """|decode(encode(x)) - clip(x)| <= (h - l) / (2 (K - 1)), up to float32 rounding."""
    action = data.draw(hnp.arrays(np.float32, tokenizer.dim, elements=finite))
    error = np.abs(tokenizer.decode(tokenizer.encode(action)) - np.clip(action, tokenizer.low, tokenizer.high))
    half_bin = (tokenizer.high - tokenizer.low) / (2 * (tokenizer.bins - 1))
    assert (error <= half_bin + 4 * np.spacing(np.float32(2e3))).all()


@given(tokenizers())
@settings(deadline=None)
def test_every_bin_survives_decoding_and_encoding(tokenizer: ActionTokenizer) -> None:
    """encode(decode(b)) == b for all K bins, and `centres` are the decoded bins."""
    bins = np.repeat(np.arange(tokenizer.bins)[:, None], tokenizer.dim, axis=1)
    np.testing.assert_array_equal(tokenizer.encode(tokenizer.decode(bins)), bins)
    np.testing.assert_allclose(tokenizer.centres().T, tokenizer.decode(bins), rtol=1e-5, atol=1e-3)


@given(tokenizers(), st.data())
@settings(deadline=None)
def test_a_larger_value_never_has_a_smaller_bin(tokenizer: ActionTokenizer, data: st.DataObject) -> None:
    """Encoding is monotone."""
    low, high = sorted([data.draw(finite), data.draw(finite)])
    assert (tokenizer.encode(np.full(tokenizer.dim, low)) <= tokenizer.encode(np.full(tokenizer.dim, high))).all()


@given(tokenizers())
@settings(deadline=None)
def test_a_tokenizer_survives_json(tokenizer: ActionTokenizer) -> None:
    """The same bounds to the last bit, the same hash."""
    again = ActionTokenizer.from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert again == tokenizer
    assert hash(again) == hash(tokenizer)
    assert again != ActionTokenizer(tokenizer.low, tokenizer.high, tokenizer.bins + 1)


def test_bounds_are_percentiles_and_flags_are_exact(tiny_spec: PolicySpec) -> None:
    """1st and 99th percentile of continuous dimensions; {0, 1} of flags whatever the data says; a constant gets a width."""
    rng = np.random.default_rng(0)
    actions = np.stack([np.zeros(1000), rng.normal(size=1000), np.full(1000, 0.02), np.ones(1000)], axis=1).astype(np.float32)
    tokenizer = ActionTokenizer.fit(actions, tiny_spec.action)
    np.testing.assert_allclose([tokenizer.low[1], tokenizer.high[1]], np.percentile(actions[:, 1], [1, 99]), rtol=1e-6)
    assert (tokenizer.low[0], tokenizer.high[0], tokenizer.low[3], tokenizer.high[3]) == (0, 1, 0, 1)
    assert tokenizer.low[2] < tokenizer.high[2]
    np.testing.assert_allclose(tokenizer.decode(tokenizer.encode(actions))[:, 2], 0.02, atol=1e-5)
    flags = np.array([[0, 0, 0, 1], [1, 0, 0, 0]], np.float32)
    np.testing.assert_array_equal(tokenizer.decode(tokenizer.encode(flags))[:, [0, 3]], flags[:, [0, 3]])


def test_a_constant_large_value_still_gets_bounds() -> None:
    """The width that a constant dimension gets is more than float32's rounding there."""
    spec = ActionSpec(names=("z",), units=("m",), kinds=("continuous",), low=(0,), high=(1000,), frame="base")
    tokenizer = ActionTokenizer.fit(np.full((10, 1), 500.0, np.float32), spec)
    np.testing.assert_allclose(tokenizer.decode(tokenizer.encode(np.array([[500.0]], np.float32))), 500.0, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.zeros((2, 3)), np.array([[0, 0, np.nan, 0]]), np.array([[0, 0, np.inf, 0]])])
def test_encoding_refuses_other_shapes_and_values(tiny_spec: PolicySpec, bad: np.ndarray) -> None:
    """NaN has no bin."""
    tokenizer = ActionTokenizer(np.zeros(4), np.ones(4))
    with pytest.raises(ActionError):
        tokenizer.encode(bad)
    with pytest.raises(ActionError):
        ActionTokenizer.fit(bad.astype(np.float32), tiny_spec.action)


@pytest.mark.parametrize("bad", [np.array([[0, 0, 0, 256]]), np.array([[0, 0, -1, 0]]), np.zeros((1, 4)), np.zeros((1, 3), int)])
def test_decoding_refuses_what_is_no_bin(bad: np.ndarray) -> None:
    """A bin outside 0 .. K-1 is not clamped to a full-scale motion."""
    with pytest.raises(ActionError, match="expected"):
        ActionTokenizer(np.zeros(4), np.ones(4)).decode(bad)


@pytest.mark.parametrize(
    ("low", "high", "bins"),
    [
        ([0, 0], [1], 256),
        ([[0]], [[1]], 256),
        ([0], [0], 256),
        ([1], [0], 256),
        ([float("nan")], [1], 256),
        ([0], [1], 1),
        ([0], [1e39], 256),
    ],
)
def test_impossible_bounds_are_refused(low: list, high: list, bins: int) -> None:
    """Shapes, order, finiteness, number of bins."""
    with pytest.raises(SpecError, match="expected"):
        ActionTokenizer.from_dict({"low": low, "high": high, "bins": bins})


vocabularies = st.one_of(
    st.integers(300, 2000).map(ActionVocabulary.last),
    hnp.arrays(np.int64, st.integers(300, 900), elements=st.integers(0, 9)).map(ActionVocabulary.least_used),
    st.permutations(range(400)).map(lambda ids: ActionVocabulary.integers(lambda text: [ids[int(text)]], 400)),
)


@given(vocabularies, st.data())
@settings(deadline=None)
def test_ids_and_bins_are_one_to_one(vocabulary: ActionVocabulary, data: st.DataObject) -> None:
    """decode(encode(b)) == b, and every id that is not an action is refused."""
    bins = data.draw(hnp.arrays(np.int64, (2, 5), elements=st.integers(0, 255)))
    np.testing.assert_array_equal(vocabulary.decode(vocabulary.encode(bins)), bins)
    others = np.setdiff1d(np.arange(-3, vocabulary.vocab_size + 3), vocabulary.ids)
    with pytest.raises(ActionError, match="are not action tokens; refused"):
        vocabulary.decode(np.array([data.draw(st.sampled_from(others))]))


def test_the_last_ids_count_down_from_the_end() -> None:
    """OpenVLA: bin 0 is the very last id of the vocabulary."""
    assert ActionVocabulary.last(32000).encode(np.array([0, 255])).tolist() == [31999, 31744]


def test_integers_need_tokens_of_their_own() -> None:
    """RT-2-PaLI-X says the bin's number; a vocabulary that splits digits, or gives two numbers one token, cannot."""
    assert ActionVocabulary.integers(lambda text: [7 + int(text)], 300).encode(np.array([0, 255])).tolist() == [7, 262]
    with pytest.raises(SpecError, match="the number 10 is 2 tokens of this vocabulary, expected one"):
        ActionVocabulary.integers(lambda text: [int(digit) for digit in text], 300)
    with pytest.raises(SpecError, match="expected different ids"):
        ActionVocabulary.integers(lambda text: [int(text) // 2], 300)


def test_the_least_used_tokens_are_taken_and_the_forbidden_are_not() -> None:
    """RT-2-PaLM-E overwrites what is hardly ever used; special tokens keep their meaning."""
    counts = np.arange(1000)[::-1].copy()
    ids = ActionVocabulary.least_used(counts, forbidden=(999, 998)).ids
    assert ids.tolist() == list(range(742, 998))
    with pytest.raises(SpecError, match="10 usable tokens, 256 action tokens needed"):
        ActionVocabulary.least_used(np.zeros(10, np.int64))


def test_ids_must_differ_and_lie_in_the_vocabulary() -> None:
    """Two bins on one id could not be told apart."""
    with pytest.raises(SpecError, match=r"expected different ids in 0 .. 9"):
        ActionVocabulary(np.array([1, 1]), 10)
    with pytest.raises(SpecError, match="expected different ids"):
        ActionVocabulary(np.array([1, 10]), 10)
