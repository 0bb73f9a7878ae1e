"""The stages of the ablation of policy distillation: from demonstrations to the outcomes of every episode.

Each writes one whole folder or file below the chain's (`benchmarks.chain`), and one that two parts need is made once::

    SUITE/demonstrations ─ SUITE/labels ─ SUITE/METHOD/student ─ float ─ int8, int4
                                                                   └──────┴─ episodes, late episodes, latency

The teacher is asked about the demonstrations once, and all its 256 bins are kept, so all methods learn from the same answers.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from actlet.errors import CallerError
from actlet.protocols import ActionChunk, Observation, Policy
from actlet.storage import read_json, write_json
from benchmarks.arithmetic import count_bundle
from benchmarks.chain import Chain, tree_hash
from benchmarks.delayed_loop import Delay, run_delayed
from benchmarks.distillation_config import METHODS, DistillationConfig, SuitePlan
from benchmarks.latency import measure_by_turns
from benchmarks.policies import Contender, samples_for
from benchmarks.stages import export_float, quantize_student
from benchmarks.units import as_count
from distill import teacher_folder
from episodes.rollout import evaluate
from runtime.opening import kind_of, open_policy

__all__ = [
    "Late",
    "Student",
    "ablation_chain",
    "delayed_outcomes",
    "demonstrations",
    "labels",
    "outcomes",
    "slug",
    "student",
    "teacher",
    "timings",
]


@dataclasses.dataclass(frozen=True)
class Student:
    """A trained student's bundles, and what training cost."""

    bundles: dict[str, Path]
    """Precision -> folder."""
    size: str
    """Parameters of the network that answers, for people."""
    train_cpu_s: float
    """CPU time of training and of the teacher's labels for the demonstrations."""
    label_cpu_s: float
    """Of the labels alone."""


class Late:
    """A policy whose answers the control loop takes however late they are, as far as their rows reach: `max_delay_steps` says for how late it was
    made, and beyond that the loop would refuse every answer and hold."""

    def __init__(self, policy: Policy, steps: int) -> None:
        timing = policy.spec.timing
        lifted = dataclasses.replace(timing, max_delay_steps=min(timing.horizon - 1, max(steps, timing.max_delay_steps)))
        self._policy, self.spec = policy, dataclasses.replace(policy.spec, timing=lifted)

    def predict(self, observations: Sequence[Observation], instructions: Sequence[str]) -> list[ActionChunk]:
        """What the policy answers."""
        return self._policy.predict(observations, instructions)


def ablation_chain(out: Path, config: DistillationConfig) -> Chain:
    """A chain whose headings count the stages of this configuration."""
    runs = 1 + len(config.delays)
    taught = any(METHODS[method].is_taught for method in config.methods)
    total = 0
    if "table" in config.parts:
        of_method = 1 + len(config.precisions) * (1 + runs)
        for plan in config.suites:
            total += 1 + taught + 2 * (plan.teacher is None) + len(config.methods) * of_method + runs + 1
    if "few" in config.parts:
        total += 2 * (config.second.teacher is None) + len(config.few) * (2 + 2 * 3)
    if "unseen" in config.parts:
        total += 2 * (config.varied_teacher is None) + 2 + 2 * 2 + 3 * len(config.axes)
    if "variants" in config.parts:
        # Train, export, quantize, and episodes in each of a student's own precisions.
        of = [config.precisions, *(variant.precisions for variant in config.variants.values())]
        total += 2 * (config.second.teacher is None) + 2 + sum(2 + 2 * len(each) - ("float" in each) for each in of)
    return Chain(out, total=total)


def slug(words: str) -> str:
    """ "+ on-policy" -> "plus-on-policy": a folder's name."""
    return re.sub(r"[^a-z0-9]+", "-", words.lower().replace("+", "plus")).strip("-")


def demonstrations(chain: Chain, config: DistillationConfig, plan: SuitePlan, *, episodes: int, run: int, folder: str) -> Path:
    """Record demonstrations."""
    from episodes.collect import collect

    def work(place: Path) -> None:
        print(collect(plan.suite, place, episodes, seed=run, workers=config.workers, overwrite=True), file=sys.stderr)

    arguments = {"suite": plan.suite, "episodes": episodes, "run": run}
    return chain.stage(folder, f"{plan.name}: record {episodes} demonstrations", work, arguments=arguments, inputs={})


def teacher(chain: Chain, config: DistillationConfig, plan: SuitePlan) -> tuple[Path, float | None]:
    """The suite's teacher: one that is there, or one that is trained.

    Returns:
        Its folder, and the CPU time of its training, None where it was there.

    Raises:
        CallerError: The folder holds none.
    """
    if plan.teacher is not None:
        folder = Path(teacher_folder(plan.teacher))
        kind = kind_of(folder)
        if not kind.endswith("teacher"):
            raise CallerError(f"teacher of {plan.name!r}: {folder} holds a {kind}, expected a teacher's folder, or 'rt2-base'.")
        return folder, None
    from distill.teach import teach

    place = f"{plan.name}/teacher_demonstrations"
    data = demonstrations(chain, config, plan, episodes=plan.teacher_demonstrations, run=1, folder=place)
    folder = chain.stage(
        f"{plan.name}/teacher",
        f"{plan.name}: train the teacher",
        lambda place: teach(data, place, plan.teach),
        arguments=dataclasses.asdict(plan.teach),
        inputs={"data": data},
    )
    return folder, chain.records[-1]["cpu_s"]


def labels(chain: Chain, data: Path, taught_by: Path, folder: str) -> tuple[Path, float]:
    """Ask the teacher about every frame of the demonstrations.

    Returns:
        The folder of labels, and the CPU time of asking.
    """
    from distill.label import LabelConfig, label

    def work(place: Path) -> None:
        # The chain removes what an interrupted stage left, and labels are worth keeping: they grow beside their place.
        growing = place.with_name(f".{place.name}-{str(tree_hash(data))[:8]}-{str(tree_hash(taught_by))[:8]}")
        print(label(data, taught_by, growing, LabelConfig(top_k=256)), file=sys.stderr)
        growing.rename(place)

    place = chain.stage(
        folder, f"ask the teacher about {data.relative_to(chain.root)}", work, arguments={}, inputs={"data": data, "teacher": taught_by}
    )
    return place, chain.records[-1]["cpu_s"]


def student(
    chain: Chain,
    config: DistillationConfig,
    folder: str,
    method: str,
    *,
    suite: str,
    data: Path,
    taught_by: Path,
    labelled: tuple[Path, float] | None,
    precisions: Sequence[str] = ("float",),
    changes: Mapping[str, Any] | None = None,
) -> Student:
    """Train a student by a method, export and quantize it.

    Args:
        chain: Keeps what is made.
        config: How methods train.
        folder: Where, below the chain's.
        method: A key of `METHODS`.
        suite: Where it sees new scenes and drives.
        data: Its demonstrations.
        taught_by: The teacher, which a method that is not taught never meets.
        labelled: What `labels` returned; none is needed by a method that is not taught.
        precisions: "float", and what is made of it.
        changes: Fields of `TrainConfig` in which it differs from the method.
    """
    from distill.train import distill

    is_taught, train = METHODS[method].is_taught, dataclasses.replace(config.training(method), **(changes or {}))
    asked, answers = (taught_by, labelled) if is_taught else (None, None)
    checkpoint = chain.stage(
        f"{folder}/student",
        f"{folder}: train",
        lambda place: distill(data, place, teacher=asked, suite=suite, labels=answers[0] if answers else None, config=train),
        arguments={"method": method, "suite": suite, **dataclasses.asdict(train)},
        inputs={"data": data, **({"teacher": asked} if asked else {}), **({"labels": answers[0]} if answers else {})},
    )
    measured = chain.records[-1]["cpu_s"]
    bundles = {}
    for precision in precisions:
        if precision == "float":
            bundles[precision] = chain.stage(
                f"{folder}/float",
                f"{folder}: export",
                lambda place: export_float(place, checkpoint),
                arguments={},
                inputs={"from": checkpoint},
            )
            continue
        bundles[precision] = chain.stage(
            f"{folder}/{precision}",
            f"{folder}: quantize to {precision}",
            functools.partial(quantize_student, bundle=bundles["float"], precision=precision, data=data),
            arguments={"precision": precision},
            inputs={"from": bundles["float"], "data": data},
        )
    lineage = read_json(checkpoint / "config.json")["lineage"]
    label_cpu_s = answers[1] if answers else 0.0
    return Student(
        bundles=bundles,
        size=as_count(count_bundle(bundles["float"]).parameters),
        train_cpu_s=float(lineage.get("train_cpu_s", measured)) + label_cpu_s,
        label_cpu_s=label_cpu_s,
    )


def outcomes(chain: Chain, config: DistillationConfig, place: str, policy: Path, suite: str) -> list[dict[str, Any]]:
    """Every `EpisodeResult` of a policy as plain JSON, in the order of the report seeds."""
    loop = config.closed_loop(suite, config.episodes)

    def work(place: Path) -> None:
        found = evaluate(Contender("", policy).factory, suite, loop.seeds, workers=loop.workers, batch=loop.batch)
        write_json(place, [result.to_dict() for result in found])

    arguments = {"suite": suite, "episodes": config.episodes}
    done = chain.stage(place, f"run {config.episodes} episodes: {place}", work, arguments=arguments, inputs={"policy": policy})
    found: list[dict[str, Any]] = read_json(done)
    return found


def delayed_outcomes(chain: Chain, config: DistillationConfig, folder: str, policy: Path, suite: str) -> dict[int, list[dict[str, Any]]]:
    """Delay in ticks -> the first report episodes with answers that are so late, the arm moving on meanwhile."""
    loop = config.closed_loop(suite, config.delay_episodes)
    found: dict[int, list[dict[str, Any]]] = {}
    for steps in config.delays:
        delay = Delay(steps=steps, while_waiting="moves on")

        def work(place: Path, delay: Delay = delay) -> None:
            opened = open_policy(policy)
            late = Late(opened, delay.steps) if opened.spec.timing.horizon > 1 else opened
            write_json(place, run_delayed(late, delay, loop, label=f"{delay.steps} late"))

        place = chain.stage(
            f"{folder}-late-{steps}.json",
            f"run {config.delay_episodes} episodes {steps} ticks late: {folder}",
            work,
            arguments={"suite": suite, "episodes": config.delay_episodes, "steps": steps},
            inputs={"policy": policy},
        )
        found[steps] = read_json(place)
    return found


def timings(chain: Chain, config: DistillationConfig, place: str, policies: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Name -> what `Timings.summary` says, all policies by turns in one run, one thread each."""

    def work(place: Path) -> None:
        import torch

        contenders = [Contender(name, path) for name, path in policies.items()]
        opened = {contender.name: open_policy(contender.path) for contender in contenders}
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        samples = samples_for(contenders, next(iter(opened.values())).spec)
        found, _ = measure_by_turns(opened, samples, config.latency)
        torch.set_num_threads(threads)
        write_json(place, {name: timing.summary() for name, timing in found.items()})

    arguments = dataclasses.asdict(config.latency)
    found: dict[str, dict[str, Any]] = read_json(
        chain.stage(place, f"time {len(policies)} policies by turns", work, arguments=arguments, inputs=dict(policies))
    )
    return found
