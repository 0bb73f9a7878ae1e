"""How late the control loop is, and what it does when its policy dies: `actlet bench realtime BUNDLE --out runtime.json`.

Designs, each in a process of its own, by turns:

    process     actlet's loop at a real-time priority, the policy in processes of its own, everything recorded
    thread      the same loop, the policy in a thread
    sleep       how LeRobot's and openpi's clients pace: a queue of actions, the policy in a thread, time.sleep for what is left of a period, no priority
    cyclictest  a C program that does nothing but wake up (Debian's rt-tests): what the machine itself allows; where it is installed

actlet's loops take 50 policy steps in a second, ask at each, and command at the rate in between, with limits of velocity, acceleration and jerk; the sleeping
loop commands an action of its queue in every period. With `--load N`, every turn has N processes beside it that do nothing but compute.

Lateness: from the moment for which a wake-up was asked to the moment at which the loop runs. Missed: the share of periods without a command. All on the
same recorded frames, one after the other; nothing is attached that could hold the loop up, so what is measured is the loop.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from actlet.errors import ActletError
from actlet.protocols import Observation
from actlet.provenance import utc_now
from actlet.specs import MotionLimits, PolicySpec
from actlet.storage import write_json
from benchmarks.machine import describe_machine, describe_versions
from runtime.bundle import load_bundle
from runtime.control_loop import LoopConfig, drive
from runtime.flight_recorder import FlightRecorder
from runtime.golden import Golden
from runtime.inference_process import InferenceProcess
from runtime.inference_worker import WorkerConfig
from runtime.policy import BundlePolicy
from runtime.real_time import RealTime, take_real_time
from runtime.supervisor import SupervisorConfig

__all__ = [
    "DESIGNS",
    "PRIORITY",
    "STEP_HZ",
    "RecordedArm",
    "beside_load",
    "measure_failover",
    "measure_lateness",
    "measure_overhead",
    "run_real_time",
]

DESIGNS = ("process", "thread", "sleep", "cyclictest")
RATES_HZ, SECONDS, ROUNDS, KILLS = (1000.0, 100.0), 10.0, 3, 20
"""What is measured unless something else is said."""
PRIORITY = 80
STEP_HZ = 50.0
_MOTION = MotionLimits(velocity=10.0, acceleration=100.0, jerk=10_000.0)
"""Of every dimension that is no flag: far from what a policy asks for, so that the work is done and nothing is changed."""
_WARM_S = 1.0
"""Left out at the beginning of every turn."""


class RecordedArm:
    """A robot of a bundle's own recorded frames, which takes every command and notes when.

    Args:
        spec: The policy's.
        golden: What is seen, one after the other.
        command_rate_hz: Commands in a second.
    """

    def __init__(self, spec: PolicySpec, golden: Golden, command_rate_hz: float) -> None:
        motion = tuple(None if kind == "binary" else _MOTION for kind in spec.action.kinds)
        self.observation_spec, self.action_spec = spec.observation, dataclasses.replace(spec.action, motion=motion)
        self.rate_hz, self.command_rate_hz = spec.timing.rate_hz, command_rate_hz
        self.instruction = golden.text[0]
        self.sent_s: list[float] = []
        self._seen = [Observation({name: frames[i] for name, frames in golden.images.items()}, golden.state[i]) for i in range(len(golden))]
        self._next = 0

    def connect(self) -> None:
        """Nothing to do."""

    def present_action(self) -> list[float]:
        """Where it stands."""
        return [0.0 if low <= 0.0 <= high else low for low, high in zip(self.action_spec.low, self.action_spec.high, strict=True)]

    def get_observation(self) -> Observation:
        """The next recorded one."""
        self._next = (self._next + 1) % len(self._seen)
        return self._seen[self._next]

    def send_action(self, action: NDArray[np.float32]) -> None:
        """Note the time."""
        self.sent_s.append(time.monotonic())

    def disconnect(self) -> None:
        """Nothing to do."""


def measure_lateness(bundle: Path, design: str, rate_hz: float, seconds: float) -> dict[str, Any]:
    """One turn of a design, in this process.

    Returns:
        ``design, rate_hz, lateness_us`` (every one), ``missed`` and ``periods``, of actlet's loops ``age_ms`` and ``decision_ms`` (p50), and ``refused``.
    """
    if design == "cyclictest":
        return _cyclictest(rate_hz, seconds)
    loaded = load_bundle(bundle)
    arm, lateness = RecordedArm(loaded.manifest.spec, loaded.golden, rate_hz), []
    row: dict[str, Any] = {"design": design, "rate_hz": rate_hz, "refused": []}
    if design == "sleep":
        start_s = _sleeping_loop(BundlePolicy(bundle), arm, rate_hz, seconds, lateness)
    else:
        if design == "thread":
            policy: Any = BundlePolicy(bundle)
        else:
            policy = InferenceProcess(bundle, worker=WorkerConfig(policy="", priority=PRIORITY // 2))
            while policy.status.ready < 2:
                time.sleep(0.01)
        row["refused"] = take_real_time(RealTime(priority=PRIORITY, quiet_collector=True))

        step_hz = min(STEP_HZ, rate_hz)
        config = LoopConfig(max_steps=int(step_hz * seconds), rate_hz=step_hz, replan_steps=1, inference="thread")
        where = (lambda _, clock: policy) if design == "process" else None
        with tempfile.TemporaryDirectory() as folder:
            journal = FlightRecorder(Path(folder) / "run.mcap", policy.spec) if design == "process" else None
            result = drive(arm, policy, None, config, inference=where, journal=journal)
            if journal is not None:
                report = journal.report
                row["recorded"] = {"made": sum(report.made.values()), "lost": sum(report.lost.values()), "size_bytes": report.size_bytes}
        counted, statistics = result.statistics, result.statistics.to_dict()
        lateness = list(counted.lateness_s)
        row |= {"stopped_by": result.stopped_by, "age_ms": statistics["action_age_ms"], "decision_ms": statistics["decision_latency_ms"]}
        row |= {
            "frame_to_command_ms": statistics["reaction_ms"],
            "tick_us": [1e6 * took_s for took_s in list(counted.tick_s)[int(_WARM_S * rate_hz) :]],
        }
        row |= {"holds": statistics["holds"], "ticks": statistics["ticks"], "skipped": counted.missed_commands}
        start_s = counted.started_s
    missed, periods = missed_periods(arm.sent_s, rate_hz, start_s)
    return row | {"lateness_us": [1e6 * value for value in lateness[int(_WARM_S * rate_hz) :]], "missed": missed, "periods": periods}


def missed_periods(sent_s: Sequence[float], rate_hz: float, start_s: float) -> tuple[int, int]:
    """Periods without a command, and periods, which are counted from the moment at which the loop began."""
    times = np.asarray(sent_s) - start_s
    period = np.floor(times[times >= _WARM_S] * rate_hz).astype(int)
    periods = int(period[-1] - period[0] + 1)
    return periods - len(np.unique(period)), periods


def _sleeping_loop(policy: BundlePolicy, arm: RecordedArm, rate_hz: float, seconds: float, lateness: list[float]) -> float:
    """The pacing of LeRobot's `record_loop` and openpi's `Runtime`: relative sleeps in the same interpreter as the policy. Returns when it began."""
    actions: queue.Queue[NDArray[np.float32]] = queue.Queue()
    newest: dict[str, Any] = {"seen": arm.get_observation(), "stop": False}

    def infer() -> None:
        while not newest["stop"]:
            if actions.qsize() < policy.spec.timing.horizon // 2:
                for action in policy.predict([newest["seen"]], [arm.instruction])[0].actions:
                    actions.put(action)
            else:
                time.sleep(0.001)

    thread = threading.Thread(target=infer, daemon=True)
    thread.start()
    began = time.monotonic()
    last, end = np.zeros(policy.spec.action.dim, np.float32), began + seconds
    while (start := time.monotonic()) < end:
        newest["seen"] = arm.get_observation()
        with contextlib.suppress(queue.Empty):
            last = actions.get_nowait()
        arm.send_action(last)
        left_s = 1 / rate_hz - (time.monotonic() - start)
        if left_s > 0:
            moment = time.monotonic() + left_s
            time.sleep(left_s)
            lateness.append(time.monotonic() - moment)
    newest["stop"] = True
    thread.join()
    return began


def _cyclictest(rate_hz: float, seconds: float) -> dict[str, Any]:
    loops = int(rate_hz * seconds)
    command = ["cyclictest", "-m", f"-p{PRIORITY}", f"-i{int(1e6 / rate_hz)}", f"-l{loops}", "-q", "-h100000"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    counts = [(int(us), int(count)) for us, count in re.findall(r"^(\d{6}) (\d+)", said, re.M)]
    lateness = [float(us) for us, count in counts for _ in range(count)]
    return {"design": "cyclictest", "rate_hz": rate_hz, "lateness_us": lateness, "missed": None, "periods": loops, "refused": []}


def measure_failover(bundle: Path, kills: int) -> dict[str, Any]:
    """From the death of the process that infers to the next answer, asked at once; while a loop's clock goes on.

    Returns:
        ``kills, failover_ms`` (every one), ``p50, p99, max``.
    """
    golden, found = load_bundle(bundle).golden, []
    seen = Observation({name: frames[0] for name, frames in golden.images.items()}, golden.state[0])
    worker, keeper = (
        WorkerConfig(policy="", priority=PRIORITY // 2),
        SupervisorConfig(first_wait_s=0.01, longest_wait_s=0.1, most_deaths=10 * kills),
    )
    inference = InferenceProcess(bundle, worker=worker, supervisor=keeper)
    try:
        take_real_time(RealTime(priority=PRIORITY))
        inference.prepare(golden.text[0])
        for kill in range(kills):
            while inference.status.ready < 2:
                time.sleep(0.01)
            time.sleep(1.0)  # The standby looks for a new instruction twice a second.
            os.kill(inference.status.pids[0], signal.SIGKILL)
            start = time.monotonic()
            while not inference.submit(seen, golden.text[0], kill):
                time.sleep(0.0005)
            while inference.poll() is None:
                time.sleep(0.0005)
            found.append(1e3 * (time.monotonic() - start))
    finally:
        inference.close()
    return {"kills": kills, "failover_ms": found, "p50": float(np.median(found)), "p99": float(np.percentile(found, 99)), "max": max(found)}


def measure_overhead(bundle: Path, calls: int) -> dict[str, Any]:
    """What `BundlePolicy.predict` takes beside its session, by turns, with another recorded frame at every call.

    A session that is run again finds its input where it was ("bare"); one that is "fed" copies the frames into that memory first, as whoever decides about a
    new frame has to; "run" is `InferenceSession.run` as everybody calls it, with a dictionary of arrays.

    Returns:
        Medians ``bare_us, fed_us, run_us, predict_us``, and of every turn's ratio of `predict` to the others the medians, ``ratio, ratio_to_fed, ratio_to_run``.
    """
    policy = BundlePolicy(bundle)
    golden = policy.bundle.golden
    seen = [Observation({name: frames[i].copy() for name, frames in golden.images.items()}, golden.state[i]) for i in range(len(golden))]
    policy.predict(seen[:1], golden.text[:1])
    network = policy.networks._policy.fixed(golden.instruction[:1])
    session, binding = network._session, network._binding

    def fed(frame: Observation) -> None:
        for name, picture in frame.images.items():
            np.copyto(network.bound[f"images.{name}"], picture)
        session.run_with_iobinding(binding)

    def plain(frame: Observation) -> None:
        feeds = {f"images.{name}": picture[None] for name, picture in frame.images.items()} | {"state": frame.state[None]}
        session.run(names, {name: feeds.get(name, bound) for name, bound in network.bound.items()})

    names = [output.name for output in session.get_outputs()]
    runs: dict[str, Callable[[Observation], Any]] = {
        "bare": lambda _: session.run_with_iobinding(binding),
        "fed": fed,
        "run": plain,
        "predict": lambda frame: policy.predict([frame], golden.text[:1]),
    }
    took: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(calls):
        for name, run in runs.items():
            times = []
            for again in range(4):
                frame = seen[(turn + again) % len(seen)]
                start = time.perf_counter()
                run(frame)
                times.append(1e6 * (time.perf_counter() - start))
            took[name].append(float(np.median(times[1:])))  # The first of a turn finds the others' memory in the caches.
    found = {f"{name}_us": float(np.median(times)) for name, times in took.items()}
    beside = (("ratio", "bare"), ("ratio_to_fed", "fed"), ("ratio_to_run", "run"))
    ratios = {key: np.divide(took["predict"], took[name]) for key, name in beside}
    return found | {key: float(np.median(values)) for key, values in ratios.items()}


def _summary(turns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All turns of a design at a rate."""
    first, late = turns[0], np.concatenate([turn["lateness_us"] for turn in turns])
    p50, p99, p999 = np.percentile(late, [50, 99, 99.9])
    row = {"design": first["design"], "rate_hz": first["rate_hz"], "turns": len(turns), "wakeups": len(late)}
    row |= {"p50": float(p50), "p99": float(p99), "p999": float(p999), "max": float(late.max())}
    row["p99_of_turns"] = [float(np.percentile(turn["lateness_us"], 99)) for turn in turns]
    missed = None if first["missed"] is None else sum(turn["missed"] for turn in turns) / sum(turn["periods"] for turn in turns)
    row |= {"missed_share": missed, "refused": first["refused"]}
    for key in ("age_ms", "decision_ms", "frame_to_command_ms"):
        if first.get(key):
            row[key] = {name: float(np.median([turn[key][name] for turn in turns])) for name in ("p50", "p99")}
    if "tick_us" in first:
        row["tick_us"] = dict(
            zip(
                ("p50", "p99", "p999"),
                np.percentile(np.concatenate([turn["tick_us"] for turn in turns]), [50, 99, 99.9]).tolist(),
                strict=True,
            )
        )
        row["skipped_share"] = sum(turn["skipped"] for turn in turns) / sum(turn["periods"] for turn in turns)
    if "recorded" in first:
        row["recorded"] = [turn["recorded"] for turn in turns]
    if "holds" in first:
        row |= {"holds_share": sum(turn["holds"] for turn in turns) / sum(turn["ticks"] for turn in turns)}
    return row


@contextlib.contextmanager
def beside_load(processes: int) -> Iterator[None]:
    """So many processes that do nothing but compute."""
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: sum(range(10_000))"]) for _ in range(processes)]
    try:
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


def _turn(bundle: Path, design: str, rate_hz: float, seconds: float) -> dict[str, Any]:
    """In a fresh process: a priority that was taken is not given back."""
    command = [sys.executable, "-m", "benchmarks.real_time", str(bundle), "--turn", design, str(rate_hz), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 120)
    if done.returncode:
        raise ActletError(f"{design} at {rate_hz} Hz ended with {done.returncode}: {done.stderr.strip()[-600:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run_real_time(
    bundle: Path,
    *,
    rates_hz: Sequence[float] = RATES_HZ,
    seconds: float = SECONDS,
    rounds: int = ROUNDS,
    kills: int = KILLS,
    load: int = 0,
    out: Path | None = None,
) -> int:
    """The question `realtime` of the verb `bench`: measure, print, and write the document.

    Args:
        bundle: What runs.
        rates_hz: Of the loops.
        seconds: Of a turn.
        rounds: Turns of every design at every rate.
        kills: Of the process that infers.
        load: Processes that compute beside every turn, in as many turns again.
        out: Where the document is written.
    """
    designs = [name for name in DESIGNS if name != "cyclictest" or shutil.which("cyclictest")]
    before = describe_machine()
    overhead = measure_overhead(bundle, calls=300)
    turns: dict[tuple[str, float, int], list[dict[str, Any]]] = {}
    plan = [(design, rate, busy) for _ in range(rounds) for busy in dict.fromkeys((0, load)) for rate in rates_hz for design in designs]
    for design, rate, busy in tqdm(plan, desc="real time", unit="turn", file=sys.stderr, leave=False):
        with beside_load(busy):
            turns.setdefault((design, rate, busy), []).append(_turn(bundle, design, rate, seconds))
    rows = [_summary(found) | {"load": busy} for (_, _, busy), found in turns.items()]
    failover = measure_failover(bundle, kills)
    document = {
        "date": utc_now(),
        "machine": before,
        "load_average_after": describe_machine()["load_average"],
        "versions": describe_versions(),
        "conditions": {
            "seconds": seconds,
            "rounds": rounds,
            "priority": PRIORITY,
            "precision": load_bundle(bundle).manifest.precision,
        },
        "lateness_us": rows,
        "failover_ms": failover,
        "infer_overhead": overhead,
        "infer_overhead_ratio": overhead["ratio"],
    }
    if out is not None:
        write_json(out, document)
    print("ceiling: cyclictest, and no period without a command\n")
    print(f"{'design':<12}{'Hz':>6}{'load':>6}{'p50':>9}{'p99':>9}{'p99.9':>9}{'max':>9} us  missed  tick p50/p99 us")
    for row in sorted(rows, key=lambda row: (row["load"], -row["rate_hz"])):
        missed = "" if row["missed_share"] is None else f"{row['missed_share']:.3%}"
        tick = f"{row['tick_us']['p50']:.0f} / {row['tick_us']['p99']:.0f}" if "tick_us" in row else ""
        late = "".join(f"{row[name]:>9.0f}" for name in ("p50", "p99", "p999", "max"))
        print(f"{row['design']:<12}{row['rate_hz']:>6.0f}{row['load']:>6}{late}     {missed:<8}{tick}")
    print(
        f"failover: p50 {failover['p50']:.1f} ms, max {failover['max']:.1f} ms of {failover['kills']}; "
        f"predict takes {overhead['ratio']:.3f} of the bare session, {overhead['ratio_to_fed']:.3f} of one that is fed with a new frame, "
        f"{overhead['ratio_to_run']:.3f} of InferenceSession.run"
    )
    print(json.dumps(document, allow_nan=False))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m benchmarks.real_time`: measure, print, and write the document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, help="where the document is written")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES_HZ, help="in Hz (default: 1000 100)")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a turn (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of every design at every rate (default: %(default)s)")
    parser.add_argument(
        "--load", type=int, default=0, help="processes that compute beside every turn, in as many turns again (default: none)"
    )
    parser.add_argument("--kills", type=int, default=KILLS, help="of the process that infers (default: %(default)s)")
    parser.add_argument("--turn", nargs=3, metavar=("DESIGN", "HZ", "SECONDS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.turn:
        design, rate, seconds = arguments.turn
        print(json.dumps(measure_lateness(arguments.bundle, design, float(rate), float(seconds))))
        return 0
    return run_real_time(
        arguments.bundle,
        rates_hz=arguments.rates,
        seconds=arguments.seconds,
        rounds=arguments.rounds,
        kills=arguments.kills,
        load=arguments.load,
        out=arguments.out,
    )


if __name__ == "__main__":
    sys.exit(main())
