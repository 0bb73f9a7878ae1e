"""quantize.schemes: every precision makes a bundle that runs, says what it is made for, and is what it says."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from actlet.errors import QuantizationError, UnknownNameError
from actlet.manifest import NodePrecision, manifest_hash, read_manifest
from quantize.audit import audit, executed_operators, node_seconds, with_time_shares
from quantize.condition import graph_of, split_condition
from quantize.dynamic import DynamicConfig, quantize_dynamic
from quantize.frames import Frames
from quantize.int8 import Int8Config, int8_nodes, quantize_int8
from quantize.output_error import Latency, compare_outputs
from quantize.quantize_bundle import _require_gain, quantize_bundle
from quantize.schemes import PRECISIONS, scheme
from quantize.weights import WeightConfig, packed_nodes, quantize_weights
from runtime.bundle import load_bundle
from runtime.ort_backend import OrtModel
from runtime.policy import BundlePolicy

LEAST_DB = {"int8": 22, "int8-dynamic": 25, "int8-weights": 30, "int4": 10, "int4-int8": 8, "float16": 45, "float8": 15}


@pytest.fixture(scope="module")
def model(tiny_float_bundle: Path) -> onnx.ModelProto:
    return graph_of(load_bundle(tiny_float_bundle))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_makes_a_bundle(precision: str, tiny_float_bundle: Path, tiny_frames: Frames, tmp_path: Path) -> None:
    """It loads with its self-test and answers like its parent, which stays as it is; the audit names what was asked, and every share of the time."""
    before = manifest_hash(tiny_float_bundle)
    report = quantize_bundle(
        tiny_float_bundle, tmp_path / "child", scheme=scheme(precision), frames=(tiny_frames, tiny_frames), allow_slower=True
    )
    assert report.error.sqnr_db > LEAST_DB[precision]
    manifest = read_manifest(report.out)
    assert (manifest.precision, manifest.made_for) == (precision, scheme(precision).made_for)
    assert ("tensorrt" in manifest.made_for) == precision.startswith("float")
    assert BundlePolicy(report.out).spec == manifest.spec
    assert manifest_hash(tiny_float_bundle) == before
    low = {node.asked for node in manifest.nodes} - {"float32", "float16"}
    assert low == (set() if precision == "float16" else {precision.split("-")[0]})
    integers = {node.name for node in manifest.nodes if node.executed == "int8"}
    assert integers == set(scheme(precision).integer_nodes(graph_of(load_bundle(tiny_float_bundle))))
    shares = [node.time_share for node in manifest.nodes]
    assert all(share is not None and share >= 0 for share in shares)
    assert 0 < sum(filter(None, shares)) <= 1


def test_int4_runs_on_the_operators_of_int8(model: onnx.ModelProto, tiny_frames: Frames) -> None:
    """Stored in half the bytes, unpacked at load, and then the same graph."""
    int8 = quantize_int8(model, tiny_frames)
    both = quantize_int8(model, tiny_frames, Int8Config(), WeightConfig(min_weights=1024))
    packed = packed_nodes(both, 4)
    assert packed & int8_nodes(both)
    assert collections.Counter(op for _, op in executed_operators(both)) == collections.Counter(op for _, op in executed_operators(int8))
    sizes = [{node.name: node.weight_bytes for node in audit(network)} for network in (int8, both)]
    inside = [name for name in packed & int8_nodes(both) if name != "film"]
    assert sum(sizes[1][name] for name in inside) < 0.75 * sum(sizes[0][name] for name in inside)


def test_exceptions_add_up(model: onnx.ModelProto) -> None:
    """Where all arithmetic is float, a layer that is excluded keeps its weights, and so does one that is kept; a name that does not exist is an error."""
    assert scheme("int4", exclude=("mix.0",)).weights == WeightConfig(exclude=("mix.0",))
    both = scheme("int4", exclude=("mix.0",), keep=("queries",))
    assert not {"mix.0", "queries"} & set(both.asked(model))
    with pytest.raises(UnknownNameError, match="querys"):
        scheme("int4", exclude=("querys",)).quantize(model)


def test_layers_can_be_mixed(model: onnx.ModelProto, tiny_frames: Frames) -> None:
    """Arithmetic and storage of a node are two choices, each with its exceptions."""
    both = scheme("int4-int8")
    floating, whole = sorted(set(both.integer_nodes(model)) - {"film"})[:2]
    mixed = scheme("int4-int8", exclude=(floating,), keep=(whole,))
    nodes = {node.name: node for node in audit(mixed.quantize(model, tiny_frames), mixed.asked(model))}
    assert (nodes[floating].asked, nodes[floating].executed) == ("int4", "float32")
    assert (nodes[whole].asked, nodes[whole].executed) == ("int8", "int8")
    assert ("int4", "int8") in {(node.asked, node.executed) for node in nodes.values()}


@pytest.mark.parametrize(
    "settings",
    [{"bits": bits, "block": block, "symmetric": symmetric} for bits in (4, 8) for block in (16, 128) for symmetric in (True, False)]
    + [{"symmetric": False, "method": "hqq"}, {"method": "gptq"}, {"symmetric": False, "method": "gptq", "block": 64}],
)
def test_weights_are_near_their_own(settings: dict[str, Any]) -> None:
    """Feeding unit vectors reads the weights back; the last block is not full. Inputs that do not go together leave gptq nothing to make good."""
    weight = np.random.default_rng(0).normal(size=(37, 31)).astype(np.float32)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size]) for name, size in (("state", 37), ("y", 31)))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["state", "w"], ["y"], name="m")], "g", [x], [y], [numpy_helper.from_array(weight, "w")]
    )
    linear = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    config = WeightConfig(min_weights=100, **settings)
    eye = _Rows(np.eye(37, dtype=np.float32))
    network = OrtModel(quantize_weights(linear, eye, config).SerializeToString())
    got = np.concatenate([network.run(eye.feeds(row))["y"] for row in range(37)])
    step = 2 * np.abs(weight).max() / ((1 << config.bits) - 1)
    assert np.sqrt(np.square(got - weight).mean()) <= 0.3 * step  # 1 / sqrt(12) of a step, without searching


def test_gptq_rounds_for_the_inputs_that_occur(tiny_frames: Frames) -> None:
    """Where inputs go together it changes the products less than the nearest integers do, and hqq's errors count less than the range's own."""
    rng = np.random.default_rng(1)
    weight = rng.standard_t(4, size=(64, 48)).astype(np.float32)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size]) for name, size in (("state", 64), ("y", 48)))
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["state", "w"], ["y"], name="m")], "g", [x], [y], [numpy_helper.from_array(weight, "w")]
    )
    linear = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    seen = (rng.normal(size=(200, 6)) @ rng.normal(size=(6, 64))).astype(np.float32) + 0.05 * rng.normal(size=(200, 64)).astype(np.float32)
    learn, judge = _Rows(seen[:100]), _Rows(seen[100:])

    def error(method: str) -> float:
        config = WeightConfig(method=method, min_weights=100, symmetric=method != "hqq")  # type: ignore[arg-type]
        network = OrtModel(quantize_weights(linear, learn, config).SerializeToString())
        got = np.concatenate([network.run(judge.feeds(row))["y"] for row in range(len(judge))])
        return float(np.square(got - judge.state @ weight).mean())

    assert error("gptq") < 0.5 * error("rtn")
    assert error("hqq") < 1.5 * error("rtn")


class _Rows(Frames):
    """Frames of a state alone."""

    def __init__(self, state: np.ndarray) -> None:
        super().__init__({}, state, np.zeros((len(state), 0), np.float32), np.zeros((len(state), 0, 1), np.float32))

    def feeds(self, row: int) -> dict[str, np.ndarray]:
        return {"state": self.state[row : row + 1]}


def test_dynamic_int8_is_int8(model: onnx.ModelProto, tiny_frames: Frames, tiny_float_bundle: Path) -> None:
    """Every asked product runs on integers, whose ranges are found as it runs."""
    quantized = quantize_dynamic(model, DynamicConfig(exclude=("queries",)))
    nodes = {node.name: node.executed for node in audit(quantized)}
    asked = scheme("int8-dynamic", exclude=("queries",)).integer_nodes(model)
    assert "queries" not in asked
    assert {name for name, executed in nodes.items() if executed == "int8"} == set(asked)
    manifest = load_bundle(tiny_float_bundle).manifest
    networks = [OrtModel(network.SerializeToString()) for network in (model, quantized)]
    assert compare_outputs(networks[0], networks[1], tiny_frames, manifest.spec, manifest.tokenizer).sqnr_db > 25


def test_shares_of_the_time_are_of_all_operators(model: onnx.ModelProto, tiny_frames: Frames) -> None:
    """Nodes with weights are found in the profile under their own names, those that run once per instruction apart; the rest is counted too."""
    nodes = audit(model)
    policy, condition = split_condition(model)
    assert condition is not None
    seconds = node_seconds(model, tiny_frames, runs=5)
    assert seconds[""] > 0
    every_time = {node.name for node in policy.graph.node}
    assert {node.name for node in nodes} & every_time <= set(seconds)
    assert not {node.name for node in condition.graph.node} & set(seconds)
    shares = {node.name: node.time_share for node in with_time_shares(nodes, dict.fromkeys(seconds, 1.0))}
    assert shares == {node.name: round(1 / len(seconds), 4) if node.name in every_time else 0.0 for node in nodes}


def test_int8_that_gains_nothing_is_refused() -> None:
    """Slower than its parent, or float in fact; what promises no speed is not asked for any."""
    node = NodePrecision(name="a", op="Conv", weight_bytes=1, asked="int8", executed="int8")
    _require_gain(["a", "b"], (node,), Latency(2.0, 1.0))
    _require_gain([], (node,), Latency(1.0, 2.0))
    with pytest.raises(QuantizationError, match=r"takes 2.00 ms of CPU and its float parent 1.00 ms.*--allow-slower"):
        _require_gain(["a"], (node,), Latency(1.0, 2.0))
    with pytest.raises(QuantizationError, match="1 nodes were to run in int8, and ONNX Runtime runs all of them in float"):
        _require_gain(["a"], (dataclasses.replace(node, executed="float32"),), Latency(2.0, 1.0))


def test_a_refusal_leaves_nothing(tiny_float_bundle: Path, tiny_frames: Frames, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder, and the parent as it was."""
    monkeypatch.setattr("quantize.quantize_bundle.compare_latency", lambda *_: Latency(1.0, 3.0))
    with pytest.raises(QuantizationError, match="nothing was written"):
        quantize_bundle(tiny_float_bundle, tmp_path / "out", scheme=scheme("int8"), frames=(tiny_frames, tiny_frames))
    assert list(tmp_path.iterdir()) == []


def test_frames_that_do_not_vary_are_refused(tiny_float_bundle: Path, tiny_frames: Frames, tmp_path: Path) -> None:
    """A camera that hangs in all frames would give the ranges of one moment."""
    same = tiny_frames.take(np.zeros(8, np.int64))
    with pytest.raises(QuantizationError, match="all 8 frames to calibrate with are the same"):
        quantize_bundle(tiny_float_bundle, tmp_path / "out", scheme=scheme("int8"), frames=(same, tiny_frames))


@pytest.mark.parametrize(
    ("precision", "settings", "error", "message"),
    [
        ("int5", {}, UnknownNameError, "unknown precision 'int5'"),
        ("int4", {"rule": "mse"}, QuantizationError, "rule 'mse' has no meaning for int4"),
        ("int8", {"block": 64}, QuantizationError, "block 64 has no meaning for int8"),
        ("int4-int8", {"dialect": "portable"}, QuantizationError, "dialect 'portable' has no meaning for int4-int8"),
        ("float8", {"rule": "mse"}, QuantizationError, "rule 'mse' has no meaning for float8"),
        ("int8-dynamic", {"weight_levels": 300}, QuantizationError, "weight_levels 300, expected 1 .. 127"),
        ("int4", {"method": "hqq", "symmetric": True}, QuantizationError, "hqq moves the offset"),
        ("int4", {"block": 48}, QuantizationError, "blocks of 48"),
        ("float16", {"exclude": ("mix.0",)}, QuantizationError, "cannot be left out of float16"),
        ("int8", {"keep": ("mix.0",)}, QuantizationError, "cannot be left out of int8"),
    ],
)
def test_what_a_precision_does_not_have_is_refused(precision: str, settings: dict[str, Any], error: type[Exception], message: str) -> None:
    """By name, and with what to do."""
    with pytest.raises(error, match=message):
        scheme(precision, **settings)


def test_gptq_without_frames_is_refused(tiny_float_bundle: Path, tmp_path: Path) -> None:
    """It rounds by what was recorded."""
    with pytest.raises(QuantizationError, match="int4 needs recorded frames"):
        quantize_bundle(tiny_float_bundle, tmp_path / "out", scheme=scheme("int4", method="gptq"))
