"""What comes of faults, counted: `actlet bench faults [BUNDLE]`.

    python -m benchmarks.faults bundles/int8 --soak-hours 24 --out benchmarks/results/faults.json

    faults      chunks, times, cameras and clocks that fail, in the control loop, in virtual time       (`benchmarks.fault_loop`)
    soak        hours of the loop at a robot's rate, in virtual time, with a fault now and then         (the same)
    failsafe    random histories of the state machine                                                  (`benchmarks.fault_sequences`)
    fuzz        damaged messages, into every decoder                                                   (`benchmarks.fault_messages`)
    artifacts   damaged and hostile bundles, opened in processes with limits                           (`benchmarks.fault_bundles`)
    processes   the policy's processes killed, stopped, crashed, out of memory, under a loop in real time  (`benchmarks.fault_processes`)
    wall_clock  a clock that is set while a loop runs in real time                                     (the same)

The last three need a bundle, and are left out, which is said, without one. The exit code is 1 if anything happened that must not: a command that is unsafe, a count that
does not add up, an exception that leaves the loop, an undeclared error, a hostile bundle that is accepted, a loop that ends, another command than without a jump.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from actlet.errors import ActletError, CallerError
from actlet.provenance import utc_now
from actlet.storage import write_json
from benchmarks.fault_loop import SoakConfig, inject, soak
from benchmarks.fault_messages import fuzz
from benchmarks.fault_sequences import check_sequences
from benchmarks.fault_world import FAULTS
from benchmarks.machine import describe_machine, describe_versions

__all__ = ["FaultsConfig", "faults_text", "measure_faults", "run_faults", "what_is_wrong"]

_NO_BUNDLE = {"skipped": "no bundle was given"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FaultsConfig:
    """How much of everything."""

    events: int = 1_200_000
    """Faults in the loop, shared out among the classes."""
    messages: int = 1_000_000
    """Damaged messages for each decoder."""
    sequences: int = 100_000
    """Histories of the failsafe, 50 events each."""
    copies: int = 2000
    """Damaged bundles."""
    kills: int = 20
    """Of the policy's process; the other kinds half as often."""
    jumps: int = 20
    """Of the wall clock."""
    soak: SoakConfig = dataclasses.field(default_factory=SoakConfig)
    workers: int = 1
    """Processes that share the hours of the soak."""

    def __post_init__(self) -> None:
        if min(self.events, self.messages, self.sequences, self.copies, self.kills, self.jumps, self.workers) < 1:
            raise CallerError(f"faults: {self}: expected counts of at least 1.")

    @classmethod
    def quick(cls, **changes: Any) -> FaultsConfig:
        """A few minutes: whether it works, not how often it fails."""
        small: dict[str, Any] = {
            "events": 20_000,
            "messages": 10_000,
            "sequences": 2000,
            "copies": 64,
            "kills": 2,
            "soak": SoakConfig(hours=0.005),
        }
        return cls(**{**small, **changes})


def measure_faults(config: FaultsConfig, bundle: Path | None = None, *, seed: int = 0, progress: bool = True) -> dict[str, Any]:
    """All parts; what is found is printed part by part on stderr.

    Args:
        config: How much.
        bundle: What is damaged, and whose processes are killed; None to leave these out.
        seed: Of all that is drawn.
        progress: Show bars and lines.

    Returns:
        JSON types: ``date, machine, versions, seed`` and a key for each part, as the module's text names them.
    """
    document: dict[str, Any] = {"date": utc_now(), "machine": describe_machine(), "versions": describe_versions(), "seed": seed}

    def part(name: str, measure: Callable[[], Any]) -> None:
        document[name] = measure()
        if progress:
            print(faults_text({name: document[name]}), file=sys.stderr, flush=True)

    # Bundles first: they are opened in forks, which is safe as long as this process has no threads of a library.
    part("artifacts", lambda: _NO_BUNDLE if bundle is None else _artifacts(bundle, config.copies, seed, progress))
    groups = [*([name] for name in FAULTS), list(FAULTS)]
    part("faults", lambda: [inject(max(1, config.events // len(groups)), classes, seed, progress=progress) for classes in groups])
    part("soak", lambda: soak(config.soak, seed, workers=config.workers, progress=progress))
    part("failsafe", lambda: check_sequences(config.sequences, seed=seed, progress=progress))
    part("fuzz", lambda: fuzz(config.messages, seed, progress=progress))
    part("processes", lambda: _NO_BUNDLE if bundle is None else _processes(bundle, config.kills, progress))
    part("wall_clock", lambda: _NO_BUNDLE if bundle is None else _wall_clock(bundle, config.jumps))
    return document


def _artifacts(bundle: Path, copies: int, seed: int, progress: bool) -> dict[str, Any]:
    from benchmarks.fault_bundles import measure_artifacts

    return measure_artifacts(bundle, copies, seed, progress=progress)


def _processes(bundle: Path, kills: int, progress: bool) -> list[dict[str, Any]]:
    from benchmarks.fault_processes import measure_process_faults

    return measure_process_faults(bundle, kills, progress=progress)


def _wall_clock(bundle: Path, jumps: int) -> dict[str, Any]:
    from benchmarks.fault_processes import measure_clock_jumps

    return measure_clock_jumps(bundle, jumps)


def what_is_wrong(document: dict[str, Any]) -> list[str]:
    """Everything that happened and must not, in words."""
    wrong = [f"{row['class']}: {row[key]} {key}" for row in document.get("faults", ()) for key in ("unsafe", "crashes") if row[key]]
    wrong += [f"soak: {document['soak'][key]} {key}" for key in ("unsafe", "crashes", "inconsistent") if document.get("soak", {}).get(key)]
    if broken := document.get("failsafe", {}).get("broken"):
        wrong.append(f"failsafe: {broken} histories")
    wrong += [f"{row['decoder']}: {row['undeclared']} undeclared errors" for row in document.get("fuzz", ()) if row["undeclared"]]
    for name, part in _parts(document.get("artifacts")).items():
        wrong += [f"{name} bundles: {part['accepted']} accepted"] if part["accepted"] else []
    for row in _rows(document.get("processes")):
        if row["stopped_by"] != "done" or row["takeovers"] < row["faults"]:
            wrong.append(
                f"{row['kind']}: stopped by {row['stopped_by']} ({row['message']}), {row['takeovers']} takeovers of {row['faults']}"
            )
    if document.get("wall_clock", {}).get("same") is False:
        wrong.append("wall clock: other commands with jumps than without")
    return wrong


def _parts(artifacts: Any) -> dict[str, Any]:
    return {} if artifacts is None or "skipped" in artifacts else artifacts


def _rows(processes: Any) -> list[dict[str, Any]]:
    return processes if isinstance(processes, list) else []


def faults_text(document: dict[str, Any]) -> str:
    """For people: a line for every row that the document has."""
    lines = [f"{name}: left out ({part['skipped']})" for name, part in document.items() if isinstance(part, dict) and "skipped" in part]
    for name, part in _parts(document.get("artifacts")).items():
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in part["outcomes"].items())
        lines.append(f"{name + ' bundles':<34}{part['tried']:>9} tried  {part['accepted']} accepted ({outcomes})")
    for row in document.get("faults", ()):
        ends = ", ".join(f"{count} {end}" for end, count in row["ends"].items())
        lines.append(
            f"{row['class']:<34}{row['injected']:>9} faults  {row['unsafe']} unsafe  {row['crashes']} crashes  {row['commands']} commands; runs ended by: {ends}"
        )
    if found := document.get("soak"):
        lines.append(
            f"{'soak':<34}{found['faults']:>9} faults  {found['unsafe']} unsafe  {found['crashes']} crashes  {found['inconsistent']} inconsistent  "
            f"{found['ticks']} commands, {found['us_per_tick']:.0f} us of CPU each; memory grew by {found['memory_growth_bytes'] / 1e6:.2f} MB"
        )
    if found := document.get("failsafe"):
        lines.append(f"{'failsafe':<34}{found['sequences']:>9} histories  {found['broken']} broken  {found['events']} events")
    for row in document.get("fuzz", ()):
        first = f": {row['first'][0]}" if row["first"] else ""
        lines.append(
            f"{row['decoder']:<34}{row['messages']:>9} messages  {row['read']} read  {row['refused']} refused  {row['undeclared']} undeclared{first}"
        )
    for row in _rows(document.get("processes")):
        during, elsewhere = (f"{row[f'missed_{when}']} of {row[f'periods_{when}']}" for when in ("during", "elsewhere"))
        lines.append(
            f"{row['kind']:<34}{row['faults']:>9} faults  {row['takeovers']} takeovers  next chunk after {row['p50']:.0f} ms (max {row['max']:.0f})  "
            f"periods without a command: {during}, otherwise {elsewhere}"
        )
    if "same" in (found := document.get("wall_clock", {})):
        words = {True: "the same commands", False: "OTHER commands", None: "not compared: a step was missed in every try"}[found["same"]]
        lines.append(f"{'wall clock':<34}{found['jumps']:>9} jumps  {words}")
    return "\n".join(lines)


def run_faults(config: FaultsConfig, bundle: Path | None, *, out: Path | None, seed: int = 0) -> int:
    """The question `faults` of the verb `bench`."""
    document = measure_faults(config, bundle, seed=seed)
    wrong = what_is_wrong(document)
    if out is not None:
        write_json(out, document)
    print("ceiling: no unsafe command, no crash, no undeclared error, nothing hostile accepted, memory that does not grow\n")
    print(faults_text(document), end="\n\n")
    for words in wrong:
        print(f"WRONG  {words}", file=sys.stderr)
    print(json.dumps(document, allow_nan=False))
    return 1 if wrong else 0


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m benchmarks.faults`: the same, with all numbers to choose."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "bundle", type=Path, nargs="?", help="what is damaged, and whose processes are killed (default: leave these parts out)"
    )
    defaults = FaultsConfig()
    for name, what in (
        ("events", "faults in the loop, shared out among the classes"),
        ("messages", "damaged messages for each decoder"),
        ("sequences", "histories of the failsafe"),
        ("copies", "damaged bundles"),
        ("kills", "of the policy's process"),
        ("jumps", "of the wall clock"),
        ("workers", "processes that share the hours of the soak"),
    ):
        parser.add_argument(f"--{name}", type=int, default=getattr(defaults, name), help=f"{what} (default: %(default)s)")
    parser.add_argument("--soak-hours", type=float, default=defaults.soak.hours, help="of the robot's time (default: %(default)s)")
    parser.add_argument("--soak-policy-hz", type=float, default=defaults.soak.policy_rate_hz, help="of its policy (default: %(default)s)")
    parser.add_argument(
        "--soak-command-hz", type=float, default=defaults.soak.command_rate_hz, help="of its commands (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where the document is written")
    given = parser.parse_args(argv)
    try:
        soaked = SoakConfig(hours=given.soak_hours, policy_rate_hz=given.soak_policy_hz, command_rate_hz=given.soak_command_hz)
        counts = {name: getattr(given, name) for name in ("events", "messages", "sequences", "copies", "kills", "jumps", "workers")}
        return run_faults(FaultsConfig(soak=soaked, **counts), given.bundle, out=given.out, seed=given.seed)
    except ActletError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
