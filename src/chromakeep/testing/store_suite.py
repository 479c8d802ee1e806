"""StoreSuite: what every Store must do, as pytest tests. Subclass it and say in ``make_store`` how one is made."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from chromakeep.errors import ObjectExists, ObjectNotFound, StoreDenied
from chromakeep.store.base import Store

BAD_NAMES = (
    "",
    "/",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "../a",
    "a/../b",
    "a/./b",
    "a/..",
    "a b",
    "a\0b",
    "a\nb",
    "a\\b",
    "ä",
    "a?b",
    "a#b",
    "a%2Fb",
    "~a",
    "a:b",
    "x" * 201,
    "a/" * 300 + "a",
)


class StoreSuite:
    """One test per guarantee of ``chromakeep.store.base.Store``; each gets an empty store.

    ``conditional`` is False for a store whose conditional put is known not to hold among concurrent writers; ``many``
    objects are listed to make a real server page its answer; ``big`` is the size in bytes of the largest object tried.
    """

    conditional = True
    many = 1100
    big = 20 * 1024 * 1024

    def make_store(self, tmp_path: Path) -> Store:
        """An empty store."""
        raise NotImplementedError("a subclass of StoreSuite says how a store is made")

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        yield self.make_store(tmp_path)

    def test_an_object_reads_back_as_it_was_put(self, store: Store) -> None:
        """Every byte value, in names one and three segments deep, is read back unchanged."""
        data = bytes(range(256)) * 5
        for name in ("a", "packs/0a/0a1b"):
            store.put(name, data)
            assert store.get(name) == data

    def test_an_empty_object_is_an_object(self, store: Store) -> None:
        """No bytes at all are stored, listed and read."""
        store.put("empty", b"")
        assert store.get("empty") == b"" == store.get("empty", start=0, length=10) == store.get("empty", start=5)
        assert store.head("empty").size == 0
        assert [o.name for o in store.list()] == ["empty"]

    def test_a_big_object_arrives_whole(self, store: Store) -> None:
        """An object larger than a usual part of a multipart upload is one object, and any range of it can be read."""
        data = random.Random(1).randbytes(self.big)
        store.put("big", data)
        assert store.head("big").size == len(data)
        assert store.get("big") == data
        assert store.get("big", start=self.big - 7) == data[-7:]
        assert store.get("big", start=1234567, length=3000) == data[1234567:1237567]

    def test_a_put_replaces(self, store: Store) -> None:
        """The last put wins, also when it is shorter."""
        store.put("a", b"first and long")
        store.put("a", b"second")
        assert store.get("a") == b"second"
        assert store.head("a").size == 6

    def test_a_range_is_what_slicing_gives(self, store: Store) -> None:
        """Ranges behave as slices do: past the end there are fewer bytes, or none, and no error."""
        store.put("digits", b"0123456789")
        for start in (0, 1, 8, 9, 10, 11, 99):
            assert store.get("digits", start=start) == b"0123456789"[start:]
            for length in (0, 1, 2, 9, 10, 11, 99):
                assert store.get("digits", start=start, length=length) == b"0123456789"[start : start + length]

    def test_what_is_not_there_is_reported_by_name(self, store: Store) -> None:
        """get (whole or a range) and head of an absent name raise ObjectNotFound, which carries it."""
        store.put("folder/a", b"1")
        for absent in ("b", "folder/b", "folder", "folder/a.1", "no/such/folder/b"):
            calls: tuple[Callable[[str], object], ...] = (
                store.get,
                lambda name: store.get(name, start=1, length=2),
                lambda name: store.get(name, start=7),
                store.head,
            )
            for call in calls:
                with pytest.raises(ObjectNotFound) as caught:
                    call(absent)
                assert caught.value.name == absent

    def test_head_tells_size_and_time(self, store: Store) -> None:
        """head gives the size in bytes and a time of the store's clock, here taken to be right to a few minutes."""
        store.put("a/b", b"12345")
        info = store.head("a/b")
        assert (info.name, info.size) == ("a/b", 5)
        assert abs(info.modified - time.time()) < 300
        (listed,) = store.list()
        assert (listed.name, listed.size) == ("a/b", 5)
        assert abs(listed.modified - info.modified) < 2  # a header may be cut to whole seconds

    def test_delete_is_seen_at_once_and_twice_is_once(self, store: Store) -> None:
        """A deleted object is gone from get, head and list; deleting it again, or a name never used, is no error."""
        store.put("a/b", b"1")
        store.put("a/c", b"2")
        store.delete("a/b")
        store.delete("a/b")
        store.delete("never/was")
        store.delete("a")
        assert [o.name for o in store.list()] == ["a/c"]
        with pytest.raises(ObjectNotFound):
            store.get("a/b")
        store.put("a/b", b"3", if_absent=True)
        assert store.get("a/b") == b"3"

    def test_if_absent_never_overwrites(self, store: Store) -> None:
        """A conditional put of a taken name raises ObjectExists and changes nothing, even with equal bytes."""
        store.put("x/y", b"first", if_absent=True)
        for other in (b"second", b"first", b""):
            with pytest.raises(ObjectExists) as caught:
                store.put("x/y", other, if_absent=True)
            assert caught.value.name == "x/y"
        assert store.get("x/y") == b"first"

    def test_of_concurrent_conditional_puts_one_wins(self, store: Store) -> None:
        """Of 8 threads that put one name if absent, exactly one returns, and the object is that one's.

        Where ``conditional`` is False several may return; the object is one of theirs.
        """
        for round_ in range(5):
            name, start = f"race/{round_}", threading.Barrier(8)

            def compete(writer: int, name: str = name, start: threading.Barrier = start) -> bool:
                start.wait()
                try:
                    store.put(name, str(writer).encode() * 1000, if_absent=True)
                except ObjectExists:
                    return False
                return True

            with ThreadPoolExecutor(8) as pool:
                winners = [writer for writer, won in enumerate(pool.map(compete, range(8))) if won]
            assert len(winners) == 1 or (winners and not self.conditional)
            assert store.get(name) in [str(winner).encode() * 1000 for winner in winners]

    def test_readers_see_whole_objects_only(self, store: Store) -> None:
        """While one object is replaced again and again, every read gives one version of it, never a mixture."""
        versions = [bytes([v]) * (200_000 + 1000 * v) for v in range(10)]
        store.put("v", versions[0])
        done = threading.Event()

        def write() -> None:
            try:
                for version in versions * 2:
                    store.put("v", version)
            finally:
                done.set()

        def read() -> int:
            reads = 0
            while not done.is_set() or not reads:
                assert store.get("v") in versions
                reads += 1
            return reads

        with ThreadPoolExecutor(3) as pool:
            readers = [pool.submit(read) for _ in range(2)]
            pool.submit(write).result()
            assert all(reader.result() for reader in readers)

    def test_list_is_sorted_and_a_prefix_is_any_string(self, store: Store) -> None:
        """Names come in the order of their characters, whatever the folders; a prefix may end inside a segment."""
        names = ["a-b", "a.b", "a/b", "a/b.c", "a/bc/d", "a/c", "a0", "ab", "aB", "b/a/a", "b/a.a", "b/aa", "_", "Z"]
        for name in names:
            store.put(name, name.encode())
        assert [o.name for o in store.list()] == sorted(names)
        for prefix in ("a", "a/", "a/b", "a/bc", "a/bc/", "b/a", "b/a/", "aB", "c", "a/b/", "a/b/zz", "b/a/a", "A/b"):
            assert [o.name for o in store.list(prefix)] == sorted(n for n in names if n.startswith(prefix)), prefix
        assert all(o.size == len(o.name) for o in store.list())

    def test_a_long_listing_is_complete(self, store: Store) -> None:
        """More objects than a server gives in one answer are listed in order, each once."""
        names = [f"many/{n % 7}/{n:05d}" for n in range(self.many)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: store.put(name, b"."), names))
        assert [o.name for o in store.list("many/")] == sorted(names)
        assert sum(1 for _ in store.list("many/3/")) == sum(name.startswith("many/3/") for name in names)

    def test_a_listing_shows_every_finished_put(self, store: Store) -> None:
        """The object just put is in the next listing, the one just deleted is not."""
        for n in range(10):
            store.put(f"log/{n}", b"1")
            assert [o.name for o in store.list("log/")] == [f"log/{i}" for i in range(n + 1)]
        for n in range(10):
            store.delete(f"log/{n}")
            assert [o.name for o in store.list("log/")] == [f"log/{i}" for i in range(n + 1, 10)]

    def test_all_allowed_characters_survive(self, store: Store) -> None:
        """Every character a name may hold comes back from a listing as it was, with the longest segment too."""
        names = ["ABCDEFGHIJKLMNOPQRSTUVWXYZ/abcdefghijklmnopqrstuvwxyz/0123456789", "-._/_.-/...", "x" * 200]
        for name in names:
            store.put(name, b"1")
            assert store.get(name) == b"1"
        assert [o.name for o in store.list()] == sorted(names)

    @pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: repr(name)[:20])
    def test_a_bad_name_is_refused(self, store: Store, name: str) -> None:
        """What is no name raises StoreDenied in every verb, before anything is touched."""
        calls: tuple[Callable[[], object], ...] = (
            lambda: store.put(name, b"x"),
            lambda: store.put(name, b"x", if_absent=True),
            lambda: store.get(name),
            lambda: store.head(name),
            lambda: store.delete(name),
        )
        for call in calls:
            with pytest.raises(StoreDenied):
                call()
        assert list(store.list()) == []

    @pytest.mark.parametrize("prefix", ["/", "../", "a/../", "a//", "ä", "a\0"])
    def test_a_bad_prefix_is_refused(self, store: Store, prefix: str) -> None:
        """A prefix no name can begin with raises StoreDenied instead of listing something else."""
        with pytest.raises(StoreDenied):
            list(store.list(prefix))

    def test_many_threads_may_do_everything_at_once(self, store: Store) -> None:
        """Eight threads put, read, list and delete their own objects; each sees exactly its own results."""

        def work(thread: int) -> None:
            rng = random.Random(thread)
            mine: dict[str, bytes] = {}
            for _ in range(25):
                name = f"t{thread}/{rng.randrange(6)}"
                if rng.random() < 0.3:
                    store.delete(name)
                    mine.pop(name, None)
                else:
                    mine[name] = rng.randbytes(rng.randrange(3000))
                    store.put(name, mine[name])
                other = f"t{thread}/{rng.randrange(6)}"
                if other in mine:
                    assert store.get(other) == mine[other]
                else:
                    with pytest.raises(ObjectNotFound):
                        store.get(other)
            assert {o.name: o.size for o in store.list(f"t{thread}/")} == {n: len(d) for n, d in mine.items()}

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
