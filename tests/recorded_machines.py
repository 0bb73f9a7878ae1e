"""Machines that are not at hand, as the files that their kernels show and what their tools print.

Formats: the kernel's own Documentation/driver-api/thermal/sysfs-api.rst (zones, trip points, their bindings; the PC is its example) and cpufreq's and
devfreq's sysfs; for a Jetson, NVIDIA's Jetson Linux Developer Guide (nvpmodel, soctherm_oc) and what jetson_stats (rbonghi/jetson_stats) reads. Values of the
Orin Nano Super are those that owners of Orins with Jetson Linux 36.x published: /etc/nv_tegra_release and `uname -v` of JetPack 6.2, the modes of nvpmodel.conf,
zone 0 with its three trip points and what each is bound to, clocks after `jetson_clocks`, and over-current counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.host import Host

_CPUFREQ = "/sys/devices/system/cpu/cpu{}/cpufreq/{}"
_ZONE, _COOLING = "/sys/class/thermal/thermal_zone{}/{}", "/sys/class/thermal/cooling_device{}/{}"


def _zone(number: int, name: str, celsius: float, trips: list[tuple[str, float]], bound: list[tuple[int, int]]) -> dict[str, str]:
    """Trip points as (type, °C), and bindings as (cooling device, trip point)."""
    files = {_ZONE.format(number, "type"): f"{name}\n", _ZONE.format(number, "temp"): f"{round(celsius * 1000)}\n"}
    for i, (kind, at) in enumerate(trips):
        files |= {
            _ZONE.format(number, f"trip_point_{i}_type"): f"{kind}\n",
            _ZONE.format(number, f"trip_point_{i}_temp"): f"{round(at * 1000)}\n",
        }
    for i, (device, trip) in enumerate(bound):
        files |= {
            _ZONE.format(number, f"cdev{i}"): f"-> ../cooling_device{device}",
            _ZONE.format(number, f"cdev{i}_trip_point"): f"{trip}\n",
        }
    return files


def _cooling(*names: str) -> dict[str, str]:
    return {
        _COOLING.format(number, file): f"{text}\n"
        for number, name in enumerate(names)
        for file, text in (("type", name), ("cur_state", 0), ("max_state", 4))
    }


def _cores(count: int, governor: str, least_khz: int, most_khz: int) -> dict[str, str]:
    values = {"scaling_governor": governor, "scaling_min_freq": least_khz, "scaling_max_freq": most_khz}
    return {_CPUFREQ.format(core, file): f"{value}\n" for core in range(count) for file, value in values.items()}


_ORIN_TRIPS = [("passive", 99.0), ("critical", 104.5), ("passive", 70.0)]
_ORIN_BOUND = [(5, 2), (0, 0), (1, 0), (3, 0), (2, 0)]

ORIN: dict[str, str] = {
    "/etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025\n"
    "# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\nTARGET_USERSPACE_LIB_DIR_PATH=usr/lib/aarch64-linux-gnu/nvidia\n",
    "/proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
    "/etc/nvpmodel.conf": "< PM_CONFIG DEFAULT=1 >\n< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=1 NAME=25W >\n"
    "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n< POWER_MODEL ID=3 NAME=7W >\n",
    "/var/lib/nvpmodel/status": "pmode:0002",
    "/proc/cpuinfo": "processor\t: 0\nmodel name\t: ARMv8 Processor rev 1 (v8l)\nBogoMIPS\t: 62.50\n"
    "Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp uscat ilrcpc flagm paca pacg\n",
    "/proc/meminfo": "MemTotal:        7802024 kB\nMemFree:          452904 kB\nMemAvailable:    5953344 kB\n",
    "/proc/sys/kernel/osrelease": "5.15.148-tegra\n",
    "/proc/sys/kernel/version": "#1 SMP PREEMPT Tue Jan 7 17:14:38 PST 2025\n",
    "/sys/class/devfreq/17000000.gpu/min_freq": "1020000000\n",
    "/sys/class/devfreq/17000000.gpu/max_freq": "1020000000\n",
    "/sys/class/hwmon/hwmon3/name": "soctherm_oc\n",
    "/sys/class/hwmon/hwmon3/oc1_event_cnt": "0\n",
    "/sys/class/hwmon/hwmon3/oc2_event_cnt": "0\n",
    "/sys/class/hwmon/hwmon3/oc3_event_cnt": "37\n",
    **_cores(6, "schedutil", 1728000, 1728000),
    **_cooling("cpufreq-cpu0", "cpufreq-cpu4", "devfreq-17000000.gpu", "cpu-throttle-alert", "pwm-fan", "hot-surface-alert"),
    **_zone(0, "cpu-thermal", 51.8, _ORIN_TRIPS, _ORIN_BOUND),
    **_zone(1, "gpu-thermal", 49.4, _ORIN_TRIPS, _ORIN_BOUND),
    **_zone(8, "tj-thermal", 51.7, [("active", 51.0), ("active", 61.0)], [(4, 0)]),
}
ORIN_TOOLS = {("dpkg-query", "-W", "-f=${Version}", "nvidia-jetpack"): "6.2+b77"}

PC: dict[str, str] = {
    "/proc/cpuinfo": "processor\t: 0\nmodel name\t: Intel(R) Core(TM) i5-2520M CPU @ 2.50GHz\nflags\t\t: fpu sse4_2 avx\n",
    "/proc/meminfo": "MemTotal:       16316412 kB\nMemFree:          812004 kB\nMemAvailable:    9123456 kB\n",
    "/proc/sys/kernel/osrelease": "6.1.0-28-amd64\n",
    "/proc/sys/kernel/version": "#1 SMP PREEMPT_DYNAMIC Debian 6.1.119-1 (2024-11-22)\n",
    **_cores(4, "powersave", 800000, 3200000),
    **_cooling("Processor", "Processor", "Processor", "Fan"),
    **_zone(1, "acpitz", 37.0, [("critical", 100.0), ("passive", 80.0), ("active0", 70.0), ("active1", 60.0)], [(0, 1), (3, 2)]),
}


def host_of(folder: Path, files: Mapping[str, str], tools: Mapping[tuple[str, ...], str] | None = None) -> Host:
    """A machine of these files, written below a folder, and of what these commands print; every other command is absent."""
    for name, text in files.items():
        path = folder / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if text.startswith("-> "):
            path.symlink_to(text.removeprefix("-> "))
        else:
            path.write_text(text)
    return Host(root=folder, tool=lambda *command: (tools or {}).get(command))
