"""The verb `sign`: make a key, and sign bundles with it."""

from __future__ import annotations

import argparse
from pathlib import Path

from actlet.errors import CallerError
from runtime.bundle import load_bundle
from runtime.signature import TRUSTED_KEYS_VARIABLE, make_key, sign_bundle

__all__ = ["add_arguments", "run"]

EPILOG = f"""\
examples:
  actlet sign --new-key keys/lab                       keys/lab.pem (keep it secret) and keys/lab.pub.pem (for the robots)
  actlet sign bundles/int8 --key keys/lab.pem
  actlet run bundles/int8 --trusted-keys keys/lab.pub.pem
  {TRUSTED_KEYS_VARIABLE}=/etc/actlet/keys actlet run bundles/int8    every *.pub.pem of the folder is trusted

A bundle that is certified is another bundle: sign it afterwards.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb `sign`."""
    parser.epilog = EPILOG
    parser.add_argument("bundle", type=Path, nargs="?", help="the bundle to sign")
    parser.add_argument("--key", type=Path, help="the private key's file")
    parser.add_argument("--new-key", type=Path, metavar="NAME", help="make NAME.pem and NAME.pub.pem")


def run(arguments: argparse.Namespace) -> int:
    """The verb `sign`."""
    if arguments.new_key is None and (arguments.bundle is None or arguments.key is None):
        raise CallerError("nothing to do: give a bundle and --key, or --new-key.")
    key = arguments.key
    if arguments.new_key is not None:
        made, public = make_key(arguments.new_key)
        print(f"{made} signs: keep it secret. {public} is for the robots.")
        key = key or made
    if arguments.bundle is not None:
        bundle = load_bundle(arguments.bundle)
        print(f"bundle {bundle.hash[:12]} signed: {sign_bundle(arguments.bundle, key)}")
    return 0
