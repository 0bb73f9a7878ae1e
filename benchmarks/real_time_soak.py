"""A real-time run of a quarter of an hour: `python -m benchmarks.real_time_soak BUNDLE --out benchmarks/results/real_time_soak.json`.

The loop commands a simulated arm (MuJoCo, seven joints, stepped in `send_action`) at 500 Hz of a policy's 50 steps in a second, with limits of velocity,
acceleration and jerk; the policy runs in processes of its own and is asked at every step, everything is recorded, and processes that do nothing but compute run
beside it. What counts: periods without a command, how late wake-ups are, what a tick takes, what of the recording was lost, and how much the process grew.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from actlet.errors import CallerError
from actlet.provenance import utc_now
from actlet.specs import PolicySpec
from actlet.storage import write_json
from benchmarks.fault_loop import resident_bytes
from benchmarks.machine import describe_machine, describe_versions
from benchmarks.real_time import PRIORITY, RecordedArm, beside_load, missed_periods
from runtime.bundle import load_bundle
from runtime.control_loop import LoopConfig, drive
from runtime.flight_recorder import FlightRecorder
from runtime.golden import Golden
from runtime.inference_process import InferenceProcess
from runtime.inference_worker import WorkerConfig
from runtime.journals import Journals
from runtime.loop_statistics import Durations, LoopStatistics
from runtime.real_time import RealTime, take_real_time

__all__ = ["soak_in_real_time"]

_STEP_HZ, _JOINTS = 50.0, 7
_WARM_SHARE = 0.1
"""Of the run before memory is measured first."""


class _SimulatedArm(RecordedArm):
    """Sees recorded frames; its commands move seven joints of a simulation."""

    def __init__(self, spec: PolicySpec, golden: Golden, command_rate_hz: float, most: int) -> None:
        import mujoco

        super().__init__(spec, golden, command_rate_hz)
        self.sent_s: Any = Durations(most)
        link = '<body pos="0 0 .15"><joint name="j{i}" axis="{axis}" damping="2"/><geom type="capsule" size=".03" fromto="0 0 0 0 0 .15"/>{inner}</body>'
        bodies = ""
        for i in reversed(range(_JOINTS)):
            bodies = link.format(i=i, axis="0 0 1" if i % 2 else "0 1 0", inner=bodies)
        motors = "".join(f'<position joint="j{i}" kp="50"/>' for i in range(_JOINTS))
        self._model = mujoco.MjModel.from_xml_string(
            f'<mujoco><option timestep="{1 / command_rate_hz}"/><worldbody>{bodies}</worldbody><actuator>{motors}</actuator></mujoco>'
        )
        self._data, self._step = mujoco.MjData(self._model), mujoco.mj_step

    def send_action(self, action: NDArray[np.float32]) -> None:
        """The first joints follow what is commanded."""
        super().send_action(action)
        count = min(_JOINTS, len(action))
        self._data.ctrl[:count] = 10 * action[:count]
        self._step(self._model, self._data)


def soak_in_real_time(bundle: Path, *, minutes: float, rate_hz: float = 500.0, load: int = 4, progress: bool = False) -> dict[str, Any]:
    """One run, in this process, which keeps its priority afterwards.

    Args:
        bundle: The policy's.
        minutes: How long.
        rate_hz: Commands in a second.
        load: Processes that compute beside it.
        progress: Show a bar.

    Returns:
        JSON types: what is counted, and ``lateness_us``, ``tick_us`` (p50, p99, p999, max).
    """
    steps = round(60 * minutes * _STEP_HZ)
    if steps < 20:
        raise CallerError(f"real-time soak: {minutes} minutes are {steps} steps, expected 20 at least.")
    loaded, most = load_bundle(bundle), round(1.1 * 60 * minutes * rate_hz)
    arm, lateness, ticks = _SimulatedArm(loaded.manifest.spec, loaded.golden, rate_hz, most), Durations(most), Durations(most)
    memory: list[int] = []
    policy = InferenceProcess(bundle, worker=WorkerConfig(policy="", priority=PRIORITY // 2))
    while policy.status.ready < 2:
        time.sleep(0.01)
    with (
        tempfile.TemporaryDirectory() as folder,
        beside_load(load),
        tqdm(total=steps, unit="step", disable=not progress, file=sys.stderr) as bar,
    ):
        recorder = FlightRecorder(Path(folder) / "run.mcap", policy.spec)
        refused = take_real_time(RealTime(priority=PRIORITY, quiet_collector=True))

        def on_step(step: int, statistics: LoopStatistics) -> None:
            for kept, found in ((lateness, statistics.lateness_s), (ticks, statistics.tick_s)):
                for value in found.after(kept.count):
                    kept.append(value)
            if step == round(_WARM_SHARE * steps):
                memory.append(resident_bytes())
            if step % 50 == 49:
                bar.update(50)

        config = LoopConfig(max_steps=steps, rate_hz=_STEP_HZ, replan_steps=1, inference="thread")
        result = drive(arm, policy, None, config, inference=lambda _, clock: policy, on_step=on_step, journal=Journals(recorder))
        memory.append(resident_bytes())
        recorder.finish({"stopped_by": result.stopped_by})
        recorder.close()
        report = recorder.report
    missed, periods = missed_periods(arm.sent_s.after(0), rate_hz, result.statistics.started_s)

    def summary(times: Durations) -> dict[str, float]:
        values = 1e6 * np.array(times.after(0))
        p50, p99, p999 = np.percentile(values, [50, 99, 99.9])
        return {"p50": float(p50), "p99": float(p99), "p999": float(p999), "max": float(values.max())}

    data = result.statistics.to_dict()
    return {
        "minutes": minutes,
        "rate_hz": rate_hz,
        "step_hz": _STEP_HZ,
        "load": load,
        "stopped_by": result.stopped_by,
        "message": result.message,
        "commands": data["sent"],
        "periods": periods,
        "missed_share": missed / periods,
        "lateness_us": summary(lateness),
        "tick_us": summary(ticks),
        "frame_to_command_ms": data["reaction_ms"],
        "decisions": data["chunks"],
        "decision_ms": data["decision_latency_ms"],
        "state_s": data["state_s"],
        "causes": data["causes"],
        "recorded": {"made": sum(report.made.values()), "lost": sum(report.lost.values()), "size_bytes": report.size_bytes},
        "memory_growth_bytes": memory[-1] - memory[0],
        "refused": refused,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m benchmarks.real_time_soak`: run, print, and write the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--minutes", type=float, default=15.0, help="how long (default: %(default)s)")
    parser.add_argument("--rate-hz", type=float, default=500.0, help="commands in a second (default: %(default)s)")
    parser.add_argument("--load", type=int, default=4, help="processes that compute beside it (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="where the document is written")
    given = parser.parse_args(argv)
    machine = describe_machine()
    found = soak_in_real_time(given.bundle, minutes=given.minutes, rate_hz=given.rate_hz, load=given.load, progress=True)
    document = {"date": utc_now(), "machine": machine, "versions": describe_versions(), "soak": found}
    document["load_average_after"] = describe_machine()["load_average"]
    if given.out is not None:
        write_json(given.out, document)
    late, tick = found["lateness_us"], found["tick_us"]
    print(
        f"{found['commands']} commands in {given.minutes:g} minutes, stopped by {found['stopped_by']}: {found['missed_share']:.3%} of the periods without one; "
        f"lateness p50 {late['p50']:.0f}, p99 {late['p99']:.0f}, p99.9 {late['p999']:.0f}, max {late['max']:.0f} us; a tick p50 {tick['p50']:.0f}, "
        f"p99 {tick['p99']:.0f} us; {found['recorded']['lost']} of {found['recorded']['made']} records lost; memory grew by {found['memory_growth_bytes'] / 1e6:.2f} MB"
    )
    return 0 if found["stopped_by"] == "steps" else 1


if __name__ == "__main__":
    sys.exit(main())
