"""A policy that dies when it is told to: what a worker of `runtime.inference_process` opens in `benchmarks.fault_processes`.

A file in the folder that `TRIGGERS` names, of the name of a fault, makes the next decision that one; it is taken away first, so that one process dies of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from actlet.protocols import ActionChunk, Observation, Policy
from runtime.opening import open_policy

__all__ = ["TRIGGERS", "FailingPolicy", "open_failing"]

TRIGGERS = "ACTLET_FAULT_TRIGGERS"
"""Environment variable: a folder."""
_BLOCK_BYTES = 64 << 20


class FailingPolicy:
    """The same answers as a policy's, until a file says otherwise."""

    def __init__(self, policy: Policy, triggers: str) -> None:
        self.spec = policy.spec
        self._policy, self._triggers = policy, triggers

    def predict(self, observations: Sequence[Observation], instructions: Sequence[str]) -> list[ActionChunk]:
        """As the policy does; or a crash, all memory, or no end."""
        for name in os.listdir(self._triggers):
            with contextlib.suppress(FileNotFoundError):  # Another process took it.
                os.unlink(os.path.join(self._triggers, name))
                _fail(name)
        return self._policy.predict(observations, instructions)


def _fail(name: str) -> None:
    if name == "segfault":
        ctypes.string_at(0)
    if name == "memory":
        hoard = []
        while True:
            hoard.append(np.empty(_BLOCK_BYTES, np.uint8))
    while name == "loop":
        time.perf_counter()


def open_failing(policy: str, threads: int = 1, **options: Any) -> FailingPolicy:
    """As `runtime.opening.open_policy`."""
    return FailingPolicy(open_policy(policy, threads, **options), os.environ[TRIGGERS])
