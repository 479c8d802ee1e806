"""Standby: what another instance serves, restored here and kept up by its log; reads are answered meanwhile.

Nothing here is the only copy of anything. So whatever goes wrong, the directory is thrown away and restored anew, and
a standby that cannot be exact when its turn comes leaves it to a restore: it never goes on from a doubt. Its queue is
held as a writer's is (``chroma.purge``), and nobody purges it: when the database has grown too large by that and there
is a newer snapshot, it begins again from there.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from chromakeep.chroma.follow import Follower
from chromakeep.chroma.server import ChromaServer
from chromakeep.errors import ChromakeepError, ServerFailed, StoreError
from chromakeep.events import Noted, Observer, ignore
from chromakeep.operations.beside import DATABASE, Beside, Process
from chromakeep.operations.boot import DATA, look, newest_state
from chromakeep.operations.restore import restore
from chromakeep.operations.tenure import Tenure
from chromakeep.repository.log import Log
from chromakeep.repository.pursuit import FellBehind, Pursuit, settled
from chromakeep.repository.repository import Repository
from chromakeep.repository.route import Leg, Route

POLL = 0.2  # seconds between two looks for more of the log
TOGETHER = 0.3  # seconds for which what is read is brought before it is shown: a writer may be quicker than a replay
AWAY = 2.0  # seconds between two tries of a repository that cannot be reached
FIRST_RETRY, LAST_RETRY = 2.0, 60.0  # seconds before it begins again after a failure, doubled each time
FINAL_LOOKS = 10  # at the end of an epoch that is over: there is nothing more to come
ROOM, CHECK = 256 << 20, 60.0  # bytes that the database may grow by, beyond its double; seconds between two looks
KILLED = 5.0  # seconds for the thread to see that its server is gone


class Standby:
    """One thread that restores, serves and follows until it is its turn or ``close``.

    ``start_server`` makes a server on the directory, not started; ``hold`` holds its queue.
    """

    def __init__(
        self,
        repository: Repository,
        beside: Beside,
        *,
        make_server: Callable[[], ChromaServer],
        hold: Callable[[], object],
        observer: Observer = ignore,
    ) -> None:
        self.ready = False  # it has all that was in the log at some moment after its start: reads may pass
        self.known: dict[str, int] = {}  # by topic, the last row that is in the log; set by ``take_over``
        self._repository, self._beside, self._observer = repository, beside, observer
        self._make_server, self._hold = make_server, hold
        self._log = Log(repository.brisk)
        self._server: ChromaServer | None = None
        self._lease: Tenure | None = None
        self._done = False
        self._at: tuple[int, int] | None = None
        self._moment: str | None = None
        self._fresh: float | None = None  # monotonic: reads show all that was in the log then
        self._mark: tuple[float, tuple[int, int]] | None = None  # a moment after that, and the log's end at it
        self._closing, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._live, name="standby", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    @property
    def behind(self) -> float | None:
        """Reads show at least all that was in the log so many seconds ago; None before they are answered."""
        fresh = self._fresh
        return time.monotonic() - fresh if self.ready and fresh is not None else None

    def status(self) -> dict[str, object]:
        """For a page. ``behind_seconds`` by this machine's clock, ``moment`` of the newest state by the other's."""
        at, behind = self._at, self.behind
        followed = {"epoch": at[0], "segment": at[1]} if at else {}
        told = {"moment": self._moment, "behind_seconds": None if behind is None else round(behind, 3)}
        return {"following": {**followed, **told}}

    def take_over(self, lease: Tenure) -> ChromaServer | None:
        """Apply what is left of the log that ``lease`` builds on; the server, whose directory may be written to then.

        None, and the directory is good for nothing, where it is not exactly at the end of that log.
        """
        self._lease = lease
        self._wake.set()
        self._thread.join()
        return self._server if self._done else None

    def close(self) -> None:
        """End it and its server, at once. The directory stays a standby's."""
        self._closing.set()
        self._wake.set()
        if server := self._server:
            server.kill()
        if self._thread.ident is not None:
            self._thread.join(KILLED)

    # -- the thread ------------------------------------------------------------------------------------------------

    def _live(self) -> None:
        wait = FIRST_RETRY
        while not self._closing.is_set():
            begun = time.monotonic()
            try:
                way = self._way()
                found = settled(self._log, way) if way and self._may_replace(way) else None
                if found:
                    self._follow(*found)
                if self._done or self._lease:
                    return
                if not found:
                    self._rest(POLL)
                continue
            except _NotHere:
                return
            except ChromakeepError as error:
                failure = error
            except Exception as error:  # a fault of ours: then it is as if there were no standby
                failure = ChromakeepError(f"{type(error).__name__}: {error}")
            finally:
                if not self._done:
                    self._drop()
            if self._lease or self._closing.is_set():
                if self._lease:
                    self._observer(Noted(f"the standby is not exact, its data is restored: {failure}", "warning"))
                return
            wait = FIRST_RETRY if time.monotonic() - begun > LAST_RETRY else min(wait * 2, LAST_RETRY)
            self._observer(Noted(f"the standby fell out, and begins again in {wait:.0f} s: {failure}", "warning"))
            self._rest(wait)

    def _rest(self, seconds: float) -> None:
        """Until then, or until there is something to do at once."""
        self._wake.wait(seconds)
        if not self._lease:
            self._wake.clear()

    def _way(self) -> Route | None:
        """How the newest state is reached; None while no log leads to one."""
        way = newest_state(self._repository, str(self._beside.data))
        return way if way and way.legs else None

    def _may_replace(self, way: Route) -> bool:
        """Whether what is in the directory counts for nothing now; ``_NotHere`` where it never will."""
        state = self._beside.state
        if state.following or look(self._beside.data, served_before=state.keeper is not None) != DATA:
            return True
        if not state.epoch:
            said = f"{self._beside.data} holds data of its own: no reads are answered while another instance writes"
            self._observer(Noted(said))
            raise _NotHere
        return state.epoch < way.legs[-1].epoch

    def _follow(self, way: Route, leg: Leg, at: int) -> None:
        self._restore(way)
        self._hold()
        self._server = server = self._make_server()
        server.start(stop=self._closing)
        self._beside.remember(server=Process.of(server.pid))
        size = (self._beside.data / DATABASE).stat().st_size
        follower = Follower(self._beside.data, server.client)
        try:
            self._pursue(Pursuit(self._log, leg, at), follower, server, way.snapshot.id, size)
        finally:
            follower.close()

    def _restore(self, way: Route) -> None:
        """Put the directory in place. What an instance has served from it, and another overtaken, is kept aside."""
        beside = self._beside
        discard = beside.state.following
        if not discard and not beside.state.epoch:
            beside.remember(following=True)  # from before it is there: found alone, it would be served
        done = restore(self._repository, way, beside.data, replace=True, discard_old=discard, observer=self._observer)
        beside.remember(following=True, verified=None, keeper=Process.of(os.getpid()), server=None)
        self._moment = done.moment

    def _pursue(self, log: Pursuit, follower: Follower, server: ChromaServer, base: str, size: int) -> None:
        """Follow until told to take over, and then to the very end; or until there is a reason to begin again."""
        looks, checked = 0, time.monotonic()
        since: float | None = None  # monotonic, of the first that was brought and is not shown
        while not self._closing.is_set():
            lease, asked = self._lease, time.monotonic()
            if server.exited.is_set():
                raise ServerFailed(f"chroma ended by itself ({server.ending}): {server.last_words()}")
            try:
                stretch = log.next(thorough=lease is not None)
            except StoreError as error:
                if lease is None:
                    self._observer(Noted(f"the log cannot be read: {error.message}; trying again", "warning"))
                follower.show()
                self._closing.wait(AWAY)
                continue
            if stretch:
                follower.bring(stretch.last, stretch.before)
                self._moment = stretch.last.time
                since = asked if since is None else since
                if asked - since < TOGETHER:
                    continue
            follower.show()
            since, self._at = None, log.at
            self._see(asked, more=stretch is not None)
            if stretch:
                continue
            if lease:
                if log.at == lease.after and log.whole:
                    follower.finish()
                    self.known, self._done = follower.known, True
                    return
                looks += 1
                if looks > FINAL_LOOKS:
                    raise FellBehind(*(lease.after or (0, 0)))
            elif asked - checked > CHECK:
                checked = asked
                if self._outgrown(base, size):
                    self._observer(Noted("the standby's queue has grown large: it begins again at a newer snapshot"))
                    return
            self._rest(POLL)

    def _see(self, asked: float, *, more: bool) -> None:
        """Find out how fresh reads are: nothing more was found, or what was the log's end at some moment is passed."""
        if not more:
            self._fresh, self._mark = asked, None
        elif self._mark is None:  # it is written to faster than it is read: only a listing tells
            if self._at and (self._fresh is None or asked - self._fresh > POLL):
                with suppress(StoreError):
                    self._mark = asked, (self._at[0], self._log.end(self._at[0])[0])
        elif self._at and self._at >= self._mark[1]:
            self._fresh, self._mark = self._mark[0], None
        if not self.ready and self._fresh is not None:
            self.ready = True
            self._observer(Noted("standing by: reads are answered, writes are another instance's"))

    def _outgrown(self, base: str, size: int) -> bool:
        try:
            large = (self._beside.data / DATABASE).stat().st_size > 2 * size + ROOM
            way = self._way() if large else None
        except (StoreError, OSError):
            return False
        return way is not None and way.snapshot.id != base

    def _drop(self) -> None:
        self.ready, self._fresh, self._mark = False, None, None
        server, self._server = self._server, None
        if server and not server.exited.is_set():
            server.kill()


class _NotHere(Exception):
    """The directory must not be replaced."""
