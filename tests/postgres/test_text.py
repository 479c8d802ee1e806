"""Text in documents: found by the index, and the same by pg_trgm as by our own trigrams, whatever the locale."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import psycopg
import pytest

from chromakeep.engine import Refused
from chromakeep.filters import Filter, Matches
from chromakeep.postgres import clauses, trigrams
from chromakeep.postgres.migrating import migrate
from chromakeep.postgres.pool import Connection, Pool
from chromakeep.postgres.text import held as as_held
from postgres.conftest import fresh
from postgres.tables import Records
from postgres.test_regex import Maker

WORDS = [
    "abcÉÈÊ",
    "ΑΒΣΓ",
    "ΑΒΣ",
    "ΑΒΓΣ",
    "中文字的",
    "İstanbul",
    "STRASSE",
    "straße",
    "one_two%",
    "a\\b\0c",
    "K\u212aÅ",
]
LOCALES = [
    "LOCALE 'C'",
    "LOCALE 'C.UTF-8'",
    "LOCALE 'C.UTF-8' LOCALE_PROVIDER icu ICU_LOCALE 'und'",
    "LOCALE 'C.UTF-8' LOCALE_PROVIDER builtin BUILTIN_LOCALE 'PG_UNICODE_FAST'",
]


class Found:
    """Documents, one index of them at a time, and what is found by it. ``i`` is the id of ``documents[i]``."""

    def __init__(self, records: Records, documents: list[str]) -> None:
        self.records, self.documents = records, documents
        records.add(list(map(str, range(len(documents)))), documents=documents)

    def index(self, *, trgm: bool) -> None:
        """With pg_trgm or with our trigrams, which are written if they were not."""
        held = self.records.held
        hashes, offsets = trigrams.of([as_held(document) for document in self.documents])
        with self.records.pool.autocommit() as connection:
            connection.execute(f'DROP INDEX IF EXISTS chromakeep."{held.relation}_document"')
            if not trgm:
                parts = [hashes[start:stop].tolist() for start, stop in itertools.pairwise(offsets.tolist())]
                with connection.transaction():
                    connection.cursor().executemany(
                        f"UPDATE {held.table} SET trigrams = %s WHERE id = %s",
                        [(part, str(number)) for number, part in enumerate(parts)],
                    )
            for statement in clauses.index_statements(held, [], trgm):
                connection.execute(statement)
            connection.execute(f"ANALYZE {held.table}")

    def ask(self, where: Filter, *, trgm: bool, indexed: bool = True) -> tuple[set[str], str]:
        """The ids, and how they were found."""
        held = self.records.held
        condition, values = clauses.clause(where, held, trgm=trgm)
        query = f"SELECT r.id FROM {held.table} r WHERE {condition}"
        setting = "SET LOCAL enable_seqscan = off" if indexed else "SET LOCAL enable_bitmapscan = off"

        def work(connection: Connection) -> tuple[set[str], str]:
            connection.execute(setting.encode())
            plan = connection.execute(f"EXPLAIN {query}".encode(), values).fetchall() if indexed else ""
            return {name for (name,) in connection.execute(query.encode(), values)}, str(plan)

        return self.records.pool.run(work, write=True)  # in a transaction, for its setting


def texts(found: Found, rng: random.Random) -> Iterator[str]:
    """Words, and parts of documents."""
    yield from WORDS
    for _ in range(80):
        document = rng.choice(found.documents)
        start = rng.randrange(len(document))
        yield document[start : start + rng.randrange(1, 9)]


def expressions(found: Found, rng: random.Random) -> Iterator[str]:
    """Each text as one, in several forms; and any."""
    maker = Maker(rng.randrange(100))
    for text in texts(found, rng):
        escaped = "".join("\\" + letter if letter in "\\^$.[]|()*+?{}&~#-" else letter for letter in text)
        yield rng.choice(
            [escaped, f"{escaped}$", f"^.*{escaped}", f"(?i){escaped}", rf"\w{escaped}", f"({escaped}|ÉÈÊ)"]
        )
    for _ in range(60):
        yield maker.expression()


@pytest.fixture(scope="module")
def found(pool: Pool) -> Found:
    rng, maker = random.Random(3), Maker(3)
    pieces = [*WORDS, *(maker.text(7) for _ in range(60)), " ", "-", "'; --"]
    documents = [*WORDS, *("".join(rng.choices(pieces, k=rng.randrange(1, 6))) for _ in range(400))]
    return Found(Records(pool, "found"), documents)


def test_pg_trgm_finds_the_same(found: Found) -> None:
    """As ours, as without an index and, of texts, as Python."""
    if not found.records.trgm:
        pytest.skip("this server has no pg_trgm that is used")
    rng = random.Random(4)
    wanted = [(Matches("$contains", text), text) for text in texts(found, rng)]
    wanted += [(Matches("$regex", expression), None) for expression in expressions(found, rng)]
    answers: list[list[set[str]]] = []
    for trgm in (True, False):
        found.index(trgm=trgm)
        answers.append([])
        for where, text in wanted:
            try:
                ids, plan = found.ask(where, trgm=trgm)
            except Refused as refused:
                assert refused.status == 400
                continue
            assert ids == found.ask(where, trgm=trgm, indexed=False)[0], where
            if text is not None:
                assert ids == {str(i) for i, document in enumerate(found.documents) if text in document}
            if text in WORDS:
                assert "_document" in plan, where
            answers[-1].append(ids)
    assert answers[0] == answers[1]
    assert sum(map(bool, answers[0])) > 120


@pytest.mark.parametrize("locale", LOCALES)
def test_in_every_locale(postgres_url: str, locale: str) -> None:
    """Whatever it was decided to find texts by, it finds all, and by the index."""
    try:
        url = fresh(postgres_url, "template0", locale)
    except psycopg.Error as error:
        pytest.skip(f"this server has no such locale: {error}".splitlines()[0])
    migrate(url)
    pool = Pool(url)
    found = Found(Records(pool, "words"), [*WORDS, *(f"a text {i}" for i in range(200))])
    trgm = found.records.trgm
    found.index(trgm=trgm)
    for word in WORDS:
        has = {str(i) for i, document in enumerate(found.documents) if word in document}
        for operator in ("$contains", "$regex"):
            asked = word.replace("\\", "\\\\") if operator == "$regex" else word
            ids, plan = found.ask(Matches(operator, asked), trgm=trgm)
            assert ids == has, (word, operator)
            assert "_document" in plan, (word, operator)
    pool.close()
