"""A policy on another machine, as a `Policy` here: an `actlet serve`, or any server that speaks openpi's websocket.

Everything that comes back is checked before it becomes a chunk: shape, type, finite, and inside the action limits. A server that
hangs is given up after a time that the caller sets; since openpi numbers neither questions nor answers, the connection is then
closed, so that a late answer can never be taken for the next one, and made anew at the next question. An `actlet serve` says the number
of the question with its answer as well.

    lost       ─▶ the next question connects anew, within the longer of 0.5 s and four times what the first connection took
    lost again ─▶ no attempt for 0.05 s, then 0.1, 0.2, at most 0.25 s: questions meanwhile fail at once

so that a robot that stands still goes on within a second after a network that was cut or stalled is there again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from actlet.errors import ActletError, RemoteError, SpecError
from actlet.protocols import ActionChunk, Observation
from actlet.specs import PolicySpec, require_same
from runtime.access import RemoteAccess
from runtime.websocket_line import WebsocketLine
from runtime.wires.openpi import ObservationKeys, pack, unpack

__all__ = ["METADATA_KEY", "SEQUENCE_KEY", "RemotePolicy", "read_floats", "useful_delay_s"]

T = TypeVar("T")

METADATA_KEY = "actlet"
SEQUENCE_KEY = "sequence"
"""In the metadata's part of actlet, True: a question may have a number under this key, and the answer has the same."""
_LARGEST_FRAME = 4 * 2**20  # A chunk is some kilobytes; LeRobot's and gRPC's limit.
_RECONNECT_S, _RECONNECT_FACTOR = 0.5, 4.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 0.25
_SHORTEST_DEADLINE_S, _LONGEST_DEADLINE_S = 0.25, 2.0


class RemotePolicy:
    """Implements `actlet.protocols.Policy` over a websocket; not to be shared by threads.

    Args:
        url: As in "ws://10.0.0.2:8000".
        spec: What the robot needs. None: what the server says of itself, which only `actlet serve` does.
        keys: Names of the observation's parts. None: those that the server says, or those of `actlet serve`.
        connect_timeout_s: For the first connection and the server's first words.
        answer_timeout_s: For one answer, and for sending one question. None: `useful_delay_s`.
        largest_frame: Bytes of a message; a larger one is refused unread.
        access: The token, and whose certificates are believed; None: the token of ACTLET_TOKEN, if there is one, and the system's.

    Raises:
        RemoteError: It cannot be reached, or does not speak openpi.
        CallerError: It refuses the token, or its certificate is not believed.
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
        answer_timeout_s: float | None = 2.0,
        largest_frame: int = _LARGEST_FRAME,
        access: RemoteAccess | None = None,
    ) -> None:
        self.url, self.connect_timeout_s, self.largest_frame = url, connect_timeout_s, largest_frame
        self.answer_timeout_s: float = _LONGEST_DEADLINE_S if answer_timeout_s is None else answer_timeout_s
        self.access = access or RemoteAccess.of()
        self.clipped = 0
        """Action values outside the specification's limits so far; each was set to the limit."""
        self.server_timing: dict[str, Any] = {}
        """What the server said of its last answer, as in ``infer_ms`` and ``batch``; empty where it says nothing."""
        self._line: WebsocketLine | None = None
        self._wanted = spec
        self._sequence, self._failures, self._not_before_s = 0, 0, 0.0
        started = time.monotonic()
        self.metadata = self._connect(connect_timeout_s)
        self.reconnect_timeout_s = min(connect_timeout_s, max(_RECONNECT_S, _RECONNECT_FACTOR * (time.monotonic() - started)))
        """For a connection that is made anew."""
        theirs = _spec_in(self.metadata, url)
        if theirs is None and spec is None:
            self.close()
            raise SpecError(
                f"{url} does not say what it sees and commands (keys of its metadata: {sorted(map(str, self.metadata))}): give a spec."
            )
        self.spec: PolicySpec = spec or theirs  # type: ignore[assignment]
        if answer_timeout_s is None:
            self.answer_timeout_s = useful_delay_s(self.spec)
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
        self._end(politely=True)

    def _end(self, *, politely: bool = False) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.close() if politely else line.close(within_s=0.0)

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
        message = {**self.keys.message(observation, instruction), **more}
        try:
            answer = self._exchange(message, read)
        except _NotYet:
            raise
        except BaseException:
            self._failures += 1
            wait_s = 0.0 if self._failures < 2 else min(_FIRST_WAIT_S * 2.0 ** min(self._failures - 2, 8), _LONGEST_WAIT_S)
            self._not_before_s = time.monotonic() + wait_s
            raise
        self._failures = 0
        return answer

    def _exchange(self, message: dict[str, Any], read: Callable[[dict[str, Any]], T]) -> T:
        if self._line is not None:
            try:
                if self._line.has_ended():
                    self._end()
            except RemoteError as error:  # It would be taken for the answer to the question that follows.
                self._end()
                raise RemoteError(f"{self.url}: {error}") from error
        if self._line is None:
            if (wait_s := self._not_before_s - time.monotonic()) > 0:
                raise _NotYet(f"{self.url}: not connected; the next try is in {wait_s:.2f} s.")
            self.metadata = self._connect(self.reconnect_timeout_s)
        line = self._line
        assert line is not None
        self._sequence += 1
        if _own(self.metadata).get(SEQUENCE_KEY) is True:
            message = {**message, SEQUENCE_KEY: self._sequence}
        started = time.monotonic()
        try:
            line.send(pack(message), self.answer_timeout_s)
            answer = unpack(line.recv(self.answer_timeout_s))
            if SEQUENCE_KEY in message and answer.get(SEQUENCE_KEY) != self._sequence:
                raise RemoteError(
                    f"the answer has the {SEQUENCE_KEY} {answer.get(SEQUENCE_KEY)!r:.40}, expected {self._sequence}: "
                    "it belongs to another question."
                )
            timing = answer.get("server_timing")
            self.server_timing = timing if isinstance(timing, dict) else {}
            return read(answer)
        except TimeoutError as error:
            self._end()
            raise RemoteError(f"{self.url}: no answer within {self.answer_timeout_s:g} s; the connection is closed.") from error
        except ActletError as error:
            self._end()
            raise RemoteError(f"{self.url}: {error}") from error
        except Exception as error:  # websockets' own types, and the operating system's
            self._end()
            spent = time.monotonic() - started
            raise RemoteError(f"{self.url}: the connection was lost after {spent:.1f} s ({type(error).__name__}: {error}).") from error
        except BaseException:  # Ctrl-C: the answer that is on its way must not become the next question's.
            self._end()
            raise

    def _connect(self, timeout_s: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        self._line = line = WebsocketLine(self.url, self.access, timeout_s=timeout_s, largest_frame=self.largest_frame)
        try:
            metadata = unpack(line.recv(max(0.0, deadline - time.monotonic())))
            theirs = _spec_in(metadata, self.url)
            if self._wanted is not None and theirs is not None:
                require_same(self._wanted, theirs, what=f"the robot and the policy at {self.url}")
        except TimeoutError as error:
            self._end()
            raise RemoteError(f"{self.url}: connected, but no metadata within {timeout_s:g} s; is it an openpi server?") from error
        except ActletError:
            self._end()
            raise
        except Exception as error:
            self._end()
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


class _NotYet(RemoteError):
    """No attempt was made: it is too early for the next one."""


def useful_delay_s(spec: PolicySpec) -> float:
    """How long an answer is worth waiting for in real time: until it would be later than the policy was made for, 0.25 .. 2 s."""
    timing = spec.timing
    return min(max((timing.max_delay_steps + 1) / timing.rate_hz, _SHORTEST_DEADLINE_S), _LONGEST_DEADLINE_S)


def _own(metadata: dict[str, Any]) -> dict[str, Any]:
    """What an `actlet serve` says of itself; empty of other servers."""
    own = metadata.get(METADATA_KEY)
    return own if isinstance(own, dict) else {}


def _spec_in(metadata: dict[str, Any], url: str) -> PolicySpec | None:
    own = _own(metadata)
    if "spec" not in own:
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
