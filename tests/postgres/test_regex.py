"""Regular expressions: the same documents, and the same errors, as on a stock Chroma."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from chromakeep.chroma.server import ChromaServer
from chromakeep.engine import Refused
from chromakeep.filters import Matches
from chromakeep.postgres import characters, regex
from chromakeep.postgres.pool import Pool
from postgres.tables import Records

LETTERS = [
    *"abABkKsS09 \n\r\t_-.[]^\\}#&~", *"ſßẞéÉ٣λΛ中ǆǅǄıİiIⒶ²ΣσςꭰᎰ",
    "😀", "\x85", "\u200d", "\x0b", "\u0300", "\u212a",
]  # fmt: skip
ERRORS = [
    "(?=a)", "(?<!a)b", r"(a)\1", "(a", "[z-a]", "*a", "(?<n>a)(?<n>b)", r"(?-u)\w", "[&&a]|a", "[", r"\Z", r"\q",
    "a{,3}", "a{", "a{3,2}", "a{1,x}", "a{1", r"\b{foo}", r"\b{", "[a&&b]", r"[a-\d]", r"[\d-a]", r"\8", "(?i", "a|*",
    "(?i)*", "a)", "(?)", "(?-)", "(?i-)", "(?ii)", "(?i-s-m)", "(?z)", "(?P<", "(?P<>a)", "(?P<1>a)", "(?P<a", r"\x",
    r"\x4", r"\x{}", r"\x{110000}", r"\x{d800}", r"\xzz", r"\u12", "\\", "[\\", "[a", "[a-", r"[\b]", "[^", "[]",
    r"\p", r"\p{", r"\p{L", "{2}", "(?#x)", "(?P=a)", "(?i:", "((a)", "[[a]", r"\é",
]  # fmt: skip
FINE = [
    "", "a**", "[]a]", "(?u)a", "a{ 1, 2 }", r"\b{start}a", r"\<a", "(?R)^a", "(?U)a+", r"\pL", r"\p{Any}", r"\_",
    "[a--b]", r"\b{1}", "[[:foo:]]", "[a-]", "[-a]", r"\p{gc=Lu}", r"\p{gc!=Lu}", "(?x)[ a ]", "(?x)a {2}", "(?x)a #",
    "}", "]", "a{2}{3}", "()", "(|a)", "(?mR)$", r"\U0001F600", r"\p{ISL}", r"\p{cased letter}", "[[:word:]&&[^_]]",
    r"(?i)\p{Lu}", r"\b+", r"(?:\b)*x", "a{0}", "[a&&b]{0}", "^*", "a{300}", "a{0,300}b", "a{2,}", r"(?s)a.b",
    "(?i)[^k]", "(?i)ς",
]  # fmt: skip


class Maker:
    """Expressions of every form."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def text(self, most: int) -> str:
        return "".join(self.rng.choices(LETTERS, k=self.rng.randrange(1, most)))

    def letter(self) -> str:
        c = self.rng.choice(LETTERS)
        return "\\" + c if c in "\\^$.[]|()*+?{}&~#-" else c

    def brackets(self, depth: int = 0) -> str:
        parts = []
        for _ in range(self.rng.randrange(1, 4)):
            kind = self.rng.random()
            low, high = sorted([self.letter(), self.letter()], key=lambda c: c[-1])
            if kind < 0.4:
                parts.append(low)
            elif kind < 0.6:
                parts.append(f"{low}-{high}")
            elif kind < 0.8 or depth == 2:
                parts.append(self.rng.choice([r"\d", r"\w", r"\s", r"\D", r"\W", r"\S", r"\pL", r"\p{Lu}", r"\P{Ll}"]))
            elif kind < 0.9:
                parts.append(self.rng.choice(["[:alpha:]", "[:^digit:]", "[:space:]", "[:word:]"]))
                parts[-1] = f"[{parts[-1]}]"
            else:
                parts.append(self.brackets(depth + 1))
        if depth < 2 and self.rng.random() < 0.2:
            parts += [self.rng.choice(["&&", "--", "~~"]), self.rng.choice(["a-z", self.brackets(depth + 1)])]
        return f"[{self.rng.choice(['', '', '^'])}{''.join(parts)}]"

    def atom(self, depth: int) -> str:
        kind = self.rng.random()
        if kind < 0.35:
            return self.letter()
        if kind < 0.6:
            return self.rng.choice([".", self.brackets()])
        if kind < 0.7:
            return self.rng.choice([r"\d", r"\w", r"\s", r"\D", r"\W", r"\S", r"\pL", r"\x41", r"\u{4e2d}", r"\n"])
        if kind < 0.85 or depth == 3:
            return self.rng.choice(["^", "$", r"\A", r"\z", r"\b", r"\B", r"\<", r"\>", r"\b{start}", r"\b{end-half}"])
        opening = self.rng.choice(["(", "(?:", "(?i:", "(?s-i:", "(?m:", "(?mR:", f"(?P<n{self.rng.randrange(10**9)}>"])
        return f"{opening}{self.choice(depth + 1)})"

    def repeated(self, depth: int) -> str:
        often = ["*", "+", "?", "{2}", "{0,2}", "{1,}", "*?", "{2,3}?", "{0}", "{ 1 , 2 }"]
        return self.atom(depth) + (self.rng.choice(often) if self.rng.random() < 0.3 else "")

    def choice(self, depth: int = 0) -> str:
        return "|".join(
            "".join(self.repeated(depth) for _ in range(self.rng.randrange(0 if self.rng.random() < 0.1 else 1, 4)))
            for _ in range(self.rng.choice([1, 1, 1, 2, 3]))
        )

    def expression(self) -> str:
        return self.rng.choice(["", "", "(?i)", "(?s)", "(?m)"]) + self.choice()


class Stock:
    """A collection of documents on a ``chroma run``; the id of each is its number."""

    def __init__(self, url: str, documents: list[str]) -> None:
        self.http = httpx.Client(base_url=f"{url}/api/v2/tenants/default_tenant/databases/default_database", timeout=60)
        self.path = f"/collections/{self.http.post('/collections', json={'name': 'regex'}).json()['id']}"
        ids = list(map(str, range(len(documents))))
        body = {"ids": ids, "documents": documents, "embeddings": [[1, 2]] * len(documents)}
        assert self.http.post(f"{self.path}/add", json=body).status_code == 201

    def ask(self, pattern: str) -> set[str] | str:
        """The ids, or the message of a 400."""
        body = {"where_document": {"$regex": pattern}, "include": []}
        response = self.http.post(f"{self.path}/get", json=body)
        said: dict[str, Any] = response.json()
        if response.status_code == 200:
            return set(said["ids"])
        assert response.status_code == 400, said
        return str(said["message"])


@pytest.fixture(scope="module")
def both(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stock, Records]]:
    maker = Maker(11)
    documents = sorted({maker.text(9) for _ in range(300)} | {"aaa", "a" * 301, "foo\nbar", "x.y", "STRASSE", "straße"})
    records = Records(pool, "regex")
    records.add(list(map(str, range(len(documents)))), documents=documents)
    server = ChromaServer(tmp_path_factory.mktemp("stock"), env=dict(os.environ))
    server.start()
    yield Stock(f"http://127.0.0.1:{server.options.port}", documents), records
    server.stop()


def ours(records: Records, pattern: str) -> set[str] | str:
    try:
        return set(records.ids(Matches("$regex", pattern)))
    except Refused as refused:
        assert refused.status == 400
        return refused.message


def test_made_up_expressions(both: tuple[Stock, Records]) -> None:
    """With the same answers; of errors the reason, for where one is in several lines is drawn otherwise."""
    stock, records = both
    maker = Maker(int(os.environ.get("CHROMAKEEP_REGEX_SEED", "5")))
    answered = 0
    for _ in range(80):
        pattern = maker.expression()
        theirs, here = stock.ask(pattern), ours(records, pattern)
        if isinstance(theirs, str) and isinstance(here, str):
            theirs, here = theirs.splitlines()[-1], here.splitlines()[-1]
        assert here == theirs, pattern
        answered += not isinstance(theirs, str) and len(theirs) > 0
    assert answered > 25


@pytest.mark.parametrize("pattern", FINE)
def test_forms(both: tuple[Stock, Records], pattern: str) -> None:
    stock, records = both
    theirs = stock.ask(pattern)
    assert not isinstance(theirs, str)
    assert ours(records, pattern) == theirs


@pytest.mark.parametrize("pattern", ERRORS)
def test_errors_are_stock_errors(both: tuple[Stock, Records], pattern: str) -> None:
    stock, records = both
    theirs = stock.ask(pattern)
    assert isinstance(theirs, str)
    assert ours(records, pattern) == theirs


@pytest.mark.parametrize("pattern", [r"\p{Greek}", r"\p{sc=Han}", r"\p{Alphabetic}", r"\p{Emoji}", r"(?-u:a)"])
def test_what_only_stock_knows_is_refused(both: tuple[Stock, Records], pattern: str) -> None:
    stock, records = both
    assert not isinstance(stock.ask(pattern), str)
    assert isinstance(ours(records, pattern), str)


@pytest.mark.parametrize(
    "pattern", [r"\w{1000}{1000}", "(((a{30}){30}){30}){30}", "(" * 3000, "[" * 3000, "a{999999999}", "(a?b?){300}"]
)
def test_what_is_too_large_is_refused(both: tuple[Stock, Records], pattern: str) -> None:
    assert isinstance(ours(both[1], pattern), str)


@pytest.mark.parametrize(("form", "most"), [("(?x){}", 9_996), ("[{}a]", 64)])
def test_what_would_take_long_to_read_is_refused(form: str, most: int) -> None:
    """However little there is to be looked for: the one is read character by character, and each operation on classes
    takes as long as they are large."""
    unit = " " if "x" in form else "a&&"
    assert regex.translated(form.format(unit * most))
    with pytest.raises(Refused, match="too large"):
        regex.translated(form.format(unit * (most + 1)))


def test_a_zero_byte_is_one_character(pool: Pool) -> None:
    records = Records(pool, "zero-bytes")
    records.add(["a", "b", "c"], documents=["x\0y", "xzy", "x\U0010fffey"])
    for pattern, found in [
        (r"x\x00y", ["a"]),
        (r"x.y", ["a", "b"]),
        (r"x[\x00-\x05]y", ["a"]),
        (r"x[^z]y", ["a"]),
        (r"x[^\x00]y", ["b"]),
        ("x\0y", ["a"]),
        ("x\U0010fffey", ["c"]),
    ]:
        assert records.ids(Matches("$regex", pattern)) == found, pattern


def test_texts_that_every_match_has() -> None:
    for pattern, required in [
        ("hello world", ["hello world"]),
        (r"ab\.c\b(?:de)f+gh", ["ab.cde", "f", "gh"]),
        ("(abc|abd)x", ["x"]),
        ("(?i)abc9", ["9"]),
        ("(abc){2,}d?e", ["abc", "e"]),
        ("a\0b", ["a\U0010fffeb"]),
        ("x|", []),
    ]:
        assert list(regex.translated(pattern).required) == required


def test_sets_of_characters() -> None:
    assert characters.union(((5, 6),), ((1, 2), (3, 4))) == ((1, 6),)
    some = characters.union(((0, 5), (100, 0xD7FF), (0x10FFFF, 0x10FFFF)))
    assert characters.complement(characters.complement(some)) == some
    assert characters.intersection(some, characters.complement(some)) == ()
    assert characters.difference(characters.ALL, ()) == characters.ALL
    word = characters.perl("w")
    assert characters.perl("W") == characters.complement(word)
    assert all(any(low <= ord(c) <= high for low, high in word) for c in "aZ0_é中\u0300\u200dⒶ")
    assert characters.folded(((ord("k"), ord("k")),)) == ((75, 75), (107, 107), (0x212A, 0x212A))
