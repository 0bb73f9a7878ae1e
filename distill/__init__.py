"""Teachers, the student network, losses, training."""

from pathlib import Path

__all__ = ["SHIPPED", "shipped_teacher", "teacher_folder"]

# Teachers that come with actlet, by the names that the command line knows.
SHIPPED = {"shipped": "tabletop_teacher", "rt2-base": "rt2_base"}


def shipped_teacher(name: str = "shipped") -> Path:
    """The folder of a teacher that comes with actlet: "shipped", trained on the suite `tabletop` alone, which the demo's students learn from,
    or "rt2-base", co-fine-tuned on varied tables and on questions about pictures of the web."""
    return Path(__file__).parent / "pretrained" / SHIPPED[name]


def teacher_folder(word: str | Path) -> str | Path:
    """The folder of one of `SHIPPED`'s names; any other word as it is."""
    return shipped_teacher(str(word)) if str(word) in SHIPPED else word
