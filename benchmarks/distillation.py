"""What each part of distillation is worth: one ablation table, as one command that goes on where it was stopped.

    method              who is imitated                                 besides
    behaviour cloning   the demonstrations alone
    hard tokens         them, and the teacher's likeliest bins
    soft tokens         them, and the teacher's distributions
    + features          the same                                        sees scenes and glances through the teacher's eyes
    + on-policy         the same                                        drives between two rounds, and the teacher labels where it came to
    + delay training    the same                                        is trained on answers that come late

Every student is judged as float, int8 and int4, on the same report seeds as the teacher: in lockstep, and by the real control loop with
answers that are 1, 2 and 4 ticks late while the arm moves on (`benchmarks.delayed_loop`; the largest delay that a bundle declares is
lifted to the one that is measured). Intervals are over episodes, one training run each: they say nothing of how runs differ.

A second part asks where distillation counts: with few demonstrations, and on what no demonstration shows, where the new scenes and the
driving are on more varied tables, with a teacher that knows them (`DistillationConfig.varied_suite`). A third makes other students by the
last method: smaller and larger ones, and ones that round in training.

    python -m benchmarks.distillation --out runs/distillation                    all of it; many hours without a GPU
    python -m benchmarks.distillation --out runs/quick --quick                   shows that the chain runs
    python -m benchmarks.distillation --out runs/distillation --suites tabletop --methods "behaviour cloning" "soft tokens" --parts table

Finished parts are kept below --out. The result, distillation.json with two drawings beside it, is what README.md shows once it is copied to
benchmarks/results.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actlet.errors import ActletError, CallerError
from actlet.provenance import utc_now
from actlet.storage import write_bytes, write_json
from benchmarks import distillation_stages as stages
from benchmarks.chain import Chain
from benchmarks.distillation_config import BASELINE, METHODS, PARTS, PLANS, DistillationConfig, SuitePlan, Variant
from benchmarks.distillation_rows import (
    compare_rows,
    distillation_row,
    distillation_table,
    judged,
    second_table,
    variants_table,
    with_differences,
)
from benchmarks.machine import describe_machine, describe_versions
from distill import SHIPPED

__all__ = ["distillation_text", "main", "measure_distillation", "write_distillation"]


def measure_distillation(out: Path, config: DistillationConfig | None = None) -> dict[str, Any]:
    """Run what is not done yet.

    Args:
        out: A folder that keeps every finished part.
        config: What, and how much.

    Returns:
        JSON types: ``date, machine, versions, conditions, config, rows`` (see `distillation_row`, with ``against``), ``few`` and ``unseen`` (rows of
        `judged` with ``method, against`` and ``demonstrations`` or ``axis``; None where the part was not asked for), ``variants`` (the same with
        ``variant, precision, student, train_cpu_s``), ``quick``, and ``stages``.

    Raises:
        ActletError: A stage failed; finished ones are kept.
    """
    config = config or DistillationConfig()
    chain = stages.ablation_chain(out, config)
    rows = [row for plan in config.suites for row in _table(chain, config, plan)] if "table" in config.parts else []
    few = _few(chain, config) if "few" in config.parts else None
    unseen = _unseen(chain, config) if "unseen" in config.parts else None
    variants = _variants(chain, config) if "variants" in config.parts else None
    about = {"date": utc_now(), "machine": describe_machine(), "versions": describe_versions()}
    return {
        **about,
        "conditions": _conditions(about, config),
        "config": json.loads(json.dumps(dataclasses.asdict(config))),
        "quick": config.quick,
        "rows": with_differences(rows),
        "few": few,
        "unseen": unseen,
        "variants": variants,
        "stages": chain.records,
    }


def _table(chain: Chain, config: DistillationConfig, plan: SuitePlan) -> list[dict[str, Any]]:
    """All methods on one suite."""
    taught_by, teacher_cpu_s = stages.teacher(chain, config, plan)
    data = _data(chain, config, plan)
    labelled = _labels(chain, config, plan, data, taught_by, plan.name)
    policies: dict[tuple[str, str], Path] = {("teacher", "float"): taught_by}
    about: dict[str, dict[str, Any]] = {"teacher": {"student": plan.teacher or "trained here", "train_cpu_s": teacher_cpu_s}}
    for method in config.methods:
        made = stages.student(
            chain,
            config,
            f"{plan.name}/{stages.slug(method)}",
            method,
            suite=plan.suite,
            data=data,
            taught_by=taught_by,
            labelled=labelled,
            precisions=config.precisions,
        )
        about[method] = {"student": made.size, "train_cpu_s": made.train_cpu_s, "label_cpu_s": made.label_cpu_s}
        policies |= {(method, precision): bundle for precision, bundle in made.bundles.items()}
    places = {key: f"{plan.name}/episodes/{stages.slug(key[0])}-{key[1]}" for key in policies}
    lockstep = {key: stages.outcomes(chain, config, f"{places[key]}.json", policy, plan.suite) for key, policy in policies.items()}
    late = {key: stages.delayed_outcomes(chain, config, places[key], policy, plan.suite) for key, policy in policies.items()}
    names = {key: " ".join(key) for key in policies}
    timing = stages.timings(chain, config, f"{plan.name}/latency.json", {names[key]: policy for key, policy in policies.items()})
    return [
        distillation_row(
            suite=plan.name,
            method=key[0],
            precision=key[1],
            episodes=lockstep[key],
            delayed=late[key],
            timing=timing[names[key]],
            **about[key[0]],
        )
        for key in policies
    ]


def _few(chain: Chain, config: DistillationConfig) -> list[dict[str, Any]]:
    """`BASELINE` and the full recipe, with fewer demonstrations and as many updates."""
    plan, rows = config.second, []
    taught_by, _ = stages.teacher(chain, config, plan)
    for count in config.few:
        place = f"few/{count}"
        data = stages.demonstrations(chain, config, plan, episodes=count, run=0, folder=f"{place}/demonstrations")
        labelled = stages.labels(chain, data, taught_by, f"{place}/labels")
        found = {}
        for method in (BASELINE, config.full):
            folder = f"{place}/{stages.slug(method)}"
            made = stages.student(chain, config, folder, method, suite=plan.suite, data=data, taught_by=taught_by, labelled=labelled)
            episodes = stages.outcomes(chain, config, f"{folder}/episodes.json", made.bundles["float"], plan.suite)
            found[method] = {**judged(episodes), "train_cpu_s": made.train_cpu_s}
        rows += _second({"demonstrations": count}, found)
    return rows


def _unseen(chain: Chain, config: DistillationConfig) -> list[dict[str, Any]]:
    """`BASELINE`, the full recipe with new scenes and driving on varied tables, and its teacher, on each axis; the same demonstrations of the plain table."""
    plan = config.second
    taught_by, _ = stages.teacher(chain, config, dataclasses.replace(plan, teacher=config.varied_teacher))
    data = _data(chain, config, plan)
    labelled = stages.labels(chain, data, taught_by, "unseen/labels")
    policies = {}
    # Cloning is the table's own, which is not trained twice.
    for method, folder, suite in (
        (BASELINE, f"{plan.name}/{stages.slug(BASELINE)}", plan.suite),
        (config.full, f"unseen/{stages.slug(config.full)}", config.varied_suite),
    ):
        made = stages.student(chain, config, folder, method, suite=suite, data=data, taught_by=taught_by, labelled=labelled)
        policies[method] = made.bundles["float"]
    policies["teacher"] = taught_by
    rows = []
    for axis, suite in config.axes.items():
        found = {
            method: judged(stages.outcomes(chain, config, f"unseen/episodes/{stages.slug(method)}-{axis}.json", policy, suite))
            for method, policy in policies.items()
        }
        rows += _second({"axis": axis}, found)
    return rows


def _variants(chain: Chain, config: DistillationConfig) -> list[dict[str, Any]]:
    """The full recipe as it is, and each variant of it, which is compared with it in its own precision."""
    plan = config.second
    taught_by, _ = stages.teacher(chain, config, plan)
    data = _data(chain, config, plan)
    labelled = stages.labels(chain, data, taught_by, f"{plan.name}/labels")
    place = f"{plan.name}/{stages.slug(config.full)}"  # The table's own, which is not trained twice.
    asked = {config.full: (place, f"{plan.name}/episodes/{stages.slug(config.full)}", Variant(changes={}, precisions=config.precisions))}
    for name, variant in config.variants.items():
        asked[name] = (f"variants/{stages.slug(name)}", f"variants/{stages.slug(name)}/episodes", variant)
    rows = []
    for name, (folder, episodes, variant) in asked.items():
        made = stages.student(
            chain,
            config,
            folder,
            config.full,
            suite=plan.suite,
            data=data,
            taught_by=taught_by,
            labelled=labelled,
            precisions=tuple(dict.fromkeys(("float", *variant.precisions))),
            changes=variant.changes,
        )
        for precision in variant.precisions:
            found = stages.outcomes(chain, config, f"{episodes}-{precision}.json", made.bundles[precision], plan.suite)
            row = {"variant": name, "precision": precision, "student": made.size, "train_cpu_s": made.train_cpu_s, **judged(found)}
            other = next((r for r in rows if (r["variant"], r["precision"]) == (config.full, precision)), None)
            rows.append({**row, "against": {} if other is None else {config.full: compare_rows(row, other)}})
    return rows


def _second(setting: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row a method, each compared with `BASELINE` in the same setting."""
    return [
        {
            **setting,
            "method": method,
            **row,
            "against": {} if method == BASELINE else {BASELINE: compare_rows(row, found[BASELINE])},
        }
        for method, row in found.items()
    ]


def _data(chain: Chain, config: DistillationConfig, plan: SuitePlan) -> Path:
    return stages.demonstrations(chain, config, plan, episodes=plan.demonstrations, run=0, folder=f"{plan.name}/demonstrations")


def _labels(
    chain: Chain, config: DistillationConfig, plan: SuitePlan, data: Path, taught_by: Path, folder: str
) -> tuple[Path, float] | None:
    if not any(METHODS[method].is_taught for method in config.methods):
        return None
    return stages.labels(chain, data, taught_by, f"{folder}/labels")


def _conditions(about: Mapping[str, Any], config: DistillationConfig) -> str:
    machine, versions = about["machine"], about["versions"]
    amounts = ", ".join(f"{plan.demonstrations} on {plan.name} (suite `{plan.suite}`)" for plan in config.suites)
    return (
        f"{about['date'][:10]}, {machine['cpu']}, {machine['cores_usable']} cores, GPUs {machine['gpus'] or 'none'}, Python {versions['python']}, torch "
        f"{versions.get('torch', '–')}, onnxruntime {versions.get('onnxruntime', '–')}. Demonstrations: {amounts}; all methods have the same, "
        f"{config.train.steps} updates of {config.train.batch_size}, and seed {config.train.seed}; one training run each. {config.episodes} report "
        f"episodes, the same seeds for all, {config.delay_episodes if config.delays else 'none'} of them late; 95 % Wilson intervals, differences on the same seeds with Bonett and "
        "Price's interval. Jerk, path and flips: means over successful episodes. Decisions: one thread, all policies by turns in one run. CPU: "
        "training and the teacher's labels for the demonstrations."
    )


def distillation_text(document: Mapping[str, Any], *, markdown: bool = True) -> str:
    """All tables, and the conditions that they hold under."""
    parts = [distillation_table(document["rows"], markdown=markdown)] if document["rows"] else []
    for part, key in (("few", "demonstrations"), ("unseen", "axis")):
        if document[part]:
            parts.append(second_table(document[part], key, markdown=markdown))
    if document.get("variants"):
        parts.append(variants_table(document["variants"], markdown=markdown))
    return "\n\n".join([*parts, document["conditions"]])


def write_distillation(out: Path, document: Mapping[str, Any]) -> None:
    """Write distillation.json, and where there is a table its drawings distillation-methods.svg and distillation-delay.svg, into a folder."""
    from benchmarks.plots import delays_plot, methods_plot, stand_alone

    write_json(out / "distillation.json", document)
    if document["rows"]:
        write_bytes(out / "distillation-methods.svg", stand_alone(methods_plot(document["rows"])).encode())
        write_bytes(out / "distillation-delay.svg", stand_alone(delays_plot(document["rows"])).encode())


def _plans(names: Sequence[str], teachers: Sequence[str], known: Mapping[str, SuitePlan]) -> tuple[SuitePlan, ...]:
    given = {}
    for word in teachers:
        name, equals, folder = word.partition("=")
        if not equals or name not in known:
            raise CallerError(f"--teacher {word}: expected SUITE=TEACHER, one of {list(known)}, and {SHIPPED} or a teacher's folder.")
        given[name] = folder
    return tuple(dataclasses.replace(known[name], teacher=given.get(name, known[name].teacher)) for name in names)


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m benchmarks.distillation``; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.distillation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder that keeps finished parts, and the result")
    parser.add_argument("--suites", nargs="+", choices=list(PLANS), default=list(PLANS), help="of the table (default: all)")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help="(default: all)")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="the table, and what is asked beside it (default: all)"
    )
    parser.add_argument("--teacher", nargs="+", default=[], metavar="SUITE=TEACHER", help="another teacher than the suite's own")
    parser.add_argument("--episodes", type=int, help=f"report episodes (default: {DistillationConfig.episodes})")
    parser.add_argument(
        "--delay-episodes", type=int, help=f"of them late as well; 0 for none (default: {DistillationConfig.delay_episodes})"
    )
    parser.add_argument("--steps", type=int, help="updates of every student (default: those of actlet distill)")
    parser.add_argument("--workers", type=int, help="processes that run episodes (default: one per core)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that the chain works, and nothing about quality")
    arguments = parser.parse_args(argv)
    try:
        config = DistillationConfig.tiny() if arguments.quick else DistillationConfig()
        episodes = arguments.episodes or config.episodes
        plans = _plans(list(PLANS), arguments.teacher, {plan.name: plan for plan in config.suites})
        config = dataclasses.replace(
            config,
            parts=tuple(arguments.parts),
            methods=tuple(arguments.methods),
            suites=tuple(plan for plan in plans if plan.name in arguments.suites),
            second=dataclasses.replace(config.second, teacher=next(plan.teacher for plan in plans if plan.name == config.second.name)),
            episodes=episodes,
            delay_episodes=min(arguments.delay_episodes or config.delay_episodes, episodes),
            delays=() if arguments.delay_episodes == 0 else config.delays,
            train=dataclasses.replace(config.train, steps=arguments.steps or config.train.steps),
            workers=arguments.workers,
        )
        document = measure_distillation(arguments.out, config)
        write_distillation(arguments.out, document)
    except ActletError as error:
        print(error, file=sys.stderr)
        return 2
    print(distillation_text(document, markdown=False))
    print("\nA quick run: the chain works; its figures say nothing about quality.\n" if config.quick else "")
    print(json.dumps({key: value for key, value in document.items() if key not in ("rows", "few", "unseen", "variants", "stages")}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
