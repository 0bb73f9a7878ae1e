"""Step through a recorded run: `actlet replay RUN.mcap`. Shows what was seen, answered, limited and sent; draws it; asks another policy; makes a dataset of it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from actlet.errors import CallerError
from runtime.opening import open_policy
from runtime.recording import Recording, open_recording, recover
from runtime.replay_compare import compare_policy
from runtime.replay_episodes import recorded_episodes
from runtime.replay_steps import steps_of, summary_rows, table_lines
from runtime.rerun_view import show_in_rerun

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `actlet replay`."""
    parser.add_argument("recording", type=Path, help="a file of actlet run --record; one that was cut is read up to its last whole chunk")
    which = parser.add_argument_group("which steps are shown")
    which.add_argument("--from", type=int, dest="first", metavar="STEP", help="the first (default: the run's)")
    which.add_argument("--to", type=int, dest="last", metavar="STEP", help="the last (default: the run's)")
    which.add_argument("--step", type=int, help="this one alone")
    parser.add_argument("--json", action="store_true", help="one JSON document a step, or one for --compare, in place of tables")
    parser.add_argument("--summary", action="store_true", help="what is to be said of the whole run, and no steps")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw time lines of every action into a .png or .svg")
    parser.add_argument(
        "--compare", metavar="POLICY", help="show how the answers of a bundle, a checkpoint or a server differ on the same observations"
    )
    parser.add_argument("--rerun", nargs="?", const="", metavar="FILE", help="show the run in Rerun's viewer, or write a .rrd for it")
    parser.add_argument("--recover", type=Path, metavar="FILE", help="write a whole .mcap of what can be read of a cut one")
    parser.add_argument(
        "--to-dataset", type=Path, metavar="FOLDER", help="make a LeRobotDataset of it: its steps are what was seen and then sent"
    )
    parser.add_argument(
        "--success", choices=("yes", "no"), help="whether the instruction was carried out, for --to-dataset (default: what the robot said)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset that is there")
    parser.epilog = """\
examples:
  actlet replay runs/2026-11-28T10-08-00Z.mcap --from 40 --to 60    a table: seen, answered, sent, and due where it was something else
  actlet replay runs/monday.mcap --plot monday.png                  time lines of every action, with failsafe and chunks
  actlet replay runs/monday.mcap --compare bundles/int4             what another bundle would have answered
  actlet replay runs/monday.mcap --to-dataset data/monday           then: actlet distill --data data/table --rollouts data/monday ...
  actlet replay runs/monday.mcap --json --step 17 | jq .commands

in the table "used 4.1 ms -1" is an answer that took 4.1 ms and is to what was seen one step before; "looked" was seen, and not asked about
"""


def run(arguments: argparse.Namespace) -> int:
    """The verb `replay`."""
    if arguments.recover is not None:
        found = recover(arguments.recording, arguments.recover)
        print(f"{arguments.recover}: {sum(found.present.values())} records")
        return 0
    found = open_recording(arguments.recording)
    asked = [arguments.plot, arguments.compare, arguments.rerun, arguments.to_dataset]
    if arguments.plot is not None:
        arguments.draw(found, arguments.plot)
        print(arguments.plot)
    if arguments.rerun is not None:
        show_in_rerun(found, Path(arguments.rerun) if arguments.rerun else None)
    if arguments.to_dataset is not None:
        _to_dataset(found, arguments)
    if arguments.compare is not None:
        comparison = compare_policy(found, open_policy(arguments.compare))
        print(json.dumps(comparison.to_dict()) if arguments.json else "\n".join(comparison.lines()))
    if all(one is None for one in asked):
        _show(found, arguments)
    return 0


def _show(found: Recording, arguments: argparse.Namespace) -> None:
    steps = steps_of(found)
    first, last = (arguments.step, arguments.step) if arguments.step is not None else (arguments.first, arguments.last)
    chosen = [step for step in steps if (first is None or step.step >= first) and (last is None or step.step <= last)]
    if not chosen and not arguments.summary:
        there = f"{steps[0].step} .. {steps[-1].step}" if steps else "none"
        raise CallerError(f"{found.path}: no step from {first} to {last}; there are {there}.")
    if arguments.json and arguments.summary:
        print(json.dumps(dict(summary_rows(found))))
    elif arguments.json:
        for step in chosen:
            print(json.dumps(step.to_dict()))
    else:
        for label, value in summary_rows(found):
            print(f"{label:<12} {value}")
        if not arguments.summary:
            print()
            print("\n".join(table_lines(found, chosen)))


def _to_dataset(found: Recording, arguments: argparse.Namespace) -> None:
    success = None if arguments.success is None else arguments.success == "yes"
    episodes = recorded_episodes(found, success)
    provenance: dict[str, Any] = {"recorded": found.about["created"], "about": found.about["about"], "pictures": found.about["pictures"]}
    arguments.write_dataset(arguments.to_dataset, found.spec, episodes, provenance=provenance, overwrite=arguments.overwrite)
    steps = sum(len(episode.action) for episode in episodes)
    left = len({row.step for row in found.commands} | {row.step for row in found.observations}) - steps
    count = f"{len(episodes)} episode{'s' if len(episodes) != 1 else ''}"
    print(f"{arguments.to_dataset}: {count}, {steps} steps; {left} of the run's steps left out")
