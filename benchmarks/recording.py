"""What a recording costs the loop: `python -m benchmarks.recording`.

Each call is timed after a sleep of a millisecond, as in a loop at 1 kHz, so that caches are as cold as there, and by turns with a call that
does nothing. Then a loop of 1 kHz runs by turns with and without a recording. Prints a table, then one JSON document.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlet.protocols import ActionChunk, Observation
from actlet.specs import ActionSpec, CameraSpec, ObservationSpec, PolicySpec, TimingSpec
from benchmarks.machine import describe_machine
from runtime.control_loop import LoopConfig, drive
from runtime.flight_recorder import FlightRecorder
from runtime.inference import Answer
from runtime.journals import Journals
from runtime.real_time import RealTime, take_real_time
from runtime.run_monitor import RunMonitor

__all__ = ["main", "measure_calls", "measure_loop"]

_DIM = 8
SPEC = PolicySpec(
    observation=ObservationSpec(
        cameras=tuple(CameraSpec(name=name, height=128, width=128) for name in ("front", "wrist")),
        state_names=tuple(f"q{i}" for i in range(_DIM)),
        state_units=("rad",) * _DIM,
    ),
    action=ActionSpec(
        names=tuple(f"q{i}" for i in range(_DIM)),
        units=("rad",) * _DIM,
        kinds=("continuous",) * _DIM,
        low=(-3.0,) * _DIM,
        high=(3.0,) * _DIM,
        frame="joint",
        hold=("last",) * _DIM,
    ),
    timing=TimingSpec(rate_hz=1000, horizon=64, execute_steps=20, max_delay_steps=40),
)


class _Arm:
    """Sees the same picture and hears every command."""

    observation_spec, action_spec, rate_hz, instruction = SPEC.observation, SPEC.action, SPEC.timing.rate_hz, "hold still"
    virtual_time = True  # Its pictures are no camera's.

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        images = {camera.name: rng.integers(0, 256, (128, 128, 3)).astype(np.uint8) for camera in SPEC.observation.cameras}
        self._seen = Observation(images, np.zeros(_DIM, np.float32))

    def connect(self) -> None:
        """Nothing to do."""

    def get_observation(self) -> Observation:
        """The picture."""
        return self._seen

    def send_action(self, action: NDArray[np.float32]) -> None:
        """Nothing to do."""

    def disconnect(self) -> None:
        """Nothing to do."""


class _Still:
    """Answers at once with a slow wave."""

    spec = SPEC

    def predict(self, observations: Sequence[Observation], instructions: Sequence[str]) -> list[ActionChunk]:
        """The same chunk for each."""
        wave = np.sin(np.arange(64) / 64)[:, None] * np.ones(_DIM)
        return [ActionChunk(wave.astype(np.float32), np.ones(64, np.float32)) for _ in observations]


def measure_calls(folder: Path, count: int) -> dict[str, dict[str, float]]:
    """Microseconds of each call, by turns: what -> p50, p99 and max."""
    with FlightRecorder(folder / "calls.mcap", SPEC) as recorder:
        monitor = RunMonitor(recorder=recorder)
        both = Journals(recorder, monitor)
        due, sent = np.zeros(_DIM, np.float32), np.ones(_DIM).tolist()
        seen, (chunk,) = _Arm().get_observation(), _Still().predict([_Arm().get_observation()], [""])
        answer = Answer(observed_at=0, chunk=chunk, error="", submitted_s=0.0, finished_s=0.001)
        calls: dict[str, Callable[[int], object]] = {
            "nothing": lambda step: None,
            "command": lambda step: recorder.commanded(step, step, 0.0, due, sent, 0),
            "command, with monitor": lambda step: both.commanded(step, step, 0.0, due, sent, 0),
            "observation, two pictures of 128x128": lambda step: recorder.observed(step, 0.0, seen, ""),
            "answer, 64 x 8": lambda step: recorder.answered(step, 0.0, answer, "used", ""),
        }
        took: dict[str, list[float]] = {name: [] for name in calls}
        for step in range(count):
            for name, call in calls.items():
                time.sleep(0.001)
                start = time.perf_counter()
                call(step)
                took[name].append(1e6 * (time.perf_counter() - start))
    return {
        name: dict(zip(("p50", "p99", "max"), np.percentile(values, (50, 99, 100)).tolist(), strict=True)) for name, values in took.items()
    }


def measure_loop(folder: Path, seconds: float, turns: int) -> list[dict[str, Any]]:
    """Lateness of wake-ups and work of a tick in [us] at 1 kHz, by turns without and with a recording."""
    rows = []
    for turn in range(turns):
        for recorded in (False, True):
            recorder = FlightRecorder(folder / f"loop{turn}.mcap", SPEC) if recorded else None
            config = LoopConfig(max_steps=int(1000 * seconds), inference="thread")
            result = drive(_Arm(), _Still(), config=config, journal=recorder)
            found = result.statistics
            row: dict[str, Any] = {"recorded": recorded, "missed": found.missed_commands, "ticks": found.commands}
            for name, values in (("lateness", found.lateness_s), ("tick", found.tick_s)):
                row[name] = dict(
                    zip(("p50", "p99", "max"), np.percentile(1e6 * np.array(values.after(0)), (50, 99, 100)).tolist(), strict=True)
                )
            rows.append(row | {"lost": sum(recorder.report.lost.values()) if recorder else 0})
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="What a recording costs the loop.")
    parser.add_argument("--calls", type=int, default=2000, help="of each kind (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a turn of the loop (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="of the loop (default: %(default)s)")
    arguments = parser.parse_args(argv)
    refused = take_real_time(RealTime(quiet_collector=True))
    with tempfile.TemporaryDirectory() as name:
        calls, rows = measure_calls(Path(name), arguments.calls), measure_loop(Path(name), arguments.seconds, arguments.turns)
    print(f"{'us':<38} {'p50':>8} {'p99':>8} {'max':>8}")
    for what, took in calls.items():
        print(f"{what:<38} {took['p50']:>8.1f} {took['p99']:>8.1f} {took['max']:>8.1f}")
    for row in rows:
        for kind in ("lateness", "tick"):
            what, took = f"1 kHz, {'recorded' if row['recorded'] else 'not recorded'}: {kind}", row[kind]
            print(f"{what:<38} {took['p50']:>8.1f} {took['p99']:>8.1f} {took['max']:>8.1f}  {row['missed']} of {row['ticks']} missed")
    print(json.dumps({"machine": describe_machine(), "refused": refused, "calls_us": calls, "loop_us": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
