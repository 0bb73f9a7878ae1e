"""A bundle is first opened in a process of its own, with limits on memory, time and the size of files that it writes; it is no sandbox.

Whatever a file makes a library do (take all memory, never end, crash), it does it there, and here it is an error with the reason. The child does exactly
what is done afterwards: every check of `runtime.bundle`, the networks, the replay of the recorded answers. It is told the bundle's name (the
hash of its manifest) by what it opens, and only a bundle of that name is opened here.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from actlet.errors import ActletError, BundleError

__all__ = ["HOME", "TrialLimits", "child_environment", "try_bundle"]

HOME = Path(__file__).resolve().parents[1]
"""Where the packages lie. Processes are started here, not in the folder that one is in, which may be a bundle's: `python -m` imports from there first."""

_REFUSED = 3  # Exit code of a child that says why.
_BASE_BYTES, _TIMES_SIZE = 1 << 30, 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrialLimits:
    """What a bundle may take to be opened."""

    memory_bytes: int | None = None
    """Of address space, libraries included; None for 1 GiB and eight times the bundle's files."""
    cpu_s: int = 30
    """Processor time."""
    wall_s: float = 120.0
    """Time on the clock."""


def try_bundle(path: str | Path, *, threads: int = 1, limits: TrialLimits | None = None) -> str:
    """Open a bundle in another process.

    Args:
        path: The bundle's folder.
        threads: Threads of one operator.
        limits: What it may take.

    Returns:
        The bundle's name (`actlet.manifest.manifest_hash`).

    Raises:
        BundleError: It is not sound, it takes more than it may, or the process that opened it died.
    """
    limits = limits or TrialLimits()
    if limits.memory_bytes is None:
        limits = dataclasses.replace(limits, memory_bytes=_BASE_BYTES + _TIMES_SIZE * _size(Path(path)))
    asked = {"path": str(Path(path).absolute()), "threads": threads, "limits": dataclasses.asdict(limits)}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "runtime.trial"],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=limits.wall_s,
            env=child_environment() | {"OPENBLAS_NUM_THREADS": "1"},
            cwd=HOME,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BundleError(f"bundle {path}: not open after {limits.wall_s:g} s in a process of its own: it is refused.") from error
    said = (done.stdout.strip().splitlines() or [""])[-1]
    if done.returncode == 0 and said:
        return said
    if done.returncode == _REFUSED:
        raise BundleError(said)
    if done.returncode == -signal.SIGXCPU:
        raise BundleError(f"bundle {path}: takes more than {limits.cpu_s} s of processor time to be opened: it is refused.")
    how = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit code {done.returncode}"
    last = (done.stderr.strip().splitlines() or ["no message"])[-1][:300]
    raise BundleError(f"bundle {path}: the process that opened it died ({how}: {last}): it is refused.")


def child_environment() -> dict[str, str]:
    """Of a Python process that is started in `HOME`: it finds the packages that this one uses."""
    paths = [str(HOME), *(str(Path(entry).absolute()) for entry in sys.path if entry)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "PYTHONSAFEPATH": "1"}


def _size(folder: Path) -> int:
    """Of what is really on the disk: a file with holes is as large as its maker likes."""
    try:
        return sum(min(file.st_size, 512 * file.st_blocks) for file in (entry.stat(follow_symlinks=False) for entry in os.scandir(folder)))
    except OSError:
        return 0  # What is wrong with it is said by the process that opens it.


def main() -> int:
    """The other process: reads what to open from stdin."""
    asked = json.loads(sys.stdin.read())
    _limit(TrialLimits(**asked["limits"]))
    try:
        from runtime.policy import BundlePolicy

        policy = BundlePolicy(asked["path"], threads=asked["threads"])
    except ActletError as error:
        print(" ".join(str(error).split()))
        return _REFUSED
    except MemoryError:
        print(f"bundle {asked['path']}: more memory than {asked['limits']['memory_bytes']} bytes is needed to open it: it is refused.")
        return _REFUSED
    print(policy.bundle.hash)
    return 0


def _limit(limits: TrialLimits) -> None:
    """From here on; a system without such limits has the time on the clock alone."""
    try:
        import resource
    except ImportError:
        return
    assert limits.memory_bytes is not None
    for kind, most in (
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_CPU, limits.cpu_s),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


if __name__ == "__main__":
    sys.exit(main())
