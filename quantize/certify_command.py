"""The verb `certify`: run a bundle beside its parent, and put what came of it into the bundle."""

from __future__ import annotations

import argparse

from quantize.certificate import CertificateConfig, certificate_lines, certify

__all__ = ["add_arguments", "run"]

EPILOG = """\
The verdict is non-inferior when the 95 % interval of the difference of success, on paired episodes, lies above minus the margin.
What was run is kept until the certificate stands: the same command goes on where it was stopped.

examples:
  actlet certify bundles/int8 --parent bundles/float
  actlet certify bundles/int8 --parent bundles/float --episodes 500 --margin 0.02 --data data/table
  actlet certify bundles/int8 --parent bundles/float --suite none --data data/recorded      no simulator: recorded episodes alone
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb `certify`."""
    defaults = CertificateConfig()
    parser.epilog = EPILOG
    parser.add_argument("bundle", help="the smaller bundle, which gets the certificate")
    parser.add_argument("--parent", required=True, help="the bundle that it was quantized from")
    parser.add_argument(
        "--suite", default=defaults.suite, help="where both drive; 'none' for recorded episodes alone (default: %(default)s)"
    )
    parser.add_argument("--data", help="a LeRobotDataset folder: what can be said of recorded episodes")
    parser.add_argument("--episodes", type=int, default=defaults.episodes, help="paired episodes (default: %(default)s)")
    parser.add_argument(
        "--margin", type=float, default=defaults.margin, help="loss of success that would still be taken (default: %(default)s)"
    )
    parser.add_argument(
        "--delays", type=int, nargs="*", default=list(defaults.delays), help="steps by which answers come late (default: 1 2)"
    )
    parser.add_argument("--delay-episodes", type=int, help=f"episodes that are run late as well (default: {defaults.delay_episodes})")
    parser.add_argument("--workers", type=int, help="processes that run episodes (default: one per core)")


def run(arguments: argparse.Namespace) -> int:
    """The verb `certify`."""
    defaults = CertificateConfig()
    config = CertificateConfig(
        suite=None if arguments.suite == "none" else arguments.suite,
        episodes=arguments.episodes,
        margin=arguments.margin,
        delays=tuple(arguments.delays),
        delay_episodes=min(defaults.delay_episodes, arguments.episodes) if arguments.delay_episodes is None else arguments.delay_episodes,
        workers=arguments.workers,
    )
    machine = arguments.describe_machine()
    document = certify(arguments.bundle, arguments.parent, config, data=arguments.data, machine=machine)
    print("\n".join(certificate_lines(document)))
    print(f"certificate written into {arguments.bundle}")
    return 0
