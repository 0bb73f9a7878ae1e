#!/usr/bin/env python3
"""A LeRobot policy as a service on openpi's websocket. One file, for LeRobot's own environment: nothing of actlet is imported.

    LeRobot's environment (Python 3.12, torch)                         the robot's (actlet's runtime, no torch)
    python lerobot_server.py FOLDER --rate-hz 30      ◀─ openpi ─▶      RemotePolicy("ws://HOST:8000"), actlet run ws://HOST:8000

FOLDER is what LeRobot saves: config.json, model.safetensors, and the two processors. An observation goes the way that LeRobot's own
asynchronous inference takes: prepare_observation_for_inference, preprocessor, predict_action_chunk, and the postprocessor for every
action. It needs lerobot, torch, numpy, and: pip install websockets msgpack

Wire (openpi-client 0.1.2): the server speaks first, its metadata; then questions {"observation/<camera>": uint8 (height, width, 3),
"observation/state": float (S,), "prompt": words} and answers {"actions": float32 (H, A), ...}, one binary msgpack frame each. A question
that cannot be answered gets a text frame with the traceback, and the connection is closed. GET /healthz answers OK. There is no password.

The metadata hold a policy specification in actlet's words: what it sees, what it commands, and when. LeRobot saves the sizes, the rest has
to come from somewhere: with --spec from a JSON file (the "spec" of a bundle's manifest, or PolicySpec.to_dict()), without it names are
made up, limits are the dataset's own smallest and largest actions, and how the robot stands still is left open, so that
actlet's control loop asks for --spec before anything moves.
"""

from __future__ import annotations

import argparse
import asyncio
import http
import json
import logging
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

KINDS = "biuf"  # booleans, integers, floats: neither objects nor anything with a constructor


def pack(message: dict[str, Any]) -> bytes:
    """A message as one frame; arrays as openpi-client packs them."""

    def array(value: Any) -> Any:
        if isinstance(value, np.ndarray) and value.dtype.kind in KINDS:
            return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
        if isinstance(value, np.generic) and value.dtype.kind in KINDS:
            return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
        raise TypeError(f"{type(value).__name__} cannot be sent")

    packed: bytes = msgpack.packb(message, default=array)
    return packed


def unpack(frame: bytes | str) -> dict[str, Any]:
    """One frame as a message; arrays are copies.

    Raises:
        ValueError: A text frame, no map, or an array that contradicts itself.
    """

    def array(value: dict[Any, Any]) -> Any:
        if b"__ndarray__" not in value and b"__npgeneric__" not in value:
            return value
        dtype = np.dtype(value[b"dtype"])
        if dtype.kind not in KINDS:
            raise ValueError(f"an array of {dtype}: expected booleans, integers or floats.")
        if b"__npgeneric__" in value:
            return dtype.type(value[b"data"])
        return np.frombuffer(value[b"data"], dtype).reshape(value[b"shape"]).copy()

    if isinstance(frame, str):
        raise ValueError("a text frame: expected a binary one, a msgpack map.")
    message = msgpack.unpackb(frame, object_hook=array)
    if not isinstance(message, dict):
        raise ValueError(f"a frame holds {type(message).__name__}: expected a map.")
    return message


class LeRobotPolicy:
    """A saved LeRobot policy that answers messages.

    Args:
        folder: What LeRobot saved.
        spec: A policy specification, as actlet writes it; None to make one up of what LeRobot knows.
        rate_hz: Control steps in a second, needed where `spec` is None.
        device: Where it computes, as in "cpu" or "cuda".

    Raises:
        ValueError: It needs more than one observation, or `spec` contradicts it.
    """

    def __init__(self, folder: Path, spec: dict[str, Any] | None = None, *, rate_hz: float | None = None, device: str = "cpu") -> None:
        if not (folder / "config.json").is_file():
            raise ValueError("no config.json: expected the folder of a policy that LeRobot saved (its pretrained_model).")
        import torch
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies.factory import get_policy_class, make_pre_post_processors
        from lerobot.policies.utils import prepare_observation_for_inference

        self._torch, self._prepare = torch, prepare_observation_for_inference
        config = PreTrainedConfig.from_pretrained(str(folder))
        config.device = device
        if config.n_obs_steps != 1:
            raise ValueError(f"{folder}: {config.type} looks back on {config.n_obs_steps} observations; a question holds one.")
        self._device = torch.device(device)
        self._policy = get_policy_class(config.type).from_pretrained(str(folder), config=config)
        self._before, self._after = make_pre_post_processors(
            config,
            pretrained_path=str(folder),
            preprocessor_overrides={"device_processor": {"device": device}},
        )
        self._cameras = {key.rpartition(".")[2]: (key, tuple(feature.shape)) for key, feature in config.image_features.items()}
        self._state_dim = int(config.robot_state_feature.shape[0])
        blank = {f"observation/{name}": np.zeros((h, w, c), np.uint8) for name, (_, (c, h, w)) in self._cameras.items()}
        horizon, dim = self.infer({**blank, "observation/state": np.zeros(self._state_dim, np.float32), "prompt": "warm up"})[
            "actions"
        ].shape
        if spec is None:
            spec = self._made_up(horizon, dim, min(int(getattr(config, "n_action_steps", horizon)), horizon), rate_hz)
        self._check(spec, horizon, dim)
        self.metadata: dict[str, Any] = {"actlet": {"version": f"lerobot_server, {config.type}", "spec": spec, "teacher": None}}

    def infer(self, message: dict[str, Any]) -> dict[str, Any]:
        """A question's message to its answer's: ``actions`` float32 (H, A) in the robot's units, ``state``, ``policy_timing``.

        Raises:
            ValueError: A key is missing or holds something of another size, or the policy answers with values that are not finite.
        """
        frames = {}
        for name, (key, (channels, height, width)) in self._cameras.items():
            frame = _get(message, f"observation/{name}")
            if frame.dtype != np.uint8 or frame.shape != (height, width, channels):
                raise ValueError(f"observation/{name} is {frame.dtype} {frame.shape}: expected uint8 {(height, width, channels)}.")
            frames[key] = frame
        state = _get(message, "observation/state")
        if state.shape != (self._state_dim,) or not np.isfinite(state).all():
            raise ValueError(f"observation/state is {state.dtype} {state.shape}: expected {self._state_dim} finite numbers.")
        words = message.get("prompt")
        if not isinstance(words, str) or not words.strip():
            raise ValueError(f"'prompt' is {words!r}: expected words.")
        started = time.perf_counter()
        with self._torch.inference_mode():
            observation = self._prepare({**frames, "observation.state": state.astype(np.float32)}, self._device, words)
            chunk = self._policy.predict_action_chunk(self._before(observation))  # (1, H, A), normalised
            actions = np.stack([self._after(chunk[:, step])[0].cpu().numpy() for step in range(chunk.shape[1])]).astype(np.float32)
        if not np.isfinite(actions).all():
            raise ValueError("the policy answered with a value that is not finite; the chunk is refused.")
        return {"actions": actions, "state": state, "policy_timing": {"infer_ms": 1e3 * (time.perf_counter() - started)}}

    def _made_up(self, horizon: int, dim: int, execute_steps: int, rate_hz: float | None) -> dict[str, Any]:
        stats = next((step.stats["action"] for step in self._after.steps if "action" in (getattr(step, "stats", None) or {})), {})
        if rate_hz is None or not {"min", "max"} <= set(stats):
            raise ValueError("give --rate-hz, and --spec where the postprocessor does not hold the smallest and largest actions.")
        low, high = (np.asarray(stats[key], np.float64).ravel() for key in ("min", "max"))
        cameras = [{"name": name, "height": shape[1], "width": shape[2]} for name, (_, shape) in self._cameras.items()]
        return {
            "observation": {
                "cameras": cameras,
                "state_names": [f"state_{i}" for i in range(self._state_dim)],
                "state_units": ["1"] * self._state_dim,
            },
            "action": {
                "names": [f"action_{i}" for i in range(dim)],
                "units": ["1"] * dim,
                "kinds": ["continuous"] * dim,
                "low": [float(value) for value in low],
                "high": [float(max(value, least + 1e-6)) for value, least in zip(high, low, strict=True)],
                "frame": "unknown",
                "hold": None,
            },
            "timing": {
                "rate_hz": float(rate_hz),
                "horizon": horizon,
                "execute_steps": execute_steps,
                "max_delay_steps": horizon // 4,
            },
        }

    def _check(self, spec: dict[str, Any], horizon: int, dim: int) -> None:
        found = {
            "cameras": {c["name"]: (c["height"], c["width"]) for c in spec["observation"]["cameras"]},
            "state": len(spec["observation"]["state_names"]),
            "actions": len(spec["action"]["names"]),
            "horizon": spec["timing"]["horizon"],
        }
        own = {
            "cameras": {name: shape[1:] for name, (_, shape) in self._cameras.items()},
            "state": self._state_dim,
            "actions": dim,
            "horizon": horizon,
        }
        if found != own:
            raise ValueError(f"the specification says {found}, but the policy has {own}.")


def _get(message: dict[str, Any], key: str) -> np.ndarray:
    value = message.get(key)
    if not isinstance(value, np.ndarray):
        raise ValueError(f"{key!r} is {type(value).__name__}: expected an array; keys of the message: {sorted(map(str, message))}.")
    return value


async def serve_policy(policy: Any, host: str, port: int, *, ready: Any = None) -> None:
    """Serve until cancelled: questions of all connections, one at a time, as openpi's own server does.

    Args:
        policy: Has `metadata` (a map) and `infer(message) -> message`.
        host: Address to listen on.
        port: Port, 0 for any free one.
        ready: Called with the port once it listens.
    """
    turn = asyncio.Lock()

    async def converse(connection: Any) -> None:
        try:
            await connection.send(pack(policy.metadata))
            previous_ms = None
            async for frame in connection:
                started = time.perf_counter()
                try:
                    question = unpack(frame)
                    async with turn:
                        asked = time.perf_counter()
                        answer = await asyncio.to_thread(policy.infer, question)
                    timing = {"infer_ms": 1e3 * (time.perf_counter() - asked)}
                    if previous_ms is not None:
                        timing["prev_total_ms"] = previous_ms
                    reply = pack({**answer, "server_timing": timing})
                except Exception:
                    await connection.send(traceback.format_exc())
                    await connection.close(1011, "the question cannot be answered")
                    return
                await connection.send(reply)
                previous_ms = 1e3 * (time.perf_counter() - started)
        except (ConnectionClosed, OSError):
            return  # The robot went away.

    def health(connection: Any, request: Any) -> Any:
        return connection.respond(http.HTTPStatus.OK, "OK\n") if request.path == "/healthz" else None

    async with serve(
        converse, host, port, compression=None, max_size=None, process_request=health, logger=logging.getLogger("websockets.quiet")
    ) as listening:
        if ready is not None:
            ready(next(iter(listening.sockets)).getsockname()[1])
        await listening.serve_forever()


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a policy that LeRobot saved")
    parser.add_argument("--spec", type=Path, help="JSON file with the policy's specification, as actlet writes it")
    parser.add_argument("--rate-hz", type=float, help="control steps in a second, where there is no --spec")
    parser.add_argument("--device", default="cpu", help="where it computes (default: cpu)")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on; 0.0.0.0 for the network (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="port, 0 for any free one (default: 8000)")
    arguments = parser.parse_args(argv)
    spec = None if arguments.spec is None else json.loads(arguments.spec.read_text(encoding="utf-8"))
    try:
        policy = LeRobotPolicy(arguments.folder, spec, rate_hz=arguments.rate_hz, device=arguments.device)
    except (ValueError, OSError) as error:
        print(f"{arguments.folder}: {error}", file=sys.stderr)
        return 2

    def ready(port: int) -> None:
        print(f"{arguments.folder} at ws://{arguments.host}:{port}; stop with Ctrl-C", file=sys.stderr, flush=True)

    try:
        asyncio.run(serve_policy(policy, arguments.host, arguments.port, ready=ready))
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
