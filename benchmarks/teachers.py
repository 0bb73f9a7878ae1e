"""What a teacher's training is worth: RT-2's ablation at this scale, and what fewer bits and plans cost.

    recipe          pretrained parts   questions of the web first   in every batch after that
    scratch         none               no                           robot
    robot-only      yes                yes                          robot
    co-fine-tuned   yes                yes                          robot and web

(Zitkovich et al. 2023, "RT-2", section 4.3; a planning teacher is co-fine-tuned and says its plan in half of the robot's rows.) Each is
judged in closed loop on every axis of `benchmarks.generalisation`, by held-out questions about pictures, and by how often it decides
with its language model in float32, 8 and 4 bits, with and without a plan.

    python -m benchmarks.teachers --out runs/teachers                                trains all four: minutes on a GPU, hours without
    python -m benchmarks.teachers --out runs/teachers --teacher co-fine-tuned=DIR    measures one that is trained

Intervals are over episodes; one training run each says nothing of how runs differ. The recipes have the same number of updates, so the
co-fine-tuned one sees a quarter less of the robot, and the one from scratch has no stage on the web.

Finished parts are kept below --out, and the same command goes on after Ctrl-C. The result, teachers.json, is what README.md shows once it is
copied to benchmarks/results.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actlet.errors import ActletError, CallerError
from actlet.protocols import Policy
from actlet.provenance import utc_now
from actlet.storage import read_json, write_json
from benchmarks.chain import Chain
from benchmarks.generalisation import AXES, summarise_axis
from benchmarks.latency import LatencyConfig, measure_by_turns
from benchmarks.machine import describe_machine, describe_versions
from benchmarks.policies import Sample, samples_for
from benchmarks.tables import markdown_table, text_table
from benchmarks.units import as_percent
from episodes.rollout import evaluate
from episodes.seeds import REPORT_SEED_START, TUNING_SEED_START
from episodes.suites import make_suite

__all__ = [
    "RECIPES",
    "TeachersConfig",
    "compact_service",
    "decoding_rows",
    "measure_teachers",
    "open_decoding",
    "quality_row",
    "teachers_table",
]

# recipe -> what of `TeachConfig` differs.
RECIPES: dict[str, dict[str, Any]] = {
    "scratch": {"web": (), "web_steps": 0},
    "robot-only": {"web_share": 0.0},
    "co-fine-tuned": {},
    "co-fine-tuned, planning": {"plan_share": 0.5},
}
DECODINGS = (("fp32", False), ("int8", False), ("nf4", False), ("fp32", True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeachersConfig:
    """How the teachers are trained, and on which episodes they are judged. The defaults are those of the figures in benchmarks/results."""

    demonstrations: int = 1800
    """Episodes of ``tabletop-varied``, run 3."""
    web_steps: int = 250
    vision_steps: int = 350
    steps: int = 400
    batch_size: int = 512
    episodes: int = 126
    """On every axis."""
    decisions: int = 30
    """Turns of every way of decoding."""
    device: str = "cpu"
    """Where teachers compute in closed loop, as torch names it; training takes a GPU where there is one."""
    batch: int = 16
    """Episodes in lockstep."""


def measure_teachers(out: Path, config: TeachersConfig | None = None, *, trained: Mapping[str, Path] | None = None) -> dict[str, Any]:
    """Train the recipes, or take those that are trained, and measure them.

    Args:
        out: A folder that keeps every finished part.
        config: How.
        trained: Recipe -> a teacher's folder; only these are measured then.

    Returns:
        JSON types: ``date, machine, versions, config, rows``; see `quality_row` and `decoding_rows`.
    """
    config = config or TeachersConfig()
    folders = dict(trained or {})
    chain = Chain(out, total=2 + (2 if trained else 3) * len(trained or RECIPES))
    if not folders:
        data = chain.stage(
            "data", "demonstrations", functools.partial(_collect, config), arguments={"episodes": config.demonstrations}, inputs={}
        )
        for recipe in RECIPES:
            name = recipe.replace(", ", "-")
            arguments = {"recipe": recipe, **_settings(config, recipe)}
            work = functools.partial(_teach, data, config, recipe)
            folders[recipe] = chain.stage(name, f"teach: {recipe}", work, arguments=arguments, inputs={"data": data})
    rows = []
    for recipe, folder in folders.items():
        for plan in (False, True) if "planning" in recipe else (False,):
            name = f"episodes-{recipe.replace(', ', '-')}{'-plan' if plan else ''}.json"
            axes = ("seen",) if plan else tuple(AXES)
            work = functools.partial(_play, folder, plan, axes, config)
            place = chain.stage(
                name, f"episodes: {recipe}", work, arguments={"episodes": config.episodes, "axes": axes}, inputs={"teacher": folder}
            )
            rows.append(quality_row(recipe, folder, read_json(place), plan=plan))
    last = folders[list(folders)[-1]]
    rows += decoding_rows(last, list(folders)[-1], config.decisions)
    about = {"date": utc_now(), "machine": describe_machine(), "versions": describe_versions()}
    about["conditions"] = _conditions(about, config)
    return {**about, "config": dataclasses.asdict(config), "rows": rows}


def quality_row(recipe: str, folder: Path, episodes: Mapping[str, Sequence[Mapping[str, Any]]], *, plan: bool) -> dict[str, Any]:
    """How good one teacher is.

    Args:
        recipe: A key of `RECIPES`.
        folder: The teacher's; its card says what it answers of the held-out questions.
        episodes: Axis -> every result as plain JSON, from the first report seed on.
        plan: Whether it said its plans.

    Returns:
        ``teacher, recipe, plan, load, seen_success, seen_success_ci95, unseen_success`` (axis -> rate), ``unseen_success_ci95, episodes`` (of each
        axis), ``per_kind, vqa_accuracy, vqa_accuracy_before`` (after the web alone), and ``outcomes``: axis -> "1" or "0" for each seed.
    """
    found = {axis: summarise_axis(results) for axis, results in episodes.items()}
    config = read_json(folder / "config.json")
    score = config["lineage"].get("held_out_questions", {}).get("answered right", {})
    unseen = [axis for axis in found if axis != "seen"]
    return {
        "teacher": f"rt2, {config['architecture']['layers']} layers",
        "recipe": recipe,
        "plan": plan,
        "load": "fp32",
        "seen_success": found["seen"]["success"],
        "seen_success_ci95": found["seen"]["success_ci95"],
        "unseen_success": {axis: found[axis]["success"] for axis in unseen},
        "unseen_success_ci95": {axis: found[axis]["success_ci95"] for axis in unseen},
        "episodes": found["seen"]["episodes"],
        "per_kind": {axis: {kind: row["success"] for kind, row in found[axis]["per_kind"].items()} for axis in unseen},
        "vqa_accuracy": score.get("at the end"),
        "vqa_accuracy_before": score.get("after the web alone"),
        "outcomes": {axis: "".join(str(int(bool(result["success"]))) for result in results) for axis, results in episodes.items()},
    }


def decoding_rows(folder: Path, recipe: str, decisions: int) -> list[dict[str, Any]]:
    """How often a teacher decides, and in how much memory: every precision, and a plan, by turns in one run, one thread on a CPU.

    Returns:
        For each ``teacher, recipe, plan, load, decision_rate_hz`` (1 / p50), ``latency_ms, latency_cpu_ms, decisions, peak_memory_bytes`` (resident
        memory of a fresh process that has answered five times; while it loads, before weights are rounded, it has more).
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    names = {f"{load}{', plan' if plan else ''}": (load, plan) for load, plan in DECODINGS}
    policies: dict[str, Policy] = {name: open_decoding(folder, *how) for name, how in names.items()}
    samples = _table_samples()
    timings, _ = measure_by_turns(policies, samples, LatencyConfig(rounds=decisions, calls=1))
    torch.set_num_threads(threads)
    layers = read_json(folder / "config.json")["architecture"]["layers"]
    rows = []
    for name, (load, plan) in names.items():
        summary = timings[name].summary()
        rows.append(
            {
                "teacher": f"rt2, {layers} layers",
                "recipe": recipe,
                "plan": plan,
                "load": load,
                **{key: summary[key] for key in ("decision_rate_hz", "latency_ms", "latency_cpu_ms")},
                "decisions": decisions,
                "peak_memory_bytes": _peak_memory(folder, load, plan),
            }
        )
    return rows


def compact_service(document: Mapping[str, Any], conditions: str = "") -> dict[str, Any]:
    """What `actlet bench service --out FILE` wrote, without every single latency and episode.

    Returns:
        ``date, machine, versions, conditions`` (for people), ``run`` (how it was measured), ``rows`` (robots, delay_ms, loss, rates, latency, success),
        ``late`` (success by lateness) and ``on_board``: the best way to run each policy on the robot.
    """
    rows = [
        {
            **{
                key: row[key]
                for key in ("robots", "delay_ms", "loss", "decision_rate_hz", "total_rate_hz", "batch_mean", "server_cpu_ms_per_decision")
            },
            "latency_p50_ms": row["latency_ms"]["p50"],
            "latency_p99_ms": row["latency_ms"]["p99"],
            **{key: row[key] for key in ("late", "success", "success_ci95", "episodes")},
        }
        for row in document["rows"]
    ]
    best: dict[str, dict[str, Any]] = {}
    for row in document["on_board"]:
        if row["policy"] not in best or row["success"] > best[row["policy"]]["success"]:
            best[row["policy"]] = {**row, "latency_p50_ms": row["latency_ms"]["p50"]}
    about = {key: document[key] for key in ("date", "machine", "versions")}
    return {
        **about,
        "conditions": conditions,
        "run": document["conditions"],
        "rows": rows,
        "late": document["late"],
        "on_board": list(best.values()),
    }


def open_decoding(folder: str | Path, load: str, plan: bool, device: str = "cpu") -> Any:
    """A teacher that decodes in one way."""
    from distill.teacher_checkpoint import load_teacher
    from distill.teacher_config import Decoding

    teacher = load_teacher(folder, load=load, device=device)
    teacher.decoding = Decoding(plan=plan)
    return teacher


def teachers_table(rows: Sequence[Mapping[str, Any]], *, markdown: bool = False) -> str:
    """One row a teacher, then one a way of decoding."""
    table = markdown_table if markdown else text_table
    judged, timed = [row for row in rows if "seen_success" in row], [row for row in rows if "decision_rate_hz" in row]

    def cell(row: Mapping[str, Any], axis: str) -> str:
        rate = row["seen_success"] if axis == "seen" else row["unseen_success"].get(axis)
        interval = row["seen_success_ci95"] if axis == "seen" else row["unseen_success_ci95"].get(axis)
        return "" if rate is None else f"{as_percent(rate)} [{100 * interval[0]:.0f}, {100 * interval[1]:.0f}]"

    def share(value: float | None) -> str:
        return "" if value is None else as_percent(value)

    quality = table(
        ["recipe", "plan", *AXES, "questions", "before"],
        [
            [
                r["recipe"],
                "yes" if r["plan"] else "",
                *(cell(r, axis) for axis in AXES),
                share(r["vqa_accuracy"]),
                share(r["vqa_accuracy_before"]),
            ]
            for r in judged
        ],
    )
    speed = table(
        ["language model in", "plan", "decisions/s", "p50", "p99", "memory"],
        [
            [
                r["load"],
                "yes" if r["plan"] else "",
                f"{r['decision_rate_hz']:.2f}",
                *(f"{r['latency_ms'][key]:.0f} ms" for key in ("p50", "p99")),
                f"{r['peak_memory_bytes'] / 1e6:.0f} MB",
            ]
            for r in timed
        ],
    )
    return f"{quality}\n\n{speed}"


def _conditions(about: Mapping[str, Any], config: TeachersConfig) -> str:
    machine, versions = about["machine"], about["versions"]
    return (
        f"{about['date'][:10]}, {machine['cpu']}, {machine['cores_usable']} cores, GPUs {machine['gpus'] or 'none'}, Python {versions['python']}, "
        f"torch {versions.get('torch', '–')}. {config.episodes} episodes an axis, the same seeds for all, 95 % Wilson intervals; one training run each."
    )


def _collect(config: TeachersConfig, place: Path) -> None:
    from episodes.collect import collect

    collect("tabletop-varied", place, config.demonstrations, seed=3)


def _settings(config: TeachersConfig, recipe: str) -> dict[str, Any]:
    """All that a recipe's training depends on, as JSON types."""
    settings: dict[str, Any] = {
        "web": ("easy-vqa",),
        "web_steps": config.web_steps,
        "vision_steps": config.vision_steps,
        "steps": config.steps,
        "batch_size": config.batch_size,
        "vision_learning_rate": 1.6e-3,
        "learning_rate": 1e-3,
        "pretrained": recipe != "scratch",
    }
    return settings | RECIPES[recipe]


def _teach(data: Path, config: TeachersConfig, recipe: str, place: Path) -> None:
    from distill.teach import TeachConfig, teach
    from distill.teacher_config import TeacherConfig

    settings = _settings(config, recipe)
    teach(data, place, TeachConfig(architecture=TeacherConfig(pretrained=settings.pop("pretrained")), **settings))


def _play(folder: Path, plan: bool, axes: Sequence[str], config: TeachersConfig, place: Path) -> None:
    factory = functools.partial(open_decoding, str(folder), "fp32", plan, config.device)
    seeds = range(REPORT_SEED_START, REPORT_SEED_START + config.episodes)
    found = {axis: [result.to_dict() for result in evaluate(factory, AXES[axis], seeds, batch=config.batch)] for axis in axes}
    write_json(place, found)


def _table_samples(count: int = 9) -> list[Sample]:
    """First frames of the simulated table, from tuning seeds: a plan is as long as it is on the robot."""
    suite = make_suite("tabletop")
    tasks = [suite.make(name) for name in suite.tasks]
    seen = [tasks[i % len(tasks)].reset(TUNING_SEED_START + i) for i in range(count)]
    return [Sample(observation, instruction) for observation, instruction in seen]


def _peak_memory(folder: Path, load: str, plan: bool) -> int:
    command = [sys.executable, "-m", "benchmarks.teachers", "--memory-of", str(folder), load, str(int(plan))]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise ActletError(f"memory of {folder} in {load}: its process ended with {done.returncode}: {done.stderr.strip()[-800:]}")
    return int(done.stdout.splitlines()[-1])


def _print_memory(folder: str, load: str, plan: str) -> None:
    teacher = open_decoding(folder, load, bool(int(plan)))
    for sample in samples_for([], teacher.spec, 5):
        teacher.predict([sample.observation], [sample.instruction])
    status = Path("/proc/self/status").read_text(encoding="ascii")
    print(next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:")))


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m benchmarks.teachers``; see the module's docstring."""
    defaults = TeachersConfig()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the folder that keeps finished parts and teachers.json")
    parser.add_argument("--teacher", nargs="+", default=[], metavar="RECIPE=FOLDER", help="measure these instead of training")
    parser.add_argument("--episodes", type=int, default=defaults.episodes, help="on every axis (default: %(default)s)")
    parser.add_argument("--decisions", type=int, default=defaults.decisions, help="turns of every way of decoding (default: %(default)s)")
    parser.add_argument("--device", default=defaults.device, help="where teachers compute in closed loop (default: %(default)s)")
    parser.add_argument("--service", type=Path, help="what `actlet bench service --out` wrote, to be kept beside the rows")
    parser.add_argument("--memory-of", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.memory_of:
        _print_memory(*arguments.memory_of)
        return 0
    if arguments.out is None:
        raise CallerError("benchmarks.teachers: --out is missing: give a folder.")
    trained = {}
    for word in arguments.teacher:
        recipe, equals, folder = word.partition("=")
        if not equals or recipe not in RECIPES or not (Path(folder) / "config.json").is_file():
            raise CallerError(f"--teacher {word}: expected RECIPE=FOLDER, one of {list(RECIPES)} and a teacher's folder.")
        trained[recipe] = Path(folder)
    config = TeachersConfig(episodes=arguments.episodes, decisions=arguments.decisions, device=arguments.device)
    document = measure_teachers(arguments.out, config, trained=trained)
    if arguments.service is not None:
        document["service"] = compact_service(read_json(arguments.service))
    write_json(arguments.out / "teachers.json", document)
    print(teachers_table(document["rows"]))
    print(json.dumps({key: value for key, value in document.items() if key != "rows"}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
