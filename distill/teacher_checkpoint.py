"""A teacher on disk: config.json and adapter.safetensors, which holds what was trained; the frozen parts come from their packages."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from actlet.action_tokens import ActionTokenizer
from actlet.errors import CheckpointError
from actlet.specs import PolicySpec
from actlet.storage import read_json, sha256, write_bytes, write_json
from distill.rt2_teacher import Rt2Teacher
from distill.teacher_config import TeacherConfig

__all__ = ["load_teacher", "save_teacher"]

SCHEMA_VERSION = 1


def _own_weights(teacher: Rt2Teacher) -> dict[str, Tensor]:
    """All that was trained: everything but the frozen backbones."""
    learned = {name for name, p in teacher.named_parameters() if p.requires_grad}
    buffers = {name for name, _ in teacher.named_buffers() if not name.startswith("language.")}
    if teacher.config.pretrained:
        buffers = {name for name in buffers if not name.startswith("features.")}
    return {name: value for name, value in teacher.state_dict().items() if name in learned | buffers}


def save_teacher(teacher: Rt2Teacher, folder: Path, *, lineage: dict[str, Any]) -> None:
    """Write config.json and adapter.safetensors (float16) into a folder that exists."""
    write_json(
        folder / "config.json",
        {
            "schema_version": SCHEMA_VERSION,
            "kind": "teacher",
            "spec": teacher.spec.to_dict(),
            "tokenizer": teacher.tokenizer.to_dict(),
            "architecture": dataclasses.asdict(teacher.config),
            "load": teacher.load,
            "action_token_ids": teacher.vocabulary.ids.tolist(),
            "backbones": {"language": "SmolLM2-135M-Instruct", "vision": "EfficientNet-Lite0"} if teacher.config.pretrained else {},
            "lineage": lineage,
        },
    )
    weights = {
        name: value.to(torch.float16).cpu().contiguous() if value.is_floating_point() else value.cpu().contiguous()
        for name, value in _own_weights(teacher).items()
    }
    write_bytes(folder / "adapter.safetensors", save(weights))


def load_teacher(folder: str | Path, *, trainable: bool = False, load: str | None = None, device: str = "cpu") -> Rt2Teacher:
    """Load a teacher checkpoint.

    Args:
        folder: What `save_teacher` wrote.
        trainable: Keep the adapter apart, so that it can be trained on. By default it is merged, for inference.
        load: "fp32", or "int8" or "nf4" for a language model in 8 or 4 bits; what it was trained in when None.
        device: Where it computes, as torch names it: "cpu", "cuda".

    Raises:
        CheckpointError: The folder is missing, incomplete, or of another kind or version.
        MissingExtraError: The packages that carry the pretrained parts are not installed.
    """
    folder = Path(folder)
    for file in (folder / "config.json", folder / "adapter.safetensors"):
        if not file.is_file():
            raise CheckpointError(
                f"{file} is missing: {folder} is not a teacher checkpoint. Make one with: actlet teach --data … --out {folder}"
            )
    try:
        config = read_json(folder / "config.json")
        if (config.get("schema_version"), config.get("kind")) != (SCHEMA_VERSION, "teacher"):
            raise CheckpointError(
                f"{folder}: kind {config.get('kind')!r}, version {config.get('schema_version')!r}; expected 'teacher', {SCHEMA_VERSION}."
            )
        teacher = Rt2Teacher(
            PolicySpec.from_dict(config["spec"]),
            ActionTokenizer.from_dict(config["tokenizer"]),
            np.array(config["action_token_ids"], np.int64),
            TeacherConfig(**config["architecture"]),
            load=load or config.get("load", "fp32"),
            device=device,
        )
        weights = {
            name: value.float() if value.is_floating_point() else value for name, value in load_file(folder / "adapter.safetensors").items()
        }
        missing = sorted(set(_own_weights(teacher)) ^ set(weights))
        if missing:
            raise CheckpointError(f"{folder}: weights {missing[:5]} are missing or unknown; the checkpoint is not of this architecture.")
        teacher.load_state_dict(weights, strict=False)
        teacher.content_hash = sha256(folder / "adapter.safetensors")
    except (ValueError, KeyError, TypeError, RuntimeError, OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be read as a teacher checkpoint: {error}. Copy it again, or train it again.") from error
    return teacher if trainable else teacher.merge_adapter()
