"""Record demonstrations into a hidden folder of whole files, one an episode, with as many processes as wanted, resumably.

    .NAME.collecting/arguments.json      what was asked for; other arguments do not go on with this work
                     0.arrow             episode number 0, which is kept, encoded
                     1.failed            episode number 1, which ended without success (an empty file)

Every scene is recorded with every task, one after the other; number n counts the episodes of a run. For two tasks and run number 0::

    n                0        1        2        3        4
    scene's seed     1000000  1000000  1000001  1000001  1000002     what `Task.reset` gets, and what the episode carries as its seed
    task             red      blue     red      blue     red

A policy that learns from one instruction per scene learns the scenes by heart and never listens (docs/lessons.md). Task and seed
together identify an episode, in the dataset and in reports; its number is known here alone.

An episode that raised an error leaves nothing, so that the next run tries it again. `episodes.collect` joins the files into a dataset.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
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

__all__ = ["Plan", "Recorded", "describe_errors", "hidden_folder", "load_episode", "record"]

RECORDING_VERSION = 2  # Of which episode a number means and how it is disturbed. Version 1 had one task per scene.
ERROR_SHARE = 0.1  # More episodes that raise than this share of those asked for: something is broken, not unlucky.
SPARE_ATTEMPTS = 20
KEPT, FAILED = ".arrow", ".failed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorded:
    """What became of the episodes that were tried, by their numbers (see `Plan.episode`)."""

    kept: list[int]
    """In ascending order, as the next two."""
    failed: list[int]
    errors: dict[int, str]
    """Number -> exception, or how the process died."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that decides what the episodes are."""

    suite_name: str
    tasks: tuple[str, ...]
    """Each once."""
    seed: int
    """Number of the run, which decides the scenes' seeds."""
    noise: PerturbationConfig
    keep_failures: bool
    observation: ObservationSpec
    action: ActionSpec
    rate_hz: float

    def arguments(self) -> dict[str, Any]:
        """What must agree for unfinished work to be gone on with."""
        return {"actlet": __version__, "recording_version": RECORDING_VERSION, **dataclasses.asdict(self)}

    def episode(self, number: int) -> tuple[str, int]:
        """Task and scene's seed of the episode with this number, 0 or more."""
        scene, task = divmod(number, len(self.tasks))
        return self.tasks[task], TRAIN_SEED_START + self.seed * TRAIN_SEEDS_PER_RUN + scene


def record(plan: Plan, folder: Path, episodes: int, workers: int, progress: bool) -> Recorded:
    """Record episodes until `episodes` of them are kept.

    An episode is begun only while those that are kept or under way are fewer than asked for. So exactly the shortest run of numbers,
    from 0, is tried that holds enough successes, whatever the number of workers. A scene lacks a task only where its episode failed or
    raised, and the last scene where the run ends within it.

    Raises:
        DatasetError: Too many episodes raise, or too few succeed.
        StorageError: The disk is full, or the folder cannot be written.
    """
    attempts = min(2 * episodes + SPARE_ATTEMPTS, TRAIN_SEEDS_PER_RUN * len(plan.tasks))
    done, number = Recorded(kept=[], failed=[], errors={}), 0
    with (
        tqdm(total=episodes, desc=f"collecting {plan.suite_name}", unit="episode", disable=not progress) as bar,
        WorkerPool(min(workers, episodes), _recorder, plan, folder) as pool,
    ):
        while True:
            while pool.idle and len(done.kept) + pool.in_flight < episodes:
                if number == attempts:
                    raise DatasetError(
                        f"{len(done.kept)} of {number} episodes succeeded ({len(done.errors)} raised an error), {episodes} are asked for. "
                        "Disturb less, choose other tasks, or keep failures."
                    )
                if (folder / f"{number}{KEPT}").exists():
                    done.kept.append(number)
                elif (folder / f"{number}{FAILED}").exists():
                    done.failed.append(number)
                else:
                    pool.submit(number)
                number += 1
            if pool.in_flight:
                _note(pool.wait(), plan, done, episodes)
            bar.set_postfix(failed=len(done.failed), errors=len(done.errors), refresh=False)
            bar.update(len(done.kept) - bar.n)
            if not pool.in_flight and len(done.kept) == episodes:
                return Recorded(kept=sorted(done.kept), failed=sorted(done.failed), errors=dict(sorted(done.errors.items())))


def load_episode(folder: Path, number: int) -> EncodedEpisode:
    """An episode that `record` has kept."""
    return EncodedEpisode.from_bytes((folder / f"{number}{KEPT}").read_bytes())


def describe_errors(errors: Mapping[tuple[str, int], str]) -> list[str]:
    """A line for each, from (task, scene's seed) -> what was said."""
    return [f"  task {task}, seed {seed}: {message}" for (task, seed), message in errors.items()]


def _note(outcome: Outcome, plan: Plan, done: Recorded, episodes: int) -> None:
    """Write down what became of an episode, and give up where going on makes no sense."""
    number = outcome.job
    if outcome.error is not None:
        done.errors[number] = outcome.error
        if len(done.errors) > ERROR_SHARE * episodes:
            shown = "\n".join(describe_errors({plan.episode(key): message for key, message in sorted(done.errors.items())[:5]}))
            raise DatasetError(
                f"{len(done.errors)} episodes raised an error, more than {ERROR_SHARE:.0%} of the {episodes} asked for:\n{shown}\n"
                f"Mend the cause; the {len(done.kept)} finished episodes are kept, and the same command goes on."
            )
        return
    what, message = outcome.result
    if what == "storage":
        raise StorageError(f"{message} The {len(done.kept)} finished episodes are kept, and the same command goes on.")
    (done.kept if what == "kept" else done.failed).append(number)


def _recorder(plan: Plan, folder: Path) -> Callable[[int], tuple[str, str]]:
    """What a worker process does: one episode a job, its number, left as a whole file. Tasks are made once and kept."""
    suite, made = make_suite(plan.suite_name), dict[str, Task]()

    def work(number: int) -> tuple[str, str]:
        name, seed = plan.episode(number)
        if name not in made:
            made[name] = suite.make(name)
        episode = demonstrate(made[name], seed, plan.noise)
        keep = episode.success or plan.keep_failures
        data = encode_episode(episode, plan.observation, plan.action, plan.rate_hz).to_bytes() if keep else b""
        try:
            write_bytes(folder / f"{number}{KEPT if keep else FAILED}", data)
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
