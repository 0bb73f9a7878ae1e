"""benchmarks.distillation: the methods, the rows and their differences, and the chain on a tiny task with language."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import point_reach
import pytest

from actlet.errors import CallerError, SpecError, UnknownNameError
from actlet.storage import read_json, write_json
from benchmarks.distillation import _plans, distillation_text, main, measure_distillation, write_distillation
from benchmarks.distillation_config import BASELINE, METHODS, PLANS, DistillationConfig, SuitePlan
from benchmarks.distillation_rows import compare_rows, distillation_row, distillation_table, second_table, with_differences
from benchmarks.distillation_stages import Late, slug
from benchmarks.latency import LatencyConfig
from benchmarks.plots import delays_plot, methods_plot
from distill.student import StudentConfig
from distill.train_config import TrainConfig
from episodes.rollout import EpisodeResult

SUITE = "point_reach:make_suite"
TINY = StudentConfig(image_px=16, channels=(16, 32), blocks=(1, 1), condition_dim=32, squeeze_channels=16, features=64, token_rank=8)
FIELDS = {field.name for field in dataclasses.fields(TrainConfig)}
# Those whose fields TrainConfig has.
TRAINABLE = [name for name, method in METHODS.items() if set(method.changes) <= FIELDS]


def tiny(**changes: Any) -> DistillationConfig:
    """Two methods on points, with a teacher that is trained in the chain."""
    teach = DistillationConfig.tiny().suites[1].teach
    points = SuitePlan(name="points", suite=SUITE, demonstrations=12, teacher_demonstrations=8, teach=teach)
    train = TrainConfig(steps=4, batch_size=8, horizon=4, on_policy_episodes=2, scenes=3, glances=4, delay_steps=0, architecture=TINY)
    settings: dict[str, Any] = {
        "parts": ("table", "few", "unseen", "variants"),
        "methods": (BASELINE, "+ on-policy"),
        "suites": (points,),
        "second": points,
        "precisions": ("float", "int8"),
        "train": train,
        "episodes": 4,
        "delay_episodes": 2,
        "delays": (1, 2),
        "few": (6,),
        "axes": {"seen": SUITE},
        "varied_suite": SUITE,
        "varied_teacher": None,
        "latency": LatencyConfig(rounds=2, calls=2),
        "workers": 1,
    }
    return DistillationConfig.tiny(**(settings | changes))


def episodes(outcomes: str) -> list[dict[str, object]]:
    return [
        EpisodeResult(
            task="red",
            seed=seed,
            instruction="reach the red target",
            success=mark == "1",
            steps=9,
            terminated_early=False,
            mean_squared_jerk=2.0 if mark == "1" else 50.0,
            path_length=0.5,
            gripper_flips=1,
            kind="",
            error="",
        ).to_dict()
        for seed, mark in enumerate(outcomes)
    ]


def row(method: str, outcomes: str, precision: str = "float") -> dict[str, Any]:
    return distillation_row(
        suite="points",
        method=method,
        student="default",
        precision=precision,
        episodes=episodes(outcomes),
        delayed={1: episodes("01"), 4: episodes("00")},
        timing={"decision_rate_hz": 100.0, "latency_ms": {"p50": 10.0}},
        train_cpu_s=600.0,
    )


def test_each_method_has_what_the_one_before_has() -> None:
    """From "soft tokens" on, what a method leaves out gets less from one to the next, and what it adds stays."""
    names = list(METHODS)[list(METHODS).index("soft tokens") :]
    for before, after in itertools.pairwise(names):
        ours, theirs = METHODS[after].changes, METHODS[before].changes
        left_out = {"rounds", "scenes"}
        assert set(ours) & left_out <= set(theirs) & left_out
        assert set(theirs) - left_out <= set(ours) - left_out
        assert ours != theirs
    assert not METHODS[BASELINE].is_taught


@pytest.mark.parametrize("method", TRAINABLE)
def test_a_method_is_a_way_to_train_with_the_same_updates_and_seed(method: str) -> None:
    """Nothing but what it is named after differs."""
    config = DistillationConfig()
    ours = config.training(method)
    assert (ours.steps, ours.batch_size, ours.seed, ours.horizon) == (
        config.train.steps,
        config.train.batch_size,
        config.train.seed,
        config.train.horizon,
    )
    changed = {field for field in FIELDS if getattr(ours, field) != getattr(config.train, field)}
    assert changed == {name for name, value in METHODS[method].changes.items() if value != getattr(config.train, name)}


def test_a_row_can_be_counted_again() -> None:
    """Rates, the delays on the first seeds, and motion of the successful episodes alone."""
    found = row("soft tokens", "1101")
    assert (found["success"], found["episodes"], found["outcomes"]) == (0.75, 4, "1101")
    assert found["success_at_delay_ticks"] == {"0": 1.0, "1": 0.5, "4": 0.0}
    assert found["delay_episodes"] == 2
    assert (found["jerk"], found["path_length"], found["gripper_flips"]) == (2.0, 0.5, 1.0)


def test_rows_are_compared_on_the_same_seeds_in_their_own_precision() -> None:
    """With cloning of the same precision, with the teacher, and with the float bundle; never with itself."""
    rows = [
        row("teacher", "1111"),
        row(BASELINE, "0100"),
        row(BASELINE, "0000", "int8"),
        row("soft tokens", "0111"),
        row("soft tokens", "0110", "int8"),
    ]
    teacher, cloned, _, soft, soft_int8 = with_differences(rows)
    assert set(teacher["against"]) == {BASELINE}
    assert set(cloned["against"]) == {"teacher"}
    assert soft["against"][BASELINE]["difference"] == 0.5
    assert soft["against"]["teacher"]["difference"] == -0.25
    assert {name: found["difference"] for name, found in soft_int8["against"].items()} == {BASELINE: 0.5, "teacher": -0.5, "float": -0.25}
    table = distillation_table([teacher, cloned, soft, soft_int8], markdown=True)
    assert "75 % [30, 95]" in table
    assert "+50 [" in table
    assert "10.0 min" in table


def test_the_drawings_have_a_line_for_every_method() -> None:
    """And nothing is looked up elsewhere."""
    rows = [row(method, "1101") for method in ("teacher", *METHODS)]
    for drawing in (methods_plot(rows), delays_plot(rows)):
        assert all(method in drawing for method in METHODS)
        assert "http" not in drawing
        assert "#0a0b0" not in drawing


def test_late_answers_are_taken_as_far_as_their_rows_reach() -> None:
    """What a policy declares is lifted to the delay, never lowered, never beyond its chunk."""
    policy = point_reach.PictureReader()
    assert [Late(policy, steps).spec.timing.max_delay_steps for steps in (0, 2, 9)] == [0, 2, 3]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"methods": ("soft",)}, UnknownNameError, "Did you mean 'soft tokens'"),
        ({"methods": (BASELINE,)}, SpecError, "none is"),
        ({"precisions": ("int8",)}, SpecError, "expected 'float' first"),
        ({"delay_episodes": 9999}, SpecError, "delay_episodes 9999"),
        ({"parts": ()}, SpecError, "at least one"),
        ({"episodes": 60_000}, SpecError, "closed loop"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    """Before any work."""
    with pytest.raises(error, match=message):
        DistillationConfig(**changes)


def test_a_teacher_is_named_for_a_suite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A shipped one or a folder; what holds none is refused, in words."""
    plans = _plans(["tabletop", "metaworld"], ["tabletop=rt2-base", "metaworld=there"], PLANS)
    assert [plan.teacher for plan in plans] == ["rt2-base", "there"]
    with pytest.raises(CallerError, match="expected SUITE=TEACHER"):
        _plans(["tabletop"], ["best"], PLANS)
    arguments = ["--out", str(tmp_path), "--quick", "--methods", BASELINE, "--parts", "table", "--suites", "tabletop"]
    assert main([*arguments, "--teacher", f"tabletop={tmp_path / 'none'}"]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_a_folder_is_named_after_its_method() -> None:
    """Each has its own."""
    assert slug("+ on-policy") == "plus-on-policy"
    assert len({slug(method) for method in METHODS}) == len(METHODS)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_chain_runs_whole_and_only_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every part with every row, as JSON and as tables; given again, it does nothing twice; another method is added to what is there."""
    config = tiny()
    document = measure_distillation(tmp_path, config)
    capsys.readouterr()
    write_distillation(tmp_path, document)
    assert read_json(tmp_path / "distillation.json")["rows"] == document["rows"]
    assert (tmp_path / "distillation-delay.svg").read_text().startswith("<svg")
    assert [(row["method"], row["precision"]) for row in document["rows"]] == [
        ("teacher", "float"),
        *((method, precision) for method in config.methods for precision in config.precisions),
    ]
    for found in document["rows"]:
        assert list(found["success_at_delay_ticks"]) == ["0", "1", "2"]
        assert len(found["outcomes"]) == found["episodes"] == 4
        assert found["decision_rate_hz"] > 0
        assert found["train_cpu_s"] > 0  # The teacher's too: it was trained here.
    cloned, taught = document["rows"][1], document["rows"][3]
    assert (cloned["label_cpu_s"], taught["label_cpu_s"] > 0) == (0.0, True)
    assert [(row["demonstrations"], row["method"]) for row in document["few"]] == [(6, BASELINE), (6, "+ on-policy")]
    assert [row["method"] for row in document["unseen"]] == [BASELINE, "+ on-policy", "teacher"]
    assert [(row["variant"], row["precision"]) for row in document["variants"]] == [
        *(("+ on-policy", precision) for precision in config.precisions),
        ("rounds to int8 in training", "int8"),
    ]
    assert document["variants"][0]["outcomes"] == taught["outcomes"]
    assert list(document["variants"][-1]["against"]) == ["+ on-policy"]
    again = measure_distillation(tmp_path, config)
    said = capsys.readouterr().err
    assert said.count("done before") == len(again["stages"])
    assert f"[{len(again['stages'])}/{len(again['stages'])}]" in said
    assert again["rows"] == document["rows"]
    text = distillation_text(document)
    assert "demonstrations" in text
    assert "rounds to int8 in training" in text
    assert "Bonett" in text


def test_the_second_part_has_a_line_for_every_setting() -> None:
    """Rates of both methods, and how they differ."""
    rows = []
    for count, (ours, theirs) in {25: ("1100", "0100"), 50: ("1111", "1110")}.items():
        found = {method: row(method, outcomes) for method, outcomes in ((BASELINE, theirs), ("+ on-policy", ours))}
        rows += [
            {"demonstrations": count, **found[BASELINE], "against": {}},
            {
                "demonstrations": count,
                **found["+ on-policy"],
                "against": {BASELINE: compare_rows(found["+ on-policy"], found[BASELINE])},
            },
        ]
    lines = second_table(rows, "demonstrations").splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("25")
    assert "+25 [" in lines[3]


def test_figures_are_counted_from_their_outcomes() -> None:
    """Of a row as it is made, and of all in benchmarks/results/distillation*.json: each rate is the share of ones; no quick run is kept."""
    rows = [row("soft tokens", "1101"), row(BASELINE, "0000", "int8")]
    for place in (Path(__file__).parent.parent / "benchmarks" / "results").glob("distillation*.json"):
        document = read_json(place)
        assert not document["quick"]
        rows += [*document["rows"], *(document["few"] or ()), *(document["unseen"] or ()), *(document.get("variants") or ())]
    for found in rows:
        assert found["success"] == pytest.approx(found["outcomes"].count("1") / found["episodes"])


@pytest.mark.parametrize("quick", [True, False])
def test_readme_takes_no_quick_run(
    quick: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The ablation's tables stand between their markers; those of a quick run are refused."""
    from benchmarks import readme

    rows = with_differences([row("teacher", "1111"), row(BASELINE, "0100")])
    document = {"rows": rows, "few": None, "unseen": None, "conditions": "so it was measured", "quick": quick}
    write_json(tmp_path / "distillation.json", document)
    page = tmp_path / "README.md"
    page.write_text("\n".join([*readme.FIGURES, *readme.TEACHERS, *readme.DISTILLATION, *readme.TREE]))
    monkeypatch.setattr(readme, "KEPT_DISTILLATION", tmp_path)
    monkeypatch.setattr(readme, "README", page)
    assert readme.main([]) == (2 if quick else 0)
    assert ("so it was measured" in page.read_text()) == (not quick)
    assert ("a quick run says nothing" in capsys.readouterr().err) == quick
