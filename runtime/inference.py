"""Where the policy runs: the seam between the control loop, which must never wait, and the network, which takes its time.

The loop hands over an observation (`submit`), goes on, and asks in every step whether an answer is there (`poll`). What raises,
hangs or answers nonsense on the other side is an `Answer` without a chunk, or no answer: never an exception in the loop.

`InlineInference` computes inside `submit`: for simulations whose time waits. `ThreadInference` computes in a thread; ONNX
Runtime lets go of the interpreter while it computes.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Callable
from typing import Protocol

from actlet.protocols import ActionChunk, Observation, Policy

__all__ = ["Answer", "Inference", "InlineInference", "ThreadInference"]

_CLOSE_TIMEOUT_S = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back for one observation."""

    observed_at: int
    """Step of the observation."""
    chunk: ActionChunk | None
    """None when the policy failed."""
    error: str
    """What failed, empty otherwise."""
    submitted_s: float
    """Clock when the observation was handed over."""
    finished_s: float
    """Clock when the chunk was there."""
    elsewhere: bool = False
    """Of the policy that is asked when the robot's own is unsure."""


class Inference(Protocol):
    """Where the policy runs."""

    def submit(self, observation: Observation, instruction: str, step: int) -> bool:
        """Hand over an observation; False when the policy is still busy with the one before."""
        ...

    def poll(self) -> Answer | None:
        """The answer that has arrived since, if any; never waits."""
        ...

    def close(self) -> None:
        """Stop; waits a bounded time."""
        ...


def _answer(policy: Policy, observation: Observation, instruction: str, step: int, clock: Callable[[], float]) -> Answer:
    submitted = clock()
    try:
        (chunk,) = policy.predict([observation], [instruction])
        return Answer(observed_at=step, chunk=chunk, error="", submitted_s=submitted, finished_s=clock())
    except Exception as error:  # Whatever a policy raises, the loop must see it as an answer.
        text = f"{type(error).__name__}: {error}"
        return Answer(observed_at=step, chunk=None, error=text, submitted_s=submitted, finished_s=clock())


class InlineInference:
    """The policy runs inside `submit`: the loop waits for it."""

    def __init__(self, policy: Policy, clock: Callable[[], float]) -> None:
        self._policy, self._clock = policy, clock
        self._ready: Answer | None = None

    def submit(self, observation: Observation, instruction: str, step: int) -> bool:
        """Compute now."""
        self._ready = _answer(self._policy, observation, instruction, step, self._clock)
        return True

    def poll(self) -> Answer | None:
        """The answer of the last `submit`, once."""
        ready, self._ready = self._ready, None
        return ready

    def close(self) -> None:
        """Nothing to stop."""


class ThreadInference:
    """The policy runs in a thread of its own, one observation at a time."""

    def __init__(self, policy: Policy, clock: Callable[[], float]) -> None:
        self._policy, self._clock = policy, clock
        self._work: queue.SimpleQueue[tuple[Observation, str, int] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._busy = False
        # A daemon: a policy that hangs must not keep the program alive after the robot has been stopped.
        self._thread = threading.Thread(target=self._serve, name="actlet-inference", daemon=True)
        self._thread.start()

    def submit(self, observation: Observation, instruction: str, step: int) -> bool:
        """Hand over, unless the policy is busy."""
        if self._busy:
            return False
        self._busy = True
        self._work.put((observation, instruction, step))
        return True

    def poll(self) -> Answer | None:
        """The answer, if the thread has one."""
        try:
            answer = self._done.get_nowait()
        except queue.Empty:
            return None
        self._busy = False
        return answer

    def close(self) -> None:
        """Let the thread end; a policy that hangs is left behind after two seconds."""
        self._work.put(None)
        self._thread.join(_CLOSE_TIMEOUT_S)

    def _serve(self) -> None:
        while (work := self._work.get()) is not None:
            self._done.put(_answer(self._policy, *work, self._clock))
