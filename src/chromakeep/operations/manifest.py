"""Manifest: the files of a directory on its way to another machine, and the chunks in which it goes there.

Both sides cut alike: a file of ``SMALL`` bytes or more is cut every ``CHUNK`` bytes, smaller ones in a row share a
chunk. So a chunk of a large file does not change when other files grow.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, NamedTuple

import blake3
import msgspec

from chromakeep.chroma.signature import DATABASE, SEGMENT_FILES, UUID
from chromakeep.errors import UsageError

CHUNK = 8 << 20  # bytes
SMALL = 1 << 20
LARGEST = 16 << 20  # bytes of a manifest that are read
MOST_FILES = 100_000
MOST_BYTES = 1 << 46  # of all files; the disk says what really fits
_DIGEST = re.compile(r"[0-9a-f]{64}")


class SentFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file. Its time goes with it: Chroma and the capture judge a persist by the order of times."""

    path: Annotated[str, msgspec.Meta(max_length=80)]
    size: Annotated[int, msgspec.Meta(ge=0, le=MOST_BYTES)]
    mtime_ns: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class Piece(NamedTuple):
    """Part of one file."""

    path: str
    offset: int
    length: int


class _Told(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Annotated[int, msgspec.Meta(ge=1, le=1)]
    sender: Annotated[str, msgspec.Meta(min_length=1, max_length=500)]
    files: Annotated[tuple[SentFile, ...], msgspec.Meta(max_length=MOST_FILES)]
    chunks: tuple[str, ...]


class Manifest:
    """What is sent. ``sender`` says to people who sends it, ``chunks`` are BLAKE3 in hex; ``id`` names just this."""

    def __init__(self, sender: str, files: Sequence[SentFile], chunks: Sequence[str]) -> None:
        self.sender, self.files, self.chunks = sender, tuple(files), tuple(chunks)
        self.pieces = cut(self.files)  # of each chunk

    @property
    def total(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def size(self, number: int) -> int:
        """Bytes of a chunk."""
        return sum(piece.length for piece in self.pieces[number])

    @cached_property
    def encoded(self) -> bytes:
        """As it is sent and kept."""
        return msgspec.json.encode(_Told(1, self.sender, self.files, self.chunks))

    @cached_property
    def id(self) -> str:
        """The same for the same manifest, and for no other."""
        return blake3.blake3(self.encoded).hexdigest()[:32]

    @staticmethod
    def of(directory: Path, paths: Sequence[str], sender: str) -> Manifest:
        """Of files that are not being written. They are read once."""
        stats = [((directory / path).stat(), path) for path in paths]
        files = [SentFile(path, found.st_size, found.st_mtime_ns) for found, path in stats]
        return Manifest(sender, files, [digest(read(directory, pieces)) for pieces in cut(files)])

    @staticmethod
    def decode(data: bytes) -> Manifest:
        """One that somebody else has made. Nothing of it is believed: raises ``UsageError`` for names that are not of a
        Chroma directory, for two files of one name, sizes that cannot be, and chunks that do not fit the files."""
        if len(data) > LARGEST:
            raise UsageError(f"a manifest of more than {LARGEST:,} bytes")
        try:
            told = _DECODER.decode(data)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise UsageError(f"not a manifest: {error}", hint="is the sender of another version?") from None
        names = {file.path for file in told.files}
        if len(names) != len(told.files):
            raise UsageError("the manifest names a file twice")
        for name in names:
            if not _ours(name):
                raise UsageError(f"the manifest names a file that no Chroma directory has: {name!r}")
        if DATABASE not in names:
            raise UsageError(f"the manifest names no {DATABASE}")
        if sum(file.size for file in told.files) > MOST_BYTES:
            raise UsageError(f"the manifest tells of more than {MOST_BYTES:,} bytes")
        if len(told.chunks) > LARGEST or not all(map(_DIGEST.fullmatch, told.chunks)):
            raise UsageError("the manifest has a chunk that is no digest")
        expected = sum(-(-file.size // CHUNK) for file in told.files if file.size >= SMALL)
        if not expected <= len(told.chunks) <= expected + len(told.files):  # before anything of that length is made
            raise UsageError("the manifest's chunks are not those of its files")
        manifest = Manifest(told.sender, told.files, told.chunks)
        if len(manifest.pieces) != len(manifest.chunks):
            raise UsageError("the manifest's chunks are not those of its files")
        return manifest


_DECODER = msgspec.json.Decoder(_Told)


def _ours(name: str) -> bool:
    folder, slash, file = name.partition("/")
    return name == DATABASE or (bool(slash) and UUID.fullmatch(folder) is not None and file in SEGMENT_FILES)


def digest(chunk: bytes) -> str:
    """What a chunk is known by."""
    return blake3.blake3(chunk, max_threads=blake3.blake3.AUTO).hexdigest()


def cut(files: Sequence[SentFile]) -> list[tuple[Piece, ...]]:
    """The pieces of each chunk."""
    chunks: list[tuple[Piece, ...]] = []
    shared: list[Piece] = []
    size = 0  # of the shared one
    for file in files:
        large = file.size >= SMALL
        if shared and (large or size + file.size > CHUNK):
            chunks.append(tuple(shared))
            shared, size = [], 0
        if large:
            offsets = range(0, file.size, CHUNK)
            chunks += [(Piece(file.path, offset, min(CHUNK, file.size - offset)),) for offset in offsets]
        elif file.size:
            shared.append(Piece(file.path, 0, file.size))
            size += file.size
    return [*chunks, tuple(shared)] if shared else chunks


def read(directory: Path, pieces: Sequence[Piece]) -> bytes:
    """The bytes of a chunk; fewer where a file has become shorter."""
    parts = []
    for piece in pieces:
        with (directory / piece.path).open("rb", buffering=0) as file:
            file.seek(piece.offset)
            parts.append(file.read(piece.length))
    return parts[0] if len(parts) == 1 else b"".join(parts)
