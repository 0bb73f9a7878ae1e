"""What the doctor says of backends: real ones where they install, and answers of others for machines that are not at hand."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from recorded_machines import ORIN, ORIN_TOOLS, PC, host_of

from benchmarks import doctor_backends
from benchmarks.backend_probes import tiny_network
from benchmarks.doctor_backends import Answer, ask, examine_backends
from benchmarks.finding import Finding
from runtime.network_check import check_network
from runtime.ort_backend import GPU_PROVIDERS, OrtModel

CPU = Answer(True, "1.31.1 runs a network", {"providers": ["AzureExecutionProvider", "CPUExecutionProvider"]})
NO_DRIVER = Answer(False, "libcuda.so.1: cannot open shared object file: No such file or directory")
H100 = Answer(True, "NVIDIA H100 (compute capability 9.0), its driver knows CUDA 13.0", {"cuda_major": 13})


def answering(**answers: Answer) -> Callable[..., Answer]:
    """Backends that answer so, by the name of the probe or of what it is asked about."""
    known = {"gpu": NO_DRIVER, "CPUExecutionProvider": CPU, **answers}

    def asked(probe: str, *arguments: str) -> Answer:
        return known[arguments[0] if arguments else probe.replace("-", "_")]

    return asked


def named(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.what: finding for finding in findings}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`installed("onnxruntime", ...)`: these packages are, and no others."""
    return lambda *names: monkeypatch.setattr(doctor_backends, "_installed", lambda name: name in names)


def test_the_tiny_network_is_one() -> None:
    """By onnx's own checker, by ours, and by its answer."""
    onnx.checker.check_model(onnx.load_model_from_string(tiny_network()), full_check=True)
    check_network(tiny_network(), "tiny")
    x = np.array([[1, -2, 3, 0.5]], np.float32)
    assert np.array_equal(OrtModel(tiny_network()).run({"x": x})["y"], x @ np.arange(16, dtype=np.float32).reshape(4, 4))


def test_the_processors_provider_runs_a_network() -> None:
    """In a process of its own, with the providers that this build lists."""
    found = ask("onnxruntime", "CPUExecutionProvider")
    assert found.works
    assert found.said.endswith("runs a network")
    assert "CPUExecutionProvider" in found.facts["providers"]


def test_providers_of_a_gpu_are_the_runtimes() -> None:
    """The doctor must not import ONNX Runtime to know them."""
    assert set(doctor_backends.OF_NVIDIA) == set(GPU_PROVIDERS)


def test_a_listed_provider_that_cannot_run_is_found_out() -> None:
    """onnxruntime lists Azure's provider, which runs nothing here: no session falls back to the processor in its place."""
    found = ask("onnxruntime", "AzureExecutionProvider")
    assert "AzureExecutionProvider" in found.facts["providers"]
    assert not found.works


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os.abort()", "its process died (Aborted)"),
        ("import time; time.sleep(600)", "no answer within 5 s"),
        ("raise SystemExit(7)", "its process died (exit code 7)"),
        ("raise OSError('libnvinfer.so.10: cannot open shared object file: No such file or directory')", "libnvinfer.so.10"),
    ],
)
def test_a_backend_that_crashes_or_hangs_is_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, said: str) -> None:
    """The doctor lives on, with what became of it."""
    (tmp_path / "tensorrt.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    found = ask("tensorrt", "tensorrt", timeout_s=5 if "sleep" in code else 60)
    assert not found.works
    assert said in found.said


@pytest.mark.trt
def test_tensorrt_rtx_builds_where_there_is_no_gpu() -> None:
    """An engine for Ampere, really built."""
    pytest.importorskip("tensorrt_rtx")
    found = ask("tensorrt", "tensorrt_rtx", "SM86")
    assert found.works
    assert found.said.endswith("builds engines")


@pytest.mark.gpu
def test_a_gpu_answers_its_drivers_own_library() -> None:
    """With the name that nvidia-smi says."""
    found = ask("gpu")
    if not found.works:
        pytest.skip(f"no GPU answers ({found.said})")
    said = subprocess.run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, check=True)
    assert said.stdout.splitlines()[0].strip() in found.said


def test_this_machines_backends_are_examined() -> None:
    """The real ones: the processor's works, and nothing is a problem."""
    findings = examine_backends()
    assert named(findings)["onnxruntime CPU"].verdict == "ok"
    assert {finding.group for finding in findings} == {"backends"}
    assert "problem" not in {finding.verdict for finding in findings}


def test_without_a_gpu_one_line_says_so(tmp_path: Path, installed: Callable[..., None]) -> None:
    """Nothing that only serves a GPU is missing, and what is installed for one is named."""
    installed("onnxruntime")
    assert [str(finding.lines()[0]) for finding in examine_backends(host_of(tmp_path, PC), answering())] == [
        "ok       GPU                    none of NVIDIA's: bundles run on the processor",
        "ok       onnxruntime CPU        1.31.1 runs a network",
    ]
    installed("onnxruntime", "tensorrt", "cuda.bindings")
    listed = Answer(True, "", {"providers": ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]})
    found = named(examine_backends(host_of(tmp_path, {}), answering(CPUExecutionProvider=listed)))
    assert set(found) == {"GPU", "onnxruntime CPU"}
    assert found["GPU"].how.endswith("nothing to run on: onnxruntime's Tensorrt, onnxruntime's CUDA, TensorRT, cuda-bindings")


def test_tensorrt_rtx_serves_other_gpus_without_one(tmp_path: Path, installed: Callable[..., None]) -> None:
    """It is asked to build for one."""
    installed("tensorrt_rtx")
    found = named(examine_backends(host_of(tmp_path, PC), answering(tensorrt_rtx=Answer(True, "1.7.1 builds engines"))))
    assert found["TensorRT-RTX"].how == "1.7.1 builds engines for other GPUs (actlet engine --for SM86); there is none here to run them"


def test_a_gpu_that_does_not_answer_is_a_warning(tmp_path: Path, installed: Callable[..., None]) -> None:
    """On the bus of a PC, and on every Jetson; a network card of NVIDIA's is none."""
    installed()
    card = {"/sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n", "/sys/bus/pci/devices/0000:01:00.0/class": "0x030200\n"}
    network = {"/sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n", "/sys/bus/pci/devices/0000:01:00.0/class": "0x020000\n"}
    for name, files, verdict, said in (
        ("pc", card, "warning", "does not answer (libcuda.so.1"),
        ("orin", ORIN, "warning", "does not answer (libcuda.so.1"),
        ("network", network, "ok", "none of NVIDIA's"),
    ):
        found = named(examine_backends(host_of(tmp_path / name, files), answering()))["GPU"]
        assert (found.verdict, said in found.how) == (verdict, True)
    denied = Answer(False, "cuInit: CUDA_ERROR_NOT_SUPPORTED (801)")
    found = named(examine_backends(host_of(tmp_path / "denied", ORIN), answering(gpu=denied)))["GPU"]
    assert "CUDA_ERROR_NOT_SUPPORTED (801)" in found.how
    assert found.fix.startswith("sudo usermod -aG video,render")


def test_with_a_gpu_what_could_serve_it_is_missing_with_its_line(tmp_path: Path, installed: Callable[..., None]) -> None:
    """For the CUDA that the driver knows."""
    installed("onnxruntime")
    found = named(examine_backends(host_of(tmp_path, PC), answering(gpu=H100)))
    assert found["GPU"].verdict == "ok"
    assert {what for what, finding in found.items() if finding.verdict == "missing"} == {"onnxruntime CUDA", "TensorRT", "cuda-bindings"}
    assert found["TensorRT"].fix.startswith("pip install tensorrt-cu13 ")
    assert found["cuda-bindings"].fix == "pip install 'cuda-bindings==13.*'"
    assert found["onnxruntime CUDA"].fix == "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"


def test_on_a_jetson_tensorrt_comes_from_jetpack(tmp_path: Path, installed: Callable[..., None]) -> None:
    """It is there and not seen, or JetPack brings it; nothing of the public registry is offered in its place."""
    installed("onnxruntime")
    orin = answering(gpu=Answer(True, "Orin (compute capability 8.7), its driver knows CUDA 12.6", {"cuda_major": 12}))
    found = named(examine_backends(host_of(tmp_path / "bare", ORIN, ORIN_TOOLS), orin))
    assert found["TensorRT"].fix == "sudo apt-get install nvidia-jetpack"
    assert found["onnxruntime CUDA"].fix == ""
    assert found["cuda-bindings"].fix == "pip install 'cuda-bindings==12.*'"
    there = {**ORIN, "/usr/lib/python3.10/dist-packages/tensorrt/__init__.py": ""}
    found = named(examine_backends(host_of(tmp_path / "there", there, ORIN_TOOLS), orin))
    assert "does not see the system's packages" in found["TensorRT"].how
    assert found["TensorRT"].fix.startswith("python3 -m venv --system-site-packages")


def test_with_a_gpu_everything_installed_is_used(tmp_path: Path, installed: Callable[..., None]) -> None:
    """What works is ok, and what is listed and does not run says why."""
    installed("onnxruntime", "tensorrt", "cuda.bindings")
    asked = answering(
        gpu=H100,
        CPUExecutionProvider=Answer(
            True, "runs", {"providers": ["CUDAExecutionProvider", "OpenVINOExecutionProvider", "CPUExecutionProvider"]}
        ),
        CUDAExecutionProvider=Answer(False, "without libcublasLt.so.13"),
        OpenVINOExecutionProvider=Answer(True, "1.24.1 runs a network"),
        tensorrt=Answer(True, "10.13.3 builds and runs engines"),
        cuda_bindings=Answer(True, "13.5.0 reaches 1 GPU"),
    )
    found = named(examine_backends(host_of(tmp_path, PC), asked))
    assert found["onnxruntime CUDA"] == Finding(
        "warning", "onnxruntime CUDA", "is installed, and does not work: without libcublasLt.so.13", group="backends"
    )
    assert {found[what].verdict for what in ("onnxruntime OpenVINO", "TensorRT", "cuda-bindings", "GPU")} == {"ok"}


def test_an_onnxruntime_that_runs_nothing_is_a_problem(tmp_path: Path, installed: Callable[..., None]) -> None:
    """Bundles need it."""
    installed("onnxruntime")
    broken = answering(CPUExecutionProvider=Answer(False, "its process died (Illegal instruction)"))
    found = named(examine_backends(host_of(tmp_path, PC), broken))["onnxruntime CPU"]
    assert found.verdict == "problem"
    assert found.fix.startswith("pip install --force-reinstall onnxruntime")


def test_two_builds_in_one_folder_are_told_apart(tmp_path: Path, installed: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime and onnxruntime-gpu install over each other."""
    installed("onnxruntime")
    monkeypatch.setattr(doctor_backends, "_version", lambda package: "1.31.1" if package in ("onnxruntime", "onnxruntime-gpu") else None)
    found = named(examine_backends(host_of(tmp_path, PC), answering()))["onnxruntime"]
    assert found.verdict == "warning"
    assert found.fix == "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"


def test_looking_at_backends_imports_none_of_them() -> None:
    """They are used in other processes."""
    code = (
        "import sys; from benchmarks.doctor_backends import examine_backends; examine_backends(); "
        "print(sorted({'onnxruntime', 'tensorrt', 'tensorrt_rtx', 'cuda', 'onnx', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
