"""benchmarks.peers and benchmarks.quantization: every backend is measured or says why not; behaviour is counted from outcomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import point_reach
import pytest

from actlet.errors import SpecError, UnknownNameError
from actlet.storage import read_json
from benchmarks.peers import BACKENDS, IN_A_ROW, ceilings, measure_backends, time_by_turns
from benchmarks.quantization import SCHEMES, QuantizationConfig, main, measure_quantization, quantization_text
from distill.student import StudentConfig
from distill.train import distill
from distill.train_config import TrainConfig
from episodes.collect import collect
from export.to_bundle import export_student
from quantize.frames import Frames

SUITE = "point_reach:make_suite"
KNOWN = [name for name in BACKENDS if name.startswith(("ours", "onnxruntime"))]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Demonstrations of points, a student that has hardly learned, and its float bundle."""
    folder = tmp_path_factory.mktemp("points")
    collect(SUITE, folder / "data", 12, workers=1)
    tiny = StudentConfig(image_px=16, channels=(16, 32), blocks=(1, 1), condition_dim=32, squeeze_channels=16, features=64, token_rank=8)
    config = TrainConfig(steps=20, batch_size=16, horizon=4, delay_steps=0, architecture=tiny)
    student = distill(folder / "data", folder / "student", suite=SUITE, config=config)
    return folder / "data", student, export_student(student, folder / "float").out


def test_each_backend_has_its_turn_in_every_round() -> None:
    """Several calls in a row, in an order that changes; warm-up does not count."""
    calls: list[tuple[str, int]] = []
    found = time_by_turns(
        {name: lambda turn, name=name: calls.append((name, turn)) for name in "abc"}, rounds=20, warm_up=3, progress=False
    )
    turns = [calls[i : i + IN_A_ROW] for i in range(0, len(calls), IN_A_ROW)]
    assert all(len(set(turn)) == 1 for turn in turns)
    assert sorted(turn[0] for turn in turns) == [(name, turn) for name in "abc" for turn in range(-3, 20)]
    assert len({"".join(name for name, turn in calls if turn == i) for i in range(20)}) > 1
    for row in found.values():
        assert all(row[kind]["p50"] > 0 for kind in ("wall_ms", "cold_wall_ms"))
        assert all(row[kind]["p50"] >= 0 for kind in ("cpu_ms", "cold_cpu_ms"))


def test_every_backend_has_a_row(made: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """With its speed, size and error, and the ceilings beside them; one that fails says why."""

    def broken(task: Any) -> Any:
        raise ImportError("no such library")

    monkeypatch.setitem(BACKENDS, "broken", broken)
    frames = point_frames(made)
    rows = measure_backends(
        made[2],
        frames,
        frames,
        checkpoint=made[1],
        threads=1,
        rounds=3,
        unit=np.ones(4, np.float32),
        flags=np.array([1, 0, 0, 0], bool),
        names=[*KNOWN, "torch eager", "broken"],
    )
    backends = {row["backend"]: row for row in rows if "backend" in row}
    assert list(backends)[-1] == "broken"
    assert backends["broken"]["missing"] == "ImportError: no such library"
    assert backends["ours float32"]["ratio_to_float"] == 1
    assert backends["ours float32"]["mean_error"] == 0
    assert backends["torch eager"]["mean_error"] < 1e-4
    assert 0 < backends["ours int8"]["mean_error"] < 0.1
    assert backends["ours int4"]["size_bytes"] < backends["ours float32"]["size_bytes"]
    assert {row["ceiling"] for row in rows if "ceiling" in row} == {"float32", "int8", "copy"}


def point_frames(made: tuple[Path, Path, Path]) -> Frames:
    from quantize.frames import frames_of_dataset
    from runtime.policy import BundlePolicy

    policy = BundlePolicy(made[2])
    return frames_of_dataset(made[0], policy.spec, policy.networks, calibration=8, held_out=4)[0]


def test_ceilings_do_what_they_say() -> None:
    """Products in float and in integers, and a copy."""
    assert {name: work for name, (_, work) in ceilings(1).items()} == {"float32": 2.0**28, "int8": 2.0**28, "copy": 2.0**27}
    for call, _ in ceilings(1).values():
        call(0)


def test_behaviour_is_counted_from_outcomes_and_done_once(
    made: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Same seeds for all; given again, nothing runs twice."""
    config = QuantizationConfig(parts=("behaviour",), schemes=("int8", "int4"), suite=SUITE, episodes=4, frames=8, workers=1)
    document = measure_quantization(tmp_path, made[2], made[0], config)
    assert [row["scheme"] for row in document["behaviour"]] == ["int8", "int4"]
    for row in document["behaviour"]:
        assert row["success"] == row["outcomes"].count("1") / 4
        assert row["difference"] == pytest.approx(row["success"] - row["success_float"])
        assert 0 < row["size_ratio"] < 1
    capsys.readouterr()
    again = measure_quantization(tmp_path, made[2], made[0], config)
    assert capsys.readouterr().err.count("done before") == len(again["stages"]) == 5
    assert again["behaviour"] == document["behaviour"]
    assert "int4" in quantization_text(document)


def test_the_command_writes_its_result(made: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As JSON and as a table."""
    arguments = [
        "--bundle",
        str(made[2]),
        "--data",
        str(made[0]),
        "--out",
        str(tmp_path),
        "--suite",
        SUITE,
        "--episodes",
        "3",
        "--workers",
        "1",
    ]
    assert main([*arguments, "--parts", "behaviour", "--schemes", "int4-int8"]) == 0
    assert read_json(tmp_path / "quantization.json")["behaviour"][0]["scheme"] == "int4-int8"
    assert "int4-int8" in capsys.readouterr().out


def test_what_cannot_be_measured_is_refused() -> None:
    """By name."""
    with pytest.raises(UnknownNameError, match="unknown scheme 'int3'"):
        QuantizationConfig(schemes=("int3",))
    with pytest.raises(SpecError, match="every number must be positive"):
        QuantizationConfig(episodes=0)
    assert set(QuantizationConfig().schemes) == set(SCHEMES)


assert point_reach  # The suite's module, importable by name.
