"""What `actlet doctor` finds."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from actlet.command_line import main
from actlet.storage import read_json, write_json
from benchmarks import doctor, doctor_rates
from benchmarks.finding import Finding
from benchmarks.machine import describe_machine, describe_versions


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundles alone, and few decisions: what is said of the machine has tests of its own."""
    monkeypatch.setattr(doctor_rates, "TURNS", 5)
    monkeypatch.setattr(doctor, "examine", lambda: [Finding("ok", "machine", "as it is")])


def test_a_sound_bundle_is_ok(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every line says ok or missing, and the bundle's answers were replayed."""
    assert main(["doctor", str(tiny_bundle)]) == 0
    said = capsys.readouterr().out
    assert "ok       bundle bundle" in said
    assert "3 recorded answers replayed" in said
    assert "No problem with what is installed." in said


def test_an_altered_bundle_is_a_problem(tiny_bundle: Path, capsys: pytest.CaptureFixture[str], quick: None) -> None:
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


def test_the_doctor_knows_the_extras() -> None:
    """Those of pyproject.toml, but for what collects others, what only a benchmark or a look at the web needs, and engines, which are backends."""
    text = (Path(doctor.__file__).parents[1] / "pyproject.toml").read_text()
    extras = set(re.findall(r"^(\w+) = \[", text.split("[project.optional-dependencies]")[1].split("\n[project")[0], re.MULTILINE))
    assert extras - set(doctor.EXTRAS) == {"tensorrt", "rtx", "video", "web", "peers", "all", "dev"}
    assert set(doctor.EXTRAS) <= extras


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


def test_what_is_no_bundle_is_a_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str], quick: None) -> None:
    """A student's checkpoint, which would need torch, and a folder that is not there."""
    student = tmp_path / "student"
    write_json(student / "config.json", {"kind": "student"})
    assert main(["doctor", str(student), str(tmp_path / "nowhere")]) == 2
    said = capsys.readouterr().out
    assert "is a student, expected a bundle" in said
    assert "nowhere: it does not exist" in said
    assert said.rstrip().endswith("2 problems.")


def test_without_onnxruntime_the_doctor_says_so(tiny_bundle: Path) -> None:
    """It must run where things are missing, with the line that installs them."""
    code = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from pathlib import Path; from benchmarks.doctor_bundles import examine_bundles\n"
        f"print(examine_bundles([Path({str(tiny_bundle)!r})])[0][0].lines())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "PROBLEM  bundle bundle" in done.stdout
    assert "pip install 'actlet[runtime]'" in done.stdout


def test_findings_are_written_as_json(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same findings as are printed, the rates and the machine; the exit code is the same."""
    file = tmp_path / "made" / "doctor.json"
    assert main(["doctor", str(tiny_bundle), "--json", str(file)]) == 0
    document, said = read_json(file), capsys.readouterr().out
    assert (document["schema_version"], document["problems"]) == (1, 0)
    assert [rate["bundle"] for rate in document["rates"]] == ["bundle"]
    assert "bundle bundle" in {finding["what"] for finding in document["findings"]}
    for finding in document["findings"]:
        assert set(finding) == {"verdict", "what", "how", "fix", "group"}
        if finding["what"] in ("extra [runtime]", "bundle bundle", "onnxruntime CPU"):
            assert finding["how"] in said
    assert [path.name for path in file.parent.iterdir()] == ["doctor.json"]


def test_json_on_stdout_is_json_alone(tiny_bundle: Path, capsys: pytest.CaptureFixture[str], quick: None) -> None:
    """The lines for people go to stderr, and a problem is still exit code 2."""
    (tiny_bundle / "tokenizer.json").write_text("{}")
    assert main(["doctor", str(tiny_bundle), "--json", "-"]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["problems"] == 1
    assert "PROBLEM  bundle bundle" in captured.err


def test_lines_are_wrapped_for_a_terminal_and_for_nothing_else() -> None:
    """What is to be copied stays in one piece."""
    finding = Finding(
        "missing", "something", "a word " * 40, "a line that is to be copied in one piece, however long it is, and it is longer"
    )
    wrapped = finding.lines(100)
    assert max(map(len, wrapped[:-1])) <= 100
    assert wrapped[1][:32] == " " * 32 != wrapped[1][:33]
    assert wrapped[-1].endswith(finding.fix)
    assert len(finding.lines()) == 2


def test_it_advises_which_bundle_at_which_rate(tiny_bundle: Path, tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each, measured by turns; a bundle that is too slow for its own rate would be said to be."""
    other = tmp_path / "other"
    shutil.copytree(tiny_bundle, other)
    assert main(["doctor", str(tiny_bundle), str(other)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if "made for" in line]
    assert [row.split()[0] for row in rows] == [tiny_bundle.name, "other"]
    assert all("needs 3.33" in row and "made for 10" in row for row in rows)
