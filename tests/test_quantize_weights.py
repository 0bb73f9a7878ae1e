"""int4: packed in the file, unpacked once at load; file shares of the default student."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import TINY_SPEC, blob_frames
from onnx import TensorProto, helper, numpy_helper

from actlet.action_tokens import ActionTokenizer
from actlet.errors import QuantizationError, UnknownNameError
from actlet.rounding import int4_blocks
from actlet.specs import CameraSpec, ObservationSpec, PolicySpec
from distill.student import Student
from distill.text_encoder import EMBEDDING_DIM
from export.to_onnx import student_to_onnx
from quantize.audit import audit, executed_operators
from quantize.condition import graph_of
from quantize.frames import Frames
from quantize.int8 import quantize_int8
from quantize.output_error import compare_outputs
from quantize.weights import WeightConfig, packed_nodes, quantize_weights, will_be_packed
from runtime.bundle import load_bundle
from runtime.ort_backend import OrtModel


def _linear(rows: int, columns: int) -> onnx.ModelProto:
    weight = np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, rows])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, columns])
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="m")], "g", [x], [y], [numpy_helper.from_array(weight, "w")]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize("shape", [(64, 32), (37, 31)])
def test_the_network_uses_exactly_the_rounded_weights(shape: tuple[int, int]) -> None:
    """Feeding unit vectors reads the weights back, also where the last block is not full."""
    model = _linear(*shape)
    values, scale = int4_blocks(numpy_helper.to_array(model.graph.initializer[0]))
    expected = (values * scale.astype(np.float32)).reshape(-1)[: shape[0] * shape[1]].reshape(shape)
    for dialect in ("cpu", "portable"):
        network = OrtModel(quantize_weights(model, config=WeightConfig(dialect=dialect)).SerializeToString())
        got = np.concatenate([network.run({"x": row[None]})["y"] for row in np.eye(shape[0], dtype=np.float32)])
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_weights_are_unpacked_at_load_not_at_every_step(tiny_float_bundle: Path) -> None:
    """The graph that runs has float's operators and no more: nothing of the unpacking is left in it."""
    model = graph_of(load_bundle(tiny_float_bundle))

    def operators(network: onnx.ModelProto) -> list[str]:
        return sorted(op for _, op in executed_operators(network))

    assert operators(quantize_weights(model)) == operators(model)


def test_every_asked_node_is_stored_as_int4(tiny_float_bundle: Path) -> None:
    """Convolutions, products and FiLM; executed in float, which the audit says."""
    model = graph_of(load_bundle(tiny_float_bundle))
    asked = will_be_packed(model)
    quantized = quantize_weights(model, config=WeightConfig(exclude=("queries",)))
    nodes = audit(quantized, dict.fromkeys(packed_nodes(quantized, 4), "int4"))
    assert {node.name for node in nodes if node.asked == "int4"} == set(asked) - {"queries"}
    assert {node.executed for node in nodes} == {"float32"}
    assert {node.op for node in nodes if node.asked == "int4"} == {"Conv", "Gemm"}


def test_int4_answers_stay_near(tiny_float_bundle: Path, tiny_frames: Frames) -> None:
    """Above 10 dB on the untrained tiny student, where four bits cost the most."""
    bundle = load_bundle(tiny_float_bundle)
    model = graph_of(load_bundle(tiny_float_bundle))
    networks = [OrtModel(network.SerializeToString()) for network in (model, quantize_weights(model))]
    manifest = bundle.manifest
    error = compare_outputs(networks[0], networks[1], tiny_frames, manifest.spec, manifest.tokenizer)
    assert error.sqnr_db > 10


def test_impossible_requests_are_errors(tiny_float_bundle: Path) -> None:
    """Nothing left to quantize, or a node that does not exist."""
    model = graph_of(load_bundle(tiny_float_bundle))
    with pytest.raises(QuantizationError, match=r"nothing to quantize: of .* Exclude fewer"):
        quantize_weights(model, config=WeightConfig(min_weights=10**9))
    with pytest.raises(UnknownNameError, match=r"unknown node with weights 'querys'. Did you mean 'queries'"):
        quantize_weights(model, config=WeightConfig(exclude=("querys",)))
    with pytest.raises(QuantizationError, match="TensorRT takes blocks without an offset"):
        WeightConfig(dialect="portable", symmetric=False)
    with pytest.raises(QuantizationError, match="dialect 'tensorrt', expected 'cpu' or 'portable'"):
        WeightConfig(dialect="tensorrt")  # type: ignore[arg-type]


def test_files_of_the_default_student_are_small() -> None:
    """policy.onnx as a share of float: int8 at most 30 %, int4 at most 22 %, scales and the float rest included."""
    cameras = tuple(CameraSpec(name=name, height=128, width=128) for name in ("front", "wrist"))
    observation = ObservationSpec(cameras=cameras, state_names=tuple("abcdefg"), state_units=("1",) * 7)
    spec = PolicySpec(observation=observation, action=TINY_SPEC.action, timing=TINY_SPEC.timing)
    low, high = np.array(spec.action.low, np.float32), np.array(spec.action.high, np.float32)
    model = student_to_onnx(Student(spec, ActionTokenizer(low, high)))
    rng = np.random.default_rng(0)
    pictures = {camera.name: blob_frames(rng, 2, 128, 128) for camera in cameras}
    state, vectors = rng.normal(size=(2, 7)).astype(np.float32), rng.normal(size=(2, EMBEDDING_DIM)).astype(np.float32) / 20
    frames = Frames(pictures, state, vectors, np.zeros((2, 0, 1 + spec.action.dim), np.float32))
    assert quantize_int8(model, frames).ByteSize() <= 0.30 * model.ByteSize()
    assert quantize_weights(model).ByteSize() <= 0.22 * model.ByteSize()
