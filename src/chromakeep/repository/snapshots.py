"""Snapshots: one recoverable state, whole in itself, and the names and selectors by which people find it."""

from __future__ import annotations

from datetime import datetime, timezone

import msgspec

from chromakeep.errors import CorruptObject, SnapshotNotFound, UsageError
from chromakeep.layout import Column, Layout
from chromakeep.records import Collection


class FileEntry(msgspec.Struct, frozen=True):
    """One file: path relative to the directory, size, mtime, its row layout, and the block that lists its spans."""

    path: str
    size: int
    mtime_ns: int
    layout: Layout
    spans: bytes  # id of the block that holds the 32-byte ids of all spans, band by band, column by column, tail last


class Snapshot(msgspec.Struct, frozen=True):
    """The object ``snapshots/<id>``. ``time`` is the instant the state was captured (RFC 3339, UTC)."""

    id: str
    time: str
    source: str
    hostname: str
    program_version: str
    chroma_version: str
    parent: str | None
    collections: tuple[Collection, ...]
    files: tuple[FileEntry, ...]
    total_bytes: int
    new_bytes: int
    seconds: float
    pause_seconds: float = 0.0
    # of one that a log goes on from: the epoch, SQLite's change counter, and a segment whose state is not later
    epoch: int | None = None
    counter: int = -1
    log_number: int = 0
    schema: str | None = None

    @property
    def records(self) -> int:
        """Records in all collections."""
        return sum(c.count for c in self.collections)


# Made here, not at the first use: two threads that make one at a time crash the interpreter (seen with msgspec 0.22).
_DECODER = msgspec.json.Decoder(Snapshot)
TOMBSTONE = b"fenced"  # payload of an object that stands where a snapshot would: its session can no longer commit
LONGEST_ROW, MOST_COLUMNS = 16 << 20, 16  # bytes; a vector of four million dimensions
LARGEST_TOMBSTONE = 256  # bytes; what is larger in a listing is a snapshot and need not be read to know it


def now() -> datetime:
    """This machine's time, aware, UTC."""
    return datetime.now(timezone.utc)


def rfc3339(moment: datetime) -> str:
    """``2026-08-01T12:00:05.123Z``."""
    return moment.astimezone(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def encode(snapshot: Snapshot) -> bytes:
    """Payload of the object."""
    return msgspec.json.encode(snapshot)


def decode(name: str, payload: bytes) -> Snapshot | None:
    """The snapshot, or None for a tombstone. Paths that could leave a directory are refused here, at the gate."""
    if payload == TOMBSTONE:
        return None
    try:
        found = _DECODER.decode(payload)
    except (msgspec.MsgspecError, ValueError) as e:
        raise CorruptObject(name, f"is not a snapshot ({e})") from None
    _refuse_strange_files(name, found.files)
    try:
        datetime.fromisoformat(found.time.replace("Z", "+00:00")).astimezone(timezone.utc)
    except (ValueError, OverflowError):
        raise CorruptObject(name, f"tells no time: {found.time[:40]!r}") from None
    return found


def _refuse_strange_files(name: str, entries: tuple[FileEntry, ...]) -> None:
    files: set[str] = set()
    folders: set[str] = set()
    for file in entries:
        parts = file.path.split("/")
        if len(parts) > 8 or not all(map(_is_plain, parts)):
            raise CorruptObject(name, f"names a file outside its directory: {file.path[:300]!r}")
        files.add(file.path)
        folders.update("/".join(parts[:n]) for n in range(1, len(parts)))
        if not 0 <= file.size < 1 << 50 or not 0 <= file.mtime_ns < 1 << 63:
            raise CorruptObject(name, f"claims {file.size} bytes for {file.path!r}")
        if file.layout.stride > LONGEST_ROW or len(file.layout.columns) > MOST_COLUMNS:
            raise CorruptObject(name, f"claims rows of {file.layout.stride} bytes for {file.path!r}")
    if len(files) < len(entries) or not files.isdisjoint(folders):
        raise CorruptObject(name, "names a file twice")


def _is_plain(part: str) -> bool:
    """Whether one part of a path is a name that stays where it is put, on any system."""
    return (
        part not in ("", ".", "..") and part.isprintable() and not set(part) & set("\\:") and len(part.encode()) <= 255
    )


def select(snapshots: list[Snapshot], selector: str | None) -> Snapshot:
    """By ``None``/``latest``, ``latest~N``, a prefix of the id or of its last part, or an RFC 3339 instant (the last
    snapshot not after it). Raises ``SnapshotNotFound`` / ``UsageError`` (ambiguous)."""
    if not snapshots:
        raise SnapshotNotFound("the repository holds no snapshot", hint="make one: chromakeep backup DIRECTORY REPO")
    text = selector or "latest"
    if text == "latest" or text.startswith("latest~"):
        back = text[7:] or "0"
        if back.isdigit() and int(back) < len(snapshots):
            return snapshots[-1 - int(back)]
        raise SnapshotNotFound(f"there is no {text}: the repository holds {len(snapshots)} snapshots")
    found = [s for s in snapshots if s.id.startswith(text) or s.id.rpartition("-")[2].startswith(text)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{text} is the beginning of {len(found)} snapshots", hint="give more of the id")
    if moment := instant(text):
        before = [s for s in snapshots if datetime.fromisoformat(s.time.replace("Z", "+00:00")) <= moment]
        if before:
            return before[-1]
        raise SnapshotNotFound(
            f"no snapshot is as old as {text}", hint=f"the oldest is {snapshots[0].id} of {snapshots[0].time}"
        )
    raise SnapshotNotFound(f"no snapshot {text}", hint="list them: chromakeep snapshots REPO")


def instant(selector: str) -> datetime | None:
    """The instant that a selector names (RFC 3339; a date alone is its first moment; no zone is UTC), else None."""
    if "T" not in selector and selector.count("-") != 2:
        return None
    try:
        found = datetime.fromisoformat(selector.replace("Z", "+00:00"))
        return found.astimezone(timezone.utc) if found.tzinfo else found.replace(tzinfo=timezone.utc)
    except (ValueError, OverflowError):
        return None


__all__ = ["Collection", "Column", "FileEntry", "Snapshot", "decode", "encode", "instant", "now", "rfc3339", "select"]
