"""A bundle's policy.onnx as a TensorRT engine, built on the device that will run it; the verb `engine`.

TensorRT 8.6, 10, 11 and TensorRT-RTX differ in what their API has, not in how it is used, so what is there is asked for, never a version:

    create_network      strongly typed where it can be, so that precision is what the graph says (QDQ int8, float16, float8); 8.6 cannot,
                        and gets the precision's flag and the order to obey the graph
    configuration       workspace, builder level, DLA, timing cache, progress: each where the configuration has it, else an error that says so
    compute capability  TensorRT-RTX alone: an engine for other GPUs than this one, or on a machine without any

Engines belong to the device, not to the bundle, and lie in a folder of this user (`runtime.tensorrt_library`), from where `actlet run --backend tensorrt`
takes them. One that is there for the same device, driver, library, bundle and options is not built again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from actlet.errors import BundleError, CallerError
from actlet.storage import write_bytes
from runtime.bundle import Bundle, load_bundle
from runtime.network_check import check_network
from runtime.signature import keys_to_trust, require_signature
from runtime.tensorrt_library import LIBRARIES, Said, device, engine_key, engines_folder, is_whole, load_library, save_engine

__all__ = ["BuiltEngine", "EngineOptions", "add_arguments", "build_engine", "engine_of", "run", "serialize_engine"]

_PRECISION_FLAGS = {"float16": ("FP16",), "int8": ("INT8",), "float8": ("FP8",), "float32": ()}  # For a library that is not strongly typed.


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How an engine is built."""

    workspace_mb: int | None = None
    """Memory for intermediate results of one layer; None for what the library takes."""
    level: int | None = None
    """Effort, 0 .. 5: higher takes longer to build and may run faster. None for the library's own (3)."""
    dla_core: int | None = None
    """A Jetson's deep-learning accelerator, with the GPU for what it cannot do; None for the GPU alone."""
    targets: tuple[str, ...] = ()
    """GPUs to build for, such as "SM86", where the library can build for others; () for this machine's."""

    def __post_init__(self) -> None:
        if (self.workspace_mb is not None and self.workspace_mb < 1) or (self.level is not None and not 0 <= self.level <= 5):
            raise CallerError(f"engine: workspace {self.workspace_mb} MB, level {self.level}: expected at least 1, and 0 .. 5.")


@dataclasses.dataclass(frozen=True)
class BuiltEngine:
    """Where an engine lies, and what it was built from."""

    path: Path
    key: str
    built_from: dict[str, Any]
    is_new: bool
    """False where it lay there already."""
    layers: list[dict[str, str]] | None
    """Name and precision of what runs, as the library's inspector says; None where no GPU can open the engine."""


def serialize_engine(
    trt: Any,
    network: bytes,
    options: EngineOptions | None = None,
    *,
    precision: str = "float32",
    timing_cache: Path | None = None,
    progress: bool = False,
    where: str = "policy.onnx",
) -> bytes:
    """Parse a network and build an engine of it.

    Args:
        trt: The library's module.
        network: Content of an .onnx file.
        options: How.
        precision: Of the bundle; needed by a library that is not strongly typed.
        timing_cache: A file that keeps what was timed; made if it is missing.
        progress: Say on stderr what is being done, where the library tells.
        where: The file's name, for messages.

    Raises:
        BundleError: The library cannot parse it, or cannot build it; the message has the library's own words.
        CallerError: The library cannot do what the options ask for.
    """
    options, said = options or EngineOptions(), Said()
    logger = said.logger(trt)
    builder = trt.Builder(logger)
    flags, typed = _network_flags(trt)
    definition = builder.create_network(flags)
    parser = trt.OnnxParser(definition, logger)
    config = builder.create_builder_config()
    if hasattr(parser, "set_builder_config"):
        parser.set_builder_config(config)
    if not parser.parse(network):
        errors = [_parser_error(parser.get_error(i)) for i in range(parser.num_errors)]
        raise BundleError(
            f"{where}: {trt.__name__} {trt.__version__} cannot read it: {'; '.join(errors) or said.last()}. Its manifest says for which runtimes it was "
            "made (made_for): quantize with --dialect portable, or take float32 or float16."
        )
    if not typed:
        _set_flags(trt, config, precision)
    _configure(trt, config, options)
    cache = _use_timing_cache(config, timing_cache)
    if progress:
        _show_progress(trt, config)
    plan = builder.build_serialized_network(definition, config)
    if plan is None:
        raise BundleError(
            f"{where}: {trt.__name__} {trt.__version__} cannot build it: {said.last()}. Give it more memory (--workspace-mb), leave the DLA out, or take "
            "another precision."
        )
    if cache is not None and timing_cache is not None:
        write_bytes(timing_cache, bytes(cache.serialize()))
    return bytes(plan)


def engine_of(bundle: Bundle, trt: Any, options: EngineOptions | None = None) -> tuple[str, dict[str, Any]]:
    """The key of the engine that a bundle has on this device, and what it is made of: ``device, library, version, bundle, options``."""
    options = options or EngineOptions()
    built_from = {
        "device": "for " + " ".join(options.targets) if options.targets else device(),
        "library": trt.__name__,
        "version": trt.__version__,
        "bundle": bundle.hash,
        "options": json.loads(json.dumps(dataclasses.asdict(options))),
    }
    return engine_key(built_from), built_from


def build_engine(
    bundle: str | Path, options: EngineOptions | None = None, *, trt: Any = None, rebuild: bool = False, progress: bool = False
) -> BuiltEngine:
    """The engine of a bundle for this device, built if it is not there.

    Args:
        bundle: The bundle's folder.
        options: How.
        trt: The library's module; None for the one that is installed.
        rebuild: Build it even if it is there.
        progress: Say on stderr what is being done.

    Raises:
        MissingLibraryError: No TensorRT, or no GPU and no other target.
        BundleError: The bundle is not sound or not made for TensorRT, or it cannot be built.
        CallerError: The library cannot do what the options ask for.
    """
    trt = load_library() if trt is None else trt
    if (keys := keys_to_trust()) is not None:
        require_signature(bundle, keys)
    loaded, options = load_bundle(bundle), options or EngineOptions()
    check_network(loaded.read("policy.onnx"), "policy.onnx")
    if "tensorrt" not in loaded.manifest.made_for:
        raise BundleError(
            f"bundle {bundle}: {loaded.manifest.precision}, made for {list(loaded.manifest.made_for)}: TensorRT does not read it. Make one with "
            "`actlet quantize --precision int8 --dialect portable` (or int4), float16 or float8, or take the float bundle."
        )
    key, built_from = engine_of(loaded, trt, options)
    folder = engines_folder(loaded.hash)
    path = folder / f"{key}.engine"
    is_new = rebuild or not is_whole(path)
    if is_new:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        plan = serialize_engine(
            trt,
            loaded.read("policy.onnx"),
            options,
            precision=loaded.manifest.precision,
            timing_cache=folder.parent / "timing.cache" if not options.targets else None,  # Nothing is timed on a GPU that is not here.
            progress=progress,
        )
        save_engine(plan, built_from)
    return BuiltEngine(path, key, built_from, is_new, _layers(trt, path.read_bytes()) if not options.targets else None)


def _network_flags(trt: Any) -> tuple[int, bool]:
    """Flags of a new network, and whether it is strongly typed."""
    known = trt.NetworkDefinitionCreationFlag
    typed = getattr(known, "STRONGLY_TYPED", None)
    explicit = getattr(known, "EXPLICIT_BATCH", None)  # Gone from 11 on, where nothing else exists.
    flags = sum(1 << int(flag) for flag in (typed, explicit) if flag is not None)
    return flags, typed is not None


def _set_flags(trt: Any, config: Any, precision: str) -> None:
    """For a library without strong types: allow the precision, and obey what the graph says."""
    if precision not in _PRECISION_FLAGS:
        raise CallerError(
            f"precision {precision}: {trt.__name__} {trt.__version__} is not strongly typed and has no flag for it. Take a newer one."
        )
    for name in (*_PRECISION_FLAGS[precision], "OBEY_PRECISION_CONSTRAINTS"):
        flag = getattr(trt.BuilderFlag, name, None)
        if flag is None:
            raise CallerError(
                f"precision {precision}: {trt.__name__} {trt.__version__} does not know {name}. Take a newer one, or another precision."
            )
        config.set_flag(flag)


def _configure(trt: Any, config: Any, options: EngineOptions) -> None:
    if hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(
            trt.BuilderFlag.TF32
        )  # On by default, and float32 would be rounded to 10 bits: the self-test would refuse its answers.
    if options.workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    if options.level is not None:
        config.builder_optimization_level = options.level
    if options.dla_core is not None:
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = options.dla_core
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    if options.targets:
        known = getattr(trt, "ComputeCapability", None)
        if known is None or not hasattr(config, "num_compute_capabilities"):
            raise CallerError(
                f"engine for {list(options.targets)}: {trt.__name__} {trt.__version__} builds for the GPU of this machine alone; TensorRT-RTX "
                "(tensorrt-rtx-cu13) can build for others. Leave --for out, on the device itself."
            )
        for name in options.targets:
            if not hasattr(known, name):
                names = sorted(member for member in dir(known) if member.startswith("SM"))
                raise CallerError(f"engine for {name!r}: {trt.__name__} {trt.__version__} knows {names}.")
        config.num_compute_capabilities = len(options.targets)
        for i, name in enumerate(options.targets):
            config.set_compute_capability(getattr(known, name), i)


def _use_timing_cache(config: Any, file: Path | None) -> Any:
    """The cache that the build reads and fills; None without a file."""
    if file is None or not hasattr(config, "create_timing_cache"):
        return None
    cache = config.create_timing_cache(file.read_bytes() if file.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        cache = config.create_timing_cache(b"")  # Of another device or version: begin anew.
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            return None
    return cache


def _show_progress(trt: Any, config: Any) -> None:
    if not hasattr(trt, "IProgressMonitor") or not hasattr(config, "progress_monitor"):
        print("building an engine takes some minutes; this library does not say how far it is ...", file=sys.stderr, flush=True)
        return

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """One line for the outermost phase."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            if parent is None:
                self.steps[name] = steps

        def step_complete(self, name: str, step: int) -> bool:
            if name in self.steps:
                print(f"\r{name}: {step + 1} of {self.steps[name]}", end="", file=sys.stderr, flush=True)
            return True  # False would stop the build; Ctrl-C ends the process, and nothing half-written is kept.

        def phase_finish(self, name: str) -> None:
            if self.steps.pop(name, None) is not None:
                print(file=sys.stderr, flush=True)

    config.progress_monitor = Monitor()


def _parser_error(error: Any) -> str:
    read: Callable[[str], Any] = lambda name: getattr(error, name)() if hasattr(error, name) else None  # noqa: E731
    node, operator = read("node_name"), read("node_operator")
    place = f"node {node!r} ({operator}): " if node else ""
    return f"{place}{str(error.desc()).strip()[:300]}"


def _layers(trt: Any, plan: bytes) -> list[dict[str, str]] | None:
    """What the inspector says of a plan's layers, on a machine that can open it."""
    engine = trt.Runtime(Said().logger(trt)).deserialize_cuda_engine(plan)
    if engine is None:
        return None
    document = json.loads(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))
    rows = [layer if isinstance(layer, dict) else {"Name": layer} for layer in document.get("Layers", [])]
    return [
        {
            "name": str(row.get("Name", "")),
            "precision": ", ".join(sorted({str(out.get("Format/Datatype", "")) for out in row.get("Outputs", [])})),
        }
        for row in rows
    ]


EPILOG = """\
examples:
  actlet engine bundles/float16                         on the robot: an engine for its GPU, kept in the bundle's folder
  actlet engine bundles/int8-portable --level 5         more effort, minutes instead of seconds
  actlet engine bundles/float --dla-core 0              a Jetson's accelerator, with the GPU for what it cannot do
  actlet engine bundles/float16 --for SM86 SM89         with TensorRT-RTX, also on a machine without a GPU: shows that it can be built
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb `engine`."""
    parser.epilog = EPILOG
    parser.add_argument(
        "bundle", type=Path, help="a bundle that is made for TensorRT: float32, float16, float8, or int8 or int4 with --dialect portable"
    )
    parser.add_argument("--library", choices=LIBRARIES, help="(default: the first that is installed)")
    parser.add_argument("--workspace-mb", type=int, help="memory for a layer's intermediate results (default: the library's)")
    parser.add_argument("--level", type=int, help="effort, 0 to 5 (default: the library's)")
    parser.add_argument("--dla-core", type=int, help="build for this deep-learning accelerator")
    parser.add_argument("--for", nargs="+", default=[], metavar="SM", dest="targets", help="other GPUs than this machine's (TensorRT-RTX)")
    parser.add_argument("--rebuild", action="store_true", help="build it even if it is there")


def run(arguments: argparse.Namespace) -> int:
    """The verb `engine`."""
    options = EngineOptions(
        workspace_mb=arguments.workspace_mb, level=arguments.level, dla_core=arguments.dla_core, targets=tuple(arguments.targets)
    )
    trt = load_library(arguments.library)
    built = build_engine(arguments.bundle, options, trt=trt, rebuild=arguments.rebuild, progress=True)
    print(
        f"{'built' if built.is_new else 'was there'}: {built.path} ({built.path.stat().st_size / 1e6:.2f} MB), {built.built_from['device']}"
    )
    if built.layers is None:
        print("which layers run in which precision is said by a GPU that can open it")
    else:
        for precision, count in Counter(layer["precision"] for layer in built.layers).most_common():
            print(f"{count:4d} layers give {precision}")
    return 0
