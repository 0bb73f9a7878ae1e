"""docs/robots.md keeps its word: its code runs, its files are configurations."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_SPEC

from actlet.command_line import main
from actlet.protocols import Robot
from actlet.specs import ActionSpec, PolicySpec, TimingSpec, require_same
from runtime.robots.lerobot_config import LeRobotConfig
from runtime.robots.ros2_config import Ros2Config
from runtime.run import make_robot

PAGE = (Path(__file__).parent.parent / "docs" / "robots.md").read_text()
PYTHON, FILES = (re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) for language in ("python", "json"))


def test_the_class_runs_as_it_stands(
    tmp_path: Path, make_tiny_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Copied into a file, with a bundle for it, by the command that stands there; in twenty lines without the imports."""
    own = PYTHON[0]
    name = re.match(r"# (\w+)\.py, then: actlet run bundles/int8 --robot (\S+) ", own)
    assert name
    (tmp_path / f"{name[1]}.py").write_text(own)
    monkeypatch.chdir(tmp_path)
    try:
        robot = make_robot(name[2])
        assert isinstance(robot, Robot)
        timing = TimingSpec(rate_hz=robot.rate_hz, horizon=6, execute_steps=3, max_delay_steps=2)
        spec = PolicySpec(observation=robot.observation_spec, action=robot.action_spec, timing=timing)
        bundle = make_tiny_bundle(tmp_path / "bundle", spec=spec)
        words = ["--instruction", "lift the cup", "--steps", "5", "--inference", "thread", "--priority", "0"]
        assert main(["run", str(bundle), "--robot", name[2], *words]) == 0
    finally:
        sys.modules.pop(name[1], None)
    assert "steps (5 steps done)" in capsys.readouterr().out
    lines = [line for line in own.splitlines() if line.strip() and not line.startswith(("#", "import", "from"))]
    assert len(lines) <= 20


def test_a_specification_is_taken_from_a_bundle(
    tmp_path: Path, make_tiny_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a bundle with the table's actions: what is added to it fits, and is no difference."""
    names, units = ("terminate", "dx", "dy", "dz", "drx", "dry", "drz", "gripper"), ("1", *"mmm", *("rad",) * 3, "1")
    kinds, hold = ("binary", *("continuous",) * 6, "binary"), (*("zero",) * 7, "last")
    action = ActionSpec(names=names, units=units, kinds=kinds, low=(0, *(-0.3,) * 6, 0), high=(1, *(0.3,) * 6, 1), frame="base", hold=hold)
    make_tiny_bundle(tmp_path / "bundles" / "int8", spec=dataclasses.replace(TINY_SPEC, action=action))
    monkeypatch.chdir(tmp_path)
    made: dict[str, Any] = {}
    exec(compile(PYTHON[1], "my_arm.py", "exec"), made)
    require_same(action, made["MyArm"].action_spec, what="the bundle's and the robot's action")
    limited = [name for name, motion in zip(names, made["MyArm"].action_spec.motion, strict=True) if motion is not None]
    assert limited == ["dx", "dy", "dz", "drx", "dry", "drz"]


def test_the_files_are_configurations() -> None:
    """Read as `actlet run` reads them, and every key that they show is known."""
    lerobot, ros = (json.loads(text) for text in FILES)
    assert LeRobotConfig.from_dict(lerobot).factory == "my_so101:make"
    assert Ros2Config.from_dict(ros).joint("pan") == "shoulder_pan_joint"


def test_the_factory_is_python() -> None:
    """What it makes is compared with the file where LeRobot is named (test_runtime_robots_lerobot.py)."""
    compile(PYTHON[2], "my_so101.py", "exec")
    assert (len(PYTHON), len(FILES)) == (3, 2)
