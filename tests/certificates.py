"""An authority and a server's certificate that it signed, for tests of TLS."""

from __future__ import annotations

import dataclasses
import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from runtime.access import ServerAccess

__all__ = ["TOKEN", "Certificates", "make_certificates"]

TOKEN = "0123456789abcdef-the-token"


@dataclasses.dataclass(frozen=True)
class Certificates:
    """Files in PEM."""

    authority: Path
    certificate: Path
    key: Path

    def server(self, token: str | None = TOKEN) -> ServerAccess:
        """TLS and a token."""
        return ServerAccess(token=token, certificate=self.certificate, key=self.key)


def make_certificates(folder: Path, *, names: tuple[str, ...] = ("localhost",)) -> Certificates:
    """A new authority, and a certificate for 127.0.0.1 and `names`, in `folder`."""
    now = datetime.datetime.now(datetime.timezone.utc)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    subjects = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("authority of a test", "server of a test")]
    others = [x509.DNSName(name) for name in names]
    files = []
    for subject, key, is_authority in zip(subjects, keys, (True, False), strict=True):
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subjects[0])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=12))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        )
        if not is_authority:
            places = [*others, x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            builder = builder.add_extension(x509.SubjectAlternativeName(places), critical=False)
        signed = builder.sign(keys[0], hashes.SHA256())
        files.append(folder / ("authority.pem" if is_authority else "certificate.pem"))
        files[-1].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    private = folder / "key.pem"
    private.write_bytes(keys[1].private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return Certificates(*files, private)
