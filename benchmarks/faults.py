"""What comes of faults, counted: the control loop in virtual time, and the decoders of what comes over a network.

    python -m benchmarks.faults --events 1200000 --messages 1000000 --out benchmarks/results/faults.json

Every fault of a class is injected into an answer, an observation or the clock, at random, run after run; a command is unsafe if it is not finite, outside
the limits, a flag that is neither 0 nor 1, or a larger change than `max_change`. A crash is whatever leaves `drive`. A decoder may raise the one error that it
declares; anything else is counted as undeclared.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import pickle
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlet.errors import RemoteError
from actlet.protocols import ActionChunk, Observation
from actlet.provenance import utc_now
from actlet.specs import ActionSpec, CameraSpec, ObservationSpec, PolicySpec, TimingSpec
from actlet.storage import write_json
from benchmarks.machine import describe_machine, describe_versions
from runtime.control_loop import LoopConfig, drive
from runtime.inference import Answer
from runtime.messages import pack_answer, unpack_answer
from runtime.wires import lerobot, openpi, openvla_rest
from runtime.wires.pickles import read_pickle

__all__ = ["FAULTS", "damage", "fuzz", "inject"]

SPEC = PolicySpec(
    observation=ObservationSpec(
        cameras=(CameraSpec(name="front", height=8, width=8),), state_names=("x", "y", "z"), state_units=("m", "m", "m")
    ),
    action=ActionSpec(
        names=("dx", "dy", "angle", "gripper"),
        units=("m", "m", "rad", "1"),
        kinds=("continuous", "continuous", "continuous", "binary"),
        low=(-0.05, -0.05, -3.0, 0),
        high=(0.05, 0.05, 3.0, 1),
        frame="base",
        hold=("zero", "zero", "last", "last"),
    ),
    timing=TimingSpec(rate_hz=20, horizon=8, execute_steps=2, max_delay_steps=4, committed_steps=2),
)
MAX_CHANGE = (0.02, 0.02, 0.1, 1.0)
SHARE = 0.5
"""Of the answers and observations that are spoiled."""
STEPS = 400
"""Of one run, at most."""


def _spoil_chunk(kind: str, chunk: ActionChunk, rng: random.Random) -> Any:
    """A chunk that no policy should give."""
    actions = chunk.actions.copy()
    place = (rng.randrange(len(actions)), rng.randrange(actions.shape[1]))
    values = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf, "huge": 1e30, "denormal": 1e-42, "-huge": -1e30}
    if kind in values:
        actions[place] = values[kind]
    elif kind == "all nan":
        actions[:] = np.nan
    elif kind == "opposite":
        actions *= -1e3
    elif kind == "short":
        actions = actions[: rng.randrange(len(actions))]
    elif kind == "permuted":
        actions = actions.T.copy()
    elif kind == "wide":
        actions = np.concatenate([actions, actions], axis=1)
    elif kind == "double":
        return dataclasses.replace(chunk, actions=actions.astype(np.float64) * 1e300)
    elif kind == "words":
        return dataclasses.replace(chunk, actions=np.array([["a"] * actions.shape[1]] * len(actions)))
    elif kind == "objects":
        return dataclasses.replace(chunk, actions=np.full(actions.shape, None, dtype=object))
    elif kind == "none":
        return dataclasses.replace(chunk, actions=None)
    elif kind == "no chunk":
        return "nothing of the kind"
    return dataclasses.replace(chunk, actions=actions)


FAULTS: dict[str, tuple[str, ...]] = {
    "chunk": (
        *(
            "nan",
            "inf",
            "-inf",
            "huge",
            "-huge",
            "denormal",
            "all nan",
            "opposite",
            "short",
            "permuted",
            "wide",
            "double",
            "words",
            "objects",
            "none",
        ),
        "no chunk",
    ),
    "timing": ("late", "very late", "dropped", "duplicate", "from the future", "from the past", "raised"),
    "camera": ("missing", "stale", "frozen", "black", "small", "float", "other name", "state nan", "state short", "raised"),
    "clock": ("forward", "back", "slow step"),
}
"""Class -> kinds."""


class _World:
    """A robot, a policy, a place of inference and a clock, all of which can be told to fail."""

    def __init__(self, rng: random.Random, kinds: dict[str, Sequence[str]]) -> None:
        self.rng, self.kinds = rng, kinds
        self.now_s = 1000.0
        self.observation_spec, self.action_spec, self.rate_hz, self.spec = SPEC.observation, SPEC.action, SPEC.timing.rate_hz, SPEC
        self.injected: collections.Counter[str] = collections.Counter()
        self.unsafe: list[str] = []
        self.commands, self.last = 0, None
        self.waiting: list[tuple[int, Answer]] = []  # Step at which it arrives.
        self.step = 0
        self.frame = np.zeros((8, 8, 3), np.uint8)
        low, high = np.array(SPEC.action.low), np.array(SPEC.action.high)
        self.low, self.high, self.change = low - 1e-6, high + 1e-6, np.array(MAX_CHANGE) * (1 + 1e-5)

    def fault(self, what: str) -> str:
        """A kind of fault of a class, or none this time."""
        if what not in self.kinds or self.rng.random() > SHARE:
            return ""
        self.injected[what] += 1
        return self.rng.choice(self.kinds[what])

    # --- the clock

    def clock(self) -> float:
        """Virtual seconds."""
        return self.now_s

    def sleep(self, seconds: float) -> None:
        """Let time pass, or more, or less."""
        kind = self.fault("clock") if self.rng.random() < 0.3 else ""
        self.now_s += seconds + {"": 0.0, "forward": 3600.0, "back": -3600.0, "slow step": 0.3}[kind]
        self.step += 1

    # --- the robot

    def connect(self) -> None:
        """A new run."""

    def disconnect(self) -> None:
        """Its end."""

    def get_observation(self) -> Observation:
        """What is seen, or what a broken camera makes of it."""
        kind = self.fault("camera")
        if kind != "frozen":
            self.frame = self.rng.randbytes(192)  # type: ignore[assignment]
        picture = np.frombuffer(self.frame, np.uint8).reshape(8, 8, 3)
        state, taken = np.zeros(3, np.float32), self.now_s
        if kind == "raised":
            raise OSError("the camera is gone")
        images = {"front": picture}
        if kind == "missing":
            images = {}
        elif kind == "other name":
            images = {"wrist": picture}
        elif kind == "black":
            images = {"front": np.zeros_like(picture)}
        elif kind == "small":
            images = {"front": picture[:4]}
        elif kind == "float":
            images = {"front": picture.astype(np.float32)}
        elif kind == "stale":
            taken -= 10.0
        elif kind == "state nan":
            state = np.array([0, np.nan, 0], np.float32)
        elif kind == "state short":
            state = state[:2]
        return Observation(images, state, taken_s=taken)

    def send_action(self, action: NDArray[np.float32]) -> None:
        """Is it safe?"""
        self.commands += 1
        value = np.asarray(action, np.float64)
        if value.shape != (4,) or not np.isfinite(value).all() or (value < self.low).any() or (value > self.high).any():
            self.unsafe.append(f"{value}")
        elif value[3] not in (0.0, 1.0) or (self.last is not None and (np.abs(value - self.last)[:3] > self.change[:3] + 1e-7).any()):
            self.unsafe.append(f"{self.last} -> {value}")
        self.last = value

    # --- inference

    def submit(self, observation: Observation, instruction: str, step: int) -> bool:
        """A chunk that wanders, spoiled or late."""
        if len(self.waiting) > 3:
            return False
        wander = np.array([[self.rng.uniform(-0.06, 0.06), self.rng.uniform(-0.06, 0.06), self.rng.uniform(-3.2, 3.2), self.rng.random()]])
        chunk: Any = ActionChunk(np.repeat(wander, 8, axis=0).astype(np.float32), np.ones(8, np.float32))
        if kind := self.fault("chunk"):
            chunk = _spoil_chunk(kind, chunk, self.rng)
        kind = self.fault("timing")
        delay = {"late": self.rng.randint(2, 6), "very late": self.rng.randint(8, 40)}.get(kind, self.rng.randint(0, 1))
        observed = step + {"from the future": 50, "from the past": -50}.get(kind, 0)
        error = "it raised" if kind == "raised" else ""
        answer = Answer(
            observed_at=observed, chunk=None if error else chunk, error=error, submitted_s=self.now_s, finished_s=self.now_s + 0.01
        )
        if kind != "dropped":
            self.waiting += [(self.step + delay, answer)] * (2 if kind == "duplicate" else 1)
        return True

    def poll(self) -> Answer | None:
        """What has arrived."""
        for place, (arrives, answer) in enumerate(self.waiting):
            if arrives <= self.step:
                del self.waiting[place]
                return answer
        return None

    def close(self) -> None:
        """Nothing to stop."""

    def predict(self, observations: Sequence[Observation], instructions: Sequence[str]) -> list[ActionChunk]:
        """Never asked: inference is above."""
        raise AssertionError


def inject(events: int, classes: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Runs of the loop until so many faults were injected.

    Returns:
        ``class, injected, unsafe, crashes, commands, runs, ends`` (reason -> runs), and the first few that were unsafe.
    """
    rng = random.Random(seed)
    total: dict[str, Any] = {"class": " + ".join(classes), "injected": 0, "unsafe": 0, "crashes": 0, "commands": 0, "runs": 0, "first": []}
    ends: collections.Counter[str] = collections.Counter()
    config = LoopConfig(max_steps=STEPS, max_change=MAX_CHANGE, inference="thread")
    while total["injected"] < events:
        world = _World(rng, {name: FAULTS[name] for name in classes})
        try:
            result = drive(
                world, world, "put", config, clock=world.clock, sleep=world.sleep, inference=lambda policy, clock, world=world: world
            )  # type: ignore[misc]
            ends[result.stopped_by] += 1
        except Exception as error:  # Nothing may leave it.
            total["crashes"] += 1
            total["first"].append(f"{type(error).__name__}: {error}"[:300])
        total["injected"] += sum(world.injected.values())
        total["unsafe"] += len(world.unsafe)
        total["commands"] += world.commands
        total["runs"] += 1
        total["first"] = (total["first"] + world.unsafe)[:5]
    return total | {"ends": dict(ends)}


def damage(message: bytes, rng: random.Random) -> bytes:
    """A message with one to four bits flipped, bytes lost, put in, doubled or set."""
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


def fuzz(messages: int, seed: int = 0) -> list[dict[str, Any]]:
    """Damaged messages into every decoder: ``decoder, messages, read, refused, undeclared``, and the first few that were undeclared."""
    rows = []
    for name, (message, read, declared) in _messages().items():
        rng, counts = random.Random(seed), collections.Counter[str]()
        first: list[str] = []
        for _ in range(messages):
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


def _resident_bytes() -> int:
    import os

    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m benchmarks.faults`: count, print, and write the document."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--events", type=int, default=1_200_000, help="faults in all, shared out among the classes (default: %(default)s)")
    parser.add_argument("--messages", type=int, default=1_000_000, help="damaged messages for each decoder (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where the document is written")
    arguments = parser.parse_args(argv)
    groups = [*([name] for name in FAULTS), list(FAULTS)]
    inject(1000, list(FAULTS), seed=arguments.seed + 1)  # What is made at the first time is made.
    before, start, faults = _resident_bytes(), time.perf_counter(), []
    for classes in groups:
        faults.append(inject(arguments.events // len(groups), classes, arguments.seed))
        row = faults[-1]
        print(
            f"{row['class']:<32} {row['injected']:>9} injected  {row['unsafe']} unsafe  {row['crashes']} crashes  {row['commands']} commands  {row['ends']}",
            flush=True,
        )
    soak = {
        "ticks": sum(row["commands"] for row in faults),
        "faults": sum(row["injected"] for row in faults),
        "memory_growth_bytes": _resident_bytes() - before,
        "seconds": time.perf_counter() - start,
    }
    decoders = fuzz(arguments.messages, arguments.seed)
    for row in decoders:
        print(
            f"{row['decoder']:<32} {row['messages']:>9} messages  {row['read']} read  {row['refused']} refused  {row['undeclared']} undeclared {row['first'][:1]}"
        )
    print(f"{soak['ticks']} commands with {soak['faults']} faults: memory grew by {soak['memory_growth_bytes'] / 1e6:.2f} MB")
    document = {
        "date": utc_now(),
        "machine": describe_machine(),
        "versions": describe_versions(),
        "faults": faults,
        "fuzz": decoders,
        "soak": soak,
    }
    if arguments.out is not None:
        write_json(arguments.out, document)
    bad = any(row["unsafe"] or row["crashes"] for row in faults) or any(row["undeclared"] for row in decoders)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
