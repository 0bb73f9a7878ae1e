"""The verb `replay`: what a recorded run shows, step by step, drawn, compared, and as a dataset."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from actlet.command_line import main
from actlet.errors import MissingExtraError, RecordingError
from actlet.protocols import ActionChunk, Observation, Policy, Robot
from actlet.specs import PolicySpec, TimingSpec
from episodes.lerobot_dataset import open_dataset
from runtime.control_loop import LoopConfig, drive
from runtime.failsafe import Cause, State, Verdict
from runtime.flight_recorder import FlightRecorder
from runtime.inference import Answer
from runtime.journal import NOT_ASKED
from runtime.journals import Journals
from runtime.recorder_config import RecorderConfig
from runtime.recording import open_recording
from runtime.replay_compare import compare_policy
from runtime.replay_episodes import recorded_episodes
from runtime.replay_steps import moments, steps_of
from runtime.rerun_view import show_in_rerun


class Constant:
    """Answers the same action at every row, with a little that depends on the picture."""

    def __init__(self, spec: PolicySpec, value: float = 0.02) -> None:
        self.spec, self.value = spec, value

    def predict(self, observations: Sequence[Observation], instructions: Sequence[str]) -> list[ActionChunk]:
        horizon, dim = self.spec.timing.horizon, self.spec.action.dim
        seen = [sum(int(frame.sum()) for frame in observation.images.values()) % 97 / 1e5 for observation in observations]
        rows = [np.full((horizon, dim), self.value + small, np.float32) * ~self.spec.action.is_binary for small in seen]
        return [ActionChunk(actions.astype(np.float32), np.ones(horizon, np.float32)) for actions in rows]


class Watched:
    """A robot that remembers what it showed and was told."""

    virtual_time = True

    def __init__(self, robot: Robot) -> None:
        self._robot = robot
        self.sent: list[NDArray[np.float32]] = []
        self.shown: list[Observation] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._robot, name)

    def get_observation(self) -> Observation:
        observation = self._robot.get_observation()
        if not any(observation is seen for seen in self.shown):
            self.shown.append(observation)
        return observation

    def send_action(self, action: NDArray[np.float32]) -> None:
        self.sent.append(action.copy())
        self._robot.send_action(action)


def _record(path: Path, robot: Robot, policy: Policy, *, about: dict[str, object], every_step: bool = True, pictures: str = "png") -> None:
    config = RecorderConfig(pictures=pictures, every_step=every_step)  # type: ignore[arg-type]
    with FlightRecorder(path, policy.spec, about=about, config=config) as recorder:
        result = drive(robot, policy, None, LoopConfig(realtime=False, inference="inline"), journal=Journals(recorder))
        assert result.statistics.journal_errors == 0
        recorder.finish({"stopped_by": result.stopped_by, "message": result.message, "success": robot.success})  # type: ignore[attr-defined]
    assert not any(recorder.report.lost.values())


@pytest.fixture
def reach(monkeypatch: pytest.MonkeyPatch) -> tuple[Watched, PolicySpec]:
    """A point that reaches coloured targets, and a policy's specification that is asked at every second step."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    from point_reach import SPEC, PointReach

    from episodes.simulated_robot import SimulatedRobot

    timing = TimingSpec(rate_hz=5.0, horizon=4, execute_steps=2, max_delay_steps=2)
    return Watched(SimulatedRobot(PointReach("red"), seed=3)), dataclasses.replace(SPEC, timing=timing)


@pytest.fixture
def recorded(tmp_path: Path, reach: tuple[Watched, PolicySpec]) -> Path:
    """A whole run of twenty steps."""
    robot, spec = reach
    _record(tmp_path / "run.mcap", robot, Constant(spec), about={"instruction": "reach the red target", "policy": "constant", "seed": 3})
    return tmp_path / "run.mcap"


def test_a_run_becomes_the_dataset_of_what_the_robot_showed_and_was_told(
    recorded: Path, reach: tuple[Watched, PolicySpec], tmp_path: Path
) -> None:
    """Read back by our own reader: frames and states to the last bit, actions as they were sent, instruction, seed and outcome."""
    robot, spec = reach
    assert main(["replay", str(recorded), "--to-dataset", str(tmp_path / "data")]) == 0
    dataset = open_dataset(tmp_path / "data")
    assert (dataset.observation_spec, dataset.action_spec, dataset.rate_hz) == (spec.observation, spec.action, 5.0)
    [episode] = dataset.read_all(progress=False)
    assert len(episode) == 20
    assert np.array_equal(episode.action, robot.sent[:20])
    assert np.array_equal(episode.state, [seen.state for seen in robot.shown[:20]])
    assert np.array_equal(episode.images["above"], [seen.images["above"] for seen in robot.shown[:20]])
    assert (episode.instruction, episode.seed, episode.success) == ("reach the red target", 3, False)
    assert dataset.provenance["about"]["policy"] == "constant"


@pytest.mark.slow
def test_a_run_on_the_table_becomes_a_dataset(tmp_path: Path) -> None:
    """Two cameras, eight numbers an action, drawn by MuJoCo; the recording is what a student can be distilled with."""
    from distill.rollouts import open_rollouts
    from episodes.collect import collect
    from episodes.simulated_robot import make_robot

    collect("tabletop", tmp_path / "demonstrations", 1, tasks=["touch"], workers=1, progress=False)
    demonstrations = open_dataset(tmp_path / "demonstrations")
    robot = Watched(make_robot(suite="tabletop", task="touch", seed=demonstrations.episodes[0].seed or 0))
    spec = PolicySpec(
        observation=robot.observation_spec,
        action=robot.action_spec,
        timing=TimingSpec(rate_hz=robot.rate_hz, horizon=8, execute_steps=4, max_delay_steps=3),
    )
    about = {"instruction": demonstrations.episodes[0].instruction, "task": "touch"}
    _record(tmp_path / "run.mcap", robot, Constant(spec, 0.01), about=about)
    assert main(["replay", str(tmp_path / "run.mcap"), "--to-dataset", str(tmp_path / "data"), "--success", "no"]) == 0
    [episode] = open_dataset(tmp_path / "data").read_all(progress=False)
    steps = len(episode)
    assert steps > 5
    assert np.array_equal(episode.action, robot.sent[:steps])
    for name in episode.images:
        assert np.array_equal(episode.images[name], [seen.images[name] for seen in robot.shown[:steps]])
    assert len(open_rollouts([tmp_path / "data"], demonstrations)) == 1


def test_a_run_seen_at_every_second_step_is_no_dataset(
    tmp_path: Path, reach: tuple[Watched, PolicySpec], capsys: pytest.CaptureFixture[str]
) -> None:
    """It says how to record one."""
    robot, spec = reach
    _record(tmp_path / "run.mcap", robot, Constant(spec), about={"instruction": "reach the red target"}, every_step=False)
    assert [row.step for row in open_recording(tmp_path / "run.mcap").observations] == list(range(0, 20, 2))
    assert main(["replay", str(tmp_path / "run.mcap"), "--to-dataset", str(tmp_path / "data")]) == 2
    assert "--record-every-step" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_gaps_make_episodes_and_displacements_of_a_step_add_up(tmp_path: Path, tiny_spec: PolicySpec) -> None:
    """Step 3 was skipped, 6 was not to be shown, RAMP began at 9; two commands a step: displacements add up, the flag is the last one."""
    with FlightRecorder(
        tmp_path / "run.mcap", tiny_spec, about={"instruction": "lift the cup"}, config=RecorderConfig(pictures="raw")
    ) as recorder:
        for step in [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]:
            seen = Observation({"front": np.full((6, 8, 3), step, np.uint8)}, np.array([step, 0, 0], np.float32))
            recorder.observed(step, step / 10, seen, {6: "too old", 7: NOT_ASKED}.get(step, ""))
            if step in (0, 9):
                recorder.judged(step, step / 10, Verdict(State.RUN if step == 0 else State.RAMP, None, 0.0), "")
            for tick in range(2):
                recorder.commanded(step, 2 * step + tick, step / 10 + tick / 20, None, [0.0, 0.25, step / 64, float(tick)], 0)
        recorder.finish({"stopped_by": "steps", "message": "", "success": True})
    run = open_recording(tmp_path / "run.mcap")
    episodes = recorded_episodes(run)
    assert [(episode.first_step, len(episode.action), episode.success) for episode in episodes] == [
        (0, 3, False),
        (4, 2, False),
        (7, 2, True),
    ]
    assert np.array_equal(episodes[1].action, [[0, 0.5, 8 / 64, 1], [0, 0.5, 10 / 64, 1]])
    assert episodes[1].images["front"][:, 0, 0, 0].tolist() == [4, 5]
    assert [episode.success for episode in recorded_episodes(run, success=False)] == [False] * 3
    assert moments(run)[:4] == pytest.approx([0.0, 0.05, 0.1, 0.15])


def test_the_table_shows_what_was_seen_answered_due_and_sent(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole run's summary, one line a command, and words where something changed."""
    assert main(["replay", str(recorded)]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = {line.split("  ")[0].strip(): line for line in lines}
    assert "'" not in found["instruction"]
    assert "20 at 5 Hz, 20 commands, 20 observations" in found["steps"]
    assert found["lost"].endswith("nothing")
    assert "done (the robot reports the end of the task), no success" in found["stopped by"]
    [head] = [line for line in lines if "time [s]" in line]
    assert all(name in head for name in ("terminate", "dx", "dy", "gripper"))
    rows = [line for line in lines if " sent " in line]
    assert len(rows) == 20
    assert "asked" in rows[0]
    assert "used" in rows[0]
    assert "looked" in rows[1]
    assert any(line.strip() == "└ RUN" for line in lines)


def test_what_was_due_is_shown_where_it_was_not_sent(tmp_path: Path, tiny_spec: PolicySpec, capsys: pytest.CaptureFixture[str]) -> None:
    """Below what was sent, in that column alone; and why an answer was refused."""
    with FlightRecorder(tmp_path / "run.mcap", tiny_spec) as recorder:
        recorder.answered(0, 0.0, Answer(observed_at=0, chunk=None, error="died", submitted_s=0.0, finished_s=0.1), "bad", "it died")
        recorder.judged(0, 0.0, Verdict(State.HOLD, Cause.CHUNKS_REJECTED, 0.0), "many of them")
        recorder.commanded(0, 0, 0.0, [0.0, 0.75, 0.01, 1.0], [0.0, 0.05, 0.01, 1.0], 1)
    assert main(["replay", str(tmp_path / "run.mcap")]) == 0
    lines = capsys.readouterr().out.splitlines()
    place = next(i for i, line in enumerate(lines) if " sent " in line)
    assert lines[place].split()[-1] == "1"
    assert lines[place + 1].split() == ["due", "0.75000"]
    assert lines[place + 2].strip() == "└ HOLD, chunks rejected: many of them"
    assert lines[place + 3].strip() == "└ answer bad: it died"


def test_two_answers_in_a_step_leave_the_columns_in_place(
    tmp_path: Path, tiny_spec: PolicySpec, capsys: pytest.CaptureFixture[str]
) -> None:
    """The numbers of all steps stand below each other, whatever was answered."""
    with FlightRecorder(tmp_path / "run.mcap", tiny_spec, about={"policy": "bundles/int8", "seed": 3}) as recorder:
        for step in range(2):
            for late in range(1 + step):
                answer = Answer(observed_at=step - late, chunk=None, error="died", submitted_s=0.0, finished_s=0.1)
                recorder.answered(step, 0.1 * step, answer, "bad", "it died")
            recorder.commanded(step, step, 0.1 * step, None, [0.0, 0.05, 0.01, 1.0], 0)
    assert main(["replay", str(tmp_path / "run.mcap")]) == 0
    lines = capsys.readouterr().out.splitlines()
    places = [line.index(" sent ") for line in lines if " sent " in line]
    assert len(places) == 2
    assert len(set(places)) == 1
    assert any("bad 100.0 ms, bad 100.0 ms -1 " in line for line in lines)
    assert "policy       bundles/int8  seed 3" in lines


def test_json_has_everything_of_the_chosen_steps(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One document a step; a step that is not there is refused with those that are."""
    assert main(["replay", str(recorded), "--json", "--from", "3", "--to", "5"]) == 0
    steps = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [step["step"] for step in steps] == [3, 4, 5]
    assert steps[1]["answers"][0]["verdict"] == "used"
    assert len(steps[1]["answers"][0]["actions"]) == 4
    assert steps[0]["commands"][0]["sent"][1] == pytest.approx(0.02, abs=1e-3)
    assert steps[0]["state"] == "RUN"
    assert main(["replay", str(recorded), "--step", "99"]) == 2
    assert "no step from 99 to 99; there are 0 .. 19" in capsys.readouterr().err


def test_the_same_policy_answers_the_same_and_another_is_told_apart(recorded: Path, reach: tuple[Watched, PolicySpec]) -> None:
    """On pictures that were kept exactly: no difference at all; a shifted policy differs by its shift."""
    run, spec = open_recording(recorded), reach[1]
    same = compare_policy(run, Constant(spec))
    assert same.steps == tuple(range(0, 20, 2))
    assert not same.differences.any()
    other = compare_policy(run, Constant(spec, 0.03)).to_dict()
    assert other["dimensions"]["dx"]["max"] == pytest.approx(0.01, abs=1e-6)
    assert other["dimensions"]["gripper"]["max"] == 0
    assert other["worst"]["share_of_range"] == pytest.approx(0.01 / 0.16, rel=1e-4)
    run.answers[:3] = [dataclasses.replace(row, elsewhere=True) for row in run.answers[:3]]
    fewer = compare_policy(run, Constant(spec))
    assert (len(fewer.steps), fewer.left_out) == (7, 3)  # What somebody else answered says nothing of this policy.


def test_a_bundle_is_compared_on_the_command_line(
    tmp_path: Path, reach: tuple[Watched, PolicySpec], make_tiny_bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own run: no difference; without pictures there is nothing to compare."""
    from runtime.policy import BundlePolicy

    robot, spec = reach
    bundle = make_tiny_bundle(tmp_path / "bundle", spec=spec)
    _record(tmp_path / "run.mcap", robot, BundlePolicy(bundle), about={"instruction": robot.instruction or "reach the red target"})
    assert main(["replay", str(tmp_path / "run.mcap"), "--compare", str(bundle), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["compared"] == 10
    assert all(row["max"] == 0 for row in found["dimensions"].values())
    assert main(["replay", str(tmp_path / "run.mcap"), "--compare", str(bundle)]) == 0
    assert "10 observations answered by both, 0 left out" in capsys.readouterr().out
    _record(tmp_path / "blind.mcap", robot, BundlePolicy(bundle), about={}, pictures="none")
    assert main(["replay", str(tmp_path / "blind.mcap"), "--compare", str(bundle)]) == 2
    assert "Record with pictures" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["run.png", "run.svg"])
def test_a_run_is_drawn(recorded: Path, tmp_path: Path, name: str) -> None:
    """A picture with every dimension's name and the failsafe's states."""
    assert main(["replay", str(recorded), "--plot", str(tmp_path / name)]) == 0
    if name.endswith(".svg"):
        text = (tmp_path / name).read_text()
        assert all(word in text for word in ("dx [m]", "gripper", "failsafe", "RUN", "reach the red target"))
    else:
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 1000


def test_what_cannot_be_drawn_is_refused(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another kind of file."""
    assert main(["replay", str(recorded), "--plot", str(tmp_path / "run.gif")]) == 2
    assert "expected a name that ends in .png or .svg" in capsys.readouterr().err


def test_a_cut_run_is_replayed_and_mended(recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything works on what is there, and the damage is said."""
    cut = tmp_path / "cut.mcap"
    data = recorded.read_bytes()
    cut.write_bytes(data[: data.index(b"actlet.end")])
    assert main(["replay", str(cut), "--summary"]) == 0
    out = capsys.readouterr().out
    assert "damage" in out
    assert main(["replay", str(cut), "--recover", str(tmp_path / "mended.mcap")]) == 0
    assert open_recording(tmp_path / "mended.mcap").is_whole
    cut.write_bytes(b"nothing")
    assert main(["replay", str(cut)]) == 2
    assert "is no MCAP file" in capsys.readouterr().err


def test_rerun_is_optional(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is not installed the extra is named."""
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(MissingExtraError, match=r"Rerun needs the package 'rerun-sdk'.*actlet\[viz\]"):
        show_in_rerun(open_recording(recorded))


def test_rerun_gets_the_whole_run(recorded: Path, tmp_path: Path) -> None:
    """With the real package, into a file."""
    pytest.importorskip("rerun")
    show_in_rerun(open_recording(recorded), tmp_path / "run.rrd")
    assert (tmp_path / "run.rrd").read_bytes()[:3] == b"RRF"


def test_a_run_without_steps_has_no_episodes(tmp_path: Path, tiny_spec: PolicySpec) -> None:
    """In words."""
    with FlightRecorder(tmp_path / "run.mcap", tiny_spec):
        pass
    run = open_recording(tmp_path / "run.mcap")
    assert steps_of(run) == []
    with pytest.raises(RecordingError, match="no two steps follow each other"):
        recorded_episodes(run)
