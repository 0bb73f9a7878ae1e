"""When a connection that was lost is tried again: at once, and after further failures with pauses that double.

    failure      1      2       3      4      5 ...
    next try    at once  0.05 s  0.1 s  0.2 s  0.25 s later

A robot stands still meanwhile, so the longest pause is short; a question that comes within one fails at once, and the next one has a newer observation.
"""

from __future__ import annotations

import time

from actlet.errors import RemoteError

__all__ = ["RetryGate", "TooEarlyError"]

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 0.25


class TooEarlyError(RemoteError):
    """No attempt was made."""


class RetryGate:
    """Counts failures since the last success."""

    def __init__(self) -> None:
        self._failures, self._not_before_s = 0, 0.0

    def require_open(self, where: str) -> None:
        """Refuse an attempt that comes too early.

        Raises:
            TooEarlyError: It does.
        """
        if (wait_s := self._not_before_s - time.monotonic()) > 0:
            raise TooEarlyError(f"{where}: not connected; the next try is in {wait_s:.2f} s.")

    def failed(self) -> None:
        """An attempt, or a question, failed."""
        self._failures += 1
        wait_s = 0.0 if self._failures < 2 else min(_FIRST_WAIT_S * 2.0 ** min(self._failures - 2, 8), _LONGEST_WAIT_S)
        self._not_before_s = time.monotonic() + wait_s

    def succeeded(self) -> None:
        """A question was answered."""
        self._failures = 0
