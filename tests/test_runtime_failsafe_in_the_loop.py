"""The control loop under faults, in virtual time: what is commanded in each state, how it ends, and what it says."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_runtime_control_loop import INLINE, FakePolicy, FakeRobot, Late, VirtualTime, _raise, _run, told_spec

from actlet.errors import RobotFault
from actlet.protocols import ActionChunk, Observation
from actlet.specs import PolicySpec
from runtime.chunk_schedule import ScheduleConfig
from runtime.control_loop import LoopConfig, LoopResult, drive
from runtime.failsafe import Cause, Failsafe, FailsafeConfig, State, StopButtons
from runtime.inference import Answer
from runtime.loop_statistics import LoopStatistics

REALTIME = LoopConfig(inference="inline", max_steps=60, schedule=ScheduleConfig(blend_steps=0))
STILL, MOVING = [0, 0, 0, 1], [0, np.float32(0.01), np.float32(0.01), 1]


class Watched:
    """The state in which each command was given, and what was commanded."""

    def __init__(self, robot: FakeRobot) -> None:
        self.robot, self.states, self.steps = robot, [], []
        self.before: dict[str, int] = {}

    def __call__(self, step: int, statistics: LoopStatistics) -> None:
        (state,) = [name for name, count in statistics.state_ticks.items() if count != self.before.get(name, 0)]
        self.before = dict(statistics.state_ticks)
        self.states.append(State[state])
        self.steps.append(step)

    def commands(self, state: State) -> list[np.ndarray]:
        """Where every step sends one."""
        return [command for command, was in zip(self.robot.commands, self.states, strict=False) if was is state]

    def story(self) -> list[tuple[str, int]]:
        """States and for how many steps each."""
        found: list[tuple[str, int]] = []
        for state in self.states:
            found[-1:] = [(state.name, found[-1][1] + 1)] if found and found[-1][0] == state.name else [*found[-1:], (state.name, 1)]
        return found


@pytest.fixture
def robot(tiny_spec: PolicySpec) -> FakeRobot:
    return FakeRobot(tiny_spec)


@pytest.fixture
def watched(robot: FakeRobot) -> Watched:
    return Watched(robot)


def with_limits(config: LoopConfig = REALTIME, **limits: object) -> LoopConfig:
    return dataclasses.replace(config, failsafe=FailsafeConfig(**limits))  # type: ignore[arg-type]


def assert_ends_with(result: LoopResult, stopped_by: str, cause: Cause, state: State = State.RAMP) -> None:
    assert (result.stopped_by, result.verdict.cause, result.verdict.state) == (stopped_by, cause, state), result.message
    assert f"; cause: {cause.value}, ended in {state.name}" in result.message


def assert_only_becomes_smaller(commands: list[np.ndarray]) -> None:
    moves = np.abs(np.array(commands))[:, 1:3]
    assert (np.diff(moves, axis=0) <= 0).all()


def test_chunks_of_nan_end_in_a_stop(robot: FakeRobot, tiny_spec: PolicySpec, watched: Watched) -> None:
    """The old chunk plays to its horizon, then the robot holds; the policy is asked at every step; half a second later it is over."""
    policy = FakePolicy(tiny_spec, lambda call, _: policy.chunk(0.01 if call < 3 else math.nan))
    result = _run(robot, policy, REALTIME, on_step=watched)
    assert_ends_with(result, "policy", Cause.CHUNKS_REJECTED)
    assert result.message.startswith(
        "5 unusable answers in a row, the last: ActionError: chunk of shape (6, 4): expected (6, 4), all finite"
    )
    assert watched.story() == [("RUN", 9), ("HOLD", 5)]  # Chunks of steps 0 and 3; the second has actions until step 8.
    np.testing.assert_array_equal(watched.commands(State.RUN), [MOVING] * 9)
    np.testing.assert_array_equal(watched.commands(State.HOLD), [STILL] * 5)
    assert result.statistics.causes == {"no action due": 1, "chunks rejected": 1}
    assert result.statistics.state_s == pytest.approx({"HOLD": 0.5, "RUN": 0.9})


def test_a_policy_that_recovers_in_hold_runs_again(robot: FakeRobot, tiny_spec: PolicySpec, watched: Watched) -> None:
    """After three good chunks in a row, one a step; at the step of the third it moves."""
    policy = FakePolicy(tiny_spec, lambda call, _: policy.chunk(math.nan if 3 <= call < 8 or call == 9 else 0.01))
    result = _run(robot, policy, REALTIME, on_step=watched)
    assert (result.stopped_by, result.verdict.state) == ("steps", State.RUN)
    # Unusable at steps 6 to 10: the fifth in a row is a cause, and the old chunk ends at 8. Good at 11, unusable at 12, good at 13, 14, 15.
    assert watched.story() == [("RUN", 9), ("HOLD", 6), ("RUN", 45)]
    assert policy.calls == 2 + 5 + 5 + math.ceil((60 - 18) / 3)
    assert result.statistics.holds == 6


@pytest.mark.parametrize("rule", ["newest", "receding"])
def test_what_runs_again_does_what_was_decided_since(robot: FakeRobot, tiny_spec: PolicySpec, watched: Watched, rule: str) -> None:
    """The first command after HOLD is of the newest chunk, also by the rule that lets a chunk play for a while first."""
    time, stamps = VirtualTime(), iter([0, 0, 0, -1.0])
    robot.fail = lambda what: setattr(time, "now", time.now + next(stamps, 0)) if what == "send" else None
    spec = dataclasses.replace(tiny_spec, timing=dataclasses.replace(tiny_spec.timing, horizon=20, execute_steps=10))
    policy = FakePolicy(spec, lambda call, _: policy.chunk(0.001 * call))
    config = dataclasses.replace(REALTIME, schedule=ScheduleConfig(rule=rule, blend_steps=0))
    result = _run(robot, policy, config, time, on_step=watched)
    assert result.stopped_by == "steps"
    assert watched.story() == [
        ("RUN", 4),
        ("HOLD", 3),
        ("RUN", 53),
    ]  # One chunk until the clock goes back in step 3, then three, one a step.
    assert [round(1000 * float(command[1])) for command in robot.commands[:9]] == [1, 1, 1, 1, 0, 0, 0, 4, 4]


def test_late_chunks_hold_and_stop(robot: FakeRobot, tiny_spec: PolicySpec, watched: Watched) -> None:
    """Answers that take 0.35 s where 0.2 s is the most: none is used after the first two, which come in time."""
    time, calls = VirtualTime(), []

    def answer(call: int, _: Observation) -> ActionChunk:
        calls.append(call)
        time.advance(0.05 if call < 3 else 0.35)
        return policy.chunk(0.01)

    policy = FakePolicy(tiny_spec, answer)
    result = _run(robot, policy, with_limits(max_bad_chunks=3), time, on_step=watched)
    assert_ends_with(result, "policy", Cause.CHUNKS_REJECTED)
    assert "3 unusable answers in a row, the last: chunk of step" in result.message
    assert "later than the 2 steps the policy was made for" in result.message
    assert result.statistics.late_chunks >= 3
    np.testing.assert_array_equal(robot.commands[-1], STILL)


def test_a_policy_that_hangs_is_waited_for_and_given_up(robot: FakeRobot, tiny_spec: PolicySpec, watched: Watched) -> None:
    """Its last chunk plays to the end, then hold_s of HOLD, exactly; nothing is observed or asked once it is RAMP."""
    time = VirtualTime()
    policy = FakePolicy(tiny_spec)
    where = Late(policy, time, [0.5, 0.5, 1e9])
    result = _run(robot, policy, LoopConfig(max_steps=60), time, inference=lambda *_: where, on_step=watched)
    assert_ends_with(result, "hold", Cause.INFERENCE_LOST)
    # Asked at 0, 3 and 6; the answer to 3 has actions until 8. At 13 nobody has answered for 0.7 s, and a chunk lasts 0.6 s.
    assert watched.story() == [("HOLD", 1), ("RUN", 8), ("HOLD", 5)]
    assert result.message.startswith("no answer for 0.7")
    np.testing.assert_array_equal(robot.commands[-6:], [STILL] * 6)
    assert robot.observed == 8  # Three that were asked about, and from step 9 on, where it is time to ask again, one a step until 13.


@pytest.mark.parametrize(("hold_s", "holds"), [(0.0, 1), (0.1, 1), (0.3, 3), (0.45, 5), (1.0, 10)])
def test_hold_lasts_as_long_as_it_may(robot: FakeRobot, tiny_spec: PolicySpec, watched: Watched, hold_s: float, holds: int) -> None:
    """In steps of a tenth of a second: RAMP comes with the first verdict that is hold_s later."""
    time = VirtualTime()
    policy = FakePolicy(tiny_spec)
    config = with_limits(LoopConfig(max_steps=60), hold_s=hold_s, answer_s=100)
    result = _run(robot, policy, config, time, inference=lambda *_: Late(policy, time, [0.5, 1e9]), on_step=watched)
    assert_ends_with(result, "hold", Cause.NO_ACTION)
    assert f"no valid action for {holds} steps" in result.message
    assert watched.story() == [("HOLD", 1), ("RUN", 5), ("HOLD", holds)]


class Camera:
    """Gives a robot observations of one's own."""

    def __init__(self, robot: FakeRobot, make: Callable[[int], Observation]) -> None:
        self.seen = 0
        robot.get_observation = lambda: self._next(make)  # type: ignore[method-assign]

    def _next(self, make: Callable[[int], Observation]) -> Observation:
        self.seen += 1
        return make(self.seen)


def picture(value: int, taken_s: float | None = None) -> Observation:
    return Observation({"front": np.full((6, 8, 3), value % 256, np.uint8)}, np.zeros(3, np.float32), taken_s=taken_s)


@pytest.mark.parametrize("recovers", [False, True])
def test_a_frozen_camera_holds_the_robot(robot: FakeRobot, tiny_spec: PolicySpec, watched: Watched, recovers: bool) -> None:
    """The policy is not shown what is frozen; a camera that goes on ends it, one that does not ends the run."""
    time = VirtualTime()
    thaws_s = time.now + (2.0 if recovers else 1e9)
    camera = Camera(robot, lambda call: picture(call if call <= 3 or time.now >= thaws_s else 3))
    policy = FakePolicy(tiny_spec)
    result = _run(robot, policy, dataclasses.replace(REALTIME, max_steps=40), time, on_step=watched)
    # Asked every three steps: frame 3 at step 6, again at 9, 12, 15 (0.9 s) and 18, which is the fifth and more than a second after the first.
    if recovers:
        assert watched.story() == [("RUN", 18), ("HOLD", 4), ("RUN", 18)]  # Chunks of the steps 20, 21 and 22.
        assert result.stopped_by == "steps"
    else:
        assert watched.story() == [("RUN", 18), ("HOLD", 5)]
        assert_ends_with(result, "robot", Cause.FROZEN_FRAME)
        assert "camera 'front' is frozen: the same pixels in 5 observations, for 1.2 s" in result.message
        assert policy.calls == 6
    assert result.statistics.bad_observations == camera.seen - policy.calls


def test_a_simulation_that_stands_still_is_not_frozen(robot: FakeRobot, tiny_spec: PolicySpec) -> None:
    """It says that its time is virtual; its frames are drawn."""
    robot.virtual_time = True
    Camera(robot, lambda call: picture(3))
    assert _run(robot, FakePolicy(tiny_spec)).stopped_by == "steps"


def test_a_stale_frame_holds_until_there_are_new_ones(robot: FakeRobot, tiny_spec: PolicySpec, watched: Watched) -> None:
    """Old ones are not shown to the policy; new ones lead back."""
    time = VirtualTime()
    stops_s, goes_on_s = time.now + 0.95, time.now + 1.7

    def seen(call: int) -> Observation:
        taken = min(time.now, stops_s) if time.now < goes_on_s else time.now
        return picture(call, taken - 0.03)

    Camera(robot, seen)
    result = _run(robot, FakePolicy(tiny_spec), dataclasses.replace(REALTIME, max_steps=40), time, on_step=watched)
    assert result.stopped_by == "steps"
    # Asked at 0, 3 .. 12; at 15 the newest is 0.58 s old. New at 17, 18 and 19.
    assert watched.story() == [("RUN", 15), ("HOLD", 4), ("RUN", 21)]
    assert result.statistics.causes == {"stale frame": 1}


def test_a_bad_observation_is_not_shown_to_the_policy(robot: FakeRobot, tiny_spec: PolicySpec, watched: Watched) -> None:
    """One or two in a row are asked again, three hold; what is wrong is in the message."""
    sizes = [(6, 8, 3), (6, 9, 3)]

    def seen(call: int) -> Observation:
        is_bad = call in (2, 4, 5) or call >= 7
        return Observation({"front": np.full(sizes[is_bad], call, np.uint8)}, np.zeros(3, np.float32))

    Camera(robot, seen)
    policy = FakePolicy(tiny_spec)
    result = _run(robot, policy, REALTIME, on_step=watched)
    assert_ends_with(result, "robot", Cause.BAD_OBSERVATION)
    assert (
        "3 observations in a row that are not as specified, the last: ObservationError: camera 'front': got uint8 (6, 9, 3)"
        in result.message
    )
    assert policy.calls == 3
    assert watched.story()[0][0] == "RUN"
    assert result.statistics.causes["bad observation"] == 1


def test_a_robot_that_cannot_be_seen_comes_to_rest(robot: FakeRobot, tiny_spec: PolicySpec, watched: Watched) -> None:
    """What moves fades within half a second and never grows; the gripper holds."""
    robot.fail = lambda what: _raise(OSError("cable")) if what == "observe" and len(robot.commands) > 8 else None
    result = _run(robot, FakePolicy(tiny_spec), REALTIME, on_step=watched)
    assert_ends_with(result, "robot", Cause.ROBOT_LOST)
    assert result.message.startswith("no observation (OSError: cable)")
    assert watched.story() == [("RUN", 9), ("RAMP", 5)]
    np.testing.assert_allclose(np.array(watched.commands(State.RAMP))[:, 1], [0.008, 0.006, 0.004, 0.002, 0], atol=1e-8)
    assert all(command[3] == 1 for command in robot.commands)


def test_a_robot_that_refuses_commands_is_given_up(robot: FakeRobot, tiny_spec: PolicySpec) -> None:
    """One more is tried, since what moves should come to rest; both failures end it."""
    asked = []

    def fail(what: str) -> None:
        if what == "send":
            asked.append(what)
            if len(asked) > 4:
                raise OSError("cable")

    robot.fail = fail
    result = _run(robot, FakePolicy(tiny_spec), REALTIME)
    assert_ends_with(result, "robot", Cause.ROBOT_LOST)
    assert result.message.startswith("command refused (OSError: cable); cause")
    assert result.message.endswith("; the last hold failed (OSError: cable)")
    assert (result.statistics.sent, len(asked)) == (4, 4 + 3)


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0, -0.5])
@pytest.mark.parametrize("when", ["sleeping", "sending", "observing"])
def test_a_clock_that_jumps_does_not_stop_the_commands(
    robot: FakeRobot, tiny_spec: PolicySpec, watched: Watched, jump_s: float, when: str
) -> None:
    """By an hour, forward or back: HOLD, three good chunks, RUN; one command a period all the time, and no long sleep."""
    time, slept, jumped = VirtualTime(), [], []

    def jump(what: str) -> None:
        if what == when and not jumped and len(robot.commands) == 12:
            jumped.append(time.now)
            time.now += jump_s

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        time.now += seconds
        jump("sleeping")

    robot.fail = lambda what: jump({"send": "sending", "observe": "observing"}.get(what, what))
    config = dataclasses.replace(REALTIME, max_steps=None)
    stop = StopButtons()

    def on_step(step: int, statistics: LoopStatistics) -> None:
        watched(step, statistics)
        if len(watched.states) == 40:
            stop.stop()

    result = drive(robot, FakePolicy(tiny_spec), config=config, clock=time.clock, sleep=sleep, on_step=on_step, buttons=stop)
    assert jumped
    assert result.stopped_by == "interrupted"
    assert result.statistics.causes["clock jump"] == 1
    names = [name for name, _ in watched.story()]
    assert names == ["RUN", "HOLD", "RUN", "RAMP"]
    assert dict(watched.story()[1:2])["HOLD"] <= 4
    assert max(slept) <= 0.1 + 1e-6
    assert (np.diff(watched.steps) >= 1).all()
    assert len(robot.commands) == result.statistics.ticks + 1
    assert min(result.statistics.ages_s) >= 0
    assert result.statistics.state_s["RUN"] == pytest.approx(4, abs=1)


def test_a_policy_that_takes_its_time_in_the_loop_is_no_clock_jump(robot: FakeRobot, tiny_spec: PolicySpec) -> None:
    """Three seconds for an answer, where the loop waits for it."""
    time = VirtualTime()
    timing = dataclasses.replace(tiny_spec.timing, horizon=40, max_delay_steps=39)
    spec = dataclasses.replace(tiny_spec, timing=timing)

    def answer(call: int, _: Observation) -> ActionChunk:
        time.advance(3.0)
        return policy.chunk(0.01)

    policy = FakePolicy(spec, answer)
    result = _run(robot, policy, dataclasses.replace(REALTIME, max_steps=200), time)
    assert (result.stopped_by, result.statistics.causes) == ("steps", {})


def test_emergency_stop_while_ramping(robot: FakeRobot, tiny_spec: PolicySpec, watched: Watched) -> None:
    """The robot's own emergency stop, once, and from then on nothing but standing still."""
    buttons, told = StopButtons(), []
    robot.emergency_stop = lambda: told.append(len(robot.commands))

    def on_step(step: int, statistics: LoopStatistics) -> None:
        watched(step, statistics)
        if step == 10:
            buttons.stop()
        if step == 12:
            buttons.emergency_stop()

    config = dataclasses.replace(REALTIME, max_change=(1.0, 1 / 128, 1 / 128, 1.0))
    result = _run(robot, FakePolicy(tiny_spec, lambda *_: FakePolicy(tiny_spec).chunk(0.05)), config, on_step=on_step, buttons=buttons)
    assert_ends_with(result, "emergency", Cause.EMERGENCY_STOP, State.ESTOP)
    assert result.message.startswith("the operator pressed emergency stop")
    assert told == [13]
    # It may slow down by 1/128 a step: from 0.05, less 2 steps of the ramp, 5 more.
    assert watched.story() == [("RUN", 11), ("RAMP", 2), ("ESTOP", 5)]
    assert_only_becomes_smaller(robot.commands[11:])
    np.testing.assert_array_equal(robot.commands[-2][1:3], 0)


@pytest.mark.parametrize("emergency", [False, True])
def test_a_limiter_that_is_too_slow_does_not_keep_the_run_from_ending(
    robot: FakeRobot, tiny_spec: PolicySpec, watched: Watched, emergency: bool
) -> None:
    """What moves may take twice the time of the ramp; no command jumps even then."""
    buttons = StopButtons()

    def on_step(step: int, statistics: LoopStatistics) -> None:
        watched(step, statistics)
        if step == 4:
            (buttons.emergency_stop if emergency else buttons.stop)()

    policy = FakePolicy(tiny_spec, lambda *_: policy.chunk(0.05))
    config = dataclasses.replace(REALTIME, max_change=(1.0, 0.001, 0.001, 1.0))
    result = _run(robot, policy, config, on_step=on_step, buttons=buttons)
    assert result.stopped_by == ("emergency" if emergency else "interrupted")
    assert watched.story() == [("RUN", 5), ("ESTOP" if emergency else "RAMP", 10)]
    assert_only_becomes_smaller(robot.commands[4:])
    assert np.abs(np.diff(np.array(robot.commands)[4:, 1])).max() <= 0.001 + 1e-7


def test_a_clock_that_stands_still_does_not_keep_the_robot_moving(robot: FakeRobot, tiny_spec: PolicySpec, watched: Watched) -> None:
    """The steps count then."""
    time, buttons = VirtualTime(), StopButtons()

    def on_step(step: int, statistics: LoopStatistics) -> None:
        watched(step, statistics)
        if step == 4:
            buttons.stop()
            time.sleep = lambda seconds: None  # type: ignore[method-assign]

    result = drive(
        robot, FakePolicy(tiny_spec), config=REALTIME, clock=time.clock, sleep=lambda s: time.sleep(s), on_step=on_step, buttons=buttons
    )
    assert result.stopped_by == "interrupted"
    np.testing.assert_allclose(np.array(watched.commands(State.RAMP))[:, 1], [0.008, 0.006, 0.004, 0.002, 0], atol=1e-8)


def test_a_robot_whose_emergency_stop_fails_holds(robot: FakeRobot, tiny_spec: PolicySpec) -> None:
    """And the message says so; one without any holds too."""
    for has_one in (True, False):
        buttons = StopButtons()
        buttons.emergency_stop()
        if has_one:
            robot.emergency_stop = lambda: _raise(OSError("no relay"))
        else:
            del robot.emergency_stop
        result = _run(robot, FakePolicy(tiny_spec), REALTIME, buttons=buttons)
        assert_ends_with(result, "emergency", Cause.EMERGENCY_STOP, State.ESTOP)
        assert ("the robot's emergency stop failed (OSError: no relay)" in result.message) is has_one


def test_a_stop_that_is_pressed_while_the_policy_thinks_counts_at_once(robot: FakeRobot, tiny_spec: PolicySpec, watched: Watched) -> None:
    """In the same step, although the answer is good."""
    buttons = StopButtons()
    policy = FakePolicy(tiny_spec, lambda call, _: (buttons.stop() if call == 2 else None, policy.chunk(0.01))[1])
    result = _run(robot, policy, REALTIME, on_step=watched, buttons=buttons)
    assert_ends_with(result, "interrupted", Cause.OPERATOR_STOP)
    assert watched.story() == [("RUN", 3), ("RAMP", 5)]


def test_an_operators_stop_comes_to_rest_and_needs_no_safe_pose(robot: FakeRobot, tiny_spec: PolicySpec, watched: Watched) -> None:
    """Who says stop does not want it to go anywhere."""
    buttons, robot.safe_action = StopButtons(), lambda: _raise(AssertionError())

    def on_step(step: int, statistics: LoopStatistics) -> None:
        watched(step, statistics)
        if step == 5:
            buttons.stop()

    policy = FakePolicy(tiny_spec)
    result = _run(robot, policy, REALTIME, on_step=on_step, buttons=buttons)
    assert_ends_with(result, "interrupted", Cause.OPERATOR_STOP)
    assert watched.story() == [("RUN", 6), ("RAMP", 5)]
    assert policy.calls == robot.observed == 2  # Nobody is asked in RAMP.
    assert_only_becomes_smaller(robot.commands[5:])


@pytest.mark.parametrize("end", ["steps", "done"])
def test_another_end_does_not_cut_a_ramp_short(robot: FakeRobot, tiny_spec: PolicySpec, watched: Watched, end: str) -> None:
    """What moves comes to rest although the steps are over or the task is done, and the reason stays."""
    buttons = StopButtons()

    def on_step(step: int, statistics: LoopStatistics) -> None:
        watched(step, statistics)
        robot.done = end == "done" and watched.states[-1] is State.RAMP
        if step == 5:
            buttons.stop()

    config = dataclasses.replace(REALTIME, max_steps=8 if end == "steps" else 60)
    result = _run(robot, FakePolicy(tiny_spec), config, on_step=on_step, buttons=buttons)
    assert_ends_with(result, "interrupted", Cause.OPERATOR_STOP)
    assert watched.story() == [("RUN", 6), ("RAMP", 5)]


def test_the_first_ctrl_c_comes_to_rest_the_second_ends_at_once(robot: FakeRobot, tiny_spec: PolicySpec, watched: Watched) -> None:
    """Wherever it is pressed; the last command stands still in both cases."""
    for presses, commands in ((1, 5 + 5 + 1), (2, 5 + 2 + 1)):
        robot.commands.clear()
        time, left, stamps = VirtualTime(), [5, 7][:presses], []
        robot.fail = lambda what, time=time, stamps=stamps: stamps.append(time.now) if what == "send" else None

        def sleep(seconds: float, time: VirtualTime = time, left: list[int] = left) -> None:
            if left and len(robot.commands) == left[0]:
                left.pop(0)
                raise KeyboardInterrupt
            time.sleep(seconds)

        result = drive(robot, FakePolicy(tiny_spec), config=REALTIME, clock=time.clock, sleep=sleep)
        assert (result.stopped_by, len(robot.commands)) == ("interrupted", commands)
        assert result.message.startswith("interrupted by the user")
        np.testing.assert_allclose(np.diff(stamps[:-1]), 0.1)
        np.testing.assert_array_equal(robot.commands[-1], STILL)


class SafePose:
    """A way of so many steps to a safe pose; it goes there with `action`."""

    def __init__(self, robot: FakeRobot, steps: int, action: object = (0, -0.02, 0.03, 0)) -> None:
        self.steps, self.action, self.asked = steps, action, 0
        robot.safe_action = self  # type: ignore[attr-defined]

    def __call__(self) -> object:
        self.asked += 1
        if isinstance(self.action, Exception):
            raise self.action
        return None if self.asked > self.steps else np.array(self.action, np.float32)


def hanging(spec: PolicySpec, watched: Watched, config: LoopConfig = REALTIME, **options: object) -> LoopResult:
    """A policy whose second answer never comes, driven."""
    time, policy = VirtualTime(), FakePolicy(spec)
    config = dataclasses.replace(config, inference="thread")
    return _run(watched.robot, policy, config, time, inference=lambda *_: Late(policy, time, [0.5, 1e9]), on_step=watched, **options)


def test_a_robot_that_knows_a_safe_pose_goes_there(robot: FakeRobot, tiny_spec: PolicySpec, watched: Watched) -> None:
    """After the ramp, through the limiter, until it says that it is there."""
    SafePose(robot, 9)
    result = hanging(tiny_spec, watched, dataclasses.replace(REALTIME, max_change=(1.0, 0.01, 0.01, 1.0)))
    assert_ends_with(result, "hold", Cause.INFERENCE_LOST, State.SAFE_POSE)
    assert "; the safe pose is reached" in result.message
    assert watched.story() == [("HOLD", 1), ("RUN", 5), ("HOLD", 5), ("RAMP", 5), ("SAFE_POSE", 9)]
    moves = np.array(robot.commands)[-10:]
    np.testing.assert_allclose(moves[:, 1], [-0.01] + [-0.02] * 8 + [-0.01], atol=1e-8)
    np.testing.assert_allclose(moves[:, 2], [0.01, 0.02] + [0.03] * 7 + [0.02], atol=1e-8)


def test_a_robot_that_never_moved_is_not_driven_to_its_safe_pose(robot: FakeRobot, tiny_spec: PolicySpec, watched: Watched) -> None:
    """It stands as it connected, and stays there."""
    pose, time, policy = SafePose(robot, 9), VirtualTime(), FakePolicy(tiny_spec)
    config = with_limits(LoopConfig(max_steps=60), wait_s=1.0)
    result = _run(robot, policy, config, time, inference=lambda *_: Late(policy, time, [1e9]), on_step=watched)
    assert_ends_with(result, "hold", Cause.NO_ACTION)
    assert (pose.asked, robot.commands) == (0, [])


def test_a_safe_pose_that_is_not_reached_in_time_is_an_emergency(robot: FakeRobot, tiny_spec: PolicySpec, watched: Watched) -> None:
    """After safe_pose_s."""
    told = []
    robot.emergency_stop = lambda: told.append(True)
    SafePose(robot, 10**9)
    result = hanging(tiny_spec, watched, with_limits(safe_pose_s=1.0))
    assert_ends_with(result, "hold", Cause.INFERENCE_LOST, State.ESTOP)
    assert watched.story()[-2:] == [("SAFE_POSE", 10), ("ESTOP", 1)]
    assert told == [True]
    np.testing.assert_array_equal(robot.commands[-1][:3], STILL[:3])


@pytest.mark.parametrize("action", [OSError("no plan"), (0, math.nan, 0, 0), (0, 0), "home"])
def test_a_safe_pose_that_cannot_be_gone_to_is_an_emergency(
    robot: FakeRobot, tiny_spec: PolicySpec, watched: Watched, action: object
) -> None:
    """It raises, or says what nobody can do."""
    SafePose(robot, 3, action)
    result = hanging(tiny_spec, watched)
    assert_ends_with(result, "robot", Cause.ROBOT_LOST, State.ESTOP)
    assert "no way to the safe pose" in result.message
    assert all(np.isfinite(command).all() for command in robot.commands)


def test_no_action_outlives_its_time(robot: FakeRobot, tiny_spec: PolicySpec, watched: Watched) -> None:
    """In steps: with four of six to live, nothing is sent of the other two; the loop holds in their place."""
    config = dataclasses.replace(REALTIME, time_to_live_steps=4, inference="thread")
    time, policy = VirtualTime(), FakePolicy(tiny_spec)
    result = _run(robot, policy, config, time, inference=lambda *_: Late(policy, time, [0.5, 1e9]), on_step=watched)
    assert watched.story()[:3] == [("HOLD", 1), ("RUN", 3), ("HOLD", 5)]
    assert result.statistics.expired == 2
    assert result.stopped_by == "hold"


def test_an_action_that_became_old_within_its_step_is_not_sent(robot: FakeRobot, tiny_spec: PolicySpec, watched: Watched) -> None:
    """A camera that blocks for longer than a chunk lasts: the time by the clock counts, and the loop goes on later."""
    time = VirtualTime()
    blocks = iter([0.0, 0.0, 0.7])

    def observe(what: str) -> None:
        if what == "observe":
            time.now += next(blocks, 0.0)

    robot.fail = observe
    policy = FakePolicy(tiny_spec, lambda call, _: policy.chunk(0.001 * call))
    result = _run(robot, policy, dataclasses.replace(REALTIME, max_steps=30), time, on_step=watched)
    assert result.stopped_by == "steps"
    assert result.statistics.missed_deadlines == 7
    assert result.statistics.late_chunks == 1
    assert max(result.statistics.ages_s) < 0.6
    assert [name for name, _ in watched.story()] == ["RUN", "HOLD", "RUN"]


def test_a_loop_that_is_held_up_within_its_step_sends_nothing_old(robot: FakeRobot, tiny_spec: PolicySpec) -> None:
    """Asking for an answer should never wait; where it does for 0.7 s, what was due before is too old after."""
    time, policy, polls = VirtualTime(), FakePolicy(tiny_spec), []

    class Slow(Late):
        def poll(self) -> Answer | None:
            polls.append(time.now)
            if len(polls) == 6:
                time.now += 0.7
            return super().poll()

    robot.fail = lambda what: sent.append(time.now) if what == "send" else None
    sent: list[float] = []
    result = _run(robot, policy, LoopConfig(max_steps=30), time, inference=lambda *_: Slow(policy, time, [0.5]))
    assert result.statistics.expired == 1
    assert max(result.statistics.ages_s) < 0.6
    assert result.stopped_by == "steps"


def test_a_policy_is_told_of_the_holds_after_the_last_living_action(tiny_spec: PolicySpec) -> None:
    """Until it runs again, what it was told is what was commanded, also where the time to live ends before its answer comes."""
    spec, time, told = told_spec(tiny_spec), VirtualTime(), []
    robot = FakeRobot(spec)
    watched = Watched(robot)

    def answer(call: int, observation: Observation) -> ActionChunk:
        told.append((len(robot.commands) - 1, observation.committed))
        return policy.chunk(0.001 * call)

    policy = FakePolicy(spec, answer)
    config = LoopConfig(max_steps=40, time_to_live_steps=5)
    result = _run(robot, policy, config, time, inference=lambda *_: Late(policy, time, [0.5] * 4 + [2.5] * 2 + [0.5] * 30), on_step=watched)
    assert result.stopped_by == "steps"
    assert result.statistics.expired > 0
    (_, _), (_, runs), (held, holds), *_ = watched.story()  # Nothing is sent in the first HOLD.
    assert held == "HOLD"
    said = [(sent, committed) for sent, committed in told if committed is not None and sent < runs + holds]
    assert {len(committed) for _, committed in said} == {1, 3}
    for sent, committed in said:
        there = robot.commands[sent : min(sent + len(committed), runs + holds)]
        np.testing.assert_array_equal(committed[: len(there)], there)


def test_an_error_that_is_over_is_not_blamed(robot: FakeRobot, tiny_spec: PolicySpec) -> None:
    """The last error in the message is of the answers since the last good one."""
    time = VirtualTime()
    policy = FakePolicy(tiny_spec, lambda call, _: policy.chunk(math.nan if call == 1 else 0.01))
    config = with_limits(LoopConfig(max_steps=60), answer_s=100)
    result = _run(robot, policy, config, time, inference=lambda *_: Late(policy, time, [0.5, 0.5, 1e9]))
    assert result.message == "no valid action for 5 steps; cause: no action due, ended in RAMP"


def test_a_policy_that_is_clamped_all_the_time_is_stopped(robot: FakeRobot, tiny_spec: PolicySpec, watched: Watched) -> None:
    """Half of the values of a whole window may be; a policy in other units holds, and as it does not get better, ends."""
    policy = FakePolicy(tiny_spec, lambda *_: policy.chunk(7.0))
    result = _run(robot, policy, with_limits(clamp_window=20, clamp_share=0.4), on_step=watched)
    assert_ends_with(result, "policy", Cause.CLAMPED)
    assert "50% of the values of the last 20 commands were out of limits, 40% at most" in result.message
    assert watched.story() == [("RUN", 19), ("HOLD", 5)]
    result = _run(FakeRobot(tiny_spec), policy, with_limits(clamp_window=20, clamp_share=0.5))
    assert result.stopped_by == "steps"


def test_a_policy_that_comes_back_into_the_limits_runs_again(robot: FakeRobot, tiny_spec: PolicySpec, watched: Watched) -> None:
    """In HOLD its actions are judged all the same, so it is seen."""
    policy = FakePolicy(tiny_spec, lambda call, _: policy.chunk(7.0 if call <= 3 else 0.01))
    result = _run(robot, policy, with_limits(clamp_window=4, clamp_share=0.4), on_step=watched)
    assert result.stopped_by == "steps"
    assert [name for name, _ in watched.story()] == ["RUN", "HOLD", "RUN"]
    assert result.statistics.causes == {"too many values clamped": 1}


def test_a_loop_that_fails_once_comes_to_rest(robot: FakeRobot, tiny_spec: PolicySpec) -> None:
    """A status line that raises is not called again; what moves fades, still one command a period."""
    calls, stamps, time = [], [], VirtualTime()
    robot.fail = lambda what: stamps.append(time.now) if what == "send" else None

    def on_step(step: int, statistics: LoopStatistics) -> None:
        calls.append(step)
        if step == 7:
            raise ZeroDivisionError

    result = _run(robot, FakePolicy(tiny_spec), REALTIME, time, on_step=on_step)
    assert_ends_with(result, "fault", Cause.LOOP_FAULT)
    assert "the loop itself failed (ZeroDivisionError: )" in result.message
    assert calls == list(range(8))
    assert_only_becomes_smaller(robot.commands[7:])
    np.testing.assert_allclose(np.array(robot.commands)[8:, 1], [0.008, 0.006, 0.004, 0.002, 0, 0], atol=1e-8)
    np.testing.assert_allclose(np.diff(stamps[:-1]), 0.1)


def test_a_loop_that_fails_twice_ends_at_once(robot: FakeRobot, tiny_spec: PolicySpec) -> None:
    """The robot stands still and is let go."""
    time = VirtualTime()
    result = _run(robot, FakePolicy(tiny_spec), REALTIME, time, inference=lambda *_: _raise(OSError("no memory")))
    assert (result.stopped_by, result.message) == ("fault", "inference cannot begin (OSError: no memory)")
    time.sleep = lambda seconds: _raise(OSError("no timer"))  # type: ignore[method-assign]
    result = _run(robot, FakePolicy(tiny_spec), REALTIME, time)
    assert result.stopped_by == "fault"
    assert "the loop itself failed (OSError: no timer), and again (OSError: no timer)" in result.message
    np.testing.assert_array_equal(robot.commands[-1], STILL)
    assert robot.disconnects == 2


def test_inference_that_cannot_be_closed_is_told(robot: FakeRobot, tiny_spec: PolicySpec) -> None:
    """The reason of the end stays."""
    policy, time = FakePolicy(tiny_spec), VirtualTime()
    where = Late(policy, time, [0.5])
    where.close = lambda: _raise(OSError("stuck"))  # type: ignore[method-assign]
    result = _run(robot, policy, LoopConfig(max_steps=5), time, inference=lambda *_: where)
    assert (result.stopped_by, result.message) == ("steps", "5 steps done; closing inference failed (OSError: stuck)")


def test_what_was_stopped_moves_again_only_after_a_reset(robot: FakeRobot, tiny_spec: PolicySpec, watched: Watched) -> None:
    """A failsafe that is kept refuses the next run before anything is connected; after its reset three good chunks are needed."""
    kept, buttons = Failsafe(), StopButtons()
    buttons.stop()
    time = VirtualTime()
    result = _run(robot, FakePolicy(tiny_spec), REALTIME, time, failsafe=kept, buttons=buttons)
    assert_ends_with(result, "interrupted", Cause.OPERATOR_STOP)
    with pytest.raises(RobotFault, match=r"latched in RAMP \(operator stop\). See to the robot, then call reset"):
        _run(robot, FakePolicy(tiny_spec), REALTIME, time, failsafe=kept)
    assert robot.disconnects == 1
    buttons.release()
    kept.update(time.now, buttons.pressed)
    kept.reset()
    time.advance(100)
    result = _run(robot, FakePolicy(tiny_spec), REALTIME, time, failsafe=kept, buttons=buttons, on_step=watched)
    assert result.stopped_by == "steps"
    assert watched.story() == [("HOLD", 2), ("RUN", 58)]


POSITIONS = {"kinds": ("continuous",) * 4, "low": (-1,) * 4, "high": (1,) * 4, "hold": ("last",) * 4}


@given(
    bad=st.lists(st.sampled_from(["nan", "raise", "late", "good", "good", "good", "jump"]), min_size=5, max_size=30),
    positions=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_into_hold_and_out_of_it_no_command_jumps(tiny_spec: PolicySpec, bad: list[str], positions: bool, seed: int) -> None:
    """Whatever the policy does, for positions as for displacements: finite, inside the limits, and no change larger than allowed, ever."""
    action = dataclasses.replace(tiny_spec.action, **POSITIONS) if positions else tiny_spec.action
    spec = dataclasses.replace(tiny_spec, action=action)
    robot, rng, time = FakeRobot(spec), np.random.default_rng(seed), VirtualTime()
    watched = Watched(robot)

    def answer(call: int, _: Observation) -> ActionChunk:
        kind = bad[call % len(bad)]
        if kind == "raise":
            raise RuntimeError(kind)
        time.now += {"late": 0.35, "jump": 3600.0}.get(kind, 0.02)
        actions = rng.uniform(-1, 1, (6, 4)).astype(np.float32)
        actions[:, [0, 3]] = 0, rng.integers(0, 2)
        return ActionChunk(np.full((6, 4), np.nan, np.float32) if kind == "nan" else actions, np.ones(6, np.float32))

    most = (1.0, 0.013, 0.02, 1.0)
    config = dataclasses.replace(REALTIME, max_change=most, max_steps=None, failsafe=FailsafeConfig(max_bad_chunks=2, wait_s=2.0))
    stop = StopButtons()

    def on_step(step: int, statistics: LoopStatistics) -> None:
        watched(step, statistics)
        if len(watched.states) == 80:
            stop.stop()

    result = _run(robot, FakePolicy(spec, answer), config, time, on_step=on_step, buttons=stop)
    assert result.stopped_by in ("interrupted", "policy", "hold", "fault")
    low, high = np.array(spec.action.low, np.float32), np.array(spec.action.high, np.float32)
    for command in robot.commands:
        assert np.isfinite(command).all()
        assert ((command >= low) & (command <= high)).all()
    if len(robot.commands) > 1:
        assert (np.abs(np.diff(robot.commands, axis=0))[:, 1:3] <= np.array(most[1:3]) + 1e-6).all()


def test_states_and_causes_are_in_the_statistics(robot: FakeRobot, tiny_spec: PolicySpec, watched: Watched) -> None:
    """Plain JSON, states in steps and seconds; together they are the run."""
    result = hanging(tiny_spec, watched)
    data = json.loads(json.dumps(result.statistics.to_dict()))
    assert data["state_ticks"] == {"HOLD": 6, "RUN": 5, "RAMP": 1}
    assert data["state_s"] == pytest.approx({"HOLD": 0.6, "RUN": 0.5})
    assert sum(data["state_s"].values()) == pytest.approx(data["elapsed_s"])
    assert data["causes"] == {"no action due": 1, "answer lost": 1}
    assert (data["bad_observations"], data["expired"]) == (0, 0)


def test_a_robot_in_hold_is_commanded_at_every_step(robot: FakeRobot, tiny_spec: PolicySpec) -> None:
    """Silence is no way to stand still."""
    policy = FakePolicy(tiny_spec, lambda call, _: policy.chunk(0.01) if call == 1 else _raise(ValueError()))
    result = _run(robot, policy, INLINE)
    assert result.statistics.ticks == result.statistics.sent == len(robot.commands) - 1
