"""What the doctor says of backends: what each can really do here, found out by using it in a process of its own.

What a library lists and what it can do are two things: onnxruntime-gpu lists providers whose libraries are absent, TensorRT imports without a driver. So

    onnxruntime CPU, …   a session of a tiny network on that provider alone, run, its answer compared with numpy's
    TensorRT, RTX        an engine of that network, built and run; TensorRT-RTX builds for other GPUs where there is none
    cuda-bindings        asked how many GPUs there are: cuda-python's part that moves pictures to a GPU and actions back
    GPU                  asked by its driver's own library, which needs no package

A process may crash or hang, and that is an answer too. Without a GPU what only serves one is not missing: one line says that there is none.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import re
import signal
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.finding import Finding, Verdict
from benchmarks.host import Host, run_python
from benchmarks.jetson import jetson_release

__all__ = ["Answer", "ask", "examine_backends"]

TIMEOUT_S = 180.0
"""TensorRT's provider builds an engine when its session is made."""
OF_NVIDIA = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "NvTensorRTRTXExecutionProvider")
"""Providers that need a GPU of NVIDIA's."""
NOT_LOCAL = ("AzureExecutionProvider",)
"""In every build for the processor; it asks servers, and never runs a network here."""
BUILDS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-qnn")
"""Packages that install into one and the same folder."""
BUILT_FOR = "SM86"
"""For the trial of TensorRT-RTX without a GPU: Ampere, which all of its versions know."""
_PCI_NVIDIA, _PCI_DISPLAY = "0x10de", "0x03"


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a backend did in its own process."""

    works: bool
    said: str
    """What it can do, or why it cannot."""
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


def ask(probe: str, *arguments: str, timeout_s: float = TIMEOUT_S) -> Answer:
    """Run one of `benchmarks.backend_probes` in a process of its own.

    Args:
        probe: Its name.
        arguments: What it takes.
        timeout_s: When to give it up.
    """
    try:
        done = run_python("-m", "benchmarks.backend_probes", probe, *arguments, timeout_s=timeout_s)
    except subprocess.TimeoutExpired:
        return Answer(False, f"no answer within {timeout_s:g} s")
    except OSError as error:
        return Answer(False, f"no process for it ({error.strerror})")
    absent = re.search(r"([\w.+-]+\.so[\w.]*): cannot open shared object file", done.stderr)
    try:
        facts = json.loads(done.stdout.strip().splitlines()[-1])
        works, said = bool(facts.pop("works")), str(facts.pop("said"))
    except (ValueError, IndexError, KeyError, AttributeError):
        works, facts = False, {}
        said = f"its process died ({signal.strsignal(-done.returncode) if done.returncode < 0 else f'exit code {done.returncode}'})"
    if not works and absent and absent[1] not in said:
        said = f"without {absent[1]}"
    return Answer(works, said, facts)


def examine_backends(host: Host | None = None, asked: Callable[..., Answer] = ask) -> list[Finding]:
    """Every backend that is installed, and what is missing of those that could serve here.

    Args:
        host: Where facts about the machine are read; None for this one.
        asked: Asks a backend; `ask`.
    """
    host = host or Host()
    gpu = asked("gpu")
    findings, others = _onnxruntime_findings(asked)
    for_gpu = [provider for provider in others if provider in OF_NVIDIA]
    libraries = [name for name in ("tensorrt", "tensorrt_rtx") if _installed(name)]
    bindings = _installed("cuda.bindings")
    findings += [_found(asked("onnxruntime", name), f"onnxruntime {_short(name)}") for name in others if name not in OF_NVIDIA]
    if not gpu.works:
        idle = [f"onnxruntime's {_short(provider)}" for provider in for_gpu]
        idle += ["TensorRT"] * ("tensorrt" in libraries) + ["cuda-bindings"] * bindings
        if "tensorrt_rtx" in libraries:
            for_others = f" for other GPUs (actlet engine --for {BUILT_FOR}); there is none here to run them"
            findings.append(_found(asked("tensorrt", "tensorrt_rtx", BUILT_FOR), "TensorRT-RTX", for_others))
        return [_without_gpu(host, gpu, idle), *findings]
    findings.insert(0, _said("ok", "GPU", gpu.said))
    findings += [_found(asked("onnxruntime", name), f"onnxruntime {_short(name)}") for name in for_gpu] or [_missing_provider(host)]
    named = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
    cuda_major = gpu.facts.get("cuda_major", 13)
    findings += [_found(asked("tensorrt", name), named[name]) for name in libraries] or [_missing_tensorrt(host, cuda_major)]
    if bindings:
        return [*findings, _found(asked("cuda-bindings"), "cuda-bindings")]
    how = "not installed: without it engines cannot run (--backend tensorrt)"
    return [*findings, _said("missing", "cuda-bindings", how, f"pip install 'cuda-bindings=={cuda_major}.*'")]


def _found(answer: Answer, what: str, more: str = "") -> Finding:
    """Of something that is installed."""
    return (
        _said("ok", what, answer.said + more) if answer.works else _said("warning", what, f"is installed, and does not work: {answer.said}")
    )


def _said(verdict: Verdict, what: str, how: str, fix: str = "") -> Finding:
    return Finding(verdict, what, how, fix, group="backends")


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # The package that it should lie in is not there.
        return False


def _short(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider")


def _onnxruntime_findings(asked: Callable[..., Answer]) -> tuple[list[Finding], list[str]]:
    """What is said of ONNX Runtime on the processor, and the other providers that it lists."""
    if not _installed("onnxruntime"):
        return [], []  # The extra [runtime] is said to be missing.
    findings = []
    builds = [name for name in BUILDS if _version(name)]
    if len(builds) > 1:
        how = f"{' and '.join(builds)} lie in one folder: what runs is what was installed last"
        findings.append(_said("warning", "onnxruntime", how, f"pip uninstall -y {' '.join(builds)} && pip install {builds[-1]}"))
    found = asked("onnxruntime", "CPUExecutionProvider")
    if found.works:
        findings.append(_said("ok", "onnxruntime CPU", found.said))
    else:
        again = f"pip install --force-reinstall {builds[-1] if builds else 'onnxruntime'}"
        findings.append(_said("problem", "onnxruntime CPU", f"does not run a network: {found.said}", again))
    others = [name for name in found.facts.get("providers", []) if name != "CPUExecutionProvider" and name not in NOT_LOCAL]
    return findings, others


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _without_gpu(host: Host, gpu: Answer, idle: Sequence[str]) -> Finding:
    waiting = f"; installed, with nothing to run on: {', '.join(idle)}" if idle else ""
    if jetson_release(host) is not None:
        fix = 'sudo usermod -aG video,render "$USER"   # then log in again; who is in neither group may not use it'
        return _said("warning", "GPU", f"does not answer ({gpu.said}): bundles run on the processor{waiting}", fix)
    devices = host.find("/sys/bus/pci/devices/*")
    if any(host.read(f"{d}/vendor") == _PCI_NVIDIA and (host.read(f"{d}/class") or "").startswith(_PCI_DISPLAY) for d in devices):
        return _said(
            "warning", "GPU", f"one of NVIDIA's is there and does not answer ({gpu.said}): install its driver{waiting}", "nvidia-smi"
        )
    return _said("ok", "GPU", f"none of NVIDIA's: bundles run on the processor{waiting}")


def _missing_provider(host: Host) -> Finding:
    if jetson_release(host) is not None:
        return _said(
            "missing", "onnxruntime CUDA", "this build is for the processor alone; NVIDIA's index of packages for Jetson has one with CUDA"
        )
    return _said(
        "missing",
        "onnxruntime CUDA",
        "this build is for the processor alone",
        "pip uninstall -y onnxruntime && pip install onnxruntime-gpu",
    )


def _missing_tensorrt(host: Host, cuda_major: int) -> Finding:
    if jetson_release(host) is None:
        return _said(
            "missing",
            "TensorRT",
            "not installed",
            f"pip install tensorrt-cu{cuda_major}   # on GeForce RTX also: pip install 'actlet[rtx]'",
        )
    if host.find("/usr/lib/python3*/dist-packages/tensorrt"):
        how = "JetPack's is there, but this environment does not see the system's packages"
        return _said("missing", "TensorRT", how, "python3 -m venv --system-site-packages ~/actlet   # and install actlet there")
    return _said("missing", "TensorRT", "not installed; it comes with JetPack", "sudo apt-get install nvidia-jetpack")
