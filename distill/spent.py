"""What a training cost: seconds on the clock and of processors, of all processes and over all the times it was started again.

Each process keeps a file of its own in the run's work folder, so that none waits for another. What a process spent after its last note
is lost with it when it is killed; notes are made whenever a state is saved.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from actlet.storage import read_json, write_json

__all__ = ["Spent"]


class Spent:
    """The bill of this process, from now on and from the times before.

    Args:
        work: The run's work folder.
        process: Number of this process.
    """

    def __init__(self, work: Path, process: int) -> None:
        self._file = work / f"spent-{process}.json"
        before = read_json(self._file) if self._file.is_file() else {"wall_s": 0.0, "cpu_s": 0.0}
        self._wall_s, self._cpu_s = before["wall_s"] - time.monotonic(), before["cpu_s"] - _cpu_s()

    def note(self) -> None:
        """Write down what was spent until now."""
        write_json(self._file, {"wall_s": self._wall_s + time.monotonic(), "cpu_s": self._cpu_s + _cpu_s()})

    @staticmethod
    def total(work: Path) -> dict[str, float]:
        """``train_wall_s``, of the longest process, and ``train_cpu_s``, of all together, as far as they were noted."""
        notes = [read_json(file) for file in sorted(work.glob("spent-*.json"))]
        return {
            "train_wall_s": round(max(note["wall_s"] for note in notes), 1),
            "train_cpu_s": round(sum(note["cpu_s"] for note in notes), 1),
        }


def _cpu_s() -> float:
    """Of all threads of this process, and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
