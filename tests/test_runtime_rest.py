"""runtime.rest_policy and runtime.wires.openvla_rest over real sockets, against a server that answers with json_numpy as OpenVLA's does."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import json_numpy  # the original
import numpy as np
import pytest
from conftest import TINY_SPEC
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from actlet.errors import CallerError, ObservationError, RemoteError, SpecError
from actlet.protocols import Observation, Policy
from runtime.opening import kind_of, open_policy
from runtime.rest_policy import RestPolicy, RestPolicyConfig
from runtime.wires.openvla_rest import as_actions, pack, unpack

H, A = TINY_SPEC.timing.horizon, TINY_SPEC.action.dim
ONE = dataclasses.replace(TINY_SPEC, timing=dataclasses.replace(TINY_SPEC.timing, horizon=1, execute_steps=1, max_delay_steps=0))
GOOD = np.linspace(0, 0.01, H * A, dtype=np.float32).reshape(H, A)


def observation(seed: int = 0) -> Observation:
    rng = np.random.default_rng(seed)
    return Observation({"front": rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)}, rng.normal(size=3).astype(np.float32))


@contextlib.contextmanager
def serving(answer: Callable[[BaseHTTPRequestHandler, bytes], None]) -> Iterator[str]:
    """A server whose POST is answered by `answer(handler, body)`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with contextlib.suppress(OSError):  # The client has given up.
                answer(self, body)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads, server.block_on_close = True, False
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/act"
        server.shutdown()
        thread.join(10)


def reply(handler: BaseHTTPRequestHandler, text: str, status: int = 200) -> None:
    body = text.encode()
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def config(url: str, **more: Any) -> RestPolicyConfig:
    return RestPolicyConfig(**{"url": url, "spec": TINY_SPEC, "images": {"front": "full_image"}, "timeout_s": 30.0, **more})


def ask(policy: Policy) -> np.ndarray:
    return policy.predict([observation()], ["put the cup"])[0].actions


# -- the wire -------------------------------------------------------------------------------------------------------------

ARRAYS = hnp.arrays(
    st.sampled_from(["u1", "<i4", "<i8", "<f2", "<f4", ">f8", "?"]), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
)


@given(ARRAYS)
def test_arrays_are_those_of_json_numpy(array: np.ndarray) -> None:
    """The original reads what is packed here, and what it writes is read here: same values, shape and kind."""
    theirs, ours = json_numpy.loads(pack({"a": array}))["a"], unpack(json_numpy.dumps({"a": array}))["a"]
    for got in (theirs, ours):
        np.testing.assert_array_equal(got, array)
        assert (np.shape(got), np.asarray(got).dtype.kind) == (array.shape, array.dtype.kind)


def array(**fields: Any) -> str:
    return json.dumps({"__numpy__": "AAAAAAAAAAA=", "dtype": "<f4", "shape": [2], **fields})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (array(dtype="|O"), r"dtype is '\|O'"),
        (array(dtype=[["a", "<f4"]]), "dtype is"),
        (array(dtype="<f4,<f4"), "dtype is"),
        (array(dtype="<M8[s]"), "dtype is"),
        (array(shape=[3]), "holds 12 characters: expected 12 bytes"),
        (array(shape=[2**40]), "expected 4398046511104 bytes"),
        (array(shape=[-2]), r"shape is \[-2\]"),
        (array(shape=[True, 2]), "shape is"),
        (array(shape=[1] * 9), "up to 8 whole numbers"),
        (array(__numpy__="AAAAAAAAAA!="), "not base64"),
        (array(__numpy__="AAAAAAAAAAAA"), "holds 9 bytes: expected 8"),
        (array(__numpy__=[0, 0]), "holds list"),
        ("{", "are not JSON"),
        ("[" * 100_000, "are not JSON"),
        ("<html>", "is it an OpenVLA server"),
        ('"error"', "answered 'error'"),
        ('"\\"error\\" of mine"', "are not JSON"),
    ],
)
def test_a_message_that_contradicts_itself_is_refused(body: str, message: str) -> None:
    """Objects, bytes that do not fill a shape, nested text without end, and the servers' own "error"."""
    with pytest.raises(RemoteError, match=message):
        unpack(body)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([GOOD[0]] * (H - 1), rf"shape \({H - 1}, {A}\): expected \({H}, {A}\)"),
        ([*GOOD[1:], GOOD[0, :-1]], "expected"),
        (GOOD[0], "expected"),
        ({"action": GOOD}, r"the answer is \{'action'"),
        ([["1"] * A] * H, r"the answer is \[\['1'"),
        ([[True] * A] * H, "the answer is"),
        (np.zeros((H, A), bool), "the answer is"),
        (None, "the answer is None"),
        ([[0.0] * A] * (H - 1) + [[float("nan")] * A], rf"actions\[{H - 1}, 0\] is nan"),
        ([[1e300] * A] * H, r"actions\[0, 0\] is 1e\+300"),
        ([[10**400] * A] * H, "the answer is"),
    ],
)
def test_an_answer_that_is_no_chunk_is_refused(answer: Any, message: str) -> None:
    """Another shape, text, truth values, not finite: with the place where there is one."""
    with pytest.raises(RemoteError, match=message):
        as_actions(answer, H, A)


# -- the policy -----------------------------------------------------------------------------------------------------------

SHAPES: dict[str, Callable[[], str]] = {
    "an array": lambda: json_numpy.dumps(GOOD.astype(np.float64)),
    "a list of arrays, as OFT answers": lambda: json_numpy.dumps(list(GOOD)),
    "lists of numbers": lambda: json.dumps(GOOD.tolist()),
    "text that is JSON": lambda: json.dumps(json_numpy.dumps(GOOD)),
}


@pytest.mark.parametrize("kind", list(SHAPES))
def test_a_question_and_its_answer(kind: str) -> None:
    """The server reads picture, state and words with json_numpy; its answer in any of the usual forms becomes the chunk."""
    heard: list[dict[str, Any]] = []

    def answer(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        heard.append(json_numpy.loads(body))
        reply(handler, SHAPES[kind]())

    with serving(answer) as url:
        np.testing.assert_array_equal(ask(RestPolicy(config(url))), GOOD)
    seen = observation()
    assert set(heard[0]) == {"full_image", "state", "instruction"}
    np.testing.assert_array_equal(heard[0]["full_image"], seen.images["front"])
    np.testing.assert_array_equal(heard[0]["state"], seen.state)
    assert heard[0]["instruction"] == "put the cup"


@pytest.mark.parametrize("encoded", [False, True])
def test_openvlas_own_question(encoded: bool) -> None:
    """{image, instruction, unnorm_key}, or the same as text under "encoded" with the answer as text; one action (A,)."""

    def answer(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        payload = json_numpy.loads(body)
        if encoded:
            assert list(payload) == ["encoded"], "all inputs are under one key"
            payload = json_numpy.loads(payload["encoded"])
        action = np.zeros(A)
        action[1] = payload["image"].mean() / 255 * 0.001 + (payload["unnorm_key"] == "bridge_orig") * 0.001
        text = json_numpy.dumps(action)
        reply(handler, json.dumps(text) if encoded else text)

    with serving(answer) as url:
        policy = RestPolicy(config(url, spec=ONE, images={"front": "image"}, state=None, unnorm_key="bridge_orig", encoded=encoded))
        assert isinstance(policy, Policy)
        expected = observation().images["front"].mean() / 255 * 0.001 + 0.001
        assert ask(policy)[0, 1] == pytest.approx(expected)


def test_values_outside_the_limits_are_clipped_and_counted() -> None:
    """As with every policy over the network."""
    with serving(lambda handler, body: reply(handler, json_numpy.dumps(np.full((H, A), 9.0)))) as url:
        policy = RestPolicy(config(url))
        np.testing.assert_array_equal(ask(policy), np.tile(np.float32(TINY_SPEC.action.high), (H, 1)))
        assert policy.clipped == H * A


NAN = GOOD.copy()
NAN[2, 1] = np.nan


def cut_off(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n[[0.1")


def endless(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        handler.wfile.write(b"[" * 65_536)


def large(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2147483648\r\n\r\n")
    while True:
        handler.wfile.write(b" " * 65_536)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda handler, body: reply(handler, '"error"'), r"http://127\.0\.0\.1.*/act: the server answered 'error'"),
        (lambda handler, body: reply(handler, json_numpy.dumps(NAN)), r"actions\[2, 1\] is nan"),
        (lambda handler, body: reply(handler, json_numpy.dumps(GOOD[:, :-1])), rf"\({H}, {A - 1}\): expected \({H}, {A}\)"),
        (lambda handler, body: reply(handler, "[]"), r"shape \(0,\)"),
        (lambda handler, body: reply(handler, "", 204), "status 204"),
        (lambda handler, body: reply(handler, '{"detail": "Not\n Found"}', 404), r'status 404 Not Found: \{"detail": "Not Found"\}'),
        (lambda handler, body: reply(handler, "out of memory", 500), "status 500 Internal Server Error: out of memory"),
        (lambda handler, body: handler.wfile.write(b"SSH-2.0\r\n"), "BadStatusLine"),
        (lambda handler, body: None, "RemoteDisconnected"),
        (cut_off, "995 bytes are missing"),
        (endless, "larger than 100000 bytes"),
        (large, "larger than 100000 bytes"),
    ],
)
def test_an_answer_that_cannot_be_used_is_refused(answer: Callable[[BaseHTTPRequestHandler, bytes], None], message: str) -> None:
    """Errors of every kind, and a stream without end: in words, and the next question is answered."""
    answers = [answer, lambda handler, body: reply(handler, json_numpy.dumps(GOOD))]
    with serving(lambda handler, body: answers.pop(0)(handler, body)) as url:
        policy = RestPolicy(config(url, largest_answer=100_000))
        with pytest.raises(RemoteError, match=message):
            ask(policy)
        np.testing.assert_array_equal(ask(policy), GOOD)


def hang(handler: BaseHTTPRequestHandler, release: threading.Event) -> None:
    release.wait(30)
    reply(handler, json_numpy.dumps(np.zeros((H, A))))


def drip_headers(handler: BaseHTTPRequestHandler, release: threading.Event) -> None:
    while not release.wait(0.02):
        handler.wfile.write(b"H")


def drip_body(handler: BaseHTTPRequestHandler, release: threading.Event) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while not release.wait(0.02):
        handler.wfile.write(b" ")


@pytest.mark.parametrize("slow", [hang, drip_headers, drip_body])
def test_a_server_that_is_too_slow_is_given_up(slow: Callable[[BaseHTTPRequestHandler, threading.Event], None]) -> None:
    """Silent, or a byte now and then, so that no single wait is long: an error in time, and the late answer is never taken."""
    release, asked = threading.Event(), []

    def answer(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        asked.append(body)
        if len(asked) == 1:
            slow(handler, release)
        else:
            reply(handler, json_numpy.dumps(GOOD))

    with serving(answer) as url:
        with pytest.raises(RemoteError, match=r"no answer within 0\.3 s"):
            ask(RestPolicy(config(url, timeout_s=0.3)))
        release.set()
        np.testing.assert_array_equal(ask(RestPolicy(config(url))), GOOD)


def test_a_server_that_does_not_read_is_given_up() -> None:
    """A question that does not fit into the socket's buffers must not be sent for ever."""
    camera = dataclasses.replace(TINY_SPEC.observation.cameras[0], height=2000, width=3000)
    spec = dataclasses.replace(TINY_SPEC, observation=dataclasses.replace(TINY_SPEC.observation, cameras=(camera,)))
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/act"
        policy = RestPolicy(config(url, spec=spec, timeout_s=0.5))
        with pytest.raises(RemoteError, match=r"no answer within 0\.5 s"):
            policy.predict([Observation({"front": np.zeros((2000, 3000, 3), np.uint8)}, np.zeros(3, np.float32))], ["put"])


def test_nobody_there() -> None:
    """A port where nothing listens: in words."""
    with pytest.raises(RemoteError, match=r"ConnectionRefusedError.*Is the server running"):
        ask(RestPolicy(config("http://127.0.0.1:9/act")))


def test_a_wrong_observation_is_not_sent() -> None:
    """It is compared with the specification first."""
    with pytest.raises(ObservationError, match="front"):
        RestPolicy(config("http://127.0.0.1:9/act")).predict(
            [Observation({"front": np.zeros((8, 6, 3), np.uint8)}, np.zeros(3, np.float32))], ["put"]
        )


def test_an_exchange_leaves_no_thread_behind() -> None:
    """The clock of each question ends with it."""
    with serving(lambda handler, body: reply(handler, json_numpy.dumps(GOOD))) as url:
        policy = RestPolicy(config(url))
        for _ in range(5):
            ask(policy)
        until = time.monotonic() + 10
        while (timers := [t for t in threading.enumerate() if isinstance(t, threading.Timer)]) and time.monotonic() < until:
            time.sleep(0.01)
        assert not timers


# -- the file -------------------------------------------------------------------------------------------------------------


def test_a_file_opens_as_a_policy(tmp_path: Path) -> None:
    """Written, told apart, opened; a URL alone says what to write instead."""
    written = config("http://127.0.0.1:9/act", unnorm_key="bridge_orig")
    written.write(tmp_path / "oft.json")
    assert kind_of(tmp_path / "oft.json") == "rest_policy"
    policy = open_policy(tmp_path / "oft.json")
    assert isinstance(policy, RestPolicy)
    assert policy.config == written
    with pytest.raises(CallerError, match="RestPolicyConfig"):
        open_policy("http://127.0.0.1:9/act")
    (tmp_path / "other.json").write_text('{"kind": "student"}')
    with pytest.raises(CallerError, match="Give the folder"):
        open_policy(tmp_path / "other.json")
    (tmp_path / "other.json").write_text("{")
    with pytest.raises(CallerError, match="is not JSON"):
        open_policy(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"url": "10.0.0.2:8777"}, "expected one like http://"),
        ({"url": "http://10.0.0.2:8777"}, "expected one like http://"),
        ({"images": {}}, r"expected one or more of \['front'\]"),
        ({"images": {"top": "image"}}, r"cameras \['top'\]"),
        ({"state": "full_image"}, "two parts of a question have one name"),
        ({"timeout_s": 0.0}, "expected positive"),
        ({"schema_version": 2}, "schema_version 2, expected 1"),
    ],
)
def test_a_description_that_contradicts_itself_is_refused(fields: dict[str, Any], message: str) -> None:
    """Before anything is sent."""
    with pytest.raises(SpecError, match=message):
        config(**{"url": "http://10.0.0.2:8777/act", **fields})


def test_unknown_keys_of_the_file_are_refused(tmp_path: Path) -> None:
    """Named."""
    (tmp_path / "a.json").write_text(json.dumps({**config("http://10.0.0.2/act").to_dict(), "colour": "red"}))
    with pytest.raises(SpecError, match=r"unknown keys \['colour'\]"):
        open_policy(tmp_path / "a.json")


def test_actlet_run_drives_a_robot_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`actlet run FILE`: every decision is a question to the server."""
    from point_reach import SPEC

    from actlet.command_line import main

    asked, shape = [], (SPEC.timing.horizon, SPEC.action.dim)

    def answer(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        asked.append(json_numpy.loads(body)["instruction"])
        reply(handler, json_numpy.dumps(np.zeros(shape)))

    with serving(answer) as url:
        camera = SPEC.observation.cameras[0].name
        config(url, spec=SPEC, images={camera: "full_image"}).write(tmp_path / "oft.json")
        words = ["run", str(tmp_path / "oft.json"), "--suite", "point_reach:make_suite", "--task", "red", "--seed", "3", "--steps", "7"]
        assert main(words) == 0
    assert "0 bad, 0 late" in capsys.readouterr().out
    assert len(asked) >= 1
