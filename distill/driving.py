"""A student in training drives in simulation: to see what it reaches by itself, and how often it succeeds.

Other processes drive, so its weights pass through a folder.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from actlet.protocols import Policy
from actlet.storage import new_folder, write_bytes, write_json
from distill.student import Student, open_student, student_config_json
from distill.student_batches import StudentInTraining
from distill.train_config import TrainConfig
from episodes.episode import Episode
from episodes.lerobot_dataset import DatasetWriter, open_dataset
from episodes.rollout import collect_states, evaluate
from episodes.seeds import TRAIN_SEED_START, TUNING_SEED_START

__all__ = ["on_policy_episodes", "on_policy_seeds", "successes", "write_checkpoint"]

_ON_POLICY_SEED_START = TRAIN_SEED_START + 500_000  # training seeds that collection does not reach


def on_policy_episodes(student: Student, suite: str | None, config: TrainConfig, folder: Path, number: int) -> list[Episode]:
    """Let the student drive in scenes of this round's own, or read what it did there."""
    assert suite is not None
    recorded, spec = folder / "episodes", student.spec
    if not recorded.exists():
        seeds = on_policy_seeds(config, number)
        policy, delays = _policy_on_disk(student, folder / "student"), range(config.delay_steps + 1)
        visited = collect_states(policy, suite, list(seeds), delays=delays)
        with DatasetWriter(
            recorded, observation_spec=spec.observation, action_spec=spec.action, rate_hz=spec.timing.rate_hz, robot_type=suite
        ) as writer:
            for episode in visited:
                writer.add(episode)
    return open_dataset(recorded).read_all(progress=False)


def on_policy_seeds(config: TrainConfig, number: int) -> range:
    """Of the scenes in which the student drives before this round, from 1."""
    first = _ON_POLICY_SEED_START + (number - 1) * config.on_policy_episodes
    return range(first, first + config.on_policy_episodes)


def successes(module: nn.Module, *, suite: str, episodes: int, folder: Path) -> tuple[int, int]:
    """How often a student in training succeeds in scenes of tuning seeds, under the delays that it is trained for; of how many episodes."""
    assert isinstance(module, StudentInTraining)
    student = copy.deepcopy(module.student).to("cpu")
    seeds, delays = range(TUNING_SEED_START, TUNING_SEED_START + episodes), range(student.spec.timing.committed_steps + 1)
    results = evaluate(_policy_on_disk(student, folder), suite, seeds, delays=delays)
    return sum(result.success for result in results), len(results)


def _policy_on_disk(student: Student, folder: Path) -> Callable[[], Policy]:
    """A student as other processes can open it."""
    with new_folder(folder, overwrite=True) as partial:
        write_checkpoint(student, partial, {}, [])
    return functools.partial(_student_policy, str(folder))


def _student_policy(folder: str) -> Policy:
    torch.set_num_threads(1)
    return open_student(folder)


def write_checkpoint(student: Student, folder: Path, lineage: dict[str, Any], instructions: list[str]) -> None:
    """config.json and model.safetensors of a student's checkpoint, into a folder that exists."""
    write_json(folder / "config.json", student_config_json(student, lineage=lineage, sample_instructions=instructions))
    write_bytes(folder / "model.safetensors", save({name: value.contiguous() for name, value in student.state_dict().items()}))
