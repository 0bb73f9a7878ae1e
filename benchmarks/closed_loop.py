"""How often policies succeed, judged on the same episodes.

Every policy meets the episodes of the same seeds, so two policies are compared in pairs: a rate has a 95 % Wilson interval,
and a difference from the parent (the policy that it was made from) has McNemar's exact p-value over the episodes where the
two disagree. Offline agreement (action error, cosine) does not predict success, so it is not used here.

A second run tells each policy *another* instruction that is valid in the same scene, and still judges the original task. A
policy that looks only at the scene keeps succeeding; one that listens does not: low is good.

Seeds below 50,000 are for reports alone (`episodes.seeds`): no demonstration, tuning or calibration uses them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from actlet.errors import SpecError
from actlet.statistics import mcnemar_p
from benchmarks.policies import Contender
from episodes.rollout import EpisodeResult, evaluate, success_summary
from episodes.seeds import REPORT_SEED_START, TUNING_SEED_START

__all__ = ["ClosedLoopConfig", "compare", "run_episodes", "summarise"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClosedLoopConfig:
    """Which episodes are run."""

    suite: str = "tabletop"
    tasks: tuple[str, ...] | None = None
    """All tasks of the suite when None."""
    episodes: int = 126
    """Episodes with the right instruction."""
    wrong_episodes: int = 126
    """Episodes with another instruction, on the first of the same seeds."""
    first_seed: int = REPORT_SEED_START
    batch: int = 16
    """Episodes that a process runs in lockstep."""
    workers: int | None = None
    """Processes; one for every core when None."""

    def __post_init__(self) -> None:
        last = self.first_seed + max(self.episodes, self.wrong_episodes)
        if self.episodes < 1 or self.wrong_episodes < 0 or not REPORT_SEED_START <= self.first_seed <= last <= TUNING_SEED_START:
            raise SpecError(
                f"closed loop: {self.episodes} + {self.wrong_episodes} episodes from seed {self.first_seed}: "
                f"expected at least one, with seeds in {REPORT_SEED_START} .. {TUNING_SEED_START - 1} (those kept for reports)."
            )

    @property
    def seeds(self) -> range:
        """Seeds of the episodes with the right instruction."""
        return range(self.first_seed, self.first_seed + self.episodes)

    @property
    def wrong_seeds(self) -> range:
        """Seeds of the episodes with another instruction."""
        return range(self.first_seed, self.first_seed + self.wrong_episodes)


def run_episodes(contender: Contender, config: ClosedLoopConfig) -> dict[str, list[dict[str, object]]]:
    """Run all episodes of one policy.

    Returns:
        ``episodes`` and ``wrong_instruction``: every `EpisodeResult` as plain JSON, in the order of the seeds.
    """
    found = {}
    for key, seeds, wrong in (("episodes", config.seeds, False), ("wrong_instruction", config.wrong_seeds, True)):
        results = evaluate(
            contender.factory,
            config.suite,
            seeds,
            tasks=config.tasks,
            wrong_instruction=wrong,
            workers=config.workers,
            batch=config.batch,
        )
        found[key] = [result.to_dict() for result in results]
    return found


def summarise(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Figures of one policy, from what `run_episodes` returned, in the words of results.json."""
    right = success_summary([EpisodeResult(**episode) for episode in runs["episodes"]])
    wrong = success_summary([EpisodeResult(**episode) for episode in runs["wrong_instruction"]])
    return {
        "episodes": right["n"],
        "success": right["rate"],
        "success_ci95": [right["low"], right["high"]],
        "success_wrong_instruction": wrong["rate"],
        "episodes_wrong_instruction": wrong["n"],
        "success_wrong_instruction_ci95": [wrong["low"], wrong["high"]],
        "errors": right["errors"] + wrong["errors"],
        "mean_steps": right["mean_steps"],
        "per_task": {
            task: {"episodes": row["n"], "successes": row["successes"], "success": row["rate"], "success_ci95": [row["low"], row["high"]]}
            for task, row in right["tasks"].items()
        },
        "motion": _motion(runs["episodes"]),
    }


def _motion(episodes: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Means over the successful episodes: a failed one stops early or wanders, which says nothing of smoothness."""
    done = [episode for episode in episodes if episode["success"]]

    def mean(key: str) -> float | None:
        values = [float(episode[key]) for episode in done if episode[key] is not None]
        return sum(values) / len(values) if values else None

    return {key: mean(key) for key in ("mean_squared_jerk", "path_length", "gripper_flips")}


def compare(ours: Sequence[Mapping[str, Any]], parents: Sequence[Mapping[str, Any]], parent: str) -> dict[str, Any]:
    """A policy against the one it was made from, on the episodes that both ran.

    Returns:
        ``parent, episodes, difference`` (of success rates), ``only_this, only_parent`` (episodes that one of them alone did), ``mcnemar_p``.

    Raises:
        SpecError: They have no episode in common.
    """
    theirs = {(episode["seed"], episode["task"]): bool(episode["success"]) for episode in parents}
    pairs = [
        (bool(episode["success"]), theirs[episode["seed"], episode["task"]])
        for episode in ours
        if (episode["seed"], episode["task"]) in theirs
    ]
    if not pairs:
        raise SpecError(f"no episode in common with {parent!r}: run both on the same seeds and tasks.")
    a, b = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return {
        "parent": parent,
        "episodes": len(pairs),
        "difference": (sum(a) - sum(b)) / len(pairs),
        "only_this": sum(x and not y for x, y in pairs),
        "only_parent": sum(y and not x for x, y in pairs),
        "mcnemar_p": mcnemar_p(a, b),
    }
