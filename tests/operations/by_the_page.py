"""Read a repository by docs/format.md alone: nothing of chromakeep is imported here, and nothing is verified twice.

What this cannot read, a stranger with the page in hand could not read either.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import blake3
import msgspec
import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

ENTRY = struct.Struct("<32sIQII")


def unzip(data: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompress(data)


class Page:
    """A repository in a folder, as the page describes it."""

    def __init__(self, root: Path, password: str | None) -> None:
        self.root = root
        self.config = json.loads(self.sealed("config", b"C", None))
        if self.config["encrypted"]:
            self.master = self.unwrap(password or "")
        else:
            self.master = base64.b64decode(self.config["master"])
        self.places: dict[bytes, tuple[str, int, int, int]] = {}
        for path in sorted((root / "index").iterdir()):
            index = msgspec.msgpack.decode(self.sealed(f"index/{path.name}", b"I"))
            for identity, pack, offset, stored, length in ENTRY.iter_unpack(index["entries"]):
                self.places[identity] = (index["packs"][pack]["name"], offset, stored, length)

    def unwrap(self, password: str) -> bytes:
        (path,) = (self.root / "keys").iterdir()
        slot = json.loads(self.sealed(f"keys/{path.name}", b"K", None))
        salt, nonce, wrapped = (base64.b64decode(slot[k]) for k in ("salt", "nonce", "wrapped"))
        kdf = slot["kdf"]
        if kdf["name"] == "argon2id":
            key = Argon2id(salt=salt, length=32, iterations=kdf["iterations"], lanes=kdf["lanes"],
                           memory_cost=kdf["memory_kib"]).derive(password.encode())  # fmt: skip
        else:
            key = hashlib.scrypt(
                password.encode(), salt=salt, n=kdf["n"], r=kdf["r"], p=kdf["p"], maxmem=1 << 30, dklen=32
            )
        return AESGCM(key).decrypt(nonce, wrapped, self.config["id"].encode())

    def key(self, purpose: str) -> bytes:
        return blake3.blake3(self.master, derive_key_context=f"chromakeep 2026 repository v1 {purpose}").digest()

    def cipher(self, name: str) -> AESGCM:
        return AESGCM(blake3.blake3(name.encode(), key=self.key("encryption")).digest())

    def sealed(self, name: str, kind: bytes, keyed: bool | None = True) -> bytes:
        data = (self.root / name).read_bytes()
        content, checksum = data[:-32], data[-32:]
        key = {"key": self.key("checksum")} if keyed else {}
        assert blake3.blake3(content + name.encode(), **key).digest() == checksum
        head, body = content[:8], content[8:]
        assert head[:7] == b"CKEEP" + kind + b"\x01"
        if head[7] & 1:
            body = self.cipher(name).decrypt(body[:12], body[12:], head + name.encode())
        return unzip(body)

    def plain(self, identity: bytes) -> bytes:
        """The bytes of a block, span list or span map."""
        pack, offset, stored, length = self.places[identity]
        data = (self.root / pack).read_bytes()[offset : offset + stored]
        if self.config["encrypted"]:
            data = self.cipher(pack).decrypt(offset.to_bytes(12, "little"), data, identity)
        codec, width, payload = data[0], int.from_bytes(data[1:5], "little"), data[5:]
        if codec == 0:
            return payload
        if codec == 1:
            return unzip(payload)
        if codec == 2:
            turned = unzip(payload)
            n = length // width
            return bytes(turned[c * n + r] for r in range(n) for c in range(width))
        n = length // 4
        planes = [payload[i * n : (i + 1) * n] for i in range(3)] + [unzip(payload[3 * n :])]
        words = (sum(planes[p][i] << (8 * p) for p in range(4)) for i in range(n))
        return b"".join(((w >> 1) | ((w & 1) << 31)).to_bytes(4, "little") for w in words)

    def span(self, identity: bytes) -> bytes:
        """The bytes of a span, put together by its map."""
        data = self.plain(identity)
        magic, unit, count, length, blocks = struct.unpack_from("<4sIIIH", data)
        assert magic == b"SM1\0"
        at = 18 + 32 * blocks
        names = [data[18 + 32 * i : 50 + 32 * i] for i in range(blocks)]
        numbers = struct.unpack_from(f"<{count}H", data, at + 8 * count)
        steps = struct.unpack_from(f"<{count}i", data, at + 10 * count)
        held = {name: self.plain(name) for name in names}
        out, slot = b"", 0
        for number, step in zip(numbers, steps, strict=True):
            slot += step
            out += held[names[number]][slot * unit : (slot + 1) * unit]
        assert len(out) >= length
        assert blake3.blake3(out[:length], key=self.key("span id")).digest() == identity
        return out[:length]

    def file(self, entry: dict[str, Any]) -> bytes:
        """The bytes of a file of a snapshot."""
        listing = self.plain(base64.b64decode(entry["spans"]))
        spans = [listing[i : i + 32] for i in range(0, len(listing), 32)]
        stride, widths = entry["layout"]["stride"], [c["width"] for c in entry["layout"]["columns"]]
        per_span, whole, out = min(max((1 << 20) // stride, 1), 4096), entry["size"] // stride, b""
        for first in range(0, whole, per_span):
            n = min(per_span, whole - first)
            columns = [self.span(spans.pop(0)) for _ in widths]
            out += b"".join(c[r * w : (r + 1) * w] for r in range(n) for c, w in zip(columns, widths, strict=True))
        if entry["size"] % stride:
            out += self.span(spans.pop(0))
        assert not spans and len(out) == entry["size"]
        return out

    def log(self) -> dict[int, list[dict[str, Any]]]:
        """The segments of each epoch, in order, singles and merged ones, from the horizon on."""
        folder, found = self.root / "log", {}
        marks = [json.loads(self.sealed(f"log/horizon/{p.name}", b"R")) for p in (folder / "horizon").glob("*")]
        horizon = max(((m["epoch"], m["number"]) for m in marks), default=(0, 0))
        for epoch in sorted(p.name for p in folder.iterdir() if p.name.isdigit()):
            payloads: dict[int, bytes] = {}
            for path in (folder / epoch).iterdir():
                first, _, last = path.name.partition("-")
                if last:
                    held = msgspec.msgpack.decode(self.sealed(f"log/{epoch}/{path.name}", b"M"))
                    assert len(held) == int(last) - int(first) + 1
                else:
                    held = [self.sealed(f"log/{epoch}/{path.name}", b"L")]
                payloads |= {int(first) + n: payload for n, payload in enumerate(held)}
            wanted = [n for n in sorted(payloads) if (int(epoch), n) >= horizon]
            assert not wanted or wanted == list(range(wanted[0], wanted[-1] + 1))
            segments = [payloads[n] for n in wanted if payloads[n] not in (b"ended", b"fenced")]
            found[int(epoch)] = [msgspec.msgpack.decode(s) for s in segments]
        return found

    def snapshots(self) -> dict[str, dict[str, bytes]]:
        """Everything: snapshot -> path -> bytes."""
        payloads = [self.sealed(f"snapshots/{p.name}", b"S") for p in sorted((self.root / "snapshots").iterdir())]
        found = [json.loads(p) for p in payloads if p != b"fenced"]
        return {s["id"]: {f["path"]: self.file(f) for f in s["files"]} for s in found}
