"""The teachers that come along: each is whole, says what it is, and is found by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.policies import parse_contenders
from distill import SHIPPED, shipped_teacher, teacher_folder
from distill.teacher_checkpoint import load_teacher
from runtime.opening import kind_of


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_teacher_is_a_checkpoint_below_20_mb(name: str) -> None:
    """With a card that says how it was made and what it can do."""
    folder = shipped_teacher(name)
    assert kind_of(folder) == "teacher"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 20e6
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "How it was made" in card
    assert "actlet teach" in card


def test_names_are_folders_wherever_a_teacher_is_asked_for() -> None:
    """As words or as paths; anything else stays as it is."""
    assert teacher_folder("rt2-base") == teacher_folder(Path("rt2-base")) == shipped_teacher("rt2-base")
    assert teacher_folder("checkpoints/teacher") == "checkpoints/teacher"
    assert parse_contenders(["old=shipped", "rt2-base"])[1].path == shipped_teacher("rt2-base")


@pytest.mark.slow
def test_rt2_base_answers_questions_of_the_web() -> None:
    """Nine of ten held-out ones, word for word: what co-fine-tuning kept."""
    from distill.web_data import accuracy, held_out_questions

    teacher = load_teacher(shipped_teacher("rt2-base"))
    assert accuracy(teacher, held_out_questions(60, height=128, width=128)) > 0.85
