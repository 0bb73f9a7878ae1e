"""What a policy sees, what it commands, and when: the specifications that every stage agrees on.

A specification is frozen, checks itself when made, is saved as plain JSON, and refuses unknown keys when loaded. Two
stages that disagree (a robot with other joint names, a bundle for another camera) find out here, before motion.

Shape letters used everywhere: B batch, T time, H horizon (chunk length), A action dimension, S state dimension, K bins.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from actlet.errors import ActionError, ObservationError, SpecError
from actlet.plain import PlainJson

__all__ = [
    "ActionSpec",
    "CameraSpec",
    "MotionLimits",
    "ObservationSpec",
    "PolicySpec",
    "TimingSpec",
    "all_finite",
    "require_same",
    "require_same_rate",
]

Kind = Literal["continuous", "binary"]
Hold = Literal["zero", "last"]
_UINT8, _FLOAT32 = np.dtype(np.uint8), np.dtype(np.float32)
_FEW = 32
"""Numbers that plain Python looks at quicker than numpy does after a network ran, which leaves nothing of numpy in the caches."""


def all_finite(values: NDArray[Any]) -> bool:
    """Whether no value is NaN or infinite; a twentieth of the time of `np.isfinite(values).all()` where that is so."""
    if values.ndim == 1 and len(values) <= _FEW:
        return all(map(math.isfinite, values.tolist()))
    # A product with itself is finite only if every value is; of huge ones it is not, and they are looked at.
    return math.isfinite(np.vdot(values, values)) or bool(np.isfinite(values).all())


@dataclasses.dataclass(frozen=True, kw_only=True)
class CameraSpec(PlainJson):
    """One camera: uint8 RGB frames of shape (height, width, 3)."""

    name: str
    height: int
    width: int

    def __post_init__(self) -> None:
        if not self.name or self.height < 1 or self.width < 1:
            raise SpecError(f"camera {self.name!r} of {self.height}x{self.width}: needs a name and a size of at least 1x1.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObservationSpec(PlainJson):
    """What the policy sees in one control step."""

    cameras: tuple[CameraSpec, ...]
    """At least one camera, in the order in which networks take them."""
    state_names: tuple[str, ...]
    """One name per entry of the state vector (S,)."""
    state_units: tuple[str, ...]
    """One unit per entry, "1" where there is none."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "cameras", tuple(self.cameras))
        object.__setattr__(self, "state_names", tuple(self.state_names))
        object.__setattr__(self, "state_units", tuple(self.state_units))
        names = [camera.name for camera in self.cameras]
        if not names or len(set(names)) != len(names):
            raise SpecError(f"cameras {names}: at least one is needed, and each name once.")
        if len(self.state_names) != len(self.state_units):
            raise SpecError(f"{len(self.state_names)} state names but {len(self.state_units)} units: give one unit per name.")

    @property
    def state_dim(self) -> int:
        """S, the length of the state vector."""
        return len(self.state_names)

    @functools.cached_property
    def _frame_shapes(self) -> dict[str, tuple[int, int, int]]:
        """Camera -> shape of its frames; kept, because `check` is part of every control step."""
        return {camera.name: (camera.height, camera.width, 3) for camera in self.cameras}

    @functools.cached_property
    def _state_shape(self) -> tuple[int]:
        return (self.state_dim,)

    def check(self, images: dict[str, NDArray[np.uint8]], state: NDArray[np.float32]) -> None:
        """Refuse frames or a state that differ from this specification.

        Raises:
            ObservationError: A camera is missing or has another size or type, or the state is not finite.
        """
        expected = self._frame_shapes
        if len(images) != len(expected) or not expected.keys() <= images.keys():
            raise ObservationError(
                f"cameras {sorted(images)} differ from the expected {sorted(c.name for c in self.cameras)}: "
                "give every camera of the specification under its name, and no other."
            )
        for name, shape in expected.items():
            frame = images[name]
            if (frame.dtype is not _UINT8 and frame.dtype != _UINT8) or frame.shape != shape:
                raise ObservationError(
                    f"camera {name!r}: got {frame.dtype} {frame.shape}, "
                    f"expected uint8 {shape} (RGB, rows first): resize or convert the frame."
                )
        if state.shape != self._state_shape or (state.dtype is not _FLOAT32 and state.dtype.kind != "f"):
            raise ObservationError(f"state: got {state.dtype} {state.shape}, expected float32 {(self.state_dim,)}: {self.state_names}.")
        if not all_finite(state):
            bad = [name for name, value in zip(self.state_names, state, strict=True) if not math.isfinite(value)]
            raise ObservationError(f"state: {bad} not finite; check the sensor before the policy sees it.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MotionLimits(PlainJson):
    """How fast one dimension may move, whatever the unit of its actions: of a displacement "m" and of a position "m" alike in m/s. None: no limit."""

    velocity: float | None = None
    """Largest speed in [unit/s]."""
    acceleration: float | None = None
    """Largest acceleration in [unit/s^2], braking included."""
    jerk: float | None = None
    """Largest change of acceleration in [unit/s^3]."""

    def __post_init__(self) -> None:
        for name in ("velocity", "acceleration", "jerk"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise SpecError(f"motion limits: {name} {value}, expected a positive number, or None for no limit.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActionSpec(PlainJson):
    """What one action of A numbers means, and what the robot may be told."""

    names: tuple[str, ...]
    """One name per dimension."""
    units: tuple[str, ...]
    """One unit per dimension, "1" where there is none."""
    kinds: tuple[Kind, ...]
    """"continuous", or "binary" for a flag in {0, 1} such as terminate or gripper."""
    low: tuple[float, ...]
    """Smallest value the robot may be told, per dimension."""
    high: tuple[float, ...]
    """Largest value the robot may be told, per dimension."""
    frame: str
    """The frame in which the motion is expressed, such as "base", or "joint"."""
    hold: tuple[Hold, ...] | None = None
    """How to stand still, per dimension: "zero" for displacements, velocities and terminate, "last" (command again what was
    commanded last) for positions, openings and flags. None where it is not known; a robot must say it, a dataset may not."""
    motion: tuple[MotionLimits | None, ...] | None = None
    """How fast each dimension may move, kept at every command (`runtime.command_ticks`); None for no limit. A robot's to say, not a policy's."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `motion` only where there is some, so that who knows nothing of it can read the rest."""
        data = super().to_dict()
        if self.motion is None:
            del data["motion"]
        return data

    def __post_init__(self) -> None:
        optional = [field for field in ("hold", "motion") if getattr(self, field) is not None]
        fields = ("names", "units", "kinds", "low", "high", *optional)
        for field in fields:
            object.__setattr__(self, field, tuple(getattr(self, field)))
        lengths = {field: len(getattr(self, field)) for field in fields}
        if len(set(lengths.values())) != 1 or not self.names:
            raise SpecError(f"action: fields of different or zero length {lengths}: give one entry per dimension.")
        if len(set(self.names)) != len(self.names):
            raise SpecError(f"action: names {self.names} are not unique.")
        for name, kind, low, high in zip(self.names, self.kinds, self.low, self.high, strict=True):
            if kind not in ("continuous", "binary"):
                raise SpecError(f"action {name!r}: kind {kind!r}, expected 'continuous' or 'binary'.")
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise SpecError(f"action {name!r}: limits [{low}, {high}], expected finite numbers with low < high.")
            if kind == "binary" and (low, high) != (0.0, 1.0):
                raise SpecError(f"action {name!r}: a binary dimension has the limits [0, 1], got [{low}, {high}].")
        for name, hold, low, high in zip(self.names, self.hold or (), self.low, self.high, strict=False):
            if hold not in ("zero", "last"):
                raise SpecError(f"action {name!r}: hold {hold!r}, expected 'zero' or 'last'.")
            if hold == "zero" and not low <= 0 <= high:
                raise SpecError(f"action {name!r}: cannot hold with zero, which is outside its limits [{low}, {high}]; use 'last'.")
        for name, kind, motion in zip(self.names, self.kinds, self.motion or (), strict=False):
            if motion is not None and kind == "binary":
                raise SpecError(f"action {name!r}: a flag has no speed to limit; its entry of motion is None.")

    @property
    def dim(self) -> int:
        """A, the number of dimensions."""
        return len(self.names)

    @property
    def is_binary(self) -> NDArray[np.bool_]:
        """bool (A,), True where the dimension is a flag."""
        return np.array([kind == "binary" for kind in self.kinds])

    def check(self, action: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the action as float32 (A,), clipped to the limits.

        Raises:
            ActionError: The action has another shape or is not finite. Such an action is never sent.
        """
        if not (isinstance(action, np.ndarray) and action.dtype == _FLOAT32):
            with np.errstate(over="ignore"):  # 1e300 is finite only until it becomes a float32.
                action = np.asarray(action, dtype=np.float32)
        if action.shape != (len(self.names),):
            raise ActionError(f"action: got shape {action.shape}, expected {(self.dim,)}: {self.names}.")
        if not all_finite(action):
            bad = [name for name, value in zip(self.names, action, strict=True) if not math.isfinite(value)]
            raise ActionError(f"action: {bad} not finite; refused.")
        low, high = self.limits
        return np.minimum(np.maximum(action, low), high)  # A third of the time of np.clip.

    @functools.cached_property
    def limits(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """`low` and `high` as float32 (A,), which nobody may write to."""
        limits = np.array([self.low, self.high], np.float32)
        limits.flags.writeable = False
        return limits[0], limits[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimingSpec(PlainJson):
    """When actions are meant to happen."""

    rate_hz: float
    """Control steps in a second: the rate at which the actions of a chunk follow each other."""
    horizon: int
    """H, the number of actions in a chunk."""
    execute_steps: int
    """Actions of a chunk that are executed before a newer chunk should have arrived."""
    max_delay_steps: int
    """Largest delay, in control steps, from observation to its chunk's first use that the policy was made for."""
    committed_steps: int = 0
    """D, most actions on their way that the policy is told of (`Observation.committed`); 0 when it is told of none."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `committed_steps` only where there are some, so that who knows nothing of them can read the rest."""
        data = super().to_dict()
        if not self.committed_steps:
            del data["committed_steps"]
        return data

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rate_hz) and self.rate_hz > 0):
            raise SpecError(f"timing: rate_hz {self.rate_hz}, expected a positive number.")
        if not 1 <= self.execute_steps <= self.horizon:
            raise SpecError(f"timing: execute_steps {self.execute_steps}, expected 1 .. horizon ({self.horizon}).")
        if not 0 <= self.max_delay_steps <= self.horizon - 1:
            raise SpecError(f"timing: max_delay_steps {self.max_delay_steps}, expected 0 .. horizon - 1 ({self.horizon - 1}).")
        if not 0 <= self.committed_steps <= self.max_delay_steps:
            raise SpecError(f"timing: committed_steps {self.committed_steps}, expected 0 .. max_delay_steps ({self.max_delay_steps}).")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicySpec(PlainJson):
    """The contract between a policy and a robot: what it sees, what it commands, and when."""

    observation: ObservationSpec
    action: ActionSpec
    timing: TimingSpec


def require_same_rate(ours: float, theirs: float, *, what: str) -> None:
    """Refuse two control rates in [Hz] that differ by more than rounding: an action is a motion per step, and means another speed at another rate.

    Raises:
        SpecError: They differ.
    """
    if abs(ours - theirs) > 1e-3 * ours:
        raise SpecError(
            f"{what} differ: control rate {ours:g} Hz and {theirs:g} Hz. Actions are motions per step: resample, or use other data."
        )


def require_same(ours: PlainJson, theirs: PlainJson, *, what: str) -> None:
    """Refuse two specifications that differ, and name every difference. What ours leaves open (None) may be anything.

    Args:
        ours: The specification that is needed, such as the bundle's.
        theirs: The specification that was found, such as the robot's.
        what: What is compared, for the message, as in "bundle and robot".

    Raises:
        SpecError: They differ.
    """
    differences = _differences(ours.to_dict(), theirs.to_dict(), "")
    if differences:
        raise SpecError(f"{what} differ: " + "; ".join(differences) + ".")


def _differences(ours: Any, theirs: Any, path: str) -> list[str]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [d for key in ours for d in _differences(ours[key], theirs.get(key), f"{path}.{key}" if path else key)]
    if isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)) and len(ours) == len(theirs):
        return [d for i, pair in enumerate(zip(ours, theirs, strict=True)) for d in _differences(*pair, f"{path}[{i}]")]
    return [] if ours is None or ours == theirs else [f"{path} is {theirs!r}, expected {ours!r}"]
