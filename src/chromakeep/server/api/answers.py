"""Answers: what goes back to the client, as bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from chromakeep.engine import CollectionShown, Database, Indexed, Refused, Rows
from chromakeep.server.gate import Page

TRACE = ("chroma-trace-id", "0" * 32)  # what Chroma says where nobody traces
DISTANCES, DOCUMENTS, EMBEDDINGS, METADATAS, URIS = "distances", "documents", "embeddings", "metadatas", "uris"


EMPTY = Page(b"{}")
CREATED = Page(b"{}", status=201)


def shown(value: Any, status: int = 200) -> Page:
    """A value as JSON. Arrays of numpy must be contiguous."""
    return Page(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY), status=status)


def refused(error: Refused) -> Page:
    """An error as Chroma writes it."""
    body = orjson.dumps({"error": error.error, "message": clean(error.message)})
    return Page(body, status=error.status, retry_after=error.retry_after, fields=(TRACE,))


def clean(text: str) -> str:
    """A text that is UTF-8, whatever it was made from."""
    return text.encode("utf-8", "replace").decode()


def nothing(status: int, allowed: str = "") -> Page:
    """An answer without a body: what Chroma's router says. ``allowed``: methods."""
    return Page(b"", "", status, fields=(TRACE, ("allow", allowed)) if allowed else (TRACE,))


def collection(found: CollectionShown) -> dict[str, Any]:
    """A collection's JSON, in Chroma's order."""
    return {
        "id": found.id,
        "name": found.name,
        "configuration_json": found.configuration_json,
        "schema": found.schema,
        "metadata": found.metadata or None,
        "dimension": found.dimension,
        "tenant": found.tenant,
        "database": found.database,
        "log_position": found.log_position,
        "version": found.version,
    }


def database(found: Database) -> dict[str, Any]:
    return {"id": found.id, "name": found.name, "tenant": found.tenant}


def indexed(found: Indexed) -> dict[str, Any]:
    """In records; Chroma counts the operations of its log."""
    return {
        "op_indexing_progress": found.progress,
        "num_unindexed_ops": found.total - found.indexed,
        "num_indexed_ops": found.indexed,
        "total_ops": found.total,
    }


def got(rows: Rows, include: Sequence[str]) -> Page:
    """The answer to a get."""
    return shown({
        "ids": rows.ids,
        EMBEDDINGS: (_vectors(rows) if EMBEDDINGS in include else None),
        DOCUMENTS: rows.documents if DOCUMENTS in include else None,
        URIS: rows.uris if URIS in include else None,
        METADATAS: _fragments(rows) if METADATAS in include else None,
        "include": include,
    })  # fmt: skip


def queried(found: Sequence[Rows], include: Sequence[str]) -> Page:
    """The answer to a query: every member is a list with an element for each vector."""
    return shown({
        "ids": [rows.ids for rows in found],
        EMBEDDINGS: [_vectors(rows) for rows in found] if EMBEDDINGS in include else None,
        DOCUMENTS: [rows.documents or [] for rows in found] if DOCUMENTS in include else None,
        URIS: [rows.uris or [] for rows in found] if URIS in include else None,
        METADATAS: [_fragments(rows) for rows in found] if METADATAS in include else None,
        DISTANCES: [_scores(rows) for rows in found] if DISTANCES in include else None,
        "include": include,
    })  # fmt: skip


def searched(found: Sequence[Rows], selected: Sequence[Sequence[str]]) -> Page:
    """The answer to a search: what a search did not select is null there."""
    both = list(zip(found, selected, strict=True))
    fields = [[name for name in select if not name.startswith("#") or name == "#metadata"] for select in selected]
    return shown({
        "ids": [rows.ids for rows in found],
        DOCUMENTS: [(rows.documents or []) if "#document" in select else None for rows, select in both],
        EMBEDDINGS: [_vectors(rows) if "#embedding" in select else None for rows, select in both],
        METADATAS: [_fragments(rows) if names else None for rows, names in zip(found, fields, strict=True)],
        "scores": [_scores(rows) if "#score" in select else None for rows, select in both],
        "select": selected,
    })  # fmt: skip


def _vectors(rows: Rows) -> Any:
    return [] if rows.embeddings is None or not rows.ids else rows.embeddings


def _scores(rows: Rows) -> Any:
    return [] if rows.scores is None else rows.scores


def _fragments(rows: Rows) -> list[orjson.Fragment | None]:
    """Metadata goes out as the engine has it; without members it is null."""
    return [
        None if text is None or text == b"{}" else orjson.Fragment(text)
        for text in rows.metadatas or [None] * len(rows.ids)
    ]


def joined(faults: Mapping[str, str | None]) -> Refused | None:
    """All that is wrong with a request by the names of its members; None: nothing is."""
    found = [f"{name}: {fault}" for name, fault in faults.items() if fault]
    return Refused(400, "Validation error: " + "\n".join(found)) if found else None
