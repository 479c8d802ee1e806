"""Measures: a collection's distance as pgvector has it: what an index is made on, what is ordered by, what is told.

What an index orders by is not what is told: ``<->`` is the root of Chroma's l2, ``<#>`` the negative inner product. A
cosine distance to a vector of zeros is 1 for Chroma and NaN for pgvector, whose index leaves such vectors out. To one
that is ``faint`` pgvector's is 0 or 2, whatever its direction: it squares in 32 bits. So it is taken for zeros.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from chromakeep.engine import Vectors
from chromakeep.postgres.held import UNINDEXABLE, Held

_OPERATORS = {"l2": ("<->", "l2"), "cosine": ("<=>", "cosine"), "ip": ("<#>", "ip")}
INDEXED = {"vector": 2000, "halfvec": 4000}  # dimensions that an index of this type takes
FAINT = 1e-19  # a norm below which the square is none, or loses digits, in 32 bits
WIDEST = 16_000  # dimensions that either type takes


class Measure(msgspec.Struct, frozen=True):
    """Pieces of SQL. All vectors are of ``kind``(``dimension``), in the table and as a parameter."""

    space: str
    operator: str
    dimension: int
    kind: str  # of the column: vector or halfvec
    index_kind: str | None  # of the index; None: there can be none

    @property
    def indexed(self) -> str:
        """The expression that an index is made on. The column may be declared without a dimension."""
        return f"(embedding::{self.index_kind}({self.dimension}))"

    @property
    def operators(self) -> str:
        """The class of operators of the index."""
        return f"{self.index_kind}_{_OPERATORS[self.space][1]}_ops"

    @property
    def coarse(self) -> bool:
        """The index holds less than the table: what it finds first is measured again."""
        return self.index_kind is not None and self.index_kind != self.kind

    def near(self, query: str) -> str:
        """What the index orders by."""
        return f"{self.indexed} {self.operator} {query}::{self.index_kind}({self.dimension})"

    def distance(self, query: str) -> str:
        """The distance that Chroma tells, always of the vectors themselves; no index orders by it."""
        if self.space == "l2":
            return f"{self.kind}_l2_squared_distance(embedding, {query})"
        if self.space == "ip":
            return f"1 + (embedding <#> {query})"
        told = f"coalesce(nullif(embedding <=> {query}, 'NaN'), 1)"
        if self.kind == "halfvec":  # whose least number is 6e-8
            return told
        return f"CASE WHEN place >= {UNINDEXABLE} AND vector_norm(embedding) < {FAINT} THEN 1 ELSE {told} END"


def measure(held: Held) -> Measure:
    """Of a collection whose dimension is known."""
    assert held.dimension is not None
    kinds = [held.storage] if held.storage == "halfvec" else ["vector", "halfvec"]
    kind = next((kind for kind in kinds if held.dimension <= INDEXED[kind]), None)
    return Measure(held.space, _OPERATORS[held.space][0], held.dimension, held.storage, kind)


def unindexable(vectors: Vectors, *, halves: bool, directed: bool) -> NDArray[np.bool_]:
    """Which of them an index does not take: what is too large for one of ``halves``, and, where it is of directions
    (``directed``, as under cosine), what is nothing but zeros in it, or ``faint``."""
    with np.errstate(over="ignore"):
        kept = vectors.astype(np.float16) if halves else vectors
    found: NDArray[np.bool_] = np.zeros(len(kept), np.bool_)
    if halves:
        found |= ~np.isfinite(kept).all(axis=1)
    if directed:
        found |= ~kept.any(axis=1) if halves else faint(vectors)
    return found


def faint(vectors: Vectors) -> NDArray[np.bool_]:
    """Which of them have no direction, under cosine: zeros and what is hardly more."""
    with np.errstate(over="ignore"):
        squares: NDArray[np.float32] = np.einsum("ij,ij->i", vectors, vectors)
    return squares < FAINT**2
