"""A definition as JSON, in the footers, manifests and first lines of files."""

from __future__ import annotations

import hashlib
import re

import msgspec
from msgspec.structs import replace

from chromakeep.errors import SourceError
from chromakeep.records import Definition

MOST_BYTES = 16 << 20
"""No definition in a file is longer: a reader of a hostile one holds no more."""

MOST_DIMENSIONS = 1 << 16

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_ID = re.compile(r"[0-9a-f]{8}-?[0-9a-f-]{0,28}")


def to_json(definition: Definition) -> bytes:
    """All of it, on one line."""
    return msgspec.json.encode(definition)


def from_json(data: bytes | msgspec.Raw, place: str) -> Definition:
    """What ``to_json`` made; keys that are not known are passed over. ``place`` is named in a ``SourceError``."""
    try:
        if len(bytes(data)) > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES >> 20} MiB")
        return checked(msgspec.json.decode(data, type=Definition), place)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{place}: the definition of a collection is none ({error})") from None


def checked(definition: Definition, place: str) -> Definition:
    """The same, if a collection can be so. Raises ``SourceError``."""
    if not definition.name:
        raise SourceError(f"{place}: a collection has no name")
    if definition.dimension is not None and not 0 < definition.dimension <= MOST_DIMENSIONS:
        raise SourceError(f"{place}: a collection cannot have {definition.dimension} dimensions")
    if definition.count is not None and definition.count < 0:
        return replace(definition, count=None)
    return definition


def safe_name(definition: Definition) -> str:
    """A name for its directory that any file system takes: ``<name>~<first 8 of its id, or of a hash>``."""
    name = _UNSAFE.sub("_", definition.name).strip("._-")[:64] or "collection"
    known = _ID.fullmatch(definition.id)
    return f"{name}~{definition.id[:8] if known else place_hash(definition)}"


def place_hash(definition: Definition, digits: int = 8) -> str:
    """Hex digits that differ where tenant, database or name do."""
    return hashlib.blake2b(msgspec.json.encode(definition.place), digest_size=digits // 2).hexdigest()


def short(text: str, most: int = 80) -> str:
    """An id or a name for a message: one line and not long."""
    return repr(text if len(text) <= most else text[:most] + "…")
