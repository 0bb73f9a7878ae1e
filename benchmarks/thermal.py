"""How hot a machine is, against the temperatures at which its kernel lowers clocks or switches it off, and whether it lowers them now.

Linux tells below ``/sys/class/thermal`` (Documentation/driver-api/thermal/sysfs-api.rst)::

    thermal_zone0/  type, temp [m°C], trip_point_N_temp [m°C], trip_point_N_type: critical | hot | passive | active
                    cdevN -> cooling_deviceM, cdevN_trip_point: the trip point at which that device begins to cool
    cooling_device0/  type, cur_state: 0 where it does nothing

A passive trip point lowers clocks only if what is bound to it does: on an Orin, 70 °C is bound to ``hot-surface-alert``, which lowers nothing, and
99 °C to processor, GPU and throttle alerts. Processors that slow down by themselves (x86) count how often in ``thermal_throttle``; an Orin counts what
its power supply made it do in ``oc*_event_cnt`` (1 under-voltage, 2 average and 3 instantaneous over-current).
"""

from __future__ import annotations

import dataclasses
import re

from benchmarks.host import Host

__all__ = ["Thermal", "Zone", "read_thermal"]

_SENSIBLE_C = (1.0, 150.0)
"""What a sensor or trip point says outside of it is not a temperature: 0 and -274 stand for none, a broken sensor says -256."""
_LOWERS_CLOCKS = re.compile(r"^(thermal-)?(cpufreq|devfreq)-|^Processor$|-throttle-alert$")
"""Types of cooling devices that make a machine slower; fans, displays and hot-surface-alert do not."""
_SUPPLY = {1: "under-voltage", 2: "average over-current", 3: "instantaneous over-current"}


@dataclasses.dataclass(frozen=True)
class Zone:
    """One sensor."""

    name: str
    celsius: float
    lowers_c: float | None
    """Where the kernel begins to lower clocks, None where it does not say."""
    off_c: float | None
    """Where it switches the machine off."""


@dataclasses.dataclass(frozen=True)
class Thermal:
    """All sensors, and what the machine did about them."""

    zones: tuple[Zone, ...]
    lowered_by: tuple[str, ...]
    """What lowers clocks now."""
    since_boot: dict[str, int]
    """Reason -> how often clocks were lowered since the machine was started, where that is counted and not 0."""

    @property
    def hottest(self) -> Zone | None:
        """The hottest zone."""
        return max(self.zones, key=lambda zone: zone.celsius, default=None)

    @property
    def nearest(self) -> Zone | None:
        """The zone with the least left until clocks are lowered."""
        telling = [zone for zone in self.zones if zone.lowers_c is not None]
        return min(telling, key=lambda zone: (zone.lowers_c or 0.0) - zone.celsius, default=None)


def read_thermal(host: Host) -> Thermal:
    """Temperatures and throttling of a machine; empty where it does not tell."""
    zones = [zone for folder in host.find("/sys/class/thermal/thermal_zone*") if (zone := _zone(host, folder)) is not None]
    devices = [
        (host.read(f"{folder}/type"), host.number(f"{folder}/cur_state")) for folder in host.find("/sys/class/thermal/cooling_device*")
    ]
    lowered = sorted({name for name, state in devices if name and _LOWERS_CLOCKS.search(name) and (state or 0) > 0})
    return Thermal(zones=tuple(zones), lowered_by=tuple(lowered), since_boot=_since_boot(host))


def _celsius(host: Host, path: str) -> float | None:
    value = host.number(path)
    return None if value is None or not _SENSIBLE_C[0] <= value / 1000 <= _SENSIBLE_C[1] else value / 1000


def _zone(host: Host, folder: str) -> Zone | None:
    celsius = _celsius(host, f"{folder}/temp")
    if celsius is None:
        return None
    lowering = {
        host.number(f"{binding}_trip_point")
        for binding in host.find(f"{folder}/cdev*")
        if re.search(r"/cdev\d+$", binding) and _LOWERS_CLOCKS.search(host.read(f"{binding}/type") or "")
    }
    lowers, off = [], []
    for path in host.find(f"{folder}/trip_point_*_type"):
        number = int(path.split("_")[-2])
        kind, at = host.read(path), _celsius(host, f"{folder}/trip_point_{number}_temp")
        if at is not None and kind == "passive" and number in lowering:
            lowers.append(at)
        elif at is not None and kind == "critical":
            off.append(at)
    name = host.read(f"{folder}/type") or folder.rpartition("/")[2]
    return Zone(name=name, celsius=celsius, lowers_c=min(lowers, default=None), off_c=min(off, default=None))


def _since_boot(host: Host) -> dict[str, int]:
    counts = {
        "heat": sum(host.number(path) or 0 for path in host.find("/sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count"))
    }
    for folder in host.find("/sys/class/hwmon/hwmon*"):
        if host.read(f"{folder}/name") == "soctherm_oc":
            counts |= {reason: host.number(f"{folder}/oc{number}_event_cnt") or 0 for number, reason in _SUPPLY.items()}
    return {reason: count for reason, count in counts.items() if count}
