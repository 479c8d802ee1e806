"""Specimens: records that are easy to get wrong on the way, and what a place holds in a form that can be compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from chromakeep.batches import COLUMNS, batch, decode, encode, schema, vectors_of
from chromakeep.digests import Tally
from chromakeep.tallying import Adder

if TYPE_CHECKING:
    import pyarrow as pa

    from chromakeep.conditions import Where
    from chromakeep.records import Definition, Digest, Mark, Source

IDS = (
    "plain",
    "Plain",
    "plain ",
    " ",
    "\n",
    "0",
    "null",
    "a/b?c=d&e#f%20%",
    "\"quoted\" \\ 'too'",
    "ü 日本 🙂",
    "caf\u00e9",
    "cafe\u0301",
    "\u0001\u007f\u0085\u2028\ufeff",
    "\ud7ff\ue000\uffff\U0010ffff",
    "long " * 400,
)
VECTORS = (
    (0.0, -0.0, 0.0),
    (-0.0, -0.0, -0.0),
    (1e-45, -1e-45, 1.1754942e-38),
    (1.1754944e-38, 0.0, -1.1754944e-38),
    (1.0, 1.0000001, 0.99999994),
    (0.1, 1 / 3, -0.7),
    (16777216.0, 16777215.0, 1e-30),
    (1e18, -1e18, 1.0),
)
DOCUMENTS = (
    None,
    "",
    " ",
    "null",
    "text",
    "line\r\nline\ttab\n",
    'ü 日本 🙂 "\\',
    "\u0001\u2028\ufeff",
    "word " * 20_000,
)
URIS = (None, "", "https://example.org/ä?q=1#x", "file:///a b", "null")
METADATA: tuple[Mapping[str, Any] | None, ...] = (
    None,
    {},
    *[
        {"k": value}
        for value in (1, 1.0, True, "1", 0, 0.0, False, "", "null", "true", "2020-01-01", " x ", -1, 2, 2.5)
    ],
    {"most": (1 << 63) - 1, "least": -(1 << 63), "odd": (1 << 53) + 1},
    {"most": 1e300, "least": 1e-300, "whole": 1e16, "tenth": 0.1, "minus": -2.5e-7, "small": 0.00001},
    {"text": ["b", "", "a", "b"], "whole": [3, -1, 3], "real": [2.0, 1.5, 2.0], "truth": [True, False], "one": ["x"]},
    {"a b": 1, "a.b": 2, "A": 3, "a": 4, "ключ": 5, "🙂": 6, "q\"\\'": 7, "caf\u00e9": 8, "cafe\u0301": 9, "-1": 10},
    {"text": 'ü 日本 🙂 "\\ \u0001\u2028', "long": "value " * 2000},
    {f"key {n:03}": n for n in range(60)},
)
NUL = ("nul \0 inside", "\0", {"k": "\0", "list": ["a\0b"]})
UNROUNDED = {"k": 0.9452706955539223, "list": [5e-324, 1.7976931348623157e308, 2.2250738585072014e-308]}


class Record(NamedTuple):
    """A record as it is compared: the bytes of the vector, metadata as canonical JSON, ``{}`` as None."""

    vector: bytes | None
    document: str | None
    uri: str | None
    metadata: str | None


def specimens(*, nul: bool = True, bare: bool = True, unrounded: bool = True) -> pa.RecordBatch:
    """Records of 3 dimensions, each strange in one or several ways; without infinity and what is no number, which
    Chroma refuses in vectors and loses in metadata.

    ``nul``: some with the character NUL; ``bare``: some without a vector; ``unrounded``: some with float64 values that
    Chroma 1.5 changes in the last bit when it stores them (it reads its own JSON inexactly).
    """
    nothing = VECTORS[5], None, None, None
    rows: list[tuple[str, Any, str | None, str | None, Any]] = [(id_, *nothing) for id_ in IDS]
    rows += [(f"vector {n}", vector, None, None, None) for n, vector in enumerate(VECTORS)]
    rows += [(f"document {n}", VECTORS[5], text, None, None) for n, text in enumerate(DOCUMENTS)]
    rows += [(f"uri {n}", VECTORS[5], "with a uri", uri, None) for n, uri in enumerate(URIS)]
    rows += [(f"metadata {n}", VECTORS[5], None, None, metadata) for n, metadata in enumerate(METADATA)]
    rows += [("all", VECTORS[6], DOCUMENTS[6], URIS[2], METADATA[-4])]
    if nul:
        rows += [(NUL[0], VECTORS[5], NUL[1], NUL[0], NUL[2]), (f"{NUL[0]}\0", VECTORS[4], f"{NUL[1]}\0", None, None)]
    if bare:
        rows += [("bare", None, None, None, None), ("bare but for text", None, "text", URIS[2], {"k": 1})]
    if unrounded:
        rows += [("unrounded", VECTORS[5], None, None, UNROUNDED)]
    ids, vectors, documents, uris, metadatas = zip(*rows, strict=True)
    return batch(ids, vectors, documents, uris, [encode(metadata) for metadata in metadatas], 3)


def ordinary(count: int, dimension: int = 3, *, start: int = 0) -> pa.RecordBatch:
    """Plain records, the same for the same number; of every 10 one has no document, of every 7 one no metadata."""
    numbers = range(start, start + count)
    vectors = np.stack([np.random.default_rng(n).standard_normal(dimension, np.float32) for n in numbers])
    return batch(
        [f"id-{n:06}" for n in numbers],
        vectors,
        [None if n % 10 == 9 else f"the document of {n}" for n in numbers],
        [f"https://example.org/{n}" if n % 5 == 0 else None for n in numbers],
        [None if n % 7 == 6 else encode({"n": n, "half": n / 2, "kind": f"kind {n % 3}"}) for n in numbers],
        dimension,
    )


def numbered(records: pa.RecordBatch, start: int) -> pa.RecordBatch:
    """These records, with the ids that ``ordinary`` gives from ``start`` on."""
    documents, uris, metadatas = (records.column(name) for name in COLUMNS[2:])
    ids = ordinary(len(records), 1, start=start).column("id")
    vectors, _ = vectors_of(records)
    return batch(ids, vectors, documents, uris, metadatas, vectors.shape[1])


def complete(records: pa.RecordBatch) -> pa.RecordBatch:
    """Those that have a document, a URI and metadata."""
    import pyarrow as pa

    chosen = [None not in row.values() for row in records.to_pylist()]
    return records.filter(pa.array(chosen, pa.bool_()))


def joined(*parts: pa.RecordBatch) -> pa.RecordBatch:
    """One batch of several."""
    import pyarrow as pa

    (found,) = pa.Table.from_batches(parts).combine_chunks().to_batches()
    return found


def records_of(found: pa.RecordBatch) -> dict[str, Record]:
    """The records of a batch by id."""
    vectors, present = vectors_of(found)
    columns = [found.column(name).to_pylist() for name in ("id", "document", "uri", "metadata")]
    return {
        id_: Record(vector.tobytes() if there else None, document, uri, encode(decode(metadata) or None))
        for id_, document, uri, metadata, vector, there in zip(*columns, vectors, present, strict=True)
    }


def held(
    source: Source, definition: Definition, *, where: Where | None = None, after: Mark = None
) -> dict[str, Record]:
    """The records that a source gives of a collection, by id. Each batch must have the one schema, and no id may come
    twice."""
    return gathered(found for found, _ in _checked(source, definition, where, after))


def gathered(batches: Iterable[pa.RecordBatch]) -> dict[str, Record]:
    """The records of several batches by id; no id may come twice."""
    records: dict[str, Record] = {}
    for found in batches:
        some = records_of(found)
        twice = sorted(some.keys() & records.keys())
        assert len(some) == len(found) and not twice, f"records came twice: {twice[:5] or 'in one batch'}"
        records |= some
    return records


def marked(source: Source, definition: Definition, *, where: Where | None = None) -> list[tuple[pa.RecordBatch, Mark]]:
    """What ``batches`` gives, with the schema of each checked."""
    return list(_checked(source, definition, where, None))


def digest_of(batches: Iterable[pa.RecordBatch]) -> Digest:
    """The digest of the records in these batches."""
    tally = Tally()
    adder = Adder(tally)
    for found in batches:
        adder.add(found)
    return tally.digest()


def differences(wanted: Mapping[str, Record], found: Mapping[str, Record]) -> list[str]:
    """What differs, one line a field, the first ten."""
    lines = [f"{id_!r:.60} is missing" for id_ in wanted.keys() - found.keys()]
    lines += [f"{id_!r:.60} was never there" for id_ in found.keys() - wanted.keys()]
    for id_ in wanted.keys() & found.keys():
        for name, one, other in zip(Record._fields, wanted[id_], found[id_], strict=True):
            if one != other:
                lines.append(f"{id_!r:.60}: {name} {one!r:.80} came as {other!r:.80}")
    return sorted(lines)[:10]


def assert_same(wanted: Mapping[str, Record], found: Mapping[str, Record]) -> None:
    """Raises AssertionError that names what differs."""
    lines = differences(wanted, found)
    assert not lines, "\n".join(lines)


def _checked(source: Source, definition: Definition, where: Where | None, after: Mark) -> Iterable[Any]:
    shape = schema(definition.dimension)
    for found, mark in source.batches(definition, after=after, where=where):
        assert found.schema.equals(shape), f"a batch has the schema {found.schema}"
        assert len(found) or where is not None, "a batch has no records"
        found.validate(full=True)
        yield found, mark
