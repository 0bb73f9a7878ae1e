"""What is particular to a Jetson: which release it runs, its power mode, and whether `jetson_clocks` holds its clocks.

    /etc/nv_tegra_release          "# R36 (release), REVISION: 4.3, GCID: …": Jetson Linux 36.4.3
    dpkg-query -W nvidia-jetpack   JetPack's version, where its package is installed; many images have the parts without it
    /var/lib/nvpmodel/status       "pmode:0002": the number of the power mode
    /etc/nvpmodel.conf             "< POWER_MODEL ID=2 NAME=MAXN_SUPER >": the names; what `nvpmodel -q` reads too
    scaling_min_freq, scaling_max_freq of every core, min_freq, max_freq of the GPU: equal where `jetson_clocks` has run. The governor stays what it was.

Mode 0 is not the fastest everywhere: an Orin Nano Super's is 15 W.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from benchmarks.host import Host

__all__ = ["Clocks", "PowerMode", "jetson_release", "power_mode", "read_clocks"]

_JETPACK = {"35": "5", "36": "6", "38": "7", "39": "7"}
"""Jetson Linux -> JetPack, the first numbers of each."""


@dataclasses.dataclass(frozen=True)
class PowerMode:
    """The mode that caps clocks and switches cores off."""

    number: int
    name: str
    modes: dict[int, str]
    """All that this board has."""

    @property
    def fastest(self) -> int | None:
        """The number of the mode without a cap (MAXN, MAXN_SUPER), None where there is none by that name."""
        return next((number for number, name in self.modes.items() if name.startswith("MAXN")), None)


@dataclasses.dataclass(frozen=True)
class Clocks:
    """How clocks move."""

    governors: tuple[str, ...]
    """Of all cores, each once; () where the kernel does not scale them."""
    cpu_hz: float | None
    """What all cores are held at, None where one of them may move."""
    gpu_hz: float | None
    """What a Jetson's GPU is held at, None where it may move or there is none."""


def jetson_release(host: Host) -> dict[str, Any] | None:
    """``model, l4t, jetpack`` of a Jetson; None on any other machine. JetPack is "6" alone where its package is not installed, None if even that is unknown."""
    text = host.read("/etc/nv_tegra_release")
    if text is None:
        return None
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    l4t = f"{found[1]}.{found[2]}" if found else None
    package = host.tool("dpkg-query", "-W", "-f=${Version}", "nvidia-jetpack")  # "6.2+b77"; empty where it is known and not installed
    jetpack = package.partition("+")[0] if package else _JETPACK.get(found[1]) if found else None
    return {"model": host.read("/proc/device-tree/model"), "l4t": l4t, "jetpack": jetpack}


def power_mode(host: Host) -> PowerMode | None:
    """The power mode; None where there is none, or it cannot be found out."""
    names = re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=([^\s>]+)", host.read("/etc/nvpmodel.conf") or "")
    modes = {int(number): name for number, name in names}
    status = re.search(r"pmode:(\d+)", host.read("/var/lib/nvpmodel/status") or "")
    if status:
        return PowerMode(number=int(status[1]), name=modes.get(int(status[1]), f"mode {int(status[1])}"), modes=modes)
    said = re.search(r"NV Power Mode: (\S+)\s+(\d+)", host.tool("nvpmodel", "-q") or "")  # "NV Power Mode: MAXN", and the number below it
    return PowerMode(number=int(said[2]), name=said[1], modes=modes) if said else None


def read_clocks(host: Host) -> Clocks:
    """How the clocks of processor and GPU move, on any Linux."""
    cores = [folder for folder in host.find("/sys/devices/system/cpu/cpu[0-9]*/cpufreq") if host.read(f"{folder}/scaling_governor")]
    governors = tuple(sorted({host.read(f"{folder}/scaling_governor") or "" for folder in cores}))
    held = [_held(host, f"{folder}/scaling_min_freq", f"{folder}/scaling_max_freq") for folder in cores]
    gpus = [f for f in host.find("/sys/class/devfreq/*") if re.search(r"gpu|ga10b|gv11b|gp10b", f.rpartition("/")[2])]
    gpu_held = [_held(host, f"{folder}/min_freq", f"{folder}/max_freq") for folder in gpus]
    return Clocks(governors=governors, cpu_hz=_all(held, 1e3), gpu_hz=_all(gpu_held, 1.0))


def _held(host: Host, least: str, most: str) -> int | None:
    low, high = host.number(least), host.number(most)
    return high if low is not None and low == high else None


def _all(held: list[int | None], unit_hz: float) -> float | None:
    """The highest of what all are held at."""
    return None if not held or None in held else max(value for value in held if value is not None) * unit_hz
