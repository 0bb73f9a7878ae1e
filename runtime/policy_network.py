"""policy.onnx, one network per instruction: what depends on the instruction alone is computed once, and is a constant from then on.

A robot is told what to do once and decides many times. condition.onnx computes from the instruction's vector whatever policy.onnx needs of it (scales
and biases of its convolutions, what to look for), and these values take the place of inputs (`runtime.fixed_inputs`) in a session of their own: made
when an instruction is first seen, kept for the last `KEPT` of them. Student of 1.9 M weights, ONNX Runtime 1.31, one thread, CPU medians by turns, against
the same network with the instruction as an input: 0.73 of its time in float and in int8, a fifth of its operators; a session takes as long to make as
15 to 25 decisions, and 7 MB in int8, 14 MB in float.

A TensorRT engine takes minutes to build, so there is one for all instructions: condition.onnx's values are inputs of it that stay on the GPU until the
instruction changes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actlet.errors import BundleError, RobotFault
from runtime.fixed_inputs import fix_inputs
from runtime.ort_backend import OrtModel, SessionConfig, Signature

if TYPE_CHECKING:
    from runtime.tensorrt_backend import TensorrtModel

__all__ = ["KEPT", "KEPT_BYTES", "PolicyNetwork", "sessions_kept"]

KEPT = 16
"""Most instructions whose sessions are kept, those used last."""
KEPT_BYTES = 256 << 20
"""Memory that they may take together; one is always kept. A session takes up to about twice its network's file: the constants, and what is packed of them."""
_VECTOR = "instruction"


def sessions_kept(size_bytes: int) -> int:
    """How many instructions' sessions of a network are kept.

    Args:
        size_bytes: Of policy.onnx.
    """
    return max(1, min(KEPT, KEPT_BYTES // max(1, 2 * size_bytes)))


class PolicyNetwork:
    """Runs like the one network that condition.onnx and policy.onnx are parts of.

    Args:
        policy: Content of policy.onnx.
        condition: Content of condition.onnx; None where policy.onnx reads the instruction's vector itself, or none.
        config: Threads and providers; condition.onnx always runs on the processor.
        engine: Opens an engine of policy.onnx, given the names of the inputs that are held, to run in ONNX Runtime's place; None for ONNX Runtime.

    Raises:
        BundleError: One cannot be loaded, or they do not fit each other.
        MissingLibraryError: A provider that was asked for is not what runs.
    """

    def __init__(
        self,
        policy: bytes,
        condition: bytes | None = None,
        *,
        config: SessionConfig | None = None,
        engine: Callable[[tuple[str, ...]], TensorrtModel] | None = None,
    ) -> None:
        self._policy, self._config = policy, config or SessionConfig()
        once = SessionConfig(integers=self._config.integers)
        self._condition = OrtModel(condition, config=once, where="condition.onnx") if condition is not None else None
        self._engine = engine(tuple(self._condition.outputs) if self._condition is not None else ()) if engine is not None else None
        self._held = b""  # The vector that the engine was told of.
        whole = self._engine or OrtModel(policy, config=self._config, where="policy.onnx")
        self.providers = whole.providers
        self.outputs = whole.outputs
        self.inputs: Signature = whole.inputs
        """Name -> type and shape of what `run` is fed with."""
        self._whole = whole if condition is None else None
        self._kept = sessions_kept(len(policy))
        self._fixed: OrderedDict[bytes, OrtModel] = OrderedDict()
        self._last: tuple[NDArray[np.float32], OrtModel] | None = None  # The vector that was asked for last, if nobody can change it.
        if self._condition is not None:
            given = self._condition.outputs
            if list(self._condition.inputs) != [_VECTOR] or any(whole.inputs.get(name) != what for name, what in given.items()):
                raise BundleError(
                    f"condition.onnx takes {self._condition.inputs} and gives {given}, but policy.onnx takes {whole.inputs}: files of two bundles? "
                    "Copy the whole bundle again."
                )
            self.inputs = {name: what for name, what in whole.inputs.items() if name not in given} | self._condition.inputs

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """One inference.

        Args:
            feeds: Every input by name.

        Returns:
            Every output by name, each a copy.

        Raises:
            BundleError: Another set of inputs, or one of another type or shape.
            RobotFault: ONNX Runtime failed while it ran.
        """
        if self._whole is not None:
            return self._whole.run(feeds)
        if _VECTOR not in feeds:
            raise BundleError(f"policy.onnx: fed with {sorted(feeds)}, expected {sorted(self.inputs)}.")
        rest = {name: array for name, array in feeds.items() if name != _VECTOR}
        if self._engine is None:
            return self.fixed(feeds[_VECTOR]).run(rest)
        self._tell(self._engine, feeds[_VECTOR])
        return self._engine.run(rest)

    def session(self, vector: NDArray[np.float32]) -> OrtModel | None:
        """What decides under an instruction, to be fed through `OrtModel.bound`; None where an engine runs, which only `run` feeds.

        Args:
            vector: float32 (1, E), or (1, 0) for a policy that reads no instruction; one that is read-only is known again by itself, not by its values.

        Raises:
            BundleError: A vector of another shape.
            RobotFault: What condition.onnx answers is not finite.
        """
        if self._last is not None and vector is self._last[0]:
            return self._last[1]
        if self._engine is not None:
            return None
        network = self.fixed(vector)
        if self._whole is None and not vector.flags.writeable:
            self._last = vector, network
        elif _VECTOR in network.bound:
            if vector.shape != network.bound[_VECTOR].shape:
                raise BundleError(f"policy.onnx: an instruction's vector of shape {vector.shape}, expected {network.bound[_VECTOR].shape}.")
            np.copyto(network.bound[_VECTOR], vector)
        return network

    def prepare(self, vector: NDArray[np.float32]) -> None:
        """Make ready for an instruction, so that its first decision takes no longer than the others.

        Args:
            vector: float32 (1, E); arguments and errors as for `run`.
        """
        if self._condition is None:
            return
        if self._engine is None:
            self.fixed(vector)
        else:
            self._tell(self._engine, vector)

    def forget(self) -> None:
        """Let go of the sessions that are kept."""
        self._fixed.clear()
        self._last = None

    def _tell(self, engine: TensorrtModel, vector: NDArray[np.float32]) -> None:
        key = vector.tobytes()
        if key != self._held:
            self._held = b""  # Until all of them are there.
            engine.hold(self._values(vector))
            self._held = key

    def fixed(self, vector: NDArray[np.float32]) -> OrtModel:
        """The network for one instruction.

        Args:
            vector: float32 (1, E).

        Raises:
            BundleError: A vector of another type or shape.
            RobotFault: What condition.onnx answers is not finite.
        """
        if self._condition is None:
            assert isinstance(self._whole, OrtModel)
            return self._whole
        key = vector.tobytes()
        network = self._fixed.get(key)
        if network is None:
            network = OrtModel(self.fixed_content(vector), config=self._config, where="policy.onnx")
            self._fixed[key] = network
            if len(self._fixed) > self._kept:
                self._fixed.popitem(last=False)
        self._fixed.move_to_end(key)
        return network

    def fixed_content(self, vector: NDArray[np.float32]) -> bytes:
        """The .onnx file of the network for one instruction; arguments and errors as for `fixed`."""
        return self._policy if self._condition is None else fix_inputs(self._policy, self._values(vector))

    def _values(self, vector: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """What condition.onnx says of an instruction."""
        assert self._condition is not None
        values = self._condition.run({_VECTOR: vector})
        if bad := [name for name, value in values.items() if not np.isfinite(value).all()]:
            raise RobotFault(f"condition.onnx answered with values that are not finite ({bad[:3]}); the instruction is refused.")
        return values
