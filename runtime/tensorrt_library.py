"""TensorRT as it is installed, the GPU that it runs on, and where the engines of a bundle lie.

An engine is a network built for one GPU with one driver by one version of TensorRT. It is trusted as a program is: TensorRT reads it without the checks
that a bundle meets. So engines never lie in a bundle's folder, where they could be copied with it, but in a folder of this user on this machine::

    ~/.cache/actlet/engines/<bundle's name>/<key>.engine     the engine
                                            <key>.json       what it was built from, with its hash; written last, so an engine without it is half written

``ACTLET_ENGINES`` names another folder, ``XDG_CACHE_HOME`` another cache. The key is the hash of device, driver, library, version, bundle and options:
another of any means another engine.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actlet.errors import CallerError, MissingLibraryError
from actlet.provenance import utc_now
from actlet.storage import read_json, write_bytes, write_json

__all__ = ["LIBRARIES", "Said", "device", "engine_key", "engines_folder", "find_engine", "is_whole", "load_library", "save_engine"]

LIBRARIES = ("tensorrt", "tensorrt_rtx")
"""In the order in which they are looked for."""
ENGINES_VARIABLE = "ACTLET_ENGINES"


def load_library(name: str | None = None) -> Any:
    """TensorRT's Python module.

    Args:
        name: Of `LIBRARIES`; None for the first that is installed.

    Raises:
        MissingLibraryError: None is.
        CallerError: There is no such library.
    """
    if name is not None and name not in LIBRARIES:
        raise CallerError(f"library {name!r}, expected one of {list(LIBRARIES)}.")
    tried = []
    for candidate in LIBRARIES if name is None else (name,):
        try:
            return importlib.import_module(candidate)
        except (ImportError, OSError) as error:  # Bindings whose library is absent raise either.
            tried.append(f"{candidate}: {str(error).splitlines()[0]}")
    raise MissingLibraryError(
        f"TensorRT is not installed here ({'; '.join(tried)}). On a Jetson it comes with JetPack: make the environment with --system-site-packages",
        "pip install tensorrt   (or tensorrt-rtx-cu13, for GeForce RTX)",
    )


class Said:
    """What the library said, the last errors of which belong in a message."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def logger(self, trt: Any) -> Any:
        """A logger for the library, which keeps errors and leaves the chatter out."""
        lines, least = self.lines, trt.ILogger.Severity.ERROR

        class Logger(trt.ILogger):  # type: ignore[misc]  # Whichever library it is.
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if int(severity) <= int(least):
                    lines.append(message)

        return Logger()

    def last(self) -> str:
        """The last three errors."""
        return " / ".join(line.strip()[:300] for line in self.lines[-3:]) or "it does not say why"


def device() -> str:
    """This machine's GPU and its driver, as they are told apart: an engine of one is not another's.

    Raises:
        MissingLibraryError: There is none.
    """
    if shutil.which("nvidia-smi") is not None:
        question = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
        done = subprocess.run(question, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.strip().splitlines()[0]
    model, release = Path("/proc/device-tree/model"), Path("/etc/nv_tegra_release")  # A Jetson has no nvidia-smi before JetPack 7.
    if model.is_file() and release.is_file():
        return f"{model.read_text(encoding='utf-8').strip(chr(0))}, {release.read_text(encoding='utf-8').splitlines()[0]}"
    raise MissingLibraryError(
        "no NVIDIA GPU is found here (nvidia-smi says nothing, and this is no Jetson). Build the engine on the robot: copy the bundle there, and run",
        "actlet engine BUNDLE   (or here, for other GPUs, with TensorRT-RTX: --for SM86 SM89)",
    )


def engines_folder(bundle: str) -> Path:
    """Where the engines of a bundle lie on this machine.

    Args:
        bundle: Its name (`runtime.bundle.Bundle.hash`).
    """
    home = os.environ.get(ENGINES_VARIABLE)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(home) if home else Path(cache) / "actlet" / "engines") / bundle


def engine_key(built_from: Mapping[str, Any]) -> str:
    """16 hexadecimal digits: the name of the engine that is built from ``device, library, version, bundle, options``."""
    return hashlib.sha256(json.dumps(built_from, sort_keys=True).encode()).hexdigest()[:16]


def save_engine(plan: bytes, built_from: Mapping[str, Any]) -> Path:
    """Keep an engine; returns where it lies."""
    path = engines_folder(built_from["bundle"]) / f"{engine_key(built_from)}.engine"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_bytes(path, plan)
    about = {**built_from, "sha256": hashlib.sha256(plan).hexdigest(), "size_bytes": len(plan), "built": utc_now()}
    write_json(path.with_suffix(".json"), about)
    return path


def is_whole(path: Path) -> bool:
    """Whether an engine lies there, and is the one that its description says."""
    about = path.with_suffix(".json")
    if not (path.is_file() and about.is_file()):
        return False
    try:
        return bool(read_json(about)["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest())
    except (ValueError, KeyError, TypeError):
        return False


def find_engine(bundle: str, trt: Any, name: str = "bundle") -> Path:
    """The engine of a bundle for this machine's GPU, driver and library; of several, with other options, the one built last.

    Args:
        bundle: The bundle's name (`runtime.bundle.Bundle.hash`).
        trt: The library's module.
        name: What the bundle is called, for messages.

    Raises:
        MissingLibraryError: There is none: `actlet engine` builds one.
    """
    here = {"device": device(), "library": trt.__name__, "version": trt.__version__, "bundle": bundle}
    found = []
    for about in engines_folder(bundle).glob("*.json"):
        engine = about.with_suffix(".engine")
        if is_whole(engine):
            said = read_json(about)
            if all(said.get(key) == value for key, value in here.items()):
                found.append((str(said.get("built")), engine))
    if not found:
        raise MissingLibraryError(
            f"no engine of this bundle ({bundle[:12]}…) for {here['device']} with {trt.__name__} {trt.__version__} in {engines_folder(bundle)}: build it",
            f"actlet engine {name}",
        )
    return max(found)[1]
