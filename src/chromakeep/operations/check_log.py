"""check, of the log: from the horizon on every segment is there, and every epoch has what it builds on and an end."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from chromakeep.errors import ChromakeepError, MissingObject, ObjectNotFound
from chromakeep.repository import horizon as horizon_
from chromakeep.repository import lease
from chromakeep.repository.horizon import Position
from chromakeep.repository.log import PREFIX, Log, Piece, Segment, covering, decode, name_of, parse_piece
from chromakeep.repository.repository import Repository

GONE = "missing from the store"


class LogCheck:
    """One look at the log. ``listed``: the size of every object of the repository, by name.

    ``problems``: what is wrong, by the name of the object. ``bytes_read``: of the log, as stored.
    """

    def __init__(self, repository: Repository, listed: Mapping[str, int]) -> None:
        self.repository, self.log, self.listed = repository, Log(repository), listed
        self.problems: dict[str, str] = {}
        self.bytes_read = 0
        self._pieces: dict[int, list[Piece]] = {}
        self._put: list[Position] = []  # epoch and number of segments that leases tell of

    def run(self, *, read_data: bool) -> None:
        """Look at leases, horizons and the first and last object of each epoch; with ``read_data`` at every one."""
        for name, size in self.listed.items():
            if piece := parse_piece(name, size):
                self._pieces.setdefault(piece.epoch, []).append(piece)
            elif name.startswith(PREFIX) and not name.startswith(horizon_.PREFIX):
                self.problems[name] = "does not belong to a repository"
        self._leases()
        horizon = self._horizon(self.listed)
        if read_data:
            self._read([p for pieces in self._pieces.values() for p in pieces])
        found = self._missing(horizon)
        while found and horizon < (
            later := self._horizon([o.name for o in self.repository.store.list(horizon_.PREFIX)])
        ):
            horizon = later  # a prune has begun since the listing: what it takes away is not missed
            found = self._missing(horizon)
        self.problems = {**found, **self.problems}

    # -- small objects -------------------------------------------------------------------------------------------

    def _leases(self) -> None:
        for name in (n for n in self.listed if n.startswith(lease.PREFIX)):
            try:
                found = lease.read_one(self.repository, name)
                self._put.append((found.epoch, found.number))
            except ObjectNotFound:
                continue  # removed meanwhile
            except ChromakeepError as error:
                self._note(name, error)

    def _horizon(self, names: Collection[str]) -> Position:
        marks = [horizon_.START]
        for name in (n for n in names if n.startswith(horizon_.PREFIX)):
            try:
                marks.append(horizon_.read_one(self.repository, name))
            except ObjectNotFound:
                continue  # a farther one is there
            except ChromakeepError as error:
                self._note(name, error)
        return max(marks)

    # -- segments ------------------------------------------------------------------------------------------------

    def _read(self, pieces: Sequence[Piece]) -> None:
        """Every object: that it holds what was written, and that this is segments."""

        def read(piece: Piece) -> int:
            try:
                for payload in self.log.payloads(piece) or ():
                    decode(piece.name, payload)
            except ObjectNotFound:
                return 0  # merged or pruned meanwhile
            except ChromakeepError as error:
                self._note(piece.name, error)
            return piece.size

        with ThreadPoolExecutor(4) as pool:
            self.bytes_read += sum(pool.map(read, pieces))

    def _missing(self, horizon: Position) -> dict[str, str]:
        """What is not there of that which leads from the horizon to the end."""
        found: dict[str, str] = {}
        epochs = sorted(e for e in self._pieces if e >= horizon[0])
        for epoch in epochs:
            pieces = self._pieces[epoch]
            start = max(horizon[1], 1) if epoch == horizon[0] else 1
            found |= self._gaps(epoch, start)
            if epoch != epochs[-1]:
                found |= self._end(epoch, max(p.last for p in pieces))
            opening = self._opening(epoch, found)
            if opening is None or (epoch, 1) < horizon:
                continue
            if opening.base is not None and f"snapshots/{opening.base}" not in self.listed:
                found[f"snapshots/{opening.base}"] = f"{GONE}, and {name_of(epoch, 1)} builds on it"
            if opening.after is not None and opening.after >= horizon:
                before, number = opening.after
                if covering(self._pieces.get(before, ()), number) is None:
                    found[name_of(before, number)] = f"{GONE}, and {name_of(epoch, 1)} builds on it"
        for epoch, number in self._put:
            if number and (epoch, number) >= horizon and covering(self._pieces.get(epoch, ()), number) is None:
                name = name_of(epoch, number)
                if name not in found and not self._is_there(epoch, number):
                    found[name] = f"{GONE}, and its writer had put it"
        return found

    def _gaps(self, epoch: int, start: int) -> dict[str, str]:
        pieces, found, expected = self._pieces[epoch], {}, start
        while any(p.last >= expected for p in pieces):
            piece = covering(pieces, expected)
            if piece is not None:
                expected = piece.last + 1
                continue
            beyond = min(p.first for p in pieces if p.first > expected)
            more = f", with all up to {beyond - 1}" if beyond > expected + 1 else ""
            if not self._is_there(epoch, expected):
                found[name_of(epoch, expected)] = f"{GONE}{more}"
            expected = beyond
        return found

    def _end(self, epoch: int, top: int) -> dict[str, str]:
        """What others came after has ended: by the tombstone that is the last object, or by one put since."""
        try:
            if self.log.read(epoch, top) is None or self._is_there(epoch, top + 1):
                return {}
        except ChromakeepError as error:
            if not isinstance(error, MissingObject):
                self._note(name_of(epoch, top), error)
            return {}
        return {name_of(epoch, top + 1): f"{GONE}: the epoch is over and nothing ends it"}

    def _opening(self, epoch: int, found: dict[str, str]) -> Segment | None:
        try:
            return self.log.read(epoch, 1)
        except MissingObject as error:
            found[error.name] = GONE
        except ChromakeepError as error:
            self._note(name_of(epoch, 1), error)
        return None

    def _is_there(self, epoch: int, number: int) -> bool:
        """Whether a number that was not listed is found all the same: put or merged since."""
        try:
            self.log.read(epoch, number)
        except MissingObject:
            return False
        except ChromakeepError as error:
            self._note(name_of(epoch, number), error)
        return True

    def _note(self, name: str, error: ChromakeepError) -> None:
        self.problems.setdefault(getattr(error, "name", name), error.message.split(": ", 1)[-1])
