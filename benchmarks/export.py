"""What a robot can trust about a bundle, in figures: damaged and hostile bundles, parity with torch, the time to open one, engines.

    python -m benchmarks.export --checkpoint checkpoints/student --data data/table --out out/export

**Damaged.** Copies of a bundle with a change at a place that is drawn at random: a bit, a cut, bytes written over, put in or taken out, files that changed places,
values of manifest.json. Each is opened in a process of its own. It must be refused with an error that says why, or answer the recorded questions bit by
bit as before (a change of a date in the manifest harms nothing).

**Resealed.** The same changes of the networks, by somebody who then makes all hashes right. Such a bundle is another bundle: what must not happen is
a crash, an error of another kind, or an answer outside the self-test's tolerance. A robot with trusted keys refuses it by its signature (`runtime.signature`).

**Parity**: the largest difference, as a share of an action's range, between torch and the bundle (`export.parity`). **Load**: seconds until a bundle is ready.
**Engines**: whether TensorRT-RTX parses and builds each kind of graph for GPUs that need not be here; an engine is not run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from actlet.errors import ActletError, BundleError, MissingLibraryError
from actlet.manifest import MANIFEST_NAME, read_manifest, record_files, write_manifest
from actlet.provenance import utc_now
from actlet.storage import read_json, write_json
from benchmarks.machine import describe_machine, describe_versions
from export.parity import ParityReport
from export.tensorrt_engine import EngineOptions, load_library, serialize_engine
from export.to_bundle import export_student
from quantize.quantize_bundle import quantize_bundle
from quantize.schemes import scheme
from runtime.bundle import load_bundle
from runtime.golden import Golden
from runtime.policy import BundlePolicy
from runtime.trial import try_bundle

__all__ = [
    "CHANGES",
    "KINDS",
    "TARGETS",
    "answers_of",
    "damage",
    "export_text",
    "main",
    "measure_engines",
    "measure_export",
    "measure_hostile",
    "measure_load",
    "outcome_of",
    "parity_rows",
]

RESULT = "export.json"
CHANGES = ("bit", "cut", "overwrite", "insert", "remove", "swap", "manifest value", "manifest key")
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "int8": ("int8", {}),
    "float16": ("float16", {}),
    "int8 portable": ("int8", {"dialect": "portable"}),
    "int4 portable": ("int4", {"dialect": "portable"}),
    "float8": ("float8", {}),
}
"""Bundle -> precision and settings of what is made of the float bundle."""
TARGETS = {
    "SM86": ("float32", "float16", "int8 portable", "int4 portable"),
    "SM89": ("float32", "float16", "int8 portable", "int4 portable", "float8"),
}
"""GPU -> the kinds of graphs that it has arithmetic for: Ampere (as Jetson Orin, which TensorRT-RTX does not know) and Ada."""
_OF_NETWORKS = CHANGES[:5]
_WALL_S = 60.0


def damage(folder: Path, change: str, rng: random.Random, *, only: Sequence[str] | None = None) -> str:
    """Change a bundle at a place that is drawn.

    Args:
        folder: The bundle; its files may be links to others, which stay as they are.
        change: Of `CHANGES`.
        rng: Draws file and place.
        only: Files to choose from; all when None.

    Returns:
        What was done, for people.
    """
    names = sorted(only or (path.name for path in folder.iterdir()))
    name = rng.choice(names)
    if change == "swap":
        first, second = (folder / other for other in rng.sample(names, 2))
        contents = first.read_bytes(), second.read_bytes()
        _write(first, contents[1])
        _write(second, contents[0])
        return f"{first.name} and {second.name} changed places"
    if change.startswith("manifest"):
        return _damage_manifest(folder / MANIFEST_NAME, change, rng)
    data = bytearray((folder / name).read_bytes())
    at, length = rng.randrange(len(data)), rng.choice((1, 4, 64, 4096))
    if change == "bit":
        data[at] ^= 1 << rng.randrange(8)
    elif change == "cut":
        del data[at:]
    elif change == "overwrite":
        data[at : at + length] = rng.randbytes(min(length, len(data) - at))
    elif change == "insert":
        data[at:at] = rng.randbytes(length)
    else:
        del data[at : at + length]
    _write(folder / name, bytes(data))
    return f"{name}: {change} at byte {at}"


def _damage_manifest(path: Path, change: str, rng: random.Random) -> str:
    """Another value, or another key, somewhere in manifest.json."""
    document = read_json(path)
    at: Any = document
    while True:
        key = rng.choice(list(at)) if isinstance(at, dict) else rng.randrange(len(at))
        if not isinstance(at[key], (dict, list)) or not at[key] or rng.random() < 0.1:
            break
        at = at[key]
    before = at[key]
    if change == "manifest key" and isinstance(at, dict):
        at[rng.choice(("", "x", "__class__", f"{key} "))] = at.pop(key)
    else:
        others = [None, True, -1, 0, 1e308, 10**30, "", "../x", "\x00", [], {}, [before], "9" * 4000, str(before)]
        at[key] = rng.choice([value for value in others if value != before])
    text = json.dumps(document)
    if rng.random() < 0.1:  # As no writer of JSON would write it.
        text = text.replace(":", ': NaN, "x":', 1) if rng.random() < 0.5 else text[:-1] + ', "schema_version": 1}'
    _write(path, text.encode())
    return f"{MANIFEST_NAME}: {change} at {key!r}"


def _write(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def outcome_of(folder: Path, expected: Golden) -> tuple[str, str]:
    """Open a bundle in a process of its own, and ask it the recorded questions.

    Returns:
        "refused", "same", "other answers", "crash", "no end" or "undeclared error", and what was said.
    """
    context = multiprocessing.get_context("fork")  # Cheap, and the library has no threads yet: nothing was opened in this process.
    ours, theirs = context.Pipe()
    child = context.Process(target=_ask, args=(folder, expected, theirs))
    child.start()
    theirs.close()
    try:
        if not ours.poll(_WALL_S):
            return "no end", f"nothing after {_WALL_S:g} s"
        said: tuple[str, str] = ours.recv()
        return said
    except EOFError:
        child.join()
        return "crash", f"exit code {child.exitcode}"
    finally:
        child.kill()
        child.join()


def _ask(folder: Path, expected: Golden, answer: Connection) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    try:
        networks = BundlePolicy(folder).networks
        got = networks.record(expected.images, expected.state, expected.text, expected.committed)
        same = np.array_equal(got.actions, expected.actions) and np.array_equal(got.confidence, expected.confidence)
        answer.send(("same" if same else "other answers", ""))
    except ActletError as error:
        answer.send(("refused", str(error)[:300]))
    except BaseException as error:  # Whatever else comes out is what is looked for.
        answer.send(("undeclared error", f"{type(error).__name__}: {error}"[:300]))


def measure_hostile(bundle: Path, count: int, *, resealed: int = 0, seed: int = 0, progress: bool = True) -> dict[str, Any]:
    """Damage a bundle many times.

    Args:
        bundle: A sound bundle; it is only read.
        count: Damaged copies.
        resealed: Copies whose networks are damaged and whose hashes are made right.
        seed: Of the changes.
        progress: Show a bar.

    Returns:
        JSON types: ``tried, accepted`` (opened, with other answers; or a crash, no end, an error of another kind), ``outcomes`` (name -> how often),
        ``by_change`` (change -> the same), ``faults`` (what was done and said, of all accepted ones); ``resealed`` with the same keys, where other
        answers within the self-test's tolerance are no fault.
    """
    parts = {"damaged": (count, CHANGES, None), "resealed": (resealed, _OF_NETWORKS, sorted(path.name for path in bundle.glob("*.onnx")))}
    expected = answers_of(bundle)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=bundle.parent) as place:
        for part, (tries, changes, only) in parts.items():
            rng, outcomes, by_change, faults = random.Random(f"{seed} {part}"), Counter[str](), dict[str, Counter[str]](), []
            for i in tqdm(range(tries), desc=part, unit="bundle", disable=not progress, file=sys.stderr):
                folder, change = Path(place) / "bundle", changes[i % len(changes)]
                folder.mkdir()
                for path in bundle.iterdir():
                    if path.is_file():
                        os.link(path, folder / path.name)
                done = damage(folder, change, rng, only=only)
                if part == "resealed":
                    manifest = read_manifest(folder)
                    (folder / MANIFEST_NAME).unlink()
                    write_manifest(folder, dataclasses.replace(manifest, files=record_files(folder)))
                outcome, said = outcome_of(folder, expected)
                outcomes[outcome] += 1
                by_change.setdefault(change, Counter())[outcome] += 1
                if outcome not in ("refused", "same") and not (part == "resealed" and outcome == "other answers"):
                    faults.append({"what": done, "outcome": outcome, "said": said})
                shutil.rmtree(folder)
            found[part] = {
                "tried": tries,
                "accepted": len(faults),
                "outcomes": dict(outcomes),
                "by_change": {change: dict(counts) for change, counts in by_change.items()},
                "faults": faults,
            }
    return {**found["damaged"], "resealed": found["resealed"]}


def answers_of(bundle: Path) -> Golden:
    """The recorded questions of a bundle with its answers on this machine; asked in another process, so that this one stays without threads."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    child = context.Process(target=_record, args=(bundle, theirs))
    child.start()
    theirs.close()
    try:
        said: Golden | str = ours.recv()
    except EOFError:
        said = "the process that opened it died"
    child.join()
    if isinstance(said, str):
        raise BundleError(f"{bundle}: not sound, so there is nothing to damage ({said}).")
    return said


def _record(bundle: Path, answer: Connection) -> None:
    try:
        policy = BundlePolicy(bundle)
        golden = policy.bundle.golden
        answer.send(policy.networks.record(golden.images, golden.state, golden.text, golden.committed))
    except ActletError as error:
        answer.send(str(error))


def measure_load(bundle: Path, runs: int = 10) -> dict[str, Any]:
    """Seconds, by turns: `opened` (checks, hashes, networks, self-test) and `tried` (the same in a new process, its start included).

    Returns:
        ``size_bytes, runs``, and for each ``wall_s, cpu_s`` (medians) and ``wall_max_s``.
    """
    import resource

    times: dict[str, list[tuple[float, float]]] = {"opened": [], "tried": []}
    for _ in range(runs):
        for name, call in (("opened", lambda: BundlePolicy(bundle)), ("tried", lambda: try_bundle(bundle))):
            children = resource.getrusage(resource.RUSAGE_CHILDREN)
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            now = resource.getrusage(resource.RUSAGE_CHILDREN)
            times[name].append((wall, cpu + now.ru_utime + now.ru_stime - children.ru_utime - children.ru_stime))
    figures = {
        name: {
            "wall_s": statistics.median(wall for wall, _ in rows),
            "cpu_s": statistics.median(cpu for _, cpu in rows),
            "wall_max_s": max(wall for wall, _ in rows),
        }
        for name, rows in times.items()
    }
    return {"size_bytes": read_manifest(bundle).size_bytes, "runs": runs, **figures}


def parity_rows(report: ParityReport) -> list[dict[str, Any]]:
    """A row for every output: ``graph, against, max_abs`` (share of an action's range, or of 1), ``where``."""
    rows = [{"graph": worst.output, "against": "torch", "max_abs": worst.difference, "where": worst.where} for worst in report.worst]
    return [*rows, {"graph": "instruction.onnx, 1 - cosine", "against": "torch", "max_abs": 1 - report.cosine, "where": report.cosine_text}]


def measure_engines(bundles: Mapping[str, Path], trt: Any) -> list[dict[str, Any]]:
    """Build each bundle for each GPU of `TARGETS` that has its arithmetic: ``graph, target, parsed, built, size_bytes``, and what the library said where it failed."""
    rows = []
    for target, kinds in TARGETS.items():
        for name in kinds:
            loaded = load_bundle(bundles[name])
            row: dict[str, Any] = {"graph": name, "target": target, "parsed": True, "built": True, "size_bytes": None, "said": ""}
            try:
                row["size_bytes"] = len(serialize_engine(trt, loaded.read("policy.onnx"), EngineOptions(targets=(target,))))
            except BundleError as error:
                row |= {"parsed": "cannot read it" not in str(error), "built": False, "said": str(error)[:300]}
            rows.append(row)
    return rows


def measure_export(out: Path, checkpoint: Path, data: Path, *, count: int, resealed: int) -> dict[str, Any]:
    """All parts, on bundles that are made of a checkpoint.

    Args:
        out: A folder that the bundles are kept in.
        checkpoint: A student.
        data: A LeRobotDataset folder to calibrate with.
        count: Damaged copies of the int8 bundle.
        resealed: Damaged copies with right hashes.

    Returns:
        JSON types: ``about, hostile`` (`measure_hostile`), ``load_s`` (bundle -> `measure_load`), ``parity`` (`parity_rows`), ``engines`` (`measure_engines`, or None
        where TensorRT-RTX is not installed).
    """
    made = multiprocessing.get_context("spawn")
    with made.Pool(1) as other:  # In another process, so that this one stays without threads until the damaged bundles are through.
        report = other.apply(_make_bundles, (out, checkpoint, data))
    bundles = {name: out / name for name in ("float32", *KINDS)}
    hostile = measure_hostile(bundles["int8"], count, resealed=resealed)
    load = {name: measure_load(bundles[name]) for name in ("float32", "int8")}
    try:
        engines = measure_engines(bundles, load_library("tensorrt_rtx"))
    except MissingLibraryError as error:
        print(error, file=sys.stderr)
        engines = None
    about = {"date": utc_now(), "machine": describe_machine(), "versions": describe_versions()}
    return {"about": about, "hostile": hostile, "load_s": load, "parity": parity_rows(report), "engines": engines}


def _make_bundles(out: Path, checkpoint: Path, data: Path) -> ParityReport:
    report = export_student(checkpoint, out / "float32", overwrite=True).parity
    for name, (precision, settings) in KINDS.items():
        quantize_bundle(out / "float32", out / name, scheme=scheme(precision, **settings), data=data, allow_slower=True, overwrite=True)
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m benchmarks.export``; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="a student")
    parser.add_argument("--data", type=Path, required=True, help="a LeRobotDataset folder to calibrate with")
    parser.add_argument("--out", type=Path, required=True, help="the folder for the bundles and the result")
    parser.add_argument("--count", type=int, default=2000, help="damaged copies (default: %(default)s)")
    parser.add_argument("--resealed", type=int, default=400, help="damaged copies with right hashes (default: %(default)s)")
    given = parser.parse_args(argv)
    try:
        document = measure_export(given.out, given.checkpoint, given.data, count=given.count, resealed=given.resealed)
        write_json(given.out / RESULT, document)
    except ActletError as error:
        print(error, file=sys.stderr)
        return 2
    print(export_text(document))
    return 0


def export_text(document: Mapping[str, Any]) -> str:
    """For people."""
    lines = []
    for name, part in (("damaged", document["hostile"]), ("resealed", document["hostile"]["resealed"])):
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in part["outcomes"].items())
        lines.append(f"{name}: {part['tried']} tried, {part['accepted']} at fault ({outcomes})")
        lines += [f"  {fault['what']}: {fault['outcome']} {fault['said']}" for fault in part["faults"][:20]]
    for name, load in document["load_s"].items():
        for how in ("opened", "tried"):
            lines.append(
                f"{name} ({load['size_bytes'] / 1e6:.1f} MB) {how}: {load[how]['wall_s']:.2f} s, {load[how]['cpu_s']:.2f} s of CPU"
            )
    lines += [f"{row['graph']:<32} {row['max_abs']:.2e} at {row['where']}" for row in document["parity"]]
    for row in document["engines"] or []:
        lines.append(
            f"engine {row['graph']} for {row['target']}: "
            + (f"{row['size_bytes'] / 1e6:.1f} MB" if row["built"] else f"none ({row['said']})")
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
