"""Connections: kept-alive HTTP(S) to one server, one connection a thread, with a token and with patience."""

from __future__ import annotations

import http.client
import random
import ssl
import threading
import time
from email.utils import parsedate_to_datetime
from itertools import count
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import msgspec

from chromakeep.chroma.tokens import Token
from chromakeep.chroma.wire import Reply, Wire, one_line
from chromakeep.errors import ServerAnswered, ServerFailed, ServerSilent, UsageError
from chromakeep.events import Observer, Retried, ignore

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

API = "/api/v2"
PASSING = frozenset({429, 502, 503, 504})
FIRST_CONTACT = 15.0  # seconds of patience with a server that never answered: a wrong address is no passing fault
_FIRST_DELAY, _LONGEST_DELAY = 0.25, 15.0
_LONGEST_ASKED = 60.0  # of a Retry-After

ANYTHING: msgspec.json.Decoder[Any] = msgspec.json.Decoder()
_ERROR = msgspec.json.Decoder(dict[str, Any])


class Parser(Protocol[T_co]):
    """What makes a value of an answer's bytes: a decoder of msgspec, or whatever stands around one."""

    def decode(self, data: bytes, /) -> T_co:
        """The value. Raises what msgspec raises."""


class Connection:
    """Requests to one server. Threads may share it: each has a connection of its own, opened when it first asks.

    Every request must be one that may be sent twice: it is repeated when a kept connection turns out to be closed, on
    429, 502, 503 and 504 (heeding Retry-After), on refused and cut connections and on timeouts, with growing random
    pauses, until ``patience`` seconds have passed without success of any thread (``FIRST_CONTACT`` seconds while the
    server has never answered). Each pause is told to ``observer``.
    """

    def __init__(
        self,
        url: str,
        *,
        token: Token | None = None,
        bearer: bool = False,
        context: ssl.SSLContext | None = None,
        timeout: float = 60.0,
        patience: float = 120.0,
        observer: Observer = ignore,
    ) -> None:
        """``url``: scheme, host and port, perhaps a path below which the API lies. ``token``: sent as x-chroma-token,
        and if ``bearer`` also as Authorization. ``timeout``: seconds without a byte. Raises ``UsageError``."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host or parts.scheme not in ("http", "https") or parts.query or parts.fragment or parts.username:
            raise UsageError("this is no address of a server", hint="write http://HOST:PORT or https://HOST")
        self.tls = parts.scheme == "https"
        self.host, self.port = host, port or (443 if self.tls else 80)
        self.where = f"{parts.scheme}://{parts.netloc}"
        self.timeout, self.patience = timeout, patience
        self.slow = 2 * timeout  # for what may take a server long: it answers a write when all is indexed
        self._prefix = parts.path.rstrip("/") + API
        self._token, self._observer = token or Token(), observer
        context = (context or ssl.create_default_context()) if self.tls else None
        self._wire = Wire(self.host, self.port, where=self.where, context=context)
        self._headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "chromakeep"}
        self._headers |= self._token.headers()
        if bearer and self._token.value:
            self._headers["Authorization"] = f"Bearer {self._token.value}"
        self._answered = 0.0  # when any thread last had an answer that was not a fault

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        decoder: Parser[T],
        timeout: float | None = None,
        patient: bool = True,
        stop: threading.Event | None = None,
    ) -> T:
        """The answer to one request below ``/api/v2``.

        ``patient``: False raises on a timeout at once, for those who would rather ask for less. ``stop``: when it is
        set, nothing is tried again. Raises ``ServerAnswered`` (the server said no), ``ServerSilent``,
        ``AnswerTooLarge``, and ``ServerFailed`` for what is no answer of Chroma's.
        """
        what = f"{method} {path.partition('?')[0].rsplit('/', 1)[-1][:60]}"
        stop, began = stop or threading.Event(), time.monotonic()
        for attempt in count(1):
            asked = 0.0
            failed: ServerSilent | ServerAnswered
            try:
                reply = self._wire.exchange(
                    method,
                    self._prefix + path,
                    body,
                    self._headers,
                    timeout=timeout or self.timeout,
                    what=what,
                )
            except ServerSilent as error:
                if error.timed_out and not patient:
                    raise
                failed = error
            else:
                if reply.status not in PASSING:
                    self._answered = time.monotonic()
                    return self._understood(reply, decoder, what)
                self._answered = self._answered or began
                failed, asked = self._refusal(reply, what), _retry_after(reply)
            longest = min(_FIRST_DELAY * 2 ** min(attempt - 1, 10), _LONGEST_DELAY)
            delay = max(longest * random.uniform(0.5, 1.0), asked)
            if stop.is_set() or time.monotonic() + delay > self._deadline(began):
                raise failed
            self._observer(Retried(what, failed.message, attempt, delay))
            if stop.wait(delay):
                raise failed
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Close what is kept open, also under requests of other threads; a request after that opens it anew."""
        self._wire.close()

    def _deadline(self, began: float) -> float:
        if not self._answered:
            return began + min(self.patience, FIRST_CONTACT)
        return min(max(began, self._answered) + self.patience, began + 5 * self.patience)

    # -- what an answer means -------------------------------------------------------------------------------------

    def _understood(self, reply: Reply, decoder: Parser[T], what: str) -> T:
        if not 200 <= reply.status < 300:
            raise self._refusal(reply, what)
        try:
            return decoder.decode(reply.data or b"null")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ServerFailed(
                f"{self.where}: its answer to {what} is none of Chroma's: {self._line(str(error))}",
                hint="is this the address of a Chroma server, of version 1.0 or later?",
            ) from None

    def _refusal(self, reply: Reply, what: str) -> ServerAnswered:
        status, headers, data = reply
        hint = None
        try:
            said = _ERROR.decode(data).get("message")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            said = None
        told = self._line(str(said or data[:1000].decode("utf-8", "replace") or http.client.responses.get(status, "")))
        if status in (401, 403) or "Missing API key" in told:
            hint = f"set {self._token.settable} to a token that may do this"
            asks = f"refuses the token in {self._token.origin}" if self._token.value else "asks for a token"
            told = f"{self.where} {asks} ({status}: {told})"
        elif 300 <= status < 400:
            told = f"{self.where} is somewhere else: {self._line(headers.get('Location') or '?')}"
            hint = "name that address"
        elif said is None:
            told = f"{self.where} answers {what} with {status}: {told}"
        return ServerAnswered(status, told, hint=hint)

    def _line(self, text: str) -> str:
        return one_line(self._token.masked(text))


def _retry_after(reply: Reply) -> float:
    """Seconds, from seconds or a date; 0 where there is none that makes sense."""
    text = (reply.headers.get("Retry-After") or "").strip()
    try:
        seconds = float(text) if text.isdigit() else parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(seconds, 0.0), _LONGEST_ASKED)
