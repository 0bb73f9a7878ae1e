"""int8: weights and activations as integers, calibrated on recorded frames; two dialects for two kinds of runtime.

Equation, with a step s and an integer zero z per value (weights: one s per output channel, z = 0)::

    q = clip(round(x / s) + z)          x' = (q - z) s          int32 sum of products, float32 rescaling

"cpu", the fastest on ONNX Runtime: activations uint8, so that ReLU is the clipping at 0 and costs nothing, and FiLM
inside the convolution. A convolution with FiLM and ReLU is one integer operator, because QLinearConv takes its scale and
bias at run time::

    relu((s_x s_w acc + b) S + T)  =  s_x (s_w S) (acc + round((b + T / S) / (s_x s_w))),  clipped at 0

acc being the int32 sum, S and T the instruction's scale and shift of a channel (|S| is kept at 1e-4 or more).

"portable", for TensorRT: QuantizeLinear / DequantizeLinear pairs with symmetric int8 activations and float biases; FiLM
and ReLU stay float. ONNX Runtime runs it too.

"float8", for GPUs that multiply it (NVIDIA from Ada on): the same with E4M3 in place of int8, s being max|x| / 448. ONNX Runtime on a
processor rounds so and computes in float, which shows what it costs in behaviour, and nothing of its speed.

Learned by measuring (ONNX Runtime 1.31, one thread, student of 2.5 M weights, 200 held-out frames): float operators between
integer ones cost a conversion each way, so "portable" is 1.5 times faster than float and "cpu" 2.2 times, with 5 dB less noise
(38.6 dB against 33.3). Where a processor has AVX2 but no VNNI (student of 1.4 M weights, 64 frames, three turns) "cpu" was 1.0
times faster than float, 1.1 with the cameras' convolutions in float. A Gemm with a bias inside is often not taken as an integer kernel, so biases are added after it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray

from actlet.errors import QuantizationError
from actlet.rounding import INT8_LEVELS, INT8_MIN_MATRIX, INT8_MIN_WEIGHTS, MIN_CHANNELS, int8_channels, uint8_grid
from quantize.asked_maps import find_asked_maps
from quantize.calibration import RangeRule, observe, value_range
from quantize.camera_input import CameraInput, find_camera_inputs
from quantize.cameras_together import join_cameras
from quantize.film import MAX_BIAS, film_names, fold_film, stack_film
from quantize.frames import Frames
from quantize.graph import Graph, channel_axis
from quantize.side_by_side import join_convolutions, layers_of
from quantize.weights import OPSET, WeightConfig, pack, packed_nodes, products_for, require_stored, will_be_packed

__all__ = ["Int8Config", "int8_nodes", "quantize_int8", "stacked", "will_be_int8"]

_FLOAT_STEPS = ("Add", "Sub", "Mul", "Div", "Clip", "Reshape", "Flatten")
FLOAT8, FLOAT8_MOST = np.dtype(ml_dtypes.float8_e4m3fn), 448.0
FLOAT8_OPSET = 19  # The first with it.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Int8Config:
    """What becomes int8, and how."""

    dialect: Literal["cpu", "portable", "float8"] = "cpu"
    """Which runtime it is for; see the module's docstring."""
    rule: RangeRule = "mse"
    """How the range of an activation is chosen. Mean error of the actions on held-out frames: mse 0.077 % of their range, minmax 0.080 %,
    percentile 0.108 %."""
    exclude: tuple[str, ...] = ()
    """Names of nodes that stay float."""
    min_weights: int = INT8_MIN_WEIGHTS
    """Nodes with fewer weights stay float, such as the layer of the state: converting their inputs costs more than they do."""
    min_matrix: int = INT8_MIN_MATRIX
    """The same of matrices, which are multiplied once, where filters are at every place; `min_weights` where that is more, and in a network that has
    nothing larger: it is as small as it was asked to be, and whether it is slower, the audit says."""
    min_channels: int = MIN_CHANNELS
    """Convolutions of fewer input channels stay float, unless they read a camera's bytes: there are too few products to gain time, and
    rounding a picture costs more accuracy than all other values together (2 dB). So do products of fewer inputs or outputs, such as the
    two coordinates that keypoints are averaged over."""
    weight_levels: int = INT8_LEVELS
    """Largest |q| of a weight. x86 processors without VNNI add two products of a byte and a weight in 16 bits, which saturate silently
    above 64: with 127 the same QDQ file lost 20 dB there. 127 is finer where VNNI, ARM's dot product or TensorRT is certain."""

    def __post_init__(self) -> None:
        if self.dialect not in ("cpu", "portable", "float8"):
            raise QuantizationError(f"dialect {self.dialect!r}, expected 'cpu', 'portable' or 'float8'.")
        if self.rule not in ("minmax", "percentile", "mse"):
            raise QuantizationError(f"rule {self.rule!r}, expected 'minmax', 'percentile' or 'mse'.")
        if not 1 <= self.weight_levels <= 127:
            raise QuantizationError(f"weight_levels {self.weight_levels}, expected 1 .. 127.")

    @property
    def is_portable(self) -> bool:
        """In pairs of QuantizeLinear and DequantizeLinear throughout."""
        return self.dialect != "cpu"


def will_be_int8(model: onnx.ModelProto, config: Int8Config | None = None) -> list[str]:
    """Names of the nodes that become int8; every other Conv, Gemm and MatMul stays float.

    All FiLM matrices count as one node, "film", into which they are stacked first.

    Raises:
        UnknownNameError: `exclude` names a node that has no weights or does not exist.
        QuantizationError: Nothing would be left to quantize.
    """
    config, graph = config or Int8Config(), Graph(stacked(model))
    return _choose(graph, config, _cameras(graph, config))


def stacked(model: onnx.ModelProto) -> onnx.ModelProto:
    """The float network with its FiLM matrices as one node, "film": what an int8 network is made from."""
    graph = Graph(model)
    stack_film(graph)
    return graph.finish()


def quantize_int8(
    model: onnx.ModelProto, frames: Frames, config: Int8Config | None = None, weights: WeightConfig | None = None
) -> onnx.ModelProto:
    """The int8 form of a float network.

    Args:
        model: policy.onnx of a float bundle.
        frames: Recorded inputs to calibrate with.
        config: What is computed in integers, and how.
        weights: Which weights are stored in fewer bits than they are computed in, and how; its names are those after `stacked`.

    Raises:
        QuantizationError: Nothing to quantize, no frames, or the result is not what was asked for.
        UnknownNameError: `exclude` names a node that does not exist.
    """
    config = config or Int8Config()
    if weights is not None and config.is_portable:
        raise QuantizationError(
            f"packed weights in the dialect {config.dialect!r}: TensorRT does not unpack them. Take 'cpu', or leave them out."
        )
    asked = will_be_int8(model, config)
    quantized = _Builder(model, asked, frames, config, weights).build()
    require_stored(asked, int8_nodes(quantized), "int8")
    if weights is not None:
        require_stored(will_be_packed(stacked(model), weights), packed_nodes(quantized, weights.bits), f"packed in {weights.bits} bits")
    return quantized


def int8_nodes(model: onnx.ModelProto) -> set[str]:
    """Names of the Conv, Gemm and MatMul nodes of a file that read their weights as int8, stored so or unpacked at load."""
    graph = Graph(model)
    makers = {output: node for node in graph.nodes for output in node.output}
    found = set()
    for node in graph.nodes:
        for name, weight in layers_of(node, makers).items():
            maker = makers.get(weight)
            source = maker.input[0] if maker is not None and maker.op_type == "DequantizeLinear" else weight
            unpacking = makers.get(source)
            if (graph.is_constant(source) and graph.constant(source).dtype in (np.int8, FLOAT8)) or _makes_int8(unpacking):
                found.add(name)
    return found


def _float8_channels(weight: NDArray[np.float32], axis: int) -> tuple[NDArray[np.generic], NDArray[np.float32]]:
    """E4M3 with one scale per slice along `axis`, as `actlet.rounding.int8_channels`."""
    others = tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    scale = (np.maximum(np.abs(weight).max(axis=others), 1e-12) / FLOAT8_MOST).astype(np.float32)
    return (weight / np.expand_dims(scale, others)).astype(FLOAT8), scale


def _makes_int8(node: onnx.NodeProto | None) -> bool:
    return node is not None and node.op_type == "Cast" and node.attribute[0].i == onnx.TensorProto.INT8


def _cameras(graph: Graph, config: Int8Config) -> dict[str, CameraInput]:
    return find_camera_inputs(graph) if config.dialect == "cpu" else {}


def _choose(graph: Graph, config: Int8Config, cameras: Mapping[str, CameraInput]) -> list[str]:
    nodes = graph.weight_nodes_by_name(config.exclude)
    shapes = {name: graph.constant(node.input[1]).shape for name, node in nodes.items()}
    chosen: list[str] = []
    small: list[str] = []
    for name, node in nodes.items():
        # A stack of matrices has no single channel axis; in a student it is the table of bins, where an error is an action's.
        plain = len(shapes[name]) == (4 if node.op_type == "Conv" else 2)
        channels = shapes[name][1] if node.op_type == "Conv" else min(shapes[name])
        wide = channels >= config.min_channels or name in cameras
        if name in config.exclude or not plain or not wide or np.prod(shapes[name]) < config.min_weights:
            continue
        is_small = node.op_type != "Conv" and np.prod(shapes[name]) < config.min_matrix
        (small if is_small else chosen).append(name)
    chosen = chosen or small
    if not chosen:
        raise QuantizationError(
            f"nothing to quantize: of {len(nodes)} nodes with weights, {len(config.exclude)} are excluded and the rest have fewer than "
            f"{config.min_weights} weights, {config.min_channels} channels, or no plain matrix. Exclude fewer, or lower min_weights."
        )
    return chosen


class _Builder:
    """One quantization: the graph while it changes, and the integer grid of every value that has one."""

    def __init__(self, model: onnx.ModelProto, asked: list[str], frames: Frames, config: Int8Config, weights: WeightConfig | None) -> None:
        self.config, self.graph, self.weights = config, Graph(model), weights
        self.film = stack_film(self.graph)
        self.sites = {site.conv.name: site for site in self.film.sites} if self.film else {}
        self.nodes = [node for node in self.graph.weight_nodes() if node.name in asked]
        self.asked_maps = {} if config.is_portable else {name: maps for name, maps in find_asked_maps(self.graph).items() if name in asked}
        """Convolutions that get filters of the instruction as well."""
        self.cameras = {name: camera for name, camera in _cameras(self.graph, config).items() if name in asked}
        """First convolutions that read bytes."""
        self.bytes = {node.input[0]: self.cameras[node.name] for node in self.nodes if node.name in self.cameras}
        """The values that those convolutions read in the float network, which no longer exist here."""
        values = {node.input[0] for node in self.nodes if node.name not in self.cameras} | {
            self._result(node) for node in self.nodes if node.op_type == "Conv"
        }
        self.histograms = observe(model, sorted(values), frames)
        self.packed = will_be_packed(stacked(model), weights) if weights is not None else []
        """Nodes whose weights are stored in fewer bits."""
        # A filter on bytes is not the float network's: it is rounded to the nearest.
        known = [name for name in self.packed if name not in self.cameras]
        self.products = products_for(stacked(model), known, frames, weights) if weights is not None else {}
        self.integers: set[str] = set()
        """Values that an integer operator makes; everything else that has an integer form is float first."""

    def build(self) -> onnx.ModelProto:
        convolutions = [node for node in self.nodes if node.op_type == "Conv"]
        if self.config.is_portable:
            for node in convolutions:
                self._portable_convolution(node)
        else:
            self._fold_film([node.name for node in convolutions])
            for node in convolutions:
                self._integer_convolution(node)
            join_convolutions(self.graph)
            self._integer_sums()
        for node in self.nodes:
            if node.op_type != "Conv":
                self._product(node)
        self._keep_float()
        for node in [node for node in self.graph.weight_nodes() if node.name in self.packed]:
            assert self.weights is not None
            name, axis = node.input[1], channel_axis(node)
            node.input[1] = pack(self.graph, name, self.graph.constant(name), axis, self.weights, self.products.get(node.name))
        self.graph.halve_large_weights()
        opset = OPSET if self.weights is not None else FLOAT8_OPSET if self.config.dialect == "float8" else None
        model = self.graph.finish(opset=opset)
        return model if self.config.is_portable else join_cameras(model)

    def _result(self, conv: onnx.NodeProto) -> str:
        """The value that a convolution's integer operator makes: with "cpu" FiLM and ReLU are part of it."""
        if self.config.is_portable:
            return conv.output[0]
        if conv.name in self.sites:
            return self.sites[conv.name].relu.output[0]
        if conv.name in self.asked_maps:
            return self.asked_maps[conv.name].maps
        relu = self.graph.sole_consumer(conv.output[0], "Relu")
        return relu.output[0] if relu is not None else conv.output[0]

    def _grid(self, value: str) -> tuple[str, str, float]:
        """Names of a value's scale and zero, and its step."""
        if value in self.bytes:
            camera = self.bytes[value]
            scale = self.graph.store(f"{value}.scale", np.array(camera.gain, np.float32))
            return scale, self.graph.store(f"{value}.zero", np.array(camera.zero, np.uint8)), camera.gain
        low, high = value_range(self.histograms[value], self.config.rule)
        zero: NDArray[np.generic]
        if self.config.dialect == "float8":
            step, zero = float(np.float32(max(-low, high, 1e-8) / FLOAT8_MOST)), np.array(0, FLOAT8)
        elif self.config.is_portable:
            step, zero = float(np.float32(max(-low, high, 1e-8) / 127)), np.array(0, np.int8)
        else:
            step, integer = uint8_grid(low, high)
            zero = np.array(integer, np.uint8)
        return self.graph.store(f"{value}.scale", np.array(step, np.float32)), self.graph.store(f"{value}.zero", zero), step

    def _integer(self, value: str) -> str:
        """The integer form of a value, made where it is first asked for."""
        if value in self.bytes:
            return self.bytes[value].add_frame(self.graph)
        name = f"{value}.integer"
        if self.graph.producer(name) is None:
            scale, zero, _ = self._grid(value)
            self.graph.add("QuantizeLinear", [value, scale, zero], name)
        return name

    def _rounded(self, value: str) -> str:
        """A value after rounding to its grid: what operators of the QuantizeLinear / DequantizeLinear form read."""
        if value in self.integers:
            return value
        name = f"{value}.rounded"
        if self.graph.producer(name) is None:
            scale, zero, _ = self._grid(value)
            self.graph.add("DequantizeLinear", [self._integer(value), scale, zero], name)
        return name

    def _make_integer(self, value: str) -> None:
        """Say that `value`.integer is made by an operator; float readers of the value read it dequantized."""
        scale, zero, _ = self._grid(value)
        self.graph.add("DequantizeLinear", [f"{value}.integer", scale, zero], value)
        self.integers.add(value)

    def _store_weight(self, node: onnx.NodeProto) -> tuple[str, str, str, NDArray[np.float32]]:
        """Names of int8 weight, scale and zero, and the scale."""
        weight, axis = self.graph.constant(node.input[1]), channel_axis(node)
        if node.name in self.cameras:
            weight = self.cameras[node.name].weight(weight)
        levels = self.config.weight_levels
        values, scale = _float8_channels(weight, axis) if self.config.dialect == "float8" else int8_channels(weight, axis, levels)
        names = [f"{node.input[1]}.{part}" for part in ("int8", "scale", "zero")]
        if node.name in self.packed:
            assert self.weights is not None
            shape = [-1 if i == axis % weight.ndim else 1 for i in range(weight.ndim)]
            steps = weight / scale.reshape(shape)
            names[0] = pack(self.graph, f"{node.input[1]}.steps", steps, axis, self.weights, self.products.get(node.name), levels)
        else:
            self.graph.store(names[0], values)
        self.graph.store(names[1], scale)
        self.graph.store(names[2], np.zeros(len(scale), values.dtype))
        return names[0], names[1], names[2], scale

    def _rounded_weight(self, node: onnx.NodeProto) -> str:
        axis = channel_axis(node) % self.graph.constant(node.input[1]).ndim
        weight, scale, zero, _ = self._store_weight(node)
        return self.graph.add("DequantizeLinear", [weight, scale, zero], f"{node.input[1]}.rounded", axis=axis)

    def _portable_convolution(self, node: onnx.NodeProto) -> None:
        """Integers in, integers out, float bias: the form that TensorRT and ONNX Runtime fuse."""
        result, raw = node.output[0], f"{node.output[0]}.raw"
        bias = node.input[2:]
        node.input[:] = [self._rounded(node.input[0]), self._rounded_weight(node), *bias]
        node.output[0] = raw
        scale, zero, _ = self._grid(result)
        self.graph.add("QuantizeLinear", [raw, scale, zero], f"{result}.integer")
        self._make_integer(result)

    def _integer_convolution(self, node: onnx.NodeProto) -> None:
        """One QLinearConv for convolution, bias, FiLM and ReLU; called in the order of the graph."""
        source, result = node.input[0], self._result(node)
        x_scale, x_zero, x_step = self._grid(source)
        y_scale, y_zero, _ = self._grid(result)
        weight, scale, zero, steps = self._store_weight(node)
        if node.name in self.sites:
            site = self.sites[node.name]
            scale, bias = film_names(node.name)
            replaced = [node, site.scale, site.shift, site.relu]
        else:
            rounded = np.clip(np.rint(self._bias(node) / (x_step * steps)), -MAX_BIAS, MAX_BIAS).astype(np.int32)
            bias = self.graph.store(f"{node.name}.bias_int32", rounded)
            replaced = [node, *([relu] if (relu := self.graph.sole_consumer(node.output[0], "Relu")) is not None else [])]
        integer, maps = f"{result}.integer", self.asked_maps.get(node.name)
        if maps is not None:
            integer, replaced = f"{result}.picture", list(maps.replaced)
            filters, asked_steps = maps.round_filters(self.graph, self.config.weight_levels)
            weight = self.graph.add("Concat", [weight, filters], f"{node.name}.filters", axis=0)
            scale = self.graph.add("Concat", [scale, asked_steps], f"{node.name}.filter_steps", axis=0)
            zero = self.graph.store(f"{node.name}.filter_zeros", np.zeros(maps.shape[1], np.int8))
            bias = self.graph.store(
                f"{node.name}.filter_biases", np.concatenate([self.graph.constant(bias), np.zeros(maps.count, np.int32)])
            )
        for old in replaced:
            self.graph.remove(old)
        camera = self.cameras.get(node.name)
        made = integer
        if camera is not None and camera.is_paired:
            made = f"{result}.pairs"
            rows = camera.rows * self.graph.constant(node.input[1]).shape[2]
            weight, scale, zero, bias = camera.add_pairs(self.graph, node.name, [weight, scale, zero, bias], rows)
            camera.add_unpaired(self.graph, made, integer)
        inputs = [self._integer(source), x_scale, x_zero, weight, scale, zero, y_scale, y_zero, bias]
        self.graph.add("QLinearConv", inputs, made, name=node.name)
        self.graph.nodes[-1].attribute.extend(camera.attributes(node) if camera is not None else node.attribute)
        if maps is not None:
            self.graph.add("Reshape", [integer, self.graph.store(f"{node.name}.flat_shape", np.array(maps.shape))], f"{result}.integer")
        self._make_integer(result)

    def _bias(self, conv: onnx.NodeProto) -> NDArray[np.float32]:
        weight = self.graph.constant(conv.input[1])
        bias = self.graph.constant(conv.input[2]) if len(conv.input) > 2 else np.zeros(len(weight), np.float32)
        return self.cameras[conv.name].bias(bias, weight) if conv.name in self.cameras else bias

    def _fold_film(self, chosen: list[str]) -> None:
        """Make the run-time scales and biases of all convolutions with FiLM; one that stays float gets some too, which nobody reads."""
        if self.film is None:
            return
        weight_steps, accumulator_steps = [], []
        for site in self.film.sites:
            inside = site.conv.name in chosen
            steps = self._store_weight(site.conv)[3] if inside else np.ones(site.channels, np.float32)
            weight_steps.append(steps)
            accumulator_steps.append(steps * self._grid(site.conv.input[0])[2] if inside else steps)
        fold_film(self.graph, self.film, weight_steps, accumulator_steps, [self._bias(site.conv) for site in self.film.sites])

    def _integer_sums(self) -> None:
        """A residual sum whose two sides and result are integers anyway is computed on them."""
        for node in self.graph.nodes:
            wanted = node.op_type == "Add" and f"{node.output[0]}.integer" in {name for n in self.graph.nodes for name in n.output}
            if wanted and all(name in self.histograms for name in node.input):
                node.input[:] = [self._rounded(name) for name in node.input]

    def _keep_float(self) -> None:
        """ONNX Runtime rounds a float node's weights by itself where the node stands, with its ReLU, between integers.

        It knows ReLU but not max(x, 0), which is the same and keeps the node float.
        """
        kept = [self.graph.sole_consumer(node.output[0], "Relu") for node in self.graph.weight_nodes() if self._is_among_integers(node)]
        if self.config.dialect == "float8":  # ReLU and Clip it merges into any rounding, and cannot load a network where that is float8.
            kept = [node for node in self.graph.nodes if node.op_type == "Relu"]
            for clip in [node for node in self.graph.nodes if node.op_type == "Clip" and len(node.input) == 3 and all(node.input)]:
                self.graph.remove(clip)
                raised = self.graph.add("Max", clip.input[:2], f"{clip.output[0]}.raised")
                self.graph.add("Min", [raised, clip.input[2]], clip.output[0], name=clip.name)
        for relu in kept:
            if relu is not None:
                relu.op_type = "Max"
                relu.input.append(self.graph.store("float.zero", np.array(0, np.float32)))

    def _is_among_integers(self, node: onnx.NodeProto) -> bool:
        """Whether what a node reads may have been an integer: not where floats of the network's input come to it through arithmetic alone."""
        maker = self.graph.producer(node.input[0])
        while maker is not None and maker.op_type in _FLOAT_STEPS:
            maker = self.graph.producer(maker.input[0])
        return maker is not None

    def _product(self, node: onnx.NodeProto) -> None:
        """x W on integers with a float result; the bias is added after it, because ONNX Runtime takes no float bias inside.

        Where only other such products read its ReLU, bias and ReLU are inside and the result is on their grid: bytes in, bytes out.
        """
        reshape = self.graph.producer(node.input[0]) if self.config.dialect == "cpu" else None
        if reshape is not None and reshape.op_type == "Reshape" and reshape.input[0] in self.integers:
            self._reshape_integers(reshape)
        bias, source, weight = list(node.input[2:]), node.input[0], node.input[1]
        node.input[:] = [self._rounded(source), self._rounded_weight(node)]
        relu = self._relu_between_products(node) if bias and self.config.dialect == "cpu" else None
        if relu is not None:
            steps = self._grid(source)[2] * self.graph.constant(f"{weight}.scale")
            rounded = np.clip(np.rint(self.graph.constant(bias[0]) / steps), -MAX_BIAS, MAX_BIAS).astype(np.int32)
            parts = [self.graph.store(f"{node.name}.bias_int32", rounded), self.graph.store(f"{node.name}.bias_steps", steps)]
            node.input.append(self.graph.add("DequantizeLinear", parts, f"{node.name}.bias_rounded", axis=0))
            self.graph.remove(relu)
            scale, zero, _ = self._grid(relu.output[0])
            self.graph.add("QuantizeLinear", [node.output[0], scale, zero], f"{relu.output[0]}.integer")
            self._make_integer(relu.output[0])
        elif bias:
            result, raw = node.output[0], f"{node.output[0]}.raw"
            node.output[0] = raw
            self.graph.add("Add", [raw, bias[0]], result, name=f"{node.name}.bias")

    def _relu_between_products(self, node: onnx.NodeProto) -> onnx.NodeProto | None:
        """The ReLU behind a product, if all that read it are products on a grid that begins at 0, so that clipping to it is the ReLU."""
        relu = self.graph.sole_consumer(node.output[0], "Relu")
        readers = self.graph.consumers(relu.output[0]) if relu is not None else []
        products = [other.name for other in self.nodes if other.op_type != "Conv"]
        if relu is None or not readers or relu.output[0] in self.graph.outputs or any(reader.name not in products for reader in readers):
            return None
        return relu if self.graph.constant(self._grid(relu.output[0])[1]) == 0 else None

    def _reshape_integers(self, reshape: onnx.NodeProto) -> None:
        """Reshape the integers instead of the floats: the same grid on both sides."""
        source, result = reshape.input[0], reshape.output[0]
        self.histograms[result] = self.histograms[source]
        self.graph.remove(reshape)
        self.graph.add("Reshape", [f"{source}.integer", reshape.input[1]], f"{result}.integer", name=reshape.name)
        self._make_integer(result)
