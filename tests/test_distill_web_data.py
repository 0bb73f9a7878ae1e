"""distill.web_data: questions about pictures, for co-fine-tuning and for what a teacher still knows."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("easy_vqa")

from actlet.errors import SpecError, UnknownNameError
from distill.web_data import COLOURS, SHAPES, WebData, accuracy, easy_vqa, easy_vqa_collages, held_out_questions, load_web_data

# As easy-VQA draws them; a collage may darken them to 0.6.
RGB = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "black": (0, 0, 0),
    "brown": (165, 42, 42),
    "gray": (128, 128, 128),
    "teal": (0, 128, 128),
}


@pytest.fixture(scope="module")
def collages() -> WebData:
    return easy_vqa_collages(height=128, width=128, pictures=60, seed=3)


def shows(picture: np.ndarray, colour: str) -> np.ndarray:
    """Where a picture has a colour, at any brightness that collages use."""
    near = [np.abs(picture.astype(float) - share * np.array(RGB[colour])).max(-1) < 24 for share in np.linspace(0.6, 1.0, 9)]
    return np.any(near, axis=0)


def test_what_is_said_to_be_there_is_there(collages: WebData) -> None:
    """ "is there a teal shape?" — "yes": the colour is in the picture; "what is the teal shape?" speaks of one that is there."""
    checked = 0
    for row, question, answer in zip(collages.picture, collages.questions, collages.answers, strict=True):
        colour = next((word for word in question.rstrip("?").split() if word in COLOURS), None)
        if colour in (None, "black", "gray", "brown") or answer == "no":
            continue  # darkened colours and grey grounds run into these
        assert shows(collages.images[row], str(colour)).sum() >= 8, (question, answer)
        checked += 1
    assert checked > 40


def test_where_questions_name_the_corner(collages: WebData) -> None:
    """The colour's pixels lie in the corner that the answer names."""
    checked = 0
    for row, question, answer in zip(collages.picture, collages.questions, collages.answers, strict=True):
        if not question.startswith("where is the") or question.split()[3] in ("black", "gray", "brown"):
            continue
        rows, columns = np.nonzero(shows(collages.images[row], question.split()[3]))
        assert ("top" in answer) == (rows.mean() < 64)
        assert ("left" in answer) == (columns.mean() < 64)
        checked += 1
    assert checked > 20


def test_answers_are_the_sets_own_words_or_corners(collages: WebData) -> None:
    """Nothing else is taught."""
    corners = {f"{a} {b}" for a in ("top", "bottom") for b in ("left", "right")}
    assert set(collages.answers) <= {"yes", "no", *SHAPES, *COLOURS, *corners}
    assert len(set(collages.answers)) > 10


def test_held_out_pictures_are_none_of_the_training_set() -> None:
    """The score says what is known, not what is remembered."""
    held_out = held_out_questions(50, height=64, width=64)
    known = {picture.tobytes() for picture in easy_vqa("train", height=64, width=64, pictures=300).images}
    assert len(held_out.questions) == len(held_out.images) == 50
    assert not any(picture.tobytes() in known for picture in held_out.images)


def test_accuracy_counts_exact_answers() -> None:
    """Half of the answers right is one half, whatever the batch."""

    class Sometimes:
        def answer(self, pictures, questions):
            assert len(pictures) == len(questions)
            return [data.answers[data.questions.index(q)] if data.questions.index(q) % 2 else "so" for q in questions]

    data = WebData(np.zeros((1, 4, 4, 3), np.uint8), np.zeros(10, np.int64), [f"q{i}" for i in range(10)], ["yes"] * 10)
    assert accuracy(Sometimes(), data, batch_size=3) == 0.5


def test_unknown_sets_and_uneven_tables_are_refused() -> None:
    """The message lists what there is."""
    with pytest.raises(UnknownNameError, match="easy-vqa"):
        load_web_data(["imagenet"], height=64, width=64)
    with pytest.raises(SpecError, match="2 questions, 1 answers"):
        WebData(np.zeros((1, 4, 4, 3), np.uint8), np.zeros(2, np.int64), ["a", "b"], ["c"])
    with pytest.raises(SpecError, match="'train' or 'test'"):
        easy_vqa("validation", height=64, width=64)
