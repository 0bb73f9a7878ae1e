"""A network between a robot and a server on one machine: a TCP proxy that delays what passes, seeded.

    robot ─ socket ─▶ [ to the server:  bandwidth ─ loss ─ delay ± jitter ] ─ socket ─▶ server
          ◀─ socket ─ [ to the robot:   the same, with draws of its own   ] ◀─ socket ─

What is modelled, for each direction of each connection by itself. What is read at once is a burst, cut into packets of 1448 bytes::

    leaves    when the packets before it have: bytes * 8 / bandwidth each
    arrives   one_way_ms * (1 + jitter * u) later, u uniform in -1 .. 1, drawn for every burst: a queue's length changes slowly
    lost      each packet with probability `loss`, also when it is sent again:
                three packets or more behind it in its burst    the receiver notices: one round trip more (fast retransmit, RFC 5681)
                fewer, the end of a message                     the sender's timer runs out: a round trip + 200 ms, doubled every time
                                                                (RFC 6298 with Linux's smallest timer)
    in order  nothing overtakes: behind a lost packet everything waits, as TCP does

Not modelled: congestion control (the window is always open, so a lost packet does not slow down those after it), tail loss probes, which
Linux sends to shorten the second kind of wait, losses in bunches as on radio, acknowledgements that get lost, and the handshake of
TCP itself, which the proxy answers at once. Draws are functions of (seed, connection, direction, burst); how a stream is cut into
bursts is the operating system's.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
import time

import numpy as np

from actlet.errors import ActletError, SpecError

__all__ = ["Link", "NetworkConfig", "SimulatedNetwork"]

PACKET_BYTES = 1448  # Of data in an Ethernet frame: 1500 less the headers of IP and TCP with timestamps.
SMALLEST_TIMEOUT_S = 0.2  # Linux, TCP_RTO_MIN
_PACKETS_THAT_TELL = 3  # duplicate acknowledgements that RFC 5681 waits for
_LARGEST_BURST, _BURSTS_UNDER_WAY = 2**20, 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """A network, the same in both directions."""

    one_way_ms: float = 0.0
    """Delay of a packet from one end to the other."""
    jitter: float = 0.0
    """Largest change of that delay, as a share of it."""
    loss: float = 0.0
    """Probability that a packet is lost."""
    bandwidth_mbit_s: float | None = None
    """Megabits in a second, None for no limit."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.one_way_ms >= 0 and 0 <= self.jitter <= 1 and 0 <= self.loss < 1 and self.seed >= 0):
            raise SpecError(f"network: {self}: expected a delay of 0 or more, jitter 0 .. 1, loss 0 .. below 1, and a seed of 0 or more.")
        if self.bandwidth_mbit_s is not None and not self.bandwidth_mbit_s > 0:
            raise SpecError(f"network: bandwidth {self.bandwidth_mbit_s} Mbit/s: expected more than 0, or None for no limit.")


class Link:
    """One direction of one connection: when does a burst arrive? Pure: time comes from outside.

    Args:
        config: The network.
        connection: Number of the connection, from 0.
        direction: 0 to the server, 1 to the robot.
    """

    def __init__(self, config: NetworkConfig, connection: int = 0, direction: int = 0) -> None:
        self._config = config
        self._draws = np.random.default_rng([config.seed, connection, direction])
        self._free_s = 0.0  # When the line has sent what was given to it.
        self._last_s = 0.0  # When the last byte so far arrives.
        self.lost = 0
        """Packets that were lost so far, those that were sent again among them."""

    def arrival_s(self, sent_s: float, size: int) -> float:
        """When the last byte of a burst arrives.

        Args:
            sent_s: When it is given to the network; never earlier than the burst before.
            size: Bytes.
        """
        config, packets = self._config, max(1, -(-size // PACKET_BYTES))
        delay_s = config.one_way_ms / 1e3 * (1 + config.jitter * self._draws.uniform(-1, 1))
        lost = np.flatnonzero(self._draws.random(packets) < config.loss)
        waits_s = np.zeros(packets)
        waits_s[lost] = [self._resent_after_s(behind=packets - 1 - int(packet)) for packet in lost]
        packet_s = 0.0 if config.bandwidth_mbit_s is None else 8e-6 * size / packets / config.bandwidth_mbit_s
        leaves_s = max(sent_s, self._free_s) + packet_s * np.arange(1, packets + 1)
        self._free_s = float(leaves_s[-1])
        self._last_s = max(self._last_s, float((leaves_s + waits_s).max()) + delay_s)
        return self._last_s

    def _resent_after_s(self, *, behind: int) -> float:
        """How much later a lost packet leaves again, until one of its copies comes through."""
        round_trip_s = 2 * self._config.one_way_ms / 1e3
        timeout_s = round_trip_s + SMALLEST_TIMEOUT_S
        wait_s, self.lost = 0.0, self.lost + 1
        if behind >= _PACKETS_THAT_TELL:
            wait_s = round_trip_s
        else:
            wait_s, timeout_s = timeout_s, 2 * timeout_s
        while self._draws.random() < self._config.loss:
            self.lost += 1
            wait_s, timeout_s = wait_s + timeout_s, 2 * timeout_s
        return wait_s


class SimulatedNetwork:
    """The proxy, in a thread of its own; connections that are made to `port` go to the server's.

    Args:
        server_port: Where the server listens on this machine.
        config: The network.

    Use as a context manager::

        with PolicyServer(policy, ServerConfig(port=0)) as server, SimulatedNetwork(server.port, NetworkConfig(one_way_ms=50)) as network:
            RemotePolicy(network.url)
    """

    def __init__(self, server_port: int, config: NetworkConfig) -> None:
        self.config, self._server_port = config, server_port
        self.port = 0
        """Where robots connect, once it runs."""
        self.links: list[Link] = []
        """Two for each connection so far, to the server and to the robot."""
        self._thread = threading.Thread(target=self._run, name="simulated-network", daemon=True)
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._failure: BaseException | None = None

    @property
    def url(self) -> str:
        """Where robots connect."""
        return f"ws://127.0.0.1:{self.port}"

    @property
    def lost(self) -> int:
        """Packets that were lost so far."""
        return sum(link.lost for link in self.links)

    def __enter__(self) -> SimulatedNetwork:
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise ActletError(f"the simulated network cannot listen ({self._failure}).") from self._failure
        return self

    def __exit__(self, *unused: object) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # The loop has ended by itself.
                self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10.0)

    def _run(self) -> None:
        try:
            asyncio.run(self._listen())  # Which also ends what a robot began at the last moment.
        except OSError as error:
            self._failure = error
        finally:
            self._ready.set()

    async def _listen(self) -> None:
        self._loop = asyncio.get_running_loop()
        conversations: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            number = len(self.links) // 2
            links = [Link(self.config, number, direction) for direction in (0, 1)]
            self.links += links
            task = asyncio.ensure_future(self._carry(reader, writer, links))
            conversations.add(task)
            task.add_done_callback(conversations.discard)
            task.add_done_callback(lambda _: writer.close())  # One that ends before it began has closed nothing.

        listening = await asyncio.start_server(accept, "127.0.0.1", 0, limit=_LARGEST_BURST)
        self.port = int(listening.sockets[0].getsockname()[1])
        self._ready.set()
        await self._stop.wait()
        listening.close()
        for task in conversations:
            task.cancel()
        await asyncio.gather(*conversations, return_exceptions=True)

    async def _carry(self, robot: asyncio.StreamReader, to_robot: asyncio.StreamWriter, links: list[Link]) -> None:
        writers = [to_robot]
        ways: list[asyncio.Task[None]] = []
        try:
            server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port, limit=_LARGEST_BURST)
            writers.append(to_server)
            ways.append(asyncio.ensure_future(_carry_one_way(robot, to_server, links[0])))
            ways.append(asyncio.ensure_future(_carry_one_way(server, to_robot, links[1])))
            await asyncio.gather(*ways)
        except OSError:
            pass  # One end is gone: so is the other.
        finally:
            for writer in writers:
                writer.close()  # Before all waiting, in which this may be cancelled.
            await _end(*ways)
            await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)


async def _carry_one_way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: Link) -> None:
    """Until the sender closes; then the receiver hears that too, as late as all else."""
    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_BURSTS_UNDER_WAY)

    async def deliver() -> None:
        while True:
            arrival_s, burst = await under_way.get()
            await asyncio.sleep(max(0.0, arrival_s - time.monotonic()))
            if not burst:
                writer.write_eof()
                return
            writer.write(burst)
            await writer.drain()

    delivering = asyncio.ensure_future(deliver())
    try:
        burst = b"-"
        while burst and not delivering.done():
            burst = await reader.read(_LARGEST_BURST)
            await under_way.put((link.arrival_s(time.monotonic(), len(burst)), burst))
        await delivering
    finally:
        await _end(delivering)


async def _end(*tasks: asyncio.Task[None]) -> None:
    """Cancels what still runs, and waits: a task that outlives its loop is never ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
