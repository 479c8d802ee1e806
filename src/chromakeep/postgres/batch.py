"""Batch: the records of one write as PostgreSQL takes them, each id once, in the order of the keys."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from chromakeep.engine import Vectors, Written
from chromakeep.postgres.packing import key
from chromakeep.postgres.text import held

T = TypeVar("T")
Metadata = Mapping[str, Any] | None


class Batch(msgspec.Struct, frozen=True):
    """Lists of one length; texts as they are held. ``order``: where each record stood. ``given`` as in ``Written``."""

    keys: list[bytes]
    order: list[int]
    ids: list[str]
    embeddings: Vectors | None
    given: list[bool] | None
    documents: list[str | None] | None
    uris: list[str | None] | None
    metadatas: list[Metadata] | None

    def those(self, keys: Collection[bytes]) -> Batch:
        """The records with these keys."""
        return self._only([i for i, one in enumerate(self.keys) if one in keys])

    def but(self, keys: Collection[bytes]) -> Batch:
        """The records without those with these keys."""
        return self._only([i for i, one in enumerate(self.keys) if one not in keys]) if keys else self

    @staticmethod
    def utf8(texts: Sequence[str | None]) -> list[Any]:
        """Texts as bytes."""
        return [None if text is None else text.encode() for text in texts]

    def _only(self, chosen: list[int]) -> Batch:
        if len(chosen) == len(self.keys):
            return self
        return Batch(
            [self.keys[i] for i in chosen],
            [self.order[i] for i in chosen],
            [self.ids[i] for i in chosen],
            None if self.embeddings is None else self.embeddings[chosen],
            _of(self.given, chosen),
            _of(self.documents, chosen),
            _of(self.uris, chosen),
            _of(self.metadatas, chosen),
        )


def gathered(records: Written, start: int, stop: int, *, first: bool) -> Batch:
    """Records ``start`` to ``stop``. Of those with one id the first (``first``); else one that has all that the later
    ones change, too, at the place of the first."""
    ids = records.ids[start:stop]
    index: dict[str, int] = {}
    chosen = [i for i, one in enumerate(ids) if index.setdefault(one, i) == i]
    documents, uris = _part(records.documents, start, stop), _part(records.uris, start, stop)
    metadatas = _part(records.metadatas, start, stop)
    embeddings = None if records.embeddings is None else records.embeddings[start:stop]
    given: list[bool] | None = None if records.given is None else records.given[start:stop].tolist()
    if len(chosen) < len(ids) and not first:
        targets = [index[one] for one in ids]
        documents, uris = _latest(targets, documents), _latest(targets, uris)
        metadatas = _merged(targets, metadatas)
        if embeddings is not None:
            embeddings = embeddings.copy()
            for i, target in enumerate(targets):
                if given is None or given[i]:
                    embeddings[target] = embeddings[i]
                    if given is not None:
                        given[target] = True
    keys = {i: key(ids[i]) for i in chosen}
    chosen.sort(key=keys.__getitem__)
    return Batch(
        [keys[i] for i in chosen],
        chosen,
        [held(ids[i]) for i in chosen],
        None if embeddings is None else embeddings[chosen],
        _of(given, chosen),
        _held(_of(documents, chosen)),
        _held(_of(uris, chosen)),
        _of(metadatas, chosen),
    )


def _part(values: list[T] | None, start: int, stop: int) -> list[T] | None:
    return None if values is None else values[start:stop]


def _of(values: Sequence[T] | None, chosen: list[int]) -> list[T] | None:
    return None if values is None else [values[i] for i in chosen]


def _held(texts: list[str | None] | None) -> list[str | None] | None:
    return None if texts is None else [None if text is None else held(text) for text in texts]


def _latest(targets: list[int], texts: Sequence[str | None] | None) -> list[str | None] | None:
    if texts is None:
        return None
    out = list(texts)
    for target, text in zip(targets, texts, strict=True):
        if text is not None:
            out[target] = text
    return out


def _merged(targets: list[int], metadatas: Sequence[Metadata] | None) -> list[Metadata] | None:
    """Of many with one id there is one to which all are added: not a new one for each, which would be the longer the
    more there have been."""
    if metadatas is None:
        return None
    out = list(metadatas)
    merged: dict[int, dict[str, Any]] = {}
    for i, target in enumerate(targets):
        if i != target and (new := metadatas[i]):
            if target not in merged:
                out[target] = merged[target] = dict(metadatas[target] or {})
            merged[target].update(new)
    return out
