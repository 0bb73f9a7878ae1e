"""Torch networks as ONNX graphs: opset 18, fixed shapes, plain operators, nothing of the building machine inside.

Opset 18 is the newest in which one symmetric int8 file loads both in ONNX Runtime and in TensorRT. Nodes that hold
weights are named after the torch module that the weights come from ("trunks.0.blocks.1.convolution"), because
quantization, audits and reports speak of nodes by name. The exporter's notes (stack traces with paths) are removed: the
same checkpoint gives the same bytes on every machine.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence

import onnx
import torch
from onnxscript import ir, optimizer
from optimum.utils.input_generators import DummyTextInputGenerator
from optimum.utils.normalized_config import NormalizedTextConfig
from torch import Tensor, nn

from actlet.errors import CheckpointError
from distill.student import Student
from distill.text_encoder import EMBEDDING_DIM, TOKEN_LENGTH, TextEncoder

__all__ = ["OPSET", "module_to_onnx", "operators", "student_to_onnx", "text_encoder_to_onnx"]

OPSET = 18
_IR_VERSION = 10  # What onnxruntime 1.18 and newer read; the exporter's own choice moves with its version.
_FOLD_BYTES = 64 << 20  # Larger than any weight: an operation on constants alone never runs on the robot.


def student_to_onnx(student: Student) -> onnx.ModelProto:
    """policy.onnx of a student.

    Inputs: `images.<camera>` uint8 (1, h, w, 3) per camera, `state` float32 (1, S), `instruction` float32 (1, 1152), and where the policy is
    told what is on its way `committed` float32 (1, D, 1 + A).
    Outputs: `actions` float32 (1, H, A) in physical units, `confidence` float32 (1, H).

    Raises:
        CheckpointError: Its weights are not finite.
    """
    bad = [name for name, value in student.state_dict().items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if bad:
        raise CheckpointError(f"weights that are not finite: {bad[:5]}; such a student is never exported. Train it again.")
    cameras = student.spec.observation.cameras
    inputs = [torch.zeros(1, camera.height, camera.width, 3, dtype=torch.uint8) for camera in cameras]
    inputs += [torch.zeros(1, student.spec.observation.state_dim), torch.zeros(1, EMBEDDING_DIM)]
    names = [*(f"images.{camera.name}" for camera in cameras), "state", "instruction"]
    if told := student.spec.timing.committed_steps:
        inputs.append(torch.zeros(1, told, 1 + student.spec.action.dim))
        names.append("committed")
    return module_to_onnx(student.exportable(), inputs, names, ["actions", "confidence"], prefix="student.")


def text_encoder_to_onnx(encoder: TextEncoder) -> onnx.ModelProto:
    """instruction.onnx in float32: `input_ids`, `attention_mask` int64 (1, 64) -> `instruction` float32 (1, 1152)."""
    names = ["input_ids", "attention_mask"]
    # optimum knows what a model of transformers is fed with; its own export to ONNX went to optimum-onnx, which stops at transformers 4.57.
    examples = DummyTextInputGenerator(
        "feature-extraction", NormalizedTextConfig(encoder.bert.config), batch_size=1, sequence_length=TOKEN_LENGTH
    )
    return module_to_onnx(encoder, [examples.generate(name) for name in names], names, ["instruction"], prefix="bert.")


def operators(model: onnx.ModelProto) -> dict[str, int]:
    """Operator type -> how often, most frequent first."""
    return dict(Counter(node.op_type for node in model.graph.node).most_common())


def module_to_onnx(
    module: nn.Module, inputs: list[Tensor], names: Sequence[str], outputs: Sequence[str], *, prefix: str, opset: int = OPSET
) -> onnx.ModelProto:
    """A module as a graph of fixed shapes.

    Args:
        module: Put in evaluation mode.
        inputs: An example of every input.
        names: Of the inputs.
        outputs: Names of the outputs.
        prefix: What weights' names begin with and lose.
        opset: Version of the standard operators.
    """
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(), tuple(inputs), dynamo=True, opset_version=opset, input_names=names, output_names=outputs, verbose=False
        )
        assert program is not None
        optimizer.fold_constants(program.model, input_size_limit=_FOLD_BYTES, output_size_limit=_FOLD_BYTES)
        optimizer.remove_unused_nodes(program.model)
        model = ir.to_proto(program.model)
    model.ir_version = _IR_VERSION
    model.producer_name, model.producer_version = "actlet", ""
    _strip(model)
    _rename(model, prefix)
    onnx.checker.check_model(model, full_check=True)
    return model


def _strip(model: onnx.ModelProto) -> None:
    """Remove what the network does not need: notes of the exporter, and shapes of inner values (which go stale)."""
    graph = model.graph
    del model.metadata_props[:], graph.metadata_props[:], graph.value_info[:]
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        part.doc_string = ""
        del part.metadata_props[:]
    graph.doc_string, graph.name = "", "actlet"
    used = {name for node in graph.node for name in node.input}
    kept = [constant for constant in graph.initializer if constant.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _rename(model: onnx.ModelProto, prefix: str) -> None:
    """Weights lose the wrapper's prefix; the node that uses one takes its name without the last part."""
    constants = {constant.name: constant for constant in model.graph.initializer}
    for constant in constants.values():
        constant.name = constant.name.removeprefix(prefix)
    taken: set[str] = set()
    for node in model.graph.node:
        node.input[:] = [name.removeprefix(prefix) if name in constants else name for name in node.input]
        weight = next((name for name in node.input if name.endswith(".weight")), None)
        name = weight.removesuffix(".weight") if weight else node.name
        node.name = name if name not in taken else f"{name}.{node.name}"
        taken.add(node.name)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of its own internals and of torchvision, which nothing here uses; its optimizer of what it does not fold."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
