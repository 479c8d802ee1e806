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


class Places:
    """Of a sound index. ``find`` maps the system's cached pages, and gives them back."""

    def __init__(self, vectors: Vectors, seen: Elements | None) -> None:
        """``seen``: what a pass over the elements saw; None: there is no index."""
        folder = vectors.path.parent
        self._words = Spool(np.uint64, folder, width=2)
        self._elements = Spool(np.int64, folder)
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
            self._words.add(np.stack([first, second], axis=1))
            self._elements.add(number)

    def find(self, lanes: Lanes) -> NDArray[np.int64]:
        """The elements of the ids with these hashes; ``NOWHERE`` where there is none, or its vector is in the queue."""
        if not len(self._words) or not len(lanes):
            return np.full(len(lanes), NOWHERE, np.int64)
        words = self._words.whole()
        at = np.minimum(np.searchsorted(words[:, 0], lanes[:, 0]), len(words) - 1)
        found: NDArray[np.int64] = np.where(
            (words[at] == lanes).all(axis=1), self._elements.whole()[at], np.int64(NOWHERE)
        )
        self._words.let_go()
        self._elements.let_go()
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
