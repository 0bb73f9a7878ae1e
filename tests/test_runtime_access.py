"""runtime.access on every wire: without the token or with another certificate nothing is answered or believed, and the message names the fix."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from certificates import TOKEN, Certificates, make_certificates
from conftest import TINY_SPEC
from test_runtime_remote import ANY_PORT, PATIENT, Echo, observation
from test_runtime_rest_server import Fixed
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from actlet.command_line import main
from actlet.errors import CallerError, RemoteError
from runtime.access import TOKEN_VARIABLE, RemoteAccess, ServerAccess, is_loopback, read_token
from runtime.remote_policy import RemotePolicy
from runtime.rest_policy import RestPolicy, RestPolicyConfig
from runtime.rest_server import RestServer
from runtime.serve import PolicyServer


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """An authority and a server's certificate."""
    return make_certificates(tmp_path_factory.mktemp("pem"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Those of somebody else."""
    return make_certificates(tmp_path_factory.mktemp("other"))


@pytest.mark.parametrize(
    ("authorization", "allowed"),
    [
        (f"Bearer {TOKEN}", True),
        (f"Api-Key {TOKEN}", True),
        (f"api-key  {TOKEN}", True),
        (f"Basic {TOKEN}", False),
        (TOKEN, False),
        (f"Bearer {TOKEN}x", False),
        (f"Bearer {TOKEN[:-1]}", False),
        ("Bearer ", False),
        ("Bearer \udcff", False),
        ("", False),
        (None, False),
    ],
)
def test_a_token_is_all_or_nothing(authorization: str | None, allowed: bool) -> None:
    """Both spellings that clients have; nothing that merely begins like it."""
    assert ServerAccess(token=TOKEN).allows(authorization) is allowed
    assert ServerAccess().allows(authorization)


def test_a_token_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file first; what is none is refused with what to write, and none is shown."""
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert read_token(None) is None
    monkeypatch.setenv(TOKEN_VARIABLE, "of-the-environment-0123")
    assert read_token(None) == "of-the-environment-0123"
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert read_token(tmp_path / "token") == TOKEN
    assert TOKEN not in repr(RemoteAccess.of(tmp_path / "token")) + repr(ServerAccess(token=TOKEN))
    for text in ("", "short", "two words that are long enough", "x" * 5000, "é" * 20):
        (tmp_path / "bad").write_text(text)
        with pytest.raises(CallerError, match=r"openssl rand|cannot be read"):
            read_token(tmp_path / "bad")
    with pytest.raises(CallerError, match=r"missing: cannot be read \(No such file"):
        read_token(tmp_path / "missing")


def test_what_others_can_reach_is_told_of() -> None:
    """The remark names what is missing; this machine alone needs nothing."""
    assert [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "127.3.2.1", "0.0.0.0", "10.0.0.2", "::")] == 4 * [True] + 3 * [
        False
    ]
    assert ServerAccess().remark("127.0.0.1") == ""
    assert "reads along" in ServerAccess().remark("0.0.0.0")
    assert "give --tls-certificate and --tls-key, or" in ServerAccess(token=TOKEN).remark("0.0.0.0")
    assert RemoteAccess(token=TOKEN).remark("ws://127.0.0.1:8000") == RemoteAccess(token=TOKEN).remark("wss://gpu.lan") == ""
    assert "unencrypted" in RemoteAccess(token=TOKEN).remark("ws://gpu.lan:8000")


@pytest.mark.parametrize("wire", ["websocket", "act"])
def test_tls_and_token_on_a_wire(wire: str, pem: Certificates, other: Certificates) -> None:
    """Who knows the token and believes the authority is answered; the others hear what to give, and no question is read."""
    server = (
        PolicyServer(Echo(), ANY_PORT, access=pem.server()) if wire == "websocket" else RestServer(Fixed(), port=0, access=pem.server())
    )
    with server:

        def ask(access: RemoteAccess, url: str = server.url) -> np.ndarray:
            if wire == "websocket":
                with RemotePolicy(url, access=access, **PATIENT) as remote:
                    return remote.predict([observation()], ["put"])[0].actions
            config = RestPolicyConfig(url=url, spec=server.policy.spec, images={"front": "full_image"}, timeout_s=30.0)
            policy = RestPolicy(config, access)
            policy.prepare("put")
            return policy.predict([observation()], ["put"])[0].actions

        assert server.url.startswith("wss://" if wire == "websocket" else "https://")
        assert ask(RemoteAccess(token=TOKEN, tls_ca=pem.authority)).shape == (6, 4)
        assert ask(RemoteAccess(token=TOKEN, tls_ca=pem.authority), server.url.replace("127.0.0.1", "localhost")).shape == (6, 4)
        answered = server.answered
        with pytest.raises(CallerError, match=r"no token was given.*--token-file"):
            ask(RemoteAccess(tls_ca=pem.authority))
        with pytest.raises(CallerError, match="another token than the server's"):
            ask(RemoteAccess(token="x" * 20, tls_ca=pem.authority))
        for access in (RemoteAccess(token=TOKEN, tls_ca=other.authority), RemoteAccess(token=TOKEN)):
            with pytest.raises(CallerError, match=r"certificate is not believed.*--tls-ca"):
                ask(access)
        with pytest.raises(RemoteError):
            ask(RemoteAccess(token=TOKEN), server.url.replace("wss", "ws").replace("https", "http"))
        assert server.answered == answered


def test_ws_for_wss_and_the_other_way_round_are_told_apart(pem: Certificates) -> None:
    """The server runs: whoever took the wrong one is told of the other."""
    with PolicyServer(Echo(), ANY_PORT, access=pem.server()) as server, pytest.raises(RemoteError, match="begins with wss://"):
        RemotePolicy(server.url.replace("wss", "ws"), access=RemoteAccess(token=TOKEN), **PATIENT)
    with PolicyServer(Echo(), ANY_PORT) as server, pytest.raises(RemoteError, match="begins with ws://"):
        RemotePolicy(server.url.replace("ws", "wss"), access=RemoteAccess(tls_ca=pem.authority), **PATIENT)


def test_the_health_check_needs_no_token(pem: Certificates) -> None:
    """Whatever watches a service knows no secrets; two tokens at once are none."""
    with PolicyServer(Echo(), ANY_PORT, access=ServerAccess(token=TOKEN)) as server:
        with urllib.request.urlopen(server.url.replace("ws", "http", 1) + "/healthz", timeout=30) as answer:
            assert answer.read() == b"OK\n"
        with pytest.raises(InvalidStatus, match="401"):
            connect(server.url, additional_headers=[("Authorization", f"Bearer {TOKEN}"), ("Authorization", "Bearer x")], proxy=None)


def test_one_that_does_not_speak_tls_does_not_hold_the_others_up(pem: Certificates) -> None:
    """It connects and says nothing, or something else; the next robot is answered."""
    with RestServer(Fixed(), port=0, access=pem.server()) as server:
        port = int(server.url.split(":")[2].split("/")[0])
        with socket.create_connection(("127.0.0.1", port)), socket.create_connection(("127.0.0.1", port)) as talker:
            talker.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
            config = RestPolicyConfig(url=server.url, spec=server.policy.spec, images={"front": "full_image"}, timeout_s=30.0)
            RestPolicy(config, RemoteAccess(token=TOKEN, tls_ca=pem.authority)).prepare("put")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tls-certificate", "{pem}/certificate.pem"], "--tls-certificate without --tls-key"),
        (["--tls-certificate", "{pem}/certificate.pem", "--tls-key", "{pem}/none.pem"], "none.pem: cannot be read (No such file"),
        (["--tls-certificate", "{pem}/certificate.pem", "--tls-key", "{other}/key.pem"], "expected a certificate and its private key"),
        (["--tls-certificate", "{pem}/locked.pem", "--tls-key", "{pem}/locked.pem"], "without a password"),
        (["--token-file", "{pem}/none"], "token file"),
        (["--port", "{taken}"], "Give another --port"),
        (["--port", "{taken}", "--wire", "act"], "Give another --port"),
    ],
)
def test_a_server_that_cannot_serve_so_does_not_start(
    flags: list[str], message: str, pem: Certificates, other: Certificates, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, and what to do."""
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(pem.key.read_bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    )
    (pem.key.parent / "locked.pem").write_bytes(pem.certificate.read_bytes() + locked)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        places = {"pem": pem.key.parent, "other": other.key.parent, "taken": taken.getsockname()[1]}
        assert main(["serve", str(tiny_bundle), *(flag.format(**places) for flag in flags)]) == 2
    assert message in capsys.readouterr().err


def test_the_commands_with_tls_and_token(tmp_path: Path, pem: Certificates, make_tiny_bundle: Callable[..., Path]) -> None:
    """`actlet serve` for all, with everything; `actlet run` arms with the token and the authority, in processes of its own too, and not without: code 2."""
    from point_reach import SPEC

    bundle = make_tiny_bundle(tmp_path / "bundle", spec=SPEC)
    (tmp_path / "token").write_text(TOKEN)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "actlet"]
    tls = ["--tls-certificate", str(pem.certificate), "--tls-key", str(pem.key), "--token-file", str(tmp_path / "token")]
    server = subprocess.Popen(
        [*command, "serve", str(bundle), "--host", "0.0.0.0", "--port", "0", *tls], stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert server.stderr is not None
        first = server.stderr.readline()
        assert " at wss://127.0.0.1:" in first, first
        url = first.split(" at ")[1].split(";")[0]
        task = [*command, "run", url, "--suite", "point_reach:make_suite", "--task", "red", "--seed", "3", "--steps", "20"]
        ca, token = ["--tls-ca", str(pem.authority)], ["--token-file", str(tmp_path / "token")]
        for flags, code, said in (
            ([*ca, *token], 0, "decisions"),
            ([*ca, *token, "--realtime", "--priority", "0", "--hold-s", "20"], 0, "decisions"),
            (ca, 2, "no token was given"),
            (token, 2, "certificate is not believed"),
            ([*token, "--realtime", "--priority", "0"], 2, "certificate is not believed"),
        ):
            done = subprocess.run([*task, *flags], capture_output=True, text=True, env=environment, timeout=240)
            assert done.returncode == code, done.stderr + done.stdout
            assert said in done.stdout + done.stderr
    finally:
        server.kill()
        server.communicate()


def test_a_warning_where_others_can_reach_a_server_without(tmp_path: Path, make_tiny_bundle: Callable[..., Path]) -> None:
    """Printed before it says where it is."""
    bundle = make_tiny_bundle(tmp_path / "bundle", spec=TINY_SPEC)
    server = subprocess.Popen(
        [sys.executable, "-m", "actlet", "serve", str(bundle), "--host", "0.0.0.0", "--port", "0"], stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stderr is not None
        assert server.stderr.readline().startswith("warning: whoever reaches 0.0.0.0 reads along")
        assert " at ws://127.0.0.1:" in server.stderr.readline()
    finally:
        server.kill()
        server.communicate()
