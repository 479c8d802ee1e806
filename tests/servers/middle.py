"""A loopback HTTP server whose answers a function makes, and what it makes them of: a real server, or nothing."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Asked:
    """A request as it came."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """Its body."""
        return json.loads(self.body) if self.body else None

    @property
    def verb(self) -> str:
        """The last part of its path."""
        return self.path.partition("?")[0].rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Answer:
    """``close``: after it the connection is closed, with or without a word of that."""

    status: int = 200
    body: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=dict)
    close: bool = False


def told(status: int, message: str, error: str = "ChromaError", **headers: str) -> Answer:
    """An error as Chroma tells it."""
    return Answer(status, json.dumps({"error": error, "message": message}).encode(), headers)


def of_json(value: object) -> Answer:
    """An answer that is fine."""
    return Answer(200, json.dumps(value).encode())


class Middle:
    """Serves ``answer``; keeps connections open. ``asked``: what came, in order; ``connections``: how many."""

    def __init__(self, answer: Callable[[Asked], Answer]) -> None:
        self.answer = answer
        self.asked: list[Asked] = []
        self.connections = 0
        self._lock = threading.Lock()
        middle = self

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: object, client_address: object) -> None:
                """A client that went away is no news."""

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                with middle._lock:
                    middle.connections += 1

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                asked = Asked(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body)
                with middle._lock:
                    middle.asked.append(asked)
                answer = middle.answer(asked)
                self.send_response_only(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)
                self.close_connection = self.close_connection or answer.close

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_any  # noqa: N815 - http.server's names

            def log_message(self, format: str, *args: object) -> None:
                """Be silent."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()


def forwarder(upstream: str) -> Callable[[Asked], Answer]:
    """Asks ``upstream`` (http://host:port) and passes its answer on."""
    host = urlsplit(upstream).netloc

    def forward(asked: Asked) -> Answer:
        connection = http.client.HTTPConnection(host, timeout=60)
        connection.request(asked.method, asked.path, asked.body, {"content-type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return Answer(answer.status, content, {"Content-Type": "application/json"})

    return forward
