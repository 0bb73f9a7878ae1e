"""What `actlet doctor` finds."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from actlet.command_line import main
from benchmarks import doctor
from benchmarks.machine import describe_machine, describe_versions


def test_a_sound_bundle_is_ok(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every line says ok or missing, and the bundle's answers were replayed."""
    assert main(["doctor", str(tiny_bundle)]) == 0
    said = capsys.readouterr().out
    assert "ok       bundle bundle" in said
    assert "3 recorded answers replayed" in said
    assert "No problem with what is installed." in said


def test_an_altered_bundle_is_a_problem(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The exit code tells, and the message names the file."""
    (tiny_bundle / "tokenizer.json").write_text("{}")
    assert main(["doctor", str(tiny_bundle)]) == 2
    said = capsys.readouterr().out
    assert "PROBLEM  bundle bundle" in said
    assert "tokenizer.json" in said


def test_a_missing_extra_names_the_line_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is absent is named."""
    monkeypatch.setitem(doctor.EXTRAS, "runtime", ("numpy", "a_package_that_is_not_there"))
    finding = next(finding for finding in doctor.examine() if finding.what == "extra [runtime]")
    assert finding.verdict == "missing"
    assert finding.how == "without a_package_that_is_not_there"
    assert finding.fix == "pip install 'actlet[runtime]'"


def test_the_doctor_comes_with_numpy_alone() -> None:
    """It must run where things are missing: it imports none of what it looks for."""
    code = (
        "import sys, benchmarks.doctor; print(sorted({'torch', 'onnx', 'onnxruntime', 'mujoco', 'matplotlib', 'tqdm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_machine_is_described_in_full() -> None:
    """What cannot be found out is None; the keys are always there."""
    machine, versions = describe_machine(), describe_versions()
    assert {"cpu", "cpu_flags", "cores", "load_average", "governor", "memory_bytes"} <= set(machine)
    assert {"python", "numpy"} <= set(versions)


def test_it_advises_which_bundle_at_which_rate(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each, measured by turns; a bundle that is too slow for its own rate would be said to be."""
    other = tmp_path / "other"
    shutil.copytree(tiny_bundle, other)
    assert main(["doctor", str(tiny_bundle), str(other)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if "decisions a second" in line and "float32" in line]
    assert [row.split()[0] for row in rows] == [tiny_bundle.name, "other"]
    assert all(int(row.split("ms")[-1].split()[0]) in (0, *doctor.RATES_HZ) for row in rows)
