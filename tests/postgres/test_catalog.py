"""The catalog: tenants, databases and collections as Chroma has them, by any number of clients at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import sha256
from typing import Any, TypeVar

import psycopg
import pytest

from chromakeep.engine import Change, CollectionShown, CollectionWanted, Refused, Target
from chromakeep.postgres import catalog, tenancy
from chromakeep.postgres.pool import Connection, Pool
from chromakeep.postgres.refusals import Vanished
from postgres.instances import eventually

T = TypeVar("T")
TENANT, DATABASE = "default_tenant", "default_database"


class Here:
    """The catalog's functions, each in a transaction of its own."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def do(self, function: Callable[..., T], *arguments: Any) -> T:
        return self.pool.run(lambda connection: function(connection, *arguments), write=True)

    def create(self, name: str, **wanted: Any) -> CollectionShown:
        return self.do(catalog.create_collection, TENANT, DATABASE, CollectionWanted(name, **wanted))

    def refused(self, function: Callable[..., object], *arguments: Any) -> tuple[int, str]:
        with pytest.raises(Refused) as caught:
            self.do(function, *arguments)
        return caught.value.status, caught.value.message

    def drop(self, name: str) -> None:
        self.do(catalog.drop_collection, TENANT, DATABASE, name)


@pytest.fixture
def here(pool: Pool) -> Here:
    made = Here(pool)
    made.do(catalog.drop_tables, made.do(tenancy.reset))
    return made


def of(shown: CollectionShown) -> Target:
    return Target(shown.tenant, shown.database, shown.id)


def test_tenants(here: Here) -> None:
    here.do(tenancy.create_tenant, "acme\0")
    assert here.do(tenancy.tenant, "acme\0") is None
    here.do(tenancy.update_tenant, "acme\0", "r\U0010fffe")
    assert here.do(tenancy.tenant, "acme\0") == "r\U0010fffe"
    assert here.refused(tenancy.create_tenant, "acme\0") == (409, "Tenant [acme\0] already exists")
    assert here.refused(tenancy.tenant, "none") == (404, "Tenant [none] not found")
    assert here.refused(tenancy.update_tenant, "none", "x") == (404, "Tenant [none] not found")


def test_a_name_too_long_for_an_index_is_the_fault_of_who_gives_it(pool: Pool) -> None:
    """Not 500: nothing is wrong here, and nobody need be told. What can be compressed may be longer."""
    long = "".join(sha256(str(n).encode()).hexdigest() for n in range(200))
    with pytest.raises(Refused) as caught:
        pool.run(lambda connection: tenancy.create_tenant(connection, long), write=True)
    assert caught.value.status == 400


def test_databases(here: Here) -> None:
    here.do(tenancy.create_tenant, "acme")
    for name in ("zoo", "abc", "mid"):
        here.do(tenancy.create_database, "acme", name)
    assert [found.name for found in here.do(tenancy.databases, "acme", None, 0)] == ["abc", "mid", "zoo"]
    assert [found.name for found in here.do(tenancy.databases, "acme", 1, 1)] == ["mid"]
    assert here.do(tenancy.databases, "acme", 0, 0) == here.do(tenancy.databases, "none", None, 0) == []
    assert here.do(tenancy.database, "acme", "abc").tenant == "acme"
    assert here.refused(tenancy.create_database, "acme", "abc") == (409, "Database [abc] already exists")
    assert here.refused(tenancy.create_database, "none", "abc") == (404, "Tenant [none] not found")
    assert here.refused(tenancy.database, "acme", "x") == (404, "Database [x] not found. Are you sure it exists?")
    assert here.refused(tenancy.drop_database, "acme", "x") == (404, "Database [x] not found")


def test_a_database_goes_with_its_collections(here: Here) -> None:
    here.do(tenancy.create_database, TENANT, "other")
    shown = here.do(catalog.create_collection, TENANT, "other", CollectionWanted("inside"))
    held = here.do(catalog.held, of(shown))
    gone = here.do(tenancy.drop_database, TENANT, "other")
    assert gone == [held.relation] == here.do(catalog.orphans)
    assert here.refused(catalog.held, of(shown))[0] == 404
    here.do(catalog.drop_tables, gone)
    assert here.do(catalog.orphans) == []
    with pytest.raises(Vanished):
        here.do(lambda connection: connection.execute(f"SELECT * FROM {held.table}".encode()))


def test_what_somebody_copied_beside_a_collection_is_no_orphan(here: Here) -> None:
    """Under a name like ours: nobody else may drop it."""
    held = here.do(catalog.held, of(here.create("copied")))
    here.do(lambda c: c.execute(f'CREATE TABLE chromakeep."{held.relation}_backup" AS SELECT * FROM {held.table}'))
    like = f'CREATE TABLE chromakeep."{held.relation}_old" (LIKE {held.table} INCLUDING ALL)'
    here.do(lambda c: c.execute(like))
    assert here.do(catalog.orphans) == []


def test_collections_by_name_and_by_id(here: Here) -> None:
    made = here.create("docs", metadata={"a": 1, "b": 1.0, "c": "x\0", "d": True, "e": None})
    assert made.metadata == {"a": 1, "b": 1.0, "c": "x\0", "d": True}
    assert here.do(catalog.collection, TENANT, DATABASE, "docs") == made
    assert here.do(catalog.collection_by_id, of(made)) == made
    assert type(here.do(catalog.collection_by_id, of(made)).metadata["b"]) is float
    elsewhere = Target(TENANT, "other", made.id)
    assert here.refused(catalog.collection_by_id, elsewhere) == (404, f"Collection [{made.id}] does not exist")
    assert here.refused(catalog.held, elsewhere) == (404, f"Collection [{made.id}] does not exist.")
    assert here.refused(catalog.collection, TENANT, DATABASE, "x") == (404, "Collection [x] does not exist")
    assert here.refused(catalog.create_collection, TENANT, "x", CollectionWanted("abc")) == (
        400,
        "Database [x] does not exist",
    )


def test_a_name_is_taken_once(here: Here) -> None:
    made = here.create("docs", metadata={"a": 1})
    again = CollectionWanted("docs", {"b": 1}, {"hnsw": {"space": "ip"}}, get_or_create=True)
    assert here.do(catalog.create_collection, TENANT, DATABASE, again) == made
    assert here.refused(catalog.create_collection, TENANT, DATABASE, CollectionWanted("docs")) == (
        409,
        "Collection [docs] already exists",
    )


def test_lists_are_in_the_order_of_ids(here: Here) -> None:
    made = sorted(here.create(f"number{n}").id for n in range(5))
    assert [shown.id for shown in here.do(catalog.collections, TENANT, DATABASE, None, 0)] == made
    assert [shown.id for shown in here.do(catalog.collections, TENANT, DATABASE, 2, 1)] == made[1:3]
    assert here.do(catalog.count_collections, TENANT, DATABASE) == 5
    assert here.do(catalog.collections, TENANT, "x", None, 0) == []
    assert here.do(catalog.count_collections, TENANT, "x") == 0


def test_modify(here: Here) -> None:
    made = here.create("docs", metadata={"a": 1})
    here.do(catalog.modify, of(made), Change())
    assert here.do(catalog.collection_by_id, of(made)) == made
    function = {"type": "known", "name": "x", "config": {"a": [1, 2.0]}}
    change = Change("named", {"b": None, "c": 2}, {"hnsw": {"ef_search": 7}, "embedding_function": function})
    here.do(catalog.modify, of(made), change)
    shown = here.do(catalog.collection, TENANT, DATABASE, "named")
    assert (shown.id, shown.metadata) == (made.id, {"c": 2})
    assert shown.configuration_json["hnsw"]["ef_search"] == here.do(catalog.held, of(made)).ef_search == 7
    assert shown.configuration_json["embedding_function"] == function
    here.do(catalog.modify, of(made), Change(metadata={"b": None}))
    assert here.do(catalog.collection_by_id, of(made)).metadata is None
    here.create("other")
    assert here.refused(catalog.modify, of(made), Change("other")) == (409, "Collection [other] already exists")
    here.do(catalog.modify, of(made), Change("named"))
    missing = Target(TENANT, DATABASE, "00000000-0000-4000-8000-000000000000")
    assert here.refused(catalog.modify, missing, Change("abc"))[0] == 404


def test_the_schema_grows_with_the_keys_of_records(here: Here) -> None:
    off = {"string": {"string_inverted_index": {"enabled": False, "config": {}}}}
    on = {"string": {"string_inverted_index": {"enabled": True, "config": {}}}}
    made = here.create("docs", schema={"defaults": off, "keys": {"yes": on}})
    held = here.do(catalog.held, of(made))
    assert [held.filterable(*one) for one in (("yes", "string"), ("no", "string"), ("no", "int"))] == [
        True,
        False,
        True,
    ]
    new = {("k\0" * 3000, "string"), ("k", "int"), ("k", "float")}
    here.do(catalog.seen, held, new)
    here.do(catalog.seen, held, new)  # another instance with an older look at it
    assert here.do(catalog.held, of(made)).keys == new
    keys = here.do(catalog.collection_by_id, of(made)).schema["keys"]
    assert keys["k"] == {
        "int": {"int_inverted_index": {"enabled": True, "config": {}}},
        "float": {"float_inverted_index": {"enabled": True, "config": {}}},
    }
    assert keys["k\0" * 3000]["string"]["string_inverted_index"]["enabled"] is False


def test_forty_at_once_make_one(here: Here) -> None:
    wanted = CollectionWanted("one", get_or_create=True)
    with ThreadPoolExecutor(40) as threads:
        made = [threads.submit(here.do, catalog.create_collection, TENANT, DATABASE, wanted) for _ in range(40)]
        assert len({future.result(60).id for future in made}) == 1

    def create() -> int:
        try:
            here.create("two")
        except Refused as refused:
            return refused.status
        return 200

    with ThreadPoolExecutor(40) as threads:
        found = [future.result(60) for future in [threads.submit(create) for _ in range(40)]]
    assert sorted(found) == [200] + [409] * 39
    assert here.do(catalog.orphans) == []


def test_creating_and_dropping_by_many_is_as_if_one_after_the_other(here: Here) -> None:
    """Who creates finds none there, who drops finds one: so creations and drops that came through alternate."""
    done: list[str] = []
    start, over = threading.Barrier(8, timeout=30), threading.Event()

    def attempt(creates: bool) -> None:
        try:
            here.create("shared") if creates else here.drop("shared")
            done.append("create" if creates else "drop")
        except Refused as refused:
            assert refused.status in (404, 409)

    def create() -> None:
        start.wait()
        for _ in range(10):
            attempt(True)

    def drop() -> None:
        start.wait()
        while not over.is_set():
            attempt(False)
        attempt(False)

    with ThreadPoolExecutor(8) as threads:
        creators, droppers = ([threads.submit(one) for _ in range(4)] for one in (create, drop))
        for future in creators:
            future.result(60)
        over.set()
        for future in droppers:
            future.result(60)
    left = here.do(catalog.count_collections, TENANT, DATABASE)
    assert done.count("create") - done.count("drop") == left
    assert done.count("drop") > 0
    assert here.do(catalog.orphans) == []


def test_a_drop_does_not_wait_for_an_index_that_is_being_built(here: Here, pool: Pool) -> None:
    held = here.do(catalog.held, of(here.create("docs")))
    began, failed = threading.Event(), threading.Event()

    def build() -> None:
        with pool.autocommit() as connection:
            connection.execute("BEGIN")
            connection.execute(f"LOCK TABLE {held.table} IN SHARE UPDATE EXCLUSIVE MODE".encode())
            began.set()
            try:
                connection.execute("SELECT pg_sleep(300)")
            except psycopg.Error:
                failed.set()

    thread = threading.Thread(target=build)
    thread.start()
    assert began.wait(30)
    asleep = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
    eventually(lambda: here.do(lambda c: c.execute(asleep).fetchone()) == (1,), "it is within its statement")
    here.drop("docs")
    thread.join(60)
    assert failed.is_set()


def test_reset_leaves_what_a_new_server_has(here: Here) -> None:
    here.do(tenancy.create_tenant, "acme")
    here.create("docs")
    here.do(catalog.drop_tables, here.do(tenancy.reset))
    assert here.refused(tenancy.tenant, "acme")[0] == 404
    assert here.do(tenancy.database, TENANT, DATABASE).id == tenancy.FIRST
    assert here.do(catalog.count_collections, TENANT, DATABASE) == 0
    assert here.do(catalog.orphans) == []


def test_a_reset_waits_for_what_is_being_made(here: Here) -> None:
    """It would not see it, and could not delete its database."""
    waiting = "SELECT FROM pg_locks WHERE NOT granted"
    with ThreadPoolExecutor(1) as threads:

        def make(connection: Connection) -> None:
            catalog.create_collection(connection, TENANT, DATABASE, CollectionWanted("docs"))
            resetting.append(threads.submit(here.do, tenancy.reset))
            deadline = time.monotonic() + 60
            while here.do(lambda other: other.execute(waiting).fetchone()) is None:
                assert time.monotonic() < deadline
                time.sleep(0.01)

        resetting: list[Future[list[str]]] = []
        here.do(make)
        here.do(catalog.drop_tables, resetting[0].result(60))
    assert here.do(catalog.count_collections, TENANT, DATABASE) == 0
    assert here.do(catalog.orphans) == []


@pytest.mark.parametrize("name", ["a'; DROP TABLE chromakeep.collections; --", 'a"b', "%s %(x)s", "a\\b", "ä" * 300])
def test_no_name_is_read_as_sql(here: Here, name: str) -> None:
    made = here.create(name)
    assert here.do(catalog.collection, TENANT, DATABASE, name) == made
    assert here.do(catalog.collections, TENANT, DATABASE, None, 0) == [made]
    here.drop(name)
    assert here.refused(catalog.collection, name, name, name)[0] == 404


def test_a_drop_meets_a_rename(here: Here) -> None:
    """What was renamed before the drop could be is not dropped: both said what they did."""
    shown = here.create("before")
    waiting = "SELECT FROM pg_locks WHERE NOT granted AND locktype IN ('transactionid', 'tuple')"
    with ThreadPoolExecutor(1) as threads:

        def rename(connection: Connection) -> None:
            catalog.modify(connection, of(shown), Change(name="after"))
            dropping.append(threads.submit(here.refused, catalog.drop_collection, TENANT, DATABASE, "before"))
            deadline = time.monotonic() + 60
            while here.do(lambda other: other.execute(waiting).fetchone()) is None:
                assert time.monotonic() < deadline
                time.sleep(0.01)

        dropping: list[Future[tuple[int, str]]] = []
        here.do(rename)
        assert dropping[0].result(60)[0] == 404
    assert here.do(catalog.collection, TENANT, DATABASE, "after").id == shown.id
    assert here.do(catalog.orphans) == []
    here.do(lambda connection: connection.execute(f"SELECT FROM {catalog.held(connection, of(shown)).table}"))
