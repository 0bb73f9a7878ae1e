"""What is compared in the ablation of policy distillation, and on how much.

A method is a named difference of `distill.train_config.TrainConfig`, so a new one is one entry of `METHODS`. From "soft tokens" on, each has
what the one before has, and one thing more. All have the same demonstrations, the same number of updates and the same seed. A variant
(`VARIANTS`) is a difference from the last method: another size, or training that rounds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from actlet.errors import SpecError, UnknownNameError
from benchmarks.closed_loop import ClosedLoopConfig
from benchmarks.generalisation import AXES
from benchmarks.latency import LatencyConfig
from distill import SHIPPED
from distill.student import StudentConfig
from distill.student_sizes import SIZES
from distill.teach import TeachConfig
from distill.teacher_config import TeacherConfig
from distill.train_config import TrainConfig

__all__ = ["BASELINE", "METHODS", "PARTS", "PLANS", "PRECISIONS", "VARIANTS", "DistillationConfig", "Method", "SuitePlan", "Variant"]

BASELINE = "behaviour cloning"
PRECISIONS = ("float", "int8", "int4")
PARTS = ("table", "few", "unseen", "variants")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """One way to train a student."""

    is_taught: bool = True
    """It learns from the teacher as well. One that does not has the suite's name all the same, which keeps all demonstrations for training."""
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of `TrainConfig` that differ."""


# No scenes is no glances either; one round is no driving in between.
METHODS: dict[str, Method] = {
    BASELINE: Method(is_taught=False),
    "hard tokens": Method(changes={"target": "hard", "rounds": 1, "scenes": 0}),
    "soft tokens": Method(changes={"rounds": 1, "scenes": 0}),
    "+ features": Method(changes={"rounds": 1}),
    "+ on-policy": Method(),
    "+ delay training": Method(changes={"delay_steps": 4}),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """Another student by the full recipe."""

    changes: Mapping[str, Any]
    """Fields of `TrainConfig` that differ."""
    precisions: tuple[str, ...] = PRECISIONS
    """In which it is judged."""


VARIANTS: dict[str, Variant] = {
    "nano": Variant(changes={"architecture": SIZES["nano"].architecture}),
    "small": Variant(changes={"architecture": SIZES["small"].architecture}),
    "rounds to int8 in training": Variant(changes={"quantize_aware": "int8"}, precisions=("int8",)),
    "rounds to int4 in training": Variant(changes={"quantize_aware": "int4"}, precisions=("int4",)),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuitePlan:
    """A suite, its teacher, and what students learn from there."""

    name: str
    """In rows and folders."""
    suite: str
    """As `episodes.suites.make_suite` takes it."""
    demonstrations: int
    """Episodes that every student learns from, run 0."""
    teacher: str | None = None
    """A teacher's folder, or rt2-base; None trains one here."""
    teacher_demonstrations: int = 0
    """Episodes that a teacher which is trained here learns from, run 1."""
    teach: TeachConfig = dataclasses.field(default_factory=TeachConfig)
    """How."""

    def __post_init__(self) -> None:
        if self.demonstrations < 1 or (self.teacher is None and self.teacher_demonstrations < 1):
            raise SpecError(
                f"suite {self.name!r}: {self.demonstrations} demonstrations, teacher {self.teacher}, {self.teacher_demonstrations} demonstrations "
                "for it: expected at least 1 each, and a teacher or demonstrations to train one."
            )


PLANS = {
    "tabletop": SuitePlan(name="tabletop", suite="tabletop", demonstrations=600, teacher=SHIPPED),
    # 70 steps an episode at 80 Hz: as many frames as the table's, 20 and 30 episodes a task.
    "metaworld": SuitePlan(name="metaworld", suite="metaworld-mt10", demonstrations=200, teacher_demonstrations=300),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """What is compared, and on how much."""

    parts: tuple[str, ...] = PARTS
    """Of `PARTS`: the table of methods, few demonstrations, what no demonstration shows, and other students by the full recipe."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Keys of `METHODS`. The last that is taught is the full recipe of the other parts."""
    suites: tuple[SuitePlan, ...] = tuple(PLANS.values())
    """Of the table."""
    second: SuitePlan = PLANS["tabletop"]
    """Suite of the parts beside the table."""
    precisions: tuple[str, ...] = PRECISIONS
    """Of `PRECISIONS`, "float" first."""
    train: TrainConfig = dataclasses.field(default_factory=lambda: TrainConfig(delay_steps=0))
    """What the methods differ from."""
    episodes: int = 210
    """Report episodes of every policy."""
    delay_episodes: int = 105
    """The first of them, which are run late as well."""
    delays: tuple[int, ...] = (1, 2, 4)
    """Control ticks from an observation to the first command that answers it."""
    few: tuple[int, ...] = (25, 50, 100)
    """Numbers of demonstrations, the first of those of the table."""
    axes: Mapping[str, str] = dataclasses.field(
        default_factory=lambda: {axis: AXES[axis] for axis in ("seen", "objects", "colours", "backgrounds", "instructions")}
    )
    """Axis -> suite, for the part "unseen"."""
    varied_suite: str = "tabletop-varied"
    """Where that part's full recipe sees new scenes and drives."""
    varied_teacher: str | None = "rt2-base"
    """Who teaches it: as a suite's teacher."""
    variants: Mapping[str, Variant] = dataclasses.field(default_factory=lambda: dict(VARIANTS))
    """Name -> student, for the part "variants"."""
    latency: LatencyConfig = dataclasses.field(default_factory=LatencyConfig)
    batch: int = 16
    """Episodes in lockstep."""
    workers: int | None = None
    """Processes that run episodes; one for every core when None."""
    quick: bool = False

    def __post_init__(self) -> None:
        for kind, given, known in (
            ("part", self.parts, PARTS),
            ("method", self.methods, METHODS),
            ("precision", self.precisions, PRECISIONS),
        ):
            for word in given:
                if word not in known:
                    raise UnknownNameError(kind, word, list(known))
            if not given or len(set(given)) < len(given):
                raise SpecError(f"{kind}s {list(given)}: expected at least one, and each once.")
        if self.precisions[0] != "float":
            raise SpecError(f"precisions {list(self.precisions)}: expected 'float' first, which the others are made from.")
        if self.parts != ("table",) and not any(METHODS[method].is_taught for method in self.methods):
            raise SpecError(f"methods {list(self.methods)}: all parts but the table are about one that is taught; none is.")
        if not 1 <= self.delay_episodes <= self.episodes or min(self.delays, default=1) < 1:
            raise SpecError(
                f"delay_episodes {self.delay_episodes} of {self.episodes}, delays {self.delays}: expected 1 to all, and 1 tick or more each."
            )
        self.closed_loop("tabletop", self.episodes)

    @classmethod
    def tiny(cls, **changes: Any) -> DistillationConfig:
        """Sizes that show in minutes that the chain works, and nothing about quality."""
        architecture = TeacherConfig(
            layers=1, lora_rank=2, channels=(8, 8, 8), blocks=(1, 1, 1), condition_dim=8, features=16, scene_tokens=2
        )
        teach = TeachConfig(vision_steps=2, steps=2, batch_size=4, architecture=architecture)
        settings: dict[str, Any] = {
            # Calibration needs two scenes, each of which is recorded with every task.
            "suites": (
                dataclasses.replace(PLANS["tabletop"], demonstrations=6),
                dataclasses.replace(PLANS["metaworld"], demonstrations=20, teacher_demonstrations=6, teach=teach),
            ),
            "second": dataclasses.replace(PLANS["tabletop"], demonstrations=6),
            "train": TrainConfig(
                steps=4,
                batch_size=8,
                on_policy_episodes=2,
                scenes=4,
                glances=4,
                delay_steps=0,
                architecture=StudentConfig(channels=(8, 16, 24), blocks=(1, 1, 1)),
            ),
            "episodes": 3,
            "delay_episodes": 1,
            "few": (3,),
            "variants": {"rounds to int8 in training": VARIANTS["rounds to int8 in training"]},
            "latency": LatencyConfig(rounds=3, calls=3),
            "quick": True,
        }
        return cls(**(settings | changes))

    @property
    def full(self) -> str:
        """The full recipe."""
        return [method for method in self.methods if METHODS[method].is_taught][-1]

    def training(self, method: str) -> TrainConfig:
        """How a method trains."""
        return dataclasses.replace(self.train, **METHODS[method].changes)

    def closed_loop(self, suite: str, episodes: int) -> ClosedLoopConfig:
        """The first report episodes of a suite; refuses more than there are seeds for reports."""
        return ClosedLoopConfig(suite=suite, episodes=episodes, wrong_episodes=0, batch=self.batch, workers=self.workers)
