"""A policy behind ``POST /act``, as a `Policy` here: OpenVLA's server (port 8000), OpenVLA-OFT's (8777), or one that speaks as they do.

Such a server says nothing of itself, so what it sees and commands stands in a file of ours, written once::

    RestPolicyConfig(
        url="http://10.0.0.2:8777/act", spec=spec, images={"front": "full_image", "wrist": "wrist_image"}, state="state"
    ).write("oft.json")

and then ``actlet run oft.json``, `actlet bench closed-loop`, `open_policy("oft.json")` take it as they take any policy. For OpenVLA:
``images={"front": "image"}, state=None, unnorm_key="bridge_orig"``, a specification with horizon 1.

Everything that comes back is checked before it becomes a chunk: size, shape, type, finite, and inside the action limits. A question has
one deadline for all of it (connecting, sending, waiting, receiving), and a connection of its own, so that a late answer can never be
taken for the next one. A server of ours may ask for a token (`runtime.access`); https:// is checked against its certificate. The servers decide by themselves which way a gripper is meant: what comes back must be in the specification's units.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
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
from runtime.wires.openvla_rest import as_actions, pack, unpack

__all__ = ["RestPolicy", "RestPolicyConfig", "open_rest_policy"]

_SCHEMA_VERSION = 1
_PIECE = 65_536
_SHOWN = 200  # characters of a page that was not asked for


@dataclasses.dataclass(frozen=True, kw_only=True)
class RestPolicyConfig(PlainJson):
    """Where a policy is, and what travels under which name."""

    schema_version: int = _SCHEMA_VERSION
    kind: Literal["rest_policy"] = "rest_policy"
    url: str
    """As in "http://10.0.0.2:8777/act"."""
    spec: PolicySpec
    """What the robot sees and commands; the server must answer with `horizon` actions."""
    images: dict[str, str]
    """Camera name -> its key in the question. A camera that is left out is not sent."""
    state: str | None = "state"
    """Key of the state; None: it is not sent."""
    instruction: str = "instruction"
    """Key of the instruction."""
    unnorm_key: str | None = None
    """Which of its training sets' statistics OpenVLA scales actions with; None: not sent."""
    encoded: bool = False
    """Send the question as text inside JSON, for servers without json_numpy's patch."""
    timeout_s: float = 2.0
    """For one question, from connecting to the answer's last byte."""
    largest_answer: int = 2**20
    """Bytes; a larger answer is refused unread."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if self.schema_version != _SCHEMA_VERSION:
            raise SpecError(f"{self.kind}: schema_version {self.schema_version}, expected {_SCHEMA_VERSION}.")
        if parts.scheme not in ("http", "https") or not parts.hostname or not parts.path.strip("/"):
            raise SpecError(f"url {self.url!r}: expected one like http://10.0.0.2:8777/act.")
        cameras = [camera.name for camera in self.spec.observation.cameras]
        if not self.images or not set(self.images) <= set(cameras):
            raise SpecError(f"images of the cameras {sorted(self.images)}: expected one or more of {cameras}.")
        keys = [*self.images.values(), self.instruction, *([self.state] if self.state else []), "unnorm_key", "encoded"]
        if len(set(keys)) != len(keys):
            raise SpecError(f"keys {keys}: two parts of a question have one name.")
        if not (self.timeout_s > 0 and self.largest_answer > 0):
            raise SpecError(f"timeout_s {self.timeout_s}, largest_answer {self.largest_answer}: expected positive numbers.")

    def write(self, path: str | Path) -> None:
        """Write the file that `open_policy` opens."""
        write_json(path, self.to_dict())


class RestPolicy:
    """Implements `actlet.protocols.Policy` over HTTP; nothing is sent before the first question.

    Args:
        config: Where, and under which names.
        access: The token, and whose certificates are believed; None: the token of ACTLET_TOKEN, if there is one, and the system's.
    """

    def __init__(self, config: RestPolicyConfig, access: RemoteAccess | None = None) -> None:
        timing = dataclasses.replace(config.spec.timing, committed_steps=0)  # No question of this wire has room for what is on its way.
        self.config, self.spec = config, dataclasses.replace(config.spec, timing=timing)
        self.access = access or RemoteAccess.of()
        self.clipped = 0
        """Action values outside the specification's limits so far; each was set to the limit."""

    def prepare(self, instruction: str) -> None:
        """Ask once, with black pictures, before anything moves: a server that is not there or refuses is found out then.

        Raises:
            CallerError: It refuses the token, or its certificate is not believed.
            RemoteError: As `predict`.
        """
        seen = self.spec.observation
        images = {camera.name: np.zeros((camera.height, camera.width, 3), np.uint8) for camera in seen.cameras}
        self.predict([Observation(images, np.zeros(seen.state_dim, np.float32))], [instruction])

    def predict(self, observations: Sequence[Observation], instructions: Sequence[str]) -> list[ActionChunk]:
        """One chunk per observation, asked one after the other. The server says no confidence: it is 1.

        Raises:
            ObservationError: A frame or state of another size or type; nothing is sent.
            RemoteError: No answer in time, a lost connection, the server's own error, or an answer that cannot be used.
            CallerError: The server refuses the token, or its certificate is not believed.
        """
        return [self._predict_one(*pair) for pair in zip(observations, instructions, strict=True)]

    def _predict_one(self, observation: Observation, instruction: str) -> ActionChunk:
        self.spec.observation.check(observation.images, observation.state)
        question = pack(self._message(observation, instruction), encoded=self.config.encoded)
        horizon = self.spec.timing.horizon
        try:
            actions = as_actions(unpack(self._ask(question)), horizon, self.spec.action.dim)
        except RemoteError as error:
            raise RemoteError(f"{self.config.url}: {error}") from error
        inside = np.clip(actions, np.asarray(self.spec.action.low, np.float32), np.asarray(self.spec.action.high, np.float32))
        self.clipped += int((inside != actions).sum())
        return ActionChunk(actions=inside, confidence=np.ones(horizon, np.float32))

    def _message(self, observation: Observation, instruction: str) -> dict[str, Any]:
        config = self.config
        message: dict[str, Any] = {key: observation.images[camera] for camera, key in config.images.items()}
        if config.state is not None:
            message[config.state] = observation.state.astype(np.float32)
        message[config.instruction] = instruction
        if config.unnorm_key is not None:
            message["unnorm_key"] = config.unnorm_key
        return message

    def _ask(self, question: bytes) -> bytes:
        """The body of the answer, or a RemoteError before the deadline."""
        parts, deadline = urlsplit(self.config.url), _Deadline(self.config.timeout_s)
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            connection = http.client.HTTPSConnection(
                str(parts.hostname), parts.port, timeout=self.config.timeout_s, context=self.access.context()
            )
        else:
            connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=self.config.timeout_s)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        try:
            connection.connect()
            with deadline.of(connection.sock):
                headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", "Connection": "close", **self.access.headers}
                connection.request("POST", path, question, headers)
                return self._body(connection.getresponse())
        except ssl.SSLCertVerificationError as error:
            raise CallerError(
                f"{self.config.url}: its certificate is not believed ({error.verify_message}). Give the certificate of its authority with --tls-ca, "
                "and ask by a name that the certificate has."
            ) from error
        except (OSError, http.client.HTTPException) as error:
            if deadline.is_past:
                raise RemoteError(f"no answer within {self.config.timeout_s:g} s; the connection is closed.") from error
            raise RemoteError(f"the connection failed ({type(error).__name__}: {error}). Is the server running?") from error
        finally:
            connection.close()

    def _body(self, answer: http.client.HTTPResponse) -> bytes:
        limit = self.config.largest_answer
        body = bytearray()
        while piece := answer.read1(_PIECE):
            body += piece
            if len(body) > limit:
                raise RemoteError(f"the answer is larger than {limit} bytes; the rest is not read.")
        if answer.status == http.client.UNAUTHORIZED:
            given = "another token than the server's" if self.access.token else "no token"
            raise CallerError(
                f"{self.config.url}: refused, {given} was given. Give the server's with --token-file, or in {TOKEN_VARIABLE}."
            )
        if answer.status != http.client.OK:
            page = " ".join(body.decode(errors="replace").split())[:_SHOWN]
            raise RemoteError(f"status {answer.status} {answer.reason}: {page}")
        if answer.length:
            raise RemoteError(f"the answer was cut off: {answer.length} bytes are missing.")
        return bytes(body)


class _Deadline:
    """A time for a whole exchange: a server that sends a byte now and then keeps every single wait short, and must end too."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def is_past(self) -> bool:
        return time.monotonic() >= self._end

    @contextlib.contextmanager
    def of(self, connection: socket.socket) -> Iterator[None]:
        """Shuts the connection down at the deadline, whatever waits on it: sending and receiving then end with an error."""

        def shut() -> None:
            with contextlib.suppress(OSError):  # Closed already.
                connection.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(max(0.0, self._end - time.monotonic()), shut)
        timer.daemon = True
        timer.start()
        try:
            yield
        except Exception as error:
            if self.is_past:  # Whatever it looks like, it is what shutting down made of it.
                raise TimeoutError from error
            raise
        finally:
            timer.cancel()
        if self.is_past:  # The end of the stream was the shutdown, not the end of the answer.
            raise TimeoutError


def open_rest_policy(path: str | Path, access: RemoteAccess | None = None) -> RestPolicy:
    """A policy by the file that `RestPolicyConfig.write` wrote; `access` as for `RestPolicy`.

    Raises:
        CallerError: The file cannot be read.
        SpecError: It contradicts itself, or has unknown keys.
    """
    try:
        document = read_json(path)
    except (OSError, ValueError) as error:
        raise CallerError(f"{path} cannot be read: {error}") from error
    return RestPolicy(RestPolicyConfig.from_dict(document, where=str(path)), access)
