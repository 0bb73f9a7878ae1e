"""export.tensorrt_engine: every shipped kind of graph is built by TensorRT-RTX on this machine, and what is called is there in every TensorRT.

No GPU is needed: TensorRT-RTX builds for others. The names of TensorRT 8.6 to 11 in `data/tensorrt_names.json` are those of NVIDIA's own bindings
(wheels of PyPI, loaded beside stubs of the libraries that they link to), so a call of what one of them lacks fails here.
"""

from __future__ import annotations

import enum
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actlet.command_line import main
from actlet.errors import BundleError, CallerError, MissingLibraryError
from actlet.storage import read_json
from export import tensorrt_engine
from export.tensorrt_engine import EngineOptions, build_engine, engine_of, serialize_engine
from quantize.frames import Frames, frames_of_golden
from quantize.quantize_bundle import quantize_bundle
from quantize.schemes import scheme
from runtime.bundle import load_bundle
from runtime.tensorrt_library import load_library


@pytest.fixture(autouse=True)
def _engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not among the user's own."""
    monkeypatch.setenv("ACTLET_ENGINES", str(tmp_path / "engines"))


NAMES: dict[str, dict[str, list[str]]] = json.loads((Path(__file__).parent / "data" / "tensorrt_names.json").read_text())


class Strict:
    """An object of a library: has the attributes that the bindings name, answers as it is told, and remembers what was asked."""

    def __init__(self, names: list[str], **answers: Any) -> None:
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "answers", answers)
        object.__setattr__(self, "asked", {})

    def __getattr__(self, name: str) -> Any:
        if name not in self.names:
            raise AttributeError(name)
        answer = self.answers.get(name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            self.asked.setdefault(name, []).append(arguments)
            return answer(*arguments, **keywords) if inspect.isfunction(answer) else answer

        return answer if name.startswith("num_") else call

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.names:
            raise AttributeError(name)
        self.asked[name] = value


class Library:
    """A TensorRT that has what one version of the bindings names, and nothing else."""

    def __init__(self, version: str, *, parses: bool = True, plan: bytes | None = b"plan") -> None:
        names = NAMES[version]
        self.__name__, self.__version__ = version.split()
        for kind in (
            "NetworkDefinitionCreationFlag",
            "BuilderFlag",
            "MemoryPoolType",
            "DeviceType",
            "ComputeCapability",
            "LayerInformationFormat",
        ):
            if kind in names:
                setattr(self, kind, enum.IntEnum(kind, names[kind], start=0))

        class ILogger:
            Severity = enum.IntEnum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"], start=0)

        self.ILogger = ILogger
        if "IProgressMonitor" in names:
            self.IProgressMonitor = type("IProgressMonitor", (), {})
        error = Strict(names["ParserError"], desc="no such thing", node_name="head", node_operator="Conv")
        self.parser = Strict(names["OnnxParser"], parse=parses, num_errors=1, get_error=error)
        cache = Strict(names["ITimingCache"], serialize=b"timed")
        self.config = Strict(names["IBuilderConfig"], create_timing_cache=cache, set_timing_cache=True)

        def build(network: Any, config: Any) -> bytes | None:
            self.logger.log(ILogger.Severity.ERROR, "out of memory")
            self.logger.log(ILogger.Severity.INFO, "chatter")
            return plan

        self.builder = Strict(names["Builder"], create_builder_config=self.config, build_serialized_network=build)

    def Builder(self, logger: Any) -> Strict:
        self.logger = logger
        return self.builder

    def OnnxParser(self, network: Any, logger: Any) -> Strict:
        return self.parser


TENSORRT = [version for version in NAMES if version.startswith("tensorrt ")]


@pytest.mark.parametrize("version", NAMES)
def test_every_call_is_there(version: str, tmp_path: Path) -> None:
    """With all options that a library of the kind has; types are strong wherever they can be, and in 8.6 by flags."""
    trt, rtx = Library(version), version.startswith("tensorrt_rtx")
    options = EngineOptions(workspace_mb=64, level=4, dla_core=None if rtx else 0, targets=("SM86", "SM89") if rtx else ())
    plan = serialize_engine(trt, b"network", options, precision="int8", timing_cache=tmp_path / "timing.cache", progress=True)
    assert plan == b"plan"
    assert (tmp_path / "timing.cache").read_bytes() == b"timed"
    known, ((flags,),) = trt.NetworkDefinitionCreationFlag, trt.builder.asked["create_network"]
    typed = getattr(known, "STRONGLY_TYPED", None)
    assert (typed is None) == (version == "tensorrt 8.6.1")
    if typed is None:
        assert trt.config.asked["set_flag"] == [
            (trt.BuilderFlag.INT8,),
            (trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS,),
            (trt.BuilderFlag.GPU_FALLBACK,),
        ]
    else:
        assert flags & 1 << typed
        assert trt.config.asked.get("set_flag", []) == ([] if rtx else [(trt.BuilderFlag.GPU_FALLBACK,)])
    assert trt.config.asked["set_memory_pool_limit"] == [(trt.MemoryPoolType.WORKSPACE, 64 << 20)]
    assert trt.config.asked["builder_optimization_level"] == 4
    assert ("set_builder_config" in trt.parser.asked) == (version.split()[1] in ("11.4.0.106", "1.7.1.116"))
    if hasattr(trt, "IProgressMonitor"):
        monitor = trt.config.asked["progress_monitor"]
        monitor.phase_start("building", None, 3)
        assert monitor.step_complete("building", 0) is True
        monitor.phase_finish("building")


@pytest.mark.parametrize("version", NAMES)
def test_what_the_library_says_is_said(version: str) -> None:
    """A network that it cannot read, and one that it cannot build; its chatter is left out."""
    with pytest.raises(BundleError, match=r"policy\.onnx: tensorrt\w* [\d.]+ cannot read it: .*no such thing"):
        serialize_engine(Library(version, parses=False), b"network")
    with pytest.raises(BundleError, match=r"cannot build it: out of memory\. Give it more memory \(--workspace-mb\)"):
        serialize_engine(Library(version, plan=None), b"network")


@pytest.mark.parametrize("version", TENSORRT)
def test_only_rtx_builds_for_other_gpus(version: str) -> None:
    """TensorRT builds where it is; 8.6 has no flag for 8-bit floats that obeys."""
    with pytest.raises(CallerError, match="builds for the GPU of this machine alone"):
        serialize_engine(Library(version), b"network", EngineOptions(targets=("SM86",)))
    if version == "tensorrt 8.6.1":
        with pytest.raises(CallerError, match="is not strongly typed and has no flag for it"):
            serialize_engine(Library(version), b"network", precision="int4")


@pytest.mark.parametrize(
    ("options", "message"), [({"workspace_mb": 0}, "workspace 0 MB"), ({"level": 6}, "level 6"), ({"level": -1}, "level -1")]
)
def test_options_have_bounds(options: dict[str, int], message: str) -> None:
    """Said before anything is loaded."""
    with pytest.raises(CallerError, match=message):
        EngineOptions(**options)


@pytest.fixture(scope="module")
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx")


@pytest.fixture
def frames(tiny_float_bundle: Path) -> Frames:
    return frames_of_golden(load_bundle(tiny_float_bundle).golden)


KINDS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "float32": ({}, ("SM86", "SM89")),
    "float16": ({}, ("SM86", "SM89")),
    "int8": ({"dialect": "portable"}, ("SM86", "SM89")),
    "int4": ({"dialect": "portable", "block": 32}, ("SM86", "SM89")),
    "float8": ({}, ("SM89",)),
}


@pytest.mark.trt
@pytest.mark.parametrize("precision", KINDS)
def test_every_kind_of_graph_is_built(rtx: Any, tiny_float_bundle: Path, frames: Frames, tmp_path: Path, precision: str) -> None:
    """By TensorRT-RTX itself, for GPUs that this machine does not have; a second time it is there."""
    settings, targets = KINDS[precision]
    bundle = tiny_float_bundle
    if precision != "float32":
        bundle = tmp_path / precision
        quantize_bundle(tiny_float_bundle, bundle, scheme=scheme(precision, **settings), frames=(frames, frames), allow_slower=True)
    else:
        bundle = tmp_path / "float32"
        _copy(tiny_float_bundle, bundle)
    built = build_engine(bundle, EngineOptions(targets=targets), trt=rtx)
    assert built.is_new
    assert built.path.stat().st_size > 1000
    about = read_json(built.path.with_suffix(".json"))
    assert about["bundle"] == load_bundle(bundle).hash
    assert (about["library"], about["version"], about["device"]) == ("tensorrt_rtx", rtx.__version__, f"for {' '.join(targets)}")
    assert not build_engine(bundle, EngineOptions(targets=targets), trt=rtx).is_new
    built.path.write_bytes(b"half")
    assert build_engine(bundle, EngineOptions(targets=targets), trt=rtx).is_new
    load_bundle(bundle)  # Nothing was put into its folder.


def _copy(source: Path, target: Path) -> None:
    target.mkdir()
    for path in source.iterdir():
        if path.is_file():
            (target / path.name).write_bytes(path.read_bytes())


@pytest.mark.trt
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_polygraphy_finds_nothing_that_is_not_supported(
    rtx: Any, tiny_float_bundle: Path, frames: Frames, tmp_path: Path, precision: str
) -> None:
    """NVIDIA's own check of a network's operators."""
    pytest.importorskip("polygraphy")
    network = tiny_float_bundle / "policy.onnx"
    if precision == "int8":
        quantize_bundle(
            tiny_float_bundle, tmp_path / "q", scheme=scheme("int8", dialect="portable"), frames=(frames, frames), allow_slower=True
        )
        network = tmp_path / "q" / "policy.onnx"
    code = "import sys; from polygraphy.tools import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "inspect", "capability", str(network), "-o", str(tmp_path / "parts")],
        env={**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Graph is fully supported by TensorRT" in done.stdout


@pytest.mark.trt
def test_what_tensorrt_does_not_read_is_refused(rtx: Any, tiny_float_bundle: Path, frames: Frames, tmp_path: Path) -> None:
    """By the manifest, before it is tried; and by the library itself, with its words."""
    quantize_bundle(tiny_float_bundle, tmp_path / "int8", scheme=scheme("int8"), frames=(frames, frames), allow_slower=True)
    with pytest.raises(BundleError, match=r"int8, made for \['onnxruntime'\]: TensorRT does not read it.*--dialect portable"):
        build_engine(tmp_path / "int8", EngineOptions(targets=("SM86",)), trt=rtx)
    network = load_bundle(tmp_path / "int8").read("policy.onnx")
    with pytest.raises(BundleError, match=r"tensorrt_rtx [\d.]+ cannot read it: .*QLinearConv"):
        serialize_engine(rtx, network, EngineOptions(targets=("SM86",)))
    with pytest.raises(CallerError, match=r"engine for 'SM1': tensorrt_rtx .* knows \['SM120'"):
        serialize_engine(rtx, (tiny_float_bundle / "policy.onnx").read_bytes(), EngineOptions(targets=("SM1",)))


def test_another_device_version_or_bundle_is_another_key(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so are other options: an engine is of all of them."""
    bundle, keys = load_bundle(tiny_bundle), set()
    for device in ("Orin, 540.4", "Orin, 540.5"):
        monkeypatch.setattr(tensorrt_engine, "device", lambda device=device: device)
        for version in ("tensorrt 10.3.0", "tensorrt 10.13.0.35"):
            for options in (EngineOptions(), EngineOptions(level=5)):
                keys.add(engine_of(bundle, Library(version), options)[0])
    assert len(keys) == 8


def test_a_machine_without_a_gpu_says_what_to_do(tiny_float_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU; no library; and what to run instead."""
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(MissingLibraryError, match="no NVIDIA GPU is found here"):
        build_engine(tiny_float_bundle, trt=Library("tensorrt 10.3.0"))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingLibraryError, match=r"TensorRT is not installed here \(tensorrt: .*pip install tensorrt"):
        load_library()
    with pytest.raises(CallerError, match="library 'cudnn'"):
        load_library("cudnn")


@pytest.mark.trt
def test_the_verb_builds_and_says_where(rtx: Any, tiny_float_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second time it was there; an unknown GPU is exit code 2."""
    _copy(tiny_float_bundle, tmp_path / "b")
    arguments = ["engine", str(tmp_path / "b"), "--library", "tensorrt_rtx", "--for", "SM86"]
    assert main(arguments) == 0
    assert "built: " in capsys.readouterr().out
    assert main(arguments) == 0
    assert "was there: " in capsys.readouterr().out
    assert main([*arguments[:-1], "SM1"]) == 2
    assert np.size(list((tmp_path / "engines").glob("*/*.engine"))) == 1
