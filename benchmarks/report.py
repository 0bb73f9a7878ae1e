"""report.html: one self-contained page from results.json and a folder of pictures.

The page needs no network and no other file: drawings are SVG in the page, pictures are data. It follows the reader's light
or dark setting.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from actlet.storage import read_json, write_bytes
from benchmarks import plots
from benchmarks.results import check_results
from benchmarks.thresholds import judge
from benchmarks.units import as_bytes, as_count, as_duration, as_number, as_percent, as_significant
from quantize.certificate import certificate_lines

__all__ = ["render_report", "write_report"]

TEMPLATE = Path(__file__).with_name("report_template.html")


def write_report(path: str | Path, results: Mapping[str, Any], *, pictures: Path | None = None) -> None:
    """Write the page, whole.

    Args:
        path: The file to write.
        results: A results document.
        pictures: A folder with ``films.json`` and PNG files, as `benchmarks.pictures` writes it.
    """
    write_bytes(path, render_report(results, pictures=pictures).encode())


def render_report(results: Mapping[str, Any], *, pictures: Path | None = None) -> str:
    """The page as text; see `write_report`."""
    check_results(results)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.ChainableUndefined)
    environment.filters.update(
        count=as_count, bytes=as_bytes, percent=as_percent, number=as_number, significant=as_significant, words=_words, plain=_plain
    )
    policies, stages = results["policies"], results.get("stages", [])
    drawings = {
        "success": plots.success_plot(policies),
        "tasks": plots.task_plot(policies) if policies[0].get("per_task") else "",
        "latency": plots.latency_plot(policies),
        "size": plots.size_plot(policies),
        "timeline": plots.timeline_plot(stages) if stages else "",
    }
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        results=results,
        cards=_cards(policies),
        plots={name: markupsafe.Markup(drawing) for name, drawing in drawings.items()},
        compared=[policy for policy in policies if "compared" in policy],
        certificates=[
            {"name": policy["name"], "lines": certificate_lines(policy["certificate"]), **policy["certificate"]}
            for policy in policies
            if "certificate" in policy
        ],
        precisions=[{"name": policy["name"], **group} for policy in policies for group in policy.get("precisions", [])],
        thresholds=[dataclasses.asdict(threshold) for threshold in judge(results)],
        pictures=_films(pictures),
        total={
            "wall": as_duration(sum(stage["wall_s"] for stage in stages)),
            "cpu": as_duration(sum(stage["cpu_s"] for stage in stages)),
            "skipped": sum(stage["skipped"] for stage in stages),
        },
    )


def _cards(policies: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The few figures that a hurried reader takes along: the first policy against the last but one or the smallest."""
    by_name = {policy["name"]: policy for policy in policies}
    first, small = policies[0], by_name.get("student-int8", policies[-1])
    cards = [
        {
            "figure": f"{small['decision_rate_hz'] / first['decision_rate_hz']:.0f} ×",
            "text": f"the decisions of {first['name']}: {as_number(small['decision_rate_hz'])} a second with {small['name']}, "
            f"{as_number(first['decision_rate_hz'])} before",
        },
        {
            "figure": as_percent(small["success"]),
            "text": f"of episodes succeed with {small['name']}; {as_percent(first['success'])} with {first['name']}",
        },
    ]
    if small["size_bytes"] and first["size_bytes"]:
        cards.append(
            {
                "figure": f"1 / {first['size_bytes'] / small['size_bytes']:.0f}",
                "text": f"of the weights: {as_bytes(small['size_bytes'])}, {as_bytes(first['size_bytes'])} before",
            }
        )
    if small["success_wrong_instruction"] is not None:
        cards.append(
            {
                "figure": as_percent(small["success_wrong_instruction"]),
                "text": f"success of {small['name']} when told something else: low is good",
            }
        )
    return cards


def _films(folder: Path | None) -> list[dict[str, Any]]:
    if folder is None or not (folder / "films.json").is_file():
        return []
    films = read_json(folder / "films.json")
    for film in films:
        for picture in film["pictures"]:
            picture["data"] = base64.b64encode((folder / picture["file"]).read_bytes()).decode()
    return list(films)


def _words(key: str) -> str:
    return key.replace("_", " ")


def _plain(value: Any) -> str:
    """JSON values for people."""
    if isinstance(value, dict):
        return ", ".join(f"{_words(str(key))} {_plain(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(item) for item in value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
