"""runtime.serve and runtime.remote_policy over real sockets, with openpi's own client too: same answers, batches, and no unsafe one."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from conftest import TINY_SPEC
from openpi_client.websocket_client_policy import WebsocketClientPolicy  # the original
from websockets.sync.server import serve as serve_sync

from actlet.errors import CallerError, ObservationError, RemoteError, SpecError
from actlet.protocols import ActionChunk, Observation
from actlet.specs import PolicySpec
from runtime.policy import BundlePolicy
from runtime.remote_policy import RemotePolicy
from runtime.serve import PolicyServer, ServerConfig
from runtime.wires.openpi import ObservationKeys, pack, unpack

H, A = TINY_SPEC.timing.horizon, TINY_SPEC.action.dim
ANY_PORT = ServerConfig(port=0)
PATIENT = {"connect_timeout_s": 30.0, "answer_timeout_s": 30.0}  # for machines that are busy


def observation(seed: int = 0) -> Observation:
    rng = np.random.default_rng(seed)
    return Observation({"front": rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)}, rng.normal(size=3).astype(np.float32))


class Echo:
    """Answers with the state's first entry as every action's dx, so that answers can be told apart; counts its batches."""

    spec: PolicySpec = TINY_SPEC

    def __init__(self, gate: threading.Event | None = None) -> None:
        self.batches: list[int] = []
        self.asked = 0
        self.gate = gate

    def predict(self, observations: Sequence[Observation], instructions: Sequence[str]) -> list[ActionChunk]:
        self.asked += len(observations)
        if self.gate is not None:
            assert self.gate.wait(30)
        self.batches.append(len(observations))
        if "fail" in instructions:
            raise RuntimeError("no such word")
        chunks = []
        for seen in observations:
            actions = np.zeros((H, A), np.float32)
            actions[:, 1] = seen.state[0] * 0.01
            chunks.append(ActionChunk(actions, np.full(H, 0.5, np.float32)))
        return chunks


def test_a_served_bundle_answers_as_the_bundle_does(tiny_bundle: Path) -> None:
    """Bit for bit, over a socket; the specification comes with the connection."""
    local = BundlePolicy(tiny_bundle)
    with PolicyServer(BundlePolicy(tiny_bundle), ANY_PORT) as server, RemotePolicy(server.url, **PATIENT) as remote:
        assert remote.spec == local.spec
        for seed in range(5):
            (ours,), (theirs,) = (policy.predict([observation(seed)], ["put the cup"]) for policy in (local, remote))
            np.testing.assert_array_equal(ours.actions, theirs.actions)
            np.testing.assert_array_equal(ours.confidence, theirs.confidence)


@pytest.mark.filterwarnings("ignore:connect:DeprecationWarning")  # of websockets, about openpi-client
def test_openpis_own_client_is_understood_and_told_what_is_wrong() -> None:
    """Metadata first, actions, timings; an observation without its camera raises there, with the missing key in the message."""
    with PolicyServer(Echo(), ANY_PORT) as server:
        client = WebsocketClientPolicy(server.url)
        assert client.get_server_metadata()["actlet"]["spec"]["timing"]["horizon"] == H
        question = {"observation/front": observation().images["front"], "observation/state": np.float32([3, 0, 0]), "prompt": "put"}
        answers = [client.infer(question) for _ in range(2)]
        assert answers[0]["actions"].shape == (H, A)
        assert answers[0]["actions"][0, 1] == pytest.approx(0.03)
        assert "prev_total_ms" not in answers[0]["server_timing"]
        assert answers[1]["server_timing"]["prev_total_ms"] > 0
        del question["observation/front"]
        with pytest.raises(RuntimeError, match=r"missing: .'observation/front'."):
            client.infer(question)
        assert server.answered == 2
        assert server.failed == 1


def wait_for_questions(server: PolicyServer, policy: Echo, count: int) -> None:
    """Until so many are with the policy, which stands at its gate, or wait for it, one at least being with it."""
    until = time.monotonic() + 30
    while (not policy.asked or policy.asked + server._waiting.qsize() < count) and time.monotonic() < until:
        time.sleep(0.01)


def test_questions_that_wait_together_are_answered_together() -> None:
    """Five robots ask while the policy is busy: each hears its own answer, in fewer batches than questions."""
    gate = threading.Event()
    policy, answers = Echo(gate), {}
    with PolicyServer(policy, ANY_PORT) as server:

        def ask(number: int) -> None:
            with RemotePolicy(server.url, **PATIENT) as remote:
                seen = Observation(observation().images, np.float32([number, 0, 0]))
                answers[number] = remote.predict([seen], ["put"])[0].actions[0, 1]

        robots = [threading.Thread(target=ask, args=(number,)) for number in range(5)]
        robots[0].start()
        wait_for_questions(server, policy, 1)
        for robot in robots[1:]:
            robot.start()
        wait_for_questions(server, policy, 5)
        gate.set()
        for robot in robots:
            robot.join(30)
    assert answers == {number: pytest.approx(0.01 * number) for number in range(5)}
    assert policy.batches == [1, 4]


def test_one_bad_question_does_not_spoil_the_others_in_its_batch() -> None:
    """The policy fails on one instruction: its robot hears why, the others get their answers."""
    gate, heard = threading.Event(), {}
    policy = Echo(gate)
    with PolicyServer(policy, ANY_PORT) as server:

        def ask(words: str) -> None:
            with RemotePolicy(server.url, **PATIENT) as remote:
                try:
                    heard[words] = remote.predict([observation()], [words])[0].confidence[0]
                except RemoteError as error:
                    heard[words] = str(error)

        robots = [threading.Thread(target=ask, args=(words,)) for words in ("put", "fail", "lift", "stop")]
        for robot in robots:
            robot.start()
        wait_for_questions(server, policy, 4)
        gate.set()
        for robot in robots:
            robot.join(30)
    assert "RuntimeError: no such word" in heard.pop("fail")
    assert heard == {"put": 0.5, "lift": 0.5, "stop": 0.5}


def test_health_and_a_full_house() -> None:
    """GET /healthz answers OK; a robot too many is turned away in words; a port that is taken is refused."""
    with PolicyServer(Echo(), ServerConfig(port=0, connections=1)) as server:
        with urllib.request.urlopen(server.url.replace("ws", "http", 1) + "/healthz", timeout=10) as answer:
            assert answer.read() == b"OK\n"
        with RemotePolicy(server.url, **PATIENT):
            with pytest.raises(RemoteError, match="1 robots are connected already"):
                RemotePolicy(server.url, **PATIENT)
            with pytest.raises(CallerError, match=f"{server.port} cannot be served"), PolicyServer(Echo(), ServerConfig(port=server.port)):
                pass


def test_a_robot_that_differs_is_refused_before_any_question(tiny_bundle: Path) -> None:
    """Its specification is compared when it connects; an observation of another size is not even sent."""
    other = dataclasses.replace(TINY_SPEC, timing=dataclasses.replace(TINY_SPEC.timing, rate_hz=50.0))
    with PolicyServer(Echo(), ANY_PORT) as server:
        with pytest.raises(SpecError, match=r"timing.rate_hz is 10, expected 50"):
            RemotePolicy(server.url, other, **PATIENT)
        with RemotePolicy(server.url, **PATIENT) as remote, pytest.raises(ObservationError, match="front"):
            remote.predict([Observation({"front": np.zeros((8, 6, 3), np.uint8)}, np.zeros(3, np.float32))], ["put"])
        assert server.answered + server.failed == 0


@contextlib.contextmanager
def foreign(converse: Callable[[Any], None]) -> Iterator[str]:
    """A server that says what `converse` says."""
    with serve_sync(converse, "127.0.0.1", 0, compression=None, max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join(10)


def test_a_server_that_says_nothing_of_itself_needs_a_specification_and_its_own_names() -> None:
    """openpi's own servers send {} or what they like; observations then travel under the names that were given."""
    heard = []

    def converse(connection: Any) -> None:
        connection.send(pack({"reset_pose": [0.0, 1.0]}))
        for frame in connection:
            heard.append(unpack(frame))
            connection.send(pack({"actions": np.full((H, A), 9.0), "policy_timing": {"infer_ms": 1.0}}))

    with foreign(converse) as url:
        with pytest.raises(SpecError, match="give a spec"):
            RemotePolicy(url, **PATIENT)
        keys = ObservationKeys(images={"front": "observation/image"}, state={"joints": 2, "grip": 1})
        with RemotePolicy(url, TINY_SPEC, keys=keys, **PATIENT) as remote:
            (chunk,) = remote.predict([observation()], ["put"])
            np.testing.assert_array_equal(chunk.actions, np.tile(np.float32(TINY_SPEC.action.high), (H, 1)))
            assert remote.clipped == H * A, "9 is outside every limit"
    assert set(heard[0]) == {"observation/image", "joints", "grip", "prompt"}


NAN = np.zeros((H, A), np.float32)
NAN[2, 1] = np.nan


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (pack({"actions": NAN}), r"actions\[2, 1\] is nan: a value that is not finite"),
        (pack({"actions": np.zeros((H, A + 1))}), rf"shape \({H}, {A + 1}\): expected numbers of shape \({H}, {A}\)"),
        (pack({"actions": np.zeros((H, A), bool)}), "'actions' is bool of shape"),
        (pack({"actions": "up"}), "'actions' is 'up'"),
        (pack({"action": np.zeros((H, A))}), r"'actions' is None.*keys of the answer: \['action'\]"),
        (pack({"actions": np.zeros((H, A)), "confidence": np.full(H, np.inf)}), r"confidence\[0\] is inf"),
        (msgpack.packb([1]), "holds list"),
        (b"\xc1 no msgpack", "not msgpack"),
        ("Traceback: out of memory", "reports an error: Traceback: out of memory"),
        (pack({"actions": np.zeros((H, A)), "film": np.zeros(200_000, np.uint8)}), "1009|too big|exceeds"),
    ],
)
def test_an_answer_that_cannot_be_used_is_refused(answer: bytes | str, message: str) -> None:
    """NaN, another shape, an error, a frame that is too large: an error with the place, and the next question has a new connection."""
    answers = [answer, pack({"actions": np.zeros((H, A))})]

    def converse(connection: Any) -> None:
        connection.send(pack({}))
        for _ in connection:
            connection.send(answers.pop(0))

    with foreign(converse) as url, RemotePolicy(url, TINY_SPEC, largest_frame=100_000, **PATIENT) as remote:
        with pytest.raises(RemoteError, match=message):
            remote.predict([observation()], ["put"])
        assert not remote.predict([observation()], ["put"])[0].actions.any()


def test_a_server_that_hangs_is_given_up_and_its_late_answer_never_taken() -> None:
    """The first answer comes too late: an error in time, and the next answer belongs to the next question."""
    release, asked = threading.Event(), []

    def converse(connection: Any) -> None:
        connection.send(pack({}))
        for frame in connection:
            asked.append(float(unpack(frame)["observation/state"][0]))
            if len(asked) == 1:
                release.wait(30)
            connection.send(pack({"actions": np.full((H, A), 0.01 * asked[-1])}))

    with foreign(converse) as url, RemotePolicy(url, TINY_SPEC, connect_timeout_s=30.0, answer_timeout_s=0.2) as remote:
        with pytest.raises(RemoteError, match=r"no answer within 0.2 s"):
            remote.predict([Observation(observation().images, np.float32([1, 0, 0]))], ["put"])
        release.set()
        remote.answer_timeout_s = 30.0
        (chunk,) = remote.predict([Observation(observation().images, np.float32([2, 0, 0]))], ["put"])
        assert chunk.actions[0, 1] == pytest.approx(0.02)


def test_an_answer_that_nobody_asked_for_is_not_taken_for_the_next_one() -> None:
    """A server that answers twice: the second answer closes the connection, and the next question has a new one."""
    asked = []

    def converse(connection: Any) -> None:
        connection.send(pack({}))
        for frame in connection:
            asked.append(float(unpack(frame)["observation/state"][0]))
            for _ in range(2 if len(asked) == 1 else 1):
                connection.send(pack({"actions": np.full((H, A), 0.01 * asked[-1])}))

    def ask(number: float) -> float:
        return float(remote.predict([Observation(observation().images, np.float32([number, 0, 0]))], ["put"])[0].actions[0, 1])

    with foreign(converse) as url, RemotePolicy(url, TINY_SPEC, **PATIENT) as remote:
        assert ask(1) == pytest.approx(0.01)
        time.sleep(0.5)  # for the second answer to arrive
        with pytest.raises(RemoteError, match="nothing was asked for"):
            ask(2)
        assert ask(3) == pytest.approx(0.03)


@pytest.mark.parametrize("number", [1, None, "2"])
def test_an_answer_to_another_question_is_refused(number: Any) -> None:
    """A server that numbers its answers must give the question's own number; one that does not is not asked to."""

    def converse(connection: Any) -> None:
        connection.send(pack({"actlet": {"spec": TINY_SPEC.to_dict(), "sequence": True}}))
        for frame in connection:
            asked = unpack(frame)["sequence"]
            connection.send(pack({"actions": np.zeros((H, A)), "sequence": asked if asked == 1 else number}))

    with foreign(converse) as url, RemotePolicy(url, **PATIENT) as remote:
        remote.predict([observation()], ["put"])
        with pytest.raises(RemoteError, match=r"sequence .*expected 2: it belongs to another question"):
            remote.predict([observation()], ["put"])


def test_a_server_that_is_gone_is_not_asked_all_the_time() -> None:
    """The first question after a loss tries at once; after that there are pauses, in which questions fail without an attempt; then it is answered again."""
    tries: list[float] = []
    with PolicyServer(Echo(), ANY_PORT) as server, RemotePolicy(server.url, **PATIENT) as remote:
        port = server.port
        connect = remote._connect

        def counted(timeout_s: float) -> dict[str, Any]:
            tries.append(time.monotonic())
            return connect(timeout_s)

        remote._connect = counted  # type: ignore[method-assign]
        remote.close()
        server.__exit__()
        failures = 0
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            with pytest.raises(RemoteError, match=r"cannot be reached|next try is in"):
                remote.predict([observation()], ["put"])
            failures += 1
            time.sleep(0.002)
        assert 2 <= len(tries) <= 12, "0, 0.05, 0.15, 0.35, 0.6, 0.85 s"
        assert failures > 2 * len(tries)
        with PolicyServer(Echo(), ServerConfig(port=port)):
            until = time.monotonic() + 30
            while time.monotonic() < until:
                with contextlib.suppress(RemoteError):
                    remote.predict([observation()], ["put"])
                    break
                time.sleep(0.02)
            assert remote.predict([observation()], ["put"])[0].confidence[0] == 0.5


def test_an_interrupted_question_leaves_no_answer_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the answer is on its way: the connection is gone with it."""
    with PolicyServer(Echo(), ANY_PORT) as server, RemotePolicy(server.url, **PATIENT) as remote:

        def interrupted(frame: bytes) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("runtime.remote_policy.unpack", interrupted)
            with pytest.raises(KeyboardInterrupt):
                remote.predict([observation()], ["put"])
        assert remote._line is None
        assert remote.predict([observation()], ["put"])[0].confidence[0] == 0.5


@pytest.mark.parametrize("raised", [StopIteration, SystemExit])
def test_whatever_a_policy_raises_the_service_goes_on(raised: type[BaseException]) -> None:
    """Even what would end a thread is one robot's to hear."""

    class Strange(Echo):
        def predict(self, observations: Sequence[Observation], instructions: Sequence[str]) -> list[ActionChunk]:
            if "strange" in instructions:
                raise raised
            return super().predict(observations, instructions)

    with PolicyServer(Strange(), ANY_PORT) as server, RemotePolicy(server.url, **PATIENT) as remote:
        with pytest.raises(RemoteError, match=raised.__name__):
            remote.predict([observation()], ["strange"])
        assert remote.predict([observation()], ["put"])[0].confidence[0] == 0.5


def test_a_server_that_stops_reading_is_given_up_too() -> None:
    """A question that does not fit into the socket's buffers must not be sent for ever."""
    large = dataclasses.replace(
        TINY_SPEC.observation, cameras=(dataclasses.replace(TINY_SPEC.observation.cameras[0], height=2000, width=3000),)
    )
    spec, done = dataclasses.replace(TINY_SPEC, observation=large), threading.Event()

    def converse(connection: Any) -> None:
        connection.send(pack({}))
        connection.recv_messages.pause()  # what websockets does when its own buffer is full
        done.wait(30)
        connection.recv_messages.resume()

    with foreign(converse) as url, RemotePolicy(url, spec, connect_timeout_s=30.0, answer_timeout_s=0.5) as remote:
        with pytest.raises(RemoteError):
            remote.predict([Observation({"front": np.zeros((2000, 3000, 3), np.uint8)}, np.zeros(3, np.float32))], ["put"])
        assert remote._line is None
        done.set()


def test_a_server_can_serve_again() -> None:
    """Stopped and started, it answers."""
    server = PolicyServer(Echo(), ANY_PORT)
    for _ in range(2):
        with server, RemotePolicy(server.url, **PATIENT) as remote:
            assert remote.predict([observation()], ["put"])[0].confidence[0] == 0.5


def test_names_that_leave_something_out_are_refused() -> None:
    """A camera without a key, or two of three entries of the state: before any question, on both sides."""
    for keys in (ObservationKeys(images={}, state={"s": 3}), ObservationKeys(images={"front": "f"}, state={"s": 2})):
        with pytest.raises(SpecError, match="give every part a key"):
            PolicyServer(Echo(), ANY_PORT, keys=keys)
        with PolicyServer(Echo(), ANY_PORT) as server, pytest.raises(SpecError, match="give every part a key"):
            RemotePolicy(server.url, keys=keys, **PATIENT)


def test_nobody_there_and_nobody_speaking() -> None:
    """A port where nothing listens, and a server that never sends its metadata: in words, within the time that was given."""
    with pytest.raises(RemoteError, match=r"cannot be reached.*actlet serve"):
        RemotePolicy("ws://127.0.0.1:9", TINY_SPEC, connect_timeout_s=2.0)
    done = threading.Event()
    with foreign(lambda connection: done.wait(30)) as url:
        with pytest.raises(RemoteError, match=r"no metadata within 2 s"):
            RemotePolicy(url, TINY_SPEC, connect_timeout_s=2.0)
        done.set()


def test_the_commands_serve_and_run(tmp_path: Path, make_tiny_bundle: Callable[..., Path]) -> None:
    """`actlet serve` says where it is, `actlet run ws://…` drives a simulated task with it, Ctrl-C ends it with code 0."""
    from point_reach import SPEC

    bundle = make_tiny_bundle(tmp_path / "bundle", spec=SPEC)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-m", "actlet"]
    server = subprocess.Popen([*command, "serve", str(bundle), "--port", "0"], stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert server.stderr is not None
        first = server.stderr.readline()
        assert first.startswith(f"{bundle} at ws://127.0.0.1:"), first
        url = first.split(" at ")[1].split(";")[0]
        words = ["run", url, "--suite", "point_reach:make_suite", "--task", "red", "--seed", "3", "--steps", "7"]
        done = subprocess.run([*command, *words], capture_output=True, text=True, env=environment, timeout=120)
        assert done.returncode == 0, done.stderr
        assert re.search(r"decisions +[1-9]\d*[;,] .*0 bad, 0 late", done.stdout), done.stdout
        server.send_signal(signal.SIGINT)
        _, rest = server.communicate(timeout=60)
        assert server.returncode == 0, rest
    finally:
        server.kill()
        server.communicate()


def test_a_folder_without_a_policy_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The caller's fault: code 2, and what to give."""
    from actlet.command_line import main

    assert main(["serve", str(tmp_path)]) == 2
    assert "Give the folder of a bundle, a student or a teacher" in capsys.readouterr().err


def test_a_robot_that_pauses_is_answered_again() -> None:
    """The server ends a connection on which nothing is asked; the next question makes a new one instead of failing."""
    with PolicyServer(Echo(), ServerConfig(port=0, idle_timeout_s=0.3)) as server, RemotePolicy(server.url, **PATIENT) as remote:
        first = remote.predict([observation()], ["put"])[0]
        latest = time.monotonic() + 30
        while not remote._line.has_ended() and time.monotonic() < latest:
            time.sleep(0.05)
        again = remote.predict([observation()], ["put"])[0]
        np.testing.assert_array_equal(first.actions, again.actions)
