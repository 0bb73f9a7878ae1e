"""The verb `run`: a bundle drives a simulated task named on the command line; what does not fit is refused in words."""

from __future__ import annotations

import dataclasses
import errno
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from actlet.command_line import main
from actlet.errors import CallerError, SpecError, UnknownNameError
from actlet.protocols import Robot
from runtime import run as run_module
from runtime.control_loop import LoopConfig, drive
from runtime.failsafe import Cause
from runtime.policy import BundlePolicy
from runtime.run import make_robot, run_policy

POINTS = ["--suite", "point_reach:make_suite"]


@pytest.fixture
def point_bundle(tmp_path: Path, make_tiny_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle for the point that reaches coloured targets; its answers are arbitrary."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    from point_reach import SPEC

    return make_tiny_bundle(tmp_path / "bundle", spec=SPEC)


def test_run_prints_a_summary(point_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One status line, then success, reason, steps, rates, latency, holds and clipped values."""
    assert main(["run", str(point_bundle), *POINTS, "--task", "red", "--seed", "3", "--steps", "7"]) == 0
    out, err = capsys.readouterr()
    labels = [line.split("  ")[0] for line in out.splitlines()]
    assert labels == ["success", "stopped by", "steps", "decisions", "decision [ms]", "action age [ms]", "holds", "clipped values"]
    assert re.search(r"success +no\n", out)
    assert re.search(r"steps +7 in .* 0 missed\n", out)
    assert re.search(r"decision \[ms\] +p50 \d+\.\d  p95", out)
    assert err == "'reach the red target': step 1 of 7, RUN, 1 decisions, 0 holds\n"


def test_run_ends_with_the_episode(point_bundle: Path) -> None:
    """Without --steps the simulated robot's own end counts."""
    robot = make_robot(suite="point_reach:make_suite", task="red", seed=3)
    result = run_policy(point_bundle, robot)
    assert result.stopped_by == "done"
    assert result.statistics.missed_deadlines == 0


@pytest.mark.parametrize(
    ("virtual", "asked", "delay", "expected"),
    [
        (True, None, 2, (False, "inline")),  # A simulation's time waits.
        (False, None, 2, (True, "thread")),
        (True, True, 2, (True, "thread")),
        (False, None, 0, (True, "inline")),  # A policy made for no delay.
    ],
)
def test_the_pace_follows_from_robot_and_policy(
    tmp_path: Path, make_tiny_bundle, monkeypatch: pytest.MonkeyPatch, virtual: bool, asked: bool | None, delay: int, expected: tuple
) -> None:
    """Real time and a thread for real robots; a virtual clock or a policy that knows no delay makes the loop wait for the policy."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    from point_reach import SPEC

    spec = dataclasses.replace(SPEC, timing=dataclasses.replace(SPEC.timing, max_delay_steps=delay))
    robot = make_robot(suite="point_reach:make_suite", task="red", seed=3)
    robot.virtual_time = virtual
    seen = []
    monkeypatch.setattr(
        run_module, "drive", lambda *arguments, **options: (seen.append(arguments[3]), drive(*arguments[:3], LoopConfig(max_steps=1)))[1]
    )
    run_policy(make_tiny_bundle(tmp_path / "bundle", spec=spec), robot, realtime=asked)
    assert (seen[0].realtime, seen[0].inference) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "rde"], "unknown task of suite .* 'rde'. Did you mean 'red'?"),
        ([], "which task of suite .*Say --task with one of: red"),
        (["--task", "red", "--seed", "-1"], "seed -1: expected 0 or more"),
        (["--task", "red", "--steps", "0"], "--steps 0: expected 1 or more"),
        (["--task", "red", "--threads", "0"], "session: 0 threads"),
        (["--task", "red", "--blend-steps", "-1"], "blend_steps -1"),
        (["--task", "red", "--instruction", " "], "no instruction: say what to do"),
        (["--robot", "nowhere:make"], "robot 'nowhere:make': there is no module 'nowhere'"),
        (["--robot", "nowhere"], "expected 'package.module:factory'"),
        (["--robot", "point_reach:make_siut"], "unknown function in point_reach: 'make_siut'. Did you mean 'make_suite'?"),
    ],
)
def test_what_the_caller_can_mend_exits_with_2(
    point_bundle: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line on stderr that says what to do, no traceback."""
    assert main(["run", str(point_bundle), *POINTS, *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("actlet run: ")
    assert re.search(message, err)
    assert "Traceback" not in err


def test_a_missing_policy_is_named_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before any simulator is started."""
    assert main(["run", str(tmp_path / "nothing"), "--suite", "nowhere", "--task", "put"]) == 2
    assert "nothing: it does not exist. Give the folder of a bundle" in capsys.readouterr().err


def test_a_robot_for_another_bundle_is_refused(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every difference is named."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    robot = make_robot(suite="point_reach:make_suite", task="red")
    with pytest.raises(SpecError, match=r"cameras\[0\].name is 'above', expected 'front'; .*height is 16, expected 6"):
        run_policy(tiny_bundle, robot)


def test_what_is_not_a_robot_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The missing attributes are named."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with pytest.raises(CallerError, match=r"TaskSuite has no \['observation_spec', .*'disconnect'\]; a robot has"):
        make_robot("point_reach:make_suite")
    with pytest.raises(UnknownNameError, match="unknown suite"):
        make_robot(suite="nowhere", task="x")


def test_the_current_folder_is_searched_for_robots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's file beside the command is enough, and the search path stays as it was."""
    import sys

    (tmp_path / "my_arm_for_this_test.py").write_text("raise KeyError('inside')\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    with pytest.raises(KeyError, match="inside"):
        make_robot("my_arm_for_this_test:make")
    assert sys.path == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_who_ends_the_program_stops_the_robot_first(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    """The run comes to rest and the robot is let go; afterwards the signal means what it did before."""
    import lean_robot

    ended: list[str] = []

    class Arm(lean_robot.LeanRobot):
        def send_action(self, action: object) -> None:
            if not ended:
                ended.append("signal")
                os.kill(os.getpid(), number)

        def disconnect(self) -> None:
            ended.append("disconnected")

    monkeypatch.setenv(lean_robot.BUNDLE, str(tiny_bundle))
    monkeypatch.setattr(lean_robot, "LeanRobot", Arm)
    flags = ["--robot", "lean_robot:make_robot", "--inference", "thread", "--priority", "0", "--steps", "600"]
    meaning = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, meaning)  # Under nohup it is ignored.
    try:
        assert main(["run", str(tiny_bundle), *flags]) == 130
        assert signal.getsignal(number) is meaning
    finally:
        signal.signal(number, before)
    assert ended == ["signal", "disconnected"]
    assert "interrupted (the operator pressed operator stop" in capsys.readouterr().out


def test_a_failed_run_exits_with_1(point_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The summary is printed all the same, with the reason."""
    from runtime.policy import BundlePolicy

    predict = BundlePolicy.predict

    def poisoned(self: BundlePolicy, *arguments: object) -> list[object]:
        return [dataclasses.replace(chunk, actions=chunk.actions * float("nan")) for chunk in predict(self, *arguments)]

    monkeypatch.setattr(BundlePolicy, "predict", poisoned)
    assert main(["run", str(point_bundle), *POINTS, "--task", "red"]) == 1
    assert "policy (5 unusable answers in a row" in capsys.readouterr().out


def test_a_second_policy_is_asked_when_the_first_is_unsure(tmp_path: Path, make_tiny_bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """In real time, beside the loop: the answers that come in time are the other policy's; another action space is refused."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    from point_reach import SPEC

    spec = dataclasses.replace(SPEC, timing=dataclasses.replace(SPEC.timing, max_delay_steps=2))
    bundle = make_tiny_bundle(tmp_path / "bundle", spec=spec)
    robot = make_robot(suite="point_reach:make_suite", task="red", seed=3)
    config = LoopConfig(max_steps=20, least_confidence=1.0, unsure="slow")
    result = run_policy(bundle, robot, realtime=True, config=config, when_unsure=BundlePolicy(bundle))
    counted = result.statistics
    assert counted.used_elsewhere > 0
    assert counted.used_elsewhere <= counted.asked_elsewhere <= counted.ticks
    other = make_tiny_bundle(tmp_path / "other", spec=dataclasses.replace(spec, action=dataclasses.replace(spec.action, frame="tool")))
    with pytest.raises(SpecError, match="the one that is asked when it is unsure differ: frame is 'tool'"):
        run_policy(bundle, robot, realtime=True, config=config, when_unsure=BundlePolicy(other))
    with pytest.raises(CallerError, match="that needs real time"):
        run_policy(bundle, robot, config=config, when_unsure=BundlePolicy(bundle))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--when-unsure", "stop"], "--when-unsure 'stop': expected slow, hold, or the URL"),
        (["--when-unsure", "ws://127.0.0.1:1"], "add --least-confidence"),
        (["--when-unsure", "hold"], "--when-unsure hold: says what to do, but not when: add --least-confidence"),
        (["--least-confidence", "2"], "--least-confidence 2.0: expected 0 .. 1."),
        (["--hold-s", "-1"], "--hold-s -1.0: expected seconds, 0 or more."),
        (["--steps", "0"], "--steps 0: expected 1 or more."),
        (["--command-rate-hz", "0"], "--command-rate-hz 0.0: expected a number above 0."),
        (["--priority", "200", "--realtime"], "--priority 200: expected 1 .. 99, or 0 for none."),
        (["--command-rate-hz", "1000"], "are displacements"),
        (["--token-file", "token"], "--token-file is for a policy on another machine, which "),
        (["--answer-timeout", "1"], "--answer-timeout is for a policy that is asked by ws:// or wss://, which "),
        (["--inference", "process", "--as-fast-as-possible"], "--inference process is for a loop that keeps the clock"),
        (["--inference", "thread"], "--inference thread is for a loop that keeps the clock"),
    ],
)
def test_flags_of_the_loop_that_contradict_each_other(
    point_bundle: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    """Refused before anything moves, with exit code 2."""
    assert main(["run", str(point_bundle), *POINTS, "--task", "red", *flags]) == 2
    assert message in capsys.readouterr().err


def test_the_first_ctrl_c_presses_a_button_the_second_breaks_off(capfd: pytest.CaptureFixture[str]) -> None:
    """The first one is no exception, so that no command is left half made; it says what a second one does."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with run_module._stopped_by_signals() as buttons:
            signal.raise_signal(signal.SIGINT)
            assert buttons.pressed == {Cause.OPERATOR_STOP}
            assert "Ctrl-C again ends the run at once" in capfd.readouterr().err
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_that_is_ignored_stays_so() -> None:
    """As under nohup; and a thread changes no signals."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with run_module._stopped_by_signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    seen = []

    def elsewhere() -> None:
        with run_module._stopped_by_signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


def test_a_terminal_that_is_gone_stops_no_robot(point_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The status line is given up, the run is not."""

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.EIO, "gone")

    monkeypatch.setattr(sys, "stderr", Gone())
    assert main(["run", str(point_bundle), *POINTS, "--task", "red", "--seed", "3", "--steps", "7"]) == 0


def test_more_commands_than_steps_are_counted_apart(
    point_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was sent, of how many periods there were."""

    def brisk(*arguments: object, **options: object) -> Robot:
        robot = make_robot(*arguments, **options)  # type: ignore[arg-type]
        robot.command_rate_hz = 4 * robot.rate_hz  # type: ignore[attr-defined]
        return robot

    monkeypatch.setattr(run_module, "make_robot", brisk)
    assert main(["run", str(point_bundle), *POINTS, "--task", "red", "--seed", "3", "--steps", "3"]) == 0
    assert re.search(r"commands +12 sent in 12 periods; 0 missed\n", capsys.readouterr().out)
