"""A policy as a service for many robots: `actlet serve`, or `PolicyServer(policy)` from Python.

It speaks openpi's websocket (`runtime.wires.openpi`), so openpi's own client and `runtime.remote_policy` can ask it. Questions that
wait at the same moment are answered in one batch::

    robot ─ question ─┐                          ┌─ answer ─▶ robot
    robot ─ question ─┼─ waiting ─ batch ─ policy┼─ answer ─▶ robot        the policy runs in a thread of its own
    robot ─ question ─┘                          └─ answer ─▶ robot

A question that cannot be answered (a missing camera, another size) gets a text frame that says why, and its connection is closed, as
upstream does; the other robots are not concerned. TLS and a token (`runtime.access`) are for addresses that others reach: without the token
nothing but the health check is answered (status 401), before a byte of a question is read.

Where the policy is a teacher, the metadata hold its tokenizer and its hash under "teacher" (None otherwise), and a question with
``"action_distribution": True`` is answered with the distribution over its bins, float32 (A, K), under the same key and without actions:
decoding both would take twice as long. `runtime.remote_teacher` asks so, and openpi's own servers are never asked.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http
import importlib
import logging
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actlet import __version__
from actlet.errors import ActletError, CallerError, MissingExtraError
from actlet.protocols import ActionChunk, Policy
from runtime.access import TOKEN_HELP, ServerAccess, read_token
from runtime.backends import add_backend
from runtime.background_service import BackgroundService
from runtime.opening import open_policy
from runtime.question_batches import Question, answer_together, describe_teacher
from runtime.remote_policy import METADATA_KEY, SEQUENCE_KEY
from runtime.signature import TRUSTED_KEYS_HELP
from runtime.wires.openpi import DISTRIBUTION_KEY, ObservationKeys, pack, unpack

__all__ = ["PolicyServer", "ServerConfig", "add_arguments", "run"]

_STATUS_EVERY_S = 10.0
_CLOSE_ERROR, _CLOSE_FULL = 1011, 1013


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Limits of a service."""

    host: str = "127.0.0.1"
    """Who may connect: this machine alone; "0.0.0.0" for the network."""
    port: int = 8000
    """0: any that is free."""
    largest_batch: int = 16
    """Questions that are answered at once."""
    connections: int = 64
    """Robots at once; one more is turned away."""
    idle_timeout_s: float = 300.0
    """A connection on which nothing is asked, or an answer is not read, for so long is closed."""

    def __post_init__(self) -> None:
        if not (0 <= self.port <= 65535 and self.largest_batch >= 1 and self.connections >= 1 and self.idle_timeout_s > 0):
            raise CallerError(f"{self}: expected a port of 0 .. 65535, and the others positive.")


class PolicyServer(BackgroundService):
    """A policy behind a websocket.

    Args:
        policy: Who answers; its `predict` is called from one thread only.
        config: Address and limits.
        access: Who is answered, and whether the wire is encrypted; None for everybody, and not.
        keys: Names of an observation's parts in messages; `ObservationKeys.of` by default.

    As a context manager it serves in a thread, for programs that do other things too::

        with PolicyServer(policy, ServerConfig(port=0)) as server:
            RemotePolicy(server.url)
    """

    def __init__(
        self,
        policy: Policy,
        config: ServerConfig | None = None,
        *,
        keys: ObservationKeys | None = None,
        access: ServerAccess | None = None,
    ) -> None:
        self.policy, self.config = policy, config or ServerConfig()
        super().__init__(self.config.host, self.config.port, access, ("ws", "wss"))
        self.keys = keys or ObservationKeys.of(policy.spec.observation)
        self.keys.require_all(policy.spec.observation)
        self.teacher = describe_teacher(policy)
        """What a student has to know of the teacher; None where the policy is none, and gives no distributions."""
        self.metadata = {METADATA_KEY: {"version": __version__, "spec": policy.spec.to_dict(), "teacher": self.teacher, SEQUENCE_KEY: True}}
        frames = sum(camera.height * camera.width * 3 for camera in policy.spec.observation.cameras)
        self.largest_frame = 4 * (frames + 4 * policy.spec.observation.state_dim) + 65_536
        """Bytes of a question; a larger one is refused unread. Four times what an observation takes, for clients that send floats."""
        self._waiting: asyncio.Queue[Question]
        self._executor: ThreadPoolExecutor

    async def serve(self, ready: threading.Event | None = None) -> None:
        """See `BackgroundService.serve`; it needs `websockets` and `msgpack`."""
        try:
            from websockets.asyncio.server import serve
        except ModuleNotFoundError as error:
            raise MissingExtraError("websockets", "remote", "serving a policy") from error
        pack({})  # Finds a missing msgpack before the first robot does.
        self._waiting, stop = asyncio.Queue(), asyncio.Event()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="actlet-policy")
        self._stop = (asyncio.get_running_loop(), stop)
        worker = asyncio.create_task(self._answer_batches())
        try:
            async with serve(
                self._converse,
                self.config.host,
                self.config.port,
                compression=None,
                max_size=self.largest_frame,
                max_queue=1,  # In lock-step: more than one question that waits is memory for nothing.
                ssl=self.access.context(),
                process_request=self._admit,
                logger=logging.getLogger("actlet.serve.websockets"),
            ) as listening:
                self.port = int(next(iter(listening.sockets)).getsockname()[1])
                if ready is not None:
                    ready.set()
                await stop.wait()
        except OSError as error:
            raise CallerError(
                f"{self.config.host}:{self.config.port} cannot be served: {error.strerror or error}. Give another --port."
            ) from error
        finally:
            worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await worker
            self._executor.shutdown(wait=False, cancel_futures=True)

    def _admit(self, connection: Any, request: Any) -> Any:
        """The answer to a request that opens no websocket: the health check, or one without the token; None for the others."""
        if request.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        given = request.headers.get_all("Authorization")
        if len(given) > 1 or not self.access.allows(given[0] if given else None):
            self.failed += 1
            return connection.respond(
                http.HTTPStatus.UNAUTHORIZED, "this server answers those that know its token: Authorization: Bearer TOKEN\n"
            )
        return None

    async def _converse(self, connection: Any) -> None:
        if self.connected >= self.config.connections:
            await connection.close(_CLOSE_FULL, f"{self.config.connections} robots are connected already")
            return
        self.connected += 1
        try:
            await asyncio.wait_for(connection.send(pack(self.metadata)), self.config.idle_timeout_s)
            previous_ms = None
            while True:
                frame = await asyncio.wait_for(connection.recv(), self.config.idle_timeout_s)
                started = time.perf_counter()
                reply = await self._reply(frame)
                if isinstance(reply, str):
                    await asyncio.wait_for(connection.send(reply), self.config.idle_timeout_s)
                    await connection.close(_CLOSE_ERROR, "the question cannot be answered")
                    return
                if previous_ms is not None:
                    reply["server_timing"]["prev_total_ms"] = previous_ms
                await asyncio.wait_for(connection.send(pack(reply)), self.config.idle_timeout_s)
                previous_ms = 1e3 * (time.perf_counter() - started)
        except asyncio.TimeoutError:
            await connection.close(reason=f"nothing asked or read for {self.config.idle_timeout_s:g} s")
        except OSError:
            pass  # The robot went away.
        except Exception as error:
            if type(error).__module__.partition(".")[0] != "websockets":  # What websockets raises is a robot that went away.
                raise
        finally:
            self.connected -= 1

    async def _reply(self, frame: bytes | str) -> dict[str, Any] | str:
        """The answer, or the text that says why there is none."""
        try:
            if isinstance(frame, str):
                raise CallerError("a text frame: expected a binary one, a msgpack map.")
            message = unpack(frame)
            observation, instruction = self.keys.observation(message, self.policy.spec.observation)
            question = Question(
                observation, instruction, bool(message.get(DISTRIBUTION_KEY, False)), asyncio.get_running_loop().create_future()
            )
            if question.distribution and self.teacher is None:
                raise CallerError(f"{type(self.policy).__name__} answers with actions alone: only a teacher gives distributions.")
            self._waiting.put_nowait(question)
            answered = await question.answer
        except Exception as error:  # Whatever a policy raises is this robot's to hear, and not the others' end.
            self.failed += 1
            return str(error) if isinstance(error, ActletError) else f"{type(error).__name__}: {error}"
        self.answered += 1
        chunk = answered.content
        answer = {"actions": chunk.actions, "confidence": chunk.confidence} if isinstance(chunk, ActionChunk) else {DISTRIBUTION_KEY: chunk}
        return {
            **answer,
            **({SEQUENCE_KEY: message[SEQUENCE_KEY]} if isinstance(message.get(SEQUENCE_KEY), int) else {}),
            "state": observation.state,
            "policy_timing": {"infer_ms": answered.infer_ms},
            "server_timing": {"infer_ms": answered.infer_ms, "batch": answered.batch},
        }

    async def _answer_batches(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < self.config.largest_batch and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            answers = await loop.run_in_executor(self._executor, answer_together, self.policy, batch)
            for question, answer in zip(batch, answers, strict=True):
                if question.answer.done():  # The robot has gone.
                    continue
                if isinstance(answer, ActletError):
                    question.answer.set_exception(answer)
                else:
                    question.answer.set_result(answer)
            self.batches += 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `actlet serve`."""
    parser.add_argument(
        "policy", type=Path, nargs="?", help="folder of a bundle, a student or a teacher (default: the teacher that comes along)"
    )
    defaults = ServerConfig()
    parser.add_argument("--host", default=defaults.host, help=f"address to serve on; 0.0.0.0 for the network (default: {defaults.host})")
    parser.add_argument("--port", type=int, default=defaults.port, help=f"port, 0 for any free one (default: {defaults.port})")
    parser.add_argument(
        "--largest-batch", type=int, default=defaults.largest_batch, help=f"questions answered at once (default: {defaults.largest_batch})"
    )
    parser.add_argument("--connections", type=int, default=defaults.connections, help=f"robots at once (default: {defaults.connections})")
    parser.add_argument("--tls-certificate", type=Path, metavar="PEM", help="the server's certificate: serve wss:// or https://")
    parser.add_argument("--tls-key", type=Path, metavar="PEM", help="its private key, without a password")
    parser.add_argument("--token-file", type=Path, metavar="PATH", help=TOKEN_HELP)
    parser.add_argument("--trusted-keys", type=Path, metavar="PATH", help=TRUSTED_KEYS_HELP)
    parser.add_argument("--threads", type=int, default=1, help="threads of the policy (default: 1)")
    add_backend(parser)
    parser.add_argument(
        "--wire", choices=("openpi", "act"), default="openpi", help="openpi's websocket, or OpenVLA's POST /act (default: openpi)"
    )
    parser.epilog = """\
examples:
  actlet serve                                    the teacher that comes along, for this machine alone
  actlet serve bundles/int8 --host 0.0.0.0 --tls-certificate cert.pem --tls-key key.pem --token-file token
                                                  a bundle, for the robots of this network that know the token
  actlet serve bundles/int8 --wire act --port 8777  for clients of OpenVLA's and OFT's servers, see runtime/rest_server.py
  curl http://127.0.0.1:8000/healthz              is it up?
  actlet run ws://10.0.0.2:8000 --task put        drive the simulated arm with a policy on another machine
  actlet distill --teacher ws://10.0.0.2:8000 --data data/table --out checkpoints/student       label with a teacher there
"""


def run(arguments: argparse.Namespace) -> int:
    """The verb `serve`."""
    config = ServerConfig(
        host=arguments.host, port=arguments.port, largest_batch=arguments.largest_batch, connections=arguments.connections
    )
    access = ServerAccess(token=read_token(arguments.token_file), certificate=arguments.tls_certificate, key=arguments.tls_key)
    access.context()  # First: a key that cannot be read should not take a teacher's start to be seen.
    teachers = importlib.import_module("distill")
    folder = teachers.teacher_folder(arguments.policy or teachers.SHIPPED)
    policy = open_policy(folder, arguments.threads, trusted_keys=arguments.trusted_keys, backend=arguments.backend)
    if remark := access.remark(config.host):
        print(remark, file=sys.stderr, flush=True)
    if arguments.wire == "act":
        return _serve_rest(policy, config, access, str(folder))
    return asyncio.run(_serve_until_signalled(PolicyServer(policy, config, access=access), str(folder)))


def _serve_rest(policy: Policy, config: ServerConfig, access: ServerAccess, name: str) -> int:
    from runtime.rest_server import RestServer

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *unused: stop.set())
    with RestServer(
        policy, host=config.host, port=config.port, connections=config.connections, idle_timeout_s=config.idle_timeout_s, access=access
    ) as server:
        print(f"{name} at {server.url}; stop with Ctrl-C", file=sys.stderr, flush=True)
        told = 0
        while not stop.wait(_STATUS_EVERY_S):
            if server.answered + server.failed > told:
                told = server.answered + server.failed
                print(f"{server.answered} answers, {server.failed} refused", file=sys.stderr, flush=True)
    return 0


async def _serve_until_signalled(server: BackgroundService, name: str) -> int:
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, server.stop)
    ready = threading.Event()
    serving = asyncio.create_task(server.serve(ready))
    told = -1
    while not serving.done():
        await asyncio.wait([serving], timeout=0.1 if not ready.is_set() else _STATUS_EVERY_S)
        if ready.is_set() and told < 0:
            print(f"{name} at {server.url}; stop with Ctrl-C", file=sys.stderr, flush=True)
            told = 0
        if server.answered + server.failed > max(told, 0):
            told = server.answered + server.failed
            mean = server.answered / max(1, server.batches)
            print(
                f"{server.connected} connected, {server.answered} answers, {mean:.1f} in a batch, {server.failed} refused",
                file=sys.stderr,
                flush=True,
            )
    await serving
    return 0
