"""A chain of stages that is stopped and started again."""

from __future__ import annotations

from pathlib import Path

import pytest

from actlet.storage import read_json
from benchmarks.chain import Chain, tree_hash


class Maker:
    """Counts how often it works; fails when it is told to."""

    def __init__(self, text: str = "made", *, fail: bool = False) -> None:
        self.text, self.fail, self.calls = text, fail, 0

    def __call__(self, place: Path) -> None:
        self.calls += 1
        place.mkdir(parents=True)
        if self.fail:
            raise RuntimeError("cut off")
        (place / "file").write_text(self.text)


def stage(root: Path, work: Maker, *, arguments: dict[str, object] | None = None, source: Path | str = "none") -> Chain:
    chain = Chain(root, total=1)
    assert chain.stage("one", "make one", work, arguments=arguments or {}, inputs={"source": source}) == root / "one"
    return chain


def test_a_stage_that_is_done_is_skipped(tmp_path: Path) -> None:
    """Its cost stays known."""
    work = Maker()
    first, second = stage(tmp_path, work), stage(tmp_path, work)
    assert work.calls == 1
    assert [first.records[0]["skipped"], second.records[0]["skipped"]] == [False, True]
    assert first.records[0]["wall_s"] == second.records[0]["wall_s"]


def test_other_arguments_make_it_again(tmp_path: Path) -> None:
    """Another number of episodes is another stage."""
    work = Maker()
    stage(tmp_path, work, arguments={"episodes": 3})
    stage(tmp_path, work, arguments={"episodes": 4})
    assert work.calls == 2


def test_it_says_what_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Hours of work are not done again without a word on why."""
    stage(tmp_path, Maker(), arguments={"episodes": 3, "steps": 1})
    stage(tmp_path, Maker(), arguments={"episodes": 4, "steps": 1}, source="other")
    assert "again: arguments.episodes, inputs.source changed" in capsys.readouterr().err


def test_a_setting_that_is_off_changes_nothing(tmp_path: Path) -> None:
    """What was made before there was such a setting stands."""
    work = Maker()
    stage(tmp_path, work, arguments={"episodes": 3})
    stage(tmp_path, work, arguments={"episodes": 3, "bf16": None})
    assert work.calls == 1


def test_what_was_made_before_is_kept_until_the_new_stands(tmp_path: Path) -> None:
    """A run with other settings that is stopped has not cost the old result."""
    stage(tmp_path, Maker("old"))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="cut off"):
            stage(tmp_path, Maker(fail=True), arguments={"episodes": 4})
        assert (tmp_path / "one.before" / "file").read_text() == "old"
    stage(tmp_path, Maker("new"), arguments={"episodes": 4})
    assert (tmp_path / "one" / "file").read_text() == "new"
    assert not (tmp_path / "one.before").exists()


def test_another_input_makes_it_again(tmp_path: Path) -> None:
    """The content of the input counts, not its name or date."""
    work, source = Maker(), tmp_path / "source"
    source.mkdir()
    for text in ("a", "a", "b"):
        (source / "data").write_text(text)
        stage(tmp_path / "out", work, source=source)
    assert work.calls == 2


def test_an_altered_output_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What somebody changed by hand is not taken for a result."""
    work = Maker()
    stage(tmp_path, work)
    (tmp_path / "one" / "file").write_text("altered")
    stage(tmp_path, work)
    assert work.calls == 2
    assert "again: its output changed" in capsys.readouterr().err
    assert (tmp_path / "one" / "file").read_text() == "made"


def test_a_stage_that_fails_is_not_done(tmp_path: Path) -> None:
    """Its half-made folder is removed before the next attempt."""
    with pytest.raises(RuntimeError, match="cut off"):
        stage(tmp_path, Maker(fail=True))
    work = Maker()
    stage(tmp_path, work)
    assert work.calls == 1


def test_costs_are_recorded(tmp_path: Path) -> None:
    """Wall and CPU seconds of every stage."""
    record = stage(tmp_path, Maker()).records[0]
    assert record["wall_s"] >= 0
    assert record["cpu_s"] >= 0
    assert read_json(tmp_path / ".stages" / "one.json")["asked"]["stage"] == "one"


def test_a_tree_is_its_names_and_contents(tmp_path: Path) -> None:
    """Equal trees have equal hashes; a renamed or a changed file shows."""
    for name in ("a", "b"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "file").write_text("x")
    assert tree_hash(tmp_path / "a") == tree_hash(tmp_path / "b")
    (tmp_path / "b" / "sub" / "file").rename(tmp_path / "b" / "sub" / "other")
    assert tree_hash(tmp_path / "a") != tree_hash(tmp_path / "b")
    assert tree_hash(tmp_path / "nothing") is None
