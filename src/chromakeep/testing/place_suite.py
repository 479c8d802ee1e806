"""PlaceSuite: what SourceSuite and SinkSuite know of a place, and how they look at what it holds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from chromakeep.records import Definition, Source
from chromakeep.testing.specimens import assert_same, digest_of, gathered, marked, ordinary, records_of, specimens

if TYPE_CHECKING:
    import pyarrow as pa

Contents = Sequence[tuple[Definition, "pa.RecordBatch | None"]]

METADATA = {"topic": 'ü 日本 "\\', "whole": 3, "real": 3.0, "truth": True, "empty": ""}
CONFIGURATION = {
    "hnsw": {
        "space": "l2",
        "ef_construction": 120,
        "ef_search": 90,
        "max_neighbors": 24,
        "resize_factor": 1.2,
        "sync_threshold": 1000,
    },
    "spann": None,
    "embedding_function": {"name": "sample", "type": "known", "config": {"model_name": "of no use"}},
}
SCHEMA = {"defaults": {"string": {"fts_index": {"enabled": False, "config": {}}}}, "keys": {}}


class PlaceSuite:
    """A place, as both suites know it.

    ``several``: it holds more than one collection; ``databases``: and tells apart those of one name in different
    tenants and databases. ``nul``, ``bare``, ``unrounded``: it holds such records (``specimens`` says what they are).
    ``carried``: the fields of a definition that come back as they were. ``many``: the records of a long collection.
    """

    several = True
    databases = True
    nul = True
    bare = True
    unrounded = True
    carried: tuple[str, ...] = ("dimension", "metadata", "configuration", "schema")
    many = 2500

    def definition(self, name: str = "sample", dimension: int | None = 3, **changes: Any) -> Definition:
        """A definition that the place takes."""
        fields = {"metadata": METADATA, "configuration": CONFIGURATION, "schema": SCHEMA}
        fields = {name: value for name, value in fields.items() if name in self.carried}
        return Definition(name, dimension=dimension, **{**fields, **changes})

    def specimens(self) -> pa.RecordBatch:
        """The strange records that the place holds, of 3 dimensions."""
        return specimens(nul=self.nul, bare=self.bare, unrounded=self.unrounded)

    def neighbours(self) -> list[tuple[Definition, pa.RecordBatch | None]]:
        """Collections that must be kept apart, with the same ids."""
        found: list[tuple[Definition, pa.RecordBatch | None]] = [(self.definition("one"), ordinary(10))]
        if self.several:
            found += [
                (self.definition("two", 8), ordinary(12, 8)),
                (self.definition("none", None), None),
                (self.definition("One"), ordinary(5, start=3)),
            ]
        if self.several and self.databases:
            found += [
                (self.definition("one", 2, database="another"), ordinary(4, 2)),
                (self.definition("one", 2, database="another", tenant="someone"), ordinary(3, 2, start=1)),
            ]
        return found

    def check(self, source: Source, contents: Contents) -> None:
        """That the source has these collections and no other, with just these records."""
        found = {definition.place: definition for definition in source.definitions()}
        assert len(found) == len(source.definitions()), "a collection is there twice"
        wanted = {self.place(definition): (definition, records) for definition, records in contents}
        assert sorted(found) == sorted(wanted)
        for place, (definition, records) in wanted.items():
            there = found[place]
            for name in self.carried:
                # as JSON, in which 3, 3.0 and true differ
                one, other = (json.dumps(getattr(each, name) or None, sort_keys=True) for each in (definition, there))
                assert one == other, f"{name} {one} came as {other}"
            assert there.count in (None, 0 if records is None else len(records)), f"a count of {there.count}"
            given = [some for some, _ in marked(source, there)]
            assert_same({} if records is None else records_of(records), gathered(given))
            assert digest_of(given) == digest_of([] if records is None else [records])

    def place(self, definition: Definition) -> tuple[str, str, str]:
        """Where this definition is found in the place."""
        return definition.place if self.databases else (*Definition("").place[:2], definition.name)
