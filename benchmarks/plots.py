"""The report's drawings: matplotlib figures as SVG that stands in an HTML page and takes its colours from the page's CSS.

Colours are drawn as sentinels and replaced by CSS variables, so that one drawing serves a light and a dark page. Text stays
text. Nothing in the result refers to another file or address.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.units import as_bytes, as_duration

__all__ = [
    "axes_plot",
    "delays_plot",
    "latency_plot",
    "methods_plot",
    "size_plot",
    "stand_alone",
    "success_plot",
    "task_plot",
    "timeline_plot",
]

_INK, _MUTED, _GRID = "#010203", "#040506", "#070809"
_SERIES = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05", "#0a0b06")
_VARIABLES = {_INK: "--ink", _MUTED: "--muted", _GRID: "--grid"} | {colour: f"--series-{i}" for i, colour in enumerate(_SERIES)}
# The light page's colours, as report_template.html has them.
_LIGHT = {"--ink": "#1c1e21", "--muted": "#63676e", "--grid": "#e4e5e7"} | {
    f"--series-{i}": colour for i, colour in enumerate(("#7a7f87", "#2f6fde", "#0c9488", "#d97a12", "#9056c8", "#c23f6d"))
}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _GRID,
    "xtick.color": _MUTED,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "x",
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "ytick.major.size": 0,
    "xtick.major.size": 0,
}


def success_plot(policies: Sequence[Mapping[str, Any]]) -> str:
    """Success with its 95 % interval, and success under another instruction, one line per policy."""
    with _style("success"):
        figure, axes = _canvas(7.2, 0.7 + 0.5 * len(policies))
        for row, policy in enumerate(policies):
            colour = _colour(row)
            low, high = policy["success_ci95"]
            axes.plot([100 * low, 100 * high], [row, row], color=colour, linewidth=7, alpha=0.3, solid_capstyle="round")
            if policy["success"] is not None:
                axes.plot(100 * policy["success"], row, "o", color=colour, markersize=9)
                axes.annotate(f"{100 * policy['success']:.0f} %", (100 * policy["success"], row), (0, 9), **_ABOVE)
            if policy["success_wrong_instruction"] is not None:
                axes.plot(100 * policy["success_wrong_instruction"], row, "x", color=_MUTED, markersize=7, markeredgewidth=2)
        _rows(axes, [policy["name"] for policy in policies])
        axes.set_xlim(-3, 103)
        axes.set_xlabel("episodes that succeed, %")
        return _svg(figure, "success")


def task_plot(policies: Sequence[Mapping[str, Any]]) -> str:
    """Success per task, one group per task and one bar per policy."""
    tasks = list(policies[0].get("per_task", {}))
    with _style("tasks"):
        figure, axes = _canvas(7.2, 0.7 + 0.2 * len(tasks) * (len(policies) + 1))
        step = len(policies) + 1
        for group, task in enumerate(tasks):
            for row, policy in enumerate(policies):
                found = policy["per_task"].get(task)
                if found is None:
                    continue
                y = group * step + row
                low, high = found["success_ci95"]
                axes.barh(y, 100 * found["success"], height=0.7, color=_colour(row))
                axes.plot([100 * low, 100 * high], [y, y], color=_MUTED, linewidth=1)
                axes.annotate(f"{found['successes']}/{found['episodes']}", (101, y), (0, 0), **_RIGHT)
        axes.set_yticks([group * step + (len(policies) - 1) / 2 for group in range(len(tasks))], tasks)
        axes.invert_yaxis()
        axes.set_xlim(0, 112)
        axes.set_xticks(range(0, 101, 20))
        axes.set_xlabel("episodes that succeed, %")
        return _svg(figure, "tasks")


def axes_plot(policies: Sequence[Mapping[str, Any]]) -> str:
    """Success with its 95 % interval on every axis of generalisation, one group per axis and one line per policy."""
    axes_names = list(policies[0]["axes"])
    step = len(policies) + 0.6
    with _style("axes"):
        figure, axes = _canvas(7.2, 1.0 + 0.24 * len(axes_names) * step)
        for row, policy in enumerate(policies):
            for group, axis in enumerate(axes_names):
                found, y = policy["axes"][axis], group * step + row
                low, high = found["success_ci95"]
                axes.plot([100 * low, 100 * high], [y, y], color=_colour(row), linewidth=6, alpha=0.3, solid_capstyle="round")
                axes.plot(100 * found["success"], y, "o", color=_colour(row), markersize=7, label=policy["name"] if group == 0 else None)
                axes.annotate(f"{found['successes']}/{found['episodes']}", (104, y), (0, 0), **_RIGHT)
        axes.set_yticks([group * step + (len(policies) - 1) / 2 for group in range(len(axes_names))], axes_names)
        axes.invert_yaxis()
        axes.set_xlim(-3, 116)
        axes.set_xticks(range(0, 101, 20))
        axes.set_xlabel("episodes that succeed, %")
        if len(policies) > 1:
            figure.legend(frameon=False, loc="outside upper center", ncols=min(4, len(policies)), fontsize=9)
        return _svg(figure, "axes")


def methods_plot(rows: Sequence[Mapping[str, Any]]) -> str:
    """Success with its 95 % interval against the method of distillation: one panel a suite, one line a precision."""
    suites = list(dict.fromkeys(row["suite"] for row in rows))
    precisions = list(dict.fromkeys(row["precision"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    with _style("methods"):
        figure, panels = _panels(suites, 4.6, 1.1 + 0.42 * len(methods))
        for axes, suite in zip(panels, suites, strict=True):
            for number, precision in enumerate(precisions):
                here = {row["method"]: row for row in rows if (row["suite"], row["precision"]) == (suite, precision)}
                for method, row in here.items():
                    y = methods.index(method) + 0.2 * (number - (len(precisions) - 1) / 2)
                    low, high = row["success_ci95"]
                    axes.plot([100 * low, 100 * high], [y, y], color=_colour(number + 1), linewidth=4, alpha=0.3, solid_capstyle="round")
                    label = precision if method == list(here)[-1] else None
                    axes.plot(100 * row["success"], y, "o", color=_colour(number + 1), markersize=6, label=label)
            _rows(axes, methods)
            axes.set_title(suite, fontsize=10)
            axes.set_xlim(-3, 103)
            axes.set_xlabel("episodes that succeed, %")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, loc="outside upper center", ncols=len(precisions), fontsize=9)
        return _svg(figure, "methods")


def delays_plot(rows: Sequence[Mapping[str, Any]], precision: str = "float") -> str:
    """Success against how late answers are: one panel a suite, one line a method; the teacher's is dashed."""
    rows = [row for row in rows if row["precision"] == precision]
    suites = list(dict.fromkeys(row["suite"] for row in rows))
    students = [method for method in dict.fromkeys(row["method"] for row in rows) if method != "teacher"]
    with _style("delays"):
        figure, panels = _panels(suites, 4.6, 3.8)
        for axes, suite in zip(panels, suites, strict=True):
            for row in (row for row in rows if row["suite"] == suite):
                ticks = [int(tick) for tick in row["success_at_delay_ticks"]]
                rates = [100 * rate for rate in row["success_at_delay_ticks"].values()]
                is_teacher = row["method"] == "teacher"
                look = {"color": _MUTED, "linestyle": "--"} if is_teacher else {"color": _colour(students.index(row["method"]))}
                axes.plot(ticks, rates, marker="o", markersize=5, linewidth=2, label=row["method"], **look)
            axes.set_xticks(ticks)
            axes.set_ylim(-3, 103)
            axes.set_title(suite, fontsize=10)
            axes.set_xlabel("control ticks that an answer is late")
            axes.set_ylabel("episodes that succeed, %")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, loc="outside upper center", ncols=4, fontsize=9)
        return _svg(figure, "delays")


def stand_alone(svg: str) -> str:
    """A drawing as a file of its own: with the namespace and the colours (those of a light page) that it else takes from its page."""
    for name, colour in _LIGHT.items():
        svg = svg.replace(f"var({name})", colour)
    return svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg" style="background: #ffffff; font-family: sans-serif"', 1) + "\n"


def latency_plot(policies: Sequence[Mapping[str, Any]]) -> str:
    """Distribution of the decision latency: share of decisions that are ready after so many milliseconds."""
    with _style("latency"):
        figure, axes = _canvas(4.8, 3.2)
        for row, policy in enumerate(policies):
            values = policy.get("latency_quantiles_ms")
            if not values:
                continue
            share = np.linspace(0, 100, len(values))
            axes.plot(values, share, color=_colour(row), linewidth=2, label=policy["name"])
            axes.plot(policy["latency_ms"]["p50"], 50, "o", color=_colour(row), markersize=6)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_ylim(0, 101)
        axes.set_xlabel("decision latency, ms (logarithmic)")
        axes.set_ylabel("decisions that are ready, %")
        axes.legend(frameon=False, loc="lower right", fontsize=9)
        return _svg(figure, "latency")


def size_plot(policies: Sequence[Mapping[str, Any]]) -> str:
    """Bytes of the weights and peak memory of the process."""
    with _style("size"):
        figure, axes = _canvas(4.8, 3.2)
        for row, policy in enumerate(policies):
            bars = (("size_bytes", -0.18, 1.0, "weights"), ("peak_memory_bytes", 0.18, 0.35, "process"))
            for key, offset, alpha, what in bars:
                if policy[key] is None:
                    continue
                megabytes = policy[key] / 1e6
                axes.barh(row + offset, megabytes, height=0.32, color=_colour(row), alpha=alpha)
                axes.annotate(f"{as_bytes(policy[key])} {what}", (megabytes, row + offset), (5, 0), **_RIGHT)
        _rows(axes, [policy["name"] for policy in policies])
        axes.set_xscale("log")
        left, right = axes.get_xlim()
        axes.set_xlim(left / 2, right * 25)
        axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("MB (logarithmic)")
        return _svg(figure, "size")


def timeline_plot(stages: Sequence[Mapping[str, Any]]) -> str:
    """What every stage took: wall time one after the other, CPU time beside it."""
    with _style("timeline"):
        figure, axes = _canvas(7.2, 0.7 + 0.34 * len(stages))
        started = 0.0
        for row, stage in enumerate(stages):
            axes.barh(row, stage["wall_s"], left=started, height=0.62, color=_SERIES[1])
            text = f"{as_duration(stage['wall_s'])} wall, {as_duration(stage['cpu_s'])} CPU"
            axes.annotate(text, (started + stage["wall_s"], row), (6, 0), fontsize=8.5, **_RIGHT)
            started += stage["wall_s"]
        _rows(axes, [stage["title"] for stage in stages])
        axes.set_xlim(0, max(started, 1.0) * 1.32)
        axes.set_xlabel("seconds of wall time, one stage after the other")
        return _svg(figure, "timeline")


_RIGHT: dict[str, Any] = {"textcoords": "offset points", "va": "center", "ha": "left", "color": _MUTED}
_ABOVE: dict[str, Any] = {"textcoords": "offset points", "va": "bottom", "ha": "center", "color": _INK, "fontsize": 9}


def _style(salt: str) -> Any:
    settings: Any = {**_STYLE, "svg.hashsalt": salt}
    return matplotlib.rc_context(settings)


def _colour(index: int) -> str:
    return _SERIES[index % len(_SERIES)]


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, max(1.4, height)), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    return figure, axes


def _panels(names: Sequence[str], width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side, which share their vertical axis."""
    figure = Figure(figsize=(max(7.2, width * len(names)), height), layout="constrained")
    figure.patch.set_alpha(0)
    panels = list(figure.subplots(1, len(names), sharey=True, squeeze=False)[0])
    for axes in panels:
        axes.patch.set_alpha(0)
    return figure, panels


def _rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)


def _svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> element for an HTML page: no XML header, no metadata, unique ids, colours from CSS."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<(metadata|style).*?</\1>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text)
    text = text.replace("xlink:href=", "href=")
    text = re.sub(r"\s(width|height)=\"[\d.]+pt\"", "", text, count=2)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r'id="', f'id="{name}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\1{name}-", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text.strip()
