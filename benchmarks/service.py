"""What a policy in the cloud costs against one on the robot: `actlet bench service`.

RT-2 answered from a cloud service at 1 to 3 Hz (Brohan et al. 2023, section 3.3). Here the first policy is served to R robots over a
simulated network, and the others run on the robot. Three measurements, joined in one table:

    rate       decisions a second in all and for each robot, and how long a robot waits      real sockets (`benchmarks.service_rate`)
    success    in closed loop at that lateness, the arm standing still or moving on          virtual time (`benchmarks.delayed_loop`)
    on board   the same two for the policies on the robot: their own latency, no network     this process, one thread

On board a policy answers within its control step. The loop can wait for it ("stands still", late by 0), or ask in a thread as `actlet run
--realtime` does ("moves on", late by 1); and it can cross-fade from chunk to chunk, as is its default, or not: all four are judged.

A latency, the median that a robot saw, makes the answers d control steps late. Success is judged for some d (`judged_steps`), which makes it
independent of the machine; a row takes the largest of these that is not later than its own d, so it never looks worse than it was judged.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from actlet.errors import CallerError, SpecError
from actlet.protocols import Policy
from actlet.provenance import utc_now
from actlet.statistics import latency_summary
from actlet.storage import write_json
from benchmarks.closed_loop import ClosedLoopConfig
from benchmarks.delayed_loop import Delay, WhileWaiting, run_delayed, summarise_delayed
from benchmarks.machine import describe_machine, describe_versions
from benchmarks.policies import Contender, Sample, samples_for
from benchmarks.service_rate import RateConfig, measure_rates, served
from benchmarks.tables import text_table
from benchmarks.units import as_number, as_percent
from runtime.chunk_schedule import ScheduleConfig
from runtime.opening import open_policy

__all__ = ["ServiceConfig", "measure_service", "run_service", "service_tables"]

WAYS: tuple[WhileWaiting, ...] = ("stands still", "moves on")
_ON_BOARD_CALLS = 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """How much is measured."""

    rate: RateConfig = dataclasses.field(default_factory=RateConfig)
    loop: ClosedLoopConfig = dataclasses.field(default_factory=lambda: ClosedLoopConfig(episodes=42, wrong_episodes=0))
    """Episodes of every lateness, on report seeds."""
    judged_steps: tuple[int, ...] = (0, 1, 2, 3, 5, 10)
    """d, the lateness in control steps for which success is judged; at 10 Hz 10 is the 1 Hz of a large model in a cloud."""

    def __post_init__(self) -> None:
        if tuple(sorted(set(self.judged_steps))) != self.judged_steps or self.judged_steps[:2] != (0, 1):
            raise SpecError(f"service: judged_steps {self.judged_steps}: expected rising numbers that begin with 0 and 1.")

    @classmethod
    def quick(cls, loop: ClosedLoopConfig) -> ServiceConfig:
        """Shows in a few minutes that it works, and nothing about quality."""
        rate = RateConfig(robots=(1, 4), delays_ms=(0.0, 50.0), losses=(0.0,), seconds=1.5, rounds=1)
        return cls(rate=rate, loop=dataclasses.replace(loop, episodes=min(3, loop.episodes)), judged_steps=(0, 1, 3))


def measure_service(contenders: Sequence[Contender], config: ServiceConfig, *, progress: bool = True) -> dict[str, Any]:
    """Serve the first policy, run the others on board, and join what was found.

    Returns:
        JSON types: ``date, machine, versions, suite, served, rate_hz`` (control steps in a second), ``conditions``, ``rows`` (robots, network,
        rates, latency, lateness, success), ``late`` (success by lateness), ``on_board`` (four rows for every other policy), and ``raw``:
        every latency and episode.

    Raises:
        ActletError: The policy cannot be served.
        SpecError: Policy and suite do not fit.
    """
    import torch

    torch.set_num_threads(1)
    before = describe_machine()["load_average"]
    policies = {contender.name: open_policy(contender.path) for contender in contenders}
    first, *others = contenders
    samples = samples_for(contenders, policies[first.name].spec)
    with served(first.path) as (server, port):
        measured = measure_rates(server, port, config.rate, samples, progress=progress)
    rate_hz = policies[first.name].spec.timing.rate_hz
    episodes: dict[str, list[dict[str, Any]]] = {}
    late = []
    for delay in (Delay(steps=d, while_waiting=way) for way in WAYS for d in config.judged_steps if d or way == "stands still"):
        found = run_delayed(policies[first.name], delay, config.loop, label=f"{first.name}, {delay.steps} late, {delay.while_waiting}")
        late.append(summarise_delayed(delay, found, rate_hz))
        episodes[f"{first.name}, {delay.steps} late, {delay.while_waiting}"] = found
    on_board = []
    for other in others:
        for row, found in _on_board(other.name, policies[other.name], config, samples):
            on_board.append(row)
            episodes[f"{other.name}, {row['delay_steps']} late, {row['while_waiting']}, blend {row['blend_steps']}"] = found
    rows = [_row(condition_found.summary(condition), late, rate_hz) for condition, condition_found in measured.items()]
    raw = [{**dataclasses.asdict(condition), **dataclasses.asdict(condition_found)} for condition, condition_found in measured.items()]
    machine = describe_machine()
    return {
        "date": utc_now(),
        "machine": machine,
        "versions": describe_versions(),
        "suite": config.loop.suite,
        "served": first.name,
        "rate_hz": rate_hz,
        "conditions": {
            **dataclasses.asdict(config),
            "threads": 1,
            "interleaved": True,
            "load_average_before": before,
            "load_average_after": machine["load_average"],
        },
        "rows": rows,
        "late": late,
        "on_board": on_board,
        "raw": {"service": raw, "episodes": episodes},
    }


def _row(summary: dict[str, Any], late: Sequence[Mapping[str, Any]], rate_hz: float) -> dict[str, Any]:
    """A condition, with what was judged at its lateness; "success" itself is the better of the two ways."""
    if summary["latency_ms"] is None:
        return {**summary, "late": None, "success": None, "success_ci95": None, "episodes": 0}
    ways = {}
    for way in WAYS:
        steps = Delay.of(summary["latency_ms"]["p50"] / 1e3, rate_hz, way).steps
        judged = max(
            (row for row in late if row["while_waiting"] == way and row["delay_steps"] <= steps), key=lambda row: row["delay_steps"]
        )
        chosen = {key: judged[key] for key in ("success", "success_ci95", "episodes", "mean_seconds")}
        ways[way] = {"steps": steps, "judged_steps": judged["delay_steps"], **chosen}
    best = max(ways.values(), key=lambda way: way["success"])
    return {**summary, "late": ways, **{key: best[key] for key in ("success", "success_ci95", "episodes")}}


def _on_board(
    name: str, policy: Policy, config: ServiceConfig, samples: Sequence[Sample]
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """A policy on the robot: its latency here, and success with the lateness that it makes, for every way to run it."""
    for sample in samples:
        policy.predict([sample.observation], [sample.instruction])
    spent_s = []
    for call in range(_ON_BOARD_CALLS):
        sample = samples[call % len(samples)]
        started = time.perf_counter()
        policy.predict([sample.observation], [sample.instruction])
        spent_s.append(time.perf_counter() - started)
    latency, rate_hz = latency_summary(spent_s), policy.spec.timing.rate_hz
    for way, blend_steps in itertools.product(WAYS, (0, ScheduleConfig().blend_steps)):
        delay = Delay.of(latency["p50"] / 1e3, rate_hz, way)
        schedule = ScheduleConfig(blend_steps=blend_steps)
        found = run_delayed(policy, delay, config.loop, schedule=schedule, label=f"{name} on board, {way}, blend {blend_steps}")
        summary = summarise_delayed(delay, found, rate_hz)
        yield (
            {"policy": name, "decision_rate_hz": 1e3 / latency["p50"], "latency_ms": latency, "blend_steps": blend_steps, **summary},
            found,
        )


def service_tables(document: Mapping[str, Any]) -> str:
    """Three tables: success by lateness, the service, and on board."""
    served_name, rate_hz = document["served"], document["rate_hz"]
    step_ms = 1e3 / rate_hz

    def success(row: Mapping[str, Any]) -> str:
        low, high = row["success_ci95"]
        return f"{as_percent(row['success'])} [{100 * low:.0f}, {100 * high:.0f}]"

    late = text_table(
        ["meanwhile the arm", "late by", "episodes", "success [95 %]", "seconds", "decisions"],
        [
            [
                row["while_waiting"],
                f"{row['delay_steps']} steps",
                str(row["episodes"]),
                success(row),
                as_number(row["mean_seconds"]),
                as_number(row["decisions_per_episode"]),
            ]
            for row in document["late"]
        ],
    )
    service = []
    for row in document["rows"]:
        latency = row["latency_ms"] or {"p50": None, "p99": None}
        ways = row["late"] or {}
        service.append(
            [
                f"{row['robots']} robots",
                f"{row['delay_ms']:g} ms",
                as_percent(row["loss"]),
                as_number(row["total_rate_hz"]),
                as_number(row["decision_rate_hz"]),
                as_number(latency["p50"]),
                as_number(latency["p99"]),
                as_number(row["batch_mean"]),
                as_number(row["server_cpu_ms_per_decision"]),
                str(row["errors"]),
                *(f"{as_percent(ways[way]['success'])} ({ways[way]['steps']})" if ways else "–" for way in WAYS),
            ]
        )
    header = ["served to", "one way", "loss", "in all/s", "each/s", "p50 ms", "p99", "batch", "server CPU ms", "errors", *WAYS]
    board = [
        [
            row["policy"],
            as_number(row["decision_rate_hz"]),
            as_number(row["latency_ms"]["p50"]),
            as_number(row["latency_ms"]["p99"]),
            row["while_waiting"],
            f"{row['delay_steps']} steps",
            f"{row['blend_steps']} steps",
            str(row["episodes"]),
            success(row),
            as_number(row["mean_seconds"]),
        ]
        for row in document["on_board"]
    ]
    parts = [
        f"{served_name}, its answers late by d control steps of {step_ms:.0f} ms (virtual time):\n\n{late}",
        f"{served_name} as a service; success at the lateness of p50, in brackets, by what the arm does meanwhile:\n\n"
        f"{text_table(header, service)}",
    ]
    if board:
        columns = [
            "on board",
            "decisions/s",
            "p50 ms",
            "p99",
            "meanwhile",
            "late by",
            "cross-fade",
            "episodes",
            "success [95 %]",
            "seconds",
        ]
        parts.append(f"on the robot:\n\n{text_table(columns, board)}")
    return "\n\n".join(parts)


def run_service(arguments: argparse.Namespace, contenders: Sequence[Contender]) -> int:
    """The question `service` of the verb `bench`."""
    loop = ClosedLoopConfig(
        suite=arguments.suite,
        tasks=tuple(arguments.tasks) if arguments.tasks else None,
        episodes=ServiceConfig().loop.episodes if arguments.episodes is None else arguments.episodes,
        wrong_episodes=0,
    )
    if arguments.workers not in (None, 1):
        raise CallerError("bench service: --workers has no effect: episodes under a delay run one after the other.")
    if arguments.quick:
        config = ServiceConfig.quick(loop)
    else:
        default = RateConfig()
        rate = RateConfig(
            robots=tuple(arguments.robots or default.robots),
            delays_ms=tuple(default.delays_ms if arguments.delays_ms is None else arguments.delays_ms),
            losses=tuple(default.losses if arguments.losses is None else arguments.losses),
        )
        config = ServiceConfig(rate=rate, loop=loop)
    document = measure_service(contenders, config)
    print("ceiling: every robot answered within its control step, and the success of a delay of 0\n")
    print(service_tables(document), flush=True)
    print()
    if arguments.out is not None:
        write_json(arguments.out, document)
        print(f"with every latency and episode: {arguments.out}", file=sys.stderr)
    print(json.dumps({key: value for key, value in document.items() if key != "raw"}, allow_nan=False))
    return 0
