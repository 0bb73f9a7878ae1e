"""A policy on another machine that is asked for several answers to one observation: pi0 behind openpi's server, `actlet serve` of a student.

Questions go one after the other over one connection: openpi's server works on one at a time anyway. A server that says what it sees and
commands is asked about exactly that; one that says nothing, as openpi's own, is given the specification of the data, with as many actions
in its chunks as it likes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlet.errors import RemoteError, SpecError
from actlet.protocols import Observation
from actlet.specs import PolicySpec
from runtime.remote_policy import METADATA_KEY, RemotePolicy, read_floats
from runtime.wires.openpi import ObservationKeys

__all__ = ["RemoteSampler", "open_remote_sampler"]


class RemoteSampler(RemotePolicy):
    """Implements `actlet.protocols.SamplingTeacher` over a websocket; arguments and errors as `runtime.remote_policy.RemotePolicy`."""

    @property
    def content_hash(self) -> str:
        """SHA-256 of the address and what the server says of itself: its weights do not travel, and others at the same place go unnoticed."""
        return hashlib.sha256(f"{self.url} {self.metadata!r}".encode()).hexdigest()

    def sample_actions(self, observations: Sequence[Observation], instructions: Sequence[str], count: int) -> NDArray[np.float32]:
        """float32 (B, N, H, A), not clipped; see `actlet.protocols.SamplingTeacher`.

        Raises:
            ObservationError: A frame or state of another size or type; nothing is sent.
            RemoteError: No answer in time, a lost connection, the server's own error, or answers that cannot be used or differ in length.
        """
        rows = [
            [self.ask(observation, instruction, read=self._actions) for _ in range(count)]
            for observation, instruction in zip(observations, instructions, strict=True)
        ]
        lengths = sorted({len(actions) for row in rows for actions in row})
        if len(lengths) > 1:
            raise RemoteError(f"{self.url}: chunks of {lengths} actions: expected as many in every answer.")
        return np.stack([np.stack(row) for row in rows])

    def _actions(self, answer: dict[str, Any]) -> NDArray[np.float32]:
        value, dim = answer.get("actions"), self.spec.action.dim
        length = len(value) if isinstance(value, np.ndarray) and value.ndim == 2 and len(value) else self.spec.timing.horizon
        return read_floats(answer, "actions", (length, dim))


def open_remote_sampler(
    url: str, spec: PolicySpec, *, keys: ObservationKeys | None = None, answer_timeout_s: float = 60.0
) -> RemoteSampler:
    """Connect to a policy whose answers are drawn.

    Args:
        url: As in "ws://10.0.0.2:8000".
        spec: What is asked about where the server does not say it.
        keys: Names of the observation's parts; None: those of `actlet serve`.
        answer_timeout_s: For one answer. Labels can wait longer than a robot.

    Raises:
        RemoteError: It cannot be reached, or does not speak openpi.
        CallerError: It refuses the token, or its certificate is not believed.
        SpecError: It gives distributions, so that samples would be less than it has; or what it says of itself is contradictory.
        MissingExtraError: `websockets` or `msgpack` is not installed.
    """
    options: dict[str, Any] = {"keys": keys, "connect_timeout_s": 10.0, "answer_timeout_s": answer_timeout_s}
    try:
        sampler = RemoteSampler(url, **options)
    except SpecError:  # It says nothing of itself. What it says is read again, so that any other fault is met again.
        sampler = RemoteSampler(url, spec, **options)
    own = sampler.metadata.get(METADATA_KEY)
    if isinstance(own, dict) and own.get("teacher") is not None:
        sampler.close()
        raise SpecError(f"{url} is a teacher that gives distributions, which say more than samples do: leave --samples out.")
    return sampler
