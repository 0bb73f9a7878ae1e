"""How rmw_zenoh, ROS 2 on Zenoh, names and marks what it sends: key expressions, liveliness tokens, attachments.

Read from ros2/rmw_zenoh (docs/design.md, liveliness_utils.cpp, attachment_helpers.cpp and qos.cpp of the releases since Jazzy)::

    topic       <domain>/<topic without its first slash>/<package>::msg::dds_::<Type>_/<type hash>
    token       @ros2_lv/<domain>/<session>/<node id>/<entity id>/<NN|MP|MS>/<enclave>/<namespace>/<node>[/<topic>/<type>/<type hash>/<qos>]
    attachment  sequence number (int64), nanoseconds since 1970 (int64), 16, 16 bytes of the publisher; little-endian, 33 bytes

In a token names are mangled: every "/" is "%", and an enclave or a namespace that is empty is "%" too. A type hash is REP 2011's RIHS01; Humble knows none
and says "TypeHashNotSupported". Subscribers of rmw_zenoh drop what has no attachment. Their gid of a publisher is a hash (XXH3) of its token; ours is
another hash of it: as unique, but not the one under which `ros2 topic info` lists the publisher.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import struct
from typing import Literal

from actlet.errors import SpecError

__all__ = ["NO_TYPE_HASH", "Qos", "TopicName", "attachment", "gid", "node_token", "require_name", "require_topic"]

NO_TYPE_HASH = "TypeHashNotSupported"
_GID_BYTES = 16
_TOPIC = re.compile(r"(/[A-Za-z_][A-Za-z0-9_]*)+")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qos:
    """Quality of service as a token says it: volatile, keep the last `depth`. Zenoh delivers alike whatever it says; `ros2 topic info -v` shows it."""

    reliable: bool
    depth: int

    def __str__(self) -> str:
        # Reliability, durability, history and depth, deadline, lifespan, liveliness; what rmw_zenoh takes as its default is left out. 2 is best effort.
        return f"{'' if self.reliable else 2}::,{self.depth}:,:,:,,"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopicName:
    """A topic of one type."""

    domain_id: int
    name: str
    """As in "/camera/image_raw"."""
    type_name: str
    """As in "sensor_msgs/msg/Image"."""
    type_hash: str
    """As in "RIHS01_…", or `NO_TYPE_HASH`."""

    @property
    def dds_type(self) -> str:
        """As in "sensor_msgs::msg::dds_::Image_"."""
        package, kind, name = self.type_name.split("/")
        return f"{package}::{kind}::dds_::{name}_"

    @property
    def key(self) -> str:
        """Where its messages are published."""
        return f"{self.domain_id}/{self.name.strip('/')}/{self.dds_type}/{self.type_hash}"

    def token(self, session_id: str, node: str, entity_id: int, kind: Literal["MP", "MS"], qos: Qos) -> str:
        """What says that a node publishes ("MP") it or subscribes to it ("MS")."""
        front = f"@ros2_lv/{self.domain_id}/{session_id}/0/{entity_id}/{kind}/%/%/{node}"
        return f"{front}/{self.name.replace('/', '%')}/{self.dds_type}/{self.type_hash}/{qos}"


def node_token(domain_id: int, session_id: str, node: str) -> str:
    """What says that a node is there."""
    return f"@ros2_lv/{domain_id}/{session_id}/0/0/NN/%/%/{node}"


def gid(token: str) -> bytes:
    """16 bytes for an entity, of its token."""
    return hashlib.blake2b(token.encode(), digest_size=_GID_BYTES).digest()


def attachment(sequence: int, time_ns: int, publisher: bytes) -> bytes:
    """What goes with every message.

    Args:
        sequence: Of this publisher, counted from 1.
        time_ns: When it was published, nanoseconds since 1970.
        publisher: Its gid.
    """
    return struct.pack("<qqB16s", sequence, time_ns, _GID_BYTES, publisher)


def require_topic(name: str) -> None:
    """Refuse what is no full name of a topic; nothing that Zenoh would take for a pattern passes.

    Raises:
        SpecError: It is none.
    """
    if not _TOPIC.fullmatch(name):
        raise SpecError(f"topic {name!r}: expected a full name of letters, digits and _, as in '/joint_states' or '/camera/image_raw'.")


def require_name(name: str) -> None:
    """Refuse what is no name of a node.

    Raises:
        SpecError: It is none.
    """
    if not _NAME.fullmatch(name):
        raise SpecError(f"node {name!r}: expected a name of letters, digits and _, as in 'actlet'.")
