"""Reading facts of a machine: files of the kernel below a root, and what tools print. What is absent or fails is None, never an error.

Tests give another root and other tools, and so describe machines that are not at hand.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

__all__ = ["Host", "run_python", "run_tool"]


def run_tool(*command: str) -> str | None:
    """What a command prints, or None where it is absent, fails or takes more than five seconds."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def run_python(*arguments: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """This Python with the same packages in a process of its own, where what is tried may crash.

    Raises:
        subprocess.TimeoutExpired: It took longer.
        OSError: There can be no process.
    """
    home = Path(__file__).resolve().parents[1]  # Not the folder that one is in, which may hold anything.
    path = os.pathsep.join([str(home), *(str(Path(entry).absolute()) for entry in sys.path if entry)])
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout_s,
        check=False,
    )


@dataclasses.dataclass(frozen=True)
class Host:
    """A machine to read facts of."""

    root: Path = Path("/")
    """What file names are below."""
    tool: Callable[..., str | None] = run_tool
    """Runs a command: what it prints, None where it is absent or fails."""

    def read(self, path: str) -> str | None:
        """A file's text without what surrounds it, None where it cannot be read.

        It is read without a buffer: a Tegra's sensors answer EAGAIN while what they sit on is switched off, of which Python's text files make a TypeError.
        """
        parts = []
        try:
            handle = os.open(self.root / path.lstrip("/"), os.O_RDONLY)
        except OSError:
            return None
        try:
            while part := os.read(handle, 1 << 16):
                parts.append(part)
        except OSError:
            return None
        finally:
            os.close(handle)
        return b"".join(parts).decode("utf-8", "replace").strip().strip("\0")  # The device tree ends its texts with a zero byte.

    def number(self, path: str) -> int | None:
        """A file's whole number, None where it holds none."""
        try:
            return int(self.read(path) or "")
        except ValueError:
            return None

    def find(self, pattern: str) -> list[str]:
        """Files and folders by a pattern, as names that `read` takes, 2 before 10."""
        with contextlib.suppress(OSError):
            found = [f"/{path.relative_to(self.root)}" for path in self.root.glob(pattern.lstrip("/"))]
            return sorted(found, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])
        return []
