"""The ways in which a network becomes smaller or faster, by name.

Two choices for every node with weights: what its arithmetic is, and how its weights are stored. A precision names a pair of them for
all nodes that are worth it, and both take exceptions, so that int8, int4 and float can be mixed node by node::

                      arithmetic                stored            needs frames    runs on
    int8              int8, ranges calibrated   int8              yes             ONNX Runtime; TensorRT in the dialect "portable"
    int8-dynamic      int8, products alone      int8              no              ONNX Runtime
    int8-weights      float                     int8 in blocks    no              ONNX Runtime
    int4              float                     int4 in blocks    for gptq        ONNX Runtime; TensorRT in the dialect "portable"
    int4-int8         int8, ranges calibrated   int4 in blocks    yes             ONNX Runtime
    float16           float16                   float16           no              both; without such arithmetic it is float32
    float8            float8 (E4M3)             float8            yes             TensorRT; ONNX Runtime shows the rounding, no speed

What each costs and gains is measured, not promised: docs/quantization.md.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import onnx

from actlet.errors import QuantizationError, UnknownNameError
from actlet.manifest import Precision, Runtime
from quantize.dynamic import DynamicConfig, quantize_dynamic, will_be_dynamic
from quantize.frames import Frames
from quantize.graph import Graph
from quantize.int8 import Int8Config, quantize_int8, stacked, will_be_int8
from quantize.weights import WeightConfig, quantize_weights, will_be_packed

__all__ = ["PRECISIONS", "Scheme", "scheme"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheme:
    """One way; see `scheme`."""

    precision: Precision
    int8: Int8Config | None = None
    """What is computed in int8 (or float8) with calibrated ranges."""
    weights: WeightConfig | None = None
    """What is stored in blocks. Its nodes are named as in `quantize.int8.stacked` where there is an `int8`."""
    dynamic: DynamicConfig | None = None
    """What is computed in int8 with ranges found at run time."""

    @property
    def needs_frames(self) -> bool:
        """It looks at recorded inputs."""
        return self.int8 is not None or (self.weights is not None and self.weights.method == "gptq")

    @property
    def made_for(self) -> tuple[Runtime, ...]:
        """The runtimes that take such a file."""
        stored_so = self.int8 is None and self.weights is not None and self.weights.dialect == "portable"
        both = self.precision in ("float16", "float8") or (self.int8 is not None and self.int8.is_portable) or stored_so
        return ("onnxruntime", "tensorrt") if both else ("onnxruntime",)

    def quantize(self, model: onnx.ModelProto, frames: Frames | None = None) -> onnx.ModelProto:
        """The network in this form.

        Args:
            model: policy.onnx of a float bundle.
            frames: Recorded inputs, where `needs_frames`.

        Raises:
            QuantizationError: No frames, nothing to quantize, or the result is not what was asked for.
            UnknownNameError: An exception names a node that does not exist.
        """
        if self.needs_frames and frames is None:
            raise QuantizationError(f"{self.precision} needs recorded frames: pass a dataset (--data data/table).")
        if self.int8 is not None:
            assert frames is not None
            return quantize_int8(model, frames, self.int8, self.weights)
        if self.weights is not None:
            return quantize_weights(model, frames, self.weights)
        if self.dynamic is not None:
            return quantize_dynamic(model, self.dynamic)
        return _halved(model)

    def integer_nodes(self, model: onnx.ModelProto) -> list[str]:
        """Names of the nodes whose arithmetic is to be int8."""
        if self.precision == "float8":
            return []
        if self.int8 is not None:
            return will_be_int8(model, self.int8)
        return will_be_dynamic(model, self.dynamic) if self.dynamic is not None else []

    def asked(self, model: onnx.ModelProto) -> dict[str, str]:
        """Node -> what its weights are to be stored as, of those that change."""
        if self.precision == "float16":
            return {node.name: "float16" for node in Graph(model).weight_nodes()}
        names: dict[str, str] = {}
        if self.int8 is not None:
            names |= dict.fromkeys(will_be_int8(model, self.int8), "float8" if self.precision == "float8" else "int8")
        if self.weights is not None:
            before = stacked(model) if self.int8 is not None else model
            names |= dict.fromkeys(will_be_packed(before, self.weights), f"int{self.weights.bits}")
        if self.dynamic is not None:
            names |= dict.fromkeys(will_be_dynamic(model, self.dynamic), "int8")
        return names


# Precision -> the parts of its scheme, and their defaults.
_PARTS: dict[str, dict[str, Any]] = {
    "int8": {"int8": Int8Config()},
    "int8-dynamic": {"dynamic": DynamicConfig()},
    "int8-weights": {"weights": WeightConfig(bits=8, block=64)},
    "int4": {"weights": WeightConfig()},
    "int4-int8": {"int8": Int8Config(), "weights": WeightConfig(block=64, method="gptq")},
    "float16": {},
    # Its error is a share of the value, so clipping gains nothing.
    "float8": {"int8": Int8Config(dialect="float8", rule="minmax")},
}
PRECISIONS = tuple(_PARTS)
"""What `scheme` takes."""
# A setting's name -> the parts that have it.
_SETTINGS = {
    "dialect": ("int8", "weights"),
    "rule": ("int8",),
    "weight_levels": ("int8", "dynamic"),
    "block": ("weights",),
    "method": ("weights",),
    "symmetric": ("weights",),
}


def scheme(precision: str, *, exclude: tuple[str, ...] = (), keep: tuple[str, ...] = (), **settings: Any) -> Scheme:
    """A precision with settings of its own.

    Args:
        precision: One of `PRECISIONS`.
        exclude: Nodes whose arithmetic stays float.
        keep: Nodes whose weights are stored as their arithmetic has them, not in blocks.
        settings: Of `Int8Config` (dialect, rule, weight_levels) and `WeightConfig` (block, method, symmetric, dialect). With method="hqq" and without
            `symmetric` the grid is not symmetric.

    Raises:
        UnknownNameError: There is no such precision.
        QuantizationError: A setting that this precision does not have, or a value that it cannot have.
    """
    if precision not in _PARTS:
        raise UnknownNameError("precision", precision, list(PRECISIONS))
    parts = dict(_PARTS[precision])
    if settings.get("method") == "hqq":
        settings.setdefault("symmetric", False)
    changes: dict[str, dict[str, Any]] = {part: {} for part in parts}
    for name, value in settings.items():
        takers = [part for part in _SETTINGS[name] if part in parts]
        fixed = ("rule", "weight_levels") if precision == "float8" else ()
        if not takers or name in fixed or (name == "dialect" and precision not in ("int8", "int4")):
            raise QuantizationError(f"{name.replace('_', ' ')} {value!r} has no meaning for {precision}: leave it out.")
        for part in takers:
            changes[part][name] = value
    for names, takers in ((exclude, ("int8", "dynamic")), (keep, ("weights",))):
        # Where all arithmetic is float anyway, what is excluded keeps its weights.
        takers = [part for part in takers if part in parts] or ([*parts] if names is exclude else [])
        if names and not takers:
            raise QuantizationError(
                f"nodes {list(names)} cannot be left out of {precision}: it has no exceptions of this kind. Leave them out."
            )
        for part in takers:
            changes[part]["exclude"] = (*changes[part].get("exclude", ()), *names)
    parts = {part: dataclasses.replace(settled, **changes[part]) for part, settled in parts.items()}
    return Scheme(precision=precision, **parts)  # type: ignore[arg-type]  # of PRECISIONS, which is of the manifest's


def _halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """In float16 inside, with inputs and outputs as they are."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    copy = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    return Graph(convert_float_to_float16(copy, keep_io_types=True)).finish()  # Its casts are not in order.
