"""A repository in which somebody wrote what he liked: one clear error, no file outside, no memory that runs away."""

from __future__ import annotations

import json
import socket
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from chromakeep.errors import CorruptObject, DiskFull, MissingObject, VerificationFailed
from chromakeep.layout import Column
from chromakeep.operations.backup import backup
from chromakeep.operations.check import check
from chromakeep.operations.prune import Retention, prune
from chromakeep.operations.restore import restore
from chromakeep.operations.unlock import unlock
from chromakeep.repository import Repository
from chromakeep.repository.blocks import encode
from chromakeep.repository.index import ENTRY, IndexPart, PackInfo
from chromakeep.repository.packs import DATA, META, PackWriter
from chromakeep.repository.sessions import SessionInfo
from chromakeep.repository.spans import SpanMap
from chromakeep.store.local import LocalStore
from operations.directories import everything
from operations.worlds import World, copied

FORGED = "20990101T000000000Z-0123456789abcdef"
MOST_MEMORY = 160 << 20  # bytes while reading something forged: the bounds of a pack and a block, not what it claims


class Forger:
    """Writes snapshots, maps and indexes of his own into a copy of a repository, sealed as they should be."""

    def __init__(self, world: World) -> None:
        self.repository = world.reopened(copied(world.store))
        self.world = world
        self.latest: dict[str, Any] = msgspec.json.decode(
            msgspec.json.encode(self.repository.snapshot(f"snapshots/{max(world.expected)}"))
        )

    def put(self, kind: str, name: str, payload: bytes) -> None:
        self.repository.put_sealed(kind, name, payload)

    def snapshot(self, change: Callable[[dict[str, Any]], None]) -> None:
        """The latest snapshot with a change, as a still later one."""
        forged = {**self.latest, "id": FORGED}
        change(forged)
        self.put("S", f"snapshots/{FORGED}", msgspec.json.encode(forged))

    def block(self, folder: str, identity: bytes, data: bytes) -> None:
        """One block in a pack and an index of its own; under an id that need not be right."""
        with ThreadPoolExecutor(1) as pool:
            writer = PackWriter(self.repository.store, self.repository.keys, f"{FORGED}{len(data)}", folder, pool)
            writer.add(identity, encode(data, Column(4096)), len(data))
            part = writer.finish()
        self.put("I", f"index/{FORGED}{len(data)}", part.encode())

    def list_of(self, spans: list[bytes]) -> bytes:
        identity = self.repository.keys.block_id(b"".join(spans))
        self.block(META, identity, b"".join(spans))
        return identity

    def fails(self, target: Path, *errors: type[Exception]) -> Exception:
        """Restoring the forged snapshot raises one of ``errors``; nothing is written, and little memory is used."""
        before = everything(target.parent)
        tracemalloc.start()
        try:
            with pytest.raises(errors or CorruptObject) as raised:
                restore(self.repository, FORGED, target)
            assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
        finally:
            tracemalloc.stop()
        assert everything(target.parent) == before
        check(self.repository, read_data=True)  # whatever it says, it ends
        return raised.value


@pytest.fixture
def forger(plain_world: World) -> Forger:
    return Forger(plain_world)


@pytest.mark.parametrize(
    "path",
    [
        "../x", "/etc/x", "a/../../x", "a/./x", "a//x", "", ".", "..", "a\\..\\x", "a\0b", "c:x", "a/b/c/d/e/f/g/h/i",
        "x" * 256, "é" * 130, "a\nb", "\ud800", "\x1b[2J",
    ],
)  # fmt: skip
def test_names_cannot_leave_the_target(forger: Forger, tmp_path: Path, path: str) -> None:
    """Whatever name a snapshot gives to a file, restoring it writes nothing outside of the target - here nothing."""

    files = [*forger.latest["files"], {**forger.latest["files"][0], "path": "PLACE"}]
    payload = msgspec.json.encode({**forger.latest, "id": FORGED, "files": files})
    forger.put("S", f"snapshots/{FORGED}", payload.replace(b'"PLACE"', json.dumps(path).encode()))
    error = forger.fails(tmp_path / "target")
    assert isinstance(error, CorruptObject) and error.name == f"snapshots/{FORGED}"


@pytest.mark.parametrize("paths", [["a", "a"], ["a", "a/b"], ["a/b/c", "a/b"]])
def test_a_file_is_named_once(forger: Forger, tmp_path: Path, paths: list[str]) -> None:
    """Two files of one name, or a file that is another's folder, are refused and do not surface as an OSError."""
    forger.snapshot(lambda s: s.update(files=[{**s["files"][0], "path": p} for p in paths]))
    forger.fails(tmp_path / "target")


@pytest.mark.parametrize(
    ("size", "layout"),
    [
        (-1, None),
        (1 << 62, None),
        (4096, {"stride": 0, "columns": []}),
        (4096, {"stride": 1 << 40, "columns": [{"width": 1 << 40, "kind": "plain"}]}),
        (1 << 45, {"stride": 1 << 40, "columns": [{"width": 1 << 40, "kind": "plain"}]}),
        (4096, {"stride": 4096, "columns": [{"width": 4095, "kind": "plain"}]}),
        (4096, {"stride": 4096, "columns": [{"width": 1, "kind": "plain"}] * 4096}),
        (4096, {"stride": 6, "columns": [{"width": 6, "kind": "float32"}]}),
        (4096, {"stride": -4096, "columns": [{"width": -4096, "kind": "plain"}]}),
    ],
)
def test_absurd_sizes_and_layouts_are_refused(forger: Forger, tmp_path: Path, size: int, layout: object) -> None:
    """Sizes, strides and columns are bounded before a byte is allocated for them."""

    def change(snapshot: dict[str, Any]) -> None:
        first = {**snapshot["files"][0], "size": size}
        snapshot["files"] = [first if layout is None else {**first, "layout": layout}]

    forger.snapshot(change)
    forger.fails(tmp_path / "target")


def test_a_file_larger_than_the_disk_is_refused(forger: Forger, tmp_path: Path) -> None:
    """A size that could be, and for which there is no room, is DiskFull; nothing was fetched."""
    forger.snapshot(lambda s: s.update(files=[{**s["files"][0], "size": 1 << 49}]))
    forger.fails(tmp_path / "target", DiskFull)


def test_a_list_of_spans_that_does_not_add_up(forger: Forger, tmp_path: Path) -> None:
    """A file of a billion rows of one byte and a list of two spans: refused before the rows are counted out."""
    one_byte = {"stride": 1, "columns": [{"width": 1, "kind": "plain"}]}
    spans = forger.list_of([bytes(32), bytes(32)])

    def change(snapshot: dict[str, Any]) -> None:
        file = {**snapshot["files"][0], "size": 1 << 30, "layout": one_byte, "spans": msgspec.to_builtins(spans)}
        snapshot["files"] = [file]

    forger.snapshot(change)
    forger.fails(tmp_path / "target")


def forged_file(forger: Forger, size: int, *maps: SpanMap) -> None:
    """A snapshot of one file whose spans have these maps, under ids that are not those of any bytes."""
    ids = [bytes((n + 1,)) * 32 for n in range(len(maps))]
    for identity, one in zip(ids, maps, strict=True):
        forger.block(META, identity, one.encode())
    spans = msgspec.to_builtins(forger.list_of(ids))
    plain = {"stride": 4096, "columns": [{"width": 4096, "kind": "plain"}]}
    entry = {"path": "chroma.sqlite3", "size": size, "mtime_ns": 1, "layout": plain, "spans": spans}
    forger.snapshot(lambda s: s.update(files=[entry]))


def a_map(
    *, unit: int = 4096, length: int = 8192, slots: tuple[int, ...] = (0, 1), block: bytes = b"b" * 32
) -> SpanMap:
    n = len(slots)
    return SpanMap(unit, length, [block], np.zeros(n, "<u8"), np.zeros(n, "<u2"), np.array(slots, "<u4"))


def test_a_map_that_points_outside_its_block(forger: Forger, tmp_path: Path) -> None:
    """Slots beyond the end of the block they name: refused, by restore and by check, with and without local files."""
    identity = forger.repository.keys.block_id(b"x" * 8192)
    forger.block(DATA, identity, b"x" * 8192)
    forged_file(forger, 8192, a_map(slots=(0, 4_000_000_000), block=identity))
    forger.fails(tmp_path / "target")
    local = tmp_path / "occupied"
    local.mkdir()
    (local / "chroma.sqlite3").write_bytes(b"y" * 8192)
    with pytest.raises(VerificationFailed):
        restore(forger.repository, FORGED, local, replace=True)
    assert everything(local) == {"chroma.sqlite3": b"y" * 8192}


def test_a_map_of_another_length(forger: Forger, tmp_path: Path) -> None:
    """A map that is shorter or longer than its span is told, also where local bytes are compared with it first."""
    identity = forger.repository.keys.block_id(b"x" * 8192)
    forger.block(DATA, identity, b"x" * 8192)
    forged_file(forger, 8192, a_map(length=12288, slots=(0, 1, 1), block=identity))
    forger.fails(tmp_path / "target")
    local = tmp_path / "occupied"
    local.mkdir()
    (local / "chroma.sqlite3").write_bytes(b"y" * 8192)
    with pytest.raises(CorruptObject):
        restore(forger.repository, FORGED, local, replace=True)


def test_a_map_of_other_bytes_than_its_name_says(forger: Forger, tmp_path: Path) -> None:
    """A map that is right in itself and puts other bytes together than the span's id names: never restored."""
    identity = forger.repository.keys.block_id(b"x" * 8192)
    forger.block(DATA, identity, b"x" * 8192)
    forged_file(forger, 8192, a_map(block=identity))
    forger.fails(tmp_path / "target")


def test_a_map_of_blocks_that_nobody_has(forger: Forger, tmp_path: Path) -> None:
    forged_file(forger, 8192, a_map())
    forger.fails(tmp_path / "target", MissingObject)


@pytest.mark.parametrize("unit", [0, 1, 63, 1 << 31, (1 << 32) - 1])
def test_units_are_bounded(unit: int) -> None:
    """A map of one unit of 4 GiB for a span of 8 KiB, or of units of nothing, is no map."""
    with pytest.raises(ValueError, match="span map"):
        SpanMap.decode(a_map(unit=unit, slots=tuple(range(min(-(-8192 // max(unit, 1)), 8192)))).encode())


@pytest.mark.parametrize(
    ("field", "value"),
    [("offset", (1 << 64) - 1), ("offset", 1 << 63), ("stored", (1 << 32) - 1), ("length", (1 << 32) - 1)],
)
def test_an_index_cannot_claim_what_is_not_there(forger: Forger, tmp_path: Path, field: str, value: int) -> None:
    """Offsets that overflow, sizes beyond the pack, blocks of 4 GiB: the index is refused by name and by check."""
    rows = np.zeros(3, dtype=ENTRY)
    rows["stored"], rows["length"] = 10, 10
    rows[field][1] = value
    part = IndexPart([PackInfo("packs/none-0", 1000, bytes(32))], rows)
    forger.put("I", f"index/{FORGED}", part.encode())
    assert f"index/{FORGED}" in {p.object for p in check(forger.repository).problems}
    with pytest.raises(CorruptObject, match=f"index/{FORGED}"):
        prune(forger.repository, Retention(last=1), wait=0)
    forger.world.restores(forger.repository, max(forger.world.expected), tmp_path / "others-are-not-harmed")


@pytest.mark.parametrize("size", [-1, 1 << 63, 1 << 64])
def test_a_pack_has_a_size(forger: Forger, size: int) -> None:
    """Sizes of packs that no number of 64 bits holds do not surface as an OverflowError."""
    payload = {
        "packs": [{"name": "packs/none-0", "size": min(size, (1 << 64) - 1), "checksum": bytes(32)}],
        "entries": b"",
    }
    with pytest.raises(CorruptObject):
        IndexPart.decode("index/x", msgspec.msgpack.encode(payload))


@pytest.mark.parametrize(
    ("kind", "name", "payload"),
    [
        ("S", f"snapshots/{FORGED}", b"{}"),
        ("S", f"snapshots/{FORGED}", b"[" * 100_000),
        ("S", f"snapshots/{FORGED}", b""),
        ("I", f"index/{FORGED}", b"\xdf\xff\xff\xff\xff"),
        ("I", f"index/{FORGED}", b""),
        ("G", "gc/00000099", b"{}"),
        ("G", "gc/00000099", b'{"prune":"x","merged":"y","packs":5,"superseded":[]}'),
        ("N", f"sessions/{FORGED}", b"null"),
    ],
)
def test_a_payload_of_nonsense_is_named(forger: Forger, tmp_path: Path, kind: str, name: str, payload: bytes) -> None:
    """Sealed as it should be, and not what belongs there: check names it, and the other snapshots restore."""
    forger.put(kind, name, payload)
    if kind != "N":  # one that cannot be read counts as a session under way, which prune ends after an hour
        assert name in {p.object for p in check(forger.repository).problems}
    forger.world.restores(forger.repository, max(forger.world.expected), tmp_path / "out")


@pytest.mark.parametrize("pid", [-1, 0, 1 << 40, -(1 << 70)])
def test_a_session_of_an_absurd_process(forger: Forger, pid: int) -> None:
    """Process numbers are asked of the system only where it can have such a process."""
    info = SessionInfo(FORGED, "backup", socket.gethostname(), 1, "2026-01-01T00:00:00Z")
    forger.put("N", f"sessions/{FORGED}", msgspec.json.encode(info).replace(b'"pid":1', f'"pid":{pid}'.encode()))
    report = unlock(forger.repository, everything=True)
    assert FORGED in report.fenced


def test_a_time_that_is_none(forger: Forger) -> None:
    """Retention parses times; one that cannot be parsed is damage of that snapshot, told by its name."""
    for text in ("yesterday", "0001-01-01T00:00:00+14:00", ""):
        fresh = Forger(forger.world)
        fresh.snapshot(lambda s, text=text: s.update(time=text))  # type: ignore[misc]
        with pytest.raises(CorruptObject, match=FORGED):
            prune(fresh.repository, Retention(daily=1), wait=0)


def test_a_repository_opened_from_a_directory_with_foreign_files(tmp_path: Path, generations: list[Path]) -> None:
    """Files of others in the repository's folder are named by check and harm nothing."""
    (tmp_path / "repo").mkdir()
    repository = Repository.create(LocalStore(tmp_path / "repo"))
    made = backup(generations[0], repository).snapshot
    (tmp_path / "repo" / "README.txt").write_text("hello")
    (tmp_path / "repo" / "packs" / "not-ours").write_text("hello")
    named = {p.object for p in check(repository, read_data=True).problems}
    assert named == {"README.txt", "packs/not-ours"}
    restore(repository, made, tmp_path / "out")
