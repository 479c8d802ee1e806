"""Reign: wait until this instance may write to the repository, and take the lease."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable

from chromakeep.errors import ChromakeepError, CorruptObject, LeaseLost, StoreUnavailable
from chromakeep.events import Noted, Observer, ignore
from chromakeep.operations.tenure import LAPSE, Tenure
from chromakeep.repository.lease import Holder, Lease, holder, newest
from chromakeep.repository.log import Log
from chromakeep.repository.repository import Repository

WATCH = 0.3  # seconds between two looks at the holder: one small get
ROUND = 20  # looks after which both leases and log are listed: for a holder that ended its log and died
UNREACHABLE = 2.0  # seconds between two tries of a repository that cannot be reached


def reign(
    repository: Repository,
    *,
    stop: threading.Event,
    lapse: float = LAPSE,
    address: str | None = None,
    waiting: Callable[[Holder], None] = lambda holder: None,
    observer: Observer = ignore,
) -> Tenure | None:
    """Take the lease as soon as nobody else holds it: at once where the last holder has let go or is known to be gone,
    else when it has shown no sign of life for ``lapse`` seconds of this machine's clock. None when ``stop`` is set.

    ``waiting`` is called with the holder at every look while another one reigns. Raises what is no want of an answer,
    unless another one was seen to reign.
    """
    seen: Holder | None = None
    since, told, token = time.monotonic(), 0, secrets.token_hex(8)
    epoch = looks = 0
    brisk = repository.brisk
    while not stop.is_set():
        try:
            listed = looks % ROUND == 0
            looks += 1
            if listed:
                epoch = newest(brisk)
            found = holder(brisk, epoch) if epoch else None
            if found != seen:  # before it is judged: the time of another holder is not this one's
                seen, since = found, time.monotonic()
            lapsed = time.monotonic() - since > lapse
            mine = found is not None and found.token == token  # taken at a try of which the rest failed
            if found is None or found.released or found.gone or mine or lapsed or (listed and _ended(brisk, epoch)):
                return Tenure(Lease.take(repository, address=address, over=epoch, token=token), observer)
        except LeaseLost:
            looks = 0  # another one was quicker: watch that one
            continue
        except Exception as error:  # also a fault of ours: to go on without a lease is to write beside who has it
            if not (told or isinstance(error, StoreUnavailable)):
                raise  # nobody was seen who writes
            looks = 0
            observer(Noted(f"the repository cannot be reached: {error}; trying again", "warning"))
            seen, since = None, time.monotonic()  # nothing was seen meanwhile, so nothing can have lapsed
            stop.wait(UNREACHABLE)
            continue
        if told != epoch:
            told = epoch
            who = f"{found.hostname}, process {found.pid}"
            observer(Noted(f"another instance writes to this repository ({who}): waiting until it stops"))
        waiting(found)
        stop.wait(WATCH)
    return None


def _ended(repository: Repository, epoch: int) -> bool:
    try:
        return Log(repository).end(epoch)[1]
    except CorruptObject:
        return False  # whatever it is, its writer has not let go by it


class Reigning:
    """``reign`` in a thread of its own. ``done``: ``lease`` is there, or None if ``stop`` was set or the store refused.
    A repository that cannot be opened for want of an answer is tried again.

    ``other`` is the instance that holds the lease now, as far as one is known; ``beating``: it has shown that it lives.
    """

    def __init__(
        self,
        open_repository: Callable[[], Repository],
        *,
        stop: threading.Event,
        address: str | None = None,
        observer: Observer = ignore,
    ) -> None:
        self.done, self.lease, self.other, self.beating = threading.Event(), None, None, False
        self._open, self._stop, self._observer, self._address = open_repository, stop, observer, address
        self._closed = False
        threading.Thread(target=self._work, name="reign", daemon=True).start()

    lease: Tenure | None
    other: Holder | None
    beating: bool

    def _work(self) -> None:
        try:
            repository = self._opened()
            if repository and not repository.config.conditional_put:
                said = "this store settles no races: no log is written, only snapshots are taken"
                self._observer(Noted(said, "warning"))
            elif repository:
                self.lease = reign(
                    repository,
                    stop=self._stop,
                    address=self._address,
                    waiting=self._wait,
                    observer=self._observer,
                )
        except Exception as error:  # also a fault of ours: whoever waits must hear of it
            what = str(error) if isinstance(error, ChromakeepError) else f"{type(error).__name__}: {error}"
            self._observer(Noted(f"no log is written, only snapshots are taken: {what}", "warning"))
        self.done.set()
        if self._closed:
            self.close()

    def _opened(self) -> Repository | None:
        while not self._stop.is_set():
            try:
                return self._open()
            except StoreUnavailable:  # whoever waits has told
                self._stop.wait(UNREACHABLE)
        return None

    def close(self) -> None:
        """Show no sign of life any more with a lease that was got, or will be."""
        self._closed = True
        if self.lease:
            self.lease.end()

    def _wait(self, holder: Holder) -> None:
        self.beating |= self.other is not None and self.other != holder
        self.other = holder
