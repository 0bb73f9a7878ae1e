"""runtime.lerobot_server and runtime.lerobot_policy over real gRPC: a bundle's answers, one robot at a time, and nobody's who must not be answered."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from certificates import TOKEN, Certificates, make_certificates
from conftest import TINY_SPEC

from actlet.command_line import main
from actlet.errors import CallerError, ObservationError, RemoteError, SpecError
from actlet.protocols import ActionChunk, Observation
from runtime.access import RemoteAccess, ServerAccess
from runtime.lerobot_policy import LeRobotPolicy, LeRobotPolicyConfig
from runtime.lerobot_server import LeRobotServer
from runtime.opening import open_policy
from runtime.policy import BundlePolicy
from runtime.wires.lerobot import (
    SERVICE,
    PolicySetup,
    TimedActions,
    TimedObservation,
    data_message,
    pieces,
    read_actions,
    read_data,
    read_observation,
    read_piece,
)

H, A = TINY_SPEC.timing.horizon, TINY_SPEC.action.dim


def observation(seed: int = 0) -> Observation:
    rng = np.random.default_rng(seed)
    return Observation({"front": rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)}, rng.normal(size=3).astype(np.float32))


def config(url: str, **more: Any) -> LeRobotPolicyConfig:
    return LeRobotPolicyConfig(**{"url": url, "spec": TINY_SPEC, "timeout_s": 30.0, **more})


class Fixed:
    """Answers with the state's first entry; fails, or gives NaN, when told so."""

    spec = TINY_SPEC

    def __init__(self) -> None:
        self.gate: threading.Event | None = None

    def predict(self, observations: Sequence[Observation], instructions: Sequence[str]) -> list[ActionChunk]:
        if self.gate is not None:
            assert self.gate.wait(30)
        if "fail" in instructions:
            raise RuntimeError("no such word")
        value = np.nan if "nan" in instructions else 0.01 * observations[0].state[0]
        return [ActionChunk(np.full((H, A), value, np.float32), np.ones(H, np.float32)) for _ in observations]


class Robot:
    """A robot's side by hand, over one connection."""

    def __init__(self, server: LeRobotServer) -> None:
        self.channel = grpc.insecure_channel(server.url.removeprefix("grpc://"), [("grpc.use_local_subchannel_pool", 1)])

    def call(self, method: str, message: Any = b"", timeout: float = 30.0) -> bytes:
        kind = self.channel.stream_unary if method == "SendObservations" else self.channel.unary_unary
        return kind(f"/{SERVICE}/{method}")(message, timeout=timeout)

    def introduce(self) -> None:
        self.call("Ready")
        self.call("SendPolicyInstructions", data_message(PolicySetup.of(TINY_SPEC.observation, H).pack()))

    def show(self, timestep: int, *, must_go: bool = False, x: float = 1.0, task: str = "put") -> None:
        seen = Observation(observation().images, np.float32([x, 0, 0]))
        timed = TimedObservation.of(seen, TINY_SPEC.observation, task, timestep=timestep, timestamp=5.0)
        self.call("SendObservations", pieces(dataclasses.replace(timed, must_go=must_go).pack()))

    def actions(self) -> TimedActions | None:
        data = read_data(self.call("GetActions"))
        return read_actions(data, A) if data else None

    def __enter__(self) -> Robot:
        return self

    def __exit__(self, *unused: object) -> None:
        self.channel.close()


@pytest.fixture
def fixed() -> Iterator[LeRobotServer]:
    with LeRobotServer(Fixed(), port=0) as server:
        yield server


def refused(call: Callable[[], Any], status: grpc.StatusCode, words: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code() is status, caught.value
    assert words in caught.value.details()


def test_a_served_bundle_answers_as_the_bundle_does(tiny_bundle: Path) -> None:
    """Bit for bit, through our own client; the file opens as a policy."""
    local = BundlePolicy(tiny_bundle)
    with LeRobotServer(BundlePolicy(tiny_bundle), port=0) as server:
        config(server.url).write(tiny_bundle.parent / "act.json")
        remote = open_policy(tiny_bundle.parent / "act.json")
        assert isinstance(remote, LeRobotPolicy)
        with remote:
            for seed in range(5):
                (ours,), (theirs,) = (policy.predict([observation(seed)], ["put the cup"]) for policy in (local, remote))
                np.testing.assert_array_equal(ours.actions, theirs.actions)
        assert (server.answered, server.failed, server.connected) == (5, 0, 1)


def test_the_newest_observation_is_answered_once(fixed: LeRobotServer) -> None:
    """An older one is forgotten; one whose step was answered is not answered again unless the robot has nothing left."""
    with Robot(fixed) as robot:
        robot.introduce()
        robot.show(3, x=1.0)
        robot.show(4, x=2.0)
        answer = robot.actions()
        assert answer is not None
        assert answer.timesteps == list(range(4, 4 + H))
        np.testing.assert_allclose(answer.timestamps, [5.0 + 0.1 * i for i in range(H)])
        np.testing.assert_allclose(answer.actions, np.full((H, A), 0.02))
        robot.show(4)
        assert robot.actions() is None, "after two seconds"
        robot.show(4, must_go=True, x=3.0)
        answer = robot.actions()
        assert answer is not None
        assert answer.actions[0, 0] == pytest.approx(0.03)


def test_what_cannot_be_answered_is_told(fixed: LeRobotServer) -> None:
    """As a status with words, which LeRobot's client logs; the next observation is answered."""
    invalid, early = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION
    with Robot(fixed) as robot:
        refused(robot.actions, early, "call Ready first")
        robot.call("Ready")
        refused(lambda: robot.show(1), early, "before SendPolicyInstructions")
        refused(lambda: robot.call("SendPolicyInstructions", data_message(pickle.dumps({}))), invalid, "--allow-pickle")
        refused(lambda: robot.call("SendPolicyInstructions", b"\xff"), invalid, "protocol buffers")
        robot.introduce()
        refused(lambda: robot.show(1, task=" "), invalid, "expected words")
        refused(lambda: robot.show(1, x=float("nan")), invalid, "not finite")
        refused(lambda: robot.call("SendObservations", iter([])), invalid, "last piece is missing")
        large = list(pieces(b"x" * (fixed.largest_observation + 1)))
        refused(lambda: robot.call("SendObservations", iter(large)), invalid, "more than")
        robot.show(1, task="fail")
        refused(robot.actions, grpc.StatusCode.INTERNAL, "RuntimeError: no such word")
        robot.show(2, task="nan")
        refused(robot.actions, grpc.StatusCode.INTERNAL, "not finite")
        robot.show(3)
        assert robot.actions() is not None


def test_one_robot_at_a_time(fixed: LeRobotServer) -> None:
    """A second one of the same machine takes over by Ready, and the first is told; nobody gets the other's actions."""
    with Robot(fixed) as first, Robot(fixed) as second:
        first.introduce()
        first.show(1, x=1.0)
        refused(second.actions, grpc.StatusCode.FAILED_PRECONDITION, "one at a time")
        second.introduce()
        refused(lambda: first.show(2), grpc.StatusCode.FAILED_PRECONDITION, "one at a time")
        second.show(1, x=2.0)
        answer = second.actions()
        assert answer is not None
        assert answer.actions[0, 0] == pytest.approx(0.02)


def test_a_robot_whose_connection_was_made_anew_goes_on(fixed: LeRobotServer) -> None:
    """LeRobot's client does not say Ready again; after a second of silence the same machine is taken for the same robot."""
    with Robot(fixed) as robot:
        robot.introduce()
        robot.show(1)
    with Robot(fixed) as again:
        answers: list[Any] = []
        until = time.monotonic() + 30
        while not answers and time.monotonic() < until:
            with contextlib.suppress(grpc.RpcError):
                answers.append(again.actions())
            time.sleep(0.1)
        assert answers[0].timesteps[0] == 1


def test_ready_forgets_what_is_being_answered() -> None:
    """An answer to what was seen before Ready reaches nobody."""
    policy = Fixed()
    policy.gate = threading.Event()
    with LeRobotServer(policy, port=0) as server, Robot(server) as robot:
        robot.introduce()
        robot.show(1)
        answers: list[Any] = []
        asking = threading.Thread(target=lambda: answers.append(robot.actions()))
        asking.start()
        time.sleep(0.5)
        robot.introduce()
        policy.gate.set()
        asking.join(30)
        assert answers == [None]


class Foreign:
    """A server that answers what it likes."""

    def __init__(self, answer: Callable[[TimedObservation], bytes | None]) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self.seen: list[TimedObservation] = []
        self.readied = 0

        def ready(request: bytes, context: Any) -> bytes:
            self.readied += 1
            return b""

        def observe(requests: Iterator[bytes], context: Any) -> bytes:
            self.seen.append(read_observation(b"".join(read_piece(message)[1] for message in requests)))
            return b""

        def act(request: bytes, context: Any) -> bytes:
            data = answer(self.seen[-1])
            if data is None:
                time.sleep(1.0)
                return b""
            return data_message(data)

        unary = grpc.unary_unary_rpc_method_handler
        handlers = {
            "Ready": unary(ready),
            "SendPolicyInstructions": unary(lambda request, context: b""),
            "SendObservations": grpc.stream_unary_rpc_method_handler(observe),
            "GetActions": unary(act),
        }
        self.server = grpc.server(ThreadPoolExecutor(4))
        self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        self.url = f"grpc://127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> Foreign:
        self.server.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self.server.stop(None).wait(10)


def chunk(step: int, actions: np.ndarray | None = None) -> TimedActions:
    actions = np.zeros((H, A), np.float32) if actions is None else actions
    return TimedActions(timesteps=list(range(step, step + len(actions))), timestamps=[0.0] * len(actions), actions=actions)


NAN = np.full((H, A), np.nan, np.float32)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda seen: chunk(seen.timestep - 1).pack(), "expected 6 from step"),
        (lambda seen: chunk(seen.timestep, np.zeros((H - 1, A), np.float32)).pack(), "5 actions from step"),
        (lambda seen: chunk(seen.timestep, NAN).pack(), "finite"),
        (lambda seen: chunk(seen.timestep).pack(pickled=True), "is a pickle"),
        (lambda seen: b"nonsense", "says that its JSON has"),
        (lambda seen: None, r"no answer to GetActions within 0.8 s"),
    ],
)
def test_an_answer_that_cannot_be_used_is_refused(answer: Callable[[TimedObservation], bytes | None], message: str) -> None:
    """Of another step, another size, not finite, a pickle, none in time: an error, and the robot introduces itself anew."""
    spoiled = [True]

    def first_spoiled(seen: TimedObservation) -> bytes | None:
        return answer(seen) if spoiled else chunk(seen.timestep, np.full((H, A), 9, np.float32)).pack()

    with Foreign(first_spoiled) as server, LeRobotPolicy(config(server.url, timeout_s=0.8)) as robot:
        with pytest.raises(RemoteError, match=message):
            robot.predict([observation()], ["put"])
        spoiled.clear()
        (good,) = robot.predict([observation()], ["put"])
        np.testing.assert_array_equal(good.actions, np.tile(np.float32(TINY_SPEC.action.high), (H, 1)))
        assert robot.clipped == H * A, "9 is outside every limit"
        assert server.readied == 2
        assert server.seen[1].timestep > server.seen[0].timestep


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("pem"))


def test_tls_and_token(pem: Certificates, tmp_path: Path) -> None:
    """Who knows the token and believes the authority is answered; the others hear what to give."""
    other = make_certificates(tmp_path)
    with LeRobotServer(Fixed(), port=0, access=pem.server()) as server:
        assert server.url.startswith("grpcs://")
        with LeRobotPolicy(config(server.url), RemoteAccess(token=TOKEN, tls_ca=pem.authority)) as robot:
            assert robot.predict([observation()], ["put"])[0].actions.shape == (H, A)
        with pytest.raises(CallerError, match="no token was given"):
            LeRobotPolicy(config(server.url), RemoteAccess(tls_ca=pem.authority))
        with pytest.raises(CallerError, match="another token than the server's"):
            LeRobotPolicy(config(server.url), RemoteAccess(token="x" * 20, tls_ca=pem.authority))
        for access in (RemoteAccess(token=TOKEN, tls_ca=other.authority), RemoteAccess(token=TOKEN)):
            with pytest.raises(CallerError, match=r"certificate is not believed.*--tls-ca"):
                LeRobotPolicy(config(server.url), access)
        with pytest.raises(RemoteError, match="Ready"):
            LeRobotPolicy(config(server.url.replace("grpcs", "grpc")), RemoteAccess(token=TOKEN))
        assert server.answered == 1


def test_a_wrong_observation_is_not_sent(fixed: LeRobotServer) -> None:
    """And nobody there is told in words; afterwards there are pauses between attempts."""
    with LeRobotPolicy(config(fixed.url)) as robot, pytest.raises(ObservationError, match="front"):
        robot.predict([Observation({"front": np.zeros((8, 6, 3), np.uint8)}, np.zeros(3, np.float32))], ["put"])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(RemoteError, match="Ready: unavailable"):
        LeRobotPolicy(config(f"grpc://127.0.0.1:{port}", timeout_s=5.0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"url": "ws://10.0.0.2:8080"}, "expected one like grpc://"),
        ({"url": "grpc://10.0.0.2:8080/act"}, "expected one like grpc://"),
        ({"timeout_s": 0.0}, "expected seconds above 0"),
        ({"schema_version": 2}, "expected 1"),
    ],
)
def test_a_description_that_contradicts_itself_is_refused(fields: dict[str, Any], message: str) -> None:
    """Before anything is asked."""
    with pytest.raises(SpecError, match=message):
        config(**{"url": "grpc://10.0.0.2:8080", **fields})


def test_a_port_that_is_taken_and_flags_that_contradict(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, and what to do; two servers never share a port."""
    with LeRobotServer(Fixed(), port=0, access=ServerAccess(token=TOKEN)) as server:
        assert main(["serve", str(tiny_bundle), "--wire", "lerobot", "--port", str(server.port)]) == 2
        assert "Give another --port" in capsys.readouterr().err
    assert main(["serve", str(tiny_bundle), "--allow-pickle"]) == 2
    assert "only --wire lerobot has pickles" in capsys.readouterr().err


def test_the_commands_serve_and_run(tmp_path: Path, make_tiny_bundle: Callable[..., Path]) -> None:
    """`actlet serve --wire lerobot`, and `actlet run` with the file that says where it is."""
    from point_reach import SPEC

    bundle = make_tiny_bundle(tmp_path / "bundle", spec=SPEC)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "actlet"]
    server = subprocess.Popen(
        [*command, "serve", str(bundle), "--wire", "lerobot", "--port", "0"], stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert server.stderr is not None
        first = server.stderr.readline()
        assert " at grpc://127.0.0.1:" in first, first
        LeRobotPolicyConfig(url=first.split(" at ")[1].split(";")[0], spec=SPEC).write(tmp_path / "act.json")
        words = ["run", str(tmp_path / "act.json"), "--suite", "point_reach:make_suite", "--task", "red", "--seed", "3", "--steps", "7"]
        done = subprocess.run([*command, *words], capture_output=True, text=True, env=environment, timeout=120)
        assert done.returncode == 0, done.stderr
        assert "0 bad, 0 late" in done.stdout
        server.send_signal(signal.SIGINT)
        _, rest = server.communicate(timeout=60)
        assert server.returncode == 0, rest
    finally:
        server.kill()
        server.communicate()
