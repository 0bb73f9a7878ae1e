"""Finding FiLM in a graph, putting all its vectors into one matrix product, and folding them into integer convolutions.

A FiLM block of the student (Perez et al. 2018) is exported as::

    condition ─ Gemm ─ Unsqueeze ─ Split ┬ scale' ─ Add 1 ─┐scale
                                         └ shift ──────────┼────────┐
                                          x ─ Conv ─ Mul ──┘── Add ─┘─ Relu

Twelve blocks are 48 tiny operators that cost more time than their arithmetic. All of them read the same condition, so one
Gemm with the stacked weights gives every scale and shift at once; the 1 goes into the bias.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from quantize.graph import Graph

__all__ = ["MAX_BIAS", "Film", "FilmSite", "film_names", "fold_film", "stack_film"]

MIN_SCALE = 1e-4  # Smallest |S|: below it the channel's contribution is under a step, but T / S would overflow int32.
MAX_BIAS = float(1 << 30)  # Leaves the other half of int32 to the sum of products.


@dataclasses.dataclass(frozen=True)
class FilmSite:
    """One convolution with its FiLM: relu((conv(x) + bias) * scale + shift)."""

    conv: onnx.NodeProto
    scale: onnx.NodeProto
    """The Mul."""
    shift: onnx.NodeProto
    """The Add."""
    relu: onnx.NodeProto
    condition: str
    """The value that the instruction's Gemm reads, float32 (1, D)."""
    weight: NDArray[np.float32]
    """(2 C, D): rows of scale, then of shift."""
    bias: NDArray[np.float32]
    """(2 C,), the 1 of the scale included."""

    @property
    def channels(self) -> int:
        """C."""
        return len(self.bias) // 2


@dataclasses.dataclass(frozen=True)
class Film:
    """All FiLM of a graph that depends on one condition, after stacking."""

    sites: tuple[FilmSite, ...]
    vector: str
    """float32 (1, 2 N): the N = sum of C scales, site after site, then the N shifts."""

    @property
    def sizes(self) -> list[int]:
        """C of every site."""
        return [site.channels for site in self.sites]


def stack_film(graph: Graph, name: str = "film") -> Film | None:
    """Replace the Gemm nodes of all FiLM blocks by one of the given name; the network computes the same.

    A convolution that is followed by anything else than the form above stays as it is, and so do blocks with another
    condition than the first one's.

    Returns:
        What was stacked; None if the graph has no FiLM.
    """
    found = [site for node in graph.weight_nodes() if node.op_type == "Conv" for site in [_match(graph, node)] if site]
    sites = tuple(site for site in found if site.condition == found[0].condition)
    if not sites:
        return None
    parts = [(slice(0, site.channels), site) for site in sites] + [(slice(site.channels, None), site) for site in sites]
    weight = graph.store(f"{name}.weight", np.concatenate([site.weight[rows] for rows, site in parts]))
    bias = graph.store(f"{name}.bias", np.concatenate([site.bias[rows] for rows, site in parts]))
    film = Film(sites, graph.add("Gemm", [sites[0].condition, weight, bias], f"{name}.vector", name=name, transB=1))
    shape = graph.store(f"{name}.shape", np.array([1, -1, 1, 1]))
    column = graph.add("Reshape", [film.vector, shape], f"{name}.column")  # (1, 2 N, 1, 1)
    lengths = graph.store(f"{name}.lengths", np.array(film.sizes * 2))
    pieces = [f"{site.conv.name}.{half}" for half in ("film_scale", "film_shift") for site in sites]
    graph.add("Split", [column, lengths], pieces, axis=1)
    for i, site in enumerate(sites):
        site.scale.input[:] = [site.conv.output[0], pieces[i]]
        site.shift.input[:] = [site.scale.output[0], pieces[len(sites) + i]]
    return film


def film_names(conv: str) -> tuple[str, str]:
    """Names of the values that `fold_film` makes for a convolution: float32 weight scale (C,) and int32 bias (C,)."""
    return f"{conv}.film_weight_scale", f"{conv}.film_bias"


def fold_film(
    graph: Graph,
    film: Film,
    weight_steps: Sequence[NDArray[np.float32]],
    accumulator_steps: Sequence[NDArray[np.float32]],
    biases: Sequence[NDArray[np.float32]],
) -> None:
    """Give every site the scale and bias with which an integer convolution does FiLM as well, N channels at a time.

    With S and T the site's scale and shift at run time, s_w the step of a channel's weights, s_x that of the input and b the
    convolution's own bias: weight scale s_w S, bias round((b + T / S) / (s_x s_w)), in `film_names`.

    Args:
        graph: Gets about a dozen operators on vectors.
        film: What `stack_film` made.
        weight_steps: s_w of every site, float32 (C,).
        accumulator_steps: s_x s_w of every site, float32 (C,).
        biases: b of every site, float32 (C,).
    """
    channels = sum(film.sizes)
    flat = graph.add("Reshape", [film.vector, graph.store("film.flat_shape", np.array([-1]))], "film.flat")  # (2 N,)
    graph.add("Split", [flat, graph.store("film.half_lengths", np.array([channels] * 2))], ["film.raw_scale", "film.shift"])
    least = graph.store("film.least", np.array(MIN_SCALE, np.float32))
    tiny = graph.add("Less", [graph.add("Abs", ["film.raw_scale"], "film.abs"), least], "film.tiny")
    scale = graph.add("Where", [tiny, least, "film.raw_scale"], "film.scale")
    weight_scale = graph.add("Mul", [scale, graph.store("film.weight_steps", np.concatenate(weight_steps))], "film.weight_scale")
    ratio = graph.add("Div", ["film.shift", scale], "film.ratio")
    summed = graph.add("Add", [ratio, graph.store("film.conv_bias", np.concatenate(biases).astype(np.float32))], "film.bias_sum")
    per_step = graph.store("film.per_step", (1 / np.concatenate(accumulator_steps)).astype(np.float32))
    rounded = graph.add("Round", [graph.add("Mul", [summed, per_step], "film.bias_steps")], "film.bias_rounded")
    limits = [graph.store(f"film.bias_{end}", np.array(sign * MAX_BIAS, np.float32)) for end, sign in (("low", -1), ("high", 1))]
    integer = graph.add("Cast", [graph.add("Clip", [rounded, *limits], "film.bias_clipped")], "film.bias_int32", to=onnx.TensorProto.INT32)
    lengths = graph.store("film.site_lengths", np.array(film.sizes))
    names = [film_names(site.conv.name) for site in film.sites]
    graph.add("Split", [weight_scale, lengths], [weight for weight, _ in names])
    graph.add("Split", [integer, lengths], [bias for _, bias in names])


def _match(graph: Graph, conv: onnx.NodeProto) -> FilmSite | None:
    mul = graph.sole_consumer(conv.output[0], "Mul")
    add = graph.sole_consumer(mul.output[0], "Add") if mul else None
    relu = graph.sole_consumer(add.output[0], "Relu") if add else None
    if mul is None or add is None or relu is None:
        return None
    scale, one = _plus_constant(graph, _other(mul, conv.output[0]))
    shift = _other(add, mul.output[0])
    split = graph.producer(shift)
    if split is None or split.op_type != "Split" or list(split.output) != [scale, shift]:
        return None
    unsqueeze = graph.producer(split.input[0])
    gemm = graph.producer(unsqueeze.input[0]) if unsqueeze is not None and unsqueeze.op_type == "Unsqueeze" else None
    if gemm is None or gemm.op_type != "Gemm" or not all(graph.is_constant(name) for name in gemm.input[1:]):
        return None
    usual = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}
    if usual != {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0} | {a.name: a.i or a.f for a in gemm.attribute}:
        return None
    weight = graph.constant(gemm.input[1])
    channels = len(weight) // 2
    if channels != graph.constant(conv.input[1]).shape[0]:
        return None
    bias = graph.constant(gemm.input[2]).astype(np.float32) if len(gemm.input) > 2 else np.zeros(2 * channels, np.float32)
    offset = np.concatenate([np.full(channels, one, np.float32), np.zeros(channels, np.float32)])
    return FilmSite(conv, mul, add, relu, gemm.input[0], weight, bias + offset)


def _other(node: onnx.NodeProto, known: str) -> str:
    return node.input[1] if node.input[0] == known else node.input[0]


def _plus_constant(graph: Graph, value: str) -> tuple[str, float]:
    """(v, c) if a value is v + c with a stored number c, else (value, 0)."""
    node = graph.producer(value)
    if node is None or node.op_type != "Add":
        return value, 0.0
    for i in (0, 1):
        if graph.is_constant(node.input[i]) and graph.constant(node.input[i]).size == 1:
            return node.input[1 - i], float(graph.constant(node.input[i]).item())
    return value, 0.0
