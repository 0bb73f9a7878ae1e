"""A policy behind LeRobot's asynchronous inference, as a `Policy` here: ``actlet serve --wire lerobot``, or a server that reads the same safe form.

Such a server says nothing of itself, so what it sees and commands stands in a file of ours, written once::

    LeRobotPolicyConfig(url="grpcs://gpu.lan:8080", spec=spec).write("act.json")

and then ``actlet run act.json`` takes it as it takes any policy. Only the safe form of `runtime.wires.lerobot` is sent and read: an answer in pickle is refused,
and so is one for another step than was asked about, one that is not finite, or of another size. After an error the connection is made anew and introduced with
Ready, upon which the server forgets what was before: a late answer has nobody who takes it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np

from actlet.errors import CallerError, RemoteError, SpecError
from actlet.plain import PlainJson
from actlet.protocols import ActionChunk, Observation
from actlet.specs import PolicySpec
from actlet.storage import read_json, write_json
from runtime.access import TOKEN_VARIABLE, RemoteAccess
from runtime.lerobot_server import require_grpc
from runtime.retry_gate import RetryGate, TooEarlyError
from runtime.wires.lerobot import SERVICE, PolicySetup, TimedObservation, data_message, pieces, read_actions, read_data

__all__ = ["LeRobotPolicy", "LeRobotPolicyConfig", "open_lerobot_policy"]

_SCHEMA_VERSION = 1
_LARGEST_MESSAGE = 4 * 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeRobotPolicyConfig(PlainJson):
    """Where a policy is, and what it sees and commands."""

    schema_version: int = _SCHEMA_VERSION
    kind: Literal["lerobot_policy"] = "lerobot_policy"
    url: str
    """As in "grpc://10.0.0.2:8080", or "grpcs://" with TLS."""
    spec: PolicySpec
    """What the robot sees and commands; the server must answer with `horizon` actions."""
    policy_type: str = "act"
    place: str = "actlet"
    """Which policy the server is asked to load; an `actlet serve` has its own."""
    timeout_s: float = 2.0
    """For one question and its answer, and for introducing the robot."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if self.schema_version != _SCHEMA_VERSION:
            raise SpecError(f"{self.kind}: schema_version {self.schema_version}, expected {_SCHEMA_VERSION}.")
        if parts.scheme not in ("grpc", "grpcs") or not parts.hostname or parts.path.strip("/"):
            raise SpecError(f"url {self.url!r}: expected one like grpc://10.0.0.2:8080.")
        if not self.timeout_s > 0:
            raise SpecError(f"timeout_s {self.timeout_s}: expected seconds above 0.")

    def write(self, path: str | Path) -> None:
        """Write the file that `open_policy` opens."""
        write_json(path, self.to_dict())


class LeRobotPolicy:
    """Implements `actlet.protocols.Policy` over gRPC; not to be shared by threads.

    Args:
        config: Where, and what.
        access: The token, and whose certificates are believed; None: the token of ACTLET_TOKEN, if there is one, and the system's.

    Raises:
        RemoteError: The server cannot be reached, or refuses the robot.
        CallerError: It refuses the token, or its certificate is not believed.
        MissingExtraError: `grpcio` is not installed.
    """

    def __init__(self, config: LeRobotPolicyConfig, access: RemoteAccess | None = None) -> None:
        self._grpc = require_grpc("a policy behind LeRobot's asynchronous inference")
        timing = dataclasses.replace(config.spec.timing, committed_steps=0)  # No observation of this wire has room for what is on its way.
        self.config, self.spec = config, dataclasses.replace(config.spec, timing=timing)
        self.access = access or RemoteAccess.of()
        self.clipped = 0
        """Action values outside the specification's limits so far; each was set to the limit."""
        self._channel: Any = None
        self._gate = RetryGate()
        self._timestep = 0
        self._connect()

    def predict(self, observations: Sequence[Observation], instructions: Sequence[str]) -> list[ActionChunk]:
        """One chunk per observation, asked one after the other. The server says no confidence: it is 1.

        Raises:
            ObservationError: A frame or state of another size or type; nothing is sent.
            RemoteError: No answer in time, a lost connection, the server's own error, or an answer that cannot be used.
        """
        return [self._predict_one(*pair) for pair in zip(observations, instructions, strict=True)]

    def close(self) -> None:
        """Close the connection; the next question makes a new one."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def __enter__(self) -> LeRobotPolicy:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def _predict_one(self, observation: Observation, instruction: str) -> ActionChunk:
        self.spec.observation.check(observation.images, observation.state)
        try:
            if self._channel is None:
                self._gate.require_open(self.config.url)
                self._connect()
            chunk = self._ask(observation, instruction)
        except TooEarlyError:
            raise
        except BaseException:  # Ctrl-C too: the answer that is on its way must not become the next question's.
            self.close()
            self._gate.failed()
            raise
        self._gate.succeeded()
        return chunk

    def _ask(self, observation: Observation, instruction: str) -> ActionChunk:
        deadline, horizon = time.monotonic() + self.config.timeout_s, self.spec.timing.horizon
        self._timestep += horizon  # No two questions share a step, so that every answer says whose it is.
        step = self._timestep
        asked = TimedObservation.of(observation, self.spec.observation, instruction, timestep=step, timestamp=time.time())
        self._call("SendObservations", pieces(asked.pack()), deadline)
        data = b""
        while not data:  # Nothing means that the observation was not there yet.
            data = self._read(self._call("GetActions", b"", deadline))
        try:
            answer = read_actions(data, self.spec.action.dim)
        except RemoteError as error:
            raise RemoteError(f"{self.config.url}: {error}") from error
        if answer.timesteps != list(range(step, step + horizon)):
            got = f"{len(answer.timesteps)} actions from step {answer.timesteps[0]}"
            raise RemoteError(f"{self.config.url}: the answer has {got}, expected {horizon} from step {step}; it is refused.")
        inside = np.clip(answer.actions, np.asarray(self.spec.action.low, np.float32), np.asarray(self.spec.action.high, np.float32))
        self.clipped += int((inside != answer.actions).sum())
        return ActionChunk(actions=inside, confidence=np.ones(horizon, np.float32))

    def _read(self, message: bytes) -> bytes:
        try:
            return read_data(message)
        except RemoteError as error:
            raise RemoteError(f"{self.config.url}: {error}") from error

    def _connect(self) -> None:
        """A new channel, and the robot introduced."""
        grpc, parts = self._grpc, urlsplit(self.config.url)
        host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else parts.hostname
        place = f"{host}:{parts.port or 8080}"
        options = [
            ("grpc.max_receive_message_length", _LARGEST_MESSAGE),
            ("grpc.enable_retries", 0),
            ("grpc.use_local_subchannel_pool", 1),  # Else a new channel waits for the back-off of the one before.
        ]
        if parts.scheme == "grpcs":
            self.access.context()  # Says what is wrong with the certificates; gRPC does not.
            roots = None if self.access.tls_ca is None else self.access.tls_ca.read_bytes()
            self._channel = grpc.secure_channel(place, grpc.ssl_channel_credentials(roots), options)
        else:
            self._channel = grpc.insecure_channel(place, options)
        deadline = time.monotonic() + self.config.timeout_s
        setup = PolicySetup.of(self.spec.observation, self.spec.timing.horizon)
        setup = dataclasses.replace(setup, policy_type=self.config.policy_type, place=self.config.place)
        try:
            self._call("Ready", b"", deadline)
            self._call("SendPolicyInstructions", data_message(setup.pack()), deadline)
        except BaseException:
            self.close()
            raise

    def _call(self, method: str, message: Any, deadline: float) -> bytes:
        kind = self._channel.stream_unary if method == "SendObservations" else self._channel.unary_unary
        headers = [(key.lower(), value) for key, value in self.access.headers.items()]
        try:
            answer: bytes = kind(f"/{SERVICE}/{method}")(message, timeout=max(0.001, deadline - time.monotonic()), metadata=headers)
            return answer
        except self._grpc.RpcError as error:
            raise self._refusal(method, error) from error

    def _refusal(self, method: str, error: Any) -> Exception:
        status, words, url = error.code(), str(error.details()), self.config.url
        if status is self._grpc.StatusCode.UNAUTHENTICATED:
            given = "another token than the server's" if self.access.token else "no token"
            return CallerError(f"{url}: refused, {given} was given. Give the server's with --token-file, or in {TOKEN_VARIABLE}.")
        if (
            status is self._grpc.StatusCode.UNAVAILABLE and "certificate" in words.lower()
        ):  # OpenSSL's words for all that can be wrong with one.
            return CallerError(
                f"{url}: its certificate is not believed. Give the certificate of its authority with --tls-ca, and ask by a name that the certificate has."
            )
        if status is self._grpc.StatusCode.DEADLINE_EXCEEDED:
            return RemoteError(f"{url}: no answer to {method} within {self.config.timeout_s:g} s; the connection is closed.")
        return RemoteError(f"{url}: {method}: {status.name.lower().replace('_', ' ')}: {words}")


def open_lerobot_policy(path: str | Path, access: RemoteAccess | None = None) -> LeRobotPolicy:
    """A policy by the file that `LeRobotPolicyConfig.write` wrote; `access` as for `LeRobotPolicy`.

    Raises:
        CallerError: The file cannot be read.
        SpecError: It contradicts itself, or has unknown keys.
        RemoteError: The server cannot be reached.
    """
    try:
        document = read_json(path)
    except (OSError, ValueError) as error:
        raise CallerError(f"{path} cannot be read: {error}") from error
    return LeRobotPolicy(LeRobotPolicyConfig.from_dict(document, where=str(path)), access)
