"""Tenure: a lease that is this instance's, shown to live from the moment it was taken.

What follows a takeover may take long: a restore, the check of a directory. A lease without a beat meanwhile would
lapse, and a third instance would take over from one that is about to serve.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from chromakeep.errors import ChromakeepError, LeaseLost
from chromakeep.events import Noted, Observer, ignore
from chromakeep.repository.lease import Lease
from chromakeep.repository.repository import Repository

RENEW = 2.5  # seconds between two signs of life
LAPSE = 10.0  # seconds without one after which another instance may take over


class Tenure:
    """A thread shows that the holder lives until ``release``, ``end``, or another instance has taken over: then
    ``lost`` is set, ``on_lost`` is called, and nothing may be acknowledged from then on.

    ``number`` is of the last segment that was put.
    """

    def __init__(self, lease: Lease, observer: Observer = ignore) -> None:
        self.lost = threading.Event()
        self.number = 0
        self.on_lost: Callable[[LeaseLost], None] = lambda error: None
        self._lease, self._observer = lease, observer
        self._over = threading.Event()
        self._renewing = threading.Lock()
        self._renewed = self._refused = time.monotonic()
        threading.Thread(target=self._renew, name="lease", daemon=True).start()

    @property
    def repository(self) -> Repository:
        """Where it holds."""
        return self._lease.repository

    @property
    def epoch(self) -> int:
        """Which reign it is."""
        return self._lease.epoch

    @property
    def after(self) -> tuple[int, int] | None:
        """The last segment of all epochs before, on which this one builds; None where there is none."""
        return self._lease.after

    @property
    def sure(self) -> bool:
        """Whether the last sign of life is fresh, or just now failed for want of a bucket, in which nobody else could
        have taken over either. Not so in a process that was frozen.
        """
        return not self.lost.is_set() and time.monotonic() - max(self._renewed, self._refused) < LAPSE

    def give_up(self, error: LeaseLost) -> None:
        """Another instance has taken over."""
        first = not self.lost.is_set()
        self.lost.set()
        self.end()
        if first:
            self._observer(Noted(error.message, "warning"))
        self.on_lost(error)

    def release(self) -> None:
        """As ``Lease.release``, behind the last segment."""
        self.end()
        self._lease.release(self.number)

    def succeeded(self) -> Tenure:
        """The next reign of this very instance: of a log that does not lead on from this one's.

        Raises ``LeaseLost``; ``StoreError``, and then this one goes on.
        """
        with self._renewing:  # a renewal meanwhile would take ourselves for another instance
            lease = Lease.take(self.repository, address=self._lease.address, over=self.epoch, token=self._lease.token)
            self.end()
        return Tenure(lease, self._observer)

    def end(self) -> None:
        """Show no sign of life any more."""
        self._over.set()

    def _renew(self) -> None:
        while not self._over.wait(RENEW):
            begun = time.monotonic()  # nobody had taken over then; a process may be frozen in the middle
            try:
                with self._renewing:
                    if not self._over.is_set():
                        self._lease.renew(self.number)
                self._renewed = begun
            except LeaseLost as error:
                self.give_up(error)
            except ChromakeepError:  # whoever puts tells
                self._refused = time.monotonic()
            except Exception as error:  # a fault of ours must not end the beats
                self._observer(Noted(f"the lease was not renewed: {type(error).__name__}: {error}", "warning"))
