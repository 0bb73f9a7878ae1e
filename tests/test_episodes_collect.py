"""Laws of collecting demonstrations, on a point that reaches coloured targets."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from expert_points import ExpertPoint
from point_reach import ACTION, OBSERVATION

from actlet.command_line import main
from actlet.errors import ActletError, DatasetError, SpecError, StorageError, UnknownNameError
from actlet.storage import read_json, write_json
from episodes import lerobot_writer
from episodes.collect import CollectionReport, collect
from episodes.demonstration import PerturbationConfig, _Disturbance, demonstrate
from episodes.lerobot_dataset import DatasetWriter, open_dataset
from episodes.seeds import REPORT_SEED_START, TRAIN_SEED_START, TRAIN_SEEDS_PER_RUN, TUNING_SEED_START

HERE = Path(__file__).parent
QUIET = PerturbationConfig(noise_sd=0.0, kick_sd=0.0, slip_share=0.0)


def points_into(out: Path, episodes: int = 6, *, suite: str = "make_suite", **options: object) -> CollectionReport:
    return collect(f"expert_points:{suite}", out, episodes, **{"workers": 1, "progress": False, **options})


def hidden(out: Path) -> Path:
    return out.with_name(f".{out.name}.collecting")


def test_seed_ranges_do_not_overlap() -> None:
    """Reports, tuning and training each have seeds of their own, in this order."""
    assert REPORT_SEED_START < TUNING_SEED_START < 100_000 < TRAIN_SEED_START


def test_a_collection_is_a_dataset_of_successes(tmp_path: Path) -> None:
    """As many successful episodes as asked for, scene by scene from the start of the training seeds, tasks in turn."""
    report = points_into(tmp_path / "set")
    dataset = open_dataset(tmp_path / "set")
    assert report.episodes == len(dataset) == 6
    assert all(episode.success for episode in dataset.episodes)
    assert [(episode.task, episode.seed) for episode in dataset.episodes] == [
        (task, TRAIN_SEED_START + scene) for scene in range(3) for task in ("red", "blue")
    ]
    assert dataset.provenance["suite_name"] == "expert_points:make_suite"


def test_every_scene_is_recorded_with_every_task(tmp_path: Path) -> None:
    """Each scene has one episode of each task: the same first frame, the task's own instruction."""
    points_into(tmp_path / "set", 10)
    first, tasks, instructions = dict[int, set[bytes]](), dict[int, list[str]](), dict[int, set[str]]()
    for episode in open_dataset(tmp_path / "set").read_all(progress=False):
        assert episode.seed is not None
        first.setdefault(episode.seed, set()).add(episode.images["above"][0].tobytes())
        tasks.setdefault(episode.seed, []).append(episode.task)
        instructions.setdefault(episode.seed, set()).add(episode.instruction)
    assert len(tasks) == 5
    assert all(names == ["red", "blue"] for names in tasks.values())
    assert all(len(frames) == 1 for frames in first.values())
    assert all(texts == {"reach the red target", "reach the blue target"} for texts in instructions.values())


def test_the_chosen_tasks_share_every_scene(tmp_path: Path) -> None:
    """With one task chosen, every episode is a scene of its own, the same as without the choice."""
    points_into(tmp_path / "both", 6)
    points_into(tmp_path / "blue", 3, tasks=["blue"])
    both = [episode for episode in open_dataset(tmp_path / "both").read_all(progress=False) if episode.task == "blue"]
    alone = list(open_dataset(tmp_path / "blue").read_all(progress=False))
    assert [episode.seed for episode in alone] == [TRAIN_SEED_START + scene for scene in range(3)]
    for ours, theirs in zip(alone, both, strict=True):
        assert ours.seed == theirs.seed
        np.testing.assert_array_equal(ours.action, theirs.action)


def test_another_run_number_gives_other_scenes(tmp_path: Path) -> None:
    """Runs draw from ranges of seeds that do not meet."""
    points_into(tmp_path / "set", 2, seed=3)
    assert open_dataset(tmp_path / "set").episodes[0].seed == TRAIN_SEED_START + 3 * TRAIN_SEEDS_PER_RUN


def test_nothing_hidden_is_left_behind(tmp_path: Path) -> None:
    """Beside a finished dataset lies nothing."""
    points_into(tmp_path / "set", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_the_dataset_does_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    """Two processes write the bytes that one writes, also where episodes fail and are replaced."""
    for workers in (1, 2):
        points_into(tmp_path / str(workers), 20, suite="make_troubled", workers=workers)
    assert open_dataset(tmp_path / "1").content_hash == open_dataset(tmp_path / "2").content_hash


def test_failures_are_counted_and_replaced(tmp_path: Path) -> None:
    """An episode without success is reported by task and seed, and another takes its place; the scene keeps its other tasks."""
    report = points_into(tmp_path / "set", 30, suite="make_troubled")
    assert report.failed == (("red", TRAIN_SEED_START + 6), ("red", TRAIN_SEED_START + 16))
    assert "2 without success" in str(report)
    assert report.episodes == 30
    dataset = open_dataset(tmp_path / "set")
    assert [episode.task for episode in dataset.episodes if episode.seed == TRAIN_SEED_START + 6] == ["blue"]
    assert dataset.provenance["failed"] == [["red", TRAIN_SEED_START + 6], ["red", TRAIN_SEED_START + 16]]


def test_failures_can_be_kept(tmp_path: Path) -> None:
    """With keep_failures they are in the dataset, marked as failures and without a last step."""
    points_into(tmp_path / "set", 20, suite="make_troubled", keep_failures=True, workers=2)
    episodes = {(episode.task, episode.seed): episode for episode in open_dataset(tmp_path / "set").episodes}
    assert not episodes["red", TRAIN_SEED_START + 6].success
    assert episodes["blue", TRAIN_SEED_START + 6].success


def test_an_exception_and_a_dead_process_cost_one_episode_each(tmp_path: Path) -> None:
    """Both are reported by task and seed with what happened, and the collection goes on."""
    report = points_into(tmp_path / "set", 24, suite="make_troubled", workers=2)
    assert report.errors == {
        ("red", TRAIN_SEED_START + 4): "RuntimeError: the arm hit the table",
        ("blue", TRAIN_SEED_START + 8): "the process died (signal SIGKILL, perhaps for want of memory)",
    }
    assert "2 with an error" in str(report)
    assert f"task red, seed {TRAIN_SEED_START + 4}: RuntimeError: the arm hit the table" in str(report)
    assert report.episodes == 24


def test_many_exceptions_end_the_collection(tmp_path: Path) -> None:
    """More than a tenth of the episodes: an error with the first of them."""
    with pytest.raises(DatasetError, match=r"more than 10% of the 12 asked for:\n  task red, seed 1000000: RuntimeError: no scene"):
        points_into(tmp_path / "set", 12, suite="make_broken")
    assert not (tmp_path / "set").exists()


def test_a_hopeless_expert_ends_the_collection(tmp_path: Path) -> None:
    """When hardly anything succeeds, the search for episodes ends."""
    with pytest.raises(DatasetError, match=r"0 of 24 episodes succeeded .* 2 are asked for. Disturb less"):
        points_into(tmp_path / "set", 2, suite="make_hopeless")


def test_labels_are_clean_and_execution_is_not() -> None:
    """What is recorded is the expert's answer to the recorded state, and the path differs from the undisturbed one."""
    task = ExpertPoint("red")
    disturbed = demonstrate(task, 5, PerturbationConfig(noise_share=1.0))
    quiet = demonstrate(task, 5, QUIET)
    expected = np.clip(task._goal() - disturbed.state, -0.08, 0.08).astype(np.float32)
    np.testing.assert_allclose(disturbed.action[:-1, 1:3], expected[:-1], atol=1e-6)
    assert disturbed.state.tolist() != quiet.state.tolist()


def test_the_last_step_terminates_without_motion() -> None:
    """After success one more step is recorded: the expert's terminate."""
    episode = demonstrate(ExpertPoint("blue"), 7, QUIET)
    assert episode.action[-1].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert (episode.action[:-1, 0] == 0.0).all()


def executed_and_labels(config: PerturbationConfig) -> tuple[np.ndarray, np.ndarray]:
    """Of one episode: what the robot was told (T - 1, 4), and what the expert said (T, 4)."""
    executed: list[np.ndarray] = []

    class Watched(ExpertPoint):
        def step(self, action: np.ndarray) -> object:
            executed.append(action)
            return super().step(action)

    labels = demonstrate(Watched("red"), 1, config).action
    assert len(executed) > 1
    return np.array(executed), labels


def test_noise_and_kicks_disturb_motions_only() -> None:
    """However strong they are, flags and what is spared are executed as the expert said."""
    executed, labels = executed_and_labels(
        PerturbationConfig(noise_sd=5.0, noise_share=1.0, kick_share=1.0, slip_share=0.0, spared=("dy",))
    )
    assert (executed[:, [0, 3]] == 0.0).all()
    np.testing.assert_array_equal(executed[:, 2], labels[: len(executed), 2])
    assert (executed[:, 1] != labels[: len(executed), 1]).any()


def test_a_slip_turns_the_gripper_round_and_its_label_stays() -> None:
    """The expert wants it open throughout; it is closed while it slips, and nothing else changes. What is spared does not slip."""
    slips = PerturbationConfig(noise_sd=0.0, kick_sd=0.0, slip_share=1.0)
    executed, labels = executed_and_labels(slips)
    assert (executed[:, 3] == 1.0).all()
    assert (labels[:, 3] == 0.0).all()
    np.testing.assert_array_equal(executed[:, :3], labels[: len(executed), :3])
    spared, _ = executed_and_labels(dataclasses.replace(slips, spared=("gripper",)))
    assert (spared[:, 3] == 0.0).all()


def test_a_slip_lasts_as_long_as_it_is_told() -> None:
    """Rare slips: the gripper is turned round for three steps at a time, most of the time not at all."""
    config = PerturbationConfig(noise_sd=0.0, kick_sd=0.0, slip_share=0.02, slip_steps=3)
    firsts = []
    for seed in range(100):
        disturbance = _Disturbance(config, ACTION, np.random.default_rng(seed))
        closed = "".join(f"{disturbance.executed(np.zeros(ACTION.dim, np.float32))[3]:.0f}" for _ in range(20))
        firsts += [closed[closed.index("1") :].split("0")[0]] if "1" in closed[:-6] else []
    assert 10 < len(firsts) < 50
    assert all(len(run) >= 3 for run in firsts)
    assert min(len(run) for run in firsts) == 3


def test_the_episodes_of_a_scene_are_disturbed_differently() -> None:
    """What is executed beyond the expert's answer depends on the task, not on the scene alone."""

    def executed(name: str) -> np.ndarray:
        actions: list[np.ndarray] = []

        class Still(ExpertPoint):
            def expert_action(self) -> np.ndarray:
                return np.zeros(4, np.float32)

            def step(self, action: np.ndarray) -> object:
                actions.append(action)
                return super().step(action)

        demonstrate(Still(name), 3, PerturbationConfig(noise_sd=0.1, noise_share=1.0, kick_share=0.0))
        return actions[0]

    red, blue = executed("red"), executed("blue")
    assert (red[1:3] != 0.0).all()
    assert (blue[1:3] != red[1:3]).all()


def test_a_demonstration_is_a_function_of_task_and_seed() -> None:
    """The same task and seed give the same bits, whatever was done before."""
    task = ExpertPoint("red")
    first = demonstrate(task, 11, PerturbationConfig())
    demonstrate(task, 12, PerturbationConfig())
    again = demonstrate(task, 11, PerturbationConfig())
    np.testing.assert_array_equal(first.state, again.state)
    np.testing.assert_array_equal(first.images["above"], again.images["above"])


@pytest.mark.parametrize(("field", "value", "message"), [("noise_sd", -1.0, "0 or more"), ("kick_share", 1.5, "between 0 and 1")])
def test_contradictory_perturbations_are_refused(field: str, value: float, message: str) -> None:
    """A negative spread or a share above one."""
    with pytest.raises(SpecError, match=message):
        PerturbationConfig(**{field: value})


def test_a_killed_collection_goes_on_and_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """SIGKILL in the middle; the same command keeps the finished episodes and gives the dataset of an undisturbed run."""
    script = (
        "from episodes.collect import collect; import sys; collect('expert_points:make_slow', sys.argv[1], 12, workers=2, progress=False)"
    )
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "set")], env=environment, cwd=HERE.parent)
    deadline = time.monotonic() + 60
    while len(list(hidden(tmp_path / "set").glob("*.arrow"))) < 3:
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "set").exists()
    before = {file.name: file.stat().st_mtime_ns for file in hidden(tmp_path / "set").glob("*.arrow")}
    assert 3 <= len(before) < 12
    kept: dict[str, int] = {}

    def remember(folder: Path, number: int) -> lerobot_writer.EncodedEpisode:
        kept[f"{number}.arrow"] = (folder / f"{number}.arrow").stat().st_mtime_ns
        return lerobot_writer.EncodedEpisode.from_bytes((folder / f"{number}.arrow").read_bytes())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("episodes.collect.load_episode", remember)
        points_into(tmp_path / "set", 12, suite="make_slow")
    assert {name: kept[name] for name in before} == before
    points_into(tmp_path / "undisturbed", 12, suite="make_slow")
    assert open_dataset(tmp_path / "set").content_hash == open_dataset(tmp_path / "undisturbed").content_hash


def test_ctrl_c_keeps_what_is_finished(tmp_path: Path) -> None:
    """The command exits with 130, says that it can go on, and no dataset appears."""
    command = [sys.executable, "-m", "actlet", "collect", "--suite", "expert_points:make_slow", "--episodes", "100", "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    child = subprocess.Popen(
        [*command, "--out", str(tmp_path / "set")], env=environment, cwd=HERE.parent, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not list(hidden(tmp_path / "set").glob("*.arrow")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "run the same command to go on" in said
    assert "Traceback" not in said
    assert not (tmp_path / "set").exists()
    assert list(hidden(tmp_path / "set").glob("*.arrow"))


def unfinished(out: Path) -> None:
    """Leave work that an error has ended."""
    with pytest.raises(DatasetError, match="raised an error"):
        points_into(out, 9, suite="make_troubled")
    assert list(hidden(out).glob("*.arrow"))


def test_unfinished_work_of_another_command_is_not_mixed_in(tmp_path: Path) -> None:
    """Other arguments are an error that names the difference and both ways out."""
    unfinished(tmp_path / "set")
    with pytest.raises(DatasetError, match=r"suite_name was 'expert_points:make_troubled', is .*pass --overwrite to drop it"):
        points_into(tmp_path / "set")


def test_unfinished_work_of_an_earlier_numbering_is_not_mixed_in(tmp_path: Path) -> None:
    """What an earlier version left, in which a number meant another episode, is refused in the same way."""
    unfinished(tmp_path / "set")
    about = hidden(tmp_path / "set") / "arguments.json"
    earlier = {key: value for key, value in read_json(about).items() if key != "recording_version"}
    write_json(about, earlier)
    with pytest.raises(DatasetError, match=r"recording_version was None, is 2\).*pass --overwrite to drop it"):
        points_into(tmp_path / "set", 9, suite="make_troubled")


def test_overwrite_drops_unfinished_work(tmp_path: Path) -> None:
    """The other way out."""
    unfinished(tmp_path / "set")
    points_into(tmp_path / "set", overwrite=True)
    assert len(open_dataset(tmp_path / "set")) == 6


def test_an_existing_dataset_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    """No work is begun; with overwrite it is replaced."""
    points_into(tmp_path / "set", 2)
    with pytest.raises(StorageError, match="exists already: choose another name, remove it, or pass --overwrite"):
        points_into(tmp_path / "set", 3)
    points_into(tmp_path / "set", 3, overwrite=True)
    assert len(open_dataset(tmp_path / "set")) == 3


def test_two_collections_at_one_place_are_refused(tmp_path: Path) -> None:
    """The second is told that another is at work."""
    hidden(tmp_path / "set").mkdir()
    lock = os.open(hidden(tmp_path / "set"), os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        with pytest.raises(StorageError, match="another process is collecting"):
            points_into(tmp_path / "set")
    finally:
        os.close(lock)


def test_a_full_disk_while_joining_leaves_episodes_and_no_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says so, the finished episodes stay, and the same command goes on."""

    def full(path: object, data: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(lerobot_writer, "write_json", full)
        with pytest.raises(StorageError, match="no space left while writing"):
            points_into(tmp_path / "set", 3)
    assert not (tmp_path / "set").exists()
    assert len(list(hidden(tmp_path / "set").glob("*.arrow"))) == 3
    points_into(tmp_path / "set", 3)
    assert len(open_dataset(tmp_path / "set")) == 3


@pytest.fixture
def small_disk(tmp_path: Path) -> object:
    """A file system of 256 KiB, where mounting is permitted."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], capture_output=True).returncode != 0:
        pytest.skip("mounting a small tmpfs is not permitted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
def test_a_full_disk_while_recording_is_said_and_can_be_mended(small_disk: Path) -> None:
    """On a really full disk: a StorageError from the worker, whole files only, no dataset."""
    with pytest.raises(StorageError, match=r"no space left.*the same command goes on"):
        points_into(small_disk / "set", 200)
    assert not (small_disk / "set").exists()
    files = list(hidden(small_disk / "set").glob("*.arrow"))
    assert files
    for file in files:
        assert lerobot_writer.EncodedEpisode.from_bytes(file.read_bytes()).steps.num_rows > 0


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"suite_name": "tabeltop"}, UnknownNameError, "unknown suite 'tabeltop'. Did you mean 'tabletop'"),
        ({"tasks": ["rad"]}, UnknownNameError, "'rad'. Did you mean 'red'"),
        ({"tasks": ["red", "red"]}, DatasetError, "one is named twice"),
        ({"episodes": 0}, DatasetError, "episodes 0"),
        ({"workers": 0}, DatasetError, "workers 0"),
        ({"seed": -1}, DatasetError, "seed -1"),
    ],
)
def test_bad_arguments_are_refused(tmp_path: Path, options: dict[str, object], kind: type[ActletError], message: str) -> None:
    """With what was got, before any work."""
    arguments = {"suite_name": "expert_points:make_suite", "out": tmp_path / "set", "episodes": 2, "progress": False, **options}
    with pytest.raises(kind, match=message):
        collect(**arguments)
    assert not list(tmp_path.iterdir())


def test_the_help_says_that_scenes_are_shared(capsys: pytest.CaptureFixture[str]) -> None:
    """Who asks for 600 episodes must know how many scenes that is."""
    with pytest.raises(SystemExit):
        main(["collect", "--help"])
    assert "Every scene is recorded with every task" in capsys.readouterr().out


def test_the_verb_collects_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`actlet collect` makes the dataset and says how many, how large, how fast."""
    code = main(["collect", "--suite", "expert_points:make_suite", "--episodes", "3", "--workers", "1", "--out", str(tmp_path / "set")])
    assert code == 0
    assert "set: 3 episodes" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mujoco") is None, reason="the extra 'sim' is not installed")
def test_the_tabletop_gives_demonstrations(tmp_path: Path) -> None:
    """One scene, an episode of each task: two cameras, ended by terminate; the same bits from one and two processes."""
    for workers in (1, 2):
        collect("tabletop", tmp_path / str(workers), 3, workers=workers, progress=False)
    dataset = open_dataset(tmp_path / "1")
    assert [episode.task for episode in dataset.episodes] == ["touch", "lift", "put"]
    assert len({episode.images["front"][0].tobytes() for episode in dataset.read_all(progress=False)}) == 1
    assert all(episode.action[-1, 0] == 1.0 for episode in dataset.read_all(progress=False))
    assert [camera.name for camera in dataset.observation_spec.cameras] == ["front", "wrist"]
    assert dataset.content_hash == open_dataset(tmp_path / "2").content_hash


def test_what_was_executed_is_kept_beside_the_labels(tmp_path: Path) -> None:
    """A dataset gives back both, bit for bit; where nothing was disturbed there is one."""
    config = PerturbationConfig(noise_share=1.0)
    executed, labels = executed_and_labels(config)
    episode = demonstrate(ExpertPoint("red"), 1, config)
    np.testing.assert_array_equal(episode.executed[:-1], executed)
    np.testing.assert_array_equal(episode.executed[-1], labels[-1])
    with DatasetWriter(tmp_path / "set", observation_spec=OBSERVATION, action_spec=ACTION, rate_hz=5) as writer:
        writer.add(episode)
        writer.add(demonstrate(ExpertPoint("red"), 1, QUIET))
    disturbed, quiet = open_dataset(tmp_path / "set").read_all([0, 1])
    np.testing.assert_array_equal(disturbed.executed, episode.executed)
    np.testing.assert_array_equal(disturbed.action, labels)
    assert quiet.executed is None
