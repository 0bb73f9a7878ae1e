"""runtime.remote_teacher over real sockets: the teacher's own distributions, checked; several questions on their way at once."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from conftest import TINY_SPEC
from openpi_client.websocket_client_policy import WebsocketClientPolicy  # the original
from websockets.sync.server import serve as serve_sync

from actlet.action_tokens import ActionTokenizer
from actlet.errors import ObservationError, RemoteError, SpecError
from actlet.protocols import ActionChunk, Observation, Policy, Teacher
from actlet.specs import PolicySpec
from runtime.remote_policy import RemotePolicy
from runtime.remote_teacher import RemoteTeacher
from runtime.serve import PolicyServer, ServerConfig
from runtime.wires.openpi import pack, unpack

H, A, K = TINY_SPEC.timing.horizon, TINY_SPEC.action.dim, 16
TOKENIZER = ActionTokenizer(np.float32(TINY_SPEC.action.low), np.float32(TINY_SPEC.action.high), K)
ANY_PORT = ServerConfig(port=0)
PATIENT = {"connect_timeout_s": 30.0, "answer_timeout_s": 30.0}  # for machines that are busy
ABOUT = {"actlet": {"spec": TINY_SPEC.to_dict(), "teacher": {"tokenizer": TOKENIZER.to_dict(), "content_hash": "a" * 64}}}


class Actor:
    """A policy that is no teacher."""

    spec: PolicySpec = TINY_SPEC

    def predict(self, observations: Sequence[Observation], instructions: Sequence[str]) -> list[ActionChunk]:
        return [ActionChunk(np.full((H, A), 0.01, np.float32), np.ones(H, np.float32)) for _ in observations]


class Softmax(Actor):
    """A teacher whose distribution is a function of state and instruction, so that answers can be told apart; counts its batches."""

    tokenizer = TOKENIZER

    def __init__(self, content_hash: str = "a" * 64, gate: threading.Event | None = None) -> None:
        self.content_hash, self.gate = content_hash, gate
        self.batches: list[int] = []
        self.asked = 0

    def action_distribution(self, observations: Sequence[Observation], instructions: Sequence[str]) -> np.ndarray:
        self.asked += len(observations)
        if self.gate is not None:
            assert self.gate.wait(30)
        self.batches.append(len(observations))
        if "fail" in instructions:
            raise RuntimeError("no such word")
        logits = [
            np.sin(np.arange(A * K).reshape(A, K) * (1 + o.state[0]) + len(i)) for o, i in zip(observations, instructions, strict=True)
        ]
        odds = np.exp(np.stack(logits))
        return (odds / odds.sum(-1, keepdims=True)).astype(np.float32)


def observations(count: int) -> list[Observation]:
    frame = np.zeros((6, 8, 3), np.uint8)
    return [Observation({"front": frame}, np.float32([number, 0, 0])) for number in range(count)]


def test_a_served_teacher_says_what_the_teacher_says() -> None:
    """Bit for bit and in order, with its tokenizer, hash and specification; it is a Teacher here too."""
    words = ["put" if number % 2 else "lift it" for number in range(23)]
    with PolicyServer(Softmax(), ANY_PORT) as server, RemoteTeacher(server.url, connections=4, **PATIENT) as teacher:
        assert isinstance(teacher, Teacher)
        assert (teacher.spec, teacher.tokenizer, teacher.content_hash) == (TINY_SPEC, TOKENIZER, "a" * 64)
        answers = teacher.action_distribution(observations(23), words)
        assert answers.dtype == np.float32
        np.testing.assert_array_equal(answers, Softmax().action_distribution(observations(23), words))
        assert teacher.action_distribution([], []).shape == (0, A, K)
        assert len(teacher.predict(observations(5), ["put"] * 5)) == 5


def test_a_batch_travels_over_several_connections_and_is_answered_together() -> None:
    """Nine questions, eight connections: while the policy is busy with the first, the others come together."""
    gate = threading.Event()
    policy, answers = Softmax(gate=gate), []
    with PolicyServer(policy, ANY_PORT) as server, RemoteTeacher(server.url, connections=8, **PATIENT) as teacher:
        asking = threading.Thread(target=lambda: answers.append(teacher.action_distribution(observations(9), ["put"] * 9)))
        asking.start()
        until = time.monotonic() + 25
        while (not policy.asked or policy.asked + server._waiting.qsize() < 8) and time.monotonic() < until:
            time.sleep(0.01)
        gate.set()
        asking.join(30)
    assert len(answers[0]) == 9
    assert sum(policy.batches[:2]) == 8


def test_actions_and_distributions_are_asked_of_one_server_at_once() -> None:
    """A robot and a labeller share a teacher: each hears what it asked for."""
    with (
        PolicyServer(Softmax(), ANY_PORT) as server,
        RemoteTeacher(server.url, connections=2, **PATIENT) as teacher,
        RemotePolicy(server.url, **PATIENT) as robot,
    ):
        labels: list[np.ndarray] = []
        asking = threading.Thread(target=lambda: labels.extend(teacher.action_distribution(observations(20), ["put"] * 20)))
        asking.start()
        chunks = [robot.predict(observations(1), ["put"])[0] for _ in range(10)]
        asking.join(30)
    assert len(labels) == 20
    assert all(chunk.actions[0, 1] == np.float32(0.01) for chunk in chunks)


@pytest.mark.filterwarnings("ignore:connect:DeprecationWarning")  # of websockets, about openpi-client
def test_openpis_own_client_may_ask_for_the_distribution_too() -> None:
    """One more key in its question, one other key in the answer; without it, actions as ever."""
    with PolicyServer(Softmax(), ANY_PORT) as server:
        client = WebsocketClientPolicy(server.url)
        seen = observations(1)[0]
        question = {"observation/front": seen.images["front"], "observation/state": seen.state, "prompt": "put"}
        assert client.infer(question)["actions"].shape == (H, A)
        answer = client.infer({**question, "action_distribution": True})
        np.testing.assert_array_equal(answer["action_distribution"], Softmax().action_distribution([seen], ["put"])[0])
        assert "actions" not in answer


def test_a_policy_that_is_no_teacher_says_so() -> None:
    """In its metadata, so that no question is wasted; and when asked all the same."""
    with PolicyServer(Actor(), ANY_PORT) as server:
        with RemotePolicy(server.url, **PATIENT) as robot:
            assert robot.metadata["actlet"]["teacher"] is None
            with pytest.raises(RemoteError, match="only a teacher gives distributions"):
                robot.ask(observations(1)[0], "put", read=dict, action_distribution=True)
        with pytest.raises(SpecError, match=r"is not a teacher.*actlet serve TEACHER"):
            RemoteTeacher(server.url, **PATIENT)
        assert server.connected <= 1


def test_a_failure_is_told_and_the_next_batch_is_answered() -> None:
    """The policy fails on one of five: the message comes through, and every connection is usable again."""
    with PolicyServer(Softmax(), ANY_PORT) as server, RemoteTeacher(server.url, connections=3, **PATIENT) as teacher:
        with pytest.raises(RemoteError, match="RuntimeError: no such word"):
            teacher.action_distribution(observations(5), ["put", "put", "fail", "put", "put"])
        wrong = Observation({"front": np.zeros((8, 6, 3), np.uint8)}, np.zeros(3, np.float32))
        with pytest.raises(ObservationError, match="front"):
            teacher.action_distribution([wrong], ["put"])
        assert len(teacher.action_distribution(observations(5), ["put"] * 5)) == 5


def test_another_teacher_behind_the_same_address_is_refused() -> None:
    """Restarted with other weights: the labels so far are the first one's, and no others are mixed in."""
    with PolicyServer(Softmax(), ANY_PORT) as server:
        teacher = RemoteTeacher(server.url, connections=2, **PATIENT)
        assert len(teacher.action_distribution(observations(4), ["put"] * 4)) == 4
        port = server.port
    with PolicyServer(Softmax("b" * 64), ServerConfig(port=port)), teacher:
        with contextlib.suppress(RemoteError, SpecError):  # That the first server is gone is noticed at the question, or before it.
            teacher.action_distribution(observations(4), ["put"] * 4)
        with pytest.raises(SpecError, match=r"another teacher than before .weights bbbbbbbbbbbb, expected aaaaaaaaaaaa"):
            teacher.action_distribution(observations(4), ["put"] * 4)


@contextlib.contextmanager
def foreign(metadata: dict[str, Any], answer: Callable[[dict[str, Any]], dict[str, Any]]) -> Iterator[str]:
    """A server that says of itself and answers what it is told."""

    def converse(connection: Any) -> None:
        connection.send(pack(metadata))
        for frame in connection:
            connection.send(pack(answer(unpack(frame))))

    with serve_sync(converse, "127.0.0.1", 0, compression=None, max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()
        thread.join(10)


UNIFORM = np.full((A, K), 1 / K)


def changed(row: int, column: int, value: float) -> np.ndarray:
    values = UNIFORM.copy()
    values[row, column] = value
    return values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (changed(1, 2, np.nan), r"action_distribution\[1, 2\] is nan"),
        (changed(2, 0, 0.5), r"row 2 adds up to 1\.43"),
        (changed(0, 3, -1 / K) + np.eye(A, K) * 0, "smallest value -0.0625"),
        (UNIFORM[:, :-1], rf"of shape \({A}, {K - 1}\): expected numbers of shape \({A}, {K}\)"),
        (np.zeros((A, K)), "row 0 adds up to 0"),
        (np.full((A, K), "x").tolist(), "'action_distribution' is "),
    ],
)
def test_a_distribution_that_is_none_is_refused(values: Any, message: str) -> None:
    """NaN, rows that do not add up, negative values, another shape, no array: an error that says which."""
    with (
        foreign(ABOUT, lambda question: {"action_distribution": values}) as url,
        RemoteTeacher(url, **PATIENT) as teacher,
        pytest.raises(RemoteError, match=message),
    ):
        teacher.action_distribution(observations(1), ["put"])


def test_half_precision_is_precise_enough() -> None:
    """A server may send float16: rows that add up within rounding are taken, as float32."""
    values = Softmax().action_distribution(observations(1), ["put"])[0].astype(np.float16)
    with foreign(ABOUT, lambda question: {"action_distribution": values}) as url, RemoteTeacher(url, **PATIENT) as teacher:
        answer = teacher.action_distribution(observations(1), ["put"])[0]
        assert answer.dtype == np.float32
        np.testing.assert_array_equal(answer, values.astype(np.float32))


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"content_hash": "a"}, r"described by \['content_hash'\]"),
        ({"content_hash": "a", "tokenizer": {"low": [0.0], "high": [1.0], "bins": K}}, "bins of 1 action dimensions, but actions have 4"),
        ({"content_hash": "a", "tokenizer": {"low": [0.0], "high": [1.0]}}, "bins"),
    ],
)
def test_a_teacher_that_describes_itself_badly_is_refused(about: dict[str, Any], message: str) -> None:
    """Without a tokenizer its distributions are over nobody knows what."""
    metadata = {"actlet": {"spec": TINY_SPEC.to_dict(), "teacher": about}}
    with foreign(metadata, lambda question: {}) as url, pytest.raises(SpecError, match=message):
        RemoteTeacher(url, **PATIENT)


def test_a_policy_and_a_teacher_are_told_apart_by_type() -> None:
    """What the server looks at."""
    assert isinstance(Softmax(), Teacher)
    assert isinstance(Actor(), Policy)
    assert not isinstance(Actor(), Teacher)
