"""What can be measured: bundles, students and teachers under the names that tables use, their size, and questions to time them with."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actlet.errors import CallerError
from actlet.manifest import CERTIFICATE_NAME, Manifest, manifest_hash, read_manifest
from actlet.protocols import Observation, Policy
from actlet.specs import PolicySpec
from actlet.storage import read_json
from benchmarks.arithmetic import count_bundle, count_torch
from quantize.certificate import read_certificate
from runtime.opening import kind_of, open_policy

__all__ = ["Contender", "Sample", "parse_contenders", "samples_for", "share_parameters", "weigh"]


@dataclasses.dataclass(frozen=True)
class Contender:
    """A policy that is measured, under the name that tables use."""

    name: str
    path: Path

    @property
    def factory(self) -> Callable[[], Policy]:
        """Opens it with one thread; can be sent to another process."""
        return functools.partial(open_policy, str(self.path))


@dataclasses.dataclass(frozen=True)
class Sample:
    """One question to a policy."""

    observation: Observation
    instruction: str


def weigh(contender: Contender, policy: Policy, sample: Sample) -> dict[str, Any]:
    """Size and arithmetic of the network that answers every decision.

    The sentence encoder is not in it, and the arithmetic of what is computed once per instruction; `bundle_bytes` is all that a robot stores.

    Returns:
        ``parameters, size_bytes`` (of the weights: policy.onnx and condition.onnx, or what torch holds in memory), ``macs``, and for a bundle
        ``bundle_bytes``, ``precisions``: nodes and bytes of its weights, by what was asked and what is really executed, and where it carries
        one its ``certificate``.

    Raises:
        BundleError: A bundle carries a certificate that is not its own.
    """
    if kind_of(contender.path) == "bundle":
        count = count_bundle(contender.path)
        manifest = read_manifest(contender.path)
        sizes = {"size_bytes": manifest.network_bytes, "bundle_bytes": manifest.size_bytes}
        shown = {"certificate": read_certificate(contender.path)} if CERTIFICATE_NAME in manifest.files else {}
        return {"parameters": count.parameters, "macs": count.macs, **sizes, "precisions": _precisions(manifest), **shown}
    module: Any = getattr(policy, "student", policy)
    weights = list(module.parameters())
    return {
        "parameters": sum(weight.numel() for weight in weights),
        "size_bytes": sum(weight.numel() * weight.element_size() for weight in weights),
        "macs": count_torch(policy, sample.observation, sample.instruction),
    }


def _precisions(manifest: Manifest) -> list[dict[str, Any]]:
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for node in manifest.nodes:
        asked, executed = node.asked, node.executed or "unknown"
        group = groups.setdefault((asked, executed), {"asked": asked, "executed": executed, "nodes": 0, "weight_bytes": 0})
        group["nodes"] += 1
        group["weight_bytes"] += node.weight_bytes
    return [groups[key] for key in sorted(groups)]


def share_parameters(contenders: Sequence[Contender], weights: dict[str, dict[str, Any]]) -> None:
    """Give a quantized bundle the parameter count of the float bundle that it was made from, if that is among them.

    Its own graph holds the same weights in another packing, with scales that are no parameters.
    """
    bundles = [contender for contender in contenders if kind_of(contender.path) == "bundle"]
    names = {manifest_hash(contender.path): contender.name for contender in bundles}
    for contender in bundles:
        for parent in read_manifest(contender.path).lineage.parents:
            if parent in names:
                weights[contender.name]["parameters"] = weights[names[parent]]["parameters"]


def parse_contenders(words: Sequence[str]) -> list[Contender]:
    """Command-line words to contenders: ``path`` or ``name=path``; the name is the folder's by default, the path may be rt2-base.

    A folder that `actlet demo` wrote stands for its four policies.

    Raises:
        CallerError: Two contenders of one name, or a folder that holds no policy.
    """
    from distill import teacher_folder

    found: list[Contender] = []
    for word in words:
        name, _, path = word.rpartition("=")
        path = str(teacher_folder(path))
        results = Path(path) / "results.json"
        if results.is_file():
            found += [Contender(p["name"], _place(Path(path), p["path"])) for p in read_json(results)["policies"]]
            continue
        kind_of(path)
        found.append(Contender(name or Path(path).resolve().name, Path(path)))
    names = [contender.name for contender in found]
    if len(set(names)) != len(names):
        raise CallerError(f"policies {names}: two have one name; give names, as in float=bundles/a int8=bundles/b.")
    return found


def _place(demo: Path, path: str) -> Path:
    from distill import SHIPPED, shipped_teacher

    return shipped_teacher() if path == SHIPPED else demo / path


def samples_for(contenders: Sequence[Contender], spec: PolicySpec, count: int = 16, seed: int = 0) -> list[Sample]:
    """Questions to time policies with: the recorded inputs of the first bundle, or else noise of the right shape; all under one instruction.

    A robot is told what to do once and decides many times, and a bundle has a session for every instruction (`runtime.policy_network`).
    """
    for contender in contenders:
        if kind_of(contender.path) == "bundle" and read_manifest(contender.path).spec.observation == spec.observation:
            return _golden_samples(contender.path)
    random = np.random.default_rng(seed)
    observation = spec.observation
    return [
        Sample(
            Observation(
                {c.name: random.integers(0, 256, (c.height, c.width, 3), dtype=np.uint8) for c in observation.cameras},
                random.normal(size=observation.state_dim).astype(np.float32),
            ),
            "lift the red block",
        )
        for _ in range(count)
    ]


def _golden_samples(path: Path) -> list[Sample]:
    from runtime.bundle import load_bundle

    golden = load_bundle(path).golden
    return [
        Sample(Observation({name: frames[i] for name, frames in golden.images.items()}, golden.state[i]), golden.text[0])
        for i in range(len(golden))
    ]
