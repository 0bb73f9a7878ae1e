"""A bundle as a policy: the same `predict` as the torch student, without torch.

Loading replays golden.npz; a bundle whose answers are not those that it was made with is refused before any motion. An
instruction is encoded when it is first seen and remembered, so that a control step costs policy.onnx alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from actlet.errors import BundleError, RobotFault, UnknownNameError
from actlet.manifest import CONDITION_NAME, Manifest
from actlet.protocols import ActionChunk, Observation, committed_rows
from runtime.backends import BACKENDS
from runtime.bundle import Bundle, load_bundle
from runtime.golden import Golden
from runtime.networks import Networks
from runtime.ort_backend import SessionConfig

if TYPE_CHECKING:
    from runtime.tensorrt_backend import TensorrtModel

__all__ = ["BundlePolicy"]

_REMEMBERED_INSTRUCTIONS = 32


class BundlePolicy:
    """Implements `actlet.protocols.Policy` from a bundle's folder.

    Args:
        path: The bundle's folder.
        threads: Threads of ONNX Runtime.
        config: All session options, instead of `threads` and `backend`.
        backend: Of `runtime.backends.BACKENDS`: what runs policy.onnx.

    Raises:
        BundleError: The folder is not a sound bundle, or its answers differ from the recorded ones.
        MissingLibraryError: What was asked for cannot run here, or there is no engine of the bundle.
        UnknownNameError: No such backend.
    """

    def __init__(self, path: str | Path, *, threads: int = 1, config: SessionConfig | None = None, backend: str = "cpu") -> None:
        if backend not in BACKENDS:
            raise UnknownNameError("backend", backend, list(BACKENDS))
        self.bundle: Bundle = load_bundle(path)
        manifest = self.bundle.manifest
        if config is None:
            config = SessionConfig(threads=threads, integers=manifest.precision != "float8", providers=BACKENDS[backend])
        self.spec = manifest.spec
        self.networks = Networks(
            policy=self.bundle.read("policy.onnx"),
            condition=self.bundle.read(CONDITION_NAME) if CONDITION_NAME in manifest.files else None,
            instruction=self.bundle.read("instruction.onnx") if manifest.text_encoder is not None else None,
            tokenizer=self.bundle.read("tokenizer.json") if manifest.text_encoder is not None else None,
            spec=manifest.spec,
            text_encoder=manifest.text_encoder,
            config=config,
            engine=_engine_of(self.bundle) if backend == "tensorrt" else None,
        )
        self.clipped = 0
        """Action values outside the specification's limits so far; each was set to the limit."""
        places, steps = self.networks.places, self.spec.timing.horizon
        self._low, self._high = (np.full(max(place.stop for place in places.values()), end, np.float32) for end in (0, 1))  # Of confidence.
        self._low[places["actions"]], self._high[places["actions"]] = (
            np.tile(self.spec.action.low, steps),
            np.tile(self.spec.action.high, steps),
        )
        self._vectors: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        _self_test(self.networks, self.bundle.golden, manifest, str(self.bundle.path))

    def prepare(self, instruction: str) -> None:
        """Encode an instruction and make the network ready for it, so that its first decision takes no longer than the others.

        Raises:
            ObservationError: The text is longer than the encoder reads.
            RobotFault: A network answered with something that is not finite.
        """
        self.networks.prepare(self._vector(instruction)[0])

    def predict(self, observations: Sequence[Observation], instructions: Sequence[str]) -> list[ActionChunk]:
        """One chunk per observation, computed one after the other (a bundle's networks have batch 1).

        Raises:
            ObservationError: A frame or state of another size or type, an instruction that is too long, or more on its way than it can be told of.
            RobotFault: The network failed, or answered with something that is not finite.
        """
        if len(observations) == len(instructions) == 1:  # As on a robot.
            return [self._predict_one(observations[0], instructions[0])]
        return [self._predict_one(*pair) for pair in zip(observations, instructions, strict=True)]

    def _predict_one(self, observation: Observation, instruction: str) -> ActionChunk:
        self.spec.observation.check(observation.images, observation.state)
        committed = None if observation.committed is None else committed_rows(observation, self.spec)
        raw = self.networks.infer(observation.images, observation.state, self._vector(instruction), committed)
        # Actions and confidence at once, since whatever runs after an inference finds its code out of the caches: a call of numpy takes up to 10 us.
        inside = np.maximum(raw, self._low)  # np.clip takes ten times as long for so few values.
        np.minimum(inside, self._high, out=inside)
        if inside.data != raw.data:  # As numbers: NaN differs from itself, and infinity from a limit.
            self._require_finite(raw)
            place = self.networks.places["actions"]
            self.clipped += int(np.count_nonzero(inside[place] != raw[place]))
        return ActionChunk(*self.networks.parts(inside))

    def _require_finite(self, raw: NDArray[np.float32]) -> None:
        if not np.isfinite(raw).all():
            where = np.argwhere(~np.isfinite(self.networks.parts(raw)[0]))
            first = f"actions[{where[0][0]}] {self.spec.action.names[where[0][1]]!r}" if len(where) else "confidence"
            raise RobotFault(f"policy.onnx answered with a value that is not finite ({first}); the chunk is refused.")

    def _vector(self, instruction: str) -> NDArray[np.float32]:
        vector = self._vectors.get(instruction)
        if vector is None:
            vector = self.networks.embed(instruction)[None].copy()  # (1, E)
            if not np.isfinite(vector).all():
                raise RobotFault(f"instruction.onnx answered {instruction!r} with a vector that is not finite.")
            vector.flags.writeable = False  # Its network is found by what it is, not by what it holds (`runtime.policy_network`).
            self._vectors[instruction] = vector
            if len(self._vectors) > _REMEMBERED_INSTRUCTIONS:
                self._vectors.popitem(last=False)
        self._vectors.move_to_end(instruction)
        return vector


def _engine_of(bundle: Bundle) -> Callable[[tuple[str, ...]], TensorrtModel]:
    """Opens the engine of a bundle on this machine; nothing of TensorRT is imported before."""

    def open_engine(held: tuple[str, ...]) -> TensorrtModel:
        from runtime.tensorrt_backend import TensorrtModel
        from runtime.tensorrt_library import find_engine, load_library

        trt = load_library()
        path = find_engine(bundle.hash, trt, str(bundle.path))
        return TensorrtModel(path.read_bytes(), trt, held=held, where=str(path))

    return open_engine


def _self_test(networks: Networks, golden: Golden, manifest: Manifest, where: str) -> None:
    """Replay the recorded inputs; every answer must lie within the manifest's tolerance.

    Raises:
        BundleError: One does not, with the sample, the value, and how far it is off.
    """
    tolerance, spec = manifest.golden_tolerance, manifest.spec
    # A dimension that hardly moved in the data has a tiny range: a thousandth of what the robot may do is as good as equal.
    limits = np.asarray(spec.action.high) - np.asarray(spec.action.low)
    unit = np.maximum(manifest.tokenizer.high - manifest.tokenizer.low, 1e-3 * limits)  # (A,)
    vectors = {text: networks.embed(text) for text in dict.fromkeys(golden.text)}
    for i, text in enumerate(golden.text):
        images = {name: frames[i] for name, frames in golden.images.items()}
        actions, confidence = networks.answer(images, golden.state[i], golden.instruction[i], golden.committed[i])
        networks.forget()  # A robot is told one of these instructions at a time, and the memory of a session for each would be taken for nothing.
        checks = (
            ("instruction vector", np.abs(vectors[text] - golden.instruction[i]), tolerance.embedding),
            ("action, as a share of its range", np.abs(actions - golden.actions[i]) / unit, tolerance.actions),
            ("confidence", np.abs(confidence - golden.confidence[i]), tolerance.confidence),
        )
        for what, difference, most in checks:
            worst = float(np.max(difference, initial=0.0))
            if not worst <= most:  # Written so that NaN fails.
                made = manifest.lineage.versions.get("onnxruntime", "unknown")
                raise BundleError(
                    f"bundle {where}: self-test failed: sample {i} ({text!r}), {what}: off by {worst:.3g}, at most {most:.3g} allowed. "
                    f"The networks do not answer here as where the bundle was made (with onnxruntime {made}). "
                    "Make the bundle again on this kind of processor, or install the same onnxruntime."
                )
