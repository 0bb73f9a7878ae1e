#!/usr/bin/env bash
# Installs the wheel in a bare environment outside the repository and uses it there, as a robot would: numpy and ONNX Runtime, nothing of the training side.
# The doctor opens a bundle, compares it with a robot and times it; then the control loop drives that robot with it.
# Usage: smoke_wheel.sh PYTHON WHEEL [BUNDLE]    PYTHON has the tests' packages; without a bundle it makes a tiny one
set -euo pipefail

python=$(realpath -s "$1")
wheel=$(realpath "$2")
repository=$(realpath "$(dirname "$0")/..")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
bundle=${3:+$(realpath "$3")}
if [ -z "$bundle" ]; then
  bundle=$place/tiny
  PYTHONPATH="$repository:$repository/tests" "$python" -c "import sys, pathlib, conftest; conftest.write_tiny_bundle(pathlib.Path(sys.argv[1]))" "$bundle"
fi
cd "$place"

"$python" -m venv robot
robot/bin/python -m pip install --quiet -c "$repository/constraints.txt" "$wheel[runtime]"

# In every process of this environment, the children of the doctor too: what belongs to the training side is refused.
packages=$(robot/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")
echo "import robot_guard" >"$packages/robot_guard.pth"
cat >"$packages/robot_guard.py" <<'PYTHON'
import sys


class Guard:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("distill", "episodes", "export", "quantize"):
            raise ImportError(f"{name} is of the training side, and a robot imported it")


sys.meta_path.insert(0, Guard())
PYTHON
if robot/bin/python -c "import distill" 2>/dev/null; then
  echo "the guard against the training side does not bite" >&2
  exit 1
fi

# A robot of the bundle's own specification that sees what was recorded.
cat >arm.py <<'PYTHON'
import os

from actlet.protocols import Observation
from runtime.bundle import load_bundle


class Arm:
    def __init__(self):
        bundle = load_bundle(os.environ["BUNDLE"])
        spec, self.golden = bundle.manifest.spec, bundle.golden
        self.observation_spec, self.action_spec, self.rate_hz = spec.observation, spec.action, spec.timing.rate_hz
        self.instruction, self.commands, self.connected = self.golden.text[0], 0, False

    def connect(self):
        self.connected = True

    def get_observation(self):
        row = self.commands % len(self.golden)
        return Observation({name: frames[row] for name, frames in self.golden.images.items()}, self.golden.state[row])

    def send_action(self, action):
        self.commands += 1

    def disconnect(self):
        self.connected = False


def make_robot(**options):
    return Arm()
PYTHON

export BUNDLE=$bundle
robot/bin/actlet --version
robot/bin/actlet --help >/dev/null
robot/bin/actlet doctor "$bundle" --robot arm:make_robot --json doctor.json
robot/bin/python - <<'PYTHON'
import importlib.util
import json
import os
import pathlib
import sys

import actlet

place = pathlib.Path(actlet.__file__).resolve()
assert "robot" in place.parts, f"actlet came from {place}, not from the wheel"
heavy = ("torch", "transformers", "onnx", "pyarrow", "PIL", "mujoco", "matplotlib", "tqdm")
installed = [name for name in heavy if importlib.util.find_spec(name)]
assert not installed, f"the environment is not bare: {installed}"

found = json.loads(pathlib.Path("doctor.json").read_text())
verdicts = {finding["what"]: finding["verdict"] for finding in found["findings"]}
assert found["problems"] == 0, verdicts
assert verdicts["onnxruntime CPU"] == verdicts["robot"] == "ok", verdicts
assert len(found["rates"]) == 1, found["rates"]

sys.path.insert(0, "")
from arm import make_robot
from runtime.run import run_policy

arm = make_robot()
result = run_policy(os.environ["BUNDLE"], arm, realtime=False, steps=40)
assert result.stopped_by in ("steps", "terminate"), result
assert arm.commands and not arm.connected, result
ours = ("distill", "episodes", "export", "quantize")
imported = sorted({name.partition(".")[0] for name in sys.modules} & {*heavy, *ours})
assert not imported, f"the robot side imported {imported}"
print(f"the wheel works from {place.parent}: {arm.commands} commands, nothing of the training side")
PYTHON
