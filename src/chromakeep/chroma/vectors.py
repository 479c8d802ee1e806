"""Vectors: where the vector of each id of one collection is, in the index files or in the queue, and what it is."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chromakeep.chroma import hnsw, pickles
from chromakeep.chroma.catalog import Entry
from chromakeep.chroma.hnsw import Fault
from chromakeep.chroma.metadata import named
from chromakeep.chroma.pickles import IdMap
from chromakeep.chroma.queue import Queue, replay
from chromakeep.digests import Lanes, Tally, hashes, row_hashes, value_hashes
from chromakeep.errors import SourceBroken
from chromakeep.sets import among, without

_PORTION = 512


class Vectors:
    """One collection's vectors as they lie in the files. ``faults`` collects what is wrong, as far as one has looked.

    A segment whose pickle is missing or names no id is uninitialised, whatever its other files hold: Chroma starts it
    anew and applies the whole queue (rust/segment/src/local_hnsw.rs, ``from_segment``).
    """

    def __init__(self, directory: Path, entry: Entry, queue: Queue) -> None:
        self.entry, self.queue = entry, queue
        self.path = directory / (entry.vector_segment or "missing")
        self.faults: list[Fault] = []
        self.header: hnsw.Header | None = None
        self.ids = self._read_ids()
        after = (entry.vector_seq or self.ids.max_seq_id or 0) if len(self.ids) else 0
        rows = list(queue.rows(queue.pending(entry.topic, after))) if entry.dimension else []
        self.poisoned = [row for row in rows if row.poison]
        self.misfits = [row for row in rows if row.floats not in (None, entry.dimension)]
        named = list({row.id for row in rows})
        here = self.ids.find_in_passing(hashes(named))
        self.replay = replay(rows, {id_ for id_, position in zip(named, here, strict=True) if position >= 0})
        moved = self.replay.moved
        # positions whose vector is no longer the index's
        self.moved = np.array([p for id_, p in zip(named, here, strict=True) if p >= 0 and id_ in moved], np.int64)

    def _read_ids(self) -> IdMap:
        try:
            header, broken = hnsw.read_header(self.path), None
        except (SourceBroken, OSError) as error:
            header, broken = None, str(error)
        try:
            ids = pickles.read_id_map(self.path / pickles.FILE, most=header.count if header else None)
        except (FileNotFoundError, NotADirectoryError):
            return pickles.EMPTY
        except SourceBroken as error:
            self.faults.append(Fault(pickles.FILE, "pickle", error.message))
            return pickles.EMPTY
        if not len(ids):
            return pickles.EMPTY
        if broken:
            self.faults.append(Fault(hnsw.HEADER, "header", broken))
        elif header and self.entry.dimension not in (None, header.dimension):
            message = f"{hnsw.HEADER} has {header.dimension} dimensions, the collection {self.entry.dimension}"
            self.faults.append(Fault(hnsw.HEADER, "header", message))
        elif not ids.one_to_one:
            self.faults.append(
                Fault(pickles.FILE, "pickle", f"the two maps of {pickles.FILE} are not each other's inverse")
            )
        else:
            self.header = header
        return ids

    def living(self) -> Iterator[Lanes]:
        """The hashes of all ids that have a vector, in no order."""
        for here in self.ids.slices():
            lanes, moved = self.ids.lanes[here], self.moved[(self.moved >= here.start) & (self.moved < here.stop)]
            yield np.delete(lanes, moved - here.start, axis=0) if len(moved) else lanes
        yield hashes([id_ for id_, seq in self.replay.alive.items() if seq])

    def names(self, wanted: NDArray[np.uint64]) -> tuple[str, ...]:
        """The ids whose hashes begin with these words."""
        in_index = pickles.read_names(self.path / pickles.FILE, wanted) if len(self.ids) else []
        return named([*self.replay.alive, *in_index], wanted)

    def check(self, tally: Tally | None = None) -> hnsw.Elements | None:
        """One pass over the index files: find their faults and, given a tally, add all vectors to it.

        Returns what the pass saw of the elements, None when there is no index to look at.
        """
        seen = None
        if self.header:
            seen = hnsw.Elements(self.header, self.path)
            for portion in hnsw.elements(self.path, self.header, lengths=self.entry.space == "cosine"):
                if tally:
                    self._add(tally, portion)
                seen.see(portion)
            self.faults += seen.faults() + hnsw.check_links(self.path, self.header) + self._compare(seen)
        if tally:
            queued = self.queued()
            while some := list(islice(queued, _PORTION)):
                lanes = hashes([id_ for id_, _ in some])
                tally.vectors += (lanes * value_hashes([vector.tobytes() for _, vector in some])).sum(axis=0)
        return seen

    def _add(self, tally: Tally, portion: hnsw.Portion) -> None:
        position = np.minimum(np.searchsorted(self.ids.labels, portion.labels), len(self.ids) - 1)
        wanted = (self.ids.labels[position] == portion.labels) & ~portion.deleted
        if len(self.moved):
            wanted &= ~among(position, self.moved)
        values = portion.vectors()
        if not wanted.all():
            values, position = values[wanted], position[wanted]
        tally.vectors += (self.ids.lanes[position] * row_hashes(values)).sum(axis=0)
        self.ids.let_go()

    def _compare(self, seen: hnsw.Elements) -> list[Fault]:
        """Elements against the id map. After a kill between the index files and the pickle the index is ahead of the
        pickle. Chroma gets over that when replay gives each element that is ahead its label again, and only then:
        hnswlib neither deletes nor updates an element that is marked deleted (``markDeletedInternal``, ``addPoint``).
        """
        total, lost, strangers = self.ids.total, 0, 0
        for labels, deleted in zip(seen.labels.portions(), seen.deleted.portions(), strict=True):
            strangers += int((labels[deleted] > total).sum())
        for live, known in seen.against(self.ids):
            if not np.array_equal(live, known):
                lost += len(without(known, live))
                ahead = without(live, known)
                strangers += int(((ahead <= total) | (ahead > total + self.replay.labels)).sum())
        if lost:
            return [Fault(pickles.FILE, "id-map", f"{lost} ids of {pickles.FILE} have no element in {hnsw.LEVEL0}")]
        if strangers:
            return [
                Fault(pickles.FILE, "id-map", f"{strangers} elements of {hnsw.LEVEL0} are unknown to {pickles.FILE}")
            ]
        return []

    def queued(self, only: set[bytes] | None = None) -> Iterator[tuple[bytes, NDArray[np.float32]]]:
        """The ids (or those among ``only``) whose vector is in the queue, and it as ``collection.get`` returns it."""
        ids = {seq: id_ for id_, seq in self.replay.alive.items() if seq and (only is None or id_ in only)}
        for seq, data in self.queue.vectors(np.array(sorted(ids), np.int64)):
            vector = np.frombuffer(data or b"", "<f4")
            yield ids[seq], hnsw.through_cosine(vector) if self.entry.space == "cosine" else vector
