"""The id map is read as hostile bytes: right or refused by name, never executed, never a memory bomb."""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
import tracemalloc
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chroma.conftest import spooled
from chroma.directories import VERSIONS
from chromakeep.chroma import pickles
from chromakeep.chroma.pickles import IdMap, parse_id_map, read_cut_off, read_id_map, read_names
from chromakeep.digests import hashes
from chromakeep.errors import SourceBroken


def text(value: str | bytes) -> bytes:
    """BINUNICODE."""
    data = value.encode() if isinstance(value, str) else value
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    """BININT."""
    return b"J" + struct.pack("<i", value)


def plain(
    ids: dict[str, int], *, inverse: dict[int, str] | None = None, total: int | None = None, batch: int = 1000
) -> bytes:
    """A pickle as serde_pickle of Chroma 1.x writes it."""
    inverse = {label: id_ for id_, label in ids.items()} if inverse is None else inverse

    def batches(items: list[bytes]) -> bytes:
        if not items:
            return b"}"
        cut = [items[i : i + batch] for i in range(0, len(items), batch)]
        return (
            b"}" + b"".join(b"(" + b"".join(some) + b"u" for some in cut) + (b"(u" if len(items) % batch == 0 else b"")
        )

    return (
        b"\x80\x03}("
        + text("dimensionality")
        + b"N"
        + text("total_elements_added")
        + number(max(ids.values(), default=0) if total is None else total)
        + text("max_seq_id")
        + b"N"
        + text("id_to_label")
        + batches([text(i) + number(n) for i, n in ids.items()])
        + text("label_to_id")
        + batches([number(n) + text(i) for n, i in inverse.items()])
        + text("id_to_seq_id")
        + b"}u."
    )


def parse(data: bytes, most: int | None = None) -> IdMap:
    """What is read; the same whether it is in memory or spooled."""
    found = parse_id_map(io.BytesIO(data), len(data), most=most)
    with spooled(rows=7 if len(found) < 1000 else 1000):
        again = parse_id_map(io.BytesIO(data), len(data), most=most)
    assert (found.labels == again.labels).all() and (found.lanes == again.lanes).all()
    assert (found.total, found.max_seq_id, found.one_to_one) == (again.total, again.max_seq_id, again.one_to_one)
    some = np.concatenate([found.lanes[::3], hashes([b"absent"])])
    assert found.find(some) == found.find_in_passing(some) == again.find_in_passing(some) or not found.one_to_one
    return found


def entries(ids: IdMap) -> dict[bytes, int]:
    """Label by the hash of its id: an IdMap holds no more of an id."""
    return {lane.tobytes(): int(label) for lane, label in zip(ids.lanes, ids.labels, strict=True)}


def hashed(ids: dict[str, int]) -> dict[bytes, int]:
    return {blake2b(id_.encode(), digest_size=16).digest(): label for id_, label in ids.items()}


@pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001, 2000, 30_000])
def test_every_id_and_label_is_read(count: int) -> None:
    """The map is the one that was written, across batches of a thousand and windows of a MiB."""
    chance = random.Random(count)
    labels = chance.sample(range(1, 3 * count + 2), count)
    ids = {f"{'ü' * chance.randint(0, 40)}X{i}J": label for i, label in enumerate(labels)}
    found = parse(plain(ids))
    assert entries(found) == hashed(ids)
    assert found.one_to_one and found.total == max(labels, default=0)
    some = [id_.encode() for id_ in list(ids)[:100]] + [b"absent"]
    positions = found.find(hashes(some))
    assert [int(found.labels[p]) if p >= 0 else None for p in positions] == [ids.get(id_.decode()) for id_ in some]


def test_an_id_longer_than_the_window_is_read() -> None:
    """Chroma takes ids of any length."""
    ids = {"a" * (3 << 20): 1, "b": 2}
    assert entries(parse(plain(ids))) == hashed(ids)


@pytest.mark.parametrize("version", VERSIONS)
def test_pickles_of_all_versions(version: str, old_version: Callable[[str], tuple[Path, dict[str, Any]]]) -> None:
    """Both forms, protocol 3 of 1.x and the PersistentData of 0.4 to 0.6, against what the pickle module reads."""

    class Plain(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            assert name == "PersistentData"
            return type("PersistentData", (), {})

    paths = list(old_version(version)[0].glob("*/index_metadata.pickle"))
    assert paths
    for path in paths:
        told = Plain(io.BytesIO(path.read_bytes())).load()
        fields = told if isinstance(told, dict) else vars(told)
        found = read_id_map(path)
        assert entries(found) == hashed(fields["id_to_label"])
        some = sorted(fields["id_to_label"])[3:9]
        assert sorted(read_names(path, hashes([id_.encode() for id_ in some])[:, 0])) == [id_.encode() for id_ in some]
        assert found.one_to_one
        assert (found.total, found.max_seq_id) == (fields["total_elements_added"], fields.get("max_seq_id"))


@pytest.mark.parametrize("version", VERSIONS)
def test_truncation_is_named_wherever_it_cuts(version: str, old_version: Callable[..., Any], tmp_path: Path) -> None:
    """A pickle cut at any hundredth byte, as a kill leaves it, is refused; what is whole before it can be taken."""
    path = next(old_version(version)[0].glob("*/index_metadata.pickle"))
    data, cut = path.read_bytes(), tmp_path / "cut"
    whole = entries(read_id_map(path))
    last = -1
    for end in [*range(0, len(data), 100), len(data) - 1]:
        with pytest.raises(SourceBroken, match=r"truncated: it ends after \d+ bytes"):
            parse(data[:end])
        if version == "1.0.0" and end > 200:
            cut.write_bytes(data[:end])
            taken = entries(read_cut_off(cut))
            assert taken.items() <= whole.items() and len(taken) >= last
            last = len(taken)
    assert last == (len(whole) if version == "1.0.0" else -1)


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/chromakeep-was-here",)


@pytest.mark.parametrize("protocol", range(6))
def test_no_class_but_one_is_named(protocol: int) -> None:
    """A pickle that would run a command is refused, in every protocol; from the second on by the command's name."""
    for value in (Evil(), {"id_to_label": Evil()}, [Evil()]):
        with pytest.raises(SourceBroken) as refused:
            parse(pickle.dumps(value, protocol))
        if protocol >= 4 and isinstance(value, Evil):
            assert "system" in refused.value.message
        elif protocol in (2, 3) and isinstance(value, Evil):
            assert "GLOBAL posix.system" in refused.value.message


def test_the_one_class_is_never_called_with_arguments() -> None:
    """REDUCE on PersistentData, arguments to NEWOBJ and a second object are refused."""
    named = (
        b"\x8c"
        + bytes([len(pickles.PERSISTENT_DATA[0])])
        + pickles.PERSISTENT_DATA[0].encode()
        + b"\x8c\x0ePersistentData\x93"
    )
    for end in (b")R.", b"K\x01\x85\x81.", b")\x81)\x81.", b")\x81K\x01b.", b"."):
        with pytest.raises(SourceBroken):
            parse(b"\x80\x04" + named + end)


BOMBS = {
    "a string of four GiB": b"\x80\x03}(X\xff\xff\xff\xff",
    "a long id": plain({"a": 1})[:-60].replace(text("a"), b"X\xff\xff\xff\x7fa"),
    "a string of eight EiB": b"\x80\x04\x8d" + b"\xff" * 8,
    "a deep nest": b"\x80\x04" + b"(" * 1_000_000,
    "a deep nest of dicts": b"\x80\x04" + b"}K\x01" * 500_000,
    "a tower of memos": b"\x80\x04" + b"}" + b"\x94" * 1_000_000,
    "a far memo": b"\x80\x04}r\xff\xff\xff\x7f.",
    "a far memo to get": b"\x80\x04}\x94j\xff\xff\xff\x7f.",
    "a big dict": b"\x80\x04}(" + b"NN" * 1_000_000 + b"u.",
    "an endless number": b"\x80\x04\x8b\xff\xff\xff\x7f",
    "nothing but marks": b"\x80\x03}(" + b"(" * 1_000_000,
    "protocol 255": b"\x80\xff.",
    "text": b"not a pickle at all",
    "nothing": b"",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_in_little_memory(name: str) -> None:
    """Refused with one line, in less than 8 MiB beyond the file."""
    tracemalloc.start()
    with pytest.raises(SourceBroken) as refused:
        parse(BOMBS[name], most=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (8 << 20) and "\n" not in refused.value.message


def test_memory_is_the_same_for_any_number_of_ids() -> None:
    """Four times the ids take no more memory, once they are spooled."""
    peaks = []
    for count in (10_000, 40_000):
        data = plain({f"id{i}": i + 1 for i in range(count)})
        tracemalloc.start()
        with spooled(rows=2000):
            assert parse_id_map(io.BytesIO(data), len(data)).one_to_one
        peaks.append(tracemalloc.get_traced_memory()[1] - len(data))  # the file itself is in memory here
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 400_000


def test_more_ids_than_elements_are_refused() -> None:
    """An index of n elements has no map of more."""
    data = plain({f"id{i}": i + 1 for i in range(20_000)}, batch=1 << 30)
    assert len(parse(data, most=20_000)) == 20_000
    with pytest.raises(SourceBroken, match="more ids than the 100 elements"):
        parse(data, most=100)


@pytest.mark.parametrize(
    "data",
    [
        plain({"a": 1, "b": 2}, inverse={1: "a", 2: "c"}),
        plain({"a": 1, "b": 2}, inverse={1: "a"}),
        plain({"a": 1, "b": 2}, inverse={1: "b", 2: "a"}),
        plain({"a": 1, "b": 1}, inverse={1: "a", 2: "b"}),
        plain({"a": 1, "b": 7}, total=2),
        plain({"a": -1}, total=2),
    ],
    ids=["another id", "one less", "swapped", "one label twice", "a label not given yet", "a negative label"],
)
def test_maps_that_disagree_are_told(data: bytes) -> None:
    """Both maps must be each other's inverse, with labels up to the counter."""
    assert not parse(data).one_to_one


def test_damage_is_never_a_traceback(old_version: Callable[[str], tuple[Path, dict[str, Any]]]) -> None:
    """Of some thousand pickles of both forms with damaged bytes each is read or refused."""
    chance, refused = random.Random(1), 0
    for version in ("0.4.24", "1.0.0"):
        data = next(old_version(version)[0].glob("*/index_metadata.pickle")).read_bytes()
        for _ in range(1500):
            damaged = bytearray(data)
            for _ in range(chance.randint(1, 3)):
                damaged[chance.randrange(len(data))] = chance.randrange(256)
            try:
                parse(bytes(damaged), most=200)
            except SourceBroken:
                refused += 1
    assert refused > 1000
