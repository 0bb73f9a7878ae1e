"""`actlet serve --wire lerobot` with LeRobot itself where its Python is named: its stubs, its pickles, and its own RobotClient.

LeRobot needs Python 3.12 and a torch of its own. ``ACTLET_LEROBOT_PYTHON=/path/to/python`` names one that can import lerobot and grpc
(``pip install lerobot grpcio protobuf``).
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY_SPEC
from test_runtime_remote import H, observation

from runtime.lerobot_server import LeRobotServer
from runtime.policy import BundlePolicy

PYTHON = os.environ.get("ACTLET_LEROBOT_PYTHON", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not PYTHON, reason="LeRobot lives in an environment of its own: name its Python in ACTLET_LEROBOT_PYTHON to test with it"
    ),
]

STUBS = """
import json, pickle, sys, time
import grpc, numpy as np, torch
from lerobot.async_inference.helpers import RemotePolicyConfig, TimedAction, TimedObservation
from lerobot.transport import services_pb2, services_pb2_grpc
from lerobot.transport.utils import grpc_channel_options, send_bytes_in_chunks
from lerobot.utils.feature_utils import hw_to_dataset_features

port, questions = sys.argv[1:]
asked = np.load(questions)
stub = services_pb2_grpc.AsyncInferenceStub(grpc.insecure_channel(f"127.0.0.1:{port}", grpc_channel_options()))
stub.Ready(services_pb2.Empty())
features = hw_to_dataset_features({"x": float, "y.pos": float, "grip": float, "front": (6, 8, 3)}, "observation", use_video=False)

def introduce(features):
    config = RemotePolicyConfig("act", "somewhere/act", features, 50, "cpu")
    stub.SendPolicyInstructions(services_pb2.PolicySetup(data=pickle.dumps(config)))

def show(observation, timestep):
    data = pickle.dumps(observation)
    stub.SendObservations(send_bytes_in_chunks(data, services_pb2.Observation, silent=True))

introduce(features)
chunks = []
for number, (image, state) in enumerate(zip(asked["images"], asked["states"])):
    kind = [float, np.float32, np.float64][number % 3]
    values = {"x": kind(state[0]), "y.pos": kind(state[1]), "grip": kind(state[2]), "front": torch.from_numpy(image) if number % 2 else image}
    show(TimedObservation(timestamp=100.0 + number, timestep=10 * number, observation={**values, "task": "put the cup"}, must_go=number == 0), number)
    actions = pickle.loads(stub.GetActions(services_pb2.Empty()).data)
    assert isinstance(actions, list) and all(isinstance(action, TimedAction) for action in actions)
    assert [action.get_timestep() for action in actions] == [10 * number + i for i in range(len(actions))]
    assert abs(actions[1].get_timestamp() - (100.1 + number)) < 1e-9, "ten actions in a second"
    assert all(action.get_action().dtype == torch.float32 and action.get_action().is_contiguous() for action in actions)
    chunks.append(torch.stack([0.3 * action.get_action() + 0.7 * action.get_action() for action in actions]).numpy())
np.save(questions.replace("questions.npz", "answers.npy"), np.stack(chunks))
words = []
for attempt in (
    lambda: introduce({**features, "observation.state": {**features["observation.state"], "names": ["x", "z"]}}),
    lambda: introduce({"observation.images.front": {"dtype": "image", "shape": (480, 640, 3)}, **{"observation.state": features["observation.state"]}}),
    lambda: show(TimedObservation(timestamp=1.0, timestep=999, observation={"x": 1.0, "task": "put"}), 0),
    lambda: stub.SendPolicyInstructions(services_pb2.PolicySetup(data=pickle.dumps(print))),
):
    try:
        attempt()
        words.append("")
    except grpc.RpcError as error:
        words.append(error.details())
stub.Ready(services_pb2.Empty())
introduce(features)
began = time.monotonic()
empty = stub.GetActions(services_pb2.Empty())
print(json.dumps({"words": words, "empty": len(empty.data), "waited": time.monotonic() - began}))
"""

ROBOT = """
import json, os, sys, threading, time
import numpy as np
from dataclasses import dataclass
from lerobot.async_inference import robot_client
from lerobot.async_inference.configs import RobotClientConfig
from lerobot.robots.config import RobotConfig
from lerobot.robots.robot import Robot

@RobotConfig.register_subclass("tiny")
@dataclass
class TinyConfig(RobotConfig):
    pass

class Tiny(Robot):
    config_class, name = TinyConfig, "tiny"
    def __init__(self, config):
        super().__init__(config)
        self.sent, self.seen, self.connected = [], 0, False
    observation_features = {"x": float, "y": float, "grip": float, "front": (6, 8, 3)}
    action_features = {"terminate": float, "dx": float, "dy": float, "gripper": float}
    is_calibrated = True
    @property
    def is_connected(self):
        return self.connected
    def connect(self, calibrate=True):
        self.connected = True
    def disconnect(self):
        self.connected = False
    def calibrate(self):
        pass
    def configure(self):
        pass
    def get_observation(self):
        self.seen += 1
        return {"x": 0.1 * self.seen, "y": 0.0, "grip": 0.0, "front": np.full((6, 8, 3), self.seen % 255, np.uint8)}
    def send_action(self, action):
        self.sent.append(action)
        return action

client = robot_client.RobotClient(RobotClientConfig(
    policy_type="act", pretrained_name_or_path="somewhere/act", robot=TinyConfig(), actions_per_chunk=50, task="put the cup",
    server_address=f"127.0.0.1:{sys.argv[1]}", fps=10, aggregate_fn_name="latest_only"))
assert client.start()
receiving = threading.Thread(target=client.receive_actions, daemon=True)
receiving.start()
driving = threading.Thread(target=client.control_loop, args=("put the cup",), daemon=True)
driving.start()
until = time.monotonic() + 120
while len(client.robot.sent) < 40 and time.monotonic() < until:
    time.sleep(0.05)
client.stop()
receiving.join(10), driving.join(10)
print(json.dumps({"sent": client.robot.sent, "latest": client.latest_action}), flush=True)
os._exit(0)  # Else its threads and gRPC's may still be at work while the interpreter is taken down.
"""


def run_there(code: str, *words: str, cwd: Path) -> dict:
    """What LeRobot's Python prints last."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([PYTHON, "-c", code, *words], capture_output=True, text=True, timeout=400, env=environment, cwd=cwd)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_lerobots_stubs_and_pickles(tiny_bundle: Path, tmp_path: Path) -> None:
    """Its messages in, its list[TimedAction] out: the bundle's answers; what does not fit is refused with words that reach the robot."""
    seen = [observation(seed) for seed in range(8)]
    np.savez(tmp_path / "questions.npz", images=np.stack([o.images["front"] for o in seen]), states=np.stack([o.state for o in seen]))
    with LeRobotServer(BundlePolicy(tiny_bundle), port=0, allow_pickle=True) as server:
        said = run_there(STUBS, str(server.port), str(tmp_path / "questions.npz"), cwd=tmp_path)
        assert server.answered == 8
    assert "needs ['y', 'grip']" in said["words"][0]
    assert "camera 'front' is (480, 640, 3): expected 6 x 8" in said["words"][1]
    assert "state 'y' is NoneType" in said["words"][2]
    assert "names 'builtins.print'" in said["words"][3]
    assert said["empty"] == 0
    assert said["waited"] > 1.0
    expected = BundlePolicy(tiny_bundle).predict(seen, ["put the cup"] * len(seen))
    np.testing.assert_allclose(np.load(tmp_path / "answers.npy"), np.stack([chunk.actions for chunk in expected]), rtol=1e-6, atol=1e-9)


def test_lerobots_own_robot_client_drives_a_robot(tiny_bundle: Path, tmp_path: Path) -> None:
    """Its threads, its queue: forty commands for a robot of its kind, all inside the limits, none from nowhere."""
    with LeRobotServer(BundlePolicy(tiny_bundle), port=0, allow_pickle=True) as server:
        said = run_there(ROBOT, str(server.port), cwd=tmp_path)
        assert server.answered >= 40 / H
        assert server.failed == 0
    sent = np.array([[action[name] for name in TINY_SPEC.action.names] for action in said["sent"]])
    assert len(sent) >= 40
    assert (sent >= np.array(TINY_SPEC.action.low) - 1e-6).all()
    assert (sent <= np.array(TINY_SPEC.action.high) + 1e-6).all()
    assert np.ptp(sent[:, 1]) > 0


def test_lerobots_pickles_are_refused_by_default(tiny_bundle: Path, tmp_path: Path) -> None:
    """It cannot even introduce itself, and hears why."""
    seen = observation()
    np.savez(tmp_path / "questions.npz", images=seen.images["front"][None], states=seen.state[None])
    with LeRobotServer(BundlePolicy(tiny_bundle), port=0) as server, pytest.raises(AssertionError, match="--allow-pickle"):
        run_there(STUBS, str(server.port), str(tmp_path / "questions.npz"), cwd=tmp_path)
