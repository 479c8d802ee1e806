"""Rescue: directories broken as a kill breaks them, by strace(1) at the exact write, then rebuilt and compared."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from chromakeep.chroma.client import Ref
from chromakeep.chroma.command import find_chroma, interpreter
from chromakeep.chroma.inspection import inspect
from chromakeep.chroma.ports import free_port
from chromakeep.chroma.server import ChromaServer
from chromakeep.errors import RefusedToServe, ServerFailed
from chromakeep.events import Event, Noted
from chromakeep.operations.backup import backup
from chromakeep.operations.beside import Beside
from chromakeep.operations.rescue import Findings, RescueReport, examine, rescue
from chromakeep.repository import Repository
from chromakeep.store.local import LocalStore
from chromakeep.store.memory import MemoryStore
from run.running import ENV, PATIENCE, Writer, add, create, eventually, held

strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
WRITES = "write,writev,pwrite64"


def killed_writing(data: Path, file: str, nth: int, writer: Writer) -> None:
    """Serve ``data`` with a writer at work until the nth write to a file of its collection's index, then SIGKILL."""
    python = interpreter(find_chroma(None, ENV))
    segment = next(data.glob("*-*-*-*-*"))
    port = writer.client.port
    code = "import sys; from chromadb_rust_bindings import cli; cli(['chroma', *sys.argv[1:]])"
    server = subprocess.Popen(
        [
            "strace", "-f", "-o", "/dev/null", "-P", str(segment / file), "-e", f"trace={WRITES}",
            "-e", f"inject={WRITES}:signal=KILL:when={nth}",
            str(python), "-c", code, "run", "--path", str(data), "--host", "127.0.0.1", "--port", str(port),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    writer.start()
    try:
        server.wait(PATIENCE)
    finally:
        server.kill()
        writer.over.set()
        writer.join()
    assert server.returncode == -9


def prepared(data: Path, writer: Writer, batches: int) -> None:
    """A directory with some writes of the writer, at rest."""
    with ChromaServer(data, env=ENV) as server:
        early = Writer(server.options.port, seed=1)
        early._hnsw = writer._hnsw
        early.start()
        eventually(lambda: early.writes >= batches, "writes")
        early.over.set()
        early.join()
    assert not early.open
    writer.acked, writer.ref, writer.number = early.acked, early.ref, early.number


def found_in(beside: Beside) -> Findings:
    return examine(beside, program=None, env=ENV)


def rescued(beside: Beside, findings: Findings, repository: Repository | None = None) -> RescueReport:
    opened = (lambda: repository) if repository else None
    return rescue(beside, findings, opened, program=None, env=ENV)


@strace
@pytest.mark.parametrize(("threshold", "with_snapshot"), [(20, True), (100, False)])
@pytest.mark.parametrize("space", ["l2", "cosine"])
@pytest.mark.parametrize(
    ("file", "nth"),
    [
        ("header.bin", 1),
        ("data_level0.bin", 5),
        ("data_level0.bin", 60),
        ("length.bin", 3),
        ("index_metadata.pickle", 1),
    ],
)
def test_a_kill_inside_a_persist_loses_nothing_known(
    tmp_path: Path, file: str, nth: int, space: str, threshold: int, with_snapshot: bool
) -> None:
    """Every acknowledged record is back exactly, with a snapshot or without, or the directory was never broken."""
    data = tmp_path / "data"
    writer = Writer(free_port(), seed=nth, sync_threshold=threshold, space=space)
    prepared(data, writer, 60)
    repository = Repository.create(MemoryStore()) if with_snapshot else None
    if repository:
        backup(data, repository)
    killed_writing(data, file, nth, writer)
    assert writer.ref
    with Beside(data) as beside:
        beside.take(5)
        findings = found_in(beside)
        assert findings.database is None
        report = rescued(beside, findings, repository) if findings.broken else None
        assert found_in(beside) == Findings()
    if file.endswith("pickle"):
        assert report is not None  # truncated on opening: always unreadable
    lost = {i for one in report.collections for i in one.lost} if report else set()
    assert lost == set()
    stale = {i for one in report.collections for i in one.from_snapshot} if report else set()
    assert stale == set()
    writer.check(held(data, writer.ref), rounding=1e-5 if space == "cosine" else 0)


def broken_twice(data: Path, count: int = 200) -> tuple[Ref, Ref]:
    """Two collections of known records, persisted."""
    with ChromaServer(data, env=ENV) as server:
        hit, other = (create(server.client, name, sync_threshold=10) for name in ("hit", "other"))
        for ref in (hit, other):
            for start in range(0, count, 50):
                add(server.client, ref, start, 50)
    return hit, other


def segment_of(data: Path, ref: Ref) -> Path:
    from chromakeep.chroma.catalog import Catalog

    with Catalog(data) as catalog:
        return data / str(next(e.vector_segment for e in catalog.entries if e.id == ref.id))


@pytest.mark.parametrize("tear", ["half a pickle", "no pickle left", "half the vectors", "no header", "foreign bytes"])
def test_without_a_repository_what_the_files_give_is_kept_and_the_rest_is_told(tmp_path: Path, tear: str) -> None:
    """Lost ids are named, their documents are written down, and the collection works without them; others are whole."""
    data = tmp_path / "data"
    hit, other = broken_twice(data)
    segment = segment_of(data, hit)
    pickle, vectors = segment / "index_metadata.pickle", segment / "data_level0.bin"
    if tear == "half a pickle":
        os.truncate(pickle, pickle.stat().st_size // 4)
    elif tear == "no pickle left":
        os.truncate(pickle, 0)
    elif tear == "half the vectors":
        os.truncate(vectors, vectors.stat().st_size // 2)
    elif tear == "no header":
        (segment / "header.bin").write_bytes(b"")
    else:
        vectors.write_bytes(os.urandom(vectors.stat().st_size))
    with Beside(data) as beside:
        beside.take(5)
        findings = found_in(beside)
        assert [b.ref.name for b in findings.broken] == ["hit"]
        report = rescued(beside, findings)
        assert found_in(beside) == Findings()
    (one,) = report.collections
    kept = held(data, hit)
    assert all(value == float(i[1:]) for i, value in kept.items())
    assert one.salvaged == len(kept) and set(one.lost) == {f"i{n}" for n in range(200)} - kept.keys()
    assert len(held(data, other)) == 200
    assert (len(kept) == 200) == (tear in ("no header", "half a pickle"))
    assert len(kept) >= 90 or tear in ("no pickle left", "foreign bytes")
    lines = Path(report.lost_records).read_text().splitlines() if report.lost_records else []
    assert len(lines) == len(one.lost)
    assert not lines or f'"document":"text of {one.lost[0][1:]}"' in lines[0]
    with ChromaServer(data, env=ENV) as server:
        add(server.client, hit, 1000, 5)
        assert server.client.count(hit) == len(kept) + 5


def test_vectors_newer_than_the_snapshot_are_not_replaced_by_its_own(tmp_path: Path) -> None:
    """Updated after the snapshot, the queue row purged: the snapshot's id map finds the present vector, and bears out
    the order of creation, which finds those that the snapshot has not."""
    data = tmp_path / "data"
    hit, _ = broken_twice(data)
    repository = Repository.create(MemoryStore())
    backup(data, repository)
    with ChromaServer(data, env=ENV) as server:
        body = {"ids": [f"i{n}" for n in range(30)], "embeddings": [[-n - 1, 1, 1, 1] for n in range(30)]}
        server.client.request("POST", f"{hit.path}/update", body)
        add(server.client, hit, 1000, 20)
    os.truncate(segment_of(data, hit) / "index_metadata.pickle", 0)
    with Beside(data) as beside:
        beside.take(5)
        (one,) = rescued(beside, found_in(beside), repository).collections
    kept = held(data, hit)
    assert all(kept[f"i{n}"] == (-n - 1 if n < 30 else n) for n in range(200))
    assert all(kept[f"i{n}"] == n for n in range(1000, 1020))
    assert not one.lost and not one.from_snapshot


def test_an_index_started_anew_is_not_read_with_an_older_map(tmp_path: Path) -> None:
    """All deleted and others added: labels begin again at 1, and the snapshot's map would give them to strangers."""
    data = tmp_path / "data"
    hit, _ = broken_twice(data)
    repository = Repository.create(MemoryStore())
    backup(data, repository)
    with ChromaServer(data, env=ENV) as server:
        server.client.delete(hit, [f"i{n}" for n in range(200)])
    with ChromaServer(data, env=ENV) as server:  # finds an index of no ids and starts another
        for start in range(0, 200, 50):
            body = {"ids": [f"i{199 - n}" for n in range(start, start + 50)]}
            body |= {"embeddings": [[5000 + n, 1, 1, 1] for n in range(start, start + 50)]}  # type: ignore[dict-item]
            server.client.request("POST", f"{hit.path}/add", body)
    os.truncate(segment_of(data, hit) / "index_metadata.pickle", 0)
    with Beside(data) as beside:
        beside.take(5)
        (one,) = rescued(beside, found_in(beside), repository).collections
    kept = held(data, hit)
    for i, value in kept.items():
        assert value == 5199 - int(i[1:]) or (i in one.from_snapshot and value == float(i[1:]))


def test_a_snapshot_that_cannot_be_read_is_waited_for(tmp_path: Path) -> None:
    """Ids that the files lack may be in the repository: while it cannot be read nothing is given up or changed."""
    data = tmp_path / "data"
    hit, _ = broken_twice(data)
    os.truncate(segment_of(data, hit) / "index_metadata.pickle", 0)
    before = inspect(data)

    def unreachable() -> Repository:
        return Repository.open(LocalStore(tmp_path / "unplugged"))

    with Beside(data) as beside:
        beside.take(5)
        findings = found_in(beside)
        with pytest.raises(RefusedToServe, match="cannot be read"):
            rescue(beside, findings, unreachable, program=None, env=ENV)
    assert inspect(data) == before


def test_a_collection_that_takes_the_server_down_is_named(tmp_path: Path) -> None:
    """The disposable server dies of it: the others are still checked, each collection by a server that lives."""
    data = tmp_path / "data"
    hit, other = broken_twice(data)
    program = tmp_path / "chroma"
    program.write_text(  # a server that is fine, and dies of one collection as of a segmentation fault
        f"""#!/bin/sh
exec {sys.executable} {Path(__file__).with_name("dying_server.py")} {find_chroma(None, ENV)} {hit.id} "$@"
"""
    )
    program.chmod(0o755)
    with Beside(data) as beside:
        beside.take(5)
        findings = examine(beside, program=str(program), env=ENV)
    assert [(b.ref.name, b.found_by) for b in findings.broken] == [("hit", "opening")]
    assert "ends the server" in findings.broken[0].reason
    assert other.name not in {b.ref.name for b in findings.broken}


def test_what_only_we_cannot_read_is_left_to_chroma(tmp_path: Path) -> None:
    """A schema of a Chroma to come is no corruption: the directory keeps its place, whatever the repository holds."""
    data = tmp_path / "data"
    broken_twice(data)
    repository = Repository.create(MemoryStore())
    backup(data, repository)
    with closing(sqlite3.connect(data / "chroma.sqlite3")) as db, db:
        db.execute("ALTER TABLE segments RENAME TO parts")
    said: list[Event] = []
    with Beside(data) as beside:
        beside.take(5)
        assert examine(beside, program=None, env=ENV, observer=said.append) == Findings()
    assert any("is left to Chroma" in event.message for event in said if isinstance(event, Noted))


def test_a_chroma_that_does_not_start_is_no_fault_of_the_directory(tmp_path: Path) -> None:
    """A broken installation ends the check with its own error; no directory is replaced because of it."""
    data = tmp_path / "data"
    broken_twice(data)
    program = tmp_path / "chroma"
    program.write_text("#!/bin/sh\necho cannot execute\nexit 126\n")
    program.chmod(0o755)
    with Beside(data) as beside:
        beside.take(5)
        with pytest.raises(ServerFailed, match="cannot execute"):
            examine(beside, program=str(program), env=ENV)


def test_a_dead_servers_journal_is_part_of_the_copy(tmp_path: Path) -> None:
    """A transaction cut off in the middle of its commit is rolled back in the copy as Chroma will roll it back."""
    data = tmp_path / "data"
    hit, _ = broken_twice(data)
    code = f"""
import os, sqlite3
db = sqlite3.connect({str(data / "chroma.sqlite3")!r}, isolation_level=None)
db.execute("PRAGMA cache_size = 1")
db.execute("BEGIN IMMEDIATE")
db.execute("DELETE FROM embedding_metadata")
db.execute("DELETE FROM embeddings")
os._exit(9)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    assert (data / "chroma.sqlite3-journal").stat().st_size > 0
    with Beside(data) as beside:
        beside.take(5)
        assert found_in(beside) == Findings()
    with ChromaServer(data, env=ENV) as server:
        assert server.client.count(hit) == 200
    with sqlite3.connect(data / "chroma.sqlite3") as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
