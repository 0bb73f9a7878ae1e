"""Record demonstrations of a scripted expert on all cores: `actlet collect`, or `collect(...)` from Python.

The dataset depends on the arguments alone, not on the number of workers: every episode draws its randomness from its own seed, and
episodes are written in the order of their seeds. Only successful episodes are kept, and as many seeds are tried as it takes.

A finished episode is a whole file in the hidden folder ``.NAME.collecting`` beside the target. After Ctrl-C, a crash or a full disk the
same command goes on from there (a larger or smaller number of episodes too); when all are there, they are joined into the dataset.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from actlet import __version__
from actlet.errors import DatasetError, StorageError, UnknownNameError
from actlet.protocols import Task
from actlet.specs import ActionSpec, ObservationSpec
from actlet.storage import read_json, write_bytes, write_json
from episodes.demonstration import PerturbationConfig, demonstrate
from episodes.lerobot_writer import DatasetWriter, EncodedEpisode, encode_episode
from episodes.seeds import TRAIN_SEED_START, TRAIN_SEEDS_PER_RUN
from episodes.suites import make_suite
from episodes.worker_pool import WorkerPool

__all__ = ["CollectionReport", "add_arguments", "collect", "run"]

ERROR_SHARE = 0.1  # More episodes that raise than this share of those asked for: something is broken, not unlucky.
SPARE_ATTEMPTS = 20
KEPT, FAILED = ".arrow", ".failed"  # Endings of what a finished seed leaves in the hidden folder.


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectionReport:
    """What a collection did."""

    path: Path
    episodes: int
    """Episodes in the dataset."""
    failed_seeds: tuple[int, ...]
    """Seeds whose episode ended without success."""
    errors: dict[int, str]
    """Seeds whose episode raised an exception, or whose process died, and what was said."""
    seconds: float
    """Duration of this call."""
    size_bytes: int
    """Size of the dataset on disk."""

    def __str__(self) -> str:
        rate = self.episodes / self.seconds if self.seconds > 0 else 0.0
        lines = [
            f"{self.path}: {self.episodes} episodes, {self.size_bytes / 1e6:.1f} MB, {self.seconds:.1f} s ({rate:.2f} episodes/s); "
            f"{len(self.failed_seeds)} without success, {len(self.errors)} with an error."
        ]
        return "\n".join(lines + [f"  seed {seed}: {message}" for seed, message in sorted(self.errors.items())])


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
        tasks: Names of tasks, over which the episodes cycle; None for all of the suite.
        seed: Number of the run; other numbers give other episodes (see `episodes.seeds`).
        workers: Processes; None for one per core.
        noise: How executed actions are disturbed; None for the defaults.
        keep_failures: Keep episodes without success too.
        overwrite: Replace a dataset, and drop unfinished work of another command, at this place.
        progress: Show a progress bar.

    Raises:
        DatasetError: Too many episodes raise, or too few succeed; or unfinished work of another command is in the way.
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
            raise UnknownNameError(f"task of suite {suite.name!r}", name, suite.tasks)
    noise = noise or PerturbationConfig()
    sample = suite.make(names[0])
    plan = _Plan(
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
    with _hidden_folder(out, plan.fingerprint(), overwrite) as folder:
        kept, failed, errors = _record(plan, folder, episodes, workers or len(os.sched_getaffinity(0)), progress)
        provenance = {**plan.fingerprint(), "failed_seeds": failed, "error_seeds": sorted(errors)}
        with DatasetWriter(
            out,
            observation_spec=plan.observation,
            action_spec=plan.action,
            rate_hz=plan.rate_hz,
            robot_type=suite.name,
            overwrite=overwrite,
            provenance=provenance,
        ) as writer:
            for number in kept:
                writer.add_encoded(EncodedEpisode.from_bytes((folder / f"{number}{KEPT}").read_bytes()))
        shutil.rmtree(folder, ignore_errors=True)
    return CollectionReport(
        path=out,
        episodes=len(kept),
        failed_seeds=tuple(failed),
        errors=errors,
        seconds=time.monotonic() - started,
        size_bytes=sum(file.stat().st_size for file in out.rglob("*") if file.is_file()),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plan:
    """Everything that decides what the episodes are."""

    suite_name: str
    tasks: tuple[str, ...]
    seed: int
    noise: PerturbationConfig
    keep_failures: bool
    observation: ObservationSpec
    action: ActionSpec
    rate_hz: float

    def fingerprint(self) -> dict[str, Any]:
        """What must agree for unfinished work to be gone on with, as JSON gives it back."""
        return {
            "actlet": __version__,
            "suite": self.suite_name,
            "tasks": list(self.tasks),
            "seed": self.seed,
            "noise": {**dataclasses.asdict(self.noise), "spared": list(self.noise.spared)},
            "keep_failures": self.keep_failures,
        }


def _record(plan: _Plan, folder: Path, episodes: int, workers: int, progress: bool) -> tuple[list[int], list[int], dict[int, str]]:
    """Record episodes until there are enough.

    A seed is only begun while those that are kept or under way are fewer than asked for. So exactly the shortest run of seeds is tried
    that holds enough successes, whatever the number of workers.

    Returns:
        Kept seeds and failed seeds in ascending order, and the errors by seed.
    """
    first = TRAIN_SEED_START + plan.seed * TRAIN_SEEDS_PER_RUN
    attempts = min(2 * episodes + SPARE_ATTEMPTS, TRAIN_SEEDS_PER_RUN)
    kept, failed, errors, tried = [], [], {}, 0
    with (
        tqdm(total=episodes, desc=f"collecting {plan.suite_name}", unit="episode", disable=not progress) as bar,
        WorkerPool(min(workers, episodes), _recorder, plan, folder) as pool,
    ):
        while True:
            while pool.idle and len(kept) + pool.in_flight < episodes:
                number = first + tried
                if tried == attempts:
                    raise DatasetError(
                        f"only {len(kept)} of {tried} episodes succeeded, {episodes} are wanted ({len(errors)} raised an error). "
                        "Disturb less, choose other tasks, or keep failures."
                    )
                if (folder / f"{number}{KEPT}").exists():
                    kept.append(number)
                    bar.update()
                elif (folder / f"{number}{FAILED}").exists():
                    failed.append(number)
                else:
                    pool.submit((number, plan.tasks[tried % len(plan.tasks)]))
                tried += 1
            if pool.in_flight == 0:
                return sorted(kept), sorted(failed), errors
            outcome = pool.wait()
            number = outcome.job[0]
            if outcome.error is not None:
                errors[number] = outcome.error
                if len(errors) > ERROR_SHARE * episodes:
                    shown = "\n".join(f"  seed {key}: {message}" for key, message in sorted(errors.items())[:5])
                    raise DatasetError(
                        f"{len(errors)} episodes raised an error, more than {ERROR_SHARE:.0%} of the {episodes} asked for:\n{shown}\n"
                        f"Mend the cause; the {len(kept)} finished episodes are kept, and the same command goes on."
                    )
            elif outcome.result == "full":
                raise StorageError(f"no space left in {folder.parent}. Free some; finished episodes are kept, the same command goes on.")
            elif outcome.result == "kept":
                kept.append(number)
                bar.update()
            else:
                failed.append(number)
            bar.set_postfix(failed=len(failed), errors=len(errors), refresh=False)


def _recorder(plan: _Plan, folder: Path) -> Callable[[tuple[int, str]], str]:
    """What a worker process does: one episode a job, left as a whole file. Tasks are made once and kept."""
    suite, made = make_suite(plan.suite_name), dict[str, Task]()

    def record(job: tuple[int, str]) -> str:
        number, name = job
        if name not in made:
            made[name] = suite.make(name)
        episode = demonstrate(made[name], number, plan.noise)
        try:
            if episode.success or plan.keep_failures:
                encoded = encode_episode(episode, plan.observation, plan.action, plan.rate_hz)
                write_bytes(folder / f"{number}{KEPT}", encoded.to_bytes())
                return "kept"
            write_bytes(folder / f"{number}{FAILED}", b"")
            return "failed"
        except StorageError:
            return "full"

    return record


@contextlib.contextmanager
def _hidden_folder(out: Path, fingerprint: dict[str, Any], overwrite: bool) -> Iterator[Path]:
    """The folder of finished episodes, locked for this process; unfinished work of the same command is found in it."""
    folder = out.parent / f".{out.name}.collecting"
    about = folder / "arguments.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise StorageError(f"cannot make {folder}: {error.strerror}. Choose another folder, or change its permissions.") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StorageError(f"another process is collecting {out} already: wait for it, or choose another name.") from error
        before = read_json(about) if about.exists() else None
        if before is not None and before != fingerprint:
            changed = [f"{key} was {before.get(key)!r}, is {value!r}" for key, value in fingerprint.items() if before.get(key) != value]
            if not overwrite:
                raise DatasetError(
                    f"{folder} holds unfinished work of another command ({'; '.join(changed)}). "
                    "Run that command to go on with it, or pass --overwrite to drop it."
                )
            for file in folder.iterdir():
                file.unlink()
        write_json(about, fingerprint)
        yield folder
    finally:
        os.close(lock)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `actlet collect`."""
    default = PerturbationConfig()
    parser.add_argument("--suite", default="tabletop", help="which simulated suite (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="the dataset's folder")
    parser.add_argument("--episodes", type=int, default=300, help="how many episodes the dataset shall have (default: %(default)s)")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="only these tasks (default: all of the suite, in turn)")
    parser.add_argument("--seed", type=int, default=0, help="number of the run; another gives other episodes (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="processes (default: one per core)")
    parser.add_argument("--noise-sd", type=float, default=default.noise_sd, help="noise on the executed action (default: %(default)s)")
    parser.add_argument("--noise-share", type=float, default=default.noise_share, help="share of steps with noise (default: %(default)s)")
    parser.add_argument("--kick-sd", type=float, default=default.kick_sd, help="size of held kicks (default: %(default)s)")
    parser.add_argument("--kick-share", type=float, default=default.kick_share, help="how often a kick begins (default: %(default)s)")
    parser.add_argument("--keep-failures", action="store_true", help="keep episodes without success too")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there, also unfinished work of another command")
    parser.epilog = """\
Standard deviations are shares of half an action's range. After Ctrl-C the same command goes on where it was.

examples:
  actlet collect --episodes 600 --out data/table
  actlet collect --tasks put --episodes 50 --seed 1 --noise-sd 0 --kick-share 0 --out data/clean_put
  actlet collect --suite metaworld --tasks door-open-v3 drawer-close-v3 --episodes 100 --out data/metaworld
"""


def run(arguments: argparse.Namespace) -> int:
    """The verb `collect`."""
    noise = PerturbationConfig(
        noise_sd=arguments.noise_sd, noise_share=arguments.noise_share, kick_sd=arguments.kick_sd, kick_share=arguments.kick_share
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
    print(report, file=sys.stdout)
    return 0
