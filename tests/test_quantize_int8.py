"""int8: the asked nodes and no others, close to float, and really executed on integers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from actlet.errors import QuantizationError, UnknownNameError
from actlet.manifest import Manifest
from quantize import camera_input, int8
from quantize.audit import audit
from quantize.calibration import Histogram, observe, value_range
from quantize.camera_input import CameraInput, find_camera_inputs, group_columns
from quantize.cameras_together import join_cameras
from quantize.condition import graph_of
from quantize.film import stack_film
from quantize.frames import Frames
from quantize.graph import Graph, weight_value
from quantize.int8 import Int8Config, int8_nodes, quantize_int8, will_be_int8
from quantize.output_error import OutputError, compare_outputs
from quantize.side_by_side import join_convolutions
from runtime.bundle import load_bundle
from runtime.ort_backend import OrtModel

DIALECTS: tuple[Literal["cpu", "portable"], ...] = ("cpu", "portable")


@pytest.fixture(scope="module")
def model(tiny_float_bundle: Path) -> onnx.ModelProto:
    return graph_of(load_bundle(tiny_float_bundle))


@pytest.fixture(scope="module")
def frames(tiny_frames: Frames) -> Frames:
    return tiny_frames


@pytest.fixture(scope="module")
def manifest(tiny_float_bundle: Path) -> Manifest:
    return load_bundle(tiny_float_bundle).manifest


def _run(model: onnx.ModelProto, frames: Frames, row: int = 0) -> np.ndarray:
    return OrtModel(model.SerializeToString()).run(frames.feeds(row))["actions"]


def _error(parent: onnx.ModelProto, child: onnx.ModelProto, frames: Frames, manifest: Manifest) -> OutputError:
    networks = [OrtModel(network.SerializeToString()) for network in (parent, child)]
    return compare_outputs(networks[0], networks[1], frames, manifest.spec, manifest.tokenizer)


@pytest.mark.parametrize(("dialect", "least_db"), [("cpu", 22.0), ("portable", 17.0)])
def test_int8_stays_close_to_float(
    model: onnx.ModelProto, frames: Frames, manifest: Manifest, dialect: Literal["cpu", "portable"], least_db: float
) -> None:
    """Signal to quantization noise of the continuous actions; "cpu" rounds less often, and has twice the steps after a ReLU."""
    error = _error(model, quantize_int8(model, frames, Int8Config(dialect=dialect)), frames, manifest)
    assert error.sqnr_db > least_db
    assert error.largest < 0.1


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_asked_node_runs_on_integers(model: onnx.ModelProto, frames: Frames, dialect: Literal["cpu", "portable"]) -> None:
    """Read from the graph that ONNX Runtime made, not from ours; every other node runs in float."""
    config = Int8Config(dialect=dialect)
    asked = will_be_int8(model, config)
    nodes = audit(quantize_int8(model, frames, config), dict.fromkeys(asked, "int8"))
    assert len(asked) > 8
    assert {node.name for node in nodes if node.asked == "int8"} == set(asked)
    runs_as = {"int8": "int8", "float32": "float32", "float16": "float32"}  # Halves are how the file stores what runs in float.
    assert all(node.executed == runs_as[node.asked] for node in nodes), [node for node in nodes if node.executed != runs_as[node.asked]]


def test_a_cameras_first_convolution_reads_its_bytes(model: onnx.ModelProto, frames: Frames) -> None:
    """The pool of two pixels becomes rows that are added up and filters of twice the width: the same sums, up to the rounding of the weights and of the rows' mean."""
    cameras = find_camera_inputs(Graph(model))
    assert [camera.pool for camera in cameras.values()] == [2, 2]
    quantized = Graph(quantize_int8(model, frames, Int8Config(min_weights=200)))
    for name, camera in cameras.items():
        node = next(node for node in quantized.nodes if node.name == name)
        assert node.op_type == "QLinearConv"
        assert node.input[0] == camera.frame
        makers = {output: maker for maker in quantized.nodes for output in maker.output}
        assert quantized.constant(weight_value(node, makers)).shape == (
            16,
            12,
            3,
            2,
        )  # Filters of 3 rows of 6 pixels, in two groups of four.
    assert not any(node.op_type == "AveragePool" for node in quantized.nodes)


@given(st.integers(0, 2**31), st.sampled_from([(1, False), (2, False), (2, True), (3, False), (4, True)]))
def test_a_convolution_of_pooled_pixels_is_one_of_larger_filters(seed: int, pool_halves: tuple[int, bool]) -> None:
    """sum w (gain p - offset) + b over pooled pixels p, and the same over pixels, or sums of two rows, with the weights and the bias of the camera's bytes."""
    rng, (pool, halves) = np.random.default_rng(seed), pool_halves
    camera = CameraInput("frame", pool, gain=1 / 127.5, offset=1.0, halves=halves)
    pixels = rng.integers(0, 256, (3, 3 * pool, 3 * pool)).astype(np.float64)
    pooled = pixels.reshape(3, 3, pool, 3, pool).mean((2, 4))
    if halves:
        pixels = pixels.reshape(3, -1, 2, 3 * pool).mean(2)
    weight, bias = rng.normal(size=(4, 3, 3, 3)).astype(np.float32), rng.normal(size=4).astype(np.float32)
    expected = (weight * (pooled * camera.gain - camera.offset)).sum((1, 2, 3)) + bias
    got = (camera.weight(weight) * camera.gain * (pixels - camera.zero)).sum((1, 2, 3)) + camera.bias(bias, weight)
    np.testing.assert_allclose(got, expected, atol=1e-5)


@given(st.integers(0, 2**31), st.sampled_from([4, 8]), st.integers(1, 9), st.integers(0, 5), st.integers(0, 5), st.integers(2, 6))
def test_pixels_in_groups_give_the_same_sums(seed: int, stride: int, kernel: int, left: int, right: int, groups: int) -> None:
    """Filters of any width and padding, on single pixels and on groups of a stride's width."""
    rng = np.random.default_rng(seed)
    width = groups * stride
    if width + left + right < kernel:
        return
    columns = group_columns((1, 3, width, 3), kernel=kernel, stride=stride, pads=(left, right))
    weight, pixels = rng.normal(size=(2, 3, 3, kernel)).astype(np.float32), rng.normal(size=(1, 3, width, 3)).astype(np.float32)
    with torch.no_grad():
        padded = nn.functional.pad(torch.from_numpy(pixels).permute(0, 3, 1, 2), (left, right))
        expected = nn.functional.conv2d(padded, torch.from_numpy(weight), stride=(1, stride))
        if columns is None:
            assert expected.shape[3] < groups  # The last filter ends before the last group.
            return
        grouped = torch.from_numpy(pixels.reshape(columns.shape)).permute(0, 3, 1, 2)
        got = nn.functional.conv2d(nn.functional.pad(grouped, (columns.before, columns.behind)), torch.from_numpy(columns.weight(weight)))
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("size", [(32, 32), (35, 33), (33, 38)])
def test_what_a_pool_leaves_over_is_not_read(size: tuple[int, int]) -> None:
    """Bytes of a frame whose size the pool does not divide, summed up by integers, against its float preprocessing."""
    rng = np.random.default_rng(1)
    weight, bias = rng.normal(size=(16, 3, 3, 3)).astype(np.float32), rng.normal(size=16).astype(np.float32)

    class Seen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 16, 3, stride=2, padding=1)
            self.convolution.weight.data, self.convolution.bias.data = torch.from_numpy(weight), torch.from_numpy(bias)

        def forward(self, frame: torch.Tensor) -> torch.Tensor:
            pooled = nn.functional.avg_pool2d(frame.to(torch.float32).permute(0, 3, 1, 2), 2)
            return self.convolution(pooled * (1 / 127.5) - 1.0)

    frame = rng.integers(0, 256, (1, *size, 3)).astype(np.uint8)
    nodes_of = helper.make_node
    constants = {"gain": np.float32(1 / 127.5), "offset": np.float32(1.0), "w": weight, "b": bias}
    nodes = [
        nodes_of("Cast", ["images.front"], ["cast"], to=TensorProto.FLOAT),
        nodes_of("Transpose", ["cast"], ["first"], perm=[0, 3, 1, 2]),
        nodes_of("AveragePool", ["first"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
        nodes_of("Mul", ["pooled", "gain"], ["scaled"]),
        nodes_of("Sub", ["scaled", "offset"], ["x"]),
        nodes_of("Conv", ["x", "w", "b"], ["maps"], name="c", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        nodes_of("Add", ["maps", "state"], ["actions"]),
    ]
    places = [-(-(side // 2) // 2) for side in size]
    graph = helper.make_graph(
        nodes,
        "camera",
        [
            helper.make_tensor_value_info("images.front", TensorProto.UINT8, [1, *size, 3]),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [1, 1]),
        ],
        [helper.make_tensor_value_info("actions", TensorProto.FLOAT, [1, 16, *places])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with torch.no_grad():
        expected = Seen()(torch.from_numpy(frame)).numpy()
    still, nothing = np.zeros((2, 1), np.float32), np.zeros((2, 0), np.float32)
    frames = Frames({"front": np.concatenate([frame] * 2)}, still, nothing, nothing[..., None])
    quantized = quantize_int8(model, frames, Int8Config(min_weights=1))
    assert int8_nodes(quantized) == {"c"}
    got = OrtModel(quantized.SerializeToString()).run({"images.front": frame, "state": still[:1]})["actions"]
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() < 0.03 * np.ptp(expected)


def test_filters_twice_side_by_side_give_the_same_bytes(model: onnx.ModelProto, frames: Frames, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two places of a row at once, or one by one: the same network, to the last bit."""
    config = Int8Config(min_weights=200)
    paired = quantize_int8(model, frames, config)
    monkeypatch.setattr(camera_input, "MAX_PAIRED_FILTERS", 0)
    single = quantize_int8(model, frames, config)
    twice = {node.name for node in paired.graph.node if node.op_type == "QLinearConv" and node.output[0].endswith(".pairs")}
    assert twice == set(find_camera_inputs(Graph(model)))
    assert len(single.graph.node) < len(paired.graph.node)
    for row in range(len(frames)):
        assert np.array_equal(_run(paired, frames, row), _run(single, frames, row))


@pytest.mark.parametrize("zero", [0, 90])
def test_few_filters_beside_others_give_the_same_bytes(zero: int) -> None:
    """Two convolutions of one place with grids of their own, as two and as one; a filter of zeros says nothing but its bias. Neither loses its name."""
    rng = np.random.default_rng(zero)
    one = np.float32(1)
    constants = {"x.scale": one / 30, "x.zero": np.uint8(zero)}
    values = [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 16, 5, 4])]
    nodes, outputs = [], []
    for name, count, y_scale, y_zero in (("many", 24, 0.4, 117), ("few", 4, 0.02, 0)):
        weight = rng.integers(-63, 64, (count, 16, 1, 1)).astype(np.int8)
        weight[0] = 0
        steps = rng.uniform(0.001, 0.01, count).astype(np.float32)
        steps[0] = 1e-14
        parts = {"weight": weight, "steps": steps, "zeros": np.zeros(count, np.int8), "y": np.float32(y_scale), "y_zero": np.uint8(y_zero)}
        parts["bias"] = rng.integers(-500, 500, count).astype(np.int32)
        constants |= {f"{name}.{part}": array for part, array in parts.items()}
        inputs = ["x", "x.scale", "x.zero", *(f"{name}.{part}" for part in parts)]
        nodes.append(helper.make_node("QLinearConv", inputs, [name], name=name, kernel_shape=[1, 1]))
        outputs.append(helper.make_tensor_value_info(name, TensorProto.UINT8, [1, count, 5, 4]))
    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    two = helper.make_model(
        helper.make_graph(nodes, "two", values, outputs, stored), opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )
    graph = Graph(two)
    join_convolutions(graph)
    joined = graph.finish()
    assert [node.op_type for node in joined.graph.node].count("QLinearConv") == 1
    assert int8_nodes(joined) == int8_nodes(two) == {"many", "few"}
    assert {entry.name: entry.executed for entry in audit(joined)} == {"many": "int8", "few": "int8"}
    x = rng.integers(0, 256, (1, 16, 5, 4)).astype(np.uint8)
    expected, got = (OrtModel(network.SerializeToString()).run({"x": x}) for network in (two, joined))
    for name in ("many", "few"):
        assert np.abs(expected[name].astype(int) - got[name]).max() <= 1  # A sum half-way between two steps may go either way.
        assert (expected[name] != got[name]).mean() < 0.02


def test_cameras_together_give_the_same_numbers(model: onnx.ModelProto, frames: Frames, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keypoints of both cameras in one stack, or of each by itself: the same network, to the last bit, with fewer operators."""
    config = Int8Config(min_weights=200)
    together = quantize_int8(model, frames, config)
    monkeypatch.setattr(int8, "join_cameras", lambda model: model)
    apart = quantize_int8(model, frames, config)
    counts = [[node.op_type for node in network.graph.node].count("Softmax") for network in (apart, together)]
    assert counts == [2, 1]
    assert len(together.graph.node) == len(apart.graph.node) - 4  # Seven of a camera, and a Concat and two more Splits.
    assert int8_nodes(together) == int8_nodes(apart)
    for row in range(len(frames)):
        assert np.array_equal(_run(together, frames, row), _run(apart, frames, row))


def test_one_camera_is_no_stack(model: onnx.ModelProto, frames: Frames) -> None:
    """What has no two cameras to put together stays as it is."""
    joined = quantize_int8(model, frames, Int8Config(min_weights=200))
    assert join_cameras(joined) is joined  # Its cameras are together already.
    assert join_cameras(model) is model  # And a float network has no bytes.


def test_rows_that_groups_do_not_divide_stay_pixels() -> None:
    """And so do groups that are no fours of channels."""
    for width, stride in ((126, 4), (128, 2), (126, 6)):
        assert group_columns((1, 8, width, 3), kernel=6, stride=stride, pads=(2, 2)) is None


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_excluded_node_stays_float_and_runs_in_float(
    model: onnx.ModelProto, frames: Frames, dialect: Literal["cpu", "portable"]
) -> None:
    """A convolution with FiLM, one without, a product after a reshape: ONNX Runtime does not round them either."""
    exclude = ("trunks.0.blocks.2.convolution", "squeezes.1.3", "mix.0")
    config = Int8Config(dialect=dialect, exclude=exclude, min_weights=200)
    assert "squeezes.0.0" in will_be_int8(model, config)
    quantized = quantize_int8(model, frames, config)
    executed = {node.name: (node.asked, node.executed) for node in audit(quantized, dict.fromkeys(int8_nodes(quantized), "int8"))}
    assert [executed[name][1] for name in exclude] == ["float32"] * 3
    assert {executed[name][0] for name in exclude} <= {"float32", "float16"}  # Large ones are stored as halves.
    assert "int8" in executed["trunks.0.blocks.1.convolution"]
    small = quantize_int8(model, frames, Int8Config(dialect=dialect, exclude=("squeezes.0.0",), min_weights=200))
    assert {n.name: n.executed for n in audit(small)}["squeezes.0.0"] == "float32"


def test_portable_is_what_tensorrt_reads(model: onnx.ModelProto, frames: Frames) -> None:
    """Symmetric int8 everywhere, no uint8, no int32 biases, weights per channel, standard operators of opset 18."""
    quantized = quantize_int8(model, frames, Int8Config(dialect="portable"))
    graph = Graph(quantized)
    pairs = [node for node in graph.nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) > 20
    for node in pairs:
        zero = graph.constant(node.input[2])
        assert zero.dtype == np.int8
        assert not zero.any()
    assert not {node.op_type for node in graph.nodes} & {"QLinearConv", "QGemm", "ConvInteger"}
    assert [(opset.domain, opset.version) for opset in quantized.opset_import] == [("", 18)]
    weights = [node for node in pairs if graph.is_constant(node.input[0])]
    assert len(weights) == len(int8_nodes(quantized))
    assert all(graph.constant(node.input[1]).ndim == 1 for node in weights)


def test_stacking_film_changes_nothing(model: onnx.ModelProto, frames: Frames) -> None:
    """One Gemm instead of six: the same network."""
    graph = Graph(model)
    film = stack_film(graph)
    stacked = graph.finish()
    assert film is not None
    assert film.sizes == [16, 32, 32] * 2
    assert sum(node.op_type == "Gemm" for node in stacked.graph.node) == sum(node.op_type == "Gemm" for node in model.graph.node) - 5
    for row in range(len(frames)):
        np.testing.assert_allclose(_run(stacked, frames, row), _run(model, frames, row), atol=1e-7)


def test_a_channel_that_film_turns_off_is_no_division_by_zero(model: onnx.ModelProto, frames: Frames, manifest: Manifest) -> None:
    """scale = 0 for half of a block's channels, and -1 for one: relu(shift), and a mirrored channel, in integers as in float."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for constant in changed.graph.initializer:
        if constant.name == "trunks.0.blocks.1.film.weight":
            weight = numpy_helper.to_array(constant).copy()
            weight[:17] = 0
            constant.CopyFrom(numpy_helper.from_array(weight, constant.name))
    bias = np.zeros(64, np.float32)
    bias[:16], bias[16] = -1, -2  # scale = 1 + these
    bias[32:] = np.linspace(-1, 1, 32)
    changed.graph.initializer.append(numpy_helper.from_array(bias, "film_bias"))
    gemm = next(node for node in changed.graph.node if node.name == "trunks.0.blocks.1.film")
    gemm.input[2:] = ["film_bias"]
    error = _error(changed, quantize_int8(changed, frames), frames, manifest)
    assert error.sqnr_db > 20


def test_calibration_sees_what_happens(model: onnx.ModelProto, frames: Frames) -> None:
    """Ranges are those of the values, counted over all frames; a value that does not exist is named."""
    seen = observe(model, ["state", "relu_1"], frames)["state"]
    assert (seen.low, seen.high) == (frames.state.min(), frames.state.max())
    assert seen.counts.sum() == frames.state.size
    with pytest.raises(QuantizationError, match="'nowhere' is not a float value of the network"):
        observe(model, ["nowhere"], frames)


@given(st.integers(0, 2**31), st.booleans())
def test_rules_of_ranges(seed: int, positive: bool) -> None:
    """Every rule covers 0 and lies within minmax; mse is at least as good as minmax on the values themselves."""
    values = np.random.default_rng(seed).standard_t(5, 20_000)
    values = np.abs(values) if positive else values
    histogram = Histogram(float(values.min()), float(values.max()), np.histogram(values, 2048)[0])
    low, high = value_range(histogram, "minmax")
    errors = {}
    for rule in ("minmax", "percentile", "mse"):
        a, b = value_range(histogram, rule)
        assert low <= a <= 0 <= b <= high
        step = (b - a) / 255
        errors[rule] = ((np.clip(np.rint(values / step), np.rint(a / step), np.rint(b / step)) * step - values) ** 2).mean()
    assert errors["mse"] <= errors["minmax"] * 1.01


def test_impossible_requests_are_errors(model: onnx.ModelProto, frames: Frames) -> None:
    """No frames, everything excluded, an unknown node, an unknown dialect: each is named."""
    with pytest.raises(QuantizationError, match="no frames to calibrate with"):
        quantize_int8(model, frames.take(np.array([], np.int64)))
    with pytest.raises(QuantizationError, match=r"nothing to quantize: of .* Exclude fewer, or lower min_weights"):
        quantize_int8(model, frames, Int8Config(min_weights=10**9))
    with pytest.raises(UnknownNameError, match=r"unknown node with weights 'mix.1'. Did you mean 'mix.\d'"):
        quantize_int8(model, frames, Int8Config(exclude=("mix.1",)))
    for wrong, message in (
        ({"dialect": "gpu"}, "'portable' or 'float8'"),
        ({"rule": "max"}, "'mse'"),
        ({"weight_levels": 128}, "1 .. 127"),
    ):
        arguments: dict[str, Any] = wrong
        with pytest.raises(QuantizationError, match=message):
            Int8Config(**arguments)


def test_a_broken_network_is_not_calibrated(model: onnx.ModelProto, frames: Frames) -> None:
    """NaN on a recorded frame stops the quantization."""
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    bias = next(constant for constant in broken.graph.initializer if constant.name == "mix.0.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(tuple(bias.dims), np.nan, np.float32), bias.name))
    with pytest.raises(QuantizationError, match="is not finite on a recorded frame"):
        quantize_int8(broken, frames)


def test_the_parent_is_left_alone(model: onnx.ModelProto, frames: Frames) -> None:
    """The function returns another model; the float one is as it was, and nothing in it is int8."""
    before = model.SerializeToString()
    quantize_int8(model, frames)
    assert model.SerializeToString() == before
    assert int8_nodes(model) == set()
    assert all(constant.data_type != TensorProto.INT8 for constant in model.graph.initializer)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_other_networks_than_the_students(dialect: Literal["cpu", "portable"]) -> None:
    """A convolution without ReLU or bias, a MatMul, a Gemm that is not transposed: all on integers, all close."""
    rng = np.random.default_rng(0)
    weights = {"w1": (24, 8, 3, 3), "w2": (24 * 64, 40), "w3": (40, 36)}
    constants = [numpy_helper.from_array((rng.normal(size=shape) / 8).astype(np.float32), name) for name, shape in weights.items()]
    constants += [
        numpy_helper.from_array(rng.normal(size=36).astype(np.float32), "b3"),
        numpy_helper.from_array(np.array([1, 24 * 64]), "s"),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Reshape", ["c", "s"], ["flat"], name="reshape"),
        helper.make_node("MatMul", ["flat", "w2"], ["m"], name="product"),
        helper.make_node("Tanh", ["m"], ["t"], name="tanh"),
        helper.make_node("Gemm", ["t", "w3", "b3"], ["actions"], name="last"),
    ]
    x, y = (
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 8, 8]),
        helper.make_tensor_value_info("actions", TensorProto.FLOAT, [1, 36]),
    )
    graph = helper.make_graph(nodes, "other", [x], [y], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    seen = [rng.normal(size=(1, 8, 8, 8)).astype(np.float32) for _ in range(20)]

    class Recorded(Frames):
        def __len__(self) -> int:
            return len(seen)

        def feeds(self, row: int) -> dict[str, np.ndarray]:
            return {"x": seen[row]}

    nothing = np.zeros((0, 0), np.float32)
    frames = Recorded({}, nothing, nothing, np.zeros((0, 0, 1), np.float32))
    quantized = quantize_int8(model, frames, Int8Config(dialect=dialect, min_weights=1, min_matrix=1))
    assert {node.name: node.executed for node in audit(quantized, dict.fromkeys(int8_nodes(quantized), "int8"))} == dict.fromkeys(
        ("conv", "product", "last"), "int8"
    )
    noise = np.concatenate([_run(quantized, frames, row) - _run(model, frames, row) for row in range(20)])
    signal = np.concatenate([_run(model, frames, row) for row in range(20)])
    assert 10 * np.log10(signal.var() / (noise**2).mean()) > 30
