"""Which columns of a dataset are the cameras, the state and the action, and what their numbers mean.

Our datasets say it in `meta/actlet.json`. Of a foreign dataset it is inferred: "observation.state", "action", every feature of dtype
"image" or "video"; names from info.json where it has them; units "1", all dimensions continuous, limits a tenth wider than the data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlet.errors import DatasetError, SpecError, UnknownNameError
from actlet.specs import ActionSpec, CameraSpec, Kind, ObservationSpec
from episodes.lerobot_layout import INFO_PATH, Layout
from episodes.lerobot_v30 import ACTION, ACTLET_PATH, IMAGES, STATE

__all__ = ["ACTLET_SCHEMA_VERSION", "Columns", "infer_columns", "recorded_columns"]

ACTLET_SCHEMA_VERSION = 1
WIDEN = 0.1  # Share of the range by which inferred limits lie outside of the data.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
    """Specifications, and the columns that they are read from."""

    observation: ObservationSpec
    action: ActionSpec
    state_column: str | None
    """None where the observation has no state."""
    action_column: str
    camera_columns: dict[str, str]
    """Camera name -> column."""


def recorded_columns(layout: Layout, cameras: Sequence[str] | None) -> Columns:
    """What meta/actlet.json says.

    Raises:
        DatasetError: The file is damaged, or of a later version.
        UnknownNameError: There is no such camera.
    """
    where, data = layout.root / ACTLET_PATH, layout.actlet or {}
    if data.get("schema_version") != ACTLET_SCHEMA_VERSION:
        raise DatasetError(
            f"{where}: schema_version {data.get('schema_version')!r}, expected {ACTLET_SCHEMA_VERSION}. Update actlet to read it."
        )
    try:
        observation, action = ObservationSpec.from_dict(data["observation"]), ActionSpec.from_dict(data["action"])
    except (SpecError, KeyError, TypeError) as error:
        raise DatasetError(f"{where} does not hold an observation and an action specification ({error}). Copy it again.") from error
    columns = {camera.name: f"{IMAGES}{camera.name}" for camera in observation.cameras}
    chosen = _choose(columns, cameras)
    kept = tuple(camera for name in chosen for camera in observation.cameras if camera.name == name)
    return Columns(
        observation=dataclasses.replace(observation, cameras=kept),
        action=action,
        state_column=STATE if observation.state_dim else None,
        action_column=ACTION,
        camera_columns={name: _known(layout, columns[name]) for name in chosen},
    )


def infer_columns(
    layout: Layout, state: str, action: str, cameras: Sequence[str] | None, action_range: NDArray[np.float64] | None
) -> Columns:
    """What can be said about a foreign dataset.

    Args:
        layout: Its metadata.
        state: The column of the state vector; the default may be absent, then S is 0.
        action: The column of the action vector.
        cameras: Names or columns of cameras, in the order in which networks take them; None for all.
        action_range: float64 (2, A), smallest and largest action, for a dataset without statistics.

    Raises:
        DatasetError: There is no camera, or a shape is not what such a column has.
        UnknownNameError: There is no such column.
    """
    found = {_camera_name(key): key for key, feature in layout.features.items() if feature["dtype"] in ("image", "video")}
    if not found:
        raise DatasetError(
            f"{layout.root}: no feature of dtype 'image' or 'video' in {sorted(layout.features)}; expected at least one camera."
        )
    chosen = _choose(found, cameras)
    has_state = state != STATE or state in layout.features
    state_names = _vector_names(layout, state, "state") if has_state else ()
    action_names = _vector_names(layout, action, "action")
    low, high = _limits(layout, action, len(action_names), action_range)
    continuous: Kind = "continuous"
    return Columns(
        observation=ObservationSpec(
            cameras=tuple(_camera_spec(layout, name, found[name]) for name in chosen),
            state_names=state_names,
            state_units=("1",) * len(state_names),
        ),
        action=ActionSpec(
            names=action_names,
            units=("1",) * len(action_names),
            kinds=(continuous,) * len(action_names),
            low=low,
            high=high,
            frame="unknown",
        ),
        state_column=state if has_state else None,
        action_column=action,
        camera_columns={name: found[name] for name in chosen},
    )


def _choose(found: dict[str, str], cameras: Sequence[str] | None) -> list[str]:
    """Camera names, each given as a name or as a column."""
    if cameras is None:
        return list(found)
    by_column = {column: name for name, column in found.items()}
    chosen = []
    for camera in cameras:
        name = by_column.get(camera, camera)
        if name not in found:
            raise UnknownNameError("camera", camera, list(found))
        chosen.append(name)
    return chosen


def _known(layout: Layout, column: str) -> str:
    if column not in layout.features:
        raise UnknownNameError(f"column in {layout.root / INFO_PATH}:", column, list(layout.features))
    return column


def _camera_name(column: str) -> str:
    for prefix in (IMAGES, "observation."):
        if column.startswith(prefix) and len(column) > len(prefix):
            return column[len(prefix) :]
    return column


def _camera_spec(layout: Layout, name: str, column: str) -> CameraSpec:
    """Frames are (height, width, 3), or (3, height, width) in some older datasets."""
    shape = [int(size) for size in layout.features[column]["shape"]]
    if len(shape) == 3 and shape[2] == 3:
        return CameraSpec(name=name, height=shape[0], width=shape[1])
    if len(shape) == 3 and shape[0] == 3:
        return CameraSpec(name=name, height=shape[1], width=shape[2])
    raise DatasetError(
        f"{layout.root}: camera column {column!r} has the shape {shape} in {INFO_PATH}, expected (height, width, 3). "
        "Depth and grey pictures are not read: leave the camera out."
    )


def _vector_names(layout: Layout, column: str, what: str) -> tuple[str, ...]:
    """One name per entry of a vector feature; numbered where the dataset does not name them."""
    feature: dict[str, Any] = layout.features[_known(layout, column)]
    shape = list(feature["shape"])
    if len(shape) != 1 or shape[0] < 1 or not str(feature["dtype"]).startswith(("float", "int", "uint")):
        raise DatasetError(
            f"{layout.root}: column {column!r} is {feature['dtype']} {shape}, expected a vector of numbers for the {what}. Choose another column."
        )
    names = feature.get("names")
    if isinstance(names, dict):  # Such as {"motors": [...]}.
        names = next((value for value in names.values() if isinstance(value, list)), None)
    if isinstance(names, list) and len(names) == shape[0] and len({str(name) for name in names}) == shape[0]:
        return tuple(str(name) for name in names)
    return tuple(f"{what}_{i}" for i in range(shape[0]))


def _limits(layout: Layout, action: str, dim: int, action_range: NDArray[np.float64] | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    stats = layout.stats.get(action, {})
    low, high = action_range if action_range is not None else (np.ravel(stats["min"]).astype(float), np.ravel(stats["max"]).astype(float))
    if len(low) != dim or len(high) != dim or not np.isfinite([low, high]).all():
        raise DatasetError(f"{layout.root}: the statistics of {action!r} are {low} .. {high}, expected {dim} finite numbers each.")
    margin = np.where(high > low, WIDEN * (high - low), 1.0)
    return tuple((low - margin).tolist()), tuple((high + margin).tolist())
