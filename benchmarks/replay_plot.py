"""A picture of a recorded run: what a camera saw, and time lines of every action, with the failsafe's states and where chunks begin.

film      eight moments of the first camera
failsafe  the states as a band, and below it every answer: used, late, bad
actions   one line each: what was due (thin) and what was sent (thick); flags as bars; limits where they are near
decision  how long each took
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from actlet.errors import CallerError, RecordingError
from runtime.recording import Recording
from runtime.replay_steps import moments

__all__ = ["draw_replay"]

_INK, _MUTED, _GRID = "#1c1e21", "#63676e", "#e9eaec"
_SENT, _DUE = "#2f6fde", "#d97a12"
_STATES = {"RUN": "#0c9488", "HOLD": "#f0b429", "RAMP": "#e8743b", "SAFE_POSE": "#9056c8", "ESTOP": "#c62f4b"}
_ANSWERS = {"used": "#0c9488", "late": "#d97a12", "old": "#7a7f87", "bad": "#c62f4b"}
_STYLE: dict[str, Any] = {
    "font.size": 9,
    "text.color": _INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _GRID,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "svg.fonttype": "none",
    "svg.hashsalt": "replay",
}
_WIDTH_IN, _LEFT, _FILM_IN = 11.0, 0.15, 1.05


def draw_replay(run: Recording, out: Path) -> None:
    """Draw a run.

    Args:
        run: With commands.
        out: A file that ends in .png or .svg.

    Raises:
        CallerError: It ends in something else.
        RecordingError: The run has no command.
    """
    if out.suffix not in (".png", ".svg"):
        raise CallerError(f"{out}: expected a name that ends in .png or .svg.")
    if not run.commands:
        raise RecordingError(f"{run.path}: no command was recorded, so there is nothing to draw.")
    with matplotlib.rc_context(_STYLE):
        figure = _figure(run)
        out.parent.mkdir(parents=True, exist_ok=True)
        date = {"Date": None} if out.suffix == ".svg" else {}
        figure.savefig(out, dpi=150, facecolor="white", metadata={**date})


def _figure(run: Recording) -> Figure:
    action, times = run.spec.action, moments(run)
    end = times[-1] + (times[-1] - times[-2] if len(times) > 1 else 1.0)
    film = _film_steps(run)
    flags = [i for i, kind in enumerate(action.kinds) if kind == "binary"]
    others = [i for i in range(action.dim) if i not in flags]
    heights = [*([_FILM_IN] if film else []), 0.42, *[0.95] * len(others), *[0.42] * len(flags), 0.75]
    height = sum(heights) + 1.35
    figure = Figure(figsize=(_WIDTH_IN, height))
    grid = figure.add_gridspec(
        len(heights), 1, height_ratios=heights, left=_LEFT, right=0.985, top=1 - 0.72 / height, bottom=0.62 / height, hspace=0.22
    )
    rows = iter(range(len(heights)))
    if film:
        _draw_film(figure, grid[next(rows)], run, film)
    states = figure.add_subplot(grid[next(rows)])
    panels = [states]
    _draw_states(states, run, end)
    seams = _seams(run)
    for i in [*others, *flags]:
        axes = figure.add_subplot(grid[next(rows)], sharex=states)
        (_draw_flag if i in flags else _draw_action)(axes, run, times, end, i)
        _shade(axes, run, end)
        for seam in seams:
            axes.axvline(seam, color=_MUTED, linewidth=0.5, alpha=0.35, linestyle=(0, (2, 2)))
        panels.append(axes)
    panels.append(figure.add_subplot(grid[next(rows)], sharex=states))
    _draw_decisions(panels[-1], run)
    for axes in panels[:-1]:
        axes.tick_params(labelbottom=False)
    states.set_xlim(0, end)
    panels[-1].set_xlabel("seconds of the run")
    _head(figure, run, height, bool(seams))
    return figure


def _head(figure: Figure, run: Recording, height: float, has_seams: bool) -> None:
    about, result = run.about["about"], run.result or {}
    figure.text(0.02, 1 - 0.24 / height, f"“{run.instruction or 'no instruction'}”", fontsize=13, fontweight="bold", va="center")
    lost = ", ".join(f"{count} {kind}" for kind, count in run.lost.items() if count)
    success = {True: "success", False: "no success"}.get(result.get("success"), "")
    policy = Path(str(about["policy"])).name if about.get("policy") else ""
    facts = [run.path.name, policy, f"{len(run.commands)} commands", f"stopped by {result['stopped_by']}" if result else "", success]
    facts.append(f"lost: {lost}" if lost else "nothing lost")
    figure.text(0.02, 1 - 0.49 / height, "   ·   ".join(fact for fact in facts if fact), fontsize=9, color=_MUTED, va="center")
    seen = {row.state for row in run.verdicts} - {"RUN"}
    handles: list[Any] = [
        Line2D([], [], color=_SENT, linewidth=1.8, label="sent"),
        Line2D([], [], color=_DUE, linewidth=1.8, label="due, where it is not what was sent"),
    ]
    if has_seams:
        handles.append(Line2D([], [], color=_MUTED, linewidth=0.7, linestyle=(0, (2, 2)), label="a chunk begins"))
    handles += [Patch(facecolor=colour, alpha=0.35, label=state) for state, colour in _STATES.items() if state in seen]
    used = {row.verdict for row in run.answers}
    handles += [
        Line2D([], [], color=colour, marker="|", linestyle="", markersize=8, markeredgewidth=1.5, label=f"answer {verdict}")
        for verdict, colour in _ANSWERS.items()
        if verdict in used
    ]
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), frameon=False, fontsize=8.5, bbox_to_anchor=(0.5, 0.0))


def _film_steps(run: Recording) -> list[int]:
    steps = run.pictured_steps
    if not steps:
        return []
    places = np.unique(np.linspace(0, len(steps) - 1, _film_length(run)).round().astype(int))
    return [steps[place] for place in places]


def _film_length(run: Recording) -> int:
    """As many frames as have room beside each other."""
    camera = run.spec.observation.cameras[0]
    return max(2, int(_WIDTH_IN * (0.985 - _LEFT) / (1.04 * _FILM_IN * camera.width / camera.height)))


def _draw_film(figure: Figure, place: Any, run: Recording, steps: Sequence[int]) -> None:
    camera = run.spec.observation.cameras[0]
    inner = place.subgridspec(1, _film_length(run), wspace=0.04)
    for column, step in enumerate(steps):
        axes = figure.add_subplot(inner[column])
        axes.imshow(run.pictures(step)[camera.name], interpolation="lanczos" if camera.width > 64 else "nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(False)
        axes.spines[:].set_visible(False)
        label = f"{step / run.spec.timing.rate_hz:.1f} s"
        axes.text(
            0.04, 0.05, label, transform=axes.transAxes, fontsize=7.5, color="white",
            bbox={"boxstyle": "round,pad=0.2", "facecolor": "#00000099", "edgecolor": "none"},
        )  # fmt: skip
        if column == 0:
            axes.set_ylabel(camera.name, fontsize=9, color=_INK, rotation=0, ha="right", va="center", labelpad=6)


def _spans(run: Recording, end: float) -> Iterator[tuple[float, float, str, str]]:
    """From, to, state and cause of the failsafe's verdicts."""
    rate_hz = run.spec.timing.rate_hz
    starts = [row.step / rate_hz for row in run.verdicts]
    for row, start, stop in zip(run.verdicts, starts, [*starts[1:], end], strict=True):
        if stop > start:
            yield start, stop, row.state, row.cause


def _shade(axes: Axes, run: Recording, end: float) -> None:
    for start, stop, state, _ in _spans(run, end):
        if state != "RUN":
            axes.axvspan(start, stop, color=_STATES[state], alpha=0.16, linewidth=0)


def _draw_states(axes: Axes, run: Recording, end: float) -> None:
    told = 0.0
    for start, stop, state, cause in _spans(run, end):
        axes.axvspan(start, stop, 0.45, 1.0, color=_STATES[state], alpha=0.85 if state != "RUN" else 0.55, linewidth=0)
        words = next((text for text in (f"{state}: {cause}" if cause else state, state) if stop - start > 0.0085 * end * len(text)), "")
        if words and start >= told:
            axes.text((start + stop) / 2, 0.72, words, ha="center", va="center", fontsize=7.5, color="white", fontweight="bold")
            told = stop
    rate_hz = run.spec.timing.rate_hz
    for verdict, colour in _ANSWERS.items():
        here = [row.step / rate_hz for row in run.answers if row.verdict == verdict]
        axes.plot(here, [0.18] * len(here), "|", color=colour, markersize=6, markeredgewidth=1.2)
    axes.set_ylim(0, 1)
    axes.set_yticks([0.72, 0.18], ["failsafe", "answers"], color=_INK)
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)


def _seams(run: Recording) -> list[float]:
    """Where a chunk begins to be used, unless that is so often that lines would hide what they mark."""
    used = [row.step for row in run.answers if row.verdict == "used"]
    rare = len(used) > 1 and np.mean(np.diff(used)) >= 2 and len(used) <= 150
    return [step / run.spec.timing.rate_hz for step in used] if rare else []


def _columns(run: Recording, times: Sequence[float], end: float, index: int) -> tuple[Any, Any, Any]:
    """Times, sent and due of a dimension; the last value lasts until the end, what is missing is NaN."""
    sent = np.array([command.sent[index] for command in run.commands])
    due = np.array([np.nan if command.due is None else command.due[index] for command in run.commands])
    x = np.array([*times, end])
    return x, np.append(sent, sent[-1]), np.append(due, due[-1])


def _draw_action(axes: Axes, run: Recording, times: Sequence[float], end: float, index: int) -> None:
    action = run.spec.action
    x, sent, due = _columns(run, times, end, index)
    axes.plot(x, due, color=_DUE, linewidth=1.6, drawstyle="steps-post", zorder=3)  # Below: it shows where it is something else.
    axes.plot(x, sent, color=_SENT, linewidth=1.6, drawstyle="steps-post", zorder=4, solid_joinstyle="round")
    values = np.concatenate([sent, due[np.isfinite(due)]])
    low, high = float(values.min()), float(values.max())
    margin = max(0.12 * (high - low), 1e-3 * (action.high[index] - action.low[index]))
    for limit in (action.low[index], action.high[index]):
        if low - 3 * margin <= limit <= high + 3 * margin:
            axes.axhline(limit, color=_STATES["ESTOP"], linewidth=0.8, alpha=0.7, zorder=2)
            low, high = min(low, limit), max(high, limit)
    axes.set_ylim(low - margin, high + margin)
    axes.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(3))
    unit = "" if action.units[index] == "1" else f" [{action.units[index]}]"
    _name(axes, f"{action.names[index]}{unit}")


def _draw_flag(axes: Axes, run: Recording, times: Sequence[float], end: float, index: int) -> None:
    x, sent, due = _columns(run, times, end, index)
    axes.fill_between(x, 0, sent, step="post", color=_SENT, alpha=0.35, linewidth=0, zorder=2)
    axes.plot(x, sent, color=_SENT, linewidth=1.6, drawstyle="steps-post", zorder=4)
    axes.plot(x, due, color=_DUE, linewidth=1.6, drawstyle="steps-post", zorder=3)
    axes.set_ylim(-0.08, 1.15)
    axes.set_yticks([0, 1])
    _name(axes, run.spec.action.names[index])


def _draw_decisions(axes: Axes, run: Recording) -> None:
    rate_hz = run.spec.timing.rate_hz
    for verdict in dict.fromkeys(row.verdict for row in run.answers):
        rows = [row for row in run.answers if row.verdict == verdict and row.finished_s > row.submitted_s]
        x, y = [row.observed_at / rate_hz for row in rows], [1e3 * (row.finished_s - row.submitted_s) for row in rows]
        axes.plot(x, y, "o", color=_ANSWERS.get(verdict, _MUTED), markersize=3.2, markeredgewidth=0, clip_on=False)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.margins(y=0.15)
    _name(axes, "decision [ms]")


def _name(axes: Axes, words: str) -> None:
    axes.set_ylabel(words, rotation=0, ha="right", va="center", color=_INK)
    axes.yaxis.set_label_coords(-0.065, 0.5)
