"""Scan: ids, documents and metadata of all collections, added to their digests in one pass over the database.

Rows of ``embedding_metadata`` name a row of ``embeddings``, whose id's hash they are multiplied by. So a range of the
rows of ``embeddings`` is taken at a time, and then the rows of ``embedding_metadata`` that name them: all in one scan,
in whatever order they lie, if one range holds all; else by their primary key, which begins with that number.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from chromakeep.chroma.catalog import Catalog
from chromakeep.chroma.metadata import HIDDEN, URI, Fields, Records, value_of
from chromakeep.chroma.queue import DOCUMENT
from chromakeep.digests import Lanes, Tally, encode_value, hashes, key_hash, value_hashes
from chromakeep.sets import among

RANGE = 1 << 17  # rows of ``embeddings`` in memory at a time, 29 bytes each
PORTION = 8192
_BYTES = 4 << 20  # of values in a portion, as far as the portion before it tells
_IS_DOCUMENT, _IS_HIDDEN = 0, 1  # numbers of keys that are not metadata


class _Range(msgspec.Struct, frozen=True, eq=False):
    """Adjacent rows of ``embeddings`` by ``rowids`` (n,) ascending: the hashes of their ids (n, 2), the number of the
    collection (n,), and whether no pending row touches them (n,). ``only``: there are no others."""

    rowids: NDArray[np.int64]
    lanes: Lanes
    owners: NDArray[np.int64]
    still: NDArray[np.bool_]
    only: bool


class Scan:
    """``counts``: the records of each collection."""

    def __init__(self, catalog: Catalog, records: list[Records], tallies: list[Tally], *, fields: bool) -> None:
        """``fields``: documents and metadata too, not the ids alone."""
        self.catalog, self.records, self.tallies = catalog, records, tallies
        self.counts = [0] * len(records)
        self._owners = {each.segment: number for number, each in enumerate(records) if each.segment is not None}
        self._touched = np.concatenate([np.zeros(0, np.int64), *[each.touched for each in records]])
        self._forget_keys()
        for here in self._ranges():
            if fields:
                self._fields(here)
        for number, (each, tally) in enumerate(zip(records, tallies, strict=True)):
            self.counts[number] += len(each.renewed)
            tally.ids += hashes(each.renewed).sum(axis=0)
            for id_, changes in each.changed.items() if fields else ():
                add_fields(tally, id_, changes or {})

    # -- ids --------------------------------------------------------------------------------------------------------

    def _ranges(self) -> Iterator[_Range]:
        cursor = self.catalog.connection.execute(
            "SELECT id, segment_id, CAST(embedding_id AS BLOB) FROM embeddings ORDER BY id"
        )
        portions = list[tuple[NDArray[Any], ...]]()
        held, first = 0, True
        while rows := cursor.fetchmany(PORTION):
            if held >= RANGE:
                yield self._joined(portions, only=False)
                portions, held, first = [], 0, False
            portions.append(self._ids(rows))
            held += len(rows)
        if portions:
            yield self._joined(portions, only=first)

    def _ids(self, rows: list[tuple[int, Any, bytes]]) -> tuple[NDArray[Any], ...]:
        """Of some rows the columns of a range. What is of no collection is left out."""
        owners = [self._owners.get(row[1], -1) for row in rows]
        if -1 in owners:
            rows = [row for row, owner in zip(rows, owners, strict=True) if owner >= 0]
            owners = [owner for owner in owners if owner >= 0]
        rowids, lanes = np.array([row[0] for row in rows], np.int64), hashes([row[2] for row in rows])
        numbers = np.array(owners, np.int64)
        still = ~among(rowids, self._touched) if len(self._touched) else np.ones(len(rows), bool)
        for owner in set(owners):
            mine = still & (numbers == owner)
            self.counts[owner] += int(mine.sum())
            self.tallies[owner].ids += lanes[mine].sum(axis=0)
        return rowids, lanes, numbers, still

    @staticmethod
    def _joined(portions: list[tuple[NDArray[Any], ...]], *, only: bool) -> _Range:
        rowids, lanes, owners, still = (np.concatenate(column) for column in zip(*portions, strict=True))
        return _Range(rowids, lanes, owners, still, only)

    # -- documents and metadata -------------------------------------------------------------------------------------

    def _fields(self, here: _Range) -> None:
        if not len(here.rowids):
            return
        where, bounds = "", tuple[int, ...]()
        if not here.only:
            where, bounds = "WHERE id BETWEEN ? AND ?", (int(here.rowids[0]), int(here.rowids[-1]))
        cursor = self.catalog.connection.execute(
            "SELECT id, CAST(key AS BLOB), CASE WHEN key = ? THEN CAST(string_value AS BLOB) ELSE "
            "coalesce(CAST(string_value AS BLOB), int_value, float_value, "
            "CASE WHEN bool_value THEN 'b1' WHEN bool_value IS NOT NULL THEN 'b0' END) END FROM embedding_metadata "
            f"{where}",
            (DOCUMENT, *bounds),
        )
        some = max(1, PORTION // 16)
        while rows := cursor.fetchmany(some):
            size = self._take(here, rows)
            some = max(1, min(PORTION, 4 * some, some * _BYTES // size))
        if self.catalog.has_arrays:
            for rows in self._arrays(where, bounds):
                self._take(here, rows)

    def _take(self, here: _Range, rows: list[tuple[int, bytes, Any]]) -> int:
        """Add some rows; about how many bytes their values have."""
        rowids, names, values = zip(*rows, strict=True)
        if len(self.keys) > PORTION:
            self._forget_keys()
        keys = self.keys
        kinds = [keys[name] if name in keys else self._number(name) for name in names]
        if None in values:  # a document that is no text, or NaN, which is stored as NULL: shown to nobody
            kinds = [_IS_HIDDEN if value is None else kind for kind, value in zip(kinds, values, strict=True)]
        encoded = [
            (b"s" + value if kind else value)
            if type(value) is bytes
            else value.encode()
            if type(value) is str
            else encode_value(value)
            if kind > _IS_HIDDEN
            else b""
            for kind, value in zip(kinds, values, strict=True)
        ]
        number = np.array(kinds)
        at = np.minimum(np.searchsorted(here.rowids, rowids), len(here.rowids) - 1)
        known = (here.rowids[at] == rowids) & here.still[at] & (number != _IS_HIDDEN)
        terms = here.lanes[at] * value_hashes(encoded) * np.array(self.key_lanes)[number]
        owners = here.owners[at]
        for owner in np.flatnonzero(np.bincount(owners[known])).tolist():
            mine = known & (owners == owner)
            document = mine & (number == _IS_DOCUMENT)
            self.tallies[owner].documents += terms[document].sum(axis=0)
            self.tallies[owner].metadata += terms[mine & ~document].sum(axis=0)
        return 8 * sum(map(len, encoded[::8])) + 1

    def _forget_keys(self) -> None:
        self.keys = {DOCUMENT.encode(): _IS_DOCUMENT}
        self.key_lanes = [np.ones(2, np.uint64), np.zeros(2, np.uint64)]

    def _number(self, key: bytes) -> int:
        hidden = key.startswith(HIDDEN.encode()) and key != URI.encode()
        number = self.keys[key] = _IS_HIDDEN if hidden else len(self.key_lanes)
        if not hidden:
            self.key_lanes.append(key_hash(key))
        return number

    def _arrays(self, where: str, bounds: tuple[int, ...]) -> Iterator[list[tuple[int, bytes, Any]]]:
        cursor = self.catalog.connection.execute(
            "SELECT id, key, string_value, int_value, float_value, bool_value FROM embedding_metadata_array "
            f"{where} ORDER BY id, key, rowid",
            bounds,
        )
        portion: list[tuple[int, bytes, Any]] = []
        for (rowid, key), items in groupby(cursor, key=lambda row: row[:2]):
            portion.append((rowid, key.encode(), None if key == DOCUMENT else [value_of(*item[2:]) for item in items]))
            if len(portion) == PORTION:
                yield portion
                portion = []
        if portion:
            yield portion


def add_fields(tally: Tally, id_: bytes, fields: Fields) -> None:
    """Add one record's document and metadata, given as values."""
    lanes = hashes([id_])[0]
    for key, value in fields.items():
        if key == DOCUMENT:
            tally.documents += lanes * value_hashes([value.encode()])[0]
        elif key == URI or not key.startswith(HIDDEN):
            tally.metadata += lanes * key_hash(key.encode()) * value_hashes([encode_value(value)])[0]
