"""The place beside a data directory: what is known of the directory, who serves it, and how a rebuilt one replaces it.

Beside ``NAME`` lies ``.NAME.chromakeep``; where the data directory is itself a mount point, or its parent may not be
written, it is ``NAME/.chromakeep`` (Chroma looks at no folder whose name is not a segment's), so that everything that
is moved stays on one file system.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from types import TracebackType

import msgspec
from msgspec.structs import replace

from chromakeep.chroma.writers import start_time, writers
from chromakeep.errors import ChromakeepError, RefusedToServe
from chromakeep.operations.place import KEYS, exchange, keys_carried

DATABASE = "chroma.sqlite3"
_MAX_STATE = 16 << 20
_MARK = ".chromakeep-new"  # in a directory that is being put in place, with the name of the other: tells them apart


class Process(msgspec.Struct, frozen=True):
    """One process, also after its pid was given to another one: ``started`` is in clock ticks since boot."""

    pid: int
    started: int | None

    @staticmethod
    def of(pid: int) -> Process:
        return Process(pid, start_time(pid))

    def alive(self) -> bool:
        """Whether this very process still runs."""
        return self.started is not None and start_time(self.pid) == self.started


class Swap(msgspec.Struct, frozen=True):
    """A replacement that was decided on: ``new`` becomes the data directory, what is there becomes ``kept``."""

    new: str
    kept: str
    emptied: bool = False  # of a mount point: everything old is out of the way


class Received(msgspec.Struct, frozen=True):
    """What became of the last directory that was received: ``transfer`` put it in place, and ``kept`` is where the one
    before it is now. After a rollback: ``undone`` was swapped back, and what had been received is ``kept``."""

    transfer: str
    kept: str
    undone: str = ""


class State(msgspec.Struct, frozen=True):
    """What is remembered. ``verified`` is the signature of a directory that needs no check at boot."""

    verified: str | None = None
    captured: str | None = None  # signature of the directory when the newest snapshot was taken, with its id
    snapshot: str | None = None
    keeper: Process | None = None
    server: Process | None = None
    swap: Swap | None = None
    epoch: int = 0  # of the log that this directory was last written to
    following: bool = False  # the directory is a standby's: it holds nothing that the repository has not, or half of it
    received: Received | None = None
    sighted: int = 0  # collections that were here (``Sighting``)
    restored_at: float = 0.0  # seconds since 1970: a restore into it was last found exact; 0: never


_STATE = msgspec.json.Decoder(State)


class Beside:
    """Lock, state and swap of one data directory. All renames are on one file system."""

    def __init__(self, data: Path) -> None:
        self.data = data.absolute()
        parent = self.data.parent
        self.inside = os.path.ismount(self.data) or (self.data.is_dir() and not os.access(parent, os.W_OK))
        self.root = self.data / ".chromakeep" if self.inside else parent / f".{self.data.name}.chromakeep"
        self.state = State()
        self._lock: int | None = None
        self._writing = threading.Lock()

    def __enter__(self) -> Beside:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # -- the lock ----------------------------------------------------------------------------------------------------

    def take(self, timeout: float, *, alone: bool = True) -> int:
        """Become the only keeper of the directory; returns the descriptor to be inherited by the server.

        Not ``alone``: another program may have the database open for writing.

        The lock (flock(2)) belongs to the open file, which the server inherits: while a server that outlived its
        chromakeep still runs, nobody else gets in, in another container either. A survivor is ended after ``timeout``
        seconds; a living keeper, or any other process that has the database open for writing, raises
        ``RefusedToServe``.
        """
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ChromakeepError(
                f"{self.root}: {error.strerror}", hint="chromakeep needs to write beside the data directory"
            ) from None
        deadline = time.monotonic() + timeout
        ended = False
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() < deadline:
                    time.sleep(0.02)
                    continue
            state = self._read()
            orphan = state.server if not (state.keeper and state.keeper.alive()) else None
            if ended or not (orphan and orphan.alive()):
                by = f"process {state.keeper.pid}" if state.keeper and state.keeper.alive() else "another container"
                raise RefusedToServe(f"{self.data} is served already, by {by}", hint="stop that chromakeep first")
            with contextlib.suppress(ProcessLookupError):
                os.kill(orphan.pid, signal.SIGKILL)
            ended, deadline = True, time.monotonic() + 5
        while alone and (others := writers(self.data)):
            if time.monotonic() > deadline:
                who = "; ".join(f"process {w.pid} ({w.command})" for w in others)
                raise RefusedToServe(
                    f"{self.data} is open for writing in {who}: two writers destroy a Chroma directory",
                    hint="stop that process first, or let its clients talk to the server of `chromakeep run`",
                )
            time.sleep(0.05)
        self.state = replace(self._read(), server=None)  # it is gone
        return self._lock

    # -- the state ---------------------------------------------------------------------------------------------------

    def _read(self) -> State:
        try:
            with (self.root / "state.json").open("rb") as file:
                return _STATE.decode(file.read(_MAX_STATE))
        except (OSError, msgspec.MsgspecError):
            return State()  # nothing known: the directory is checked

    def remember(self, **changes: object) -> None:
        """Change fields of the state, atomically and durably; from any thread."""
        with self._writing:
            state = replace(self.state, **changes)
            new = self.root / "state.json.new"
            with new.open("wb") as file:
                file.write(msgspec.json.encode(state))
                file.flush()
                os.fsync(file.fileno())
            new.replace(self.root / "state.json")
            self.state = state  # not before: of a swap that could not be written down nothing is done, nor said
            _sync(self.root)

    @property
    def stage(self) -> Path | None:
        """Where the working copy is kept between snapshots; it cannot lie inside of the directory itself."""
        return None if self.inside else self.root / "stage"

    def scratch(self, name: str) -> Path:
        """A path in this place that does not exist."""
        path = self.root / name
        if path.exists():
            shutil.rmtree(path)
        return path

    def tidy(self) -> None:
        """Remove what a killed run left half done; what was broken or replaced is kept outside of this list.

        A restore or capture of another living process on this directory is left alone (its pid is in the name).
        """
        left = [self.root / name for name in ("new", "copy", "snapshot")]
        for place in {self.data, self.data.parent}:
            left += place.glob(f".{self.data.name}.restoring-*")
        for path in left:
            pid = path.name.partition("restoring-")[2].partition("-")[0]
            if not pid.isdigit() or int(pid) == os.getpid() or start_time(int(pid)) is None:
                shutil.rmtree(path, ignore_errors=True)
        if self._read().server:  # others are told that there is none: only now, what was left may have filled the disk
            self.remember(server=None)

    # -- the swap ----------------------------------------------------------------------------------------------------

    def swap(self, new: Path, word: str) -> Path | None:
        """``replace``; the old one is then kept as ``NAME.WORD-TIME``."""
        name = f"{word}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        folder = self.root if self.inside else self.data.parent
        prefix = "" if self.inside else f"{self.data.name}."
        return self.replace(
            new, next(p for p in (folder / f"{prefix}{name}{n}" for n in ("", *range(1, 10_000))) if not p.exists())
        )

    def replace(self, new: Path, kept: Path, **remembered: object) -> Path | None:
        """Make ``new`` the data directory; the old one is ``kept`` (returned), unless it is empty (None).

        The decision is recorded, with what else is to be ``remembered``, before the first rename, and ``finish_swap``
        completes it at the next boot: whenever the process or the machine dies, the directory is the old one or the new
        one, and never taken for empty. Nobody may be writing.
        """
        had = any(self._entries())
        if not self.inside:
            (new / _MARK).write_text(str(kept))
        for path in (*new.rglob("*"), new):
            _sync(path)  # Chroma syncs none of its index files
        self.remember(swap=Swap(str(new), str(kept)), verified=None, captured=None, **remembered)
        self.finish_swap()
        return kept if had else None

    def _entries(self) -> list[Path]:
        """What is to be moved out of the way. In a mount point not what lies there because it cannot lie beside it."""
        if not self.data.is_dir():
            return []
        entries = [p for p in self.data.iterdir() if p.name != "lost+found"]
        return [p for p in entries if not p.name.startswith(".") and p.name != KEYS] if self.inside else entries

    def finish_swap(self) -> bool:
        """Complete a recorded swap; True if there was one."""
        swap = self.state.swap
        if swap is None:
            return False
        new, kept = Path(swap.new), Path(swap.kept)
        if self.inside:  # the keys stay where they are
            (new / KEYS).unlink(missing_ok=True)
            if not swap.emptied and new.is_dir():  # else somebody has taken it away
                kept.mkdir(exist_ok=True)
                for entry in self._entries():
                    entry.rename(kept / entry.name)
                self.remember(swap=Swap(swap.new, swap.kept, emptied=True))
            for entry in sorted(new.iterdir() if new.is_dir() else (), key=lambda p: p.name == DATABASE):
                entry.rename(self.data / entry.name)
            shutil.rmtree(new, ignore_errors=True)
            with contextlib.suppress(OSError):
                kept.rmdir()  # there was nothing to keep
        elif new.exists():
            self._exchange(new, kept)
            _sync(new.parent)
        _sync(self.data.parent)
        (self.data / _MARK).unlink(missing_ok=True)
        self.remember(swap=None)
        return True

    def _exchange(self, new: Path, kept: Path) -> None:
        """Swap in one step where the system can, else by two renames: between them there is no directory, but a record
        of where it is."""
        if self._entries() and not kept.exists():
            mark = self.data / _MARK
            if mark.exists() and mark.read_text() == str(kept):
                new.rename(kept)  # by now the old one
                return
            with keys_carried(self.data, new, kept):
                if exchange(new, self.data):
                    new.rename(kept)
                else:
                    self.data.rename(kept)
                    new.rename(self.data)
            return
        new.rename(self.data)  # over an empty directory too (rename(2))


def forget(data: Path) -> None:
    """Somebody has chosen what lies at ``data`` now: it is not a standby's, nor overtaken by what others wrote.
    Without effect while a run or replicate keeps the directory, which remembers what it does itself."""
    with Beside(data) as beside, contextlib.suppress(OSError):
        if (beside.root / "state.json").exists():
            beside._lock = os.open(beside.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(beside._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            beside.state = beside._read()
            beside.remember(epoch=0, following=False, swap=None)


def move(new: Path, data: Path, kept: Path) -> Path | None:
    """``Beside.replace`` for whoever has chosen what ``data`` is to be. Raises ``RefusedToServe``."""
    with Beside(data) as beside:
        beside.take(0.0)
        return beside.replace(new, kept, epoch=0, following=False)


def complete(data: Path, new: Path) -> bool:
    """Complete the replacement by ``new`` over which another process was killed; True if there was one. Raises
    ``RefusedToServe``."""
    with Beside(data) as beside:
        swap = beside._read().swap
        if swap is None or swap.new != str(new):
            return False
        beside.take(0.0)
        return beside.finish_swap()


def served(data: Path) -> bool:
    """Whether another run, in whatever container, holds a directory and has a server on it."""
    with Beside(data) as beside, contextlib.suppress(OSError):
        beside._lock = os.open(beside.root / "lock", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(beside._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            state = beside._read()
            return state.server is not None and state.keeper != Process.of(os.getpid())
    return False


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system that cannot sync a directory
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
