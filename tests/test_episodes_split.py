"""Laws of splitting a dataset: no scene on both sides, every task gives its share, and recordings are split one by one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from small_dataset import an_episode, write

from actlet.errors import DatasetError
from episodes.lerobot_dataset import LeRobotDataset
from episodes.split import split_episodes

TASKS = ("touch", "lift", "put")


@pytest.fixture
def dataset(tmp_path: Path) -> LeRobotDataset:
    """Seven scenes with one episode each."""
    return write(tmp_path / "set", [an_episode(seed) for seed in range(7)])


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> LeRobotDataset:
    """Thirty scenes with three tasks each, but for eight episodes that failed: as `episodes.collect` leaves them."""
    episodes = [an_episode(number // 3, task=TASKS[number % 3]) for number in range(90) if number % 11 != 5]
    return write(tmp_path_factory.mktemp("collected") / "set", episodes)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> LeRobotDataset:
    """Thirty recordings: no seed, no name of a task, three instructions."""
    episodes = [dataclasses.replace(an_episode(number), seed=None, task="") for number in range(30)]
    return write(tmp_path_factory.mktemp("recorded") / "set", episodes)


def scenes_of(dataset: LeRobotDataset, indices: list[int]) -> set[int | None]:
    return {dataset.episodes[index].seed for index in indices}


def test_a_split_is_by_episode_and_complete(dataset: LeRobotDataset) -> None:
    """Every episode is on exactly one side, and the same seed gives the same split."""
    train, held_out = split_episodes(dataset, 0.3, seed=1)
    assert sorted(train + held_out) == list(range(7))
    assert len(held_out) == 2
    assert split_episodes(dataset, 0.3, seed=1) == (train, held_out)
    assert len({tuple(split_episodes(dataset, 0.3, seed=seed)[1]) for seed in range(10)}) > 1


@pytest.mark.parametrize("seed", range(5))
def test_each_task_gives_its_share(tmp_path: Path, seed: int) -> None:
    """30 episodes of each of three tasks, a fifth held out: six of each, to within one."""
    dataset = write(tmp_path / "set", [an_episode(i, task=("touch", "lift", "put")[i % 3]) for i in range(90)])
    held_out = split_episodes(dataset, 0.2, seed=seed)[1]
    assert len(held_out) == 18
    counts = [sum(dataset.episodes[index].task == task for index in held_out) for task in ("touch", "lift", "put")]
    assert all(5 <= count <= 7 for count in counts)


def test_the_limits_of_a_split(dataset: LeRobotDataset, tmp_path: Path) -> None:
    """Nothing held out, at least one of each side, and fractions that mean nothing."""
    assert split_episodes(dataset, 0.0, seed=0) == (list(range(7)), [])
    assert len(split_episodes(dataset, 0.01, seed=0)[1]) == 1
    assert len(split_episodes(dataset, 0.99, seed=0)[0]) == 1
    with pytest.raises(DatasetError, match="expected 0 <= fraction < 1"):
        split_episodes(dataset, 1.0, seed=0)
    with pytest.raises(DatasetError, match="cannot be split"):
        split_episodes(write(tmp_path / "one", [an_episode(0)]), 0.5, seed=0)


@pytest.mark.parametrize("fraction", [0.01, 0.15, 0.2, 0.5, 0.99])
def test_no_scene_is_on_both_sides(collected: LeRobotDataset, fraction: float) -> None:
    """All episodes of a seed go to one side, whatever their tasks; both sides hold some, and no episode is lost."""
    for seed in range(10):
        train, held_out = split_episodes(collected, fraction, seed=seed)
        assert sorted(train + held_out) == list(range(len(collected)))
        assert train
        assert held_out
        assert not scenes_of(collected, train) & scenes_of(collected, held_out)


@pytest.mark.parametrize("seed", range(5))
def test_scenes_give_the_fraction_of_episodes_and_of_each_task(collected: LeRobotDataset, seed: int) -> None:
    """A fifth of 82 episodes to within half a scene, and of each task to within two; another seed chooses other scenes."""
    held_out = split_episodes(collected, 0.2, seed=seed)[1]
    assert abs(len(held_out) - 0.2 * len(collected)) <= 2
    for task in TASKS:
        of_task = [episode.index for episode in collected.episodes if episode.task == task]
        assert abs(len(set(of_task) & set(held_out)) - 0.2 * len(of_task)) <= 2
    assert split_episodes(collected, 0.2, seed=seed + 1)[1] != held_out


def test_recordings_without_seeds_are_split_by_episode(recorded: LeRobotDataset) -> None:
    """Every recording is a scene of its own: the exact share, evenly over the instructions, and not all of them on one side."""
    train, held_out = split_episodes(recorded, 0.2, seed=0)
    assert sorted(train + held_out) == list(range(30))
    assert held_out == [3, 4, 6, 26, 28, 29]  # Errors that were reported on held-out recordings are about these.
    texts = sorted(recorded.episodes[index].instruction for index in held_out)
    assert len(texts) == 6
    assert {texts.count(text) for text in texts} == {2}


def test_recordings_and_scenes_can_be_mixed(tmp_path: Path) -> None:
    """Recordings beside collected episodes: they are not taken for one scene."""
    collected = [an_episode(number // 3, task=TASKS[number % 3]) for number in range(12)]
    recorded = [dataclasses.replace(an_episode(number), seed=None, task="") for number in range(12)]
    dataset = write(tmp_path / "set", collected + recorded)
    for seed in range(5):
        train, held_out = split_episodes(dataset, 0.5, seed=seed)
        assert scenes_of(dataset, train) & scenes_of(dataset, held_out) == {None}


def test_a_single_scene_cannot_be_split(tmp_path: Path) -> None:
    """Three tasks in it do not make it three scenes."""
    dataset = write(tmp_path / "set", [an_episode(4, task=task) for task in TASKS])
    with pytest.raises(DatasetError, match=r"one scene \(of 3 episodes\) cannot be split, expected two or more"):
        split_episodes(dataset, 0.5, seed=0)
