"""What the doctor says of machines that are recorded: `recorded_machines` says where their files are from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from recorded_machines import ORIN, ORIN_TOOLS, PC, host_of

from benchmarks import doctor_machine
from benchmarks.doctor_machine import examine_machine
from benchmarks.finding import Finding
from benchmarks.host import Host, run_python
from benchmarks.machine import describe_machine


@pytest.fixture(autouse=True)
def _no_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions are this machine's, and are asked in their own tests."""
    monkeypatch.setattr(doctor_machine, "_refused", lambda: [])


def examined(folder: Path, files: Mapping[str, str], tools: Mapping[tuple[str, ...], str] | None = None) -> dict[str, Finding]:
    return {finding.what: finding for finding in examine_machine(host_of(folder, files, tools))}


def test_an_orin_that_is_set_up_well(tmp_path: Path) -> None:
    """All modes, clocks and temperatures of it are as they should be, and each is said."""
    found = examined(tmp_path, ORIN, ORIN_TOOLS)
    assert {finding.verdict for finding in found.values()} == {"ok"}
    assert found["Jetson"].how == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super; Jetson Linux 36.4.3, JetPack 6.2"
    assert found["power mode"].how == "MAXN_SUPER (mode 2)"
    assert found["clocks"].how == "held: processor at 1.73 GHz, GPU at 1.02 GHz (schedutil)"
    assert found["int8 arithmetic"].how == "fast (asimddp)"
    assert found["memory"].how == "6.1 of 8.0 GB free: enough for a robot and for training"
    assert found["kernel"].how.startswith("5.15.148-tegra, PREEMPT, not PREEMPT_RT")
    assert found["temperature"].how == (
        "52 °C (cpu-thermal); clocks are lowered from 99 °C, off at 104.5 °C; what lowered clocks since the start: instantaneous over-current 37 times"
    )


def test_a_plain_pc_as_it_comes(tmp_path: Path) -> None:
    """Nothing of a Jetson is said, and clocks that follow the load are."""
    found = examined(tmp_path, PC)
    assert "Jetson" not in found
    assert "power mode" not in found
    assert found["clocks"].verdict == "warning"
    assert found["clocks"].fix == "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
    assert found["temperature"] == Finding("ok", "temperature", "37 °C (acpitz); clocks are lowered from 80 °C, off at 100 °C")
    assert found["int8 arithmetic"].verdict == "missing"
    assert found["memory"].how.startswith("9.3 of 16.7 GB free")


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        ({}, "Jetson Linux 36.4.3, JetPack 6"),  # Its package is not installed, as on an image with CUDA and TensorRT alone.
        (
            {("dpkg-query", "-W", "-f=${Version}", "nvidia-jetpack"): ""},
            "Jetson Linux 36.4.3, JetPack 6",
        ),  # It is known, and not installed.
        ({("dpkg-query", "-W", "-f=${Version}", "nvidia-jetpack"): "6.2.1+b38"}, "Jetson Linux 36.4.3, JetPack 6.2.1"),
    ],
)
def test_jetpack_is_its_package_or_follows_from_jetson_linux(tmp_path: Path, tools: dict[tuple[str, ...], str], said: str) -> None:
    """The release file names Jetson Linux alone."""
    assert examined(tmp_path, ORIN, tools)["Jetson"].how.endswith(said)


def test_a_capped_power_mode_names_the_one_without_a_cap(tmp_path: Path) -> None:
    """By the board's own list: mode 0 of an Orin Nano Super is 15 W."""
    found = examined(tmp_path, {**ORIN, "/var/lib/nvpmodel/status": "pmode:0000 fmode:quiet\n"})["power mode"]
    assert found.verdict == "warning"
    assert found.how.startswith("15W (mode 0) caps clocks")
    assert found.fix == "sudo nvpmodel -m 2"


@pytest.mark.parametrize(
    ("said", "how"),
    [
        ("NV Fan Mode:quiet\nNV Power Mode: 25W\n1", "25W (mode 1) caps clocks"),
        ("NVPM ERROR: no configuration", "unknown"),
        (None, "unknown"),
    ],
)
def test_without_the_status_file_nvpmodel_is_asked(tmp_path: Path, said: str | None, how: str) -> None:
    """What it prints, or that nobody knows."""
    files = {name: text for name, text in ORIN.items() if name != "/var/lib/nvpmodel/status"}
    found = examined(tmp_path, files, {("nvpmodel", "-q"): said} if said is not None else {})["power mode"]
    assert found.how.startswith(how)
    assert found.verdict == "warning"


def test_jetson_clocks_is_what_holds_a_jetsons_clocks(tmp_path: Path) -> None:
    """Processor and GPU must be held; the governor stays schedutil where `jetson_clocks` has run."""
    least = "/sys/devices/system/cpu/cpu4/cpufreq/scaling_min_freq"
    found = examined(tmp_path / "cpu", {**ORIN, least: "729600\n"})["clocks"]
    assert (found.verdict, found.fix) == ("warning", "sudo jetson_clocks")
    found = examined(tmp_path / "gpu", {**ORIN, "/sys/class/devfreq/17000000.gpu/min_freq": "306000000\n"})["clocks"]
    assert found.how.startswith("of the GPU follow the load")


def test_the_performance_governor_holds_a_pcs_clocks(tmp_path: Path) -> None:
    """On every core; one that differs is not enough."""
    governor = "/sys/devices/system/cpu/cpu{}/cpufreq/scaling_governor"
    quick = {**PC, **{governor.format(core): "performance\n" for core in range(4)}}
    assert examined(tmp_path / "all", quick)["clocks"].how == "held: processor as fast as it may (performance)"
    assert examined(tmp_path / "but one", {**quick, governor.format(3): "powersave\n"})["clocks"].how.startswith(
        "follow the load (performance, powersave)"
    )


@pytest.mark.parametrize(("celsius", "verdict"), [(75, "ok"), (88, "ok"), (92, "warning"), (99, "warning")])
def test_a_warm_surface_does_not_throttle(tmp_path: Path, celsius: int, verdict: str) -> None:
    """An Orin's trip point of 70 °C is bound to an alert alone; what lowers clocks is bound to 99 °C."""
    found = examined(tmp_path, {**ORIN, "/sys/class/thermal/thermal_zone1/temp": f"{celsius}000\n"})["temperature"]
    assert found.verdict == verdict
    assert f"{celsius} °C (gpu-thermal); clocks are lowered from 99 °C" in found.how
    assert ("give it air" in found.how) == (verdict == "warning")


def test_clocks_that_are_lowered_now_are_said_to_be(tmp_path: Path) -> None:
    """By what lowers them; a fan that turns and a surface that is hot are not among it."""
    states = {f"/sys/class/thermal/cooling_device{number}/cur_state": "1\n" for number in (2, 3, 4, 5)}
    found = examined(tmp_path, {**ORIN, **states})["temperature"]
    assert found.verdict == "warning"
    assert found.how.startswith("clocks are lowered now at 52 °C (cpu-throttle-alert, devfreq-17000000.gpu): give it air or a fan")


def test_a_kernel_that_names_no_throttling_is_judged_by_where_it_switches_off(tmp_path: Path) -> None:
    """As a notebook that an owner posted on linux-acpi (June 2019): 96 °C, and one trip point, critical, at 99."""
    thermal = {"type": "acpitz\n", "temp": "96000\n", "trip_point_0_temp": "99000\n", "trip_point_0_type": "critical\n"}
    counts = {f"/sys/devices/system/cpu/cpu{core}/thermal_throttle/core_throttle_count": "6\n" for core in range(2)}
    found = examined(tmp_path, {**counts, **{f"/sys/class/thermal/thermal_zone0/{name}": text for name, text in thermal.items()}})
    assert found["temperature"].verdict == "warning"
    assert found["temperature"].how.startswith("96 °C (acpitz); the kernel does not say where clocks are lowered, off at 99 °C")
    assert found["temperature"].how.endswith("what lowered clocks since the start: heat 12 times")


def test_a_sensor_that_is_switched_off_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Tegra's gpu-thermal answers EAGAIN while its GPU is switched off, of which Python's buffered files make a TypeError."""
    host, real = host_of(tmp_path, ORIN), os.read

    def read(handle: int, size: int) -> bytes:
        if os.readlink(f"/proc/self/fd/{handle}").endswith("thermal_zone1/temp"):
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return real(handle, size)

    monkeypatch.setattr(os, "read", read)
    assert host.read("/sys/class/thermal/thermal_zone1/temp") is None
    assert describe_machine(host)["hottest_c"] == 51.8


@pytest.mark.parametrize("version", ["#1 SMP PREEMPT_RT Tue Jan 13 01:23:45 UTC 2026", "#1 SMP PREEMPT RT Fri Oct 1"])
def test_a_real_time_kernel_is_recognised(tmp_path: Path, version: str) -> None:
    """Newer ones say PREEMPT_RT, older ones PREEMPT RT."""
    found = examined(tmp_path, {**ORIN, "/proc/sys/kernel/version": version, "/proc/sys/kernel/osrelease": "5.15.136-rt-tegra"})
    assert found["kernel"].how == "5.15.136-rt-tegra, PREEMPT_RT"


def test_memory_is_what_is_available(tmp_path: Path) -> None:
    """Not what is installed, and not what is free of caches."""
    found = examined(tmp_path, {**ORIN, "/proc/meminfo": "MemTotal: 7802024 kB\nMemFree: 90000 kB\nMemAvailable: 700000 kB\n"})["memory"]
    assert found.verdict == "warning"
    assert found.how == "0.7 of 8.0 GB free: a robot's process takes up to 1; end what is not needed"


def test_what_the_kernel_refuses_a_control_loop_is_named_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop's own words, from a process that may neither: nobody's, with 64 KiB to lock."""
    code = (
        "import json, os, resource\nfrom runtime.real_time import RealTime, take_real_time\n"
        "resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536)); resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))\n"
        "if os.getuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "print(json.dumps(take_real_time(RealTime())))"
    )
    refused = json.loads(run_python("-c", code, timeout_s=60).stdout)
    assert len(refused) == 2
    monkeypatch.setattr(doctor_machine, "_refused", lambda: refused)
    found = examined(tmp_path, PC)
    for what, line in (("real-time priority", '"$USER - rtprio 90"'), ("locked memory", '"$USER - memlock unlimited"')):
        assert found[what].verdict == "missing"
        assert found[what].how.startswith("refused: ")
        assert what not in found[what].how
        assert line in found[what].fix


def test_real_time_is_really_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own, which answers here too; what is refused is what the loop would be refused."""
    monkeypatch.undo()
    said = doctor_machine._refused()
    assert not any("died" in line for line in said)
    assert {finding.what for finding in doctor_machine._real_time()} == {"real-time priority", "locked memory"}
    assert sum(finding.verdict == "missing" for finding in doctor_machine._real_time()) == len(said)


def test_a_machine_that_shows_nothing_is_no_error(tmp_path: Path) -> None:
    """No file, no tool: as in a container, or on another system."""
    found = examined(tmp_path, {})
    assert found["temperature"].how == "not told by this kernel"
    assert {"processor", "kernel", "free disk here"} <= set(found)
    assert not {"Jetson", "clocks", "memory"} & set(found)


@pytest.mark.parametrize("content", ["", "no number", "MemTotal: much kB\npmode:\n< POWER_MODEL ID= NAME= >", "-1", "9" * 40, "\xff\x00"])
def test_no_content_of_a_file_stops_the_doctor(tmp_path: Path, content: str) -> None:
    """Each file in turn says something else than it should; then a folder is in its place."""
    one_core = {name: text for name, text in ORIN.items() if "/cpu0/" in name or "/cpu/" not in name}
    files = {**one_core, "/sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "0"}
    host = host_of(tmp_path, files, {("nvpmodel", "-q"): content, **dict.fromkeys(ORIN_TOOLS, content)})
    for path, text in files.items():
        place = tmp_path / path.lstrip("/")
        if text.startswith("-> "):
            continue
        place.write_bytes(content.encode("latin-1"))
        assert examine_machine(host)
        place.unlink()
        if not content:
            place.mkdir()
            assert examine_machine(host)
            place.rmdir()
        place.write_text(text)


def test_this_machine_is_read_too() -> None:
    """The same from the real root."""
    assert {"processor", "temperature", "memory", "kernel"} <= {finding.what for finding in examine_machine(Host())}
