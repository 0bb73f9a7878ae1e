"""A policy as a service for many robots: `actlet serve`, or `PolicyServer(policy)` from Python.

It speaks openpi's websocket (`runtime.wires.openpi`), so openpi's own client and `runtime.remote_policy` can ask it. Questions that
wait at the same moment are answered in one batch::

    robot ─ question ─┐                          ┌─ answer ─▶ robot
    robot ─ question ─┼─ waiting ─ batch ─ policy┼─ answer ─▶ robot        the policy runs in a thread of its own
    robot ─ question ─┘                          └─ answer ─▶ robot

A question that cannot be answered (a missing camera, another size) gets a text frame that says why, and its connection is closed, as
upstream does; the other robots are not concerned. There is no authentication: keep the port inside the robot's own network.

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
from runtime.backends import add_backend
from runtime.opening import open_policy
from runtime.question_batches import Question, answer_together, describe_teacher
from runtime.remote_policy import METADATA_KEY
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


class PolicyServer:
    """A policy behind a websocket.

    Args:
        policy: Who answers; its `predict` is called from one thread only.
        config: Address and limits.
        keys: Names of an observation's parts in messages; `ObservationKeys.of` by default.

    As a context manager it serves in a thread, for programs that do other things too::

        with PolicyServer(policy, ServerConfig(port=0)) as server:
            RemotePolicy(server.url)
    """

    def __init__(self, policy: Policy, config: ServerConfig | None = None, *, keys: ObservationKeys | None = None) -> None:
        self.policy, self.config = policy, config or ServerConfig()
        self.keys = keys or ObservationKeys.of(policy.spec.observation)
        self.keys.require_all(policy.spec.observation)
        self.teacher = describe_teacher(policy)
        """What a student has to know of the teacher; None where the policy is none, and gives no distributions."""
        self.metadata = {METADATA_KEY: {"version": __version__, "spec": policy.spec.to_dict(), "teacher": self.teacher}}
        frames = sum(camera.height * camera.width * 3 for camera in policy.spec.observation.cameras)
        self.largest_frame = 4 * (frames + 4 * policy.spec.observation.state_dim) + 65_536
        """Bytes of a question; a larger one is refused unread. Four times what an observation takes, for clients that send floats."""
        self.port = self.config.port
        """The port in use, once it serves."""
        self.answered = self.failed = self.batches = self.connected = 0
        self._waiting: asyncio.Queue[Question]
        self._executor: ThreadPoolExecutor
        self._thread: threading.Thread | None = None
        self._stop: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self._failure: BaseException | None = None

    @property
    def url(self) -> str:
        """Where it is reached from this machine, or from others where `host` allows."""
        return f"ws://{'127.0.0.1' if self.config.host == '0.0.0.0' else self.config.host}:{self.port}"

    async def serve(self, ready: threading.Event | None = None) -> None:
        """Serve until `stop` is called.

        Raises:
            CallerError: The address cannot be used.
            MissingExtraError: `websockets` or `msgpack` is not installed.
        """
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
                process_request=_health,
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

    def stop(self) -> None:
        """Let `serve` end; from any thread, any number of times."""
        if self._stop is not None:
            loop, event = self._stop
            with contextlib.suppress(RuntimeError):  # The loop has ended by itself.
                loop.call_soon_threadsafe(event.set)

    def __enter__(self) -> PolicyServer:
        ready = threading.Event()

        def serve() -> None:
            try:
                asyncio.run(self.serve(ready))
            except BaseException as error:
                self._failure = error
                ready.set()

        self._thread = threading.Thread(target=serve, name="actlet-serve", daemon=True)
        self._thread.start()
        ready.wait()
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *unused: object) -> None:
        self.stop()
        if self._thread is not None:
            self._thread.join(10.0)

    async def _converse(self, connection: Any) -> None:
        if self.connected >= self.config.connections:
            await connection.close(_CLOSE_FULL, f"{self.config.connections} robots are connected already")
            return
        self.connected += 1
        try:
            await connection.send(pack(self.metadata))
            previous_ms = None
            while True:
                frame = await asyncio.wait_for(connection.recv(), self.config.idle_timeout_s)
                started = time.perf_counter()
                reply = await self._reply(frame)
                if isinstance(reply, str):
                    await connection.send(reply)
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


def _health(connection: Any, request: Any) -> Any:
    return connection.respond(http.HTTPStatus.OK, "OK\n") if request.path == "/healthz" else None


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
    parser.add_argument("--trusted-keys", type=Path, metavar="PATH", help=TRUSTED_KEYS_HELP)
    parser.add_argument("--threads", type=int, default=1, help="threads of the policy (default: 1)")
    add_backend(parser)
    parser.add_argument(
        "--wire", choices=("openpi", "act"), default="openpi", help="openpi's websocket, or OpenVLA's POST /act (default: openpi)"
    )
    parser.epilog = """\
examples:
  actlet serve                                    the teacher that comes along, for this machine alone
  actlet serve bundles/int8 --host 0.0.0.0        a bundle, for the robots of this network (there is no password)
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
    teachers = importlib.import_module("distill")
    folder = teachers.teacher_folder(arguments.policy or teachers.SHIPPED)
    if arguments.wire == "act":
        return _serve_rest(
            open_policy(folder, arguments.threads, trusted_keys=arguments.trusted_keys, backend=arguments.backend), config, str(folder)
        )
    server = PolicyServer(open_policy(folder, arguments.threads, trusted_keys=arguments.trusted_keys, backend=arguments.backend), config)
    return asyncio.run(_serve_until_signalled(server, str(folder)))


def _serve_rest(policy: Policy, config: ServerConfig, name: str) -> int:
    from runtime.rest_server import RestServer

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *unused: stop.set())
    with RestServer(
        policy, host=config.host, port=config.port, connections=config.connections, idle_timeout_s=config.idle_timeout_s
    ) as server:
        print(f"{name} at {server.url}; stop with Ctrl-C", file=sys.stderr, flush=True)
        told = 0
        while not stop.wait(_STATUS_EVERY_S):
            if server.answered + server.failed > told:
                told = server.answered + server.failed
                print(f"{server.answered} answers, {server.failed} refused", file=sys.stderr, flush=True)
    return 0


async def _serve_until_signalled(server: PolicyServer, name: str) -> int:
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
