"""The verb `demo`: the whole chain on the simulated table, and what it kept and lost.

    demonstrations ─ (teacher) ─ student ─ float ─ int8, int4 ─ control loop ─ episodes, latency, pictures ─ report.html

Every stage writes one whole file or folder below ``--out``. After Ctrl-C, or with other settings, the same command does
only what is not done yet (`benchmarks.chain`). The teacher is the one that comes with actlet, or with ``--from-scratch``
one that is trained here, which takes hours. With recordings of a real robot a second student is trained on them, and its
action error on held-out episodes is reported.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actlet.errors import CallerError
from actlet.storage import read_json
from benchmarks import stages
from benchmarks.bench import with_comparisons
from benchmarks.chain import Chain
from benchmarks.policies import Contender
from benchmarks.report import write_report
from benchmarks.results import make_results, write_results
from benchmarks.stages import DemoConfig
from benchmarks.tables import results_table
from benchmarks.thresholds import judge
from benchmarks.units import as_duration
from distill import SHIPPED, shipped_teacher

__all__ = ["add_arguments", "run", "run_demo"]

DEFAULT_DATA = Path("../shared/data/droid46_lerobot_v3")
STUDENTS = {"student-float": "float", "student-int8": "int8", "student-int4": "int4"}


def run_demo(out: Path, config: DemoConfig | None = None, *, from_scratch: bool = False, data: Path | None = None) -> dict[str, Any]:
    """Run the chain and write ``out/results.json`` and ``out/report.html``.

    Args:
        out: The demo's folder; what is done there already is kept if it still fits.
        config: Sizes.
        from_scratch: Train the teacher too.
        data: Recordings of a real robot (a LeRobotDataset), or None.

    Returns:
        The results document.

    Raises:
        ActletError: A stage failed; finished stages are kept.
    """
    config = config or DemoConfig()
    chain = Chain(out, total=12 + 2 * from_scratch + (data is not None))
    teacher = _teacher(chain, config) if from_scratch else shipped_teacher()
    students = _students(chain, config, teacher)
    contenders = [Contender("teacher", teacher)] + [Contender(name, students[folder]) for name, folder in STUDENTS.items()]
    loop = chain.stage(
        "control.json",
        "drive the simulated arm with the int8 student at its own rate",
        lambda place: stages.drive_arm(place, config, students["int8"]),
        arguments={"episodes": config.control_episodes},
        inputs={"bundle": students["int8"]},
    )
    runs = {contender.name: _judge(chain, config, contender) for contender in contenders}
    latency = chain.stage(
        "latency.json",
        "time all policies by turns",
        lambda place: stages.time_policies(place, config, contenders),
        arguments=dataclasses.asdict(config.latency),
        inputs={contender.name: contender.path for contender in contenders},
    )
    pictures = chain.stage(
        "pictures",
        "take pictures of the int8 student",
        lambda place: stages.picture_policy(place, config, students["int8"]),
        arguments={"suite": config.suite, "quick": config.quick},
        inputs={"bundle": students["int8"]},
    )
    real = (
        _real(chain, config, data)
        if data is not None
        else {"skipped": f"no recordings: {DEFAULT_DATA} is not there, and --data was not given"}
    )
    results = make_results(
        suite=config.suite,
        latency=read_json(latency),
        closed_loop=with_comparisons(runs),
        real_data=real,
        quick=config.quick,
        from_scratch=from_scratch,
        control_loop=read_json(loop),
        stages=chain.records,
    )
    places = {"teacher": "teacher" if from_scratch else SHIPPED, **STUDENTS}
    for policy in results["policies"]:
        policy["path"] = places[policy["name"]]
    results["thresholds"] = [dataclasses.asdict(threshold) for threshold in judge(results)]
    write_results(out / "results.json", results)
    write_report(out / "report.html", results, pictures=pictures)
    return results


def _teacher(chain: Chain, config: DemoConfig) -> Path:
    data = chain.stage(
        "teacher_demonstrations",
        f"record {config.teacher_demonstrations} demonstrations for the teacher",
        lambda place: stages.make_demonstrations(place, config, episodes=config.teacher_demonstrations, run=1),
        arguments={"suite": config.suite, "episodes": config.teacher_demonstrations, "run": 1},
        inputs={},
    )
    return chain.stage(
        "teacher",
        "train the teacher",
        lambda place: stages.make_teacher(place, config, data),
        arguments=dataclasses.asdict(config.teach),
        inputs={"data": data},
    )


def _students(chain: Chain, config: DemoConfig, teacher: Path) -> dict[str, Path]:
    """Bundles by the names of their folders."""
    data = chain.stage(
        "demonstrations",
        f"record {config.demonstrations} demonstrations",
        lambda place: stages.make_demonstrations(place, config, episodes=config.demonstrations, run=0),
        arguments={"suite": config.suite, "episodes": config.demonstrations, "run": 0},
        inputs={},
    )
    student = chain.stage(
        "student",
        "distill the student",
        lambda place: stages.make_student(place, config, data, teacher),
        arguments={"suite": config.suite, **dataclasses.asdict(config.train)},
        inputs={"data": data, "teacher": teacher},
    )
    bundles = {
        "float": chain.stage(
            "float",
            "export the student to ONNX",
            lambda place: stages.export_float(place, student),
            arguments={},
            inputs={"student": student},
        )
    }
    for precision in ("int8", "int4"):
        bundles[precision] = chain.stage(
            precision,
            f"quantize the student to {precision}",
            functools.partial(stages.quantize_student, bundle=bundles["float"], precision=precision, data=data),
            arguments={"precision": precision},
            inputs={"bundle": bundles["float"], "data": data},
        )
    return bundles


def _judge(chain: Chain, config: DemoConfig, contender: Contender) -> dict[str, Any]:
    wrong = config.teacher_wrong_episodes if contender.name == "teacher" else config.wrong_episodes
    place = chain.stage(
        f"closed_loop/{contender.name}.json",
        f"run {config.test_episodes} + {wrong} episodes with {contender.name}",
        lambda place: stages.judge_policy(place, config, contender),
        arguments={"suite": config.suite, "episodes": config.test_episodes, "wrong_episodes": wrong},
        inputs={"policy": contender.path},
    )
    return dict(read_json(place))


def _real(chain: Chain, config: DemoConfig, data: Path) -> dict[str, Any]:
    student = chain.stage(
        "real_student",
        f"learn from recordings of a real robot ({data.name})",
        lambda place: stages.learn_from_recordings(place, config, data),
        arguments=dataclasses.asdict(config.real),
        inputs={"data": data},
    )
    return stages.real_data_entry(student, data, config)


def _print(out: Path, results: Mapping[str, Any]) -> None:
    ceiling = results["ceiling_gflops"]
    print(f"\nceiling: {ceiling['median']:.0f} GFLOP/s (float32 product, one thread, this run)\n")
    print(results_table(results["policies"]))
    print("\nA quick run: the chain works; its figures say nothing about quality.\n" if results["quick"] else "")
    for threshold in results["thresholds"]:
        mark = "reached" if threshold["reached"] else "MISSED "
        print(f"{mark}  {threshold['claim']}: {threshold['got']} (asked: {threshold['asked']})")
    if "summary" in results["real_data"]:
        print(f"\nreal robot: {results['real_data']['summary']}")
    else:
        print(f"\nreal robot: skipped, {results['real_data']['skipped']}")
    spent = results["stages"]
    wall, cpu = as_duration(sum(stage["wall_s"] for stage in spent)), as_duration(sum(stage["cpu_s"] for stage in spent))
    print(f"\n{wall} of wall time, {cpu} of CPU time.\n\n  {out / 'report.html'}\n  {out / 'results.json'}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `actlet demo`."""
    default = DemoConfig()
    parser.add_argument("--out", type=Path, default=Path("demo"), help="the demo's folder (default: %(default)s)")
    parser.add_argument("--from-scratch", action="store_true", help="train the teacher too (hours)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows in minutes that the chain works, and nothing about quality")
    parser.add_argument("--episodes", type=int, help=f"episodes that every policy is judged on (default: {default.test_episodes})")
    parser.add_argument("--data", help=f"recordings of a real robot, a LeRobotDataset, or 'none' (default: {DEFAULT_DATA} if it is there)")
    parser.epilog = """\
Stages that are done are not done again; remove the folder to start afresh.

examples:
  actlet demo
  actlet demo --quick --out demo-quick
  actlet demo --from-scratch --out demo-scratch
"""


def run(arguments: argparse.Namespace) -> int:
    """The verb `demo`."""
    config = DemoConfig.tiny() if arguments.quick else DemoConfig()
    if arguments.episodes is not None:
        wrong = min(config.wrong_episodes, arguments.episodes), min(config.teacher_wrong_episodes, arguments.episodes)
        config = dataclasses.replace(config, test_episodes=arguments.episodes, wrong_episodes=wrong[0], teacher_wrong_episodes=wrong[1])
    results = run_demo(arguments.out, config, from_scratch=arguments.from_scratch, data=_recordings(arguments.data))
    _print(arguments.out, results)
    sys.stdout.flush()
    return 0


def _recordings(asked: str | None) -> Path | None:
    if asked is None:
        return DEFAULT_DATA if DEFAULT_DATA.is_dir() else None
    if asked == "none":
        return None
    if not Path(asked).is_dir():
        raise CallerError(f"--data {asked}: there is no such folder. Give a LeRobotDataset's folder, or 'none'.")
    return Path(asked)
