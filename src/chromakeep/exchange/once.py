"""Ids that must each come once: of several records Chroma would keep one, and nobody would know of the rest."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable

import numpy as np
from xxhash import xxh3_64_intdigest

from chromakeep.errors import SourceError
from chromakeep.exchange.described import short


class Once:
    """The ids of one collection, of which eight bytes each are kept."""

    def __init__(self) -> None:
        self._words = array("Q")

    def add(self, id: str) -> None:
        """Another one."""
        self._words.append(_word(id))

    def repeated(self) -> set[int]:
        """Of those that came more than once a word; nothing is kept any more."""
        words = np.frombuffer(self._words, np.uint64)
        self._words = array("Q")
        words.sort()
        return set(words[1:][words[1:] == words[:-1]].tolist())

    def check(self, again: Callable[[], Iterable[tuple[int, str]]], place: str, what: str) -> None:
        """Raise ``SourceError`` if one came twice. ``again``: all of them once more, each with the number of the
        ``what`` (line, row) in which it is."""
        repeated = self.repeated()
        met: dict[str, int] = {}
        for number, id in again() if repeated else ():
            if _word(id) in repeated and met.setdefault(id, number) != number:
                raise SourceError(
                    f"{place}: {what} {number} has the id {short(id)}, which is in {what} {met[id]} already",
                    hint="give each record an id of its own: Chroma would keep one of the two",
                )


def _word(id: str) -> int:
    return xxh3_64_intdigest(id.encode())
