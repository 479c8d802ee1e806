"""Books: which are kept of the requests that pass the door."""

from __future__ import annotations

from pathlib import Path

import msgspec

MEGABYTE = 1_000_000


class Books(msgspec.Struct, frozen=True):
    """``metrics_port`` is one of their own for the metrics, on ``metrics_host``. ``access_log`` is a path, or ``-`` for
    stdout; a file is rotated at ``access_log_size`` bytes or ``access_log_age`` seconds, and the newest
    ``access_log_keep`` are kept. ``audit_log`` is where the audit log is written, a new file begun at ``audit_size``
    bytes; ``audit_required``: no write is taken while it cannot be. ``traces``: a span of each request is
    sent to where OpenTelemetry's variables say."""

    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"
    access_log: str | None = None
    access_log_size: int = 100 * MEGABYTE
    access_log_age: float = 7 * 86400.0
    access_log_keep: int = 5
    audit_log: Path | None = None
    audit_size: int = 64 * MEGABYTE
    audit_required: bool = False
    traces: bool = False

    def __bool__(self) -> bool:
        """Whether any takes a door."""
        return self.metrics_port is not None or self.access_log is not None or self.audit_log is not None
