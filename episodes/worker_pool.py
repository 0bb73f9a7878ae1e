"""Processes that do jobs, one job at a time each, and whose death costs one job and not the whole run.

`concurrent.futures` gives up when a process dies (a crash in a native library, the out-of-memory killer), and `multiprocessing.Pool`
waits forever. Here the job is reported as failed and a fresh process takes the place. Processes are spawned, not forked: rendering
contexts and threads do not survive a fork. They end when their parent does, however it ends.

    with WorkerPool(4, setup, argument) as pool:       # each process calls setup(argument), which returns a function
        pool.submit(job)                               # while pool.idle > 0
        outcome = pool.wait()                          # of whichever job is finished first
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import multiprocessing.connection
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Any

from actlet.errors import ActletError

__all__ = ["Outcome", "WorkerPool"]

JOIN_S = 5.0  # How long a process may take to end before it is killed.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a job."""

    job: Any
    result: Any = None
    """What the function returned; None after an error."""
    error: str | None = None
    """The exception, or how the process died; None where there was neither."""


class WorkerPool:
    """A context manager over at most `workers` processes, which are started when there is work for them.

    Args:
        workers: How many jobs run at the same time.
        setup: A function of a module (it is sent by name), called once in each process; returns the function that does jobs.
        arguments: What `setup` is called with.
    """

    def __init__(self, workers: int, setup: Callable[..., Callable[[Any], Any]], *arguments: Any) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._workers, self._setup, self._arguments = workers, setup, arguments
        self._free: list[tuple[SpawnProcess, Connection]] = []
        self._busy: dict[Connection, tuple[SpawnProcess, Any]] = {}

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        processes = [process for process, _ in self._free] + [process for process, _ in self._busy.values()]
        for connection in [connection for _, connection in self._free] + list(self._busy):
            connection.close()
        for process, _ in self._busy.values():
            process.terminate()
        for process in processes:
            process.join(JOIN_S)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        self._free, self._busy = [], {}

    @property
    def idle(self) -> int:
        """How many jobs may be submitted now."""
        return self._workers - len(self._busy)

    @property
    def in_flight(self) -> int:
        """How many jobs are being done."""
        return len(self._busy)

    def submit(self, job: Any) -> None:
        """Give a job to a free process. Call it while `idle` is above 0."""
        assert self.idle > 0
        while self._free:
            process, connection = self._free.pop()
            try:
                connection.send(job)
            except OSError:  # It died while it had nothing to do, which costs nothing.
                _bury(process, connection)
                continue
            self._busy[connection] = (process, job)
            return
        process, connection = self._start()
        connection.send(job)
        self._busy[connection] = (process, job)

    def wait(self) -> Outcome:
        """Wait until a job is finished.

        Raises:
            ActletError: `setup` failed, so that no job can be done.
        """
        connection = multiprocessing.connection.wait(list(self._busy))[0]
        assert isinstance(connection, Connection)
        process, job = self._busy.pop(connection)
        try:
            kind, value = connection.recv()
        except (EOFError, OSError):
            code = _bury(process, connection)
            return Outcome(job=job, error=f"the process died ({_describe(code)})")
        if kind == "setup":
            _bury(process, connection)
            raise ActletError(f"a worker process could not start:\n{value}")
        self._free.append((process, connection))
        return Outcome(job=job, result=value) if kind == "done" else Outcome(job=job, error=value)

    def _start(self) -> tuple[SpawnProcess, Connection]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._setup, self._arguments), daemon=True)
        process.start()
        theirs.close()
        return process, ours


def _bury(process: SpawnProcess, connection: Connection) -> int | None:
    """Free what a process that has ended leaves behind; returns its exit code."""
    connection.close()
    process.join(JOIN_S)
    if process.is_alive():
        process.kill()
        process.join()
    code = process.exitcode
    process.close()
    return code


def _describe(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}" + (", perhaps for want of memory" if code == -signal.SIGKILL else "")
    return f"exit code {code}"


def _serve(connection: Connection, setup: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...]) -> None:
    """The life of a process: set up, then jobs until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle.
    try:
        work = setup(*arguments)
    except Exception:
        connection.send(("setup", traceback.format_exc()))
        return
    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError):
            return
        try:
            reply = ("done", work(job))
        except Exception as error:
            reply = ("error", f"{type(error).__name__}: {error}")
        try:
            connection.send(reply)
        except OSError:
            return
