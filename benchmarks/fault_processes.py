"""Real processes that are killed, stopped, crash, or run out of memory, and a wall clock that jumps, while a loop commands in real time.

Each kind of fault has a loop of its own, in a fresh process, at a real-time priority. The policy runs in processes of its own, with a standby; each time that both
are there the one that answers is made to fail. What counts is whether the loop commands as before: the share of periods without a command from a fault to the
moment at which a new standby is ready (the start of a process is work for the machine), beside that of all other periods.

    kill        SIGKILL
    stop        SIGSTOP: it answers no more, and does not die
    loop        a decision without an end
    segfault    a decision that reads address 0
    memory      a decision that takes memory until the limit of `WorkerConfig.memory_bytes`

The wall clock is that of `benchmarks.wall_clock`: CLOCK_REALTIME jumps, CLOCK_MONOTONIC does not, as when a time server corrects a robot's clock.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from actlet.errors import ActletError
from benchmarks.failing_policy import TRIGGERS
from benchmarks.real_time import STEP_HZ, RecordedArm
from benchmarks.wall_clock import WallClock, compiler
from runtime.bundle import load_bundle
from runtime.control_loop import LoopConfig, LoopResult, drive
from runtime.failsafe import FailsafeConfig
from runtime.inference_process import InferenceProcess
from runtime.inference_worker import WorkerConfig
from runtime.loop_statistics import LoopStatistics
from runtime.real_time import RealTime, take_real_time
from runtime.supervisor import SupervisorConfig
from runtime.trial import child_environment

__all__ = ["JUMPS_S", "KINDS", "measure_clock_jumps", "measure_process_faults"]

KINDS = ("kill", "stop", "loop", "segfault", "memory")
JUMPS_S = (3600, -3600, 30 * 86400, -30 * 86400, 0)
"""Where the wall clock goes, one after the other, from where it would be."""
_PRIORITY, _QUIET_S, _WARM_S, _LOOK_S = 80, 0.5, 1.0, 0.02
_HANG_S, _LONGEST_S = 0.3, 30.0
_CLOCK_HZ, _STEPS_PER_JUMP, _TRIES = 20.0, 4, 4
_JUMPS = "ACTLET_CLOCK_JUMPS"


class _Arm(RecordedArm):
    """Keeps what it was told, ends the run when it is asked to, and lets somebody look after every command."""

    def __init__(self, bundle: Path, command_rate_hz: float) -> None:
        loaded = load_bundle(bundle)
        super().__init__(loaded.manifest.spec, loaded.golden, command_rate_hz)
        self.done = False
        self.digest = hashlib.sha256()
        self.after: Callable[[], None] | None = None

    def send_action(self, action: NDArray[np.float32]) -> None:
        """Note time and content."""
        super().send_action(action)
        self.digest.update(action.tobytes())
        if self.after is not None:
            self.after()


class _Faults:
    """Makes the worker fail whenever there is a standby; looks after every command.

    Args:
        kind: Of `KINDS`.
        count: How often.
    """

    def __init__(self, kind: str, count: int, inference: InferenceProcess, arm: _Arm, triggers: str) -> None:
        self.kind, self.count, self.inference, self.arm, self.triggers = kind, count, inference, arm, triggers
        self.spans: list[tuple[float, float]] = []  # From a fault until a new standby is ready.
        self.recovered_s: list[float] = []  # From a fault until the next chunk that is used.
        self.began_s: float | None = None
        self.due_s = time.monotonic() + _WARM_S
        self.looked_s = self.due_s
        self.chunks_before: int | None = None
        self.statistics = LoopStatistics()
        arm.after = self.look

    def __call__(self, step: int, statistics: LoopStatistics) -> None:
        """After every step: the loop's counts are these."""
        self.statistics = statistics

    def look(self) -> None:
        """After every command."""
        now, statistics = time.monotonic(), self.statistics
        if self.chunks_before is not None and self.began_s is not None and statistics.chunks > self.chunks_before:
            if os.listdir(self.triggers):  # Answered before: the decision that fails is the next.
                self.chunks_before = statistics.chunks
            else:
                self.recovered_s.append(now - self.began_s)
                self.chunks_before = None
        if now < self.looked_s:
            return
        self.looked_s = now + _LOOK_S
        if self.began_s is None and now >= self.due_s:
            if len(self.spans) == self.count:
                self.arm.done = True
            elif (status := self.inference.status).ready == 2:
                self.began_s, self.chunks_before, self.deaths = time.monotonic(), statistics.chunks, status.deaths
                self.harm(status.pids[0])
        elif self.began_s is not None and self.chunks_before is None:
            status = self.inference.status
            if status.deaths > self.deaths and status.ready == 2:
                self.spans.append((self.began_s, now))
                self.began_s, self.due_s = None, now + _QUIET_S
        if self.began_s is not None and now - self.began_s > _LONGEST_S:
            raise ActletError(f"{self.kind}: no new standby {_LONGEST_S:g} s after fault {len(self.spans) + 1}: {self.inference.status}")

    def harm(self, pid: int) -> None:
        """Now."""
        if self.kind in ("kill", "stop"):
            os.kill(pid, signal.SIGKILL if self.kind == "kill" else signal.SIGSTOP)
        else:
            Path(self.triggers, self.kind).touch()


@contextlib.contextmanager
def _opened(bundle: Path, most_deaths: int) -> Iterator[InferenceProcess]:
    """The policy in its processes, both ready; and this process at a real-time priority."""
    worker = WorkerConfig(policy="", priority=_PRIORITY // 2, opener="benchmarks.failing_policy:open_failing")
    keeper = SupervisorConfig(hang_s=_HANG_S, first_wait_s=0.01, longest_wait_s=0.1, most_deaths=most_deaths)
    inference = InferenceProcess(bundle, worker=worker, supervisor=keeper)
    try:
        end = time.monotonic() + _LONGEST_S
        while inference.status.ready < 2:
            if time.monotonic() > end:
                raise ActletError(f"no standby after {_LONGEST_S:g} s: {inference.status}")
            time.sleep(0.01)
        take_real_time(RealTime(priority=_PRIORITY, quiet_collector=True))
        yield inference
    finally:
        inference.close()


def _drive(arm: _Arm, inference: InferenceProcess, config: LoopConfig, on_step: Any) -> LoopResult:
    inference.prepare(arm.instruction)
    return drive(arm, inference, None, config, on_step=on_step, inference=lambda policy, clock: inference)


def _fault_loop(bundle: Path, kind: str, count: int, rate_hz: float) -> dict[str, Any]:
    """In a process of its own: a loop, and its faults."""
    arm = _Arm(bundle, rate_hz)
    with tempfile.TemporaryDirectory() as triggers:
        os.environ[TRIGGERS] = triggers
        with _opened(bundle, most_deaths=10 * count) as inference:
            faults = _Faults(kind, count, inference, arm, triggers)
            # Longer than a policy's process needs to start: what is looked for is that the loop goes on.
            patient = FailsafeConfig(hold_s=_LONGEST_S, wait_s=_LONGEST_S, max_bad_chunks=1000, answer_s=_LONGEST_S)
            result = _drive(arm, inference, LoopConfig(failsafe=patient, rate_hz=min(STEP_HZ, rate_hz), replan_steps=1), faults)
            status = inference.status
    start_s = result.statistics.started_s
    period = np.floor((np.asarray(arm.sent_s) - start_s) * rate_hz).astype(np.int64)
    first, last = round(_WARM_S * rate_hz), int(period[-1])
    missed = np.setdiff1d(np.arange(first, last + 1), period)
    spans = [(int((begin - start_s) * rate_hz), int((end - start_s) * rate_hz) + 1) for begin, end in faults.spans]
    inside = np.zeros(last + 2, bool)
    for begin, end in spans:
        inside[begin:end] = True
    inside = inside[: last + 1]
    during = int(inside[missed].sum())
    return {
        "kind": kind,
        "faults": len(faults.spans),
        "stopped_by": result.stopped_by,
        "message": result.message,
        "deaths": status.deaths,
        "hangs": status.hangs,
        "takeovers": status.takeovers,
        "last_words": status.error,
        "recovered_ms": [1e3 * value for value in faults.recovered_s],
        "periods_during": int(inside[first:].sum()),
        "missed_during": during,
        "periods_elsewhere": last + 1 - first - int(inside[first:].sum()),
        "missed_elsewhere": len(missed) - during,
    }


def measure_process_faults(bundle: Path, count: int, *, rate_hz: float = 1000.0, progress: bool = False) -> list[dict[str, Any]]:
    """All kinds, the rarer ones half as often.

    Args:
        bundle: What runs.
        count: Kills.
        rate_hz: Of commands.
        progress: Show a bar.

    Returns:
        JSON types, a row for each kind: ``kind, faults, stopped_by, deaths, hangs, takeovers, recovered_ms`` (to the next chunk that was used: every one, and
        ``p50, max``), ``periods_during, missed_during, periods_elsewhere, missed_elsewhere``, and ``last_words`` of the last process that died.
    """
    rows = []
    for kind in tqdm(KINDS, desc="processes", unit="kind", disable=not progress, file=sys.stderr, leave=False):
        row = _child(["--faults", kind, str(count if kind == "kill" else max(1, count // 2)), str(rate_hz)], bundle, {})
        times = row["recovered_ms"]
        rows.append(row | {"p50": float(np.median(times)), "max": max(times)})
    return rows


def _clock_loop(bundle: Path, jumps: int) -> dict[str, Any]:
    """In a process of its own, whose wall clock is ours: a loop, and its jumps; none where the environment names no file to jump with."""
    arm, file = _Arm(bundle, _CLOCK_HZ), os.environ.get(_JUMPS)
    offsets: set[int] = set()

    def jump(step: int, statistics: LoopStatistics) -> None:
        if file and step % _STEPS_PER_JUMP == 0:
            WallClock.set(file, JUMPS_S[step // _STEPS_PER_JUMP % len(JUMPS_S)])
        offsets.add(round(time.time() - time.monotonic()))

    with tempfile.TemporaryDirectory() as triggers:
        os.environ[TRIGGERS] = triggers
        with _opened(bundle, most_deaths=10) as inference:
            # An arm of recorded frames: the same ones again are no frozen camera.
            config = LoopConfig(max_steps=jumps * _STEPS_PER_JUMP, rate_hz=_CLOCK_HZ, failsafe=FailsafeConfig(frozen_frames=None))
            result = _drive(arm, inference, config, jump)
            deaths = inference.status.deaths
    found = result.statistics
    return {
        "commands": len(arm.sent_s),
        "digest": arm.digest.hexdigest(),
        "missed": found.missed_deadlines,
        "causes": found.causes,
        "stopped_by": result.stopped_by,
        "deaths": deaths,
        "clock_span_s": max(offsets) - min(offsets),
    }


def measure_clock_jumps(bundle: Path, jumps: int = 20) -> dict[str, Any]:
    """The same run with a wall clock that jumps and with one that does not, again while the machine makes one of them miss a step (at most four times).

    Returns:
        ``jumps, same`` (the commands of both runs are the same, bit for bit; None where no two runs without a missed step were had), ``tries``, and both runs:
        ``commands, digest, missed, causes, stopped_by, deaths, clock_span_s`` (how far the wall clock went from the monotonic one); ``skipped`` in words
        where there is no C compiler.
    """
    if compiler() is None:
        return {"skipped": "there is no C compiler to make a wall clock with: sudo apt-get install -y gcc libc6-dev"}
    same, runs, tries = None, dict[str, Any](), 0
    with tempfile.TemporaryDirectory() as place:
        clock = WallClock(Path(place))
        while same is None and tries < _TRIES:
            tries += 1
            for name, extra in (("steady", {}), ("jumping", {_JUMPS: str(clock.file)})):
                WallClock.set(clock.file, 0)
                runs[name] = _child(["--clock", str(jumps)], bundle, clock.environment | extra)
            if not (runs["steady"]["missed"] or runs["jumping"]["missed"]):
                same = runs["steady"]["digest"] == runs["jumping"]["digest"]
    return {"jumps": jumps, "same": same, "tries": tries, **runs}


def _child(arguments: list[str], bundle: Path, extra: dict[str, str]) -> dict[str, Any]:
    """In a fresh process: a priority that was taken is not given back."""
    command = [sys.executable, "-m", "benchmarks.fault_processes", str(bundle.absolute()), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3600, env=child_environment() | extra)
    if done.returncode:
        raise ActletError(f"{' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip()[-900:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> int:
    """What `_child` starts."""
    bundle, mode, *rest = sys.argv[1:]
    if mode == "--clock":
        print(json.dumps(_clock_loop(Path(bundle), int(rest[0]))))
    else:
        print(json.dumps(_fault_loop(Path(bundle), rest[0], int(rest[1]), float(rest[2]))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
