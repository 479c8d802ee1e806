"""A certificate that nobody vouches for: TLS for a test, without an authority."""

from __future__ import annotations

import ipaddress
import os
import socket
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path

from chromakeep.errors import UsageError
from chromakeep.server.tls import Tls, context_of, remark

DAYS = 30
CERTIFICATE, KEY = "certificate.pem", "key.pem"


def self_signed(folder: Path) -> Tls:
    """The certificate in ``folder``, or a new one where there is none or it ends within a week.

    EC P-256, for localhost, 127.0.0.1, ::1 and the name of the host, for 30 days. Clients that are given the file of
    the certificate as an authority trust it. Both files can be read by the owner only. Raises ``UsageError``.
    """
    tls = Tls(folder / CERTIFICATE, folder / KEY)
    with suppress(UsageError):
        context_of(tls)
        if remark(tls) is None:
            return tls
    certificate, key = new_pair((socket.gethostname(),))
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _put(folder / KEY, key)
        _put(folder / CERTIFICATE, certificate)
    except OSError as error:
        raise UsageError(f"{folder}: cannot keep a certificate there: {error.strerror or error}") from None
    return tls


def new_pair(names: tuple[str, ...] = (), *, days: float = DAYS) -> tuple[bytes, bytes]:
    """Certificate and key as PEM, for the loopback and ``names``, valid from an hour ago (clocks differ)."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "chromakeep, self-signed")])
    known = dict.fromkeys(["localhost", *(name for name in names if name and name.isascii() and len(name) < 254)])
    alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in known]
    alternatives += [x509.IPAddress(ipaddress.ip_address(one)) for one in ("127.0.0.1", "::1")]
    now = datetime.now(timezone.utc)
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=False,  # whoever gets its key must not make others that those who trust it trust too
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, SHA256())
    )
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return made.public_bytes(Encoding.PEM), secret


def _put(path: Path, data: bytes) -> None:
    """Whole or not at all, and never readable by others, not even for a moment."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    beside.replace(path)
