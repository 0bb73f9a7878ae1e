"""Inference in processes of its own, seen from the control process: hand over an observation, go on, look whether an answer is there.

The control process shares no interpreter with the policy: a policy that computes, crashes or hangs does not make a command late
(`runtime.supervisor`). Neither call waits: `submit` copies the observation into shared memory, `poll` reads a number and, when there is one, an answer.

Not on systems other than Linux (pidfd, eventfd): there a thread takes its place.
"""

from __future__ import annotations

import dataclasses
import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actlet.errors import BundleError, CallerError, RobotFault
from actlet.protocols import ActionChunk, Observation
from actlet.specs import PolicySpec
from runtime.inference import Answer
from runtime.inference_worker import ASKED, PAGE_BYTES, Shared, WorkerConfig
from runtime.mailbox import Mailbox, shared_memory
from runtime.messages import most_bytes, pack_question, unpack_answer
from runtime.supervisor import STATUS_BYTES, SupervisorConfig
from runtime.trial import HOME, child_environment

__all__ = ["InferenceProcess", "InferenceStatus"]

_MOST_BYTES = 256 << 20  # Of a message, before the policy is known; memory that is not written is not there.
_CLOSE_TIMEOUT_S, _PREDICT_TIMEOUT_S = 2.0, 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferenceStatus:
    """How the policy's processes are."""

    state: str
    """"starting", "ready", or "gone": it died too often, or cannot be opened."""
    ready: int
    """Processes that have opened the policy, the standby with it."""
    error: str
    """Last words of the process that died last."""
    pids: tuple[int, ...]
    """The worker's first."""
    deaths: int
    hangs: int
    takeovers: int


class InferenceProcess:
    """Implements `runtime.inference.Inference` for the control loop, and `actlet.protocols.Policy`, which waits.

    Args:
        policy: What `runtime.opening.open_policy` opens: a bundle's folder, a checkpoint's, a server's URL.
        worker: How it is opened; None for one thread, on the processor.
        supervisor: How it is kept alive.
        clock: Seconds of CLOCK_MONOTONIC.
        timeout_s: How long opening it may take.

    Raises:
        CallerError: It cannot be opened, with the reason; or this system has no such processes.
        BundleError: Opening it takes longer.
    """

    def __init__(
        self,
        policy: str | Path,
        *,
        worker: WorkerConfig | None = None,
        supervisor: SupervisorConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
        timeout_s: float = 120.0,
    ) -> None:
        if not hasattr(os, "pidfd_open") or not hasattr(os, "eventfd"):
            raise CallerError("inference in a process of its own needs Linux and Python 3.10: use a thread (--inference thread).")
        self._clock = clock
        worker = dataclasses.replace(worker or WorkerConfig(policy=""), policy=_place(policy))
        self._config = supervisor or SupervisorConfig()
        asked = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        sizes = (Mailbox.size_of(_MOST_BYTES), Mailbox.size_of(_MOST_BYTES), Mailbox.size_of(STATUS_BYTES))
        questions, answers, status = (shared_memory(size) for size in sizes)
        self._shared = Shared(questions=questions, answers=answers, status=status, asked=asked, page=shared_memory(PAGE_BYTES))
        self._status = Mailbox(status, STATUS_BYTES)
        self._read_status, self._said = 0, InferenceStatus(state="starting", ready=0, error="", pids=(), deaths=0, hangs=0, takeovers=0)
        parent, self._parent = os.pipe()
        arguments = {
            "config": dataclasses.asdict(self._config),
            "worker": dataclasses.asdict(worker),
            "shared": dataclasses.asdict(self._shared),
            "parent": parent,
        }
        self._supervisor = subprocess.Popen(
            [sys.executable, "-m", "runtime.supervisor", json.dumps(arguments)],
            pass_fds=[*dataclasses.astuple(self._shared), parent],
            stdin=subprocess.DEVNULL,
            env=child_environment(),
            cwd=HOME,
            start_new_session=True,  # Ctrl-C is for the control process, which stops the robot first.
        )
        os.close(parent)
        self._spec_document: dict[str, Any] | None = None
        try:
            self._await_ready(policy, timeout_s)
        except BaseException:
            self.close()
            raise
        assert self._spec_document is not None
        self.spec: PolicySpec = PolicySpec.from_dict(self._spec_document)
        """The policy's."""
        sizes_of = most_bytes(self.spec)
        self._questions: Mailbox = Mailbox(questions, sizes_of[0])
        self._answers: Mailbox = Mailbox(answers, sizes_of[1])
        self._page: mmap.mmap = mmap.mmap(self._shared.page, PAGE_BYTES)
        self._asked_number: int = 0
        self._answered: int = 0
        self._read_answer: int = 0
        self._asked_s: float = 0.0

    @property
    def status(self) -> InferenceStatus:
        """How the processes are now."""
        got = self._status.read(self._read_status)
        if got is not None:
            self._read_status, said = got[0], json.loads(got[1])
            self._spec_document = said.pop("spec") or self._spec_document
            self._said = InferenceStatus(**{**said, "pids": tuple(said["pids"])})
        return self._said

    def prepare(self, instruction: str, timeout_s: float = 5.0) -> None:
        """Ask once, with a black picture, so that the first question that counts takes no longer than the others; its answer is thrown away.

        Raises:
            RobotFault: There is no answer in that time.
            CallerError: The policy refuses the instruction.
        """
        seen = self.spec.observation
        images = {camera.name: np.zeros((camera.height, camera.width, 3), np.uint8) for camera in seen.cameras}
        answer = self._answer(Observation(images, np.zeros(seen.state_dim, np.float32)), instruction, timeout_s)
        if answer.error:
            raise CallerError(f"instruction {instruction!r}: {answer.error}")

    def predict(self, observations: Sequence[Observation], instructions: Sequence[str]) -> list[ActionChunk]:
        """One chunk per observation; waits for each, at most five seconds.

        Raises:
            RobotFault: The policy failed, or did not answer.
        """
        chunks = []
        for observation, instruction in zip(observations, instructions, strict=True):
            answer = self._answer(observation, instruction, _PREDICT_TIMEOUT_S)
            if answer.chunk is None:
                raise RobotFault(f"the policy failed: {answer.error}")
            chunks.append(answer.chunk)
        return chunks

    def _answer(self, observation: Observation, instruction: str, timeout_s: float) -> Answer:
        end, asked = time.monotonic() + timeout_s, False
        while True:
            asked = asked or self.submit(observation, instruction, 0)
            if (answer := self.poll()) is not None and asked:
                return answer
            if time.monotonic() > end:
                raise RobotFault(f"no answer from the policy's process in {timeout_s:g} s.")
            time.sleep(0.0005)

    def submit(self, observation: Observation, instruction: str, step: int) -> bool:
        """Hand over an observation; False while the one before is being answered.

        A question that nobody has answered for `hang_s` is given up: its policy has died, and what was seen then is old.

        Raises:
            ObservationError: It is not what the policy sees.
        """
        now = self._clock()
        if self._asked_number > self._answered and now - self._asked_s < self._config.hang_s:
            return False
        was_waiting = self._asked_number > self._answered
        self._asked_number = self._questions.write(pack_question(self.spec, step, now, observation, instruction))
        since_ns = ASKED.unpack_from(self._page, 0)[1] if was_waiting else time.monotonic_ns()
        ASKED.pack_into(self._page, 0, self._asked_number, since_ns)
        self._asked_s = now
        os.eventfd_write(self._shared.asked, 1)
        return True

    def poll(self) -> Answer | None:
        """The answer that has arrived since, if any."""
        if (got := self._answers.read(self._read_answer)) is not None:
            self._read_answer = got[0]
            question, answer = unpack_answer(self.spec, got[1])
            if question > self._answered:
                self._answered = question
                return answer if question == self._asked_number else None
        if self._asked_number > self._answered and self.status.state == "gone":
            self._answered = self._asked_number
            now = self._clock()
            return Answer(observed_at=0, chunk=None, error=f"the policy was given up: {self._said.error}", submitted_s=now, finished_s=now)
        return None

    def close(self) -> None:
        """End the processes."""
        if self._parent < 0:
            return
        os.close(self._parent)
        self._parent = -1
        try:
            self._supervisor.wait(_CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._supervisor.kill()
            self._supervisor.wait()
        for handle in dataclasses.astuple(self._shared):
            os.close(handle)

    def _await_ready(self, policy: str | Path, timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        while (status := self.status).state != "ready":
            if status.state == "gone":
                raise CallerError(status.error or f"policy {policy}: cannot be opened.")
            if self._supervisor.poll() is not None:
                raise RobotFault(f"policy {policy}: the process that supervises it ended with {self._supervisor.returncode}.")
            if time.monotonic() > end:
                raise BundleError(f"policy {policy}: not open after {timeout_s:g} s: it is refused.")
            time.sleep(0.005)


def _place(policy: str | Path) -> str:
    """A path that means the same in another folder."""
    return str(policy) if "://" in str(policy) else str(Path(policy).absolute())
