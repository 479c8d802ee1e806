"""Changes: what a database has that it had not at the last look, in a form that any copy of it can be brought up with.

A change leads from any state that lies between two looks to the later one: whatever rows of it are there already, and
whatever the catalog was. So it may be applied to a copy that has some of it, and twice is once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

CREATED, DELETED, RENAMED, WROTE = "created", "deleted", "renamed", "wrote"


class Row(NamedTuple):
    """One row of ``embeddings_queue``. Texts are UTF-8; ``operation`` is Chroma's number for it."""

    seq: int
    created: str
    operation: int
    topic: str
    id: bytes
    vector: bytes | None
    encoding: str | None
    metadata: bytes | None


class Position(msgspec.Struct, frozen=True):
    """How far a queue was read: ``rows`` has by collection the last row of its own, ``last`` the number and topic of
    the last one of all."""

    rows: dict[str, int]
    last: tuple[int, str] | None = None


class Moment(NamedTuple):
    """Something worth going back to: a collection created, deleted or renamed, or how many rows of which kind it got.

    ``name`` is the collection's at that time, with its tenant and database; the counts are of queue rows.
    """

    kind: str
    collection: str
    tenant: str
    database: str
    name: str
    added: int = 0
    updated: int = 0
    deleted: int = 0


class Table(msgspec.Struct, frozen=True):
    """Rows of one catalog table: those to have, each led by its row number, and numbers of those that are gone."""

    columns: tuple[str, ...]
    put: tuple[tuple[Any, ...], ...] = ()
    gone: tuple[int, ...] = ()


class Change(msgspec.Struct, frozen=True):
    """``time`` (RFC 3339, UTC) is that of the later look, ``counter`` SQLite's change counter then.

    ``whole``: the tables hold all their rows. ``more``: the next change goes on with this one, and only both together
    are a state that was there.
    """

    time: str
    counter: int
    rows: tuple[Row, ...] = ()
    tables: dict[str, Table] = msgspec.field(default_factory=dict)
    moments: tuple[Moment, ...] = ()
    whole: bool = False
    more: bool = False
