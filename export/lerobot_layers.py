"""Layers made of the tensors that LeRobot saved, and the ResNet that its policies see with: torchvision's, without torchvision.

A frozen normalisation (torchvision's FrozenBatchNorm2d) becomes part of the convolution before it::

    scale = w / sqrt(var + 1e-5)          weight' = scale weight          bias' = shift - scale mean
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from actlet.errors import CheckpointError

__all__ = ["Backbone", "Resnet", "Weights"]

Backbone = Literal["resnet18", "resnet34", "resnet50"]
_BLOCKS: dict[Backbone, tuple[int, ...]] = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
_NORM_EPS = 1e-5  # torchvision's FrozenBatchNorm2d


class Weights:
    """Layers made of a checkpoint's tensors, each used once."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._left = dict(tensors)

    def take(self, name: str, *shape: int) -> Tensor:
        """One tensor.

        Raises:
            CheckpointError: It is missing, or has another shape.
        """
        found = self._left.pop(f"model.{name}", None)
        if found is None or tuple(found.shape) != shape:
            got = "is missing" if found is None else f"has the shape {tuple(found.shape)}"
            raise CheckpointError(
                f"model.safetensors: tensor 'model.{name}' {got}, expected {shape} from config.json. Copy both files of the same checkpoint again."
            )
        return found

    def linear(self, name: str, inputs: int, outputs: int) -> nn.Linear:
        """With a bias."""
        return _linear(self.take(f"{name}.weight", outputs, inputs), self.take(f"{name}.bias", outputs))

    def projections(self, name: str, dim: int) -> list[nn.Linear]:
        """Of queries, keys and values, which torch keeps in one tensor."""
        weights, biases = self.take(f"{name}.in_proj_weight", 3 * dim, dim), self.take(f"{name}.in_proj_bias", 3 * dim)
        return [_linear(weight, bias) for weight, bias in zip(weights.chunk(3), biases.chunk(3), strict=True)]

    def norm(self, name: str, dim: int) -> nn.LayerNorm:
        """Over the last axis."""
        layer = nn.LayerNorm(dim)
        layer.weight, layer.bias = (nn.Parameter(self.take(f"{name}.{part}", dim)) for part in ("weight", "bias"))
        return layer

    def convolution(
        self, name: str, inputs: int, outputs: int, kernel: int, *, norm: str | None = None, stride: int = 1, dilation: int = 1
    ) -> nn.Conv2d:
        """With padding that keeps the size but for the stride; with the frozen normalisation that follows, if there is one, instead of a bias."""
        weight = self.take(f"{name}.weight", outputs, inputs, kernel, kernel)
        if norm is None:
            bias = self.take(f"{name}.bias", outputs)
        else:
            scale, shift, mean, variance = (
                self.take(f"{norm}.{part}", outputs) for part in ("weight", "bias", "running_mean", "running_var")
            )
            scale = scale * (variance + _NORM_EPS).rsqrt()
            weight, bias = weight * scale[:, None, None, None], shift - mean * scale
        padding = dilation * (kernel // 2)
        layer = skip_init(nn.Conv2d, inputs, outputs, kernel, stride=stride, padding=padding, dilation=dilation)
        layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
        return layer

    def finish(self, ignored: tuple[str, ...]) -> None:
        """Refuse tensors that nothing was made of, but for those whose names begin so.

        Raises:
            CheckpointError: There are some.
        """
        unknown = sorted(name for name in self._left if not name.startswith(ignored))
        if unknown:
            raise CheckpointError(
                f"model.safetensors: {len(unknown)} tensors that config.json does not explain, such as {unknown[:5]}; expected none. Copy both files "
                "of the same checkpoint again."
            )


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = skip_init(nn.Linear, weight.shape[1], weight.shape[0])
    layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    return layer


class Resnet(nn.Module):
    """torchvision's ResNet up to its last feature map.

    Args:
        weights: Whose tensors it takes.
        name: What their names begin with.
        kind: Which one.
        dilated: The last stride is a dilation instead; of ResNet-50 alone.
    """

    def __init__(self, weights: Weights, name: str, kind: Backbone, *, dilated: bool) -> None:
        super().__init__()
        block, self.stride = (_Bottleneck if kind == "resnet50" else _BasicBlock), (16 if dilated else 32)
        self.conv1 = weights.convolution(f"{name}.conv1", 3, 64, 7, norm=f"{name}.bn1", stride=2)
        self.channels = 64
        for number, (count, width) in enumerate(zip(_BLOCKS[kind], (64, 128, 256, 512), strict=True), start=1):
            wide, blocks = number == 4 and dilated, []
            for i in range(count):
                # The first block takes the stride; where a dilation takes its place, only the others have it.
                stride, dilation = (1 if i or wide or number == 1 else 2), (2 if i and wide else 1)
                blocks.append(block(weights, f"{name}.layer{number}.{i}", self.channels, width, stride, dilation))
                self.channels = width * block.expansion
            self.add_module(f"layer{number}", nn.Sequential(*blocks))

    def forward(self, image: Tensor) -> Tensor:
        """(1, 3, height, width) -> (1, `channels`, height / `stride`, width / `stride`), rounded up."""
        seen = functional.max_pool2d(torch.relu(self.conv1(image)), 3, stride=2, padding=1)
        return self.layer4(self.layer3(self.layer2(self.layer1(seen))))


class _BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, weights: Weights, name: str, inputs: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = weights.convolution(f"{name}.conv1", inputs, width, 3, norm=f"{name}.bn1", stride=stride, dilation=dilation)
        self.conv2 = weights.convolution(f"{name}.conv2", width, width, 3, norm=f"{name}.bn2")
        self.downsample = _shortcut(weights, name, inputs, width, stride)

    def forward(self, seen: Tensor) -> Tensor:
        return torch.relu(self.conv2(torch.relu(self.conv1(seen))) + self.downsample(seen))


class _Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, weights: Weights, name: str, inputs: int, width: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.conv1 = weights.convolution(f"{name}.conv1", inputs, width, 1, norm=f"{name}.bn1")
        self.conv2 = weights.convolution(f"{name}.conv2", width, width, 3, norm=f"{name}.bn2", stride=stride, dilation=dilation)
        self.conv3 = weights.convolution(f"{name}.conv3", width, 4 * width, 1, norm=f"{name}.bn3")
        self.downsample = _shortcut(weights, name, inputs, 4 * width, stride)

    def forward(self, seen: Tensor) -> Tensor:
        inner = torch.relu(self.conv2(torch.relu(self.conv1(seen))))
        return torch.relu(self.conv3(inner) + self.downsample(seen))


def _shortcut(weights: Weights, name: str, inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(weights.convolution(f"{name}.downsample.0", inputs, outputs, 1, norm=f"{name}.downsample.1", stride=stride))
