"""Spreading planned episodes over spawned processes, without losing one.

Every worker gets a contiguous share of the plan, known beforehand: which episodes share a batch does not depend on timing. It sends
outcomes through a pipe as they come. A worker that dies (killed, out of memory, a crash in native code) leaves its pipe closed: the
episodes that it owed become failures that say so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from actlet.errors import ActletError, CallerError
from actlet.protocols import Policy
from episodes.lockstep import Outcome, PlannedEpisode, failed_outcome, run_in_lockstep
from episodes.suites import make_suite

__all__ = ["Job", "run_in_processes"]

# What OpenMP, OpenBLAS, MKL and others read when they are loaded; torch takes OMP_NUM_THREADS.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What every worker does with its share of the plan."""

    policy_factory: Callable[[], Policy]
    suite_entry: str
    """A built-in name or "module:factory"."""
    batch: int
    wrong_instruction: bool
    record: bool = False
    expert: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Fatal:
    """An exception of the policy factory or the suite, which no episode is to blame for. As text: not every exception can be pickled."""

    message: str
    kind: type[ActletError]


_READY = "ready"  # The policy is loaded and the suite is made.


def run_in_processes(job: Job, plans: Sequence[PlannedEpisode], workers: int) -> Iterator[Outcome]:
    """Run planned episodes in `workers` spawned processes and yield outcomes as they come.

    Raises:
        CallerError: The policy factory cannot be pickled, or it or the suite raised a CallerError.
        ActletError: The factory or the suite failed otherwise, or a process ended before it was ready.
    """
    try:
        pickle.dumps(job)
    except Exception as error:
        raise CallerError(
            f"the policy factory {job.policy_factory!r} cannot be sent to another process ({error}): give a function of a module or a "
            "functools.partial of one, or workers=1."
        ) from error
    size, more = divmod(len(plans), workers)
    ends = [size * (i + 1) + min(i + 1, more) for i in range(workers)]
    shares = [list(plans[start:end]) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    context = multiprocessing.get_context("spawn")
    owed: dict[Connection, dict[int, PlannedEpisode]] = {}
    processes: dict[Connection, BaseProcess] = {}
    ready: set[Connection] = set()
    try:
        with _one_thread():
            for share in shares:
                reader, writer = context.Pipe(duplex=False)
                worker = context.Process(target=_work, args=(writer, job, share), daemon=True)
                worker.start()
                writer.close()
                owed[reader], processes[reader] = {plan.index: plan for plan in share}, worker
        while owed:
            for reader in [reader for reader in wait(list(owed)) if isinstance(reader, Connection)]:
                try:
                    message = reader.recv()
                except (EOFError, OSError):
                    yield from _missing(processes[reader], owed.pop(reader), was_ready=reader in ready)
                    continue
                if message == _READY:
                    ready.add(reader)
                elif isinstance(message, _Fatal):
                    raise message.kind(message.message)
                else:
                    owed[reader].pop(message.index)
                    yield message
                    if not owed[reader]:
                        del owed[reader]
                        processes[reader].join(timeout=10)
    finally:
        for reader, process in processes.items():
            reader.close()
            process.terminate()
        for process in processes.values():
            process.join()


def _missing(process: BaseProcess, plans: dict[int, PlannedEpisode], *, was_ready: bool) -> Iterator[Outcome]:
    """Failures for the episodes that a dead worker owed."""
    process.join()
    if not was_ready:
        raise ActletError(
            f"a worker process ended with exit code {process.exitcode} before its policy was loaded; what it printed above says why. "
            'A script that evaluates a policy must do so under `if __name__ == "__main__":`, or with workers=1.'
        )
    for plan in plans.values():
        yield failed_outcome(plan, f"WorkerDied: the worker process ended with exit code {process.exitcode}")


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Set the thread variables while processes start: they inherit them before their first import."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _work(connection: Connection, job: Job, plans: Sequence[PlannedEpisode]) -> None:
    """What a worker does. Ctrl-C reaches the whole group: the parent answers it, and ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        policy, suite = job.policy_factory(), make_suite(job.suite_entry)
        connection.send(_READY)
        options = {"wrong_instruction": job.wrong_instruction, "record": job.record, "expert": job.expert}
        for outcome in run_in_lockstep(policy, suite, plans, batch=job.batch, **options):
            connection.send(outcome)
    except BrokenPipeError:
        return  # The parent is gone: nobody waits for the rest.
    except CallerError as error:
        plain = type(error).__init__ is CallerError.__init__  # Others want more than a message.
        connection.send(_Fatal(message=str(error), kind=type(error) if plain else CallerError))
    except Exception as error:
        connection.send(_Fatal(message=f"a worker process failed: {error!r}\n{traceback.format_exc()}", kind=ActletError))
