"""Off-screen rendering without a display or a GPU.

MuJoCo reads ``MUJOCO_GL`` when it is imported, so the choice has to be made before. `prepare_rendering` keeps a choice that
the user made; otherwise it takes the first software backend whose system library can be loaded, EGL and then OSMesa. On Linux
without either, it says which line installs EGL.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import os
import sys
from typing import Any

from actlet.errors import MissingExtraError, MissingLibraryError

__all__ = ["close_at_exit", "import_mujoco", "prepare_rendering"]

APT_LINE = "apt-get install -y libegl1 libgl1 libgles2 libegl-mesa0 libgl1-mesa-dri"
_LIBRARIES = {"egl": ("libEGL.so.1", "libGL.so.1"), "osmesa": ("libOSMesa.so.8",)}


def prepare_rendering() -> str:
    """Choose MuJoCo's rendering backend, unless ``MUJOCO_GL`` is set already.

    Where MuJoCo was imported before, and so fell back to a window system, its choice is made again.

    Returns:
        The value of ``MUJOCO_GL`` that is in force; empty where the platform's own default is used.

    Raises:
        MissingLibraryError: Linux, no choice made by the user, and neither EGL nor OSMesa can be loaded.
    """
    chosen = os.environ.get("MUJOCO_GL", "")
    if chosen or sys.platform != "linux":
        return chosen
    failures = []
    for backend, libraries in _LIBRARIES.items():
        try:
            for library in libraries:
                ctypes.CDLL(library)
        except OSError as error:
            failures.append(f"{backend}: {error}")
            continue
        os.environ["MUJOCO_GL"] = backend
        # PyOpenGL is MuJoCo's binding; without this it would look for a display's libraries.
        os.environ.setdefault("PYOPENGL_PLATFORM", backend)
        if "mujoco.gl_context" in sys.modules:
            importlib.reload(sys.modules["mujoco.gl_context"])
        return backend
    raise MissingLibraryError(f"No off-screen rendering backend can be loaded ({'; '.join(failures)}).", APT_LINE)


def import_mujoco() -> Any:
    """Choose a backend, then import MuJoCo.

    Returns:
        The module ``mujoco``.

    Raises:
        MissingExtraError: MuJoCo is not installed.
        MissingLibraryError: See `prepare_rendering`.
    """
    prepare_rendering()
    try:
        import mujoco
    except ImportError as error:
        raise MissingExtraError("mujoco", "sim", "The simulated suite") from error
    return mujoco


def close_at_exit(renderer: Any) -> None:
    """Close a renderer before EGL ends; left to the garbage collector, it prints harmless tracebacks when Python exits."""

    def close() -> None:
        with contextlib.suppress(Exception):  # The context may be gone: there is nothing left to free.
            renderer.close()

    atexit.register(close)
