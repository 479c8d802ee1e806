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

_HINT = "leave such records out with --where, which begins the copy anew: --dry-run names all of them before"


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
    for told in breaches(records, quotas):
        raise UsageError(f"the record {told}", hint=_HINT)


def breaches(records: pa.RecordBatch, quotas: Quotas = CLOUD) -> Iterator[str]:
    """The id of each record that breaks a quota, and which it is."""
    import pyarrow.compute as pc

    found: dict[int, str] = {}
    for name, most in (("uri", quotas.uri), ("document", quotas.document), ("id", quotas.id)):
        sizes = pc.binary_length(records.column(name))
        for at in pc.indices_nonzero(pc.greater(sizes, most).fill_null(False)).to_pylist():
            found[at] = f"its {name} has {sizes[at].as_py():,} bytes, Chroma Cloud allows {most:,}"
    for at, text in enumerate(records.column("metadata").to_pylist()):
        broken = _broken(decode(text) or {}, quotas.keys, quotas.key, quotas.value) if text and at not in found else ()
        told = found.get(at) or next((f"{what}, more than Chroma Cloud allows" for what in broken), None)
        if told:
            yield f"{records.column('id')[at].as_py()[:80]!r}: {told}"


def _broken(metadata: dict[str, Any], keys: int, key: int, value: int) -> Iterator[str]:
    if len(metadata) > keys:
        yield f"{len(metadata)} keys"
    for name, held in metadata.items():
        if len(name.encode()) > key:
            yield f"a key of {len(name.encode())} bytes ({name[:40]!r})"
        for text in held if isinstance(held, list) else (held,):
            if isinstance(text, str) and len(text.encode()) > value:
                yield f"a value of {len(text.encode()):,} bytes ({name[:40]!r})"
