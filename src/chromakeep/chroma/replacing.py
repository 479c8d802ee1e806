"""Replacing: what must be written so that stored records become the new ones in all they have, and no more than that.

Chroma's upsert leaves the document, the URI and the metadata keys that a new record lacks; a null removes a key, and
nothing removes a text but to delete the record. To write again what is there costs its index several times what a new
record does, and at Chroma Cloud money: what is stored already is not written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from chromakeep.batches import decode
from chromakeep.chroma.rounding import as_returned
from chromakeep.chroma.rows import Rows
from chromakeep.tallying import each_record

if TYPE_CHECKING:
    import pyarrow as pa


class Change(NamedTuple):
    """``rows``: to be upserted, with null for each key that is to go. ``gone``: ids to be deleted before that."""

    rows: Rows
    gone: list[str]


def change(records: pa.RecordBatch, rows: Rows, stored: Sequence[pa.RecordBatch], *, cosine: bool) -> Change:
    """``records`` and ``rows`` are the new ones, ``stored`` what is there of the same ids. ``cosine``: whether the
    collection has that space, in which vectors come back rounded."""
    there = _by_id(stored)
    if not there:
        return Change(rows, [])
    as_given, as_kept = _contents(records), _contents(as_returned(records, cosine=cosine))
    held = dict(zip(there, [content for each in stored for content in _contents(each)], strict=True))
    chosen: list[int] = []
    metadatas: list[Mapping[str, Any] | None] = []
    gone: list[str] = []
    for n, id_ in enumerate(rows.ids):
        if id_ in held and held[id_] in (as_given[n], as_kept[n]):
            continue
        document, uri, text = there.get(id_, (None, None, None))
        if (document is not None and rows.documents[n] is None) or (uri is not None and rows.uris[n] is None):
            gone.append(id_)
            text = None
        new = rows.metadatas[n]
        absent = (decode(text) or {}).keys() - (new or {}).keys()
        chosen.append(n)
        metadatas.append({**(new or {}), **dict.fromkeys(absent)} if absent else new)
    return Change(rows.only(chosen, metadatas), gone)


def _by_id(stored: Sequence[pa.RecordBatch]) -> dict[str, tuple[str | None, str | None, str | None]]:
    found: dict[str, tuple[str | None, str | None, str | None]] = {}
    for each in stored:
        ids, *texts = (each.column(name).to_pylist() for name in ("id", "document", "uri", "metadata"))
        found.update(zip(ids, zip(*texts, strict=True), strict=True))
    return found


def _contents(records: pa.RecordBatch) -> list[bytes]:
    """A hash of all that each record holds but its id."""
    return [content.tobytes() for content in each_record(records)[:, 1]]
