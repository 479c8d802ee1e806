"""Changeover: another directory takes the place of the one that is served, between two lives of its server.

The run asks at three points of a life: whether one is ``due``, what to do ``between`` two lives, and whether the new
server may serve (``prove``). What goes wrong before the exchange leaves all as it was; a server that does not come up
on the new directory gets the old one back.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import msgspec

from chromakeep.chroma.client import Ref
from chromakeep.chroma.server import ChromaServer
from chromakeep.errors import ChromakeepError, NotNow, RefusedToServe, ServerFailed
from chromakeep.events import Noted, Observer, ignore
from chromakeep.operations.beside import Beside, Received
from chromakeep.operations.keep import Keeping
from chromakeep.records import Collection

PATIENCE = 120.0  # seconds for the first count of a collection, which replays its queue


class Change(msgspec.Struct):
    """One exchange: ``new`` becomes the data directory, what is there is ``kept``.

    ``collections`` are counted in the new one, where they are known. ``done`` is set when the new one is served, and
    fails when the old one is served again.
    """

    new: Path
    kept: Path
    received: Received
    collections: Sequence[Collection] | None
    done: Future[None] = msgspec.field(default_factory=Future)
    made: bool = False
    failure: ChromakeepError | None = None
    before: Received | None = None
    seconds: float = 0.0  # from the asking to the serving: for nearly all of it there was no server


class Changeover:
    """Asked by the run's thread, told by any."""

    def __init__(self, beside: Beside, keeping: Keeping | None, observer: Observer = ignore) -> None:
        self._beside, self._keeping, self._observer = beside, keeping, observer
        self._change: Change | None = None
        self._proved = False
        self._refused = False  # the server runs, but not on what it should
        self._begun = 0.0

    def ask(self, change: Change) -> None:
        """Have a change made as soon as the run comes to it. One at a time."""
        assert self._change is None
        self._change, self._begun = change, time.monotonic()

    # -- asked by the run --------------------------------------------------------------------------------------------

    @property
    def due(self) -> bool:
        """Whether the server must end for a change."""
        return self._change is not None and not (self._change.made or self._change.failure)

    @property
    def made(self) -> bool:
        """Whether another directory has just taken the place."""
        return self._change is not None and self._change.made

    def between(self, server: ChromaServer, reason: str) -> bool:
        """After a life that ended for a ``reason``: make the change that is due, or take back one whose server did not
        come up.

        Whether the next life may begin at once; else the server has ended for a reason of its own. Raises
        ``RefusedToServe`` where an exchange could be neither made nor left, ``LeaseLost``.
        """
        change = self._change
        if change is None:
            return False
        if change.failure:
            self._end(change.failure)
            return False
        if change.made:
            self._take_back(change, server, reason)
            return True
        if server.returncode != 0:  # what it has left behind must be looked at first
            change.failure = ServerFailed(f"chroma did not stop as it should ({server.ending}); nothing was changed")
            return False
        try:
            self._make(change)
        except (ChromakeepError, OSError) as error:
            change.failure = error if isinstance(error, ChromakeepError) else ChromakeepError(str(error))
            if self._beside.state.swap or (self._keeping and self._keeping.lost):
                self._end(change.failure)
            if self._beside.state.swap:
                raise RefusedToServe(
                    f"{self._beside.data}: the exchange with {change.new} stopped half-way: {error}",
                    hint="start it again: it is completed then",
                ) from None
            if self._keeping and self._keeping.lost:
                raise
        return True

    def prove(self, server: ChromaServer) -> None:
        """After its start: whether the server has what was put in place. ``ServerFailed`` if not."""
        change = self._change
        if change is None or not change.made:
            return
        try:
            for collection in change.collections or ():
                ref = Ref(collection.id, collection.name, collection.tenant, collection.database)
                count = server.client.count(ref, timeout=PATIENCE)
                if count != collection.count:
                    raise ServerFailed(
                        f"chroma counts {count:,} records in {collection.name!r}, there are {collection.count:,}"
                    )
        except ServerFailed:
            self._refused = True
            raise
        self._proved = True

    def over(self) -> None:
        """The server serves: tell whoever waits for it."""
        change = self._change
        if change and change.failure:
            self._end(change.failure)
        elif change and self._proved:
            change.seconds = time.monotonic() - self._begun
            self._end(None)

    def abandon(self) -> None:
        """The run ends: what was not begun is not begun any more."""
        if self._change and not self._change.made:
            self._end(self._change.failure or NotNow("the receiver was told to stop; nothing was changed"))

    def _end(self, failure: ChromakeepError | None) -> None:
        change, self._change, self._proved = self._change, None, False
        assert change
        if failure:
            change.done.set_exception(failure)
        else:
            change.done.set_result(None)

    # -- the change --------------------------------------------------------------------------------------------------

    def _make(self, change: Change) -> None:
        change.before = self._beside.state.received
        keeping = self._keeping
        if keeping is None:
            self._beside.replace(change.new, change.kept, received=change.received)
        else:
            keeping.release()
            keeping.settle()
            with keeping.access:
                keeping.begin_anew()
                self._beside.replace(change.new, change.kept, received=change.received)
        change.made = True
        self._observer(Noted(f"{change.new} was put in place of {self._beside.data}; what was there is {change.kept}"))

    def _take_back(self, change: Change, server: ChromaServer, reason: str) -> None:
        if self._refused:
            server.kill()
        self._refused = False
        if self._keeping is None:
            self._beside.replace(change.kept, change.new, received=change.before)
        else:
            with self._keeping.access:
                self._keeping.begin_anew()
                self._beside.replace(change.kept, change.new, received=change.before)
        self._observer(Noted(f"{reason}: what was there before was put in place again", "warning"))
        change.made = False
        change.failure = ServerFailed(
            f"the receiver cannot serve this directory, and serves again what it had: {reason}",
            hint="is the Chroma over there older than the one that wrote it?",
        )
