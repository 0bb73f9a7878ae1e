"""What a figure was measured on: processor, memory, load, clock governor, versions and date.

A latency without these is not reproducible, so every result of `benchmarks` carries them.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from actlet.provenance import git_commit, package_versions

__all__ = ["describe_machine", "describe_versions", "run_tool"]

# Instruction sets that decide how fast float32, int8 and 16-bit arithmetic are. x86 names, then Arm's.
_TELLING_FLAGS = (
    *("avx2", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2"),
)
_PACKAGES = (
    *("actlet", "numpy", "onnxruntime", "onnx", "onnxscript", "torch", "transformers", "accelerate", "bitsandbytes", "peft"),
    *("mujoco", "metaworld", "gymnasium", "pyarrow", "pillow", "tensorrt"),
)


def run_tool(*command: str) -> str | None:
    """What a command prints, or None where it is absent, fails or takes more than five seconds."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _cpu_info() -> tuple[str, list[str], bool]:
    """Model name, telling flags, and whether a hypervisor lies below."""
    fields: dict[str, str] = {}
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    model = fields.get("model name") or _read("/proc/device-tree/model") or platform.processor() or platform.machine()
    return model.strip("\0"), [flag for flag in _TELLING_FLAGS if flag in flags], "hypervisor" in flags


def _memory_bytes() -> int | None:
    for line in (_read("/proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return None


def describe_machine() -> dict[str, Any]:
    """The machine as plain JSON; what cannot be found out is None, never left out."""
    model, flags, virtual = _cpu_info()
    gpus = run_tool("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    return {
        "cpu": model,
        "cpu_flags": flags,
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "virtual_machine": virtual,
        "memory_bytes": _memory_bytes(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "power_mode": run_tool("nvpmodel", "-q"),  # Jetson
        "gpus": gpus.splitlines() if gpus else [],
        "system": f"{platform.system()} {platform.release()}",
    }


def describe_versions() -> dict[str, str]:
    """Python, every package that shapes a figure and is installed, and the commit where the source is a git checkout."""
    commit = git_commit()
    return {"python": platform.python_version(), **package_versions(_PACKAGES), **({"commit": commit} if commit else {})}
