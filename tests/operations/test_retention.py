"""Which snapshots a policy keeps, and why; and that prune does what its dry run said."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chromakeep.errors import UsageError
from chromakeep.operations.prune import Retention, prune, retained
from chromakeep.repository import Repository, Snapshot
from chromakeep.repository import sessions as sessions_
from chromakeep.repository.route import find
from chromakeep.repository.sessions import Session
from chromakeep.repository.snapshots import now, rfc3339
from chromakeep.store.memory import MemoryStore

START = datetime(2026, 1, 1, tzinfo=timezone.utc)


def at(*moments: datetime) -> list[Snapshot]:
    return [
        Snapshot(f"s{n}", rfc3339(m), "", "", "", "", None, (), (), 0, 0, 0.0) for n, m in enumerate(sorted(moments))
    ]


def kept(policy: Retention, *moments: datetime) -> list[str]:
    return sorted(retained(at(*moments), policy))


def test_the_newest_of_each_period() -> None:
    """Three days with three snapshots each: of each day, hour, month the newest stays; reasons say so."""
    moments = [START + timedelta(days=d, hours=h) for d in range(3) for h in (1, 9, 17)]
    assert kept(Retention(last=2), *moments) == ["s7", "s8"]
    assert kept(Retention(daily=2), *moments) == ["s5", "s8"]
    assert kept(Retention(hourly=4), *moments) == ["s5", "s6", "s7", "s8"]
    assert kept(Retention(monthly=5), *moments) == ["s8"]
    assert kept(Retention(daily=3, last=2), *moments) == ["s2", "s5", "s7", "s8"]
    assert retained(at(*moments), Retention(daily=1, last=1))["s8"] == ("last 1", "daily 1")


def test_weeks_are_those_of_iso_8601() -> None:
    """Sunday and Monday are of different weeks; the week of the turn of the year is one."""
    sunday, monday = datetime(2026, 1, 4, tzinfo=timezone.utc), datetime(2026, 1, 5, tzinfo=timezone.utc)
    assert kept(Retention(weekly=9), sunday, monday) == ["s0", "s1"]
    new_year = [datetime(2025, 12, 31, tzinfo=timezone.utc), datetime(2026, 1, 2, tzinfo=timezone.utc)]
    assert kept(Retention(weekly=9), *new_year) == ["s1"]
    assert kept(Retention(monthly=9), *new_year) == ["s0", "s1"]


def test_within_counts_from_the_newest() -> None:
    """Not from now: a repository nobody wrote to for a year keeps what it would have kept then."""
    moments = [START + timedelta(hours=h) for h in (0, 10, 23, 24)]
    assert kept(Retention(within=timedelta(hours=14)), *moments) == ["s1", "s2", "s3"]


counts = st.integers(0, 4)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 90 * 24 * 60), max_size=25, unique=True),
    st.builds(
        Retention, counts, counts, counts, counts, counts, st.none() | st.timedeltas(timedelta(1), timedelta(30))
    ),
)
def test_any_policy(minutes: list[int], policy: Retention) -> None:
    """The newest stays under every policy that keeps anything; a policy that asks for more keeps no less; each rule
    keeps no more than it says."""
    found = at(*(START + timedelta(minutes=m) for m in minutes))
    reasons = retained(found, policy)
    if reasons:
        assert found[-1].id in reasons
    for name in ("last", "hourly", "daily", "weekly", "monthly"):
        told = [r for why in reasons.values() for r in why if r.startswith(f"{name} ")]
        assert len(told) <= getattr(policy, name) and len(set(told)) == len(told)
        more = msgspec.structs.replace(policy, **{name: getattr(policy, name) + 1})
        assert set(reasons) <= set(retained(found, more))


def test_a_policy_that_keeps_nothing_is_refused(backed_up: Callable[..., Repository]) -> None:
    repository = backed_up(0)
    with pytest.raises(UsageError) as raised:
        prune(repository, Retention())
    assert "--keep-last" in (raised.value.hint or "") and len(repository.snapshots()) == 1


def test_a_dry_run_says_what_will_be_done_and_does_nothing(backed_up: Callable[..., Repository]) -> None:
    """Same snapshots kept and removed, no object written or deleted; an empty repository has nothing to prune."""
    repository = backed_up(0, 1, 2)
    before = {o.name: o.modified for o in repository.store.list()}
    told = prune(repository, Retention(last=1), dry_run=True)
    assert told.dry_run and {o.name: o.modified for o in repository.store.list()} == before
    done = prune(repository, Retention(last=1), wait=0)
    assert (told.kept, told.removed) == (done.kept, done.removed) and len(done.removed) == 2
    assert msgspec.json.encode(done)
    assert [s.id for s in repository.snapshots()] == [done.kept[0].id]
    assert prune(backed_up(), Retention(last=1)).removed == ()


@pytest.mark.parametrize("ahead", [timedelta(hours=1), timedelta(days=400), timedelta(days=-400)])
def test_a_clock_that_was_wrong_for_a_while_does_not_hide_what_came_later(
    monkeypatch: pytest.MonkeyPatch, ahead: timedelta
) -> None:
    """The newest snapshot is the one that was made last, and prune keeps it as that."""
    repository = Repository.create(MemoryStore())
    made: list[str] = []
    for wrong in (timedelta(), ahead, timedelta(), timedelta()):
        moment = now() + wrong
        monkeypatch.setattr(sessions_, "now", lambda moment=moment: moment)
        session = Session.start(repository)
        made.append(session.id)
        session.commit(msgspec.structs.replace(at(moment)[0], id=session.id))
    assert [s.id for s in repository.snapshots()] == sorted(made) == made
    assert repository.find("latest").id == find(repository, "latest").snapshot.id == made[-1]
    monkeypatch.undo()
    assert made[-1] in retained(repository.snapshots(), Retention(last=1))
    within = retained(repository.snapshots()[:2], Retention(within=timedelta(days=7)))
    assert set(within) == set(made[:2])
