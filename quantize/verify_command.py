"""The verb `verify`: run a certified bundle again, from the bundle alone."""

from __future__ import annotations

import argparse

from quantize.certificate import certificate_lines, verify

__all__ = ["add_arguments", "run"]

EPILOG = """\
The bundle drives again on the seeds of its certificate; the outcomes of its parent stand there. Exit code 1 where it is found inferior, or a
verdict of non-inferior no longer holds.

examples:
  actlet verify bundles/int8
  actlet verify bundles/int8 --episodes 60
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb `verify`."""
    parser.epilog = EPILOG
    parser.add_argument("bundle", help="a certified bundle; it is only read")
    parser.add_argument("--episodes", type=int, help="how many of its episodes (default: all)")
    parser.add_argument("--workers", type=int, help="processes that run episodes (default: one per core)")


def run(arguments: argparse.Namespace) -> int:
    """The verb `verify`."""
    document, found = verify(arguments.bundle, workers=arguments.workers, episodes=arguments.episodes)
    print("\n".join(certificate_lines(document)))
    low, high = (100 * end for end in found["difference_ci95"])
    print(
        f"now: {found['verdict'].upper()}, {100 * found['difference']:+.1f} points [{low:+.1f}, {high:+.1f}], success {100 * found['success']:.1f} %; "
        f"{found['same']} of {found['episodes']} episodes ended as they did then"
    )
    # With fewer episodes than then, an interval may well be too wide to say.
    whole = found["episodes"] == document["closed_loop"]["episodes"]
    lost = whole and document["closed_loop"]["verdict"] == "non-inferior" != found["verdict"]
    return 1 if found["verdict"] == "inferior" or lost else 0
