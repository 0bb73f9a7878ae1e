"""A service that runs until it is told to stop: in `asyncio.run`, or in a thread of its own while it is entered as a context manager."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TypeVar

from runtime.access import ServerAccess

__all__ = ["BackgroundService"]

S = TypeVar("S", bound="BackgroundService")


class BackgroundService:
    """What servers have in common.

    Args:
        host: The address that is listened on.
        port: 0 for any that is free.
        access: Who is answered.
        schemes: Of its URL, without and with TLS.
    """

    def __init__(self, host: str, port: int, access: ServerAccess | None, schemes: tuple[str, str]) -> None:
        self.host, self.port = host, port
        """Where it serves; the port in use, once it does."""
        self.access = access or ServerAccess()
        self.answered = self.failed = self.batches = self.connected = 0
        self._scheme = schemes[self.access.encrypts]
        self._thread: threading.Thread | None = None
        self._stop: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self._failure: BaseException | None = None

    @property
    def url(self) -> str:
        """Where it is reached from this machine, or from others where `host` allows."""
        return f"{self._scheme}://{'127.0.0.1' if self.host == '0.0.0.0' else self.host}:{self.port}"

    async def serve(self, ready: threading.Event | None = None) -> None:
        """Serve until `stop` is called.

        Raises:
            CallerError: The address, the certificate or the key cannot be used.
            MissingExtraError: A package that the wire needs is not installed.
        """
        raise NotImplementedError

    def stop(self) -> None:
        """Let `serve` end; from any thread, any number of times."""
        if self._stop is not None:
            loop, event = self._stop
            with contextlib.suppress(RuntimeError):  # The loop has ended by itself.
                loop.call_soon_threadsafe(event.set)

    def __enter__(self: S) -> S:
        ready = threading.Event()
        self._failure = None

        def serve() -> None:
            try:
                asyncio.run(self.serve(ready))
            except BaseException as error:
                self._failure = error
                ready.set()

        self._thread = threading.Thread(target=serve, name="actlet-serve", daemon=True)
        self._thread.start()
        ready.wait()
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *unused: object) -> None:
        self.stop()
        if self._thread is not None:
            self._thread.join(10.0)
