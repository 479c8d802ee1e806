"""The private PostgreSQL: made once, one process at a time, gone with whoever started it, whole after a kill."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from chromakeep.errors import RefusedToServe, ServerFailed
from chromakeep.postgres import embedded, fitting
from chromakeep.postgres.embedded import Embedded
from postgres.instances import eventually

SOURCES = Path(embedded.__file__).parents[2]
# Writes a row as soon as it runs, says so, and waits to be killed.
CHILD = """
import sys, time, psycopg
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from chromakeep.postgres.embedded import Embedded
server = Embedded(Path(sys.argv[2]), memory=1 << 30)
server.start()
with psycopg.connect(server.url) as connection:
    connection.execute("CREATE TABLE IF NOT EXISTS written (n integer)")
    connection.execute("INSERT INTO written VALUES (1)")
print(server._process.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory at rest that was started once: the making takes longest, and is done in the first test."""
    home = tmp_path_factory.mktemp("made") / "postgresql"
    server = Embedded(home, memory=1 << 30)
    server.start()
    server.stop()
    return home


@pytest.fixture
def server(tmp_path: Path, made: Path) -> Iterator[Embedded]:
    """On a copy of it."""
    shutil.copytree(made, tmp_path / "postgresql")
    found = Embedded(tmp_path / "postgresql", memory=1 << 30)
    yield found
    found.stop()


def ask(server: Embedded, statement: str) -> object:
    with psycopg.connect(server.url) as connection:
        row = connection.execute(statement.encode()).fetchone()
    return row and row[0]


def beside(directory: Path) -> tuple[subprocess.Popen[str], int]:
    """Another process that runs it, and the number of its PostgreSQL."""
    command = [sys.executable, "-c", CHILD, str(SOURCES), str(directory)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout
    return child, int(child.stdout.readline())


def gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def test_it_keeps_what_it_was_given_and_nobody_else_gets_in(server: Embedded, tmp_path: Path) -> None:
    server.start()
    server.start()  # is nothing
    assert ask(server, "SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'") == 1
    assert ask(server, "SELECT current_setting('listen_addresses')") == ""
    assert ask(server, "SELECT current_setting('server_encoding') || datcollate FROM pg_database") == "UTF8C"
    home = tmp_path / "postgresql"
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "password").stat().st_mode) == 0o600
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(server.url.replace((home / "password").read_text().strip(), "another"))
    with psycopg.connect(server.url) as connection:
        connection.execute("CREATE TABLE kept (n integer)")
    server.stop()
    server.stop()
    assert not server.alive
    server.start()
    assert ask(server, "SELECT count(*) FROM kept") == 0


def test_one_process_at_a_time_and_a_kill_of_it_takes_the_server_along(server: Embedded, tmp_path: Path) -> None:
    """Also for a directory whose ``postmaster.pid`` is there, with a number that is another process's by now."""
    home = tmp_path / "postgresql"
    child, number = beside(home)
    with pytest.raises(RefusedToServe, match="another process has its PostgreSQL"):
        server.start()
    child.kill()
    child.wait()
    eventually(lambda: gone(number), "it has ended, and is no orphan")
    (home / "data" / "postmaster.pid").write_text(f"{os.getpid()}\n{home / 'data'}\n1\n5432\n{home}\n\n")
    server.start()
    assert ask(server, "SELECT count(*) FROM written") == 1


def test_an_orphan_is_taken_over(server: Embedded, tmp_path: Path) -> None:
    """Its sentinel was killed first: nobody tells it to end, until the next start does."""
    child, number = beside(tmp_path / "postgresql")
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if entry.read_bytes().startswith(b"/bin/sh\0-c\0") and f"\0sh\0{number}\0".encode() in entry.read_bytes():
                os.kill(int(entry.parent.name), signal.SIGKILL)
        except OSError:
            continue
    child.kill()
    child.wait()
    assert not gone(number)
    server.start()
    assert gone(number)
    assert ask(server, "SELECT count(*) FROM written") == 1


def test_another_postgresql_that_has_the_number_of_ours_now_is_left_alone(server: Embedded, tmp_path: Path) -> None:
    """After a restart of the machine numbers begin anew."""
    other = Embedded(tmp_path / "other", memory=1 << 30)
    shutil.copytree(tmp_path / "postgresql", tmp_path / "other")
    try:
        other.start()
        assert other._process
        file = tmp_path / "postgresql" / "data" / "postmaster.pid"
        file.write_text(f"{other._process.pid}\n{file.parent}\n1\n5432\n{file.parent.parent}\n\n")
        server.start()
        assert server.alive and other.alive
    finally:
        other.stop()


def test_it_is_found_whatever_the_environment_says_of_another_server(
    server: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "PGPORT": "6543", "PGSSLMODE": "require", "PGCHANNELBINDING": "require",
        "PGDATABASE": "other", "PGUSER": "other", "PGPASSWORD": "other",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    server.start()
    assert ask(server, "SELECT 1") == 1


def test_killed_itself_it_recovers(server: Embedded) -> None:
    server.start()
    with psycopg.connect(server.url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n")
    assert server._process
    os.kill(server._process.pid, signal.SIGKILL)
    server._process.wait()
    assert not server.alive
    server.start()
    assert ask(server, "SELECT count(*) FROM kept") == 1000


def test_a_path_too_long_for_a_socket(tmp_path: Path, made: Path) -> None:
    home = tmp_path / ("long" * 30)
    shutil.copytree(made, home)
    server = Embedded(home, memory=1 << 30)
    server.start()
    assert ask(server, "SELECT 1") == 1
    elsewhere = server._elsewhere
    assert elsewhere and elsewhere.parent == Path(tempfile.gettempdir())
    server.stop()
    assert not elsewhere.exists()


def test_what_another_version_made_is_left_alone(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "PG_VERSION").write_text("13\n")
    with pytest.raises(RefusedToServe, match="made by PostgreSQL 13"):
        Embedded(tmp_path).start()
    assert [entry.name for entry in data.iterdir()] == ["PG_VERSION"]


def test_a_start_that_fails_says_why(server: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "settings", lambda memory: {"shared_buffers": "nonsense"})
    with pytest.raises(ServerFailed, match="shared_buffers"):
        server.start()


def test_a_recovery_that_fails_says_why(tmp_path: Path) -> None:
    """Its last words are to us, who asked whether it answers; here those of a disk that was full."""
    (tmp_path / "postgresql.log").write_text(
        """\
2026-11-26 15:09:45.418 UTC [24723] FATAL:  the database system is not yet accepting connections
2026-11-26 15:09:45.418 UTC [24723] DETAIL:  Consistent recovery state has not been yet reached.
2026-11-26 15:09:45.530 UTC [24719] FATAL:  could not write to file "pg_wal/xlogtemp.24719": No space left on device
2026-11-26 15:09:45.540 UTC [24724] FATAL:  the database system is not yet accepting connections
2026-11-26 15:09:45.544 UTC [24701] LOG:  shutting down due to startup process failure
"""
    )
    assert "No space left on device" in Embedded(tmp_path)._last_line()


def test_settings_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = fitting.settings(256 << 20), fitting.settings(64 << 30)
    assert (small["shared_buffers"], large["shared_buffers"]) == ("128MB", "16384MB")
    assert (small["maintenance_work_mem"], large["maintenance_work_mem"]) == ("64MB", "2048MB")
    monkeypatch.setattr(fitting, "_shared", lambda: 64 << 20)
    assert fitting.settings(64 << 30)["dynamic_shared_memory_type"] == "mmap"


def test_what_a_killed_server_leaves_running_is_waited_for(server: Embedded) -> None:
    """Its processes share memory and write files until they notice: nobody may begin beside them."""
    server.start()
    with psycopg.connect(server.url) as connection:
        backend = connection.info.backend_pid
        os.kill(backend, signal.SIGSTOP)
        assert server._process
        os.kill(server._process.pid, signal.SIGKILL)
        server._process.wait()
        again = threading.Thread(target=server.start)
        again.start()
        again.join(2)
        assert again.is_alive()
        os.kill(backend, signal.SIGCONT)
        again.join(60)
    assert ask(server, "SELECT 1") == 1
