"""distill.teach beyond the robot's own data: co-fine-tuning, plans, from scratch, in 4 bits; on a tiny task with real parts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import point_reach
import pytest

pytest.importorskip("easy_vqa")

from actlet.errors import SpecError
from actlet.specs import PolicySpec
from actlet.storage import read_json
from distill import teach as teaching
from distill import web_data
from distill.frames import Frames
from distill.teach import TeachConfig, teach
from distill.teacher_batches import plan_every_frame
from distill.teacher_checkpoint import load_teacher
from distill.teacher_config import Decoding, TeacherConfig
from episodes.collect import collect

TINY = TeacherConfig(layers=1, lora_rank=2, channels=(8, 8, 8), blocks=(1, 1, 1), condition_dim=8, features=16, scene_tokens=2)
WEB = {"web": ("easy-vqa",), "web_steps": 2, "web_share": 0.5}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("points") / "data"
    collect("point_reach:make_suite", path, 20, workers=1)
    return path


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_data, "_WHOLE_PICTURES", 8)
    monkeypatch.setattr(web_data, "_COLLAGES", 8)
    monkeypatch.setattr(teaching, "HELD_OUT_QUESTIONS", 6)


def tiny(**changes: object) -> TeachConfig:
    settings = {"vision_steps": 1, "steps": 2, "batch_size": 8, "architecture": TINY}
    return TeachConfig(**(settings | changes))  # type: ignore[arg-type]


def first_line(folder: Path, name: str = "train_log.jsonl") -> dict[str, float]:
    line: dict[str, float] = json.loads((folder / name).read_text().splitlines()[0])
    return line


def test_every_batch_mixes_the_web_the_robot_and_plans(data: Path, tmp_path: Path) -> None:
    """All losses are in the first update already; the card keeps the score before and after; what is loaded plans and answers."""
    out = teach(data, tmp_path / "out", tiny(**WEB, plan_share=0.5))
    assert {"tokens", "plan", "web", "vision", "waypoint", "web, vision"} <= set(first_line(out))
    assert {"web", "web, vision"} <= set(first_line(out, "web_log.jsonl"))
    assert "tokens" not in first_line(out, "web_log.jsonl")
    scores = read_json(out / "config.json")["lineage"]["held_out_questions"]
    assert scores["questions"] == 6
    assert set(scores["answered right"]) == {"after the web alone", "at the end"}
    teacher = load_teacher(out)
    observation, instruction = point_reach.PointReach("red").reset(0)
    decision = teacher.decide([observation], [instruction], Decoding(plan=True, max_words=3))
    assert decision.bins.shape == (1, 4)
    assert len(teacher.answer(observation.images["above"][None], ["what color is the shape?"])) == 1


def test_without_a_share_the_web_is_forgotten_and_still_scored(data: Path, tmp_path: Path) -> None:
    """Fine-tuned on the robot alone: no batch has the web's rows, the score at the end is taken all the same."""
    out = teach(data, tmp_path / "out", tiny(**{**WEB, "web_share": 0.0}))
    assert "web" not in first_line(out)
    assert "at the end" in read_json(out / "config.json")["lineage"]["held_out_questions"]["answered right"]


def test_stages_may_be_left_out(data: Path, tmp_path: Path) -> None:
    """The web alone makes a checkpoint that answers, from which robot training may start."""
    out = teach(data, tmp_path / "web", tiny(web=("easy-vqa",), web_steps=1, vision_steps=0, steps=0))
    assert {file.name for file in out.iterdir()} == {"README.md", "adapter.safetensors", "config.json", "web_log.jsonl"}
    on = teach(data, tmp_path / "on", tiny(), start=out)
    assert load_teacher(on).vocabulary.ids.tolist() == load_teacher(out).vocabulary.ids.tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{"load": "nf4"}, {"architecture": dataclasses.replace(TINY, pretrained=False)}], ids=["nf4", "scratch"]
)
def test_other_ways_train_too(data: Path, tmp_path: Path, changes: dict[str, object]) -> None:
    """QLoRA leaves the matrices alone and learns the adapter; from scratch the language model's layers learn."""
    out = teach(data, tmp_path / "out", tiny(**changes, **WEB))
    assert first_line(out)["tokens"] > 0
    names = set(load_teacher(out).state_dict())
    assert any("lora_B" in name for name in names) is ("load" in changes)


def test_plans_need_a_gripper_and_terminate(data: Path) -> None:
    """A robot without them is told so."""
    spec = dataclasses.replace(spec_of_points(), action=dataclasses.replace(point_reach.ACTION, names=("terminate", "dx", "dy", "suction")))
    with pytest.raises(SpecError, match="suction"):
        plan_every_frame(frames(), spec, teaching.PLANNER)
    assert plan_every_frame(frames(), spec_of_points(), teaching.PLANNER) == ["reach the red target"] * 2 + ["done"]


def spec_of_points() -> PolicySpec:
    return point_reach.SPEC


def frames() -> Frames:
    action = np.float32([[0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]])
    return Frames(
        images={},
        state=np.zeros((3, 2), np.float32),
        action=action,
        episode=np.zeros(3, np.int64),
        last=np.full(3, 2),
        waypoints=np.zeros((3, 2, 2), np.float32),
        undecided=np.ones(3, bool),
        instructions=["reach the red target"],
        by_expert=np.ones(3, bool),
    )


def test_settings_that_cannot_be_are_refused() -> None:
    """A share beyond 1, or updates on the web without a set of it."""
    for settings in ({"web_share": 1.5}, {"plan_share": -0.1}, {"web_steps": 3}, {"web": ("easy-vqa",), "web_share": 1.0}):
        with pytest.raises(SpecError, match=r"share|web"):
            TeachConfig(**settings)  # type: ignore[arg-type]
