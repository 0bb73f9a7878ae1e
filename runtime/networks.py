"""The two networks of a bundle with its tokenizer: text -> vector, and frames + state + vector -> chunk.

Nothing is clipped here: these are the raw answers, which golden.npz records and the self-test compares.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actlet.errors import BundleError
from actlet.manifest import TextEncoderInfo
from actlet.specs import PolicySpec
from runtime.golden import Golden
from runtime.network_check import check_network
from runtime.ort_backend import OrtModel, SessionConfig, Signature, places_in_block
from runtime.policy_network import PolicyNetwork
from runtime.wordpiece import WordPiece

if TYPE_CHECKING:
    from runtime.tensorrt_backend import TensorrtModel

__all__ = ["Networks"]


class Networks:
    """The content of a bundle's network files, ready to run.

    Args:
        policy: Content of policy.onnx.
        condition: Content of condition.onnx, if there is one.
        instruction: Content of instruction.onnx; None for a policy that reads no instruction, as the next.
        tokenizer: Content of tokenizer.json.
        spec: What the policy is said to take and give; the network's inputs and outputs must agree.
        text_encoder: The same for the instruction network.
        config: Threads, and the providers of policy.onnx; the instruction's network always runs on the processor.
        engine: Opens an engine in policy.onnx's place (`runtime.policy_network`), or None.

    Raises:
        BundleError: A file holds what a bundle's network may not hold (`runtime.network_check`), cannot be loaded, or its inputs and outputs are others
            than the specification says.
    """

    def __init__(
        self,
        *,
        policy: bytes,
        condition: bytes | None = None,
        instruction: bytes | None,
        tokenizer: bytes | None,
        spec: PolicySpec,
        text_encoder: TextEncoderInfo | None,
        config: SessionConfig | None = None,
        engine: Callable[[tuple[str, ...]], TensorrtModel] | None = None,
    ) -> None:
        self.spec = spec
        for name, content in (("policy.onnx", policy), ("condition.onnx", condition), ("instruction.onnx", instruction)):
            if content is not None:
                check_network(content, name)
        self._encoder = None
        if text_encoder is not None:
            if instruction is None or tokenizer is None:
                raise BundleError("a policy that reads instructions without instruction.onnx or tokenizer.json: export the bundle again.")
            on_processor = dataclasses.replace(config or SessionConfig(), providers=("CPUExecutionProvider",))
            self._encoder = _Encoder(instruction, tokenizer, text_encoder, on_processor)
        self._policy = PolicyNetwork(policy, condition, config=config, engine=engine)
        self._cameras = [(camera.name, f"images.{camera.name}") for camera in spec.observation.cameras]
        told = spec.timing.committed_steps
        self._nothing_on_its_way = np.zeros((told, 1 + spec.action.dim), np.float32) if told else None
        inputs: Signature = {f"images.{c.name}": ("uint8", (1, c.height, c.width, 3)) for c in spec.observation.cameras}
        inputs |= {"state": ("float32", (1, spec.observation.state_dim))}
        inputs |= {"instruction": ("float32", (1, text_encoder.embedding_dim))} if text_encoder is not None else {}
        if spec.timing.committed_steps:
            inputs["committed"] = ("float32", (1, spec.timing.committed_steps, 1 + spec.action.dim))
        _require_signature(self._policy.inputs, inputs, "policy.onnx takes")
        steps = spec.timing.horizon
        _require_signature(
            self._policy.outputs,
            {"actions": ("float32", (1, steps, spec.action.dim)), "confidence": ("float32", (1, steps))},
            "policy.onnx gives",
        )
        self.places = places_in_block(self._policy.outputs)
        """Where `actions` and `confidence` are in what `infer` returns."""
        self._actions, self._confidence, self._shape = self.places["actions"], self.places["confidence"], (steps, spec.action.dim)

    @property
    def providers(self) -> tuple[str, ...]:
        """What policy.onnx really runs on: ONNX Runtime's providers, or the name and version of TensorRT."""
        return self._policy.providers

    def embed(self, text: str) -> NDArray[np.float32]:
        """float32 (E,): the vector of an instruction; of no entries where the policy reads none.

        Raises:
            ObservationError: The text is longer than the encoder reads.
        """
        return self._encoder.embed(text) if self._encoder is not None else np.zeros(0, np.float32)

    def prepare(self, vector: NDArray[np.float32]) -> None:
        """Make policy.onnx ready for an instruction.

        Args:
            vector: float32 (E,), from `embed`.
        """
        if self._encoder is not None:
            self._policy.prepare(vector[None])

    def forget(self) -> None:
        """Let go of what is kept of instructions."""
        self._policy.forget()

    def answer(
        self,
        images: Mapping[str, NDArray[np.uint8]],
        state: NDArray[np.float32],
        vector: NDArray[np.float32],
        committed: NDArray[np.float32] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """One chunk.

        Args:
            images: Camera name -> uint8 (height, width, 3).
            state: float32 (S,).
            vector: float32 (E,), from `embed`.
            committed: float32 (D, 1 + A), of `actlet.protocols.committed_rows`; None for nothing on its way.

        Returns:
            Actions float32 (H, A) in physical units, not clipped, and confidence float32 (H,).
        """
        self.spec.observation.check(dict(images), state)
        return self.parts(self.infer(images, state, vector[None], committed).copy())

    def infer(
        self,
        images: Mapping[str, NDArray[np.uint8]],
        state: NDArray[np.float32],
        vector: NDArray[np.float32],
        committed: NDArray[np.float32] | None,
    ) -> NDArray[np.float32]:
        """`answer` for an observation that `ObservationSpec.check` has passed, with as few steps as there can be.

        Args:
            images: As for `answer`, as the others are.
            state: float32 (S,).
            vector: float32 (1, E).
            committed: float32 (D, 1 + A) or None.

        Returns:
            float32, with actions and confidence at `places`, not copied: the next call writes over it.
        """
        network = self._policy.session(vector)
        if network is None:
            return self._infer_by_engine(images, state, vector, committed)
        bound = network.bound
        for name, fed in self._cameras:
            np.copyto(bound[fed], images[name])
        np.copyto(bound["state"], state)
        if self._nothing_on_its_way is not None:
            np.copyto(bound["committed"], self._nothing_on_its_way if committed is None else committed)
        return network.infer()

    def _infer_by_engine(
        self,
        images: Mapping[str, NDArray[np.uint8]],
        state: NDArray[np.float32],
        vector: NDArray[np.float32],
        committed: NDArray[np.float32] | None,
    ) -> NDArray[np.float32]:
        feeds: dict[str, NDArray[Any]] = {fed: images[name][None] for name, fed in self._cameras}
        feeds["state"] = state.astype(np.float32, copy=False)[None]
        if self._encoder is not None:
            feeds["instruction"] = vector
        if self._nothing_on_its_way is not None:
            feeds["committed"] = (self._nothing_on_its_way if committed is None else committed)[None]
        block = np.zeros(max(place.stop for place in self.places.values()), np.float32)
        for name, values in self._policy.run(feeds).items():
            block[self.places[name]] = values.ravel()
        return block

    def parts(self, block: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Actions (H, A) and confidence (H,) of what `infer` returned."""
        return block[self._actions].reshape(self._shape), block[self._confidence]

    def record(
        self,
        images: Mapping[str, NDArray[np.uint8]],
        state: NDArray[np.float32],
        text: Sequence[str],
        committed: NDArray[np.float32] | None = None,
    ) -> Golden:
        """The golden answers of these networks, for a bundle's self-test.

        Args:
            images: Camera name -> uint8 (N, height, width, 3).
            state: float32 (N, S).
            text: N instructions.
            committed: float32 (N, D, 1 + A), or None for nothing on its way.
        """
        if committed is None:
            committed = np.zeros((len(text), self.spec.timing.committed_steps, 1 + self.spec.action.dim), np.float32)
        vectors = np.stack([self.embed(line) for line in text])
        answers = [
            self.answer({name: frames[i] for name, frames in images.items()}, state[i], vectors[i], committed[i]) for i in range(len(text))
        ]
        return Golden(
            images=dict(images),
            state=state.astype(np.float32),
            text=tuple(text),
            instruction=vectors,
            committed=committed,
            actions=np.stack([actions for actions, _ in answers]),
            confidence=np.stack([confidence for _, confidence in answers]),
        )


class _Encoder:
    """Text -> vector."""

    def __init__(self, network: bytes, tokenizer: bytes, info: TextEncoderInfo, config: SessionConfig | None) -> None:
        self._tokenizer = WordPiece(tokenizer, max_tokens=info.max_tokens)
        self._network = OrtModel(network, config=config, where="instruction.onnx")
        tokens = (1, info.max_tokens)
        inputs: Signature = {"input_ids": ("int64", tokens), "attention_mask": ("int64", tokens)}
        _require_signature(self._network.inputs, inputs, "instruction.onnx takes")
        outputs = self._network.outputs
        self._output = next(iter(outputs))
        _require_signature(outputs, {self._output: ("float32", (1, info.embedding_dim))}, "instruction.onnx gives")

    def embed(self, text: str) -> NDArray[np.float32]:
        ids, mask = self._tokenizer.encode(text)
        vector = self._network.run({"input_ids": ids, "attention_mask": mask})[self._output]
        return np.asarray(vector[0], np.float32)


def _require_signature(got: Signature, expected: Signature, what: str) -> None:
    if got != expected:
        raise BundleError(f"{what} {got}, expected {expected} from the manifest's specification: export the bundle again.")
