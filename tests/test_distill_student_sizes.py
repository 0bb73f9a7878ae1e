"""distill.student_sizes: every preset keeps the limit of its name, and goes through the whole chain."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import onnx
import point_reach
import pytest

from actlet.action_tokens import ActionTokenizer
from actlet.errors import SpecError, UnknownNameError
from actlet.manifest import read_manifest
from actlet.specs import ActionSpec, CameraSpec, ObservationSpec, PolicySpec, TimingSpec
from actlet.storage import read_json
from distill.student import StudentConfig, load_student
from distill.student_sizes import DEFAULT_SIZE, SIZES, parameters_of, require_size, size_name, untrained_student
from distill.train import distill
from distill.train_config import TrainConfig
from episodes.collect import collect
from episodes.tabletop import ACTION_SPEC, CAMERAS, STATE_NAMES, STATE_UNITS
from export import to_bundle
from export.to_onnx import operators
from quantize.condition import graph_of
from quantize.quantize_bundle import quantize_bundle
from quantize.schemes import scheme
from runtime.bundle import load_bundle
from runtime.policy import BundlePolicy

SUITE = "point_reach:make_suite"
TABLE = PolicySpec(
    observation=ObservationSpec(
        cameras=tuple(CameraSpec(name=name, height=128, width=128) for name in CAMERAS), state_names=STATE_NAMES, state_units=STATE_UNITS
    ),
    action=ACTION_SPEC,
    timing=TimingSpec(rate_hz=10, horizon=8, execute_steps=1, max_delay_steps=2),
)
# What a bundle may be made of: standard operators that ONNX Runtime's processor kernels and TensorRT know.
FLOAT = {
    *("Add", "AveragePool", "Cast", "Clip", "Concat", "Conv", "Div", "Exp", "Gemm", "Greater", "LogSoftmax", "MatMul", "Max", "Min"),
    *("Mul", "Neg", "ReduceMean", "ReduceSum", "Relu", "Reshape", "Softmax", "Split", "Squeeze", "Sub", "Transpose", "Unsqueeze", "Where"),
}
INT8 = FLOAT | {"Abs", "Less", "ReduceMax", "Round", "QuantizeLinear", "DequantizeLinear", "QLinearConv"}
INT4 = FLOAT | {"Slice"}


def spec_of(cameras: int, state: int, action: int, horizon: int, size: tuple[int, int] = (128, 128)) -> PolicySpec:
    return PolicySpec(
        observation=ObservationSpec(
            cameras=tuple(CameraSpec(name=f"camera{i}", height=size[0], width=size[1]) for i in range(cameras)),
            state_names=tuple(f"q{i}" for i in range(state)),
            state_units=("1",) * state,
        ),
        action=ActionSpec(
            names=tuple(f"a{i}" for i in range(action)),
            units=("1",) * action,
            kinds=("continuous",) * action,
            low=(-1.0,) * action,
            high=(1.0,) * action,
            frame="joint",
        ),
        timing=TimingSpec(rate_hz=10, horizon=horizon, execute_steps=1, max_delay_steps=0),
    )


def test_micro_is_what_was_always_trained() -> None:
    """The default of training, of the network and of the command line are one, with the parameters that it had before it had a name."""
    assert (TrainConfig().architecture, DEFAULT_SIZE, size_name(StudentConfig())) == (SIZES["micro"].architecture, "micro", "micro")
    assert parameters_of(SIZES["micro"].architecture, TABLE) == 1_944_990


def test_sizes_grow_by_name() -> None:
    """On the table nano, micro and small differ by a factor of more than three each, and small is far above micro's limit."""
    counts = [parameters_of(size.architecture, TABLE) for size in SIZES.values()]
    assert list(SIZES) == ["nano", "micro", "small"]
    assert all(3 * smaller < larger for smaller, larger in itertools.pairwise(counts))
    assert counts[2] > SIZES["micro"].max_parameters


@pytest.mark.parametrize("name", SIZES)
def test_every_size_keeps_its_limit(name: str) -> None:
    """For the table, and for 1 and 3 cameras, at 95 pixels the dearest (96 are pooled by two), 4 to 14 dimensions and horizons of 8 to 16."""
    grid = [
        spec_of(cameras, state, action, horizon, size)
        for cameras in (1, 3)
        for state in (4, 14)
        for action in (4, 14)
        for horizon in (8, 16)
        for size in ((95, 95), (128, 128), (480, 640))
    ]
    for spec in (TABLE, *grid):
        assert require_size(name, spec) is SIZES[name]


@pytest.mark.parametrize("name", SIZES)
def test_counting_allocates_nothing_and_is_right(name: str) -> None:
    """The number is that of a real network."""
    spec = spec_of(1, 4, 4, 8, (32, 32))
    assert parameters_of(SIZES[name].architecture, spec) == untrained_student(spec, SIZES[name].architecture).parameter_count


def test_a_size_above_its_limit_is_refused() -> None:
    """A long chunk of many dimensions: the message says how many parameters, for what, and what to do."""
    with pytest.raises(
        SpecError, match=r"'nano' has 2\.70 M parameters for 3 cameras, 14 state entries and 100 actions of 14 .*at most 1 M"
    ):
        require_size("nano", spec_of(3, 14, 14, 100))


def test_an_unknown_size_is_refused() -> None:
    """The closest name is offered; a network of one's own has no name."""
    with pytest.raises(UnknownNameError, match="Did you mean 'micro'"):
        require_size("mikro", TABLE)
    assert size_name(StudentConfig(features=255)) is None


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("points") / "data"
    collect(SUITE, path, 12, workers=1)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_every_size_trains_exports_and_quantizes(
    name: str, data: Path, tmp_path: Path, tiny_float_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Card and lineage name it; its bundles answer, in known operators alone; what was to become int8 runs as int8."""
    monkeypatch.setattr(to_bundle, "text_encoder_to_onnx", lambda encoder: onnx.load(tiny_float_bundle / "instruction.onnx"))
    monkeypatch.setattr(to_bundle, "store_weights_int8", lambda model: model)
    config = TrainConfig(steps=3, batch_size=4, architecture=SIZES[name].architecture)
    checkpoint = distill(data, tmp_path / "student", suite=SUITE, config=config)
    assert read_json(checkpoint / "config.json")["lineage"]["size"] == name
    assert f"- size {name}, " in (checkpoint / "README.md").read_text()
    assert load_student(checkpoint).parameter_count <= SIZES[name].max_parameters
    bundles = {"float": to_bundle.export_student(checkpoint, tmp_path / "float").out}
    for precision in ("int8", "int4"):
        bundles[precision] = quantize_bundle(
            bundles["float"],
            tmp_path / precision,
            scheme=scheme(precision),
            data=data,
            calibration_frames=8,
            held_out_frames=8,
            allow_slower=True,
        ).out
    observation, instruction = point_reach.PointReach("red").reset(0)
    for precision, known in (("float", FLOAT), ("int8", INT8), ("int4", INT4)):
        model = graph_of(load_bundle(bundles[precision]))
        assert set(operators(model)) - known == set(), precision
        assert {opset.domain for opset in model.opset_import} == {""}
        assert BundlePolicy(bundles[precision]).predict([observation], [instruction])[0].actions.shape == (8, 4)
    nodes = read_manifest(bundles["int8"]).nodes
    assert any(node.asked == "int8" for node in nodes)
    assert all(node.executed == "int8" for node in nodes if node.asked == "int8")


def test_an_untrained_students_bins_span_the_limits() -> None:
    """So that a bundle can be made of it without any data."""
    tokenizer = untrained_student(TABLE, StudentConfig(channels=(8,), blocks=(1,), features=16)).tokenizer
    assert isinstance(tokenizer, ActionTokenizer)
    assert tokenizer.low.tolist() == pytest.approx(TABLE.action.low)
    assert tokenizer.high.tolist() == pytest.approx(TABLE.action.high)


def test_a_size_is_what_it_is_however_it_is_decoded() -> None:
    """Decoding around the likeliest bin changes no weight."""
    assert size_name(dataclasses.replace(SIZES["micro"].architecture, mode_reach=24)) == "micro"
    assert size_name(dataclasses.replace(SIZES["micro"].architecture, features=100)) is None
