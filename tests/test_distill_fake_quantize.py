"""distill.fake_quantize: it rounds what quantize rounds, to the same numbers, and leaves no trace in the student."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import TINY_SPEC
from torch import Tensor, nn

from actlet.action_tokens import ActionTokenizer
from actlet.rounding import uint8_grid
from actlet.specs import CameraSpec, ObservationSpec, PolicySpec
from distill.fake_quantize import FakeQuantizer, Precision, rounded_layers
from distill.fit import FitConfig, fit
from distill.student import Student, StudentConfig, load_student
from distill.student_batches import StudentInTraining
from export.to_onnx import student_to_onnx
from quantize.condition import graph_of
from quantize.film import stack_film
from quantize.frames import Frames
from quantize.graph import Graph
from quantize.int8 import Int8Config, quantize_int8, will_be_int8
from quantize.weights import quantize_weights, will_be_packed
from runtime.bundle import load_bundle
from runtime.ort_backend import OrtModel

CONFIG = StudentConfig(image_px=16, channels=(16, 32), blocks=(1, 2), condition_dim=32, squeeze_channels=8, features=64, token_rank=16)


def a_student(config: StudentConfig = CONFIG, *, camera_px: int = 32, states: int = 3, told: int = 0) -> Student:
    """Untrained, but for a normalisation that has seen something."""
    cameras = (CameraSpec(name="front", height=camera_px, width=camera_px), CameraSpec(name="wrist", height=32, width=32))
    names = tuple(f"s{i}" for i in range(states))
    observation = ObservationSpec(cameras=cameras, state_names=names, state_units=("1",) * states)
    timing = dataclasses.replace(TINY_SPEC.timing, committed_steps=told)
    spec = PolicySpec(observation=observation, action=TINY_SPEC.action, timing=timing)
    torch.manual_seed(2)
    student = Student(spec, ActionTokenizer(np.float32(spec.action.low), np.float32(spec.action.high)), config)
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.5)  # some are negative
            nn.init.uniform_(module.running_var, 0.01, 3.0)
    return student.eval()


@pytest.fixture(scope="module")
def student() -> Student:
    return a_student()


@pytest.fixture(scope="module")
def model(student: Student) -> onnx.ModelProto:
    return student_to_onnx(student)


@pytest.fixture(scope="module")
def inputs(tiny_frames: Frames) -> tuple[list[Tensor], Tensor, Tensor]:
    images = [torch.from_numpy(tiny_frames.images[name]) for name in ("front", "wrist")]
    return images, torch.from_numpy(tiny_frames.state), torch.from_numpy(tiny_frames.instruction)


def used_weights(student: Student, precision: Precision) -> dict[str, np.ndarray]:
    """The weights that the forward pass computes with, what the normalisation multiplies them by included."""
    quantizer, modules = FakeQuantizer(student, precision), dict(student.named_modules())
    used = {}
    for name in quantizer.layers:
        weight = quantizer._weight(modules, name).detach()
        if name.endswith(".convolution"):
            norm = modules[name.replace("convolution", "normalisation")]
            weight = weight * (norm.weight / (norm.running_var + norm.eps).sqrt())[:, None, None, None]
        used[name] = weight.detach().numpy()
    return used


@pytest.mark.parametrize(
    ("config", "camera_px", "states", "told"),
    [
        (
            StudentConfig(image_px=16, channels=(8, 8), blocks=(1, 1), condition_dim=16, features=32, squeeze_channels=8, token_rank=4),
            64,
            9,
            0,
        ),
        (StudentConfig(image_px=128, channels=(16, 32), blocks=(1, 2), asked_keypoints=0), 128, 16, 1),
        (CONFIG, 32, 3, 2),
        (CONFIG, 35, 3, 0),
    ],
)
def test_the_layers_are_those_that_quantize_chooses(config: StudentConfig, camera_px: int, states: int, told: int) -> None:
    """Also where a picture is pooled too far to be read as bytes, or leaves something over when it is pooled, where layers are too small, and where the keypoints' grid is large."""
    student = a_student(config, camera_px=camera_px, states=states, told=told)
    model = student_to_onnx(student)
    film = [name for name in rounded_layers(student, "int8") if name.endswith(".film")]
    assert sorted(rounded_layers(student, "int4")) == sorted(will_be_packed(model))
    assert set(rounded_layers(student, "int8")) == set(will_be_int8(model)) - {"film"} | set(film)
    assert bool(film) == ("film" in will_be_int8(model))


def test_int4_weights_are_those_of_the_bundle(student: Student, model: onnx.ModelProto) -> None:
    """Integers times scales, as they are in the file."""
    graph, used = Graph(quantize_weights(model)), used_weights(student.exportable().student, "int4")
    assert len(used) > 8
    for name, weight in used.items():
        values = graph.constant(f"{name}.weight.packed").astype(np.float32) * graph.constant(f"{name}.weight.scale").astype(np.float32)
        np.testing.assert_allclose(weight.reshape(-1), values.reshape(-1)[: weight.size], rtol=1e-6, err_msg=name)


def test_int8_weights_are_those_of_the_bundle(student: Student, model: onnx.ModelProto, tiny_frames: Frames) -> None:
    """Also those of FiLM, which the file has stacked, and those of the first convolutions, which it has spread over pixels."""
    graph, used = Graph(quantize_int8(model, tiny_frames)), used_weights(student.exportable().student, "int8")
    floats = Graph(model)
    film = stack_film(floats)
    assert film is not None
    convolutions = [site.conv.name for site in film.sites]
    steps = np.split(graph.constant("film.weight_steps"), np.cumsum(film.sizes)[:-1])
    conv_steps = dict(zip(convolutions, steps, strict=True))
    film_rows = graph.constant("film.weight.int8") * graph.constant("film.weight.scale")[:, None]
    halves = np.split(film_rows, np.cumsum(film.sizes * 2)[:-1])
    assert len(used) > 8
    for name, weight in used.items():
        if name.endswith(".film"):
            site = convolutions.index(name.replace("film", "convolution"))
            expected = np.concatenate([halves[site], halves[site + len(convolutions)]])
        else:
            values = graph.constant(f"{name}.weight.int8").astype(np.float32)
            step = conv_steps[name] if name in conv_steps else graph.constant(f"{name}.weight.scale")
            expected = values * step.reshape(-1, *[1] * (values.ndim - 1))
            if expected.shape != weight.shape:  # Each weight over 2 x 2 pixels, a quarter each.
                expected = 4 * expected[:, :, ::2, ::2]
        np.testing.assert_allclose(weight, expected, rtol=1e-6, err_msg=name)


def _answers(network: onnx.ModelProto, frames: Frames) -> np.ndarray:
    session = OrtModel(network.SerializeToString())
    return np.concatenate([session.run(frames.feeds(row))["actions"] for row in range(len(frames))])


@pytest.mark.parametrize(("precision", "most"), [("int4", 0.02), ("int8", 0.7)])
def test_training_hears_what_the_bundle_will_say(
    tiny_checkpoint: Path,
    tiny_float_bundle: Path,
    tiny_frames: Frames,
    inputs: tuple[list[Tensor], Tensor, Tensor],
    precision: Precision,
    most: float,
) -> None:
    """The fake-quantized student lies nearer to the bundle than the float one does: int4 up to the halves of its float weights, int8 up to
    operators that ONNX Runtime fuses. An unrelated rounding of the same size would lie 1.4 times as far away."""
    student, model = load_student(tiny_checkpoint), graph_of(load_bundle(tiny_float_bundle))
    small = quantize_int8(model, tiny_frames, Int8Config(rule="minmax")) if precision == "int8" else quantize_weights(model)
    bundle = _answers(small, tiny_frames)
    quantizer = FakeQuantizer(student, precision, begin=10)
    with torch.no_grad():
        for _ in range(10):
            quantizer(student, *inputs)
        quantizer.eval()
        answers = [student.decode(output.logits)[0].numpy() for output in (quantizer(student, *inputs), student(*inputs))]
    rounded, plain = (np.abs(answer - bundle)[..., ~student.spec.action.is_binary].mean() for answer in answers)
    assert rounded < most * plain


def test_an_activation_takes_the_values_of_its_grid(student: Student, inputs: tuple[list[Tensor], Tensor, Tensor]) -> None:
    """What a layer reads has at most 256 values, which are those of `actlet.rounding.uint8_grid`."""
    quantizer, read = FakeQuantizer(student, "int8"), []
    with torch.no_grad(), student.mix[2].register_forward_hook(lambda module, arguments, output: read.append(arguments[0])):
        quantizer(student, *inputs)
    step, zero = uint8_grid(*quantizer.ranges[quantizer.values.index(("mix.2", "input"))].tolist())
    steps = read[0].numpy() / step
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)
    assert -zero <= steps.min()
    assert 100 < steps.max() <= 255.01 - zero


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_it_begins_when_it_is_told_and_leaves_nothing_behind(inputs: tuple[list[Tensor], Tensor, Tensor], precision: Precision) -> None:
    """The first updates are float's own; afterwards every rounded weight still learns, and the student is as it was."""
    student = a_student()
    quantizer, before = FakeQuantizer(student, precision, begin=1), copy.deepcopy(student.state_dict())
    first, second = (quantizer(student, *inputs).logits for _ in range(2))
    assert torch.equal(first, student(*inputs).logits)
    assert not torch.equal(second, first)
    second.square().sum().backward()
    weights = [student.get_submodule(name).weight for name in quantizer.layers]
    assert all(weight.grad is not None and weight.grad.abs().max() > 0 for weight in weights)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert not quantizer.state_dict()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in student.modules())


def test_a_run_that_was_cut_off_ends_as_if_it_had_not_been(inputs: tuple[list[Tensor], Tensor, Tensor], tmp_path: Path) -> None:
    """Ctrl-C after the rounding began, then the same call again: bit for bit the averaged weights of a run that nobody stopped."""
    config = FitConfig(steps=8, learning_rate=0.01, warmup_steps=1, save_seconds=0.0)
    calls = 0

    def run(name: str, stop_at: int | None = None) -> StudentInTraining:
        def losses(module: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
            nonlocal calls
            calls += 1
            if calls == stop_at:
                raise KeyboardInterrupt
            rows = torch.randint(len(inputs[1]), (6,), generator=generator)
            output, _ = module([images[rows] for images in inputs[0]], inputs[1][rows], inputs[2][rows])
            return {"loss": torch.log_softmax(output.logits, -1)[..., 7].mean().neg()}

        student = a_student()
        module = StudentInTraining(student, 0, FakeQuantizer(student, "int8", begin=3))
        groups = module.parameter_groups(5.0)
        fitted = fit(
            module, losses, config, state_folder=tmp_path / name, log_file=tmp_path / "log.jsonl", label=name, parameter_groups=groups
        )
        assert isinstance(fitted, StudentInTraining)
        return fitted

    with pytest.raises(KeyboardInterrupt):
        run("a", stop_at=6)
    resumed, uncut = run("a"), run("b")
    assert resumed.fake_quantizer is not None
    assert int(resumed.fake_quantizer.updates) == 8
    assert all(torch.equal(value, uncut.state_dict()[name]) for name, value in resumed.state_dict().items())
    assert not torch.equal(resumed.student.mix[0].weight, a_student().mix[0].weight)
