"""What passes between the control process and the process that infers: questions and answers as bytes, laid out by the policy's specification.

    question   step: i64   submitted: f64   committed rows: u32   instruction's bytes: u32   frames …   state   committed …   instruction
    answer     question: u64   step: i64   submitted: f64   finished: f64   kind: u32   actions and confidence, or why there are none

Times are CLOCK_MONOTONIC's, which is the same in all processes of a machine. Arrays lie as they are in memory; their shapes are the specification's.
"""

from __future__ import annotations

import dataclasses
import struct

import numpy as np

from actlet.errors import ObservationError
from actlet.protocols import ActionChunk, Observation
from actlet.specs import PolicySpec
from runtime.inference import Answer

__all__ = ["Question", "answer_bytes", "most_bytes", "pack_answer", "pack_question", "question_bytes", "unpack_answer", "unpack_question"]

_QUESTION, _ANSWER = struct.Struct("<qdII"), struct.Struct("<QqddI")
_CHUNK, _ERROR = 0, 1
_MOST_TEXT = 4096


@dataclasses.dataclass(frozen=True)
class Question:
    """An observation to be answered."""

    step: int
    submitted_s: float
    observation: Observation
    instruction: str


def question_bytes(spec: PolicySpec) -> int:
    """Longest question."""
    seen = spec.observation
    frames = sum(camera.height * camera.width * 3 for camera in seen.cameras)
    return _QUESTION.size + frames + 4 * seen.state_dim + 4 * spec.timing.committed_steps * spec.action.dim + _MOST_TEXT


def answer_bytes(spec: PolicySpec) -> int:
    """Longest answer."""
    return _ANSWER.size + max(4 * spec.timing.horizon * (spec.action.dim + 1), _MOST_TEXT)


def most_bytes(spec: PolicySpec) -> tuple[int, int]:
    """Longest question and longest answer."""
    return question_bytes(spec), answer_bytes(spec)


def pack_question(spec: PolicySpec, step: int, submitted_s: float, observation: Observation, instruction: str) -> list[bytes | memoryview]:
    """A question's parts, without copying the frames.

    Raises:
        ObservationError: It is not what the specification says, or the instruction is longer than 4096 bytes.
    """
    spec.observation.check(observation.images, observation.state)
    words = instruction.encode()
    if len(words) > _MOST_TEXT:
        raise ObservationError(f"instruction of {len(words)} bytes, expected at most {_MOST_TEXT}.")
    committed = observation.committed if spec.timing.committed_steps and observation.committed is not None else None
    rows = 0 if committed is None else len(committed)
    if committed is not None and (rows > spec.timing.committed_steps or committed.shape[1:] != (spec.action.dim,)):
        raise ObservationError(
            f"committed actions of shape {committed.shape}: expected at most {spec.timing.committed_steps} of {spec.action.dim} values."
        )
    parts: list[bytes | memoryview] = [_QUESTION.pack(step, submitted_s, rows, len(words))]
    for camera in spec.observation.cameras:
        parts.append(np.ascontiguousarray(observation.images[camera.name]).data.cast("B"))
    parts.append(observation.state.astype("<f4").tobytes())
    if committed is not None:
        parts.append(committed.astype("<f4").tobytes())
    return [*parts, words]


def unpack_question(spec: PolicySpec, content: bytes) -> Question:
    """The same, on the other side; its arrays are read-only views of `content`."""
    step, submitted_s, rows, length = _QUESTION.unpack_from(content)
    place = _QUESTION.size
    images = {}
    for camera in spec.observation.cameras:
        size = camera.height * camera.width * 3
        images[camera.name] = np.frombuffer(content, np.uint8, size, place).reshape(camera.height, camera.width, 3)
        place += size
    state = np.frombuffer(content, "<f4", spec.observation.state_dim, place)
    place += state.nbytes
    committed = np.frombuffer(content, "<f4", rows * spec.action.dim, place).reshape(rows, spec.action.dim)
    place += committed.nbytes
    told = committed if spec.timing.committed_steps else None
    return Question(step, submitted_s, Observation(images, state, told), content[place : place + length].decode())


def pack_answer(number: int, question: Question, finished_s: float, answer: ActionChunk | str) -> list[bytes | memoryview]:
    """An answer's parts.

    Args:
        number: Of the question.
        question: What was asked.
        finished_s: When the answer was there.
        answer: The chunk, or why there is none.
    """
    head = (number, question.step, question.submitted_s, finished_s)
    if isinstance(answer, str):
        return [_ANSWER.pack(*head, _ERROR), answer.encode()[:_MOST_TEXT]]
    arrays = (answer.actions.astype("<f4").tobytes(), answer.confidence.astype("<f4").tobytes())
    return [_ANSWER.pack(*head, _CHUNK), *arrays]


def unpack_answer(spec: PolicySpec, content: bytes) -> tuple[int, Answer]:
    """The question's number, 0 where it is not even that long, and the answer. One of another size is an answer that says so. Raises nothing."""
    if len(content) < _ANSWER.size:
        words = f"an answer of {len(content)} bytes, expected at least {_ANSWER.size}"
        return 0, Answer(observed_at=0, chunk=None, error=words, submitted_s=0.0, finished_s=0.0)
    number, step, submitted_s, finished_s, kind = _ANSWER.unpack_from(content)
    horizon, dim = spec.timing.horizon, spec.action.dim
    body = content[_ANSWER.size :]
    chunk, error = None, ""
    if kind == _ERROR:
        error = body.decode("utf-8", "replace")
    elif len(body) != 4 * horizon * (dim + 1):
        error = (
            f"an answer of {len(body)} bytes, expected {4 * horizon * (dim + 1)}: {horizon} actions of {dim} values, and their confidence"
        )
    else:
        actions = np.frombuffer(body, "<f4", horizon * dim).reshape(horizon, dim).astype(np.float32)
        chunk = ActionChunk(actions, np.frombuffer(body, "<f4", horizon, 4 * horizon * dim).astype(np.float32))
    return number, Answer(observed_at=step, chunk=chunk, error=error, submitted_s=submitted_s, finished_s=finished_s)
