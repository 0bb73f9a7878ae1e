"""`actlet serve` and `RemotePolicy` with openpi's own other side, in an environment of its own: openpi-client needs numpy 1.

The client comes from the package index; where it cannot be installed, the tests are skipped and say why. openpi's server is not on the index (the name is
reserved there): with ``ACTLET_OPENPI_SOURCE=/path/to/openpi``, a checkout, its `websocket_policy_server.py` is run as it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from certificates import TOKEN, make_certificates
from conftest import TINY_SPEC
from test_runtime_remote import PATIENT, A, H, observation

from actlet.errors import RemoteError
from runtime.policy import BundlePolicy
from runtime.remote_policy import RemotePolicy
from runtime.serve import PolicyServer, ServerConfig
from runtime.wires.openpi import ObservationKeys

pytestmark = pytest.mark.slow
SOURCE = os.environ.get("ACTLET_OPENPI_SOURCE", "")

CLIENT = """
import json, sys, urllib.request
import numpy as np
from openpi_client.websocket_client_policy import WebsocketClientPolicy

url, token, questions = sys.argv[1:]
asked = np.load(questions)
client = WebsocketClientPolicy(url, api_key=token)
answers, timings = [], []
for image, state in zip(asked["images"], asked["states"]):
    answer = client.infer({"observation/front": image, "observation/state": state, "prompt": "put the cup"})
    answers.append(answer["actions"]), timings.append(sorted(answer["server_timing"]))
    assert answer["state"].tolist() == state.tolist()
    assert answer["policy_timing"]["infer_ms"] > 0
np.save(questions.replace("questions.npz", "answers.npy"), np.stack(answers))
try:
    client.infer({"observation/state": state, "prompt": "put"})
    refused = ""
except RuntimeError as error:
    refused = str(error)
health = urllib.request.urlopen(url.replace("ws", "http", 1) + "/healthz", timeout=30)
print(json.dumps({
    "numpy": np.__version__, "metadata": client.get_server_metadata(), "timings": timings, "refused": refused,
    "health": [health.status, health.read().decode()],
}))
"""

SERVER = """
import importlib.util, sys
import numpy as np
from openpi_client.base_policy import BasePolicy

spec = importlib.util.spec_from_file_location("openpi_server", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)

class Policy(BasePolicy):
    def infer(self, obs):
        actions = np.zeros((int(sys.argv[2]), int(sys.argv[3])))
        actions[:, 1] = 0.01 * obs["observation/state"][0] + 1e-4 * (obs["observation/image"].mean() > 100)
        if obs["prompt"] == "fail":
            raise ValueError("no such word")
        return {"actions": actions, "state": obs["observation/state"]}

module.WebsocketPolicyServer(Policy(), host="127.0.0.1", port=int(sys.argv[4]), metadata={"reset_pose": [0.0, 1.0]}).serve_forever()
"""


@pytest.fixture(scope="module")
def openpi_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with openpi-client 0.1.2 and the numpy that it wants."""
    folder = tmp_path_factory.mktemp("openpi")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=120)
    python = folder / "bin" / "python"
    wanted = ["openpi-client==0.1.2", "typing_extensions"]  # It imports the latter without declaring it.
    done = subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], capture_output=True, text=True, timeout=500, cwd=folder)
    if done.returncode:
        pytest.skip(f"openpi-client cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    return python


def elsewhere(**more: str) -> dict[str, str]:
    """The environment without this repository's packages."""
    return {**{name: value for name, value in os.environ.items() if name != "PYTHONPATH"}, **more}


def test_openpis_own_client_with_the_numpy_that_it_wants(openpi_python: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """Over TLS, with its api_key: the metadata, twenty answers that are the bundle's bit for bit, timings, what is wrong with a question, the health check."""
    pem = make_certificates(tmp_path)
    seen = [observation(seed) for seed in range(20)]
    np.savez(tmp_path / "questions.npz", images=np.stack([o.images["front"] for o in seen]), states=np.stack([o.state for o in seen]))
    with PolicyServer(BundlePolicy(tiny_bundle), ServerConfig(port=0), access=pem.server()) as server:
        words = [server.url, TOKEN, str(tmp_path / "questions.npz")]
        environment = elsewhere(SSL_CERT_FILE=str(pem.authority))
        done = subprocess.run(
            [openpi_python, "-W", "ignore", "-c", CLIENT, *words],
            capture_output=True,
            text=True,
            timeout=300,
            env=environment,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        assert (server.answered, server.failed) == (20, 1)
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["numpy"].startswith("1.")
    assert said["metadata"]["actlet"]["spec"] == json.loads(json.dumps(TINY_SPEC.to_dict()))
    assert "missing: ['observation/front']" in said["refused"]
    assert said["health"] == [200, "OK\n"]
    assert "prev_total_ms" not in said["timings"][0]
    assert all("prev_total_ms" in keys for keys in said["timings"][1:])
    expected = BundlePolicy(tiny_bundle).predict(seen, ["put the cup"] * len(seen))
    np.testing.assert_array_equal(np.load(tmp_path / "answers.npy"), np.stack([chunk.actions for chunk in expected]))


@pytest.mark.skipif(
    not SOURCE, reason="openpi's server is not on the package index: name a checkout in ACTLET_OPENPI_SOURCE to test with it"
)
def test_openpis_own_server_is_asked(openpi_python: Path, tmp_path: Path) -> None:
    """Its code, as it is: metadata of its own, twenty answers, its traceback as an error, and the next question is answered again."""
    place = Path(SOURCE) / "src" / "openpi" / "serving" / "websocket_policy_server.py"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen([openpi_python, "-c", SERVER, str(place), str(H), str(A), str(port)], env=elsewhere(), cwd=tmp_path)
    try:
        until = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10) as health:
                assert health.read() == b"OK\n"
                break
            assert time.monotonic() < until
            assert server.poll() is None
            time.sleep(0.1)
        url = f"ws://127.0.0.1:{port}"
        keys = ObservationKeys(images={"front": "observation/image"}, state={"observation/state": 3})
        with RemotePolicy(url, TINY_SPEC, keys=keys, **PATIENT) as remote:
            assert remote.metadata == {"reset_pose": [0.0, 1.0]}
            for seed in range(20):
                seen = observation(seed)
                (chunk,) = remote.predict([seen], ["put"])
                wanted = np.clip(0.01 * seen.state[0] + 1e-4 * (seen.images["front"].mean() > 100), -0.05, 0.05)
                np.testing.assert_allclose(chunk.actions[:, 1], wanted, atol=1e-6)
                assert ("prev_total_ms" in remote.server_timing) == (seed > 0)
            with pytest.raises(RemoteError, match="no such word"):
                remote.predict([observation()], ["fail"])
            assert remote.predict([observation()], ["put"])[0].actions.shape == (H, A)
    finally:
        server.kill()
        server.wait()
