"""The teacher that comes along: it is whole, says what it is, and is found by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.policies import parse_contenders
from distill import SHIPPED, shipped_teacher, teacher_folder
from distill.teacher_checkpoint import load_teacher
from runtime.opening import kind_of


def test_the_shipped_teacher_is_a_checkpoint_below_20_mb() -> None:
    """With a card that says how it was made and what it can do."""
    folder = shipped_teacher()
    assert kind_of(folder) == "teacher"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 20e6
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "How it was made" in card
    assert "actlet teach" in card


def test_its_name_is_its_folder_wherever_a_teacher_is_asked_for() -> None:
    """As a word or as a path; anything else stays as it is."""
    assert teacher_folder(SHIPPED) == teacher_folder(Path(SHIPPED)) == shipped_teacher()
    assert teacher_folder("checkpoints/teacher") == "checkpoints/teacher"
    assert parse_contenders([f"ours={SHIPPED}"])[0].path == shipped_teacher()


@pytest.mark.slow
def test_it_answers_questions_of_the_web() -> None:
    """Nine of ten held-out ones, word for word: what co-fine-tuning kept."""
    from distill.web_data import accuracy, held_out_questions

    teacher = load_teacher(shipped_teacher())
    assert accuracy(teacher, held_out_questions(60, height=128, width=128)) > 0.85
