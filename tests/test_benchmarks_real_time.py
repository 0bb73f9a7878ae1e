"""benchmarks.real_time and benchmarks.gpu: what they say of a tiny bundle; no figure is judged."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import real_time
from benchmarks.gpu import gpu_text, measure_gpu
from benchmarks.latency import LatencyConfig
from benchmarks.real_time import _summary, _turn, main, missed_periods
from runtime.backends import BACKENDS


def test_periods_without_a_command_are_counted() -> None:
    """Each has the period that began at its deadline, until the next; the first second is left out."""
    even = 5.0 + np.arange(0, 300) / 100 + 0.001
    assert missed_periods(even, 100, 5.0) == (0, 200)
    assert missed_periods(np.delete(even, [150, 151, 220]), 100, 5.0) == (3, 200)
    late = even.copy()
    late[200:250:2] += 0.008  # Late, and in its own period all the same: what jitters less than a period is not missed.
    assert missed_periods(late, 100, 5.0) == (0, 200)
    late[200:250:2] += 0.002  # In the next one.
    assert missed_periods(late, 100, 5.0) == (25, 200)


@pytest.mark.parametrize("design", ["process", "thread", "sleep"])
def test_every_design_runs(tiny_bundle: Path, design: str) -> None:
    """In a process of its own; its wake-ups are all there."""
    turn = _turn(tiny_bundle, design, 40.0, 1.6)
    assert (turn["design"], turn["rate_hz"]) == (design, 40.0)
    assert 0 < len(turn["lateness_us"]) <= 64
    assert turn["periods"] > 0
    row = _summary([turn, turn])
    assert row["turns"] == 2
    assert row["p50"] <= row["p99"] <= row["p999"] <= row["max"]
    assert 0 <= row["missed_share"] <= 1
    assert ("age_ms" in row) == (design != "sleep")


def test_the_document_has_what_is_promised(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With one kill, a short turn, and cyclictest where it is installed."""
    monkeypatch.setattr(real_time, "take_real_time", lambda wanted: [])  # Not this process.
    out = tmp_path / "runtime.json"
    assert main([str(tiny_bundle), "--rates", "50", "--seconds", "1.5", "--rounds", "1", "--kills", "1", "--out", str(out)]) == 0
    document = json.loads(out.read_text())
    designs = {row["design"] for row in document["lateness_us"]}
    assert designs == {"process", "thread", "sleep"} | ({"cyclictest"} if shutil.which("cyclictest") else set())
    assert len(document["failover_ms"]["failover_ms"]) == 1
    assert document["infer_overhead_ratio"] > 0
    assert "failover: p50" in capsys.readouterr().out


def test_a_backend_that_cannot_run_is_a_row_that_says_why(tiny_bundle: Path) -> None:
    """The processor is measured anywhere."""
    document = measure_gpu({"tiny": tiny_bundle}, config=LatencyConfig(rounds=2), progress=False)
    rows = {row["backend"]: row for row in document["rows"]}
    assert set(rows) == set(BACKENDS)
    assert rows["cpu"]["difference"] == 0.0
    assert rows["cpu"]["ratio_to_cpu"] == 1.0
    for name, row in rows.items():
        assert name == "cpu" or ("error" in row) == ("latency_ms" not in row)
    assert "tiny" in gpu_text(document)


@pytest.mark.slow
def test_a_real_time_soak_counts_what_it_did(tiny_bundle: Path, tmp_path: Path) -> None:
    """Two seconds of it, in a process of its own, which keeps its priority; no figure is judged."""
    out = tmp_path / "soak.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks.real_time_soak",
        str(tiny_bundle),
        "--minutes",
        "0.04",
        "--rate-hz",
        "100",
        "--load",
        "1",
        "--out",
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())["soak"]
    assert found["stopped_by"] == "steps"
    assert 0 < found["commands"] <= 241
    assert found["lateness_us"]["p50"] <= found["lateness_us"]["max"]
    assert found["recorded"]["made"] > found["commands"]
    assert "commands in 0.04 minutes" in done.stdout
