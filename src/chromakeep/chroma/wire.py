"""The wire: one HTTP request and its answer, on a connection that is kept open, one for each thread."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

from chromakeep.errors import ServerFailed, ServerSilent

MOST = 256 << 20  # bytes of one answer
_PIECE = 1 << 20
_TOLD = 300  # characters of a server's words
_DRIBBLE = 10  # an answer may take so many timeouts in all


def one_line(text: str) -> str:
    """What a server said, as part of a message: one line of printable characters, not too long."""
    return " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * _TOLD]).split())[:_TOLD]


class AnswerTooLarge(ServerFailed):
    """An answer is larger than what is read; asking for less may help."""


class Reply(NamedTuple):
    """An answer as it came, of any status."""

    status: int
    headers: http.client.HTTPMessage
    data: bytes


class _Cut(Exception):
    """The connection ended before an answer began."""


class Wire:
    """Threads may share it. A kept connection that turns out to be closed is opened again at once, and the request sent
    once more: so every request must be one that may be sent twice."""

    def __init__(self, host: str, port: int, *, where: str, context: ssl.SSLContext | None) -> None:
        """``where``: what it is called in messages. ``context``: None for plain HTTP."""
        self.host, self.port, self.where = host, port, where
        self._context = context
        self._local = threading.local()
        self._lock = threading.Lock()
        self._open: set[http.client.HTTPConnection] = set()

    def exchange(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], *, timeout: float, what: str
    ) -> Reply:
        """The answer to one request. ``timeout``: seconds without a byte. ``what``: the request in messages.

        Raises ``ServerSilent`` for what may pass, ``AnswerTooLarge``, and ``ServerFailed`` for what will not.
        """
        request = method, path, body, dict(headers)
        kept: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        try:
            if kept is not None and kept.sock is not None:
                with suppress(_Cut):  # it was closed since the last request: nothing is wrong
                    return self._exchange(kept, request, timeout, what)
            return self._exchange(self._connect(), request, timeout, what)
        except TimeoutError:
            raise ServerSilent(f"{self.where}: no answer to {what} in {timeout:g} s", timed_out=True) from None
        except ssl.SSLCertVerificationError as error:
            raise ServerFailed(
                f"{self.where}: its certificate is not trusted: {error.verify_message}",
                hint="SSL_CERT_FILE can name a file with the certificate of its authority",
            ) from None
        except ssl.SSLError as error:
            raise ServerFailed(
                f"{self.where}: no TLS with it: {error.reason or error}", hint="does it speak http://?"
            ) from None
        except socket.gaierror as error:
            if error.errno == socket.EAI_AGAIN:
                raise ServerSilent(f"{self.where}: {error.strerror}", timed_out=False) from None
            raise ServerFailed(f"{self.where}: no host of that name ({error.strerror})") from None
        except (OSError, http.client.HTTPException, _Cut) as error:
            told = str(getattr(error, "strerror", None) or error) or type(error).__name__
            raise ServerSilent(f"{self.where} does not answer: {one_line(told)}", timed_out=False) from None

    def close(self) -> None:
        """Close what is kept open, also under requests of other threads; a request after that opens it anew."""
        with self._lock:
            open_, self._open = self._open, set()
        for connection in open_:
            if (sock := connection.sock) is not None:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        self._drop()
        connection = (
            http.client.HTTPSConnection(self.host, self.port, context=self._context)
            if self._context is not None
            else http.client.HTTPConnection(self.host, self.port)
        )
        self._local.connection = connection
        with self._lock:
            self._open.add(connection)
        return connection

    def _drop(self) -> None:
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            self._local.connection = None
            with self._lock:
                self._open.discard(connection)
            connection.close()

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        request: tuple[str, str, bytes | None, dict[str, str]],
        timeout: float,
        what: str,
    ) -> Reply:
        whole = False
        try:
            connection.timeout = timeout
            if connection.sock is None:
                connection.connect()
            connection.sock.settimeout(timeout)
            try:
                connection.request(*request)
            except (BrokenPipeError, ConnectionResetError):
                if not request[2]:  # a server may say no (413) to a body that it does not read to its end
                    raise
            answer = connection.getresponse()
        except (http.client.RemoteDisconnected, http.client.ResponseNotReady, ssl.SSLEOFError) as error:
            raise _Cut(str(error) or "the connection was closed") from None
        except (BrokenPipeError, ConnectionResetError, ConnectionAbortedError) as error:
            raise _Cut(error.strerror or "the connection was closed") from None
        else:
            data = self._read(answer, time.monotonic() + _DRIBBLE * timeout, what)
            whole = not answer.will_close
            return Reply(answer.status, answer.headers, data)
        finally:
            if not whole:
                self._drop()

    def _read(self, answer: http.client.HTTPResponse, deadline: float, what: str) -> bytes:
        pieces, size = [], 0
        while piece := answer.read(_PIECE):
            pieces.append(piece)
            size += len(piece)
            if size > MOST:
                raise AnswerTooLarge(f"{self.where}: the answer to {what} is larger than {MOST >> 20} MiB")
            if time.monotonic() > deadline:
                raise TimeoutError
        if answer.length:
            raise ConnectionError("the connection was cut within an answer")
        return b"".join(pieces)
