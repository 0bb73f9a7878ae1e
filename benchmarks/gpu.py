"""What a GPU does for a policy: every bundle on every backend of this machine, by turns with the processor, and the teacher beside them.

    python -m benchmarks.gpu bundles/float bundles/float16 bundles/int8-portable --out benchmarks/results/gpu.json

A backend that cannot run here is a row that says why, never one that ran on something else. `difference` is the largest between an answer and the one
that was recorded when the bundle was made (on a processor), as a share of the action's range; a backend whose answers are too far off does not open.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actlet.errors import ActletError
from actlet.protocols import Observation, Policy
from actlet.provenance import utc_now
from actlet.statistics import latency_summary
from actlet.storage import read_json, write_json
from benchmarks.latency import LatencyConfig, measure_by_turns
from benchmarks.machine import describe_machine, describe_versions
from benchmarks.policies import Sample
from runtime.backends import BACKENDS
from runtime.policy import BundlePolicy

__all__ = ["gpu_text", "measure_gpu"]

MOMENTS = 16
TEACHER_CALLS, UPDATES = 40, 600


def measure_gpu(
    bundles: Mapping[str, Path],
    *,
    config: LatencyConfig | None = None,
    teacher: str | Path | None = None,
    data: Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Time all of them in one run.

    Args:
        bundles: Name -> folder; all see the same things.
        config: How much is measured.
        teacher: A teacher's folder, timed on the processor and on the GPU; None for none.
        data: Demonstrations that students are trained on, in every precision that the machine has; None for no training.
        progress: Show how far it is.

    Returns:
        JSON types: ``date, machine, versions, rows``, ``teacher`` and ``training``. A row has ``bundle, precision, backend`` and either ``error``, or ``runs_on``,
        ``opened_s``, ``difference``, ``latency_ms``, ``latency_cpu_ms``, ``ratio_to_cpu`` (of the medians) and, of an engine, ``is_recorded``.
    """
    config, rows, policies = config or LatencyConfig(rounds=100), [], {}
    for name, path in bundles.items():
        for backend in BACKENDS:
            row: dict[str, Any] = {"bundle": name, "backend": backend}
            start = time.perf_counter()
            try:
                policy = BundlePolicy(path, backend=backend)
            except ActletError as error:
                rows.append(row | {"error": str(error)})
                continue
            row |= {
                "precision": policy.bundle.manifest.precision,
                "runs_on": list(policy.networks.providers),
                "opened_s": time.perf_counter() - start,
                "difference": _difference(policy),
            }
            policies[f"{name} {backend}"] = policy
            rows.append(row)
    timings, _ = measure_by_turns(policies, _samples(next(iter(policies.values()))), config, progress=progress)
    for row in rows:
        if "error" not in row:
            timing = timings[f"{row['bundle']} {row['backend']}"]
            row |= {"latency_ms": latency_summary(timing.wall_s), "latency_cpu_ms": latency_summary(timing.cpu_s)}
    medians = {row["bundle"]: row["latency_ms"]["p50"] for row in rows if row["backend"] == "cpu" and "error" not in row}
    for row in rows:
        if "error" not in row and row["bundle"] in medians:
            row["ratio_to_cpu"] = row["latency_ms"]["p50"] / medians[row["bundle"]]
    taught = _teacher_rows(teacher, next(iter(policies.values()))) if teacher is not None else None
    conditions = {**dataclasses.asdict(config), "threads": 1, "batch": 1, "interleaved": True}
    about = {"date": utc_now(), "machine": describe_machine(), "versions": describe_versions(), "conditions": conditions}
    return {**about, "rows": rows, "teacher": taught, "training": _training_rows(data) if data is not None else None}


def _samples(policy: BundlePolicy) -> list[Sample]:
    """Recorded questions under one instruction, as a robot asks them."""
    golden = policy.bundle.golden
    moments = (Observation({name: frames[i] for name, frames in golden.images.items()}, golden.state[i]) for i in range(len(golden)))
    return [Sample(moment, golden.text[0]) for moment in moments][:MOMENTS]


def _difference(policy: BundlePolicy) -> float:
    """From the recorded answers, as a share of the range."""
    golden, manifest = policy.bundle.golden, policy.bundle.manifest
    unit = np.maximum(
        manifest.tokenizer.high - manifest.tokenizer.low, 1e-3 * (np.asarray(policy.spec.action.high) - np.asarray(policy.spec.action.low))
    )
    worst = 0.0
    for i in range(len(golden)):
        images = {name: frames[i] for name, frames in golden.images.items()}
        actions, _ = policy.networks.answer(images, golden.state[i], golden.instruction[i], golden.committed[i])
        worst = max(worst, float(np.max(np.abs(actions - golden.actions[i]) / unit)))
    return worst


def _teacher_rows(folder: str | Path, asked: BundlePolicy) -> list[dict[str, Any]]:
    """The teacher on this machine's processor (one thread) and GPU, its language model in every precision, by turns."""
    import torch

    from distill.teacher_checkpoint import load_teacher

    torch.set_num_threads(1)
    policies: dict[str, Policy] = {}
    rows: list[dict[str, Any]] = []
    for device, load in (("cpu", "fp32"), ("cuda", "fp32"), ("cuda", "int8"), ("cuda", "nf4")):
        row = {"device": device, "load": load}
        try:
            before = torch.cuda.memory_allocated()
            policies[f"{device} {load}"] = load_teacher(folder, device=device, load=load)
            row["gpu_bytes"] = torch.cuda.memory_allocated() - before
        except Exception as error:  # Of whichever library; the others are measured.
            row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        rows.append(row)
    samples = _samples(asked)
    timings, _ = measure_by_turns(policies, samples, LatencyConfig(rounds=TEACHER_CALLS, calls=1), progress=False)
    first = next(iter(policies.values())).predict([samples[0].observation], [samples[0].instruction])[0].actions
    for row in rows:
        name = f"{row['device']} {row['load']}"
        if name in timings:
            other = policies[name].predict([samples[0].observation], [samples[0].instruction])[0].actions
            row |= {"latency_ms": latency_summary(timings[name].wall_s), "latency_cpu_ms": latency_summary(timings[name].cpu_s)}
            row["difference"] = float(np.abs(other - first).max())
    return rows


def _training_rows(data: Path) -> list[dict[str, Any]]:
    """Cloning in float32 and in bfloat16: ``precision, device, updates, seconds, cpu_s``, and the loss as it went."""
    import tempfile

    from distill.train import distill
    from distill.train_config import TrainConfig

    rows = []
    for bf16 in (False, None):
        start, cpu = time.perf_counter(), time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            student = distill(data, Path(folder) / "student", config=TrainConfig(steps=UPDATES, bf16=bf16))
            log = [json.loads(line) for line in (student / "train_log.jsonl").read_text(encoding="utf-8").splitlines()]
            cost = read_json(student / "config.json").get("cost", {})
        row = {"precision": "float32" if bf16 is False else "the machine's own", "updates": UPDATES}
        row |= {"seconds": time.perf_counter() - start, "cpu_s": time.process_time() - cpu, "cost": cost}
        rows.append(
            row
            | {"steps": [line["step"] for line in log], "loss": [line["loss"] for line in log], "at_s": [line["seconds"] for line in log]}
        )
    return rows


def gpu_text(document: Mapping[str, Any]) -> str:
    """The same as lines for people."""
    lines = [f"{', '.join(document['machine']['gpus']) or 'no GPU'}; {document['machine']['cpu']}; {document['date']}"]
    for row in document["rows"]:
        name = f"{row['bundle']:<18}{row['backend']:<14}"
        if "error" in row:
            lines.append(f"{name}{row['error'].splitlines()[0][:170]}")
        else:
            took, cpu = row["latency_ms"], row["latency_cpu_ms"]
            lines.append(
                f"{name}p50 {took['p50']:.3f} ms  p99 {took['p99']:.3f}  CPU {cpu['p50']:.3f}  {row.get('ratio_to_cpu', float('nan')):.2f} of the processor's  "
                f"off by {row['difference']:.1e}  {'+'.join(row['runs_on'])}"
            )
    for row in document["teacher"] or []:
        said = (
            row.get("error")
            or f"p50 {row['latency_ms']['p50']:.1f} ms  off by {row['difference']:.1e}  {row['gpu_bytes'] / 1e6:.0f} MB on the GPU"
        )
        lines.append(f"teacher           {row['device']:<6}{row['load']:<8}{said}")
    for row in document["training"] or []:
        rate = row["updates"] / row["at_s"][-1]
        lines.append(
            f"training          {row['precision']:<18}{rate:.1f} updates a second, loss {row['loss'][-1]:.3f}, {row['seconds']:.0f} s with all around it"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m benchmarks.gpu`: measure, print, and write the document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundles", type=Path, nargs="+", help="bundles of policies that see the same things")
    parser.add_argument("--teacher", help="a teacher to time as well: its folder, or rt2-base")
    parser.add_argument("--data", type=Path, help="demonstrations to train students on, to time that as well")
    parser.add_argument("--rounds", type=int, default=100, help="turns of each (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="where the document is written")
    arguments = parser.parse_args(argv)
    from distill import teacher_folder

    teacher = teacher_folder(arguments.teacher) if arguments.teacher else None
    document = measure_gpu(
        {path.name: path for path in arguments.bundles}, config=LatencyConfig(rounds=arguments.rounds), teacher=teacher, data=arguments.data
    )
    write_json(arguments.out, document)
    print(gpu_text(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
