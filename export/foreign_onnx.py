"""Somebody's ONNX policy as the graph of a bundle: what it takes and gives, said in a file beside it.

A bundle's policy takes frames as a camera gives them and a state in physical units, and gives actions in physical units. Others' networks take
pictures that were resized and scaled, states and actions that were normalised, and call them what they like. A mapping says which is which::

    {"timing":  {"rate_hz": 10, "horizon": 16, "execute_steps": 8, "max_delay_steps": 0},
     "images":  {"observation.images.top": {"camera": "front", "layout": "NCHW", "scale": 0.00392156862745098,
                                            "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "size": [96, 96]}},
     "state":   {"name": "observation.state", "mean": [0.1, 0.2], "std": [1.0, 1.0]},
     "actions": {"name": "action", "mean": [0.0, 0.0], "std": [0.05, 0.05]},
     "instruction": null, "confidence": null}

    picture = (resize(frame, size) * scale - mean) / std          state = (x - mean) / std          action = answer * std + mean

A range [low, high] that became -1 .. 1 is mean (low + high) / 2 and std (high - low) / 2. `size` is (height, width), bilinear without antialiasing (as
torch's interpolate); null where frames go in as they are. `state` may be null. `instruction` names an input that takes the vector of actlet's own encoder,
`confidence` an output (1, H); without one, every step has confidence 1. A binary action is 1 above one half. All of it becomes operators of the
graph, so a robot needs no code of the policy's, and nothing can be left out. Shapes that the file computes from other shapes, as torch's older exporter
writes them, are computed here and stored.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from actlet.errors import CheckpointError, SpecError
from actlet.plain import PlainJson
from actlet.specs import PolicySpec, TimingSpec
from actlet.storage import read_json
from distill.text_encoder import EMBEDDING_DIM
from export.stored_shapes import store_shapes
from quantize.graph import Graph
from runtime.network_check import check_network

__all__ = ["ActionMapping", "ForeignMapping", "ImageMapping", "StateMapping", "foreign_graph", "read_foreign_onnx", "read_mapping"]

_PREFIX = "policy/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageMapping(PlainJson):
    """One input that takes a picture."""

    camera: str
    """Whose frames."""
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    size: tuple[int, ...] | None = None
    """(height, width) of the picture, None for the camera's."""

    def __post_init__(self) -> None:
        if len(self.mean) != 3 or len(self.std) != 3 or (self.size is not None and (len(self.size) != 2 or min(self.size) < 1)):
            raise SpecError(
                f"picture of {self.camera!r}: mean {self.mean}, std {self.std}, size {self.size}: expected three, three, and (height, width)."
            )
        _require_scale(f"picture of {self.camera!r}", self.std)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StateMapping(PlainJson):
    """The input that takes the state."""

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        _require_scale(f"state {self.name!r}", self.std)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActionMapping(PlainJson):
    """The output that holds the actions: (1, H, A), (H, A), or (1, A) for one step."""

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        _require_scale(f"actions {self.name!r}", self.std)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForeignMapping(PlainJson):
    """What a network takes and gives; see the module's docstring."""

    timing: TimingSpec
    images: dict[str, ImageMapping]
    """Input -> picture."""
    state: StateMapping | None
    actions: ActionMapping
    instruction: str | None = None
    confidence: str | None = None


def _require_scale(what: str, std: tuple[float, ...]) -> None:
    if not all(np.isfinite(value) and value > 0 for value in std):
        raise SpecError(f"{what}: std {std}, expected positive numbers: a value that never varied has std 1.")


def read_mapping(path: str | Path) -> ForeignMapping:
    """Read a mapping file.

    Raises:
        SpecError: It is missing, no JSON, or says something else than a mapping.
    """
    try:
        document = read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise SpecError(f"{path}: cannot be read as a mapping ({error}); `export.foreign_onnx` shows one.") from error
    return ForeignMapping.from_dict(document, where=str(path))


def read_foreign_onnx(path: str | Path) -> onnx.ModelProto:
    """Read a network, if it is one that a bundle may be made of.

    Raises:
        CheckpointError: The file is missing, its operators do not fit each other, or an input or output has no fixed shape.
        BundleError: It holds what a bundle may not (`runtime.network_check`), such as weights in other files.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give an .onnx file.")
    content = path.read_bytes()
    check_network(content, path.name, stored_shapes=False)
    try:
        model = onnx.load_from_string(content)
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # onnx's errors have no common class below Exception.
        raise CheckpointError(f"{path.name}: not a sound network ({str(error).strip()[:300]}): export it again.") from error
    for value in (*model.graph.input, *model.graph.output):
        sizes = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in value.type.tensor_type.shape.dim]
        if not all(isinstance(size, int) and size > 0 for size in sizes):
            raise CheckpointError(
                f"{path.name}: {value.name!r} has the shape {sizes}, and a robot's network has fixed ones (memory is bound once, and an engine is built for "
                "it): export it with batch 1 and without dynamic axes."
            )
    return model


def foreign_graph(model: onnx.ModelProto, mapping: ForeignMapping, spec: PolicySpec) -> onnx.ModelProto:
    """The network with everything around it that the mapping says, under the names of a bundle's policy.

    Args:
        model: A float network whose inputs and outputs have fixed shapes.
        mapping: What it takes and gives.
        spec: What the robot sees and is told.

    Raises:
        SpecError: The mapping does not fit the network or the specification; names what differs.
        CheckpointError: Its shapes cannot be computed.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    takes = {value.name: value for value in model.graph.input if value.name not in constants}
    gives = {value.name: value for value in model.graph.output}
    _require_names(mapping, set(takes), set(gives), spec)
    read = [mapping.actions.name, *([mapping.confidence] if mapping.confidence is not None else [])]
    for value in (*takes.values(), *(gives[name] for name in read)):
        _require_float(value, "output" if value.name in read else "input")
    shapes = {name: _shape(value) for name, value in (takes | gives).items()}
    graph = Graph(_prefixed(store_shapes(model)))
    inputs = [
        helper.make_tensor_value_info(f"images.{c.name}", TensorProto.UINT8, [1, c.height, c.width, 3]) for c in spec.observation.cameras
    ]
    inputs.append(helper.make_tensor_value_info("state", TensorProto.FLOAT, [1, spec.observation.state_dim]))
    for name, picture in mapping.images.items():
        _add_picture(graph, name, picture, shapes[name], spec)
    if mapping.state is not None:
        _add_state(graph, mapping.state, shapes[mapping.state.name], spec)
    if mapping.instruction is not None:
        _require_shape(mapping.instruction, shapes[mapping.instruction], (1, EMBEDDING_DIM))
        inputs.append(helper.make_tensor_value_info("instruction", TensorProto.FLOAT, [1, EMBEDDING_DIM]))
        graph.add("Identity", ["instruction"], f"{_PREFIX}{mapping.instruction}", name="instruction.as_it_is")
    _add_actions(graph, mapping, shapes, spec, mapping.state is not None)
    steps, dim = spec.timing.horizon, spec.action.dim
    outputs = [
        helper.make_tensor_value_info("actions", TensorProto.FLOAT, [1, steps, dim]),
        helper.make_tensor_value_info("confidence", TensorProto.FLOAT, [1, steps]),
    ]
    return graph.finish(inputs=inputs, outputs=outputs)


def _require_names(mapping: ForeignMapping, takes: set[str], gives: set[str], spec: PolicySpec) -> None:
    named = [*mapping.images, *([mapping.state.name] if mapping.state else []), *([mapping.instruction] if mapping.instruction else [])]
    if sorted(named) != sorted(takes):
        raise SpecError(
            f"the mapping names the inputs {sorted(named)}, but the network takes {sorted(takes)}: name each once, under images, state or instruction."
        )
    wanted = {mapping.actions.name, *([mapping.confidence] if mapping.confidence else [])}
    if not wanted <= gives:
        raise SpecError(f"the mapping names the outputs {sorted(wanted)}, but the network gives {sorted(gives)}: name one of them.")
    cameras = [camera.name for camera in spec.observation.cameras]
    if sorted(picture.camera for picture in mapping.images.values()) != sorted(cameras):
        raise SpecError(
            f"the mapping reads the cameras {sorted(picture.camera for picture in mapping.images.values())}, and the recordings have {sorted(cameras)}: "
            "name each once, and record or choose those that the policy reads."
        )


def _require_float(value: onnx.ValueInfoProto, what: str) -> None:
    kind = value.type.WhichOneof("value")
    got = TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower() if kind == "tensor_type" else str(kind)
    if got != "float":
        raise SpecError(
            f"{what} {value.name!r} is {got}, expected float (32 bits), which the mapping {'reads' if what == 'output' else 'feeds'}: export the network in "
            "float32, or put a Cast there; `actlet quantize` makes it smaller afterwards."
        )


def _prefixed(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which nothing has a name that ours could have."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    for node in graph.node:
        node.input[:] = [f"{_PREFIX}{name}" if name else "" for name in node.input]
        node.output[:] = [f"{_PREFIX}{name}" if name else "" for name in node.output]
        node.name = f"{_PREFIX}{node.name or node.output[0].removeprefix(_PREFIX)}"
    for part in (*graph.initializer, *graph.input, *graph.output):
        part.name = f"{_PREFIX}{part.name}"
    del graph.value_info[:], copy.metadata_props[:]
    graph.doc_string, graph.name = "", "actlet"
    copy.producer_name, copy.producer_version, copy.doc_string = "actlet", "", ""
    return copy


def _add_picture(graph: Graph, name: str, picture: ImageMapping, shape: tuple[int, ...], spec: PolicySpec) -> None:
    camera = next(camera for camera in spec.observation.cameras if camera.name == picture.camera)
    height, width = picture.size or (camera.height, camera.width)
    _require_shape(name, shape, (1, 3, height, width) if picture.layout == "NCHW" else (1, height, width, 3))
    place = f"images.{camera.name}"
    value = graph.add("Cast", [place], f"{place}.float", to=TensorProto.FLOAT)
    value = graph.add("Transpose", [value], f"{place}.channels_first", perm=[0, 3, 1, 2])
    if (height, width) != (camera.height, camera.width):
        sizes = graph.store(f"{place}.size", np.array([1, 3, height, width]))
        value = graph.add("Resize", [value, "", "", sizes], f"{place}.resized", mode="linear", coordinate_transformation_mode="half_pixel")
    column = (1, 3, 1, 1)
    gain = (np.float32(picture.scale) / np.asarray(picture.std, np.float32)).reshape(column)
    offset = (np.asarray(picture.mean, np.float32) / np.asarray(picture.std, np.float32)).reshape(column)
    value = graph.add("Mul", [value, graph.store(f"{place}.gain", gain.astype(np.float32))], f"{place}.scaled")
    last = f"{_PREFIX}{name}"
    value = graph.add(
        "Sub", [value, graph.store(f"{place}.offset", offset.astype(np.float32))], last if picture.layout == "NCHW" else f"{place}.normal"
    )
    if picture.layout == "NHWC":
        graph.add("Transpose", [value], last, perm=[0, 2, 3, 1])


def _add_state(graph: Graph, state: StateMapping, shape: tuple[int, ...], spec: PolicySpec) -> None:
    _require_shape(state.name, shape, (1, spec.observation.state_dim))
    mean, std = (_numbers(f"state {state.name!r}", values, spec.observation.state_names) for values in (state.mean, state.std))
    value = graph.add("Sub", ["state", graph.store("state.mean", mean)], "state.centred")
    graph.add("Div", [value, graph.store("state.std", std)], f"{_PREFIX}{state.name}")


def _add_actions(graph: Graph, mapping: ForeignMapping, shapes: dict[str, tuple[int, ...]], spec: PolicySpec, reads_state: bool) -> None:
    actions, steps, names = mapping.actions, spec.timing.horizon, spec.action.names
    allowed = [(1, steps, len(names)), (steps, len(names)), *([(1, len(names))] if steps == 1 else [])]
    if shapes[actions.name] not in allowed:
        raise SpecError(
            f"output {actions.name!r} has the shape {shapes[actions.name]}, expected one of {allowed}: horizon {steps} of the mapping's timing, "
            f"{len(names)} actions {list(names)} of the recordings."
        )
    mean, std = (_numbers(f"actions {actions.name!r}", values, names) for values in (actions.mean, actions.std))
    shape = graph.store("actions.shape", np.array([1, steps, len(names)]))
    value = graph.add("Reshape", [f"{_PREFIX}{actions.name}", shape], "actions.raw")
    value = graph.add("Mul", [value, graph.store("actions.std", std)], "actions.scaled")
    binary = spec.action.is_binary
    value = graph.add("Add", [value, graph.store("actions.mean", mean)], "actions.physical" if binary.any() else "actions")
    if binary.any():
        above = graph.add("Greater", [value, graph.store("actions.half", np.array(0.5, np.float32))], "actions.above_half")
        flags = graph.add("Cast", [above], "actions.flags", to=TensorProto.FLOAT)
        parts = [
            graph.add("Mul", [source, graph.store(f"actions.is_{kind}", mask.astype(np.float32))], f"actions.{kind}")
            for source, kind, mask in ((flags, "binary", binary), (value, "continuous", ~binary))
        ]
        graph.add("Add", parts, "actions")
    if mapping.confidence is not None:
        if shapes[mapping.confidence] not in ((1, steps), (steps,)):
            raise SpecError(
                f"output {mapping.confidence!r} has the shape {shapes[mapping.confidence]}, expected {(1, steps)}: one for each step."
            )
        graph.add("Reshape", [f"{_PREFIX}{mapping.confidence}", graph.store("confidence.shape", np.array([1, steps]))], "confidence")
        return
    # The policy says nothing of it: 1, made of an input, since an output has to be made by an operator.
    zero = graph.add("Mul", ["state", graph.store("confidence.zero", np.array(0, np.float32))], "confidence.zeros")
    zero = graph.add("ReduceSum", [zero, graph.store("confidence.axes", np.array([1]))], "confidence.one_zero", keepdims=1)
    graph.add("Add", [zero, graph.store("confidence.ones", np.ones((1, steps), np.float32))], "confidence")


def _numbers(what: str, values: tuple[float, ...], names: tuple[str, ...]) -> NDArray[np.float32]:
    if len(values) != len(names):
        raise SpecError(f"{what}: {len(values)} numbers, expected {len(names)}, one for each of {list(names)}.")
    return np.asarray(values, np.float32)


def _require_shape(name: str, got: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if got != expected:
        raise SpecError(
            f"input {name!r} has the shape {got}, expected {expected} from the mapping and the recordings: correct the mapping, or export the network so."
        )


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
