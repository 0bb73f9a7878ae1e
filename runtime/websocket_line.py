"""A client's websocket whose every wait ends: connecting, TLS, sending, receiving and letting go.

websockets waits for its receiving thread without a limit, and over TLS that thread may wait for the rest of a record that never comes: closing the socket
does not wake it, shutting the connection down does. A server that stops reading fills the socket's buffer, and a large frame waits for ever too. So the
connection is held twice, and shut down when the time for what is going on is over.
"""

from __future__ import annotations

import contextlib
import math
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from actlet.errors import CallerError, MissingExtraError, RemoteError
from runtime.access import TOKEN_VARIABLE, RemoteAccess

__all__ = ["WebsocketLine"]

_PERIOD_S = 0.1
_CLOSE_TIMEOUT_S = 0.2  # A server that hangs does not say goodbye either.


class WebsocketLine:
    """One connection.

    Args:
        url: As in "ws://10.0.0.2:8000".
        access: The token.
        tls: Whose certificates are believed; None for ws://.
        timeout_s: For connecting, TLS and the handshake.
        largest_frame: Bytes; a larger frame is refused unread.

    Raises:
        RemoteError: It cannot be reached.
        CallerError: It refuses the token, or its certificate is not believed.
        MissingExtraError: `websockets` is not installed.
    """

    def __init__(self, url: str, access: RemoteAccess, tls: ssl.SSLContext | None, *, timeout_s: float, largest_frame: int) -> None:
        try:
            from websockets.sync.client import connect
        except ModuleNotFoundError as error:
            raise MissingExtraError("websockets", "remote", "a policy over the network") from error
        self._open, self._tcp = contextlib.ExitStack(), None
        try:
            place, started = urlsplit(url), time.monotonic()
            if not place.hostname:
                raise ValueError("it names no host")
            tcp = socket.create_connection((place.hostname, place.port or (443 if tls else 80)), timeout_s)
            tcp.settimeout(None)
            self._tcp = tcp.dup()
            self._watchdog = _Watchdog(self._tcp, _PERIOD_S)
            with self._watchdog.within(timeout_s + _CLOSE_TIMEOUT_S):
                self._websocket: Any = self._open.enter_context(
                    connect(
                        url,
                        sock=tcp,
                        ssl=tls,
                        compression=None,
                        max_size=largest_frame,
                        max_queue=1,
                        additional_headers=access.headers,
                        open_timeout=timeout_s,
                        close_timeout=_CLOSE_TIMEOUT_S,
                        proxy=None,
                    )
                )
            self.connected_in_s = time.monotonic() - started
            """How long it took."""
        except Exception as error:
            self.close(within_s=0.0)
            raise _refusal(url, access, error) from error

    def send(self, frame: bytes, timeout_s: float) -> None:
        """Send one binary frame. Raises what websockets and the operating system raise."""
        with self._watchdog.within(timeout_s):
            self._websocket.send(frame)

    def recv(self, timeout_s: float) -> bytes | str:
        """The next frame. Raises TimeoutError, and what websockets and the operating system raise."""
        frame: bytes | str = self._websocket.recv(timeout=timeout_s)
        return frame

    def has_ended(self) -> bool:
        """Whether the server closed it while nothing was asked.

        Raises:
            RemoteError: There is a frame that nothing was asked for.
        """
        from websockets.exceptions import ConnectionClosed

        try:
            self._websocket.recv(timeout=0)
        except TimeoutError:
            return False
        except ConnectionClosed:
            return True
        raise RemoteError("the server sent a frame that nothing was asked for; the connection is closed.")

    def close(self, within_s: float = 2 * _CLOSE_TIMEOUT_S) -> None:
        """Let it go, with a goodbye if there is time for one; any number of times."""
        tcp, self._tcp = self._tcp, None
        if tcp is None:
            return
        with tcp:
            with self._watchdog.within(within_s), contextlib.suppress(Exception):  # That it does not say goodbye changes nothing.
                self._open.close()
            self._watchdog.end()


class _Watchdog:
    """Shuts a connection down when a time is over: whatever waits on it ends with an error.

    One thread for a connection: starting a timer for every question takes longer than packing it. It looks every `period_s`, and when a time that it saw is over.

    Args:
        connection: What is shut down.
        period_s: How often it looks.
    """

    def __init__(self, connection: socket.socket, period_s: float) -> None:
        self._connection, self._period_s = connection, period_s
        self._end_s, self._ended = math.inf, threading.Event()
        threading.Thread(target=self._watch, name="actlet-watchdog", daemon=True).start()

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """What is done here has this long; nothing at all for 0."""
        self._end_s = time.monotonic() + seconds
        if seconds <= 0:
            self._shut()
        try:
            yield
        finally:
            self._end_s = math.inf

    def end(self) -> None:
        """Let the thread end, and the connection."""
        self._ended.set()
        self._shut()

    def _watch(self) -> None:
        wait_s = self._period_s
        while not self._ended.wait(wait_s):
            left_s = self._end_s - time.monotonic()
            if left_s <= 0:
                self._shut()
                return
            wait_s = min(self._period_s, left_s)

    def _shut(self) -> None:
        with contextlib.suppress(OSError):  # It has ended.
            self._connection.shutdown(socket.SHUT_RDWR)


def _refusal(url: str, access: RemoteAccess, error: Exception) -> Exception:
    """What is said of a connection that could not be made."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return CallerError(
            f"{url}: its certificate is not believed ({error.verify_message}). Give the certificate of its authority with --tls-ca, and ask by a name "
            "that the certificate has."
        )
    if getattr(getattr(error, "response", None), "status_code", 0) in (401, 403):
        given = "another token than the server's" if access.token else "no token"
        return CallerError(f"{url}: refused, {given} was given. Give the server's with --token-file, or in {TOKEN_VARIABLE}.")
    what, hint = str(error) or type(error).__name__, "Is the server running, as in: actlet serve bundles/int8 ?"
    if isinstance(error, ssl.SSLError):
        hint = "Does the server have a certificate (--tls-certificate)? Without one its address begins with ws://."
    elif type(error).__name__ == "InvalidMessage":  # Of websockets: there is somebody, who does not speak HTTP.
        hint = "Does the server have a certificate (--tls-certificate)? Then its address begins with wss://."
    return RemoteError(f"{url} cannot be reached: {what}. {hint}")
