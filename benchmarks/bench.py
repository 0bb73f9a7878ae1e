"""The verb `bench`: measure policies, side by side.

    closed-loop   success on the same episodes, with intervals, and against the first policy
    latency       time of a decision, memory and size, all by turns in one run
    all           both, and with --out the report
    generalise    success on things that no demonstration showed, axis by axis (`benchmarks.generalisation`)
    service       the first policy served to many robots over a network, against the others on the robot (`benchmarks.service`)
    realtime      how late the control loop is, and how soon a killed policy answers again (`benchmarks.real_time`)
    faults        what comes of faults in loop, state machine, messages, bundles and processes, counted (`benchmarks.faults`); no policy is needed

A policy is the folder of a bundle, a student or a teacher, alone or as ``name=folder``; the first one is what the others
are compared with. A folder that `actlet demo` wrote stands for its four policies. The ceiling is printed first, then a
table, then one JSON document as the last line.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actlet.errors import CallerError
from actlet.provenance import utc_now
from actlet.storage import write_json
from benchmarks.closed_loop import ClosedLoopConfig, compare, run_episodes, summarise
from benchmarks.generalisation import AXES, GeneralisationConfig, axes_table, measure_generalisation, write_generalisation
from benchmarks.latency import LatencyConfig, measure_latency
from benchmarks.machine import describe_machine, describe_versions
from benchmarks.policies import Contender, parse_contenders
from benchmarks.results import make_results, write_results
from benchmarks.service import run_service
from benchmarks.tables import closed_loop_table, latency_table, results_table
from runtime.bundle import load_bundle

__all__ = ["add_arguments", "bench_closed_loop", "run"]

_OF_POLICIES, _OF_BUNDLES = ("closed-loop", "latency", "all", "generalise", "service"), ("realtime", "faults")
PARENTS = {"student-float": "teacher", "student-int8": "student-float", "student-int4": "student-float"}


def bench_closed_loop(contenders: Sequence[Contender], config: ClosedLoopConfig) -> dict[str, dict[str, Any]]:
    """Name -> what `summarise` says, with ``compared`` for all that have a parent among them (or else the first policy)."""
    runs = {contender.name: run_episodes(contender, config) for contender in contenders}
    return with_comparisons(runs)


def with_comparisons(runs: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> dict[str, dict[str, Any]]:
    """Summaries of all runs, each compared with its parent; the first has none."""
    names = list(runs)
    found = {name: summarise(run) for name, run in runs.items()}
    for name in names[1:]:
        parent = PARENTS.get(name, names[0])
        parent = parent if parent in runs else names[0]
        found[name]["compared"] = compare(runs[name]["episodes"], runs[parent]["episodes"], parent)
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `actlet bench`."""
    closed, latency = ClosedLoopConfig(), LatencyConfig()
    parser.add_argument("question", choices=(*_OF_POLICIES, *_OF_BUNDLES), help="what to measure")
    parser.add_argument(
        "policies",
        nargs="*",
        metavar="POLICY",
        help="folder, name=folder, or a demo's folder; for `realtime` and `faults` the folder of one bundle",
    )
    parser.add_argument("--suite", default=closed.suite, help="simulated suite (default: %(default)s); `generalise` has its own")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="only these tasks (default: all of the suite)")
    parser.add_argument(
        "--episodes", type=int, help=f"episodes of every policy, on every axis (default: {closed.episodes}; for `service` 42)"
    )
    parser.add_argument("--wrong-episodes", type=int, help="episodes with another instruction (default: as many)")
    parser.add_argument("--workers", type=int, help="processes for episodes (default: one per core)")
    parser.add_argument("--rounds", type=int, default=latency.rounds, help="turns of every policy for latency (default: %(default)s)")
    parser.add_argument(
        "--axes", nargs="+", metavar="AXIS", choices=AXES, help=f"for `generalise`: some of {', '.join(AXES)} (default: all)"
    )
    parser.add_argument("--robots", type=int, nargs="+", metavar="R", help="service: robots that ask at once (default: 1 2 4 8 16)")
    parser.add_argument("--delays-ms", type=float, nargs="+", metavar="MS", help="service: network delays, one way (default: 0 10 50 100)")
    parser.add_argument("--losses", type=float, nargs="+", metavar="P", help="service: shares of packets that are lost (default: 0 0.01)")
    parser.add_argument("--quick", action="store_true", help="service, realtime, faults: a few minutes, which say nothing about quality")
    parser.add_argument(
        "--soak-hours",
        type=float,
        metavar="H",
        help="faults: hours of the robot's time that are run through with a fault now and then (default: 0.05)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="also write the JSON document to this file, and for `all` report.html beside it; for `generalise` a folder, "
        "where finished parts are kept, so that the same command goes on after Ctrl-C",
    )
    parser.epilog = """\
examples:
  actlet bench all demo
  actlet bench latency bundles/float bundles/int8
  actlet bench closed-loop old=bundles/a new=bundles/b --episodes 300 --tasks put
  actlet bench generalise teacher=runs/teacher int8=bundles/int8 --out runs/axes
  actlet bench generalise bundles/int8 --axes seen instructions --episodes 300
  actlet bench service teacher=checkpoints/teacher student=bundles/int8 --out service.json
  actlet bench service demo --robots 1 8 --delays-ms 20 --losses 0 --episodes 12
  actlet bench realtime bundles/int8 --out runtime.json
  actlet bench faults bundles/int8 --out faults.json           half an hour; --quick: a few minutes
  actlet bench faults bundles/int8 --soak-hours 24             a day of the robot's time
"""


def run(arguments: argparse.Namespace) -> int:
    """The verb `bench`."""
    if arguments.question in _OF_BUNDLES:
        return _run_on_bundle(arguments)
    if arguments.soak_hours is not None:
        raise CallerError(f"--soak-hours is for `actlet bench faults`, not for {arguments.question!r}: leave it out.")
    if not arguments.policies:
        raise CallerError(f"bench {arguments.question}: no policy was given, expected the folder of one at least.")
    contenders = parse_contenders(arguments.policies)
    if arguments.question == "generalise":
        return _generalise(arguments, contenders)
    if arguments.axes:
        raise CallerError(f"--axes is for `actlet bench generalise`, not for {arguments.question!r}: leave it out.")
    if arguments.question == "service":
        return run_service(arguments, contenders)
    closed_loop = latency = None
    if arguments.question != "latency":
        episodes = ClosedLoopConfig.episodes if arguments.episodes is None else arguments.episodes
        wrong = episodes if arguments.wrong_episodes is None else arguments.wrong_episodes
        config = ClosedLoopConfig(
            suite=arguments.suite,
            tasks=tuple(arguments.tasks) if arguments.tasks else None,
            episodes=episodes,
            wrong_episodes=wrong,
            workers=arguments.workers,
        )
        closed_loop = bench_closed_loop(contenders, config)
    if arguments.question != "closed-loop":
        latency = measure_latency(contenders, LatencyConfig(rounds=arguments.rounds))
    document = _document(arguments, closed_loop, latency)
    _print(document, closed_loop, latency)
    if arguments.out is not None:
        _write(arguments, document)
    print(json.dumps(document, allow_nan=False))
    return 0


def _run_on_bundle(arguments: argparse.Namespace) -> int:
    """The questions that a bundle is all that is needed for, or not even that."""
    question, places = arguments.question, arguments.policies
    if len(places) > 1 or (question == "realtime" and not places):
        raise CallerError(
            f"bench {question}: {len(places)} policies, expected the folder of one bundle{' or none' * (question == 'faults')}."
        )
    unused = [
        name
        for name in ("tasks", "episodes", "wrong_episodes", "workers", "axes", "robots", "delays_ms", "losses")
        if getattr(arguments, name)
    ]
    if question == "realtime" and arguments.soak_hours is not None:
        unused.append("soak_hours")
    if unused:
        flags = ", ".join("--" + name.replace("_", "-") for name in unused)
        raise CallerError(f"bench {question}: {flags} would have no effect: leave it out.")
    bundle = Path(places[0]) if places else None
    if bundle is not None:
        load_bundle(bundle)  # First: a wrong path should be seen at once.
    if question == "realtime":
        from benchmarks.real_time import run_real_time

        assert bundle is not None
        shorter = {"seconds": 3.0, "rounds": 1, "kills": 2} if arguments.quick else {}
        return run_real_time(bundle, out=arguments.out, **shorter)
    from benchmarks.fault_loop import SoakConfig
    from benchmarks.faults import FaultsConfig, run_faults

    soaked = {} if arguments.soak_hours is None else {"soak": SoakConfig(hours=arguments.soak_hours)}
    return run_faults(FaultsConfig.quick(**soaked) if arguments.quick else FaultsConfig(**soaked), bundle, out=arguments.out)


def _generalise(arguments: argparse.Namespace, contenders: Sequence[Contender]) -> int:
    config = GeneralisationConfig(
        axes=tuple(arguments.axes or AXES),
        episodes=ClosedLoopConfig.episodes if arguments.episodes is None else arguments.episodes,
        tasks=tuple(arguments.tasks) if arguments.tasks else None,
        workers=arguments.workers,
    )
    document = measure_generalisation(contenders, config, out=arguments.out)
    print("ceiling: a success of 100 % on every axis\n")
    print(axes_table(document["policies"]), end="\n\n")
    if arguments.out is not None:
        write_generalisation(arguments.out, document)
    print(json.dumps({key: value for key, value in document.items() if key != "episodes"}, allow_nan=False))
    return 0


def _document(arguments: argparse.Namespace, closed_loop: Any, latency: Any) -> dict[str, Any]:
    if closed_loop is not None and latency is not None:
        skipped = {"skipped": "not part of `actlet bench`; `actlet demo` trains on recordings"}
        return make_results(suite=arguments.suite, latency=latency, closed_loop=closed_loop, real_data=skipped)
    if latency is not None:
        return dict(latency)
    assert closed_loop is not None
    about = {"date": utc_now(), "machine": describe_machine(), "versions": describe_versions(), "suite": arguments.suite}
    return {**about, "policies": [{"name": name, **row} for name, row in closed_loop.items()]}


def _print(document: Mapping[str, Any], closed_loop: Any, latency: Any) -> None:
    if latency is not None:
        ceiling = latency["ceiling_gflops"]
        print(f"ceiling: {ceiling['median']:.0f} GFLOP/s median, {ceiling['best']:.0f} best (float32 product, one thread, this run)\n")
    if closed_loop is not None and latency is not None:
        print(results_table(document["policies"]))
    elif latency is not None:
        print(latency_table(latency["policies"]))
    else:
        print("ceiling: a success of 100 %, and 0 % when told something else\n")
        print(closed_loop_table(closed_loop))
    print()


def _write(arguments: argparse.Namespace, document: Mapping[str, Any]) -> None:
    if arguments.question != "all":
        write_json(arguments.out, document)
        return
    from benchmarks.report import write_report

    write_results(arguments.out, document)
    write_report(arguments.out.with_name("report.html"), document)
