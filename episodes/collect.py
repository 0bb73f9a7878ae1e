"""Record demonstrations of a scripted expert on all cores: `actlet collect`, or `collect(...)` from Python.

Every scene is recorded with every task, so that only the instruction says what to do. The dataset depends on the arguments alone, not on
the number of workers: every episode draws its randomness from its task and its scene's seed, and episodes are written scene by scene,
tasks in turn. Only successful episodes are kept, and as many are tried as it takes.

A finished episode is a whole file in the hidden folder ``.NAME.collecting`` beside the target. After Ctrl-C, a crash or a full disk the
same command goes on from there (a larger or smaller number of episodes too); when all are there, they are joined into the dataset.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from actlet.errors import DatasetError, StorageError, UnknownNameError
from episodes.demonstration import PerturbationConfig
from episodes.lerobot_writer import DatasetWriter
from episodes.recording import Plan, describe_errors, hidden_folder, load_episode, record
from episodes.suites import make_suite

__all__ = ["CollectionReport", "PerturbationConfig", "add_arguments", "collect", "run"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectionReport:
    """What a collection did."""

    path: Path
    episodes: int
    """Episodes in the dataset."""
    failed: tuple[tuple[str, int], ...]
    """(task, scene's seed) of the episodes that ended without success and were not kept."""
    errors: dict[tuple[str, int], str]
    """(task, scene's seed) of the episodes that raised an exception, or whose process died -> what was said."""
    seconds: float
    """Duration of this call."""
    size_bytes: int
    """Size of the dataset on disk."""

    def __str__(self) -> str:
        rate = self.episodes / self.seconds if self.seconds > 0 else 0.0
        lines = [
            f"{self.path}: {self.episodes} episodes, {self.size_bytes / 1e6:.1f} MB, {self.seconds:.1f} s ({rate:.2f} episodes/s); "
            f"{len(self.failed)} without success, {len(self.errors)} with an error."
        ]
        return "\n".join(lines + describe_errors(self.errors))


def collect(
    suite_name: str,
    out: str | Path,
    episodes: int,
    *,
    tasks: Sequence[str] | None = None,
    seed: int = 0,
    workers: int | None = None,
    noise: PerturbationConfig | None = None,
    keep_failures: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> CollectionReport:
    """Record a dataset of demonstrations.

    Args:
        suite_name: A suite of `episodes.suites.make_suite`.
        out: The dataset's folder.
        episodes: How many episodes the dataset shall have.
        tasks: Names of tasks, each of which is recorded in every scene; None for all of the suite.
        seed: Number of the run; other numbers give other scenes (see `episodes.seeds`).
        workers: Processes; None for one per core.
        noise: How executed actions are disturbed; None for the defaults.
        keep_failures: Keep episodes without success too.
        overwrite: Replace a dataset, and drop unfinished work of another command, at this place.
        progress: Show a progress bar.

    Raises:
        DatasetError: Too many episodes raise, or too few succeed; a task is named twice; or unfinished work of another command is in
            the way.
        StorageError: The dataset exists, the disk is full, or another process is collecting at this place.
        UnknownNameError: There is no such suite or task.
    """
    started, out = time.monotonic(), Path(out)
    if episodes < 1 or (workers is not None and workers < 1) or not 0 <= seed < 4000:
        raise DatasetError(f"episodes {episodes}, workers {workers}, seed {seed}: expected at least 1, at least 1, and 0 .. 3999.")
    if out.exists() and not overwrite:
        raise StorageError(f"{out} exists already: choose another name, remove it, or pass --overwrite.")
    suite = make_suite(suite_name)
    names = tuple(tasks) if tasks else suite.tasks
    for name in names:
        if name not in suite.tasks:
            raise UnknownNameError(f"task of suite {suite.name!r}:", name, suite.tasks)
    if len(set(names)) < len(names):
        raise DatasetError(f"tasks {list(names)}: one is named twice, and a scene is recorded once with each. Name it once.")
    noise = noise or PerturbationConfig()
    sample = suite.make(names[0])
    plan = Plan(
        suite_name=suite_name,
        tasks=names,
        seed=seed,
        noise=noise,
        keep_failures=keep_failures,
        observation=sample.observation_spec,
        action=sample.action_spec,
        rate_hz=sample.rate_hz,
    )
    sample.close()
    # Made before the work, so that what it refuses is refused at once; it touches the disk when it is entered.
    writer = DatasetWriter(
        out,
        observation_spec=plan.observation,
        action_spec=plan.action,
        rate_hz=plan.rate_hz,
        robot_type=suite.name,
        overwrite=overwrite,
        provenance={key: value for key, value in plan.arguments().items() if key not in ("observation", "action", "rate_hz")},
    )
    with hidden_folder(out, plan, overwrite) as folder:
        recorded = record(plan, folder, episodes, workers or len(os.sched_getaffinity(0)), progress)
        failed = tuple(plan.episode(number) for number in recorded.failed)
        errors = {plan.episode(number): message for number, message in recorded.errors.items()}
        writer.provenance |= {"failed": [list(episode) for episode in failed], "errors": [list(episode) for episode in errors]}
        with writer:
            for number in recorded.kept:
                writer.add_encoded(load_episode(folder, number))
        shutil.rmtree(folder, ignore_errors=True)
    return CollectionReport(
        path=out,
        episodes=len(recorded.kept),
        failed=failed,
        errors=errors,
        seconds=time.monotonic() - started,
        size_bytes=sum(file.stat().st_size for file in out.rglob("*") if file.is_file()),
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `actlet collect`."""
    default = PerturbationConfig()
    parser.add_argument("--suite", default="tabletop", help="which simulated suite (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="the dataset's folder")
    parser.add_argument("--episodes", type=int, default=300, help="how many episodes the dataset shall have (default: %(default)s)")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="only these tasks (default: all of the suite)")
    parser.add_argument("--seed", type=int, default=0, help="number of the run; another gives other scenes (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    parser.add_argument("--noise-sd", type=float, default=default.noise_sd, help="noise on the executed action (default: %(default)s)")
    parser.add_argument("--noise-share", type=float, default=default.noise_share, help="share of steps with noise (default: %(default)s)")
    parser.add_argument("--kick-sd", type=float, default=default.kick_sd, help="size of held kicks (default: %(default)s)")
    parser.add_argument("--kick-share", type=float, default=default.kick_share, help="how often a kick begins (default: %(default)s)")
    parser.add_argument("--slip-share", type=float, default=default.slip_share, help="how often the gripper slips (default: %(default)s)")
    parser.add_argument("--keep-failures", action="store_true", help="keep episodes without success too")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there, also unfinished work of another command")
    parser.epilog = """\
Every scene is recorded with every task: 600 episodes of 3 tasks show 200 scenes.
Standard deviations are shares of half an action's range. After Ctrl-C the same command goes on where it was.

examples:
  actlet collect --episodes 600 --out data/table
  actlet collect --tasks put --episodes 50 --seed 1 --noise-sd 0 --kick-share 0 --slip-share 0 --out data/clean_put
  actlet collect --suite metaworld --tasks door-open drawer-close --episodes 100 --out data/metaworld
"""


def run(arguments: argparse.Namespace) -> int:
    """The verb `collect`."""
    noise = PerturbationConfig(
        noise_sd=arguments.noise_sd,
        noise_share=arguments.noise_share,
        kick_sd=arguments.kick_sd,
        kick_share=arguments.kick_share,
        slip_share=arguments.slip_share,
    )
    report = collect(
        arguments.suite,
        arguments.out,
        arguments.episodes,
        tasks=arguments.tasks,
        seed=arguments.seed,
        workers=arguments.workers,
        noise=noise,
        keep_failures=arguments.keep_failures,
        overwrite=arguments.overwrite,
    )
    print(report)
    return 0
