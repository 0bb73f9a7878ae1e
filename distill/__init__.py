"""Teachers, the student network, losses, training."""

from pathlib import Path

__all__ = ["SHIPPED", "shipped_teacher", "teacher_folder"]

SHIPPED = "rt2-base"
"""The name of the teacher that comes with actlet, as the command line knows it: co-fine-tuned on varied tables and on questions about pictures
of the web."""


def shipped_teacher() -> Path:
    """The folder of the teacher that comes with actlet."""
    return Path(__file__).parent / "pretrained" / "rt2_base"


def teacher_folder(word: str | Path) -> str | Path:
    """The folder of the teacher that comes with actlet for its name; any other word as it is."""
    return shipped_teacher() if str(word) == SHIPPED else word
