"""Metrics: what is counted, under which names, and in a format that others read."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from chromakeep.events import Event, Noted
from chromakeep.operations.books import Books
from chromakeep.operations.duty import Duty, Front
from chromakeep.operations.gauges import Reading
from chromakeep.server import Door
from chromakeep.server.bookkeeping import Bookkeeping
from chromakeep.server.exposition import Exposition
from chromakeep.server.families import BOOKS
from chromakeep.server.metrics import BOUNDS, MOST_SERIES, Metrics
from server.accounts import account
from server.wires import Backend, Wire
from servers.promtool import PROMTOOL

FULL = Reading(
    "serving",
    True,
    True,
    2,
    lag=0.25,
    failing=0.0,
    behind=1.5,
    epoch=3,
    segment=17,
    snapshots=4,
    snapshot_age=61.0,
    snapshot_size=1000,
    snapshot_failed=False,
    snapshot_pending=True,
    restored_at=1.7e9,
    records=(("acme", "prod", 'a "quoted"\nname\\', 12),),
    waiting=(("acme", "prod", 'a "quoted"\nname\\', 7),),
    collections=1,
    queue=5,
    data_size=2000,
    disk_size=9000,
    disk_free=800,
    link_lists=0.01,
    server_memory=123,
    own_memory=45,
)


def values(page: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of a page, by its name and labels, read by Prometheus's own parser."""
    families = text_string_to_metric_families(page.decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in families for s in f.samples}


def full_page() -> bytes:
    """A page that has every metric there is."""
    metrics = Metrics()
    for status in (200, 401, 403, 429, 0):
        metrics.begun(account())
        metrics.ended(account(status=status, route="collection.query", key="app", received=10, sent=20), 0.02)
    exposition = Exposition(metrics, books={name: lambda: 1.0 for name in BOOKS})
    exposition.reading = FULL
    return exposition.now().body


def checked(page: bytes) -> None:
    """`promtool check metrics` has nothing to say, where it is installed; the parser reads it anywhere."""
    assert values(page)
    if PROMTOOL:
        done = subprocess.run([PROMTOOL, "check", "metrics"], input=page, capture_output=True, timeout=60, check=False)
        assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_the_page_is_as_prometheus_wants_it() -> None:
    """Names, help, types and escapes."""
    page = full_page()
    checked(page)
    assert page.count(b"# TYPE") == page.count(b"# HELP") > 30
    found = values(page)
    labels = (("collection", 'a "quoted"\nname\\'), ("database", "prod"), ("tenant", "acme"))
    assert found["chromakeep_collection_records", labels] == 12
    assert found["chromakeep_collection_unindexed_records", labels] == 7
    assert found["chromakeep_role", (("role", "serving"),)] == 1
    assert found["chromakeep_role", (("role", "standby"),)] == 0
    assert found["chromakeep_resident_memory_bytes", (("process", "chroma"),)] == 123
    assert found["chromakeep_server_restarts_total", ()] == 2


def test_requests_are_counted_by_what_they_were() -> None:
    """Route, method, status and key; denials, bytes and what is in flight besides."""
    found = values(full_page())
    labels = (("key", "app"), ("method", "POST"), ("route", "collection.query"))
    for status in ("200", "401", "403", "429", "none"):
        assert found["chromakeep_http_requests_total", (*labels, ("status", status))] == 1
    assert found["chromakeep_http_authentication_refusals_total", (("status", "401"),)] == 1
    assert found["chromakeep_http_authentication_refusals_total", (("status", "403"),)] == 1
    assert found["chromakeep_http_rate_limited_total", ()] == 1
    assert found["chromakeep_http_received_bytes_total", ()] == 50
    assert found["chromakeep_http_sent_bytes_total", ()] == 100
    assert found["chromakeep_http_requests_in_flight", ()] == 0


def test_a_request_is_in_flight_until_it_is_over() -> None:
    """Also one that nobody was answered."""
    metrics = Metrics()
    one, two = account(), account()
    metrics.begun(one)
    metrics.begun(two)
    assert metrics.in_flight == 2
    metrics.ended(one, 1.0)
    assert metrics.in_flight == 1


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.0011, 0.3, 30.0, 31.0])
def test_the_histogram_counts_each_request_in_every_bucket_that_holds_it(seconds: float) -> None:
    """A bound belongs to its bucket."""
    metrics = Metrics()
    metrics.begun(account())
    metrics.ended(account(route="r"), seconds)
    found = values(Exposition(metrics).now().body)
    for bound in BOUNDS:
        labels = (("le", str(bound)), ("route", "r"))
        assert found["chromakeep_http_request_duration_seconds_bucket", labels] == (seconds <= bound)
    assert found["chromakeep_http_request_duration_seconds_bucket", (("le", "+Inf"), ("route", "r"))] == 1
    assert found["chromakeep_http_request_duration_seconds_sum", (("route", "r"),)] == seconds


def test_whatever_clients_send_the_series_are_bounded_and_no_request_is_lost() -> None:
    """Methods that are none, routes without an end, statuses of a strange backend."""
    metrics = Metrics()
    sent = 3 * MOST_SERIES
    for number in range(sent):
        one = account(f"M{number}" if number % 2 else "GET", route=f"r{number}", status=number % 1000)
        metrics.begun(one)
        metrics.ended(one, 0.1)
    assert sum(metrics.requests.values()) == sent
    assert len(metrics.requests) <= MOST_SERIES + 600
    assert not any(method.startswith("M") for _, method, _, _ in metrics.requests)
    assert len(metrics.durations) <= MOST_SERIES + 1
    assert sum(sum(counts[:-1]) for counts in metrics.durations.values()) == sent


def test_a_number_that_cannot_be_had_takes_no_other_away() -> None:
    """The page is there, without the run's numbers, and the failure is told once."""
    told: list[Event] = []
    read = threading.Event()

    def fails() -> Reading:
        read.set()
        raise OSError("no such disk")

    metrics = Metrics()
    exposition = Exposition(metrics, fails, observer=told.append)
    assert exposition.page().status == 503
    exposition.start()
    assert read.wait(60)
    exposition.stop()
    exposition._thread.join(60)
    assert exposition.page().status == 200
    assert ("chromakeep_http_requests_in_flight", ()) in values(exposition.page().body)
    assert [e.message for e in told if isinstance(e, Noted)] == ["metrics: OSError: no such disk"]


def test_without_the_library_the_page_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Status 501; counting goes on."""
    monkeypatch.setitem(__import__("sys").modules, "prometheus_client", None)
    page = Exposition(Metrics()).now()
    assert page.status == 501
    assert b"pip install 'chromakeep[server]'" in page.body


def test_the_metrics_have_a_port_of_their_own_and_nothing_else_is_there(
    backend: Backend, knock: Callable[[Door], Wire]
) -> None:
    """What is asked for there never reaches Chroma."""
    front = Front("127.0.0.1", 0, backend.address, Duty("snapshots", None), 0.0, books=Books(metrics_port=0))
    books = Bookkeeping(front)
    books.start()
    try:
        assert books._own
        wire = knock(books._own)
        wire.send(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
        answer = wire.answer()
        assert (answer.status, answer.fields["content-type"].split(";")[0]) == (200, "text/plain")
        assert ("chromakeep_http_requests_in_flight", ()) in values(answer.body)
        for line in (b"GET /api/v2/heartbeat", b"POST /metrics", b"GET /"):
            wire = knock(books._own)
            wire.send(line + b" HTTP/1.1\r\nhost: x\r\n\r\n")
            assert wire.answer().status == 404
        assert backend.unasked()
    finally:
        books.stop()


def test_the_door_counts_what_passes_it(
    backend: Backend, open_door: Callable[..., Door], knock: Callable[[Door], Wire]
) -> None:
    """Answers of the backend, of a page, and a client that went away."""
    backend.serve()
    metrics = Metrics()
    door = open_door(ledger=metrics, pages={"/metrics": Exposition(metrics).now})
    wire = knock(door)
    for path in (b"/api/v2/heartbeat", b"/metrics", b"/metrics"):
        wire.send(b"GET " + path + b" HTTP/1.1\r\nhost: x\r\n\r\n")
        answer = wire.answer()
        assert answer.status == 200
    found = values(answer.body)
    label = (("key", ""), ("method", "GET"))
    assert found["chromakeep_http_requests_total", (*label, ("route", "other"), ("status", "200"))] == 1
    assert found["chromakeep_http_requests_total", (*label, ("route", "/metrics"), ("status", "200"))] == 1
    assert found["chromakeep_http_requests_in_flight", ()] == 1  # the one that asks


def names_of(page: bytes) -> set[str]:
    """The names of a page's samples."""
    return {name for name, _ in values(page)}


def test_every_metric_is_documented_and_every_documented_one_exists() -> None:
    """The table in the reference."""
    reference = (Path(__file__).parents[2] / "docs" / "reference.md").read_text()
    table = reference.split("| metric | labels | |")[1].split("\n\n")[0]
    documented = {row.split("`")[1] for row in table.splitlines() if row.startswith("| `")}
    families = {f.name for f in text_string_to_metric_families(full_page().decode())}
    assert {name.removesuffix("_total") for name in documented} == families
