"""The flight recorder, as the loop sees it: what it is told goes into a ring in shared memory, and another process writes it to the disk (`runtime.flight_writer`).

    loop ──commands, decisions, events, pictures──▶ rings ──▶ writer ──▶ RUN.mcap
      never waits, makes no system call; full: the record is dropped, and counted      takes its time

Nothing that happens to the disk or to the writer reaches the loop: a full disk, one that fails or is slow, a writer that is killed. What it costs is
records, and how many of each kind is said exactly (`RecorderReport`): made, less those that are in whole chunks of the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlet import __version__
from actlet.errors import CallerError, StorageError
from actlet.protocols import Observation
from actlet.provenance import package_versions, utc_now
from actlet.specs import PolicySpec
from runtime.failsafe import Cause, Verdict
from runtime.flight_records import (
    ANSWERED,
    CLOSING,
    JUDGED,
    LANE_OF,
    MOST_TEXT,
    NO_CAUSE,
    NOTED,
    OBSERVED,
    PAGE_BYTES,
    PICTURED,
    RESULT,
    TOLD,
    Kind,
    Page,
    command_record,
    lane_sizes,
)
from runtime.inference import Answer
from runtime.mailbox import shared_memory
from runtime.record_ring import CONTENT, HEAD, TAIL, Lane
from runtime.recorder_config import RecorderConfig, RecorderReport, pictures_kept, recording_place
from runtime.trial import HOME, child_environment

__all__ = ["FlightRecorder"]

_START_TIMEOUT_S, _KILL_TIMEOUT_S = 30.0, 1.0
_ELSEWHERE = "elsewhere"
_CAUSES = {cause: place for place, cause in enumerate(Cause)}


class FlightRecorder:
    """Implements `runtime.journal.Journal`; one thread tells it.

    Args:
        path: A file that ends in .mcap and does not exist, or a folder; see `recording_place`.
        spec: The policy's.
        about: What else is worth knowing of the run, as plain JSON: instruction, policy, the bundle's hash.
        config: How.
        clock: The loop's.

    Raises:
        MissingExtraError: mcap is not installed, or Pillow where it is needed.
        StorageError: The file cannot be made.
        CallerError: The writer does not start.
    """

    def __init__(
        self,
        path: str | Path,
        spec: PolicySpec,
        *,
        about: Mapping[str, Any] | None = None,
        config: RecorderConfig | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config or RecorderConfig()
        self.every_step: bool = self.config.every_step
        """Whether the loop is asked to observe at every step."""
        self.spec = spec
        pictures = pictures_kept(self.config.pictures)
        self.path: Path = recording_place(path)
        self._clock = clock
        self._report: RecorderReport | None = None
        self._dim, self._cameras = spec.action.dim, spec.observation.cameras
        sizes = lane_sizes(spec, 0 if pictures == "none" else self.config.pictures_bytes)
        document = {
            "created": utc_now(),
            "spec": spec.to_dict(),
            "about": dict(about or {}),
            "versions": {"actlet": __version__, **package_versions(("numpy", "mcap", "onnxruntime"))},
            "clock": {"monotonic_s": clock(), "utc_ns": time.time_ns()},
            "pictures": pictures,
        }
        try:
            self._begin(sizes, {"document": document, "quality": self.config.quality, "flush_s": self.config.flush_s})
        except OSError as error:
            raise StorageError(f"cannot record into {self.path}: {error.strerror}. Choose another place, or mend this one.") from error
        self._keeps_pictures = pictures != "none"
        self._command = _commander(self._lanes[LANE_OF[Kind.COMMANDED]], self._page, self._dim)
        self.commanded = self._command  # type: ignore[method-assign]  # One call less in every tick.

    def _begin(self, sizes: Sequence[int], asked: dict[str, Any]) -> None:
        """Make file, memory and process; nothing is left of them if one fails."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handles = [os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)]
        keep: list[int] = []
        try:
            handles.append(shared_memory(PAGE_BYTES + sum(map(Lane.size_of, sizes))))
            self._memory = handles[-1]
            self._page = Page.at(self._memory)
            self._lanes, offset = [], PAGE_BYTES
            for size in sizes:
                self._lanes.append(Lane(self._memory, offset, size))
                offset += Lane.size_of(size)
                self._lanes[-1].touch()
            handles += os.pipe()
            said, say = handles[-2:]
            handles += os.pipe()
            parent, self._parent = handles[-2:]
            asked |= {"file": handles[0], "memory": self._memory, "sizes": list(sizes), "say": say, "parent": parent}
            asked["patience_s"] = 0.8 * self.config.close_s
            self._writer = subprocess.Popen(
                [sys.executable, "-m", "runtime.flight_writer"],
                stdin=subprocess.PIPE,
                pass_fds=[handles[0], self._memory, say, parent],
                env=child_environment(),
                cwd=HOME,
                start_new_session=True,  # Ctrl-C is for the control process.
            )
            for handle in (handles[0], say, parent):
                os.close(handle)
                handles.remove(handle)
            assert self._writer.stdin is not None
            with self._writer.stdin as stdin:
                stdin.write(json.dumps(asked).encode())
            self._await_ready(said)
            keep = [self._memory, self._parent]
        except BaseException:
            if hasattr(self, "_writer"):
                self._writer.kill()
                self._writer.wait()
            self.path.unlink(missing_ok=True)
            raise
        finally:
            for handle in handles:
                if handle not in keep:
                    os.close(handle)

    def _await_ready(self, said: int) -> None:
        words, end = b"", time.monotonic() + _START_TIMEOUT_S
        while b"\n" not in words:
            left = end - time.monotonic()
            ready = left > 0 and select.select([said], [], [], left)[0]
            piece = os.read(said, 1 << 16) if ready else b""
            if not piece:
                self._writer.kill()
                code = self._writer.wait()
                raise CallerError(f"recording {self.path}: the process that writes it did not start (exit code {code}).")
            words += piece
        answer = json.loads(words)
        if answer["error"]:
            self._writer.wait()
            raise StorageError(f"cannot record into {self.path}: {answer['error']}. Choose another place, or mend this one.")

    def observed(self, step: int, now_s: float, observation: Observation, refused: str) -> None:
        """State and pictures, as far as they are what the specification says: what was refused may be anything."""
        state, committed = _floats(observation.state), _floats(observation.committed)
        taken = observation.taken_s if isinstance(observation.taken_s, (int, float)) else float("nan")
        head = OBSERVED.pack(step, now_s, taken, len(state) // 4, len(committed) // 4)
        self._put(Kind.OBSERVED, [head, state, committed, _text(refused)])
        if not self._keeps_pictures:
            return
        which, frames = 0, []
        for place, camera in enumerate(self._cameras):
            frame = observation.images.get(camera.name) if isinstance(observation.images, dict) else None
            if isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.shape == (camera.height, camera.width, 3):
                which |= 1 << place
                frames.append(np.ascontiguousarray(frame).data.cast("B"))
        if frames:
            self._put(Kind.PICTURED, [PICTURED.pack(step, now_s, which), *frames])

    def answered(self, step: int, now_s: float, answer: Answer, verdict: str, error: str) -> None:
        """The whole chunk, if it is one."""
        actions = confidence = b""
        shape = (0, 0)
        most = 4 * self.spec.timing.horizon * self._dim
        if answer.chunk is not None:
            wanted = _floats(answer.chunk.actions, most)
            if getattr(answer.chunk.actions, "ndim", 0) == 2 and len(wanted) == 4 * np.size(answer.chunk.actions):
                actions, shape = wanted, answer.chunk.actions.shape
                confidence = _floats(answer.chunk.confidence, 4 * self.spec.timing.horizon)
                confidence = confidence if len(confidence) == 4 * shape[0] else b"\0" * 4 * shape[0]
        head = ANSWERED.pack(step, answer.observed_at, now_s, answer.submitted_s, answer.finished_s, *shape)
        self._put(Kind.ANSWERED, [head, actions, confidence, _text(f"{_ELSEWHERE if answer.elsewhere else ''}\0{verdict}\0{error}")])

    def judged(self, step: int, now_s: float, verdict: Verdict, words: str) -> None:
        """The failsafe's state and its cause."""
        cause = NO_CAUSE if verdict.cause is None else _CAUSES[verdict.cause]
        self._put(Kind.JUDGED, [JUDGED.pack(step, now_s, verdict.since_s, int(verdict.state), cause), _text(words)])

    def commanded(
        self,
        step: int,
        tick: int,
        now_s: float,
        due: Sequence[float] | NDArray[Any] | None,
        sent: Sequence[float] | NDArray[Any],
        limited: int,
    ) -> None:
        """The command."""
        self._command(step, tick, now_s, due, sent, limited)

    def note(self, text: str, level: int = 2) -> None:
        """Words for the log; level as foxglove.Log's: 2 info, 3 warning, 4 error."""
        self._put(Kind.NOTED, [NOTED.pack(self._clock(), level), _text(text)])

    def instructed(self, words: str) -> None:
        """What to do, where that was not known when the recording began."""
        self._put(Kind.NOTED, [NOTED.pack(self._clock(), TOLD), _text(words)])

    def finish(self, result: Mapping[str, Any]) -> None:
        """How the run ended, as plain JSON: `stopped_by`, `message`, `success` and `statistics`; before `close`."""
        self._put(Kind.NOTED, [NOTED.pack(self._clock(), RESULT), json.dumps(result).encode()])

    @property
    def writer_pid(self) -> int:
        """Of the process that writes."""
        return self._writer.pid

    @property
    def is_writing(self) -> bool:
        """The process that writes is there, and the disk takes what it writes."""
        return self._report is None and self._writer.poll() is None and not self._page.get("is_failing")

    @property
    def dropped(self) -> int:
        """Records for which there was no room until now."""
        return sum(self.report.dropped.values()) if self._report else sum(self._page.get("dropped", kind) for kind in Kind)

    @property
    def report(self) -> RecorderReport:
        """What became of the records, until now or at the end."""
        return self._report or self._count()

    def close(self) -> None:
        """Have the rest written; waits `close_s` at most, then what is not written is lost, and counted."""
        if self._report is not None:
            return
        with contextlib.suppress(OSError):  # It may have died.
            os.write(self._parent, CLOSING)
        os.close(self._parent)
        try:
            self._writer.wait(self.config.close_s)
        except subprocess.TimeoutExpired:
            self._writer.kill()
            with contextlib.suppress(
                subprocess.TimeoutExpired
            ):  # It waits for a disk that does not answer, and ends when the system lets it.
                self._writer.wait(_KILL_TIMEOUT_S)
        self._report = self._count()
        self._page.close()
        for lane in self._lanes:
            lane.close()
        os.close(self._memory)

    def __enter__(self) -> FlightRecorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _put(self, kind: Kind, parts: Sequence[bytes | memoryview]) -> None:
        if self._report is not None:
            raise CallerError(
                f"{self.path}: the recording is closed. drive() closes its journal: give it Journals(recorder) to tell more afterwards."
            )
        number = self._page.get("made", kind) + 1
        if not self._lanes[LANE_OF[kind]].put(int(kind), number, parts):
            self._page.set("dropped", self._page.get("dropped", kind) + 1, kind)
        self._page.set("made", number, kind)

    def _count(self) -> RecorderReport:
        page, code = self._page, self._writer.poll()
        size, came = page.get("kept_bytes"), False
        if code is not None:  # Else no question to a file system that may not answer.
            with contextlib.suppress(OSError):  # Somebody took it away.
                size = os.stat(self.path).st_size
            # A writer that died after its last chunk was whole, and before it could say so.
            came = page.get("coming_end") > page.get("kept_bytes") and size >= page.get("coming_end")
        kept = {kind: page.get("coming" if came else "kept", kind) for kind in Kind}
        return RecorderReport(
            path=self.path,
            made={kind.label: page.get("made", kind) for kind in Kind},
            dropped={kind.label: page.get("dropped", kind) for kind in Kind},
            lost={kind.label: page.get("made", kind) - kept[kind] for kind in Kind},
            size_bytes=size,
            failures=page.get("failures"),
            error=_ending(page, code),
            is_whole=bool(page.get("finished")),
        )


def _commander(lane: Lane, page: Page, dim: int) -> Callable[..., None]:
    """What `commanded` does, in every tick: nothing here is general, and all it needs is near. Ten microseconds where the caches are cold."""
    record = command_record(dim)
    pack, size, room = record.pack_into, record.size, Lane.record_bytes(record.size - HEAD.size)
    memory, words, counts, capacity, array = lane.memory, lane.words, page.words, lane.capacity, np.ndarray
    nothing_due = (float("nan"),) * dim
    made, dropped = page.index("made", Kind.COMMANDED), page.index("dropped", Kind.COMMANDED)
    head, tail, number = words[0], words[TAIL], 0

    def commanded(step: int, tick: int, now_s: float, due: Any, sent: Any, limited: int) -> None:
        nonlocal head, tail, number
        if head + room - tail > capacity:
            tail = words[TAIL]
            if head + room - tail > capacity:
                counts[dropped] += 1
                number += 1
                counts[made] = number
                return
        if isinstance(sent, array):
            sent = sent.tolist()
        if due is None:
            was_due, due = 0, nothing_due
        else:
            was_due = 1
            if isinstance(due, array):
                due = due.tolist()
        pack(memory, CONTENT + head % capacity, size, 0, number + 1, step, tick, now_s, limited, was_due, *sent, *due)
        number += 1
        head += room
        words[0] = head
        counts[made] = number

    return commanded


def _ending(page: Page, code: int | None) -> str:
    """What went wrong, in words."""
    words = []
    if page.get("error"):
        words.append(f"{os.strerror(page.get('error'))}, {page.get('failures')} writes refused")
    if code is not None and code < 0:
        words.append(f"the process that writes died, {signal.Signals(-code).name}")
    elif code:
        words.append(f"the process that writes ended with exit code {code}")
    return "; ".join(words)


def _floats(values: Any, most_bytes: int = 1 << 16) -> bytes:
    """float32 bytes of what may be anything; empty where it is no array of numbers, or more than fits."""
    if values is None:
        return b""
    try:
        with np.errstate(all="ignore"):
            data = np.asarray(values, "<f4").tobytes()
    except (TypeError, ValueError):
        return b""
    return data if len(data) <= most_bytes else b""


def _text(words: str) -> bytes:
    return words.encode("utf-8", "replace")[:MOST_TEXT]
