"""Courier: requests to a receiver over kept connections, each tried again until it is answered or hope is given up."""

from __future__ import annotations

import http.client
import io
import json
import random
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from chromakeep.addresses import parse
from chromakeep.errors import (
    ChromakeepError,
    NotNow,
    RepositoryBusy,
    ServerAnswered,
    ServerSilent,
    UsageError,
    revived,
)
from chromakeep.events import Noted, Observer, Retried, ignore

ROUTE = "/_keep/receive"
BLOCK = 64 << 10  # bytes sent at a time, each with the timeout to itself
TIMEOUT = 30.0  # seconds in which nothing moves
ANSWER = 120.0  # seconds that an answer may take: a receiver makes room for all files at once
PATIENCE = 120.0  # seconds in which nothing succeeds, after which hope is given up
FIRST = 10.0  # the same where nothing ever has: mostly the address is wrong
LONGEST_WAIT = 10.0  # seconds between two tries
LARGEST = 64 << 20  # bytes of an answer that are read
PASSING = frozenset({408, 425, 429, 502, 503, 504})
LOCAL = frozenset({"localhost", "127.0.0.1", "[::1]"})


class Courier:
    """To one receiver, for several threads. ``url`` is that of the receiver's server, with or without the route.

    Every request is one that may be made twice. ``patience`` seconds without a single success end it.
    """

    def __init__(self, url: str, token: str, *, patience: float = PATIENCE, observer: Observer = ignore) -> None:
        address = parse(url)
        if address.kind != "http":
            raise UsageError(f"{address} is no server", hint="write https://HOST[:PORT]; chromakeep run listens there")
        self.url = str(address).removesuffix("/receive").removesuffix("/_keep")
        parts = urlsplit(self.url)
        self._host, self._path, self._secure = parts.netloc, parts.path.rstrip("/") + ROUTE, parts.scheme == "https"
        self._token, self._patience, self._observer = token, patience, observer
        self._context = ssl.create_default_context() if self._secure else None
        self._local = threading.local()
        self._succeeded, self._ever = time.monotonic(), False
        self._over = threading.Event()
        self._made: list[http.client.HTTPConnection] = []
        self.cut = 0  # times that a link was cut
        if not self._secure and self._host.rpartition(":")[0] not in LOCAL and self._host not in LOCAL:
            said = f"{self.url} is not https: whoever is on the way can read the data and the token"
            observer(Noted(said, "warning"))

    def begin(self) -> None:
        """The time until now was spent on something else: patience begins anew."""
        self._succeeded = time.monotonic()

    def ask(
        self,
        method: str,
        path: str = "",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        cuts: int | None = None,
    ) -> Any:
        """The parsed answer of the receiver to one request below its route. With ``cuts``, which tells how often it was
        cut off so far, a cut raises ``Cut`` after a while: the same may be asked in another way then.

        Raises what the receiver says; ``ServerAnswered`` for an answer that is not its own, ``ServerSilent`` when
        there was none for too long.
        """
        attempt = 0
        while True:
            attempt += 1
            try:
                answer = self._try(method, path, body, headers or {})
            except (ssl.SSLCertVerificationError, UnicodeError) as error:
                raise ServerSilent(
                    f"{self.url} cannot be trusted: {error}", timed_out=False, hint="is the certificate for that host?"
                ) from None
            except (OSError, http.client.HTTPException) as error:
                self._drop()
                self.cut += 1
                failure: ChromakeepError = ServerSilent(
                    f"{self.url} does not answer: {str(error) or type(error).__name__}",
                    timed_out=isinstance(error, TimeoutError),
                    hint="run the same command again: it goes on with what is there",
                )
                if cuts is not None and not self._hopeless():
                    self._wait(cuts + 1, f"{method} {path}", failure)
                    raise Cut from None
            except _Passing as passing:
                failure = passing.error
            else:
                self._succeeded, self._ever = time.monotonic(), True
                return answer
            if self._hopeless():
                raise failure
            self._wait(attempt, f"{method} {path}".strip(), failure)

    def _hopeless(self) -> bool:
        patience = self._patience if self._ever else min(self._patience, FIRST)
        return self._over.is_set() or time.monotonic() - self._succeeded > patience

    def _wait(self, attempt: int, what: str, failure: ChromakeepError) -> None:
        delay = min(0.1 * 2.0 ** min(attempt, 10), LONGEST_WAIT) * random.uniform(0.5, 1.0)
        self._observer(Retried(what, failure.message, attempt, delay))
        self._over.wait(delay)

    def _try(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Any:
        connection = self._connection()
        told = {"authorization": f"Bearer {self._token}", "content-length": str(len(body or b"")), **headers}
        connection.request(method, self._path + path, io.BytesIO(body) if body else None, told)
        if connection.sock:
            connection.sock.settimeout(ANSWER)
        answer = connection.getresponse()
        data = answer.read(LARGEST)
        # Neither ``read`` of a given size nor the reading of a head raises where it is cut off.
        if answer.length or not (answer.chunked or answer.headers.get("content-length")):
            raise http.client.IncompleteRead(data, answer.length)
        if connection.sock:
            connection.sock.settimeout(TIMEOUT)
        return self._understood(answer.status, data)

    def _connection(self) -> http.client.HTTPConnection:
        """This thread's."""
        found: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if found is None:
            if self._context:
                found = http.client.HTTPSConnection(self._host, timeout=TIMEOUT, blocksize=BLOCK, context=self._context)
            else:
                found = http.client.HTTPConnection(self._host, timeout=TIMEOUT, blocksize=BLOCK)
            self._local.connection = found
            self._made.append(found)
        return found

    def _drop(self) -> None:
        self._connection().close()  # the next request opens it anew

    def _understood(self, status: int, data: bytes) -> Any:
        try:
            answer = json.loads(data)
        except ValueError:
            answer = None
        if status == 200 and isinstance(answer, dict):
            return answer
        said = answer.get("message") if isinstance(answer, dict) else None
        failure = answer.get("failure") if isinstance(answer, dict) else None
        error = told(failure) if failure else None
        if error is None:
            error = ServerAnswered(
                status, f"{self.url} answers {status}: {said or data[:200].decode('utf-8', 'replace')}"
            )
            error.hint = _HINTS.get(status)
        if status in PASSING and not isinstance(error, RepositoryBusy):
            raise _Passing(error)
        raise error

    def close(self) -> None:
        """Close all connections, at once: whoever still asks gives up."""
        self._over.set()
        for connection in self._made:
            with suppress(OSError):
                if connection.sock:
                    connection.sock.shutdown(socket.SHUT_RDWR)
                connection.close()


_HINTS = {
    401: "CHROMAKEEP_RECEIVE_TOKEN must be the same here and there",
    404: "chromakeep run receives only where CHROMAKEEP_RECEIVE_TOKEN is set",
    301: "give the address it redirects to",
    302: "give the address it redirects to",
    307: "give the address it redirects to",
    308: "give the address it redirects to",
    413: "what stands before that server takes no bodies of 9 MB: raise its limit",
}


class Cut(Exception):
    """The link was cut off; it has been waited for a while."""


class _Passing(Exception):
    def __init__(self, error: ChromakeepError) -> None:
        super().__init__(str(error))
        self.error = error


def told(failure: object) -> ChromakeepError:
    """An error that a receiver tells (``errors.flat``); of a kind that needs more than that, a plain one."""
    if not isinstance(failure, list) or len(failure) != 3:
        return ChromakeepError("the receiver tells of a failure in words that are not understood")
    kind, message, hint = (None if part is None else str(part) for part in failure)
    try:
        return revived(str(kind), f"receiver: {message}", hint)
    except TypeError:
        return NotNow(f"receiver: {message}", hint=hint)
