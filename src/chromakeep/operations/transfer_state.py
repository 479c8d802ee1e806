"""The state of a transfer: one JSON file that a person can read, replaced in one step, and who may work on it now.

It is written before whatever it must tell a later process, so that a phase that was killed at any moment is gone on
with when it is called again. Only its owner can read it: an old line of an env file is in it.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import msgspec

from chromakeep.changes import Position
from chromakeep.errors import RepositoryBusy, UsageError
from chromakeep.operations.place import write_whole
from chromakeep.operations.tracked import Key, Options, Tracked

VERSION = 1
FILE = "chromakeep-transfer.json"  # in the current directory, unless another one is named
PHASES = ("starting", "copied", "switching", "switched", "rolling-back", "rolled-back")
KEPT = 100  # entries of the history
PATIENCE = 120.0  # seconds to wait for the round of another process
_POLL = 0.1


class LastRound(msgspec.Struct):
    """One round of catching up. ``read`` is 0 where the source was known not to have changed."""

    at: str
    seconds: float
    read: int
    upserted: int
    deleted: int
    created: int
    dropped: int
    told: list[str] = []

    @property
    def quiet(self) -> bool:
        """Whether nothing was changed at the target."""
        return not (self.upserted or self.deleted or self.created or self.dropped)


class Verified(msgspec.Struct):
    """The last verification. ``as_of``: the state of the source that was compared. ``stale``: the target was written to
    since. ``differences``: one line each."""

    at: str
    as_of: str
    records: int
    equal: bool
    stale: bool = False
    differences: list[str] = []


class Switch(msgspec.Struct):
    """A switch that is under way or done. ``step``: ``stopping`` (from here on writes may be stopped), ``writing`` (the
    env file is as it was or as it is to be), ``written``, ``done``. ``old_line``: what stood in the env file before,
    None if nothing did; ``had_file``: whether there was such a file. ``door``: of the source, at which writes are
    stopped."""

    at: str
    step: str
    env_file: str | None
    variable: str
    value: str
    stop_writes: str | None
    resume_writes: str | None
    hook: str | None
    old_line: str | None = None
    had_file: bool = True
    door: str | None = None


class RolledBack(msgspec.Struct):
    """A rollback. ``differing``: records that the target has and the source not, or another one of the same id, when
    it was looked at; None as long as nobody could."""

    at: str
    differing: int | None = None
    told: list[str] = []


class Entry(msgspec.Struct):
    """One line of the history."""

    at: str
    phase: str
    seconds: float
    what: str


class State(msgspec.Struct):
    """All of it, as it is in the file. ``seen``: the state of the source that the target was last brought up to;
    ``position``: of a directory how far its queue was read then, None where records are to be compared."""

    version: int
    source: str = msgspec.field(name="from")
    target: str = msgspec.field(name="to")
    phase: str
    since: str
    next_steps: list[str]
    records: int
    rounds: int
    last_round: LastRound | None
    verified: Verified | None
    switch: Switch | None
    rolled_back: RolledBack | None
    collections: dict[Key, Tracked]
    options: Options
    seen: str
    work: str
    history: list[Entry]
    position: Position | None = None


_DECODER = msgspec.json.Decoder(State)


def now() -> str:
    """The time, as it is written down."""
    return f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%S.%f}"[:-3] + "Z"


def age(moment: str) -> float:
    """Seconds since then."""
    return (datetime.now(timezone.utc) - datetime.fromisoformat(moment.replace("Z", "+00:00"))).total_seconds()


class StateFile:
    """One state file. ``state`` is None until there is a transfer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state: State | None = None

    def read(self) -> State | None:
        """What is in the file now. Raises ``UsageError`` for one that is none of ours."""
        try:
            self.state = _DECODER.decode(self.path.read_bytes())
        except FileNotFoundError:
            self.state = None
        except (msgspec.MsgspecError, OSError) as error:
            raise UsageError(f"{self.path} is no state of a transfer ({error})", hint="name another --state") from None
        if self.state is not None and self.state.version != VERSION:
            raise UsageError(f"{self.path} was written by a newer chromakeep", hint="go on with that one")
        return self.state

    def need(self) -> State:
        """The state; raises ``UsageError`` if there is no transfer."""
        if self.state is None:
            raise UsageError(
                f"{self.path}: there is no transfer",
                hint="begin one with `chromakeep transfer start A B`, or name its --state",
            )
        return self.state

    def save(self) -> None:
        """Write it down, durably, with the next steps that follow from it."""
        state = self.need()
        state.next_steps = next_steps(state, self.path)
        write_whole(self.path, msgspec.json.format(msgspec.json.encode(state), indent=2) + b"\n")

    def enter(self, phase: str) -> None:
        """Be in another phase from now on, and write it down."""
        state = self.need()
        state.phase, state.since = phase, now()
        self.save()

    def note(self, phase: str, began: float, what: str) -> None:
        """Add a line to the history; ``began``: by ``time.monotonic``. Does not save."""
        history = self.need().history
        history.append(Entry(now(), phase, round(time.monotonic() - began, 3), what))
        del history[:-KEPT]

    def remove(self) -> None:
        """The transfer is over."""
        self.path.unlink(missing_ok=True)
        self.path.with_name(f".{self.path.name}.new").unlink(missing_ok=True)
        self.state = None

    @contextmanager
    def held(self, patience: float = PATIENCE, *, create: bool = False) -> Iterator[None]:
        """Read the state, with the other processes that want to change it kept waiting. ``create``: make the directory
        of the file, if need be. Raises ``RepositoryBusy`` if another one does not finish within ``patience``
        seconds."""
        if create:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(self.path.with_name(f".{self.path.name}.lock"), self.path, patience):
            self.read()
            yield


@contextmanager
def _alone(lock: Path, path: Path, patience: float) -> Iterator[None]:
    """A lock that the system lets go when the process ends, however it ends. The file goes with its last holder's
    transfer, so whoever got hold of one that is gone tries again."""
    try:
        import fcntl
    except ImportError:  # no Unix: one process at a time is up to the user
        yield
        return
    if not lock.parent.is_dir():
        yield  # there is nothing to be alone with
        return
    deadline = time.monotonic() + patience
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_nlink:
                break
        except OSError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise RepositoryBusy(
                    f"{path}: another process works on this transfer", hint="wait for it, or stop it"
                ) from None
            time.sleep(_POLL)
        os.close(descriptor)
    try:
        yield
    finally:
        if not path.exists():
            with suppress(OSError):
                lock.unlink()
        os.close(descriptor)


def next_steps(state: State, path: Path) -> list[str]:
    """What to run next, as command lines."""
    where = [] if str(path) == FILE else ["--state", str(path)]

    def line(*words: str) -> str:
        return shlex.join(["chromakeep", "transfer", *words, *where])

    switching = line("switch", *_switch_options(state.switch))
    if state.phase == "starting":
        return [line("start", state.source, state.target, *_start_options(state.options))]
    if state.phase == "copied":
        verified = state.verified
        if verified is None or verified.stale or not verified.equal:
            return [line("follow", "--until-quiet"), line("verify")]
        return [switching, line("follow", "--until-quiet")]
    if state.phase == "switching":
        return [switching, line("rollback")]
    if state.phase == "switched":
        done = state.switch is None or state.switch.step == "done"
        return [line("cleanup"), line("rollback")] if done else [switching, line("rollback")]
    return [line("rollback")] if state.phase == "rolling-back" else [line("cleanup")]


def _start_options(options: Options) -> list[str]:
    words = ["--collections", ",".join(options.collections)] if options.collections is not None else []
    for old, new in options.rename.items():
        words += ["--rename", f"{old}={new}"]
    for name, value in (("--tenant", options.tenant), ("--database", options.database), ("--rate", options.rate)):
        words += [name, f"{value:g}" if isinstance(value, float) else value] if value is not None else []
    return words + (["--on-conflict", options.on_conflict] if options.on_conflict != "fail" else [])


def _switch_options(switch: Switch | None) -> list[str]:
    if switch is None:
        return ["--stop-writes", "COMMAND", "--resume-writes", "COMMAND", "--env-file", "FILE"]
    named: list[tuple[str, Any]] = [
        ("--door", switch.door),
        ("--stop-writes", switch.stop_writes),
        ("--resume-writes", switch.resume_writes),
        ("--env-file", switch.env_file),
        ("--variable", switch.variable if switch.env_file else None),
        ("--hook", switch.hook),
    ]
    return [word for name, value in named if value is not None for word in (name, str(value))]
