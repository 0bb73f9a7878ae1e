"""Which layers may be how small: a search that behaviour decides, not the error of answers.

Every layer is on one of three levels::

    2   float     float arithmetic, weights as they are
    1   int8      int8 arithmetic and weights
    0   int4      int8 arithmetic, weights in 4 bits

1. *Sensitivity*: each layer alone on level 1, and on level 0, all others in float; the mean error of the actions on recorded frames. It orders
   the layers, and decides nothing.
2. *Proposals*: all layers on level 0. If the robot does worse so, the most sensitive steps are taken back: one, two, four, ... of all steps down,
   until a proposal is accepted or above the budget; then the half between the last that was rolled back and it is tried, until they are neighbours.
3. *Judgement*: a proposal and the float bundle drive the same tuning episodes, in portions, until the 95 % interval of the difference lies above minus
   the margin, or below it, or all episodes are run. To be accepted it has to lie above, which for three points and 300 episodes allows about 14 in which
   only one of the two succeeds; jerk and path, where both succeed, must not be above their limits; and of a last portion with late answers the
   interval must not lie below minus the margin.

A proposal whose file or time is above the budget is not driven. Of those that are accepted the smallest file is written, and a budget that none
meets is an error that says the best that was found. All is kept until the bundle stands, so the same call goes on where it was stopped.

The judgement is for choosing: whoever looks at an interval several times, and at the best of several proposals, finds it a little better than it is.
What the bundle costs is shown on other seeds, by `quantize.certificate`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import onnx

from actlet.errors import QuantizationError, SpecError, StorageError
from actlet.manifest import CONDITION_NAME, manifest_hash, read_manifest
from actlet.provenance import package_versions
from actlet.specs import PolicySpec
from actlet.storage import read_json, write_json
from episodes.rollout import EpisodeResult
from episodes.seeds import TUNING_SEED_START
from episodes.suites import make_suite
from quantize.certificate import VERSIONS
from quantize.condition import graph_of
from quantize.frames import Frames, frames_of_dataset
from quantize.int8 import Int8Config, stacked, will_be_int8
from quantize.output_error import compare_outputs
from quantize.paired_runs import drive, motion_of, paired_rates, verdict
from quantize.quantize_bundle import QuantizeReport, quantize_bundle, require_other_place
from quantize.schemes import Scheme
from quantize.weights import WeightConfig, will_be_packed
from runtime.ort_backend import OrtModel
from runtime.policy import BundlePolicy

__all__ = ["SearchConfig", "SearchReport", "scheme_of", "search"]

LEVELS = ("int4", "int8", "float")
Outcome = Literal["accepted", "worse", "above the budget"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """What is allowed, and how much is driven."""

    suite: str = "tabletop"
    budget_mb: float | None = None
    """Largest policy.onnx and condition.onnx together, in megabytes."""
    budget_ms: float | None = None
    """Longest decision of the network: median CPU time, one thread, this machine."""
    margin: float = 0.03
    """Loss of success that would be taken, as a share."""
    jerk: float = 1.25
    """Largest jerk, in shares of the float bundle's."""
    path: float = 1.1
    """Longest path, in shares of the float bundle's."""
    episodes: int = 300
    """Most tuning episodes of a proposal."""
    portion: int = 60
    """Episodes between two looks at the interval."""
    delay: int = 1
    """Control steps by which answers come late in one more portion, where the bundle is made for it; 0 for none."""
    frames: int = 64
    """Recorded frames to calibrate with, and as many to measure errors on."""
    workers: int | None = None

    def __post_init__(self) -> None:
        budgets = [budget for budget in (self.budget_mb, self.budget_ms) if budget is not None]
        if min(self.episodes, self.portion, self.frames) < 1 or self.delay < 0 or not 0 < self.margin < 1 or min(budgets, default=1.0) <= 0:
            raise SpecError(
                f"search: {self.episodes} episodes in portions of {self.portion}, {self.frames} frames, delay {self.delay}, margin {self.margin}, budgets "
                f"{budgets}: expected positive numbers, and a margin below 1."
            )


@dataclasses.dataclass(frozen=True)
class SearchReport:
    """What was found, and how."""

    report: QuantizeReport
    """The bundle that was written."""
    tried: tuple[dict[str, Any], ...]
    """Every proposal, in order: ``taken_back, levels, size_bytes, ms, mean_error, judgement, accepted, why, cost_s``."""
    stopped: str
    """Why there were no more."""

    def lines(self) -> list[str]:
        """For people."""
        said = ["the search:"]
        for i, row in enumerate(self.tried):
            counts = ", ".join(f"{row['levels'].count(level)} {LEVELS[level]}" for level in (0, 1, 2) if row["levels"].count(level))
            said.append(
                f"  {i + 1}. {row['taken_back']} steps taken back ({counts}): {row['size_bytes'] / 1e6:.2f} MB, {row['ms']:.2f} ms, error "
                f"{100 * row['mean_error']:.2f} %; {'ACCEPTED' if row['accepted'] else 'rolled back'}: {row['why']} ({row['cost_s']:.0f} s)"
            )
        return [*said, f"  stopped: {self.stopped}", *self.report.lines()]


@dataclasses.dataclass(frozen=True)
class _Step:
    """One layer, one level down: from `level` + 1 to `level`."""

    node: str
    level: int
    error: float


@dataclasses.dataclass
class _Bench:
    """What every proposal is made from and judged by."""

    bundle: Path
    name: str
    """The bundle's hash."""
    config: SearchConfig
    work: Path
    model: onnx.ModelProto
    packable: list[str]
    float_network: OrtModel
    spec: PolicySpec
    calibrate: Frames
    judge: Frames
    tokenizer: Any


def search(
    bundle: str | Path, out: str | Path, data: str | Path, config: SearchConfig | None = None, *, seed: int = 0, overwrite: bool = False
) -> SearchReport:
    """Find the smallest bundle that behaves like its float parent, and write it.

    Args:
        bundle: A float bundle; it is only read.
        out: The bundle's folder to make. What was tried is kept beside it until it stands.
        data: A LeRobotDataset folder, to calibrate with and to measure errors on.
        config: What is allowed.
        seed: Decides which frames.
        overwrite: Replace a bundle that exists.

    Raises:
        QuantizationError: The bundle is not float, or no proposal is accepted within the budget; the message says the best that was found.
        DatasetError: The dataset cannot be used.
        UnknownNameError: There is no such suite.
        StorageError: `out` exists, or cannot be written.
    """
    config, out = config or SearchConfig(), Path(out)
    bench = _bench(Path(bundle).resolve(), Path(data), out, config, seed, overwrite)
    steps = _kept_steps(bench)
    nodes = sorted({step.node for step in steps})
    tried: list[dict[str, Any]] = []

    def attempt(taken_back: int) -> Outcome:
        """Propose with the most sensitive steps taken back."""
        levels = _levels(nodes, steps, taken_back)
        row = _attempt(bench, nodes, levels, taken_back)
        tried.append(row)
        print(f"search: {taken_back} steps taken back: {'accepted' if row['accepted'] else 'rolled back'}, {row['why']}", file=sys.stderr)
        return "accepted" if row["accepted"] else "worse" if row["judgement"] is not None else "above the budget"

    low, high = _bracket(attempt, len(steps) - 1)
    while high - low > 1:
        middle = (low + high) // 2
        if attempt(middle) == "worse":
            low = middle
        else:
            high = middle
    accepted = [row for row in tried if row["accepted"]]
    if not accepted:
        raise QuantizationError(_nothing(tried, config))
    best = min(accepted, key=lambda row: row["size_bytes"])
    report = quantize_bundle(
        bundle,
        out,
        scheme=scheme_of(dict(zip(nodes, best["levels"], strict=True)), bench.packable),
        data=data,
        calibration_frames=config.frames,
        held_out_frames=config.frames,
        seed=seed,
        allow_slower=True,  # Its time was measured, and what is allowed is the budget's to say.
        overwrite=overwrite,
    )
    if _network_hash(out) != best["policy"]:
        shutil.rmtree(out)
        raise QuantizationError(
            f"{out}: made again it is not the network that drove; nothing was written. Search anew in one go, on one machine."
        )
    smaller = next((row for row in tried if row["taken_back"] == best["taken_back"] - 1), None)
    stopped = "all layers are as small as they can be" if smaller is None else f"one step less taken back was rolled back: {smaller['why']}"
    shutil.rmtree(bench.work, ignore_errors=True)
    return SearchReport(report, tuple(tried), stopped)


def scheme_of(levels: Mapping[str, int], packable: Collection[str]) -> Scheme:
    """The scheme of a level for every layer that int8 would take; see the module's docstring.

    Args:
        levels: Layer -> level.
        packable: Layers that are worth 4 bits, also those that int8 would not take: they keep their weights.

    Raises:
        QuantizationError: All are float.
    """
    floating = tuple(node for node, level in levels.items() if level == 2)
    whole = tuple(node for node in packable if levels.get(node) != 0)
    if len(floating) == len(levels):
        raise QuantizationError("all layers are float: that is the float bundle itself.")
    int8 = Int8Config(exclude=floating)
    if len(whole) == len(packable):
        return Scheme(precision="int8", int8=int8)
    return Scheme(precision="int4-int8", int8=int8, weights=WeightConfig(block=64, method="gptq", exclude=whole))


def _bench(bundle: Path, data: Path, out: Path, config: SearchConfig, seed: int, overwrite: bool) -> _Bench:
    require_other_place(bundle, out)
    if out.exists() and not overwrite:
        raise StorageError(f"{out} exists already: choose another name, remove it, or pass --overwrite.")
    make_suite(config.suite)  # A name that is misspelled is found before hours of work.
    policy = BundlePolicy(bundle)
    if policy.bundle.manifest.precision != "float32":
        raise QuantizationError(f"{bundle} is {policy.bundle.manifest.precision} already: search from its float parent.")
    calibrate, judge, dataset = frames_of_dataset(
        data, policy.spec, policy.networks, calibration=config.frames, held_out=config.frames, seed=seed
    )
    # What it depends on; how many processes run the episodes changes nothing.
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name != "workers"}
    asked = {"bundle": policy.bundle.hash, "data": dataset, "config": settings, "seed": seed, "versions": package_versions(VERSIONS)}
    name = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:12]
    model = graph_of(policy.bundle)
    return _Bench(
        bundle=bundle,
        name=policy.bundle.hash,
        config=config,
        work=out.parent / f".{out.name}.search-{name}",
        model=model,
        packable=will_be_packed(stacked(model), WeightConfig(block=64)),
        float_network=OrtModel(model.SerializeToString(), where="the float network"),
        spec=policy.spec,
        calibrate=calibrate,
        judge=judge,
        tokenizer=policy.bundle.manifest.tokenizer,
    )


def _kept_steps(bench: _Bench) -> list[_Step]:
    """All steps down, the most sensitive first; each layer is measured once."""
    nodes, found = will_be_int8(bench.model), list[_Step]()
    for i, node in enumerate(nodes):
        place = bench.work / "sensitivity" / f"{i}.json"
        if not place.is_file():
            print(f"search: sensitivity of layer {i + 1} of {len(nodes)}, {node}", file=sys.stderr, flush=True)
            before, steps = 0.0, []
            for level in (1, 0) if node in bench.packable else (1,):  # Small layers are not worth 4 bits.
                error = _error(bench, scheme_of({**dict.fromkeys(nodes, 2), node: level}, bench.packable))
                steps.append({"node": node, "level": level, "error": max(0.0, error - before)})
                before = error
            write_json(place, steps)
        found += [_Step(**step) for step in read_json(place)]
    # A layer's second step never goes before its first is back: its place is that of the larger of the two.
    worst = {step.node: max(other.error for other in found if other.node == step.node) for step in found}
    return sorted(found, key=lambda step: (-(worst[step.node] if step.level == 0 else step.error), step.node, step.level))


def _levels(nodes: Sequence[str], steps: Sequence[_Step], taken_back: int) -> list[int]:
    """The level of every node when the first steps of the list are taken back."""
    least = {node: min(step.level for step in steps if step.node == node) for node in nodes}
    for step in steps[:taken_back]:
        least[step.node] = max(least[step.node], step.level + 1)
    return [least[node] for node in nodes]


def _bracket(attempt: Callable[[int], Outcome], most: int) -> tuple[int, int]:
    """(steps taken back of the last that was worse, of the first that was not); equal where there is nothing in between to try."""
    if attempt(0) != "worse":
        return 0, 0
    low, count = 0, 1
    while count <= most:
        if attempt(count) != "worse":
            return low, count
        low, count = count, min(2 * count, most) if count < most else most + 1
    return low, low


def _error(bench: _Bench, chosen: Scheme) -> float:
    """Mean error of the actions; 1 for a network whose answers are not finite."""
    network = OrtModel(chosen.quantize(bench.model, bench.calibrate).SerializeToString(), where="the proposed network")
    try:
        return compare_outputs(bench.float_network, network, bench.judge, bench.spec, bench.tokenizer).mean
    except QuantizationError:
        return 1.0


def _attempt(bench: _Bench, nodes: Sequence[str], levels: Sequence[int], taken_back: int) -> dict[str, Any]:
    """Make a proposal, measure it, and drive it if it is within the budgets."""
    place = bench.work / f"proposal-{hashlib.sha256(bytes(levels)).hexdigest()[:12]}"
    if (place / "row.json").is_file():
        row: dict[str, Any] = read_json(place / "row.json")
        return {**row, "taken_back": taken_back}
    begin, config = time.monotonic(), bench.config
    shutil.rmtree(place, ignore_errors=True)  # Episodes of a bundle that is made again are not that bundle's.
    made = quantize_bundle(
        bench.bundle,
        place / "bundle",
        scheme=scheme_of(dict(zip(nodes, levels, strict=True)), bench.packable),
        frames=(bench.calibrate, bench.judge),
        allow_slower=True,
    )
    size, ms, error = made.child_bytes, made.latency.child_ms, made.error.mean
    judgement: dict[str, Any] | None = None
    if config.budget_mb is not None and size > 1e6 * config.budget_mb:
        accepted, why = False, f"{size / 1e6:.2f} MB are above the budget of {config.budget_mb:g} MB"
    elif config.budget_ms is not None and ms > config.budget_ms:
        accepted, why = False, f"{ms:.2f} ms are above the budget of {config.budget_ms:g} ms"
    else:
        judgement = _judge(bench, place)
        accepted, why = judgement["accepted"], judgement["why"]
    row = {
        "taken_back": taken_back,
        "levels": list(levels),
        "policy": _network_hash(place / "bundle"),
        "size_bytes": size,
        "ms": ms,
        "mean_error": error,
        "judgement": judgement,
        "accepted": accepted,
        "why": why,
        "cost_s": time.monotonic() - begin,
    }
    write_json(place / "row.json", row)
    return row


def _network_hash(bundle: Path) -> str:
    files = read_manifest(bundle).files
    return "".join(files[name].sha256 for name in ("policy.onnx", CONDITION_NAME) if name in files)


def _judge(bench: _Bench, place: Path) -> dict[str, Any]:
    """Drive a proposal beside the float bundle until it is decided."""
    config, ours, theirs = bench.config, list[EpisodeResult](), list[EpisodeResult]()
    proposal = (place / "bundle", manifest_hash(place / "bundle"), place)
    before = (bench.bundle, bench.name, bench.work / "float")
    found: dict[str, Any] = {}
    said = "undecided"
    while len(ours) < config.episodes and said == "undecided":
        begin, count = len(ours), min(config.portion, config.episodes - len(ours))
        ours += _drive(bench, *proposal, begin, count, 0)
        theirs += _drive(bench, *before, begin, count, 0)
        found = paired_rates([result.success for result in ours], [result.success for result in theirs])
        said = verdict(found["difference_ci95"], config.margin, parent=found["success"]["parent"])
    motion = motion_of(ours, theirs)
    low, high = (100 * end for end in found["difference_ci95"])
    why = f"{100 * found['difference']:+.1f} points [{low:+.1f}, {high:+.1f}] over {len(ours)} episodes"
    accepted = said == "non-inferior"
    if not accepted:
        why += f", {said} for {100 * config.margin:g} points"
    if not found["success"]["parent"]:
        why += ": the float bundle succeeds in none, so there is nothing to lose"
    for name, ratio, most in (("jerk", motion["jerk_ratio"], config.jerk), ("path", motion["path_ratio"], config.path)):
        if ratio is not None and ratio > most:
            accepted, why = False, f"{why}; {name} x {ratio:.2f}, allowed {most:g}"
    late = None
    if accepted and config.delay and config.delay <= bench.spec.timing.max_delay_steps:
        count = min(config.portion, config.episodes)
        sides = [_drive(bench, *side, 0, count, config.delay) for side in (proposal, before)]
        late = paired_rates(*([result.success for result in side] for side in sides))
        if verdict(late["difference_ci95"], config.margin) == "inferior":
            accepted, why = False, f"{why}; {100 * late['difference']:+.0f} points when answers are {config.delay} steps late"
    return {"accepted": accepted, "why": why, "success": found, "motion": motion, "late": late}


def _drive(bench: _Bench, bundle: Path, name: str, folder: Path, begin: int, count: int, delay: int) -> list[EpisodeResult]:
    place = folder / f"episodes-{delay}-{begin}-{count}.json"
    if not place.is_file():
        first = TUNING_SEED_START + begin
        found = drive(bundle, name, bench.config.suite, first, count, delay=delay, workers=bench.config.workers)
        write_json(place, [result.to_dict() for result in found])
    return [EpisodeResult(**episode) for episode in read_json(place)]


def _nothing(tried: Sequence[Mapping[str, Any]], config: SearchConfig) -> str:
    """That no proposal was accepted, and what came nearest."""
    driven = [row for row in tried if row["judgement"] is not None]
    budget = " and ".join(f"{value:g} {unit}" for value, unit in ((config.budget_mb, "MB"), (config.budget_ms, "ms")) if value is not None)
    if driven:
        best = max(driven, key=lambda row: row["judgement"]["success"]["difference"])
        what = f"the best within it: {best['size_bytes'] / 1e6:.2f} MB, {best['ms']:.2f} ms, {best['why']}"
    else:
        best = min(tried, key=lambda row: (row["size_bytes"], row["ms"]))
        what = f"the smallest that there is: {best['size_bytes'] / 1e6:.2f} MB, {best['ms']:.2f} ms"
    return (
        f"no bundle {'within ' + budget + ' ' if budget else ''}behaves like its float parent, of {len(tried)} that were tried; {what}. Allow more (--budget-mb, "
        "--budget-ms, --margin), run more episodes, or distill a smaller student."
    )
