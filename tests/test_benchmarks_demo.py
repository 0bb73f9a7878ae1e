"""The whole chain with tiny sizes, as a newcomer starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.results import POLICY_NAMES, read_results
from distill import shipped_teacher


def demo(out: Path) -> str:
    """Run the command in a process of its own, and return what it said to people."""
    teacher = [] if shipped_teacher().is_dir() else ["--from-scratch"]
    command = [sys.executable, "-m", "actlet", "demo", "--quick", "--out", str(out), *teacher]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr + done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demo_runs_whole_and_only_once(tmp_path: Path) -> None:
    """One command makes everything from demonstrations to report; given again, it does nothing twice."""
    said = demo(tmp_path / "demo")
    results = read_results(tmp_path / "demo" / "results.json")
    assert tuple(policy["name"] for policy in results["policies"]) == POLICY_NAMES
    assert results["quick"]
    assert "student-int4" in said
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert "a quick run with tiny sizes" in page
    assert "data:image/png;base64," in page
    assert len(results["stages"]) >= 12
    again = demo(tmp_path / "demo")
    assert again.count("done before") == len(results["stages"])
    assert all(stage["skipped"] for stage in read_results(tmp_path / "demo" / "results.json")["stages"])
