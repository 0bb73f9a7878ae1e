"""What an operating system gives a loop that must not be late: a real-time priority and memory that is not paged.

Measured on two busy cores at 1 kHz (p99 of the lateness): ordinary priority 3.6 ms and more, SCHED_FIFO 0.12 ms. Locked memory and a frozen garbage
collector add nothing to the p99 of a minute; they prevent the rare stalls of tens to hundreds of milliseconds.

What is refused is said, with the line that permits it; nothing is taken for granted.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import gc
import os
import sys
from pathlib import Path
from typing import Any

__all__ = ["RealTime", "set_out_of_memory_score", "take_real_time"]

_MCL_CURRENT, _MCL_FUTURE = 1, 2
_PR_SET_TIMERSLACK = 29
_SCORE = Path("/proc/self/oom_score_adj")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RealTime:
    """What to ask for."""

    priority: int | None = 80
    """SCHED_FIFO priority, 1 .. 99; None for an ordinary process."""
    lock_memory: bool = True
    """Keep all memory of the process in RAM."""
    quiet_collector: bool = False
    """Freeze what is there, and never look for garbage again: for a process that makes no cycles."""
    out_of_memory_score: int | None = None
    """oom_score_adj, -1000 .. 1000: the lower, the later the kernel kills it when memory runs out; None for as it is."""


def take_real_time(wanted: RealTime) -> list[str]:
    """Take it.

    Returns:
        What was refused, each with the line that permits it.
    """
    refused = []
    if wanted.lock_memory and (error_number := _lock_memory()):
        refused.append(
            f'locked memory: {os.strerror(error_number)}. Run: echo "$USER - memlock unlimited" | sudo tee /etc/security/limits.d/91-actlet.conf   # then log in again'
        )
    if wanted.priority is not None:
        try:
            # What it starts is ordinary again: a process that loads its libraries at this priority would be in the way of everything.
            os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(wanted.priority))
        except (OSError, AttributeError) as error:
            refused.append(
                f"real-time priority {wanted.priority}: {_words(error)}: the loop runs, with more jitter. "
                'Run: echo "$USER - rtprio 90" | sudo tee /etc/security/limits.d/90-actlet.conf   # then log in again'
            )
            if _libc() is not None:
                _libc().prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)  # Nanoseconds; 50,000 otherwise, and none for SCHED_FIFO.
    if wanted.out_of_memory_score is not None and (words := set_out_of_memory_score(wanted.out_of_memory_score)):
        refused.append(
            f"protection when memory runs out: {words}: the kernel may take this process first. "
            f"Run: sudo choom -n -900 -p {os.getpid()}   # while it runs; or, in a systemd unit: OOMScoreAdjust=-900"
        )
    if wanted.quiet_collector:
        gc.collect()
        gc.freeze()
        gc.disable()
    return refused


def set_out_of_memory_score(score: int) -> str:
    """Of this process and what it starts: the higher, the earlier the kernel kills it when memory runs out. Raising it is always permitted.

    Returns:
        Why it was refused, empty if it was not, or where there is no such thing.
    """
    if not _SCORE.exists():
        return ""
    try:
        _SCORE.write_text(str(score), encoding="ascii")
    except OSError as error:
        return _words(error)
    return ""


@functools.cache
def _libc() -> Any:
    """The C library where it has what is needed, else None."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    return libc if hasattr(libc, "mlockall") else None


def _lock_memory() -> int:
    """0, or the number of the error."""
    libc = _libc()
    if libc is None:
        return 38  # ENOSYS
    import resource

    # Where a limit stands, what is taken later would be refused, not left unlocked: then what is there now is locked alone.
    unlimited = os.geteuid() == 0 or resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY
    return 0 if libc.mlockall(_MCL_CURRENT | (_MCL_FUTURE if unlimited else 0)) == 0 else ctypes.get_errno()


def _words(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
