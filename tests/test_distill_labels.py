"""distill.labels: whom the teacher is asked about, and that nothing is asked twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from test_distill_frames import ACTION, OBSERVATION, episode

from actlet.protocols import Observation
from distill.frames import Frames
from distill.labels import label_frames


class CountingTeacher:
    """Says where the hand is, and counts what it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def action_distribution(self, observations: Sequence[Observation], instructions: Sequence[str]) -> NDArray[np.float32]:
        self.asked += len(observations)
        answers = np.zeros((len(observations), 2, 8), np.float32)
        answers[np.arange(len(observations)), :, [int(o.state[0]) % 8 for o in observations]] = 1
        return answers


def table() -> Frames:
    return Frames.from_episodes([episode(3), episode(4), episode(2)], OBSERVATION, ACTION)


def test_every_frame_gets_its_own_answer(tmp_path: Path) -> None:
    """Answers stand at the rows that were asked about."""
    frames = table()
    answers = label_frames(CountingTeacher(), frames, tmp_path, batch_size=2)  # type: ignore[arg-type]
    assert answers.shape == (9, 2, 8)
    assert answers.argmax(-1)[:, 0].tolist() == [0, 1, 2, 0, 1, 2, 3, 0, 1]


def test_only_the_episodes_that_were_named_are_asked_about(tmp_path: Path) -> None:
    """The rows of the others are zero."""
    teacher, frames = CountingTeacher(), table()
    answers = label_frames(teacher, frames, tmp_path, episodes=[1])  # type: ignore[arg-type]
    assert teacher.asked == 4
    assert (answers.sum((1, 2)) > 0).tolist() == [False] * 3 + [True] * 4 + [False] * 2


def test_a_second_call_asks_nothing(tmp_path: Path) -> None:
    """What is on disk is read, and is the same."""
    frames = table()
    first = label_frames(CountingTeacher(), frames, tmp_path)  # type: ignore[arg-type]
    again = CountingTeacher()
    np.testing.assert_array_equal(first, label_frames(again, frames, tmp_path))  # type: ignore[arg-type]
    assert again.asked == 0
