"""Keep: a snapshot every so often when something changed, and a last one at the end, beside the serving."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from chromakeep.chroma.signature import signature
from chromakeep.errors import ChromakeepError, NotAChromaDirectory
from chromakeep.events import Event, Noted, Observer, PhaseStarted, ignore
from chromakeep.operations.beside import Beside
from chromakeep.records import Collection

if TYPE_CHECKING:
    from chromakeep.repository import Repository

FIRST_RETRY = 5.0  # seconds after a failed snapshot; doubled each time, never more than ``every`` or a minute


class Keeping:
    """One thread that takes snapshots, never two at once. A failure is told and tried again; it never stops serving.

    ``access`` is held while the directory is read: whoever replaces it takes it first.
    """

    def __init__(
        self,
        beside: Beside,
        open_repository: Callable[[], Repository],
        *,
        every: float,
        stage: Path | None,
        observer: Observer = ignore,
    ) -> None:
        self.access = threading.Lock()
        self.taken = 0
        self.newest: str | None = beside.state.snapshot
        self.newest_at: float | None = None  # monotonic; None: none in this run
        self.failure: ChromakeepError | None = None  # of the last attempt
        self.collections: tuple[Collection, ...] = ()
        self._beside, self._open, self._every, self._stage, self._observer = (
            beside, open_repository, every, stage, observer,
        )  # fmt: skip
        self._repository: Repository | None = None
        self._ending = threading.Event()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._live, name="keep", daemon=True)

    def start(self) -> None:
        """Begin, if it has not begun; the first look is ``every`` seconds from now."""
        if self._thread.ident is None:
            self._thread.start()

    def _live(self) -> None:
        failures = 0
        while not self._ending.wait(self._pause(failures)):
            failures = 0 if self._attempt() else failures + 1
        self._attempt()
        self._done.set()

    def _pause(self, failures: int) -> float:
        if not failures:
            return self._every
        return min(self._every, FIRST_RETRY * 2.0 ** (failures - 1), 60.0)

    def _attempt(self) -> bool:
        failure: ChromakeepError | None = None
        try:
            self._snapshot()
        except NotAChromaDirectory:
            pass  # a fresh server has not written yet
        except ChromakeepError as error:
            failure = error
        except Exception as error:  # a fault of ours must not end the keeping either
            failure = ChromakeepError(f"{type(error).__name__}: {error}")
        self.failure = failure
        if failure:
            again = "" if self._ending.is_set() else ", it will be tried again"
            self._observer(Noted(f"snapshot failed{again}: {failure}", "warning"))
        return failure is None

    def _snapshot(self) -> None:
        from chromakeep.operations.backup import backup

        before = signature(self._beside.data).to_json()
        if before == self._beside.state.captured:
            return
        if self._repository is None:
            self._repository = self._open()
        with _Reading(self.access) as reading:

            def watch(event: Event) -> None:
                # What follows the capture works on the copy: a rescue need not wait for an upload.
                if isinstance(event, PhaseStarted) and event.phase != "capture":
                    reading.end()
                self._observer(event)

            # That the last collection was deleted is a state too, where there was one before.
            emptied = self.newest is not None
            done = backup(
                self._beside.data, self._repository, stage=self._stage, allow_empty=emptied, observer=watch
            )
        self.taken += 1
        self.newest, self.newest_at, self.collections = done.snapshot, time.monotonic(), done.collections
        self._beside.remember(captured=before, snapshot=done.snapshot)
        self._observer(
            Noted(
                f"snapshot {done.snapshot}: {_megabytes(done.new_bytes)} new of {_megabytes(done.total_bytes)}"
                f" in {done.seconds:.1f} s, writers waited {done.pause_seconds * 1000:.0f} ms"
            )
        )

    def finish(self, timeout: float, hurry: threading.Event) -> bool:
        """Take a last snapshot if something changed; whether it was done, or not needed, in time."""
        self._ending.set()
        self.start()
        deadline = time.monotonic() + timeout
        while not self._done.wait(0.05):
            if time.monotonic() > deadline or hurry.is_set():
                return False
        return self.failure is None


class _Reading:
    """A lock that is let go when the block ends or earlier."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock, self._held = lock, False

    def __enter__(self) -> _Reading:
        self._held = self._lock.acquire()
        return self

    def end(self) -> None:
        """Let go now."""
        if self._held:
            self._held = False
            self._lock.release()

    def __exit__(self, *_: object) -> None:
        self.end()


def _megabytes(count: int) -> str:
    """In three digits: a small change must not read as none."""
    return f"{count / 1e6:.3g} MB" if count < 999e6 else f"{count / 1e6:,.0f} MB"
