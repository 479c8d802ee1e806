"""The audit log on its way into the repository: ``audit/<instance>/<number of its first record>``, put once each."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from chromakeep.errors import ChromakeepError, ObjectExists, VerificationFailed
from chromakeep.events import Noted, Observer, ignore
from chromakeep.operations.audit_chain import NOTHING, Wrong, read
from chromakeep.operations.audit_file import files, raw_lines
from chromakeep.operations.audit_objects import KIND, last_shipped, name_of
from chromakeep.repository.sealed import unseal

if TYPE_CHECKING:
    from chromakeep.repository import Repository

SEGMENT = 1 << 20  # bytes of lines in an object, or one record more
HINT = "was the disk of an instance copied, or an older one put back? move the file away: another log is begun"
EVERY = 60.0  # seconds after which what there is goes


class AuditShipping:
    """Puts what the file has into the repository, in a thread of its own. ``shipped`` is the last record there.

    Takes up where an earlier run stopped by what is there. A repository that is away is tried again; nothing waits.
    """

    def __init__(
        self,
        path: Path,
        instance: str,
        open_repository: Callable[[], Repository],
        observer: Observer = ignore,
        every: float = EVERY,
    ) -> None:
        self.shipped = 0
        self._hash = NOTHING  # of that record
        self._path, self._instance, self._open, self._every, self._observer = (
            path, instance, open_repository, every, observer,
        )  # fmt: skip
        self._repository: Repository | None = None
        self._known = False  # whether ``shipped`` is what the repository says
        self._wake, self._ending, self._failed = threading.Event(), threading.Event(), False
        self._thread = threading.Thread(target=self._live, name="audit shipping", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def soon(self) -> None:
        """There is enough for an object."""
        self._wake.set()

    def stop(self, timeout: float) -> None:
        """Ship the rest, as far as that goes in this time."""
        self._ending.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def _live(self) -> None:
        over = False
        while not over:
            self._wake.wait(self._every)
            self._wake.clear()
            over = self._ending.is_set()
            try:
                self.ship()
                self._failed = False
            except (ChromakeepError, OSError) as error:
                if not self._failed:
                    self._failed = True
                    self._observer(Noted(f"the audit log is not in the repository yet: {error}", "warning"))

    def ship(self) -> None:
        """Put all that is in the file and not in the repository. Raises ``StoreError``, ``VerificationFailed``."""
        if self._repository is None:
            self._repository = self._open()
        if not self._known:
            self.shipped, self._hash = last_shipped(self._repository, self._instance)
            self._known = True
        try:
            self._put_all(self._repository)
        except VerificationFailed:
            self.shipped, self._known = 0, False
            raise

    def _put_all(self, repository: Repository) -> None:
        for first, last, hash_, data in segments(self._path, self.shipped, self._hash):
            name = name_of(self._instance, first)
            try:
                repository.put_sealed(KIND, name, data)
            except ObjectExists:  # an earlier put that was told as failed; perhaps there was less to put then
                _same(repository, name, data)
                self._known = False
                self.soon()
                return
            self.shipped, self._hash = last, hash_


def segments(path: Path, after: int, before: str) -> Iterator[tuple[int, int, str, bytes]]:
    """(first record, last record, its hash, lines) of what comes after the record ``after`` whose hash is ``before``,
    each about ``SEGMENT`` bytes. Raises ``VerificationFailed`` where the file has another record there, or none.

    A torn line goes with the record that closes it; what nothing closes yet stays.
    """
    found: list[bytes] = []
    size = first = last = 0
    hash_, whole = "", 0  # of the last record; how many of the lines it ends
    for lines in _from(path, after):
        for line in lines:
            if not line.endswith(b"\n"):
                break
            found.append(line)
            size += len(line)
            try:
                link = read(line[:-1])
            except Wrong:
                continue
            last, hash_, whole = link.number, link.hash, len(found)
            if last <= after:
                if last == after and hash_ != before:
                    raise _another(path, after)
                found, size, whole = [], 0, 0
                continue
            if last == after + 1 and link.previous != before:
                raise _another(path, after)
            first = first or last
            if size >= SEGMENT:
                yield first, last, hash_, b"".join(found)
                found, size, first, whole = [], 0, 0, 0
    if 0 < last < after:
        raise _another(path, after)
    if first:
        yield first, last, hash_, b"".join(found[:whole])


def _same(repository: Repository, name: str, data: bytes) -> None:
    """What is there must be the beginning of this."""
    if not data.startswith(unseal(KIND, name, repository.store.get(name), repository.keys)):
        raise VerificationFailed(f"{name}: holds another audit log under this one's name", hint=HINT)


def _another(path: Path, number: int) -> VerificationFailed:
    return VerificationFailed(
        f"{path} does not go on from record {number}, which is the last one in the repository", hint=HINT
    )


def _from(path: Path, after: int) -> Iterator[Iterator[bytes]]:
    """The lines of each file that may hold a record behind this one. One that is set aside meanwhile comes under its
    new name, before what is written to ``path`` then."""
    done: set[Path] = set()
    while found := [file for file in _behind(path, after) if file not in done]:
        lines = raw_lines(found[0])
        beginning = list(islice(lines, 1))  # it is open now, whatever its name will be
        if found[0] == path and [file for file in _behind(path, after) if file not in done] != [path]:
            continue
        done.add(found[0])
        yield chain(beginning, lines)
        if found[0] == path:
            return


def _behind(path: Path, after: int) -> list[Path]:
    found = files(path)
    while len(found) > 1 and found[1] != path and int(found[1].name.rpartition(".")[2]) <= after + 1:
        found.pop(0)
    return found
