"""What a figure was measured on: processor, memory, load, clock governor, versions and date.

A latency without these is not reproducible, so every result of `benchmarks` carries them.
"""

from __future__ import annotations

import os
import platform
import re
from typing import Any

from actlet.provenance import git_commit, package_versions
from benchmarks.host import Host
from benchmarks.jetson import jetson_release, power_mode
from benchmarks.thermal import read_thermal

__all__ = ["describe_machine", "describe_versions"]

# Instruction sets that decide how fast float32, int8 and 16-bit arithmetic are. x86 names, then Arm's.
_TELLING_FLAGS = (
    *("avx2", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2"),
)
_PACKAGES = (
    *("actlet", "numpy", "onnxruntime", "onnx", "onnxscript", "torch", "transformers", "accelerate", "bitsandbytes", "peft"),
    *("mujoco", "metaworld", "gymnasium", "pyarrow", "pillow", "tensorrt"),
)


def _cpu_info(host: Host) -> tuple[str, list[str], bool]:
    """Model name, telling flags, and whether a hypervisor lies below."""
    fields: dict[str, str] = {}
    for line in (host.read("/proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    model = fields.get("model name") or host.read("/proc/device-tree/model") or platform.processor() or platform.machine()
    return model, [flag for flag in _TELLING_FLAGS if flag in flags], "hypervisor" in flags


def _memory_bytes(host: Host, field: str) -> int | None:
    found = re.search(rf"^{field}:\s+(\d+) kB", host.read("/proc/meminfo") or "", re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def describe_machine(host: Host | None = None) -> dict[str, Any]:
    """The machine as plain JSON; what cannot be found out is None, never left out.

    Args:
        host: Where to read it; None for this machine. Cores, load and architecture are always this one's.
    """
    host = host or Host()
    model, flags, virtual = _cpu_info(host)
    gpus = host.tool("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    mode, thermal = power_mode(host), read_thermal(host)
    return {
        "cpu": model,
        "cpu_flags": flags,
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "virtual_machine": virtual,
        "memory_bytes": _memory_bytes(host, "MemTotal"),
        "memory_available_bytes": _memory_bytes(host, "MemAvailable"),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "governor": host.read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "power_mode": None if mode is None else mode.name,  # Jetson
        "jetson": jetson_release(host),
        "hottest_c": max((zone.celsius for zone in thermal.zones), default=None),
        "clocks_lowered_by": list(thermal.lowered_by),
        "gpus": gpus.splitlines() if gpus else [],
        "system": f"{platform.system()} {host.read('/proc/sys/kernel/osrelease') or platform.release()}",
        "kernel": host.read("/proc/sys/kernel/version") or platform.version(),
    }


def describe_versions() -> dict[str, str]:
    """Python, every package that shapes a figure and is installed, and the commit where the source is a git checkout."""
    commit = git_commit()
    return {"python": platform.python_version(), **package_versions(_PACKAGES), **({"commit": commit} if commit else {})}
