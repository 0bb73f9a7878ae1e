"""distill.train under a launcher: the same curve from the same batches, everything written once, and a killed run goes on."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from test_distill_train import SUITE, data, teacher, tiny  # noqa: F401 - fixtures

import distill.train
from actlet.errors import SpecError
from actlet.storage import read_json
from distill.student import load_student
from distill.train import distill as distill_student

HERE = Path(__file__).parent
STEPS = 100
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
TWO_NODES = ["torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend", "c10d", "--rdzv_id", "two"]
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]


def start(launcher: list[str], data: Path, out: Path, teacher: Path | None = None, steps: int = STEPS) -> subprocess.Popen[str]:  # noqa: F811
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}"}
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, str(HERE / "launched_distill.py"), str(data), str(out), str(teacher or "none"), str(steps)],
        cwd=HERE.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # So that launcher and processes can be killed together.
    )


def curve(folder: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows]


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    return distill_student(data, tmp_path_factory.mktemp("alone") / "student", suite=SUITE, config=tiny(steps=STEPS, rounds=1))


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(data: Path, alone: Path, tmp_path: Path) -> None:  # noqa: F811
    """The batch is shared out: the same rows in every update, so the same losses but for dropout and batch statistics; one checkpoint."""
    process = start(TORCHRUN, data, tmp_path / "student")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    expected, got = curve(alone), curve(tmp_path / "student")
    assert [step for step, _ in got] == [step for step, _ in expected] == [0, 20, 40, 60, 80]
    assert [loss for _, loss in got] == pytest.approx([loss for _, loss in expected], rel=0.02)
    assert expected[-1][1] < 0.98 * expected[0][1]  # There was something to differ in.
    assert output.count("writes the checkpoint") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["student"]
    lineage = read_json(tmp_path / "student" / "config.json")["lineage"]
    assert lineage["processes"] == 2
    assert lineage["train_cpu_s"] > 0
    assert load_student(tmp_path / "student")


@pytest.mark.slow
def test_two_machines_learn_what_one_learns(data: Path, alone: Path, tmp_path: Path) -> None:  # noqa: F811
    """A launcher on each, which find each other at an address; the first process of them all writes, the folder is one that both see."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    out = tmp_path / "student"
    nodes = [start([*TWO_NODES, "--node_rank", str(rank), "--rdzv_endpoint", place], data, out) for rank in range(2)]
    outputs = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    expected, got = curve(alone), curve(out)
    assert [step for step, _ in got] == [step for step, _ in expected]
    assert [loss for _, loss in got] == pytest.approx([loss for _, loss in expected], rel=0.02)
    assert sum(output.count("writes the checkpoint") for output in outputs) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["student"]
    assert read_json(out / "config.json")["lineage"]["processes"] == 2
    assert load_student(out)


@pytest.mark.slow
def test_the_main_process_alone_asks_drives_judges_and_writes(data: Path, teacher: Path, tmp_path: Path) -> None:  # noqa: F811
    """Two rounds with a teacher: labels, scenes, episodes and checkpoint are made once, and both processes train on them."""
    process = start(ACCELERATE, data, tmp_path / "student", teacher, steps=8)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    for what, times in (("asks", 1), ("drives", 1), ("judges", 2), ("writes the checkpoint", 1)):
        assert output.count(f"process 0 {what}") >= times
        assert f"process 1 {what}" not in output
    assert output.count("process 0 drives") == output.count("writes the checkpoint") == 1
    lineage = read_json(tmp_path / "student" / "config.json")["lineage"]
    assert (lineage["processes"], lineage["updates"], lineage["scenes"]) == (2, 8, 11)
    assert [file.name for file in tmp_path.iterdir()] == ["student"]


@pytest.mark.slow
def test_two_processes_that_were_killed_go_on(data: Path, alone: Path, tmp_path: Path) -> None:  # noqa: F811
    """SIGKILL to all of them after a state was kept; the same command goes on from it, and the log is as if nothing had happened."""
    out, state = tmp_path / "student", tmp_path / ".student.training" / "state-0" / "step.json"
    doomed = start(TORCHRUN, data, out)
    while doomed.poll() is None and not state.is_file():
        time.sleep(0.02)
    os.killpg(doomed.pid, signal.SIGKILL)
    for child in _children(out):
        os.kill(child, signal.SIGKILL)  # torchrun gives its processes a session of their own.
    doomed.communicate(timeout=60)
    assert not out.exists()
    kept = read_json(state)["step"]
    assert 0 < kept < STEPS
    process = start(TORCHRUN, data, out)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "resuming at step" in output
    expected, got = curve(alone), curve(out)
    assert [step for step, _ in got] == [step for step, _ in expected]
    assert [loss for _, loss in got] == pytest.approx([loss for _, loss in expected], rel=0.02)


def _children(out: Path) -> list[int]:
    """Processes that were started to make `out`, which nobody else does."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if str(out).encode() in words:
                found.append(int(entry.name))
    return found


def test_a_batch_that_cannot_be_shared_out_is_refused(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Some processes would have more to do, and count for more."""
    monkeypatch.setattr(distill.train, "processes", lambda: types.SimpleNamespace(num_processes=3))
    with pytest.raises(SpecError, match="batch of 8 cannot be shared out among 3 processes"):
        distill_student(data, tmp_path / "student", suite=SUITE, config=tiny())
