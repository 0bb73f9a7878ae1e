"""What of a policy's success is left on things that no demonstration showed: one axis at a time, on the same seeds.

=============  ============================================================================================================
axis           suite, and what is new in it (`episodes.tabletop_variations`)
=============  ============================================================================================================
seen           ``tabletop``: nothing but the positions
objects        ``tabletop-objects``: the shapes of the blocks, and their nouns
colours        ``tabletop-colours``: the colours of the blocks, and their words
backgrounds    ``tabletop-backgrounds``: the table
environments   ``tabletop-environments``: light, camera, table and floor at once
instructions   ``tabletop-instructions``: the sentences
=============  ============================================================================================================

A seed puts blocks and plates at the same places on every axis, so an axis is compared with ``seen`` in pairs (McNemar's exact test), as
policies are with each other. Rates have 95 % Wilson intervals, also those of the kinds that an axis is made of. With a folder, every
finished (policy, axis) is kept there, and the same command goes on after Ctrl-C.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from actlet.errors import CallerError, UnknownNameError
from actlet.provenance import utc_now
from actlet.storage import read_json, write_bytes, write_json
from benchmarks.chain import Chain
from benchmarks.closed_loop import ClosedLoopConfig, compare
from benchmarks.machine import describe_machine, describe_versions
from benchmarks.policies import Contender
from benchmarks.tables import text_table
from benchmarks.units import as_percent
from episodes.rollout import EpisodeResult, evaluate, success_summary
from episodes.seeds import REPORT_SEED_START
from episodes.suites import make_suite

__all__ = ["AXES", "GeneralisationConfig", "axes_table", "measure_generalisation", "summarise_axis", "write_generalisation"]

# axis -> suite, in the order of tables.
AXES = {
    "seen": "tabletop",
    "objects": "tabletop-objects",
    "colours": "tabletop-colours",
    "backgrounds": "tabletop-backgrounds",
    "environments": "tabletop-environments",
    "instructions": "tabletop-instructions",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneralisationConfig:
    """Which episodes are run."""

    axes: tuple[str, ...] = tuple(AXES)
    """Keys of `AXES`."""
    episodes: int = 126
    """Episodes of every policy on every axis."""
    tasks: tuple[str, ...] | None = None
    """All tasks of the suite when None."""
    first_seed: int = REPORT_SEED_START
    batch: int = 16
    """Episodes that a process runs in lockstep."""
    workers: int | None = None
    """Processes; one for every core when None."""

    def __post_init__(self) -> None:
        for axis in self.axes:
            if axis not in AXES:
                raise UnknownNameError("axis of generalisation", axis, tuple(AXES))
        if not self.axes or len(set(self.axes)) < len(self.axes):
            raise CallerError(f"axes {list(self.axes)}: expected at least one, and each once.")
        for axis in self.axes:
            self.closed_loop(axis)

    def closed_loop(self, axis: str) -> ClosedLoopConfig:
        """The episodes of one axis; refuses seeds that are not for reports."""
        return ClosedLoopConfig(
            suite=AXES[axis],
            tasks=self.tasks,
            episodes=self.episodes,
            wrong_episodes=0,
            first_seed=self.first_seed,
            batch=self.batch,
            workers=self.workers,
        )


def measure_generalisation(
    contenders: Sequence[Contender], config: GeneralisationConfig | None = None, *, out: Path | None = None
) -> dict[str, Any]:
    """Run every policy through every axis.

    Args:
        contenders: The policies.
        config: Which episodes.
        out: A folder that keeps the episodes of each policy and axis as soon as they are run, and gives those back that are there already
            and still fit. None keeps nothing.

    Returns:
        ``date, machine, versions, suites, first_seed, policies``: a list with ``name`` and ``axes``, axis -> what `summarise_axis` says; and
        ``episodes``, name -> axis -> every `EpisodeResult` as plain JSON, in the order of the seeds.

    Raises:
        UnknownNameError: There is no such task.
        SpecError: A policy does not fit the simulated robot.
        StorageError: The folder cannot be written.
    """
    config = config or GeneralisationConfig()
    run = _runner(config, out, total=len(contenders) * len(config.axes))
    for axis in config.axes:
        suite = make_suite(AXES[axis])
        for task in config.tasks or ():
            if task not in suite.tasks:
                raise UnknownNameError(f"task of suite {suite.name!r}:", task, suite.tasks)
    episodes = {contender.name: {axis: run(contender, axis) for axis in config.axes} for contender in contenders}
    return {
        "date": utc_now(),
        "machine": describe_machine(),
        "versions": describe_versions(),
        "suites": {axis: AXES[axis] for axis in config.axes},
        "first_seed": config.first_seed,
        "policies": [
            {
                "name": name,
                "axes": {axis: summarise_axis(found, runs.get("seen") if axis != "seen" else None) for axis, found in runs.items()},
            }
            for name, runs in episodes.items()
        ],
        "episodes": episodes,
    }


def summarise_axis(episodes: Sequence[Mapping[str, Any]], seen: Sequence[Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """Figures of one policy on one axis.

    Args:
        episodes: Results as plain JSON.
        seen: The same policy's on the axis "seen", to compare with.

    Returns:
        ``episodes, successes, success, success_ci95, errors``; the same without errors under ``per_task`` and ``per_kind`` for every task and
        kind of instruction or object; and ``compared`` as `closed_loop.compare` says, None without `seen`.
    """
    results = [EpisodeResult(**episode) for episode in episodes]
    kinds = sorted({result.kind for result in results})
    whole = success_summary(results)
    return {
        **_rates(whole),
        "errors": whole["errors"],
        "per_task": {task: _rates(row) for task, row in whole["tasks"].items()},
        "per_kind": {kind: _rates(success_summary([result for result in results if result.kind == kind])) for kind in kinds},
        "compared": None if seen is None else compare(episodes, seen, "seen"),
    }


def axes_table(policies: Sequence[Mapping[str, Any]]) -> str:
    """One row an axis, with its kinds below it where it has several, and one column a policy."""
    rows = []
    for axis, first in policies[0]["axes"].items():
        rows.append([axis, str(first["episodes"]), *(_cell(policy["axes"][axis]) for policy in policies)])
        if len(first["per_kind"]) > 1:
            for kind, row in first["per_kind"].items():
                cells = [_cell(policy["axes"][axis]["per_kind"][kind]) for policy in policies]
                rows.append([f"  {kind}", str(row["episodes"]), *cells])
    return text_table(["axis", "episodes", *(f"{policy['name']} [95 %]" for policy in policies)], rows)


def write_generalisation(out: Path, document: Mapping[str, Any]) -> None:
    """Write ``generalisation.json``, with all episodes, and the drawing ``generalisation.svg`` into a folder."""
    from benchmarks.plots import axes_plot, stand_alone

    write_json(out / "generalisation.json", document)
    write_bytes(out / "generalisation.svg", stand_alone(axes_plot(document["policies"])).encode())


def _runner(config: GeneralisationConfig, out: Path | None, *, total: int) -> Callable[[Contender, str], list[dict[str, Any]]]:
    """A function that gives the episodes of a policy on an axis: run, or read from the folder."""

    def play(contender: Contender, axis: str) -> list[dict[str, Any]]:
        loop = config.closed_loop(axis)
        results = evaluate(contender.factory, loop.suite, loop.seeds, tasks=loop.tasks, workers=loop.workers, batch=loop.batch)
        return [result.to_dict() for result in results]

    if out is None:
        return play
    chain = Chain(out, total=total)

    def kept(contender: Contender, axis: str) -> list[dict[str, Any]]:
        place = chain.stage(
            f"episodes/{contender.name}/{axis}.json",
            f"{contender.name}: {axis}",
            lambda place: write_json(place, play(contender, axis)),
            arguments={"suite": AXES[axis], "tasks": config.tasks, "episodes": config.episodes, "first_seed": config.first_seed},
            inputs={"policy": contender.path},
        )
        found: list[dict[str, Any]] = read_json(place)
        return found

    return kept


def _rates(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"episodes": row["n"], "successes": row["successes"], "success": row["rate"], "success_ci95": [row["low"], row["high"]]}


def _cell(row: Mapping[str, Any]) -> str:
    low, high = row["success_ci95"]
    return f"{as_percent(row['success'])} [{100 * low:.0f}, {100 * high:.0f}]"
