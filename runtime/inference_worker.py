"""The process that infers: opens the policy, says that it is ready, and answers questions, or stands by until it is told to take over.

Started by `runtime.supervisor` as ``python -m runtime.inference_worker``, with what it shares as file descriptors. It ends when the supervisor does (its
end of a pipe closes). Whatever happens in here, the control process only sees no answer: it crashes or hangs alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import mmap
import os
import select
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

from actlet.errors import ActletError, CallerError
from actlet.manifest import MANIFEST_NAME
from actlet.protocols import Policy
from runtime.access import RemoteAccess
from runtime.mailbox import Mailbox
from runtime.messages import most_bytes, pack_answer, unpack_question
from runtime.real_time import RealTime, set_out_of_memory_score, take_real_time

__all__ = ["ANSWERED", "ANSWERED_AT", "ASKED", "NO_MEMORY", "PAGE_BYTES", "Shared", "WorkerConfig"]

ASKED, ANSWERED, PAGE_BYTES = struct.Struct("<QQ"), struct.Struct("<Q"), 128
"""What the supervisor looks at, in one page of memory: at 0, by the control process, the number of the newest question, and since when, in monotonic
nanoseconds, there has been one without an answer; at `ANSWERED_AT`, by the worker, the number of the last question that it answered."""
ANSWERED_AT = 64
_LOOK_MS = 500
_BASE_BYTES, _TIMES_SIZE = 2 << 30, 8
_NEARLY = 0.9  # Of the memory that it may have: a failure there is for want of memory, whatever library it comes from.
NO_MEMORY = 4
"""Exit code of a worker that has no memory left of what it may have."""
_FIRST_TO_GO = 500
"""oom_score_adj of a worker: when memory runs out on the machine, the kernel shall take it and not the control process."""


@dataclasses.dataclass(frozen=True)
class Shared:
    """File descriptors that all have."""

    questions: int
    answers: int
    status: int
    """Mailbox of the supervisor's word."""
    asked: int
    """An eventfd: counts up with every question."""
    page: int
    """Memory with `ASKED` and `ANSWERED`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """What a worker opens, and how it runs."""

    policy: str
    """As `runtime.opening.open_policy` takes it."""
    threads: int = 1
    backend: str = "cpu"
    trusted_keys: str | None = None
    priority: int | None = None
    """SCHED_FIFO priority, None for none."""
    token_file: str | None = None
    tls_ca: str | None = None
    """For a policy elsewhere, as `runtime.access.RemoteAccess.of` takes them."""
    answer_timeout_s: float | None = 2.0
    memory_bytes: int | None = None
    """Memory of its own that it may have (RLIMIT_DATA: heap, arenas and other private memory that can be written, not files and not what a GPU's driver reserves).
    None for 2 GiB and eight times a bundle's files where a bundle runs on the processor, and for no limit of everything else; 0 for no limit."""
    opener: str = "runtime.opening:open_policy"
    """What opens it, as "module:function", called like the one that is named here."""


def main() -> int:
    """The worker."""
    asked = json.loads(sys.argv[1])
    config, shared = WorkerConfig(**asked["config"]), Shared(**asked["shared"])
    said, take_over, parent = asked["said"], asked["take_over"], asked["parent"]
    set_out_of_memory_score(_FIRST_TO_GO)
    try:
        memory_bytes = _limit_memory(config)
        policy = _opener(config.opener)(
            config.policy,
            config.threads,
            trusted_keys=config.trusted_keys,
            backend=config.backend,
            access=RemoteAccess.of(config.token_file, config.tls_ca) if config.token_file or config.tls_ca else None,
            answer_timeout_s=config.answer_timeout_s,
        )
        take_real_time(RealTime(priority=config.priority, lock_memory=False))  # After its threads were made: they stay ordinary ones.
    except ActletError as error:
        os.write(said, json.dumps({"error": str(error)}).encode() + b"\n")
        return 3
    os.write(said, json.dumps({"spec": policy.spec.to_dict()}).encode() + b"\n")
    sizes = most_bytes(policy.spec)
    questions, answers = Mailbox(shared.questions, sizes[0]), Mailbox(shared.answers, sizes[1])
    page = mmap.mmap(shared.page, PAGE_BYTES)
    poll = select.poll()
    poll.register(take_over, select.POLLIN)
    poll.register(parent, select.POLLIN)
    answered, active, warm_for = 0, False, None
    while True:
        ready = dict(poll.poll(None if active else _LOOK_MS))
        if parent in ready:
            return 0
        if take_over in ready and not active:
            active = True
            poll.unregister(take_over)
            poll.register(shared.asked, select.POLLIN)
        if shared.asked in ready:
            try:
                os.eventfd_read(shared.asked)
            except BlockingIOError:
                continue
        if not active:
            warm_for = _keep_warm(policy, questions, warm_for)
            continue
        # At the take-over too: what was asked of the one before is answered by this one.
        got = questions.read(max(answered, ANSWERED.unpack_from(page, ANSWERED_AT)[0]))
        if got is not None:
            answered = got[0]
            _answer(policy, answers, *got, memory_bytes=memory_bytes)
            ANSWERED.pack_into(page, ANSWERED_AT, answered)


def _opener(name: str) -> Callable[..., Policy]:
    module, _, function = name.partition(":")
    return cast("Callable[..., Policy]", getattr(importlib.import_module(module), function))


def _limit_memory(config: WorkerConfig) -> int:
    """Of this process, from here on; 0 where there is no limit.

    Raises:
        CallerError: The limit is negative.
    """
    most = config.memory_bytes
    if most is None:
        files = [file.stat() for file in Path(config.policy).iterdir()] if (Path(config.policy) / MANIFEST_NAME).is_file() else []
        # A file with holes is as large as its maker likes; what counts is what is on the disk.
        most = (
            _BASE_BYTES + _TIMES_SIZE * sum(min(file.st_size, 512 * file.st_blocks) for file in files)
            if files and config.backend == "cpu"
            else 0
        )
    if most < 0:
        raise CallerError(f"worker: memory of {most} bytes, expected a positive number, or 0 for no limit.")
    if most:
        import resource

        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    return most


def _is_out_of_memory(error: BaseException, memory_bytes: int) -> bool:
    """Whether a failure is for want of memory; asked after one alone."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            return True
        cause = cause.__cause__
    if not memory_bytes:
        return False
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5])
    return pages * os.sysconf("SC_PAGE_SIZE") > _NEARLY * memory_bytes


def _answer(policy: Policy, answers: Mailbox, number: int, content: bytes, memory_bytes: int) -> None:
    question = unpack_question(policy.spec, content)
    try:
        (found,) = policy.predict([question.observation], [question.instruction])
    except Exception as error:  # Whatever a policy raises, the loop must see it as an answer.
        if _is_out_of_memory(error, memory_bytes):  # It would fail again and again: a process that has memory shall take over.
            os._exit(NO_MEMORY)
        answers.write(pack_answer(number, question, time.monotonic(), f"{type(error).__name__}: {error}"))
        return
    answers.write(pack_answer(number, question, time.monotonic(), found))


def _keep_warm(policy: Policy, questions: Mailbox, warm_for: str | None) -> str | None:
    """A standby answers one question of every instruction to itself, so that the first that counts takes no longer than the others."""
    got = questions.read()
    if got is None:
        return warm_for
    question = unpack_question(policy.spec, got[1])
    if question.instruction != warm_for:
        with contextlib.suppress(Exception):  # One that cannot be answered is the active worker's to tell.
            policy.predict([question.observation], [question.instruction])
    return question.instruction


if __name__ == "__main__":
    sys.exit(main())
