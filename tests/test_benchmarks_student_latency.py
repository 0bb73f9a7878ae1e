"""benchmarks.student_latency and distill.size_choice: real students are timed, and the choice follows from what was measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
import pytest
import torch

from actlet.command_line import main
from actlet.errors import CallerError
from actlet.manifest import read_manifest
from actlet.storage import read_json
from benchmarks import student_latency
from benchmarks.latency import LatencyConfig
from benchmarks.student_latency import SizeLatency, latency_table, measure_sizes, pick_size, size_within_budget
from distill.student import StudentConfig
from distill.student_sizes import SIZES, parameters_of
from distill.train import distill
from distill.train_config import TrainConfig
from episodes.collect import collect

SUITE = "point_reach:make_suite"
TINY = StudentConfig(image_px=16, channels=(8, 16), blocks=(1, 1), condition_dim=16, features=32, token_rank=8)
MEASURED = [
    SizeLatency(size="nano", parameters=500_000, median_ms=0.5, p99_ms=4.0, cpu_p99_ms=1.0),
    SizeLatency(size="micro", parameters=2_000_000, median_ms=1.0, p99_ms=9.0, cpu_p99_ms=2.0),
    SizeLatency(size="small", parameters=10_000_000, median_ms=6.0, p99_ms=20.0, cpu_p99_ms=10.0),
]


@pytest.fixture
def quick_encoder(tiny_float_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence encoder as a network, exported once for all tests."""
    monkeypatch.setattr(student_latency, "text_encoder_to_onnx", lambda encoder: onnx.load(tiny_float_bundle / "instruction.onnx"))
    monkeypatch.setattr(student_latency, "store_weights_int8", lambda model: model)


@pytest.mark.parametrize("precision", ["float", "int8"])
@pytest.mark.usefixtures("quick_encoder")
def test_untrained_students_are_timed(precision: str, tiny_float_bundle: Path) -> None:
    """In the order given, with their parameters; neither torch's random numbers nor its threads are touched."""
    spec = read_manifest(tiny_float_bundle).spec
    networks = {"less": TINY, "more": dataclasses.replace(TINY, features=64)}
    torch.manual_seed(3)
    expected, threads = torch.rand(1), torch.get_num_threads()
    torch.manual_seed(3)
    rows = measure_sizes(spec, networks, precision=precision, config=LatencyConfig(rounds=2, calls=2), progress=False)  # type: ignore[arg-type]
    assert (torch.rand(1), torch.get_num_threads()) == (expected, threads)
    assert [(row.size, row.parameters) for row in rows] == [(name, parameters_of(network, spec)) for name, network in networks.items()]
    assert all(0 < row.median_ms <= row.p99_ms and row.cpu_p99_ms > 0 for row in rows)


@pytest.mark.parametrize(("budget_ms", "size"), [(1.0, "nano"), (1.9, "nano"), (5.0, "micro"), (100.0, "small")])
def test_the_largest_that_fits_is_picked(budget_ms: float, size: str) -> None:
    """By the p99 of CPU time: what other programs take of wall time does not count."""
    assert pick_size(MEASURED, budget_ms) == size


def test_nothing_fits_is_said() -> None:
    """What was asked, how long the fastest takes, and what to do; int8 is no advice to one who asked for it."""
    with pytest.raises(CallerError, match=r"within 0\.2 ms: .*'nano' in float, takes 1\.00 ms .*median 0\.50 ms.* try --precision int8"):
        pick_size(MEASURED, 0.2)
    with pytest.raises(CallerError, match=r"'nano' in int8, .* Give it that long, or measure on the computer"):
        pick_size(MEASURED, 0.2, "int8")


def test_another_target_or_precision_is_refused(tiny_float_bundle: Path) -> None:
    """Before anything is measured."""
    spec = read_manifest(tiny_float_bundle).spec
    with pytest.raises(CallerError, match=r"--target 'cuda': .* only 'cpu'"):
        size_within_budget(spec, 5.0, target="cuda")
    with pytest.raises(CallerError, match="precision 'int3', expected 'float' or 'int8'"):
        size_within_budget(spec, 5.0, precision="int3")  # type: ignore[arg-type]


def test_the_table_shows_every_size() -> None:
    """Parameters, median, p99, what the budget is compared with, and the conditions."""
    lines = latency_table(MEASURED, "int8", 5.0)
    assert [" ".join(line.split()) for line in lines[1:4]] == [
        "nano 0.50 M 0.50 ms 4.00 ms 1.00 ms fits",
        "micro 2.00 M 1.00 ms 9.00 ms 2.00 ms fits",
        "small 10.00 M 6.00 ms 20.00 ms 10.00 ms too slow",
    ]
    assert "int8, batch 1, one thread" in lines[4]
    assert "onnxruntime" in lines[5]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("points") / "data"
    collect(SUITE, path, 12, workers=1)
    return path


def command(data: Path, out: Path, *options: str) -> list[str]:
    small = ["--teacher", "none", "--suite", SUITE, "--steps", "1", "--batch-size", "4"]
    return ["distill", "--data", str(data), "--out", str(out), *small, *options]


def test_a_budget_chooses_what_is_trained(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The verb measures for the dataset's specification, prints the table, trains that size, and leaves nothing else behind."""
    asked = []

    def measure(spec: object, networks: object, *, precision: str) -> list[SizeLatency]:
        asked.append((spec, networks, precision))
        return MEASURED

    monkeypatch.setattr(student_latency, "measure_sizes", measure)
    assert main(command(data, tmp_path / "student", "--budget-ms", "1.5", "--precision", "int8", "--horizon", "6")) == 0
    config = read_json(tmp_path / "student" / "config.json")
    assert config["lineage"]["size"] == "nano"
    assert [(spec.to_dict(), precision) for spec, _, precision in asked] == [(config["spec"], "int8")]
    assert asked[0][1] == {name: size.architecture for name, size in SIZES.items()}
    out = capsys.readouterr().out
    assert "small        10.00 M" in out
    assert "- size nano, " in out
    assert [file.name for file in tmp_path.iterdir()] == ["student"]


def test_a_run_that_was_cut_off_keeps_its_size(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second measurement could come out differently and what was trained would be lost; another budget is measured anew."""

    def stop(*_: object, **__: object) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(student_latency, "measure_sizes", lambda *_, **__: MEASURED)
    with monkeypatch.context() as interrupted:
        interrupted.setattr("distill.train_command.distill", stop)
        assert main(command(data, tmp_path / "student", "--budget-ms", "1.5")) == 130
    slower = [dataclasses.replace(row, cpu_p99_ms=row.cpu_p99_ms * 1.2) for row in MEASURED]
    monkeypatch.setattr(student_latency, "measure_sizes", lambda *_, **__: slower)
    with monkeypatch.context() as interrupted:
        interrupted.setattr("distill.train_command.distill", stop)
        assert main(command(data, tmp_path / "student", "--budget-ms", "1.1")) == 2
        assert "takes 1.20 ms" in capsys.readouterr().err
    assert main(command(data, tmp_path / "student", "--budget-ms", "1.5")) == 0
    assert "student size nano, as measured when this run began" in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == ["student"]


def test_a_size_is_trained_by_name(data: Path, tmp_path: Path) -> None:
    """--size gives the network that TrainConfig gives, weight for weight."""
    assert main(command(data, tmp_path / "named", "--size", "nano")) == 0
    config = TrainConfig(steps=1, batch_size=4, architecture=SIZES["nano"].architecture)
    distill(data, tmp_path / "given", suite=SUITE, config=config)
    assert (tmp_path / "named" / "model.safetensors").read_bytes() == (tmp_path / "given" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "nano", "--budget-ms", "5"], "--size nano and --budget-ms 5: the budget chooses the size"),
        (["--precision", "int8"], "--precision belong to --budget-ms"),
        (["--size", "nano", "--target", "cpu"], "--target belong to --budget-ms"),
        (["--budget-ms", "0"], "--budget-ms 0: expected milliseconds above 0"),
        (["--budget-ms", "nan"], "--budget-ms nan: expected milliseconds above 0"),
        (["--budget-ms", "5", "--target", "cuda"], "--target 'cuda'"),
        (["--size", "nano", "--horizon", "300"], "size 'nano' has"),
    ],
)
def test_options_that_cannot_be_are_refused(
    options: list[str], message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2 and one line, before any work."""
    assert main(command(data, tmp_path / "student", *options)) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_measuring_in_many_processes_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under a launcher every process would measure for itself, beside the others."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(command(data, tmp_path / "student", "--budget-ms", "5")) == 2
    assert "--budget-ms in one of 2 processes" in capsys.readouterr().err
