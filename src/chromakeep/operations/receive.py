"""Receive: a directory that comes from another machine takes the place of the one that is served.

It is received beside what is served, verified, and put in place between two lives of the server; what was served is
in the repository before, if there is one, and is kept on the disk. Whatever fails, and whenever the process dies, what
is served afterwards is the whole old directory or the whole new one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from msgspec.structs import replace

from chromakeep.chroma.aside import ALL, aside
from chromakeep.errors import (
    ChromakeepError,
    Flat,
    NotNow,
    RepositoryBusy,
    SnapshotNotFound,
    UsageError,
    VerificationFailed,
    flat,
)
from chromakeep.events import Noted, Observer, ignore
from chromakeep.operations.beside import Beside, Received
from chromakeep.operations.changeover import Change, Changeover
from chromakeep.operations.duty import STANDBY, WAITING, Duty
from chromakeep.operations.incoming import Incoming
from chromakeep.operations.keep import Keeping
from chromakeep.operations.manifest import Manifest
from chromakeep.operations.place import kept_as
from chromakeep.operations.restore import compare
from chromakeep.records import Collection

RECEIVING, VERIFYING, KEEPING, EXCHANGING, RECORDING = "receiving", "verifying", "keeping", "exchanging", "recording"
DONE, FAILED, IDLE = "done", "failed", "idle"
QUIET = 600.0  # seconds without a chunk after which another sender may take the place of one that is gone
AGE = 7 * 86400.0  # seconds after which what a sender has left half-way counts no more at the next start


class Standing(msgspec.Struct, frozen=True):
    """How a transfer, or the receiver as a whole, stands.

    ``state``: ``idle``, ``receiving``, ``verifying``, ``keeping`` (what is served goes into the repository),
    ``exchanging``, ``recording`` (what was received goes there), ``done`` or ``failed`` (``failure`` says why).
    ``transfer`` is the id, empty of a rollback; ``kept`` where what was served before is, and can be swapped back from;
    ``snapshot_before`` and ``snapshot`` are ids, None where there is no repository or it did not take one.
    """

    state: str
    transfer: str | None = None
    sender: str | None = None
    chunks: int = 0
    chunks_here: int = 0
    kept: str | None = None
    undone: str | None = None
    snapshot_before: str | None = None
    snapshot: str | None = None
    down_seconds: float = 0.0  # for which there was no server
    failure: Flat | None = None
    missing: tuple[int, ...] = ()  # told when a transfer is offered


class _Contents(msgspec.Struct, frozen=True):
    collections: Annotated[tuple[Collection, ...], msgspec.Meta(max_length=1_000_000)]


class _Which(msgspec.Struct, frozen=True):
    kept: str


_CONTENTS, _WHICH = msgspec.json.Decoder(_Contents), msgspec.json.Decoder(_Which)


class Receiver:
    """One for a run. Its methods are called from several threads, may block, and raise ``ChromakeepError``.

    ``NotNow`` or ``LeaseLost`` while this instance does not serve, ``RepositoryBusy`` while another transfer is under
    way.
    """

    def __init__(
        self,
        beside: Beside,
        duty: Duty,
        keeping: Keeping | None,
        changeover: Changeover,
        observer: Observer = ignore,
    ) -> None:
        self._beside, self._duty, self._keeping, self._changeover = beside, duty, keeping, changeover
        self._observer = observer
        self._root = beside.root / "receiving"
        self._lock = threading.RLock()
        self._incoming: Incoming | None = None
        self._standing = Standing(IDLE)
        self._touched = time.monotonic()
        self._working = False
        self._left = False  # whether it was looked for what an earlier process has left

    # -- asked by the sender -----------------------------------------------------------------------------------------

    def status(self, transfer: str | None = None) -> Standing:
        """How it stands. Raises ``SnapshotNotFound`` for a transfer that is not known."""
        if self._duty.role in (WAITING, STANDBY):
            self._must_serve()
        with self._lock:
            incoming = self._look()
            now, received = self._standing, self._beside.state.received
            if transfer is not None and transfer != now.transfer:
                if incoming and incoming.manifest.id == transfer:
                    return self._receiving(incoming)
                if received and received.transfer == transfer:
                    return Standing(DONE, transfer, kept=received.kept)
                raise SnapshotNotFound("no such transfer is known here", hint="send it again")
            if incoming and now.state in (IDLE, RECEIVING):
                now = self._receiving(incoming)
            if transfer is None and not self._working and received:
                now = replace(now, kept=received.kept, undone=received.undone or None)
            return now

    def offer(self, body: bytes, take_over: bool = False) -> Standing:
        """Begin a transfer, or go on with it: which chunks are missing.

        A sender whose directory has changed since it was cut off goes on, too, with the chunks that are the same; with
        ``take_over`` also with those of another sender, whose transfer ends. Raises ``DiskFull``, ``UsageError``.
        """
        self._must_serve()
        if self._beside.data.is_symlink():  # what is beside the link may lie on another disk
            raise UsageError(f"{self._beside.data} is a link", hint="run chromakeep there with what it points to")
        manifest = Manifest.decode(body)
        with self._lock:
            earlier = self._look()
            if self._working:
                if self._standing.transfer == manifest.id:
                    return self._standing
                raise RepositoryBusy(f"a transfer is being put in place here ({self._standing.state})")
            if earlier is None or earlier.manifest.id != manifest.id:
                if not take_over:
                    self._refuse_another(manifest, earlier)
                Incoming.check_room(self._root, manifest, earlier)
                self._incoming = None  # should this fail half-way
                self._incoming = Incoming.begin(self._root, manifest, earlier)
                megabytes = f"{manifest.total / 1e6:,.1f} MB in {len(manifest.files)} files"
                self._observer(Noted(f"receiving {megabytes} from {manifest.sender}"))
                if (received := self._beside.state.received) and received.transfer == manifest.id:
                    received = replace(received, transfer="")  # it is not done any more
                    self._beside.remember(received=received)
            incoming = self._incoming or earlier
            assert incoming
            self._touched = time.monotonic()
            self._standing = self._receiving(incoming)
            return replace(self._standing, missing=tuple(incoming.missing))

    def put(self, transfer: str, number: int, packed: bytes, part: tuple[int, int] | None = None) -> int:
        """Take a chunk, or (``part``: from where, of how many) bytes of it; how many of its bytes are here now."""
        self._must_serve()
        incoming = self._current(transfer)
        self._touched = time.monotonic()
        if part:
            return incoming.put_part(number, *part, packed)
        incoming.put(number, packed)
        return len(packed)

    def finish(self, transfer: str, body: bytes) -> Standing:
        """All was sent: put it in place, if it holds just the collections that ``body`` tells. Goes on by itself."""
        self._must_serve()
        collections = _decoded(_CONTENTS, body).collections
        with self._lock:
            if self._working and self._standing.transfer == transfer:
                return self._standing
            received = self._beside.state.received
            if (
                received
                and received.transfer == transfer
                and (self._incoming is None or self._incoming.manifest.id != transfer)
            ):
                return self.status(transfer)
            if self._working:
                raise NotNow("something else is being put in place here")
            incoming = self._current(transfer)
            if missing := incoming.missing:
                raise VerificationFailed(f"{len(missing)} chunks are missing")
            standing = replace(self._receiving(incoming), state=VERIFYING)
            return self._begin(standing, lambda: self._put_in_place(incoming, collections))

    def rollback(self, body: bytes) -> Standing:
        """Swap back what the last transfer replaced, which ``body`` names (``Standing.kept``): asked for a second time,
        it is not swapped forth again. Goes on by itself. Raises ``SnapshotNotFound``."""
        self._must_serve()
        wanted = _decoded(_WHICH, body).kept
        with self._lock:
            if self._working:
                if not self._standing.transfer and self._standing.undone == wanted:
                    return self._standing
                raise RepositoryBusy(f"a transfer is being put in place here ({self._standing.state})")
            received = self._beside.state.received
            if received and wanted and received.undone == wanted:
                return Standing(DONE, "", kept=received.kept, undone=wanted)
            if not received or not received.kept or not Path(received.kept).is_dir():
                raise SnapshotNotFound("nothing is kept here of what was served before", hint="restore a snapshot")
            if received.kept != wanted:
                raise RepositoryBusy("another directory was received meanwhile", hint="ask again what is kept")
            return self._begin(Standing(EXCHANGING, "", undone=wanted), lambda: self._swap_back(Path(wanted)))

    # -- inside ------------------------------------------------------------------------------------------------------

    def _must_serve(self) -> None:
        if not self._working and (why := self._duty.refusal()):
            raise why

    def _look(self) -> Incoming | None:
        """The transfer under way, also of an earlier process."""
        if not self._left:
            self._left = True
            self._incoming = Incoming.newest(self._root, age=AGE)
            self._touched = time.monotonic() - (self._incoming.quiet if self._incoming else 0.0)
        return self._incoming

    def _current(self, transfer: str) -> Incoming:
        with self._lock:
            incoming = self._look()
            if incoming is None or incoming.manifest.id != transfer:
                raise SnapshotNotFound("this transfer is not under way here", hint="send it again")
            return incoming

    def _refuse_another(self, manifest: Manifest, earlier: Incoming | None) -> None:
        quiet = time.monotonic() - self._touched
        if earlier is None or earlier.manifest.sender == manifest.sender or quiet > QUIET:
            return
        here, chunks = len(earlier.had), len(earlier.manifest.chunks)
        raise RepositoryBusy(
            f"a transfer from {earlier.manifest.sender} is under way here: {here} of {chunks} chunks,"
            f" the last one {quiet:.0f} s ago",
            hint="wait for it, or end it and go on with what came of it: chromakeep send --take-over; one that is given"
            f" up makes way {QUIET / 60:.0f} minutes after its last chunk",
        )

    def _receiving(self, incoming: Incoming) -> Standing:
        manifest = incoming.manifest
        return Standing(RECEIVING, manifest.id, manifest.sender, len(manifest.chunks), len(incoming.had))

    def _begin(self, standing: Standing, work: Callable[[], None]) -> Standing:
        """Work in a thread of its own, and keep how it ends."""

        def guarded() -> None:
            last: dict[str, object] = {"state": DONE}
            try:
                work()
            except Exception as error:  # of a thread: who asks how it stands would wait for ever
                known = (
                    error if isinstance(error, ChromakeepError) else ChromakeepError(f"{type(error).__name__}: {error}")
                )
                self._observer(Noted(f"what was received is not put in place: {known}", "warning"))
                last = {"state": FAILED, "failure": flat(known)}
            with self._lock:
                self._touched, self._working = time.monotonic(), False
                self._tell(**last)

        self._standing, self._working = standing, True
        threading.Thread(target=guarded, name="receive", daemon=True).start()
        return standing

    def _tell(self, **changes: object) -> None:
        self._standing = replace(self._standing, **changes)

    def _put_in_place(self, incoming: Incoming, collections: tuple[Collection, ...]) -> None:
        with aside(incoming.files) as inspecting:
            inspecting.go(ALL)
            incoming.verify()
            compare(inspecting.result(), collections, what="what was received", by="the sender")
        incoming.complete()
        self._exchange(incoming.files, incoming.manifest.id, collections)
        with self._lock:
            self._incoming = None
        incoming.drop()
        self._record()

    def _swap_back(self, kept: Path) -> None:
        self._exchange(kept, "", None)
        self._record()

    def _exchange(self, new: Path, transfer: str, collections: tuple[Collection, ...] | None) -> None:
        """What is served goes into the repository, and ``new`` takes its place."""
        if keeping := self._keeping:
            self._tell(state=KEEPING)
            keeping.settle(snapshot=bool(transfer))  # once more without a server: then there is little left
            self._tell(snapshot_before=keeping.newest)
        self._tell(state=EXCHANGING)
        kept = kept_as(self._beside.data)
        change = Change(new, kept, Received(transfer, str(kept), "" if transfer else str(new)), collections)
        self._changeover.ask(change)
        change.done.result()
        self._tell(kept=str(kept), down_seconds=round(change.seconds, 3))

    def _record(self) -> None:
        """What is served now goes into the repository; if it cannot yet, that is tried again without us."""
        self._tell(state=RECORDING)
        if keeping := self._keeping:
            with suppress(ChromakeepError):
                keeping.snapshot().result()
                self._tell(snapshot=keeping.newest)


T = TypeVar("T")


def _decoded(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise UsageError(f"not understood: {error}") from None
