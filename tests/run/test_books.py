"""A run's books: metrics, access log and audit log of a real server, through the command line."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from chromakeep.chroma.client import ChromaClient
from chromakeep.chroma.ports import free_port
from chromakeep.operations.audit_verify import records, verify
from chromakeep.operations.check import check
from chromakeep.repository import Repository
from chromakeep.store.local import LocalStore
from run.running import DATABASE, PATIENCE, add, create, eventually, process, ready
from server.test_metrics import checked, values


def page(port: int) -> bytes:
    """The metrics, as Prometheus gets them; nothing before anything was measured."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200 or (answer.status == 503 and b"nothing has been measured yet" in body), body
        return body if answer.status == 200 else b""
    finally:
        connection.close()


def settled(page: bytes) -> bool:
    """Whether it is of a moment after the records, the first snapshot and the beginning of the log. It is made every
    two seconds, and records are counted every fifteen, at any moment of these."""
    found = values(page)
    told = {name: value for (name, _), value in found.items()}
    return (
        told.get("chromakeep_collection_records") == 30
        and told.get("chromakeep_ready") == 1
        and {"chromakeep_snapshot_age_seconds", "chromakeep_replication_lag_seconds"} <= told.keys()
    )


class Kept:
    """What the run of this module left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pages: list[bytes] = []
        self.id = ""
        self.log = ""

    @property
    def repository(self) -> Repository:
        return Repository.open(LocalStore(self.folder / "repository"))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    """One life of a run with all its books, some writes and reads, and a clean end."""
    one = Kept(tmp_path_factory.mktemp("books"))
    (one.folder / "repository").mkdir()
    metrics = free_port()
    more = (
        "--metrics-port", str(metrics), "--access-log", str(one.folder / "access.log"),
        "--audit-log", str(one.folder / "audit.log"),
    )  # fmt: skip
    with process(one.folder / "data", one.folder / "repository", more=more) as (child, port, log):
        eventually(lambda: ready(child, port, log), "the start")
        client = ChromaClient("127.0.0.1", port)
        ref = create(client, "books", sync_threshold=10)
        one.id = ref.id
        add(client, ref, 0, 30)
        client.request("POST", f"{ref.path}/get", {"limit": 1})
        client.request("GET", f"{DATABASE}/collections?limit=5")
        eventually(lambda: settled(page(metrics)), "all is measured")
        one.pages = [page(metrics), page(port)]
        child.send_signal(signal.SIGTERM)
        assert child.wait(PATIENCE) == 0, log.read_text()
        one.log = log.read_text()
    yield one


def test_the_metrics_are_of_the_run(kept: Kept) -> None:
    """On their own port and on the main one, in a format that promtool has nothing to say about."""
    found = values(kept.pages[0])
    labels = (("collection", "books"), ("database", "default_database"), ("tenant", "default_tenant"))
    assert found["chromakeep_collection_records", labels] == 30
    assert found["chromakeep_ready", ()] == 1
    assert found["chromakeep_snapshots_total", ()] >= 1
    assert found["chromakeep_queue_rows", ()] >= 0
    assert found["chromakeep_disk_free_bytes", ()] > 0
    assert found["chromakeep_resident_memory_bytes", (("process", "chroma"),)] > 1e6
    assert found["chromakeep_link_lists_ratio", ()] >= 0
    assert found["chromakeep_replication_lag_seconds", ()] >= 0
    assert found["chromakeep_audit_failing", ()] == 0
    for shown in kept.pages:
        checked(shown)
    assert {name for name, _ in values(kept.pages[1])} <= {name for name, _ in found}


def test_every_request_is_in_the_access_log(kept: Kept) -> None:
    """With its bytes and time, and without its query."""
    lines = [json.loads(line) for line in (kept.folder / "access.log").read_text().splitlines()]
    (added,) = [line for line in lines if line["path"].endswith(f"{kept.id}/add")]
    assert (added["method"], added["status"]) == ("POST", 201)
    assert added["received"] > 1000 and added["sent"] > 0 and added["seconds"] > 0
    assert not any("?" in line["path"] for line in lines)
    assert any(line["path"] == f"/api/v2{DATABASE}/collections" and line["method"] == "GET" for line in lines)


def test_the_writes_are_in_the_audit_log_and_that_is_in_the_repository(kept: Kept) -> None:
    """Shipped at the clean end; the repository is whole with it."""
    found = [r for r in records([kept.folder / "audit.log"], {}) if r["event"] == "write"]
    assert [(r["path"].rpartition("/")[2], r["outcome"]) for r in found] == [("collections", "done"), ("add", "done")]
    report = verify([kept.folder / "audit.log"], {"repository": kept.repository})
    assert not report.problems
    assert len({(c.instance, c.last, c.hash) for c in report.chains}) == 1
    assert len(report.chains) == 2
    assert check(kept.repository).problems == ()


def test_a_verified_restore_is_told(kept: Kept) -> None:
    """When it was; the next run on the same directory remembers it."""
    metrics, began, seen = free_port(), time.time(), set()
    for _ in range(2):
        more = ("--metrics-port", str(metrics))
        with process(kept.folder / "again", kept.folder / "repository", more=more) as (child, port, log):
            eventually(lambda: ready(child, port, log), "the start")
            name = ("chromakeep_verified_restore_timestamp_seconds", ())
            eventually(lambda: name in values(page(metrics)), "the restore")  # noqa: B023
            seen.add(values(page(metrics))[name])
            child.send_signal(signal.SIGTERM)
            assert child.wait(PATIENCE) == 0
    assert len(seen) == 1 and began < seen.pop() < time.time()


def test_nothing_is_told_as_a_warning(kept: Kept) -> None:
    """Of a run that goes as it should."""
    assert not [line for line in kept.log.splitlines() if "metrics:" in line or "log cannot" in line]


def test_a_killed_run_leaves_a_chain_that_goes_on(tmp_path: Path) -> None:
    """Its writes are there but of the last tenth of a second, and the next run's are behind them."""
    (tmp_path / "repository").mkdir()
    audit = tmp_path / "audit.log"
    more = ("--audit-log", str(audit), "--audit-full", "refuse")

    def writes() -> list[str]:
        return [r["path"].rpartition("/")[2] for r in records([audit], {}) if r["event"] == "write"]

    for life in range(2):
        with process(tmp_path / "data", tmp_path / "repository", more=more) as (child, port, log):
            eventually(lambda: ready(child, port, log), "the start")
            client = ChromaClient("127.0.0.1", port)
            add(client, create(client, "books"), life * 10, 10)
            eventually(lambda: len(writes()) == 2 * life + 2, "the records")  # noqa: B023
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
    assert writes() == ["collections", "add"] * 2
    assert not verify([audit], {}).problems


def test_without_a_repository_the_books_are_kept_too(tmp_path: Path) -> None:
    """A door is opened for them."""
    metrics, port = free_port(), free_port()
    command = [
        *(sys.executable, "-m", "chromakeep", "run", "--data", str(tmp_path / "data"), "--ephemeral"),
        *("--metrics-port", str(metrics), "--access-log", "-", "--host", "127.0.0.1", "--port", str(port)),
    ]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    with (tmp_path / "log").open("wb") as log:
        child = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=log, cwd=tmp_path)
    try:
        eventually(lambda: ready(child, port, tmp_path / "log"), "the start")
        eventually(lambda: values(page(metrics)).get(("chromakeep_ready", ())) == 1, "ready")
        ChromaClient("127.0.0.1", port).heartbeat()
        child.send_signal(signal.SIGTERM)
        out, _ = child.communicate(timeout=PATIENCE)
        lines = [json.loads(line) for line in out.splitlines()[:-1]]
        assert "/api/v2/heartbeat" in {line["path"] for line in lines}
        assert out.splitlines()[-1].startswith(b"stopped after")
    finally:
        child.kill()
        child.wait()
