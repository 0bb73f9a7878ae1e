"""A policy on another machine, as a `Policy` here: an `actlet serve`, or any server that speaks openpi's websocket.

Everything that comes back is checked before it becomes a chunk: shape, type, finite, and inside the action limits. A server that
hangs is given up after a time that the caller sets; since openpi numbers neither questions nor answers, the connection is then
closed, so that a late answer can never be taken for the next one, and made anew at the next question.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from actlet.errors import ActletError, MissingExtraError, RemoteError, SpecError
from actlet.protocols import ActionChunk, Observation
from actlet.specs import PolicySpec, require_same
from runtime.wires.openpi import ObservationKeys, pack, unpack

__all__ = ["METADATA_KEY", "RemotePolicy", "read_floats"]

T = TypeVar("T")

METADATA_KEY = "actlet"
_LARGEST_FRAME = 16 * 2**20
_CLOSE_TIMEOUT_S = 0.2  # a server that hangs does not say goodbye either


class RemotePolicy:
    """Implements `actlet.protocols.Policy` over a websocket; not to be shared by threads.

    Args:
        url: As in "ws://10.0.0.2:8000".
        spec: What the robot needs. None: what the server says of itself, which only `actlet serve` does.
        keys: Names of the observation's parts. None: those that the server says, or those of `actlet serve`.
        connect_timeout_s: For the connection and the server's first words.
        answer_timeout_s: For one answer, and for sending one question.
        largest_frame: Bytes of a message; a larger one is refused unread.
        api_key: Sent as the header "Authorization: Api-Key ...".

    Raises:
        RemoteError: It cannot be reached, or does not speak openpi.
        SpecError: It says that it is another policy than `spec`, or says nothing and `spec` is None; or `keys` leave something out.
        MissingExtraError: `websockets` or `msgpack` is not installed.
    """

    def __init__(
        self,
        url: str,
        spec: PolicySpec | None = None,
        *,
        keys: ObservationKeys | None = None,
        connect_timeout_s: float = 5.0,
        answer_timeout_s: float = 2.0,
        largest_frame: int = _LARGEST_FRAME,
        api_key: str | None = None,
    ) -> None:
        self.url, self.connect_timeout_s, self.answer_timeout_s = url, connect_timeout_s, answer_timeout_s
        self.largest_frame, self._headers = largest_frame, {"Authorization": f"Api-Key {api_key}"} if api_key else None
        self.clipped = 0
        """Action values outside the specification's limits so far; each was set to the limit."""
        self.server_timing: dict[str, Any] = {}
        """What the server said of its last answer, as in ``infer_ms`` and ``batch``; empty where it says nothing."""
        self._connection: Any = None
        self._open = contextlib.ExitStack()
        self._wanted = spec
        self.metadata = self._connect()
        theirs = _spec_in(self.metadata, url)
        if theirs is None and spec is None:
            self.close()
            raise SpecError(
                f"{url} does not say what it sees and commands (keys of its metadata: {sorted(map(str, self.metadata))}): give a spec."
            )
        self.spec: PolicySpec = spec or theirs  # type: ignore[assignment]
        self.keys = keys or ObservationKeys.of(self.spec.observation)
        try:
            self.keys.require_all(self.spec.observation)
        except SpecError:
            self.close()
            raise

    def predict(self, observations: Sequence[Observation], instructions: Sequence[str]) -> list[ActionChunk]:
        """One chunk per observation, asked one after the other.

        Raises:
            ObservationError: A frame or state of another size or type; nothing is sent.
            RemoteError: No answer in time, a lost connection, the server's own error, or an answer that cannot be used.
        """
        return [self.ask(*pair, read=self._chunk) for pair in zip(observations, instructions, strict=True)]

    def close(self) -> None:
        """Close the connection; the next question makes a new one."""
        self._connection = None
        with contextlib.suppress(Exception):  # It is given up; that it does not say goodbye changes nothing.
            self._open.close()

    def __enter__(self) -> RemotePolicy:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def ask(self, observation: Observation, instruction: str, *, read: Callable[[dict[str, Any]], T], **more: Any) -> T:
        """One question and its answer.

        Args:
            observation: What is seen.
            instruction: What to do.
            read: Makes the result of the answer's message, or raises an ActletError that says why it cannot be used.
            more: Further keys of the question.

        Raises:
            ObservationError, RemoteError: As `predict`.
        """
        self.spec.observation.check(observation.images, observation.state)
        question = pack({**self.keys.message(observation, instruction), **more})
        if self._connection is not None and self._has_ended():
            self.close()
        if self._connection is None:
            self.metadata = self._connect()
        started = time.monotonic()
        try:
            self._connection.send(question)
            answer = unpack(self._connection.recv(timeout=self.answer_timeout_s))
            timing = answer.get("server_timing")
            self.server_timing = timing if isinstance(timing, dict) else {}
            return read(answer)
        except TimeoutError as error:
            self.close()
            raise RemoteError(f"{self.url}: no answer within {self.answer_timeout_s:g} s; the connection is closed.") from error
        except ActletError as error:
            self.close()
            raise RemoteError(f"{self.url}: {error}") from error
        except Exception as error:  # websockets' own types, and the operating system's
            self.close()
            spent = time.monotonic() - started
            raise RemoteError(f"{self.url}: the connection was lost after {spent:.1f} s ({type(error).__name__}: {error}).") from error
        except BaseException:  # Ctrl-C: the answer that is on its way must not become the next question's.
            self.close()
            raise

    def _has_ended(self) -> bool:
        """Whether the server closed the connection while nothing was asked, as it does after a pause. A frame that is here before the question
        would be taken for its answer, and is refused."""
        from websockets.exceptions import ConnectionClosed

        try:
            self._connection.recv(timeout=0)
        except TimeoutError:
            return False
        except ConnectionClosed:
            return True
        self.close()
        raise RemoteError(f"{self.url}: the server sent a frame that nothing was asked for; the connection is closed.")

    def _connect(self) -> dict[str, Any]:
        try:
            from websockets.sync.client import connect
        except ModuleNotFoundError as error:
            raise MissingExtraError("websockets", "remote", "a policy over the network") from error
        deadline = time.monotonic() + self.connect_timeout_s
        try:
            connection = self._open.enter_context(
                connect(
                    self.url,
                    compression=None,
                    max_size=self.largest_frame,
                    additional_headers=self._headers,
                    open_timeout=self.connect_timeout_s,
                    close_timeout=_CLOSE_TIMEOUT_S,
                    proxy=None,
                )
            )
        except Exception as error:
            what = str(error) or type(error).__name__
            raise RemoteError(f"{self.url} cannot be reached: {what}. Is the server running, as in: actlet serve bundles/int8 ?") from error
        self._connection = connection
        # Sending, too, must end: a server that stops reading fills the socket's buffer, and a large frame would wait for ever.
        with contextlib.suppress(OSError):  # Closed by the server already: receiving says why.
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(self.answer_timeout_s))
        try:
            metadata = unpack(connection.recv(timeout=max(0.0, deadline - time.monotonic())))
            theirs = _spec_in(metadata, self.url)
            if self._wanted is not None and theirs is not None:
                require_same(self._wanted, theirs, what=f"the robot and the policy at {self.url}")
        except TimeoutError as error:
            self.close()
            raise RemoteError(
                f"{self.url}: connected, but no metadata within {self.connect_timeout_s:g} s; is it an openpi server?"
            ) from error
        except ActletError:
            self.close()
            raise
        except Exception as error:
            self.close()
            raise RemoteError(f"{self.url}: the connection was lost before any metadata ({type(error).__name__}: {error}).") from error
        if self._wanted is None:
            self._wanted = theirs  # A server that is another one after a lost connection is refused.
        return metadata

    def _chunk(self, answer: dict[str, Any]) -> ActionChunk:
        horizon, dim = self.spec.timing.horizon, self.spec.action.dim
        actions = read_floats(answer, "actions", (horizon, dim))
        confidence = read_floats(answer, "confidence", (horizon,)) if "confidence" in answer else np.ones(horizon, np.float32)
        inside = np.clip(actions, np.asarray(self.spec.action.low, np.float32), np.asarray(self.spec.action.high, np.float32))
        self.clipped += int((inside != actions).sum())
        return ActionChunk(actions=inside, confidence=np.clip(confidence, 0.0, 1.0))


def _timeval(seconds: float) -> bytes:
    whole = int(seconds)
    return struct.pack("ll", whole, max(1, int((seconds - whole) * 1e6)))


def _spec_in(metadata: dict[str, Any], url: str) -> PolicySpec | None:
    own = metadata.get(METADATA_KEY)
    if not isinstance(own, dict) or "spec" not in own:
        return None
    return PolicySpec.from_dict(own["spec"], where=f"{url}: spec")


def read_floats(answer: dict[str, Any], key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """An array of an answer, as float32.

    Raises:
        RemoteError: It is missing, of another shape or type, or holds a value that is not finite.
    """
    value = answer.get(key)
    if not isinstance(value, np.ndarray) or value.shape != shape or value.dtype.kind not in "fiu":
        got = f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else f"{value!r:.80}"
        raise RemoteError(f"{key!r} is {got}: expected numbers of shape {shape}; keys of the answer: {sorted(map(str, answer))}.")
    if not np.isfinite(value).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(value))[0])
        raise RemoteError(f"{key}{list(where)} is {value[where]}: a value that is not finite; the answer is refused.")
    return value.astype(np.float32)
