"""The keys of a repository: how content is named, and, if a password was given, how it is encrypted.

Every repository has 32 random bytes of master key. From it are derived (BLAKE3 ``derive_key``, whose paper asks for a
context string that is unique per use): the keys under which blocks and spans are hashed, so that names tell nothing
to who does not hold the repository, and, for an encrypted one, a key for each pack and each object, from its name.
Names are never used twice, so a pack can take the offset of a block as its nonce.

Without a password the master key lies in ``config`` in the clear: names are then only names. With one, it is wrapped
in ``keys/<id>``, one object a password; changing a password writes a new one and removes the old, never data.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from typing import Any

import blake3
import msgspec
import xxhash

from chromakeep.errors import UnsupportedFormat, WrongPassword

MASTER_BYTES = 32
TAG_BYTES = 16
ARGON2: dict[str, int | str] = {"name": "argon2id", "memory_kib": 65536, "iterations": 3, "lanes": 1}
SCRYPT: dict[str, int | str] = {"name": "scrypt", "n": 1 << 15, "r": 8, "p": 1}
# A slot is read before anything is authenticated: its costs are bounded so that a foreign one cannot exhaust memory.
MOST = {"memory_kib": 1 << 20, "iterations": 32, "lanes": 16, "n": 1 << 20, "r": 32, "p": 16}


def _derive(master: bytes, purpose: str) -> bytes:
    return blake3.blake3(master, derive_key_context=f"chromakeep 2026 repository v1 {purpose}").digest()


class Keys:
    """Derived keys. Immutable; safe to share among threads."""

    def __init__(self, master: bytes, *, encrypted: bool) -> None:
        self.master = master
        self.encrypted = encrypted
        self._block = _derive(master, "block id")
        self._span = _derive(master, "span id")
        self._unit = int.from_bytes(_derive(master, "unit hash")[:8], "little")
        self._seal = _derive(master, "encryption")
        self.checksum = _derive(master, "checksum")  # of sealed objects: one of another repository does not pass

    def block_id(self, data: bytes | memoryview) -> bytes:
        """32-byte name of a block's plaintext."""
        return blake3.blake3(data, key=self._block).digest()

    def span_id(self, data: bytes | memoryview) -> bytes:
        """32-byte name of the bytes a span of a file's column holds."""
        return blake3.blake3(data, key=self._span).digest()

    def unit_hash(self, data: memoryview) -> int:
        """64 bits in which a change of one unit shows: XXH3 under a secret seed, five times as fast as BLAKE3 on
        pieces of this size. It only chooses what to store; a change missed (2**-64) would show in the span's id."""
        return xxhash.xxh3_64_intdigest(data, self._unit)

    def cipher(self, name: str) -> Any:
        """AES-256-GCM under the key of the object ``name``, or None where nothing is encrypted."""
        if not self.encrypted:
            return None
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        return AESGCM(blake3.blake3(name.encode(), key=self._seal).digest())


class Slot(msgspec.Struct, frozen=True):
    """``keys/<id>``: the master key, wrapped under a password."""

    repository: str  # id of the repository it opens: one that a creation left behind when it died opens nothing
    kdf: dict[str, int | str]
    salt: bytes
    nonce: bytes
    wrapped: bytes
    created: str


SLOT = msgspec.json.Decoder(Slot)


def _stretch(password: str, kdf: dict[str, int | str], salt: bytes) -> bytes:
    """Key-encryption key from a password, by the memory-hard function the slot names."""
    cost = {k: v for k, v in kdf.items() if k != "name"}
    if not all(isinstance(v, int) and 1 <= v <= MOST.get(k, 0) for k, v in cost.items()) or not 8 <= len(salt) <= 64:
        raise UnsupportedFormat("a key of this repository asks for a key derivation out of bounds")
    try:
        if kdf.get("name") == "argon2id":
            from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

            return Argon2id(
                salt=salt,
                length=32,
                iterations=int(cost["iterations"]),
                lanes=int(cost["lanes"]),
                memory_cost=int(cost["memory_kib"]),
            ).derive(password.encode())
        if kdf.get("name") == "scrypt":
            n, r, p = (int(cost[k]) for k in ("n", "r", "p"))
            room = 256 * n * r + (1 << 20)
            return hashlib.scrypt(password.encode(), salt=salt, n=n, r=r, p=p, maxmem=min(room, 2**31 - 1), dklen=32)
    except (KeyError, ValueError) as e:
        raise UnsupportedFormat(f"a key of this repository cannot be used: {e}") from None
    raise UnsupportedFormat(f"a key of this repository uses {kdf.get('name')!r}, which this version does not know")


def _kdf() -> dict[str, int | str]:
    """Argon2id (RFC 9106) where the linked OpenSSL has it, else scrypt (RFC 7914)."""
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

        Argon2id(salt=bytes(16), length=32, iterations=1, lanes=1, memory_cost=8)
    except (ImportError, UnsupportedAlgorithm):
        return dict(SCRYPT)
    return dict(ARGON2)


def wrap(master: bytes, password: str, *, repository: str, created: str) -> Slot:
    """A slot that opens ``master`` with ``password``, bound to the repository's id."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    kdf, salt, nonce = _kdf(), os.urandom(16), os.urandom(12)
    wrapped = AESGCM(_stretch(password, kdf, salt)).encrypt(nonce, master, repository.encode())
    return Slot(repository=repository, kdf=kdf, salt=salt, nonce=nonce, wrapped=wrapped, created=created)


def unwrap(slot: Slot, password: str, *, repository: str) -> bytes:
    """The master key, or ``WrongPassword``."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        return AESGCM(_stretch(password, slot.kdf, slot.salt)).decrypt(slot.nonce, slot.wrapped, repository.encode())
    except (InvalidTag, ValueError):
        raise WrongPassword("the password does not open this repository") from None


def new_master() -> bytes:
    """A fresh master key."""
    return secrets.token_bytes(MASTER_BYTES)
