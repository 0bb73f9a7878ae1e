"""The `actlet` command: one verb a stage. Stages are reached by name, so that `actlet --help` imports none of them.

Exit codes: 0 done, 1 an error of actlet's own, 2 the caller can mend it (the message says how), 130 interrupted, 141 nobody reads what is printed any more
(as of a program that SIGPIPE ended: `actlet replay … | head`).
"""

from __future__ import annotations

import argparse
import importlib
import os
import select
import sys
from collections.abc import Callable, Sequence
from typing import Any

from actlet import __version__
from actlet.errors import ActletError, CallerError

__all__ = ["VERBS", "main"]

# verb -> (module with `add_arguments(parser)` and `run(arguments) -> int`, one line of help). The order is the chain's.
VERBS: dict[str, tuple[str, str]] = {
    "demo": ("benchmarks.demo", "run the whole chain on the simulated table and write report.html"),
    "collect": ("episodes.collect", "record demonstrations of a scripted expert as a LeRobotDataset"),
    "teach": ("distill.teach", "train an RT-2-style teacher: vision + language model that emits action tokens"),
    "label": ("distill.label", "write a teacher's answers for every frame of a dataset, with any number of processes"),
    "distill": ("distill.train_command", "train a small student on demonstrations and on a teacher's answers"),
    "export": ("export.to_bundle", "turn a student, an ACT checkpoint or a policy of your own into a bundle that needs no torch"),
    "quantize": ("quantize.quantize_command", "turn a float bundle into a smaller or faster one: int8, int4, both, float16, float8"),
    "certify": (
        "quantize.certify_command",
        "show what a smaller bundle costs in behaviour, on paired episodes, and write it into the bundle",
    ),
    "verify": ("quantize.verify_command", "run a certified bundle again, from the bundle alone"),
    "engine": ("export.tensorrt_engine", "build a bundle's TensorRT engine, on the device that will run it"),
    "sign": ("runtime.sign_command", "sign a bundle, so that robots open what you stand for and nothing else"),
    "run": ("runtime.run", "drive a robot, or the simulated arm, with a bundle"),
    "replay": ("runtime.replay", "step through a recorded run, draw it, ask another policy, make a dataset of it"),
    "serve": ("runtime.serve", "answer many robots over the network with one policy, on openpi's websocket"),
    "bench": ("benchmarks.bench", "measure success, latency and size of policies, and write the report"),
    "doctor": ("benchmarks.doctor", "say what this machine has, what is missing, and whether a bundle is sound"),
}

# What a verb needs of stages that its own may not import: verb -> {name in its arguments: "module:function"}.
LENT: dict[str, dict[str, str]] = {
    "distill": {"size_within_budget": "benchmarks.student_latency:size_within_budget"},
    "replay": {"draw": "benchmarks.replay_plot:draw_replay", "write_dataset": "episodes.recorded_runs:write_recorded"},
    "certify": {"describe_machine": "benchmarks.machine:describe_machine"},
}

EPILOG = """\
examples:
  actlet demo                                          everything, in about half an hour
  actlet collect --suite tabletop --episodes 300 --out data/table
  actlet distill --data data/table --out checkpoints/student
  actlet export checkpoints/student --out bundles/float
  actlet quantize bundles/float --precision int8 --data data/table --out bundles/int8
  actlet certify bundles/int8 --parent bundles/float
  actlet run bundles/int8 --task put --seed 7
"""


def _by_name(place: str) -> Callable[..., Any]:
    """The function of a "module:function", imported when it is called."""

    def call(*arguments: Any, **options: Any) -> Any:
        module, _, function = place.partition(":")
        return getattr(importlib.import_module(module), function)(*arguments, **options)

    return call


def _parser(verb: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="actlet",
        description="From a slow vision-language-action teacher to a small policy that runs on the robot.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"actlet {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="verb", required=True)
    for name, (module, help_line) in VERBS.items():
        sub = verbs.add_parser(
            name,
            help=help_line,
            description=help_line[0].upper() + help_line[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == verb:
            stage = importlib.import_module(module)
            stage.add_arguments(sub)
            sub.set_defaults(run=stage.run, **{key: _by_name(place) for key, place in LENT.get(name, {}).items()})
    return parser


def _nobody_reads() -> bool:
    """Whether stdout is a pipe whose other end is closed; what would still be written to it is then dropped."""
    try:
        stdout, poll = sys.stdout.fileno(), select.poll()
    except (AttributeError, OSError):  # There is no poll, or stdout is no file.
        return False
    poll.register(stdout, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)  # Else the interpreter tries again at its end, and complains.
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    verb = next((word for word in argv if not word.startswith("-")), None)
    try:
        arguments = _parser(verb if verb in VERBS else None).parse_args(argv)
        code = int(arguments.run(arguments))
        sys.stdout.flush()
        return code
    except CallerError as error:
        print(f"actlet {verb}: {error}", file=sys.stderr)
        return 2
    except ActletError as error:
        print(f"actlet {verb}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        return 141
    except KeyboardInterrupt:
        print(f"\nactlet {verb}: interrupted; nothing half-written was kept, run the same command to go on.", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        root = (error.name or "").split(".")[0]
        if root in {"actlet", "episodes", "distill", "export", "quantize", "runtime", "benchmarks"}:
            raise
        print(f"actlet {verb}: the package {root!r} is not installed. Run: pip install 'actlet[all]'", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
