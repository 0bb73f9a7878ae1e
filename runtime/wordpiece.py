"""BERT's uncased WordPiece tokenizer in plain Python: the robot needs no tokenizer package.

The same ids as the `tokenizers` package gives for the same tokenizer.json (a property test compares them). The steps, with
an example::

    Put the Café-cup!  ->  put the cafe-cup!                clean, space around CJK, decompose and drop marks, lower case
                       ->  put · the · cafe · - · cup · !   split at spaces; punctuation stands alone
                       ->  [CLS] put the cafe - cup ! [SEP]  greedy longest piece of the vocabulary; no fit: [UNK]

Truncation and padding of the file are not used: a cut instruction means something else, so a long one is refused.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlet.errors import BundleError, ObservationError
from runtime.bert_unicode import MARKS, PUNCTUATION, REMOVED

__all__ = ["WordPiece"]

# The CJK blocks of BERT's `tokenize_chinese_chars`, gaps included, as the `tokenizers` package has them.
_CJK = (
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF), (0x2A700, 0x2B81F), (0x2B920, 0x2CEAF), (0x2F800, 0x2FA1F),
)  # fmt: skip


class WordPiece:
    """Text to token ids.

    Args:
        data: Content of a tokenizer.json.
        max_tokens: Length of every answer, [CLS], [SEP] and padding included.
        where: The file's name, for messages.

    Raises:
        BundleError: Not a tokenizer.json, or of another kind than BERT uncased WordPiece.
    """

    def __init__(self, data: bytes, *, max_tokens: int, where: str = "tokenizer.json") -> None:
        self.max_tokens = max_tokens
        try:
            document = json.loads(data.decode())
            self._read(document)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise BundleError(f"{where}: not a BERT uncased WordPiece tokenizer.json ({type(error).__name__}: {error}).") from error

    def _read(self, document: dict[str, Any]) -> None:
        """Take over the settings; a setting that would give other ids than ours is refused."""
        normalizer, model = document["normalizer"], document["model"]
        wanted = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "lowercase": True}
        got = {key: normalizer[key] for key in wanted}
        if got != wanted or normalizer["strip_accents"] not in (None, True):
            raise ValueError(f"normalizer {normalizer}, expected {wanted}")
        if document["pre_tokenizer"] != {"type": "BertPreTokenizer"}:
            raise ValueError(f"pre_tokenizer {document['pre_tokenizer']}, expected BertPreTokenizer")
        if model.get("type", "WordPiece") != "WordPiece":
            raise ValueError(f"model {model['type']!r}, expected 'WordPiece'")
        self._vocabulary: dict[str, int] = {str(piece): int(number) for piece, number in model["vocab"].items()}
        self._unknown = self._vocabulary[model["unk_token"]]
        self._prefix = str(model["continuing_subword_prefix"])
        self._max_word = int(model["max_input_chars_per_word"])
        self._begin, self._end = _special_tokens(document["post_processor"], self._vocabulary)
        self._pad = self._vocabulary["[PAD]"]
        self._added: dict[str, int] = {}
        for token in document["added_tokens"]:
            if any(token[flag] for flag in ("single_word", "lstrip", "rstrip", "normalized")) or not token["content"]:
                raise ValueError(f"added token {token}, expected one without flags")
            self._added[token["content"]] = int(token["id"])
        longest_first = sorted(self._added, key=len, reverse=True)
        self._added_pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")" if longest_first else "(?!)()")

    def ids(self, text: str) -> list[int]:
        """The token ids of a text, with [CLS] and [SEP], of any length."""
        pieces = self._added_pattern.split(text)
        found = [self._added[piece] for piece in pieces[1::2]]
        answer = [self._begin]
        for i, piece in enumerate(pieces[::2]):  # Text between the tokens that are written out, as in "[MASK]".
            for word in _words(_normalize(piece)):
                answer.extend(self._word_ids(word))
            answer.extend(found[i : i + 1])
        return [*answer, self._end]

    def encode(self, text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Token ids and mask (1 = token, 0 = padding), int64 (1, max_tokens) each.

        Raises:
            ObservationError: The text does not fit into `max_tokens`; it is never cut.
        """
        ids = self.ids(text)
        if len(ids) > self.max_tokens:
            raise ObservationError(
                f"instruction {text[:200]!r} has {len(ids)} tokens, at most {self.max_tokens} fit (two of them mark begin and end): shorten it."
            )
        padding = self.max_tokens - len(ids)
        mask = [1] * len(ids) + [0] * padding
        return np.array([ids + [self._pad] * padding], np.int64), np.array([mask], np.int64)

    def _word_ids(self, word: str) -> list[int]:
        """Greedy longest match from the left; one rest that fits nothing makes the whole word unknown."""
        if len(word) > self._max_word:
            return [self._unknown]
        ids: list[int] = []
        start = 0
        while start < len(word):
            prefix = self._prefix if start else ""
            for end in range(len(word), start, -1):
                number = self._vocabulary.get(prefix + word[start:end])
                if number is not None:
                    ids.append(number)
                    start = end
                    break
            else:
                return [self._unknown]
        return ids


def _special_tokens(processor: dict[str, Any], vocabulary: dict[str, int]) -> tuple[int, int]:
    """Ids of the tokens before and after a single text."""
    if processor["type"] == "BertProcessing":
        return int(processor["cls"][1]), int(processor["sep"][1])
    if processor["type"] != "TemplateProcessing":
        raise ValueError(f"post_processor {processor['type']!r}, expected 'TemplateProcessing' or 'BertProcessing'")
    first, text, last = processor["single"]
    if "Sequence" not in text:
        raise ValueError(f"post_processor template {processor['single']}, expected one token, the text, one token")
    return vocabulary[first["SpecialToken"]["id"]], vocabulary[last["SpecialToken"]["id"]]


def _normalize(text: str) -> str:
    # Order as in the `tokenizers` package: clean, CJK, accents, lower case. `isspace` is left to what survives REMOVED.
    spaced = []
    for character in text:
        if character in "\t\n\r" or (character not in REMOVED and character.isspace()):
            spaced.append(" ")
        elif character not in REMOVED:
            spaced.append(f" {character} " if _is_cjk(character) else character)
    decomposed = unicodedata.normalize("NFD", "".join(spaced))
    # Lower case one character at a time: the whole string's lower() treats a final sigma apart, the package does not.
    return "".join(character.lower() for character in decomposed if character not in MARKS)


def _is_cjk(character: str) -> bool:
    return character >= "\u3400" and any(first <= ord(character) <= last for first, last in _CJK)


def _words(text: str) -> list[str]:
    parted = "".join(f" {character} " if character in PUNCTUATION else character for character in text)
    return parted.split()
