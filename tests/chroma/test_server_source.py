"""A real Chroma as the source of copies: exactness, lists of ids under writers, marks, servers that are not well."""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from chroma.at_server import TENANT, AtServer, cloud_key, impatient
from chromakeep.chroma import connection as connections
from chromakeep.chroma import fetch, wire
from chromakeep.chroma.api import Api, tenant_path
from chromakeep.chroma.connection import ANYTHING, Connection
from chromakeep.chroma.roll import Roll
from chromakeep.chroma.server_sink import ServerSink
from chromakeep.chroma.server_source import ServerSource, is_served
from chromakeep.conditions import Where
from chromakeep.errors import (
    ChromakeepError,
    ServerAnswered,
    ServerFailed,
    ServerSilent,
    SourceBusy,
    SourceError,
    UsageError,
)
from chromakeep.events import Event, Retried
from chromakeep.records import Definition
from chromakeep.testing.records_suite import Contents, SourceSuite, put
from chromakeep.testing.specimens import assert_same, gathered, held, ordinary, records_of
from servers.chroma_cloud import AT_A_TIME, TOKEN, cloud
from servers.fault_proxy import Fault, FaultProxy
from servers.middle import Answer, Asked, Middle, forwarder, of_json, told


@pytest.fixture(autouse=True)
def no_time_to_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_FIRST_DELAY", 0.02)


class TestServerSource(AtServer, SourceSuite):
    """Each test has a database of its own; lists of ids are kept, and come in many pages."""

    def fill(self, tmp_path: Path, contents: Contents) -> None:
        with closing(ServerSink(Connection(self.url), TENANT, self.database)) as sink:
            for definition, records in contents:
                intake = sink.collection(definition)
                if records is not None:
                    put(intake, records)
                intake.finish()

    def make_source(self, tmp_path: Path) -> ServerSource:
        return ServerSource(Connection(self.url), TENANT, self.database, plan=tmp_path / "plan", page=50)


# -- one collection of its own for each test --------------------------------------------------------------------------


class Place:
    """A collection in a database of its own."""

    def __init__(self, url: str, database: str) -> None:
        self.url, self.database = url, database
        self.records = "(none)"
        Api(Connection(url)).make(f"{tenant_path(TENANT)}/databases", database)
        base = f"/tenants/{TENANT}/databases/{database}/collections"
        self.id = self.ask("POST", base, {"name": "sample"})["id"]
        self.path = f"{base}/{self.id}"

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        with closing(Connection(self.url)) as connection:
            return connection.request(method, path, msgspec.json.encode(body) if body else None, decoder=ANYTHING)

    def add(self, ids: list[str], **columns: Any) -> None:
        vectors = columns.pop("embeddings", None) or [[len(ids), n, 1] for n in range(len(ids))]
        self.ask("POST", f"{self.path}/add", {"ids": ids, "embeddings": vectors, **columns})

    def delete(self, ids: list[str]) -> None:
        self.ask("POST", f"{self.path}/delete", {"ids": ids})

    def source(
        self, url: str | None = None, *, patience: float = 2.0, timeout: float = 30.0, **options: Any
    ) -> ServerSource:
        connection = Connection(
            url or self.url,
            token=cloud_key(options.pop("token", None)),
            patience=patience,
            timeout=timeout,
            observer=options.pop("observer", lambda event: None),
        )
        return ServerSource(connection, TENANT, self.database, **options)


@pytest.fixture
def place(url: str, tmp_path: Path) -> Place:
    return Place(url, hashlib.blake2b(str(tmp_path).encode(), digest_size=8).hexdigest())


@pytest.fixture
def middle(url: str) -> Iterator[Middle]:
    middle = Middle(forwarder(url))
    yield middle
    middle.stop()


def all_of(source: ServerSource, **options: Any) -> list[str]:
    """The ids of the one collection, in the order in which they come."""
    (definition,) = source.definitions()
    return [id_ for records, _ in source.batches(definition, **options) for id_ in records.column("id").to_pylist()]


def names(count: int, start: int = 0) -> list[str]:
    return [f"id{n}" for n in range(start, start + count)]


# -- tenants and databases --------------------------------------------------------------------------------------------


def test_a_database_or_all_of_a_tenant(url: str) -> None:
    """With unusual names; each collection says where it is, and how many records it has."""
    api, tenant = Api(Connection(url)), "ten ant/ü?x=1"
    api.make("/tenants", tenant)
    for database in ("one", "two", "none"):
        api.make(f"{tenant_path(tenant)}/databases", database)
    with closing(ServerSink(Connection(url), tenant)) as sink:
        for database, count in (("one", 3), ("two", 5)):
            intake = sink.collection(Definition("sample", dimension=3, database=database))
            put(intake, ordinary(count))
            intake.finish()
    with closing(ServerSource(Connection(url), tenant)) as source:
        assert {(*d.place, d.count, d.dimension) for d in source.definitions()} == {
            (tenant, "one", "sample", 3, 3),
            (tenant, "two", "sample", 5, 3),
        }
        assert sorted(len(held(source, d)) for d in source.definitions()) == [3, 5]
    with closing(ServerSource(Connection(url), tenant, "two")) as source:
        assert [(d.database, d.count) for d in source.definitions()] == [("two", 5)]
    with closing(ServerSource(Connection(url), tenant, "none")) as source:
        assert not source.definitions()


@pytest.mark.parametrize(("tenant", "database"), [("nobody", None), ("nobody", "x" * 5), ("default_tenant", "nothing")])
def test_what_is_not_there_is_no_empty_place(url: str, tenant: str, database: str | None) -> None:
    """A name that was mistyped is an error, and nothing is created."""
    with closing(ServerSource(Connection(url), tenant, database)) as source, pytest.raises(UsageError, match="has no"):
        source.definitions()


def test_many_collections(url: str, place: Place) -> None:
    """More than come in one page."""
    base = place.path.rpartition("/")[0]
    for n in range(130):
        place.ask("POST", base, {"name": f"many-{n}"})
    with closing(place.source()) as source:
        assert sorted(d.name for d in source.definitions()) == sorted(["sample", *[f"many-{n}" for n in range(130)]])


# -- others write meanwhile -------------------------------------------------------------------------------------------


def test_no_id_is_lost_while_others_delete_and_add(place: Place) -> None:
    """Threads delete rows that were read already and rows that were not, and add new ones, at the real server: every
    record that was there throughout comes, each once. By offsets alone, forwards, they do not."""
    first = 2000
    for start in range(0, first, 500):
        place.add(names(500, start))
    stay = set(names(first)[1::2])
    doomed = names(first)[0::2]
    random.Random(7).shuffle(doomed)
    stop = threading.Event()

    def deleter(ids: list[str]) -> None:
        for at in range(0, len(ids), 25):
            if stop.is_set():
                return
            place.delete(ids[at : at + 25])

    def adder() -> None:
        n = first
        while not stop.is_set():
            place.add(names(20, n))
            n += 20

    threads = [
        threading.Thread(target=deleter, args=(doomed[:500],)),
        threading.Thread(target=deleter, args=(sorted(doomed[500:], key=lambda id_: int(id_[2:])),)),
        threading.Thread(target=adder),
    ]
    try:
        with closing(place.source(page=40)) as source:
            (definition,) = source.definitions()
            for thread in threads:
                thread.start()
            found = [id_ for records, _ in source.batches(definition) for id_ in records.column("id").to_pylist()]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert stay <= set(found)
    assert len(set(found)) == len(found)


def test_forwards_by_offset_loses_rows(place: Place) -> None:
    """The fact that all this is for: deletes of what was read make a reader by offsets step over other rows."""
    place.add(names(100))
    found: list[str] = []
    while page := place.ask("POST", f"{place.path}/get", {"offset": len(found), "limit": 10, "include": []})["ids"]:
        found += page
        if len(found) == 50:
            place.delete(names(20))
    assert set(names(100)) - set(found) == set(names(20, 50))


def test_what_is_deleted_after_it_was_listed_is_absent(place: Place) -> None:
    """And nothing else is; a batch of which nothing is left does not come."""
    place.add(names(600))
    with closing(place.source()) as source:
        (definition,) = source.definitions()
        reader = source.batches(definition)
        records, _ = next(reader)
        found = records.column("id").to_pylist()
        # Up to five requests are under way; what is asked for later is gone.
        place.delete(names(600)[1::2])
        rest = [id_ for records, _ in reader for id_ in records.column("id").to_pylist()]
    assert set(names(600)[0::2]) <= {*found, *rest} and len({*found, *rest}) == len(found) + len(rest)
    assert [*found, *rest] == sorted([*found, *rest], key=lambda id_: int(id_[2:]))


def test_a_record_that_is_deleted_while_it_is_read(
    place: Place, middle: Middle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chroma 1.5 then answers the whole request with an error, as it has the metadata and not the vector any more: it
    is asked again. A record that never has a vector is named."""
    monkeypatch.setattr(fetch, "_PAUSE", 0.005)  # here alone: a real server has the time that it needs
    place.add(names(20))
    forward = forwarder(place.url)
    left = iter(range(2))
    torn = told(500, "Error executing plan: Internal error: Error finding id", "InternalError")

    def racing(asked: Asked) -> Answer:
        return torn if asked.body and "ids" in asked.json and next(left, None) is not None else forward(asked)

    middle.answer = racing
    with closing(place.source(middle.url)) as source:
        assert all_of(source) == names(20)
        middle.answer = lambda asked: (
            torn if "id7" in ((asked.body and asked.json.get("ids")) or ()) else forward(asked)
        )
        with pytest.raises(SourceError, match="'id7' has no vector"):
            all_of(source)


def test_a_collection_that_is_deleted_meanwhile(place: Place) -> None:
    """It is an error that says so, not an end."""
    place.add(names(600))
    with closing(place.source()) as source:
        (definition,) = source.definitions()
        reader = source.batches(definition)
        next(reader)
        place.ask("DELETE", f"{place.path.rpartition('/')[0]}/sample")
        with pytest.raises(ServerAnswered, match="does not exist"):
            list(reader)


# -- plans ------------------------------------------------------------------------------------------------------------


def test_a_killed_copy_goes_on_exactly(place: Place, tmp_path: Path) -> None:
    """Behind its mark, by the list it had, though rows before and behind it were deleted and others added since."""
    place.add(names(900))
    with closing(place.source(plan=tmp_path / "plan", page=100)) as source:
        (definition,) = source.definitions()
        state = source.state()
        given = list(islice(source.batches(definition), 2))
    before = [id_ for records, _ in given for id_ in records.column("id").to_pylist()]
    mark = json.loads(json.dumps(given[-1][1]))
    place.delete(names(40))
    place.delete(names(10, 700))
    place.add(names(50, 5000))
    with closing(place.source(plan=tmp_path / "plan", page=100)) as source:
        (definition,) = source.definitions()
        assert source.state() == state != ""
        after = [
            id_ for records, _ in source.batches(definition, after=mark) for id_ in records.column("id").to_pylist()
        ]
    assert before + after == [id_ for id_ in names(900) if id_ not in names(10, 700)]


def test_without_a_plan_no_mark_leads_on(place: Place) -> None:
    """The list is gone with the process: all comes again."""
    place.add(names(200))
    with closing(place.source()) as source:
        (definition,) = source.definitions()
        assert source.state() == ""
        _, mark = next(source.batches(definition))
        assert len(all_of(source, after=mark)) == 200


def test_marks_of_another_list_do_not_lead_on(place: Place, tmp_path: Path) -> None:
    """Nor do those of nobody; everything comes, as nothing may be missing."""
    place.add(names(200))
    with closing(place.source(plan=tmp_path / "a")) as source:
        (definition,) = source.definitions()
        _, mark = next(source.batches(definition))
        condition = Where('{"n": {"$ne": 1}}')
        assert len(all_of(source, after=mark, where=condition)) == 200, "a condition has a list of its own"
    with closing(place.source(plan=tmp_path / "b")) as source:
        for other in (mark, {}, [], "x", {"ids": 5, "at": 3}):
            assert len(all_of(source, after=other)) == 200


def test_a_plan_is_of_one_place(place: Place, url: str, tmp_path: Path) -> None:
    """One of another place, or what is none, is refused with a word on what to do."""
    with closing(place.source(plan=tmp_path)) as source:
        source.state()
    with closing(ServerSource(Connection(url), plan=tmp_path)) as source:
        with pytest.raises(UsageError, match="another copy") as caught:
            source.state()
        assert "remove" in (caught.value.hint or "")
        (tmp_path / "plan.json").write_text("{")
        with pytest.raises(UsageError, match="no plan"):
            source.state()


def test_a_list_that_was_torn_is_told(tmp_path: Path) -> None:
    """It is renamed when it is whole, so a torn one is damage; a list that was never finished is none."""
    path = tmp_path / "a.ids"
    with closing(Roll.write([["c", "d"], ["a", "b\0"]], path)) as roll:
        assert list(roll.read()) == [["a", "b\0"], ["c", "d"]] and roll.count == 4
        assert list(roll.read(3)) == [["d"]] and not list(roll.read(4))
    with pytest.raises(ZeroDivisionError):
        Roll.write(([str(1 / n)] for n in (1, 0)), tmp_path / "b.ids")
    assert Roll.open(tmp_path / "b.ids") is None
    whole = path.read_bytes()
    for n in range(len(whole)):
        path.write_bytes(whole[:n])
        try:
            roll = Roll.open(path)
            assert roll is not None
            with closing(roll):
                assert all(all(isinstance(id_, str) for id_ in ids) for ids in roll.read())
        except SourceError as error:
            assert "no list of ids" in error.message


# -- conditions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "served"),
    [
        ({"k": 1}, True),
        ({"k": True}, True),
        ({"k": {"$in": ["a", "b"]}}, True),
        ({"$or": [{"k": {"$lt": 5}}, {"j": "x"}]}, True),
        ({"k": 1.5}, False),
        ({"k": {"$in": [1, 2.0]}}, False),
        ({"$and": [{"k": 1}, {"$or": [{"j": {"$gte": 0.0}}]}]}, False),
        ({"k": (1 << 53) + 1}, False),
        ({"k": -(1 << 53)}, True),
    ],
)
def test_which_conditions_a_server_may_answer(where: Any, served: bool) -> None:
    """Those without floats, which it compares in its own way."""
    assert is_served(where) == served


def test_a_condition_is_asked_of_the_server(place: Place, middle: Middle) -> None:
    """So that only what satisfies it is fetched; in several pages, and once each."""
    place.add(names(500), metadatas=[{"n": n % 5} for n in range(500)])
    with closing(place.source(middle.url, page=30)) as source:
        assert all_of(source, where=Where('{"n": 3}')) == names(500)[3::5]
    fetched = [len(asked.json["ids"]) for asked in middle.asked if asked.verb == "get" and "ids" in asked.json]
    assert sum(fetched) == 100


def test_integers_and_floats_are_told_apart(place: Place, middle: Middle) -> None:
    """Chroma's $lt 1.5 misses the integer 1; the condition finds it, as it is not asked."""
    place.add(names(4), metadatas=[{"v": 1}, {"v": 1.5}, {"v": 2}, {"v": 1.25}])
    assert place.ask("POST", f"{place.path}/get", {"where": {"v": {"$lt": 1.5}}, "include": []})["ids"] == ["id3"]
    with closing(place.source(middle.url)) as source:
        assert all_of(source, where=Where('{"v": {"$lt": 1.5}}')) == ["id0", "id3"]
    assert not any("where" in (asked.json or {}) for asked in middle.asked if asked.body)


def test_a_condition_that_the_server_refuses(place: Place) -> None:
    """On a key without an index: all is read, and chosen from."""
    off = {"keys": {"k": {"string": {"string_inverted_index": {"enabled": False, "config": {}}}}}, "defaults": {}}
    base = place.path.rpartition("/")[0]
    place.ask("DELETE", f"{base}/sample")
    place.path = f"{base}/{place.ask('POST', base, {'name': 'sample', 'schema': off})['id']}"
    place.add(names(40), metadatas=[{"k": f"v{n % 2}"} for n in range(40)])
    with closing(place.source()) as source:
        assert all_of(source, where=Where('{"k": "v1"}')) == names(40)[1::2]


def test_a_condition_under_writers(place: Place) -> None:
    """Records begin and cease to satisfy it while its list is read: those that always do all come."""
    place.add(names(400), metadatas=[{"n": n % 2} for n in range(400)])
    stop = threading.Event()

    def flicker() -> None:
        n = 0
        while not stop.is_set():
            part = names(400)[n % 380 & ~1 :: 2][:10]
            place.ask("POST", f"{place.path}/update", {"ids": part, "metadatas": [{"n": int(n % 3 == 0)}] * len(part)})
            n += 1

    thread = threading.Thread(target=flicker)
    thread.start()
    try:
        for _ in range(3):
            with closing(place.source(page=10)) as source:
                found = all_of(source, where=Where('{"n": 1}'))
            assert set(names(400)[1::2]) <= set(found) and len(set(found)) == len(found)
    finally:
        stop.set()
        thread.join()


# -- servers that are not well ----------------------------------------------------------------------------------------


def test_faults_on_the_way(place: Place) -> None:
    """Answers that are lost, cut or late, and refusals that pass: everything comes, once, and each fault is told."""
    records = ordinary(300)
    place.add(records.column("id").to_pylist(), embeddings=np.ones((300, 3)).tolist())
    proxy = FaultProxy(place.url)
    events: list[Event] = []
    late = Fault(delay=3.0)
    with closing(place.source(proxy.endpoint, timeout=2.0, patience=120, observer=events.append)) as source:
        (definition,) = source.definitions()
        for fault in (
            Fault(lost=True),
            Fault(unasked=True),
            Fault(keep=50),
            Fault(status=503),
            Fault(status=429),
            late,
        ):
            proxy.plan([fault, Fault(), fault, Fault(), Fault(), fault])
            assert len(held(source, definition)) == 300
    assert {type(event) for event in events} == {Retried} and len(events) > 10
    proxy.stop()


def test_records_that_are_large_come_in_small_portions(
    place: Place, middle: Middle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer larger than what is read at a time is asked for again in halves."""
    monkeypatch.setattr(wire, "MOST", 60_000)
    place.add(names(120), documents=["word " * 1000] * 120)
    with closing(place.source(middle.url)) as source:
        assert all_of(source) == names(120)
    asked = [len(a.json["ids"]) for a in middle.asked if a.verb == "get" and "ids" in a.json]
    assert asked[0] == fetch.START and max(asked[-5:]) <= 16


def test_a_server_too_slow_for_so_many_is_asked_for_fewer(place: Place, middle: Middle) -> None:
    """A timeout is answered by halves, for records and for the list of ids."""
    place.add(names(120))
    forward, over = forwarder(place.url), threading.Event()

    def many(asked: Asked) -> bool:
        return asked.verb == "get" and (len(asked.json.get("ids") or ()) > 10 or asked.json["limit"] > 50)

    def slow(asked: Asked) -> Answer:
        if many(asked):
            over.wait(60)
        return forward(asked)

    middle.answer = slow
    with closing(place.source(middle.url, page=400)) as source:
        impatient(source.connection, many)
        assert all_of(source) == names(120)
    over.set()


def test_a_server_that_hangs_is_given_up(place: Place, middle: Middle) -> None:
    """After a few timeouts, however few it was asked for."""
    place.add(names(3000))
    forward, over = forwarder(place.url), threading.Event()

    def of_records(asked: Asked) -> bool:
        return asked.verb == "get" and "ids" in asked.json

    def hung(asked: Asked) -> Answer:
        if of_records(asked):
            over.wait(60)
        return forward(asked)

    middle.answer = hung
    with closing(place.source(middle.url)) as source, pytest.raises(ServerSilent):
        impatient(source.connection, of_records)
        all_of(source)
    over.set()
    assert sum(map(of_records, middle.asked)) < 12


def capped(url: str, key: str, most: int) -> Callable[[Asked], Answer]:
    """Forwards to a server, and has it give no more than ``most`` to requests that have a ``key``."""
    forward = forwarder(url)

    def answer(asked: Asked) -> Answer:
        if asked.verb == "get" and key in asked.json:
            body = {**asked.json, "limit": min(most, asked.json["limit"])}
            asked = Asked(asked.method, asked.path, asked.headers, msgspec.json.encode(body))
        return forward(asked)

    return answer


def test_a_server_that_gives_fewer_than_asked_for(place: Place, middle: Middle) -> None:
    """Silently: a short page is not taken for the end of the list."""
    place.add(names(100))
    middle.answer = capped(place.url, "offset", 7)
    with closing(place.source(middle.url)) as source:
        assert all_of(source) == names(100)


def test_a_server_that_gives_fewer_records_than_asked_for(place: Place, middle: Middle) -> None:
    """Silently: what is missing is asked for again before it is taken for deleted, and marks skip nothing."""
    place.add(names(400))
    middle.answer = capped(place.url, "ids", 50)
    place.delete(names(3, 10))
    with closing(place.source(middle.url)) as source:
        (definition,) = source.definitions()
        given = [(records.column("id").to_pylist(), mark["at"]) for records, mark in source.batches(definition)]
    found = [id_ for ids, _ in given for id_ in ids]
    assert sorted(found) == sorted(set(names(400)) - set(names(3, 10)))
    for n, (_, at) in enumerate(given):
        assert set(names(400)[:at]) - set(names(3, 10)) <= {id_ for ids, _ in given[: n + 1] for id_ in ids}
    assert max(len(ids) for ids, _ in given) == 50


@pytest.mark.parametrize("known", [True, False], ids=["as Cloud", "not known"])
def test_chroma_cloud(place: Place, middle: Middle, known: bool) -> None:
    """With its token, and 300 at a time, which it says itself where nobody knew."""
    place.add(names(1000), embeddings=np.ones((1000, 3)).tolist())
    middle.answer = cloud(place.url)
    with closing(place.source(middle.url, token=TOKEN, cloud=known)) as source:
        assert all_of(source) == names(1000)
    asked = [a.json["limit"] for a in middle.asked if a.verb == "get"]
    assert max(asked[-8:]) <= AT_A_TIME and (max(asked) <= AT_A_TIME) == known
    with closing(place.source(middle.url, token="another")) as source, pytest.raises(ServerAnswered) as caught:
        source.definitions()
    assert "another" not in caught.value.message and "CHROMA_API_KEY" in (caught.value.hint or "")


# -- hostile servers --------------------------------------------------------------------------------------------------

RECORD = {"ids": ["id0"], "embeddings": [[1, 2, 3]], "documents": ["d"], "uris": [None], "metadatas": [{"a": 1}]}


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {**RECORD, "ids": []},
        {**RECORD, "ids": ["other"]},
        {**RECORD, "ids": ["id0", "id0"], "embeddings": [[1, 2, 3]] * 2},
        {**RECORD, "ids": [5]},
        {**RECORD, "ids": [None]},
        {**RECORD, "embeddings": None},
        {**RECORD, "embeddings": [[1, 2]]},
        {**RECORD, "embeddings": [[1, 2, "3"]]},
        {**RECORD, "embeddings": [[1, 2, None]]},
        {**RECORD, "embeddings": [[1, 2, 1e300]]},
        {**RECORD, "embeddings": [[1, 2, 3], [1, 2, 3]]},
        {**RECORD, "embeddings": ["AACAPwAAAEAAAEBA"]},
        {**RECORD, "documents": []},
        {**RECORD, "documents": [5]},
        {**RECORD, "uris": [["x"]]},
        {**RECORD, "metadatas": [5]},
        {**RECORD, "metadatas": [{"a": None}]},
        {**RECORD, "metadatas": [{"a": [1, "x"]}]},
        {**RECORD, "metadatas": [{"a": {"b": 1}}]},
        {**RECORD, "metadatas": [{"a": {"#type": "sparse_vector", "indices": [1], "values": [1.0]}}]},
        {**RECORD, "metadatas": {"a": 1}},
        [],
        None,
        "x",
    ],
)
def test_records_that_are_none(place: Place, middle: Middle, answer: Any) -> None:
    """Of another shape or length, of ids nobody asked for, with values that no record has: an error of one line."""
    place.add(["id0"])
    forward = forwarder(place.url)
    middle.answer = lambda asked: (
        of_json(answer) if asked.body and "embeddings" in asked.json["include"] else forward(asked)
    )
    with closing(place.source(middle.url)) as source, pytest.raises(ChromakeepError) as caught:
        all_of(source)
    assert isinstance(caught.value, (SourceError, ServerFailed)) and "\n" not in caught.value.message


@pytest.mark.parametrize(
    "ids",
    [
        ["a", "a"],
        ["a", ""],
        ["a", None],
        [f"id{n}" for n in range(20_000)],
        {"a": 1},
    ],
)
def test_lists_of_ids_that_are_none(place: Place, middle: Middle, ids: Any) -> None:
    """Twice the same, empty ones, more than were asked for."""
    place.add(["id0"])
    forward = forwarder(place.url)
    middle.answer = lambda asked: of_json({"ids": ids}) if asked.verb == "get" else forward(asked)
    with closing(place.source(middle.url)) as source, pytest.raises(ChromakeepError) as caught:
        all_of(source)
    assert isinstance(caught.value, (SourceError, ServerFailed)) and "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("verb", "answer"),
    [
        ("collections", [{"id": 5}]),
        ("collections", {"id": "x"}),
        ("collections", [{"id": "x", "configuration_json": []}]),
        ("collections", [{"id": "x", "schema": json.loads('{"a":' * 300 + "1" + "}" * 300)}]),
        ("count", "many"),
        ("count", None),
        ("collections_count", -1),
        ("collections_count", 77),
    ],
)
def test_collections_that_are_none(place: Place, middle: Middle, verb: str, answer: Any) -> None:
    """Of another shape, or another number at each look."""
    forward = forwarder(place.url)
    middle.answer = lambda asked: of_json(answer) if asked.verb == verb else forward(asked)
    with closing(place.source(middle.url)) as source, pytest.raises((ServerFailed, SourceBusy)) as caught:
        source.definitions()
    assert "\n" not in caught.value.message


def test_a_list_without_an_end(place: Place, middle: Middle) -> None:
    """A server that always has more is given up."""
    forward = forwarder(place.url)

    def endless(asked: Asked) -> Answer:
        if asked.verb != "get":
            return forward(asked)
        return of_json({"ids": [f"{asked.json['offset'] + n}" for n in range(asked.json["limit"])]})

    middle.answer = endless
    with closing(place.source(middle.url, page=10)) as source, pytest.raises(SourceBusy):
        all_of(source)


def test_a_condition_of_the_server_is_checked(place: Place, middle: Middle) -> None:
    """What a server gives that does not satisfy it is left out."""
    place.add(names(10), metadatas=[{"n": n % 2} for n in range(10)])
    forward = forwarder(place.url)

    def lax(asked: Asked) -> Answer:
        if asked.body and "where" in asked.json:
            body = {k: v for k, v in asked.json.items() if k != "where"}
            asked = Asked(asked.method, asked.path, asked.headers, msgspec.json.encode(body))
        return forward(asked)

    middle.answer = lax
    with closing(place.source(middle.url)) as source:
        assert all_of(source, where=Where('{"n": 1}')) == names(10)[1::2]


def test_a_refusal_names_what_was_asked(place: Place, middle: Middle) -> None:
    """A server that is broken inside is an error at once: trying again would not help."""
    place.add(names(3))
    forward = forwarder(place.url)
    middle.answer = lambda asked: told(500, "Failed to send request") if asked.verb == "get" else forward(asked)
    with closing(place.source(middle.url)) as source, pytest.raises(ServerAnswered, match="Failed to send request"):
        all_of(source)


def test_there_and_back(place: Place) -> None:
    """What comes is what the server was given, to the bit, for wide vectors as well."""
    records = ordinary(150, 1536)
    with closing(ServerSink(Connection(place.url), TENANT, place.database)) as sink:
        intake = sink.collection(Definition("wide", dimension=1536))
        put(intake, records)
        intake.finish()
    with closing(place.source()) as source:
        (definition,) = [d for d in source.definitions() if d.name == "wide"]
        assert_same(records_of(records), gathered(some for some, _ in source.batches(definition)))
