"""Collections in PostgreSQL as a sink of records: loaded by COPY, indexed when all is there, visible in one step.

A new collection is built where nobody sees it (``arrivals``); ``skip`` and ``upsert`` write into the one that is there.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import psycopg
from msgspec.structs import replace
from numpy.typing import NDArray

from chromakeep.batches import decode, vectors_of
from chromakeep.engine import CollectionWanted, Refused, Target, Vectors, Written
from chromakeep.errors import ServerAnswered, ServerFailed, TargetNotEmpty, UsageError
from chromakeep.events import Noted, Observer, ignore
from chromakeep.postgres import arrivals, catalog, schemas, writing
from chromakeep.postgres.engine import kinds
from chromakeep.postgres.held import Held
from chromakeep.postgres.pool import Pool
from chromakeep.postgres.refusals import Vanished, explained, words
from chromakeep.postgres.source import described
from chromakeep.postgres.upkeep import settle
from chromakeep.records import Definition, Limits, Mark, Speed, check_conflict

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")
SPEED = Speed(6500, 40e6)
PATIENCE = 120.0  # seconds for which a server that is away is asked again
BARE = 63  # records without a vector that are written at once
FIRST = (0.1, 5.0)  # seconds before the second try, and the most between two


class PostgresSink:
    """Collections go to ``tenant`` and ``database``, or where these are None to those of their definitions."""

    several = True
    speed = SPEED

    def __init__(
        self,
        pool: Pool,
        tenant: str | None = None,
        database: str | None = None,
        *,
        storage: str = "vector",
        quickly: bool = False,
        observer: Observer = ignore,
    ) -> None:
        """``quickly``: the first index is one that stands soon (see ``upkeep.settle``); else the final one."""
        self.pool, self.tenant, self.database = pool, tenant, database
        self._storage, self._quickly, self._observer = storage, quickly, observer
        self.run = ""  # what marks those of its collections that are not published yet
        self._stack = ExitStack()  # what holds the run's lock

    def definitions(self) -> Sequence[Definition]:
        """See ``Sink``; nothing is counted."""
        return self.ask(lambda connection: described(connection, self.tenant, self.database))

    def find(self, place: tuple[str, str, str]) -> Definition | None:
        """The collection that is there of this tenant, database and name, if there is one."""
        wanted = self._placed(Definition(place[2], tenant=place[0], database=place[1])).place
        return next(iter(self.ask(lambda connection: described(connection, *wanted))), None)

    def check(self, definition: Definition, *, conflict: str = "fail") -> None:
        """See ``Sink``."""
        check_conflict(conflict)

    def collection(self, definition: Definition, *, conflict: str = "fail", mark: Mark = None) -> PostgresIntake:
        """See ``Sink``. Raises ``TargetNotEmpty``; ``UsageError`` for another dimension, and for what the engine
        refuses of its settings."""
        self.check(definition, conflict=conflict)
        definition = self._placed(definition)
        if mark is not None:
            return self._resumed(definition, conflict, mark)
        there = self.find(definition.place)
        if there is not None and conflict == "fail":
            raise TargetNotEmpty(
                f"PostgreSQL has a collection {definition.name!r} already",
                hint="say what is to become of it: --on-conflict skip, upsert or replace",
            )
        if there is not None and conflict != "replace":
            return self._into(there, definition, conflict)
        self._hold(secrets.token_hex(8))
        wanted = self._wanted(definition)

        def begin(connection: psycopg.Connection[Any]) -> Held:
            held = arrivals.begin(connection, self.run, definition, wanted, self._storage)
            arrivals.expect(connection, self.run, held, definition, replaces=conflict == "replace")
            return held

        held = self.ask(begin, write=True)
        return PostgresIntake(self, held, "add", {"run": self.run, "id": held.id}, arriving=True)

    def finished(self, definition: Definition, mark: Mark, *, existed: bool) -> bool:
        """As of ``copy.Remembers``."""
        with suppress(UsageError):
            self._resumed(self._placed(definition), "skip", mark)
            return True
        there = self.find(definition.place)
        return there is not None and there.id == mark["id"]

    def delete(self, definition: Definition, ids: Sequence[str]) -> None:
        """Take records away. When it returns they are gone; ids that are not there change nothing."""
        target = Target(*definition.place[:2], definition.id)
        self.ask(lambda c: writing.delete(c, catalog.held(c, target), ids, None, None), write=True)

    def drop(self, definition: Definition) -> None:
        """Take a whole collection away; one of that name that was made since stays."""
        there = self.find(definition.place)
        if there is not None and there.id == definition.id:
            self.ask(lambda c: catalog.drop_collection(c, *there.place), write=True)

    def publish(self) -> None:
        """All that are finished become visible in one transaction."""
        if self.run:
            for name, kept in self.ask(lambda connection: arrivals.publish(connection, self.run), write=True):
                self._observer(
                    Noted(f"the collection that was {name} is kept as {kept}; delete it when you do not need it")
                )

    def close(self) -> None:
        """See ``Sink``."""
        self._stack.close()
        self.pool.close()

    def ask(self, work: Callable[[psycopg.Connection[Any]], T], *, write: bool = False) -> T:
        """A transaction; tried again while the server is away, for all that is written here may be written twice.

        Raises ``ServerFailed`` for what the engine refuses.
        """
        end, pause = time.monotonic() + PATIENCE, FIRST[0]
        while True:
            try:
                return self.pool.run(work, write=write)
            except Vanished as error:
                raise ServerFailed(f"a collection that the copy needs is gone: {error}") from None
            except Refused as error:
                if error.status not in (503, 504) or time.monotonic() > end:
                    raise ServerAnswered(error.status, explained(error)) from None
            time.sleep(pause)
            pause = min(2 * pause, FIRST[1])

    def indexed(self, held: Held, *, alone: bool) -> None:
        """Give a collection that is whole its indexes; ``alone``: nobody else sees it."""
        try:
            settle(self.pool, held, quickly=self._quickly, alone=alone)
        except (Refused, psycopg.Error) as error:  # whoever serves it builds them, too
            self._observer(Noted(f"the indexes of {held.name} are not built yet: {explained(error)}", "warning"))

    # -- beginning and going on -----------------------------------------------------------------------------------

    def _placed(self, definition: Definition) -> Definition:
        return replace(
            definition, tenant=self.tenant or definition.tenant, database=self.database or definition.database
        )

    def _hold(self, run: str) -> None:
        if self.run:
            return
        try:
            connection = self._stack.enter_context(self.pool.autocommit())
        except Refused as error:
            raise ServerAnswered(error.status, explained(error)) from None
        end, pause = time.monotonic() + PATIENCE, FIRST[0]
        try:
            # Of a run that is gone on with PostgreSQL may not have noticed yet that the process before is gone.
            while not arrivals.hold(connection, run):
                if time.monotonic() > end:
                    raise ServerFailed("another process is at this copy", hint="wait until it has ended, or end it")
                time.sleep(pause)
                pause = min(2 * pause, FIRST[1])
        except psycopg.Error as error:
            raise ServerFailed(f"the connection to PostgreSQL was lost: {words(error)}", hint="run it again") from None
        self.run = run

    def _resumed(self, definition: Definition, conflict: str, mark: Mark) -> PostgresIntake:
        try:
            run, identity = str(mark["run"]), str(mark["id"])
        except (KeyError, TypeError):
            raise UsageError("this is no mark of a collection in PostgreSQL", hint="begin the copy anew") from None
        if not run:
            there = self.find(definition.place)
            if there is None or there.id != identity:
                raise _gone(definition)
            return self._into(there, definition, conflict)
        self._hold(run)
        try:
            held = self.ask(lambda connection: arrivals.find(connection, run, identity))
        except ServerAnswered:
            raise _gone(definition) from None
        return PostgresIntake(self, held, "add", mark, arriving=True)

    def _into(self, there: Definition, definition: Definition, conflict: str) -> PostgresIntake:
        if None not in (there.dimension, definition.dimension) and there.dimension != definition.dimension:
            raise UsageError(
                f"{definition.name} has {there.dimension} dimensions there, and here {definition.dimension}",
                hint="give it another name (--rename A=B), or replace it (--on-conflict replace)",
            )
        if there.space != definition.space:
            self._note(
                f"{definition.name} is there with the space {there.space}, and stays so; here it is {definition.space}"
            )
        target = Target(there.tenant, there.database, there.id)
        held = self.ask(lambda connection: catalog.held(connection, target))
        way = "replace" if conflict == "upsert" else "add"
        return PostgresIntake(self, held, way, {"run": "", "id": there.id}, arriving=False)

    def _wanted(self, definition: Definition) -> CollectionWanted:
        """What it is created with: the schema says all that a configuration does, where it is that of a Chroma."""
        metadata, configuration, schema = definition.metadata, definition.configuration, definition.schema
        if schema is not None:
            try:
                made = schemas.schema_of(metadata, None, schema)
                if configuration is None or schemas.configuration_of(made) == configuration:
                    return CollectionWanted(definition.name, metadata, None, schema)
            except (Refused, KeyError, TypeError):
                pass  # of another version; what it says beside the configuration is lost
            self._note(f"{definition.name}: its schema is not taken, only its configuration")
        wanted = CollectionWanted(definition.name, metadata, configuration, None)
        try:
            made = schemas.schema_of(metadata, configuration, None)
        except Refused as error:
            self._note(f"{definition.name}: its configuration is not taken, only its space: {error.message}")
            wanted = CollectionWanted(definition.name, metadata, {"hnsw": {"space": definition.space}}, None)
            made = schemas.schema_of(metadata, wanted.configuration, None)
        if schemas.configuration_of(made)["hnsw"]["space"] != definition.space:
            raise UsageError(f"{definition.name} would not keep its space {definition.space}")
        return wanted

    def _note(self, message: str) -> None:
        self._observer(Noted(message, "warning"))


class PostgresIntake:
    """One collection while it is written. Records keep their order."""

    def __init__(self, sink: PostgresSink, held: Held, way: str, mark: Mark, *, arriving: bool) -> None:
        self.limits = Limits(writers=1, records=4096)
        self._sink, self._held, self._way, self._mark, self._arriving = sink, held, way, mark, arriving

    def write(self, batch: pa.RecordBatch) -> None:
        """See ``Intake``: in one transaction, durable when it returns."""
        vectors, present = vectors_of(batch)
        ids = batch.column("id").to_pylist()
        documents, uris = batch.column("document").to_pylist(), batch.column("uri").to_pylist()
        metadatas = [decode(text) for text in batch.column("metadata").to_pylist()]
        parts: list[tuple[NDArray[np.intp], Vectors | None]] = []
        whole = np.flatnonzero(present)
        if len(whole):
            parts.append((whole, np.ascontiguousarray(vectors[whole], np.float32)))
        bare = np.flatnonzero(~present)
        parts += [(bare[at : at + BARE], None) for at in range(0, len(bare), BARE)]

        seen = kinds(metadatas)

        def work(connection: psycopg.Connection[Any]) -> None:
            if self._way == "replace":
                writing.delete(connection, self._held, ids, None, None)
            for chosen, embeddings in parts:
                writing.add(
                    connection,
                    self._held,
                    Written(
                        [ids[i] for i in chosen],
                        embeddings,
                        None,
                        [documents[i] for i in chosen],
                        [uris[i] for i in chosen],
                        [metadatas[i] for i in chosen],
                    ),
                )
            catalog.seen(connection, self._held, seen)

        self._sink.ask(work, write=True)
        self._known(vectors.shape[1] if len(whole) else None)

    def _known(self, dimension: int | None) -> None:
        if self._held.dimension is None and dimension is not None:
            self._held = replace(self._held, dimension=dimension)

    def mark(self) -> Mark:
        """See ``Intake``."""
        return self._mark

    def finish(self) -> None:
        """All is there: the indexes are made."""
        if self._held.dimension is not None:
            self._sink.indexed(self._held, alone=self._arriving)
        if self._arriving:
            self._sink.ask(lambda connection: arrivals.finish(connection, self._held), write=True)


def _gone(definition: Definition) -> UsageError:
    return UsageError(
        f"the collection {definition.name!r} that the copy was writing is not there any more",
        hint="begin the copy anew",
    )
