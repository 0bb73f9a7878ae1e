"""Rolling out a policy in closed loop: how often it succeeds, and which states it reaches.

The episode of seed s is on task ``tasks[s % len(tasks)]``, so two policies that are evaluated on the same seeds meet the same scenes, and
are compared in pairs (`actlet.statistics.mcnemar_p`). Results come in the order of the seeds. They depend neither on the number of worker
processes nor on the batch, up to the rounding of the policy's own batched arithmetic.

With more than one worker, processes are spawned (never forked: a forked process inherits locks and renderers in an unknown state), each
with one thread for every numeric library, and each calls `policy_factory()` once. So the factory must be picklable (a function of a
module, or `functools.partial` of one), and a script that calls `evaluate` does so under ``if __name__ == "__main__":``.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from actlet.errors import CallerError, UnknownNameError
from actlet.protocols import Policy
from actlet.statistics import wilson_interval
from episodes.episode import Episode
from episodes.lockstep import EpisodeResult, Outcome, PlannedEpisode, run_in_lockstep
from episodes.rollout_workers import Job, run_in_processes
from episodes.suites import SUITES, make_suite

__all__ = ["EpisodeResult", "collect_states", "evaluate", "success_summary"]

# A worker takes seconds to start (it imports the policy's libraries), which fewer episodes than this do not repay.
EPISODES_PER_WORKER = 4


def evaluate(
    policy_factory: Callable[[], Policy],
    suite_name: str,
    seeds: Sequence[int],
    *,
    tasks: Sequence[str] | None = None,
    wrong_instruction: bool = False,
    workers: int | None = None,
    batch: int = 16,
    delays: Sequence[int] = (0,),
    progress: bool = True,
) -> list[EpisodeResult]:
    """Run one episode for every seed and say what became of each.

    Args:
        policy_factory: Makes the policy; called once in every process. Picklable unless `workers` is 1.
        suite_name: See `episodes.suites.make_suite`.
        seeds: One episode each; no seed twice.
        tasks: The tasks to cycle through; all of the suite's when None.
        wrong_instruction: Tell the policy another valid instruction for the same scene, and judge the original task: a policy that succeeds
            does not listen.
        workers: Processes; 1 runs in this process, with its threads as they are. None: one for every CPU that this process may use, but
            none for fewer than four episodes.
        batch: Episodes that advance in lockstep in every process, which is the largest batch the policy is asked for.
        delays: Control steps by which answers come late, see `episodes.lockstep`; the episodes take turns.
        progress: Show a bar with the running success rate on standard error.

    Returns:
        One result for every seed, in the order of `seeds`. An episode that an exception ended is a failure whose `error` holds the message;
        such messages are also printed to standard error.

    Raises:
        UnknownNameError: The suite or a task does not exist.
        SpecError: Policy and task differ in what they see or command, or in their rate.
        CallerError: Seeds, workers or batch make no sense, or policy or suite cannot be made for the caller's fault.
        ActletError: The policy factory or a suite failed otherwise in a worker; the message holds its traceback.
    """
    job = Job(
        policy_factory=policy_factory, suite_entry=SUITES.get(suite_name, suite_name), batch=batch, wrong_instruction=wrong_instruction
    )
    return [outcome.result for outcome in _run(job, suite_name, seeds, tasks, workers, delays, progress)]


@overload
def collect_states(
    policy_factory: Callable[[], Policy],
    suite_name: str,
    seeds: Sequence[int],
    *,
    tasks: Sequence[str] | None = None,
    expert: Literal[False] = False,
    workers: int | None = None,
    batch: int = 16,
    delays: Sequence[int] = (0,),
    progress: bool = True,
) -> list[Episode]: ...
@overload
def collect_states(
    policy_factory: Callable[[], Policy],
    suite_name: str,
    seeds: Sequence[int],
    *,
    tasks: Sequence[str] | None = None,
    expert: Literal[True],
    workers: int | None = None,
    batch: int = 16,
    delays: Sequence[int] = (0,),
    progress: bool = True,
) -> tuple[list[Episode], list[NDArray[np.float32]]]: ...
def collect_states(
    policy_factory: Callable[[], Policy],
    suite_name: str,
    seeds: Sequence[int],
    *,
    tasks: Sequence[str] | None = None,
    expert: bool = False,
    workers: int | None = None,
    batch: int = 16,
    delays: Sequence[int] = (0,),
    progress: bool = True,
) -> list[Episode] | tuple[list[Episode], list[NDArray[np.float32]]]:
    """Roll a policy out and return the states that it reached, to be labelled by a better one (DAgger, Ross et al. 2011).

    Arguments and errors are those of `evaluate`, and `expert` asks for the scripted expert's labels as well.

    Returns:
        Episodes in the order of `seeds`, whose `action` is what the policy executed. With `expert` also a list beside it of float32 (T, A):
        what the scripted expert would have done in each of those states. Episodes that an exception ended are left out and reported.
    """
    job = Job(
        policy_factory=policy_factory,
        suite_entry=SUITES.get(suite_name, suite_name),
        batch=batch,
        wrong_instruction=False,
        record=True,
        expert=expert,
    )
    kept = [outcome for outcome in _run(job, suite_name, seeds, tasks, workers, delays, progress) if outcome.episode is not None]
    visited = [outcome.episode for outcome in kept if outcome.episode is not None]
    if not expert:
        return visited
    return visited, [outcome.expert for outcome in kept if outcome.expert is not None]


def success_summary(results: Sequence[EpisodeResult]) -> dict[str, Any]:
    """Success rates with 95 % Wilson intervals, in JSON types.

    Returns:
        ``n, successes, rate, low, high, errors, mean_steps`` (of successful episodes, None without one), and under ``tasks`` the same for every task.
        ``rate`` is None when there are no episodes.
    """
    tasks = list(dict.fromkeys(result.task for result in results))
    per_task = {task: _rates([result for result in results if result.task == task]) for task in sorted(tasks)}
    return {**_rates(results), "tasks": per_task}


def _rates(results: Sequence[EpisodeResult]) -> dict[str, Any]:
    n, steps = len(results), [result.steps for result in results if result.success]
    low, high = wilson_interval(len(steps), n)
    return {
        "n": n,
        "successes": len(steps),
        "rate": len(steps) / n if n else None,
        "low": low,
        "high": high,
        "errors": sum(bool(result.error) for result in results),
        "mean_steps": sum(steps) / len(steps) if steps else None,
    }


def _run(
    job: Job,
    suite_name: str,
    seeds: Sequence[int],
    tasks: Sequence[str] | None,
    workers: int | None,
    delays: Sequence[int],
    progress: bool,
) -> list[Outcome]:
    """Check the request, run it in this process or in several, and return the outcomes in the order of the seeds."""
    suite = make_suite(suite_name)
    names = suite.tasks if tasks is None else tuple(tasks)
    for name in names:
        if name not in suite.tasks:
            raise UnknownNameError(f"task of suite {suite_name!r}:", name, suite.tasks)
    seeds = [int(seed) for seed in seeds]
    repeated = [seed for seed, times in Counter(seeds).items() if times > 1]
    if not names or repeated or (seeds and min(seeds) < 0):
        raise CallerError(f"tasks {names}, seeds repeated {repeated}: at least one task, and seeds of 0 or more, each once, are needed.")
    if job.batch < 1 or (workers is not None and workers < 1):
        raise CallerError(f"workers {workers} and batch {job.batch}: each must be at least 1.")
    if not delays or min(delays) < 0:
        raise CallerError(f"delays {list(delays)}: expected control steps of 0 or more, at least one.")
    plans = [
        PlannedEpisode(index=index, task=names[seed % len(names)], seed=seed, delay_steps=delays[index // len(names) % len(delays)])
        for index, seed in enumerate(seeds)
    ]
    if workers is None:
        workers = min(_cpus(), len(plans) // EPISODES_PER_WORKER)
    workers = max(1, min(workers, len(plans)))

    def outcomes() -> Iterator[Outcome]:
        if workers > 1:
            return run_in_processes(job, plans, workers)
        if not plans:
            return iter(())
        options = {"wrong_instruction": job.wrong_instruction, "record": job.record, "expert": job.expert}
        return run_in_lockstep(job.policy_factory(), suite, plans, batch=job.batch, **options)

    done = _watch(outcomes(), len(plans), suite_name, progress)
    return sorted(done, key=lambda outcome: outcome.index)


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _watch(outcomes: Iterator[Outcome], total: int, title: str, progress: bool) -> list[Outcome]:
    """Gather outcomes behind a progress bar; at the end, every distinct error is printed once."""
    done: list[Outcome] = []
    errors: Counter[str] = Counter()
    successes = 0
    with tqdm(total=total, desc=title, unit="episode", disable=not progress, file=sys.stderr) as bar:
        for outcome in outcomes:
            done.append(outcome)
            successes += outcome.result.success
            if outcome.result.error:
                errors[outcome.result.error] += 1
            bar.set_postfix_str(f"success {successes}/{len(done)} = {100 * successes // len(done)} %", refresh=False)
            bar.update()
    for message, times in errors.most_common():
        print(f"{title}: {times} of {total} episodes failed with an error: {message}", file=sys.stderr)
    return done
