"""A network that fails under a robot that moves: real sockets and TLS, in real time, through a proxy that cuts, swallows and stalls.

What is counted: commands made of an observation that has outlived its chunk, commands outside the limits, commands of a server that is not the one that is
believed, and whether the robot goes on with what it sees after the network is there again. How fast is not asserted.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from certificates import TOKEN, Certificates, make_certificates

from actlet.protocols import ActionChunk, Observation
from actlet.specs import ActionSpec, CameraSpec, ObservationSpec, PolicySpec, TimingSpec
from runtime.access import RemoteAccess, ServerAccess
from runtime.chunk_schedule import ScheduleConfig
from runtime.control_loop import LoopConfig
from runtime.failsafe import FailsafeConfig
from runtime.inference_process import InferenceProcess
from runtime.inference_worker import WorkerConfig
from runtime.remote_policy import RemotePolicy
from runtime.run import run_policy
from runtime.serve import PolicyServer, ServerConfig
from runtime.supervisor import SupervisorConfig

RATE_HZ, HORIZON = 50.0, 10
SPEC = PolicySpec(
    observation=ObservationSpec(cameras=(CameraSpec(name="front", height=8, width=8),), state_names=("number",), state_units=("1",)),
    action=ActionSpec(
        names=("number", "flag"),
        units=("1", "1"),
        kinds=("continuous", "binary"),
        low=(0.0, 0.0),
        high=(1e6, 1.0),
        frame="base",
        hold=("zero", "last"),
    ),
    timing=TimingSpec(rate_hz=RATE_HZ, horizon=HORIZON, execute_steps=2, max_delay_steps=5),
)
TIME_TO_LIVE_S = HORIZON / RATE_HZ
SLACK_S = 0.2  # Between the loop's look at the clock and the robot's: the machine may have other things to do.
PATIENCE_S = 60.0
IMPOSTOR = 500_000


class NumberedAnswers:
    """Answers with the number of the observation, so that every command says what it was made of; an impostor adds to it."""

    spec = SPEC

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset

    def predict(self, observations: Sequence[Observation], instructions: Sequence[str]) -> list[ActionChunk]:
        chunks = []
        for seen in observations:
            actions = np.tile(np.float32([seen.state[0] + self.offset, 1.0]), (HORIZON, 1))
            chunks.append(ActionChunk(actions, np.ones(HORIZON, np.float32)))
        return chunks


class NumberedRobot:
    """Numbers what it sees, and keeps every command with its time."""

    observation_spec, action_spec, rate_hz, instruction = SPEC.observation, SPEC.action, RATE_HZ, "go"

    def __init__(self) -> None:
        self.taken_s: list[float] = [0.0]
        self.commands: list[tuple[float, np.ndarray]] = []
        self.done = False

    def connect(self) -> None:
        """Nothing to do."""

    def disconnect(self) -> None:
        """Nothing to do."""

    def get_observation(self) -> Observation:
        self.taken_s.append(time.monotonic())
        number = len(self.taken_s) - 1
        frame = np.full((8, 8, 3), number % 251, np.uint8)
        return Observation({"front": frame}, np.float32([number]), taken_s=self.taken_s[-1])

    def send_action(self, action: np.ndarray) -> None:
        self.commands.append((time.monotonic(), np.array(action)))

    def follows(self, since: float) -> bool:
        """Whether it is commanded what was made of something that it saw after a moment."""
        return any(value[0] > 0 and self.taken_s[int(value[0]) % IMPOSTOR] > since for _, value in self.commands[-20:])

    def stands(self, since: float) -> bool:
        """Whether it was told to stand still after a moment."""
        return any(when > since and value[0] == 0 for when, value in self.commands[-20:])


class Proxy:
    """TCP on this machine that can fail: `cut` ends and refuses connections, `swallow` keeps them and loses all that is sent, `stall` holds it back."""

    def __init__(self, target: int) -> None:
        self.target, self.mode = target, "pass"
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lost: set[int] = set()  # Connections of which something was swallowed: they never come back.
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def set(self, mode: str) -> None:
        """From now on."""
        self.mode = mode
        if mode == "cut":
            for pair in self._pairs:
                for end in pair:
                    with contextlib.suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if self.mode == "cut":
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self.target))
                self._pairs.append((near, far))
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(len(self._pairs), source, sink), daemon=True).start()

    def _pump(self, connection: int, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65_536):
                while self.mode == "stall":
                    time.sleep(0.005)
                if self.mode == "swallow":
                    self._lost.add(connection)
                if connection not in self._lost:
                    sink.sendall(piece)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End all."""
        self.set("cut")
        self._listener.close()
        for pair in self._pairs:
            for end in pair:
                end.close()


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("pem"))


def await_true(what: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["thread", "process"])
def test_a_robot_outlives_its_network(where: str, pem: Certificates, tmp_path: Path) -> None:
    """Cut, half-open, stalled, another certificate, another token, one after the other, twice: it stands still, and goes on afterwards."""
    (tmp_path / "token").write_text(TOKEN)
    stranger = make_certificates(tmp_path)
    servers = {
        "true": PolicyServer(NumberedAnswers(), ServerConfig(port=0), access=pem.server()),
        "bad certificate": PolicyServer(NumberedAnswers(IMPOSTOR), ServerConfig(port=0), access=stranger.server()),
        "wrong token": PolicyServer(
            NumberedAnswers(IMPOSTOR),
            ServerConfig(port=0),
            access=ServerAccess(token="another-token-01234", certificate=pem.certificate, key=pem.key),
        ),
    }
    robot, recoveries, results = NumberedRobot(), [], []
    with contextlib.ExitStack() as open_servers:
        for server in servers.values():
            open_servers.enter_context(server)
        proxy = Proxy(servers["true"].port)
        open_servers.callback(proxy.close)
        url = f"wss://127.0.0.1:{proxy.port}"
        if where == "thread":
            access = RemoteAccess(token=TOKEN, tls_ca=pem.authority)
            policy = open_servers.enter_context(RemotePolicy(url, connect_timeout_s=30.0, answer_timeout_s=None, access=access))
        else:
            worker = WorkerConfig(policy=url, token_file=str(tmp_path / "token"), tls_ca=str(pem.authority), answer_timeout_s=None)
            policy = InferenceProcess(url, worker=worker, supervisor=SupervisorConfig(standby=False, hang_s=10.0))

        def run() -> None:
            limits = FailsafeConfig(hold_s=PATIENCE_S, wait_s=PATIENCE_S, max_gap_s=PATIENCE_S)
            results.append(
                run_policy(policy, robot, realtime=True, config=LoopConfig(failsafe=limits, schedule=ScheduleConfig(blend_steps=0)))
            )

        running = threading.Thread(target=run)
        running.start()
        try:
            await_true(lambda: robot.follows(0.0))
            for fault in 2 * ("cut", "swallow", "stall", "bad certificate", "wrong token"):
                if fault in servers:
                    proxy.target = servers[fault].port
                    proxy.set("cut")
                    proxy.set("pass")
                else:
                    proxy.set(fault)
                began = time.monotonic()
                time.sleep(0.5)
                await_true(lambda since=began: robot.stands(since))
                proxy.target = servers["true"].port
                if fault in servers:
                    proxy.set("cut")
                healed = time.monotonic()
                proxy.set("pass")
                await_true(lambda since=healed: robot.follows(since))
                recoveries.append((fault, time.monotonic() - healed))
        finally:
            robot.done = True
            running.join(30)
        assert servers["true"].answered > 10
        assert servers["bad certificate"].answered == servers["wrong token"].answered == 0
    print("  ".join(f"{fault} {seconds:.2f} s" for fault, seconds in recoveries))
    assert results[0].stopped_by == "done", results[0].message
    assert len(recoveries) == 10
    values = np.array([value for _, value in robot.commands])
    assert np.isfinite(values).all()
    assert (values[:, 0] < IMPOSTOR).all(), "nobody else's answer was taken"
    assert set(values[:, 1]) <= {0.0, 1.0}
    ages = [when - robot.taken_s[int(value[0])] for when, value in robot.commands if value[0] > 0]
    assert len(ages) > 50
    assert max(ages) < TIME_TO_LIVE_S + SLACK_S
    numbers = values[values[:, 0] > 0, 0]
    assert (np.diff(numbers) >= 0).all(), "never back to an older observation"
