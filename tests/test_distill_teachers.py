"""distill.teachers: teachers of every kind teach a student, which becomes a bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import point_reach
import pytest
from tiny_openvla import code_copied_to, save_tiny_openvla
from tiny_vlms import save_tiny_vlm

from actlet.action_tokens import ActionTokenizer
from actlet.errors import CheckpointError, SpecError
from actlet.specs import PolicySpec, TimingSpec
from distill.foreign_teacher import ForeignTeacherConfig, action_vocabulary
from distill.openvla import OpenVlaConfig
from distill.student import StudentConfig, load_student
from distill.teacher_file import TEACHER_FILE
from distill.teachers import open_teacher
from distill.train import TrainConfig, distill
from episodes.collect import collect
from export.to_bundle import export_student
from runtime.policy import BundlePolicy

SUITE = "point_reach:make_suite"
TINY = StudentConfig(image_px=16, channels=(16, 32), blocks=(1, 1), condition_dim=32, squeeze_channels=16, features=64, token_rank=8)
SPEC = PolicySpec(
    observation=point_reach.OBSERVATION,
    action=point_reach.ACTION,
    timing=TimingSpec(rate_hz=5, horizon=1, execute_steps=1, max_delay_steps=0),
)
CAMERA = SPEC.observation.cameras[0].name


def foreign(folder: Path) -> None:
    processor = save_tiny_vlm("llava", folder)
    bounds = ActionTokenizer(np.float32([0, -0.08, -0.08, 0]), np.float32([1, 0.08, 0.08, 1]))
    ids = tuple(action_vocabulary("integers", processor.tokenizer).ids.tolist())
    ForeignTeacherConfig(spec=SPEC, cameras=(CAMERA,), tokenizer=bounds, action_token_ids=ids, vocabulary="integers").write(folder)


def openvla(folder: Path) -> None:
    save_tiny_openvla(folder)
    statistics = {"q01": [0, -0.08, -0.08, 0], "q99": [1, 0.08, 0.08, 1], "mask": [False, True, True, False]}
    (folder / "dataset_statistics.json").write_text(json.dumps({"points": {"action": statistics}}))
    OpenVlaConfig(spec=SPEC, camera=CAMERA, precision="float32").write(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("make", "bins"), [(foreign, 256), (openvla, 255)])
def test_a_teacher_of_others_teaches_a_student(
    make: Callable[[Path], None], bins: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels, two rounds, export, and a bundle that answers: all with the teacher's own bins; the lineage names its weights."""
    folder = tmp_path / f"teacher-{bins}"
    make(folder)
    monkeypatch.setenv("ACTLET_TRUST_REMOTE_CODE", str(folder))
    collect(SUITE, tmp_path / "data", 6, workers=1)
    config = TrainConfig(steps=4, batch_size=8, horizon=4, execute_steps=2, on_policy_episodes=2, labelled_share=0.5, architecture=TINY)
    with code_copied_to(tmp_path / "modules"):
        out = distill(tmp_path / "data", tmp_path / "student", teacher=folder, suite=SUITE, config=config)
        teacher = open_teacher(folder)
    assert load_student(out).tokenizer == teacher.tokenizer
    assert teacher.tokenizer.bins == bins
    assert json.loads((out / "config.json").read_text())["lineage"]["teacher"] == teacher.content_hash
    policy = BundlePolicy(export_student(out, tmp_path / "bundle").out)
    assert policy.spec.action == SPEC.action


def test_a_kind_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    """Named, with those that do."""
    (tmp_path / TEACHER_FILE).write_text('{"schema_version": 1, "kind": "cat"}')
    with pytest.raises(CheckpointError, match="kind 'cat', expected 'foreign_teacher' or 'openvla_teacher'"):
        open_teacher(tmp_path)
    (tmp_path / TEACHER_FILE).write_text('{"kind": "foreign_teacher"}')
    with pytest.raises(CheckpointError, match="schema_version"):
        open_teacher(tmp_path)


def test_a_teacher_of_another_robot_is_refused_by_distillation(tmp_path: Path) -> None:
    """Names of actions that differ from the dataset's: before anything is labelled."""
    folder = tmp_path / "teacher"
    foreign(folder)
    document = json.loads((folder / TEACHER_FILE).read_text())
    document["spec"]["action"]["names"][1] = "shoulder"
    (folder / TEACHER_FILE).write_text(json.dumps(document))
    collect(SUITE, tmp_path / "data", 2, workers=1)
    with pytest.raises(SpecError, match=r"names\[1\] is .*shoulder|expected 'shoulder'"):
        distill(tmp_path / "data", tmp_path / "student", teacher=folder, suite=SUITE, config=TrainConfig(architecture=TINY))
