"""What the control loop has to know of a LeRobot robot beside its features, and whether the two fit."""

from __future__ import annotations

import dataclasses
import difflib
import math
from typing import Any, Literal, Protocol

import numpy as np

from actlet.errors import CallerError, SpecError
from actlet.plain import PlainJson
from actlet.specs import ActionSpec, ObservationSpec

__all__ = ["LeRobotConfig", "LeRobotDevice"]

_SCHEMA_VERSION = 1
_NEEDED = ("observation_features", "action_features", "is_connected", "connect", "get_observation", "send_action", "disconnect")


class LeRobotDevice(Protocol):
    """What is used of LeRobot's `Robot`."""

    observation_features: Any
    action_features: Any
    is_connected: Any

    def connect(self) -> Any:
        """Make ready to move; LeRobot's own takes `calibrate`, too."""
        ...

    def get_observation(self) -> Any:
        """Feature -> number or frame."""
        ...

    def send_action(self, action: Any) -> Any:
        """Feature -> number; returns what was really sent."""
        ...

    def disconnect(self) -> Any:
        """Let go."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class LeRobotConfig(PlainJson):
    """What is to be known of a LeRobot robot beside its features."""

    schema_version: int = _SCHEMA_VERSION
    kind: Literal["lerobot_robot"] = "lerobot_robot"
    factory: str
    """"package.module:function", called without arguments; returns the LeRobot robot, not connected."""
    observation: ObservationSpec
    """What the policy sees: state names are features that are numbers, in the policy's order; cameras are features of shape (height, width, 3)."""
    action: ActionSpec
    """What it commands: every action feature of the robot, in the policy's order. "terminate" is not sent."""
    rate_hz: float
    """Control steps in a second, the policy's; the robot is read as often."""
    features: dict[str, str] | None = None
    """Name in the specifications -> LeRobot's feature, for names that differ."""
    connect_timeout_s: float = 10.0
    """For the first observation, once the robot is connected."""
    max_failures: int = 3
    """Reads in a row that fail before the robot counts as lost."""
    stuck_s: float = 0.5
    """A command that was not taken over for so long is an error: the thread hangs in the robot."""

    def __post_init__(self) -> None:
        if self.schema_version != _SCHEMA_VERSION:
            raise SpecError(f"{self.kind}: schema_version {self.schema_version}, expected {_SCHEMA_VERSION}.")
        if not (0 < self.rate_hz < math.inf and self.connect_timeout_s > 0 and self.stuck_s > 0 and self.max_failures >= 1):
            raise SpecError(
                f"rate_hz {self.rate_hz}, connect_timeout_s {self.connect_timeout_s}, stuck_s {self.stuck_s}, max_failures {self.max_failures}: "
                "expected positive numbers."
            )
        if self.action.hold is None:
            raise SpecError(
                'action: no hold; say how every dimension stands still: "last" for positions, "zero" for velocities and displacements.'
            )
        names = {*self.observation.state_names, *self.action.names, *(camera.name for camera in self.observation.cameras)}
        if unknown := sorted(set(self.features or {}) - names):
            raise SpecError(f"features: {unknown} are no names of this file's observation or action; known: {sorted(names)}.")

    def feature(self, name: str) -> str:
        """LeRobot's feature of a name."""
        return (self.features or {}).get(name, name)

    @property
    def sent_names(self) -> tuple[str, ...]:
        """The action's names without "terminate", which is for the loop."""
        return tuple(name for name in self.action.names if name != "terminate")

    def require_fit(self, device: LeRobotDevice) -> None:
        """Refuse a robot whose features are not what stands here.

        Raises:
            CallerError: It has not the attributes of a LeRobot robot.
            SpecError: A name, a size or an action of it differs.
        """
        if missing := [name for name in _NEEDED if not hasattr(device, name)]:
            raise CallerError(f"{self.factory}: {type(device).__name__} has no {missing}; a LeRobot robot has {list(_NEEDED)}.")
        observed, commanded = dict(device.observation_features), dict(device.action_features)
        numbers = [name for name, kind in observed.items() if _is_number(kind)]
        for name in self.observation.state_names:
            _require_feature(f"state {name!r}", self.feature(name), numbers)
        frames = [name for name, kind in observed.items() if isinstance(kind, (tuple, list))]
        for camera in self.observation.cameras:
            _require_feature(f"camera {camera.name!r}", self.feature(camera.name), frames)
            shape, expected = tuple(observed[self.feature(camera.name)]), (camera.height, camera.width, 3)
            # A driver that learns the size only when it is connected says None; the first frame is looked at, too.
            if len(shape) != 3 or any(got not in (None, size) for got, size in zip(shape, expected, strict=True)):
                raise SpecError(
                    f"camera {camera.name!r}: the robot delivers {shape}, expected {expected} (height, width, RGB). Nothing is resized here: "
                    "set height and width of LeRobot's camera, or use a policy that was made for this size."
                )
        wanted = {self.feature(name): name for name in self.sent_names}
        for feature, name in wanted.items():
            _require_feature(f"action {name!r}", feature, list(commanded))
        if surplus := sorted(set(commanded) - set(wanted)):
            raise SpecError(f"action: the robot also wants {surplus}, which the policy does not command; the file has {sorted(wanted)}.")


def _is_number(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, (bool, int, float, np.number))


def _require_feature(what: str, feature: str, known: list[str]) -> None:
    if feature not in known:
        close = difflib.get_close_matches(feature, known, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise SpecError(
            f"{what}: the robot has no such feature {feature!r}.{hint} It has {known}: correct the name, or add it to features."
        )
