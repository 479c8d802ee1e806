"""What is sent and what is taken: manifests that lie, damaged chunks, a disk that fills up, a process that dies."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from chromakeep.errors import ChromakeepError, DiskFull, NotNow, ServerSilent, UsageError, VerificationFailed
from chromakeep.operations import courier, incoming, manifest, place
from chromakeep.operations.courier import Courier
from chromakeep.operations.incoming import Incoming
from chromakeep.operations.manifest import Manifest, SentFile, cut, digest, read
from servers.process import refused

SEGMENT = "0e7c3c3e-8a53-4d5e-9a0e-6d1c3e1f5b11"
NAMES = ("chroma.sqlite3", f"{SEGMENT}/data_level0.bin", f"{SEGMENT}/header.bin", f"{SEGMENT}/length.bin")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a kilobyte, so that little data makes many."""
    monkeypatch.setattr(manifest, "CHUNK", 1024)
    monkeypatch.setattr(manifest, "SMALL", 128)
    monkeypatch.setattr(incoming, "HEADROOM", 1 << 20)


def make(folder: Path, *sizes: int, seed: int = 0) -> Manifest:
    """Files of these sizes, whose bytes are their own."""
    for number, (name, size) in enumerate(zip(NAMES, sizes, strict=False)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes((seed + 7 * number + at * at) % 251 for at in range(size)))
        os.utime(path, ns=(10**18 + number, 10**18 + number))
    return Manifest.of(folder, NAMES[: len(sizes)], "host:/dir")


def pack(one: Manifest, folder: Path, number: int) -> bytes:
    return zstandard.ZstdCompressor().compress(read(folder, one.pieces[number]))


def everything(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()
    }


@given(st.lists(st.integers(0, 5000), max_size=20))
def test_chunks_cover_each_byte_once(sizes: list[int]) -> None:
    """In order, none of them too large, and small files share chunks."""
    files = [SentFile(f"{at}", size, 0) for at, size in enumerate(sizes)]
    chunks = cut(files)
    seen = [(piece.path, piece.offset + at) for pieces in chunks for piece in pieces for at in range(piece.length)]
    assert seen == [(file.path, at) for file in files for at in range(file.size)]
    for pieces in chunks:
        assert 0 < sum(piece.length for piece in pieces) <= manifest.CHUNK
    for before, after in pairwise(chunks):
        if all(files[int(p.path)].size < manifest.SMALL for p in (*before, *after)):
            assert sum(p.length for p in before) + after[0].length > manifest.CHUNK


def test_a_manifest_is_the_same_after_its_way(tmp_path: Path) -> None:
    """And has the same name on both sides; another time of one file is another manifest."""
    one = make(tmp_path, 3000, 5000, 20, 0)
    other = Manifest.decode(one.encoded)
    assert (other.id, other.files, other.chunks, other.pieces) == (one.id, one.files, one.chunks, one.pieces)
    os.utime(tmp_path / NAMES[0])
    assert Manifest.of(tmp_path, NAMES, "host:/dir").id != one.id


def file(path: str = NAMES[0], size: object = 10, mtime_ns: object = 0) -> dict[str, object]:
    return {"path": path, "size": size, "mtime_ns": mtime_ns}


CHUNKED = "a" * 64


@pytest.mark.parametrize(
    "changes",
    [
        {"files": [file(), file("../../etc/passwd")]},
        {"files": [file(), file("/etc/passwd")]},
        {"files": [file(), file(f"{SEGMENT}/../header.bin")]},
        {"files": [file(), file(f"../{SEGMENT}/header.bin")]},
        {"files": [file(), file(f"{SEGMENT}/header.bin\n")]},
        {"files": [file(), file(f"{SEGMENT}\n/header.bin")]},
        {"files": [file(), file(f"{SEGMENT}/header.bin/x")]},
        {"files": [file(), file(f"{SEGMENT}/other.bin")]},
        {"files": [file(), file(f"{SEGMENT}")]},
        {"files": [file(), file("header.bin")]},
        {"files": [file(), file("")]},
        {"files": [file(), file("chroma.sqlite3-journal")]},
        {"files": [file(), file(".chromakeep/state.json")]},
        {"files": [file(), file()]},  # twice
        {"files": [file(f"{SEGMENT}/header.bin")]},  # no database
        {"files": []},
        {"files": [file(size=-1)]},
        {"files": [file(size=1 << 62)]},
        {"files": [file(size=10**30)]},
        {"files": [file(size=1.5)]},
        {"files": [file(size="10")]},
        {"files": [file(size=True)]},
        {"files": [file(mtime_ns=-1)]},
        {"files": [file(mtime_ns=1 << 63)]},
        {"files": [file(size=1 << 45), file(NAMES[1], size=1 << 45), file(NAMES[2], size=1 << 45)]},
        {"files": [file(size=1 << 40)]},  # whose chunks would fill the memory
        {"files": [{**file(), "mode": 511}]},
        {"files": [file()] * 100_001},
        {"files": None},
        {"chunks": []},
        {"chunks": [CHUNKED] * 2},
        {"chunks": ["A" * 64]},
        {"chunks": ["a" * 63]},
        {"chunks": ["a" * 64 + "\n"]},
        {"chunks": [7]},
        {"sender": ""},
        {"sender": "x" * 501},
        {"format": 2},
        {"format": 0},
        {"more": 1},
    ],
)
def test_a_manifest_that_lies_is_refused(changes: dict[str, Any]) -> None:
    """One line of why not, whatever it is, before anything of the size it tells is made."""
    told = {"format": 1, "sender": "host:/dir", "files": [file()], "chunks": [CHUNKED]}
    assert Manifest.decode(json.dumps(told).encode()).total == 10
    with pytest.raises(UsageError) as caught:
        Manifest.decode(json.dumps(told | changes).encode())
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 100_000, b"\xff", b"null", b"7", b" " * (manifest.LARGEST + 1)])
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(UsageError):
        Manifest.decode(data)


def test_a_directory_comes_chunk_by_chunk(tmp_path: Path) -> None:
    """In any order, each twice; the files are then those that were sent, their times too."""
    one = make(tmp_path / "from", 3000, 5000, 20, 0)
    coming = Incoming.begin(tmp_path / "receiving", one)
    numbers = list(reversed(range(len(one.chunks))))
    assert len(numbers) == 3 + 5 + 1
    for number in [*numbers, *numbers]:
        assert (number in coming.missing) == (number not in coming.had)
        coming.put(number, pack(one, tmp_path / "from", number))
    assert not coming.missing
    coming.verify()
    coming.complete()
    assert everything(coming.files) == everything(tmp_path / "from")


def test_what_an_earlier_process_has_verified_counts(tmp_path: Path) -> None:
    """Whatever of its journal is torn or foreign does not; and of several transfers only the newest is kept."""
    one = make(tmp_path / "from", 3000, 5000)
    coming = Incoming.begin(tmp_path / "receiving", one)
    old = tmp_path / "receiving" / ("0" * 32)
    shutil.copytree(coming.folder, old)
    os.utime(old / "journal", (1, 1))
    for number in (1, 4, 6):
        coming.put(number, pack(one, tmp_path / "from", number))
    for tail in (b"", b"\1\2\3", bytes(16), bytes(40), b"\7\0\0\0" + b"\xff" * 12, b"\xff" * 16):
        with (coming.folder / "journal").open("ab") as journal:
            journal.write(tail)
        again = Incoming.newest(tmp_path / "receiving", age=60)
        assert again and again.had == {1, 4, 6}
        again.put(0, pack(one, tmp_path / "from", 0))
        assert Incoming.newest(tmp_path / "receiving", age=60).had == {0, 1, 4, 6}  # type: ignore[union-attr]
        again.had -= {0}
        (again.folder / "journal").write_bytes(b"".join(map(again._line, (1, 4, 6))))
    assert [p.name for p in (tmp_path / "receiving").iterdir()] == [one.id]
    os.utime(coming.folder / "journal", (1, 1))
    assert Incoming.newest(tmp_path / "receiving", age=60) is None
    assert not list((tmp_path / "receiving").iterdir())


@pytest.mark.parametrize("harm", ["manifest", "file", "journal"])
def test_a_transfer_without_a_part_of_it_is_none(tmp_path: Path, harm: str) -> None:
    """Which is what a death within its beginning leaves: it is swept up."""
    one = make(tmp_path / "from", 3000)
    coming = Incoming.begin(tmp_path / "receiving", one)
    path = coming.files / NAMES[0] if harm == "file" else coming.folder / harm
    path.write_bytes(b"x") if harm != "journal" else path.unlink()
    assert Incoming.newest(tmp_path / "receiving", age=60) is None
    assert not list((tmp_path / "receiving").iterdir())


def damaged() -> list[tuple[str, Callable[[bytes, bytes], bytes]]]:
    compress = zstandard.ZstdCompressor().compress
    without_size = zstandard.ZstdCompressor(write_content_size=False).compress
    return [
        ("a flipped bit within", lambda chunk, packed: compress(bytes([chunk[0] ^ 1]) + chunk[1:])),
        ("a flipped bit of the frame", lambda chunk, packed: packed[:-9] + bytes([packed[-9] ^ 1]) + packed[-8:]),
        ("cut off", lambda chunk, packed: packed[:-1]),
        ("nothing", lambda chunk, packed: b""),
        ("not packed", lambda chunk, packed: chunk),
        ("shorter", lambda chunk, packed: compress(chunk[:-1])),
        ("longer", lambda chunk, packed: compress(chunk + b"x")),
        ("a bomb", lambda chunk, packed: compress(bytes(1 << 28))),
        ("a bomb that does not tell its size", lambda chunk, packed: without_size(bytes(1 << 28))),
        ("without its size", lambda chunk, packed: without_size(chunk)),
    ]


@pytest.mark.parametrize(("what", "harm"), damaged(), ids=[name for name, _ in damaged()])
def test_a_damaged_chunk_is_refused(tmp_path: Path, what: str, harm: Callable[[bytes, bytes], bytes]) -> None:
    """It does not count, nothing of it is written, and the right one is taken afterwards."""
    one = make(tmp_path / "from", 3000)
    coming = Incoming.begin(tmp_path / "receiving", one)
    chunk = read(tmp_path / "from", one.pieces[1])
    with pytest.raises(VerificationFailed, match="chunk 1"):
        coming.put(1, harm(chunk, pack(one, tmp_path / "from", 1)))
    assert 1 in coming.missing
    assert (coming.files / NAMES[0]).read_bytes() == bytes(3000)
    coming.put(1, pack(one, tmp_path / "from", 1))
    assert 1 not in coming.missing
    for number in (-1, 3, 1 << 40):
        with pytest.raises(UsageError):
            coming.put(number, b"x")
        with pytest.raises(UsageError):
            coming.put_part(number, 0, 5, b"x")


def test_a_chunk_comes_in_parts(tmp_path: Path) -> None:
    """Those that are there already, that come twice or leave a gap do no harm: the answer says from where to go on."""
    one = make(tmp_path / "from", 3000)
    coming = Incoming.begin(tmp_path / "receiving", one)
    packed = pack(one, tmp_path / "from", 0)
    whole = len(packed)
    assert coming.put_part(0, 0, whole, packed[:10]) == 10
    assert coming.put_part(0, 20, whole, packed[20:30]) == 10
    assert coming.put_part(0, 0, whole, packed[:10]) == 10
    assert coming.put_part(0, 5, whole, packed[5:40]) == 40
    assert 0 in coming.missing
    assert coming.put_part(0, 40, whole, packed[40:]) == whole
    assert 0 not in coming.missing
    assert coming.put_part(0, 0, whole, packed[:10]) == whole
    coming.put_part(1, 0, whole, packed[:10])
    with pytest.raises(VerificationFailed):
        coming.put_part(1, 10, whole, packed[10:])  # of another chunk
    assert coming.put_part(1, 0, whole, packed[:10]) == 10
    for at, total, part in ((0, 0, b""), (-1, 5, b""), (0, 5, b"123456"), (6, 5, b""), (0, 1 << 40, b"x")):
        with pytest.raises(UsageError):
            coming.put_part(2, at, total, part)


def test_a_changed_directory_goes_on_with_what_is_the_same(tmp_path: Path) -> None:
    """Chunks of the same bytes at the same places are not asked for again; nothing else is taken over."""
    first = make(tmp_path / "from", 3000, 5000, 20)
    coming = Incoming.begin(tmp_path / "receiving", first)
    for number in range(6):
        coming.put(number, pack(first, tmp_path / "from", number))
    data = bytearray((tmp_path / "from" / NAMES[0]).read_bytes())
    data[1500] ^= 1
    (tmp_path / "from" / NAMES[0]).write_bytes(data + b"more")
    (tmp_path / "from" / NAMES[2]).unlink()
    second = Manifest.of(tmp_path / "from", NAMES[:2], "host:/dir")
    then = Incoming.begin(tmp_path / "receiving", second, coming)
    assert then.had == {0, 3, 4, 5}
    with pytest.raises(NotNow):
        coming.put(6, pack(first, tmp_path / "from", 6))
    for number in then.missing:
        then.put(number, pack(second, tmp_path / "from", number))
    then.verify()
    then.complete()
    assert everything(then.files) == everything(tmp_path / "from")
    assert [p.name for p in (tmp_path / "receiving").iterdir()] == [second.id]


def test_a_death_while_one_transfer_takes_over_from_another(tmp_path: Path) -> None:
    """At any rename, allocation or sync: the next process finds one of the two, with nothing that is not verified."""
    steps = 0
    for dies_at in range(1, 60):
        world = tmp_path / str(dies_at)
        first = make(world / "from", 3000, 5000)
        coming = Incoming.begin(world / "receiving", first)
        for number in range(4):
            coming.put(number, pack(first, world / "from", number))
        second = make(world / "to", 3000, 6000, 9)
        child = os.fork()
        if not child:
            left = dies_at

            def dying(real: Callable[..., Any]) -> Callable[..., Any]:
                def call(*arguments: Any, **more: Any) -> Any:
                    nonlocal left
                    left -= 1
                    if not left:
                        os._exit(9)
                    return real(*arguments, **more)

                return call

            for owner, name in ((os, "fsync"), (os, "ftruncate"), (Path, "rename"), (Path, "unlink"), (os, "open")):
                setattr(owner, name, dying(getattr(owner, name)))
            Incoming.begin(world / "receiving", second, coming)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        found = Incoming.newest(world / "receiving", age=60)
        if found:
            assert found.manifest.id in (first.id, second.id)
            for number in found.had:
                assert digest(read(found.files, found.manifest.pieces[number])) == found.manifest.chunks[number]
        if os.waitstatus_to_exitcode(status) == 0:
            steps = dies_at
            assert found and found.manifest.id == second.id
            break
    assert steps > 10


def test_what_changed_on_the_disk_is_found_and_asked_for_again(tmp_path: Path) -> None:
    """A bit of what had been verified: the chunk counts no more, and only this one is sent again."""
    one = make(tmp_path / "from", 3000, 5000)
    coming = Incoming.begin(tmp_path / "receiving", one)
    for number in coming.missing:
        coming.put(number, pack(one, tmp_path / "from", number))
    path = coming.files / NAMES[1]
    data = bytearray(path.read_bytes())
    data[2000] ^= 4
    path.write_bytes(data)
    with pytest.raises(VerificationFailed, match="1 of 8 chunks"):
        coming.verify()
    assert coming.missing == [4]
    assert Incoming.newest(tmp_path / "receiving", age=60).missing == [4]  # type: ignore[union-attr]
    coming.put(4, pack(one, tmp_path / "from", 4))
    coming.verify()


def test_a_full_disk_is_told_before_anything_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what is free now, with some to spare; what an earlier transfer of the same sender holds counts as free."""
    one = make(tmp_path / "from", 3000)
    free = 3000 + (1 << 20)
    monkeypatch.setattr(incoming.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    Incoming.check_room(tmp_path / "receiving", one)
    free -= 1
    with pytest.raises(DiskFull, match="3,000 are to come"):
        Incoming.check_room(tmp_path / "receiving", one)
    free -= 2999
    Incoming.check_room(tmp_path / "receiving", one, Incoming(tmp_path, one, set()))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """While room is made: nothing is left behind. While chunks are written: what counts goes on counting."""
    one = make(tmp_path / "from", 3000)

    def full(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        with pytest.raises(DiskFull):
            Incoming.begin(tmp_path / "receiving", one)
        assert not list((tmp_path / "receiving").iterdir())
    coming = Incoming.begin(tmp_path / "receiving", one)
    coming.put(0, pack(one, tmp_path / "from", 0))
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(DiskFull):
            coming.put(1, pack(one, tmp_path / "from", 1))
    assert coming.missing == [1, 2]
    coming.put(1, pack(one, tmp_path / "from", 1))
    assert coming.missing == [2]


def test_one_chunk_is_written_by_one_thread_and_none_after_the_end(tmp_path: Path) -> None:
    """A sender that was cut off sends again what is still being written: nobody writes into what is in place then."""
    one = make(tmp_path / "from", 3000)
    coming = Incoming.begin(tmp_path / "receiving", one)
    writing, go, real = threading.Event(), threading.Event(), coming._write
    writes = Counter[str]()

    def slow(pieces: Any, chunk: bytes) -> None:
        writes[str(pieces)] += 1
        writing.set()
        assert go.wait(20)
        real(pieces, chunk)

    coming._write = slow  # type: ignore[method-assign]
    packed = pack(one, tmp_path / "from", 0)
    threads = [threading.Thread(target=coming.put, args=(0, packed)) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert writing.wait(20)
    closing = threading.Thread(target=coming.close)
    closing.start()
    closing.join(0.1)
    assert closing.is_alive()
    go.set()
    for thread in (*threads, closing):
        thread.join(20)
    assert sum(writes.values()) == 1
    with pytest.raises(NotNow):
        coming.put(1, pack(one, tmp_path / "from", 1))
    coming.put(0, packed)  # as before: it is there


# -- the courier ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["./chroma", "s3://bucket/x", "http://user:secret-word@host", "https://host?token=secret-word", "ftp://x", ""],
)
def test_what_is_no_url_of_a_receiver_is_refused(url: str) -> None:
    """Without a request, and without repeating what may be a secret."""
    with pytest.raises(UsageError) as caught:
        Courier(url, "x" * 20)
    assert "secret-word" not in f"{caught.value} {caught.value.hint}"


def test_the_route_may_be_written_or_not() -> None:
    """As the server's address, or as the whole of what is asked there."""
    for written in ("https://h:1", "https://h:1/", "https://h:1/_keep", "https://h:1/_keep/receive"):
        assert Courier(written, "t").url == "https://h:1"
    assert Courier("https://h/some/where/_keep/receive", "t")._path == "/some/where/_keep/receive"


def test_a_token_on_an_open_line_is_warned_of() -> None:
    """Not on this machine, and not under TLS."""
    for url, warned in (
        ("http://example.org", 1),
        ("http://127.0.0.1:1", 0),
        ("http://localhost", 0),
        ("https://x.y", 0),
    ):
        said: list[object] = []
        Courier(url, "t", observer=said.append)
        assert len(said) == warned


def test_hope_is_given_up_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens: it is tried again, later and later, and the hint says how to go on. The clock is one that only
    waiting moves."""
    said: list[Any] = []
    now = 0.0

    class Waiting(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            nonlocal now
            now += timeout or 0.0
            return False

    monkeypatch.setattr(courier, "time", SimpleNamespace(monotonic=lambda: now))
    with refused() as port:
        one = Courier(f"http://127.0.0.1:{port}", "t", patience=5.0, observer=said.append)
        one._over = Waiting()
        with pytest.raises(ServerSilent, match="does not answer") as caught:
            one.ask("GET")
    assert caught.value.hint and "again" in caught.value.hint
    assert [event.attempt for event in said] == list(range(1, len(said) + 1))
    assert [event.delay for event in said] == sorted(event.delay for event in said)
    assert sum(event.delay for event in said[:-1]) <= 5.0 < now == pytest.approx(sum(event.delay for event in said))


def test_what_a_receiver_says_is_raised_as_what_it_is() -> None:
    """Known errors by their kind; whatever else comes is one line."""
    assert isinstance(courier.told(["DiskFull", "no room", "free some"]), DiskFull)
    for strange in (
        None,
        5,
        [],
        ["ServerAnswered", "x", None],
        ["CorruptObject", "x", None],
        ["os", "x", None],
        [1, 2, 3],
    ):
        assert isinstance(courier.told(strange), ChromakeepError)


def test_the_place_of_kept_directories_is_the_one_that_rollback_knows(tmp_path: Path) -> None:
    """What a receiver keeps, `chromakeep rollback` finds."""
    data = tmp_path / "data"
    data.mkdir()
    kept = place.kept_as(data)
    kept.mkdir()
    assert place.newest_old(data) == kept
