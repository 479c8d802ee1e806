"""TLS of the door: files of a certificate, the context that they make, and the one that is made when they change."""

from __future__ import annotations

import ssl
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from chromakeep.errors import UsageError
from chromakeep.events import Noted, Observer

# Of TLS 1.2 only those with forward secrecy and authenticated encryption; those of 1.3 are all like that.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL"
_LARGEST = 1 << 20  # bytes of a file: a whole bundle of authorities has a quarter of that
_SOON = 7 * 86400.0  # seconds before its end in which a certificate is worth a word

Stamp = tuple[tuple[int, ...] | None, ...]


class Tls(msgspec.Struct, frozen=True):
    """PEM files. Without ``key`` it is in the file of the certificate, which holds the chain too, our own one first.

    With ``client_ca`` only clients whose certificate one of these authorities has signed are let in.
    """

    certificate: Path
    key: Path | None = None
    client_ca: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """All that are read."""
        return tuple(one for one in (self.certificate, self.key, self.client_ca) if one is not None)

    def stamp(self) -> Stamp:
        """Another one when a file was written or replaced."""
        return tuple(_stamp(one) for one in self.files)


def context_of(tls: Tls) -> ssl.SSLContext:
    """A server's context: TLS 1.2 or 1.3, HTTP/1.1. Raises ``UsageError`` with what is wrong with which file."""
    for path in tls.files:
        _read(path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    key = tls.key or tls.certificate
    try:
        # Without a function OpenSSL would ask on the terminal, and a container would wait for ever.
        context.load_cert_chain(tls.certificate, tls.key, password=lambda: _encrypted(key))
    except ssl.SSLError as error:
        raise _explained(tls, error) from None
    except ValueError as error:  # such as an empty password
        raise UsageError(f"{key}: {error}") from None
    if tls.client_ca:
        try:
            context.load_verify_locations(tls.client_ca)
        except ssl.SSLError:
            raise UsageError(f"{tls.client_ca}: no certificate of an authority in it", hint="it must be PEM") from None
        context.verify_mode = ssl.CERT_REQUIRED
        # A resumed session is not verified again: an authority that was taken out would be trusted for hours.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    return context


def remark(tls: Tls, now: datetime | None = None) -> str | None:
    """What clients will not like about a certificate that can be served: it has expired, or soon will."""
    from cryptography import x509

    try:
        one = x509.load_pem_x509_certificate(_read(tls.certificate))
    except (UsageError, ValueError):  # OpenSSL took it: whatever this reader dislikes is no reason not to serve it
        return None
    now = now or datetime.now(timezone.utc)
    begins, ends = _bounds(one)
    if now < begins:
        return f"{tls.certificate}: the certificate is valid only from {begins:%Y-%m-%d %H:%M} UTC"
    if now > ends:
        return f"{tls.certificate}: the certificate expired at {ends:%Y-%m-%d %H:%M} UTC: clients will refuse it"
    if (ends - now).total_seconds() < _SOON:
        return f"{tls.certificate}: the certificate expires at {ends:%Y-%m-%d %H:%M} UTC"
    return None


def fingerprint(certificate: Path) -> str:
    """SHA-256 of the first certificate in a file, in the form that OpenSSL prints."""
    from cryptography import x509
    from cryptography.hazmat.primitives.hashes import SHA256

    return x509.load_pem_x509_certificate(_read(certificate)).fingerprint(SHA256()).hex(":").upper()


class Certificates:
    """The context for the next connection; those that there are keep the one they began with."""

    def __init__(self, tls: Tls, observer: Observer) -> None:
        """Raises ``UsageError``, as ``context_of``."""
        self._tls, self._observer = tls, observer
        self._tried = self._seen = tls.stamp()  # taken before the files are read
        self.context = context_of(tls)
        self._remark()

    def look(self) -> None:
        """Take what the files hold now, if they have changed, lie still since the last look, and belong together.

        Otherwise the context stays, and the observer is told why, once for each state of the files. Reads files: not
        for the door's own thread.
        """
        before, self._seen = self._seen, self._tls.stamp()
        if self._seen == self._tried or self._seen != before:
            return  # nothing new; or being written at this moment
        self._tried = self._seen
        try:
            self.context = context_of(self._tls)
        except UsageError as error:
            self._observer(Noted(f"tls: {error.message}; the certificate from before is served on", "warning"))
            return
        self._observer(Noted(f"tls: {self._tls.certificate} has changed: new connections get the new certificate"))
        self._remark()

    def _remark(self) -> None:
        if said := remark(self._tls):
            self._observer(Noted(f"tls: {said}", "warning"))


def _bounds(one: object) -> tuple[datetime, datetime]:
    """From when to when a certificate is valid; cryptography has names with and without a zone, by its version."""
    begins, ends = (
        getattr(one, f"{name}_utc", None) or getattr(one, name).replace(tzinfo=timezone.utc)
        for name in ("not_valid_before", "not_valid_after")
    )
    return begins, ends


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        at = path.stat()
    except OSError:
        return None
    return at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns


def _read(path: Path) -> bytes:
    try:
        if not path.is_file() and path.exists():
            raise UsageError(f"{path}: not a file")
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        what = (error.strerror or str(error)).lower()
        raise UsageError(f"{path}: {what}", hint="it is read by the user that chromakeep runs as") from None
    if len(data) > _LARGEST:
        raise UsageError(f"{path}: larger than 1 MiB, no PEM file of a certificate")
    return data


def _encrypted(key: Path) -> str:
    hint = f"take the password off: openssl pkey -in {key.name} -out open-{key.name}"
    raise UsageError(f"{key}: the key is protected by a password", hint=hint)


def _explained(tls: Tls, error: ssl.SSLError) -> UsageError:
    """What OpenSSL means, by what is in the files: it names neither the file nor the fault."""
    key, certificate = tls.key or tls.certificate, tls.certificate
    if b"-----BEGIN CERTIFICATE-----" not in _read(certificate):
        return UsageError(f"{certificate}: no certificate in it", hint="it must be PEM: -----BEGIN CERTIFICATE-----")
    if b"PRIVATE KEY-----" not in _read(key):
        more = "" if tls.key else "; give the file of the key with --tls-key"
        return UsageError(f"{key}: no private key in it", hint=f"it must be PEM: -----BEGIN PRIVATE KEY-----{more}")
    if error.reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"):
        said = f"{key}: this key does not belong to the certificate in {certificate}"
        return UsageError(said, hint="the first certificate in the file must be the server's own, the chain follows it")
    if error.reason in ("EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"):
        return UsageError(f"{certificate}: too weak a certificate ({error.reason.lower().replace('_', ' ')})")
    why = (error.reason or str(error)).lower().replace("_", " ")
    both = str(certificate) if key == certificate else f"{certificate} and {key}"
    return UsageError(f"{both}: no certificate with its key ({why})")
