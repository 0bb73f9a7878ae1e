"""What `actlet run` keeps and shows of a run beside its summary: a recording (``--record``), metrics (``--metrics``), and what the status line says."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from actlet.manifest import manifest_hash
from actlet.protocols import Policy, Robot
from runtime.flight_recorder import FlightRecorder
from runtime.inference_process import InferenceProcess
from runtime.journals import Journals
from runtime.loop_config import LoopResult
from runtime.loop_statistics import LoopStatistics
from runtime.metrics import MetricsServer
from runtime.opening import is_remote, kind_of
from runtime.recorder_config import RecorderConfig
from runtime.run_monitor import RunMonitor

__all__ = ["WatchedRun", "add_watch_flags"]


def add_watch_flags(parser: argparse.ArgumentParser) -> None:
    """Recording and metrics."""
    watch = parser.add_argument_group("recording and metrics")
    watch.add_argument(
        "--record",
        type=Path,
        metavar="PLACE",
        help="record the run for actlet replay and Foxglove: a file of this folder, named after the time, or this .mcap file",
    )
    watch.add_argument(
        "--record-pictures",
        choices=("auto", "jpeg", "png", "raw", "none"),
        default="auto",
        help="how pictures are kept; png and raw to the last bit (default: auto, jpeg where Pillow is installed)",
    )
    watch.add_argument(
        "--record-every-step",
        action="store_true",
        help="observe at every step, also where the policy is not asked, so that the run can become a dataset",
    )
    watch.add_argument(
        "--metrics", metavar="[ADDRESS:]PORT", help="serve metrics for Prometheus on /metrics (address: this machine alone, unless given)"
    )


class WatchedRun:
    """A context manager: recorder and server are there before the loop begins, and gone after it.

    Args:
        arguments: Of `add_watch_flags` and `actlet run`.
        policy: Whose run it is.
        robot: What moves.
        about: What else is worth knowing of the run, as plain JSON.

    Raises:
        CallerError: The port cannot be had, or the run cannot be recorded.
    """

    def __init__(self, arguments: argparse.Namespace, policy: Policy | InferenceProcess, robot: Robot, about: dict[str, Any]) -> None:
        self._robot, self._instruction = robot, arguments.instruction
        self.server: MetricsServer | None = None if arguments.metrics is None else MetricsServer(arguments.metrics)
        self.recorder: FlightRecorder | None = None
        try:
            if arguments.record is not None:
                is_bundle = not is_remote(arguments.policy) and kind_of(arguments.policy) == "bundle"
                known = {"instruction": self._instruction, "policy": str(arguments.policy)}
                known |= {"bundle": manifest_hash(Path(arguments.policy)) if is_bundle else None, "robot": arguments.robot}
                config = RecorderConfig(pictures=arguments.record_pictures, every_step=arguments.record_every_step)
                self.recorder = FlightRecorder(arguments.record, policy.spec, about=known | about, config=config)
        except BaseException:
            if self.server is not None:
                self.server.close()
            raise
        self.monitor: RunMonitor = RunMonitor(policy=policy, recorder=self.recorder, server=self.server)
        self.journal: Journals = Journals(*([self.recorder] if self.recorder is not None else []), self.monitor)
        if self.server is not None:
            print(f"metrics: {self.server.url}", file=sys.stderr)

    def step(self, step: int, statistics: LoopStatistics) -> None:
        """After every step."""
        if self._instruction is None and (
            words := getattr(self._robot, "instruction", None)
        ):  # Some robots know it once they are connected.
            self._instruction = str(words)
            if self.recorder is not None:
                self.recorder.instructed(self._instruction)
        self.monitor.step(step, statistics)

    def finish(self, result: LoopResult) -> None:
        """How it ended."""
        if self.recorder is not None:
            success = getattr(self._robot, "success", None)
            ended = {"stopped_by": result.stopped_by, "message": result.message, "statistics": result.statistics.to_dict()}
            self.recorder.finish(ended | {"success": None if success is None else bool(success)})

    @property
    def rows(self) -> list[tuple[str, str]]:
        """For the summary, label and value; after the end."""
        return [] if self.recorder is None else [("recorded", str(self.recorder.report))]

    def __enter__(self) -> WatchedRun:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.recorder is not None:
            self.recorder.close()
            if kind is not None and not any(self.recorder.report.made.values()):  # Refused before anything moved.
                self.recorder.path.unlink(missing_ok=True)
        if self.server is not None:
            self.server.close()
