"""The envelope of every object that is not a pack: typed, checksummed, bound to its name, encrypted if asked.

``CKEEP`` kind(1) version(1) flags(1) | body | BLAKE3-256 of all before it and of the object's name, under the
repository's own key (except of what must be readable before there are keys). The body is a zstd frame of the payload;
with flag 1 it is a 12-byte random nonce and the AES-256-GCM of that frame, the header and the name authenticated with
it. A flipped bit, a truncated object, one copied under another's name and one of another repository are each found.
"""

from __future__ import annotations

import os

import blake3
import zstandard

from chromakeep.errors import CorruptObject, UnsupportedFormat
from chromakeep.repository.keys import Keys

MAGIC = b"CKEEP"
VERSION = 1
ENCRYPTED = 1
HEAD, CHECKSUM = 8, 32
LARGEST = 1 << 30  # bytes of payload believed at most


def seal(kind: str, name: str, payload: bytes, keys: Keys | None) -> bytes:
    """Bytes to store under ``name``. ``keys`` is None for what must be readable before there are keys."""
    body = zstandard.ZstdCompressor(level=3).compress(payload)
    cipher = keys.cipher(name) if keys else None
    head = MAGIC + kind.encode("ascii") + bytes((VERSION, ENCRYPTED if cipher else 0))
    if cipher:
        nonce = os.urandom(12)
        body = nonce + cipher.encrypt(nonce, body, head + name.encode())
    return head + body + _checksum(head + body, name, keys)


def unseal(kind: str, name: str, data: bytes, keys: Keys | None, *, most: int = LARGEST) -> bytes:
    """The payload of at most ``most`` bytes, or ``CorruptObject`` / ``UnsupportedFormat``. Believes nothing before the
    checksum holds."""
    if len(data) < HEAD + CHECKSUM or data[:5] != MAGIC:
        raise CorruptObject(name, "truncated" if MAGIC.startswith(data[:5]) else "not written by chromakeep")
    content, checksum = data[:-CHECKSUM], data[-CHECKSUM:]
    if data[6] != VERSION and _checksum(data[:6] + bytes((VERSION,)) + content[7:], name, keys) != checksum:
        # All else may be different there. What is right but for this one byte is damage, and told as such below.
        raise UnsupportedFormat(
            f"{name}: written in format {data[6]}, this chromakeep reads up to {VERSION}",
            hint="upgrade chromakeep: `pip install -U chromakeep`",
        )
    if _checksum(content, name, keys) != checksum:
        raise CorruptObject(name, "damaged, truncated, or of another name or repository (checksum does not match)")
    if data[5:6] != kind.encode("ascii"):
        raise CorruptObject(name, f"holds {data[5:6]!r} where {kind!r} belongs")
    head, body = content[:HEAD], content[HEAD:]
    if head[7] & ENCRYPTED:
        cipher = keys.cipher(name) if keys else None
        if cipher is None:
            raise CorruptObject(name, "is encrypted, and this repository is not")
        from cryptography.exceptions import InvalidTag

        try:
            body = cipher.decrypt(body[:12], body[12:], head + name.encode())
        except (InvalidTag, ValueError):
            raise CorruptObject(name, "does not authenticate under this repository's key") from None
    elif keys and keys.encrypted:
        raise CorruptObject(name, "is not encrypted, and this repository is")
    try:
        size = zstandard.frame_content_size(body)
        if not 0 <= size <= most:
            raise CorruptObject(name, f"claims {size} bytes of content")
        return zstandard.ZstdDecompressor().decompress(body, max_output_size=size)
    except zstandard.ZstdError as e:
        raise CorruptObject(name, f"cannot be decompressed ({e})") from None


def _checksum(content: bytes, name: str, keys: Keys | None) -> bytes:
    hasher = blake3.blake3(content, key=keys.checksum) if keys else blake3.blake3(content)
    hasher.update(name.encode())
    return hasher.digest()
