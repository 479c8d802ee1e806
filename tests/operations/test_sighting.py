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
    sighting = Sighting(lambda: now)
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
