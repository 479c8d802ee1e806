"""Families: what is shown to Prometheus under which name. Imports ``prometheus_client``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from chromakeep import __version__
from chromakeep.operations.duty import EXCHANGING, SERVING, STANDBY, STARTING, STOPPING, WAITING
from chromakeep.operations.gauges import Reading
from chromakeep.server.metrics import BOUNDS, Metrics, refused

PREFIX = "chromakeep_"
ROLES = (STARTING, WAITING, STANDBY, SERVING, EXCHANGING, STOPPING)

# Numbers of a reading: field -> (name, help). What is not known is not shown.
GAUGES = {
    "ready": ("ready", "Whether this instance serves, writes included."),
    "readable": ("readable", "Whether this instance answers reads as it should."),
    "lag": ("replication_lag_seconds", "How far the log in the repository is behind what is committed here."),
    "failing": ("replication_failing_seconds", "For how long nothing could be put into the log; 0 if it can be."),
    "behind": ("standby_behind_seconds", "How far this standby is behind the log."),
    "epoch": ("log_epoch", "Epoch of the log that is written."),
    "segment": ("log_segment", "Newest segment of that epoch."),
    "snapshot_age": ("snapshot_age_seconds", "Age of the newest snapshot."),
    "snapshot_size": ("snapshot_size_bytes", "Bytes of the directory in the newest snapshot of this run."),
    "snapshot_failed": ("snapshot_failed", "Whether the last attempt at a snapshot failed."),
    "snapshot_pending": ("snapshot_pending", "Whether something has changed since the newest snapshot."),
    "restored_at": ("verified_restore_timestamp_seconds", "When this directory was last restored and found exact."),
    "collections": ("collections", "How many collections there are."),
    "queue": ("queue_rows", "Rows in Chroma's write-ahead queue."),
    "data_size": ("data_size_bytes", "Bytes of the files in the data directory."),
    "disk_size": ("disk_size_bytes", "Size of the disk that the data directory is on."),
    "disk_free": ("disk_free_bytes", "Free bytes of that disk."),
    "link_lists": ("link_lists_ratio", "Largest size of link_lists.bin over data_level0.bin of any index."),
}
# Numbers of the books, where they are kept: name -> (kind, help).
BOOKS = {
    "access_log_dropped_lines": (CounterMetricFamily, "Lines of the access log that could not be written."),
    "audit_dropped_records": (CounterMetricFamily, "Records of the audit log that were lost; a record says how many."),
    "audit_failing": (GaugeMetricFamily, "Whether the audit log cannot be written at the moment."),
    "audit_unshipped_records": (GaugeMetricFamily, "Records of the audit log that are not in the repository yet."),
}


class _Families(Collector):
    def __init__(
        self, metrics: Metrics, latest: Callable[[], Reading | None], books: Mapping[str, Callable[[], float]]
    ) -> None:
        self._metrics, self._latest, self._books = metrics, latest, books

    def collect(self) -> Iterator[Metric]:
        yield from _requests(self._metrics)
        if reading := self._latest():
            yield from _run(reading)
        for name, number in self._books.items():
            kind, told = BOOKS[name]
            yield kind(PREFIX + name, told, value=number())
        built = GaugeMetricFamily(PREFIX + "build_info", "The version of this program.", labels=["version"])
        built.add_metric([__version__], 1)
        yield built


def exposition(
    metrics: Metrics, latest: Callable[[], Reading | None], books: Mapping[str, Callable[[], float]]
) -> Callable[[], bytes]:
    """What gives the page's text, as it is when it is called."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(metrics, latest, books))
    return lambda: generate_latest(registry)


def _requests(metrics: Metrics) -> Iterator[Metric]:
    labels, told = ["route", "method", "status", "key"], "Requests that are over, by what was answered."
    requests = dict(metrics.requests)
    family = CounterMetricFamily(PREFIX + "http_requests", told, labels=labels)
    for (route, method, status, key), count in requests.items():
        family.add_metric([route, method, str(status) if status else "none", key], count)
    yield family
    durations = HistogramMetricFamily(
        PREFIX + "http_request_duration_seconds", "From a request's head to the end of its answer.", labels=["route"]
    )
    for route, counts in dict(metrics.durations).items():
        *each, total = counts
        bounds = (*map(str, BOUNDS), "+Inf")
        durations.add_metric([route], list(zip(bounds, accumulate(each), strict=True)), total)
    yield durations
    told = "Requests that are being carried."
    yield GaugeMetricFamily(PREFIX + "http_requests_in_flight", told, value=metrics.in_flight)
    told = "Bytes of payload that clients sent."
    yield CounterMetricFamily(PREFIX + "http_received_bytes", told, value=metrics.received)
    told = "Bytes of payload that clients were sent."
    yield CounterMetricFamily(PREFIX + "http_sent_bytes", told, value=metrics.sent)
    denied = refused(requests, (401, 403, 429))
    family = CounterMetricFamily(
        PREFIX + "http_authentication_refusals", "Requests without a key, or not within its rights.", labels=["status"]
    )
    for status in (401, 403):
        family.add_metric([str(status)], denied[status])
    yield family
    told = "Requests that were refused because there were too many."
    yield CounterMetricFamily(PREFIX + "http_rate_limited", told, value=denied[429])


def _run(reading: Reading) -> Iterator[Metric]:
    roles = GaugeMetricFamily(PREFIX + "role", "What this instance does: 1 for one of the roles.", labels=["role"])
    for role in ROLES:
        roles.add_metric([role], role == reading.role)
    yield roles
    if reading.restarts is not None:
        told = "How often the server behind had to be started again."
        yield CounterMetricFamily(PREFIX + "server_restarts", told, value=reading.restarts)
    if reading.snapshots is not None:
        yield CounterMetricFamily(PREFIX + "snapshots", "Snapshots that this run has taken.", value=reading.snapshots)
    for field, (name, told) in GAUGES.items():
        if (value := getattr(reading, field)) is not None:
            yield GaugeMetricFamily(PREFIX + name, told, value=float(value))
    records = GaugeMetricFamily(
        PREFIX + "collection_records",
        "Records of a collection; of a hundred collections at most.",
        labels=["tenant", "database", "collection"],
    )
    for tenant, database, collection, count in reading.records:
        records.add_metric([tenant, database, collection], count)
    yield records
    waiting = GaugeMetricFamily(
        PREFIX + "collection_unindexed_records",
        "Records that an index of vectors should have and has not yet: they are compared one by one.",
        labels=["tenant", "database", "collection"],
    )
    for tenant, database, collection, count in reading.waiting:
        waiting.add_metric([tenant, database, collection], count)
    yield waiting
    memory = GaugeMetricFamily(
        PREFIX + "resident_memory_bytes", "Memory in RAM, of Chroma and of this program.", labels=["process"]
    )
    for process, held in (("chroma", reading.server_memory), ("chromakeep", reading.own_memory)):
        if held is not None:
            memory.add_metric([process], held)
    yield memory
