"""Copies from and into PostgreSQL as a user makes them: any place to any other, verified, killed and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import psycopg
import pytest

from chromakeep.chroma.server import ChromaServer
from chromakeep.errors import ServerFailed
from chromakeep.exchange.jsonl import JsonlSource
from chromakeep.operations.checkpoint import Checkpoint
from chromakeep.operations.copy import copy
from chromakeep.operations.planning import Plan
from chromakeep.postgres import arrivals, sink
from chromakeep.postgres.pool import Pool
from chromakeep.postgres.sink import PostgresSink
from chromakeep.postgres.source import PostgresSource, described
from chromakeep.records import Definition

RECORDS = 900
METADATA = [{"n": 1, "f": 1.0, "t": True, "s": "a"}, {"tags": ["x", "y"], "e": 1e300}, None]


@pytest.fixture
def address(database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of the module's database, the password in the environment."""
    parts = urlsplit(database_url)
    monkeypatch.setenv("PGPASSWORD", parts.password or "")
    return database_url.replace(f":{parts.password}@", "@")


@pytest.fixture(autouse=True)
def empty(database_url: str) -> Iterator[None]:
    """No collection is left for the next test."""
    yield
    with psycopg.connect(database_url) as connection:
        connection.execute("DELETE FROM chromakeep.collections")


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """Records in a file, of a collection in cosine."""
    rows: list[dict[str, Any]] = []
    for n in range(RECORDS):
        vector = [((n * 7 + i * 3) % 11) - 5.0 + n / RECORDS for i in range(8)]
        metadata = METADATA[n % 3]
        rows.append({"id": f"id-{n}", "embedding": vector, "document": f"text {n}\x00" if n % 5 else None,
                     "metadata": metadata})  # fmt: skip
    path = tmp_path / "books.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    return path


def keep(*words: str, status: int = 0, cwd: Path) -> dict[str, Any]:
    """What a command says, in JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "chromakeep", *words, "--json"], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stdout + done.stderr
    return json.loads(done.stdout) if done.stdout else {}


def test_round_from_a_file_to_postgresql_a_server_and_a_directory(
    address: str, lines: Path, tmp_path: Path, database_url: str
) -> None:
    """Each verified record by record; what ends in the directory is what was in the file, NUL bytes and 1e300 too."""
    with ChromaServer(tmp_path / "chroma", env=os.environ) as server:
        way = [str(lines), address, f"http://127.0.0.1:{server.client.port}", "d.parquet"]
        for source, target in pairwise(way):
            done = keep("copy", source, target, "--verify", cwd=tmp_path)
            assert (done["records"], done["verified"]) == (RECORDS, True)
    assert keep("check", address, "d.parquet", cwd=tmp_path)["ok"]
    keep("copy", address, "new-directory", "--verify", cwd=tmp_path)
    assert keep("check", str(lines), "new-directory", cwd=tmp_path)["ok"]
    with psycopg.connect(database_url) as connection:
        assert [each.name for each in described(connection, None, None)] == ["books"]


def test_a_dry_run_makes_nothing(database_url: str, address: str, lines: Path, tmp_path: Path) -> None:
    """Not even the tables of a database that has none yet; of one that has some it tells what is there."""
    new = urlsplit(address)._replace(path="/untouched").geturl()
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE untouched TEMPLATE template0")
    try:
        assert keep("copy", str(lines), new, "--dry-run", cwd=tmp_path)["records"] == RECORDS
        with psycopg.connect(urlsplit(database_url)._replace(path="/untouched").geturl()) as connection:
            made = connection.execute("SELECT to_regnamespace('chromakeep'), count(*) FROM pg_extension").fetchone()
            assert made == (None, 1)
    finally:
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("DROP DATABASE untouched WITH (FORCE)")  # sessions may not have ended yet
    keep("copy", str(lines), address, cwd=tmp_path)
    (told,) = keep("copy", str(lines), address, "--dry-run", "--on-conflict", "upsert", cwd=tmp_path)["collections"]
    assert told["exists"]


def test_conflicts_are_dealt_with_as_everywhere(address: str, lines: Path, tmp_path: Path) -> None:
    """``fail`` says what to do; ``replace`` keeps what was there under another name."""
    keep("copy", str(lines), address, cwd=tmp_path)
    keep("copy", str(lines), address, cwd=tmp_path, status=2)
    for conflict in ("skip", "upsert", "replace"):
        done = keep("copy", str(lines), address, "--verify", "--on-conflict", conflict, cwd=tmp_path)
        assert done["verified"], conflict
    names = [c["name"] for c in keep("check", address, address, cwd=tmp_path)["collections"]]
    assert len(names) == 2 and names[0] == "books" and names[1].startswith("books.old-")


def test_what_is_replaced_twice_within_a_second_is_kept_twice(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "strftime", lambda *_: "20260801T120000Z")
    for _ in range(3):
        with closing(PostgresSink(Pool(database_url, 2))) as target:
            target.collection(Definition("books"), conflict="replace").finish()
            target.publish()
    with psycopg.connect(database_url) as connection:
        names = [each.name for each in described(connection, None, None)]
    assert len(set(names)) == 3 and "books" in names
    assert sum(name.startswith("books.old-20260801T120000Z") for name in names) == 2


def test_a_killed_copy_goes_on_and_nothing_of_it_is_seen_before(
    address: str, lines: Path, tmp_path: Path, database_url: str
) -> None:
    """SIGKILL in the middle, twice; the same command then ends what was begun."""

    def rows() -> int:
        with psycopg.connect(database_url) as connection:
            names = connection.execute("SELECT relation FROM chromakeep.collections").fetchall()
            counts = [connection.execute(f"SELECT count(*) FROM chromakeep.{name}".encode()) for (name,) in names]
            return sum(int((count.fetchone() or (0,))[0]) for count in counts)

    command = [sys.executable, "-m", "chromakeep", "copy", str(lines), address, "--verify", "--rate", "300"]
    for least in (1, 400):
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
        waited(lambda least=least: rows() >= least)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with psycopg.connect(database_url) as connection:
            assert described(connection, None, None) == []
    done = keep("copy", str(lines), address, "--verify", cwd=tmp_path)
    assert (done["records"], done["verified"]) == (RECORDS, True)
    assert rows() == RECORDS
    assert keep("check", str(lines), address, cwd=tmp_path)["ok"]


def test_what_a_process_has_finished_another_one_publishes(
    lines: Path, tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is killed before it publishes, one afterwards, one is gone on with where all was deleted."""
    file, shown = tmp_path / "c.json", JsonlSource(lines)

    def copied() -> None:
        with closing(PostgresSink(Pool(database_url, 2))) as target:
            copy(shown, target, Plan(), checkpoint=Checkpoint(file, {}))

    def names() -> list[str]:
        with psycopg.connect(database_url) as connection:
            return [each.name for each in described(connection, None, None)]

    with monkeypatch.context() as patch:
        patch.setattr(PostgresSink, "publish", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            copied()
    monkeypatch.setattr(Checkpoint, "remove", lambda self: None)
    for _ in range(2):
        copied()
        assert names() == ["books"]
    with psycopg.connect(database_url) as connection:
        connection.execute("DELETE FROM chromakeep.collections")
    copied()
    assert names() == ["books"]


def test_who_goes_on_with_a_copy_holds_it(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the process before was not gone yet: else a third takes away what it writes."""
    first, second, third = (PostgresSink(Pool(database_url, 2)) for _ in range(3))
    begun = first.collection(Definition("books")).mark()
    asked, real = threading.Event(), arrivals.hold

    def hold(connection: psycopg.Connection[Any], run: str) -> bool:
        held = real(connection, run)
        asked.set()
        return held

    with ThreadPoolExecutor(1) as threads, closing(third), closing(second):
        with closing(first), monkeypatch.context() as patch:
            patch.setattr(arrivals, "hold", hold)
            gone_on = threads.submit(second.collection, Definition("books"), mark=begun)
            assert asked.wait(60)
        assert gone_on.result(60).mark() == begun
        third.collection(Definition("books"))
        second.ask(lambda connection: arrivals.find(connection, begun["run"], begun["id"]))


def test_two_processes_are_not_at_one_copy(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink, "PATIENCE", 0.0)
    with closing(PostgresSink(Pool(database_url, 2))) as first, closing(PostgresSink(Pool(database_url, 2))) as second:
        begun = first.collection(Definition("books")).mark()
        with pytest.raises(ServerFailed, match="another process"):
            second.collection(Definition("books"), mark=begun)


def test_what_was_begun_and_not_heard_of_is_taken_away(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to a commit is lost: it is done again, and there is one collection of the place."""
    real, lost = psycopg.Connection.commit, []

    def commit(connection: psycopg.Connection[Any]) -> None:
        real(connection)
        if not lost:
            lost.append(connection)
            connection.close()
            raise psycopg.OperationalError("lost")

    with closing(PostgresSink(Pool(database_url, 2))) as target:
        monkeypatch.setattr(psycopg.Connection, "commit", commit)
        target.collection(Definition("books")).finish()
        assert lost
        with closing(PostgresSource(lambda: psycopg.connect(database_url), run=target.run)) as source:
            assert [each.name for each in source.definitions()] == ["books"]


@pytest.mark.parametrize(
    "address, said",
    [
        ("postgresql://someone:secret@localhost/db", "credentials"),
        ("postgresql://nobody@localhost:1/db", "Connection refused"),
        ("postgresql://localhost", "host and a database"),
    ],
)
def test_what_is_no_place_is_told_in_a_line(address: str, said: str, lines: Path, tmp_path: Path) -> None:
    """No password is repeated, and there is no traceback."""
    command = [sys.executable, "-m", "chromakeep", "copy", str(lines), address]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode not in (0, 1), done.stderr
    assert said.lower() in done.stderr.lower() and "secret" not in done.stderr and "Traceback" not in done.stderr


def waited(happened: Callable[[], bool]) -> None:
    """Until it has."""
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)
