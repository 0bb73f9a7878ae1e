"""quantize.condition and runtime.policy_network: a policy in two files answers as the one graph does, for every instruction and precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from actlet.errors import BundleError, RobotFault
from actlet.manifest import read_manifest
from quantize.audit import audit
from quantize.condition import graph_of, join_condition, network_files, network_of, split_condition
from quantize.frames import Frames, frames_of_golden
from quantize.schemes import scheme
from runtime import ort_backend, policy_network
from runtime.bundle import load_bundle
from runtime.fixed_inputs import DATA_TYPES, fix_inputs
from runtime.ort_backend import OrtModel, SessionConfig
from runtime.policy_network import PolicyNetwork


@pytest.fixture
def model(tiny_float_bundle: Path) -> onnx.ModelProto:
    return graph_of(load_bundle(tiny_float_bundle))


@pytest.fixture
def frames(tiny_float_bundle: Path) -> Frames:
    return frames_of_golden(load_bundle(tiny_float_bundle).golden)


@pytest.mark.parametrize("precision", ["float32", "int8", "int8-dynamic", "int8-weights", "int4", "int4-int8", "float16", "float8"])
def test_two_files_answer_as_the_whole_graph(model: onnx.ModelProto, frames: Frames, precision: str) -> None:
    """For each recorded frame and instruction; joined again they are the graph that they were made of."""
    whole = model if precision == "float32" else scheme(precision).quantize(model, frames)
    policy, condition = split_condition(whole)
    assert condition is not None
    assert [value.name for value in condition.graph.input] == ["instruction"]
    assert "instruction" not in [value.name for value in policy.graph.input]
    assert any(node.name.startswith("condition.0") for node in condition.graph.node)
    assert not any(node.name.startswith("condition.") for node in policy.graph.node)
    joined = join_condition(policy, condition)
    assert sorted(node.SerializeToString() for node in joined.graph.node) == sorted(node.SerializeToString() for node in whole.graph.node)
    assert [value.name for value in joined.graph.input] == [value.name for value in whole.graph.input]
    config = SessionConfig(integers=precision != "float8")
    one, two = OrtModel(whole.SerializeToString(), config=config), network_of(whole, config)
    assert two.inputs == one.inputs
    for row in range(len(frames)):
        expected, got = one.run(frames.feeds(row)), two.run(frames.feeds(row))
        for name, values in expected.items():
            np.testing.assert_allclose(got[name], values, atol=3e-3 if precision == "float16" else 1e-5)


def test_every_node_is_audited_in_the_network_that_runs(model: onnx.ModelProto, frames: Frames) -> None:
    """Also where FiLM, a constant now, has been merged into a convolution."""
    for whole in (model, scheme("int8").quantize(model, frames)):
        assert all(node.executed is not None for node in audit(whole))


def test_an_instruction_is_seen_once(model: onnx.ModelProto, frames: Frames, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its session is kept; the one used longest ago goes first."""
    monkeypatch.setattr(policy_network, "KEPT", 2)
    network = network_of(model)
    vectors = [frames.instruction[:1] + step for step in np.float32([0, 0.01, 0.02])]
    first = network.fixed(vectors[0])
    assert network.fixed(vectors[0].copy()) is first
    second = network.fixed(vectors[1])
    assert network.fixed(vectors[0]) is first
    network.fixed(vectors[2])
    assert network.fixed(vectors[0]) is first
    assert network.fixed(vectors[1]) is not second


def test_instructions_are_told_apart(tiny_float_bundle: Path, model: onnx.ModelProto, frames: Frames) -> None:
    """Asked by turns, each instruction gets its own answer."""
    network, whole = network_of(model), OrtModel(model.SerializeToString())
    feeds = [{**frames.feeds(0), "instruction": frames.instruction[row : row + 1]} for row in range(len(frames))]
    assert len({values["instruction"].tobytes() for values in feeds}) > 1
    for values in (*feeds, *feeds):
        np.testing.assert_allclose(network.run(values)["actions"], whole.run(values)["actions"], atol=1e-5)


def test_files_of_two_bundles_are_refused(model: onnx.ModelProto, frames: Frames) -> None:
    """And so are a frame that is missing, and what is not finite."""
    ours, theirs = network_files(model), network_files(scheme("int8").quantize(model, frames))
    with pytest.raises(BundleError, match=r"condition\.onnx takes .* files of two bundles\?"):
        PolicyNetwork(ours["policy.onnx"], theirs["condition.onnx"])
    network = PolicyNetwork(ours["policy.onnx"], ours["condition.onnx"])
    feeds = frames.feeds(0)
    with pytest.raises(BundleError, match=r"fed with .*'state'"):
        network.run({name: values for name, values in feeds.items() if name != "instruction"})
    with pytest.raises(BundleError, match=r"fed with .* expected"):
        network.run({name: values for name, values in feeds.items() if name != "state"})
    with pytest.raises(RobotFault, match=r"condition\.onnx answered with values that are not finite"):
        network.fixed(np.full_like(frames.instruction[:1], np.nan))


def test_a_network_that_reads_no_instruction_stays_whole() -> None:
    """Such as a policy of one task; and one whose answer reads the vector beside the picture."""
    one = helper.make_tensor_value_info("state", TensorProto.FLOAT, [1, 2])
    vector = helper.make_tensor_value_info("instruction", TensorProto.FLOAT, [1, 2])
    out = helper.make_tensor_value_info("actions", TensorProto.FLOAT, [1, 2])
    for inputs, values in (([one], ["state", "state"]), ([one, vector], ["state", "instruction"])):
        graph = helper.make_graph([helper.make_node("Add", values, ["actions"])], "g", inputs, [out])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        assert split_condition(model) == (model, None)
        assert list(network_files(model)) == ["policy.onnx"]


@pytest.mark.parametrize("kind", ["bool", "float64", "int16", "unknown", "int64", "float16", "float32", "int8"])
def test_what_cannot_be_fed_does_not_cross(kind: str) -> None:
    """A value of a type that the runtime feeds is cut at; another one, or one of unknown size, leaves the policy whole. Either way it runs."""
    dtype = np.dtype("float32" if kind == "unknown" else kind)
    nodes = [
        helper.make_node("Mul", ["instruction", "two"], ["doubled"]),
        helper.make_node("Cast", ["doubled"], ["told"], to=helper.np_dtype_to_tensor_dtype(dtype)),
        helper.make_node("Cast", ["state"], ["places"], to=TensorProto.INT64),
        helper.make_node(
            "GatherElements", ["told", "places"], ["chosen"], axis=1
        ),  # Behind the cut, so that what is told is read across it.
        helper.make_node("Cast", ["chosen"], ["actions"], to=TensorProto.FLOAT),
    ]
    constants = [numpy_helper.from_array(np.float32(2), "two")]
    if kind == "unknown":
        nodes[1].output[0] = "flat"
        nodes[2:2] = [
            helper.make_node("Cast", ["instruction"], ["whole"], to=TensorProto.INT64),
            helper.make_node("Reshape", ["whole", "length"], ["shape"]),
            helper.make_node("Reshape", ["flat", "shape"], ["told"]),
        ]
        constants.append(numpy_helper.from_array(np.array([2]), "length"))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in ("state", "instruction")]
    graph = helper.make_graph(nodes, "g", values, [helper.make_tensor_value_info("actions", TensorProto.FLOAT, [1, 2])], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    files = network_files(model)
    assert ("condition.onnx" in files) == (kind in DATA_TYPES)
    feeds = {"state": np.float32([[1, 0]]), "instruction": np.float32([[1, 2]])}
    expected = OrtModel(model.SerializeToString()).run(feeds)["actions"]
    np.testing.assert_array_equal(network_of(model).run(feeds)["actions"], expected)


def test_what_is_fixed_is_what_is_fed() -> None:
    """One table of types for two modules, since a robot's has no onnx."""
    assert set(DATA_TYPES) == set(ort_backend._DTYPES.values())
    assert {name: helper.np_dtype_to_tensor_dtype(np.dtype(name)) for name in DATA_TYPES} == DATA_TYPES


def test_the_size_of_a_bundles_networks_is_that_of_both_files(tiny_float_bundle: Path) -> None:
    """What a scheme is judged by is all that holds weights."""
    sizes = [(tiny_float_bundle / name).stat().st_size for name in ("policy.onnx", "condition.onnx")]
    assert read_manifest(tiny_float_bundle).network_bytes == sum(sizes)


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "int8", "int32", "int64"])
def test_a_fixed_input_is_a_constant(dtype: str) -> None:
    """In every type, shape and name that a graph may have: the checker of ONNX reads what was written."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [helper.make_node("Cast", ["väl/ue"], ["f"], to=TensorProto.FLOAT), helper.make_node("Add", ["x", "f"], ["y"])]
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 300]), helper.make_tensor_value_info("väl/ue", kind, [2, 300])]
    graph = helper.make_graph(nodes, "g", values, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 300])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    given = np.arange(600).reshape(2, 300).astype(dtype)[:, ::-1]
    fixed = onnx.load_from_string(fix_inputs(model.SerializeToString(), {"väl/ue": given}))
    onnx.checker.check_model(fixed, full_check=True)
    assert [value.name for value in fixed.graph.input] == ["x"]
    np.testing.assert_array_equal(numpy_helper.to_array(fixed.graph.initializer[0]), given)
    assert fixed.graph.node == model.graph.node
    x = np.ones((2, 300), np.float32)
    np.testing.assert_array_equal(OrtModel(fixed.SerializeToString()).run({"x": x})["y"], x + given.astype(np.float32))


def test_what_is_no_network_is_refused(model: onnx.ModelProto) -> None:
    """Cut at any place, or with another name: an error, never half a network."""
    content = network_files(model)["policy.onnx"]
    with pytest.raises(BundleError, match=r"has no inputs \['nobody'\]"):
        fix_inputs(content, {"nobody": np.zeros(1, np.float32)})
    name = onnx.load_from_string(content).graph.input[-1].name
    for length in (1, 2, 5, 100, len(content) // 2, len(content) - 1):
        with pytest.raises(BundleError, match=r"not a network in ONNX's format|has no inputs"):
            fix_inputs(content[:length], {name: np.zeros(1, np.float32)})
    with pytest.raises(BundleError, match="a number that does not end"):
        fix_inputs(b"\xff" * 12, {})
    with pytest.raises(BundleError, match="a field of kind 7"):
        fix_inputs(b"\x0f", {})
