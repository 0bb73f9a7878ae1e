"""The log of a training: JSON lines, and TensorBoard's files beside them where they are asked for."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from actlet.errors import MissingLibraryError

__all__ = ["TrainLog", "require_tensorboard"]


def require_tensorboard() -> None:
    """Raises MissingLibraryError where the package is not installed; it is none of actlet's own dependencies."""
    if importlib.util.find_spec("tensorboard") is None:
        raise MissingLibraryError(
            "--tensorboard needs the package 'tensorboard', which is not installed. Without it, train_log.jsonl holds the same numbers.",
            "pip install tensorboard",
        )


class TrainLog:
    """A context manager; what a run that was cut off had logged after its last state is dropped, since it will be logged again.

    Args:
        file: JSON lines.
        first: The first step of this run.
        tensorboard: A folder for event files, or None.
    """

    def __init__(self, file: Path, first: int, tensorboard: Path | None = None) -> None:
        self._file, self._writer = file, None
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = file.read_text(encoding="utf-8").splitlines(keepends=True) if first and file.is_file() else []
        file.write_text("".join(row for row in rows if row.endswith("\n") and json.loads(row)["step"] < first), encoding="utf-8")
        if tensorboard is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(tensorboard), purge_step=first)

    def __enter__(self) -> TrainLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, step: int, rate: float, losses: Mapping[str, float], seconds: float) -> None:
        """One line."""
        with self._file.open("a", encoding="utf-8") as log:
            log.write(json.dumps({"step": step, "lr": rate, **losses, "seconds": round(seconds, 1)}) + "\n")
        if self._writer is not None:
            for name, value in {"lr": rate, **losses}.items():
                self._writer.add_scalar(name, value, step)
