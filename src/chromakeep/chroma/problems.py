"""Problem: one thing that is wrong with a data directory, with a stable code."""

from __future__ import annotations

import msgspec

MAX_IDS = 1000  # as many ids as a problem lists; its message tells how many there are


class Problem(msgspec.Struct, frozen=True):
    """What is wrong, and where. ``code`` is one of:

    ========================  ==========================================================================================
    ``sqlite``                chroma.sqlite3 cannot be read, or fails SQLite's ``quick_check``
    ``catalog``               rows that describe a collection or its segments make no sense
    ``header``                header.bin is torn, or says what the other files' sizes contradict
    ``level0``                data_level0.bin holds elements that no persist leaves behind
    ``links``                 link_lists.bin does not fit the graph
    ``length``                length.bin is missing or short
    ``pickle``                index_metadata.pickle is truncated or refused
    ``id-map``                the pickle and the elements of the index do not belong to the same persist
    ``vector-missing``        ids whose vector is neither in the index nor in the queue
    ``record-missing``        vectors whose id has no record in SQLite
    ``queue``                 a queued write that stops Chroma's log replay, for all collections
    ``link-lists-bloat``      link_lists.bin is far larger than its content (a warning)
    ========================  ==========================================================================================
    """

    collection: str | None
    collection_id: str | None
    segment: str | None
    file: str | None
    code: str
    message: str
    ids: tuple[str, ...] = ()
