"""Succession: how an instance comes to write: at once, when it is its turn, or late, when a repository answers at last.

While another instance writes, a standby follows it (``standby``), where a door keeps writes from it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from chromakeep.chroma.server import ChromaServer
from chromakeep.errors import ChromakeepError, LeaseLost, RepositoryNotFound, StoreUnavailable
from chromakeep.events import Noted, Observer
from chromakeep.operations.beside import Beside
from chromakeep.operations.boot import DATA, look
from chromakeep.operations.duty import STARTING, WAITING, Duty
from chromakeep.operations.elsewhere import door_of
from chromakeep.operations.keep import Keeping
from chromakeep.operations.reign import Reigning
from chromakeep.operations.tenure import Tenure
from chromakeep.repository.repository import Repository

if TYPE_CHECKING:
    from chromakeep.operations.standby import Standby

PATIENCE = 5.0  # seconds that a store may take to answer before a directory with data is served without it
START_AGAIN = "start it again: it then waits its turn, with the other's data; what is here is kept aside"


class Succession:
    """Of one run. ``make_server`` makes the server of a standby; None: this instance only waits. ``address``: of its
    door, for the lease, where it and others forward writes to each other.

    ``server`` is that of a standby whose turn it was: it goes on, and ``known`` says how far the log has its rows.
    """

    def __init__(
        self,
        beside: Beside,
        keeping: Keeping,
        duty: Duty,
        open_repository: Callable[[], Repository],
        *,
        make_server: Callable[[], ChromaServer] | None,
        address: str | None = None,
        observer: Observer,
        stop: threading.Event,
    ) -> None:
        self.server: ChromaServer | None = None
        self.known: dict[str, int] = {}
        self._beside, self._keeping, self._duty, self._open = beside, keeping, duty, open_repository
        self._make_server, self._observer, self._stop = make_server, observer, stop
        self._address = address
        self._waiting: Reigning | None = None
        self._late = False
        self._standby: Standby | None = None

    def reign(self) -> Tenure | None:
        """Wait until no other instance writes to the repository; None where there is none yet, or it does not answer.

        With the lease ``server`` is there or not; where it is not, a standby's directory has to be restored anew.
        """
        try:
            repository = self._open()
        except RepositoryNotFound:
            self._keeping.awaited = True
            return None
        except StoreUnavailable:
            if not self._beside.state.following and look(self._beside.data, served_before=False) == DATA:
                self._wait_for(self._open)
                self._start_without()
            return None  # else the boot tells
        except ChromakeepError:
            return None  # the boot tells
        waiting = self._wait_for(lambda: repository)
        deadline = time.monotonic() + PATIENCE
        while not waiting.done.wait(0.02) and not self._stop.is_set():
            self._duty.role = WAITING if waiting.other else STARTING
            self._duty.elsewhere = door_of(waiting.other) if self._address else None
            if waiting.other and self._make_server and self._standby is None:
                self._stand_by(repository, self._make_server)
            if time.monotonic() > deadline and not waiting.other and self._may_start_without(repository):
                self._start_without()
                return None
        self._duty.elsewhere = None
        self._keeping.lease = lease = waiting.lease
        if self._stop.is_set():
            return lease
        if self._standby and lease:
            self._observer(Noted("the other instance has stopped: taking over"))
            if server := self._standby.take_over(lease):
                self.server, self.known = server, self._standby.known
        if self._standby and not self.server:
            self._duty.role = STARTING
            self._standby.close()
        return lease

    def _wait_for(self, open_repository: Callable[[], Repository]) -> Reigning:
        self._waiting = Reigning(open_repository, stop=self._stop, address=self._address, observer=self._observer)
        return self._waiting

    def _start_without(self) -> None:
        said = "the repository does not answer: serving what is here; the log begins when it does"
        self._observer(Noted(said, "warning"))
        self._late = self._keeping.undecided = True

    def _stand_by(self, repository: Repository, make_server: Callable[[], ChromaServer]) -> None:
        from chromakeep.operations.standby import Standby  # only few runs ever wait

        self._standby = self._duty.standby = Standby(
            repository, self._beside, make_server=make_server, hold=self._keeping.hold, observer=self._observer
        )
        self._standby.start()

    def _may_start_without(self, repository: Repository) -> bool:
        """Whether no snapshot is needed, so that nothing of another instance's can be served."""
        if self._beside.state.following:
            return False
        return look(self._beside.data, served_before=False) == DATA or not repository.snapshot_names()

    def look_again(self) -> None:
        """Begin the log if a repository has answered that did not, unless another instance writes to it, or has since.

        Then ``LeaseLost``. What this one itself has left behind when it died does not beat.
        """
        waiting = self._waiting
        if not self._late or waiting is None:
            return
        if waiting.beating:
            raise LeaseLost("another instance writes to this repository", hint=START_AGAIN)
        if not waiting.done.is_set():
            return
        self._late = self._keeping.undecided = False
        if waiting.lease is None:
            return
        after = waiting.lease.after
        if after is not None and after[0] > self._beside.state.epoch:
            raise LeaseLost("another instance has written to this repository", hint=START_AGAIN)
        self._keeping.lease = waiting.lease
        self._keeping.soon()

    def end(self) -> None:
        """Show no sign of life any more: whatever happened, this run is over."""
        if self._waiting:
            self._waiting.close()

    def close(self) -> bool:
        """End what is left of a standby. Whether the directory is this instance's own to take a snapshot of.

        It is not while another one writes, nor where another one has written since: such a snapshot would be newer
        than the log, and without what is in it.
        """
        if self._standby:
            self._standby.close()
        waiting, lease, epoch = self._waiting, self._keeping.lease, self._beside.state.epoch
        another = waiting is not None and waiting.other is not None and lease is None and not self._late
        stale = lease is not None and lease.after is not None and 0 < epoch < lease.after[0]
        if not (another or stale or self._beside.state.following):
            return True
        if lease and not self._keeping.shipping:  # nothing was written: nobody has to wait for this instance
            with suppress(ChromakeepError):
                lease.release()
        return False
