"""scripts/lerobot_server.py: its wire with a stand-in for the policy, and with LeRobot itself where its Python is named.

LeRobot needs Python 3.12 and a torch of its own, so it is not in the test environment. With ``ACTLET_LEROBOT_PYTHON=/path/to/python``, a
Python that can import lerobot, websockets and msgpack, the last tests save a tiny ACT policy with LeRobot, serve it and compare.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import TINY_SPEC
from openpi_client.websocket_client_policy import WebsocketClientPolicy  # the original

from actlet.errors import RemoteError
from actlet.protocols import Observation
from runtime.remote_policy import RemotePolicy
from runtime.wires import openpi

SCRIPT = Path(__file__).parent.parent / "scripts" / "lerobot_server.py"
LEROBOT_PYTHON = os.environ.get("ACTLET_LEROBOT_PYTHON", "")
PATIENT = {"connect_timeout_s": 60.0, "answer_timeout_s": 60.0}
H, A = TINY_SPEC.timing.horizon, TINY_SPEC.action.dim


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The file, imported by its path; lerobot and torch are not touched before a policy is loaded."""
    found = importlib.util.spec_from_file_location("lerobot_server", SCRIPT)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


class StandIn:
    """In the policy's place: the state's first entry is every action's dx."""

    def __init__(self) -> None:
        self.metadata = {"actlet": {"version": "stand-in", "spec": TINY_SPEC.to_dict(), "teacher": None}}

    def infer(self, message: dict[str, Any]) -> dict[str, Any]:
        if message["prompt"] == "fail":
            raise RuntimeError("no such word")
        actions = np.zeros((H, A), np.float32)
        actions[:, 1] = message["observation/state"][0] * 0.01
        return {"actions": actions, "state": message["observation/state"], "policy_timing": {"infer_ms": 1.0}}


@contextlib.contextmanager
def serving(script: ModuleType, policy: Any) -> Iterator[str]:
    """The service in a thread."""
    ready, port, loop = threading.Event(), [0], asyncio.new_event_loop()

    def listening(number: int) -> None:
        port[0] = number
        ready.set()

    task = loop.create_task(script.serve_policy(policy, "127.0.0.1", 0, ready=listening))

    def run() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(30)
    yield f"ws://127.0.0.1:{port[0]}"
    loop.call_soon_threadsafe(task.cancel)
    thread.join(30)


def observation(number: float = 0.0) -> Observation:
    return Observation({"front": np.full((6, 8, 3), 7, np.uint8)}, np.float32([number, 0, 0]))


def test_the_file_imports_neither_lerobot_nor_anything_of_ours() -> None:
    """It is copied into LeRobot's environment alone."""
    code = (
        f"import sys, runpy; runpy.run_path({str(SCRIPT)!r}, run_name='x'); "
        "print([m for m in ('torch', 'lerobot', 'actlet', 'runtime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd="/")
    assert done.stdout.strip() == "[]", done.stderr


def test_messages_are_those_of_the_house(script: ModuleType) -> None:
    """Packed here and unpacked there, both ways: arrays of all kinds, numbers, words, nested."""
    message = {
        "a": np.arange(6, dtype=np.uint8).reshape(1, 2, 3),
        "b": {"c": np.float32(1.5), "d": [np.arange(3.0), True, "words"]},
        "e": np.zeros((0, 4), np.int64),
    }
    for read in (openpi.unpack(script.pack(message)), script.unpack(openpi.pack(message))):
        np.testing.assert_array_equal(read["a"], message["a"])
        assert read["b"]["c"] == np.float32(1.5)
        np.testing.assert_array_equal(read["b"]["d"][0], np.arange(3.0))
        assert read["b"]["d"][1:] == [True, "words"]
        assert read["e"].shape == (0, 4)
    for frame in ("text", openpi._msgpack().packb([1]), script.pack({"x": np.zeros(2)}).replace(b"<f8", b"|O8")):
        with pytest.raises((ValueError, TypeError)):
            script.unpack(frame)


def test_our_robot_side_understands_it(script: ModuleType) -> None:
    """The specification comes with the connection; several robots, each its own answer; an error is told and the next question answered."""
    with serving(script, StandIn()) as url, RemotePolicy(url, **PATIENT) as one, RemotePolicy(url, TINY_SPEC, **PATIENT) as other:
        assert one.spec == TINY_SPEC
        for number, robot in ((1, one), (2, other), (3, one)):
            (chunk,) = robot.predict([observation(number)], ["put"])
            assert chunk.actions[0, 1] == pytest.approx(0.01 * number)
        with pytest.raises(RemoteError, match="RuntimeError: no such word"):
            one.predict([observation()], ["fail"])
        assert one.predict([observation(4)], ["put"])[0].actions[0, 1] == pytest.approx(0.04)


@pytest.mark.filterwarnings("ignore:connect:DeprecationWarning")  # of websockets, about openpi-client
def test_openpis_own_client_understands_it(script: ModuleType) -> None:
    """Metadata first, actions, timings, an error as text; and the health check."""
    with serving(script, StandIn()) as url:
        with urllib.request.urlopen(url.replace("ws", "http", 1) + "/healthz", timeout=30) as answer:
            assert answer.read() == b"OK\n"
        client = WebsocketClientPolicy(url)
        assert client.get_server_metadata()["actlet"]["version"] == "stand-in"
        question = {"observation/front": observation().images["front"], "observation/state": np.float32([3, 0, 0]), "prompt": "put"}
        answers = [client.infer(question) for _ in range(2)]
        assert answers[0]["actions"].shape == (H, A)
        assert "prev_total_ms" not in answers[0]["server_timing"]
        assert answers[1]["server_timing"]["prev_total_ms"] > 0
        with pytest.raises(RuntimeError, match="no such word"):
            client.infer({**question, "prompt": "fail"})


def test_a_folder_without_a_policy_is_refused(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is imported or looked for on a hub."""
    assert script.main([str(tmp_path), "--rate-hz", "30"]) == 2
    assert "expected the folder of a policy that LeRobot saved" in capsys.readouterr().err


MAKE_ACT = """
import sys, numpy as np, torch
from pathlib import Path
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.utils import prepare_observation_for_inference

out = Path(sys.argv[1])
torch.manual_seed(0)
config = ACTConfig(
    input_features={
        "observation.images.front": PolicyFeature(FeatureType.VISUAL, (3, 48, 64)),
        "observation.state": PolicyFeature(FeatureType.STATE, (3,)),
    },
    output_features={"action": PolicyFeature(FeatureType.ACTION, (4,))},
    device="cpu", chunk_size=6, n_action_steps=3, dim_model=32, n_heads=2, dim_feedforward=32, n_encoder_layers=1,
    n_vae_encoder_layers=1, latent_dim=8, pretrained_backbone_weights=None,
)
policy = ACTPolicy(config).eval()
f = torch.tensor
stats = {
    "observation.images.front": {"mean": torch.full((3, 1, 1), 0.5), "std": torch.full((3, 1, 1), 0.25)},
    "observation.state": {"mean": f([0.1, 0.2, 0.3]), "std": f([2.0, 1.0, 0.5])},
    "action": {"mean": f([0.3, 0.01, -0.01, 0.5]), "std": f([0.1, 0.02, 0.02, 0.3]),
               "min": f([-1.0, -1.0, -1.0, -1.0]), "max": f([2.0, 1.0, 1.0, 2.0])},
}
before, after = make_pre_post_processors(config, dataset_stats=stats)
policy.save_pretrained(out), before.save_pretrained(out), after.save_pretrained(out)
random = np.random.default_rng(0)
frames, states = random.integers(0, 256, (5, 48, 64, 3), dtype=np.uint8), random.normal(size=(5, 3)).astype(np.float32)
chunks, single = [], []
for frame, state in zip(frames, states):
    seen = lambda: before(prepare_observation_for_inference(
        {"observation.images.front": frame.copy(), "observation.state": state.copy()}, torch.device("cpu"), "put"))
    with torch.inference_mode():
        chunk = policy.predict_action_chunk(seen())
        chunks.append(np.stack([after(chunk[:, i])[0].numpy() for i in range(chunk.shape[1])]))
        policy.reset()
        single.append(after(policy.select_action(seen()))[0].numpy())
np.savez(out / "expected.npz", frames=frames, states=states, chunks=np.stack(chunks), single=np.stack(single))
"""

needs_lerobot = pytest.mark.skipif(
    not LEROBOT_PYTHON, reason="LeRobot lives in an environment of its own: name its Python in ACTLET_LEROBOT_PYTHON to test with it"
)


@pytest.fixture(scope="module")
def act(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ACT policy that LeRobot made and saved, and what LeRobot itself answers."""
    folder = tmp_path_factory.mktemp("lerobot") / "act"
    folder.mkdir()
    done = subprocess.run([LEROBOT_PYTHON, "-c", MAKE_ACT, str(folder)], capture_output=True, text=True, timeout=540, cwd="/")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@contextlib.contextmanager
def lerobot_serves(folder: Path, *words: str) -> Iterator[str]:
    """The script in LeRobot's environment, as a user starts it."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    server = subprocess.Popen(
        [LEROBOT_PYTHON, str(SCRIPT), str(folder), "--port", "0", *words], stderr=subprocess.PIPE, text=True, env=environment, cwd="/"
    )
    try:
        assert server.stderr is not None
        said: list[str] = []
        for line in server.stderr:
            said.append(line)
            if " at ws://" in line:
                break
        else:
            pytest.fail("".join(said))
        yield line.split(" at ")[-1].split(";")[0]
    finally:
        server.kill()
        server.communicate()


@needs_lerobot
@pytest.mark.slow
def test_a_policy_of_lerobot_answers_as_it_does_there(act: Path) -> None:
    """Through the socket, the actions that LeRobot's own code computed: the whole chunk, and the first one that select_action gives."""
    expected = np.load(act / "expected.npz")
    with lerobot_serves(act, "--rate-hz", "30") as url, RemotePolicy(url, **PATIENT) as robot:
        assert (robot.spec.timing.rate_hz, robot.spec.timing.horizon, robot.spec.timing.execute_steps) == (30.0, 6, 3)
        assert robot.spec.action.hold is None
        for frame, state, chunk, first in zip(*(expected[key] for key in ("frames", "states", "chunks", "single")), strict=True):
            (answer,) = robot.predict([Observation({"front": frame}, state)], ["put"])
            np.testing.assert_allclose(answer.actions, chunk, atol=1e-6)
            np.testing.assert_allclose(answer.actions[0], first, atol=1e-6)
        assert robot.clipped == 0
        assert np.ptp(expected["chunks"][:, 0, 0]) > 1e-4, "the answers depend on what is seen"


@needs_lerobot
@pytest.mark.slow
def test_a_specification_of_the_robot_goes_along_or_is_refused(act: Path, tmp_path: Path) -> None:
    """Names, units and limits from a file; one that contradicts the policy ends with code 2 and says what differs."""
    document = TINY_SPEC.to_dict()
    document["observation"]["cameras"][0] |= {"height": 48, "width": 64}
    (tmp_path / "spec.json").write_text(json.dumps(document))
    with lerobot_serves(act, "--spec", str(tmp_path / "spec.json")) as url, RemotePolicy(url, **PATIENT) as robot:
        assert robot.spec.to_dict() == document
    document["timing"]["horizon"] = 8
    (tmp_path / "spec.json").write_text(json.dumps(document))
    command = [LEROBOT_PYTHON, str(SCRIPT), str(act), "--spec", str(tmp_path / "spec.json"), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd="/")
    assert done.returncode == 2
    assert "'horizon': 8" in done.stderr
