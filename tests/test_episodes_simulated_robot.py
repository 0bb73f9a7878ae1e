"""A task behind the robot's interface, on a point that reaches coloured targets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from actlet.errors import ActionError, RobotFault
from actlet.protocols import Robot
from episodes.simulated_robot import SimulatedRobot


@pytest.fixture
def robot(monkeypatch: pytest.MonkeyPatch) -> SimulatedRobot:
    """The task "red" with seed 3, not connected."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    from point_reach import PointReach

    return SimulatedRobot(PointReach("red"), seed=3)


def test_it_is_a_robot_with_the_tasks_specifications(robot: SimulatedRobot) -> None:
    """The control loop compares these with the bundle's."""
    from point_reach import ACTION, OBSERVATION

    assert isinstance(robot, Robot)
    assert (robot.observation_spec, robot.action_spec, robot.rate_hz) == (OBSERVATION, ACTION, 5.0)


def test_a_policy_drives_it_to_success(robot: SimulatedRobot) -> None:
    """Observe, predict, send: the outcome is the task's."""
    from point_reach import PictureReader

    robot.connect()
    assert robot.instruction == "reach the red target"
    policy = PictureReader()
    while not robot.done:
        [chunk] = policy.predict([robot.get_observation()], [robot.instruction])
        robot.send_action(chunk.actions[0])
    assert robot.success
    assert robot.steps > 1


def test_after_the_end_nothing_moves(robot: SimulatedRobot) -> None:
    """A loop that goes on sending changes neither state nor outcome."""
    robot.connect()
    for _ in range(20):
        robot.send_action(np.zeros(4, np.float32))
    assert robot.done
    before = robot.get_observation().state
    robot.send_action(np.array([0.0, 0.05, 0.05, 0.0], np.float32))
    assert np.array_equal(robot.get_observation().state, before)
    assert (robot.success, robot.steps) == (False, 20)


def test_connecting_again_begins_the_same_episode(robot: SimulatedRobot) -> None:
    """The seed decides."""
    robot.connect()
    first = robot.get_observation()
    robot.send_action(np.array([0.0, 0.05, 0.05, 0.0], np.float32))
    robot.disconnect()
    robot.disconnect()
    robot.connect()
    assert np.array_equal(robot.get_observation().state, first.state)
    assert (robot.steps, robot.done) == (0, False)


def test_it_refuses_to_act_unconnected_and_actions_that_are_not_finite(robot: SimulatedRobot) -> None:
    """With what to do about it."""
    with pytest.raises(RobotFault, match=r"call connect\(\) first"):
        robot.get_observation()
    robot.connect()
    with pytest.raises(ActionError, match="'dx'"):
        robot.send_action(np.array([0.0, np.nan, 0.0, 0.0], np.float32))
    assert robot.steps == 0
