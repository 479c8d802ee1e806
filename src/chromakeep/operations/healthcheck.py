"""Healthcheck: ask a server how it is, once, and be quick about it. Nothing heavy is imported here."""

from __future__ import annotations

import http.client
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from chromakeep.errors import UsageError
from chromakeep.operations.openness import loopback

if TYPE_CHECKING:
    import ssl

READY, LIVE, HEARTBEAT = "/readyz", "/healthz", "/api/v2/heartbeat"
_LARGEST = 64 << 10  # bytes of an answer that are read
_LONGEST = 300  # characters of it that are told
WANTS = "; it may want a --client-certificate"


class Health(msgspec.Struct, frozen=True):
    """How it is. ``status`` is that of the answer, None without one; ``why`` says why it is not ``healthy``."""

    url: str
    healthy: bool
    status: int | None
    why: str | None
    seconds: float


class _Told(msgspec.Struct):
    """What our pages and Chroma's errors say of themselves."""

    role: str | None = None
    lets_nobody_in: str | None = None
    refuses_writes: str | None = None
    missing: str | None = None
    trouble: str | None = None
    message: str | None = None


def healthcheck(
    url: str,
    *,
    live: bool = False,
    timeout: float = 5.0,
    insecure: bool = False,
    client_certificate: Path | None = None,
) -> Health:
    """``GET`` of the page at ``url``; without a path it is ``/readyz``, with ``live`` ``/healthz``.

    A Chroma without our door has neither: there its heartbeat is asked. Redirects and proxies are not followed. All
    is over after ``timeout`` seconds. ``insecure``: no certificate is verified, on this machine only.
    ``client_certificate``: PEM file of a certificate and its key, for servers that want one. Raises ``UsageError``.
    """
    asked = _Asked(url, LIVE if live else READY, timeout, insecure, client_certificate)
    begun = time.monotonic()
    heard: list[tuple[int | None, str | None]] = []
    # In a thread: neither the resolution of a name nor an answer that drips would end in time by itself.
    asking = threading.Thread(target=lambda: heard.append(asked.answer()), name="healthcheck", daemon=True)
    asking.start()
    asking.join(timeout)
    status, why = heard[0] if heard else (None, f"no answer within {timeout:g} s")
    return Health(asked.url, why is None, status, why, round(time.monotonic() - begun, 3))


class _Asked:
    """One question."""

    def __init__(self, url: str, page: str, timeout: float, insecure: bool, client_certificate: Path | None) -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            parts, host, port = urlsplit(""), None, None
        known = parts.scheme in ("http", "https") and host and not (parts.query or parts.fragment or parts.username)
        if not known or not host or not url.isascii() or not url.isprintable() or " " in url:
            raise UsageError("this is no address of a server", hint="write http://HOST:PORT or https://HOST:PORT")
        self._host, self._port, self._timeout = host, port, timeout
        own = parts.path in ("", "/")
        self._pages = [page, HEARTBEAT] if own else [parts.path]
        self.url = f"{parts.scheme}://{parts.netloc}{self._pages[0]}"
        if insecure and not loopback(host):
            said = f"--insecure is for this machine only, and {host} is another"
            raise UsageError(said, hint="trust the authority of its certificate: SSL_CERT_FILE=PATH")
        self._context = _context(insecure, client_certificate) if parts.scheme == "https" else None
        self._nameless = self._context is not None and client_certificate is None

    def answer(self) -> tuple[int | None, str | None]:
        """Status, and why that is not well; None when it is."""
        try:
            for page in self._pages:
                status, body = self._get(page)
                if status != 404:
                    break
        except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: a name that cannot be one
            return None, _said(error) + (WANTS if self._nameless and _cut(error) else "")
        return status, None if status == 200 else _reason(status, body)

    def _get(self, page: str) -> tuple[int, bytes]:
        if self._context:
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                self._host, self._port, timeout=self._timeout, context=self._context
            )
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
        try:
            connection.request("GET", page, headers={"user-agent": "chromakeep", "connection": "close"})
            answer = connection.getresponse()
            return answer.status, answer.read(_LARGEST)
        finally:
            connection.close()


def _context(insecure: bool, client_certificate: Path | None) -> ssl.SSLContext:
    import ssl

    context = ssl.create_default_context()
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if client_certificate:
        try:
            context.load_cert_chain(client_certificate, password="")
        except (OSError, ValueError) as error:  # SSLError is an OSError
            hint = "a PEM file of both, the key without a password"
            said = f"{client_certificate}: no certificate with its key: {_said(error)}"
            raise UsageError(said, hint=hint) from None
    return context


def _cut(error: Exception) -> bool:
    """Whether the other side ended the connection: by TLS 1.3 that is how a certificate that is missing may show."""
    return isinstance(error, (ConnectionResetError, BrokenPipeError)) or type(error).__name__ == "SSLEOFError"


def _said(error: Exception) -> str:
    """One line of why there is no answer."""
    if verify := getattr(error, "verify_message", None):
        return f"its certificate is not trusted: {verify}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, http.client.RemoteDisconnected):
        return "it ended the connection without an answer"
    if isinstance(error, http.client.HTTPException):
        return f"its answer is not HTTP ({type(error).__name__})"
    what = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
    return str(what).lower().replace("_", " ")


def _reason(status: int, body: bytes) -> str:
    try:
        told = msgspec.json.decode(body, type=_Told)
        why = told.lets_nobody_in or told.missing or told.trouble or told.refuses_writes or told.message
        what = why or (told.role and f"this instance is {told.role}") or ""
    except msgspec.DecodeError:
        what = ""
    if status == 404 and not what:
        what = "there is no such page"
    return f"{status}: {what}"[:_LONGEST] if what else str(status)
