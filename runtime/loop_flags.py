"""The flags of `actlet run` that say how the control loop runs, and the `LoopConfig` that they make."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable

from actlet.errors import CallerError
from runtime.chunk_schedule import RULES, ScheduleConfig
from runtime.failsafe import FailsafeConfig
from runtime.loop_config import LoopConfig

__all__ = ["add_loop_flags", "cloud_of", "loop_config"]

_DEFAULT = LoopConfig()
_SAFE = FailsafeConfig()
# Flags, whether a value fits, and what is expected: refused by the flag's own name, before a configuration is made of them.
_RANGES: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (("steps", "replan_steps", "time_to_live_steps", "good_chunks"), lambda count: count >= 1, "1 or more"),
    (("rate_hz", "command_rate_hz", "max_frame_age_s"), lambda value: 0 < value < math.inf, "a number above 0"),
    (("hold_s", "wait_s", "ramp_s"), lambda time_s: 0 <= time_s < math.inf, "seconds, 0 or more"),
    (("least_confidence",), lambda share: 0 <= share <= 1, "0 .. 1"),
)


def add_loop_flags(parser: argparse.ArgumentParser) -> None:
    """Rates, schedule, confidence and failsafe, in groups of their own."""
    pace = parser.add_argument_group("pace")
    pace.add_argument("--steps", type=int, help="stop after this many control steps (default: when the robot is done)")
    pace.add_argument(
        "--rate-hz", type=float, help="control steps in a second (default: the bundle's; others slow down or speed up motion)"
    )
    pace.add_argument(
        "--command-rate-hz", type=float, help="commands in a second, made of the steps in between (default: the robot's, or one a step)"
    )
    pace.add_argument(
        "--interpolation",
        choices=("linear", "cubic"),
        default=_DEFAULT.interpolation,
        help="how positions and velocities get from one step to the next, where there are more commands (default: %(default)s)",
    )
    chunks = parser.add_argument_group("chunks")
    chunks.add_argument(
        "--schedule",
        choices=RULES,
        default=_DEFAULT.schedule.rule,
        help="which chunk is used: the newest at once; receding, after its steps; the mean of all (ensemble, ACT); mixed in a queue (LeRobot); open loop (openpi) "
        "(default: %(default)s)",
    )
    chunks.add_argument(
        "--blend-steps",
        type=int,
        default=_DEFAULT.schedule.blend_steps,
        help="most steps of cross-fade between chunks that follow each other slowly (default: %(default)s)",
    )
    chunks.add_argument(
        "--replan-steps", type=int, help="ask again so many steps after the question before (default: the bundle's execute_steps)"
    )
    chunks.add_argument(
        "--time-to-live-steps", type=int, help="no action is sent so many steps after what it was decided on (default: the chunk's length)"
    )
    unsure = parser.add_argument_group("confidence")
    unsure.add_argument(
        "--least-confidence",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="in 0 .. 1; an action below it counts as unsure (default: none does)",
    )
    unsure.add_argument(
        "--when-unsure",
        default="slow",
        metavar="slow|hold|URL",
        help="move half as far, hold while it lasts, or ask the policy of that URL, edge first and cloud when unsure (default: slow)",
    )
    safe = parser.add_argument_group("failsafe (docs/runtime.md)")
    safe.add_argument(
        "--hold-s", type=float, default=_SAFE.hold_s, help="how long trouble is borne in HOLD before the run ends (default: %(default)s)"
    )
    safe.add_argument(
        "--wait-s", type=float, default=_SAFE.wait_s, help="how long good chunks are awaited without trouble (default: %(default)s)"
    )
    safe.add_argument(
        "--ramp-s", type=float, default=_SAFE.ramp_s, help="time in which what moves is brought to rest (default: %(default)s)"
    )
    safe.add_argument(
        "--max-frame-age-s",
        type=float,
        default=_SAFE.max_frame_age_s,
        help="oldest observation that the policy is shown (default: %(default)s)",
    )
    safe.add_argument(
        "--good-chunks", type=int, default=_SAFE.good_chunks, help="usable chunks in a row before it runs again (default: %(default)s)"
    )
    safe.add_argument("--no-safe-pose", action="store_true", help="stay where it comes to rest, also if the robot knows a safe pose")


def cloud_of(arguments: argparse.Namespace) -> str | None:
    """The policy that is asked when the robot's own is unsure, if one is named."""
    return arguments.when_unsure if "://" in arguments.when_unsure else None


def loop_config(arguments: argparse.Namespace) -> LoopConfig:
    """What the flags say; `run_policy` adds where the policy runs and whether the clock is kept.

    Raises:
        CallerError: They contradict each other, or are out of range.
    """
    for names, fits, expected in _RANGES:
        for name in names:
            if (value := getattr(arguments, name)) is not None and not fits(value):
                raise CallerError(f"--{name.replace('_', '-')} {value}: expected {expected}.")
    cloud = cloud_of(arguments)
    if cloud is None and arguments.when_unsure not in ("slow", "hold"):
        raise CallerError(f"--when-unsure {arguments.when_unsure!r}: expected slow, hold, or the URL of a policy as in ws://10.0.0.2:8000.")
    if (cloud is not None or arguments.when_unsure == "hold") and not arguments.least_confidence:
        raise CallerError(
            f"--when-unsure {arguments.when_unsure}: says what to do, but not when: add --least-confidence, as in --least-confidence 0.6."
        )
    failsafe = dataclasses.replace(
        _SAFE,
        hold_s=arguments.hold_s,
        wait_s=arguments.wait_s,
        ramp_s=arguments.ramp_s,
        max_frame_age_s=arguments.max_frame_age_s,
        good_chunks=arguments.good_chunks,
        safe_pose_s=None if arguments.no_safe_pose else _SAFE.safe_pose_s,
    )
    return LoopConfig(
        max_steps=arguments.steps,
        rate_hz=arguments.rate_hz,
        command_rate_hz=arguments.command_rate_hz,
        interpolation=arguments.interpolation,
        schedule=ScheduleConfig(rule=arguments.schedule, blend_steps=arguments.blend_steps),
        replan_steps=1 if arguments.schedule == "ensemble" and arguments.replan_steps is None else arguments.replan_steps,
        time_to_live_steps=arguments.time_to_live_steps,
        unsure="hold" if arguments.when_unsure == "hold" else "slow",
        least_confidence=arguments.least_confidence,
        failsafe=failsafe,
    )
