"""runtime.network_check and runtime.trial: what is no plain network is refused before it is loaded, and what takes too much where it harms nobody."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import tiny_policy_onnx
from onnx import TensorProto, helper, numpy_helper

import runtime.ort_backend
from actlet.errors import BundleError
from actlet.manifest import manifest_hash, read_manifest, record_files, write_manifest
from runtime.network_check import OPERATORS, OPSETS, check_network
from runtime.network_shapes import SHAPE_INPUTS
from runtime.opening import open_policy
from runtime.policy import BundlePolicy
from runtime.trial import TrialLimits, try_bundle

Change = Callable[[onnx.ModelProto], object]


def _attribute(model: onnx.ModelProto, name: str, value: Any) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute(name, value))


def _constant(model: onnx.ModelProto, **fields: Any) -> None:
    tensor = TensorProto(name="made_up", data_type=TensorProto.FLOAT, **fields)
    model.graph.initializer.append(tensor)


def _elsewhere(model: onnx.ModelProto, location: str) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.append(onnx.StringStringEntryProto(key="location", value=location))


def _endless_loop(model: onnx.ModelProto) -> None:
    """A Loop without an end: no count, and a condition that stays true."""
    condition = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("go_on", "still")]
    count = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    body = helper.make_graph([helper.make_node("Identity", ["go_on"], ["still"])], "body", [count, condition[0]], [condition[1]])
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "forever"))
    model.graph.node.append(helper.make_node("Loop", ["", "forever"], [], body=body))


def _sized(operator: str, *sizes: Any, **attributes: Any) -> Change:
    """An operator that is told by stored values how large its output is; the first of them is left out where there is something to make larger."""

    def change(model: onnx.ModelProto) -> None:
        names = [f"size{i}" for i, size in enumerate(sizes) if size is not None]
        model.graph.initializer.extend(
            numpy_helper.from_array(np.asarray(size), f"size{i}") for i, size in enumerate(sizes) if size is not None
        )
        fed = [] if operator in ("ConstantOfShape", "Range") else ["state"]
        inputs = [*fed, *(f"size{i}" if size is not None else "" for i, size in enumerate(sizes))]
        assert names
        model.graph.node.append(helper.make_node(operator, inputs, ["large"], name="grow", **attributes))

    return change


def _unstored(operator: str, *inputs: str, attributes: dict[str, Any] | None = None) -> Change:
    """An operator whose sizes follow from the state: "fed" is made of it, "two" is stored."""

    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.array([0, 1]), "two"))
        model.graph.node.append(helper.make_node("Cast", ["state"], ["fed"], to=TensorProto.INT64))
        model.graph.node.append(helper.make_node(operator, inputs, ["large"], name="grow", **(attributes or {})))

    return change


def _stored_twice(model: onnx.ModelProto) -> None:
    """A small one to be looked at and a large one to be loaded."""
    model.graph.initializer.extend(numpy_helper.from_array(np.array([size]), "size") for size in (2, 10**12))
    model.graph.node.append(helper.make_node("ConstantOfShape", ["size"], ["large"]))


def _stored_oddly(model: onnx.ModelProto) -> None:
    """Small whole numbers beside the bytes of a large one."""
    size = numpy_helper.from_array(np.array([10**12]), "size")
    size.int64_data.append(2)
    model.graph.initializer.append(size)
    model.graph.node.append(helper.make_node("ConstantOfShape", ["size"], ["large"]))


def _stored_as_floats(model: onnx.ModelProto) -> None:
    """Whole numbers in a tensor of floats."""
    size = TensorProto(name="size", data_type=TensorProto.FLOAT, dims=[1])
    size.int64_data.append(10**12)
    model.graph.initializer.append(size)
    model.graph.node.append(helper.make_node("Resize", ["state", "", "size"], ["large"]))


def _stored_in_a_node(model: onnx.ModelProto) -> None:
    """A Constant, whole numbers one by one."""
    size = helper.make_tensor("size", TensorProto.INT64, [2], [10**6, 10**6])
    model.graph.node.append(helper.make_node("Constant", [], ["size"], value=size))
    model.graph.node.append(helper.make_node("ConstantOfShape", ["size"], ["large"]))


_MANY = "asks for 1e\\+12 numbers by .*, expected at most 67108864"
_FED = "takes its shape from the value 'fed', expected a constant that is stored in the file"
SHAPES: dict[str, tuple[Change, str]] = {
    "a ConstantOfShape of 10^12": (_sized("ConstantOfShape", [10**6, 10**6]), _MANY),
    "a ConstantOfShape of 10^12, in a node": (_stored_in_a_node, _MANY),
    "an Expand to 10^12": (_sized("Expand", [10**12, 1]), _MANY),
    "an Expand beyond all numbers": (_sized("Expand", [2**62] * 40), "asks for inf|asks for .*e"),
    "an Expand to less than nothing": (_sized("Expand", [-(10**12)]), _MANY),
    "a Tile of 10^12": (_sized("Tile", [10**12, 1]), _MANY),
    "a Range of 10^12": (_sized("Range", 0, 10**12, 1), _MANY),
    "a Range of tiny steps": (_sized("Range", np.float32(0), np.float32(1), np.float32(1e-30)), "asks for 1e\\+30"),
    "a Range without steps": (_sized("Range", 0, 1, 0), "asks for nan"),
    "a Range of no numbers": (_sized("Range", [0, 1], 5, 1), "asks for nan"),
    "a Resize to 10^12": (_sized("Resize", None, None, [10**6, 10**6]), _MANY),
    "a Resize by 10^12": (_sized("Resize", None, np.float32([1e12, 1])), _MANY),
    "a Resize by what is no number": (_sized("Resize", None, np.float32([np.nan, 1])), "asks for nan"),
    "a Resize of a part of 10^12": (
        _sized("Resize", np.float32([0, 0, 1e12, 1]), np.float32([1, 1]), coordinate_transformation_mode="tf_crop_and_resize"),
        _MANY,
    ),
    "a Pad of 10^12": (_sized("Pad", [0, 10**12 - 2, 0, 1]), _MANY),
    "sizes of another type": (_sized("ConstantOfShape", np.float64([10**12])), "its sizes are stored as type 11 in 8 bytes"),
    "sizes without end": (_sized("Expand", np.ones(10**6, np.int64)), "its sizes are stored in 80000.. bytes, expected at most 2048"),
    "whole numbers of floats": (_stored_as_floats, r"type 1 in 0 bytes and the fields \[7\] of"),
    "sizes of two contents": (_stored_oddly, r"type 7 in 8 bytes and the fields \[7, 9\] of"),
    "sizes stored twice": (_stored_twice, "two values have the name 'size', expected one"),
    "a value stored and made": (
        lambda m: m.graph.node.append(helper.make_node("Identity", ["state"], ["weight"])),
        "two values have the name 'weight', expected one",
    ),
    "a ConstantOfShape of the state": (_unstored("ConstantOfShape", "fed"), _FED),
    "an Expand by the state": (_unstored("Expand", "state", "fed"), _FED),
    "a Tile by the state": (_unstored("Tile", "state", "fed"), _FED),
    "a Range to the state": (_unstored("Range", "two", "fed", "two"), _FED),
    "a Resize to the state": (_unstored("Resize", "state", "", "", "fed"), _FED),
    "a Pad by the state": (_unstored("Pad", "state", "fed"), _FED),
    "a Reshape by the state": (_unstored("Reshape", "state", "fed"), _FED),
    "a Slice from the state on": (_unstored("Slice", "state", "fed", "two"), _FED),
    "a Slice of the state's axes": (_unstored("Slice", "state", "two", "two", "fed"), _FED),
    "a TopK of the state": (_unstored("TopK", "state", "fed"), _FED),
    "a Split by the state": (_unstored("Split", "state", "fed"), _FED),
    "an Unsqueeze of the state's axes": (_unstored("Unsqueeze", "state", "fed"), _FED),
    "a mean over the state's axes": (_unstored("ReduceMean", "state", "fed"), _FED),
    "a shape that is an input": (_unstored("Reshape", "images.front", "state"), "from the value 'state', expected a constant"),
}

HOSTILE: dict[str, tuple[Change, str]] = {
    "data that leaves the folder": (lambda m: _elsewhere(m, "../../etc/passwd"), "holds weights in another file"),
    "data at an absolute path": (lambda m: _elsewhere(m, "/etc/passwd"), "holds weights in another file"),
    "data beside the file": (lambda m: _elsewhere(m, "weights.bin"), "holds weights in another file"),
    "a constant of 10^12 numbers": (lambda m: _constant(m, dims=[10**6, 10**6]), r"'made_up' claims 1000000000000 numbers in \d+ bytes"),
    "a constant of a negative size": (lambda m: _constant(m, dims=[-4]), "claims 9223372036854775808 numbers"),
    "a constant in an attribute": (
        lambda m: _attribute(m, "value", TensorProto(name="inside", data_type=1, dims=[10**9, 10**3])),
        "'inside' claims 1000000000000 numbers",
    ),
    "an endless loop": (_endless_loop, "holds a graph inside an operator"),
    "graphs in an attribute": (
        lambda m: _attribute(m, "branches", [onnx.GraphProto(), onnx.GraphProto()]),
        "holds graphs inside an operator",
    ),
    "an operator of another domain": (lambda m: setattr(m.graph.node[0], "domain", "com.evil"), "is a com.evil.Cast, which is not among"),
    "an operator that is random": (
        lambda m: setattr(m.graph.node[0], "op_type", "RandomNormalLike"),
        "is a RandomNormalLike, which is not among",
    ),
    "operators of texts": (lambda m: setattr(m.graph.node[0], "op_type", "StringConcat"), "is a StringConcat, which"),
    "sparse weights": (lambda m: m.graph.sparse_initializer.add(), "holds sparse weights"),
    "functions": (lambda m: m.functions.add(name="f", domain="x"), "holds functions of its own"),
    "a graph for training": (lambda m: m.training_info.add(), "holds a graph for training"),
    "another operator set": (lambda m: m.opset_import.add(domain="com.evil", version=1), "expected the standard one alone"),
    "an operator set of the future": (
        lambda m: setattr(m.opset_import[0], "version", 99),
        r"expected the standard one alone, of version 17 \.\. 23",
    ),
    "no operator set": (lambda m: m.ClearField("opset_import"), r"operator sets \[\], expected"),
    "no graph": (lambda m: m.ClearField("graph"), "0 graphs, expected one"),
    **SHAPES,
}


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What ONNX Runtime was asked to load."""
    loaded: list[bytes] = []
    real = runtime.ort_backend.onnxruntime.InferenceSession

    def load(model: bytes, *arguments: Any, **keywords: Any) -> Any:
        loaded.append(model)
        return real(model, *arguments, **keywords)

    monkeypatch.setattr(runtime.ort_backend.onnxruntime, "InferenceSession", load)
    return loaded


def seal(folder: Path, **files: bytes) -> Path:
    """Put files into a bundle and make its manifest right again, as somebody would who wants them to be loaded."""
    for name, content in files.items():
        (folder / f"{name}.onnx").write_bytes(content)
    write_manifest(folder, dataclasses.replace(read_manifest(folder), files=record_files(folder)))
    return folder


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_network_is_refused_before_it_is_loaded(tiny_bundle: Path, session: list[bytes], name: str) -> None:
    """With all hashes right, and whatever ONNX Runtime would have made of it."""
    change, message = HOSTILE[name]
    model = onnx.load_from_string(tiny_policy_onnx())
    change(model)
    content = model.SerializeToString()
    seal(tiny_bundle, policy=content)
    with pytest.raises(BundleError, match=rf"policy\.onnx: .*{message}"):
        BundlePolicy(tiny_bundle)
    assert content not in session


def test_two_graphs_are_refused() -> None:
    """A parser would merge them: what is checked must be what is loaded."""
    content = tiny_policy_onnx()
    with pytest.raises(BundleError, match="2 graphs, expected one"):
        check_network(content + content, "policy.onnx")


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"not a network", bytes(range(256))])
def test_what_is_no_network_is_refused(content: bytes) -> None:
    """Random bytes, an empty file."""
    with pytest.raises(BundleError, match=r"policy\.onnx: (not a network in ONNX's format|0 graphs|operator sets)"):
        check_network(content, "policy.onnx")


def test_a_network_cut_anywhere_is_refused_or_empty_of_operators(tiny_bundle: Path) -> None:
    """No cut passes both the check and the manifest's specification."""
    content = (tiny_bundle / "policy.onnx").read_bytes()
    for length in range(0, len(content), 37):
        with pytest.raises(BundleError):
            check_network(content[:length], "policy.onnx")


def test_facts_of_a_network(tiny_float_bundle: Path) -> None:
    """The same as onnx says, of every network of a student's bundle."""
    for path in tiny_float_bundle.glob("*.onnx"):
        model, facts = onnx.load(path), check_network(path.read_bytes(), path.name)
        assert facts.opset == model.opset_import[0].version
        assert sum(facts.operators.values()) == len(model.graph.node)
        assert facts.operators.keys() == {node.op_type for node in model.graph.node}
        assert facts.stored_bytes >= sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def test_sizes_may_be_written_packed() -> None:
    """Proto2 writes a number a field, other writers all in one."""
    packed = b"\x0a\x05" + b"\x80\x89\x7a" + b"\x80\x08"  # Dims [2000000, 1024] in one field.
    tensor = packed + b"\x10\x01" + b"\x42\x01w"
    graph = b"\x2a" + bytes([len(tensor)]) + tensor
    model = b"\x3a" + bytes([len(graph)]) + graph + b"\x42\x02\x10\x12"
    assert list(onnx.load_from_string(model).graph.initializer[0].dims) == [2_000_000, 1024]
    with pytest.raises(BundleError, match="'w' claims 2048000000 numbers"):
        check_network(model, "policy.onnx")


def test_every_listed_operator_is_one() -> None:
    """Of the standard domain, and none calls a graph."""
    for name in OPERATORS:
        schema = onnx.defs.get_schema(name, max_inclusive_version=24)
        assert not any(
            attribute.type in (onnx.defs.OpSchema.AttrType.GRAPH, onnx.defs.OpSchema.AttrType.GRAPHS)
            for attribute in schema.attributes.values()
        )


def test_shapes_that_networks_have_are_let_through() -> None:
    """Up to those of a large picture, shrinking and cut ones, and none."""
    model = onnx.load_from_string(tiny_policy_onnx())
    changes = [
        _sized("Resize", None, None, [3840, 2160, 3]),
        _sized("Expand", [4, 3]),
        _sized("Pad", [0, 1, 0, 1]),
        _sized("Tile", np.array([1, 2])),
    ]
    changes += [_sized("Range", 0, 100, 1), _sized("Range", np.int32(9), np.int32(0), np.int32(-1)), _sized("Reshape", [-1, 0])]
    changes += [_sized("Resize", np.float32([]), np.float32([0.5, 3])), _sized("ConstantOfShape", np.zeros(0, np.int64))]
    for change in changes:
        changed = onnx.load_from_string(model.SerializeToString())
        change(changed)
        check_network(changed.SerializeToString(), "policy.onnx")


@pytest.mark.parametrize("in_a_node", [False, True])
@pytest.mark.parametrize("as_bytes", [False, True])
@pytest.mark.parametrize("kind", [TensorProto.INT64, TensorProto.INT32, TensorProto.FLOAT])
def test_sizes_are_read_in_every_form(kind: int, as_bytes: bool, in_a_node: bool) -> None:
    """In which onnx stores numbers: 2^26 of them may be asked for, and one row more may not."""
    for sizes, message in (
        ([8192, 8192], None),
        ([-1, 1], None),
        ([8192, 8193], r"asks for 6\.71171e\+07 numbers by \[\[8192\.0, 8193\.0\]\]"),
    ):
        model, values = onnx.load_from_string(tiny_policy_onnx()), np.array(sizes, helper.tensor_dtype_to_np_dtype(kind))
        size = numpy_helper.from_array(values, "size") if as_bytes else helper.make_tensor("size", kind, [2], values.tolist())
        assert bool(size.raw_data) == as_bytes
        if in_a_node:
            model.graph.node.append(helper.make_node("Constant", [], ["size"], value=size))
        else:
            model.graph.initializer.append(size)
        model.graph.node.append(helper.make_node("Expand", ["state", "size"], ["large"], name="grow"))
        if message is None:
            check_network(model.SerializeToString(), "policy.onnx")
            continue
        with pytest.raises(BundleError, match=rf"policy\.onnx: node 'grow' \(Expand\) {message}"):
            check_network(model.SerializeToString(), "policy.onnx")


def test_no_operator_is_missing_among_those_that_read_sizes() -> None:
    """An input of whole numbers alone is one of sizes, of places in an array, or a convolution's bias; the latter are listed here."""
    others = {(name, 1) for name in ("Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND", "Trilu")} | {
        ("QLinearConv", 8)
    }
    schemas = [schema for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == "" and schema.name in OPERATORS]
    schemas = [schema for schema in schemas if schema.since_version < OPSETS.stop]
    whole = {
        (schema.name, at)
        for schema in schemas
        for at, value in enumerate(schema.inputs)
        if set(value.types) <= {"tensor(int64)", "tensor(int32)"}
    }
    assert ("Reshape", 1) in whole
    assert whole - others <= {(name, at) for name, inputs in SHAPE_INPUTS.items() for at in inputs}
    assert SHAPE_INPUTS.keys() <= OPERATORS


def test_a_sound_bundle_is_opened(tiny_bundle: Path) -> None:
    """In the other process, then here: of the same name."""
    assert try_bundle(tiny_bundle) == manifest_hash(tiny_bundle)
    assert open_policy(tiny_bundle).spec == read_manifest(tiny_bundle).spec


def test_the_other_process_says_why(tiny_bundle: Path) -> None:
    """Its message is the one that would have been raised here."""
    (tiny_bundle / "policy.onnx").write_bytes(b"short")
    with pytest.raises(BundleError, match=r"policy\.onnx: 5 bytes, expected .* cut or altered"):
        open_policy(tiny_bundle)


def _hungry(side: int, products: int) -> bytes:
    """The tiny policy with products of large matrices before its answer, made of one number by Expand and a product: no shape that is stored is large."""
    model = onnx.load_from_string(tiny_policy_onnx())
    graph = model.graph
    graph.initializer.extend(
        [numpy_helper.from_array(np.array(shape), name) for name, shape in (("column", [side, 1]), ("row", [1, side]))]
    )
    graph.initializer.append(numpy_helper.from_array(np.float32(0), "nothing"))
    # What is added is 0 at the end, but depends on the input, so that it is not computed at load.
    nodes = [helper.make_node("ReduceMax", ["state"], ["largest"], keepdims=0)]
    nodes += [helper.make_node("Expand", ["largest", name], [f"{name}.made"]) for name in ("column", "row")]
    nodes.append(helper.make_node("MatMul", ["column.made", "row.made"], ["m0"]))
    nodes += [helper.make_node("MatMul", [f"m{i}", f"m{i}"], [f"m{i + 1}"]) for i in range(products)]
    nodes += [helper.make_node("ReduceMax", [f"m{products}"], ["most"], keepdims=0), helper.make_node("Mul", ["most", "nothing"], ["zero"])]
    graph.node[-1].output[0] = "sure"
    graph.node.extend([*nodes, helper.make_node("Add", ["sure", "zero"], ["confidence"])])
    onnx.checker.check_model(model)
    return model.SerializeToString()


def test_a_network_that_takes_all_memory_is_refused(tiny_bundle: Path) -> None:
    """Ten thousand million numbers, 40 GB."""
    seal(tiny_bundle, policy=_hungry(100_000, 1))
    with pytest.raises(BundleError, match=r"inference failed|more memory than|the process that opened it died"):
        try_bundle(tiny_bundle)


def test_a_network_that_does_not_come_to_an_end_is_refused(tiny_bundle: Path) -> None:
    """Products of 2000 x 2000, a thousand of them for an answer."""
    seal(tiny_bundle, policy=_hungry(2000, 1000))
    with pytest.raises(BundleError, match="takes more than 2 s of processor time to be opened"):
        try_bundle(tiny_bundle, limits=TrialLimits(cpu_s=2))
    with pytest.raises(BundleError, match=r"not open after 1\.5 s"):
        try_bundle(tiny_bundle, limits=TrialLimits(wall_s=1.5))


def test_too_little_memory_is_an_error(tiny_bundle: Path) -> None:
    """Not a crash of the caller."""
    with pytest.raises(BundleError, match=r"the process that opened it died|more memory than"):
        try_bundle(tiny_bundle, limits=TrialLimits(memory_bytes=100 << 20))


def test_a_bundle_exchanged_in_between_is_refused(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was tried is what is opened."""
    monkeypatch.setattr("runtime.opening.try_bundle", lambda path, threads: "0" * 64)
    with pytest.raises(BundleError, match="was exchanged while it was opened"):
        open_policy(tiny_bundle)
