"""quantize.search: proposals in the order of sensitivity, accepted by behaviour alone, explained, and resumed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import point_reach
import pytest

from actlet.command_line import main
from actlet.errors import QuantizationError, SpecError
from actlet.manifest import manifest_hash, read_manifest
from distill.student import StudentConfig
from distill.train import distill
from distill.train_config import TrainConfig
from episodes.collect import collect
from episodes.rollout import EpisodeResult
from export.to_bundle import export_student
from quantize import search as searching
from quantize.paired_runs import paired_rates
from quantize.search import SearchConfig, _bracket, _levels, _Step, scheme_of, search
from runtime.policy import BundlePolicy

SUITE = "point_reach:make_suite"
CONFIG = SearchConfig(suite=SUITE, episodes=4, portion=2, delay=0, frames=8, workers=1, jerk=1e9, path=1e9)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Demonstrations of points, and the float bundle of a student that has hardly learned."""
    folder = tmp_path_factory.mktemp("points")
    collect(SUITE, folder / "data", 12, workers=1)
    tiny = StudentConfig(image_px=16, channels=(16, 32), blocks=(1, 1), condition_dim=32, squeeze_channels=16, features=64, token_rank=8)
    config = TrainConfig(steps=20, batch_size=16, horizon=4, delay_steps=0, architecture=tiny)
    student = distill(folder / "data", folder / "student", suite=SUITE, config=config)
    return folder / "data", export_student(student, folder / "float").out


def judged(accept: Any, calls: list[int]) -> Any:
    """A judge that looks at the size of the proposal alone."""

    def judge(bench: Any, place: Path) -> dict[str, Any]:
        size = read_manifest(place / "bundle").network_bytes
        calls.append(size)
        accepted = bool(accept(size))
        found = paired_rates([accepted] * 4, [True] * 4)
        return {"accepted": accepted, "why": "as it was told", "success": found, "motion": {}, "late": None}

    return judge


def test_the_smallest_that_behaves_is_written(made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between one that is rolled back and one that is accepted there is a half to try; what is written is the smallest accepted one."""
    data, parent = made
    before, calls = manifest_hash(parent), list[int]()
    monkeypatch.setattr(searching, "_judge", judged(lambda size: size > 1.05 * calls[0], calls))
    found = search(parent, tmp_path / "out", data, CONFIG)
    accepted = [row for row in found.tried if row["accepted"]]
    assert accepted
    assert not found.tried[0]["accepted"]
    assert read_manifest(tmp_path / "out").network_bytes == min(row["size_bytes"] for row in accepted) > 1.05 * calls[0]
    taken = {row["taken_back"]: row["accepted"] for row in found.tried}
    least = min(count for count, good in taken.items() if good)
    assert taken[least - 1] is False  # Neighbours: nothing is left to try in between.
    assert manifest_hash(parent) == before
    assert BundlePolicy(tmp_path / "out").spec == read_manifest(parent).spec
    assert not list(tmp_path.glob(".*search*"))
    said = "\n".join(found.lines())
    assert "rolled back: as it was told" in said
    assert "stopped: one step less taken back was rolled back: as it was told" in said


def test_a_search_that_was_stopped_goes_on(made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither sensitivity nor a judged proposal is done again."""
    data, parent = made
    calls: list[int] = []

    def stops(bench: Any, place: Path) -> dict[str, Any]:
        if len(calls) == 2:
            raise KeyboardInterrupt
        return judged(lambda size: size > 1.05 * calls[0], calls)(bench, place)

    monkeypatch.setattr(searching, "_judge", stops)
    with pytest.raises(KeyboardInterrupt):
        search(parent, tmp_path / "out", data, CONFIG)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(searching, "_judge", judged(lambda size: size > 1.05 * calls[0], calls))
    monkeypatch.setattr(searching, "_error", None)  # Of the sensitivity: called again, it would fail.
    found = search(parent, tmp_path / "out", data, CONFIG)
    assert len(calls) == len(found.tried)


def test_it_is_judged_by_driving(made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paired episodes decide: where both succeed all layers end in 4 bits, within a wide margin; a student that never succeeds shows nothing."""
    data, parent = made
    with pytest.raises(QuantizationError, match="succeeds in none, so there is nothing to lose"):
        search(parent, tmp_path / "never", data, dataclasses.replace(CONFIG, margin=0.9))

    def succeeds(bundle: Path, name: str, suite: str, first: int, count: int, **_: Any) -> list[EpisodeResult]:
        assert manifest_hash(bundle) == name
        return [EpisodeResult(task="t", seed=first + i, instruction="", success=True, steps=3) for i in range(count)]

    monkeypatch.setattr(searching, "drive", succeeds)
    found = search(parent, tmp_path / "out", data, dataclasses.replace(CONFIG, margin=0.9, delay=1))
    (row,) = found.tried
    assert row["accepted"]
    assert row["judgement"]["success"]["episodes"] in (2, 4)
    assert set(row["levels"]) <= {0, 1}
    assert found.stopped == "all layers are as small as they can be"


def test_a_budget_that_nothing_meets_says_the_best(made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is above the budget is not driven; what behaves worse is named with its difference."""
    data, parent = made
    calls: list[int] = []
    monkeypatch.setattr(searching, "_judge", judged(lambda size: False, calls))
    with pytest.raises(QuantizationError, match=r"no bundle within 0.001 MB behaves .* the smallest that there is: 0\.\d+ MB"):
        search(parent, tmp_path / "out", data, dataclasses.replace(CONFIG, budget_mb=0.001))
    assert calls == []
    with pytest.raises(
        QuantizationError, match=r"no bundle behaves like its float parent, of \d+ that were tried; the best within it: .* as it was told"
    ):
        search(parent, tmp_path / "out", data, CONFIG)
    assert not (tmp_path / "out").exists()


def test_the_most_sensitive_steps_are_taken_back_first() -> None:
    """A layer's step to int8 only after its step to int4."""
    steps = [_Step("b", 0, 3.0), _Step("b", 1, 2.0), _Step("a", 0, 1.0), _Step("a", 1, 0.5), _Step("c", 1, 0.1)]
    assert _levels(["a", "b", "c"], steps, 0) == [0, 0, 1]
    assert _levels(["a", "b", "c"], steps, 1) == [0, 1, 1]
    assert _levels(["a", "b", "c"], steps, 3) == [1, 2, 1]


@pytest.mark.parametrize(("first_good", "expected"), [(0, (0, 0)), (1, (0, 1)), (3, (2, 4)), (9, (8, 10)), (100, (10, 10))])
def test_steps_are_taken_back_in_doubles(first_good: int, expected: tuple[int, int]) -> None:
    """Until one is accepted, or all are back; the last are tried, too."""
    assert _bracket(lambda count: "accepted" if count >= first_good else "worse", 10) == expected


def test_between_what_is_worse_and_what_is_too_large_there_is_a_search(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A budget ends the doubling, not the search."""
    data, parent = made
    calls: list[int] = []
    monkeypatch.setattr(searching, "_judge", judged(lambda size: size > 1.05 * calls[0], calls))
    free = search(parent, tmp_path / "free", data, CONFIG)
    least = min((row for row in free.tried if row["accepted"]), key=lambda row: row["size_bytes"])
    calls.clear()
    tight = dataclasses.replace(CONFIG, budget_mb=(least["size_bytes"] + 1) / 1e6)
    found = search(parent, tmp_path / "tight", data, tight)
    assert read_manifest(tmp_path / "tight").network_bytes == least["size_bytes"]
    assert all(row["size_bytes"] <= 1e6 * tight.budget_mb for row in found.tried if row["judgement"] is not None)


def test_levels_become_a_scheme() -> None:
    """int4 in int8's arithmetic, int8, float; all float is no scheme."""
    both = scheme_of({"a": 0, "b": 1, "c": 2}, ["a", "b", "d"])
    assert both.int8 is not None
    assert both.weights is not None
    assert (both.precision, both.int8.exclude, both.weights.exclude) == ("int4-int8", ("c",), ("b", "d"))
    assert scheme_of({"a": 1, "b": 2}, ["a"]).precision == "int8"
    with pytest.raises(QuantizationError, match="the float bundle itself"):
        scheme_of({"a": 2}, ["a"])


def test_the_verb_takes_either_way(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A precision or a search, each with its own settings."""
    data, parent = made
    arguments = ["quantize", str(parent), "--out", str(tmp_path / "out"), "--data", str(data)]
    for wrong, message in (
        (["--precision", "int8", "--budget-mb", "2"], "of the search alone"),
        (["--search", "--exclude", "mix.0"], "the search chooses by itself"),
    ):
        assert main([*arguments, *wrong]) == 2
        assert message in capsys.readouterr().err
    assert main([*arguments[:3], str(parent), *arguments[4:], "--precision", "int4", "--overwrite"]) == 2
    assert "is the float bundle itself" in capsys.readouterr().err
    monkeypatch.setattr(searching, "_judge", judged(lambda size: True, []))
    assert main([*arguments, "--search", "--suite", SUITE, "--episodes", "2", "--margin", "0.95", "--frames", "8", "--workers", "1"]) == 0
    assert "ACCEPTED" in capsys.readouterr().out
    for settings in ({"episodes": 0}, {"margin": 1.0}, {"budget_mb": -1.0}):
        with pytest.raises(SpecError, match="search"):
            SearchConfig(**settings)  # type: ignore[arg-type]


assert point_reach  # The suite's module, importable by name.
