"""What a launcher starts in tests/test_distill_processes.py: a tiny student is distilled, and whoever asks the teacher or drives says so.

launched_distill.py DATA OUT TEACHER STEPS        TEACHER is a folder or "none"
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from test_distill_train import SUITE, tiny

import distill.driving
import distill.train
from distill.fit import FitConfig
from distill.processes import processes
from distill.rt2_teacher import Rt2Teacher


def telling(function: Callable[..., Any], what: str) -> Callable[..., Any]:
    """The same function, after a line that says which process calls it."""

    @functools.wraps(function)
    def told(*arguments: Any, **settings: Any) -> Any:
        print(f"process {processes().process_index} {what}", flush=True)
        return function(*arguments, **settings)

    return told


def main() -> None:
    data, out, teacher, steps = sys.argv[1:]
    distill.train.FitConfig = functools.partial(FitConfig, save_seconds=0.5)  # type: ignore[misc, assignment]
    distill.train._save = telling(distill.train._save, "writes the checkpoint")
    distill.driving.collect_states = telling(distill.driving.collect_states, "drives")  # type: ignore[assignment]
    distill.driving.evaluate = telling(distill.driving.evaluate, "judges")  # type: ignore[assignment]
    for name in ("action_distribution", "scene_vectors"):
        setattr(Rt2Teacher, name, telling(getattr(Rt2Teacher, name), "asks"))
    config = tiny(steps=int(steps), rounds=2 if teacher != "none" else 1, patience=9, judge_every=max(3, int(steps) // 2), judge_episodes=4)
    distill.train.distill(data, out, teacher=None if teacher == "none" else teacher, suite=SUITE, config=config)
    processes().destroy_process_group()


if __name__ == "__main__":
    main()
