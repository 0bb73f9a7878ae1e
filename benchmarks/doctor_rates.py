"""What the doctor advises: which bundle at which rate of decisions and of commands this machine holds.

A robot's computer does other things between two decisions: it reads cameras, sends commands, and what the policy needs is no longer in the cache. Calls one
after another would be flattered by it, the more the larger the bundle. So every call that counts comes after `BETWEEN_BYTES` of memory were touched; a few more
follow it, and their median stands in its own column::

    turn 1   other work, int8: 1 call, 2 warm ones   other work, float: 1 call, 2 warm ones
    turn 2   …

Wall time's tail on a machine that is shared is other programs' turns: with a core to itself it is the tail of CPU time, by which rates are judged; those of a
GPU, for which the processor waits, by wall time. One thread.

A chunk is H commands, so commands go on between decisions. With E `execute_steps` and D `max_delay_steps`, at r commands a second::

    decisions     r / E a second are needed, and a chunk must be there D steps after its observation: min(E, D) / r seconds for one decision
    D = 0         the loop waits for the answer within one step: 1 / r seconds

A rate is held if the p99 takes half of that time at most: the driver, the cameras and the loop have the other half.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from actlet.protocols import Observation
from actlet.specs import TimingSpec
from actlet.statistics import latency_summary

if TYPE_CHECKING:
    from runtime.policy import BundlePolicy

__all__ = ["Rates", "measure_rates", "rates_of", "rates_table"]

TURNS, WARM_CALLS = 200, 2
LEAST_TURNS, BUDGET_S = 30, 15.0
"""A bundle that takes long gets fewer turns: so many at least, and no more once it has taken this long."""
BETWEEN_BYTES = 32 << 20
"""More than the last cache of a robot's computer holds (4 MB on an Orin, 8 to 32 on a PC)."""
SHARE = 0.5
"""Of the time for a decision that its p99 may take."""
RATES_HZ = (1, 2, 5, 10, 15, 20, 25, 30, 50, 100, 200, 250, 500, 1000)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
    """How fast this machine decides with one bundle, and what that holds."""

    bundle: str
    precision: str
    turns: int
    wall_ms: dict[str, float]
    """p50, p95, p99, max of a decision after other work."""
    cpu_ms: dict[str, float]
    warm_p50_ms: float
    """Of decisions one right after another."""
    decisions_hz: int
    """Most decisions in a second that are held, of `RATES_HZ`; 0 for none."""
    decisions_needed_hz: float
    commands_hz: int
    """Most commands in a second for which its chunks come in time, of `RATES_HZ`."""
    commands_own_hz: float
    """What it was made for. Another rate is faster or slower motion."""

    enough: bool
    """Its own rate is held."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return dataclasses.asdict(self)


def rates_of(timing: TimingSpec, p99_s: float) -> tuple[float, float]:
    """Most decisions and most commands in a second for which a decision of so many seconds is quick enough."""
    steps = min(timing.execute_steps, max(timing.max_delay_steps, 1))
    return SHARE / p99_s, SHARE * steps / p99_s


def measure_rates(policies: Mapping[str, BundlePolicy], *, turns: int | None = None) -> list[Rates]:
    """Time all bundles by turns, so that all meet the same load.

    Args:
        policies: Name -> an open bundle.
        turns: Most turns of each; None for `TURNS`.
    """
    between = np.zeros(BETWEEN_BYTES // 4, np.float32)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in policies}
    warm: dict[str, list[float]] = {name: [] for name in policies}
    spent = dict.fromkeys(policies, 0.0)
    for turn in range(-1, TURNS if turns is None else turns):  # The first is a warm-up: it encodes the instruction.
        for name, policy in policies.items():
            if turn >= LEAST_TURNS and spent[name] > BUDGET_S:
                continue
            between += 1.0
            first, *others = [_ask(policy, max(turn, 0) + call) for call in range(1 + WARM_CALLS)]
            if turn >= 0:
                seconds[name].append(first)
                warm[name] += [wall for wall, _ in others]
                spent[name] += first[0] + sum(wall for wall, _ in others)
    return [_rates(name, policy, seconds[name], warm[name]) for name, policy in policies.items()]


def _ask(policy: BundlePolicy, row: int) -> tuple[float, float]:
    """Wall and CPU seconds of one decision about a recorded question, in frames that were not in the cache as these."""
    golden = policy.bundle.golden
    row %= len(golden)
    seen = Observation({camera: frames[row].copy() for camera, frames in golden.images.items()}, golden.state[row])
    wall, cpu = time.perf_counter(), time.process_time()
    policy.predict([seen], [golden.text[0]])
    return time.perf_counter() - wall, time.process_time() - cpu


def _rates(name: str, policy: BundlePolicy, seconds: list[tuple[float, float]], warm: list[float]) -> Rates:
    walls, cpus = zip(*seconds, strict=True)
    of_wall, of_cpu, timing = latency_summary(list(walls)), latency_summary(list(cpus)), policy.spec.timing
    on_processor = policy.networks.providers == ("CPUExecutionProvider",)
    decisions, commands = rates_of(timing, (of_cpu if on_processor else of_wall)["p99"] / 1e3)
    return Rates(
        bundle=name,
        precision=policy.bundle.manifest.precision,
        turns=len(seconds),
        wall_ms=of_wall,
        cpu_ms=of_cpu,
        warm_p50_ms=latency_summary(warm)["p50"],
        decisions_hz=max((hz for hz in RATES_HZ if hz <= decisions), default=0),
        decisions_needed_hz=timing.rate_hz / timing.execute_steps,
        commands_hz=max((hz for hz in RATES_HZ if hz <= commands), default=0),
        commands_own_hz=timing.rate_hz,
        enough=timing.rate_hz <= commands,
    )


def rates_table(rates: list[Rates], load: float) -> list[str]:
    """Lines for people."""
    width = max(12, *(len(row.bundle) for row in rates)) + 2
    kind = max(9, *(len(row.precision) for row in rates)) + 2
    head = f"{'bundle':<{width}}{'precision':<{kind}}{'median':>10}{'p99':>10}{'CPU p99':>10}{'warm':>10}   {'decisions a second':<22}commands a second"
    lines = [head]
    for row in rates:
        times = "".join(f"{value:>7.2f} ms" for value in (row.wall_ms["p50"], row.wall_ms["p99"], row.cpu_ms["p99"], row.warm_p50_ms))
        decisions = f"{_most(row.decisions_hz)}, needs {row.decisions_needed_hz:.3g}"
        commands = f"{_most(row.commands_hz)}, made for {row.commands_own_hz:g}"
        lines.append(f"{row.bundle:<{width}}{row.precision:<{kind}}{times}   {decisions:<22}{commands}{'' if row.enough else ': TOO SLOW'}")
    turns = sorted({row.turns for row in rates})
    asked = f"{turns[0]}" if len(turns) == 1 else f"{turns[0]} to {turns[-1]}"
    return [
        *lines,
        f"median, p99: {asked} decisions, each after other work ({BETWEEN_BYTES >> 20} MiB touched), as a robot's are; warm: right after another; one thread, load {load:.1f}",
        f"a rate is held if the p99 of CPU time (on a GPU: of wall time) takes {SHARE:.0%} of the time for a decision at most; chunks bridge what lies between decisions",
    ]


def _most(hz: int) -> str:
    return f"{hz}+" if hz == RATES_HZ[-1] else "under 1" if not hz else str(hz)
