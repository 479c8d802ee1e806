"""What of the requests goes into the audit log."""

from __future__ import annotations

import pytest

from chromakeep.operations.audit_chain import LONGEST, forge
from chromakeep.server.auditing import MOST_DENIALS, Auditing
from server.accounts import COLLECTION, account


def recorded(*accounts: object, times: tuple[float, ...] = ()) -> list[dict[str, object]]:
    """The records of these requests, ended one a second."""
    found: list[dict[str, object]] = []
    auditing = Auditing(found.append)
    for number, one in enumerate(accounts):
        auditing.begun(one)  # type: ignore[arg-type]
        auditing.ended(one, times[number] if times else float(number))  # type: ignore[arg-type]
    auditing.close()
    return found


def test_a_write_is_recorded_with_who_what_where_how_many_and_what_came_of_it() -> None:
    """The whole record; no query."""
    trace = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    one = account(
        target=COLLECTION + "/add?x=SECRET",
        records=7,
        route="collection.add",
        tenant="acme",
        database="prod",
        collection="books",
        status=201,
        trace=trace,
    )
    assert recorded(one) == [
        {
            "event": "write",
            "key": "",
            "key_id": "",
            "peer": "192.0.2.7",
            "method": "POST",
            "route": "collection.add",
            "path": COLLECTION + "/add",
            "tenant": "acme",
            "database": "prod",
            "collection": "books",
            "records": 7,
            "status": 201,
            "outcome": "done",
            "trace": "4bf92f3577b34da6a3ce929d0e0e4736",
        }
    ]


@pytest.mark.parametrize(
    ("method", "path", "written"),
    [
        ("POST", COLLECTION + "/add", True),
        ("POST", COLLECTION + "/delete", True),
        ("PUT", COLLECTION, True),
        ("DELETE", COLLECTION, True),
        ("POST", "/api/v2/reset", True),
        ("POST", "/_keep/receive/0123/finish", True),
        ("POST", "/_keep/receive/rollback", True),
        ("PUT", "/_keep/receive/0123/7", False),
        ("GET", COLLECTION + "/count", False),
        ("POST", COLLECTION + "/query", False),
        ("POST", COLLECTION + "/get", False),
        ("GET", "/metrics", False),
    ],
)
def test_writes_are_recorded_and_reads_are_not(method: str, path: str, written: bool) -> None:
    """What counts as a write counts as one for the gate."""
    assert bool(recorded(account(method, path))) == written


@pytest.mark.parametrize(
    ("status", "outcome"), [(0, "unanswered"), (201, "done"), (409, "refused"), (503, "failed"), (500, "failed")]
)
def test_an_outcome_is_told_in_a_word(status: int, outcome: str) -> None:
    """A write without an answer may have been done."""
    (record,) = recorded(account(target=COLLECTION + "/add", status=status))
    assert (record["outcome"], record["records"]) == (outcome, None)


@pytest.mark.parametrize("status", [401, 403, 429])
def test_denials_are_recorded_whatever_was_asked_for(status: int) -> None:
    """Reads too."""
    (record,) = recorded(account("GET", COLLECTION + "/count", status=status))
    assert (record["event"], record["status"], record["outcome"]) == ("denied", status, "refused")


def test_a_guesser_cannot_fill_the_disk() -> None:
    """A hundred denials in a minute are recorded one by one, of others how many there were."""
    many = [account(status=401) for _ in range(1000)]
    found = recorded(*many, account(status=401), times=(*[5.0] * 1000, 65.0))
    assert [r["event"] for r in found] == ["denied"] * MOST_DENIALS + ["denied more", "denied"]
    assert found[MOST_DENIALS]["requests"] == 1000 - MOST_DENIALS
    assert recorded(*many, times=(5.0,) * 1000)[-1] == {"event": "denied more", "requests": 900}


def test_the_use_of_a_key_is_recorded_once_an_hour_for_each_peer() -> None:
    """Of reads too; without a key there is none."""
    one, other = account(key="app"), account(key="app", peer="192.0.2.8")
    found = recorded(one, one, other, one, one, account(), times=(0.0, 5.0, 6.0, 3599.0, 3600.0, 3601.0))
    assert [(r["event"], r["key"], r["peer"]) for r in found] == [
        ("key", "app", "192.0.2.7"),
        ("key", "app", "192.0.2.8"),
        ("key", "app", "192.0.2.7"),
    ]


def test_the_longest_record_is_one_that_is_believed() -> None:
    """Names are cut before a line gets too long to be read again."""
    long = "\U0001f600" * 100_000
    one = account(long, COLLECTION + "/x" * 100_000, tenant=long, database=long, collection=long, key=long)
    for record in recorded(one):
        assert len(forge(1, "0" * 16, "0" * 64, {"time": "x" * 24, **record})[0]) < LONGEST


def test_subjects_whose_names_are_alike_are_told_apart() -> None:
    """Of one issuer `a|b` and `a-b` have one name, and anybody may choose his."""
    one, other = (
        account(key="oidc.a-b", identity=identity, route="collection.get") for identity in ("1" * 16, "2" * 16)
    )
    found = recorded(one, other, one)
    assert [(r["event"], r["key"], r["key_id"]) for r in found] == [
        ("key", "oidc.a-b", "1" * 16),
        ("key", "oidc.a-b", "2" * 16),
    ]
