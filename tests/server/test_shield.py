"""What the shield sees in a body: the same however it is cut, spelled and laid out as what a JSON parser sees."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chromakeep.server.collection_watch import MOST_NEIGHBORS, CollectionWatch
from chromakeep.server.fields import Malformed
from chromakeep.server.filter_watch import MOST_CONDITIONS, FilterWatch
from chromakeep.server.gathered import MOST_BYTES
from chromakeep.server.guard import Watch
from chromakeep.server.limits import Limits
from chromakeep.server.records_watch import MOST_VALUES, RecordsWatch
from chromakeep.server.request_head import parse_request
from chromakeep.server.shield import refuse_route, watch_for

SLOT = "chroma:document"
C = "/api/v2/tenants/t/databases/d/collections"


def fed(watch: Watch, parts: Iterable[bytes]) -> int | None:
    """The status a body is refused with. None: it has passed as it came."""
    parts = list(parts)
    passed = b""
    try:
        for number, part in enumerate(parts, 1):
            passed += watch.feed(part, last=number == len(parts))
    except Malformed as error:
        assert "\n" not in error.message
        return error.status
    assert passed == b"".join(parts)
    return None


def verdict(body: bytes | str) -> int | None:
    """Of the records' watch, in one piece and byte by byte."""
    whole = body.encode() if isinstance(body, str) else body
    status = fed(RecordsWatch(), [whole])
    assert fed(RecordsWatch(), [whole[n : n + 1] for n in range(len(whole))]) == status
    return status


def body_with(metadata: str) -> str:
    return '{"ids":["a"],"embeddings":[[1.0,2]],"metadatas":[{"x":1},' + metadata + "]}"


REFUSED = [
    body_with('{"chroma:document":5}'),
    body_with('{"chroma:document" \r\n\t: \n 1.5}'),
    body_with('{"chroma:document":null}'),
    body_with('{"chroma:document":true}'),
    body_with('{"chroma:document":[]}'),
    body_with('{"chroma:document":{}}'),
    body_with('{"chroma:document":-1}'),
    body_with('{"a":"chroma:document","chroma:document":1}'),
    body_with(r'{"\u0063hroma:document":5}'),
    body_with(r'{"chroma\u003adocument":5}'),
    body_with(r'{"chroma\u003Adocumen\u0074":5}'),
    body_with('{"' + "".join(f"\\u{ord(c):04x}" for c in SLOT) + '":5}'),
    body_with(r'{"a\\":"\\\"","chroma:document":5}'),
    body_with(r'{"a":"\\","chroma:document":5}'),
    body_with('{"chroma:document":"text","chroma:document":5}'),
    body_with('{"chroma:document":5,"chroma:document":"text"}'),
    '{"metadatas":[{"chroma:document":5}],"ids":["a"],"embeddings":[[1]]}',
    ' \n["a"]',
    '[["a"],[[1.0]],null,null,[{"chroma:document":5}]]',
    "[",
]
PASSED = [
    body_with('{"chroma:document":"text"}'),
    body_with('{"chroma:document" : \n "5"}'),
    body_with('{"chroma:uri":5,"chroma:":5,"chroma:documents":5,"xchroma:document":5,"Chroma:document":5}'),
    body_with(r'{"a":"\"chroma:document\": 5","b":"\\\"chroma:document\":5"}'),
    body_with(r'{"a":"\\\\\"chroma:document\":5"}'),
    body_with(r'{"\\u0063hroma:document":5,"chroma:document\"":5,"chroma\\:document":5,"chroma\/document":5}'),
    body_with('{"a":"chroma:document","b":5}'),
    body_with('{"a":["chroma:document"],"b":5}'),
    body_with('{"chroma:document\\u0000":5}'),
    '{"ids":["chroma:document"],"embeddings":[[1]]}',
    '{"ids":["a"],"documents":["{\\"chroma:document\\": 5}"],"embeddings":[[1]]}',
    "{}",
    "",
    "5",
    '"chroma:document"',
]


@pytest.mark.parametrize("body", REFUSED)
def test_a_document_slot_without_a_string_is_refused(body: str) -> None:
    """Whatever the value, the spelling of the key and the space around it; a body that is an array, too."""
    assert verdict(body) == 422


@pytest.mark.parametrize("body", PASSED)
def test_its_name_elsewhere_passes(body: str) -> None:
    """In texts, in values, and with a string as Chroma keeps it."""
    assert verdict(body) is None


@pytest.mark.parametrize("body", [*REFUSED[:14], *PASSED[:8]])
def test_every_cut_gives_the_same_verdict(body: str) -> None:
    """In two and three parts, empty ones among them."""
    whole = body.encode()
    expected = verdict(body)
    for cut in range(len(whole) + 1):
        assert fed(RecordsWatch(), [whole[:cut], b"", whole[cut : cut + 3], whole[cut + 3 :], b""]) == expected


def test_the_place_of_a_byte_of_a_long_body_does_not_matter() -> None:
    """Strings and numbers longer than what is kept of one."""
    for text in ("x" * 1000, "\\\\" * 300, '\\"' * 300, "\\u0063hroma:document" * 30):
        for metadata, expected in (('{"chroma:document":5}', 422), ('{"a":"chroma:document"}', None)):
            whole = body_with(f'{{"a":"{text}"}},{metadata}').encode()
            for size in (1, 7, 127, 128, 129, 500):
                parts = [whole[n : n + size] for n in range(0, len(whole), size)]
                assert fed(RecordsWatch(), parts) == expected


def test_space_without_end_is_not_kept() -> None:
    """Between key, colon and value there may be any amount of it."""
    whole = body_with('{"chroma:document"' + " " * 200_000 + ":" + "\n" * 200_000 + "5}").encode()
    assert fed(RecordsWatch(), [whole[n : n + 1000] for n in range(0, len(whole), 1000)]) == 422


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({f"k{n}": n for n in range(MOST_VALUES)}, None),
        ({f"k{n}": n for n in range(MOST_VALUES + 1)}, 422),
        ({"k": list(range(MOST_VALUES))}, None),
        ({"k": ["x"] * (MOST_VALUES + 1)}, 422),
        ({"j": 1, "k": [True] * MOST_VALUES}, 422),
        ({"}": 1, "{": 1, "k": [","] * MOST_VALUES}, 422),
        ({"k": "a,b{c}" * MOST_VALUES}, None),
    ],
)
def test_more_values_than_a_record_may_have(metadata: dict[str, Any], expected: int | None) -> None:
    """Counted by record, elements of arrays among them; of vectors and texts nothing is counted."""
    record = json.dumps(metadata)
    others = '{"a":1,"b":[1,2]},null,{},' * 3000
    body = '{"ids":["a"],"embeddings":[[' + "1," * 20_000 + '1]],"metadatas":[' + others + record + "," + others
    whole = (body + '{}],"documents":["' + "," * 9000 + '"]}').encode()
    for size in (len(whole), 65536, 997):
        assert fed(RecordsWatch(), [whole[n : n + size] for n in range(0, len(whole), size)]) == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('{"ids":["a","b"],"embeddings":[[1],[2]]}', 2),
        ('{"embeddings":[[1],[2],[3]],"metadatas":[{"ids":["x"]}],"documents":["ids"],"ids":["a","b"]}', 2),
        ('{"documents":["\\"ids\\":[\\"x\\"]"],"ids" : [ "a" , "b,]" ] }', 2),
        (r'{"\u0069ds":["\"","]","\\"]}', 3),
        ('{"ids":[]}', 0),
        ('{"ids":["a"', None),
        ('{"ids":null}', None),
        ('{"ids":"a"}', None),
        ('{"x":"ids","ids":["a"]}', 1),
        ('{"x":{"ids":["a","b"]}}', None),
        ('{"ids":[["a"]]}', None),
        ("{}", None),
    ],
)
def test_records_are_counted(body: str, expected: int | None) -> None:
    """The elements of ``ids`` of the body's own object, and of no other."""
    for size in (1, 2, 3, len(body)):
        watch = RecordsWatch()
        fed(watch, [body[n : n + size].encode() for n in range(0, len(body), size)])
        assert watch.records == expected


class Pairs(list[tuple[str, Any]]):
    """An object whose keys may come more than once."""


WORDS = st.sampled_from(["ids", SLOT, "chroma:uri", "metadatas", "\\", '"', '":5', "", "a", "{", "]", ",", '"ids":["'])
TEXTS = st.one_of(WORDS, st.text(max_size=6), st.tuples(WORDS, WORDS).map("".join))
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.floats(allow_nan=False, allow_infinity=False), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.lists(st.tuples(TEXTS, inner), max_size=3).map(Pairs)),
    max_leaves=12,
)


def spelled(value: Any, chance: random.Random) -> str:
    """One of the many JSON texts of a value."""
    space = lambda: chance.choice(["", "", "", " ", "\n\t", "\r "])  # noqa: E731
    if isinstance(value, str):
        plain, often = chance.random() < 0.5, chance.choice([0.0, 0.3, 1.0])
        return f'"{"".join(_spelled(c, plain, chance.random() < often, chance) for c in value)}"'
    if isinstance(value, Pairs):
        members = (f"{spelled(k, chance)}{space()}:{space()}{spelled(v, chance)}" for k, v in value)
        return "{" + space() + f"{space()},{space()}".join(members) + space() + "}"
    if isinstance(value, list):
        return "[" + space() + f"{space()},{space()}".join(spelled(v, chance) for v in value) + space() + "]"
    return json.dumps(value)


def _spelled(character: str, plain: bool, escaped: bool, chance: random.Random) -> str:
    if escaped and (character == ":" or (character.isascii() and character.isalpha())):
        return chance.choice(["\\u%04x", "\\u%04X"]) % ord(character)
    return json.dumps(character, ensure_ascii=plain)[1:-1]


def harmful(value: Any) -> bool:
    if isinstance(value, Pairs):
        return any((k == SLOT and not isinstance(v, str)) or harmful(v) for k, v in value)
    return isinstance(value, list) and any(harmful(v) for v in value)


@given(
    st.lists(st.tuples(TEXTS, VALUES), max_size=4).map(Pairs),
    st.lists(TEXTS, max_size=3),
    st.integers(0, 4),
    st.randoms(use_true_random=False),
    st.lists(st.integers(0, 400), max_size=6),
)
def test_the_verdict_is_that_of_a_parser(
    members: Pairs, ids: list[str], place: int, chance: random.Random, cuts: list[int]
) -> None:
    """For any body, spelled anyhow and cut anywhere; and so is the count."""
    members = Pairs(member for member in members if member[0] != "ids")
    members.insert(place, ("ids", ids))
    body = spelled(members, chance)
    assert json.loads(body, object_pairs_hook=Pairs) == members
    whole = body.encode()
    watch = RecordsWatch()
    edges = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    status = fed(watch, [whole[a:b] for a, b in pairwise(edges)])
    assert (status == 422) == harmful(members)
    if status is None:
        assert watch.records == len(ids)


# Filters


@pytest.mark.parametrize(
    ("condition", "objects"),
    [('{"k":1}', 1), ('{"k":{"$ne":1}}', 2), ('{"$contains":"{"}', 1), (' {\n"k" : "\\"{" }', 1)],
)
def test_a_filter_of_very_many_conditions_is_refused(condition: str, objects: int) -> None:
    """One more than may be; what stands in texts is none of them."""
    allowed = (MOST_CONDITIONS - 2) // objects
    for count, expected in ((allowed, None), (allowed + 1, 400)):
        ids = ["{" * 5000, '"{']
        whole = ('{"ids":' + json.dumps(ids) + ',"where":{"$or":[' + ",".join([condition] * count) + "]}}").encode()
        for size in (len(whole), 4096, 101):
            assert fed(FilterWatch(), [whole[n : n + size] for n in range(0, len(whole), size)]) == expected


# Collections


def created(body: object) -> int | None:
    whole = body.encode() if isinstance(body, str) else body if isinstance(body, bytes) else json.dumps(body).encode()
    parts = [whole[n : n + 5] for n in range(0, len(whole), 5)] if len(whole) < 10_000 else [whole]
    return fed(CollectionWatch("metadata", "configuration"), parts or [b""])


def hnsw(value: object) -> dict[str, Any]:
    return {"configuration": {"hnsw": value}}


def in_schema(value: object) -> dict[str, Any]:
    return {"schema": {"keys": {"#embedding": {"float_list": {"vector_index": {"config": {"hnsw": value}}}}}}}


@pytest.mark.parametrize(
    "body",
    [
        {"metadata": {"k": [1]}},
        {"metadata": {"k": []}},
        {"metadata": {"k": ["a"]}},
        {"metadata": {"k": {"#type": "sparse_vector", "indices": [], "values": []}}},
        {"metadata": {"k": {}}},
        {"metadata": {"hnsw:M": 0}},
        '{"name":"n","m\\u0065tadata":{"k":[1]}}',
        '{"name":"n","metadata":{"k":1,"k":[1]}}',
        ["name", None, None, {"k": [1]}, False],
        hnsw({"max_neighbors": 0}),
        hnsw({"max_neighbors": MOST_NEIGHBORS + 1}),
        hnsw({"max_neighbors": -0.0}),
        hnsw(["l2", 100, 100, 0, 1, 1.2, 1000, 100]),
        {"configuration": [{"max_neighbors": 0}, None, None]},
        in_schema({"max_neighbors": 0}),
        in_schema([100, 0, 100, 1, 100, 1000, 1.2]),
        {"schema": [{}, {}]},
    ],
)
def test_a_collection_that_chroma_cannot_bear_is_refused(body: object) -> None:
    """Also as an array of fields by position, which Chroma's parser takes for the object."""
    assert created(body) == 422


@pytest.mark.parametrize(
    "body",
    [
        {"name": "n"},
        {"name": "n", "metadata": None, "configuration": None, "schema": None},
        {"name": "n", "metadata": {"k": 1, "s": "[1]", "f": 1.5, "b": True, "hnsw:M": 16, "hnsw:space": "l2"}},
        '{"name":"n","metadata":{"k":[1],"k":1}}',
        hnsw({"space": "l2", "max_neighbors": 1}),
        hnsw({"space": "l2", "max_neighbors": MOST_NEIGHBORS}),
        hnsw({"max_neighbors": "0"}),
        {"configuration": {"embedding_function": {"type": "known", "config": {"max_neighbors": 0, "l": [1]}}}},
        {"unknown": [[]]},
        "5",
        "null",
        '"x"',
    ],
)
def test_other_collections_pass(body: object) -> None:
    """Byte for byte; what is only wrong, Chroma says itself."""
    assert created(body) is None


def test_the_change_of_a_collection_has_other_names() -> None:
    """``new_metadata`` and ``new_configuration``."""
    for body in (
        {"new_metadata": {"k": [1]}},
        {"new_configuration": {"hnsw": {"max_neighbors": 0}}},
        [None, {"k": [1]}],
    ):
        assert fed(CollectionWatch("new_metadata", "new_configuration"), [json.dumps(body).encode()]) == 422
    assert fed(CollectionWatch("new_metadata", "new_configuration"), [b'{"new_name":"n","metadata":{"k":[]}}']) is None


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("{", 400),
        ("", 400),
        ('{"a":1} x', 400),
        (b'{"a":"\xff"}', 400),
        (r'{"a":"\ud800"}', 400),
        ('{"a":NaN}', 400),
        ('{"a":1}'.encode("utf-16"), 400),
        (b'\xef\xbb\xbf{"metadata":{"a":[1]}}', 400),
        ('{"a":' + "[" * 200_000 + "]" * 200_000 + "}", 400),
        ('{"schema":' + '{"a":' * 900 + "1" + "}" * 900 + "}", 400),
        ('{"a":"' + "x" * MOST_BYTES + '"}', 413),
    ],
)
def test_what_cannot_be_read_is_not_passed_on(body: bytes | str, expected: int) -> None:
    """In one line of words, without a traceback."""
    assert created(body) == expected


def test_a_refusal_does_not_repeat_a_long_key() -> None:
    """It goes into an answer and a log."""
    with pytest.raises(Malformed) as raised:
        CollectionWatch("metadata", "c").feed(json.dumps({"metadata": {"k" * 9000: []}}).encode(), last=True)
    assert len(raised.value.message) < 300


# Routes


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("crn", "refused"),
    [
        ("a:b:c", True),
        ("default_tenant:default_database:name", True),
        ("a%3Ab%3ac", True),
        ("a%2f:b:c", True),
        ("%61:b:c", True),
        ("a:b", False),
        ("a:b:c:d", False),
        ("a::c", False),
        ("a:b:c/", False),
        ("a:b:c/d", False),
        ("", False),
    ],
)
def test_the_crn_route(method: str, crn: str, refused: bool) -> None:
    """501, where Chroma would not answer at all; what it answers itself is left to it."""
    refusal = refuse_route(method, f"/api/v2/collections/{crn}")
    assert (refusal is not None and refusal.status == 501) == refused
    assert refuse_route("POST", f"/api/v2/collections/{crn}") is None


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (f"POST {C}/c/add", RecordsWatch),
        (f"POST {C}/c/upsert", RecordsWatch),
        (f"POST {C}/c/update", RecordsWatch),
        (f"POST {C}/%2e/update", RecordsWatch),
        (f"POST {C}/c/get", FilterWatch),
        (f"POST {C}/c/query", FilterWatch),
        (f"POST {C}/c/delete", FilterWatch),
        (f"POST {C}", CollectionWatch),
        (f"PUT {C}/c", CollectionWatch),
        (f"POST {C}/c/fork", None),
        (f"POST {C}/", None),
        (f"POST {C}/c/add/", None),
        (f"POST {C}/c/%61dd", None),
        (f"GET {C}/c", None),
        ("POST /api/v2/tenants", None),
        ("POST /api/v2/reset", None),
    ],
)
def test_who_watches_what(line: str, kind: Callable[..., object] | None) -> None:
    """Routes as Chroma's router tells them apart."""
    method, path = line.split(" ")
    head = parse_request(f"{line}?x=/ HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\n\r\n".encode(), Limits())
    watch = watch_for(method, path, head)
    assert (type(watch) if watch else None) is kind
    empty = parse_request(f"{line} HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n".encode(), Limits())
    assert watch_for(method, path, empty) is None
