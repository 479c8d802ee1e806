"""What a client meets on a bad day: a loopback HTTP proxy that spoils answers on demand, and a link that breaks."""

from __future__ import annotations

import http.client
import itertools
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"


@dataclass(frozen=True)
class Fault:
    """What happens to one request: nothing by default.

    ``status`` answers so without asking the server; ``lost`` asks it and closes without an answer, ``unasked`` closes
    without asking; ``keep`` sends only so many bytes of the answer's body; ``delay`` waits so many seconds first, and
    ``meanwhile`` is called before that.
    """

    status: int = 0
    body: bytes = b""
    lost: bool = False
    unasked: bool = False
    keep: int | None = None
    delay: float = 0.0
    meanwhile: Callable[[], object] = bool


class FaultProxy:
    """Stands before ``upstream`` (http://host:port). Requests meet ``faults`` in turn, and when none is left
    ``otherwise``.

    ``answered`` notes when (monotonic) each request was answered, ``took`` the seconds that its puts took.
    """

    def __init__(self, upstream: str) -> None:
        self.faults: deque[Fault] = deque()
        self.requests: list[str] = []
        self.otherwise = Fault()
        self.answered: deque[tuple[float, str]] = deque(maxlen=100_000)
        self.took: deque[float] = deque(maxlen=100_000)
        host = urlsplit(upstream).netloc
        proxy = self

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: object, client_address: object) -> None:
                """A client that gave up waiting is no news."""

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                begun = time.monotonic()
                proxy.requests.append(f"{self.command} {self.path}")
                fault = proxy.faults.popleft() if proxy.faults else proxy.otherwise
                fault.meanwhile()
                time.sleep(fault.delay)
                self.close_connection = True
                if fault.unasked:
                    return
                if fault.status:
                    self._answer(fault.status, {}, fault.body, None)
                    return
                connection = http.client.HTTPConnection(host, timeout=60)
                connection.request(self.command, self.path, body, dict(self.headers))
                answer = connection.getresponse()
                content = answer.read()
                connection.close()
                proxy.answered.append((time.monotonic(), f"{self.command} {self.path}"))
                if self.command == "PUT":
                    proxy.took.append(time.monotonic() - begun)
                if not fault.lost:
                    self._answer(answer.status, dict(answer.headers), content, fault.keep)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_any  # noqa: N815 - http.server's names

            def _answer(self, status: int, headers: dict[str, str], body: bytes, keep: int | None) -> None:
                self.send_response_only(status)
                for name, value in headers.items():
                    if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                        self.send_header(name, value)
                length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
                self.send_header("Content-Length", length)
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(b"" if self.command == "HEAD" else body[:keep])

            def log_message(self, format: str, *args: object) -> None:
                """Be silent."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def plan(self, faults: Iterable[Fault]) -> None:
        """Forget what was planned and seen, and meet the next requests with these."""
        self.faults = deque(faults)
        self.requests.clear()

    def stop(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()


class Link:
    """A TCP link to ``port`` of this machine that breaks: ``sent`` gives for each connection after how many bytes from
    the client, ``answered`` after how many to it; None, or no more of them: never. ``tls`` is taken off on the way.

    ``through`` counts the bytes that clients got through, ``broken`` the connections that were cut off.
    """

    def __init__(
        self,
        port: int,
        *,
        sent: Iterable[int | None] = (),
        answered: Iterable[int | None] = (),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.through = self.broken = self.opened = 0
        self._port, self._tls = port, tls
        self._sent: Iterator[int | None] = itertools.chain(sent, itertools.repeat(None))
        self._answered: Iterator[int | None] = itertools.chain(answered, itertools.repeat(None))
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._listening.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        self.opened += 1
        limits = next(self._sent), next(self._answered)
        try:
            if self._tls:
                near = self._tls.wrap_socket(near, server_side=True)
            far = socket.create_connection(("127.0.0.1", self._port))
        except OSError:
            near.close()
            return
        back = threading.Thread(target=self._pass, args=(far, near, limits[1], False), daemon=True)
        back.start()
        self._pass(near, far, limits[0], True)
        back.join()
        near.close()
        far.close()

    def _pass(self, source: socket.socket, target: socket.socket, limit: int | None, counted: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                broken = limit is not None and len(data) >= limit
                data = data[:limit]
                target.sendall(data)
                self.through += len(data) if counted else 0
                limit = limit if limit is None else limit - len(data)
                if broken:
                    self.broken += 1
                    break
        for one in (source, target):  # at once and without a word, as when a cable is pulled
            with suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                one.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        """Take no more connections."""
        self._listening.close()
