"""Bundles that lie: thousands of damaged copies of a sound one (`benchmarks.export.measure_hostile`), and thirteen networks that somebody made to do harm.

Each of the thirteen lies in a bundle whose hashes are right, and is opened in a process of its own, with limits: it must be refused with a reason.
ONNX Runtime itself refuses some of them; an endless loop and constants of terabytes it loads, and hangs or dies when they are run.
"""

from __future__ import annotations

import dataclasses
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tqdm import tqdm

from actlet.manifest import read_manifest, record_files, write_manifest
from benchmarks.export import answers_of, measure_hostile, outcome_of

__all__ = ["HOSTILE", "measure_artifacts"]

_NETWORK = "policy.onnx"
Change = Callable[[onnx.ModelProto], None]


def _elsewhere(location: str, *, offset: int = 0, length: int | None = None) -> Change:
    """A weight that lies in another file."""

    def change(model: onnx.ModelProto) -> None:
        tensor = TensorProto(name="made_up", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
        for key, value in (("location", location), ("offset", offset), ("length", length)):
            if value is not None:
                tensor.external_data.append(onnx.StringStringEntryProto(key=key, value=str(value)))
        model.graph.initializer.append(tensor)

    return change


def _terabyte(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(TensorProto(name="made_up", data_type=TensorProto.FLOAT, dims=[1 << 38], raw_data=b"\0" * 16))


def _constant_of(count: int) -> Change:
    """An operator that makes so many numbers."""

    def change(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.array([count], np.int64), "count"))
        model.graph.node.append(helper.make_node("ConstantOfShape", ["count"], ["large"], name="grow"))

    return change


def _endless_loop(model: onnx.ModelProto) -> None:
    """2^62 turns, with a condition that stays true."""
    condition = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("go_on", "still")]
    turn = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    body = helper.make_graph([helper.make_node("Identity", ["go_on"], ["still"])], "body", [turn, condition[0]], [condition[1]])
    model.graph.initializer.extend(
        [numpy_helper.from_array(np.array(True), "forever"), numpy_helper.from_array(np.array(2**62, np.int64), "turns")]
    )
    model.graph.node.append(helper.make_node("Loop", ["turns", "forever"], [], body=body))


def _with(change: Change) -> Callable[[bytes], bytes]:
    def changed(content: bytes) -> bytes:
        model = onnx.load_from_string(content)
        change(model)
        return bytes(model.SerializeToString())

    return changed


_LINK, _LINKED = "link.bin", "weights behind a link out of the folder"
HOSTILE: dict[str, Callable[[bytes], bytes]] = {
    "weights in ../": _with(_elsewhere("../other.bin")),
    "weights at an absolute path": _with(_elsewhere("/etc/passwd", length=16)),
    _LINKED: _with(_elsewhere(_LINK, length=16)),
    "weights in /dev/zero": _with(_elsewhere("/dev/zero", length=16)),
    "weights at a wrong offset": _with(_elsewhere("golden.npz", offset=1 << 40, length=16)),
    "weights of a wrong length": _with(_elsewhere("golden.npz", length=1 << 40)),
    "a weight of a terabyte": _with(_terabyte),
    "a constant of 32 GB": _with(_constant_of(8 << 30)),
    "a constant of 128 TB": _with(_constant_of(32 << 40)),
    "an endless loop": _with(_endless_loop),
    "a network cut in the middle": lambda content: content[: len(content) // 2],
    "random bytes": lambda content: random.Random(0).randbytes(len(content)),
    "an empty network": lambda content: b"",
}
"""Name -> what is done to the network of the policy."""


def _spoil(folder: Path, name: str) -> None:
    """Make a copy of a bundle hostile, and its hashes right."""
    path = folder / _NETWORK
    path.write_bytes(HOSTILE[name](path.read_bytes()))
    write_manifest(folder, dataclasses.replace(read_manifest(folder), files=record_files(folder)))
    if name == _LINKED:
        (folder / _LINK).symlink_to("/etc/passwd")


def measure_artifacts(bundle: Path, copies: int, seed: int = 0, *, progress: bool = False) -> dict[str, Any]:
    """All of them; the bundle is only read.

    Returns:
        ``damaged`` and ``resealed`` (a tenth as many): ``tried, accepted, outcomes, faults`` as `benchmarks.export.measure_hostile` has them; ``hand_made``: the
        same of the thirteen, where everything but "refused" is a fault, with ``said`` (name -> the reason).
    """
    damaged = measure_hostile(bundle, copies, resealed=copies // 10, seed=seed, progress=progress)
    resealed = damaged.pop("resealed")
    return {"damaged": damaged, "resealed": resealed, "hand_made": _measure_hand_made(bundle, progress)}


def _measure_hand_made(bundle: Path, progress: bool) -> dict[str, Any]:
    expected, said, outcomes, faults = answers_of(bundle), dict[str, str](), Counter[str](), list[dict[str, str]]()
    with tempfile.TemporaryDirectory(dir=bundle.parent) as place:
        for name in tqdm(HOSTILE, desc="hand-made", unit="bundle", disable=not progress, file=sys.stderr, leave=False):
            folder = Path(place) / "bundle"
            folder.mkdir()
            for path in bundle.iterdir():
                if path.is_file():
                    shutil.copyfile(path, folder / path.name)
            _spoil(folder, name)
            outcome, words = outcome_of(folder, expected)
            outcomes[outcome] += 1
            said[name] = words.replace(str(folder), "bundle")
            if outcome != "refused":
                faults.append({"what": name, "outcome": outcome, "said": words})
            shutil.rmtree(folder)
    return {"tried": len(HOSTILE), "accepted": len(faults), "outcomes": dict(outcomes), "said": said, "faults": faults}
