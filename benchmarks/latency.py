"""How long a policy takes to decide, and how much memory its process needs.

**Decision latency**: from a fresh observation in the robot's memory to the new action chunk in the robot's memory, at
batch 1, through `Policy.predict`; it includes resizing, normalisation, the network and decoding, and ends when the result
is an array on the host. It does not include the camera. `decision_rate_hz` is 1 / p50: how often a policy can answer a
*new* observation. (A chunk holds several actions, so a robot gets more actions than decisions in a second.)

All policies are measured in one run, by turns, so that a machine that slows down slows all of them down::

    round 1   teacher: 1 call   float: 10 calls   int8: 10 calls   int4: 10 calls   ceiling: 1 product
    round 2   float: 10 calls   int8: 10 calls    …                                 every round starts one further

A turn ends after `calls` calls or `slice_ms`, whichever is first, and has at least one call. Each call gets another
recorded observation. One thread each. Wall time is what a robot waits; CPU time (all threads of the process) is what is
left when a machine is shared, and is reported beside it.

**Peak memory** is VmHWM of a fresh process that opens one policy and asks it five times: interpreter, libraries and all.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from actlet.errors import ActletError, SpecError
from actlet.protocols import Observation, Policy
from actlet.provenance import utc_now
from actlet.statistics import latency_summary
from benchmarks.arithmetic import gemm_gflops, gemm_seconds
from benchmarks.machine import describe_machine, describe_versions
from benchmarks.policies import Contender, Sample, samples_for, share_parameters, weigh
from runtime.opening import open_policy

__all__ = ["LatencyConfig", "Timings", "measure_by_turns", "measure_latency", "peak_memory_bytes"]

QUANTILES = 101  # Points of the latency distribution that are kept for the report.


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatencyConfig:
    """How much is measured."""

    rounds: int = 40
    """Turns of every policy."""
    calls: int = 10
    """Most calls in one turn."""
    slice_ms: float = 60.0
    """A turn ends when it has taken this long."""

    def __post_init__(self) -> None:
        if min(self.rounds, self.calls) < 1 or self.slice_ms <= 0:
            raise SpecError(f"latency: {self}: every number must be positive.")


@dataclasses.dataclass
class Timings:
    """Every call of one policy, in seconds."""

    wall_s: list[float] = dataclasses.field(default_factory=list)
    cpu_s: list[float] = dataclasses.field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """JSON types: percentiles of wall and CPU time, rate, number of calls, and the distribution."""
        wall = latency_summary(self.wall_s)
        return {
            "decision_rate_hz": 1e3 / wall["p50"],
            "latency_ms": wall,
            "latency_cpu_ms": latency_summary(self.cpu_s),
            "latency_calls": len(self.wall_s),
            "latency_quantiles_ms": (np.quantile(self.wall_s, np.linspace(0, 1, QUANTILES)) * 1e3).tolist(),
        }


def measure_by_turns(
    policies: Mapping[str, Policy], samples: Sequence[Sample], config: LatencyConfig, *, progress: bool = True
) -> tuple[dict[str, Timings], list[float]]:
    """Time all policies in one run, by turns.

    Returns:
        Name -> timings, and the seconds of one GEMM per round: the ceiling, measured in between.
    """
    names = list(policies)
    timings = {name: Timings() for name in names}
    products: list[float] = []
    gemm_seconds()  # The first product of a process pays for starting the library.
    for name in names:
        for sample in samples:  # Every instruction is met once before the clock starts: encoding it is not part of a decision.
            _ask(policies[name], sample)
    gc.collect()
    asked = 0
    for turn in tqdm(range(config.rounds), desc="latency", unit="round", disable=not progress, file=sys.stderr):
        start = turn % len(names)
        for name in names[start:] + names[:start]:
            end = time.perf_counter() + config.slice_ms / 1e3
            for call in range(config.calls):
                if call and time.perf_counter() > end:
                    break
                wall, cpu = _ask(policies[name], samples[asked % len(samples)])
                timings[name].wall_s.append(wall)
                timings[name].cpu_s.append(cpu)
                asked += 1
        products.append(gemm_seconds())
    return timings, products


def _ask(policy: Policy, sample: Sample) -> tuple[float, float]:
    """Wall and CPU seconds of one decision about an observation that was never seen before (a copy)."""
    seen = sample.observation
    fresh = Observation({name: frame.copy() for name, frame in seen.images.items()}, seen.state.copy())
    cpu, wall = time.process_time(), time.perf_counter()
    policy.predict([fresh], [sample.instruction])
    return time.perf_counter() - wall, time.process_time() - cpu


def peak_memory_bytes(path: str | Path) -> int:
    """Peak resident memory (VmHWM) of a fresh process that opens the policy and asks it five times.

    Raises:
        ActletError: The process failed; the message holds what it printed.
    """
    command = [sys.executable, "-m", "benchmarks.latency", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise ActletError(f"memory of {path}: its process ended with {done.returncode}: {done.stderr.strip()[-800:]}")
    return int(json.loads(done.stdout.splitlines()[-1])["peak_memory_bytes"])


def measure_latency(contenders: Sequence[Contender], config: LatencyConfig | None = None, *, progress: bool = True) -> dict[str, Any]:
    """Open all policies, time them by turns, measure their memory, and describe the machine.

    Returns:
        JSON types: ``date, machine, versions, ceiling_gflops {best, median}, conditions``, and under ``policies`` for every name what
        `weigh` and `Timings.summary` say, ``share_of_ceiling`` and ``peak_memory_bytes``.

    Raises:
        SpecError: The policies do not see the same things, so that one sample cannot be given to all.
    """
    import torch

    config = config or LatencyConfig()
    threads_before = torch.get_num_threads()
    policies = {contender.name: open_policy(contender.path) for contender in contenders}
    spec = next(iter(policies.values())).spec
    for name, policy in policies.items():
        if policy.spec.observation != spec.observation:
            raise SpecError(f"policy {name!r} sees other things than {contenders[0].name!r}: time them in two runs.")
    samples = samples_for(contenders, spec)
    before = describe_machine()["load_average"]
    torch.set_num_threads(1)
    timings, products = measure_by_turns(policies, samples, config, progress=progress)
    weights = {c.name: weigh(c, policies[c.name], samples[0]) for c in contenders}
    share_parameters(contenders, weights)
    torch.set_num_threads(threads_before)
    policies.clear()
    ceiling = gemm_gflops(float(np.median(products)))
    machine = describe_machine()
    rows = {}
    for contender in contenders:
        row = {**weights[contender.name], **timings[contender.name].summary()}
        row["share_of_ceiling"] = 2 * row["macs"] / (row["latency_ms"]["p50"] / 1e3) / 1e9 / ceiling
        row["peak_memory_bytes"] = peak_memory_bytes(contender.path)
        rows[contender.name] = row
    return {
        "date": utc_now(),
        "machine": machine,
        "versions": describe_versions(),
        "ceiling_gflops": {"best": gemm_gflops(min(products)), "median": ceiling},
        "conditions": {
            **dataclasses.asdict(config),
            "batch": 1,
            "threads": 1,
            "interleaved": True,
            "load_average_before": before,
            "load_average_after": machine["load_average"],
        },
        "policies": rows,
    }


def _peak_of_this_process() -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise ActletError("VmHWM is not in /proc/self/status: peak memory is measured on Linux only.")


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m benchmarks.latency FOLDER`: open one policy, ask it five times, print the peak memory as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("path", type=Path)
    path = parser.parse_args(argv).path
    policy = open_policy(path)
    for sample in samples_for([], policy.spec, count=5):
        policy.predict([sample.observation], [sample.instruction])
    print(json.dumps({"peak_memory_bytes": _peak_of_this_process()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
