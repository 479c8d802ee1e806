"""Tracing: a span for each request, for an OpenTelemetry collector. A ledger.

What to send and where is said by OpenTelemetry's own variables (``OTEL_EXPORTER_OTLP_ENDPOINT``,
``OTEL_EXPORTER_OTLP_HEADERS``, ``OTEL_TRACES_SAMPLER``, ``OTEL_SERVICE_NAME`` and so on). A span continues the client's
trace (W3C ``traceparent``), and Chroma is told that ours is the parent of its own; ``tracestate`` goes on.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from typing import Any

from chromakeep import __version__
from chromakeep.errors import UsageError
from chromakeep.events import Noted, Observer, ignore
from chromakeep.server.guard import Account

LONGEST = 8192  # bytes of a ``tracestate`` that is passed on
_IDS = rb"-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}"
_PARENT = re.compile(rb"00" + _IDS + rb"|(?!ff|00)[0-9a-f]{2}" + _IDS + rb"(?:-.*)?")
PATIENCE = 2.0  # seconds at the end for a collector to take what waits: those of a container's grace are for the data
AGAIN = 600.0  # seconds until the library's next word of the same kind is told
INTERNAL = 500  # a status from which on it was the server's fault


class Tracing:
    """Spans are put into a queue of OpenTelemetry's, whose thread sends them; what does not fit there is dropped.

    ``observer`` is told what the library says of a collector that is away. Raises ``UsageError`` where the library is
    missing.
    """

    def __init__(self, observer: Observer = ignore) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError:
            raise UsageError("traces need a library", hint="pip install 'chromakeep[otel]'") from None
        self._provider: Any = TracerProvider(
            resource=Resource.create({"service.version": __version__}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("chromakeep", __version__)
        self._propagator, self._kind = TraceContextTextMapPropagator(), trace.SpanKind.SERVER
        self._within = trace.set_span_in_context
        self._failed = trace.Status(trace.StatusCode.ERROR)
        self._told = _Told(observer)
        logging.getLogger("opentelemetry").addHandler(self._told)

    def begun(self, account: Account) -> None:
        """The span begins, and the backend is told that it is its parent."""
        account.span = self._tracer.start_span(account.method, context=self._parent(account), kind=self._kind)
        told: dict[str, str] = {}
        self._propagator.inject(told, self._within(account.span))
        account.context = "".join(f"{name}: {value}\r\n" for name, value in told.items()).encode("ascii")

    def _parent(self, account: Account) -> Any:
        """The client's context; what is not well-formed is none, and says nothing in a log of the library's either."""
        if not _PARENT.fullmatch(account.trace):
            return None
        sent = {"traceparent": account.trace[:55].decode("ascii")}
        if 0 < len(account.state) <= LONGEST and account.state.isascii():
            sent["tracestate"] = account.state.decode("ascii")
        return self._propagator.extract(sent)

    def ended(self, account: Account, now: float) -> None:
        """Names are those of OpenTelemetry's semantic conventions for HTTP servers."""
        span, account.span = account.span, None
        if span is None:
            return
        span.update_name(f"{account.method} {account.route}".rstrip())
        span.set_attributes(
            {
                "http.request.method": account.method,
                "http.route": account.route,
                "http.response.status_code": account.status,
                "http.request.body.size": account.received,
                "http.response.body.size": account.sent,
                "url.path": account.target.partition("?")[0],
                "client.address": account.peer,
                "chromakeep.key": account.key,
                "chromakeep.tenant": account.tenant,
                "chromakeep.database": account.database,
                "chromakeep.collection": account.collection,
            }
        )
        if account.status >= INTERNAL or not account.status:
            span.set_status(self._failed)
        span.end()

    def close(self) -> None:
        """Send what waits, for ``PATIENCE`` seconds at most: a collector that is silent keeps nobody."""
        ending = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        ending.start()
        ending.join(PATIENCE)
        logging.getLogger("opentelemetry").removeHandler(self._told)


class _Told(logging.Handler):
    """The library's warnings, in our log instead of beside it."""

    def __init__(self, observer: Observer) -> None:
        super().__init__(logging.WARNING)
        self._observer = observer
        self._last: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Of each kind one, and not again for a while: a collector that is away is tried every few seconds."""
        now = time.monotonic()
        if now - self._last.get(str(record.msg), -AGAIN) >= AGAIN:
            self._last[str(record.msg)] = now
            self._observer(Noted(f"traces: {record.getMessage()[:500]}", "warning"))
