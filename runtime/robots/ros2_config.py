"""What the control loop has to know of a robot on ROS 2: topics, joints, units, limits, rate."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from actlet.errors import SpecError
from actlet.plain import PlainJson
from actlet.specs import ActionSpec, ObservationSpec
from runtime.robots.rmw_zenoh import require_name, require_topic
from runtime.robots.ros_messages import Quantity

__all__ = ["Ros2Config"]

_SCHEMA_VERSION = 1
_QUANTITIES: dict[str, Quantity] = {"rad": "position", "m": "position", "rad/s": "velocity", "m/s": "velocity"}
"""What a unit says of a joint: ROS 2 knows no others (REP 103)."""
_LARGEST_DOMAIN = 232


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ros2Config(PlainJson):
    """A robot whose joints and cameras are topics."""

    schema_version: int = _SCHEMA_VERSION
    kind: Literal["ros2_robot"] = "ros2_robot"
    observation: ObservationSpec
    """What the policy sees: a state is the position (rad, m) or the velocity (rad/s, m/s) of a joint, by its unit."""
    action: ActionSpec
    """What it commands: positions or velocities of joints, all of one kind. "terminate" is not sent."""
    rate_hz: float
    """Control steps in a second, the policy's."""
    images: dict[str, str]
    """Camera name -> topic of sensor_msgs/msg/Image, rgb8 or bgr8."""
    command_topic: str
    """Where commands are published."""
    command: Literal["JointTrajectory", "JointState"] = "JointTrajectory"
    """Their type: trajectory_msgs/msg/JointTrajectory of one point, as joint_trajectory_controller takes it, or sensor_msgs/msg/JointState."""
    joint_states: str = "/joint_states"
    """Topic of sensor_msgs/msg/JointState. Joints may come in several messages."""
    joints: dict[str, str] | None = None
    """Name in the specifications -> joint, for names that differ."""
    time_from_start_s: float | None = None
    """When a JointTrajectory's point is to be reached, None for one period: a controller that interpolates is there as the next one comes."""
    mode: Literal["client", "peer"] = "client"
    """How Zenoh's session takes part: "client" of a router (rmw_zenohd), or "peer"."""
    connect: tuple[str, ...] = ("tcp/localhost:7447",)
    """Where to connect, in Zenoh's words; the default is a router on this machine."""
    listen: tuple[str, ...] = ()
    """Where to wait for others, as a peer."""
    domain_id: int = 0
    """ROS_DOMAIN_ID of the others."""
    node: str = "actlet"
    """Under which name it is listed."""
    type_hashes: bool = True
    """False for Humble, which knows none."""
    connect_timeout_s: float = 5.0
    """For the router, then for the first message of every topic, then for who listens to the commands."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "connect", tuple(self.connect))
        object.__setattr__(self, "listen", tuple(self.listen))
        if self.schema_version != _SCHEMA_VERSION:
            raise SpecError(f"{self.kind}: schema_version {self.schema_version}, expected {_SCHEMA_VERSION}.")
        numbers = (self.rate_hz, self.connect_timeout_s, self.point_s if self.rate_hz > 0 else 0)
        if not all(0 < number < math.inf for number in numbers):
            raise SpecError(
                f"rate_hz {self.rate_hz}, connect_timeout_s {self.connect_timeout_s}, time_from_start_s {self.time_from_start_s}: expected positive numbers."
            )
        if not 0 <= self.domain_id <= _LARGEST_DOMAIN:
            raise SpecError(f"domain_id {self.domain_id}: expected 0 .. {_LARGEST_DOMAIN}.")
        if not self.connect and not self.listen:
            raise SpecError('neither connect nor listen: say where the others are, as in "connect": ["tcp/localhost:7447"].')
        if self.listen and self.mode == "client":
            raise SpecError(f'listen {list(self.listen)}: a client waits for nobody; use "mode": "peer".')
        require_name(self.node)
        for topic in (self.joint_states, self.command_topic, *self.images.values()):
            require_topic(topic)
        if self.command == "JointState" and self.command_topic == self.joint_states:
            raise SpecError(f"command_topic {self.command_topic!r} is the topic of the joints' states: commands would be taken for states.")
        cameras = [camera.name for camera in self.observation.cameras]
        if set(self.images) != set(cameras):
            raise SpecError(f"images of the cameras {sorted(self.images)}: expected a topic for each of {sorted(cameras)}.")
        names = {*self.observation.state_names, *self.action.names}
        if unknown := sorted(set(self.joints or {}) - names):
            raise SpecError(f"joints: {unknown} are no names of this file's observation or action; known: {sorted(names)}.")
        self._check_units()

    def _check_units(self) -> None:
        for name, unit in zip(self.observation.state_names, self.observation.state_units, strict=True):
            if unit not in _QUANTITIES:
                raise SpecError(f"state {name!r}: unit {unit!r}, expected one of {list(_QUANTITIES)}: a JointState has no others.")
        action = self.action
        if action.hold is None:
            raise SpecError('action: no hold; say how every joint stands still: "last" for positions, "zero" for velocities.')
        found = set()
        for name, unit, kind, hold in zip(action.names, action.units, action.kinds, action.hold, strict=True):
            if name == "terminate":
                continue
            if unit not in _QUANTITIES or kind != "continuous":
                raise SpecError(
                    f"action {name!r}: {kind}, unit {unit!r}; expected a continuous joint in one of {list(_QUANTITIES)}. Flags, displacements and poses "
                    "need a robot of your own, which knows what they mean for its joints (docs/robots.md)."
                )
            if hold != ("last" if _QUANTITIES[unit] == "position" else "zero"):
                raise SpecError(f'action {name!r}: hold {hold!r} for unit {unit!r}; positions hold with "last", velocities with "zero".')
            found.add(_QUANTITIES[unit])
        if len(found) != 1:
            raise SpecError(f"action: {sorted(found) or 'nothing'} commanded, expected positions or velocities, all of one kind.")
        commanded = [self.joint(name) for name in self.sent_names]
        if len(set(commanded)) != len(commanded):
            raise SpecError(f"action: joints {commanded} are not unique; correct joints.")

    def joint(self, name: str) -> str:
        """The joint of a name."""
        return (self.joints or {}).get(name, name)

    @property
    def sent_names(self) -> tuple[str, ...]:
        """The action's names without "terminate", which is for the loop."""
        return tuple(name for name in self.action.names if name != "terminate")

    @property
    def commanded(self) -> Quantity:
        """What commands are."""
        return _QUANTITIES[self.action.units[self.action.names.index(self.sent_names[0])]]

    @property
    def state_sources(self) -> tuple[tuple[str, Quantity], ...]:
        """Joint and quantity of every state."""
        units = zip(self.observation.state_names, self.observation.state_units, strict=True)
        return tuple((self.joint(name), _QUANTITIES[unit]) for name, unit in units)

    @property
    def point_s(self) -> float:
        """When a trajectory's point is to be reached."""
        return 1 / self.rate_hz if self.time_from_start_s is None else self.time_from_start_s
