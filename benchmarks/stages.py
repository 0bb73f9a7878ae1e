"""The stages of the demo: each is one call of a package's own function, with the demo's settings.

What a stage depends on stands in `DemoConfig`; how stages follow each other stands in `benchmarks.demo`.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from actlet.storage import read_json, write_json
from benchmarks.closed_loop import ClosedLoopConfig, run_episodes
from benchmarks.latency import LatencyConfig, measure_latency
from benchmarks.pictures import draw_films
from benchmarks.policies import Contender
from distill.student import StudentConfig
from distill.teach import TeachConfig, teach
from distill.train import TrainConfig, distill
from episodes.collect import collect
from episodes.seeds import REPORT_SEED_START
from episodes.simulated_robot import SimulatedRobot
from episodes.suites import make_suite
from export.to_bundle import export_student
from quantize.quantize_bundle import quantize_bundle
from quantize.schemes import scheme
from runtime.control_loop import drive
from runtime.opening import open_policy

__all__ = ["DemoConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Sizes of the demo. The defaults are meant for 30 CPU minutes and take more: benchmarks/results/demo.json has what each stage took."""

    suite: str = "tabletop"
    demonstrations: int = 600
    """Episodes that the student learns from."""
    teacher_demonstrations: int = 1950
    """Episodes that the teacher learns from, when it is trained too."""
    teach: TeachConfig = dataclasses.field(default_factory=TeachConfig)
    train: TrainConfig = dataclasses.field(default_factory=lambda: TrainConfig(labelled_share=0.15))
    real: TrainConfig = dataclasses.field(default_factory=lambda: TrainConfig(steps=150))
    """How the student of the real recordings is trained."""
    test_episodes: int = 126
    """Episodes that every policy is judged on."""
    wrong_episodes: int = 63
    """Episodes in which a student is told something else."""
    teacher_wrong_episodes: int = 42
    """The same for the teacher, which is slow."""
    latency: LatencyConfig = dataclasses.field(default_factory=LatencyConfig)
    control_episodes: int = 3
    quick: bool = False

    @classmethod
    def tiny(cls) -> DemoConfig:
        """Sizes that show in a few minutes that the chain works, and nothing about quality."""
        return cls(
            demonstrations=6,
            teacher_demonstrations=6,
            teach=TeachConfig(vision_steps=2, steps=2, batch_size=4),
            train=TrainConfig(
                steps=4,
                batch_size=8,
                rounds=2,
                on_policy_episodes=2,
                scenes=4,
                architecture=StudentConfig(channels=(8, 16, 24), blocks=(1, 1, 1)),
            ),
            real=TrainConfig(steps=4, batch_size=8),
            test_episodes=3,
            wrong_episodes=3,
            teacher_wrong_episodes=1,
            latency=LatencyConfig(rounds=3, calls=3),
            control_episodes=1,
            quick=True,
        )


def make_demonstrations(out: Path, config: DemoConfig, *, episodes: int, run: int) -> None:
    """Record demonstrations of the scripted expert."""
    report = collect(config.suite, out, episodes, seed=run, overwrite=True)  # Unfinished work of other settings is dropped.
    print(report, file=sys.stderr)


def make_teacher(out: Path, config: DemoConfig, data: Path) -> None:
    """Train a teacher."""
    teach(data, out, config.teach)


def make_student(out: Path, config: DemoConfig, data: Path, teacher: Path) -> None:
    """Distill the student."""
    distill(data, out, teacher=teacher, suite=config.suite, config=config.train)


def judge_policy(out: Path, config: DemoConfig, contender: Contender) -> None:
    """Run all episodes of one policy and keep them."""
    wrong = config.teacher_wrong_episodes if contender.name == "teacher" else config.wrong_episodes
    write_json(out, run_episodes(contender, ClosedLoopConfig(suite=config.suite, episodes=config.test_episodes, wrong_episodes=wrong)))


def time_policies(out: Path, config: DemoConfig, contenders: list[Contender]) -> None:
    """Latency and memory of all policies in one run."""
    write_json(out, measure_latency(contenders, config.latency))


def picture_policy(out: Path, config: DemoConfig, bundle: Path) -> None:
    """A film of every task."""
    tasks = ("put",) if config.quick else ("touch", "lift", "put")
    draw_films(open_policy(bundle), out, suite_name=config.suite, tasks=tasks, seed=REPORT_SEED_START)


def learn_from_recordings(out: Path, config: DemoConfig, data: Path) -> None:
    """Train a student on recordings of a real robot; its error on held-out episodes is in the checkpoint."""
    distill(data, out, teacher=None, suite=None, config=config.real)


def real_data_entry(checkpoint: Path, data: Path, config: DemoConfig) -> dict[str, Any]:
    """The entry ``real_data`` of results.json: held-out action error of the student and of two baselines, per dimension."""
    lineage = read_json(checkpoint / "config.json")["lineage"]
    held_out = lineage["held_out"]
    won = [
        name for name, row in held_out["dimensions"].items() if row["chunk"]["student"] < min(row["chunk"]["repeat"], row["chunk"]["mean"])
    ]
    return {
        "data": data.name,
        "dataset_hash": lineage["dataset"],
        "episodes_train": lineage["dataset_episodes"],
        "training_steps": config.real.steps,
        **held_out,
        "summary": f"{data.name}: {lineage['dataset_episodes']} episodes for training, {held_out['episodes']} with {held_out['frames']} frames held out; "
        f"{config.real.steps} training steps, no teacher. Over chunks of {held_out['horizon']} actions the student is nearer to the recording than both "
        f"baselines in {len(won)} of {len(held_out['dimensions'])} dimensions{': ' + ', '.join(won) if won else ''}. Action error says nothing about success.",
    }


def export_float(out: Path, checkpoint: Path) -> None:
    """Export the student as a float bundle."""
    print("\n".join(export_student(checkpoint, out).lines()), file=sys.stderr)


def quantize_student(out: Path, bundle: Path, precision: str, data: Path) -> None:
    """Quantize the float bundle to a precision; one that gains nothing on this machine is measured all the same."""
    report = quantize_bundle(bundle, out, scheme=scheme(precision), data=data, allow_slower=True)
    print("\n".join(report.lines()), file=sys.stderr)


def drive_arm(out: Path, config: DemoConfig, bundle: Path) -> None:
    """Run the control loop in real time on the simulated arm, an episode of every task in turn, with the policy in its own thread."""
    suite, policy = make_suite(config.suite), open_policy(bundle)
    episodes = []
    for seed in range(REPORT_SEED_START, REPORT_SEED_START + config.control_episodes):
        name = suite.tasks[seed % len(suite.tasks)]
        task = suite.make(name)
        robot = SimulatedRobot(task, seed=seed)
        result = drive(robot, policy)
        outcome = {"task": name, "seed": seed, "instruction": robot.instruction, "success": robot.success, "stopped_by": result.stopped_by}
        episodes.append({**outcome, **result.statistics.to_dict()})
        task.close()
    write_json(out, {"rate_hz": policy.spec.timing.rate_hz, "realtime": True, "episodes": episodes})
