"""A real Chroma as the target of copies: exactness, conflicts, what a kill leaves, and servers that are not well."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from msgspec.structs import replace

from chroma.at_server import TENANT, AtServer, cloud_key, impatient
from chromakeep.batches import batch, encode
from chromakeep.chroma import connection as connections
from chromakeep.chroma import server_intake
from chromakeep.chroma.api import Api, tenant_path
from chromakeep.chroma.command import ServerOptions
from chromakeep.chroma.connection import ANYTHING, Connection
from chromakeep.chroma.naming import is_left, temporary
from chromakeep.chroma.server import ChromaServer
from chromakeep.chroma.server_sink import ServerSink
from chromakeep.chroma.server_source import ServerSource
from chromakeep.conditions import Where
from chromakeep.errors import ChromakeepError, ServerAnswered, ServerFailed, TargetNotEmpty, UsageError
from chromakeep.events import Event, Noted, Retried
from chromakeep.operations.dry_run import dry_run
from chromakeep.operations.planning import Plan
from chromakeep.records import Definition
from chromakeep.testing.memory_records import Memory, MemorySource
from chromakeep.testing.records_suite import SinkSuite, put
from chromakeep.testing.specimens import assert_same, held, ordinary, records_of
from servers.chroma_cloud import AT_A_TIME, TOKEN, cloud
from servers.fault_proxy import Fault, FaultProxy
from servers.middle import Answer, Asked, Middle, forwarder, of_json, told


@pytest.fixture(autouse=True)
def no_time_to_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_FIRST_DELAY", 0.02)
    # What goes into a request depends on what the tests say, not on how busy the machine is.
    monkeypatch.setattr(server_intake, "SECONDS_AIM", 3600.0)


class Shown(ServerSource):
    """Without what is kept of replaced collections."""

    def definitions(self) -> list[Definition]:
        return [each for each in super().definitions() if ".old-" not in each.name]


class TestServerSink(AtServer, SinkSuite):
    """Each test has a database of its own."""

    atomic = False

    def make_sink(self, tmp_path: Path) -> ServerSink:
        return ServerSink(Connection(self.url), TENANT, self.database)

    def read_back(self, tmp_path: Path) -> ServerSource:
        return Shown(Connection(self.url), TENANT, self.database)


# -- one database of its own for each test ----------------------------------------------------------------------------


class Place:
    """A database, the sinks into it, and what was told."""

    def __init__(self, url: str, database: str) -> None:
        self.url, self.database = url, database
        self.base = f"/tenants/{TENANT}/databases/{database}/collections"
        self.events: list[Event] = []

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        with closing(Connection(self.url)) as connection:
            return connection.request(method, path, msgspec.json.encode(body) if body else None, decoder=ANYTHING)

    def sink(
        self,
        url: str | None = None,
        *,
        patience: float = 10.0,
        timeout: float = 30.0,
        token: str | None = None,
        **options: Any,
    ) -> ServerSink:
        observer = self.events.append
        connection = Connection(
            url or self.url, token=cloud_key(token), patience=patience, timeout=timeout, observer=observer
        )
        return ServerSink(connection, TENANT, self.database, observer=observer, **options)

    def write(self, definition: Definition, *batches: pa.RecordBatch, conflict: str = "fail", **options: Any) -> None:
        with closing(self.sink(**options)) as sink:
            intake = sink.collection(definition, conflict=conflict)
            for records in batches:
                put(intake, records)
            intake.finish()
            sink.publish()

    def names(self) -> list[str]:
        with closing(ServerSource(Connection(self.url), TENANT, self.database)) as source:
            return sorted(d.name for d in source.definitions())

    def held(self, name: str = "sample") -> dict[str, Any]:
        with closing(ServerSource(Connection(self.url), TENANT, self.database)) as source:
            (definition,) = [d for d in source.definitions() if d.name == name]
            return held(source, definition)

    @property
    def notes(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, Noted)]


@pytest.fixture
def place(url: str, tmp_path: Path) -> Place:
    place = Place(url, hashlib.blake2b(str(tmp_path).encode(), digest_size=8).hexdigest())
    Api(Connection(url)).make(f"{tenant_path(TENANT)}/databases", place.database)
    return place


@pytest.fixture
def middle(url: str) -> Iterator[Middle]:
    middle = Middle(forwarder(url))
    yield middle
    middle.stop()


SAMPLE = Definition("sample", dimension=3)


def one(id_: str, document: str | None = None, uri: str | None = None, metadata: Any = None) -> pa.RecordBatch:
    return batch([id_], np.ones((1, 3), "f4"), [document], [uri], [encode(metadata)], 3)


# -- where it goes ----------------------------------------------------------------------------------------------------


def test_tenants_and_databases_are_created(url: str) -> None:
    """Those of the sink, or else of each definition; existing ones are fine."""
    for sink in (ServerSink(Connection(url)), ServerSink(Connection(url), "new tenant/ü", "one")):
        for _ in range(2):
            definition = Definition("sample", dimension=3, tenant="another", database="some-base")
            with closing(sink):
                sink = ServerSink(Connection(url), sink.tenant, sink.database)
                intake = sink.collection(definition, conflict="upsert")
                put(intake, ordinary(3))
                intake.finish()
    for tenant, database in (("another", "some-base"), ("new tenant/ü", "one")):
        with closing(ServerSource(Connection(url), tenant)) as source:
            assert [(d.database, d.name, d.count) for d in source.definitions()] == [(database, "sample", 3)]


@pytest.mark.parametrize("name", ["ab", "a..b", "-abc", "abc-", "a:b", "1.2.3.4", "a" * 513, "ümlaut", ""])
def test_names_that_no_server_takes(place: Place, name: str) -> None:
    """They are refused before anything is written."""
    with closing(place.sink()) as sink, pytest.raises(UsageError, match="name of a collection"):
        sink.collection(Definition(name))
    assert not place.names()


def test_temporary_names() -> None:
    """They are names that a server takes, are known again, and differ."""
    for name in ("abc", "a" * 512, "a" * 498 + ".-_" + "b" * 11):
        new = temporary(name)
        assert len(new) <= 512 and ".." not in new and is_left(new, name) and new != temporary(name)
    assert not is_left("abc", "abc") and not is_left("abcd.new-12345678", "abc") and not is_left("abc.new-x", "abc")


def test_a_long_name(place: Place) -> None:
    """The longest that there are is built and replaced as well."""
    definition = replace(SAMPLE, name="n" * 511 + "x")
    place.write(definition, ordinary(3))
    place.write(definition, ordinary(5), conflict="replace")
    assert len(place.held(definition.name)) == 5 and len(place.names()) == 2


def test_nobody_sees_half_of_a_collection(place: Place) -> None:
    """It has its name when it is finished, and what a copy left is told of."""
    with closing(place.sink()) as sink:
        intake = sink.collection(SAMPLE)
        put(intake, ordinary(20))
        (name,) = place.names()
        assert is_left(name, "sample")
    place.write(SAMPLE, ordinary(5))
    assert place.names() == ["sample", name]
    assert [note for note in place.notes if name in note and "delete it" in note]


# -- what is there already --------------------------------------------------------------------------------------------


def test_a_collection_that_somebody_creates_meanwhile(place: Place) -> None:
    """Nothing of theirs is touched, and nothing of ours is lost."""
    with closing(place.sink()) as sink:
        intake = sink.collection(SAMPLE)
        put(intake, ordinary(20))
        place.ask("POST", place.base, {"name": "sample"})
        with pytest.raises(TargetNotEmpty, match="meanwhile"):
            intake.finish()
    ours, theirs = place.names()[1], place.names()[0]
    assert theirs == "sample" and not place.held("sample") and len(place.held(ours)) == 20


def test_what_is_replaced_is_kept(place: Place) -> None:
    """Under a name that is told, with all it had; twice in one second as well."""
    place.write(SAMPLE, ordinary(20))
    for n in (5, 6, 7):
        place.write(SAMPLE, ordinary(n), conflict="replace")
    old = [name for name in place.names() if ".old-" in name]
    assert sorted(len(place.held(name)) for name in old) == [5, 6, 20]
    assert all(any(name in note for note in place.notes) for name in old)
    assert len(place.held()) == 7


def test_a_replacement_that_fails_half_way_is_taken_back(place: Place, middle: Middle) -> None:
    """When the new one does not get the name, the old one has it again."""
    place.write(SAMPLE, ordinary(20))
    forward = forwarder(place.url)

    def refuses(asked: Asked) -> Answer:
        if (
            asked.method == "PUT"
            and asked.json.get("new_name") == "sample"
            and asked.path.endswith(intake.mark()["id"])
        ):
            return told(500, "Database error")
        return forward(asked)

    with closing(place.sink(middle.url)) as sink:
        intake = sink.collection(SAMPLE, conflict="replace")
        put(intake, ordinary(5))
        middle.answer = refuses
        with pytest.raises(ServerAnswered, match="Database error"):
            intake.finish()
        assert len(place.held()) == 20
        middle.answer = forward
        intake.finish()
        intake.finish()
        assert len(place.held()) == 5


def test_upsert_makes_records_new_in_all_they_have(place: Place) -> None:
    """Chroma's own upsert leaves a document, a URI and keys that the new record has not."""
    full = {"a": 1, "l": ["x"], "k": True}
    olds = [one(f"r{n}", "text", "uri", full) for n in range(8)]
    news = [
        one("r0"),
        one("r1", "other", None, {"a": 1.0}),
        one("r2", None, "uri", {"b": 2}),
        one("r3", "", "", None),
        one("r4", "text", "uri", {}),
        one("r5", "text", "uri", full),
        one("r6", "text", "uri", {"a": ["y", "z"], "l": 1}),
        one("r9", "new"),
    ]
    joined = pa.Table.from_batches(news).combine_chunks().to_batches()[0]
    place.write(SAMPLE, *olds)
    place.write(SAMPLE, joined, conflict="upsert")
    assert_same(records_of(pa.Table.from_batches([*news, olds[7]]).combine_chunks().to_batches()[0]), place.held())
    place.write(SAMPLE, joined, conflict="upsert")
    assert len(place.held()) == 9


@pytest.mark.parametrize("space", ["l2", "cosine", "ip"])
def test_what_is_there_already_is_not_written_again(place: Place, middle: Middle, space: str) -> None:
    """Of records that come again only those are sent that differ, whatever Chroma rounds: to replace one costs it
    several times what a new one does."""
    definition = replace(SAMPLE, configuration={"hnsw": {"space": space}})
    values = np.random.default_rng(3).standard_normal(200)
    floats = [encode({"f": value, "l": [value / 7]}) for value in values.tolist()]
    records = ordinary(200)
    columns = [records.column(name) for name in ("id", "embedding", "document", "uri")]
    records = pa.RecordBatch.from_arrays([*columns, pa.array(floats)], schema=records.schema)
    place.write(definition, records)
    before = place.held()
    place.write(definition, records, conflict="upsert", url=middle.url)
    assert not [asked for asked in middle.asked if asked.verb in ("upsert", "add", "delete")]
    changed = pa.RecordBatch.from_arrays(
        [*columns[:2], columns[2], columns[3], pa.array([*floats[:150], *floats[:50]])], schema=records.schema
    )
    place.write(definition, changed, conflict="upsert", url=middle.url)
    assert [len(asked.json["ids"]) for asked in middle.asked if asked.verb == "upsert"] == [50]
    after = place.held()
    assert {id_: after[id_] for id_ in list(after)[:150]} == {id_: before[id_] for id_ in list(before)[:150]}
    assert after["id-000199"].metadata == before["id-000049"].metadata


def test_skip_changes_nothing_that_is_there(place: Place) -> None:
    """Not even the keys that it lacks."""
    place.write(SAMPLE, one("r0"))
    place.write(SAMPLE, one("r0", "text", "uri", {"a": 1}), one("r1", "text"), conflict="skip")
    assert_same(records_of(one("r0")) | records_of(one("r1", "text")), place.held())


@pytest.mark.parametrize("conflict", ["skip", "upsert"])
def test_another_dimension_is_refused_before_anything_is_written(place: Place, conflict: str) -> None:
    """They cannot be in one collection. Another space is told, and stays."""
    place.write(SAMPLE, ordinary(3))
    with closing(place.sink()) as sink, pytest.raises(UsageError, match="3 dimensions there, and here 4"):
        sink.collection(replace(SAMPLE, dimension=4), conflict=conflict)
    cosine = replace(SAMPLE, configuration={"hnsw": {"space": "cosine"}})
    place.write(cosine, ordinary(5), conflict=conflict)
    assert len(place.held()) == 5 and any("space l2" in note for note in place.notes)


# -- what a killed process left ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("conflict", ["fail", "skip", "upsert", "replace"])
@pytest.mark.parametrize("there", [True, False])
def test_a_killed_copy_goes_on(place: Place, conflict: str, there: bool) -> None:
    """Into the same collection, by its mark; what came after the mark is written again, as it is now."""
    if there and conflict == "fail":
        return
    if there:
        place.write(SAMPLE, ordinary(10, start=95))
    sink = place.sink()
    intake = sink.collection(SAMPLE, conflict=conflict)
    put(intake, ordinary(50))
    mark = json.loads(json.dumps(intake.mark()))
    put(intake, one("id-000060", "of an older state", "uri", {"old": 1}))
    put(intake, ordinary(10, start=50))
    with closing(place.sink()) as other:
        intake = other.collection(SAMPLE, conflict=conflict, mark=mark)
        assert intake.mark() == mark
        put(intake, ordinary(60, start=50))
        intake.finish()
    with closing(place.sink()) as third:
        intake = third.collection(SAMPLE, conflict=conflict, mark=mark)  # the end of it had not been written down
        put(intake, ordinary(60, start=50))
        intake.finish()
    wanted = records_of(ordinary(110))
    if there and conflict == "skip":
        wanted["id-000060"] = records_of(one("id-000060", "of an older state", "uri", {"old": 1}))["id-000060"]
    assert_same(wanted, place.held())
    assert [name for name in place.names() if ".old-" not in name] == ["sample"]


def test_a_mark_that_leads_nowhere(place: Place) -> None:
    """The collection is gone, or another one has its name; or it is no mark: nothing is begun in its place."""
    with closing(place.sink()) as sink:
        mark = sink.collection(SAMPLE).mark()
    place.ask("DELETE", f"{place.base}/{mark['name']}")
    for there in (False, True):
        if there:
            place.ask("POST", place.base, {"name": mark["name"]})
            place.ask("POST", place.base, {"name": "sample"})
        for other in (mark, {}, [], "x", {"id": 1}):
            with closing(place.sink()) as sink, pytest.raises(UsageError, match=r"no mark|not there"):
                sink.collection(SAMPLE, mark=other)


# -- servers that are not well ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("conflict", ["fail", "upsert", "replace"])
@pytest.mark.parametrize("fault", ["lost", "unasked", "cut", 503, 429], ids=str)
def test_faults_on_the_way(place: Place, fault: Any, conflict: str) -> None:
    """At every request in turn, from the first to the last: the collection is whole, once, and each is told."""
    met = (
        Fault(status=fault)
        if isinstance(fault, int)
        else Fault(lost=fault == "lost", unasked=fault == "unasked", keep=1 if fault == "cut" else None)
    )
    if conflict != "fail":
        place.write(SAMPLE, ordinary(10))
    proxy = FaultProxy(place.url)
    place.events.clear()
    with closing(place.sink(proxy.endpoint, patience=30)) as sink:
        # Every second request fails, so each is met once.
        proxy.plan([met, Fault()] * 60)
        intake = sink.collection(SAMPLE, conflict=conflict)
        for start in range(0, 60, 20):
            put(intake, ordinary(20, start=start))
        intake.finish()
    proxy.stop()
    assert_same(records_of(ordinary(60)), place.held())
    assert [name for name in place.names() if ".old-" not in name] == ["sample"]
    assert sum(isinstance(event, Retried) for event in place.events) >= 6


def test_a_request_too_large_for_what_stands_before_a_server(place: Place, middle: Middle) -> None:
    """413 is answered by halves, and what was learned holds for the requests after it."""
    forward = forwarder(place.url)

    def small(asked: Asked) -> Answer:
        return Answer(413, b"<html>413 Request Entity Too Large</html>") if len(asked.body) > 9000 else forward(asked)

    middle.answer = small
    place.write(SAMPLE, ordinary(600), ordinary(600, start=600), url=middle.url)
    assert_same(records_of(ordinary(1200)), place.held())
    refused = [len(asked.json["ids"]) for asked in middle.asked if len(asked.body) > 9000]
    assert 0 < len(refused) < 12


def test_a_body_is_bounded(place: Place, middle: Middle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below what a server takes, whatever the records are; a single one is sent as it is."""
    monkeypatch.setattr(server_intake, "BODY", 20_000)
    records = batch(
        [f"id{n}" for n in range(40)],
        np.ones((40, 3), "f4"),
        ["word " * (5000 if n == 7 else 200) for n in range(40)],
        [None] * 40,
        [None] * 40,
        3,
    )
    place.write(SAMPLE, records, url=middle.url)
    assert_same(records_of(records), place.held())
    assert sum(len(asked.body) > 20_000 for asked in middle.asked) == 1


def test_a_server_too_slow_for_so_many(place: Place, middle: Middle) -> None:
    """A timeout is answered by halves; what the server did of the first request does not disturb."""
    forward, over = forwarder(place.url), threading.Event()

    def many(asked: Asked) -> bool:
        return asked.verb == "add" and len(asked.json["ids"]) > 30

    def slow(asked: Asked) -> Answer:
        answer = forward(asked)
        if many(asked):
            over.wait(60)
        return answer

    middle.answer = slow
    with closing(place.sink(middle.url)) as sink:
        impatient(sink.connection, many)
        intake = sink.collection(SAMPLE)
        put(intake, ordinary(100))
        intake.finish()
    over.set()
    assert any(many(asked) for asked in middle.asked)
    assert_same(records_of(ordinary(100)), place.held())


@pytest.mark.parametrize(
    "message",
    [
        "Batch size 100 exceeds maximum batch size 40",
        "Quota exceeded: 'Number of records' exceeded quota limit for action 'Add': usage of 100 exceeds limit of 40",
    ],
)
def test_a_limit_that_the_server_names(place: Place, middle: Middle, message: str) -> None:
    """It is kept from then on."""
    forward = forwarder(place.url)
    middle.answer = lambda asked: (
        told(422, message) if asked.verb == "add" and len(asked.json["ids"]) > 40 else forward(asked)
    )
    place.write(SAMPLE, ordinary(100), ordinary(100, start=100), url=middle.url)
    assert_same(records_of(ordinary(200)), place.held())
    assert [len(a.json["ids"]) for a in middle.asked if a.verb == "add"] == [100, 40, 40, 20, 40, 40, 20]


def test_a_record_that_a_server_refuses_is_named(place: Place, middle: Middle) -> None:
    """By its id and the server's words, however many came with it."""
    forward = forwarder(place.url)
    middle.answer = lambda asked: (
        told(400, "Invalid\nrecord") if asked.verb == "add" and "id-000077" in asked.json["ids"] else forward(asked)
    )
    with closing(place.sink(middle.url)) as sink:
        intake = sink.collection(SAMPLE)
        with pytest.raises(ServerAnswered, match="'id-000077' is refused: Invalid record"):
            put(intake, ordinary(300))
    assert sum(asked.verb == "add" for asked in middle.asked) < 25


@pytest.mark.parametrize("what", ["Billing limit exceeded: x", "Quota exceeded: 'Collection size (records)' exceeded"])
def test_a_refusal_of_all_is_not_put_on_a_record(place: Place, middle: Middle, what: str) -> None:
    """It is said at once, without a search for the record that is to blame."""
    forward = forwarder(place.url)
    middle.answer = lambda asked: told(422, what) if asked.verb == "add" else forward(asked)
    with pytest.raises(ServerAnswered, match="^" + what[:14]):
        place.write(SAMPLE, ordinary(300), url=middle.url)
    assert sum(asked.verb == "add" for asked in middle.asked) == 1


def test_a_server_that_dies_and_comes_back(tmp_path: Path) -> None:
    """A copy waits for it, and goes on; nothing is lost or there twice."""
    server = ChromaServer(tmp_path / "data", env=dict(os.environ))
    server.start()
    port = server.options.port
    sink = ServerSink(Connection(f"http://127.0.0.1:{port}"))
    intake = sink.collection(SAMPLE)
    put(intake, ordinary(200))
    server.kill()
    again = ChromaServer(tmp_path / "data", env=dict(os.environ), options=ServerOptions("127.0.0.1", port))
    starter = threading.Thread(target=again.start)
    starter.start()
    put(intake, ordinary(200, start=200))
    starter.join()
    try:
        intake.finish()
        with closing(sink), closing(ServerSource(sink.connection)) as source:
            (definition,) = source.definitions()
            assert_same(records_of(ordinary(400)), held(source, definition))
    finally:
        again.stop()


def test_a_server_without_base64(place: Place, middle: Middle) -> None:
    """Vectors go as decimal numbers, and are the same to the bit."""
    forward = forwarder(place.url)
    preflight = {"max_batch_size": 50}
    middle.answer = lambda asked: of_json(preflight) if asked.verb == "pre-flight-checks" else forward(asked)
    place.write(SAMPLE, ordinary(120), url=middle.url)
    assert_same(records_of(ordinary(120)), place.held())
    assert max(len(asked.json["ids"]) for asked in middle.asked if asked.verb == "add") == 50


@pytest.mark.parametrize("answer", [{"max_batch_size": -5}, {"max_batch_size": 0}, {}])
def test_strange_preflights(place: Place, middle: Middle, answer: Any) -> None:
    """A server that takes nothing at a time gets one record at a time."""
    forward = forwarder(place.url)
    middle.answer = lambda asked: of_json(answer) if asked.verb == "pre-flight-checks" else forward(asked)
    place.write(SAMPLE, ordinary(5), url=middle.url)
    assert len(place.held()) == 5


@pytest.mark.parametrize(
    ("verb", "answer"),
    [
        ("pre-flight-checks", {"max_batch_size": "x"}),
        ("pre-flight-checks", []),
        ("collections", [5]),
        ("collections", {"name": "x"}),
        ("sample", {"id": None}),
        ("sample", []),
    ],
)
def test_answers_that_are_none(place: Place, middle: Middle, verb: str, answer: Any) -> None:
    """An error of one line."""
    forward = forwarder(place.url)
    middle.answer = lambda asked: of_json(answer) if asked.verb == verb else forward(asked)
    with pytest.raises(ServerFailed, match="none of Chroma's") as caught:
        place.write(SAMPLE, ordinary(5), url=middle.url)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("answer", [{"ids": ["id-000001"], "metadatas": [], "uris": []}, {"ids": [1]}, []])
def test_stored_records_that_are_none(place: Place, middle: Middle, answer: Any) -> None:
    """What is asked before records are replaced is not believed in any shape."""
    place.write(SAMPLE, ordinary(5))
    forward = forwarder(place.url)
    middle.answer = lambda asked: of_json(answer) if asked.verb == "get" else forward(asked)
    with pytest.raises(ServerFailed, match="none of Chroma's"):
        place.write(SAMPLE, ordinary(5), url=middle.url, conflict="upsert")


# -- records that no server takes -------------------------------------------------------------------------------------


def strange(**changes: Any) -> pa.RecordBatch:
    """Three records, of which the second one has something."""
    fields: dict[str, Any] = {"id": ["r0", "r1", "r2"], "embedding": [[1.0, 2, 3]] * 3, "metadata": [None] * 3}
    for name, value in changes.items():
        fields[name] = [fields[name][0], value, fields[name][2]]
    return batch(fields["id"], fields["embedding"], [None] * 3, [None] * 3, fields["metadata"], 3)


@pytest.mark.parametrize(
    ("changes", "told_of"),
    [
        ({"id": ""}, "empty id"),
        ({"embedding": None}, "'r1' has no vector"),
        ({"embedding": [1.0, float("nan"), 3]}, "vector of 'r1'"),
        ({"embedding": [1.0, float("inf"), 3]}, "vector of 'r1'"),
        ({"metadata": '{"chroma:document": 5}'}, "'r1' has the metadata key 'chroma:document'"),
        ({"metadata": '{"#x": 5}'}, "'r1' has the metadata key '#x'"),
        ({"metadata": '{"": 5}'}, "'r1' has the metadata key ''"),
        ({"metadata": '{"a": null}'}, "'r1': the metadata value of 'a' is null"),
        ({"metadata": '{"a": []}'}, "'r1': the metadata value of 'a' is a list"),
        ({"metadata": '{"a": 9223372036854775808}'}, "'r1': the metadata value of 'a' is an integer"),
        ({"metadata": '{"a": [1, -9223372036854775809]}'}, "'r1': the metadata value of 'a' is a list"),
        ({"metadata": '{"a": 1}], "ids": ["x"'}, "'r1': metadata is no JSON object"),
        ({"metadata": "5"}, "'r1': metadata is no JSON object"),
    ],
)
def test_records_that_no_server_takes(place: Place, changes: Any, told_of: str) -> None:
    """They are named, and nothing of their batch is sent: some would be lost, and of one the server would die."""
    with closing(place.sink()) as sink:
        intake = sink.collection(SAMPLE)
        with pytest.raises(UsageError) as caught:
            intake.write(strange(**changes))
        assert told_of in caught.value.message
        intake.finish()
    assert not place.held()


# -- Chroma Cloud -----------------------------------------------------------------------------------------------------


def test_chroma_cloud(place: Place, middle: Middle) -> None:
    """Its token, 300 records a write and a read, several writers; nothing but a collection is created."""
    middle.answer = cloud(place.url)
    options = {"url": middle.url, "token": TOKEN, "cloud": True}
    place.write(SAMPLE, ordinary(1000), **options)
    place.write(SAMPLE, ordinary(700, start=500), conflict="upsert", **options)
    assert_same(records_of(ordinary(1200)), place.held())
    sizes = [len(asked.json["ids"]) for asked in middle.asked if asked.verb in ("add", "upsert", "get")]
    assert max(sizes) <= AT_A_TIME
    assert not [asked for asked in middle.asked if asked.method == "POST" and asked.verb in ("tenants", "databases")]
    with closing(place.sink(middle.url, token=TOKEN, cloud=True)) as sink:
        assert sink.collection(SAMPLE, conflict="skip").limits.writers == 8


def test_chroma_cloud_without_a_database(place: Place, middle: Middle) -> None:
    """It is said where databases are created."""
    middle.answer = cloud(place.url)
    sink = ServerSink(Connection(middle.url, token=cloud_key(TOKEN)), TENANT, "nothing-there", cloud=True)
    with closing(sink), pytest.raises(UsageError, match="no database 'nothing-there'"):
        sink.collection(SAMPLE)


def test_a_server_that_is_cloud_and_nobody_said_so(place: Place, middle: Middle) -> None:
    """Its limit is learned from its refusal, and a record that it will not take is named."""
    middle.answer = cloud(place.url)
    place.write(SAMPLE, ordinary(1000), url=middle.url, token=TOKEN)
    assert_same(records_of(ordinary(1000)), place.held())
    with pytest.raises(ServerAnswered, match="'r1' is refused: Quota exceeded: 'Document size"):
        place.write(replace(SAMPLE, name="large"), one("r0"), one("r1", "x" * 20_000), url=middle.url, token=TOKEN)


@pytest.mark.parametrize("token", [None, "wrong"])
def test_chroma_cloud_without_its_token(place: Place, middle: Middle, token: str | None) -> None:
    """The variable is named, the token is not."""
    middle.answer = cloud(place.url)
    with pytest.raises(ServerAnswered) as caught:
        place.write(SAMPLE, ordinary(5), url=middle.url, token=token, cloud=True)
    assert "CHROMA_API_KEY" in (caught.value.hint or "") and "wrong" not in caught.value.message


def test_quotas_are_checked_before_anything_is_sent(place: Place, middle: Middle) -> None:
    """The first record that breaks one is named."""
    middle.answer = cloud(place.url)
    with closing(place.sink(middle.url, token=TOKEN, cloud=True)) as sink:
        intake = sink.collection(SAMPLE)
        before = len(middle.asked)
        with pytest.raises(UsageError, match="'r1': its document has 16,385 bytes, Chroma Cloud allows 16,384"):
            intake.write(
                batch(["r0", "r1"], np.ones((2, 3), "f4"), ["x" * 16_384, "x" * 16_385], [None] * 2, [None] * 2, 3)
            )
        assert len(middle.asked) == before


def test_a_dry_run_names_all_that_break_a_quota(place: Place, middle: Middle) -> None:
    """Of the whole source, and of the collections; nothing is sent but questions."""
    middle.answer = cloud(place.url)
    memory, large = Memory(), "x" * 16_385
    memory.put(SAMPLE, *[one(f"r{n}", large if n in (7, 1900) else "x") for n in range(2000)])
    with closing(place.sink(middle.url, token=TOKEN, cloud=True)) as sink:
        with pytest.raises(UsageError, match=r"^2 records would be refused: sample: 'r7': its .*; sample: 'r1900': "):
            dry_run(MemorySource(memory), sink, Plan())
        assert dry_run(MemorySource(memory), sink, Plan(where=Where('{"k": 1}'))).records == 0
        memory.put(replace(SAMPLE, name="n" * 129), one("r"))
        memory.put(replace(SAMPLE, name="ab"), one("r"))
        with pytest.raises(UsageError, match=r"n{40}.* cannot be .*; 'ab' cannot be"):
            dry_run(MemorySource(memory), sink, Plan())
    assert not [asked for asked in middle.asked if asked.method != "GET"]


def test_a_failure_is_one_line(place: Place) -> None:
    """Whatever is wrong with it."""
    with closing(place.sink()) as sink:
        for definition in (
            Definition("x"),
            replace(SAMPLE, metadata={"a": [1]}),
            replace(SAMPLE, configuration={"hnsw": {"space": 5}}),
        ):
            with pytest.raises(ChromakeepError) as caught:
                sink.collection(definition)
            assert "\n" not in f"{caught.value.message}{caught.value.hint}"
