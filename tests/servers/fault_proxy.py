"""A loopback HTTP proxy that spoils answers on demand: what a client meets on a bad day."""

from __future__ import annotations

import http.client
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
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
