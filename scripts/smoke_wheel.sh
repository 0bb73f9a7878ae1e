#!/usr/bin/env bash
# Installs the wheel in a bare environment outside the repository and uses it there, as a robot would: no torch.
# Usage: smoke_wheel.sh PYTHON WHEEL [BUNDLE]    with a bundle, it is loaded there and its recorded answers are replayed
set -euo pipefail

python=$(realpath -s "$1")
wheel=$(realpath "$2")
constraints=$(realpath constraints.txt)
bundle=${3:+$(realpath "$3")}
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"

"$python" -m venv robot
robot/bin/python -m pip install --quiet -c "$constraints" "$wheel[runtime]"
robot/bin/actlet --version
robot/bin/actlet --help >/dev/null
robot/bin/actlet doctor ${bundle:+"$bundle"}
robot/bin/python - <<'PYTHON'
import pathlib
import sys

import actlet
import runtime.bundle

place = pathlib.Path(actlet.__file__).resolve()
assert "robot" in place.parts, f"actlet came from {place}, not from the wheel"
assert "torch" not in sys.modules, "the robot side imported torch"
print(f"the wheel works from {place.parent}")
PYTHON
