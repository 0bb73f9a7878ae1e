"""Fixtures that several test modules share: a tiny but genuine bundle, made with onnx alone."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from actlet.action_tokens import ActionTokenizer
from actlet.manifest import GoldenTolerance, Lineage, Manifest, NodePrecision, TextEncoderInfo, record_files, write_manifest
from actlet.specs import ActionSpec, CameraSpec, ObservationSpec, PolicySpec, TimingSpec
from quantize.frames import Frames

# A shell that runs the tests in the background makes them ignore Ctrl-C, and what they start too: tests that press it need it heard.
signal.signal(signal.SIGINT, signal.default_int_handler)

TINY_SPEC = PolicySpec(
    observation=ObservationSpec(
        cameras=(CameraSpec(name="front", height=6, width=8),), state_names=("x", "y", "grip"), state_units=("m", "m", "1")
    ),
    action=ActionSpec(
        names=("terminate", "dx", "dy", "gripper"),
        units=("1", "m", "m", "1"),
        kinds=("binary", "continuous", "continuous", "binary"),
        low=(0, -0.05, -0.05, 0),
        high=(1, 0.05, 0.05, 1),
        frame="base",
        hold=("zero", "zero", "zero", "last"),
    ),
    timing=TimingSpec(rate_hz=10, horizon=6, execute_steps=3, max_delay_steps=2),
)
TINY_TEXT = TextEncoderInfo(max_tokens=8, embedding_dim=4)
_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "put", "lift", "the", "cup", "plate", "##s", "on"]


def tiny_tokenizer() -> bytes:
    """A BERT uncased tokenizer.json of twelve pieces."""
    special = [
        {"id": i, "content": word, "special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        for i, word in enumerate(_WORDS[:5])
    ]
    document = {
        "version": "1.0",
        "added_tokens": special,
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {word: i for i, word in enumerate(_WORDS)},
        },
    }
    return json.dumps(document).encode()


def _model(nodes: list, inputs: list, outputs: list, constants: dict[str, np.ndarray]) -> bytes:
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def tiny_instruction_onnx() -> bytes:
    """The sum of the tokens' vectors."""
    table = np.random.default_rng(1).normal(size=(len(_WORDS), TINY_TEXT.embedding_dim)).astype(np.float32)
    ids, mask = (helper.make_tensor_value_info(name, TensorProto.INT64, [1, 8]) for name in ("input_ids", "attention_mask"))
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["kept"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["kept", "last"], ["kept3"]),
        helper.make_node("Mul", ["rows", "kept3"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "first"], ["embedding"], keepdims=0),
    ]
    output = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, 4])
    return _model(nodes, [ids, mask], [output], {"table": table, "last": np.array([2]), "first": np.array([1])})


def tiny_policy_onnx(spec: PolicySpec = TINY_SPEC, *, gain: float = 1.0) -> bytes:
    """actions = low + sigmoid(features @ W) (high - low) gain: a gain above 1 leaves the limits, NaN poisons every answer."""
    rng, action, steps = np.random.default_rng(2), spec.action, spec.timing.horizon
    inputs = [
        helper.make_tensor_value_info(f"images.{c.name}", TensorProto.UINT8, [1, c.height, c.width, 3]) for c in spec.observation.cameras
    ]
    inputs.append(helper.make_tensor_value_info("state", TensorProto.FLOAT, [1, spec.observation.state_dim]))
    inputs.append(helper.make_tensor_value_info("instruction", TensorProto.FLOAT, [1, TINY_TEXT.embedding_dim]))
    outputs = [
        helper.make_tensor_value_info("actions", TensorProto.FLOAT, [1, steps, action.dim]),
        helper.make_tensor_value_info("confidence", TensorProto.FLOAT, [1, steps]),
    ]
    nodes, means = [], []
    for camera in spec.observation.cameras:
        cast, mean = f"float.{camera.name}", f"mean.{camera.name}"
        nodes.append(helper.make_node("Cast", [f"images.{camera.name}"], [cast], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("ReduceMean", [cast, "axes"], [mean], keepdims=0))
        means.append(mean)
    width = 3 * len(means) + spec.observation.state_dim + TINY_TEXT.embedding_dim
    nodes += [
        helper.make_node("Concat", [*means, "state", "instruction"], ["features"], axis=1),
        helper.make_node("MatMul", ["features", "weight"], ["logits"], name="head"),
        helper.make_node("Sigmoid", ["logits"], ["unit"]),
        helper.make_node("Reshape", ["unit", "shape"], ["chunk"]),
        helper.make_node("Mul", ["chunk", "range"], ["scaled"]),
        helper.make_node("Add", ["scaled", "low"], ["actions"]),
        helper.make_node("ReduceMean", ["chunk", "last"], ["confidence"], keepdims=0),
    ]
    low, high = np.array(action.low, np.float32), np.array(action.high, np.float32)
    high[[i for i, name in enumerate(action.names) if name == "terminate"]] *= 0.4  # So that it never ends an episode by itself.
    constants = {
        "axes": np.array([1, 2]),
        "last": np.array([2]),
        "shape": np.array([1, steps, action.dim]),
        "weight": (rng.normal(size=(width, steps * action.dim)) / 20).astype(np.float32),
        "range": (high - low) * np.float32(gain),
        "low": low,
    }
    return _model(nodes, inputs, outputs, constants)


def write_tiny_bundle(folder: Path, *, spec: PolicySpec = TINY_SPEC, gain: float = 1.0) -> Path:
    """A bundle as export makes it, of a few kilobytes."""
    from runtime.networks import Networks

    folder.mkdir(parents=True)
    files = {
        "policy.onnx": tiny_policy_onnx(spec, gain=gain),
        "instruction.onnx": tiny_instruction_onnx(),
        "tokenizer.json": tiny_tokenizer(),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    networks = Networks(
        policy=files["policy.onnx"],
        instruction=files["instruction.onnx"],
        tokenizer=files["tokenizer.json"],
        spec=spec,
        text_encoder=TINY_TEXT,
    )
    rng, samples = np.random.default_rng(3), 3
    golden = networks.record(
        {c.name: rng.integers(0, 256, (samples, c.height, c.width, 3), dtype=np.uint8) for c in spec.observation.cameras},
        rng.normal(size=(samples, spec.observation.state_dim)).astype(np.float32),
        ["put the cup on the plate", "lift the cups", "put the cup on the plate"],
    )
    golden.save(folder / "golden.npz")
    low, high = np.array(spec.action.low, np.float32), np.array(spec.action.high, np.float32)
    manifest = Manifest(
        spec=spec,
        tokenizer=ActionTokenizer(low, high),
        precision="float32",
        nodes=(NodePrecision(name="head", op="MatMul", weight_bytes=10, asked="float32", executed="float32"),),
        text_encoder=TINY_TEXT,
        files=record_files(folder),
        lineage=Lineage(
            parents=(),
            dataset=None,
            checkpoint="0" * 64,
            git_commit=None,
            versions={"actlet": "0.1.0", "onnxruntime": "1.31.1"},
            seeds={"train": 0},
            created="2026-11-25T12:00:00+00:00",
        ),
        golden_tolerance=GoldenTolerance(actions=1e-4, confidence=1e-4, embedding=1e-5),
    )
    write_manifest(folder, manifest)
    return folder


@pytest.fixture(scope="session")
def tiny_spec() -> PolicySpec:
    """Observation 6x8 and three numbers, four action dimensions, six steps."""
    return TINY_SPEC


@pytest.fixture(scope="session")
def make_tiny_bundle() -> Callable[..., Path]:
    """`make_tiny_bundle(folder, spec=..., gain=...)` writes a sound bundle."""
    return write_tiny_bundle


@pytest.fixture
def tiny_bundle(tmp_path: Path) -> Path:
    """A sound bundle in a folder of the test's own."""
    return write_tiny_bundle(tmp_path / "bundle")


def blob_frames(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """uint8 (count, height, width, 3): coloured discs on a plain ground, smooth as camera pictures are and noise is not."""
    rows, columns = np.mgrid[:height, :width]
    frames = np.empty((count, height, width, 3), np.uint8)
    for frame in frames:
        frame[:] = rng.integers(60, 200, 3)
        for _ in range(5):
            centre, radius = rng.uniform(0, [height, width]), rng.uniform(0.08, 0.25) * height
            frame[(rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2] = rng.integers(0, 256, 3)
    return frames


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student checkpoint of 60,000 untrained weights with the shape of a real one: two cameras, FiLM, 256 bins."""
    import torch
    from safetensors.torch import save_file

    from actlet.storage import write_json
    from distill.student import Student, StudentConfig, student_config_json
    from distill.text_encoder import load_text_encoder

    cameras = (CameraSpec(name="front", height=32, width=32), CameraSpec(name="wrist", height=32, width=32))
    spec = PolicySpec(
        observation=ObservationSpec(cameras=cameras, state_names=("x", "y", "grip"), state_units=("m", "m", "1")),
        action=TINY_SPEC.action,
        timing=TINY_SPEC.timing,
    )
    architecture = StudentConfig(
        image_px=16, channels=(16, 32), blocks=(1, 2), condition_dim=32, squeeze_channels=8, features=64, token_rank=16
    )
    torch.manual_seed(5)
    tokenizer = ActionTokenizer(np.array(spec.action.low, np.float32), np.array(spec.action.high, np.float32))
    student = Student(spec, tokenizer, architecture)
    rng, count = np.random.default_rng(7), 12
    texts = ["put the red cup on the plate", "lift the blue cup", "touch the green block"] * 4
    samples = {f"images.{camera.name}": torch.from_numpy(blob_frames(rng, count, 32, 32)) for camera in cameras}
    samples["state"] = torch.from_numpy(rng.normal(size=(count, 3)).astype(np.float32))
    samples["instruction"] = torch.from_numpy(load_text_encoder().encode(texts))
    with torch.no_grad():
        student.queries.weight.mul_(20)  # Untrained answers are nearly uniform over the bins; these have peaks.
        for _ in range(30):
            student.train()([samples["images.front"], samples["images.wrist"]], samples["state"], samples["instruction"])
    folder = tmp_path_factory.mktemp("checkpoints") / "student"
    lineage = {"dataset": "d" * 64, "training": {"seed": 5}}
    write_json(folder / "config.json", student_config_json(student, lineage=lineage, sample_instructions=texts))
    save_file({name: value.contiguous() for name, value in student.state_dict().items()}, folder / "model.safetensors")
    save_file(samples, folder / "samples.safetensors")
    return folder


@pytest.fixture(scope="session")
def tiny_float_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle that `actlet export` makes of it. Read only: copy it before you change anything."""
    from export.to_bundle import export_student

    return export_student(tiny_checkpoint, tmp_path_factory.mktemp("bundles") / "float").out


@pytest.fixture(scope="session")
def tiny_frames(tiny_checkpoint: Path) -> Frames:
    """The twelve frames that the tiny student's checkpoint carries."""
    from safetensors.numpy import load_file

    samples = load_file(tiny_checkpoint / "samples.safetensors")
    images = {name.removeprefix("images."): values for name, values in samples.items() if name.startswith("images.")}
    return Frames(images, samples["state"], samples["instruction"], np.zeros((len(samples["state"]), 0, 1), np.float32))
