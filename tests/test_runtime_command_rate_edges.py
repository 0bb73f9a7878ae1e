"""What may go wrong beside the commands at a higher rate: stops in the middle of a motion, Ctrl-C at the end, old and unsure actions, counts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from test_runtime_command_rate import Arm, Clock, Script, arm_spec, reach, run

from actlet.specs import ActionSpec, MotionLimits, PolicySpec
from runtime.control_loop import LoopConfig
from runtime.failsafe import StopButtons


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
