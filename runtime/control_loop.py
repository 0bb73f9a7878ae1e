"""The fixed-rate control loop: any `Robot`, any `Policy`, and a command in every period.

One step k of the policy, at the absolute time t0 + k / rate (`runtime.loop_steps`)::

    take       a finished chunk is checked and goes into the schedule
    due        the schedule's action for step k, unless it is older than its time to live
    judge      all that is wrong now -> the failsafe (`runtime.failsafe`) -> RUN, HOLD, RAMP, SAFE_POSE or ESTOP
    limit      the command of that state: finite, inside the limits, no jump (`runtime.limits`)
    send       robot.send_action
    ask        if a new chunk is due and the policy is idle: robot.get_observation(), looked at -> inference (`runtime.conversation`)
    wait       until the next period; periods that are over are skipped and counted, never caught up in a burst

A robot that wants more commands than a policy has steps (`LoopConfig.command_rate_hz`) gets them in the waiting: each is made of the step's plan in
plain floats, with velocity, acceleration and jerk inside `ActionSpec.motion` (`runtime.command_ticks`), a chunk that arrives meanwhile is used from
the next of them on, and an emergency stop too. A policy that is waited for (`inference="inline"`) is asked before its step is judged.

A policy that is told what is on its way (`TimingSpec.committed_steps`) gets the commands that are due until its answer will be there, as far
as the delays of late tell; while an inline policy computes, these are holds. An answer that comes later than that is used all the same, and
counted as misjudged.

HOLD means commanding to stand still, not silence: zero for displacements, the last value for positions and flags. While it lasts, the policy is
asked as often as it answers. From RAMP on it is not asked any more: what moves is brought to rest, the robot goes to its safe pose if it has
one, and the run ends; docs/runtime.md has the table.

No exception leaves the loop: what fails is a cause of the failsafe. Every end has a reason, and the robot is always disconnected. The first
Ctrl-C brings the robot to rest, a second one ends at once. Clock and sleep are injected, so that tests run in virtual time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from actlet.errors import CallerError, SpecError
from actlet.protocols import Policy, Robot
from actlet.specs import require_same
from runtime.command_ticks import CommandTicks
from runtime.failsafe import Failsafe, StopButtons
from runtime.inference import Inference, InlineInference, ThreadInference
from runtime.journal import Journal
from runtime.limits import CommandLimiter
from runtime.loop_config import LoopConfig, LoopResult, StopReason
from runtime.loop_statistics import LoopStatistics
from runtime.loop_steps import INTERRUPTED, LoopSteps, Stop

__all__ = ["LoopConfig", "LoopResult", "StopReason", "drive"]


def drive(
    robot: Robot,
    policy: Policy,
    instruction: str | None = None,
    config: LoopConfig | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    on_step: Callable[[int, LoopStatistics], None] | None = None,
    inference: Callable[[Policy, Callable[[], float]], Inference] | None = None,
    failsafe: Failsafe | None = None,
    buttons: StopButtons | None = None,
    journal: Journal | None = None,
) -> LoopResult:
    """Connect, run the loop, disconnect.

    Args:
        robot: What moves. Its specifications must be the policy's. Optional attributes: `instruction` (used when no instruction is
            given), `done` (True ends the run), `safe_action()` (an action toward a safe pose, None when it is there),
            `emergency_stop()`, `virtual_time` (True: frames are drawn, so the same pixels again are no frozen camera), `command_rate_hz` (it wants
            so many commands in a second, each float64 (A,); displacements are shares that it adds up), and `present_action()`, float (A,), the
            action that leaves it where it is, which limits of the speed of positions need.
        policy: What decides.
        instruction: What to do.
        config: How to run.
        clock: Monotonic seconds.
        sleep: Waits that many seconds.
        on_step: Called after every step, as for a status line. It must be quick.
        inference: Makes where the policy runs, of policy and clock; None for what `config.inference` names.
        failsafe: One that is kept from run to run, so that a robot that was stopped moves again only after its `reset()`; it has its own
            configuration. None for a new one of `config.failsafe`.
        buttons: What an operator may press meanwhile.
        journal: Is told what happened, as a recorder; it is closed at the end.

    Raises:
        RobotFault: The failsafe is latched; nothing was connected.
        SpecError: Robot, policy and configuration do not fit; found before the robot is connected.
        ActionError: The robot stands outside its limits (it is disconnected again).
        CallerError: No instruction (the robot is disconnected again). Everything that happens later is in the result.
    """
    config = config or LoopConfig()
    require_same(policy.spec.observation, robot.observation_spec, what="the policy's and the robot's observation")
    require_same(policy.spec.action, robot.action_spec, what="the policy's and the robot's action")
    if not math.isclose(policy.spec.timing.rate_hz, robot.rate_hz, rel_tol=1e-3):
        raise SpecError(f"the policy was made for {policy.spec.timing.rate_hz} steps in a second, the robot has {robot.rate_hz}.")
    limiter = CommandLimiter(robot.action_spec, config.max_change)
    _ticks(robot, policy, config, connected=False)
    failsafe = failsafe or Failsafe(config.failsafe)
    failsafe.require_free()
    _prepare(policy, instruction if instruction is not None else getattr(robot, "instruction", None))
    statistics, failures = LoopStatistics(), ""
    steps: LoopSteps | None = None
    running: Inference | None = None
    stop = Stop("interrupted", "interrupted")
    try:
        _connect(robot)
        words = _instruction(robot, instruction)
        ticks = _ticks(robot, policy, config, connected=True)
        try:
            running = (inference or (ThreadInference if config.inference == "thread" else InlineInference))(policy, clock)
        except Exception as error:
            raise Stop("fault", f"inference cannot begin ({_text(error)})") from error
        steps = LoopSteps(
            robot=robot,
            policy=policy,
            inference=running,
            instruction=words,
            config=config,
            limiter=limiter,
            ticks=ticks,
            failsafe=failsafe,
            buttons=buttons or StopButtons(),
            statistics=statistics,
            clock=clock,
            sleep=sleep,
            on_step=on_step,
            journal=journal,
        )
        steps.run()
    except Stop as reason:
        stop = reason
    except KeyboardInterrupt:
        stop = Stop("interrupted", INTERRUPTED)
    finally:
        try:
            if steps is not None:
                statistics.ended_s = clock()
                is_over = stop.reason == "done" and getattr(
                    robot, "virtual_time", False
                )  # An episode has no steps after its end; an arm moves on.
                failures += _ending("the last hold", None if is_over else steps.hold_still)
            failures += _ending("closing inference", None if running is None else running.close)
        finally:  # Also if a Ctrl-C comes between two of these.
            failures += _ending("disconnecting", robot.disconnect) + _ending(
                "closing the journal", None if journal is None else journal.close
            )
    return LoopResult(stopped_by=stop.reason, message=f"{stop}{failures}", verdict=failsafe.verdict, statistics=statistics)


def _ticks(robot: Robot, policy: Policy, config: LoopConfig, *, connected: bool) -> CommandTicks | None:
    """What makes the commands between two steps; None where a step's command is sent as it is."""
    spec, wanted = robot.action_spec, getattr(robot, "command_rate_hz", None)
    step_hz = config.rate_hz or policy.spec.timing.rate_hz
    if wanted is not None and config.command_rate_hz is not None and not math.isclose(wanted, config.command_rate_hz, rel_tol=1e-3):
        raise SpecError(
            f"the robot wants {wanted:g} commands in a second, asked for are {config.command_rate_hz:g}: leave it to the robot."
        )
    tick_hz = wanted or config.command_rate_hz
    if tick_hz is None and spec.motion is None:
        return None
    several = tick_hz is not None and not math.isclose(tick_hz, step_hz, rel_tol=1e-3)
    if config.max_change is not None and (several or spec.motion is not None):
        why = "there are more commands than steps" if several else "ActionSpec.motion does so too, over more than one"
        raise SpecError(
            f"max_change limits the change from one step to the next, and {why}: say in the robot's ActionSpec.motion alone how fast "
            "each dimension may move; that is kept at every command."
        )
    displaced = [
        name
        for name, unit, kind, hold in zip(spec.names, spec.units, spec.kinds, spec.hold or (), strict=False)
        if kind == "continuous" and hold == "zero" and not unit.endswith("/s")
    ]
    if wanted is None and several and displaced:
        raise SpecError(
            f"{displaced} are displacements: at {tick_hz:g} commands for {step_hz:g} steps in a second each is a share, which the robot must know. If it adds "
            f"up what it is sent, say so: give the robot the attribute command_rate_hz = {tick_hz:g}."
        )
    present = getattr(robot, "present_action", None)
    start: list[float] | None = None
    if callable(present):  # Before it is connected, somewhere in its range: rates and limits are checked all the same.
        start = _present(present) if connected else list(spec.low)
        if len(start) != spec.dim:
            raise SpecError(f"present_action() of the robot gives {len(start)} numbers, expected {spec.dim}: {spec.names}.")
    return CommandTicks(spec, step_hz=step_hz, tick_hz=tick_hz or step_hz, shape=config.interpolation, start=start)


def _present(present_action: Callable[[], Any]) -> list[float]:
    try:
        return [float(value) for value in present_action()]
    except Exception as error:
        raise Stop("robot", f"it does not say where it stands: present_action() failed ({_text(error)})") from error


def _prepare(policy: Policy, instruction: str | None) -> None:
    """Before anything moves, what the first decision of an instruction needs; some robots know theirs once they are connected."""
    prepare = getattr(policy, "prepare", None)
    if prepare is not None and instruction:
        prepare(instruction)


def _connect(robot: Robot) -> None:
    try:
        robot.connect()
    except Exception as error:
        raise Stop("robot", f"cannot connect ({_text(error)})") from error


def _instruction(robot: Robot, given: str | None) -> str:
    words = given if given is not None else getattr(robot, "instruction", None)
    if not words or not words.strip():
        raise CallerError("no instruction: say what to do, as in --instruction 'put the red block on the plate'.")
    return str(words)


def _ending(what: str, act: Callable[[], None] | None) -> str:
    """One of the last things to do. What fails is told, not raised, and so is a Ctrl-C that cuts it short: what comes after it is done all the same."""
    try:
        if act is not None:
            act()
    except (Exception, KeyboardInterrupt) as error:
        return f"; {what} failed ({_text(error)})"
    return ""


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
