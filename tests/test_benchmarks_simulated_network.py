"""benchmarks.simulated_network: the model in virtual time, and the proxy with real sockets and a real service."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_SPEC

from actlet.errors import RemoteError, SpecError
from actlet.protocols import Observation
from benchmarks.simulated_network import PACKET_BYTES, Link, NetworkConfig, SimulatedNetwork
from runtime.policy import BundlePolicy
from runtime.remote_policy import RemotePolicy
from runtime.serve import PolicyServer, ServerConfig

FRAME = 34 * PACKET_BYTES  # a camera frame of 128 x 128


def delays_ms(config: NetworkConfig, *, size: int = FRAME, count: int = 4000, every_s: float = 10.0, connection: int = 0) -> np.ndarray:
    """How long each of many bursts is under way, sent so far apart that none waits for another."""
    link = Link(config, connection)
    return np.array([1e3 * (link.arrival_s(every_s * (i + 1), size) - every_s * (i + 1)) for i in range(count)])


def test_without_jitter_and_loss_every_burst_takes_the_delay() -> None:
    """Whatever its size."""
    for size in (1, FRAME):
        np.testing.assert_allclose(delays_ms(NetworkConfig(one_way_ms=50), size=size), 50, atol=1e-6)


def test_jitter_stays_within_its_share_and_fills_it() -> None:
    """Uniform between 80 and 120 % of the delay."""
    found = delays_ms(NetworkConfig(one_way_ms=100, jitter=0.2))
    assert 80 <= found.min() < 81
    assert 119 < found.max() <= 120 + 1e-6
    assert abs(found.mean() - 100) < 1


def test_the_seed_decides_and_connections_and_directions_differ() -> None:
    """The same draws again for the same seed, others for another seed or connection."""
    config = NetworkConfig(one_way_ms=50, jitter=0.5, loss=0.01)
    np.testing.assert_array_equal(delays_ms(config), delays_ms(config))
    assert not np.array_equal(delays_ms(config), delays_ms(config, connection=1))
    assert not np.array_equal(delays_ms(config), delays_ms(NetworkConfig(one_way_ms=50, jitter=0.5, loss=0.01, seed=1)))


def test_a_lost_packet_within_a_frame_costs_a_round_trip_and_one_at_its_end_a_timeout() -> None:
    """Of 34 packets each is lost one time in a hundred: in all 29 % of frames are late, nearly all by one round trip, 3 % by 200 ms more."""
    found = delays_ms(NetworkConfig(one_way_ms=50, loss=0.01), count=20_000)
    late, by_timeout = (found > 50.001).mean(), (found >= 350 - 1e-6).mean()
    assert late == pytest.approx(1 - 0.99**34, abs=0.02)
    assert by_timeout == pytest.approx(1 - 0.99**3 + 31 * 0.01**2, abs=0.006)
    assert set(np.round(found[found < 350 - 1e-6])) == {50, 150}


def test_a_short_message_that_is_lost_always_waits_for_the_timer() -> None:
    """An answer is one packet: delay + round trip + 200 ms, and twice as long again when it is lost again."""
    found = np.round(delays_ms(NetworkConfig(one_way_ms=50, loss=0.1), size=100))
    assert {50, 350, 950} <= set(found)
    assert (found > 50).mean() == pytest.approx(0.1, abs=0.02)


def test_nothing_overtakes() -> None:
    """Bursts of all sizes, sent at random: arrivals are in order, and none is earlier than the least delay."""
    rng = np.random.default_rng(0)
    link = Link(NetworkConfig(one_way_ms=20, jitter=0.9, loss=0.05, bandwidth_mbit_s=50))
    sent = np.cumsum(rng.exponential(0.005, 2000))
    arrived = [link.arrival_s(at, int(size)) for at, size in zip(sent, rng.integers(1, 100_000, 2000), strict=True)]
    assert (np.diff(arrived) >= 0).all()
    assert (arrived - sent >= 0.002 - 1e-9).all()
    assert link.lost > 0


def test_bandwidth_makes_large_frames_slow_and_later_ones_wait() -> None:
    """At 8 Mbit/s a megabyte takes a second, and the second one sent at the same moment two."""
    link = Link(NetworkConfig(one_way_ms=10, bandwidth_mbit_s=8))
    assert link.arrival_s(5.0, 1_000_000) == pytest.approx(6.01)
    assert link.arrival_s(5.0, 1_000_000) == pytest.approx(7.01)


@pytest.mark.parametrize(
    "options", [{"loss": 1.0}, {"one_way_ms": -1}, {"jitter": 1.5}, {"bandwidth_mbit_s": 0}, {"one_way_ms": float("nan")}]
)
def test_a_network_that_cannot_be_is_refused(options: dict[str, float]) -> None:
    """Everything lost, or answers before questions."""
    with pytest.raises(SpecError, match="network: "):
        NetworkConfig(**options)  # type: ignore[arg-type]


@pytest.fixture
def policy(tiny_bundle: Path) -> BundlePolicy:
    """The tiny bundle, open."""
    return BundlePolicy(tiny_bundle)


@contextlib.contextmanager
def echo() -> Iterator[int]:
    """A server that sends back what it hears; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with contextlib.suppress(OSError), listening.accept()[0] as connection:
                while heard := connection.recv(65536):
                    connection.sendall(heard)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
    thread.join(10)


def test_bytes_come_through_whole_in_order_and_late_and_the_end_too() -> None:
    """A megabyte through a bad network: what comes back is what was sent, not before two delays are over; then the connection ends."""
    data = np.random.default_rng(0).bytes(1_000_000)
    with echo() as port, SimulatedNetwork(port, NetworkConfig(one_way_ms=30, jitter=0.5, loss=0.002)) as network:
        with socket.create_connection(("127.0.0.1", network.port), timeout=60) as robot:
            started = time.monotonic()
            sending = threading.Thread(target=robot.sendall, args=(data,))
            sending.start()
            heard = bytearray(robot.recv(65536))
            first_s = time.monotonic() - started
            while len(heard) < len(data):
                heard += robot.recv(65536)
            sending.join(10)
            robot.shutdown(socket.SHUT_WR)
            assert robot.recv(1) == b""
        assert bytes(heard) == data
        assert first_s >= 2 * 0.03 * 0.5
        assert network.lost > 0


def test_a_policy_answers_through_it(policy: BundlePolicy) -> None:
    """The same answers as here, each after two delays; several robots at once."""
    seen = Observation({"front": np.zeros((6, 8, 3), np.uint8)}, np.zeros(3, np.float32))
    (here,) = policy.predict([seen], ["put"])
    with (
        PolicyServer(policy, ServerConfig(port=0)) as server,
        SimulatedNetwork(server.port, NetworkConfig(one_way_ms=40, jitter=0.1)) as network,
        RemotePolicy(network.url, connect_timeout_s=30, answer_timeout_s=30) as one,
        RemotePolicy(network.url, connect_timeout_s=30, answer_timeout_s=30) as other,
    ):
        assert one.spec == TINY_SPEC
        for robot in (one, other, one):
            started = time.monotonic()
            (there,) = robot.predict([seen], ["put"])
            assert time.monotonic() - started >= 2 * 0.04 * 0.9
            np.testing.assert_array_equal(here.actions, there.actions)
        assert len(network.links) == 4


def test_a_delay_beyond_the_robots_patience_is_an_error_there(policy: BundlePolicy) -> None:
    """A second each way, 0.3 s of patience: the robot hears that no answer came."""
    seen = Observation({"front": np.zeros((6, 8, 3), np.uint8)}, np.zeros(3, np.float32))
    with (
        PolicyServer(policy, ServerConfig(port=0)) as server,
        SimulatedNetwork(server.port, NetworkConfig(one_way_ms=1000)) as network,
        RemotePolicy(network.url, connect_timeout_s=30, answer_timeout_s=0.3) as robot,
        pytest.raises(RemoteError, match=r"no answer within 0\.3 s"),
    ):
        robot.predict([seen], ["put"])


def test_no_server_behind_it_ends_the_connection() -> None:
    """As a refused connection does."""
    with (
        SimulatedNetwork(9, NetworkConfig(one_way_ms=5)) as network,
        pytest.raises(RemoteError, match="cannot be reached"),
    ):
        RemotePolicy(network.url, TINY_SPEC, connect_timeout_s=30)
