"""What the doctor says of a machine: processor, clocks, heat, memory, disk, and what its kernel grants to a control loop.

What a limit says and what the kernel grants are two things, so priorities and locked memory are taken, in a process of their own.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.finding import Finding
from benchmarks.host import Host, run_python
from benchmarks.jetson import jetson_release, power_mode, read_clocks
from benchmarks.machine import describe_machine
from benchmarks.thermal import read_thermal

__all__ = ["examine_machine"]

NEAR_C = 10.0
"""So close below the temperature at which clocks are lowered, a longer run or a warmer room gets there."""
ROBOT_BYTES, TRAINING_BYTES = 1e9, 6e9
"""Memory that a robot's process and a small training take at most."""
DISK_BYTES = 5e9


def examine_machine(host: Host | None = None) -> list[Finding]:
    """Everything about the machine itself.

    Args:
        host: Where facts are read; None for this machine. Permissions, free disk and load are always this one's.
    """
    host = host or Host()
    machine = describe_machine(host)
    findings = [
        *_jetson(host),
        *_processor(machine),
        *_clocks(host),
        *_heat(host),
        *_memory(machine),
        _disk(),
        _kernel(host, machine["kernel"]),
    ]
    return [*findings, *_real_time()]


def _jetson(host: Host) -> list[Finding]:
    release = jetson_release(host)
    if release is None:
        return []
    named = f"Jetson Linux {release['l4t'] or 'of an unknown release'}"
    named += f", JetPack {release['jetpack']}" if release["jetpack"] else ""
    findings = [Finding("ok", "Jetson", f"{release['model'] or 'of an unknown model'}; {named}")]
    mode = power_mode(host)
    if mode is None:
        findings.append(
            Finding("warning", "power mode", "unknown: neither /var/lib/nvpmodel/status nor nvpmodel tells", "sudo nvpmodel -q")
        )
    elif mode.fastest is None or mode.number == mode.fastest:
        findings.append(Finding("ok", "power mode", f"{mode.name} (mode {mode.number})"))
    else:
        how = f"{mode.name} (mode {mode.number}) caps clocks and may switch cores off; {mode.modes[mode.fastest]} does not, and takes more power"
        findings.append(Finding("warning", "power mode", how, f"sudo nvpmodel -m {mode.fastest}"))
    return findings


def _processor(machine: Mapping[str, Any]) -> list[Finding]:
    fast = [flag for flag in ("avx512_vnni", "avx_vnni", "asimddp", "i8mm") if flag in machine["cpu_flags"]]
    how = f"fast ({', '.join(fast)})" if fast else "no instructions for it: int8 saves space here, hardly time"
    cores = f"{machine['cpu']}, {machine['cores_usable']} of {machine['cores']} cores, load {machine['load_average'][0]:.1f}"
    return [Finding("ok", "processor", cores), Finding("ok" if fast else "missing", "int8 arithmetic", how)]


def _clocks(host: Host) -> list[Finding]:
    """Clocks that follow the load make latencies that follow it: a policy that decides five times a second finds them low every time."""
    clocks, is_jetson = read_clocks(host), jetson_release(host) is not None
    if not clocks.governors:
        return []  # Nothing scales them, or somebody outside of a virtual machine does.
    governors = ", ".join(clocks.governors)
    if is_jetson:
        held = clocks.cpu_hz is not None and clocks.gpu_hz is not None
    else:
        held = clocks.cpu_hz is not None or clocks.governors == ("performance",)
    if not held:
        fix = "sudo jetson_clocks" if is_jetson else "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
        what = "of the GPU " if is_jetson and clocks.cpu_hz is not None else ""
        return [Finding("warning", "clocks", f"{what}follow the load ({governors}): latencies will move with them", fix)]
    parts = [f"processor at {clocks.cpu_hz / 1e9:.2f} GHz" if clocks.cpu_hz else "processor as fast as it may"]
    parts += [f"GPU at {clocks.gpu_hz / 1e9:.2f} GHz"] if clocks.gpu_hz else []
    return [Finding("ok", "clocks", f"held: {', '.join(parts)} ({governors})")]


def _heat(host: Host) -> list[Finding]:
    thermal = read_thermal(host)
    hottest, nearest = thermal.hottest, thermal.nearest
    counted = ", ".join(f"{reason} {count} times" for reason, count in thermal.since_boot.items())
    since = f"; what lowered clocks since the start: {counted}" if counted else ""
    cool = "give it air or a fan, or take a lower power mode" if jetson_release(host) else "give it air, clean the fan, or lower its load"
    if thermal.lowered_by:
        at = f" at {hottest.celsius:.0f} °C" if hottest else ""
        return [Finding("warning", "temperature", f"clocks are lowered now{at} ({', '.join(thermal.lowered_by)}): {cool}{since}")]
    if hottest is None:
        return [Finding("ok", "temperature", f"not told by this kernel{since}")]
    how = f"{hottest.celsius:.0f} °C ({hottest.name})"
    how += (
        f"; clocks are lowered from {nearest.lowers_c:.0f} °C"
        if nearest is not None
        else "; the kernel does not say where clocks are lowered"
    )
    how += f", off at {hottest.off_c:.4g} °C" if hottest.off_c is not None else ""
    if nearest is not None and nearest.lowers_c is not None and nearest.celsius > nearest.lowers_c - NEAR_C:
        return [Finding("warning", "temperature", f"{how} ({nearest.name} is at {nearest.celsius:.0f}): {cool}{since}")]
    if nearest is None and hottest.off_c is not None and hottest.celsius > hottest.off_c - NEAR_C:
        return [Finding("warning", "temperature", f"{how}: {cool}{since}")]
    return [Finding("ok", "temperature", f"{how}{since}")]


def _memory(machine: Mapping[str, Any]) -> list[Finding]:
    free, whole = machine["memory_available_bytes"], machine["memory_bytes"]
    if free is None or whole is None:
        return []
    how = f"{free / 1e9:.1f} of {whole / 1e9:.1f} GB free"
    if free < ROBOT_BYTES:
        return [Finding("warning", "memory", f"{how}: a robot's process takes up to {ROBOT_BYTES / 1e9:.0f}; end what is not needed")]
    fits = (
        "enough for a robot and for training"
        if free > TRAINING_BYTES
        else f"enough for a robot; training takes about {TRAINING_BYTES / 1e9:.0f}"
    )
    return [Finding("ok", "memory", f"{how}: {fits}")]


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    how = f"{free / 1e9:.1f} GB (the demo writes less than 1 GB)"
    return Finding("ok" if free > DISK_BYTES else "warning", "free disk here", how)


def _kernel(host: Host, version: str) -> Finding:
    release, kind = host.read("/proc/sys/kernel/osrelease") or platform.release(), re.search(r"PREEMPT\w*", version)
    if host.read("/sys/kernel/realtime") == "1" or re.search(r"PREEMPT[_ ]RT", version):
        return Finding("ok", "kernel", f"{release}, PREEMPT_RT")
    return Finding(
        "ok", "kernel", f"{release}, {kind[0] if kind else 'no preemption'}, not PREEMPT_RT: how late a step may come is not bounded"
    )


# As `actlet run` takes it, in a process that maps as much.
_TAKE = """
import json
try:
    import onnxruntime
except ImportError:
    pass
from runtime.real_time import RealTime, take_real_time
print(json.dumps(take_real_time(RealTime())))
"""


def _refused() -> list[str]:
    """What of real time is refused, each with the line that permits it."""
    try:
        said = run_python("-c", _TAKE, timeout_s=60).stdout.strip().splitlines()
        return [str(line) for line in json.loads(said[-1])]
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
        return ["real-time priority: the process that asked for it died", "locked memory: the process that asked for it died"]


def _real_time() -> list[Finding]:
    granted = {
        "real-time priority": "SCHED_FIFO is permitted",
        "locked memory": "permitted: nothing of the loop is swapped out",
    }
    findings = [Finding("ok", what, how) for what, how in granted.items()]
    for line in _refused():
        said, _, fix = line.partition(" Run: ")
        why = said.partition(": ")[2].rstrip(".")
        findings = [Finding("missing", f.what, f"refused: {why}", fix) if said.startswith(f.what) else f for f in findings]
    return findings
