"""Chroma Cloud: what it allows in one request, one record and one collection, checked before anything is sent.

The numbers are those of its documentation in August 2026; an account may have others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from chromakeep.batches import decode
from chromakeep.errors import UsageError
from chromakeep.records import Definition

if TYPE_CHECKING:
    import pyarrow as pa

_HINT = "Chroma Cloud raises limits on request; or leave such records out with --where"


class Quotas(msgspec.Struct, frozen=True):
    """``records``: of one write; ``results``: of one read; ``name`` to ``value``: bytes; ``keys``: of one metadata;
    ``own_value``: bytes of a value in a collection's metadata; ``writers``: requests at a time."""

    records: int = 300
    results: int = 300
    dimension: int = 4096
    document: int = 16_384
    uri: int = 256
    id: int = 128
    key: int = 36
    value: int = 8_182
    own_value: int = 256
    keys: int = 32
    name: int = 128
    writers: int = 8


CLOUD = Quotas()


def check_definition(definition: Definition, quotas: Quotas = CLOUD) -> None:
    """Raises ``UsageError`` for a collection that Chroma Cloud will not take."""
    name = definition.name
    if len(name.encode()) > quotas.name:
        raise UsageError(
            f"{name[:40]}...: its name has {len(name.encode())} bytes, Chroma Cloud allows {quotas.name}",
            hint="give it another one: --rename A=B",
        )
    if definition.dimension is not None and definition.dimension > quotas.dimension:
        raise UsageError(f"{name}: it has {definition.dimension} dimensions, Chroma Cloud allows {quotas.dimension}")
    for what in _broken(dict(definition.metadata or {}), quotas.keys, quotas.key, quotas.own_value):
        raise UsageError(f"{name}: {what} of its own metadata, more than Chroma Cloud allows")


def check_quotas(records: pa.RecordBatch, quotas: Quotas = CLOUD) -> None:
    """Raises ``UsageError`` that names the first record which breaks one, and which."""
    import pyarrow.compute as pc

    first: tuple[int, str] | None = None
    for name, most in (("id", quotas.id), ("document", quotas.document), ("uri", quotas.uri)):
        sizes = pc.binary_length(records.column(name))
        at = pc.index(pc.greater(sizes, most).fill_null(False), True).as_py()
        if at >= 0 and (first is None or at < first[0]):
            first = at, f"its {name} has {sizes[at].as_py():,} bytes, Chroma Cloud allows {most:,}"
    for at, text in enumerate(records.column("metadata").to_pylist()):
        if first is not None and at >= first[0]:
            break
        for what in _broken(decode(text) or {}, quotas.keys, quotas.key, quotas.value) if text else ():
            first = at, f"{what}, more than Chroma Cloud allows"
            break
    if first is not None:
        raise UsageError(f"the record {records.column('id')[first[0]].as_py()[:80]!r}: {first[1]}", hint=_HINT)


def _broken(metadata: dict[str, Any], keys: int, key: int, value: int) -> Iterator[str]:
    if len(metadata) > keys:
        yield f"{len(metadata)} keys"
    for name, held in metadata.items():
        if len(name.encode()) > key:
            yield f"a key of {len(name.encode())} bytes ({name[:40]!r})"
        for text in held if isinstance(held, list) else (held,):
            if isinstance(text, str) and len(text.encode()) > value:
                yield f"a value of {len(text.encode()):,} bytes ({name[:40]!r})"
