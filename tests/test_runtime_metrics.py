"""Metrics for Prometheus: what is served is true, well formed, and served by a process that the loop does not hear of."""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from actlet.command_line import main
from actlet.errors import CallerError
from actlet.protocols import ActionChunk
from actlet.specs import PolicySpec
from runtime.failsafe import Cause, State, Verdict
from runtime.flight_recorder import FlightRecorder
from runtime.histogram import TICK_BOUNDS_S, Histogram
from runtime.inference import Answer
from runtime.loop_statistics import LoopStatistics
from runtime.metrics import MetricsServer
from runtime.metrics_server import CONTENT_TYPE, metrics_text
from runtime.recording import open_recording
from runtime.run_monitor import RunMonitor

POINTS = ["--suite", "point_reach:make_suite"]


def _values(text: str) -> dict[tuple[str, str], float]:
    """(name of a sample, its labels) -> value, by Prometheus' own parser."""
    families = list(text_string_to_metric_families(text))
    assert families
    assert all(family.documentation for family in families)
    return {
        (sample.name, ",".join(f"{key}={value}" for key, value in sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def _get(url: str) -> tuple[str, str]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode(), answer.headers["Content-Type"]


def _monitor(recorder: FlightRecorder | None = None, server: MetricsServer | None = None) -> tuple[RunMonitor, LoopStatistics]:
    """One that was told of forty commands, two answers and a HOLD."""
    monitor, statistics = RunMonitor(recorder=recorder, server=server), LoopStatistics(ticks=40, sent=40, chunks=1, missed_deadlines=3)
    statistics.state_s, statistics.causes = {"RUN": 3.5, "HOLD": 0.5}, {'a "quoted"\ncause': 2}
    monitor._statistics = statistics
    for step in range(40):
        statistics.lateness_s.append(3e-5 + step * 1e-9)
        statistics.tick_s.append(3e-3 + step * 1e-9)
        monitor.commanded(step, step, 0.0, None, [0.0], 0)
    chunk = ActionChunk(np.zeros((1, 1), np.float32), np.ones(1, np.float32))
    for verdict, took in (("used", 0.015), ("late", 0.7)):
        monitor.answered(0, 0.0, Answer(observed_at=0, chunk=chunk, error="", submitted_s=1.0, finished_s=1.0 + took), verdict, "")
    monitor.judged(0, 0.0, Verdict(State.HOLD, Cause.FROZEN_FRAME, 0.0), "")
    return monitor, statistics


def test_what_is_served_is_what_the_monitor_was_told(tmp_path: Path, tiny_spec: PolicySpec) -> None:
    """Counters, gauges, labels with awkward characters and histograms, read by Prometheus' parser."""
    with FlightRecorder(tmp_path / "run.mcap", tiny_spec) as recorder:
        recorder.commanded(0, 0, 0.0, None, [0.0] * 4, 0)
        monitor, statistics = _monitor(recorder)
        snapshot = monitor.snapshot(39, statistics)
    found = _values(metrics_text(snapshot, snapshot["taken_s"] + 1.5))
    assert found["actlet_up", ""] == 1
    assert found["actlet_snapshot_age_seconds", ""] == pytest.approx(1.5)
    assert found["actlet_commands_total", ""] == 40
    assert found["actlet_missed_steps_total", ""] == 3
    assert found["actlet_answers_total", "verdict=used"] == found["actlet_answers_total", "verdict=late"] == 1
    assert {state: found["actlet_failsafe_state", f"state={state}"] for state in ("RUN", "HOLD", "ESTOP")} == {
        "RUN": 0,
        "HOLD": 1,
        "ESTOP": 0,
    }
    assert found["actlet_failsafe_seconds_total", "state=HOLD"] == 0.5
    assert found["actlet_failsafe_causes_total", 'cause=a "quoted"\ncause'] == 2
    assert found["actlet_lateness_seconds_bucket", "le=2e-05"] == 0
    assert found["actlet_lateness_seconds_bucket", "le=5e-05"] == found["actlet_lateness_seconds_count", ""] == 40
    assert found["actlet_tick_seconds_bucket", "le=0.002"] == 0
    assert found["actlet_tick_seconds_bucket", "le=+Inf"] == 40
    assert found["actlet_tick_seconds_sum", ""] == pytest.approx(0.12, rel=1e-3)
    assert found["actlet_decision_latency_seconds_bucket", "le=0.02"] == 1
    assert found["actlet_decision_latency_seconds_sum", ""] == pytest.approx(0.715)
    assert found["actlet_recorder_records_total", "kind=commands"] == 1
    assert found["actlet_recorder_dropped_total", "kind=pictures"] == 0
    assert found["actlet_recorder_writing", ""] == 1


def test_the_server_serves_the_newest_snapshot_and_ends_with_its_maker() -> None:
    """On this machine alone; other paths are refused; a client that says nothing holds up nobody."""
    server = MetricsServer("0")
    assert server.url.startswith("http://127.0.0.1:")
    text, kind = _get(server.url)
    assert kind == CONTENT_TYPE
    assert _values(text) == {("actlet_up", ""): 0}
    monitor, statistics = _monitor(server=server)
    monitor.step(39, statistics)
    with socket.create_connection(("127.0.0.1", int(server.url.split(":")[2].split("/")[0]))):
        assert _values(_get(server.url)[0])["actlet_commands_total", ""] == 40
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(server.url.replace("metrics", "secrets"), timeout=10)
    server.close()
    with pytest.raises(OSError, match="refused"):
        _get(server.url)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")
def test_a_server_that_is_killed_or_stopped_is_not_waited_for() -> None:
    """Snapshots go into memory; the server is nice."""
    server = MetricsServer("0")
    _get(server.url)
    assert os.getpriority(os.PRIO_PROCESS, server.pid) >= 10
    monitor, statistics = _monitor(server=server)
    os.kill(server.pid, signal.SIGSTOP)
    for step in range(100):
        server.publish(monitor.snapshot(step, statistics))
    os.kill(server.pid, signal.SIGKILL)
    for step in range(100):
        server.publish(monitor.snapshot(step, statistics))
    server.close()


@pytest.mark.parametrize(
    ("place", "message"), [("x", "expected a port"), ("70000", "expected a port"), ("256.1.1.1:0", "Choose another port")]
)
def test_a_place_that_is_none_is_refused(place: str, message: str) -> None:
    """With what it should be."""
    with pytest.raises(CallerError, match=message):
        MetricsServer(place)


def test_a_histogram_counts_every_value_once() -> None:
    """In the class whose bound it does not exceed."""
    rng = random.Random(0)
    histogram, values = Histogram(TICK_BOUNDS_S), [10 ** rng.uniform(-6, 0) for _ in range(1000)] + list(TICK_BOUNDS_S)
    for value in values:
        histogram.add(value)
    assert histogram.sum == pytest.approx(sum(values))
    for i, bound in enumerate(TICK_BOUNDS_S):
        assert sum(histogram.counts[: i + 1]) == sum(value <= bound for value in values)


@pytest.fixture
def point_bundle(tmp_path: Path, make_tiny_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle for the point that reaches coloured targets; its answers are arbitrary."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    from point_reach import SPEC

    return make_tiny_bundle(tmp_path / "bundle", spec=SPEC)


def test_a_run_is_recorded_and_served(
    point_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the command line: the file says what was run, told and reached; the server is asked while it runs; the summary says what is kept."""
    from runtime import watched_run

    served: list[str] = []
    step = watched_run.WatchedRun.step

    def asked(self: watched_run.WatchedRun, number: int, statistics: LoopStatistics) -> None:
        self.monitor._due_s = 0.0
        step(self, number, statistics)
        if number == 5 and self.server is not None:
            served.append(_get(self.server.url)[0])

    monkeypatch.setattr(watched_run.WatchedRun, "step", asked)
    flags = ["--record", str(tmp_path / "runs"), "--record-pictures", "png", "--metrics", "0"]
    assert main(["run", str(point_bundle), *POINTS, "--task", "red", "--seed", "3", "--steps", "7", *flags]) == 0
    out, err = capsys.readouterr()
    assert "metrics: http://127.0.0.1:" in err
    [file] = (tmp_path / "runs").iterdir()
    run = open_recording(file)
    assert f"{file}: 7 commands, 3 observations" in out
    assert "lost: nothing" in out
    assert len(run.commands) == 7
    assert run.instruction == "reach the red target"
    assert run.about["about"]["seed"] == 3
    assert len(run.about["about"]["bundle"]) == 64
    assert run.result is not None
    assert run.result["stopped_by"] == "steps"
    assert run.result["statistics"]["ticks"] == 7
    found = _values(served[0])
    assert found["actlet_steps_total", ""] == 6
    assert found["actlet_failsafe_state", "state=RUN"] == 1
    assert found["actlet_recorder_records_total", "kind=commands"] == 6


def test_a_port_in_use_refuses_to_arm(point_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, nothing moved, nothing recorded."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["run", str(point_bundle), *POINTS, "--task", "red", "--record", str(tmp_path / "runs"), "--metrics", port]) == 2
    err = capsys.readouterr().err
    assert f"metrics: 127.0.0.1, port {port}: Address already in use. Choose another port" in err
    assert not (tmp_path / "runs").exists()


def test_a_recording_that_cannot_be_made_refuses_to_arm(point_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And one of a run that is refused leaves no file."""
    (tmp_path / "run.mcap").write_text("mine")
    arguments = ["run", str(point_bundle), *POINTS, "--task", "red", "--record"]
    assert main([*arguments, str(tmp_path / "run.mcap"), "--metrics", "0"]) == 2
    assert "never written over" in capsys.readouterr().err
    assert main([*arguments, str(tmp_path / "runs"), "--instruction", " "]) == 2
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_full_disk_changes_nothing_of_a_run_but_its_summary(
    point_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same commands as without a recording, exit code 0, and the loss is said."""
    import resource

    from runtime import watched_run

    def full(*arguments: object, **options: object) -> FlightRecorder:
        recorder = FlightRecorder(*arguments, **options)  # type: ignore[arg-type]
        size = recorder.path.stat().st_size + 5
        resource.prlimit(recorder.writer_pid, resource.RLIMIT_FSIZE, (size, size))
        return recorder

    monkeypatch.setattr(watched_run, "FlightRecorder", full)
    arguments = ["run", str(point_bundle), *POINTS, "--task", "red", "--seed", "3"]
    assert main(arguments) == 0
    plain = capsys.readouterr().out
    started = time.monotonic()
    assert main([*arguments, "--record", str(tmp_path / "run.mcap")]) == 0
    assert time.monotonic() - started < 60
    out = capsys.readouterr().out
    assert "lost: 20 commands" in out
    assert "File too large" in out
    for label in ("success", "stopped by", "holds", "clipped values"):
        assert [line for line in out.splitlines() if line.startswith(label)] == [
            line for line in plain.splitlines() if line.startswith(label)
        ]
