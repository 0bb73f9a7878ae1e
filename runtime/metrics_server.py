"""The process that serves metrics of a run to Prometheus: text format 0.0.4 on ``GET /metrics``, made of the newest snapshot in shared memory.

It is nice and ordinary, whatever the loop has, reads and never writes what the loop writes, and ends with the control process. What a client
does, slow or many, it does to this process.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from runtime.failsafe import State
from runtime.mailbox import Mailbox
from runtime.metrics import MOST_SNAPSHOT

__all__ = ["CONTENT_TYPE", "metrics_text"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_NICENESS, _CLIENT_TIMEOUT_S, _MOST_CLIENTS = 10, 5.0, 16
_POLICY_STATES = ("starting", "ready", "gone")

# Name -> (count of LoopStatistics, help).
_COUNTS = {
    "steps": ("ticks", "Control steps that were run."),
    "missed_steps": ("missed_deadlines", "Steps that were skipped because they were over."),
    "ticks": ("commands", "Periods of a command that were run."),
    "missed_periods": ("missed_commands", "Periods of a command that were skipped because they were over."),
    "holds": ("holds", "Steps without an action of the policy."),
    "clipped_values": ("clipped", "Values outside the position limits, set to the limit."),
    "slowed_values": ("slowed", "Values whose change was too large, cut."),
    "bad_observations": ("bad_observations", "Observations that the policy was not shown."),
    "expired_actions": ("expired", "Steps whose action was older than its time to live."),
    "unsure_steps": ("unsure", "Steps whose action the policy was less sure of than it should be."),
    "asked_elsewhere": ("asked_elsewhere", "Observations that a second policy was asked about."),
    "used_elsewhere": ("used_elsewhere", "Its answers that came in time."),
    "journal_errors": ("journal_errors", "What a journal raised."),
}
_HISTOGRAMS = {
    "lateness": ("lateness", "Wake-ups of the loop, later than was asked for."),
    "tick": ("work", "Work of a tick: from a wake-up to its command having been sent."),
    "decision_latency": ("decisions", "From handing over an observation to its answer."),
}


def metrics_text(snapshot: Mapping[str, Any] | None, now_s: float) -> str:
    """A snapshot of `RunMonitor` in Prometheus' words.

    Args:
        snapshot: None before the first step.
        now_s: Seconds of CLOCK_MONOTONIC.
    """
    return "\n".join([*_lines(snapshot, now_s), ""])


def _lines(snapshot: Mapping[str, Any] | None, now_s: float) -> Iterator[str]:
    yield from _family("up", "gauge", "Whether the loop has told of a step yet.", {"": int(snapshot is not None)})
    if snapshot is None:
        return
    yield from _family("snapshot_age_seconds", "gauge", "Since the loop told of a step.", {"": max(0.0, now_s - snapshot["taken_s"])})
    yield from _family("commands_total", "counter", "Commands that were handed to the robot.", {"": snapshot["commands"]})
    for name, (field, words) in _COUNTS.items():
        if field in snapshot["counts"]:
            yield from _family(f"{name}_total", "counter", words, {"": snapshot["counts"][field]})
    yield from _family(
        "answers_total", "counter", "Answers of the policy by what became of them.", _labelled("verdict", snapshot["verdicts"])
    )
    states = {state.name: int(state.name == snapshot["state"]) for state in State}
    yield from _family("failsafe_state", "gauge", "1 for the state that the failsafe is in.", _labelled("state", states))
    yield from _family("failsafe_seconds_total", "counter", "Time spent in each state.", _labelled("state", snapshot["state_s"]))
    yield from _family("failsafe_causes_total", "counter", "How often each cause became active.", _labelled("cause", snapshot["causes"]))
    for name, (field, words) in _HISTOGRAMS.items():
        yield from _histogram(f"{name}_seconds", words, snapshot[field])
    if (recorder := snapshot.get("recorder")) is not None:
        yield from _family(
            "recorder_records_total", "counter", "Records that the loop made for the recording.", _labelled("kind", recorder["made"])
        )
        yield from _family(
            "recorder_dropped_total", "counter", "Records for which there was no room.", _labelled("kind", recorder["dropped"])
        )
        yield from _family("recorder_write_failures_total", "counter", "Writes that the system refused.", {"": recorder["failures"]})
        yield from _family("recorder_file_bytes", "gauge", "Size of the recording.", {"": recorder["size_bytes"]})
        yield from _family("recorder_writing", "gauge", "1 while the recording is being written.", {"": int(recorder["is_writing"])})
    if (policy := snapshot.get("policy")) is not None:
        states = {state: int(state == policy["state"]) for state in _POLICY_STATES}
        yield from _family("policy_state", "gauge", "1 for how the policy's processes are.", _labelled("state", states))
        yield from _family(
            "policy_ready_processes", "gauge", "Processes that have opened the policy, the standby with it.", {"": policy["ready"]}
        )
        for name in ("deaths", "hangs", "takeovers"):
            yield from _family(f"policy_{name}_total", "counter", f"The policy's processes: {name}.", {"": policy[name]})


def _labelled(label: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f'{label}="{_escaped(name)}"': value for name, value in values.items()}


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _family(name: str, kind: str, words: str, values: Mapping[str, float]) -> Iterator[str]:
    yield f"# HELP actlet_{name} {words}"
    yield f"# TYPE actlet_{name} {kind}"
    for labels, value in values.items():
        yield f"actlet_{name}{f'{{{labels}}}' if labels else ''} {value!r}"


def _histogram(name: str, words: str, data: Mapping[str, Any]) -> Iterator[str]:
    yield f"# HELP actlet_{name} {words}"
    yield f"# TYPE actlet_{name} histogram"
    total = 0
    for bound, count in zip([*data["bounds"], "+Inf"], data["counts"], strict=True):
        total += count
        yield f'actlet_{name}_bucket{{le="{bound}"}} {total}'
    yield f"actlet_{name}_sum {data['sum']!r}"
    yield f"actlet_{name}_count {total}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, listener: socket.socket, page: Mailbox) -> None:
        self.address_family = listener.family
        super().__init__(("", 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.page, self.snapshot, self.read = page, None, 0
        self.clients, self.lock = threading.BoundedSemaphore(_MOST_CLIENTS), threading.Lock()

    def text(self) -> str:
        """The metrics now."""
        with self.lock:
            if (got := self.page.read(self.read)) is not None:
                self.read, self.snapshot = got[0], json.loads(got[1])
            return metrics_text(self.snapshot, time.monotonic())

    def process_request(self, request: Any, client_address: Any) -> None:
        """In a thread, if there are not too many."""
        if not self.clients.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """One client."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.clients.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: clients come and go."""


class _Handler(BaseHTTPRequestHandler):
    timeout = _CLIENT_TIMEOUT_S
    server: _Server

    def do_GET(self) -> None:
        found = self.path.split("?")[0] in ("/metrics", "/")
        body = (self.server.text() if found else "GET /metrics\n").encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", CONTENT_TYPE if found else "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Nothing: the terminal is the run's."""


def main() -> int:
    """The server."""
    asked = json.loads(sys.argv[1])
    if hasattr(os, "sched_setscheduler"):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    os.nice(max(0, _NICENESS - os.nice(0)))
    listener = socket.socket(asked["family"], socket.SOCK_STREAM, fileno=asked["socket"])
    server = _Server(listener, Mailbox(asked["memory"], MOST_SNAPSHOT))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.read(asked["parent"], 1)  # Until its other end is closed.
    return 0


if __name__ == "__main__":
    sys.exit(main())
