"""A policy for LeRobot's asynchronous inference over gRPC: ``actlet serve FOLDER --wire lerobot``, port 8080.

    robot ─ Ready ─▶ ─ SendPolicyInstructions ─▶      its state's names and its cameras must be what the policy sees, or the robot hears the difference
          ─ SendObservations ─▶   the newest one waits; an older one is forgotten
          ─ GetActions ─▶         waits up to 2 s for an observation; ◀─ the chunk for its step, or nothing

As LeRobot's own server does, but for these: it has its policy already, whatever the robot asks for; a frame is not resized but must have the size that the policy
was made for; an observation waits if the robot says that it must, or if its step was not answered yet (LeRobot also forgets those whose state differs by less
than 1, in whatever units it has); what goes wrong is a status with words; and it serves one robot at a time, so that none gets another's actions: a second one
from elsewhere is turned away while the first is there. Messages are read in the safe form of `runtime.wires.lerobot`; pickles, which LeRobot 0.6.1 sends, only
with ``--allow-pickle``, and nothing in them is run. The robot is answered in the form in which it introduced itself.

LeRobot 0.6.1's client has neither TLS nor a token: serve it on this machine, or through a tunnel. Ours (`runtime.lerobot_policy`) has both.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from actlet.errors import ActletError, CallerError, MissingExtraError, RemoteError
from actlet.protocols import ActionChunk, Observation, Policy
from runtime.access import ServerAccess
from runtime.background_service import BackgroundService
from runtime.wires.lerobot import (
    BEGIN,
    END,
    SERVICE,
    PolicySetup,
    TimedActions,
    data_message,
    read_data,
    read_observation,
    read_piece,
    read_setup,
)
from runtime.wires.pickles import is_pickle

__all__ = ["LeRobotServer", "require_grpc"]

_LARGEST_MESSAGE = 4 * 2**20  # LeRobot's and gRPC's own limit; observations come in pieces of 2 MB.
_WAIT_S = 2.0  # LeRobot's obs_queue_timeout
_OBSERVATION_S = 10.0  # Longest that an observation may take to come in.
_AWAY_S, _GONE_S = 1.0, 5.0
"""A robot that has asked nothing for so long: one of the same address may go on in its place (its connection was made anew); one from elsewhere may take over."""
_CALLS_AT_ONCE = 16


def require_grpc(why: str) -> Any:
    """The package `grpc`.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import grpc
    except ModuleNotFoundError as error:
        raise MissingExtraError("grpcio", "lerobot", why) from error
    return grpc


class _Session:
    """One robot, from its Ready on."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.setup: PolicySetup | None = None
        self.pickled = False
        self.waiting: asyncio.Queue[tuple[Observation, str, int, float]] = asyncio.Queue(1)
        self.answered_to = -1
        self.calls, self.heard_s = 0, time.monotonic()

    def silent_for(self, seconds: float) -> bool:
        """Whether nothing is under way, and nothing came for so long."""
        return self.calls == 0 and time.monotonic() - self.heard_s >= seconds


class LeRobotServer(BackgroundService):
    """A policy behind ``transport.AsyncInference``.

    Args:
        policy: Who answers; its `predict` is called from one thread only.
        host: Who may connect: this machine alone; "0.0.0.0" for the network.
        port: 0 for any that is free.
        access: Who is answered, and whether the wire is encrypted; None for everybody, and not.
        allow_pickle: Whether LeRobot's pickles are read.

    Raises:
        MissingExtraError: `grpcio` is not installed.
    """

    def __init__(
        self, policy: Policy, *, host: str = "127.0.0.1", port: int = 8080, access: ServerAccess | None = None, allow_pickle: bool = False
    ) -> None:
        super().__init__(host, port, access, ("grpc", "grpcs"))
        self._grpc = require_grpc("serving LeRobot's robots")
        self.policy, self.allow_pickle = policy, allow_pickle
        seen = policy.spec.observation
        frames = sum(camera.height * camera.width * 3 for camera in seen.cameras)
        self.largest_observation = 4 * (frames + 64 * seen.state_dim) + 65_536
        """Bytes, all pieces together; a larger one is refused. Four times what an observation takes, for clients that send floats."""
        self._session: _Session | None = None
        self._executor: ThreadPoolExecutor

    async def serve(self, ready: threading.Event | None = None) -> None:
        """See `BackgroundService.serve`."""
        grpc, stop = self._grpc, asyncio.Event()
        self._stop = (asyncio.get_running_loop(), stop)
        self.access.context()  # Says what is wrong with certificate and key; gRPC does not.
        server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 0),  # Else two servers share a port, and robots get either.
                ("grpc.max_receive_message_length", _LARGEST_MESSAGE),
                ("grpc.max_send_message_length", _LARGEST_MESSAGE),
                ("grpc.keepalive_time_ms", 10_000),
                ("grpc.keepalive_timeout_ms", 5_000),
            ],
            maximum_concurrent_rpcs=_CALLS_AT_ONCE,
        )
        handlers = {
            "Ready": grpc.unary_unary_rpc_method_handler(self._ready),
            "SendPolicyInstructions": grpc.unary_unary_rpc_method_handler(self._set_up),
            "SendObservations": grpc.stream_unary_rpc_method_handler(self._observe),
            "GetActions": grpc.unary_unary_rpc_method_handler(self._act),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        place = f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"
        try:
            if self.access.certificate is not None and self.access.key is not None:
                pair = (self.access.key.read_bytes(), self.access.certificate.read_bytes())
                port = server.add_secure_port(place, grpc.ssl_server_credentials([pair]))
            else:
                port = server.add_insecure_port(place)
        except RuntimeError as error:
            port, reason = 0, str(error)
        else:
            reason = "it is taken, or is no address of this machine"
        if port == 0:
            raise CallerError(f"{place} cannot be served: {reason}. Give another --port.")
        self.port = int(port)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="actlet-policy")
        try:
            await server.start()
            if ready is not None:
                ready.set()
            await stop.wait()
        finally:
            await server.stop(0.2)
            self._executor.shutdown(wait=False, cancel_futures=True)

    async def _ready(self, request: bytes, context: Any) -> bytes:
        await self._require_token(context)
        peer, now = context.peer(), self._session
        if now is not None and not (_host(peer) == _host(now.peer) or now.silent_for(_GONE_S)):
            await self._refuse(context, "RESOURCE_EXHAUSTED", f"a robot at {now.peer} is being served; start another server for this one.")
        self._session, self.connected = _Session(peer), 1
        return b""

    async def _set_up(self, request: bytes, context: Any) -> bytes:
        async with self._session_of(context) as session:
            try:
                data = read_data(request)
                setup = read_setup(data, pickles=self.allow_pickle)
                setup.require(self.policy.spec.observation)
            except (CallerError, RemoteError) as error:
                await self._refuse(context, "INVALID_ARGUMENT", str(error))
            session.setup, session.pickled = setup, is_pickle(data)
        return b""

    async def _observe(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        async with self._session_of(context) as session:
            setup = session.setup
            if setup is None:
                await self._refuse(context, "FAILED_PRECONDITION", "an observation before SendPolicyInstructions.")
            assert setup is not None
            try:
                data = await asyncio.wait_for(self._gather(requests), _OBSERVATION_S)
                seen = read_observation(data, pickles=self.allow_pickle)
                observation, task = seen.observation(self.policy.spec.observation, setup.rename)
            except asyncio.TimeoutError:
                await self._refuse(context, "DEADLINE_EXCEEDED", f"an observation that did not come within {_OBSERVATION_S:g} s.")
            except (CallerError, RemoteError) as error:
                await self._refuse(context, "INVALID_ARGUMENT", str(error))
            if seen.must_go or seen.timestep > session.answered_to:
                with contextlib.suppress(asyncio.QueueEmpty):
                    session.waiting.get_nowait()
                session.waiting.put_nowait((observation, task, seen.timestep, seen.timestamp))
        return b""

    async def _act(self, request: bytes, context: Any) -> bytes:
        async with self._session_of(context) as session:
            try:
                observation, task, step, when = await asyncio.wait_for(session.waiting.get(), _WAIT_S)
            except asyncio.TimeoutError:
                return b""
            assert session.setup is not None
            try:
                chunk = await asyncio.get_running_loop().run_in_executor(self._executor, self._predict, observation, task)
            except Exception as error:  # Whatever a policy raises is this robot's to hear.
                words = str(error) if isinstance(error, ActletError) else f"{type(error).__name__}: {error}"
                await self._refuse(context, "INVALID_ARGUMENT" if isinstance(error, CallerError) else "INTERNAL", words)
            if session is not self._session:  # It has said Ready again meanwhile: this would be an answer to what was before.
                return b""
            session.answered_to = max(session.answered_to, step)
            actions = chunk.actions[: session.setup.actions_per_chunk]
            steps = range(len(actions))
            answer = TimedActions(
                timesteps=[step + i for i in steps],
                timestamps=[when + i / self.policy.spec.timing.rate_hz for i in steps],
                actions=actions,
            )
            self.answered += 1
            self.batches += 1
            return data_message(answer.pack(pickled=session.pickled))

    def _predict(self, observation: Observation, task: str) -> ActionChunk:
        (chunk,) = self.policy.predict([observation], [task])
        if not np.isfinite(chunk.actions).all():
            raise ActletError("the policy answered with a value that is not finite; the chunk is refused.")
        return chunk

    async def _gather(self, requests: AsyncIterator[bytes]) -> bytes:
        """An observation of its pieces."""
        data = bytearray()
        async for message in requests:
            state, piece = read_piece(message)
            data = data if state != BEGIN else bytearray()
            data += piece
            if len(data) > self.largest_observation:
                raise RemoteError(f"an observation of more than {self.largest_observation} bytes.")
            if state == END:
                return bytes(data)
        raise RemoteError("an observation whose last piece is missing.")

    @contextlib.asynccontextmanager
    async def _session_of(self, context: Any) -> AsyncIterator[_Session]:
        """The session of the robot that calls, which is the only one."""
        await self._require_token(context)
        session, peer = self._session, context.peer()
        if session is None:
            await self._refuse(context, "FAILED_PRECONDITION", "call Ready first.")
        elif session.peer != peer:
            if _host(session.peer) != _host(peer) or not session.silent_for(_AWAY_S):
                await self._refuse(context, "FAILED_PRECONDITION", f"a robot at {session.peer} is being served; one at a time.")
            session.peer = peer
        assert session is not None
        session.calls += 1
        try:
            yield session
        finally:
            session.calls -= 1
            session.heard_s = time.monotonic()

    async def _require_token(self, context: Any) -> None:
        given = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
        if len(given) > 1 or not self.access.allows(str(given[0]) if given else None):
            await self._refuse(context, "UNAUTHENTICATED", "this server answers those that know its token: authorization: Bearer TOKEN")

    async def _refuse(self, context: Any, status: str, why: str) -> None:
        """Ends the call with a status; does not return."""
        self.failed += 1
        await context.abort(getattr(self._grpc.StatusCode, status), why)
        raise AssertionError("abort raises")


def _host(peer: str) -> str:
    """ "ipv4:10.0.0.2:51234" -> "ipv4:10.0.0.2"."""
    return peer.rpartition(":")[0]
