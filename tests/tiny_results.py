"""A small but genuine results document: two tiny bundles timed, two readers of pictures judged on a point that reaches targets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from point_reach import PictureReader

from actlet.protocols import ActionChunk, Observation
from benchmarks.bench import with_comparisons
from benchmarks.latency import LatencyConfig, measure_latency
from benchmarks.policies import Contender
from benchmarks.results import make_results
from episodes.rollout import evaluate


class DeafReader(PictureReader):
    """Goes to the red target, whatever it is told."""

    def predict(self, observations: Sequence[Observation], instructions: Sequence[str]) -> list[ActionChunk]:
        return super().predict(observations, ["reach the red target"] * len(instructions))


POLICIES = {"student-float": PictureReader, "student-int8": DeafReader}


def tiny_runs() -> dict[str, dict[str, Any]]:
    """Six episodes of a policy that listens and of one that does not, as `benchmarks.closed_loop.run_episodes` returns them."""

    def episodes(policy: type[PictureReader], wrong: bool) -> list[dict[str, object]]:
        results = evaluate(policy, "point_reach:make_suite", range(6), wrong_instruction=wrong, workers=1, progress=False)
        return [result.to_dict() for result in results]

    return {name: {"episodes": episodes(kind, False), "wrong_instruction": episodes(kind, True)} for name, kind in POLICIES.items()}


def tiny_results(first: Path, second: Path) -> dict[str, Any]:
    """A results document of two bundles."""
    contenders = [Contender(name, path) for name, path in zip(POLICIES, (first, second), strict=True)]
    latency = measure_latency(contenders, LatencyConfig(rounds=2, calls=3), progress=False)
    skipped = {"skipped": "no recordings in a test"}
    return make_results(suite="point_reach", latency=latency, closed_loop=with_comparisons(tiny_runs()), real_data=skipped)
