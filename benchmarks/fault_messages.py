"""Damaged messages into every decoder of what comes from another process or over a network: it reads them, or raises the one error that it declares."""

from __future__ import annotations

import collections
import pickle
import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm import tqdm

from actlet.errors import RemoteError
from actlet.protocols import ActionChunk
from benchmarks.fault_world import SPEC
from runtime.messages import pack_answer, unpack_answer
from runtime.wires import lerobot, openpi, openvla_rest
from runtime.wires.pickles import read_pickle

__all__ = ["damage", "fuzz"]


def damage(message: bytes, rng: random.Random) -> bytes:
    data = bytearray(message)
    for _ in range(rng.randint(1, 4)):
        what, place = rng.randrange(5), rng.randrange(len(data) + 1)
        if what == 0 and place < len(data):
            data[place] ^= 1 << rng.randrange(8)
        elif what == 1:
            del data[place:]
        elif what == 2:
            data[place:place] = rng.randbytes(rng.randint(1, 8))
        elif what == 3 and len(data) > 8:
            start = rng.randrange(len(data) - 4)
            data[place:place] = data[start : start + rng.randint(1, 16)]
        elif place < len(data):
            data[place] = rng.choice((0x00, 0x7F, 0x80, 0xC1, 0xDF, 0xFF, 0x22, 0x7B, 0x5D))
        if not data:
            data = bytearray(b"\x00")
    return bytes(data)


class _Nothing(Exception):
    """What a decoder that raises nothing declares."""


def _lerobot_pickle(shown: dict[str, Any]) -> bytes:
    """A TimedObservation as LeRobot's Python writes it: its fields by pickle itself, around them its class."""
    fields = pickle.dumps({"timestamp": 1.5, "timestep": 3, "observation": shown, "must_go": True}, protocol=4)
    return b"\x80\x04clerobot.async_inference.helpers\nTimedObservation\n)\x81" + fields[2:-1] + b"b."


def _messages() -> dict[str, tuple[bytes, Callable[[bytes], Any], type[Exception]]]:
    """Decoder -> a message, what reads it, and the error that it declares."""
    chunk = np.linspace(-1, 1, 32, dtype=np.float32).reshape(8, 4)
    seen = {
        "observation/image": np.zeros((4, 4, 3), np.uint8),
        "observation/state": np.zeros(3, np.float32),
        "prompt": "put the cup on the plate",
    }
    question: Any = type("Question", (), {"step": 3, "submitted_s": 1.0})()
    answer = b"".join(pack_answer(7, question, 2.0, ActionChunk(chunk, np.ones(8, np.float32))))
    rest = openvla_rest.pack({"actions": chunk, "image": np.zeros((4, 4, 3), np.uint8), "instruction": "put"})
    shown = {"x": 1.0, "y.pos": np.float32(2), "front": np.zeros((4, 4, 3), np.uint8), "task": "put"}
    safe = lerobot.TimedObservation(timestamp=1.5, timestep=3, must_go=True, values={**shown, "y.pos": 2.0}).pack()
    moved = lerobot.TimedActions(timesteps=list(range(8)), timestamps=[0.1] * 8, actions=chunk)
    return {
        "LeRobot observation": (safe, lerobot.read_observation, RemoteError),
        "LeRobot observation, pickle": (_lerobot_pickle(shown), lambda data: lerobot.read_observation(data, pickles=True), RemoteError),
        "LeRobot tensors, pickle": (moved.pack(pickled=True), read_pickle, RemoteError),
        "LeRobot setup": (lerobot.PolicySetup.of(SPEC.observation, 8).pack(), lerobot.read_setup, RemoteError),
        "LeRobot answer": (moved.pack(), lambda data: lerobot.read_actions(data, 4), RemoteError),
        "LeRobot piece": (next(lerobot.pieces(safe)), lerobot.read_piece, RemoteError),
        "openpi observation": (openpi.pack(seen), openpi.unpack, RemoteError),
        "openpi answer": (openpi.pack({"actions": chunk, "policy_timing": {"infer_ms": 3.0}}), openpi.unpack, RemoteError),
        "OpenVLA REST": (rest, openvla_rest.unpack, RemoteError),
        "answer of the policy's process": (answer, lambda content: unpack_answer(SPEC, content), _Nothing),
    }


def fuzz(messages: int, seed: int = 0, *, progress: bool = False) -> list[dict[str, Any]]:
    """Damaged messages into every decoder: ``decoder, messages, read, refused, undeclared``, and the first few that were undeclared."""
    rows = []
    for name, (message, read, declared) in _messages().items():
        rng, counts = random.Random(seed), collections.Counter[str]()
        first: list[str] = []
        for _ in tqdm(range(messages), desc=name, unit="message", disable=not progress, file=sys.stderr, leave=False):
            damaged = damage(message, rng)
            try:
                read(damaged)
                counts["read"] += 1
            except declared:
                counts["refused"] += 1
            except Exception as error:  # Whatever it is, it was not declared.
                counts["undeclared"] += 1
                if len(first) < 5:
                    first.append(f"{type(error).__name__}: {error}"[:200])
        rows.append(
            {"decoder": name, "messages": messages, **{key: counts[key] for key in ("read", "refused", "undeclared")}, "first": first}
        )
    return rows
