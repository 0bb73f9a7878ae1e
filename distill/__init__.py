"""Teachers, the student network, losses, training."""

from pathlib import Path

__all__ = ["shipped_teacher"]


def shipped_teacher() -> Path:
    """The folder of the teacher that comes with actlet, trained on the suite `tabletop`."""
    return Path(__file__).parent / "pretrained" / "tabletop_teacher"
