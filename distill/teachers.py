"""Opening a teacher of any kind: actlet's own, a model of transformers, an OpenVLA, or one that `actlet serve` answers for elsewhere.

A policy that gives actions alone is a teacher too, where its answers are drawn and it is asked for several (`distill.sampled_teacher`).

The clients of what is served live on the robot side, which training does not import: they are reached by name, and only where needed.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from actlet.errors import CheckpointError, SpecError
from actlet.protocols import SamplingTeacher, Teacher
from actlet.specs import PolicySpec, TimingSpec
from actlet.storage import sha256
from distill.sampled_teacher import RepeatedPolicy
from distill.teacher_checkpoint import load_teacher
from distill.teacher_file import TEACHER_FILE, read_teacher_file
from episodes.lerobot_dataset import LeRobotDataset

__all__ = ["is_served", "open_teacher", "teacher_for"]


def is_served(teacher: str | Path | None) -> bool:
    """Whether it names a teacher on another machine."""
    return str(teacher).startswith(("ws://", "wss://"))


def teacher_for(teacher: Any, dataset: LeRobotDataset, samples: int = 0) -> Any:
    """A teacher for a dataset.

    Args:
        teacher: What `open_teacher` takes, or an `actlet.protocols.Teacher`. With samples the URL of a policy server, the file of a
            `runtime.rest_policy`, an `actlet.protocols.SamplingTeacher`, or any policy whose answers are drawn.
        dataset: What a server that says nothing of itself is asked about.
        samples: How many actions are drawn for a frame; 0 for a teacher that gives distributions.

    Returns:
        A `Teacher` as of `open_teacher`; with samples a `SamplingTeacher`.

    Raises:
        SpecError: Samples are asked of a teacher that gives distributions, or distributions of a policy that does not.
        CheckpointError, RemoteError, MissingExtraError: As `open_teacher`.
    """
    if not samples:
        opened = open_teacher(teacher) if isinstance(teacher, (str, Path)) else teacher
        if not isinstance(opened, Teacher):
            raise SpecError(
                f"{type(opened).__name__} gives actions, no distributions: say how many samples to draw for a frame, such as 8."
            )
        return opened
    if is_served(teacher):
        timing = TimingSpec(rate_hz=dataset.rate_hz, horizon=1, execute_steps=1, max_delay_steps=0)
        spec = PolicySpec(observation=dataset.observation_spec, action=dataset.action_spec, timing=timing)
        return importlib.import_module("runtime.remote_sampler").open_remote_sampler(str(teacher), spec)
    if isinstance(teacher, (str, Path)) and Path(teacher).is_file():
        return RepeatedPolicy(importlib.import_module("runtime.opening").open_policy(str(teacher)), sha256(Path(teacher)))
    if isinstance(teacher, (str, Path, Teacher)):
        raise SpecError(
            f"{teacher if isinstance(teacher, (str, Path)) else type(teacher).__name__} gives distributions, which say more than samples do: "
            "leave the samples out. They are for a policy's server (ws://...) or the file of a rest_policy."
        )
    fingerprint = str(getattr(teacher, "content_hash", ""))
    if not fingerprint:
        raise SpecError(
            f"{type(teacher).__name__} has no content_hash: without one a run that was cut off cannot tell whose answers it has kept. Give it an "
            "attribute content_hash (str), such as the hash of its weights."
        )
    return teacher if isinstance(teacher, SamplingTeacher) else RepeatedPolicy(teacher, fingerprint)


def open_teacher(teacher: str | Path) -> Any:
    """An `actlet.protocols.Teacher` with a `tokenizer` and a `content_hash`, for inference.

    Args:
        teacher: A folder, or the URL of a server.

    Raises:
        CheckpointError: The folder holds none, or one that is not sound.
        SpecError: What it says of itself is contradictory, or the server's policy is no teacher.
        MissingExtraError: A package that it needs is not installed.
        RemoteError: The server cannot be reached.
    """
    if is_served(teacher):
        return importlib.import_module("runtime.remote_teacher").RemoteTeacher(str(teacher))
    folder = Path(teacher)
    if not (folder / TEACHER_FILE).is_file():
        return load_teacher(folder)
    kind = read_teacher_file(folder).get("kind")
    if kind == "foreign_teacher":
        from distill.foreign_teacher import load_foreign_teacher

        return load_foreign_teacher(folder)
    if kind == "openvla_teacher":
        from distill.openvla import load_openvla

        return load_openvla(folder)
    raise CheckpointError(f"{folder / TEACHER_FILE}: kind {kind!r}, expected 'foreign_teacher' or 'openvla_teacher'.")
