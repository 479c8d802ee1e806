"""Moments: what the log tells of collections and of many records, and the instant just before."""

from __future__ import annotations

import pytest

from chromakeep.changes import CREATED, DELETED, RENAMED, WROTE, Change, Moment
from chromakeep.errors import SnapshotNotFound
from chromakeep.repository import Repository, horizon
from chromakeep.repository.log import Log, Segment, name_of
from chromakeep.repository.moments import before, happenings
from chromakeep.repository.route import Route, find
from chromakeep.repository.snapshots import encode
from chromakeep.store.memory import MemoryStore
from repository.logs import snapshot, write


def at(second: int) -> str:
    return f"2026-08-01T12:{second // 60:02d}:{second % 60:02d}.000Z"


def moment(kind: str, name: str = "books", added: int = 0, deleted: int = 0) -> Moment:
    return Moment(kind, f"id of {name}", "t", "d", name, added, 0, deleted)


def written(*changes: tuple[int, tuple[Moment, ...]]) -> Repository:
    """A repository with a log of these moments, a segment each."""
    repository = Repository.create(MemoryStore())
    log = Log(repository)
    log.append(1, 1, Segment((Change(at(0), 0, whole=True),), base="b"))
    for number, (second, moments) in enumerate(changes, 2):
        log.append(1, number, Segment((Change(at(second), number, moments=moments),)))
    return repository


def told(repository: Repository, **options: int) -> list[tuple[str, str, int, str, str]]:
    return [(one.kind, one.name, one.records, one.time, one.before) for one in happenings(repository, **options)]


def test_collections_are_told_with_the_state_before() -> None:
    """Made, renamed, deleted."""
    repository = written((5, (moment(CREATED),)), (9, (moment(RENAMED, "tomes"),)), (20, (moment(DELETED, "tomes"),)))
    assert told(repository) == [
        ("created", "books", 0, at(5), at(0)),
        ("renamed", "tomes", 0, at(9), at(5)),
        ("deleted", "tomes", 0, at(20), at(9)),
    ]


def test_many_records_in_a_row_are_one_thing() -> None:
    """Batches of one import are added up, a pause ends it; a few records are not worth telling."""
    repository = written(
        *[(n, (moment(WROTE, added=60),)) for n in range(1, 6)],
        (60, (moment(WROTE, added=40),)),
        (90, (moment(WROTE, deleted=5000), moment(WROTE, "laws", added=100))),
    )
    assert told(repository) == [
        ("imported", "books", 300, at(1), at(0)),
        ("imported", "laws", 100, at(90), at(60)),
        ("removed", "books", 5000, at(90), at(60)),
    ]
    assert len(told(repository, many=1)) == 4


def test_the_instant_before_something_is_found_by_its_name() -> None:
    """The last time it happened; any collection, one by name, in letters of any case."""
    repository = written(
        (5, (moment(CREATED),)),
        (10, (moment(DELETED),)),
        (20, (moment(DELETED, "a-b.c"),)),
        (30, (moment(WROTE, deleted=200),)),
    )
    for text, second in (
        ("before:books-deleted", 5),
        ("before:COLLECTION-DELETED", 10),
        ("before:deleted", 10),
        ("before:a-b.c-deleted", 10),
        ("before:books-removed", 20),
        ("before:books-created", 0),
    ):
        assert before(repository, text) == at(second), text
    for text in ("before:laws-deleted", "before:books", "before:", "before:books-burnt"):
        with pytest.raises(SnapshotNotFound, match="knows no"):
            before(repository, text)
        with pytest.raises(SnapshotNotFound):
            find(repository, text)


def test_a_state_that_is_continued_is_none() -> None:
    """Between the two halves of one write nothing can be restored."""
    repository = Repository.create(MemoryStore())
    log = Log(repository)
    log.append(1, 1, Segment((Change(at(0), 0, whole=True),), base="b"))
    log.append(1, 2, Segment((Change(at(1), 1, more=True),)))
    log.append(1, 3, Segment((Change(at(2), 2, moments=(moment(DELETED),)),)))
    assert told(repository) == [("deleted", "books", 0, at(2), at(0))]


def test_of_a_log_that_was_trimmed_the_rest_is_told() -> None:
    """What lies behind the horizon is gone on purpose."""
    repository = written((5, (moment(CREATED),)), (9, ()), (20, (moment(DELETED),)))
    horizon.declare(repository, (1, 3))
    repository.store.delete(name_of(1, 2))
    assert told(repository) == [("deleted", "books", 0, at(20), at(9))]


def test_the_beginning_of_an_id_is_that_snapshot_also_where_it_reads_like_an_instant() -> None:
    """A log that reaches to that second does not change what an id means."""
    store = MemoryStore()
    repository = Repository.create(store)
    one = snapshot("20260801T120003500Z-00000000000000aa", 3)
    repository.put_sealed("S", f"snapshots/{one.id}", encode(one))
    write(store, 1, range(1, 9), base=one.id)
    for selector in ("20260801T120003", "20260801T1200", one.id):
        assert find(repository, selector) == Route(one)
    assert find(repository, at(5)).legs


@pytest.mark.parametrize("selector", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
def test_an_instant_outside_of_all_time_is_not_found(selector: str) -> None:
    """As any other text that says nothing."""
    repository = Repository.create(MemoryStore())
    one = snapshot("one", 3)
    repository.put_sealed("S", "snapshots/one", encode(one))
    write(repository.store, 1, range(1, 3), base="one")
    with pytest.raises(SnapshotNotFound):
        find(repository, selector)
