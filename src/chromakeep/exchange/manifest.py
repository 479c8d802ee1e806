"""MANIFEST.json: what an archive directory holds. It is written last, so a directory that has one is whole."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeVar

import msgspec
from blake3 import blake3

from chromakeep.errors import SourceError, UnsupportedFormat, VerificationFailed
from chromakeep.exchange.described import checked
from chromakeep.exchange.files import reading, write_whole
from chromakeep.exchange.part import VERSION, Written
from chromakeep.records import Definition

NAME = "MANIFEST.json"
ENTRY = "collection.json"
FORMAT = "chromakeep-parquet"
MOST_BYTES = 256 << 20
_PIECE = 1 << 20

_FOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._~-]{0,127}")
_PART = re.compile(r"part-[0-9]{5,9}\.parquet")

T = TypeVar("T")


class Entry(msgspec.Struct):
    """One collection: its directory, the definition and the parts, in order. ``collection.json`` of that directory has
    the same."""

    directory: str
    definition: Definition
    count: int
    parts: list[Written]

    def paths(self, root: Path) -> list[Path]:
        return [root / self.directory / part.name for part in self.parts]


class Manifest(msgspec.Struct):
    """All collections of an archive."""

    format: str
    version: int
    collections: list[Entry]


def manifest_of(entries: list[Entry]) -> Manifest:
    """One with these collections."""
    return Manifest(FORMAT, VERSION, entries)


def part_name(number: int) -> str:
    return f"part-{number:05}.parquet"


def is_safe(directory: str, parts: list[Written]) -> bool:
    """Whether these names stay within the archive, and each is there once."""
    names = [part.name for part in parts]
    return bool(_FOLDER.fullmatch(directory)) and all(map(_PART.fullmatch, names)) and len(set(names)) == len(names)


def write_manifest(root: Path, entries: list[Entry]) -> None:
    """Write it, durable: the directory is an archive from then on."""
    write_whole(root / NAME, _pretty(manifest_of(entries)))


def write_entry(root: Path, entry: Entry) -> None:
    """Note in a collection's directory that it is finished."""
    write_whole(root / entry.directory / ENTRY, _pretty(entry))


def read_manifest(root: Path) -> Manifest:
    """The manifest, and each part there with the size it says. Raises ``SourceError``."""
    if not (root / NAME).is_file():
        raise SourceError(
            f"{root} is no archive of collections: it has no {NAME}, which is written last",
            hint="a copy into it was not finished, or it was made by another program: name one of its .parquet files",
        )
    found = _read(root / NAME, Manifest)
    if found.format != FORMAT or found.version != VERSION:
        raise UnsupportedFormat(
            f"{root / NAME} is of the format {found.format[:40]!r} {found.version}, and this chromakeep reads"
            f" {FORMAT!r} {VERSION}",
            hint="install a newer chromakeep",
        )
    if len({entry.directory for entry in found.collections}) < len(found.collections):
        raise SourceError(f"{root / NAME} names a directory twice")
    for entry in found.collections:
        _check(root, root / NAME, entry)
    return found


def read_entry(folder: Path) -> Entry | None:
    """What ``write_entry`` noted, None if the collection is not finished. Raises ``SourceError``."""
    path = folder / ENTRY
    if not path.is_file():
        return None
    entry = _read(path, Entry)
    if entry.directory != folder.name:
        raise SourceError(f"{path} is of another directory")
    _check(folder.parent, path, entry)
    return entry


def verify(root: Path, manifest: Manifest) -> int:
    """Hash every part; how many bytes that were. Raises ``VerificationFailed`` for one that is not
    as it was written."""
    total = 0
    for entry in manifest.collections:
        for path, part in zip(entry.paths(root), entry.parts, strict=True):
            found = blake3()
            with reading(path), path.open("rb") as file:
                while piece := file.read(_PIECE):
                    found.update(piece)
                    total += len(piece)
            if found.hexdigest() != part.blake3:
                raise VerificationFailed(
                    f"{path} is not as it was written: its hash is another one", hint="take another copy of it"
                )
    return total


def _read(path: Path, kind: type[T]) -> T:
    with reading(path), path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    try:
        if len(data) > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES >> 20} MiB")
        return msgspec.json.decode(data, type=kind)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path} is damaged ({error})", hint="take another copy of it") from None


def _check(root: Path, place: Path, entry: Entry) -> None:
    if not is_safe(entry.directory, entry.parts):
        raise SourceError(f"{place} names files that no archive has")
    checked(entry.definition, str(place))
    if sum(part.records for part in entry.parts) != entry.count:
        raise SourceError(f"{place}: the parts of {entry.directory} do not add up to {entry.count} records")
    for path, part in zip(entry.paths(root), entry.parts, strict=True):
        with reading(path):
            size = path.stat().st_size
        if size != part.bytes:
            raise SourceError(
                f"{path} has {size} bytes, and had {part.bytes} when it was written", hint="take another copy of it"
            )


def _pretty(value: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"
