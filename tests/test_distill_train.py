"""distill.train and distill.teach on a tiny task with language: the whole training chain with real parts."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import point_reach
import pytest
import torch
from safetensors.torch import load_file

from actlet.action_tokens import ActionTokenizer
from actlet.command_line import main
from actlet.errors import SpecError, StorageError
from actlet.protocols import Observation
from actlet.specs import PolicySpec, TimingSpec
from actlet.storage import read_json, sha256
from distill.rt2_teacher import Rt2Teacher
from distill.student import Student, StudentConfig, StudentPolicy, load_student
from distill.student_batches import _moves, _shifted
from distill.teach import TeachConfig, teach
from distill.teacher_checkpoint import load_teacher, save_teacher
from distill.teacher_config import TeacherConfig
from distill.train import SAMPLES, TrainConfig, distill
from episodes.collect import collect
from episodes.lerobot_dataset import open_dataset
from episodes.rollout import evaluate, success_summary
from episodes.seeds import TUNING_SEED_START

SUITE = "point_reach:make_suite"
TINY = StudentConfig(image_px=16, channels=(16, 32), blocks=(1, 1), condition_dim=32, squeeze_channels=16, features=64, token_rank=8)
TINY_TEACHER = TeacherConfig(layers=1, lora_rank=2, channels=(8, 8, 8), blocks=(1, 1, 1), condition_dim=8, features=16, scene_tokens=2)
ONE_STEP = PolicySpec(
    observation=point_reach.OBSERVATION,
    action=point_reach.ACTION,
    timing=TimingSpec(rate_hz=5, horizon=1, execute_steps=1, max_delay_steps=0),
)


def tiny(**changes: object) -> TrainConfig:
    settings = {
        "steps": 6,
        "batch_size": 8,
        "horizon": 4,
        "execute_steps": 2,
        "rounds": 2,
        "on_policy_episodes": 2,
        "scenes": 3,
        "glances": 4,
        "architecture": TINY,
    }
    return TrainConfig(**(settings | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("points") / "data"
    collect(SUITE, path, 60, workers=1)
    return path


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained teacher: what it says is nonsense, but it is a real one."""
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    tokenizer = ActionTokenizer(np.float32([0, -0.08, -0.08, 0]), np.float32([1, 0.08, 0.08, 1]))
    save_teacher(Rt2Teacher(ONE_STEP, tokenizer, config=TINY_TEACHER), folder, lineage={})
    return folder


def test_shifted_frames_are_the_frames_moved() -> None:
    """Every picture is its row's, moved by a whole number of pixels within the bound; with no bound it is the row's own."""
    frames = np.random.default_rng(0).integers(0, 256, (5, 12, 10, 3), dtype=np.uint8)
    rows = torch.tensor([3, 0, 3, 4])
    generator = torch.Generator().manual_seed(0)
    whole = torch.from_numpy(frames)
    np.testing.assert_array_equal(_shifted(whole, rows, _moves(4, 0, generator)).numpy(), frames[rows.numpy()])
    moved = _shifted(whole, rows, _moves(4, 2, generator)).numpy()
    padded = np.pad(frames, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    for picture, row in zip(moved, rows.tolist(), strict=True):
        windows = [padded[row, y : y + 12, x : x + 10] for y in range(5) for x in range(5)]
        assert sum(np.array_equal(picture, window) for window in windows) == 1


@pytest.mark.slow
def test_a_cloned_student_acts_as_it_was_shown(data: Path, tmp_path: Path) -> None:
    """Behaviour cloning reaches the target in closed loop, in scenes of the demonstrations; an untrained student does not."""
    out = distill(data, tmp_path / "student", suite=SUITE, config=tiny(steps=250, batch_size=32, learning_rate=3e-3))
    policy = StudentPolicy(load_student(out))
    seeds = list(dict.fromkeys(episode.seed for episode in open_dataset(data).episodes if episode.seed is not None))
    untrained = StudentPolicy(Student(policy.spec, policy.student.tokenizer, TINY))
    trained_rate, untrained_rate = (
        success_summary(evaluate(lambda p=p: p, SUITE, seeds, workers=1, progress=False))["rate"] for p in (policy, untrained)
    )
    assert len(seeds) == 30
    assert trained_rate >= 0.7
    assert untrained_rate <= 0.3


def test_a_student_checkpoint_is_whole(data: Path, tmp_path: Path) -> None:
    """Samples, log and card are there, the run's hidden folder is gone."""
    out = distill(data, tmp_path / "student", suite=SUITE, config=tiny())
    assert sorted(file.name for file in out.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "samples.safetensors",
        "train_log.jsonl",
    ]
    assert len(read_json(out / "config.json")["sample_instructions"]) == SAMPLES
    assert json.loads((out / "train_log.jsonl").read_text().splitlines()[0])["loss"] > 0
    assert "behaviour cloning" in (out / "README.md").read_text()
    assert [file.name for file in tmp_path.iterdir()] == ["student"]


def test_a_teacher_labels_demonstrations_and_what_the_student_reached(data: Path, teacher: Path, tmp_path: Path) -> None:
    """Two rounds run, both look at scenes too, and the checkpoint names its teacher."""
    out = distill(data, tmp_path / "student", teacher=teacher, suite=SUITE, config=tiny(labelled_share=0.5))
    log = [json.loads(line) for line in (out / "train_log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [0, 0]
    assert all(row["features"] > 0 for row in log)
    assert read_json(out / "config.json")["lineage"]["teacher"] == sha256(teacher / "adapter.safetensors")
    card = (out / "README.md").read_text()
    assert "11 scenes and frames" in card
    [drive] = read_json(out / "config.json")["lineage"]["drove"]
    assert drive["episodes"] == 2
    assert f"its answers 0 to 2 steps late, it succeeded in {drive['successes']} of 2; the last round is not" in card
    assert load_student(out).tokenizer.to_dict() == load_teacher(teacher).tokenizer.to_dict()


@pytest.mark.slow
def test_seeing_through_the_teachers_eyes_is_learned(data: Path, teacher: Path, tmp_path: Path) -> None:
    """The loss on the teacher's features falls; without scenes there is none."""
    config = {"rounds": 1, "labelled_share": 0.05}
    seen = distill(
        data, tmp_path / "seen", teacher=teacher, suite=SUITE, config=tiny(steps=101, batch_size=32, learning_rate=3e-3, **config)
    )
    losses = [json.loads(line)["features"] for line in (seen / "train_log.jsonl").read_text().splitlines()]
    assert len(losses) == 6
    assert np.mean(losses[4:]) < 0.7 * losses[0]
    blind = distill(data, tmp_path / "blind", teacher=teacher, suite=SUITE, config=tiny(scenes=0, **config))
    assert "features" not in json.loads((blind / "train_log.jsonl").read_text().splitlines()[0])


def test_with_patience_the_student_that_drove_best_is_kept(data: Path, tmp_path: Path) -> None:
    """It is judged on tuning seeds, after every so many updates; the card says what was judged, and what the training cost."""
    config = tiny(steps=9, patience=2, judge_every=2, judge_episodes=3)
    out = distill(data, tmp_path / "student", suite=SUITE, config=config)
    lineage = read_json(out / "config.json")["lineage"]
    judged = lineage["judgements"]
    assert [each["updates"] for each in judged] == [2, 4, 6, 8, 9][: len(judged)]
    assert lineage["updates"] == judged[-1]["updates"]
    best = lineage["best_judgement"]
    assert best == max(judged, key=lambda each: each["successes"])
    kept = StudentPolicy(load_student(out))
    results = evaluate(lambda: kept, SUITE, range(TUNING_SEED_START, TUNING_SEED_START + 3), workers=1, progress=False)
    assert sum(result.success for result in results) == best["successes"]
    card = (out / "README.md").read_text()
    assert f"the best of {len(judged)} judgements: {best['successes']} of 3 episodes, after update {best['updates']} of round 1" in card
    assert "seeds: training 0, judgements 50000 .. 50002" in card
    assert f"{lineage['updates']} updates in fp32 on cpu, in 1 process" in card
    assert lineage["train_wall_s"] > 0
    assert lineage["train_cpu_s"] > 0


def test_patience_needs_a_suite(data: Path, tmp_path: Path) -> None:
    """On recordings nobody knows what success would be."""
    with pytest.raises(SpecError, match="patience 2 without a suite"):
        distill(data, tmp_path / "student", suite=None, config=tiny(patience=2))


def test_a_checkpoint_that_exists_is_refused_before_the_training(data: Path, tmp_path: Path) -> None:
    """Not after it."""
    (tmp_path / "student").mkdir()
    with pytest.raises(StorageError, match="exists already"):
        distill(data, tmp_path / "student", suite=SUITE, config=tiny())
    assert [file.name for file in tmp_path.iterdir()] == ["student"]


def test_fewer_updates_than_rounds_are_refused(data: Path, teacher: Path, tmp_path: Path) -> None:
    """Every round needs an update; without a teacher there is one round."""
    with pytest.raises(SpecError, match="1 updates cannot be shared out among 2 rounds"):
        distill(data, tmp_path / "student", teacher=teacher, suite=SUITE, config=tiny(steps=1))
    assert load_student(distill(data, tmp_path / "cloned", suite=SUITE, config=tiny(steps=1)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scenes": -1}, "scenes -1"),
        ({"scene_share": 1.0}, "scene_share 1.0"),
        ({"rounds": 0}, "rounds 0"),
        ({"patience": 0}, "patience 0"),
        ({"patience": 1, "judge_episodes": 0}, "judge_episodes 0"),
        ({"quantize_aware": "int2"}, "quantize_aware 'int2'"),
        ({"quantize_aware": "int8", "patience": 1}, "quantize_aware and patience"),
        ({"quantize_aware_from": 1.0}, "quantize_aware_from 1.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, float], message: str) -> None:
    """Fewer scenes, rounds or judgements than there can be, or a batch without demonstrations."""
    with pytest.raises(SpecError, match=message):
        tiny(**settings)


def test_a_processor_that_can_trains_in_bfloat16(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only if asked; the weights are float32 all the same, and not those of a run in float32. Any processor can imitate it for once."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    plain, short = (distill(data, tmp_path / str(bf16), suite=SUITE, config=tiny(bf16=bf16)) for bf16 in (None, True))
    precisions = [read_json(out / "config.json")["lineage"]["precision"] for out in (plain, short)]
    assert precisions == ["fp32", "bf16"]
    weights = [load_file(out / "model.safetensors") for out in (plain, short)]
    assert all(tensor.dtype == weights[0][name].dtype and tensor.isfinite().all() for name, tensor in weights[1].items())
    assert not torch.equal(*(w["mix.0.weight"] for w in weights))


def test_bfloat16_is_refused_where_it_would_be_imitated(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is labelled."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    with pytest.raises(SpecError, match=r"bfloat16 on this cpu.*--no-bf16"):
        distill(data, tmp_path / "student", suite=SUITE, config=tiny(bf16=True))


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_quantization_aware_student_is_a_float_checkpoint(data: Path, tmp_path: Path, precision: str) -> None:
    """The rounding changes what is learned and nothing else: same tensors as without it, and lineage and card say how it was trained."""
    aware = distill(data, tmp_path / "aware", suite=SUITE, config=tiny(quantize_aware=precision))
    plain = distill(data, tmp_path / "plain", suite=SUITE, config=tiny())
    ours, theirs = load_student(aware).state_dict(), load_student(plain).state_dict()
    assert ours.keys() == theirs.keys()
    assert not torch.equal(ours["mix.2.weight"], theirs["mix.2.weight"])
    assert read_json(aware / "config.json")["lineage"]["training"]["quantize_aware"] == precision
    assert f"the first 50% were made with the rounding of {precision}" in (aware / "README.md").read_text()
    assert "quantization-aware" not in (plain / "README.md").read_text()


def test_a_share_of_nothing_is_refused() -> None:
    """A teacher that labels no demonstration is a mistake in the settings."""
    with pytest.raises(SpecError, match="labelled_share 0"):
        tiny(labelled_share=0.0)


def test_recordings_hold_out_episodes(data: Path, tmp_path: Path) -> None:
    """Without a suite some episodes are not trained on, and the error on them stands beside two baselines."""
    out = distill(data, tmp_path / "student", suite=None, config=tiny())
    lineage = read_json(out / "config.json")["lineage"]
    held_out = lineage["held_out"]
    assert lineage["dataset_episodes"] + held_out["episodes"] == 60
    assert set(held_out["dimensions"]) == set(point_reach.ACTION.names)
    assert set(held_out["dimensions"]["dx"]["next"]) == {"student", "repeat", "mean"}
    assert "held-out episodes" in (out / "README.md").read_text()


def test_a_teacher_for_another_robot_is_refused(data: Path, tmp_path: Path) -> None:
    """The message names what differs."""
    other = PolicySpec(
        observation=point_reach.OBSERVATION,
        action=dataclasses.replace(point_reach.ACTION, frame="tool"),
        timing=ONE_STEP.timing,
    )
    save_teacher(
        Rt2Teacher(other, ActionTokenizer(np.float32([0, -1, -1, 0]), np.float32([1, 1, 1, 1])), config=TINY_TEACHER), tmp_path, lineage={}
    )
    with pytest.raises(SpecError, match="frame"):
        distill(data, tmp_path / "student", teacher=tmp_path, suite=SUITE, config=tiny())


def test_teaching_goes_on_from_a_checkpoint(data: Path, teacher: Path, tmp_path: Path) -> None:
    """The tokens stay, the weights start where they were, and the new checkpoint and its card name the old one."""
    small = {"batch_size": 4, "vision_learning_rate": 1e-9, "learning_rate": 1e-9}
    out = teach(data, tmp_path / "on", TeachConfig(vision_steps=0, steps=1, **small), start=teacher)
    before, after = load_teacher(teacher), load_teacher(out)
    assert after.tokenizer.to_dict() == before.tokenizer.to_dict()
    np.testing.assert_array_equal(after.vocabulary.ids, before.vocabulary.ids)
    torch.testing.assert_close(after.action_tokens, before.action_tokens)
    torch.testing.assert_close(after.state_dict()["vision.0.down.film.weight"], before.state_dict()["vision.0.down.film.weight"])
    assert read_json(out / "config.json")["lineage"]["start"] == before.content_hash
    assert f"from the teacher {before.content_hash[:12]} on" in (out / "README.md").read_text()
    learned = teach(data, tmp_path / "learned", TeachConfig(vision_steps=0, steps=2, batch_size=4), start=teacher)
    assert not torch.equal(load_teacher(learned).action_tokens, before.action_tokens)


def test_a_start_for_another_robot_is_refused(data: Path, teacher: Path, tmp_path: Path) -> None:
    """What the checkpoint sees must be what the dataset holds."""
    spec = load_teacher(teacher).spec
    other = dataclasses.replace(
        spec, observation=dataclasses.replace(spec.observation, state_names=("x", "y", "z"), state_units=("m", "m", "m"))
    )
    tokenizer = ActionTokenizer(np.float32([0, -0.08, -0.08, 0]), np.float32([1, 0.08, 0.08, 1]))
    (tmp_path / "other").mkdir()
    save_teacher(Rt2Teacher(other, tokenizer, config=TINY_TEACHER), tmp_path / "other", lineage={})
    with pytest.raises(SpecError, match=r"observations of .*other and the datasets"):
        teach(data, tmp_path / "out", start=tmp_path / "other")


def test_teaching_makes_a_checkpoint_that_loads(data: Path, tmp_path: Path) -> None:
    """Both stages run on two datasets, and what is loaded answers."""
    out = teach([data, data], tmp_path / "teacher", TeachConfig(vision_steps=2, steps=2, batch_size=4, architecture=TINY_TEACHER))
    loaded = load_teacher(out)
    observation, instruction = point_reach.PointReach("red").reset(0)
    assert loaded.predict([observation], [instruction])[0].actions.shape == (1, 4)
    assert "LoRA" in (out / "README.md").read_text()


def test_a_teacher_on_another_machine_labels_as_it_does_here(
    data: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same training through a server: same teacher in the lineage, same bins, nearly the same weights; that scenes are left out is said."""
    from runtime.serve import PolicyServer, ServerConfig

    config = tiny(scenes=3, labelled_share=0.2)
    with PolicyServer(load_teacher(teacher), ServerConfig(port=0)) as server:
        served = distill(data, tmp_path / "served", teacher=server.url, suite=SUITE, config=config)
    here = distill(data, tmp_path / "here", teacher=teacher, suite=SUITE, config=dataclasses.replace(config, scenes=0))
    assert read_json(served / "config.json")["lineage"]["teacher"] == sha256(teacher / "adapter.safetensors")
    assert "without the 3 new scenes" in capsys.readouterr().err
    ours, theirs = load_student(here), load_student(served)
    assert ours.tokenizer == theirs.tokenizer
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[name], rtol=1e-2, atol=1e-2, msg=name)


def test_a_served_policy_that_is_no_teacher_is_refused(data: Path, tmp_path: Path, tiny_bundle: Path) -> None:
    """Before any work, and nothing is left behind."""
    from runtime.policy import BundlePolicy
    from runtime.serve import PolicyServer, ServerConfig

    with (
        PolicyServer(BundlePolicy(tiny_bundle), ServerConfig(port=0)) as server,
        pytest.raises(SpecError, match="is not a teacher"),
    ):
        distill(data, tmp_path / "student", teacher=server.url, suite=SUITE, config=tiny())
    assert not (tmp_path / "student").exists()


def test_a_student_for_a_delay_is_told_what_is_on_its_way_down_to_int8(data: Path, teacher: Path, tmp_path: Path) -> None:
    """Trained and driven under delays, exported and quantized, it answers as in torch, and what is on its way changes the answer."""
    from export.to_bundle import export_student
    from quantize.quantize_bundle import quantize_bundle
    from quantize.schemes import scheme
    from runtime.policy import BundlePolicy

    out = distill(data, tmp_path / "student", teacher=teacher, suite=SUITE, config=tiny(delay_steps=2))
    student = load_student(out)
    assert (student.spec.timing.committed_steps, student.spec.timing.max_delay_steps) == (2, 2)
    export_student(out, tmp_path / "float")
    quantize_bundle(
        tmp_path / "float",
        tmp_path / "int8",
        scheme=scheme("int8"),
        data=data,
        calibration_frames=16,
        held_out_frames=8,
        allow_slower=True,
    )
    episode = open_dataset(data).read(0)
    observation = Observation({name: frames[0] for name, frames in episode.images.items()}, episode.state[0])
    told = dataclasses.replace(observation, committed=np.float32([[0, 0.08, 0.08, 0], [0, 0.08, 0.08, 0]]))
    ours, exported, small = (
        policy.predict([told], ["reach the red target"])[0].actions
        for policy in (StudentPolicy(student), BundlePolicy(tmp_path / "float"), BundlePolicy(tmp_path / "int8"))
    )
    np.testing.assert_allclose(exported, ours, atol=2e-3)
    np.testing.assert_allclose(small[:, 1:3], ours[:, 1:3], atol=0.03)
    untold = StudentPolicy(student).predict([observation], ["reach the red target"])[0].actions
    assert not np.allclose(untold, ours, atol=1e-6)


def test_the_verb_passes_on_what_it_is_told(data: Path, tmp_path: Path) -> None:
    """Every kind of option reaches the training that the checkpoint tells of."""
    options = {"--teacher": "none", "--suite": SUITE, "--steps": "2", "--batch-size": "4", "--horizon": "4", "--size": "nano"}
    options |= {"--delay-steps": "3", "--teacher-target": "hard", "--sigma": "6", "--mode-reach": "16", "--quantize-aware": "int4"}
    words = ["distill", "--data", str(data), "--out", str(tmp_path / "student"), *itertools.chain(*options.items())]
    assert main(words) == 0
    lineage = read_json(tmp_path / "student" / "config.json")["lineage"]
    told = {"steps": 2, "batch_size": 4, "horizon": 4, "delay_steps": 3, "target": "hard", "sigma": 6.0, "quantize_aware": "int4"}
    assert {name: lineage["training"][name] for name in told} == told
    assert (lineage["size"], lineage["training"]["architecture"]["mode_reach"]) == ("nano", 16)
    assert load_student(tmp_path / "student").spec.timing.committed_steps == 3
