"""Two bundles on the same episodes: driving them, and what the pairs say.

Whoever compares a smaller bundle with its parent in closed loop does it here: the certificate on report seeds, the search on tuning seeds,
the benchmark. An episode that ended in an error says nothing of a policy, so nothing is judged then.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from actlet.errors import ActletError, BundleError
from actlet.protocols import Policy
from actlet.statistics import mcnemar_p, paired_difference, wilson_interval
from episodes.rollout import EpisodeResult, evaluate
from runtime.policy import BundlePolicy

__all__ = ["Verdict", "drive", "marks", "motion_of", "open_bundle", "paired_figures", "paired_rates", "verdict"]

Verdict = Literal["non-inferior", "inferior", "undecided"]


def drive(
    path: Path, name: str, suite: str, first_seed: int, count: int, *, delay: int = 0, workers: int | None = None
) -> list[EpisodeResult]:
    """Run a bundle in closed loop.

    Args:
        path: The bundle's folder.
        name: Its hash, which every process checks.
        suite: Where.
        first_seed: The first episode's; the others follow.
        count: How many.
        delay: Control steps by which answers come late.
        workers: Processes; one for every core when None.

    Raises:
        ActletError: An episode ended in an error, which says nothing of the policy.
        BundleError: The bundle is another one by now.
    """
    found = evaluate(
        functools.partial(open_bundle, str(path), name), suite, range(first_seed, first_seed + count), workers=workers, delays=(delay,)
    )
    if broken := [result for result in found if result.error]:
        raise ActletError(
            f"{len(broken)} of {count} episodes of {path} ended in an error, the first ({broken[0].task}, seed {broken[0].seed}): {broken[0].error.strip()}. "
            "Nothing is judged; the same command goes on from here."
        )
    return found


def open_bundle(path: str, name: str) -> Policy:
    """A bundle as a policy, if it is the one of that hash; a function that can be sent to another process."""
    policy = BundlePolicy(path)
    if policy.bundle.hash != name:
        raise BundleError(
            f"{path} was {name[:12]} and is {policy.bundle.hash[:12]}: it was replaced while it was being judged. Run the command again."
        )
    return policy


def paired_rates(ours: Sequence[bool], theirs: Sequence[bool]) -> dict[str, Any]:
    n = len(ours)
    return {
        "episodes": n,
        "outcomes": {"child": marks(ours), "parent": marks(theirs)},
        "success": {"child": sum(ours) / n, "parent": sum(theirs) / n},
        "success_ci95": {"child": list(wilson_interval(sum(ours), n)), "parent": list(wilson_interval(sum(theirs), n))},
        **paired_figures(ours, theirs),
    }


def paired_figures(ours: Sequence[bool], theirs: Sequence[bool]) -> dict[str, Any]:
    difference, low, high = paired_difference(ours, theirs)
    return {"difference": difference, "difference_ci95": [low, high], "mcnemar_p": mcnemar_p(ours, theirs)}


def marks(outcomes: Sequence[bool]) -> str:
    return "".join(str(int(outcome)) for outcome in outcomes)


def motion_of(ours: Sequence[EpisodeResult], theirs: Sequence[EpisodeResult]) -> dict[str, Any]:
    """Over the episodes in which both succeed; None where nothing was measured."""
    both = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.success and b.success]

    def total(which: int, key: str) -> float:
        return float(sum(getattr(pair[which], key) or 0.0 for pair in both))

    ratios = {
        name: total(0, key) / total(1, key) if total(1, key) else None
        for name, key in (("jerk_ratio", "mean_squared_jerk"), ("path_ratio", "path_length"))
    }
    flips = (total(0, "gripper_flips") - total(1, "gripper_flips")) / len(both) if both else 0.0
    return {"episodes": len(both), **ratios, "gripper_flips_difference": flips}


def verdict(interval: Sequence[float], margin: float, *, parent: float = 1.0) -> Verdict:
    """What an interval of the difference (child - parent) says, given the parent's rate; see `quantize.certificate`."""
    low, high = interval
    if not parent:
        return "undecided"
    return "non-inferior" if low >= -margin else "inferior" if high < -margin else "undecided"
