"""An empty store that nobody emptied is not ready."""

from __future__ import annotations

from chromakeep.operations.sighting import Sighting


def test_what_goes_unasked_is_missed() -> None:
    """Until there is something again."""
    sighting = Sighting()
    sighting.seen(0)
    assert sighting.gone is None
    sighting.seen(3)
    sighting.seen(2)
    assert sighting.gone is None
    sighting.seen(0)
    assert sighting.gone and "all 2 collections" in sighting.gone
    sighting.seen(0)
    assert sighting.gone
    sighting.seen(1)
    assert sighting.gone is None


def test_what_was_deleted_is_not_missed() -> None:
    """However often somebody looks before the deletion has its effect; but not for ever."""
    now = 0.0
    sighting = Sighting(clock=lambda: now)
    sighting.seen(2)
    sighting.deleting()
    sighting.seen(2)
    sighting.seen(1)
    sighting.seen(0)
    sighting.seen(0)
    assert sighting.gone is None
    now = 61.0
    sighting.seen(0)
    assert sighting.gone is None
    sighting.seen(5)
    sighting.seen(0)
    assert sighting.gone


def test_it_is_known_to_who_starts_next() -> None:
    """Written down where the answer changes, and before a deletion can have its effect."""
    kept: list[int] = []
    first = Sighting(0, kept.append)
    for count in (0, 2, 3, 2):
        first.seen(count)
    assert kept == [2]
    again = Sighting(kept[-1], kept.append)
    again.seen(0)
    assert again.gone and kept == [2]
    once_more = Sighting(kept[-1], kept.append)
    once_more.seen(0)
    assert once_more.gone
    once_more.seen(1)
    once_more.deleting()
    assert not once_more.gone and kept == [2, 0]
    Sighting(kept[-1], kept.append).seen(0)
    last = Sighting(0, kept.append)
    last.seen(4)
    last.forget()
    last.seen(0)
    assert not last.gone and kept == [2, 0, 4, 0]


def test_what_cannot_be_written_down_is_tried_again() -> None:
    kept: list[int] = []

    def full(count: int) -> None:
        if not kept:
            kept.append(-1)
            raise OSError(28, "No space left on device")
        kept.append(count)

    sighting = Sighting(0, full)
    sighting.seen(2)
    sighting.seen(2)
    sighting.seen(2)
    assert kept == [-1, 2]


def test_that_it_is_gone_is_told_once() -> None:
    """And that there is something again, to who waits for it."""
    said, found = list[str](), list[int]()
    sighting = Sighting(observer=lambda event: said.append(str(event)))
    sighting.found = lambda: found.append(1)
    for count in (1, 0, 0, 1, 1):
        sighting.seen(count)
    assert len(said) == 2 and "the only collection is gone" in said[0] and found == [1]


def test_what_was_captured_before_there_were_any_is_no_loss() -> None:
    """A snapshot of the empty store that a fresh one is may take longer than the first collections."""
    now = 0.0
    sighting = Sighting(clock=lambda: now)
    sighting.seen(0)
    now = 5.0
    sighting.seen(2)
    sighting.captured(0, 4.0)
    assert not sighting.gone
    sighting.captured(2, 6.0)
    assert not sighting.gone
    now = 7.0
    sighting.captured(0, 6.0)
    assert sighting.gone
    known = Sighting(2, clock=lambda: now)
    known.captured(0, 6.0)
    assert known.gone
