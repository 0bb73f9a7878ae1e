"""Metrics of a run for Prometheus, as the control process sees them: a snapshot into shared memory, which another process serves (`runtime.metrics_server`)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import Any

from actlet.errors import CallerError
from runtime.mailbox import Mailbox, shared_memory
from runtime.trial import HOME, child_environment

__all__ = ["MOST_SNAPSHOT", "MetricsServer"]

MOST_SNAPSHOT = 1 << 16
"""Bytes of a snapshot."""
_CLOSE_TIMEOUT_S = 2.0


class MetricsServer:
    """Serves metrics for Prometheus on ``/metrics``, from a process of its own.

    Args:
        place: "9109", or "0.0.0.0:9109" to be heard from other machines; port 0 for any that is free.

    Raises:
        CallerError: It is no port, or the port cannot be had.
    """

    def __init__(self, place: str) -> None:
        host, _, port = place.rpartition(":")
        host = host.strip("[]") or "127.0.0.1"
        if not port.isdecimal() or int(port) > 65_535:
            raise CallerError(f"metrics: {place!r}: expected a port, or an address and a port, as in 9109 or 0.0.0.0:9109.")
        try:
            family = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0][0]
            listener = socket.create_server((host, int(port)), family=family)
        except OSError as error:
            why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
            raise CallerError(f"metrics: {host}, port {port}: {why}. Choose another port, or end what has it.") from error
        with listener:
            self.url: str = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}/metrics"
            """Where they are."""
            self._memory = shared_memory(Mailbox.size_of(MOST_SNAPSHOT))
            self._page = Mailbox(self._memory, MOST_SNAPSHOT)
            parent, self._parent = os.pipe()
            asked = {"socket": listener.fileno(), "family": int(family), "memory": self._memory, "parent": parent}
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "runtime.metrics_server", json.dumps(asked)],
                    pass_fds=[listener.fileno(), self._memory, parent],
                    stdin=subprocess.DEVNULL,
                    env=child_environment(),
                    cwd=HOME,
                    start_new_session=True,  # Ctrl-C is for the control process.
                )
            finally:
                os.close(parent)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def publish(self, snapshot: dict[str, Any]) -> None:
        """What is served from now on; never waits."""
        self._page.write([json.dumps(snapshot).encode()])

    def close(self) -> None:
        """End the process."""
        os.close(self._parent)
        try:
            self._process.wait(_CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._page.close()
        os.close(self._memory)
