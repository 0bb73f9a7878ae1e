"""The verb `quantize`: a float bundle into a smaller or faster one, by a precision's name or by a search."""

from __future__ import annotations

import argparse
from typing import Any

from actlet.errors import QuantizationError
from quantize.block_rounding import BLOCKS
from quantize.int8 import Int8Config
from quantize.quantize_bundle import quantize_bundle
from quantize.schemes import PRECISIONS, scheme
from quantize.search import SearchConfig, search

__all__ = ["add_arguments", "run"]

EPILOG = """\
precisions (arithmetic, and how weights are stored):
  int8          int8 with calibrated ranges: fastest         int8-dynamic  products in int8 with ranges found at run time
  int4          float, weights of 4 bits: smallest           int8-weights  float, weights of 8 bits: small, hardly an error
  int4-int8     int8, weights of 4 bits: small and fast      float16, float8   for GPUs that compute in them

examples:
  actlet quantize bundles/float --precision int8 --data data/table --out bundles/int8
  actlet quantize bundles/float --precision int8 --dialect portable --data data/table --out bundles/int8-tensorrt
  actlet quantize bundles/float --precision int4 --method gptq --block 64 --data data/table --out bundles/int4
  actlet quantize bundles/float --precision int4-int8 --data data/table --out bundles/small-and-fast
  actlet quantize bundles/float --precision int8 --exclude queries --exclude mix.2 --data data/table --out bundles/int8
  actlet quantize bundles/float --search --suite tabletop --data data/table --out bundles/found
  actlet quantize bundles/float --search --budget-mb 1.5 --budget-ms 2 --data data/table --out bundles/found
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb `quantize`."""
    parser.epilog = EPILOG
    parser.add_argument("bundle", help="a float bundle, as `actlet export` makes it; it stays as it is")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--precision", choices=PRECISIONS, help="see below")
    how.add_argument(
        "--search",
        action="store_true",
        help="find which layers may be float, int8 or int4, judged by paired episodes; goes on where it was stopped",
    )
    parser.add_argument("--out", required=True, help="the bundle folder to make")
    parser.add_argument("--data", help="a LeRobotDataset folder: calibrates, and judges")
    parser.add_argument("--dialect", choices=("cpu", "portable"), help="int8 or int4 for ONNX Runtime (default) or also for TensorRT")
    parser.add_argument(
        "--rule", choices=("minmax", "percentile", "mse"), help=f"int8: how ranges are chosen (default: {Int8Config().rule})"
    )
    parser.add_argument(
        "--weight-levels",
        type=int,
        help=f"int8: largest integer of a weight (default: {Int8Config().weight_levels}, safe without VNNI; up to 127)",
    )
    parser.add_argument(
        "--method",
        choices=("rtn", "hqq", "gptq"),
        help="weights in blocks: to the nearest, HQQ, or GPTQ, which looks at recorded frames (default: rtn; int4-int8: gptq)",
    )
    parser.add_argument("--block", type=int, choices=BLOCKS, help="weights that share a scale (default: 32; int4-int8, int8-weights: 64)")
    parser.add_argument(
        "--asymmetric", action="store_true", help="blocks have an offset beside their scale: finer, and 16 bits a block larger"
    )
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="NODE", help="a node whose arithmetic stays float; may be repeated"
    )
    parser.add_argument(
        "--keep", action="append", default=[], metavar="NODE", help="a node whose weights are not stored in blocks; may be repeated"
    )
    limits = SearchConfig()
    for name, kind, what in (
        ("suite", str, f"where proposals drive (default: {limits.suite})"),
        ("budget-mb", float, "largest policy.onnx and condition.onnx together"),
        ("budget-ms", float, "longest decision: median CPU time, one thread, this machine"),
        ("margin", float, f"loss of success that would be taken (default: {limits.margin})"),
        ("episodes", int, f"most tuning episodes of a proposal (default: {limits.episodes})"),
        ("workers", int, "processes that run episodes (default: one per core)"),
    ):
        parser.add_argument(f"--{name}", type=kind, help=f"search: {what}")
    parser.add_argument("--frames", type=int, default=128, help="frames to calibrate with, and as many to judge by (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="decides which frames (default: %(default)s)")
    parser.add_argument(
        "--allow-slower", action="store_true", help="write an int8 bundle that gains nothing on this machine: it is for another one"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a bundle that exists")


def run(arguments: argparse.Namespace) -> int:
    """The verb `quantize`."""
    limits = {
        name: value
        for name in ("suite", "budget_mb", "budget_ms", "margin", "episodes", "workers")
        if (value := getattr(arguments, name)) is not None
    }
    if arguments.search:
        return _search(arguments, limits)
    if limits:
        raise QuantizationError(f"--{' --'.join(limits).replace('_', '-')}: of the search alone. Leave them out, or pass --search.")
    settings: dict[str, Any] = {
        name: value for name in ("dialect", "rule", "weight_levels", "method", "block") if (value := getattr(arguments, name)) is not None
    }
    if arguments.asymmetric:
        settings["symmetric"] = False
    report = quantize_bundle(
        arguments.bundle,
        arguments.out,
        scheme=scheme(arguments.precision, exclude=tuple(arguments.exclude), keep=tuple(arguments.keep), **settings),
        data=arguments.data,
        calibration_frames=arguments.frames,
        held_out_frames=arguments.frames,
        seed=arguments.seed,
        allow_slower=arguments.allow_slower,
        overwrite=arguments.overwrite,
    )
    print("\n".join(report.lines()))
    return 0


def _search(arguments: argparse.Namespace, limits: dict[str, Any]) -> int:
    given = ["exclude", "keep", "dialect", "rule", "weight_levels", "method", "block", "asymmetric", "allow_slower"]
    chosen = [name.replace("_", "-") for name in given if getattr(arguments, name) not in (None, [], False)]
    if chosen:
        raise QuantizationError(f"--{' --'.join(chosen)}: the search chooses by itself. Leave them out.")
    if arguments.data is None:
        raise QuantizationError("the search needs recorded frames to calibrate with: pass a dataset (--data data/table).")
    config = SearchConfig(frames=arguments.frames, **limits)
    report = search(arguments.bundle, arguments.out, arguments.data, config, seed=arguments.seed, overwrite=arguments.overwrite)
    print("\n".join(report.lines()))
    return 0
