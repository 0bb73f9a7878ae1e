"""How long each size of student would take to decide on this machine, before any is trained: `actlet distill --budget-ms`.

A network takes as long with random weights as with trained ones. So a student of every size (`distill.student_sizes`) is made for the
specification, exported to a bundle in a temporary folder, quantized if asked, opened as the robot opens it, and timed: all by
turns, with one thread (`benchmarks.latency`).

**What counts is the p99 of CPU time.** A control loop lives by its tail, so the median does not do: half of the decisions would be
later. The tail of wall time does not do either where a machine is shared: it is the turns of other programs, and another one at
each measurement. The tail of CPU time is the student's own. With one thread it is what a decision takes where the policy has
a core to itself, as a robot should give it. Three runs in float, two shared cores of an Intel Xeon, 2026-11-26, at loads of 2.4,
4.3 and 9.2, in ms (suite `tabletop`, horizon 8)::

             wall, median           wall, p99            CPU, p99
    nano      0.65   1.04   0.81     5.9   5.8  13.0     1.3   1.6   1.6
    micro     1.21   2.03   1.71     9.3   9.7  13.8     2.0   2.6   2.7
    small     7.63  17.6   23.7     20.3  25.8  36.5     9.3  11.9  11.3

All three are shown. What is measured is this machine: a robot's own computer is measured by running the command there.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch

from actlet.errors import CallerError
from actlet.manifest import Lineage, TextEncoderInfo
from actlet.protocols import committed_rows
from actlet.provenance import utc_now
from actlet.specs import PolicySpec
from actlet.statistics import latency_summary
from benchmarks.latency import LatencyConfig, measure_by_turns
from benchmarks.machine import describe_machine, describe_versions
from benchmarks.policies import Sample, samples_for
from distill.student import Student, StudentConfig
from distill.student_sizes import SIZES, untrained_student
from distill.text_encoder import EMBEDDING_DIM, TOKEN_LENGTH, load_text_encoder
from export.bundle_writer import new_bundle
from export.samples import Samples
from export.to_onnx import student_to_onnx, text_encoder_to_onnx
from export.weight_only import store_weights_int8
from quantize.frames import frames_of_golden
from quantize.quantize_bundle import quantize_bundle
from quantize.schemes import scheme
from runtime.bundle import load_bundle
from runtime.policy import BundlePolicy

__all__ = ["Precision", "SizeLatency", "latency_table", "measure_sizes", "pick_size", "size_within_budget"]

Precision = Literal["float", "int8"]
_LATENCY = LatencyConfig(rounds=100)  # Up to 1000 calls a size, so that ten of them lie above the p99; about ten seconds.


@dataclasses.dataclass(frozen=True, kw_only=True)
class SizeLatency:
    """One size, and how long its decisions take."""

    size: str
    parameters: int
    median_ms: float
    """Wall time."""
    p99_ms: float
    """Wall time."""
    cpu_p99_ms: float
    """CPU time, which a budget is compared with."""


def size_within_budget(spec: PolicySpec, budget_ms: float, *, target: str = "cpu", precision: Precision = "float") -> str:
    """Measure every size, print the table, and pick the largest that fits.

    Args:
        spec: What the student will see and command.
        budget_ms: The longest that a decision may take, p99 of CPU time, in [ms].
        target: Where it will run: "cpu".
        precision: "float" or "int8".

    Raises:
        CallerError: Another target or precision, or nothing fits; the message says how long the smallest takes.
    """
    if target != "cpu":
        raise CallerError(
            f"--target {target!r}: students are timed in ONNX Runtime on this machine's processor, so only 'cpu' can be chosen for. "
            "Leave --target out, or choose by --size and measure the engine afterwards."
        )
    if precision not in ("float", "int8"):
        raise CallerError(f"precision {precision!r}, expected 'float' or 'int8'.")
    measured = measure_sizes(spec, {name: size.architecture for name, size in SIZES.items()}, precision=precision)
    print("\n".join(latency_table(measured, precision, budget_ms)))
    return pick_size(measured, budget_ms, precision)


def measure_sizes(
    spec: PolicySpec,
    architectures: Mapping[str, StudentConfig],
    *,
    precision: Precision = "float",
    config: LatencyConfig | None = None,
    progress: bool = True,
) -> list[SizeLatency]:
    """Time untrained students as a robot would run them, all by turns; in the order given.

    Args:
        spec: What they see and command.
        architectures: Name -> network.
        precision: "float", or "int8", calibrated on noise.
        config: How much is measured.
        progress: Show a bar.
    """
    samples = samples_for([], spec)
    threads_before = torch.get_num_threads()
    policies, parameters = {}, {}
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        instruction = store_weights_int8(text_encoder_to_onnx(load_text_encoder()))
        for name, architecture in architectures.items():
            student, out = untrained_student(spec, architecture), Path(folder) / name
            _write_bundle(student, samples, instruction, out)
            if precision == "int8":
                frames = frames_of_golden(load_bundle(out).golden)
                out = quantize_bundle(
                    out, Path(folder) / f"{name}-int8", scheme=scheme("int8"), frames=(frames, frames), allow_slower=True
                ).out
            policies[name], parameters[name] = BundlePolicy(out), student.parameter_count
    torch.set_num_threads(1)
    try:
        timings, _ = measure_by_turns(policies, samples, config or _LATENCY, progress=progress)
    finally:
        torch.set_num_threads(threads_before)
    rows = []
    for name in architectures:
        wall, cpu = latency_summary(timings[name].wall_s), latency_summary(timings[name].cpu_s)
        rows.append(SizeLatency(size=name, parameters=parameters[name], median_ms=wall["p50"], p99_ms=wall["p99"], cpu_p99_ms=cpu["p99"]))
    return rows


def pick_size(measured: Sequence[SizeLatency], budget_ms: float, precision: Precision = "float") -> str:
    """The largest size that fits.

    Raises:
        CallerError: None does.
    """
    fitting = [row for row in measured if row.cpu_p99_ms <= budget_ms]
    if fitting:
        return max(fitting, key=lambda row: row.parameters).size
    least = min(measured, key=lambda row: row.cpu_p99_ms)
    other = ", try --precision int8" if precision == "float" else ""
    raise CallerError(
        f"no student decides within {budget_ms:g} ms: the fastest, {least.size!r} in {precision}, takes {least.cpu_p99_ms:.2f} ms "
        f"(p99 of CPU time; median {least.median_ms:.2f} ms) on this machine. Give it that long{other}, or measure on the computer that it is for."
    )


def latency_table(measured: Sequence[SizeLatency], precision: Precision, budget_ms: float | None = None) -> list[str]:
    """For people: a line per size, and the conditions."""
    machine, versions = describe_machine(), describe_versions()
    lines = [f"{'size':8}{'parameters':>12}{'median':>12}{'p99':>12}{'CPU p99':>12}"]
    for row in measured:
        fits = "" if budget_ms is None else "  fits" if row.cpu_p99_ms <= budget_ms else "  too slow"
        lines.append(
            f"{row.size:8}{row.parameters / 1e6:>10.2f} M{row.median_ms:>9.2f} ms{row.p99_ms:>9.2f} ms{row.cpu_p99_ms:>9.2f} ms{fits}"
        )
    return [
        *lines,
        f"observation to chunk in {precision}, batch 1, one thread, all sizes by turns, random weights; a budget is compared with CPU p99",
        f"{utc_now()}, {machine['cpu']}, {machine['cores_usable']} cores, load {machine['load_average'][0]:g}, onnxruntime {versions['onnxruntime']}",
    ]


def _write_bundle(student: Student, samples: Sequence[Sample], instruction: onnx.ModelProto, out: Path) -> None:
    """A float bundle of a student that no checkpoint holds."""
    encoder, text = load_text_encoder(), [sample.instruction for sample in samples]
    seen = [sample.observation for sample in samples]
    recorded = Samples(
        images={name: np.stack([observation.images[name] for observation in seen]) for name in seen[0].images},
        state=np.stack([observation.state for observation in seen]),
        instruction=encoder.encode(text),
        committed=np.stack([committed_rows(observation, student.spec) for observation in seen]),
        text=tuple(text),
    )
    with new_bundle(
        out,
        policy=student_to_onnx(student),
        instruction=instruction,
        tokenizer_json=encoder.tokenizer_file.read_bytes(),
        spec=student.spec,
        tokenizer=student.tokenizer,
        text_encoder=TextEncoderInfo(max_tokens=TOKEN_LENGTH, embedding_dim=EMBEDDING_DIM),
        samples=recorded,
        lineage=Lineage(parents=(), dataset=None, checkpoint=None, git_commit=None, versions={}, seeds={}, created=utc_now()),
    ):
        pass  # Nothing was trained, so there is nothing to compare with: it only has to load.
