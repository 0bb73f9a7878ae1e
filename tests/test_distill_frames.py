"""distill.frames: targets that are read off episodes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actlet.errors import DatasetError
from actlet.specs import ActionSpec, CameraSpec, ObservationSpec
from distill.frames import Frames
from episodes.episode import Episode

OBSERVATION = ObservationSpec(cameras=(CameraSpec(name="top", height=4, width=6),), state_names=("x", "y"), state_units=("m", "m"))
ACTION = ActionSpec(names=("dx", "grip"), units=("m", "1"), kinds=("continuous", "binary"), low=(-1, 0), high=(1, 1), frame="base")


def episode(length: int, *, offset: float = 0.0, grips: list[int] | None = None) -> Episode:
    t = np.arange(length, dtype=np.float32) + offset
    grip = np.float32(grips if grips is not None else np.zeros(length))
    return Episode("go", {"top": np.zeros((length, 4, 6, 3), np.uint8)}, np.stack([t, -t], 1), np.stack([t / 100, grip], 1), success=True)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 6))
def test_chunks_never_cross_into_the_next_episode(lengths: list[int], horizon: int) -> None:
    """Every frame of a chunk belongs to the episode of its first frame, and weight 0 marks what repeats the last one."""
    frames = Frames.from_episodes([episode(n) for n in lengths], OBSERVATION, ACTION)
    rows = np.arange(len(frames))
    index, weight = frames.chunk_index(rows, horizon)
    assert (frames.episode[index] == frames.episode[rows][:, None]).all()
    left = frames.last[rows] - rows + 1
    assert (weight.sum(1) == np.minimum(left, horizon)).all()
    assert (index[weight == 0] == np.broadcast_to(frames.last[rows][:, None], index.shape)[weight == 0]).all()


def test_waypoints_point_to_the_next_changes_of_a_flag() -> None:
    """The state change to the moment where the gripper next changes, then to the one after; the last step ends the list."""
    frames = Frames.from_episodes([episode(6, grips=[0, 0, 1, 1, 0, 0])], OBSERVATION, ACTION)
    assert frames.waypoints[:, 0, 0].tolist() == [2, 1, 0, 1, 0, 0]  # moments at steps 2, 4 and 5
    assert frames.waypoints[:, 1, 0].tolist() == [4, 3, 2, 2, 1, 0]


def test_batches_draw_more_of_the_frames_in_which_only_the_words_can_tell() -> None:
    """The first four steps of an episode and after each change of a flag; the share that is asked for comes from them."""
    frames = Frames.from_episodes([episode(12, grips=[0] * 6 + [1] * 6), episode(6)], OBSERVATION, ACTION)
    assert np.flatnonzero(~frames.undecided).tolist() == [4, 5, 10, 11, 16, 17]
    rows = frames.draw(2000, 0.5, torch.Generator().manual_seed(0)).numpy()
    assert len(rows) == 2000
    assert set(rows.tolist()) == set(range(len(frames)))
    assert abs(frames.undecided[rows].mean() - (0.5 + 0.5 * 12 / 18)) < 0.04
    assert frames.undecided[frames.draw(100, 1.0, torch.Generator())].all()


def test_the_end_of_an_episode_is_not_drawn_more_often() -> None:
    """A change of terminate starts nothing that words could decide."""
    action = dataclasses.replace(ACTION, names=("dx", "terminate"))
    frames = Frames.from_episodes([episode(8, grips=[0] * 6 + [1] * 2)], OBSERVATION, action)
    assert np.flatnonzero(frames.undecided).tolist() == [0, 1, 2, 3]
    assert frames.waypoints[0, :, 0].tolist() == [6, 7]  # it stays a key moment


def test_concatenated_tables_keep_their_episodes_apart() -> None:
    """Indices of the second table are shifted, and who labelled a frame is kept."""
    parts = [
        Frames.from_episodes([episode(3), episode(2)], OBSERVATION, ACTION),
        Frames.from_episodes([episode(4)], OBSERVATION, ACTION, by_expert=False),
    ]
    whole = Frames.concatenate(parts)
    assert whole.episode.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert whole.last.tolist() == [2, 2, 2, 4, 4, 8, 8, 8, 8]
    assert whole.by_expert.tolist() == [True] * 5 + [False] * 4


def test_no_episodes_say_what_to_do() -> None:
    """An empty dataset is refused with the command that fills it."""
    with pytest.raises(DatasetError, match="actlet collect"):
        Frames.from_episodes([], OBSERVATION, ACTION)


def test_half_labelled_tables_are_refused() -> None:
    """Teacher's distributions come for all frames or for none."""
    a, b = (Frames.from_episodes([episode(3)], OBSERVATION, ACTION) for _ in range(2))
    a.distribution = np.ones((3, 2, 4), np.float16)
    with pytest.raises(DatasetError, match="1 of 2 tables"):
        Frames.concatenate([a, b])


def test_what_is_on_its_way_is_what_was_commanded() -> None:
    """The next d commands, not the labels, behind a 1 each; zeros after them, and past the end the last one."""
    disturbed = dataclasses.replace(episode(4), executed=episode(4).action + np.float32([0.5, 0]))
    frames = Frames.from_episodes([disturbed, episode(2)], OBSERVATION, ACTION)
    told = frames.on_its_way(np.array([0, 3, 4]), np.array([2, 2, 0]), 3)
    np.testing.assert_allclose(told[0], [[1, 0.5, 0], [1, 0.51, 0], [0, 0, 0]])
    np.testing.assert_allclose(told[1], [[1, 0.53, 0], [1, 0.53, 0], [0, 0, 0]], rtol=1e-6)
    assert not told[2].any()


def test_standing_still_puts_off_what_comes() -> None:
    """After two steps of rest a chunk is what it would have been at once; rest is no motion, and the gripper as it was told before."""
    frames = Frames.from_episodes([episode(6, grips=[0, 0, 1, 1, 0, 0]), episode(3, grips=[1, 1, 1])], OBSERVATION, ACTION)
    rows = np.array([3, 5, 6])
    index, weight = frames.chunk_index(rows, 4, np.array([2, 0, 1]))
    assert index.tolist() == [[3, 3, 3, 4], [5, 5, 5, 5], [6, 6, 7, 8]]
    assert weight.tolist() == [[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 1]]
    held = dataclasses.replace(ACTION, hold=("zero", "last"))
    rests = frames.rest(rows, held)
    np.testing.assert_array_equal(rests, np.float32([[0, 1], [0, 0], [0, 1]]))
    rests[1] = np.nan  # This one moves as it did.
    told = frames.on_its_way(rows, np.array([2, 1, 1]), 2, rests)
    np.testing.assert_allclose(told, [[[1, 0, 1], [1, 0, 1]], [[1, 0.05, 0], [0, 0, 0]], [[1, 0, 1], [0, 0, 0]]])
