"""A robot on ROS 2 in the control loop, over Zenoh and without a ROS installation:
``actlet run BUNDLE --robot runtime.robots.ros2:make_robot --robot-config my_arm.json``.

It speaks as rmw_zenoh does (`runtime.robots.rmw_zenoh`)::

    joint_states, images ──▶ one thread a topic: decode, check, keep the newest with the time of its receipt ──▶ get_observation
    send_action ──▶ JointTrajectory of one point, or JointState ──▶ command_topic

Nobody waits: a topic keeps one message while its thread is busy, and a command that the network cannot take is dropped. What does not decode or is not
as specified is counted and ignored; then what is there grows old, and the loop holds. Times are of this machine's monotonic clock, at receipt: no clock of
another machine is believed. A command topic to which nobody listens any more is a lost robot.

The loop commands in every period, in HOLD, too. That stream is the heartbeat: the ROS side must stop when it ends (docs/robots.md).
"""

from __future__ import annotations

import functools
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlet.errors import MissingExtraError, RobotFault
from actlet.protocols import Observation
from actlet.specs import CameraSpec
from runtime.robots import ros_messages as messages
from runtime.robots.config_file import read_config
from runtime.robots.rmw_zenoh import NO_TYPE_HASH, Qos, TopicName, attachment, gid, node_token
from runtime.robots.ros2_config import Ros2Config

__all__ = ["Ros2Robot", "make_robot"]

_TYPES = {"JointTrajectory": messages.JOINT_TRAJECTORY, "JointState": messages.JOINT_STATE}
_SENSOR, _COMMAND = Qos(reliable=False, depth=1), Qos(reliable=True, depth=1)
_LOOK_S = 0.01
_LET_GO_S = 2.0


class _Topic:
    """One subscription, and the thread that takes its messages.

    Args:
        name: The topic's, for messages.
        handler: Of the subscription; it keeps the newest message alone.
        most: Bytes; a larger message is not even copied.
        take: Decodes and keeps a message that came at a time.
    """

    def __init__(self, name: str, handler: Any, most: int, take: Callable[[bytes, float], None]) -> None:
        self.name, self.taken, self.ignored, self.error = name, 0, 0, ""
        self._handler, self._most, self._take = handler, most, take
        self.thread = threading.Thread(target=self._run, name=f"ros2 {name}", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while True:
            try:
                sample = self._handler.recv()
            except Exception as error:  # The session is closed, or was lost for good: there will be nothing more.
                self.error = self.error or f"{type(error).__name__}: {error}"
                return
            received_s = time.monotonic()
            try:
                if len(sample.payload) > self._most:
                    raise RobotFault(f"{len(sample.payload)} bytes, {self._most} at most")
                self._take(sample.payload.to_bytes(), received_s)
                self.taken += 1
            except Exception as error:
                self.ignored += 1
                self.error = f"{type(error).__name__}: {error}"


class Ros2Robot:
    """Implements `actlet.protocols.Robot` with topics of ROS 2.

    Args:
        config: Which topics, and what they mean.

    Raises:
        MissingExtraError: Zenoh or rosbags are not installed.
    """

    def __init__(self, config: Ros2Config) -> None:
        self.observation_spec, self.action_spec, self.rate_hz = config.observation, config.action, config.rate_hz
        self.config = config
        self.topics: tuple[_Topic, ...] = ()
        """What is listened to, with counts of messages taken and ignored."""
        self._zenoh = _import_zenoh()
        messages.load_types()
        self._joints = [config.joint(name) for name in config.sent_names]
        self._slots = [i for i, name in enumerate(config.action.names) if name != "terminate"]
        self._sources = config.state_sources
        places = {(joint, config.commanded) for joint in self._joints} if config.commanded == "position" else set()
        self.present_action = self._present if places <= set(self._sources) else None
        """The action that leaves the robot where it is; None where positions are commanded that the policy does not see."""
        self._lock = threading.Lock()  # For the two that follow; held for moments only.
        self._values: dict[tuple[str, messages.Quantity], tuple[float, float]] = {}  # Of a joint -> value, when it was received.
        self._frames: dict[str, tuple[NDArray[np.uint8], float]] = {}
        self._session: Any = None
        self._publisher: Any = None
        self._declared: list[Any] = []
        self._gid = b""
        self._sequence = 0

    def connect(self) -> None:
        """Join, wait for the first message of every topic and for somebody who listens to commands. Nothing is commanded.

        Raises:
            RobotFault: One of them did not come in time; the message says which, and what was ignored meanwhile.
        """
        if self._session is not None:
            raise RobotFault("the robot is connected already: call disconnect() first.")
        with self._lock:
            self._values.clear()
            self._frames.clear()
        self._sequence, self._declared = 0, []
        try:
            self._join()
            self._await(lambda: not self._missing(), lambda: f"nothing usable of {self._missing()}. {self._heard()}")
            self._await(
                self._is_heard,
                lambda: (
                    f"nobody listens to {self.config.command_topic!r} ({_TYPES[self.config.command]}): is the controller running, with that type?"
                ),
            )
        except BaseException:
            self.disconnect()
            raise

    def get_observation(self) -> Observation:
        """The newest frames and joint values; `taken_s` is when the oldest of them was received.

        Raises:
            RobotFault: Not connected, or a topic's thread has died.
        """
        self._require_connected()
        for topic in self.topics:
            if not topic.thread.is_alive():
                raise RobotFault(f"topic {topic.name!r} is not listened to any more ({topic.error}).")
        with self._lock:
            values, frames = [self._values[source] for source in self._sources], dict(self._frames)
        return Observation(
            images={name: frame for name, (frame, _) in frames.items()},
            state=np.array([value for value, _ in values], np.float32),
            taken_s=min(received_s for _, received_s in (*values, *frames.values())),
        )

    def send_action(self, action: NDArray[np.float32]) -> None:
        """Publish one action.

        Args:
            action: float32 (A,).

        Raises:
            ActionError: Another shape, or values that are not finite.
            RobotFault: Not connected, or nobody listens.
        """
        values = self.action_spec.check(action)[self._slots]
        self._require_connected()
        if not self._is_heard():
            raise RobotFault(
                f"nobody listens to {self.config.command_topic!r} any more: the controller, the router or the network has gone."
            )
        now_ns = time.time_ns()  # For those who read it: nothing here goes by it.
        if self.config.command == "JointTrajectory":
            payload = messages.encode_joint_trajectory(self._joints, self.config.commanded, values, self.config.point_s)
        else:
            payload = messages.encode_joint_state(self._joints, self.config.commanded, values, now_ns)
        self._sequence += 1
        self._publisher.put(payload, attachment=attachment(self._sequence, now_ns, self._gid))

    def disconnect(self) -> None:
        """Leave; whoever executes the commands has to stop by itself (docs/robots.md). Called twice, the second call does nothing."""
        session, self._session, self._publisher, self._declared = self._session, None, None, []
        if session is None:
            return
        session.close()
        for topic in self.topics:
            topic.thread.join(_LET_GO_S)

    @property
    def remarks(self) -> str:
        """What a summary should say, empty if nothing."""
        return "; ".join(
            f"{topic.name}: {topic.ignored} messages ignored, the last: {topic.error}" for topic in self.topics if topic.ignored
        )

    def _present(self) -> list[float]:
        self._require_connected()
        action = [0.0] * self.action_spec.dim
        if self.config.commanded == "position":
            with self._lock:
                for slot, joint in zip(self._slots, self._joints, strict=True):
                    action[slot] = self._values[joint, "position"][0]
        return action

    def _join(self) -> None:
        config, zenoh = self.config, self._zenoh
        cameras = [(camera, self._topic(config.images[camera.name], messages.IMAGE)) for camera in config.observation.cameras]
        joints, commands = self._topic(config.joint_states, messages.JOINT_STATE), self._topic(config.command_topic, _TYPES[config.command])
        most = max(messages.LARGEST_JOINT_STATE, *(messages.largest_image(camera) for camera, _ in cameras))
        try:
            session = self._session = zenoh.open(_session_config(zenoh, config, most))
        except zenoh.ZError as error:
            raise RobotFault(
                f"no Zenoh session with {[*config.connect, *config.listen]} ({error}): is the router running (ros2 run rmw_zenoh_cpp rmw_zenohd)?"
            ) from error
        session_id = str(session.zid())
        self._announce(node_token(config.domain_id, session_id, config.node))
        token = commands.token(session_id, config.node, 1, "MP", _COMMAND)
        self._gid = gid(token)
        self._publisher = session.declare_publisher(
            commands.key, congestion_control=zenoh.CongestionControl.DROP, priority=zenoh.Priority.REAL_TIME, express=True
        )
        self._announce(token)
        takes: list[tuple[TopicName, int, Callable[[bytes, float], None]]] = [(joints, messages.LARGEST_JOINT_STATE, self._take_joints)]
        takes += [(name, messages.largest_image(camera), functools.partial(self._take_frame, camera)) for camera, name in cameras]
        topics = []
        for entity, (name, largest, take) in enumerate(takes, 2):
            subscriber = session.declare_subscriber(name.key, zenoh.handlers.RingChannel(1))
            self._declared.append(subscriber)
            topics.append(_Topic(name.name, subscriber.handler, largest, take))
            self._announce(name.token(session_id, config.node, entity, "MS", _SENSOR))
        self.topics = tuple(topics)

    def _topic(self, name: str, type_name: str) -> TopicName:
        hashed = messages.type_hash(type_name) if self.config.type_hashes else NO_TYPE_HASH
        return TopicName(domain_id=self.config.domain_id, name=name, type_name=type_name, type_hash=hashed)

    def _announce(self, token: str) -> None:
        self._declared.append(self._session.liveliness().declare_token(token))

    def _take_joints(self, raw: bytes, received_s: float) -> None:
        joints = messages.decode_joint_state(raw)
        found = {}
        for name, quantity in self._sources:
            value = getattr(joints[name], quantity) if name in joints else None
            if value is not None:
                found[name, quantity] = (float(value), received_s)
        if not found:
            raise RobotFault(f"no {_listed(self._sources)} in it; it has {sorted(joints)[:20]}")
        with self._lock:
            self._values.update(found)

    def _take_frame(self, camera: CameraSpec, raw: bytes, received_s: float) -> None:
        frame = messages.decode_image(raw, camera)
        with self._lock:
            self._frames[camera.name] = (frame, received_s)

    def _missing(self) -> str:
        """Of what nothing came yet, in words."""
        with self._lock:
            sources = [source for source in self._sources if source not in self._values]
            cameras = [name for name in self.config.images if name not in self._frames]
        parts = [f"{_listed(sources)} on {self.config.joint_states!r}"] if sources else []
        return ", ".join([*parts, *(f"camera {name!r} on {self.config.images[name]!r}" for name in cameras)])

    def _heard(self) -> str:
        """What came and was ignored, or where to look."""
        if self.remarks:
            return f"{self.remarks}."
        return f"Are they published with rmw_zenoh, in domain {self.config.domain_id}, and {'with' if self.config.type_hashes else 'without'} type hashes?"

    def _is_heard(self) -> bool:
        status = self._publisher.matching_status
        return bool(getattr(status, "matching", status))

    def _await(self, condition: Callable[[], bool], complaint: Callable[[], str]) -> None:
        deadline_s = time.monotonic() + self.config.connect_timeout_s
        while not condition():
            if time.monotonic() > deadline_s:
                raise RobotFault(f"within {self.config.connect_timeout_s:g} s {complaint()}")
            time.sleep(_LOOK_S)

    def _require_connected(self) -> None:
        if self._session is None:
            raise RobotFault("the robot is not connected: call connect() first.")


def make_robot(*, robot_config: str | Path | None = None, **_: Any) -> Ros2Robot:
    """The robot that a file describes, not connected.

    Args:
        robot_config: File of a `Ros2Config`.

    Raises:
        CallerError: There is no such file.
        SpecError: It contradicts itself.
        MissingExtraError: Zenoh or rosbags are not installed.
    """
    return Ros2Robot(read_config(Ros2Config, robot_config))


def _listed(sources: list[tuple[str, messages.Quantity]] | tuple[tuple[str, messages.Quantity], ...]) -> str:
    return ", ".join(f"{quantity} of {name!r}" for name, quantity in sources)


def _import_zenoh() -> Any:
    try:
        import zenoh
        import zenoh.handlers
    except ModuleNotFoundError as error:
        raise MissingExtraError("eclipse-zenoh", "ros2", "a robot on ROS 2") from error
    return zenoh


def _session_config(zenoh: Any, config: Ros2Config, most: int) -> Any:
    """What rmw_zenoh's sessions have as well: no multicast; and no message larger than a frame may be."""
    settings = zenoh.Config()
    values = {
        "mode": config.mode,
        "connect/endpoints": list(config.connect),
        "connect/timeout_ms": round(config.connect_timeout_s * 1000),
        "connect/exit_on_failure": True,
        "listen/endpoints": list(config.listen),
        "scouting/multicast/enabled": False,
        "transport/link/rx/max_message_size": most + 4096,
    }
    for key, value in values.items():
        settings.insert_json5(key, json.dumps(value))
    return settings
