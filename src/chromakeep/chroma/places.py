"""Places: where in the index the vector of an id is, for any number of ids, in bounded memory.

Two orders have to meet: the index has elements by label, the pickle ids by label, and who asks has ids in an order of
his own. So a list of (hash of the id, element) is made once, ordered by hash, in files where it is long.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from chromakeep.chroma import spool
from chromakeep.chroma.hnsw import Elements
from chromakeep.chroma.spool import Spool
from chromakeep.chroma.vectors import Vectors
from chromakeep.digests import Lanes

NOWHERE = -1
AT_ONCE = 256  # look-ups, each of which may map 64 KiB of each of three files


class Places:
    """Of a sound index. ``find`` maps the system's cached pages, and gives them back."""

    def __init__(self, vectors: Vectors, seen: Elements | None) -> None:
        """``seen``: what a pass over the elements saw; None: there is no index."""
        folder = vectors.path.parent
        self._words, self._others = Spool(np.uint64, folder), Spool(np.uint64, folder)
        self._elements = Spool(np.int64, folder)
        self._spools = self._words, self._others, self._elements
        if seen is None:
            return
        elements = _by_position(vectors, seen)
        words, others, numbers = Spool(np.uint64, folder), Spool(np.uint64, folder), Spool(np.int64, folder)
        for here in vectors.ids.slices():
            lanes = vectors.ids.lanes[here]
            words.add(lanes[:, 0].copy())
            others.add(lanes[:, 1].copy())
        for portion in elements.portions():
            numbers.add(portion)
        for first, second, number in spool.ascending(words, others, numbers):
            self._words.add(first)
            self._others.add(second)
            self._elements.add(number)
        for each in self._spools:
            each.scattered()

    def find(self, lanes: Lanes) -> NDArray[np.int64]:
        """The elements of the ids with these hashes; ``NOWHERE`` where there is none, or its vector is in the queue."""
        if not len(self._words) or not len(lanes):
            return np.full(len(lanes), NOWHERE, np.int64)
        return np.concatenate([self._find(lanes[start : start + AT_ONCE]) for start in range(0, len(lanes), AT_ONCE)])

    def _find(self, lanes: Lanes) -> NDArray[np.int64]:
        words, others, elements = (each.whole() for each in self._spools)
        at = np.minimum(np.searchsorted(words, lanes[:, 0]), len(words) - 1)
        same = (words[at] == lanes[:, 0]) & (others[at] == lanes[:, 1])
        found: NDArray[np.int64] = np.where(same, elements[at], np.int64(NOWHERE))
        for each in self._spools:
            each.let_go()
        return found


def _by_position(vectors: Vectors, seen: Elements) -> Spool:
    """Of each position in the id map the number of its living element."""
    folder, ids, done = vectors.path.parent, vectors.ids, 0
    numbers, found = Spool(np.int64, folder), Spool(np.int64, folder)
    for at in range(0, len(seen.labels), spool.AT_ONCE):
        numbers.add(np.arange(at, min(at + spool.AT_ONCE, len(seen.labels))))
    for labels, deleted, number in spool.ascending(seen.labels, seen.deleted, numbers):
        end = int(np.searchsorted(ids.labels, labels[-1], "right")) if len(labels) else done
        found.add(_match(ids.labels[done:end], labels[~deleted], number[~deleted], vectors.moved - done))
        done = end
        ids.let_go()
    found.add(np.full(len(ids) - done, NOWHERE, np.int64))
    return found


def _match(
    known: NDArray[np.int64], labels: NDArray[np.int64], numbers: NDArray[np.int64], moved: NDArray[np.int64]
) -> NDArray[np.int64]:
    if not len(labels):
        return np.full(len(known), NOWHERE, np.int64)
    at = np.minimum(np.searchsorted(labels, known), len(labels) - 1)
    found: NDArray[np.int64] = np.where(labels[at] == known, numbers[at], np.int64(NOWHERE))
    found[moved[(moved >= 0) & (moved < len(found))]] = NOWHERE
    return found
