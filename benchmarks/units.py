"""Numbers for people: the same rounding in the report, on the terminal and in README.md. What was not measured is a dash."""

from __future__ import annotations

__all__ = ["as_bytes", "as_count", "as_duration", "as_number", "as_percent", "as_significant"]

_DASH = "–"


def _scaled(value: float | None, units: tuple[str, str, str, str]) -> str:
    if not isinstance(value, (int, float)):
        return _DASH
    for size, unit in zip((1e9, 1e6, 1e3), units[:3], strict=True):
        if value >= size:
            scaled = value / size
            return f"{scaled:.0f} {unit}" if scaled >= 100 else f"{scaled:.3g} {unit}"
    return f"{value:.0f} {units[3]}".rstrip()


def as_count(value: float | None) -> str:
    """1,234,567 -> "1.23 M"."""
    return _scaled(value, ("G", "M", "k", ""))


def as_bytes(value: float | None) -> str:
    """1,234,567 -> "1.23 MB"."""
    return _scaled(value, ("GB", "MB", "kB", "B"))


def as_percent(value: float | None) -> str:
    """0.934 -> "93 %"."""
    return f"{100 * value:.0f} %" if isinstance(value, (int, float)) else _DASH


def as_number(value: float | None) -> str:
    """Two to three digits."""
    if not isinstance(value, (int, float)):
        return _DASH
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def as_significant(value: float | None) -> str:
    """Three digits, whatever the size."""
    if not isinstance(value, (int, float)):
        return _DASH
    return f"{float(f'{value:.3g}'):,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def as_duration(seconds: float) -> str:
    """Seconds below a minute and a half, minutes above."""
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.0f} s"
