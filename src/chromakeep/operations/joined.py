"""Joined: several sources as one, each with databases of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from chromakeep.records import Definition, Mark, Source

if TYPE_CHECKING:
    import pyarrow as pa

    from chromakeep.conditions import Where


class Joined:
    """Reads each collection from the first of ``sources`` that has it. Marks lead on as those of that source do."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._of: dict[tuple[str, str, str], Source] = {}

    def definitions(self) -> Sequence[Definition]:
        """Those of all."""
        found: dict[tuple[str, str, str], Definition] = {}
        for source in self._sources:
            for definition in source.definitions():
                found.setdefault(definition.place, definition)
                self._of.setdefault(definition.place, source)
        return list(found.values())

    def batches(
        self, definition: Definition, *, after: Mark = None, where: Where | None = None
    ) -> Iterator[tuple[pa.RecordBatch, Mark]]:
        """As of the source that has it."""
        if definition.place not in self._of:
            self.definitions()
        return self._of[definition.place].batches(definition, after=after, where=where)

    def state(self) -> str:
        """Of all together; empty where one has none."""
        states = [source.state() for source in self._sources]
        return " ".join(states) if all(states) else ""

    def close(self) -> None:
        """Close all."""
        for source in self._sources:
            source.close()
