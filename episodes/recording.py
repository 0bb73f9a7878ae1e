"""Record demonstrations into a hidden folder of whole files, one an episode, with as many processes as wanted, resumably.

    .NAME.collecting/arguments.json      what was asked for; other arguments do not go on with this work
                     1000000.arrow       an episode that is kept, encoded
                     1000001.failed      a seed whose episode ended without success (an empty file)

A seed that raised an error leaves nothing, so that the next run tries it again. `episodes.collect` joins the files into a dataset.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from actlet import __version__
from actlet.errors import DatasetError, StorageError
from actlet.protocols import Task
from actlet.specs import ActionSpec, ObservationSpec
from actlet.storage import read_json, write_bytes, write_json
from episodes.demonstration import PerturbationConfig, demonstrate
from episodes.lerobot_writer import EncodedEpisode, encode_episode
from episodes.seeds import TRAIN_SEED_START, TRAIN_SEEDS_PER_RUN
from episodes.suites import make_suite
from episodes.worker_pool import Outcome, WorkerPool

__all__ = ["Plan", "Recorded", "hidden_folder", "load_episode", "record"]

ERROR_SHARE = 0.1  # More episodes that raise than this share of those asked for: something is broken, not unlucky.
SPARE_ATTEMPTS = 20
KEPT, FAILED = ".arrow", ".failed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorded:
    """What became of the seeds that were tried."""

    kept: list[int]
    """In ascending order, as the next."""
    failed: list[int]
    errors: dict[int, str]
    """Seed -> exception, or how the process died."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that decides what the episodes are."""

    suite_name: str
    tasks: tuple[str, ...]
    seed: int
    noise: PerturbationConfig
    keep_failures: bool
    observation: ObservationSpec
    action: ActionSpec
    rate_hz: float

    def arguments(self) -> dict[str, Any]:
        """What must agree for unfinished work to be gone on with."""
        return {"actlet": __version__, **dataclasses.asdict(self)}


def record(plan: Plan, folder: Path, episodes: int, workers: int, progress: bool) -> Recorded:
    """Record episodes until `episodes` of them are kept.

    A seed is begun only while the seeds that are kept or under way are fewer than asked for. So exactly the shortest run of seeds is
    tried that holds enough successes, whatever the number of workers.

    Raises:
        DatasetError: Too many episodes raise, or too few succeed.
        StorageError: The disk is full, or the folder cannot be written.
    """
    first = TRAIN_SEED_START + plan.seed * TRAIN_SEEDS_PER_RUN
    attempts = min(2 * episodes + SPARE_ATTEMPTS, TRAIN_SEEDS_PER_RUN)
    done, tried = Recorded(kept=[], failed=[], errors={}), 0
    with (
        tqdm(total=episodes, desc=f"collecting {plan.suite_name}", unit="episode", disable=not progress) as bar,
        WorkerPool(min(workers, episodes), _recorder, plan, folder) as pool,
    ):
        while True:
            while pool.idle and len(done.kept) + pool.in_flight < episodes:
                if tried == attempts:
                    raise DatasetError(
                        f"{len(done.kept)} of {tried} episodes succeeded ({len(done.errors)} raised an error), {episodes} are asked for. "
                        "Disturb less, choose other tasks, or keep failures."
                    )
                number, name = first + tried, plan.tasks[tried % len(plan.tasks)]
                tried += 1
                if (folder / f"{number}{KEPT}").exists():
                    done.kept.append(number)
                elif (folder / f"{number}{FAILED}").exists():
                    done.failed.append(number)
                else:
                    pool.submit((number, name))
            if pool.in_flight:
                _note(pool.wait(), done, episodes)
            bar.set_postfix(failed=len(done.failed), errors=len(done.errors), refresh=False)
            bar.update(len(done.kept) - bar.n)
            if not pool.in_flight and len(done.kept) == episodes:
                return Recorded(kept=sorted(done.kept), failed=sorted(done.failed), errors=dict(sorted(done.errors.items())))


def load_episode(folder: Path, seed: int) -> EncodedEpisode:
    """An episode that `record` has kept."""
    return EncodedEpisode.from_bytes((folder / f"{seed}{KEPT}").read_bytes())


def _note(outcome: Outcome, done: Recorded, episodes: int) -> None:
    """Write down what became of a seed, and give up where going on makes no sense."""
    seed = outcome.job[0]
    if outcome.error is not None:
        done.errors[seed] = outcome.error
        if len(done.errors) > ERROR_SHARE * episodes:
            shown = "\n".join(f"  seed {key}: {message}" for key, message in sorted(done.errors.items())[:5])
            raise DatasetError(
                f"{len(done.errors)} episodes raised an error, more than {ERROR_SHARE:.0%} of the {episodes} asked for:\n{shown}\n"
                f"Mend the cause; the {len(done.kept)} finished episodes are kept, and the same command goes on."
            )
        return
    what, message = outcome.result
    if what == "storage":
        raise StorageError(f"{message} The {len(done.kept)} finished episodes are kept, and the same command goes on.")
    (done.kept if what == "kept" else done.failed).append(seed)


def _recorder(plan: Plan, folder: Path) -> Callable[[tuple[int, str]], tuple[str, str]]:
    """What a worker process does: one episode a job, left as a whole file. Tasks are made once and kept."""
    suite, made = make_suite(plan.suite_name), dict[str, Task]()

    def work(job: tuple[int, str]) -> tuple[str, str]:
        seed, name = job
        if name not in made:
            made[name] = suite.make(name)
        episode = demonstrate(made[name], seed, plan.noise)
        keep = episode.success or plan.keep_failures
        data = encode_episode(episode, plan.observation, plan.action, plan.rate_hz).to_bytes() if keep else b""
        try:
            write_bytes(folder / f"{seed}{KEPT if keep else FAILED}", data)
        except StorageError as error:
            return "storage", str(error)
        return ("kept" if keep else "failed"), ""

    return work


@contextlib.contextmanager
def hidden_folder(out: Path, plan: Plan, overwrite: bool) -> Iterator[Path]:
    """The folder of finished episodes, locked for this process; unfinished work of the same plan is found in it.

    Raises:
        DatasetError: It holds work of another plan, and `overwrite` is False.
        StorageError: It cannot be made, or another process is at work in it.
    """
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
        before = read_json(about) if about.exists() else {}
        wanted = json.loads(json.dumps(plan.arguments()))  # As JSON gives it back: lists for tuples.
        changed = [f"{key} was {before.get(key)!r}, is {value!r}" for key, value in wanted.items() if before.get(key) != value]
        if changed and not overwrite and any(folder.glob(f"*{KEPT}")):
            raise DatasetError(
                f"{folder} holds unfinished work of another command ({'; '.join(changed)}). "
                "Run that command to go on with it, or pass --overwrite to drop it."
            )
        for file in folder.iterdir() if changed else ():
            file.unlink()
        write_json(about, wanted)
        yield folder
    finally:
        os.close(lock)
