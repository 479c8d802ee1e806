"""Listing backwards: no id that was there throughout is lost, whatever others do between two pages."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chromakeep.chroma import listing
from chromakeep.chroma.listing import Moved, backwards
from chromakeep.errors import SourceBusy


class Growing:
    """A collection in the order of insertion; ``chosen`` are those that satisfy a condition at the moment."""

    def __init__(self, count: int) -> None:
        self.rows = [f"id{n}" for n in range(count)]
        self.chosen = set(self.rows)
        self.next = count
        self.always = set(self.rows)

    def visible(self) -> list[str]:
        return [row for row in self.rows if row in self.chosen]

    def delete(self, id_: str) -> None:
        self.rows.remove(id_)
        self.always.discard(id_)

    def add(self, id_: str | None = None) -> None:
        self.rows.append(id_ or f"id{self.next}")
        self.chosen.add(self.rows[-1])
        self.next += 1

    def switch(self, id_: str) -> None:
        """Its metadata changes: it satisfies the condition or does no longer."""
        self.always.discard(id_)
        self.chosen ^= {id_}


def read(collection: Growing, size: int, top: int, between: Callable[[], object]) -> list[str]:
    def page(offset: int, limit: int) -> list[str]:
        between()
        return collection.visible()[offset : offset + limit]

    pages = list(backwards(page, top, size))
    assert all(pages)
    return [id_ for ids in reversed(pages) for id_ in ids]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 9, 10, 11, 100])
@pytest.mark.parametrize("top", [0, 1, 10, 99, 1000])
@pytest.mark.parametrize("size", [2, 3, 10, 1000])
def test_a_quiet_list_comes_whole_and_in_order(count: int, top: int, size: int) -> None:
    """Whatever its length was thought to be."""
    collection = Growing(count)
    assert read(collection, size, top, lambda: None) == collection.rows


@settings(max_examples=400, deadline=None)
@given(
    count=st.integers(0, 60),
    size=st.integers(2, 9),
    known=st.booleans(),
    filtered=st.booleans(),
    seed=st.integers(0, 1 << 32),
    pace=st.integers(0, 6),
)
def test_what_is_there_throughout_is_never_lost(
    count: int, size: int, known: bool, filtered: bool, seed: int, pace: int
) -> None:
    """Others delete, add, delete and add again, and change what a condition sees, between any two pages."""
    rng = random.Random(seed)
    collection = Growing(count)

    def between() -> None:
        for _ in range(rng.randint(0, pace)):
            kind = rng.choice(["delete", "delete", "low", "add", "again", "switch"])
            if kind == "add":
                collection.add()
            elif collection.rows:
                id_ = collection.rows[0] if kind == "low" else rng.choice(collection.rows)
                if kind == "switch":
                    if filtered:
                        collection.switch(id_)
                    continue
                collection.delete(id_)
                if kind == "again":
                    collection.add(id_)

    try:
        found = read(collection, size, count if known and not filtered else 0, between)
    except (Moved, SourceBusy):
        return
    assert collection.always <= set(found)
    assert len(set(found)) == len(found)
    order = {id_: n for n, id_ in enumerate(collection.rows)}
    kept = [order[id_] for id_ in found if id_ in collection.always]
    assert kept == sorted(set(kept)), "once each, in order"


def test_a_page_that_lost_what_was_read_begins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """When all that the reader knows of is deleted and older ones are not, it cannot know what it has read."""
    monkeypatch.setattr(listing, "RECENT", 5)
    collection = Growing(60)
    pages = 0

    def between() -> None:
        nonlocal pages
        pages += 1
        if pages == 5:
            for id_ in collection.rows[10:40]:
                collection.delete(id_)

    with pytest.raises(Moved):
        read(collection, 5, 60, between)


def test_a_list_without_an_end_is_given_up() -> None:
    """A server that always has one page more is not followed for ever."""
    counter = iter(range(1 << 60))
    with pytest.raises(SourceBusy):
        list(backwards(lambda offset, limit: [str(next(counter)) for _ in range(limit)], 0, 10))


def test_a_condition_that_flickers_is_given_up() -> None:
    """Where every page ends with what was never read, the reader does not step back for ever."""
    counter = iter(range(1 << 60))

    def page(offset: int, limit: int) -> list[str]:
        return [] if offset > 100 and next(counter) < 1 else [str(next(counter)) for _ in range(limit)]

    with pytest.raises(SourceBusy):
        list(backwards(page, 200, 10))
