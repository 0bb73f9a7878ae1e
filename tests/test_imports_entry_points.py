"""What a robot starts never imports the training side: every verb of `runtime`, `actlet doctor`, and all processes that they start, with the packages poisoned.

The poison is a finder in a sitecustomize.py, which every Python process of the test meets first. It writes down who asked for what, so that an import
that is tried and forgiven is seen as well.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lean_robot import BUNDLE

from actlet.command_line import VERBS

HERE = Path(__file__).parent
POISONED = ("torch", "transformers", "lerobot", "matplotlib", "accelerate", "onnx", "pyarrow", "PIL", "mujoco", "metaworld", "tqdm")
POISONED_FOR_DOCTOR = POISONED[:5]
"""It looks at rendering by rendering, in a process of its own."""
RUNTIME_VERBS = [verb for verb, (module, _) in VERBS.items() if module.startswith("runtime.")]
SITE = """
import os, sys
from importlib.machinery import ModuleSpec
class Poison:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in os.environ["POISONED"].split():
            return ModuleSpec(name, self)  # As if it were installed: to look whether it is is no import.
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        with open(os.environ["POISON_LOG"], "a") as log:
            log.write(module.__name__ + " by " + " ".join(sys.orig_argv[1:])[:200] + "\\n")
        raise ImportError("poisoned: " + module.__name__)
sys.meta_path.insert(0, Poison())
with open(os.environ["POISON_LOG"] + ".processes", "a") as log:
    log.write(" ".join(sys.orig_argv[1:])[:80] + "\\n")
"""


class Poisoned:
    """Starts processes that must not import what is poisoned."""

    def __init__(self, folder: Path, bundle: Path) -> None:
        (folder / "sitecustomize.py").write_text(SITE)
        self.log, self.bundle = folder / "log", bundle
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(folder), str(HERE.parent), str(HERE))),
            "POISON_LOG": str(self.log),
            BUNDLE: str(bundle),
        }
        self._running: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, poisoned: tuple[str, ...] = POISONED) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            env={**self.environment, "POISONED": " ".join(poisoned)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._running.append(process)
        return process

    def run(self, *arguments: str, poisoned: tuple[str, ...] = POISONED) -> tuple[int, str]:
        process = self.start(*arguments, poisoned=poisoned)
        said = process.communicate(timeout=240)[0]
        return process.returncode, said

    @property
    def imported(self) -> str:
        """What was imported all the same."""
        return self.log.read_text() if self.log.exists() else ""

    @property
    def processes(self) -> str:
        """Command lines of all that were poisoned."""
        return self.log.with_name("log.processes").read_text()

    def close(self) -> None:
        for process in self._running:
            process.kill()
            process.communicate()


@pytest.fixture
def poisoned(tmp_path: Path, tiny_bundle: Path) -> Iterator[Poisoned]:
    (tmp_path / "site").mkdir()
    found = Poisoned(tmp_path / "site", tiny_bundle)
    yield found
    found.close()


def test_the_poison_bites_and_is_written_down(poisoned: Poisoned) -> None:
    """Without this the tests below could pass for nothing; forgiven or not, and not where one only looks whether a package is there."""
    code = "import importlib.util, contextlib\nassert importlib.util.find_spec('torch')\nwith contextlib.suppress(ImportError):\n    import torch\nimport matplotlib.pyplot"
    status, said = poisoned.run("-c", code)
    assert status == 1
    assert "poisoned: matplotlib" in said
    assert re.match(r"torch by -c .*\nmatplotlib by -c ", poisoned.imported, re.DOTALL)


@pytest.mark.parametrize("verb", ["", *RUNTIME_VERBS, "doctor"])
def test_help_needs_nothing(poisoned: Poisoned, verb: str) -> None:
    """Every verb of the robot side, by its own words."""
    status, said = poisoned.run("-m", "actlet", *filter(None, [verb, "--help"]))
    assert status == 0, said
    assert "usage: actlet" in said
    assert poisoned.imported == ""


@pytest.mark.parametrize("inference", ["process", "thread"])
def test_actlet_run(poisoned: Poisoned, inference: str) -> None:
    """With the supervisor, a worker, its standby, and the trial of the bundle; or a thread."""
    robot = ("--robot", "lean_robot:make_robot", "--steps", "25", "--inference", inference, "--priority", "0")
    status, said = poisoned.run("-m", "actlet", "run", str(poisoned.bundle), *robot)
    assert status == 0, said
    assert re.search(r"stopped by +steps", said)
    assert int(re.search(r"decisions +(\d+)", said)[1]) >= 1  # type: ignore[index]
    assert poisoned.imported == ""
    started = poisoned.processes
    assert "-m runtime.trial" in started
    for module in ("runtime.supervisor", "runtime.inference_worker"):
        assert (f"-m {module}" in started) is (inference == "process")


@pytest.mark.parametrize("wire", ["openpi", "act"])
def test_actlet_serve_and_a_robot_that_asks(poisoned: Poisoned, wire: str) -> None:
    """Over both wires the server opens; over openpi's, a robot is driven with it."""
    pytest.importorskip("websockets")
    server = poisoned.start("-u", "-m", "actlet", "serve", str(poisoned.bundle), "--port", "0", "--wire", wire)
    assert server.stdout is not None
    seen, found = "", None
    while found is None:
        line = server.stdout.readline()
        assert line, f"the server ended: {seen}"
        seen += line
        found = re.search(r"(?:ws|http)://([\d.]+:\d+)", line)
    if wire == "openpi":
        robot = ("--robot", "lean_robot:make_robot", "--steps", "15", "--inference", "thread", "--priority", "0")
        status, said = poisoned.run("-m", "actlet", "run", f"ws://{found[1]}", *robot)
        assert status == 0, said
    time.sleep(0.2)
    server.send_signal(signal.SIGINT)
    said = server.communicate(timeout=60)[0]
    assert server.returncode in (0, 130), seen + said
    assert poisoned.imported == ""


def test_actlet_doctor(poisoned: Poisoned) -> None:
    """The machine, a bundle and a robot; it names packages without importing them."""
    arguments = ("-m", "actlet", "doctor", str(poisoned.bundle), "--robot", "lean_robot:make_robot")
    status, said = poisoned.run(*arguments, poisoned=POISONED_FOR_DOCTOR)
    assert status in (0, 2), said
    assert "torch" in said
    assert poisoned.imported == ""


def test_actlet_sign(poisoned: Poisoned, tmp_path: Path) -> None:
    """A key, a signature, and a robot that opens what is signed."""
    pytest.importorskip("cryptography")
    status, said = poisoned.run("-m", "actlet", "sign", str(poisoned.bundle), "--new-key", str(tmp_path / "lab"))
    assert status == 0, said
    robot = ("--robot", "lean_robot:make_robot", "--steps", "5", "--priority", "0", "--trusted-keys", str(tmp_path / "lab.pub.pem"))
    status, said = poisoned.run("-m", "actlet", "run", str(poisoned.bundle), *robot)
    assert status == 0, said
    assert poisoned.imported == ""
