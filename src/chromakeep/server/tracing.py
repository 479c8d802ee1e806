"""Tracing: a span for each request, for an OpenTelemetry collector. A ledger.

What to send and where is said by OpenTelemetry's own variables (``OTEL_EXPORTER_OTLP_ENDPOINT``,
``OTEL_EXPORTER_OTLP_HEADERS``, ``OTEL_TRACES_SAMPLER``, ``OTEL_SERVICE_NAME`` and so on). A span continues the client's
trace (W3C ``traceparent``), which goes on to Chroma as it was sent.
"""

from __future__ import annotations

import time
from typing import Any

from chromakeep import __version__
from chromakeep.errors import UsageError
from chromakeep.server.guard import Account

INTERNAL = 500  # a status from which on it was the server's fault


class Tracing:
    """Spans are put into a queue of OpenTelemetry's, whose thread sends them; what does not fit there is dropped.

    Raises ``UsageError`` where the library is missing.
    """

    def __init__(self) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError:
            raise UsageError("traces need a library", hint="pip install 'chromakeep[otel]'") from None
        self._provider: Any = TracerProvider(resource=Resource.create({"service.version": __version__}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("chromakeep", __version__)
        self._propagator, self._kind = TraceContextTextMapPropagator(), trace.SpanKind.SERVER
        self._failed = trace.Status(trace.StatusCode.ERROR)

    def begun(self, account: Account) -> None:
        """A span is made when it is known how it ended."""

    def ended(self, account: Account, now: float) -> None:
        """Names are those of OpenTelemetry's semantic conventions for HTTP servers."""
        ended = time.time_ns()
        sent = account.trace.decode("latin-1")
        context = self._propagator.extract({"traceparent": sent}) if sent else None
        span = self._tracer.start_span(
            f"{account.method} {account.route}".rstrip(),
            context=context,
            kind=self._kind,
            start_time=ended - max(0, int((now - account.begun) * 1e9)),
            attributes={
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
            },
        )
        if account.status >= INTERNAL or not account.status:
            span.set_status(self._failed)
        span.end(ended)

    def close(self) -> None:
        """Send what waits, for some seconds at most."""
        self._provider.shutdown()
