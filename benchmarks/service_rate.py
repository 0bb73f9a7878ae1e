"""How many decisions a second one server gives to many robots over a network, and how long each of them waits.

    actlet serve POLICY (a process of its own) ◀─ simulated network ─┬─ robot 1: ask, wait, ask again ...
                                                                     └─ robot R

Every robot asks as fast as it is answered, so the total is what the server can give, and each robot's share is the highest rate at
which it could be controlled. Sockets, messages and the policy are real; the network is simulated (`benchmarks.simulated_network`).

All conditions take turns, some seconds each, and every round starts with another one, so that a machine that slows down slows all
of them. Latency is what a robot waits: from the observation in its memory to the checked chunk there. Beside it stands what does
not depend on who else uses the machine: the server's processor time for a decision, and how many questions it answered at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from tqdm import tqdm

from actlet.errors import ActletError, RemoteError, SpecError
from actlet.statistics import latency_summary
from benchmarks.policies import Sample, samples_for
from benchmarks.simulated_network import NetworkConfig, SimulatedNetwork
from runtime.remote_policy import RemotePolicy

__all__ = ["Condition", "Measured", "RateConfig", "measure_rates", "served"]

_CONNECT_TIMEOUT_S, _ANSWER_TIMEOUT_S = 60.0, 60.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class RateConfig:
    """Which conditions are measured, and for how long."""

    robots: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Robots that ask at once."""
    delays_ms: tuple[float, ...] = (0.0, 10.0, 50.0, 100.0)
    """One way."""
    jitter: float = 0.2
    """Largest change of a delay, as a share of it."""
    losses: tuple[float, ...] = (0.0, 0.01)
    """Share of packets that are lost."""
    seconds: float = 4.0
    """Length of a condition's turn; a question that is under way then is waited for."""
    rounds: int = 2
    """Turns of every condition."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.robots and self.delays_ms and self.losses) or min(self.robots) < 1 or self.seconds <= 0 or self.rounds < 1:
            raise SpecError(f"service: {self}: expected at least one of robots, delays and losses, and positive counts and seconds.")
        for condition in self.conditions:
            condition.network(self.jitter, self.seed)  # Says what is wrong with a delay or a loss.

    @property
    def conditions(self) -> list[Condition]:
        """All combinations."""
        return [Condition(*values) for values in itertools.product(self.losses, self.delays_ms, self.robots)]


@dataclasses.dataclass(frozen=True)
class Condition:
    """One network, with so many robots on it."""

    loss: float
    delay_ms: float
    robots: int

    def network(self, jitter: float, seed: int) -> NetworkConfig:
        """Its network."""
        return NetworkConfig(one_way_ms=self.delay_ms, jitter=jitter, loss=self.loss, seed=seed)


@dataclasses.dataclass
class Measured:
    """All answers under one condition."""

    latency_s: list[float] = dataclasses.field(default_factory=list)
    """One for every answer, of all robots."""
    batch: list[int] = dataclasses.field(default_factory=list)
    """With how many questions each was answered."""
    infer_ms: list[float] = dataclasses.field(default_factory=list)
    """How long the policy took for that batch, by the server's clock."""
    seconds: float = 0.0
    """Length of all turns, the last answers included."""
    server_cpu_s: float = 0.0
    """Processor time of the server in these turns."""
    lost_packets: int = 0
    errors: list[str] = dataclasses.field(default_factory=list)
    """Questions without an answer."""

    def summary(self, condition: Condition) -> dict[str, Any]:
        """JSON types; rates in decisions a second, ``decision_rate_hz`` of one robot. Latencies are None where nothing was answered."""
        count = len(self.latency_s)
        total = count / self.seconds if self.seconds else 0.0
        return {
            "robots": condition.robots,
            "delay_ms": condition.delay_ms,
            "loss": condition.loss,
            "decision_rate_hz": total / condition.robots,
            "total_rate_hz": total,
            "latency_ms": latency_summary(self.latency_s) if count else None,
            "batch_mean": float(np.mean(self.batch)) if count else None,
            "batch_max": max(self.batch, default=None),
            "infer_ms_p50": float(np.median(self.infer_ms)) if count else None,
            "server_cpu_ms_per_decision": 1e3 * self.server_cpu_s / count if count else None,
            "decisions": count,
            "errors": len(self.errors),
            "lost_packets": self.lost_packets,
        }


@contextlib.contextmanager
def served(policy: Path, *, threads: int = 1, start_timeout_s: float = 180.0) -> Iterator[tuple[psutil.Process, int]]:
    """`actlet serve` in a process of its own; gives the process and its port, and ends it.

    Raises:
        ActletError: It did not start; the message holds what it printed.
    """
    command = [sys.executable, "-m", "actlet", "serve", str(policy), "--port", "0", "--threads", str(threads)]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    alarm = threading.Timer(start_timeout_s, server.kill)
    alarm.start()
    said: list[str] = []
    draining: threading.Thread | None = None
    assert server.stderr is not None
    try:
        for line in server.stderr:
            said.append(line)
            if " at ws://" in line:
                break
        else:
            raise ActletError(f"{policy} cannot be served: {''.join(said)[-800:].strip()}")
        alarm.cancel()
        draining = threading.Thread(target=server.stderr.read, daemon=True)  # What it says from now on must not fill the pipe.
        draining.start()
        yield psutil.Process(server.pid), int(line.split(" at ws://")[1].split(";")[0].rpartition(":")[2])
    finally:
        alarm.cancel()
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        if draining is not None:
            draining.join(10)
        server.stderr.close()


def measure_rates(
    server: psutil.Process, port: int, config: RateConfig, samples: Sequence[Sample] | None = None, *, progress: bool = True
) -> dict[Condition, Measured]:
    """Measure all conditions by turns.

    Args:
        server: Whose processor time is read.
        port: Where it listens on this machine.
        config: What is measured.
        samples: Questions to ask; noise of the right shape when None.
        progress: Show a bar.

    Raises:
        RemoteError: The server cannot be reached.
    """
    found = {condition: Measured() for condition in config.conditions}
    if samples is None:
        with RemotePolicy(f"ws://127.0.0.1:{port}", connect_timeout_s=_CONNECT_TIMEOUT_S) as robot:
            samples = samples_for([], robot.spec)
    _warm_up(port, samples)
    order = list(found)
    with tqdm(total=config.rounds * len(order), desc="service", unit="turn", disable=not progress, file=sys.stderr) as bar:
        for turn in range(config.rounds):
            first = turn * len(order) // config.rounds
            for condition in order[first:] + order[:first]:
                bar.set_postfix_str(f"{condition.robots} robots, {condition.delay_ms:g} ms, loss {condition.loss:g}", refresh=True)
                _take_turn(found[condition], condition, server, port, config, config.seed + turn, samples)
                bar.update()
    return found


def _warm_up(port: int, samples: Sequence[Sample]) -> None:
    """Every instruction is met once, and a batch too, before anything is timed."""
    with RemotePolicy(f"ws://127.0.0.1:{port}", connect_timeout_s=_CONNECT_TIMEOUT_S, answer_timeout_s=_ANSWER_TIMEOUT_S) as robot:
        for sample in samples:
            robot.predict([sample.observation], [sample.instruction])


def _take_turn(
    measured: Measured,
    condition: Condition,
    server: psutil.Process,
    port: int,
    config: RateConfig,
    seed: int,
    samples: Sequence[Sample],
) -> None:
    together = threading.Barrier(condition.robots + 1)
    failures: list[BaseException] = []
    lock = threading.Lock()

    def ask(number: int) -> None:
        try:
            with RemotePolicy(network.url, connect_timeout_s=_CONNECT_TIMEOUT_S, answer_timeout_s=_ANSWER_TIMEOUT_S) as robot:
                together.wait(_CONNECT_TIMEOUT_S)
                end = time.perf_counter() + config.seconds
                asked = number
                while time.perf_counter() < end:
                    sample = samples[asked % len(samples)]
                    asked += condition.robots
                    started = time.perf_counter()
                    try:
                        robot.predict([sample.observation], [sample.instruction])
                    except RemoteError as error:
                        with lock:
                            measured.errors.append(str(error))
                        continue
                    with lock:
                        measured.latency_s.append(time.perf_counter() - started)
                        measured.batch.append(int(robot.server_timing["batch"]))
                        measured.infer_ms.append(float(robot.server_timing["infer_ms"]))
        except BaseException as error:
            failures.append(error)
            together.abort()

    with SimulatedNetwork(port, condition.network(config.jitter, seed)) as network:
        robots = [threading.Thread(target=ask, args=(number,), daemon=True) for number in range(condition.robots)]
        for robot in robots:
            robot.start()
        with contextlib.suppress(threading.BrokenBarrierError):  # Why is in `failures`.
            together.wait(2 * _CONNECT_TIMEOUT_S)
        started, cpu = time.perf_counter(), server.cpu_times()
        for robot in robots:
            robot.join()
        spent = server.cpu_times()
        measured.seconds += time.perf_counter() - started
        measured.server_cpu_s += (spent.user - cpu.user) + (spent.system - cpu.system)  # In this order nothing spent is exactly nothing.
        measured.lost_packets += network.lost
    genuine = [failure for failure in failures if not isinstance(failure, threading.BrokenBarrierError)]
    if genuine:
        raise genuine[0]
