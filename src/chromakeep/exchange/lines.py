"""Lines of a file or stream, plain or zstd: bounded, whoever wrote them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

import zstandard

from chromakeep.errors import SourceError

MOST_BYTES = 64 << 20
"""No line is longer."""

_CHUNK = 1 << 20
_FRAME = b"\x28\xb5\x2f\xfd"
_WINDOW = 1 << 27  # what a zstd frame may ask of our memory
# A block of zstd unfolds to 128 KiB and needs four bytes: so little at a time cannot become more than 32 MiB.
_SIP = 1 << 10


def lines(file: IO[bytes], place: str, *, first: int = 1) -> Iterator[tuple[bytes, int]]:
    """Each line without its end, with the offset behind it: counted from where ``file`` stands, in the content where
    it is zstd. Raises ``SourceError`` for a line of more than 64 MiB (``first`` is the number of the first one), and
    for zstd that is damaged or cut off."""
    waiting: list[bytes] = []
    held = done = 0
    number = first
    for chunk in content(file, place):
        pieces = chunk.split(b"\n")
        for at, piece in enumerate(pieces):
            waiting.append(piece)
            held += len(piece)
            if held > MOST_BYTES:
                raise SourceError(f"{place}: line {number} has more than {MOST_BYTES >> 20} MiB")
            if at < len(pieces) - 1:
                done += held + 1
                yield b"".join(waiting) if len(waiting) > 1 else waiting[0], done
                waiting, held, number = [], 0, number + 1
    if held:
        yield b"".join(waiting), done + held


def content(file: IO[bytes], place: str) -> Iterator[bytes]:
    """What a file holds, unpacked if it begins as zstd does, in pieces of a bounded size."""
    start = _read(file, len(_FRAME))
    while len(start) < len(_FRAME) and (more := file.read(len(_FRAME) - len(start))):
        start += more  # a pipe gives what it has
    if not is_packed(start):
        yield start
        while chunk := _read(file):
            yield chunk
        return
    decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW)
    frame = decompressor.decompressobj()
    chunk, begun = start, False
    try:
        while chunk:
            for at in range(0, len(chunk), _SIP):
                sip = chunk[at : at + _SIP]
                while sip:
                    begun = True
                    if out := frame.decompress(sip):
                        yield out
                    sip = b""
                    if frame.eof:
                        sip, begun = frame.unused_data, False
                        frame = decompressor.decompressobj()
            chunk = _read(file)
    except zstandard.ZstdError as error:
        raise SourceError(f"{place} is damaged: no zstd ({error})", hint="take another copy of it") from None
    if begun:
        raise SourceError(f"{place} is cut off: its last zstd frame has no end", hint="take another copy of it")


def is_packed(start: bytes) -> bool:
    """Whether a file that begins so is zstd."""
    return start.startswith(_FRAME)


def _read(file: IO[bytes], most: int = _CHUNK) -> bytes:
    read = getattr(file, "read1", file.read)  # a pipe's buffer, without waiting for more
    found: bytes = read(most)
    return found
