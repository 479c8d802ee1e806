"""What capture promises: an exact copy, from one instant, of a directory in whatever state writers left it."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from chromakeep.chroma import capture as capture_
from chromakeep.chroma.capture import capture
from chromakeep.chroma.inspection import inspect
from chromakeep.chroma.locking import LiveDatabase, open_in_this_process
from chromakeep.errors import DiskFull, NotAChromaDirectory, SourceBroken, SourceBusy, SourceError, UsageError
from chromakeep.events import Event, PhaseStarted

MAKE = """
import sys, chromadb
client = chromadb.PersistentClient(sys.argv[1])
for name, threshold in (("persisted", 20), ("queued", 1000)):
    collection = client.create_collection(name, configuration={"hnsw": {"sync_threshold": threshold, "batch_size": 10}})
    for start in range(0, 120, 10):
        ids = [f"{name}-{n}" for n in range(start, start + 10)]
        collection.add(ids=ids, embeddings=[[n, start, 1.5, -2] for n in range(10)], documents=["text " * 50] * 10)
    collection.delete(ids=[f"{name}-{n}" for n in range(20, 60)])
client.create_collection("dropped").add(ids=["a"], embeddings=[[1, 2, 3]])
client.delete_collection("dropped")
"""
LINKS, LEVEL0, PICKLE = "link_lists.bin", "data_level0.bin", "index_metadata.pickle"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two collections, one persisted, one in the queue alone, and the folder of a third that was dropped."""
    place = tmp_path_factory.mktemp("made") / "chroma"
    subprocess.run([sys.executable, "-c", MAKE, str(place)], check=True)
    return place


@pytest.fixture
def source(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "source"))


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "into"


def files(place: Path) -> dict[str, bytes]:
    return {str(p.relative_to(place)): p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}


def rows(database: Path) -> list[str]:
    """All that the database says; needs no other file beside it."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro&immutable=1", uri=True)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return list(connection.iterdump())


def segment(place: Path, name: str = "persisted") -> Path:
    with closing(sqlite3.connect(f"file:{place / 'chroma.sqlite3'}?mode=ro&immutable=1", uri=True)) as connection:
        of = "SELECT id FROM collections WHERE name = ?"
        query = f"SELECT id FROM segments WHERE collection = ({of}) AND scope = 'VECTOR'"
        return place / str(connection.execute(query, (name,)).fetchone()[0])


def write(source: Path, statement: str = "INSERT INTO acquire_write (lock_status) VALUES (1)") -> None:
    with closing(sqlite3.connect(source / "chroma.sqlite3")) as connection, connection:
        connection.execute(statement)


def age(place: Path, seconds: float) -> None:
    """Wait until nothing there was touched for so long."""
    newest = max(max(p.stat().st_mtime, p.stat().st_ctime) for p in place.rglob("*") if p.is_file())
    time.sleep(max(0.0, newest + seconds - time.time()))


class TestCold:
    """A directory at rest."""

    def test_all_of_it_and_nothing_else(self, source: Path, into: Path) -> None:
        """The copy holds the same rows and the very files of live collections, no dropped one's, no foreign one's."""
        (source / "notes.txt").write_text("not Chroma's")
        (segment(source) / "stray.tmp").write_text("not Chroma's either")
        done = capture(source, into)
        live = {segment(source, n).name for n in ("persisted", "queued")}
        assert {p.name for p in into.iterdir()} == live | {"chroma.sqlite3"}
        assert len([p for p in source.iterdir() if p.is_dir()]) == 3
        assert rows(into / "chroma.sqlite3") == rows(source / "chroma.sqlite3")
        copied = files(into)
        assert all(content == files(source)[name] for name, content in copied.items() if "/" in name)
        assert not any("stray" in name for name in copied)
        assert done.path == into
        assert not inspect(into).problems

    def test_the_source_is_only_read(self, source: Path, into: Path) -> None:
        """Not a byte, a time or a file of the source changes."""

        def state() -> dict[str, tuple[int, int, int]]:
            found = {str(p): p.stat() for p in (source, *source.rglob("*"))}
            return {name: (s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in found.items()}

        before = state()
        capture(source, into)
        assert state() == before

    def test_again_costs_only_what_changed(self, source: Path, into: Path) -> None:
        """A second capture into the same place writes a few pages, and takes a dropped collection away."""
        first = capture(source, into)
        gone = segment(source, "queued")
        write(source, f"DELETE FROM segments WHERE id = '{gone.name}'")
        again = capture(source, into)
        assert again.copied_bytes < first.copied_bytes / 4
        assert not (into / gone.name).exists()
        assert rows(into / "chroma.sqlite3") == rows(source / "chroma.sqlite3")
        assert (into / "chroma.sqlite3").stat().st_mtime_ns == (source / "chroma.sqlite3").stat().st_mtime_ns

    def test_a_persist_of_the_same_size_is_copied(self, source: Path, into: Path) -> None:
        """Index files rewritten in place are found in the next capture, though their sizes are what they were."""
        capture(source, into)
        folder = segment(source)
        content = bytearray((folder / LEVEL0).read_bytes())
        content[132] ^= 1  # a byte of the first vector
        with (folder / LEVEL0).open("r+b") as file:
            file.write(content)
        os.utime(folder / PICKLE)
        capture(source, into)
        assert files(into)[f"{folder.name}/{LEVEL0}"] == bytes(content)

    def test_an_interrupted_capture_is_made_good(self, source: Path, into: Path) -> None:
        """Whatever a killed capture left in the target (half a file, a journal, a folder), the next one is exact."""
        capture(source, into)
        folder = into / segment(source).name
        (folder / LEVEL0).write_bytes(b"half")
        (folder / PICKLE).unlink()
        (into / "chroma.sqlite3-journal").write_bytes(b"junk" * 1000)
        (into / "chroma.sqlite3.part").write_bytes(b"junk")
        (into / "00000000-0000-4000-8000-000000000000").mkdir()
        with (into / "chroma.sqlite3").open("r+b") as file:
            file.truncate(5000)
        capture(source, into)
        assert rows(into / "chroma.sqlite3") == rows(source / "chroma.sqlite3")
        assert not inspect(into).problems
        assert len(list(into.iterdir())) == 3

    def test_deleted_vectors_are_not_copied(self, source: Path, into: Path) -> None:
        """Free pages, in which SQLite keeps purged rows of the queue, are zeros in the copy."""
        capture(source, into)
        with closing(sqlite3.connect(into / "chroma.sqlite3")) as connection:
            free = connection.execute("PRAGMA freelist_count").fetchone()[0]
        content = (into / "chroma.sqlite3").read_bytes()
        zeros = sum(content[n : n + 4096] == bytes(4096) for n in range(0, len(content), 4096))
        assert free > 2
        assert zeros >= free - 1

    def test_through_a_link(self, source: Path, into: Path) -> None:
        """The database may be a symbolic link, its journal then lies beside what it points to."""
        real = source.parent / "real.sqlite3"
        (source / "chroma.sqlite3").rename(real)
        (source / "chroma.sqlite3").symlink_to(real)
        capture(source, into)
        assert rows(into / "chroma.sqlite3") == rows(real)

    def test_into_its_own_folder(self, source: Path) -> None:
        """A directory that is a mount point may keep the copy inside, in a folder that is not Chroma's."""
        capture(source, source / ".chromakeep" / "stage")
        assert rows(source / ".chromakeep" / "stage" / "chroma.sqlite3") == rows(source / "chroma.sqlite3")


class TestLock:
    """What holds while the lock is held."""

    def ask(self, database: Path, statement: str) -> str:
        """Another process tries a statement, with no patience."""
        script = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0.2).executescript(sys.argv[2])"
        done = subprocess.run(
            [sys.executable, "-c", script, str(database), statement], capture_output=True, text=True, check=False
        )
        return (done.stderr.strip().splitlines() or [""])[-1]

    @pytest.fixture
    def database(self, source: Path) -> Iterator[LiveDatabase]:
        with closing(LiveDatabase(source / "chroma.sqlite3")) as database:
            yield database

    def test_no_commit(self, database: LiveDatabase) -> None:
        """Nobody can commit while the lock is held, and anybody afterwards."""
        insert = "INSERT INTO acquire_write (lock_status) VALUES (1)"
        with database.shared(0):
            assert "database is locked" in self.ask(database.path, insert)
        assert self.ask(database.path, insert) == ""

    def test_writers_may_prepare(self, database: LiveDatabase) -> None:
        """A transaction can begin and write meanwhile (a RESERVED lock of ours would fail Chroma's deferred ones)."""
        with database.shared(0):
            assert self.ask(database.path, "BEGIN IMMEDIATE; UPDATE acquire_write SET lock_status = 2; ROLLBACK") == ""

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="open file description locks")
    def test_it_survives_a_close_elsewhere(self, database: LiveDatabase) -> None:
        """Another descriptor of the database opened and closed in this process does not drop the lock."""
        with database.shared(0):
            database.path.read_bytes()
            assert "database is locked" in self.ask(database.path, "INSERT INTO acquire_write (lock_status) VALUES (1)")

    def test_a_writer_that_never_ends(self, source: Path, into: Path) -> None:
        """A database kept locked is reported as busy when the time is up."""
        script = (
            "import sqlite3, sys, time; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
            "c.execute('BEGIN EXCLUSIVE'); print('locked', flush=True); time.sleep(60)"
        )
        writer = subprocess.Popen(
            [sys.executable, "-c", script, str(source / "chroma.sqlite3")], stdout=subprocess.PIPE
        )
        try:
            assert writer.stdout
            writer.stdout.readline()
            with pytest.raises(SourceBusy, match="kept the database locked"):
                capture(source, into, timeout=0.3)
        finally:
            writer.kill()
            writer.wait()

    def test_chroma_in_this_very_process(self, source: Path, into: Path) -> None:
        """With an embedded client writing in the same process the copy is exact, and neither waits for the other.

        It commits and persists without a pause: no attempt that waits for a second between the two would succeed.
        """
        script = """
import sys, threading, time
from pathlib import Path
import chromadb
from chromakeep.chroma.capture import capture
from chromakeep.chroma.inspection import inspect
from chromakeep.chroma.locking import open_in_this_process
collection = chromadb.PersistentClient(sys.argv[1]).get_collection("persisted", embedding_function=None)
done = threading.Event()
def add():
    for n in range(10**6):
        collection.upsert(ids=[f"new-{n % 50}"], embeddings=[[n, 1, 2, 3]])
        if done.is_set(): return
thread = threading.Thread(target=add); thread.start()
assert open_in_this_process(Path(sys.argv[1]) / "chroma.sqlite3")
try:
    for n in range(4):
        capture(Path(sys.argv[1]), Path(sys.argv[2]), timeout=60)
        assert not inspect(Path(sys.argv[2])).problems, inspect(Path(sys.argv[2])).problems
        time.sleep(0.05)
finally:
    done.set(); thread.join()
print("exact")
"""
        assert not open_in_this_process(source / "chroma.sqlite3")
        done = subprocess.run(
            [sys.executable, "-c", script, str(source), str(into)],
            capture_output=True,
            text=True,
            timeout=250,
            check=False,
        )
        assert done.stdout.strip() == "exact", done.stderr


class TestDeadWriters:
    """Directories that a crash left behind, SQLite's part."""

    def test_a_hot_journal(self, source: Path, into: Path) -> None:
        """A transaction cut off in the middle is undone in the copy; the source keeps its journal, untouched."""
        before = rows(source / "chroma.sqlite3")
        script = (
            "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
            "c.execute('PRAGMA cache_size = 5'); c.execute('BEGIN');"
            "c.execute('UPDATE embeddings_queue SET metadata = hex(randomblob(900))'); os._exit(9)"
        )
        subprocess.run([sys.executable, "-c", script, str(source / "chroma.sqlite3")], check=False)
        torn = files(source)
        assert len(torn["chroma.sqlite3-journal"]) > 512
        done = capture(source, into)
        assert done.attempts < 50
        assert rows(into / "chroma.sqlite3") == before
        assert files(source) == torn
        assert not (into / "chroma.sqlite3-journal").exists()

    def in_wal_mode(self, source: Path, then: str) -> None:
        script = (
            "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
            "c.execute('PRAGMA journal_mode = WAL'); c.execute('PRAGMA wal_autocheckpoint = 0');"
            f"c.execute('UPDATE acquire_write SET lock_status = 77'); {then}"
        )
        subprocess.run([sys.executable, "-c", script, str(source / "chroma.sqlite3")], check=False)

    def plain(self, into: Path) -> None:
        """One file, in rollback mode, with what was in the log."""
        assert any("VALUES(1,77)" in line for line in rows(into / "chroma.sqlite3"))
        assert (into / "chroma.sqlite3").read_bytes()[18:20] == b"\1\1"
        assert not list(into.glob("chroma.sqlite3-*"))

    @pytest.mark.parametrize("lost", [(), ("-shm",)], ids=["with its -shm", "without"])
    def test_a_log_left_behind(self, source: Path, into: Path, lost: tuple[str, ...]) -> None:
        """In WAL mode the committed part of a dead writer's log is in the copy; log and database stay as they were."""
        self.in_wal_mode(source, "os._exit(9)")
        for end in lost:
            (source / f"chroma.sqlite3{end}").unlink()
        before = {n: c for n, c in files(source).items() if not n.endswith("-shm")}
        capture(source, into)
        self.plain(into)
        assert {n: c for n, c in files(source).items() if not n.endswith("-shm")} == before

    def test_wal_mode_at_rest(self, source: Path, into: Path) -> None:
        """Of a database in WAL mode that nobody has open, reading creates no -wal nor -shm in the source."""
        self.in_wal_mode(source, "c.close()")
        names = set(files(source))
        capture(source, into)
        self.plain(into)
        assert set(files(source)) == names

    def test_wal_mode_in_use(self, source: Path, into: Path) -> None:
        """A live log is read as of one instant; the writer is not held up."""
        with closing(sqlite3.connect(source / "chroma.sqlite3", isolation_level=None)) as writer:
            writer.execute("PRAGMA journal_mode = WAL")
            writer.execute("UPDATE acquire_write SET lock_status = 77")
            done = capture(source, into)  # in a child: the database is open here
        self.plain(into)
        assert done.pause == 0

    def test_a_damaged_database(self, source: Path, into: Path) -> None:
        """A malformed database is reported as broken, at once."""
        with (source / "chroma.sqlite3").open("r+b") as file:
            file.seek(100)
            file.write(os.urandom(4000))
        with pytest.raises(SourceBroken, match="malformed"):
            capture(source, into)


class TestPersists:
    """HNSW files, which Chroma rewrites in place and outside of SQLite's locks."""

    def test_one_under_way_is_waited_for(self, source: Path, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """While a persist writes, no copy is taken; when its pickle is done, the new files are."""
        monkeypatch.setattr(capture_, "QUIET", 600.0)  # however long this writer waits for its turn, it lives
        attempts, attempt = threading.Semaphore(0), capture_._Capturing._attempt

        def counted(capturing: capture_._Capturing, deadline: float) -> None:
            attempts.release()
            attempt(capturing, deadline)

        monkeypatch.setattr(capture_._Capturing, "_attempt", counted)
        folder, level0 = segment(source), (segment(source) / LEVEL0).read_bytes()
        pickle, changed = (folder / PICKLE).read_bytes(), bytearray(level0)
        changed[132:136] = b"\0\0\x80?"
        began = threading.Event()

        def looked_at() -> None:
            """Since the last time one attempt has begun and ended, and another one has begun."""
            while attempts.acquire(blocking=False):
                pass
            assert attempts.acquire(timeout=60) and attempts.acquire(timeout=60)

        def persist() -> None:
            with (folder / LEVEL0).open("r+b") as file:
                for n in range(10):
                    file.seek(0)
                    file.write(changed if n == 9 else os.urandom(len(changed)))
                    file.flush()
                    began.set()
                    looked_at()
            with (folder / PICKLE).open("wb") as file:  # truncates, as Chroma does
                file.write(pickle[:-5])
                file.flush()
                time.sleep(0.2)  # until its time is so old that it could be believed
                looked_at()
                file.write(pickle[-5:])

        thread = threading.Thread(target=persist)
        thread.start()
        began.wait()
        done = capture(source, into, timeout=200)
        thread.join()
        assert done.attempts > 20
        assert files(into)[f"{folder.name}/{LEVEL0}"] == bytes(changed)
        assert files(into)[f"{folder.name}/{PICKLE}"] == pickle

    def test_one_that_never_ends(self, source: Path, into: Path) -> None:
        """An index that is written without a pause is reported as busy, naming the collection."""
        stop = threading.Event()

        def persist() -> None:
            while not stop.wait(0.01):
                os.utime(segment(source) / LEVEL0)

        thread = threading.Thread(target=persist)
        thread.start()
        try:
            with pytest.raises(SourceBusy, match="'persisted'") as raised:
                capture(source, into, timeout=1)
        finally:
            stop.set()
            thread.join()
        assert "attempts" in raised.value.message

    def torn_pickle(self, folder: Path) -> None:
        with (folder / PICKLE).open("r+b") as file:
            file.truncate(200)

    def torn_vectors(self, folder: Path) -> None:
        header = bytearray((folder / "header.bin").read_bytes())
        header[20:28] = (int.from_bytes(header[20:28], "little") + 3).to_bytes(8, "little")  # elements not yet written
        (folder / "header.bin").write_bytes(header)

    def missing(self, folder: Path) -> None:
        (folder / LEVEL0).unlink()

    @pytest.mark.parametrize("tear", [torn_pickle, torn_vectors, missing])
    def test_one_cut_off_for_good(self, source: Path, into: Path, tear: Callable[[object, Path], None]) -> None:
        """Files torn by a dead writer are refused within seconds, naming collection, segment and what is wrong."""
        folder = segment(source)
        tear(self, folder)
        started = time.monotonic()
        with pytest.raises(
            SourceBroken, match=rf"'persisted', segment {folder.name} is torn: .*\.(bin|pickle)"
        ) as raised:
            capture(source, into, timeout=60)
        assert time.monotonic() - started < 20
        assert raised.value.hint

    def test_copied_without_times(self, source: Path, into: Path) -> None:
        """A directory unpacked in any order is captured when its structure is sound, though times say nothing."""
        for name in (PICKLE, LINKS, "header.bin", "length.bin", LEVEL0):
            os.utime(segment(source) / name)
            time.sleep(0.02)
        capture(source, into)
        assert not inspect(into).problems

    def test_absurd_links_are_refused(self, source: Path, into: Path) -> None:
        """link_lists.bin blown up beyond a gigabyte is refused by name instead of being copied."""
        os.truncate(segment(source) / LINKS, 3 << 30)
        os.utime(segment(source) / PICKLE)
        with pytest.raises(SourceBroken, match=r"'persisted'.*link_lists.bin claims 3,221,225,472 bytes"):
            capture(source, into)

    def test_bloated_links_stay_sparse(self, source: Path, into: Path) -> None:
        """A smaller hole in it stays one in the copy."""
        os.truncate(segment(source) / LINKS, 200 << 20)
        os.utime(segment(source) / PICKLE)
        capture(source, into)
        copy = into / segment(source).name / LINKS
        assert copy.stat().st_size == 200 << 20
        assert copy.stat().st_blocks * 512 < 1 << 20

    def test_a_name_that_climbs(self, source: Path, into: Path) -> None:
        """A segment id that is a path leads nowhere."""
        write(source, f"UPDATE segments SET id = '../../outside' WHERE id = '{segment(source).name}'")
        with pytest.raises(SourceBroken, match="no segment id"):
            capture(source, into)

    def test_a_link_out(self, source: Path, into: Path) -> None:
        """An index file that is a symbolic link is not followed."""
        (segment(source) / LEVEL0).unlink()
        (segment(source) / LEVEL0).symlink_to("/etc/passwd")
        with pytest.raises(SourceBroken, match="not a regular file"):
            capture(source, into)


class TestRefusals:
    """One clear line for what cannot be."""

    @pytest.mark.parametrize(
        ("path", "error", "line"),
        [
            ("s3://bucket/prefix", UsageError, "not a URL"),
            ("http://localhost:8000", UsageError, "not a URL"),
            ("nowhere", NotAChromaDirectory, "no such directory"),
            ("file", NotAChromaDirectory, "not a directory"),
            ("empty", NotAChromaDirectory, r"no chroma\.sqlite3"),
            ("zero", NotAChromaDirectory, "the file is empty"),
            ("text", NotAChromaDirectory, "not a SQLite database"),
            ("other", NotAChromaDirectory, "not Chroma's"),
        ],
    )
    def test_no_chroma_directory(
        self, tmp_path: Path, into: Path, path: str, error: type[Exception], line: str
    ) -> None:
        """Each kind of wrong place is told apart."""
        (tmp_path / "file").write_bytes(b"")
        for name in ("empty", "zero", "text", "other"):
            (tmp_path / name).mkdir()
        (tmp_path / "zero" / "chroma.sqlite3").touch()
        (tmp_path / "text" / "chroma.sqlite3").write_text("hello " * 100)
        with closing(sqlite3.connect(tmp_path / "other" / "chroma.sqlite3")) as connection:
            connection.execute("CREATE TABLE t (x)")
        with pytest.raises(error, match=line):
            capture(Path(path) if ":" in path else tmp_path / path, into)

    def test_targets_that_cannot_be_meant(self, source: Path, tmp_path: Path) -> None:
        """The source itself, what holds it, a segment of it, a file, a directory of something else: all untouched."""
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("important")
        before = files(tmp_path)
        for target in (source, tmp_path, segment(source) / "x", tmp_path / "mine" / "thesis.txt", tmp_path / "mine"):
            with pytest.raises(UsageError):
                capture(source, target)
        assert files(tmp_path) == before

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
    def test_no_permission(self, source: Path, into: Path) -> None:
        """What this user may not read is one line that names the file and whom to be."""
        (source / "chroma.sqlite3").chmod(0o600)
        into.mkdir()
        into.chmod(0o777)
        for folder in [source.parent, *source.parent.parents]:
            if not folder.stat().st_mode & 0o001:
                folder.chmod(folder.stat().st_mode | 0o011)
        os.seteuid(65534)
        try:
            with pytest.raises(SourceError, match=r"chroma\.sqlite3: permission denied") as raised:
                capture(source, into)
        finally:
            os.seteuid(0)
        assert "user" in (raised.value.hint or "")

    @pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
    @pytest.mark.parametrize("room", ["64k", "32m"], ids=["beforehand", "half-way"])
    def test_no_room(self, source: Path, into: Path, room: str) -> None:
        """A full disk is DiskFull, whether it is known beforehand or found out half-way."""
        into.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "none", str(into)], check=False).returncode:
            pytest.skip("this machine mounts no tmpfs")
        filler = (into / "chroma.sqlite3.part").open("wb", buffering=0)

        def somebody_else(event: Event) -> None:
            with contextlib.suppress(OSError):
                while isinstance(event, PhaseStarted):
                    filler.write(bytes(1 << 16))

        try:
            with pytest.raises(DiskFull, match="into"):
                capture(source, into, observer=somebody_else)
        finally:
            filler.close()
            subprocess.run(["umount", str(into)], check=True)
