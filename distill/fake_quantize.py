"""Quantization-aware training: the student's forward pass rounds as its int8 or int4 bundle will (Jacob et al. 2018).

    weights        w' = round(c w) / c                        gradient 1 (straight through, Bengio et al. 2013)
    activations    x' = s (clip(rint(x / s) + z, 0, 255) - z)   gradient 1 inside the range, 0 outside

`round` is `actlet.rounding`'s, of the same layers as `quantize` chooses in "cpu" int8 and in int4 (which rounds weights alone). c is what the
normalisation after a convolution multiplies each channel by, with its running variance: export folds it into the weights, and
the quantizer rounds the product. In training the normalisation itself goes on with the batch's own mean and variance.

An activation is rounded where the int8 graph holds integers: what a convolution gives after FiLM and ReLU, sums of two such, and what
a product reads. Its range is a running mean of each batch's smallest and largest value. Calibration clips a little of what occurs
over all frames (to 72..100 % of it, on a student of 1.4 M weights), and so does such a mean.

What a bundle also rounds and training does not: int32 biases, and large float weights stored as float16.

Nothing of this is part of the student: it is called with rounded weights in place of its own, and hooks that live as long as the
call. What is kept, copied, averaged and written is the float student.

Learned by measuring (student of 0.55 M weights, 500 updates on 18 episodes, seeds 0 and 1; mean error of a continuous action in bins): int4
added 0.38 and 0.38 to the float student's 16.6 and 13.9 on the demonstrations that it was trained on, with int4's rounding in training 0.16 and
0.22. int8 added 0.02 at most either way: there is nothing to win back. In unseen scenes no difference shows beside the student's own
error of 32 bins. Forward and backward passes take 1.7 times as long with int8, 2.2 times with int4 (1.9 M weights, one thread).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from actlet.rounding import (
    INT4_MIN_WEIGHTS,
    INT8_MIN_MATRIX,
    INT8_MIN_WEIGHTS,
    MAX_CAMERA_POOL,
    MIN_CHANNELS,
    int4_blocks,
    int8_channels,
)
from distill.film_cnn import FilmBlock
from distill.student import Student, StudentOutput

__all__ = ["FakeQuantizer", "Precision", "rounded_layers", "rounded_weight"]

Precision = Literal["int8", "int4"]
Side = Literal["input", "output"]
_RANGE_DECAY = 0.99


class FakeQuantizer(nn.Module):
    """Runs a student as its quantized bundle would, from a given update on. Has no parameters, and nothing in a state dict.

    Args:
        student: For its layers' names and shapes; it is not kept.
        precision: Which bundle.
        begin: How many updates are made in float first. An update is one call in training mode; ranges are watched from the first.
    """

    updates: Tensor
    ranges: Tensor

    def __init__(self, student: Student, precision: Precision, begin: int = 0) -> None:
        super().__init__()
        self.precision: Precision = precision
        self.begin = begin
        self.layers = rounded_layers(student, precision)
        self.values = _rounded_values(student, self.layers) if precision == "int8" else []
        # Buffers, so that the moving average and the state for resuming have them too.
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("ranges", torch.zeros(len(self.values), 2), persistent=False)  # (values, low and high)

    def forward(self, student: Student, *inputs: Any) -> StudentOutput:
        """What `student` answers to its inputs with its weights and activations rounded; in float before update `begin`."""
        updates, modules = int(self.updates), dict(student.named_modules())
        active, decay = updates >= self.begin, min(_RANGE_DECAY, (1 + updates) / (10 + updates))  # so that it forgets where it began
        weights = {f"{name}.weight": self._weight(modules, name) for name in self.layers} if active else {}
        with contextlib.ExitStack() as hooks:
            for row, (name, side) in enumerate(self.values):
                change = functools.partial(self._activation, row=row, decay=decay, active=active)
                hooks.enter_context(_hook(modules[name], side, change))
            output: StudentOutput = functional_call(student, weights, inputs)
        if self.training:
            self.updates += 1
        return output

    def _weight(self, modules: dict[str, nn.Module], name: str) -> Tensor:
        weight, scale = modules[name].get_parameter("weight"), _folded_scale(modules, name)
        rounded = torch.where(scale == 0, weight.detach(), rounded_weight(weight * scale, self.precision) / scale)
        return rounded + (weight - weight.detach())  # the rounded one to the bit, with the gradient of the other

    def _activation(self, x: Tensor, *, row: int, decay: float, active: bool) -> Tensor:
        """Follow the range of a value, and round it."""
        if self.training:
            low, high = torch.aminmax(x.detach())
            self.ranges[row].lerp_(torch.stack([low.clamp(max=0), high.clamp(min=0)]), 1 - decay)
        if not active:
            return x
        low, high = self.ranges[row]
        step = (high - low).clamp(min=1e-8) / 255  # `actlet.rounding.uint8_grid`, without the way to the host and back
        zero = (-low / step).round().clamp(0, 255).to(torch.int32)
        return torch.fake_quantize_per_tensor_affine(x, step, zero, 0, 255)


def rounded_weight(weight: Tensor, precision: Precision) -> Tensor:
    """float32 (C, ...), what the integers stand for that `quantize` writes for such a weight; without gradient."""
    array = weight.detach().cpu().numpy()
    if precision == "int8":
        values, scale = int8_channels(array)
        rounded = values * scale.reshape(-1, *[1] * (array.ndim - 1))
    else:
        values, half = int4_blocks(array)
        rounded = (values * half.astype("float32")).reshape(-1)[: array.size].reshape(array.shape)
    return torch.from_numpy(rounded).to(weight.device)


def rounded_layers(student: Student, precision: Precision) -> list[str]:
    """Names of the layers whose weights `quantize` rounds in this student's bundle."""
    layers = {name: layer for name, layer in student.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))}
    del layers["waypoints"]  # Of use in training alone, and in no bundle.
    sizes = {name: layer.weight.numel() for name, layer in layers.items()}
    least, least_matrix, first = INT4_MIN_WEIGHTS, INT4_MIN_WEIGHTS, set[str]()
    if precision == "int8":
        least, least_matrix = INT8_MIN_WEIGHTS, INT8_MIN_MATRIX
        film = [name for name in layers if name.endswith(".film")]
        sizes |= dict.fromkeys(film, sum(sizes[name] for name in film))  # one product in an int8 graph
        first = {f"trunks.{i}.blocks.0.convolution" for i, (pool, _) in enumerate(student.pooling) if pool <= MAX_CAMERA_POOL}
    chosen = []
    for name, layer in layers.items():
        if isinstance(layer, nn.Linear):
            wide = min(layer.weight.shape) >= MIN_CHANNELS
        else:
            wide = precision == "int4" or layer.in_channels >= MIN_CHANNELS or name in first  # those of `first` read bytes
        if wide and sizes[name] >= (least_matrix if isinstance(layer, nn.Linear) else least):
            chosen.append(name)
    return chosen


def _rounded_values(student: Student, layers: list[str]) -> list[tuple[str, Side]]:
    """The modules whose input or output an int8 graph holds as integers."""
    values: list[tuple[str, Side]] = []
    for name, module in student.named_modules():
        if isinstance(module, FilmBlock):
            values.append((f"{name}.activation", "output"))
            if module.residual:
                values.append((name, "output"))
    flattened = []
    for i in range(len(student.trunks)):
        if f"points.{i}.maps" in layers:
            values.append((f"points.{i}.maps", "output"))
        if f"squeezes.{i}.0" in layers:
            values.append((f"squeezes.{i}.1", "output"))
            flattened.append(f"squeezes.{i}.3")  # reads these integers
    for name in layers:
        if isinstance(student.get_submodule(name), nn.Linear) and name not in flattened:
            values.append(("dropout" if name == "mix.0" else name, "input"))  # rounded before a part of it is switched off
    return values


def _hook(module: nn.Module, side: Side, change: Callable[[Tensor], Tensor]) -> RemovableHandle:
    if side == "input":
        return module.register_forward_pre_hook(lambda _, arguments: (change(arguments[0]), *arguments[1:]))
    return module.register_forward_hook(lambda _, __, output: change(output))


def _folded_scale(modules: dict[str, nn.Module], name: str) -> Tensor:
    """What export multiplies a layer's weight by: (C, 1, 1, 1) for a convolution with a normalisation, else 1."""
    block = modules[name.removesuffix(".convolution")]
    if not isinstance(block, FilmBlock):
        return torch.ones((), device=modules[name].get_parameter("weight").device)
    norm = block.normalisation
    assert norm.running_var is not None
    return (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()[:, None, None, None]
