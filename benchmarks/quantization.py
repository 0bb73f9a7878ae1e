"""What quantization costs and gains, as one command that goes on where it was stopped.

* behaviour: every scheme drives the same report episodes as the float bundle that it was made from; difference with its interval for
  pairs, the verdict for a margin (`quantize.certificate`), jerk where both succeed, size;
* latency: every scheme and the peers (`benchmarks.peers`) by turns, with one thread and two, beside the ceilings of this machine.

    python -m benchmarks.quantization --bundle bundles/float --data data/table --checkpoint checkpoints/student --out runs/quantization
    python -m benchmarks.quantization … --parts latency            alone on the machine: other work shows in every figure
    python -m benchmarks.quantization … --schemes int8 int4-int8

Finished parts are kept below --out. The result, quantization.json, is what is kept in benchmarks/results.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actlet.errors import ActletError, SpecError, UnknownNameError
from actlet.manifest import manifest_hash, read_manifest
from actlet.provenance import package_versions, utc_now
from actlet.storage import read_json, write_json
from benchmarks.chain import Chain
from benchmarks.distillation_rows import rate_text
from benchmarks.machine import describe_machine, describe_versions
from benchmarks.peers import IN_A_ROW, measure_backends
from benchmarks.tables import markdown_table, text_table
from benchmarks.units import as_percent, as_significant
from episodes.rollout import EpisodeResult
from episodes.seeds import REPORT_SEED_START
from quantize.frames import frames_of_dataset
from quantize.paired_runs import drive, motion_of, paired_rates, verdict
from quantize.quantize_bundle import quantize_bundle
from quantize.schemes import Scheme, scheme
from runtime.policy import BundlePolicy

__all__ = ["SCHEMES", "QuantizationConfig", "main", "measure_quantization", "quantization_text"]

PARTS = ("behaviour", "latency")
RESULT = "quantization.json"
SCHEMES: dict[str, Scheme] = {
    "int8": scheme("int8"),
    "int8, weights to 127": scheme("int8", weight_levels=127),
    "int8 portable": scheme("int8", dialect="portable"),
    "int8-dynamic": scheme("int8-dynamic"),
    "int4": scheme("int4"),
    "int4 gptq 64": scheme("int4", method="gptq", block=64),
    "int4 hqq 128": scheme("int4", method="hqq", block=128),
    "int4-int8": scheme("int4-int8"),
}
"""What is judged."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizationConfig:
    """What is measured, and on how much."""

    parts: tuple[str, ...] = PARTS
    schemes: tuple[str, ...] = tuple(SCHEMES)
    """Keys of `SCHEMES`."""
    suite: str = "tabletop"
    episodes: int = 300
    """Report episodes of every policy."""
    margin: float = 0.03
    """See `quantize.certificate`."""
    frames: int = 128
    """Recorded frames to calibrate with, and as many to judge by."""
    rounds: int = 300
    """Calls of every backend."""
    threads: tuple[int, ...] = (1, 2)
    workers: int | None = None

    def __post_init__(self) -> None:
        for kind, given, known in (("part", self.parts, PARTS), ("scheme", self.schemes, tuple(SCHEMES))):
            for word in given:
                if word not in known:
                    raise UnknownNameError(kind, word, list(known))
        if min(self.episodes, self.frames, self.rounds, *self.threads) < 1 or not self.parts:
            raise SpecError(f"quantization: {self}: every number must be positive, and there must be a part.")


def measure_quantization(
    out: Path, bundle: Path, data: Path, config: QuantizationConfig | None = None, *, checkpoint: Path | None = None
) -> dict[str, Any]:
    """Run what is not done yet.

    Args:
        out: A folder that keeps every finished part.
        bundle: A float bundle.
        data: A LeRobotDataset folder to calibrate with.
        config: What, and how much.
        checkpoint: The student that the bundle was exported from, for torch's rows.

    Returns:
        JSON types: ``about`` (part -> ``date, machine, versions, conditions, config``), ``behaviour`` (``scheme, episodes, outcomes, success, success_ci95, difference,
        difference_ci95, mcnemar_p, jerk_ratio, size_ratio, verdict``), ``latency`` (see `benchmarks.peers.measure_backends`); a part that was not asked for is the one that was
        measured before, or None.

    Raises:
        ActletError: A stage failed; finished ones are kept.
    """
    config = config or QuantizationConfig()
    judged = 2 * len(config.schemes) + 1 if "behaviour" in config.parts else 0
    chain = Chain(out, total=judged + ("latency" in config.parts) * len(config.threads))
    behaviour = _behaviour(chain, bundle, data, config) if "behaviour" in config.parts else None
    latency = _latency(chain, bundle, data, config, checkpoint) if "latency" in config.parts else None
    before = read_json(out / RESULT) if (out / RESULT).is_file() else {"about": {}, "behaviour": None, "latency": None}
    about = {"date": utc_now(), "machine": describe_machine(), "versions": describe_versions()}
    about |= {"conditions": _conditions(about, config), "config": json.loads(json.dumps(dataclasses.asdict(config)))}
    return {
        "about": {**before["about"], **dict.fromkeys(config.parts, about)},
        "behaviour": before["behaviour"] if behaviour is None else behaviour,
        "latency": before["latency"] if latency is None else latency,
        "stages": chain.records,
    }


def _conditions(about: Mapping[str, Any], config: QuantizationConfig) -> str:
    machine, versions = about["machine"], about["versions"]
    return (
        f"{about['date'][:10]}, {machine['cpu']}, {machine['cores_usable']} cores, Python {versions['python']}, onnxruntime "
        f"{versions.get('onnxruntime', '–')}, torch {versions.get('torch', '–')}. Episodes: suite `{config.suite}`, report seeds from 0, lockstep, "
        f"difference against the float bundle on the same seeds with Bonett and Price's 95 % interval, margin {100 * config.margin:g} points. Latency: by "
        f"turns of {IN_A_ROW} calls in {config.rounds} rounds, in an order drawn anew for each; cold: a turn's first call, otherwise the mean of the "
        "others; medians; batch 1, one instruction; against float: CPU medians; ceiling: of the matrix product's rate in the same precision, in the "
        "same run."
    )


def _behaviour(chain: Chain, bundle: Path, data: Path, config: QuantizationConfig) -> list[dict[str, Any]]:
    before = _episodes(chain, "float", bundle, config)
    size = read_manifest(bundle).network_bytes
    rows = []
    for name in config.schemes:
        folder = name.replace(",", "").replace(" ", "-")
        child = chain.stage(
            folder,
            f"quantize to {name}",
            functools.partial(_quantize, bundle=bundle, chosen=SCHEMES[name], data=data, frames=config.frames),
            arguments={"scheme": json.loads(json.dumps(dataclasses.asdict(SCHEMES[name]))), "frames": config.frames},
            inputs={"from": bundle, "data": data},
        )
        now = _episodes(chain, folder, child, config)
        found = paired_rates([result.success for result in now], [result.success for result in before])
        rows.append(
            {
                "scheme": name,
                "episodes": found["episodes"],
                "outcomes": found["outcomes"]["child"],
                "outcomes_float": found["outcomes"]["parent"],
                "success": found["success"]["child"],
                "success_ci95": found["success_ci95"]["child"],
                "success_float": found["success"]["parent"],
                "difference": found["difference"],
                "difference_ci95": found["difference_ci95"],
                "mcnemar_p": found["mcnemar_p"],
                "jerk_ratio": motion_of(now, before)["jerk_ratio"],
                "size_ratio": read_manifest(child).network_bytes / size,
                "verdict": verdict(found["difference_ci95"], config.margin, parent=found["success"]["parent"]),
            }
        )
    return rows


def _quantize(out: Path, *, bundle: Path, chosen: Scheme, data: Path, frames: int) -> None:
    quantize_bundle(bundle, out, scheme=chosen, data=data, calibration_frames=frames, held_out_frames=frames, allow_slower=True)


def _episodes(chain: Chain, name: str, bundle: Path, config: QuantizationConfig) -> list[EpisodeResult]:
    def work(place: Path) -> None:
        found = drive(bundle, manifest_hash(bundle), config.suite, REPORT_SEED_START, config.episodes, workers=config.workers)
        write_json(place, [result.to_dict() for result in found])

    arguments = {"suite": config.suite, "episodes": config.episodes}
    done = chain.stage(
        f"episodes/{name}.json", f"run {config.episodes} episodes: {name}", work, arguments=arguments, inputs={"policy": bundle}
    )
    return [EpisodeResult(**episode) for episode in read_json(done)]


def _latency(chain: Chain, bundle: Path, data: Path, config: QuantizationConfig, checkpoint: Path | None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    # Of another machine, or with another library, they are other figures.
    here = {"cpu": describe_machine()["cpu"], "versions": package_versions(("onnxruntime", "torch", "openvino", "nncf", "torchao"))}
    for threads in config.threads:

        def work(place: Path, threads: int = threads) -> None:
            policy = BundlePolicy(bundle)
            tokenizer, action = policy.bundle.manifest.tokenizer, policy.spec.action
            calibrate, judge, _ = frames_of_dataset(data, policy.spec, policy.networks, calibration=config.frames, held_out=config.frames)
            limits = np.asarray(action.high, np.float32) - np.asarray(action.low, np.float32)
            unit = np.maximum(tokenizer.high - tokenizer.low, 1e-3 * limits)
            found = measure_backends(
                bundle,
                calibrate,
                judge,
                checkpoint=checkpoint,
                threads=threads,
                rounds=config.rounds,
                unit=unit,
                flags=action.is_binary,
            )
            write_json(place, found)

        inputs: dict[str, Path | str] = {"bundle": bundle, "data": data, **({"checkpoint": checkpoint} if checkpoint else {})}
        name = f"latency-{threads}.json"
        arguments = {"threads": threads, "rounds": config.rounds, "frames": config.frames, **here}
        rows += read_json(chain.stage(name, f"time everything by turns, {threads} threads", work, arguments=arguments, inputs=inputs))
    return rows


def quantization_text(document: Mapping[str, Any], *, markdown: bool = True) -> str:
    """Both tables, and the conditions that they hold under."""
    table, parts = markdown_table if markdown else text_table, []
    if document["behaviour"]:
        header = ["scheme", "success [95 %]", "against float", "verdict", "jerk", "size"]
        cells = [
            [
                row["scheme"],
                rate_text(row),
                f"{100 * row['difference']:+.1f} [{100 * row['difference_ci95'][0]:+.1f}, {100 * row['difference_ci95'][1]:+.1f}]",
                row["verdict"],
                "–" if row["jerk_ratio"] is None else f"x {row['jerk_ratio']:.2f}",
                as_percent(row["size_ratio"]),
            ]
            for row in document["behaviour"]
        ]
        parts.append(table(header, cells))
    if document["latency"]:
        header = [
            "backend",
            "threads",
            "p50",
            "p99",
            "CPU",
            "against float",
            "cold CPU",
            "against float",
            "of the ceiling",
            "error",
            "size",
        ]
        cells = [
            [
                row["backend"],
                str(row["threads"]),
                f"{as_significant(row['p50_ms'])} ms",
                f"{as_significant(row['p99_ms'])} ms",
                f"{as_significant(row['cpu_ms'])} ms",
                f"x {row['ratio_to_float']:.2f}",
                f"{as_significant(row['cold_cpu_ms'])} ms",
                f"x {row['cold_ratio_to_float']:.2f}",
                as_percent(row["share_of_ceiling"]),
                f"{100 * row['mean_error']:.2f} %",
                "–" if row["size_bytes"] is None else f"{row['size_bytes'] / 1e6:.2f} MB",
            ]
            for row in document["latency"]
            if "p50_ms" in row
        ]
        parts.append(table(header, cells))
        lines = [f"{row['backend']}, {row['threads']} threads: none ({row['missing']})" for row in document["latency"] if "missing" in row]
        lines += [
            f"ceiling {row['ceiling']}, {row['threads']} threads: {as_significant(row['rate'] / 1e9)} G{'B' if row['ceiling'] == 'copy' else 'MAC'}/s"
            for row in document["latency"]
            if "ceiling" in row
        ]
        parts.append("\n".join(f"- {line}" for line in lines))
    return "\n\n".join([*parts, *dict.fromkeys(about["conditions"] for about in document["about"].values())])


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m benchmarks.quantization``; see the module's docstring."""
    defaults = QuantizationConfig()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quantization", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True, help="a float bundle")
    parser.add_argument("--data", type=Path, required=True, help="a LeRobotDataset folder to calibrate with")
    parser.add_argument("--checkpoint", type=Path, help="the student that the bundle was exported from, for torch's rows")
    parser.add_argument("--out", type=Path, required=True, help="the folder that keeps finished parts, and the result")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="(default: both)")
    parser.add_argument("--schemes", nargs="+", choices=list(SCHEMES), default=list(SCHEMES), help="whose behaviour (default: all)")
    parser.add_argument("--suite", default=defaults.suite, help="where they drive (default: %(default)s)")
    parser.add_argument("--episodes", type=int, default=defaults.episodes, help="report episodes (default: %(default)s)")
    parser.add_argument("--margin", type=float, default=defaults.margin, help="of the verdict (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=defaults.rounds, help="calls of every backend (default: %(default)s)")
    parser.add_argument("--threads", type=int, nargs="+", default=list(defaults.threads), help="(default: 1 2)")
    parser.add_argument("--workers", type=int, help="processes that run episodes (default: one per core)")
    given = parser.parse_args(argv)
    try:
        config = QuantizationConfig(
            parts=tuple(given.parts),
            schemes=tuple(given.schemes),
            suite=given.suite,
            episodes=given.episodes,
            margin=given.margin,
            rounds=given.rounds,
            threads=tuple(given.threads),
            workers=given.workers,
        )
        document = measure_quantization(given.out, given.bundle, given.data, config, checkpoint=given.checkpoint)
        write_json(given.out / RESULT, document)
    except ActletError as error:
        print(error, file=sys.stderr)
        return 2
    print(quantization_text(document, markdown=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
