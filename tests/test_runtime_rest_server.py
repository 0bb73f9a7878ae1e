"""runtime.rest_server over real sockets: json_numpy's clients and `RestPolicy` get a bundle's answers; no question ends the service."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import json_numpy  # the original
import numpy as np
import pytest
from conftest import TINY_SPEC

from actlet.errors import CallerError, RemoteError
from actlet.protocols import ActionChunk, Observation
from runtime.policy import BundlePolicy
from runtime.rest_policy import RestPolicy, RestPolicyConfig
from runtime.rest_server import RestServer
from runtime.signature import make_key, sign_bundle

H, A = TINY_SPEC.timing.horizon, TINY_SPEC.action.dim


def observation(seed: int = 0) -> Observation:
    rng = np.random.default_rng(seed)
    return Observation({"front": rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)}, rng.normal(size=3).astype(np.float32))


class Fixed:
    """Answers with half a millimetre; fails, or gives NaN, when told so."""

    def __init__(self, horizon: int = H) -> None:
        self.spec = dataclasses.replace(
            TINY_SPEC, timing=dataclasses.replace(TINY_SPEC.timing, horizon=horizon, execute_steps=1, max_delay_steps=0)
        )
        self.at_once = self.most_at_once = 0

    def predict(self, observations: Sequence[Observation], instructions: Sequence[str]) -> list[ActionChunk]:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        if "fail" in instructions:
            self.at_once -= 1
            raise RuntimeError("no such word")
        value = np.nan if "nan" in instructions else 0.0005
        self.at_once -= 1
        horizon = self.spec.timing.horizon
        return [ActionChunk(np.full((horizon, A), value, np.float32), np.ones(horizon, np.float32)) for _ in observations]


def post(url: str, body: bytes | str) -> tuple[int, Any]:
    request = urllib.request.Request(url, body if isinstance(body, bytes) else body.encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json_numpy.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def question(**changes: Any) -> str:
    seen = observation()
    return json_numpy.dumps({"full_image": seen.images["front"], "state": seen.state, "instruction": "put the cup", **changes})


def test_a_served_bundle_answers_as_the_bundle_does(tiny_bundle: Path) -> None:
    """Bit for bit, through our own client."""
    local = BundlePolicy(tiny_bundle)
    with RestServer(BundlePolicy(tiny_bundle), port=0) as server:
        remote = RestPolicy(RestPolicyConfig(url=server.url, spec=local.spec, images={"front": "full_image"}, timeout_s=30.0))
        for seed in range(3):
            (ours,), (theirs,) = (policy.predict([observation(seed)], ["put the cup"]) for policy in (local, remote))
            np.testing.assert_array_equal(ours.actions, theirs.actions)
        assert server.answered == 3


def test_json_numpys_clients_are_understood() -> None:
    """OFT's question gets H arrays; OpenVLA's, with "image" and as text, one array as text."""
    with RestServer(Fixed(), port=0) as server:
        status, answer = post(server.url, question())
        assert (status, len(answer), answer[0].shape) == (200, H, (A,))
    with RestServer(Fixed(horizon=1), port=0) as server:
        seen = observation()
        inner = json_numpy.dumps({"image": seen.images["front"], "state": seen.state, "instruction": "put", "unnorm_key": "bridge_orig"})
        status, answer = post(server.url, json.dumps({"encoded": inner}))
        assert status == 200
        np.testing.assert_allclose(json_numpy.loads(answer), np.full(A, 0.0005), rtol=1e-6)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (question(full_image=None), 400, "'full_image' is NoneType, expected an array"),
        (question(full_image=np.zeros((8, 6, 3), np.uint8)), 400, "camera 'front': got uint8 (8, 6, 3)"),
        (question(state=np.full(3, np.nan)), 400, "not finite"),
        (question(state=[1, 2, 3]), 400, "'state' is list"),
        (question(instruction=""), 400, "expected words"),
        (question(instruction="x" * 5000), 400, "5000 characters"),
        (question(instruction="fail"), 500, "RuntimeError: no such word"),
        (question(instruction="nan"), 400, "not finite"),
        ("[1]", 400, "the question is list"),
        ("{", 400, "not JSON"),
        (json.dumps({"encoded": "{}", "image": 1}), 400, "nothing may stand beside it"),
        (b" " * 200_000, 413, "at most"),
    ],
)
def test_a_question_that_cannot_be_answered_is_told_why(body: bytes | str, status: int, message: str) -> None:
    """Status and words; the next question is answered."""
    with RestServer(Fixed(), port=0) as server:
        got, answer = post(server.url, body)
        assert got == status
        assert message in answer["error"]
        assert post(server.url, question())[0] == 200


def test_our_client_hears_the_servers_words() -> None:
    """Status 400 becomes a RemoteError with them."""
    with RestServer(Fixed(), port=0) as server:
        remote = RestPolicy(RestPolicyConfig(url=server.url, spec=TINY_SPEC, images={"front": "other"}, timeout_s=30.0))
        with pytest.raises(RemoteError, match=r"status 400 .*'full_image' is NoneType"):
            remote.predict([observation()], ["put"])


def test_robots_that_ask_together_are_answered_one_after_the_other() -> None:
    """The policy is never called by two threads at once."""
    policy, statuses = Fixed(), []
    with RestServer(policy, port=0) as server:
        robots = [threading.Thread(target=lambda: statuses.append(post(server.url, question())[0])) for _ in range(8)]
        for robot in robots:
            robot.start()
        for robot in robots:
            robot.join(30)
    assert statuses == [200] * 8
    assert policy.most_at_once == 1


def test_one_question_too_many_is_turned_away() -> None:
    """Status 503 while all places are taken, and an answer when one is free again."""
    with RestServer(Fixed(), port=0, connections=1) as server:
        with server.free:
            assert post(server.url, question()) == (503, {"error": "too many questions at once"})
        assert post(server.url, question())[0] == 200


def test_health_other_paths_and_a_port_that_is_taken() -> None:
    """GET /healthz is OK, /other is 404, and a second server on a port is refused."""
    with RestServer(Fixed(), port=0) as server:
        with urllib.request.urlopen(server.url.replace("/act", "/healthz"), timeout=30) as answer:
            assert answer.read() == b"OK\n"
        assert post(server.url.replace("/act", "/other"), question())[0] == 404
        with pytest.raises(CallerError, match="cannot be served"):
            RestServer(Fixed(), port=int(server.url.split(":")[2].split("/")[0]))


def test_the_command_serves_and_ends(tmp_path: Path, make_tiny_bundle: Callable[..., Path]) -> None:
    """`actlet serve --wire act` says where it is, answers, and Ctrl-C ends it with code 0."""
    bundle = make_tiny_bundle(tmp_path / "bundle")
    command = [sys.executable, "-m", "actlet", "serve", str(bundle), "--wire", "act", "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    try:
        assert server.stderr is not None
        first = server.stderr.readline()
        assert first.startswith(f"{bundle} at http://127.0.0.1:"), first
        assert post(first.split(" at ")[1].split(";")[0], question())[0] == 200
        server.send_signal(signal.SIGINT)
        _, rest = server.communicate(timeout=60)
        assert server.returncode == 0, rest
    finally:
        server.kill()
        server.communicate()


def test_the_command_serves_what_is_signed_alone(tmp_path: Path, make_tiny_bundle: Callable[..., Path]) -> None:
    """`--trusted-keys` holds for POST /act too: an unsigned bundle is refused before the port is opened, a signed one is served."""
    bundle = make_tiny_bundle(tmp_path / "bundle")
    private, public = make_key(tmp_path / "lab")
    command = [sys.executable, "-m", "actlet", "serve", str(bundle), "--wire", "act", "--port", "0", "--trusted-keys", str(public)]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert refused.returncode == 2
    assert f"bundle {bundle}: has no signature.json, and this robot only opens what is signed ({public})" in refused.stderr
    assert "http://" not in refused.stderr
    sign_bundle(bundle, private)
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        first = server.stderr.readline()
        assert first.startswith(f"{bundle} at http://127.0.0.1:"), first
        assert post(first.split(" at ")[1].split(";")[0], question())[0] == 200
    finally:
        server.kill()
        server.communicate()


def test_a_question_that_trickles_in_gives_its_place_back() -> None:
    """One byte now and then keeps every single wait short: the whole has a time too. A length without end is no length."""
    with RestServer(Fixed(), port=0, connections=1, idle_timeout_s=0.5) as server:
        with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1].split("/")[0])), timeout=20) as slow:
            slow.sendall(b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n")
            with contextlib.suppress(OSError):  # the server hangs up
                for _ in range(40):
                    slow.sendall(b" ")
                    time.sleep(0.1)
        assert post(server.url, question())[0] == 200
        with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1].split("/")[0])), timeout=20) as odd:
            odd.sendall(b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n")
            assert odd.recv(64).startswith(b"HTTP/1.1 411")
