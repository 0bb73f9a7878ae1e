"""Who may ask a policy over a network, and who is believed to be it: a token and TLS, the same on every wire.

    server   --tls-certificate CERT.pem --tls-key KEY.pem --token-file TOKEN     encrypts, and answers those alone that know the token
    client   wss:// or https://, --tls-ca CA.pem, --token-file TOKEN             refuses a server whose certificate that authority did not sign

A token is read from a file or from the variable ACTLET_TOKEN, never from the command line, where everybody on the machine could read it. It travels as
``Authorization: Bearer ...``; servers take ``Api-Key ...`` too, which openpi's client sends, and compare in constant time. Whoever listens on an unencrypted
wire reads it along, so an address that others can reach is told of when TLS or the token is missing.
"""

from __future__ import annotations

import dataclasses
import hmac
import ipaddress
import os
import ssl
from pathlib import Path
from urllib.parse import urlsplit

from actlet.errors import CallerError

__all__ = [
    "TLS_CA_HELP",
    "TOKEN_HELP",
    "TOKEN_VARIABLE",
    "RemoteAccess",
    "ServerAccess",
    "is_loopback",
    "read_token",
]

TOKEN_VARIABLE = "ACTLET_TOKEN"
TOKEN_HELP = f"file that holds the token which robots and server share (default: the variable {TOKEN_VARIABLE})"
TLS_CA_HELP = "certificates of the authority that signed the server's, PEM (default: the system's, or SSL_CERT_FILE)"
_SHORTEST, _LONGEST = 16, 4096
_SCHEMES = ("api-key", "bearer")


def read_token(path: str | Path | None) -> str | None:
    """The token of a file; without a file that of ACTLET_TOKEN, None where neither is given.

    Raises:
        CallerError: The file cannot be read, or what it holds is no token: one word of 16 or more printable characters.
    """
    where = str(path) if path is not None else f"the variable {TOKEN_VARIABLE}"
    if path is None:
        text = os.environ.get(TOKEN_VARIABLE, "")
        if not text:
            return None
    else:
        try:
            with open(path, encoding="ascii") as file:
                text = file.read(_LONGEST + 2)
        except (OSError, UnicodeDecodeError) as error:
            raise CallerError(f"token file {where}: cannot be read ({getattr(error, 'strerror', None) or error}).") from error
    token = text.strip()
    if not _SHORTEST <= len(token) <= _LONGEST or not (token.isascii() and token.isprintable()) or " " in token:
        raise CallerError(
            f"{where}: holds {len(token)} characters: expected one word of {_SHORTEST} .. {_LONGEST} printable ones, as: openssl rand -hex 32"
        )
    return token


def is_loopback(host: str) -> bool:
    """Whether an address is this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RemoteAccess:
    """How a client proves who it is, and whom it believes."""

    token: str | None = dataclasses.field(default=None, repr=False)
    tls_ca: Path | None = None
    """Certificates of authorities, PEM; None for the system's."""

    @classmethod
    def of(cls, token_file: str | Path | None = None, tls_ca: str | Path | None = None) -> RemoteAccess:
        """Of the files that the command line names; the token of ACTLET_TOKEN without one.

        Raises:
            CallerError: One of them cannot be read, or is not what it should be.
        """
        access = cls(token=read_token(token_file), tls_ca=None if tls_ca is None else Path(tls_ca))
        if tls_ca is not None:
            access.context()
        return access

    @property
    def headers(self) -> dict[str, str]:
        """Headers of every question."""
        return {} if self.token is None else {"Authorization": f"Bearer {self.token}"}

    def context(self) -> ssl.SSLContext:
        """TLS 1.2 or newer, certificate and name of the server checked.

        Raises:
            CallerError: The certificates cannot be read.
        """
        try:
            context = ssl.create_default_context(cafile=None if self.tls_ca is None else str(self.tls_ca))
        except (OSError, ssl.SSLError) as error:
            raise CallerError(
                f"--tls-ca {self.tls_ca}: cannot be read ({error.strerror or error}): expected certificates in PEM."
            ) from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context

    def remark(self, url: str) -> str:
        """What should be known before a token is sent there; empty where nothing is."""
        parts = urlsplit(url)
        if self.token is None or parts.scheme not in ("ws", "http", "grpc") or is_loopback(parts.hostname or ""):
            return ""
        return f"warning: the token travels to {parts.hostname} unencrypted, for all who listen: serve with TLS, and ask by wss:// or https://."


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerAccess:
    """Who is answered, and how the wire is encrypted."""

    token: str | None = dataclasses.field(default=None, repr=False)
    certificate: Path | None = None
    """The server's, with those that lead to its authority, PEM."""
    key: Path | None = None
    """Its private key, PEM, without a password."""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            given, missing = ("--tls-certificate", "--tls-key") if self.key is None else ("--tls-key", "--tls-certificate")
            raise CallerError(f"{given} without {missing}: TLS needs both; give {missing} too.")

    @property
    def encrypts(self) -> bool:
        """Whether the wire is TLS."""
        return self.certificate is not None

    def context(self) -> ssl.SSLContext | None:
        """TLS 1.2 or newer; None without a certificate.

        Raises:
            CallerError: Certificate or key cannot be read, or do not belong together.
        """
        if self.certificate is None or self.key is None:
            return None
        for flag, path in (("--tls-certificate", self.certificate), ("--tls-key", self.key)):
            try:
                path.open("rb").close()
            except OSError as error:
                raise CallerError(f"{flag} {path}: cannot be read ({error.strerror}). Run the server as a user who may read it.") from error
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.certificate, self.key, password=lambda: "")  # Never asks at the terminal.
        except (OSError, ssl.SSLError) as error:
            raise CallerError(
                f"--tls-certificate {self.certificate}, --tls-key {self.key}: {error.strerror or error}: expected a certificate and its private key, "
                "PEM, without a password."
            ) from error
        return context

    def allows(self, authorization: str | None) -> bool:
        """Whether a question with this header is answered; the comparison takes as long whatever differs."""
        if self.token is None:
            return True
        scheme, _, given = (authorization or "").partition(" ")
        same = hmac.compare_digest(given.strip().encode("utf-8", "replace"), self.token.encode())
        return same and scheme.lower() in _SCHEMES

    def remark(self, host: str) -> str:
        """What should be known before others can reach the address; empty where nothing is."""
        missing = [flag for flag, given in (("--tls-certificate and --tls-key", self.encrypts), ("--token-file", self.token)) if not given]
        if is_loopback(host) or not missing:
            return ""
        risks = ["reads along what is seen and commanded"] if not self.encrypts else []
        risks += ["can ask this policy"] if self.token is None else ([] if self.encrypts else ["reads the token"])
        return f"warning: whoever reaches {host} {' and '.join(risks)}: give {' and '.join(missing)}, or serve 127.0.0.1."
