"""An authority of a test's own, and certificates that it signs."""

from __future__ import annotations

import ipaddress
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from chromakeep.server.tls import Tls


class Authority:
    """Signs certificates for the loopback. ``file`` is its own certificate."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder, self._name = folder, x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(self._made(self._name, self._key, ca=True).public_bytes(Encoding.PEM))

    def _made(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, ca: bool, ends: float = 30.0
    ) -> x509.Certificate:
        now = datetime.now(timezone.utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=60))
            .not_valid_after(now + timedelta(days=ends))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        if not ca:
            names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only"), False
        )
        builder = builder.add_extension(
            x509.KeyUsage(digital_signature=True, key_cert_sign=ca, crl_sign=ca, decipher_only=False, **usage),
            critical=True,
        )
        return builder.sign(self._key, SHA256())

    def pair(self, name: str = "server", *, ends: float = 30.0, password: bytes | None = None) -> tuple[bytes, bytes]:
        """Certificate and key as PEM; ``ends`` in days from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = self._made(subject, key, ca=False, ends=ends)
        kept: KeySerializationEncryption = BestAvailableEncryption(password) if password else NoEncryption()
        return made.public_bytes(Encoding.PEM), key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, kept)

    def tls(self, name: str = "server", *, ends: float = 30.0, password: bytes | None = None) -> Tls:
        """The files of a new certificate."""
        certificate, key = self.pair(name, ends=ends, password=password)
        made = Tls(self._folder / f"{name}-certificate.pem", self._folder / f"{name}-key.pem")
        made.certificate.write_bytes(certificate)
        assert made.key
        made.key.write_bytes(key)
        return made
