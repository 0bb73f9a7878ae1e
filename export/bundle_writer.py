"""Writing a float bundle: all files into a new folder, the manifest last, whole or not at all, and opened once as a robot opens it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from actlet.action_tokens import ActionTokenizer
from actlet.errors import BundleError
from actlet.manifest import CONDITION_NAME, GoldenTolerance, Lineage, Manifest, NodePrecision, TextEncoderInfo, record_files, write_manifest
from actlet.provenance import git_commit, package_versions, utc_now
from actlet.specs import PolicySpec
from actlet.storage import new_folder, write_bytes
from export.samples import Samples
from quantize.condition import network_files
from runtime.networks import Networks
from runtime.trial import try_bundle

__all__ = ["FLOAT_TOLERANCE", "float_nodes", "lineage_of_checkpoint", "new_bundle"]

FLOAT_TOLERANCE = GoldenTolerance(actions=1e-3, confidence=1e-3, embedding=1e-3)
"""Ten times the parity bound: another processor adds in another order, but is the same network."""
_VERSIONS = ("actlet", "numpy", "torch", "transformers", "onnx", "onnxscript", "onnxruntime")


@contextlib.contextmanager
def new_bundle(
    out: str | Path,
    *,
    policy: onnx.ModelProto,
    instruction: onnx.ModelProto | None,
    tokenizer_json: bytes | None,
    spec: PolicySpec,
    tokenizer: ActionTokenizer,
    text_encoder: TextEncoderInfo | None,
    samples: Samples,
    lineage: Lineage,
    overwrite: bool = False,
) -> Iterator[Path]:
    """Make a bundle; yields the complete folder beside `out` for a last check, tries it (`runtime.trial`), and moves it there if both succeed.

    Args:
        out: The bundle's folder.
        policy: The policy as one graph, which becomes policy.onnx and condition.onnx.
        instruction: instruction.onnx; None for a policy that reads no instruction, as the next and `text_encoder`.
        tokenizer_json: Content of tokenizer.json.
        spec: What the policy sees and commands.
        tokenizer: Bounds of its action bins.
        text_encoder: Shape of instruction.onnx.
        samples: Recorded inputs; golden.npz holds them with the answers of these very networks.
        lineage: Where it comes from.
        overwrite: Replace a bundle that exists.

    Raises:
        StorageError: `out` exists and `overwrite` is False, or it cannot be written.
        BundleError: The networks do not load, do not fit the specification, or take more than a robot lets a bundle take to be opened.
    """
    with new_folder(out, overwrite=overwrite) as folder:
        contents = network_files(policy)
        if instruction is not None and tokenizer_json is not None:
            contents |= {"instruction.onnx": instruction.SerializeToString(deterministic=True), "tokenizer.json": tokenizer_json}
        for name, content in contents.items():
            write_bytes(folder / name, content)
        networks = Networks(
            policy=contents["policy.onnx"],
            condition=contents.get(CONDITION_NAME),
            instruction=contents.get("instruction.onnx"),
            tokenizer=contents.get("tokenizer.json"),
            spec=spec,
            text_encoder=text_encoder,
        )
        networks.record(samples.images, samples.state, samples.text, samples.committed).save(folder / "golden.npz")
        manifest = Manifest(
            spec=spec,
            tokenizer=tokenizer,
            precision="float32",
            nodes=float_nodes(policy),
            text_encoder=text_encoder,
            files=record_files(folder),
            lineage=lineage,
            golden_tolerance=FLOAT_TOLERANCE,
            made_for=("onnxruntime", "tensorrt"),
        )
        write_manifest(folder, manifest)
        yield folder
        try:
            try_bundle(folder)
        except BundleError as error:
            raise BundleError(f"as a robot opens it: {str(error).replace(str(folder), str(out))} Nothing was written.") from error


def float_nodes(model: onnx.ModelProto) -> tuple[NodePrecision, ...]:
    """Every Conv, Gemm and MatMul with its constant inputs. A graph of float operators alone is executed in float."""
    sizes = {c.name: 4 * int(np.prod(c.dims)) for c in model.graph.initializer if c.data_type == onnx.TensorProto.FLOAT}
    nodes = []
    for node in model.graph.node:
        size = sum(sizes.get(name, 0) for name in node.input)
        if node.op_type in ("Conv", "Gemm", "MatMul") and size:
            nodes.append(NodePrecision(name=node.name, op=node.op_type, weight_bytes=size, asked="float32", executed="float32"))
    return tuple(nodes)


def lineage_of_checkpoint(checkpoint_sha256: str, training: dict[str, Any]) -> Lineage:
    """The lineage of a bundle that is exported from a checkpoint.

    Args:
        checkpoint_sha256: SHA-256 of the student's weights.
        training: The checkpoint's own lineage.
    """
    dataset, settings = training.get("dataset"), training.get("training")
    seed = settings.get("seed") if isinstance(settings, dict) else None
    return Lineage(
        parents=(),
        dataset=dataset if isinstance(dataset, str) else None,
        checkpoint=checkpoint_sha256,
        git_commit=git_commit(),
        versions=package_versions(_VERSIONS),
        seeds={"train": seed} if isinstance(seed, int) else {},
        created=utc_now(),
    )
