"""The control loop among faults, in virtual time: so many of every class, and a soak of hours in which now and then something fails.

The soak stands for a robot's day at 1 kHz (`SoakConfig.hours` of 24 are 86.4 million commands) with one fault in 50 commands, drawn from all classes as chance
would have it. What is counted in a run must add up afterwards, and the process must be as large at the end as it was when it was warm.
"""

from __future__ import annotations

import collections
import concurrent.futures
import ctypes
import dataclasses
import gc
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from actlet.errors import CallerError
from actlet.specs import MotionLimits, PolicySpec
from benchmarks.fault_world import FAULTS, MAX_CHANGE, SPEC, World
from runtime.control_loop import LoopConfig, drive
from runtime.loop_statistics import LoopStatistics

__all__ = ["SoakConfig", "inconsistencies", "inject", "resident_bytes", "soak"]

_STEPS = 400
"""Of one run of `inject`, at most."""
_FIRST = 5
"""Of what went wrong, shown in words."""
_WARM_SHARE, _RUN_S, _RUNS, _REST_S = 0.1, 60.0, 40, 1.0
"""Of a soak after which its memory is measured each time; the longest run, the fewest runs, and the longest time to come to rest."""
_ENDED_RUNS = 10
"""One run of so many has cameras that raise, which ends it: the others go on through everything."""
_MOTION = (
    *(MotionLimits(velocity=0.5, acceleration=2.0, jerk=20.0),) * 2,
    MotionLimits(velocity=2.0, acceleration=10.0, jerk=100.0),
    None,
)
"""Of the robot that is commanded more often than its policy answers: m/s and rad/s, small enough that a wandering policy meets all of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoakConfig:
    """What a soak is."""

    hours: float = 0.05
    """Of the robot's time."""
    policy_rate_hz: float = 50.0
    command_rate_hz: float | None = 1000.0
    """None for the policy's."""
    every_ticks: float = 50.0
    """Commands from one fault to the next, on average."""
    classes: tuple[str, ...] = tuple(FAULTS)

    def __post_init__(self) -> None:
        rates = (self.policy_rate_hz, self.command_rate_hz or self.policy_rate_hz)
        if min(self.hours, *rates, self.every_ticks - 1) <= 0 or rates[1] < rates[0]:
            raise CallerError(
                f"soak: {self}: expected positive hours and rates, of commands no lower than of the policy, and every_ticks above 1."
            )

    @property
    def tick_s(self) -> float:
        """Time of a command."""
        return 1 / (self.command_rate_hz or self.policy_rate_hz)

    @property
    def ticks(self) -> int:
        """Commands in all."""
        return round(self.hours * 3600 / self.tick_s)

    @property
    def spec(self) -> PolicySpec:
        """Of robot and policy: asked in every step, so that there is much that can fail; limits of motion where commands are more than steps."""
        timing = dataclasses.replace(SPEC.timing, rate_hz=self.policy_rate_hz, execute_steps=1)
        several = self.command_rate_hz is not None and self.command_rate_hz != self.policy_rate_hz
        return dataclasses.replace(SPEC, timing=timing, action=dataclasses.replace(SPEC.action, motion=_MOTION if several else None))


def _run(world: World, config: LoopConfig) -> tuple[str, LoopStatistics | None]:
    """Why the run ended, or what left the loop, and its statistics, None then."""
    try:
        result = drive(world, world, "put", config, clock=world.clock, sleep=world.sleep, inference=lambda policy, clock: world)  # type: ignore[arg-type]
    except Exception as error:  # Nothing may leave it.
        return f"{type(error).__name__}: {error}"[:300], None
    return result.stopped_by, result.statistics


def inject(events: int, classes: Sequence[str], seed: int = 0, *, progress: bool = False) -> dict[str, Any]:
    """Runs of the loop until so many faults were injected; half of all that can be spoiled is.

    Returns:
        ``class, injected, unsafe, crashes, commands, runs, ends`` (reason -> runs), and the first few that were unsafe.
    """
    rng = random.Random(seed)
    total: dict[str, Any] = {"class": " + ".join(classes), "injected": 0, "unsafe": 0, "crashes": 0, "commands": 0, "runs": 0, "first": []}
    ends: collections.Counter[str] = collections.Counter()
    config = LoopConfig(max_steps=_STEPS, max_change=MAX_CHANGE, inference="thread")
    with tqdm(total=events, desc=total["class"], unit="fault", disable=not progress, file=sys.stderr, leave=False) as bar:
        while total["injected"] < events:
            world = World(rng, {name: FAULTS[name] for name in classes})
            said, statistics = _run(world, config)
            if statistics is None:
                total["crashes"] += 1
                total["first"].append(said)
            else:
                ends[said] += 1
            injected = sum(world.injected.values())
            total["injected"] += injected
            total["unsafe"] += len(world.unsafe)
            total["commands"] += world.commands
            total["runs"] += 1
            total["first"] = (total["first"] + world.unsafe)[:_FIRST]
            bar.update(injected)
    return total | {"ends": dict(ends)}


def inconsistencies(world: World, found: LoopStatistics, most_after: int = 1) -> list[str]:
    """What does not add up in a run's counts, in words: what was sent, answered and decided, by the loop's account and by the world's.

    Args:
        world: What the run was in.
        found: What the loop counted.
        most_after: Commands after the run's end, which bring the robot to rest.
    """
    in_states = sum(found.state_ticks.values())
    answers = found.chunks + found.bad_chunks + found.late_chunks
    claims = (
        # Commands after the end are not counted; the step that ends a run is judged without one.
        (found.sent <= world.commands <= found.sent + most_after, f"{found.sent} commands counted, {world.commands} arrived"),
        (found.sent <= found.commands, f"{found.sent} commands in {found.commands} ticks"),
        (found.ticks <= in_states <= found.ticks + 1, f"{in_states} steps in states, {found.ticks} in all"),
        (answers == world.answers, f"{answers} answers counted, {world.answers} given"),
        (found.holds <= found.ticks, f"{found.holds} holds in {found.ticks} steps"),
        (found.misjudged_chunks <= found.chunks, f"{found.misjudged_chunks} of {found.chunks} chunks misjudged"),
        (
            found.bad_observations <= world.injected["camera"],
            f"{found.bad_observations} bad observations, {world.injected['camera']} spoiled",
        ),
    )
    return [words for holds, words in claims if not holds]


def soak(config: SoakConfig, seed: int = 0, *, workers: int = 1, progress: bool = False) -> dict[str, Any]:
    """Runs of at most a minute, until all commands were given.

    Args:
        config: How much, and of what.
        seed: Of all that is drawn.
        workers: Processes that share the hours; each draws from a seed of its own.
        progress: Show a bar.

    Returns:
        ``ticks, faults, by_class, unsafe, crashes, inconsistent, runs, ends`` (reason -> runs), ``state_ticks`` (state -> commands), ``memory_growth_bytes``
        (from the warm process to the end; of several processes, of the one that grew most), ``memory_bytes`` (after each tenth; of several processes, of each), ``seconds, cpu_s, us_per_tick`` (of processor time), the configuration, and the first few that went wrong.
    """
    if workers > 1:
        return _soak_together(config, seed, workers, progress)
    rng, spec = random.Random(seed), config.spec
    several = config.command_rate_hz is not None and config.command_rate_hz != config.policy_rate_hz
    loop = LoopConfig(max_change=None if several else MAX_CHANGE, inference="thread")
    most = max(1000, min(round(_RUN_S / config.tick_s), config.ticks // _RUNS))
    counts: dict[str, int] = dict.fromkeys(("ticks", "faults", "unsafe", "crashes", "inconsistent", "runs"), 0)
    by_class, ends, states = collections.Counter[str](), collections.Counter[str](), collections.Counter[str]()
    first: list[str] = []
    memory: list[int] = []  # After each tenth of the commands.
    start, cpu_start = time.perf_counter(), time.process_time()
    with tqdm(total=config.ticks, desc="soak", unit="tick", unit_scale=True, disable=not progress, file=sys.stderr, leave=False) as bar:
        while counts["ticks"] < config.ticks:
            kinds = {name: FAULTS[name] for name in config.classes}
            if "camera" in kinds and counts["runs"] % _ENDED_RUNS:
                kinds["camera"] = tuple(kind for kind in kinds["camera"] if kind != "raised")
            world = World(rng, kinds, spec=spec, tick_s=config.tick_s, every_ticks=config.every_ticks, most_commands=most)
            said, statistics = _run(world, loop)
            wrong = [] if statistics is None else inconsistencies(world, statistics, round(_REST_S / config.tick_s))
            counts["crashes"] += statistics is None
            counts["inconsistent"] += bool(wrong)
            counts["unsafe"] += len(world.unsafe)
            counts["ticks"] += world.commands
            counts["runs"] += 1
            by_class.update(world.injected)
            if statistics is not None:
                ends[said] += 1
                states.update(statistics.state_ticks)
            first = [*first, *([said] if statistics is None else []), *wrong, *world.unsafe][:_FIRST]
            bar.update(world.commands)
            if not world.commands and statistics is None:
                break  # A loop that cannot even begin would be tried without end.
            if counts["ticks"] >= (len(memory) + 1) * _WARM_SHARE * config.ticks:
                memory.append(resident_bytes())
    seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu_start
    memory.append(resident_bytes())
    counts["faults"] = by_class.total()
    return {
        **counts,
        "by_class": dict(by_class),
        "ends": dict(ends),
        "state_ticks": dict(states),
        "memory_growth_bytes": memory[-1] - memory[0],
        "memory_bytes": memory,
        "seconds": seconds,
        "cpu_s": cpu_s,
        "us_per_tick": 1e6 * cpu_s / max(1, counts["ticks"]),
        "config": dataclasses.asdict(config),
        "first": first,
    }


def _soak_together(config: SoakConfig, seed: int, workers: int, progress: bool) -> dict[str, Any]:
    """The hours shared out among processes, and their counts put together."""
    share = dataclasses.replace(config, hours=config.hours / workers)
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        # One bar, of the first: they go at about the same pace.
        waits = [pool.submit(soak, share, seed + 1000 * i, progress=progress and i == 0) for i in range(workers)]
        found = [wait.result() for wait in waits]
    total = {key: sum(part[key] for part in found) for key in ("ticks", "faults", "unsafe", "crashes", "inconsistent", "runs", "cpu_s")}
    for key in ("by_class", "ends", "state_ticks"):
        total[key] = dict(sum((collections.Counter(part[key]) for part in found), collections.Counter()))
    for key in ("memory_growth_bytes", "seconds"):
        total[key] = max(part[key] for part in found)
    total["memory_bytes"] = [part["memory_bytes"] for part in found]
    first = [words for part in found for words in part["first"]][:_FIRST]
    return total | {
        "us_per_tick": 1e6 * total["cpu_s"] / max(1, total["ticks"]),
        "config": dataclasses.asdict(config),
        "workers": workers,
        "first": first,
    }


def resident_bytes() -> int:
    """Of this process, without what is only waiting to be collected or given back."""
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
