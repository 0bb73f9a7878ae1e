"""A client's websocket whose every wait ends: connecting, TLS, sending, receiving and letting go.

websockets waits for its receiving thread without a limit, and over TLS that thread may wait for the rest of a record that never comes: closing the socket
does not wake it, shutting the connection down does. A server that stops reading fills the socket's buffer, and a large frame waits for ever too. So the
connection is held twice, and shut down when the time for what is going on is over.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from actlet.errors import CallerError, MissingExtraError, RemoteError
from runtime.access import TOKEN_VARIABLE, RemoteAccess

__all__ = ["WebsocketLine"]

_CLOSE_TIMEOUT_S = 0.2  # A server that hangs does not say goodbye either.


class WebsocketLine:
    """One connection.

    Args:
        url: As in "ws://10.0.0.2:8000".
        access: The token, and whose certificates are believed.
        timeout_s: For connecting, TLS and the handshake.
        largest_frame: Bytes; a larger frame is refused unread.

    Raises:
        RemoteError: It cannot be reached.
        CallerError: It refuses the token, or its certificate is not believed.
        MissingExtraError: `websockets` is not installed.
    """

    def __init__(self, url: str, access: RemoteAccess, *, timeout_s: float, largest_frame: int) -> None:
        try:
            from websockets.sync.client import connect
        except ModuleNotFoundError as error:
            raise MissingExtraError("websockets", "remote", "a policy over the network") from error
        self._open, self._tcp = contextlib.ExitStack(), None
        try:
            place = urlsplit(url)
            tls = access.context() if place.scheme == "wss" else None
            if not place.hostname:
                raise ValueError("it names no host")
            tcp = socket.create_connection((place.hostname, place.port or (443 if tls else 80)), timeout_s)
            tcp.settimeout(None)
            self._tcp = tcp.dup()
            with _shut_after(self._tcp, timeout_s + _CLOSE_TIMEOUT_S):
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
        except CallerError:
            raise
        except Exception as error:
            self.close(within_s=0.0)
            raise _refusal(url, access, error) from error

    def send(self, frame: bytes, timeout_s: float) -> None:
        """Send one binary frame. Raises what websockets and the operating system raise."""
        assert self._tcp is not None
        with _shut_after(self._tcp, timeout_s):
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
        with tcp, _shut_after(tcp, within_s), contextlib.suppress(Exception):  # That it does not say goodbye changes nothing.
            self._open.close()


@contextlib.contextmanager
def _shut_after(connection: socket.socket, seconds: float) -> Iterator[None]:
    """Shut a connection down when a time is over, at once for 0: whatever waits on it ends with an error."""

    def shut() -> None:
        with contextlib.suppress(OSError):  # It has ended.
            connection.shutdown(socket.SHUT_RDWR)

    if seconds <= 0:
        shut()
        yield
        return
    timer = threading.Timer(seconds, shut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


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
    what = str(error) or type(error).__name__
    return RemoteError(f"{url} cannot be reached: {what}. Is the server running, as in: actlet serve bundles/int8 ?")
