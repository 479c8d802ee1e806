"""The pool: bounded, whole transactions, tried again where that is safe, and never psycopg's own errors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from chromakeep.engine import Refused
from chromakeep.errors import UsageError
from chromakeep.events import Event, Noted
from chromakeep.postgres.conninfo import connection_parameters, shown
from chromakeep.postgres.pool import Connection, Pool
from chromakeep.postgres.refusals import Reasons, Vanished, refusal
from chromakeep.waiting import Waiting
from postgres.conftest import role
from postgres.instances import eventually


@pytest.fixture(scope="module", autouse=True)
def table(pool: Pool) -> None:
    pool.run(lambda c: c.execute("CREATE TABLE numbers (n integer PRIMARY KEY, v integer)"), write=True)


def one(statement: str) -> Callable[[Connection], object]:
    def work(connection: Connection) -> object:
        row = connection.execute(statement.encode()).fetchone()
        return row and row[0]

    return work


def do(statement: str) -> Callable[[Connection], None]:
    return lambda connection: connection.execute(statement.encode()) and None


def killer(database_url: str) -> Callable[[int], None]:
    def kill(backend: int) -> None:
        with psycopg.connect(database_url, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s, 10000)", (backend,))

    return kill


def test_what_raises_is_undone_and_the_connection_goes_on(pool: Pool) -> None:
    def work(connection: Connection) -> None:
        connection.execute("INSERT INTO numbers VALUES (100, 0)")
        raise Refused(400, "no")

    with pytest.raises(Refused, match="no"):
        pool.run(work, write=True)
    assert pool.run(one("SELECT count(*) FROM numbers WHERE n = 100"), write=False) == 0


def test_an_error_of_a_statement_is_refused_in_one_line(pool: Pool) -> None:
    with pytest.raises(Refused) as caught:
        pool.run(do("SELECT 1 / 0"), write=False)
    assert (caught.value.status, caught.value.message) == (500, "PostgreSQL did not do this (SQLSTATE 22012)")


def test_a_table_that_is_not_there_has_vanished(pool: Pool) -> None:
    with pytest.raises(Vanished):
        pool.run(do("SELECT * FROM nowhere"), write=False)


def test_crossing_upserts_both_come_through(pool: Pool) -> None:
    """Two transactions take two rows in opposite order: PostgreSQL ends one of them, and it is done again."""
    pool.run(do("INSERT INTO numbers VALUES (1, 0), (2, 0)"), write=True)
    both = threading.Barrier(2, timeout=30)
    attempts: list[int] = []

    def crossing(first: int, second: int) -> Callable[[Connection], None]:
        tried: list[int] = []

        def work(connection: Connection) -> None:
            attempts.append(first)
            connection.execute("SET LOCAL deadlock_timeout = '10ms'")
            connection.execute("UPDATE numbers SET v = v + 1 WHERE n = %s", (first,))
            if not tried:
                tried.append(1)
                both.wait()
            connection.execute("UPDATE numbers SET v = v + 1 WHERE n = %s", (second,))

        return work

    with ThreadPoolExecutor(2) as threads:
        for future in [threads.submit(pool.run, crossing(*pair), write=True) for pair in ((1, 2), (2, 1))]:
            future.result(60)
    assert len(attempts) >= 3, "there was no deadlock"
    assert pool.run(one("SELECT sum(v) FROM numbers WHERE n IN (1, 2)"), write=False) == 4


def test_a_connection_lost_before_the_commit_is_tried_again_once_done(pool: Pool, database_url: str) -> None:
    kill, killed = killer(database_url), []

    def work(connection: Connection) -> None:
        connection.execute("INSERT INTO numbers VALUES (10, 0)")
        if not killed:
            killed.append(1)
            kill(connection.info.backend_pid)
        connection.execute("INSERT INTO numbers VALUES (11, 0)")

    pool.run(work, write=True)
    assert pool.run(one("SELECT count(*) FROM numbers WHERE n IN (10, 11)"), write=False) == 2


def test_a_connection_lost_at_the_commit_of_a_write_is_told(pool: Pool, database_url: str) -> None:
    kill = killer(database_url)

    def work(connection: Connection) -> None:
        connection.execute("INSERT INTO numbers VALUES (12, 0)")
        kill(connection.info.backend_pid)

    with pytest.raises(Refused) as caught:
        pool.run(work, write=True)
    assert caught.value.status == 504
    assert pool.run(one("SELECT count(*) FROM numbers WHERE n = 12"), write=False) == 0


def test_who_stops_within_a_transaction_holds_others_up_for_a_moment_only(database_url: str) -> None:
    """Its machine has lost its power, say: no end of its connection reaches PostgreSQL. Where it is only slow, its
    transaction is done again."""
    stopped, other, calls = Pool(database_url, 1, idle_timeout=0.1), Pool(database_url, 1), list[int]()
    other.run(do("INSERT INTO numbers VALUES (20, 0)"), write=True)
    ended = threading.Event()

    def work(connection: Connection) -> None:
        if calls:  # else it might be ended again where the machine is slow, and then for good
            connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        connection.execute("UPDATE numbers SET v = v + 1 WHERE n = 20")
        calls.append(1)
        if len(calls) == 1:
            assert ended.wait(60), "its lock is held for ever"
        connection.execute("UPDATE numbers SET v = v + 10 WHERE n = 20")

    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(stopped.run, work, write=True)
        eventually(lambda: calls, "it holds the lock")
        other.run(do("UPDATE numbers SET v = v + 100 WHERE n = 20"), write=True)
        ended.set()
        slow.result(60)
    assert other.run(one("SELECT v FROM numbers WHERE n = 20"), write=False) == 111
    stopped.close()
    other.close()


def test_idle_connections_that_the_server_closed_are_not_used(database_url: str) -> None:
    pool, kill = Pool(database_url, 1), killer(database_url)
    backend = pool.run(one("SELECT pg_backend_pid()"), write=False)
    assert isinstance(backend, int)
    kill(backend)
    calls: list[int] = []
    assert pool.run(lambda c: calls.append(1) or one("SELECT 7")(c), write=True) == 7
    assert len(calls) == 1
    pool.close()


def test_one_that_had_hardly_any_time_left_is_not_used_again(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To give its statements more time is a statement, which could come to its end for somebody who is in no hurry."""
    pool, session = Pool(database_url, 1), one("SELECT pg_backend_pid()")
    for hasty, used in ((1.0, True), (100.0, False)):
        monkeypatch.setattr("chromakeep.postgres.pool.HASTY", hasty)
        with Waiting(time.monotonic() + 50).for_it():
            before = pool.run(session, write=False)
        assert (pool.run(session, write=False) == before) == used
    pool.close()


def test_no_connection_in_time_is_503(database_url: str) -> None:
    pool, taken, done = Pool(database_url, 1, patience=0.05), threading.Event(), threading.Event()

    def work(connection: Connection) -> None:
        taken.set()
        done.wait(30)

    thread = threading.Thread(target=lambda: pool.run(work, write=False))
    thread.start()
    assert taken.wait(30)
    with pytest.raises(Refused) as caught:
        pool.run(do("SELECT 1"), write=False)
    assert (caught.value.status, caught.value.retry_after) == (503, 1.0)
    done.set()
    thread.join()
    pool.run(do("SELECT 1"), write=False)
    pool.close()


def test_a_server_that_takes_no_more_connections(postgres_url: str, database_url: str) -> None:
    """Those that we have are waited for; with none of our own at all it is 503 at once, and passes."""
    given = psycopg.conninfo.conninfo_to_dict(database_url)
    few = database_url.replace(f"postgres:{given['password']}", "few:few")
    pool, other = Pool(few, 8, patience=30), Pool(few, 2)
    with role(postgres_url, "few", "CONNECTION LIMIT 2"):
        with ThreadPoolExecutor(8) as threads:
            found = [threads.submit(pool.run, one("SELECT 1 FROM pg_sleep(0.01)"), write=False) for _ in range(64)]
            assert [future.result(60) for future in found] == [1] * 64
        with pytest.raises(Refused) as caught:  # the first pool holds both
            other.run(do("SELECT 1"), write=False)
        assert (caught.value.status, caught.value.retry_after) == (503, 1.0)
        pool.close()

        def served() -> bool:
            try:
                return other.run(one("SELECT 1"), write=False) == 1
            except Refused:
                return False

        eventually(served, "the server has noticed")
        other.close()


def test_connections_that_are_waited_for_may_be_lost(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server took no more beside the only one, which is gone now: it has room again."""
    pool, connect, gone = Pool(database_url, 2, patience=30), Pool._connect, threading.Event()

    def crowded(self: Pool) -> Connection:
        if self._open == 2:
            raise psycopg.OperationalError("FATAL:  sorry, too many clients already")
        return connect(self)

    def lost(connection: Connection) -> None:
        assert gone.wait(60)
        connection.close()
        raise Refused(400, "no")

    monkeypatch.setattr(Pool, "_connect", crowded)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(pool.run, lost, write=True)
        eventually(lambda: pool._open == 1, "there is one")
        second = threads.submit(pool.run, one("SELECT 1"), write=False)
        eventually(lambda: pool._changed._waiters, "it is waited for")  # type: ignore[attr-defined]
        gone.set()
        with pytest.raises(Refused, match="no"):
            first.result(60)
        assert second.result(60) == 1
    pool.close()


def test_nobody_there_is_503_and_only_the_operator_hears_where(tmp_path: Path) -> None:
    for url in (
        "postgresql://u@127.0.0.1:1/d",
        f"postgresql://u@/d?host={tmp_path}&port=5",
        "postgresql://u@h.invalid/d",
    ):
        told: list[Event] = []
        pool = Pool(url, observer=told.append)
        for _ in range(3):
            with pytest.raises(Refused) as caught:
                pool.run(do("SELECT 1"), write=False)
            assert caught.value.status == 503
            assert caught.value.message == "PostgreSQL cannot be reached"
        with pytest.raises(Refused, match=r"^PostgreSQL cannot be reached$"), pool.autocommit():
            pass
        assert len(told) == 1, "once, not once a request"
        assert isinstance(told[0], Noted)
        assert told[0].level == "warning"
        assert any(where in told[0].message for where in ("127.0.0.1", str(tmp_path), "h.invalid"))
        assert "\n" not in told[0].message


def test_what_a_wrong_user_or_database_is_called_is_told_to_no_client(database_url: str) -> None:
    for part, wrong in (("//postgres:", "//nobody_here:"), (urlsplit(database_url).path, "/no_such_database")):
        told: list[Event] = []
        with pytest.raises(Refused) as caught:
            Pool(database_url.replace(part, wrong), observer=told.append).run(do("SELECT 1"), write=False)
        assert caught.value.message == "PostgreSQL cannot be reached"
        assert wrong.strip("/:") in str(told)


def test_each_trouble_is_told_once_and_again_when_it_comes_back(pool: Pool) -> None:
    told: list[Event] = []
    reasons = Reasons(told.append)
    away, odd = psycopg.OperationalError("h: no"), psycopg.errors.lookup("XX000")("relation t is odd")
    for error in (away, odd, away, odd, psycopg.OperationalError("other: no")):
        reasons.told(refusal(error), error)
    assert [event.message for event in told if isinstance(event, Noted)] == [
        "PostgreSQL cannot be reached: h: no",
        "PostgreSQL did not do this (SQLSTATE XX000): relation t is odd",
    ]
    reasons.reached()
    for error in (away, odd):
        reasons.told(refusal(error), error)
    assert len(told) == 3
    hasty = Reasons(told.append, quiet=-1.0)
    for _ in range(2):
        hasty.told(refusal(odd), odd)
    assert len(told) == 5
    for error in (psycopg.errors.InvalidRegularExpression("too complex"), psycopg.errors.UndefinedTable("t")):
        hasty.told(refusal(error), error)
    assert len(told) == 5, "what a client did, and what vanished, is no trouble"


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("57014", 504), ("53100", 507), ("53200", 507), ("53300", 503), ("25006", 503), ("08006", 503), ("57P01", 503),
        ("54000", 400), ("55P03", 503), ("XX001", 500), ("42501", 500), ("0A000", 500), ("P0001", 500), ("25P02", 500),
    ],
)  # fmt: skip
def test_no_words_of_postgresql_reach_a_client(state: str, status: int) -> None:
    made = refusal(psycopg.errors.lookup(state)('on table "secret" of host "db1" at /run/db1'))
    assert isinstance(made, Refused)
    assert made.status == status
    assert "secret" not in made.message and "db1" not in made.message
    assert (made.retry_after is not None) == (status == 503)


def test_no_password_is_shown() -> None:
    url = "postgresql://u:geheim@h1,h2:5433/d?password=geheim"
    assert "geheim" not in repr(Pool(url)) + shown(url)
    with pytest.raises(UsageError) as caught:
        connection_parameters("postgresql://u:geheim@h:port/d?x=1")
    assert "geheim" not in caught.value.message


def test_a_statement_ends_when_nobody_waits_any_more(pool: Pool) -> None:
    """And changes nothing, nor begins at all where that was before; the next on its connection may take its time."""
    changes = do("WITH w AS (INSERT INTO numbers VALUES (500, 0)) SELECT pg_sleep(60)")
    for work, write in ((one("SELECT pg_sleep(60)"), False), (changes, True)):
        with Waiting(time.monotonic() + 0.3).for_it(), pytest.raises(Refused, match="nothing was changed") as caught:
            pool.run(work, write=write)
        assert caught.value.status == 504
    asked: list[None] = []
    with Waiting(time.monotonic() - 1).for_it(), pytest.raises(Refused) as caught:
        pool.run(lambda _: asked.append(None), write=True)
    assert caught.value.status == 504 and not asked
    assert pool.run(one("SELECT count(*) FROM numbers WHERE n = 500"), write=False) == 0
    for write in (True, False):
        assert pool.run(one("SELECT current_setting('statement_timeout')"), write=write) == "5min"
        with Waiting(time.monotonic() + 100).for_it():
            assert pool.run(one("SELECT current_setting('statement_timeout')"), write=write) != "5min"
