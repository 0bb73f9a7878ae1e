"""What the RT-2-style teacher is put together from: text and its features, words as targets, keys and values, a camera's vision."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from distill.backbones import VISION_CHANNELS
from distill.film_cnn import FilmBlock, FilmTrunk

__all__ = ["CameraVision", "Prefix", "Reading", "Text", "TextCondition", "Words"]

Reading = tuple[list[tuple[Tensor, Tensor]], Tensor]
"""Keys and values (U, heads, L, width) of each layer, and the mask (U, L)."""


class _Shape(Protocol):
    """What of a teacher's configuration its vision needs."""

    channels: tuple[int, ...]
    blocks: tuple[int, ...]
    condition_dim: int


@dataclasses.dataclass
class Text:
    """U questions or instructions, padded on the right."""

    ids: Tensor
    """int64 (U, L)."""
    hidden: Tensor
    """(U, L, width), the frozen language model's features; zeros where it is not pretrained."""
    mask: Tensor
    """int64 (U, L), 0 where padded."""

    def to(self, device: torch.device) -> Text:
        """The same elsewhere."""
        return Text(self.ids.to(device), self.hidden.to(device), self.mask.to(device))

    @classmethod
    def join(cls, rows: Sequence[Text]) -> Text:
        """Several of one row each."""
        length = max(row.ids.shape[1] for row in rows)
        pad = [(0, length - row.ids.shape[1]) for row in rows]
        return cls(
            torch.cat([nn.functional.pad(row.ids, p) for row, p in zip(rows, pad, strict=True)]),
            torch.cat([nn.functional.pad(row.hidden, (0, 0, *p)) for row, p in zip(rows, pad, strict=True)]),
            torch.cat([nn.functional.pad(row.mask, p) for row, p in zip(rows, pad, strict=True)]),
        )


@dataclasses.dataclass
class Words:
    """Answers in words, each ended by the end token, padded on the right."""

    ids: Tensor
    """int64 (B, W)."""
    mask: Tensor
    """int64 (B, W), 0 where padded."""

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], end: int, device: torch.device) -> Words:
        """From token ids without the end."""
        length = 1 + max(len(row) for row in rows)
        ids = torch.tensor([[*row, *[end] * (length - len(row))] for row in rows], device=device)
        mask = torch.tensor([[1] * (len(row) + 1) + [0] * (length - len(row) - 1) for row in rows], device=device)
        return cls(ids, mask)

    def __getitem__(self, rows: Tensor) -> Words:
        return Words(self.ids[rows], self.mask[rows])


@dataclasses.dataclass
class Prefix:
    """Keys and values of what was read so far, and which of its places count."""

    cache: Any
    mask: Tensor

    @classmethod
    def of(cls, layers: list[tuple[Tensor, Tensor]], mask: Tensor, which: Tensor) -> Prefix:
        """Rows `which` of keys, values (U, heads, L, width) and mask (U, L), in a cache that can grow."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for index, (keys, values) in enumerate(layers):
            cache.update(keys[which], values[which], index)
        return cls(cache, mask[which])


class CameraVision(nn.Module):
    """Maps at 1/4 and 1/8 of a frame's size -> a 4x4 grid of features, flattened: where things are is kept."""

    def __init__(self, config: _Shape) -> None:
        super().__init__()
        fine, coarse = VISION_CHANNELS
        self.down = FilmBlock(fine, 64, config.condition_dim, stride=2)
        self.trunk = FilmTrunk(64 + coarse, config.channels, config.condition_dim, config.blocks, first_stride=1)
        self.grid = nn.AdaptiveAvgPool2d(4)
        self.features_out = 16 * self.trunk.channels_out

    def forward(self, fine: Tensor, coarse: Tensor, condition: Tensor) -> Tensor:
        """(B, 27, h/4, w/4), (B, 40, h/8, w/8), (B, D) -> (B, 16 C)."""
        x = torch.cat([self.down(fine, condition), coarse], dim=1)
        features: Tensor = self.grid(self.trunk(x, condition)).flatten(1)
        return features


class TextCondition(nn.Module):
    """What an instruction says, as a vector: language features standardised over the training instructions.

    Sentences of one template have nearly the same features: without subtracting what they share, a network learns the
    training scenes by heart before it learns to listen (docs/lessons.md).
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3 * width))
        self.register_buffer("std", torch.ones(3 * width))
        self.mix = nn.Sequential(nn.Linear(3 * width, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU())

    @staticmethod
    def features(text: Text, embedded: Tensor) -> Tensor:
        """(U, 3 * width): mean of the words' embeddings, mean of their features in context, features of the last word."""
        mask, length = text.mask[..., None].float(), text.mask.sum(1)
        means = [(x * mask).sum(1) / length[:, None] for x in (embedded, text.hidden)]
        return torch.cat([*means, text.hidden[torch.arange(len(length), device=length.device), length - 1]], dim=1)

    def fit(self, features: Tensor) -> None:
        """Take mean and spread of the training instructions; what never varies counts little."""
        std = features.std(0, correction=0)
        self.mean.copy_(features.mean(0))
        for part, whole in zip(self.std.chunk(3), std.chunk(3), strict=True):
            part.copy_(whole.clamp(min=0.25 * float(whole.mean()) + 1e-6))

    def forward(self, features: Tensor) -> Tensor:
        """(U, 3 * width) -> (U, dim)."""
        condition: Tensor = self.mix(((features - self.mean) / self.std).clamp(-5.0, 5.0))
        return condition
