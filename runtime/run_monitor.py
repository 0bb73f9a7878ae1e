"""What is to be seen of a run while it runs: for the status line, and for the metrics that another process serves (`runtime.metrics_server`).

It is told by the loop as a journal is, and after every step. A few times in a second it puts a snapshot into shared memory; that, and adding up, is
all that it does in the loop's process.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from actlet.protocols import Observation
from runtime.failsafe import State, Verdict
from runtime.flight_recorder import FlightRecorder
from runtime.histogram import DECISION_BOUNDS_S, TICK_BOUNDS_S, Histogram
from runtime.inference import Answer
from runtime.inference_process import InferenceProcess
from runtime.loop_statistics import LoopStatistics
from runtime.metrics import MetricsServer

__all__ = ["RunMonitor"]

_SNAPSHOT_EVERY_S = 0.2


class RunMonitor:
    """Implements `runtime.journal.Journal`.

    Args:
        policy: Whose processes are told of, if it is an `InferenceProcess`.
        recorder: Whose losses are told of.
        server: Where snapshots go.
    """

    def __init__(
        self,
        *,
        policy: object = None,
        recorder: FlightRecorder | None = None,
        server: MetricsServer | None = None,
    ) -> None:
        self.state: State = State.HOLD
        """The failsafe's, now."""
        self.cause: str = ""
        """Why, empty where there is none."""
        self.recorder = recorder
        self.lateness: Histogram = Histogram(TICK_BOUNDS_S)
        """Wake-ups, later than was asked for."""
        self.work: Histogram = Histogram(TICK_BOUNDS_S)
        """From a wake-up to its command having been sent."""
        self.decisions: Histogram = Histogram(DECISION_BOUNDS_S)
        """From handing over an observation to its answer."""
        self.commands: int = 0
        self.verdicts: dict[str, int] = {}
        """Answers by what became of them."""
        self._policy = policy if isinstance(policy, InferenceProcess) else None
        self._server, self._due_s = server, 0.0
        self._statistics: LoopStatistics | None = None
        self._late = self._took = 0  # How many durations were added.

    def step(self, step: int, statistics: LoopStatistics) -> None:
        """After a step: hand over a snapshot, if it is time."""
        if statistics is not self._statistics:  # Of another run.
            self._statistics, self._late, self._took = statistics, 0, 0
        if self._server is not None and (now_s := time.monotonic()) >= self._due_s:
            self._due_s = now_s + _SNAPSHOT_EVERY_S
            self._server.publish(self.snapshot(step, statistics))

    def snapshot(self, step: int, statistics: LoopStatistics) -> dict[str, Any]:
        """All that is known now, as plain JSON."""
        counts = {field: value for field, value in vars(statistics).items() if type(value) is int}
        data: dict[str, Any] = {
            "taken_s": time.monotonic(),
            "step": step,
            "commands": self.commands,
            "state": self.state.name,
            "counts": counts,
        }
        data |= {"state_s": statistics.state_s, "causes": statistics.causes, "verdicts": self.verdicts}
        data |= {"lateness": self.lateness.to_dict(), "work": self.work.to_dict(), "decisions": self.decisions.to_dict()}
        if self.recorder is not None:
            report = self.recorder.report
            data["recorder"] = {
                "made": report.made,
                "dropped": report.dropped,
                "failures": report.failures,
                "size_bytes": report.size_bytes,
                "is_writing": self.recorder.is_writing,
            }
        if self._policy is not None:
            status = self._policy.status
            data["policy"] = {"state": status.state, "ready": status.ready, "deaths": status.deaths, "hangs": status.hangs}
            data["policy"]["takeovers"] = status.takeovers
        return data

    def observed(self, step: int, now_s: float, observation: Observation, refused: str) -> None:
        """Nothing: `LoopStatistics` counts them."""

    def answered(self, step: int, now_s: float, answer: Answer, verdict: str, error: str) -> None:
        """Count it."""
        self.verdicts[verdict] = self.verdicts.get(verdict, 0) + 1
        self.decisions.add(max(0.0, answer.finished_s - answer.submitted_s))

    def judged(self, step: int, now_s: float, verdict: Verdict, words: str) -> None:
        """The state is another one."""
        self.state, self.cause = verdict.state, "" if verdict.cause is None else verdict.cause.value

    def commanded(
        self,
        step: int,
        tick: int,
        now_s: float,
        due: Sequence[float] | NDArray[Any] | None,
        sent: Sequence[float] | NDArray[Any],
        limited: int,
    ) -> None:
        """Count it, and the newest durations, unless they were there before."""
        self.commands += 1
        if (statistics := self._statistics) is None:
            return
        if statistics.lateness_s.count > self._late:
            self._late = statistics.lateness_s.count
            self.lateness.add(statistics.lateness_s.newest)
        if statistics.tick_s.count > self._took:
            self._took = statistics.tick_s.count
            self.work.add(statistics.tick_s.newest)

    def close(self) -> None:
        """Nothing to do."""
