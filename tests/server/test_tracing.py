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
from chromakeep.events import Event, Noted, Observer, ignore
from chromakeep.server import Door
from chromakeep.server import tracing as module
from chromakeep.server.guard import Account
from chromakeep.server.metrics import Metrics
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
    monkeypatch.setattr(module, "PATIENCE", 60.0)  # this collector does answer, when it has its turn
    yield found
    server.shutdown()
    server.server_close()


class Told(Tracing):
    """``over`` is released for each request whose end it was told of, which is after the client has its answer."""

    def __init__(self, observer: Observer = ignore) -> None:
        super().__init__(observer)
        self.over = threading.Semaphore(0)

    def ended(self, account: Account, now: float) -> None:
        super().ended(account, now)
        self.over.release()


def test_a_span_for_each_request(
    backend: Backend, open_door: Callable[..., Door], knock: Callable[[Door], Wire], spans: list[Any]
) -> None:
    """Within the client's trace, with what became of it; Chroma is told that it is the parent."""
    tracing = Told()
    door = open_door(guard=Unlocked(), ledger=tracing)
    wire = knock(door)
    id_ = "0af76519-16cd-43dd-8448-eb211c80319c"
    path = C.removesuffix("/c") + f"/{id_}/query"
    fields = f"host: h\r\ntraceparent: 00-{TRACE}-{PARENT}-01\r\ncontent-length: 2"
    wire.send(f"POST {path}?secret=1 HTTP/1.1\r\n{fields}\r\n\r\n{{}}".encode())
    behind = backend.accept()
    told_on = behind.until()
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
    assert told_on.count(b"traceparent:") == 1
    assert f"\r\ntraceparent: 00-{TRACE}-{first.span_id.hex()}-01\r\n".encode() in told_on
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


class Silent(BaseHTTPRequestHandler):
    """A collector that takes spans and never answers."""

    def do_POST(self) -> None:
        taken.set()
        over.wait(120)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


taken, over = threading.Event(), threading.Event()


def test_a_collector_that_does_not_answer_keeps_no_end(
    monkeypatch: pytest.MonkeyPatch, backend: Backend, open_door: Callable[..., Door], knock: Callable[[Door], Wire]
) -> None:
    """The library would wait for its own ten seconds, in which a container is killed."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    tracing = Told()
    backend.serve()
    wire = knock(open_door(ledger=tracing))
    wire.send(b"GET /api/v2 HTTP/1.1\r\nhost: h\r\n\r\n")
    assert wire.answer().status == 200
    assert tracing.over.acquire(timeout=30)  # now there is something to send
    ended = threading.Thread(target=tracing.close, daemon=True)
    ended.start()
    assert taken.wait(60)
    ended.join(60)
    assert not ended.is_alive() and not over.is_set()
    over.set()
    server.shutdown()
    server.server_close()


def test_a_collector_that_is_away_is_told_in_our_log(
    monkeypatch: pytest.MonkeyPatch,
    backend: Backend,
    open_door: Callable[..., Door],
    knock: Callable[[Door], Wire],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each thing once: the library would say it on standard error, where who reads lines of JSON gets no others."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    monkeypatch.setattr("chromakeep.server.tracing.AGAIN", 3600.0)
    monkeypatch.setattr("chromakeep.server.tracing.PATIENCE", 120.0)  # what is said behind the end goes nowhere
    told: list[Event] = []
    tracing = Told(told.append)
    backend.serve()
    wire = knock(open_door(ledger=tracing))
    for _ in range(2):
        wire.send(b"GET /api/v2 HTTP/1.1\r\nhost: h\r\n\r\n")
        assert wire.answer().status == 200
        assert tracing.over.acquire(timeout=30)  # now there is something to send
        tracing._provider.force_flush()  # which waits until that has failed
    tracing.close()
    ours = [event.message for event in told if isinstance(event, Noted)]
    theirs = [str(one.msg) for one in caplog.records if one.name.startswith("opentelemetry")]
    assert all(message.startswith("traces: ") for message in ours)
    assert 0 < len(ours) == len(set(theirs)) < len(theirs)


def passed_on(behind: Wire) -> tuple[bytes, dict[str, list[str]]]:
    """The request line that the backend got, and its fields by name."""
    line, *fields = behind.until().removesuffix(b"\r\n\r\n").split(b"\r\n")
    found: dict[str, list[str]] = {}
    for field in fields:
        name, _, value = field.decode("latin-1").partition(": ")
        found.setdefault(name, []).append(value)
    return line, found


@pytest.mark.parametrize(
    ("sent", "trace", "state"),
    [
        ([f"traceparent: 00-{TRACE}-{PARENT}-01"], TRACE, []),
        ([f"Traceparent: 00-{TRACE}-{PARENT}-00", "TraceState: a=1"], TRACE, ["a=1"]),
        ([f"traceparent: 00-{TRACE}-{PARENT}-01", "tracestate: a=1,b=2", "tracestate: c=3"], TRACE, ["a=1,b=2,c=3"]),
        ([f"traceparent: cc-{TRACE}-{PARENT}-01-more", "tracestate: a=1"], TRACE, ["a=1"]),
        ([f"traceparent: 00-{TRACE}-{PARENT}-01-more", "tracestate: a=1"], None, []),
        ([f"traceparent: ff-{TRACE}-{PARENT}-01"], None, []),
        ([f"traceparent: 00-{'0' * 32}-{PARENT}-01"], None, []),
        ([f"traceparent: 00-{TRACE.upper()}-{PARENT}-01", "tracestate: a=1"], None, []),
        ([f"traceparent: 00-{TRACE}-{PARENT}-01", f"traceparent: 00-{TRACE}-{PARENT}-01"], None, []),
        ([f"traceparent: {'x' * 9000}"], None, []),
        ([f"traceparent: 00-{TRACE}-{PARENT}-01", f"tracestate: a={'x' * 9000}"], TRACE, []),
        ([f"traceparent: 00-{TRACE}-{PARENT}-01", "tracestate: \xff=\xfe"], TRACE, []),
        ([], None, []),
        (["tracestate: a=1"], None, []),
    ],
)
def test_what_the_backend_is_told_of_a_trace(
    backend: Backend,
    open_door: Callable[..., Door],
    knock: Callable[[Door], Wire],
    spans: list[Any],
    capsys: pytest.CaptureFixture[str],
    sent: list[str],
    trace: str | None,
    state: list[str],
) -> None:
    """Our span, in the client's trace where that is one; nothing else of the head changes, and no log is filled."""
    tracing = Told()
    wire = knock(open_door(guard=Unlocked(), ledger=tracing))
    head = "\r\n".join(["GET /api/v2/heartbeat?x=traceparent HTTP/1.1", "host: h", *sent, "x-a: b"])
    wire.send(head.encode("latin-1") + b"\r\n\r\n")
    behind = backend.accept()
    line, fields = passed_on(behind)
    behind.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
    assert wire.until().startswith(b"HTTP/1.1 200")
    wire.exactly(2)
    assert tracing.over.acquire(timeout=30)
    tracing.close()
    assert line == b"GET /api/v2/heartbeat?x=traceparent HTTP/1.1"
    (parent,) = fields.pop("traceparent")
    version, trace_id, span_id, flags = parent.split("-")
    assert (version, len(trace_id), len(span_id)) == ("00", 32, 16)
    assert (trace_id == trace) if trace else trace_id not in (TRACE, "0" * 32)
    assert span_id not in (PARENT, "0" * 16)
    assert fields.pop("tracestate", []) == state
    assert fields == {"host": ["h"], "x-a": ["b"]}
    sampled = int(flags, 16) & 1
    assert [(s.trace_id.hex(), s.span_id.hex()) for s in spans] == [(trace_id, span_id)] * sampled
    assert bool(sampled) != any(one.endswith("-00") for one in sent)
    told = capsys.readouterr()
    assert told.out + told.err == ""


def test_without_traces_both_go_on_as_they_were_sent(
    backend: Backend, open_door: Callable[..., Door], knock: Callable[[Door], Wire]
) -> None:
    """Another ledger changes nothing of them."""
    wire = knock(open_door(guard=Unlocked(), ledger=Metrics()))
    wire.send(
        b"GET /api/v2/heartbeat HTTP/1.1\r\nhost: h\r\ntraceparent: odd\r\ntracestate: a=1\r\ntracestate: b\r\n\r\n"
    )
    behind = backend.accept()
    assert passed_on(behind)[1] == {"host": ["h"], "traceparent": ["odd"], "tracestate": ["a=1", "b"]}


def test_a_disabled_library_leaves_the_client_s_context_alone(
    backend: Backend,
    open_door: Callable[..., Door],
    knock: Callable[[Door], Wire],
    spans: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By OpenTelemetry's own variable."""
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    tracing = Tracing()
    wire = knock(open_door(guard=Unlocked(), ledger=tracing))
    wire.send(f"GET /api/v2/heartbeat HTTP/1.1\r\nhost: h\r\ntraceparent: 00-{TRACE}-{PARENT}-01\r\n\r\n".encode())
    behind = backend.accept()
    assert passed_on(behind)[1]["traceparent"] == [f"00-{TRACE}-{PARENT}-01"]
    tracing.close()
    assert spans == []
