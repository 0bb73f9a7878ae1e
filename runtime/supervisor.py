"""The process that keeps inference alive: it starts the worker and a warm standby, and lets the standby take over when the worker dies or hangs.

    control process ──question──▶ worker     answers
                    ◀──answer──   standby    has opened the policy too, and waits
             pipe ┆ status
                supervisor        waits for the death of either (pidfd), and looks how long a question has been waiting

A standby that takes over answers the question that the one before was asked. A new standby is started after 0.1 s, and after every further death within
`window_s` after twice as long, up to 10 s; a policy that dies more often than `most_deaths` times in it is given up. The control process never waits for
any of this: it reads the status as it reads answers. It starts the supervisor, which ends, with all workers, when the control process does.

Measured elsewhere on the same design: from the kill to the next chunk 17 ms (p50) with a standby, 528 ms without.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import mmap
import os
import select
import signal
import subprocess
import sys
import time
from typing import Any

from runtime.inference_worker import ANSWERED, ANSWERED_AT, ASKED, NO_MEMORY, PAGE_BYTES, Shared, WorkerConfig
from runtime.mailbox import Mailbox
from runtime.real_time import RealTime, take_real_time
from runtime.trial import HOME, child_environment

__all__ = ["STATUS_BYTES", "WORKERS", "SupervisorConfig"]

WORKERS = 2
STATUS_BYTES = 1 << 16
_LOOKS_PER_HANG, _ALONE = 4, 4
_LAST_TO_GO = -900


@dataclasses.dataclass(frozen=True, kw_only=True)
class SupervisorConfig:
    """How a policy is kept alive."""

    standby: bool = True
    """Keep a second process that has opened the policy, and takes over. It takes the policy's memory once more."""
    hang_s: float = 0.5
    """A worker that leaves a question unanswered for longer is killed; four times as long while there is no standby."""
    first_wait_s: float = 0.1
    """Before a process that died is started again; doubles with every death in the window, up to `longest_wait_s`."""
    longest_wait_s: float = 10.0
    window_s: float = 300.0
    most_deaths: int = 20
    """Deaths in the window after which the policy is given up."""


class _Worker:
    """One process, and what it has said."""

    def __init__(self, place: int, config: WorkerConfig, shared: Shared) -> None:
        self.place = place
        self.said, said = os.pipe()
        take_over, self.take_over = os.pipe()
        parent, self.parent = os.pipe()
        asked = {
            "config": dataclasses.asdict(config),
            "shared": dataclasses.asdict(shared),
            "said": said,
            "take_over": take_over,
            "parent": parent,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "runtime.inference_worker", json.dumps(asked)],
            pass_fds=[*dataclasses.astuple(shared), said, take_over, parent],
            stdin=subprocess.DEVNULL,
            env=child_environment(),
            cwd=HOME,
        )
        for handle in (said, take_over, parent):
            os.close(handle)
        os.set_blocking(self.said, False)
        self.pidfd = os.pidfd_open(self.process.pid)
        self.words = b""
        self.is_ready = False
        self.error = ""
        self.spec: dict[str, Any] | None = None

    def listen(self) -> None:
        """Take in what it has said."""
        try:
            while piece := os.read(self.said, 1 << 16):
                self.words += piece
        except BlockingIOError:
            pass
        if b"\n" in self.words and not self.is_ready and not self.error:
            said = json.loads(self.words.split(b"\n")[0])
            self.spec, self.error = said.get("spec"), said.get("error", "")
            self.is_ready = self.spec is not None

    def close(self) -> None:
        """Kill it if it lives, and let everything go."""
        self.process.kill()
        self.process.wait()
        for handle in (self.said, self.take_over, self.parent, self.pidfd):
            os.close(handle)


class _Supervisor:
    def __init__(self, config: SupervisorConfig, worker: WorkerConfig, shared: Shared, parent: int) -> None:
        self.config, self.worker_config, self.shared, self.parent = config, worker, shared, parent
        self.page = mmap.mmap(shared.page, PAGE_BYTES)
        self.status = Mailbox(shared.status, STATUS_BYTES)
        self.workers: dict[int, _Worker] = {}
        self.active: int | None = None
        self.deaths: collections.deque[float] = collections.deque()
        self.restart_at, self.active_since_ns = 0.0, 0
        self.counts = {"deaths": 0, "hangs": 0, "takeovers": 0}
        self.last_words, self.gone = "", False
        self.spec: dict[str, Any] | None = None

    def run(self) -> None:
        """Until the control process ends, or the policy is given up."""
        try:
            while not self.gone:
                self.start_missing()
                self.wait()
            self.tell()
            select.select([self.parent], [], [])
        finally:
            for worker in self.workers.values():
                worker.close()

    def start_missing(self) -> None:
        """A worker, and once there is one that is ready a standby."""
        wanted = 1 + (self.config.standby and self.active is not None)
        if len(self.workers) < wanted and time.monotonic() >= self.restart_at:
            place = next(place for place in range(WORKERS) if place not in self.workers)
            self.workers[place] = _Worker(place, self.worker_config, self.shared)

    def wait(self) -> None:
        """For the next thing that happens, or the next look at the clock."""
        poll = select.poll()
        poll.register(self.parent, select.POLLIN)
        owner: dict[int, _Worker] = {}
        for worker in self.workers.values():
            owner |= {worker.pidfd: worker, worker.said: worker}
            poll.register(worker.pidfd, select.POLLIN)
            if not worker.is_ready:
                poll.register(worker.said, select.POLLIN)
        for handle, _ in poll.poll(1e3 * min(self.config.hang_s / _LOOKS_PER_HANG, self.config.first_wait_s)):
            if handle == self.parent:  # Its end was closed.
                sys.exit(0)
            worker = owner[handle]
            if worker.place in self.workers:
                self.hear(worker, died=handle == worker.pidfd)
        self.look_for_hangs()

    def hear(self, worker: _Worker, *, died: bool) -> None:
        """Something of a worker: a word, or its end."""
        worker.listen()
        if died:
            self.bury(worker)
        elif worker.is_ready:
            self.spec = self.spec or worker.spec
            if self.active is None:
                self.activate(worker)
            self.tell()

    def activate(self, worker: _Worker) -> None:
        """Give a worker the questions."""
        os.write(worker.take_over, b"x")
        self.active, self.active_since_ns = worker.place, time.monotonic_ns()

    def bury(self, worker: _Worker) -> None:
        """After a death: let the standby take over, first of all."""
        was_active = self.active == worker.place
        del self.workers[worker.place]
        if was_active:
            self.active = None
            if (standby := next((other for other in self.workers.values() if other.is_ready), None)) is not None:
                self.activate(standby)
                self.counts["takeovers"] += 1
        code = worker.process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        how += ": no memory left of what it may have, see WorkerConfig.memory_bytes" if code == NO_MEMORY else ""
        self.last_words = worker.error or f"the policy's process died ({how})"
        worker.close()
        now = time.monotonic()
        self.counts["deaths"] += 1
        self.deaths.append(now)
        while self.deaths and now - self.deaths[0] > self.config.window_s:
            self.deaths.popleft()
        self.restart_at = now + min(self.config.first_wait_s * 2 ** (len(self.deaths) - 1), self.config.longest_wait_s)
        # One that never was ready will not be at the next try either, if it said why.
        self.gone = len(self.deaths) > self.config.most_deaths or (self.spec is None and bool(worker.error))
        self.tell()

    def look_for_hangs(self) -> None:
        """Kill the worker that has left a question unanswered for too long, busy or not; its death is heard as any other."""
        if self.active is None:
            return
        number, since = ASKED.unpack_from(self.page, 0)
        waiting = number > ANSWERED.unpack_from(self.page, ANSWERED_AT)[0]
        # Without somebody to take over a kill costs a start, which is longer than most waits.
        patience_s = self.config.hang_s * (1 if any(w.is_ready for w in self.workers.values() if w.place != self.active) else _ALONE)
        if waiting and time.monotonic_ns() - max(since, self.active_since_ns) > patience_s * 1e9:
            self.counts["hangs"] += 1
            worker = self.workers[self.active]
            worker.process.kill()
            worker.process.wait()
            self.bury(worker)

    def tell(self) -> None:
        """The control process, how things are."""
        ready = sum(worker.is_ready for worker in self.workers.values())
        pids = [worker.process.pid for place, worker in sorted(self.workers.items(), key=lambda pair: pair[0] != self.active)]
        state = "gone" if self.gone else "ready" if self.active is not None else "starting"
        said = {"state": state, "ready": ready, "error": self.last_words, "spec": self.spec, "pids": pids, **self.counts}
        self.status.write([json.dumps(said).encode()])


def main() -> int:
    """The supervisor."""
    asked = json.loads(sys.argv[1])
    supervisor = _Supervisor(
        SupervisorConfig(**asked["config"]), WorkerConfig(**asked["worker"]), Shared(**asked["shared"]), asked["parent"]
    )
    # It hardly ever runs, but then at once; and it must outlive its workers.
    take_real_time(RealTime(priority=supervisor.worker_config.priority, lock_memory=False, out_of_memory_score=_LAST_TO_GO))
    supervisor.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
