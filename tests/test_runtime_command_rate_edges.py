"""What may go wrong beside the commands at a higher rate: stops in the middle of a motion, Ctrl-C at the end, old and unsure actions, counts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from test_runtime_command_rate import MOTION, After, Arm, Clock, Script, arm_spec, reach, run

from actlet.specs import ActionSpec, MotionLimits, PolicySpec
from runtime.chunk_schedule import ScheduleConfig
from runtime.control_loop import LoopConfig, drive
from runtime.failsafe import FailsafeConfig, StopButtons


def moving_spec(tiny_spec: PolicySpec, *, motion: tuple[object, ...] | None = None) -> PolicySpec:
    """A velocity, a displacement and a gripper, at 10 steps in a second."""
    action = ActionSpec(
        names=("vx", "dz", "gripper"),
        units=("m/s", "m", "1"),
        kinds=("continuous", "continuous", "binary"),
        low=(-1.1, -0.05, 0.0),
        high=(1.1, 0.05, 1.0),
        frame="base",
        hold=("zero", "zero", "last"),
        motion=motion,  # type: ignore[arg-type]
    )
    return dataclasses.replace(tiny_spec, action=action)


def _interrupt() -> None:
    raise KeyboardInterrupt


SLOW = (MotionLimits(acceleration=5.0), MotionLimits(acceleration=1.0), None)


@pytest.mark.parametrize("hz", [200.0, 1000.0])
@pytest.mark.parametrize("press", ["stop", "interrupt"])
@pytest.mark.parametrize("limited", [False, True])
def test_a_stop_never_makes_it_faster(tiny_spec: PolicySpec, hz: float, press: str, limited: bool) -> None:
    """RAMP begins at the speed that was sent last: less than that of the step it is in, where that slows down, or cannot be as fast yet."""
    spec, clock, buttons = moving_spec(tiny_spec, motion=SLOW if limited else None), Clock(), StopButtons()
    arm = Arm(spec, clock, hz)
    arm.present_action = None
    pressed_s = 0.12 if limited else 0.38  # Shortly after it began to move, or at the end of a step from 1 m/s down to 0.05.

    presses = iter([_interrupt if press == "interrupt" else buttons.stop])

    def on_command(count: int) -> None:
        if clock() - 50.0 >= pressed_s - 1e-6:
            next(presses, lambda: None)()

    arm.on_command = on_command
    chunk = np.stack([np.full(6, 1.0) if limited else [1.0, 1.0, 1.0, 1.0, 0.05, 0.05], np.full(6, 0.05), np.ones(6)], 1)
    result = run(arm, Script(spec, lambda call: chunk), LoopConfig(max_steps=50, replan_steps=6), buttons=buttons)
    assert result.stopped_by == "interrupted"
    sent, times = np.abs(np.array(arm.commands))[:, :2], np.array(arm.times) - 50.0
    ramp = int(np.argmax(times > (0.2 if limited else 0.4) - 0.1 / hz))  # A stop begins with the next step.
    assert sent[ramp - 1].min() > 0
    assert (np.diff(sent[ramp - 1 :], axis=0) <= 1e-9).all()
    np.testing.assert_array_equal(sent[-1], 0.0)


@pytest.mark.parametrize("during", ["the last hold", "closing inference", "disconnecting"])
def test_ctrl_c_at_the_end_does_not_keep_the_robot_from_being_let_go(tiny_spec: PolicySpec, during: str) -> None:
    """Pressed once more while it brakes, while inference is closed, or while it is disconnected: all the same nothing is left out or raised."""
    spec, clock, ended = arm_spec(tiny_spec), Clock(), []
    arm = Arm(spec, clock)
    arm.disconnect = lambda: (ended.append("disconnecting"), during == "disconnecting" and _interrupt())
    arm.on_command = lambda count: _interrupt() if during == "the last hold" and clock() > 52.0 else None

    class Closing(After):
        def close(self) -> None:
            ended.append("closing inference")
            if during == "closing inference":
                _interrupt()

    result = drive(
        arm,
        Script(spec, reach(1.9)),
        None,
        LoopConfig(max_steps=20),
        clock=clock,
        sleep=clock.sleep,
        inference=lambda policy, clock: Closing(policy, clock, 0.012),
    )
    assert ended == ["closing inference", "disconnecting"]
    assert result.stopped_by == "steps"
    assert result.message == f"20 steps done; {during} failed (KeyboardInterrupt: )"


def test_a_robot_that_cannot_say_where_it_stands_is_let_go(tiny_spec: PolicySpec) -> None:
    """What it raises is how the run ended, not an exception of the loop's caller."""
    arm, ended = Arm(arm_spec(tiny_spec), Clock()), []
    arm.disconnect = lambda: ended.append(True)

    def present_action() -> list[float]:
        raise OSError("no encoder")

    arm.present_action = present_action
    result = run(arm, Script(arm_spec(tiny_spec), reach(0.1)), LoopConfig())
    assert result.stopped_by == "robot"
    assert "present_action() failed (OSError: no encoder)" in result.message
    assert (ended, arm.commands) == ([True], [])


def test_the_last_commands_come_no_earlier_than_theirs_is_due(tiny_spec: PolicySpec) -> None:
    """A run that ends with a command brakes from the next period on, not at once."""
    spec = arm_spec(tiny_spec)
    names = ("shoulder", "elbow", "dz", "terminate")
    spec = dataclasses.replace(spec, action=dataclasses.replace(spec.action, names=names))
    arm = Arm(spec, Clock())
    chunk = reach(1.9)(1)
    chunk[:, 3] = [0, 0, 0, 0, 1, 1]
    result = run(arm, Script(spec, lambda call: chunk), LoopConfig(replan_steps=6))
    assert result.stopped_by == "terminate"
    np.testing.assert_allclose(np.diff(arm.times), 1 / arm.command_rate_hz, atol=1e-9)
    assert np.ptp(np.array(arm.commands)[-2:, 0]) < 1e-9


@pytest.mark.parametrize("hz", [200.0, 1000.0])
def test_nothing_is_sent_of_an_action_that_leads_to_hold(tiny_spec: PolicySpec, hz: float) -> None:
    """One that the policy is unsure of: neither where its chunk comes in the middle of a step, nor on the way to the step for which it is due."""
    spec = arm_spec(tiny_spec, limited=False)
    arm = Arm(spec, Clock(), hz)
    policy = Script(spec, lambda call: reach(0.9 if call == 4 else 0.1)(call), lambda call: 0.2 if call == 4 else 1.0)
    config = LoopConfig(max_steps=30, unsure="hold", least_confidence=0.5, schedule=ScheduleConfig(blend_steps=0))
    result = run(arm, policy, config)
    assert result.stopped_by == "steps"
    assert result.statistics.causes["policy unsure"] == 1
    assert np.array(arm.commands)[:, 0].max() == pytest.approx(0.1)


@pytest.mark.parametrize("hz", [200.0, 1000.0])
def test_the_robots_own_emergency_stop_does_not_wait_for_the_next_step(tiny_spec: PolicySpec, hz: float) -> None:
    """It is told with the next command, once."""
    clock, buttons, told = Clock(), StopButtons(), []
    arm = Arm(arm_spec(tiny_spec), clock, hz)
    arm.emergency_stop = lambda: told.append(clock())
    arm.on_command = lambda count: buttons.emergency_stop() if clock() >= 50.63 else None
    result = run(arm, Script(arm_spec(tiny_spec), reach(1.9)), LoopConfig(max_steps=100), buttons=buttons)
    assert result.stopped_by == "emergency"
    np.testing.assert_allclose(told, 50.63, atol=2.1 / hz)
    assert len(told) == 1


def test_the_age_of_actions_is_measured_at_every_step(tiny_spec: PolicySpec) -> None:
    """Also where a step's first command is sent before the step is judged."""
    spec = arm_spec(tiny_spec, limited=False)
    counted = run(Arm(spec, Clock(), 1000.0), Script(spec, reach(0.5)), LoopConfig(max_steps=30)).statistics
    assert len(counted.ages_s) == counted.state_ticks["RUN"] == 29
    assert set(np.round(counted.ages_s.after(0), 9)) == {0.1, 0.2, 0.3}


def test_no_wake_up_is_counted_as_early(tiny_spec: PolicySpec) -> None:
    """Where the clock goes back while the loop sleeps, it is not known how late it is."""
    spec, clock = arm_spec(tiny_spec, limited=False), Clock()
    sleep, jumps = clock.sleep, iter([-0.01])

    def sleep_through_a_jump(seconds: float) -> None:
        sleep(seconds)
        clock.now += next(jumps, 0.0) if clock.now > 52.5 else 0.0

    clock.sleep = sleep_through_a_jump
    result = run(Arm(spec, clock, 50.0), Script(spec, reach(0.5)), LoopConfig(max_steps=30))
    assert min(result.statistics.lateness_s) > -1e-9


@pytest.mark.parametrize("hz", [10.0, 200.0, 1000.0])
def test_a_chunk_that_comes_while_it_holds_loses_no_action(tiny_spec: PolicySpec, hz: float) -> None:
    """Open loop, three actions of a chunk and then a pause in HOLD: the next chunk comes in the middle of a step, and its first action is for the next."""
    spec = arm_spec(tiny_spec, limited=False)
    arm = Arm(spec, Clock(), hz)
    config = LoopConfig(max_steps=60, schedule=ScheduleConfig(rule="open"), failsafe=FailsafeConfig(good_chunks=1))
    counted = run(arm, Script(spec, reach(0.3)), config).statistics
    assert counted.state_ticks == {"HOLD": 15, "RUN": 45}
    assert sum(command[2] for command in arm.commands) == pytest.approx(0.45)


@pytest.mark.parametrize("error", [OSError("busy"), KeyboardInterrupt()], ids=["refused", "interrupted"])
@pytest.mark.parametrize("hz", [200.0, 1000.0])
def test_after_a_command_that_did_not_arrive_the_next_goes_on_from_the_one_before(
    tiny_spec: PolicySpec, hz: float, error: BaseException
) -> None:
    """The limits hold from one command that the robot has to the next one that it has."""
    spec = arm_spec(tiny_spec)
    for refused in range(30, 230, 20):
        arm, failures = Arm(spec, Clock(), hz), [error]

        def on_command(count: int, arm: Arm = arm, failures: list[BaseException] = failures, refused: int = refused) -> None:
            if count == refused and failures:
                del arm.commands[-1], arm.times[-1]
                raise failures.pop()

        arm.on_command = on_command
        result = run(arm, Script(spec, reach(1.9)), LoopConfig(max_steps=60))
        assert result.stopped_by in ("robot", "interrupted")
        places = np.array(arm.commands)[:, 0]
        for order, most in ((1, MOTION.velocity), (2, MOTION.acceleration), (3, MOTION.jerk)):
            assert most is not None
            assert np.abs(np.diff(np.concatenate([np.full(3, 0.5), places]), order)).max() <= most / hz**order + 1e-12


@pytest.mark.parametrize("early", [0, 1, 2])
def test_what_has_outlived_its_time_is_not_sent_however_long_it_slept(tiny_spec: PolicySpec, early: int) -> None:
    """Five seconds between two ticks, at a step's edge too, where the command of the next step is made before: that is no action of the policy any more."""
    spec, clock = arm_spec(tiny_spec, limited=False), Clock()
    sleep, sleeps = clock.sleep, iter(range(10_000))

    def oversleep(seconds: float) -> None:
        sleep(seconds)
        if next(sleeps) == 800 - early:
            clock.now += 5.0

    clock.sleep = oversleep
    result = run(Arm(spec, clock, 1000.0), Script(spec, reach(0.5)), LoopConfig(max_steps=20))
    assert max(result.statistics.ages_s) < 0.6


@pytest.mark.parametrize("hz", [10.0, 1000.0])
def test_a_second_ctrl_c_ends_the_run_at_once_where_the_first_was_a_button(tiny_spec: PolicySpec, hz: float) -> None:
    """As in `actlet run`."""
    spec, buttons = arm_spec(tiny_spec, limited=False), StopButtons()
    arm = Arm(spec, Clock(), hz)
    presses = {int(hz): buttons.stop, int(1.2 * hz): _interrupt}
    arm.on_command = lambda count: presses.get(count, lambda: None)()
    result = run(arm, Script(spec, reach(0.5)), LoopConfig(failsafe=FailsafeConfig(ramp_s=3.0)), buttons=buttons)
    assert result.stopped_by == "interrupted"
    assert len(arm.commands) == int(1.2 * hz) + 1  # It is told to stand still once more.
