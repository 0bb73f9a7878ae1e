"""A teacher on another machine: `actlet serve` with a teacher's checkpoint there, labels for a student here.

    frames ─┬─ connection 1 ─ question ─┐                        openpi's wire is in lock-step, one question at a time, so a batch
            ├─ connection 2 ─ question ─┼─▶ server ─ one batch   travels over several connections, and the server answers together
            └─ connection n ─ question ─┘                        what has come

What comes back is checked: float (A, K) of the teacher's own bins, finite, not negative, every row adding up to 1. Who the teacher is
(the hash of its weights, its tokenizer, its specification) is learned when connecting and compared whenever a connection is made anew:
a server that was restarted with another teacher is refused, so that one set of labels is never two teachers'.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from actlet.action_tokens import ActionTokenizer
from actlet.errors import CallerError, RemoteError, SpecError
from actlet.protocols import ActionChunk, Observation
from actlet.specs import PolicySpec
from runtime.access import RemoteAccess
from runtime.remote_policy import METADATA_KEY, RemotePolicy, read_floats
from runtime.wires.openpi import DISTRIBUTION_KEY

__all__ = ["RemoteTeacher"]

T = TypeVar("T")

_SUM_TOLERANCE = 5e-3  # Ten times what rounding a row to float16 can change: half of 2**-10 of every value, of 1 in all.


class RemoteTeacher:
    """Implements `actlet.protocols.Teacher` over a websocket; not to be shared by threads.

    Args:
        url: As in "ws://10.0.0.2:8000".
        spec: What is needed; None: what the server says.
        connections: Questions on their way at once. Twice the server's largest batch: while one is computed, the next one gathers.
        connect_timeout_s: For one connection and the server's first words.
        answer_timeout_s: For one answer. Labels can wait longer than a robot.
        access: The token, and whose certificates are believed; None: the token of ACTLET_TOKEN, if there is one, and the system's.

    Raises:
        RemoteError: It cannot be reached, or does not speak openpi.
        CallerError: It refuses the token, or its certificate is not believed.
        SpecError: It is no teacher, or differs from `spec`.
        MissingExtraError: `websockets` or `msgpack` is not installed.
    """

    def __init__(
        self,
        url: str,
        spec: PolicySpec | None = None,
        *,
        connections: int = 32,
        connect_timeout_s: float = 10.0,
        answer_timeout_s: float = 60.0,
        access: RemoteAccess | None = None,
    ) -> None:
        if connections < 1:
            raise CallerError(f"connections {connections}: expected 1 or more.")
        self.url, self.connections = url, connections
        self._options: dict[str, Any] = {
            "connect_timeout_s": connect_timeout_s,
            "answer_timeout_s": answer_timeout_s,
            "access": access,
        }
        first = _Line(url, spec, **self._options)
        self._lines = [first]
        self.spec = first.spec
        self.tokenizer: ActionTokenizer = first.tokenizer
        """Bounds and number of the bins that the distributions are over."""
        self.content_hash = str(first.teacher["content_hash"])
        """SHA-256 of the teacher's weights, as the server says."""

    def action_distribution(self, observations: Sequence[Observation], instructions: Sequence[str]) -> NDArray[np.float32]:
        """float32 (B, A, K): see `actlet.protocols.Teacher`; questions travel over several connections at once.

        Raises:
            ObservationError: A frame or state of another size or type.
            RemoteError: No answer in time, a lost connection, the server's own error, or an answer that cannot be used.
            SpecError: The server is another teacher than it was.
        """
        rows = self._spread(_Line.distribution, observations, instructions)
        return np.stack(rows) if rows else np.zeros((0, self.spec.action.dim, self.tokenizer.bins), np.float32)

    def predict(self, observations: Sequence[Observation], instructions: Sequence[str]) -> list[ActionChunk]:
        """One chunk per observation; see `actlet.protocols.Policy`. Raises what `action_distribution` does."""
        return self._spread(
            lambda line, observation, instruction: line.predict([observation], [instruction])[0], observations, instructions
        )

    def close(self) -> None:
        """Close all connections; the next question makes new ones."""
        for line in self._lines:
            line.close()

    def __enter__(self) -> RemoteTeacher:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def _spread(
        self, ask: Callable[[_Line, Observation, str], T], observations: Sequence[Observation], instructions: Sequence[str]
    ) -> list[T]:
        """Every connection asks for the next observation until none is left; answers in the order of the questions."""
        pairs = list(zip(observations, instructions, strict=True))
        while len(self._lines) < min(self.connections, len(pairs)):
            self._lines.append(_Line(self.url, self.spec, teacher=self._lines[0].teacher, **self._options))
        left, answers = deque(range(len(pairs))), dict[int, T]()

        def work(line: _Line) -> None:
            while True:
                try:
                    row = left.popleft()
                except IndexError:  # None is left.
                    return
                answers[row] = ask(line, *pairs[row])

        with ThreadPoolExecutor(self.connections, thread_name_prefix="actlet-teacher") as pool:
            try:
                working = [pool.submit(work, line) for line in self._lines[: len(pairs)]]
                wait(working, return_when=FIRST_EXCEPTION)
                for worker in working:
                    if worker.done():
                        worker.result()
            except BaseException:  # One that failed, or Ctrl-C: what the others still wait for is not wanted any more.
                left.clear()
                self.close()
                raise
        return [answers[row] for row in range(len(pairs))]


class _Line(RemotePolicy):
    """One connection to a teacher."""

    def __init__(self, url: str, spec: PolicySpec | None, *, teacher: dict[str, Any] | None = None, **options: Any) -> None:
        self.teacher: dict[str, Any] = teacher or {}
        super().__init__(url, spec, **options)
        self.tokenizer = ActionTokenizer.from_dict(self.teacher["tokenizer"])
        if self.tokenizer.dim != self.spec.action.dim:
            self.close()
            raise SpecError(f"{url}: bins of {self.tokenizer.dim} action dimensions, but actions have {self.spec.action.dim}.")

    def distribution(self, observation: Observation, instruction: str) -> NDArray[np.float32]:
        """float32 (A, K)."""
        return self.ask(observation, instruction, read=self._distribution, **{DISTRIBUTION_KEY: True})

    def _connect(self, timeout_s: float) -> dict[str, Any]:
        metadata = super()._connect(timeout_s)
        try:
            teacher = _teacher_in(metadata, self.url)
            if self.teacher and teacher != self.teacher:
                raise SpecError(
                    f"{self.url} serves another teacher than before (weights {teacher['content_hash'][:12]}, expected "
                    f"{self.teacher['content_hash'][:12]}): begin the labels anew, or serve the first one again."
                )
        except SpecError:
            self.close()
            raise
        self.teacher = teacher
        return metadata

    def _distribution(self, answer: dict[str, Any]) -> NDArray[np.float32]:
        values = read_floats(answer, DISTRIBUTION_KEY, (self.spec.action.dim, self.tokenizer.bins))
        sums = values.sum(axis=1, dtype=np.float64)
        if (values < 0).any() or (np.abs(sums - 1) > _SUM_TOLERANCE).any():
            worst = int(np.abs(sums - 1).argmax())
            raise RemoteError(
                f"{DISTRIBUTION_KEY}: smallest value {values.min():.3g}, row {worst} adds up to {sums[worst]:.4g}: "
                "expected no negative value and rows that add up to 1; the answer is refused."
            )
        return values


def _teacher_in(metadata: dict[str, Any], url: str) -> dict[str, Any]:
    own = metadata.get(METADATA_KEY)
    teacher = own.get("teacher") if isinstance(own, dict) else None
    if not isinstance(teacher, dict):
        raise SpecError(
            f"{url} is not a teacher: it gives actions, no distributions. Serve a teacher's folder there: actlet serve TEACHER; or, where its "
            "answers are drawn, as a flow's are, ask for several: actlet distill --samples 8"
        )
    if set(teacher) != {"tokenizer", "content_hash"} or not all(
        map(isinstance, (teacher["tokenizer"], teacher["content_hash"]), (dict, str))
    ):
        raise SpecError(f"{url}: its teacher is described by {sorted(map(str, teacher))}; expected 'content_hash' and 'tokenizer'.")
    ActionTokenizer.from_dict(teacher["tokenizer"])
    return teacher
