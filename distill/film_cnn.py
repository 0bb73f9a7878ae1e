"""A small convolutional network that reads pictures in the light of an instruction (FiLM, Perez et al. 2018).

Every block is convolution, batch normalisation (folded into the convolution at export), feature-wise scale and shift by
the instruction, ReLU: operators that integer hardware has. RT-1 (Brohan et al. 2022) conditions its vision the same way.
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["FilmBlock", "FilmTrunk"]


class FilmBlock(nn.Module):
    """3x3 convolution, normalisation, FiLM, ReLU; with a residual path where the shape allows it."""

    def __init__(self, channels_in: int, channels_out: int, condition_dim: int, *, stride: int = 1) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.normalisation = nn.BatchNorm2d(channels_out)
        self.film = nn.Linear(condition_dim, 2 * channels_out)
        nn.init.zeros_(self.film.bias)
        nn.init.normal_(self.film.weight, std=0.05)
        self.activation = nn.ReLU()
        self.residual = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, C, h, w), condition (B, D) -> (B, C', h / stride, w / stride)."""
        scale, shift = self.film(condition)[:, :, None, None].chunk(2, dim=1)  # (B, C', 1, 1) each
        y = self.activation(self.normalisation(self.convolution(x)) * (1 + scale) + shift)
        return x + y if self.residual else y


class FilmTrunk(nn.Module):
    """Stages of blocks; every stage after the first halves the picture.

    Args:
        channels_in: Channels of the input.
        channels: Channels of each stage.
        condition_dim: D, the size of the conditioning vector.
        blocks: Blocks of each stage, the first of which may be strided.
        first_stride: Stride of the first stage's first block.
    """

    def __init__(
        self, channels_in: int, channels: tuple[int, ...], condition_dim: int, blocks: tuple[int, ...], *, first_stride: int = 2
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for stage, (width, count) in enumerate(zip(channels, blocks, strict=True)):
            for index in range(count):
                stride = (first_stride if stage == 0 else 2) if index == 0 else 1
                self.blocks.append(FilmBlock(channels_in, width, condition_dim, stride=stride))
                channels_in = width
        self.channels_out = channels_in

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, C, h, w), condition (B, D) -> (B, channels[-1], h', w')."""
        for block in self.blocks:
            x = block(x, condition)
        return x
