"""A policy behind ``POST /act``, for clients of OpenVLA's and OpenVLA-OFT's servers: ``actlet serve FOLDER --wire act``.

    robot ─ POST /act {"full_image": array, "wrist": array, "state": array, "instruction": "..."} ─▶ policy
          ◀─ H arrays (A,), or one where H is 1; as JSON text where the question was {"encoded": "..."}

The first camera is "full_image", or "image" as in OpenVLA; the others have their own names; "unnorm_key" and other keys are ignored. A
question that cannot be answered gets status 400 and ``{"error": "why"}``, where upstream answers "error" with status 200; whatever the
policy raises is 500. Questions are answered one after the other; robots that should be answered in batches use the websocket of
`runtime.serve`. TLS and a token (`runtime.access`) are for addresses that others reach: a question without the token gets status 401, unread.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from actlet.errors import ActletError, CallerError, ObservationError, RemoteError
from actlet.protocols import Observation, Policy
from runtime.access import ServerAccess
from runtime.wires.openvla_rest import pack, unpack

__all__ = ["RestServer"]

_FIRST_CAMERA = ("full_image", "image")
_DISCARDED = 2**22  # bytes of a question that was refused
_LENGTH_DIGITS = 18  # of a Content-Length: what is longer is no length
_SOCKETS_PER_QUESTION = 4  # Connections that are open; most of them wait between two questions.
_QUESTION_S = 10.0  # Longest that a question may take to come in; one that trickles in would hold its place for ever.


class RestServer:
    """Serves in threads while it is entered::

        with RestServer(policy, port=8777) as server:
            print(server.url)

    Args:
        policy: Who answers; its `predict` is called by one thread at a time.
        host: Who may connect: this machine alone; "0.0.0.0" for the network.
        port: 0 for any that is free.
        connections: Questions at once; one more gets status 503.
        idle_timeout_s: A connection on which nothing comes for so long is closed.
        access: Who is answered, and whether the wire is encrypted; None for everybody, and not.

    Raises:
        CallerError: The address, the certificate or the key cannot be used.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        host: str = "127.0.0.1",
        port: int = 8777,
        connections: int = 64,
        idle_timeout_s: float = 30.0,
        access: ServerAccess | None = None,
    ) -> None:
        self.policy, self.access = policy, access or ServerAccess()
        self.answered = self.failed = 0
        observation = policy.spec.observation
        frames = sum(camera.height * camera.width * 3 for camera in observation.cameras)
        self.largest_question = 8 * (frames + 8 * observation.state_dim) + 65_536
        """Bytes; a larger one is refused unread. Base64, and clients that send floats or encode twice, need that much."""
        self.free = threading.BoundedSemaphore(connections)
        """One for each question that may come in now."""
        self._turn = threading.Lock()
        try:
            self._server = _Server((host, port), _handler(self, idle_timeout_s), self.access, _SOCKETS_PER_QUESTION * connections)
        except (OSError, OverflowError) as error:
            raise CallerError(
                f"{host}:{port} cannot be served: {getattr(error, 'strerror', None) or error}. Give another --port."
            ) from error
        shown = "127.0.0.1" if host == "0.0.0.0" else host
        self.url = f"{'https' if self.access.encrypts else 'http'}://{shown}:{self._server.server_port}/act"
        """Where it is reached from this machine, or from others where `host` allows."""

    def __enter__(self) -> RestServer:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="actlet-act", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10.0)

    def answer(self, body: bytes) -> tuple[int, bytes]:
        """Status and body of the answer to one question."""
        try:
            observation, instruction, encoded = self._question(unpack(body))
            with self._turn:
                (chunk,) = self.policy.predict([observation], [instruction])
            if not np.isfinite(chunk.actions).all():
                raise RemoteError("the policy answered with a value that is not finite; the chunk is refused.")
        except (CallerError, RemoteError) as error:
            self.failed += 1
            return 400, _error(str(error))
        except Exception as error:  # Whatever a policy raises is this robot's to hear, and not the others' end.
            self.failed += 1
            return 500, _error(str(error) if isinstance(error, ActletError) else f"{type(error).__name__}: {error}")
        self.answered += 1
        answer = pack(chunk.actions[0] if len(chunk.actions) == 1 else list(chunk.actions))
        return 200, json.dumps(answer.decode()).encode() if encoded else answer

    def _question(self, message: Any) -> tuple[Observation, str, bool]:
        encoded = isinstance(message, dict) and "encoded" in message
        if encoded:
            if len(message) != 1 or not isinstance(message["encoded"], str):
                raise ObservationError("'encoded' holds the whole question as JSON text, and nothing may stand beside it.")
            message = unpack(message["encoded"])
        if not isinstance(message, dict):
            raise ObservationError(f"the question is {type(message).__name__}, expected an object.")
        spec = self.policy.spec.observation
        first = next((key for key in _FIRST_CAMERA if key in message), _FIRST_CAMERA[0])
        keys = {camera.name: camera.name if index else first for index, camera in enumerate(spec.cameras)}
        images = {camera: _array(message, key) for camera, key in keys.items()}
        state = _array(message, "state").astype(np.float32) if spec.state_dim else np.zeros(0, np.float32)
        spec.check(images, state)
        instruction = message.get("instruction")
        if not isinstance(instruction, str) or not instruction.strip():
            raise ObservationError(f"'instruction' is {instruction!r:.60}: expected words.")
        return Observation(images, state), instruction, encoded


def _array(message: Mapping[str, Any], key: str) -> Any:
    value = message.get(key)
    if not isinstance(value, np.ndarray):
        raise ObservationError(f"{key!r} is {type(value).__name__}, expected an array; keys of the question: {sorted(map(str, message))}.")
    return value


def _error(text: str) -> bytes:
    return json.dumps({"error": text}).encode()


class _Server(ThreadingHTTPServer):
    """A thread for every connection, up to so many; one more is closed at once."""

    daemon_threads, block_on_close = True, False

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], access: ServerAccess, most: int) -> None:
        self._tls, self._places = access.context(), threading.BoundedSemaphore(most)
        super().__init__(address, handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        if self._tls is not None:  # The handshake waits for the first read, in the connection's own thread and with its timeout.
            connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a robot that goes away, or one that does not speak TLS, is no news."""


def _handler(server: RestServer, idle_timeout_s: float) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = idle_timeout_s

        def do_GET(self) -> None:
            healthy = self.path == "/healthz"
            self._reply(200 if healthy else 404, b"OK\n" if healthy else _error("POST /act"), "text/plain")

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            given = self.headers.get_all("Authorization", [])
            if len(given) > 1 or not server.access.allows(given[0] if given else None):
                server.failed += 1
                self._refuse(401, "this server answers those that know its token: Authorization: Bearer TOKEN")
            elif self.path != "/act":
                self._refuse(404, f"{self.path!r:.60}: expected /act")
            elif not length.isdecimal() or len(length) > _LENGTH_DIGITS:
                self._refuse(411, "expected a Content-Length")
            elif int(length) > server.largest_question:
                self._refuse(413, f"{length} bytes: expected at most {server.largest_question}")
            elif not server.free.acquire(blocking=False):
                self._refuse(503, "too many questions at once")
            else:
                try:
                    body = self._body(int(length))
                    if len(body) == int(length):
                        self._reply(*server.answer(body))
                except TimeoutError:
                    self.close_connection = True
                finally:
                    server.free.release()

        def _body(self, length: int) -> bytes:
            body, end = bytearray(), time.monotonic() + min(idle_timeout_s, _QUESTION_S)
            while len(body) < length and (piece := self.rfile.read1(min(length - len(body), 65_536))):
                body += piece
                if time.monotonic() > end:
                    raise TimeoutError
            return bytes(body)

        def _refuse(self, status: int, why: str) -> None:
            self.close_connection = True
            self._reply(status, _error(why))
            with contextlib.suppress(OSError):  # A client that still sends would otherwise hear a reset in place of the answer.
                left = _DISCARDED
                while left > 0 and (piece := self.rfile.read1(min(left, 65_536))):
                    left -= len(piece)

        def _reply(self, status: int, body: bytes, kind: str = "application/json") -> None:
            with contextlib.suppress(OSError):  # The robot went away.
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                if self.close_connection:
                    self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """Nothing: a robot asks ten times a second."""

    return Handler
