"""recall: how well a place finds what is nearest, against the exact answer.

Some records are drawn at random while the collection streams past once; a second pass computes the exact distances of
all records to them, in blocks; then each side that can search is asked. Equal content with a low recall is a matter of
the index, not of the data.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from chromakeep.batches import vectors_of
from chromakeep.records import Definition, Source

Vectors = NDArray[np.float32]
Search = Callable[[Vectors, int], Sequence[Sequence[float]]]
"""The distances of the so many nearest records that are found for each of these vectors, (n, dimension)."""

TIE = 1e-5  # relative: records at the distance of the last one that counts are as good as it


class Recall(msgspec.Struct, frozen=True):
    """Of ``queries`` vectors of a collection, the share of the ``n`` nearest that each side has found, 0 to 1; None for
    one that cannot be searched."""

    name: str
    queries: int
    n: int
    shares: tuple[float | None, ...]

    def line(self) -> str:
        """In one line."""
        told = ["cannot be searched" if share is None else f"{share:.4f}" for share in self.shares]
        return f"{self.name}: recall@{self.n} of {self.queries} queries: {', '.join(told)}"


def recall(
    source: Source, definition: Definition, sides: Sequence[Search], *, queries: int = 100, n: int = 10, seed: int = 0
) -> Recall:
    """The recall@``n`` of each side for so many records of the collection. Ties at the last place count as found."""
    drawn = _drawn(source, definition, queries, seed)
    if not len(drawn):
        return Recall(definition.name, 0, n, tuple(1.0 for _ in sides))
    exact = _exact(source, definition, drawn, n)
    bound = exact.max(axis=1, where=np.isfinite(exact), initial=0)  # a collection may have fewer than n
    bound += TIE * np.maximum(1, np.abs(bound))
    hits = [
        sum(sum(distance <= limit for distance in row) for row, limit in zip(search(drawn, n), bound, strict=True))
        for search in sides
    ]
    whole = int(np.isfinite(exact).sum())
    shares = [round(min(1.0, hit / whole), 4) for hit in hits]
    return Recall(definition.name, len(drawn), n, tuple(shares))


def _drawn(source: Source, definition: Definition, queries: int, seed: int) -> Vectors:
    """That many vectors, each record as likely as any other (Vitter's algorithm R)."""
    chance, kept, seen = random.Random(seed), list[Vectors](), 0
    for some, _ in source.batches(definition):
        vectors, present = vectors_of(some)
        for row in np.flatnonzero(present):
            seen += 1
            if len(kept) < queries:
                kept.append(vectors[row].copy())
            elif (at := chance.randrange(seen)) < queries:
                kept[at] = vectors[row].copy()
    return np.array(kept, np.float32) if kept else np.zeros((0, definition.dimension or 0), np.float32)


def distances(space: str, queries: Vectors, vectors: Vectors) -> NDArray[np.float32]:
    """Chroma's distances, (q, n): squared, or one less the (normalised) product."""
    if space == "l2":
        ones, others = (queries**2).sum(1)[:, None], (vectors**2).sum(1)[None]
        squared: NDArray[np.float32] = np.maximum(ones + others - 2 * queries @ vectors.T, 0)
        return squared
    if space == "cosine":
        queries, vectors = _unit(queries), _unit(vectors)
    product: NDArray[np.float32] = 1 - queries @ vectors.T
    return product


def _unit(vectors: Vectors) -> Vectors:
    lengths: Vectors = np.linalg.norm(vectors, axis=1, keepdims=True).astype(np.float32)
    lengths[lengths == 0] = 1
    return vectors / lengths


def _exact(source: Source, definition: Definition, queries: Vectors, n: int) -> NDArray[np.float32]:
    """The distances of the n nearest records of each query, (q, n), infinite where there are fewer."""
    nearest: NDArray[np.float32] = np.full((len(queries), n), np.inf, np.float32)
    for some, _ in source.batches(definition):
        vectors, present = vectors_of(some)
        both = np.concatenate([nearest, distances(definition.space, queries, vectors[present])], axis=1)
        nearest = np.partition(both, n - 1, axis=1)[:, :n].astype(np.float32)
    return nearest
