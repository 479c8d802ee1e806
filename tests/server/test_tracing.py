"""Traces: what a collector of OpenTelemetry's protocol gets, from a real exporter over HTTP."""

from __future__ import annotations

import gzip
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from chromakeep.errors import UsageError
from chromakeep.server import Door
from chromakeep.server.guard import Account
from chromakeep.server.tracing import Tracing
from chromakeep.server.unlocked import Unlocked
from server.wires import Backend, C, Wire

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The spans that came."""
    found: list[Any] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            sent = ExportTraceServiceRequest.FromString(body)
            found.extend(span for r in sent.resource_spans for s in r.scope_spans for span in s.spans)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    yield found
    server.shutdown()
    server.server_close()


class Told(Tracing):
    """``over`` is released for each request whose end it was told of, which is after the client has its answer."""

    def __init__(self) -> None:
        super().__init__()
        self.over = threading.Semaphore(0)

    def ended(self, account: Account, now: float) -> None:
        super().ended(account, now)
        self.over.release()


def test_a_span_for_each_request(
    backend: Backend, open_door: Callable[..., Door], knock: Callable[[Door], Wire], spans: list[Any]
) -> None:
    """Within the client's trace, with what became of it; what Chroma is told of the trace is what the client said."""
    tracing = Told()
    door = open_door(guard=Unlocked(), ledger=tracing)
    wire = knock(door)
    id_ = "0af76519-16cd-43dd-8448-eb211c80319c"
    path = C.removesuffix("/c") + f"/{id_}/query"
    fields = f"host: h\r\ntraceparent: 00-{TRACE}-{PARENT}-01\r\ncontent-length: 2"
    wire.send(f"POST {path}?secret=1 HTTP/1.1\r\n{fields}\r\n\r\n{{}}".encode())
    behind = backend.accept()
    assert f"traceparent: 00-{TRACE}-{PARENT}-01".encode() in behind.until()
    behind.send(b"HTTP/1.1 500 Oh\r\ncontent-length: 3\r\n\r\nbad")
    assert wire.until().startswith(b"HTTP/1.1 500")
    wire.exactly(3)
    other = knock(door)
    other.send(b"GET /api/v2/collections/a:b:c HTTP/1.1\r\nhost: h\r\n\r\n")
    assert other.until().startswith(b"HTTP/1.1 501")
    assert tracing.over.acquire(timeout=30) and tracing.over.acquire(timeout=30)
    tracing.close()
    first, second = spans
    assert (first.name, first.trace_id.hex(), first.parent_span_id.hex()) == ("POST collection.query", TRACE, PARENT)
    told = {a.key: a.value.string_value or a.value.int_value for a in first.attributes}
    assert told["http.response.status_code"] == 500
    assert told["url.path"] == path
    assert (told["http.request.body.size"], told["http.response.body.size"]) == (2, 3)
    assert told["chromakeep.tenant"] == "t"
    assert first.status.code == 2 and first.kind == 2
    assert 0 <= first.end_time_unix_nano - first.start_time_unix_nano < 60 * 10**9
    assert second.trace_id.hex() not in ("", TRACE) and not second.parent_span_id


def test_without_the_library_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(UsageError, match="library") as error:
        Tracing()
    assert "chromakeep[otel]" in (error.value.hint or "")
