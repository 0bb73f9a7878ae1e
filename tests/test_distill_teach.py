"""distill.teach beyond the robot's own data: co-fine-tuning, plans, from scratch, in 4 bits; on a tiny task with real parts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import point_reach
import pytest
import torch
from small_web_folders import write_emoji

pytest.importorskip("easy_vqa")

from safetensors.torch import load_file

from actlet.action_tokens import ActionTokenizer
from actlet.errors import CallerError, SpecError
from actlet.specs import PolicySpec, TimingSpec
from actlet.storage import read_json
from distill import teach as teaching
from distill import web_data
from distill.fit import FitConfig
from distill.frames import Frames
from distill.rt2_teacher import Rt2Teacher
from distill.teach import TeachConfig, teach
from distill.teacher_batches import Batches, Rows, plan_every_frame
from distill.teacher_checkpoint import load_teacher
from distill.teacher_config import Decoding, TeacherConfig
from episodes.collect import collect
from episodes.lerobot_dataset import open_dataset

ONE_STEP = TimingSpec(rate_hz=5, horizon=1, execute_steps=1, max_delay_steps=0)
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
    monkeypatch.setattr(web_data, "_FOLDER_PICTURES", 12)
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


def test_names_keep_their_words_unless_the_teacher_was_made_without_them(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ "volleyball" is one of the rarest words: a teacher that is made with it can say it, one to start from may not, and says so."""
    folder = write_emoji(tmp_path / "emoji")
    settings = {"web": (f"emoji={folder}",), "web_share": 0.5, "vision_steps": 0, "steps": 1}
    known = load_teacher(teach(data, tmp_path / "known", tiny(**settings)))
    assert known.words(["volleyball", "red apple", "food"]).ids.shape[0] == 3
    assert "left out" not in capsys.readouterr().err
    plain = teach(data, tmp_path / "plain", tiny(vision_steps=0, steps=1))
    on = teach(data, tmp_path / "on", tiny(**settings), start=plain)
    assert "questions are left out whose answers' words mean actions to this teacher: volleyball" in capsys.readouterr().err
    assert first_line(on)["web"] > 0


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
        commanded=action,
        by_expert=np.ones(3, bool),
    )


def test_settings_that_cannot_be_are_refused() -> None:
    """A share beyond 1, or updates on the web without a set of it."""
    for settings in ({"web_share": 1.5}, {"plan_share": -0.1}, {"web_steps": 3}, {"web": ("easy-vqa",), "web_share": 1.0}):
        with pytest.raises(SpecError, match=r"share|web"):
            TeachConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("load", ["fp32", "nf4"])
def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: str) -> None:
    """Cut off in the last stage; in 4 bits too, whose frozen matrices no state could give back. The weights are those of a run in one go."""
    config = tiny(web=("easy-vqa",), web_steps=1, steps=4, load=load)
    straight = teach(data, tmp_path / "straight", config)
    monkeypatch.setattr(teaching, "FitConfig", lambda **settings: FitConfig(**{**settings, "save_seconds": 0.0}))
    losses, calls = Batches.losses, []

    def cut_off(self: Batches, *arguments: object) -> object:
        calls.append(0)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return losses(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Batches, "losses", cut_off)
    with pytest.raises(KeyboardInterrupt):
        teach(data, tmp_path / "out", config)
    resumed = teach(data, tmp_path / "out", config)
    assert len(calls) == 5 + 2
    a, b = load_file(straight / "adapter.safetensors"), load_file(resumed / "adapter.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_rows_that_plan_are_drawn_as_those_that_act(data: Path) -> None:
    """As many moments in which only the words can tell, and as many ends, on both sides: 60 batches, within 5 standard errors."""
    dataset = open_dataset(data)
    table = Frames.from_episodes(dataset.read_all(), dataset.observation_spec, dataset.action_spec)
    teacher = Rt2Teacher(
        dataclasses.replace(point_reach.SPEC, timing=ONE_STEP), ActionTokenizer.fit(table.action, point_reach.ACTION), config=TINY
    )
    batches = Batches(teacher, table, None, ["done"] * len(table), tiny(plan_share=0.5, batch_size=32))
    seen: list[tuple[float, float]] = []

    def look(rows: Rows) -> dict[str, torch.Tensor]:
        undecided = torch.from_numpy(table.undecided).float()
        own = [int(torch.argmin((batches.state - state).abs().sum(1))) for state in rows.state]
        seen.append((float(undecided[own[:16]].mean()), float(undecided[own[16:]].mean())))
        raise StopIteration

    batches.config = dataclasses.replace(batches.config, state_noise=0.0)
    for seed in range(60):
        with pytest.raises(StopIteration):
            batches.losses(look, 0.0, torch.Generator().manual_seed(seed))  # type: ignore[arg-type]
    acting, planning = np.mean(seen, axis=0)
    assert abs(acting - planning) < 5 * np.sqrt(2 * 0.25 / (60 * 16))


def test_data_of_another_rate_is_refused(data: Path, tmp_path: Path) -> None:
    """Actions are motions per step: at another rate they are other speeds."""
    import shutil

    other = tmp_path / "faster"
    shutil.copytree(data, other)
    info = json.loads((other / "meta" / "info.json").read_text())
    (other / "meta" / "info.json").write_text(json.dumps({**info, "fps": 25}))
    with pytest.raises(SpecError, match="5 Hz and 25 Hz"):
        teach([data, other], tmp_path / "out", tiny())


def test_fewer_bits_need_pretrained_weights(data: Path, tmp_path: Path) -> None:
    """What is learned whole cannot be kept in 4 bits; nothing is switched silently."""
    with pytest.raises(SpecError, match="use fp32"):
        teach(data, tmp_path / "out", tiny(load="nf4", architecture=dataclasses.replace(TINY, pretrained=False)))


def test_a_launcher_of_many_processes_is_told_so(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two would write into one folder: refused before anything is made."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(CallerError, match="one of 2"):
        teach(data, tmp_path / "out", tiny())
    assert not list(tmp_path.iterdir())
