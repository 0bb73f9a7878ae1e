"""The options of `actlet distill` that say what a student is taught: see `distill.targets` and `distill.sampled_teacher`."""

from __future__ import annotations

import argparse
from typing import Any, get_args

from distill.train_config import Target, TrainConfig

__all__ = ["add_target_arguments", "target_settings"]

_NAMES = ("sigma", "teacher_weight", "teacher_sigma", "flag_weight", "samples", "cut_off_share")


def add_target_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    defaults = TrainConfig()
    parser.add_argument(
        "--teacher-target",
        dest="target_of_teacher",
        choices=get_args(Target),
        default=defaults.target,
        help="learn the teacher's distribution, its most probable bin, or its expected action (default: %(default)s)",
    )
    parser.add_argument(
        "--sigma", type=float, default=defaults.sigma, help="width of the label around a bin, in bins; 0 for none (default: %(default)s)"
    )
    parser.add_argument(
        "--teacher-weight", type=float, default=defaults.teacher_weight, help="the teacher's share on demonstrations (default: %(default)s)"
    )
    parser.add_argument(
        "--teacher-sigma",
        type=float,
        default=defaults.teacher_sigma,
        help="smooths the teacher's distribution, bins (default: %(default)s)",
    )
    parser.add_argument(
        "--flag-weight",
        type=float,
        default=defaults.flag_weight,
        help="how often a flag counts in the steps around its change (default: %(default)s)",
    )
    parser.add_argument(
        "--samples", type=int, default=defaults.samples, help="for a teacher that draws its actions: so many for a frame, such as 8"
    )
    parser.add_argument(
        "--cut-off-share",
        type=float,
        default=defaults.cut_off_share,
        help="share of a dimension's actions that may lie outside the teacher's bins, 1 for any ranges (default: %(default)s)",
    )
    parser.add_argument(
        "--mode-reach",
        type=int,
        default=defaults.architecture.mode_reach,
        help="decode by expectation over so many bins around the likeliest, for a teacher with several ways to go; 0: all (default: %(default)s)",
    )


def target_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Fields of `TrainConfig`; `--mode-reach` is one of its architecture's."""
    return {"target": arguments.target_of_teacher, **{name: getattr(arguments, name) for name in _NAMES}}
