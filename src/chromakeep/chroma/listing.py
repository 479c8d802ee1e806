"""Listing: all ids of a collection by pages, of which none that was there throughout is lost while others write.

Chroma gives pages by their offset in the order of insertion. A delete moves everything behind it to the front, so a
reader that goes forwards steps over as many records as were deleted before it. A reader that goes backwards, from the
last page to the first, does not: what it has not read yet can only come to a place that it still has before it.

Where a condition chooses among the records, one that comes to satisfy it moves those behind it away from the front. So
every page must end with an id that was read before, or with the end of the list; else the reader steps back behind it.
Pages overlap by one id for that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from chromakeep.errors import SourceBusy

Page = Callable[[int, int], list[str]]
"""The ids from an offset on, in order; at most so many, and fewer only at the end of the list."""

RECENT = 20_000  # ids that are known again
_STEPS_BACK = 1000  # of all pages together
_ENDLESS = 1 << 32


class Moved(Exception):
    """So much was deleted meanwhile that the reader does not know where it was: read again from the beginning."""


def backwards(page: Page, top: int, size: int) -> Iterator[list[str]]:
    """The list in pages of up to ``size`` ids, the last page first, each page in order.

    ``top``: about how long the list is; 0 where nobody knows. Every id that was in the list from the first page to the
    last is given once. One that was added meanwhile, or deleted and added again, may be missing; deleted ones may be
    given. Raises ``Moved``, and ``SourceBusy`` if the list changes faster than it can be read.
    """
    size = max(size, 2)
    low, step = max(0, top + 1 - size), size
    while len(ids := page(low, size)) >= size:
        low, step = low + step, step * 2
        if low > _ENDLESS:
            raise SourceBusy("the list of ids has no end")
    recent: deque[tuple[list[str], set[str]]] = deque()
    steps_back = 0
    while True:
        if ids:
            yield ids
            recent.appendleft((ids, set(ids)))
            while sum(len(one) for one, _ in recent) - len(recent[-1][0]) >= max(RECENT, size):
                recent.pop()
        if low == 0:
            return
        low = max(0, low + 1 - size)
        while len(ids := page(low, size)) >= size and not _known(ids[-1], recent):
            low += size - 1
            steps_back += 1
            if steps_back > _STEPS_BACK:
                raise SourceBusy(
                    "the collection changes faster than its ids can be listed",
                    hint="copy it while fewer records are written, or without --where",
                )
        end = next((n for n, id_ in enumerate(ids) if _known(id_, recent)), None)
        if end is None and recent and ids:
            raise Moved
        ids = ids[:end]


def _known(id_: str, recent: deque[tuple[list[str], set[str]]]) -> bool:
    return any(id_ in known for _, known in recent)
