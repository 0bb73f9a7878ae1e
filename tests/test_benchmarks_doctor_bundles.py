"""A bundle against the robot that shall run it, before anything is connected."""

from __future__ import annotations

import dataclasses
import sys
import textwrap
import types
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
from conftest import TINY_SPEC

from actlet.command_line import main
from actlet.errors import SpecError
from actlet.specs import CameraSpec
from benchmarks import doctor, doctor_rates
from benchmarks.doctor_bundles import examine_bundles
from runtime.control_loop import LoopConfig, drive

SEES, MOVES = TINY_SPEC.observation, TINY_SPEC.action


class Arm:
    """A robot of TINY_SPEC that must not be connected."""

    def __init__(self) -> None:
        self.observation_spec, self.action_spec, self.rate_hz = SEES, MOVES, 10.0

    def connect(self) -> None:
        raise AssertionError("connected")

    get_observation = send_action = connect

    def disconnect(self) -> None:
        """The control loop disconnects what it could not connect."""


def _with(**changes: object) -> Callable[[Arm], None]:
    """The arm with other values in its specifications."""

    def change(arm: Arm) -> None:
        for name, value in changes.items():
            if name == "rate_hz":
                arm.rate_hz = value
            elif hasattr(arm.action_spec, name):
                arm.action_spec = dataclasses.replace(arm.action_spec, **{name: value})
            else:
                arm.observation_spec = dataclasses.replace(arm.observation_spec, **{name: value})

    return change


# What differs -> the arm, and what must be said of it.
DIFFERENT = {
    "action name": (_with(names=("terminate", "dx", "dz", "gripper")), ["names[2] is 'dz', expected 'dy'"]),
    "order": (_with(names=("terminate", "dy", "dx", "gripper")), ["names[1] is 'dy'", "names[2] is 'dx'"]),
    "units": (_with(units=("1", "mm", "m", "1")), ["units[1] is 'mm', expected 'm'"]),
    "kind": (_with(kinds=("binary", "continuous", "continuous", "continuous")), ["kinds[3] is 'continuous', expected 'binary'"]),
    "limits": (_with(low=(0, -0.1, -0.05, 0), high=(1, 0.1, 0.05, 1)), ["low[1] is -0.1, expected -0.05", "high[1] is 0.1, expected 0.05"]),
    "frame": (_with(frame="tool"), ["frame is 'tool', expected 'base'"]),
    "hold": (_with(hold=("zero", "zero", "zero", "zero")), ["hold[3] is 'zero', expected 'last'"]),
    "state": (_with(state_names=("x", "y", "z")), ["state_names[2] is 'z', expected 'grip'"]),
    "camera name": (_with(cameras=(CameraSpec(name="wrist", height=6, width=8),)), ["cameras[0].name is 'wrist', expected 'front'"]),
    "camera size": (_with(cameras=(CameraSpec(name="front", height=8, width=6),)), ["height is 8, expected 6", "width is 6, expected 8"]),
    "rate": (_with(rate_hz=20.0), ["control rate 10 Hz and 20 Hz"]),
    "everything": (
        _with(frame="tool", state_units=("m", "m", "rad"), rate_hz=5.0),
        ["frame is 'tool'", "state_units[2] is 'rad'", "control rate 10 Hz and 5 Hz"],
    ),
}


@pytest.fixture
def robot(monkeypatch: pytest.MonkeyPatch) -> Callable[[Arm], str]:
    """`robot(arm)` names a factory that returns this arm."""
    module = types.ModuleType("arm_of_the_doctors_tests")
    monkeypatch.setitem(sys.modules, module.__name__, module)

    def name(arm: Arm) -> str:
        module.make_robot = lambda **options: arm
        return f"{module.__name__}:make_robot"

    return name


def test_a_robot_that_fits_is_ok(tiny_bundle: Path, robot: Callable[[Arm], str]) -> None:
    """And says of what it was compared, and that nothing was connected."""
    findings, policies = examine_bundles([tiny_bundle], robot=robot(Arm()))
    assert [finding.verdict for finding in findings] == ["ok", "ok"]
    assert findings[1].how.endswith("fits bundle: 1 camera, 3 states, 4 actions (base), 10 Hz; it was not connected")
    assert list(policies) == ["bundle"]


@pytest.mark.parametrize("name", DIFFERENT)
def test_every_difference_is_a_problem_and_named(tiny_bundle: Path, robot: Callable[[Arm], str], name: str) -> None:
    """Names, order, units, kinds, limits, frame, hold, states, cameras, rate; and the control loop refuses it too."""
    change, said = DIFFERENT[name]
    arm = Arm()
    change(arm)
    findings, policies = examine_bundles([tiny_bundle], robot=robot(arm))
    problems = [finding.how for finding in findings if finding.verdict == "problem"]
    assert problems
    for words in said:
        assert any(words in problem for problem in problems)
    with pytest.raises(SpecError):
        drive(arm, policies["bundle"], "lift the cup", LoopConfig(realtime=False, inference="inline", max_steps=1))


def test_a_robot_that_does_not_say_how_to_hold_is_a_problem(tiny_bundle: Path, robot: Callable[[Arm], str]) -> None:
    """The loop could not make it stand still."""
    arm = Arm()
    _with(hold=None)(arm)
    findings, _ = examine_bundles([tiny_bundle], robot=robot(arm))
    assert any("does not say how the robot stands still" in finding.how for finding in findings if finding.verdict == "problem")


def test_what_the_doctor_passes_the_loop_passes(tiny_bundle: Path, robot: Callable[[Arm], str]) -> None:
    """It goes as far as connecting; a rate within a thousandth is the same."""
    arm = Arm()
    arm.rate_hz = 10.005
    findings, policies = examine_bundles([tiny_bundle], robot=robot(arm))
    assert findings[-1].verdict == "ok"
    result = drive(arm, policies["bundle"], "lift the cup", LoopConfig(realtime=False, inference="inline", max_steps=1))
    assert (result.stopped_by, "connected" in result.message) == ("robot", True)


def test_each_bundle_is_compared(tmp_path: Path, make_tiny_bundle: Callable[..., Path], robot: Callable[[Arm], str]) -> None:
    """One fits, the other is for another rate."""
    fast = dataclasses.replace(TINY_SPEC, timing=dataclasses.replace(TINY_SPEC.timing, rate_hz=50))
    bundles = [make_tiny_bundle(tmp_path / "one"), make_tiny_bundle(tmp_path / "other", spec=fast)]
    findings, _ = examine_bundles(bundles, robot=robot(Arm()))
    said = [finding for finding in findings if finding.what == "robot"]
    assert [finding.verdict for finding in said] == ["ok", "problem"]
    assert "does not fit other" in said[1].how


def test_the_verb_names_the_difference_and_exits_with_2(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a robot's own file in the current folder, as for `actlet run`."""
    source = f"""
    from actlet.specs import ActionSpec, CameraSpec, ObservationSpec
    class MyArm:
        observation_spec = ObservationSpec(cameras=(CameraSpec(name="front", height=6, width=8),), state_names=("x", "y", "grip"), state_units=("m", "m", "1"))
        action_spec = ActionSpec.from_dict({MOVES.to_dict()!r})
        rate_hz = 20.0
        def connect(self): raise AssertionError("moved")
        get_observation = send_action = disconnect = connect
    def make_robot(**options):
        print("opening a driver")
        return MyArm()
    def broken(robot_config="10.0.0.2", **options):
        raise OSError(f"no device at {{robot_config}}")
    """
    monkeypatch.setattr(doctor_rates, "TURNS", 5)
    monkeypatch.setattr(doctor, "examine", lambda: [])
    (tmp_path / "my_doctors_arm.py").write_text(textwrap.dedent(source))
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", str(tiny_bundle), "--robot", "my_doctors_arm:make_robot"]) == 2
    out = capsys.readouterr().out
    assert (
        "PROBLEM  robot                  my_doctors_arm:make_robot does not fit bundle: bundle and robot differ: control rate 10 Hz and 20 Hz"
        in out
    )
    assert out.rstrip().endswith("1 problem.")
    assert main(["doctor", str(tiny_bundle), "--robot", "my_doctors_arm:broken"]) == 2
    assert "my_doctors_arm:broken cannot be made (OSError: no device at 10.0.0.2)" in capsys.readouterr().out
    assert main(["doctor", str(tiny_bundle), "--robot", "my_doctors_arm:broken", "--robot-config", "arm.json"]) == 2
    assert "no device at arm.json" in capsys.readouterr().out
    assert main(["doctor", str(tiny_bundle), "--robot", "my_doctors_arm:make"]) == 2
    assert "Did you mean 'make_robot'?" in capsys.readouterr().out


def test_a_robot_needs_a_bundle(capsys: pytest.CaptureFixture[str]) -> None:
    """There is nothing to compare it with."""
    assert main(["doctor", "--robot", "my_arm:make_robot"]) == 2
    assert "--robot without a bundle" in capsys.readouterr().err
    assert main(["doctor", "--robot-config", "arm.json"]) == 2
    assert "--robot-config arm.json without --robot" in capsys.readouterr().err


def test_a_backend_that_cannot_run_the_bundle_is_a_problem(tiny_bundle: Path) -> None:
    """Said as such: the bundle is sound."""
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    findings, policies = examine_bundles([tiny_bundle], backend="cuda")
    assert [finding.verdict for finding in findings] == ["problem"]
    assert "does not run on cuda: ONNX Runtime provider ['CUDAExecutionProvider'] asked for" in findings[0].how
    assert not policies
