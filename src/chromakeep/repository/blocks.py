"""Blocks: the unit of compression and of storage, many changed units of one column put together.

Stored form: codec(1) width(4, little-endian) payload. Codecs: 0 as it is; 1 zstd; 2 rows of ``width`` bytes
transposed, then zstd (neighbour links: the high bytes of ids are alike down a column, not along a row); 3 float32:
each word rotated left by one bit so that the exponent fills the top byte, the three byte planes of sign and mantissa
as they are (near-random in embeddings: arXiv 2602.00079) and the exponent plane by zstd.
"""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt
import zstandard

from chromakeep.layout import FLOAT32, PLAIN, Column

RAW, ZSTD, ROWS, FLOATS = range(4)
HEAD = 5
LARGEST = 64 << 20  # plaintext bytes a block may claim
PAGES_BLOCK = 8 << 20  # first copy of a paged column: the same text stands megabytes apart (table, FTS content)
STEP = 1 << 14  # words turned into planes, or back, at a time: 64 KiB stay in a core's cache
BLOCK = 1 << 20  # all others: what a later snapshot must read to get one unit

_local = threading.local()


def _zstd(level: int, window: int = 0) -> zstandard.ZstdCompressor:
    """This thread's compressor: contexts are large and must not be shared (zstandard's documentation)."""
    cache: dict[tuple[int, int], zstandard.ZstdCompressor] = _local.__dict__.setdefault("compressors", {})
    if (level, window) not in cache:
        if window:
            params = zstandard.ZstdCompressionParameters.from_level(
                level,
                source_size=window,
                window_log=(window - 1).bit_length(),
                hash_log=17,  # with the chains 1 MiB of tables: level 4's twice as large ones miss a core's cache,
                chain_log=17,  # and take 1.4 times as long for 0.2 to 1.5 % less
                enable_ldm=True,
            )
            cache[level, window] = zstandard.ZstdCompressor(compression_params=params)
        else:
            cache[level, window] = zstandard.ZstdCompressor(level=level)
    return cache[level, window]


def encode(data: bytes | memoryview, column: Column) -> bytes:
    """Compress a block of ``column``'s units; never more than five bytes longer than ``data``."""
    if column.kind == FLOAT32 and len(data) % 4 == 0:
        planes = _planes(np.frombuffer(data, dtype="<u4"))
        codec, payload = FLOATS, planes[:3].tobytes() + _zstd(1).compress(planes[3].data)
    elif 64 <= column.width < 4096 and len(data) % column.width == 0:
        turned = np.ascontiguousarray(np.frombuffer(data, dtype=np.uint8).reshape(-1, column.width).T)
        codec, payload = ROWS, _zstd(3).compress(turned.data)
    else:
        large = len(data) > BLOCK
        codec, payload = ZSTD, _zstd(3, PAGES_BLOCK if large else 0).compress(data)
    if len(payload) >= len(data):
        codec, payload = RAW, bytes(data)
    return bytes((codec,)) + column.width.to_bytes(4, "little") + payload


def _planes(words: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint8]:
    """Words rotated left by one bit, as four planes of bytes, the lowest first; shape (4, n)."""
    planes = np.empty((4, len(words)), dtype=np.uint8)
    for at in range(0, len(words), STEP):
        part = words[at : at + STEP]
        rotated = (part << np.uint32(1)) | (part >> np.uint32(31))
        for number in range(4):
            planes[number, at : at + STEP] = rotated >> np.uint32(8 * number)  # the cast keeps the lowest byte
    return planes


def _words(lower: npt.NDArray[np.uint8], highest: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """The inverse of ``_planes``; three planes and the fourth. Arithmetic on whole words in a core's cache: 2.4 times
    as fast as writing every fourth byte."""
    words = np.empty(len(highest), dtype="<u4")
    for at in range(0, len(words), STEP):
        part = words[at : at + STEP]
        part[:] = highest[at : at + STEP]
        for number in (2, 1, 0):
            part <<= np.uint32(8)
            part |= lower[number, at : at + STEP]
        lowest = part << np.uint32(31)
        part >>= np.uint32(1)
        part |= lowest
    return words


def encode_like(stored: bytes | memoryview, data: bytes) -> bytes:
    """Compress ``data`` in the way ``stored``, a block of the same column, was compressed."""
    width = int.from_bytes(stored[1:5], "little")
    return encode(data, Column(width, FLOAT32 if stored[0] == FLOATS else PLAIN))


def decode(stored: bytes | memoryview, length: int) -> bytes:
    """The ``length`` plaintext bytes of a block. Raises ValueError for anything that is not such a block."""
    if not 0 <= length <= LARGEST or len(stored) < HEAD:
        raise ValueError("block length out of bounds")
    codec, width, payload = stored[0], int.from_bytes(stored[1:5], "little"), memoryview(stored)[HEAD:]
    if codec == RAW:
        data = bytes(payload)
    elif codec == ZSTD:
        data = _unzstd(payload, length)
    elif codec == ROWS:
        if width < 1 or length % width:
            raise ValueError("row width does not divide the block")
        turned = np.frombuffer(_unzstd(payload, length), dtype=np.uint8).reshape(width, -1)
        data = np.ascontiguousarray(turned.T).tobytes()
    elif codec == FLOATS:
        if length % 4 or len(payload) < length // 4 * 3:
            raise ValueError("float block too short")
        n = length // 4
        lower = np.frombuffer(payload[: 3 * n], dtype=np.uint8).reshape(3, n)
        data = _words(lower, np.frombuffer(_unzstd(payload[3 * n :], n), dtype=np.uint8)).tobytes()
    else:
        raise ValueError(f"unknown codec {codec}")
    if len(data) != length:
        raise ValueError("block has another length than its index says")
    return data


def _unzstd(payload: memoryview, length: int) -> bytes:
    """Decompress exactly ``length`` bytes; the frame's own claim must agree before anything is allocated."""
    try:
        if zstandard.frame_content_size(payload) != length:
            raise ValueError("frame length does not agree with the index")
        decompressor = _local.__dict__.setdefault("decompressor", None) or zstandard.ZstdDecompressor(
            max_window_size=1 << 27
        )
        _local.decompressor = decompressor
        return bytes(decompressor.decompress(payload, max_output_size=length))
    except zstandard.ZstdError as e:
        raise ValueError(str(e)) from None
