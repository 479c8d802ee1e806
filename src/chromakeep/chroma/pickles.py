"""IdMap: what ``index_metadata.pickle`` says, read as hostile bytes and never by an unpickler.

Chroma 1.x writes protocol 3 with serde_pickle: a dict of plain values. Chroma 0.4 to 0.6 pickled an object of the class
``PersistentData`` with Python's protocol 4 or 5. Both are read here by a parser of exactly the opcodes those writers
emit; an opcode or a class outside them is refused by name, and nothing is ever imported or called.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from chromakeep.chroma import spool
from chromakeep.chroma.spool import Spool
from chromakeep.digests import Lanes, hashes
from chromakeep.errors import SourceBroken
from chromakeep.sets import among

FILE = "index_metadata.pickle"
MAX_BYTES = 1 << 32  # 40 million ids of 36 characters
MAX_LEGACY_BYTES = 1 << 28  # the form of 0.4 to 0.6 is held in memory while it is read
MAX_ID_BYTES = 1 << 26  # Chroma takes no request above 40 MiB
WINDOW = 1 << 20
_NAMES = {opcode.code: opcode.name for opcode in pickletools.opcodes}
PERSISTENT_DATA = ("chromadb.segment.impl.vector.local_persistent_hnsw", "PersistentData")


class IdMap(msgspec.Struct, frozen=True, eq=False, dict=True):
    """The ids of one segment, as hashes, and the label under which the index holds each; position ``i`` is one id.

    ``labels`` (n,) int64 ascending; ``lanes`` (n, 2) the ids' hashes; of a long map both are mappings of files (see
    ``let_go``). ``total`` is the highest label ever given. ``max_seq_id`` is in the pickle in 0.4 and early 0.5 only.
    ``one_to_one`` tells whether the two maps of the file are each other's inverse and name no id and no label twice.
    """

    labels: NDArray[np.int64]
    lanes: Lanes
    total: int
    max_seq_id: int | None
    one_to_one: bool
    spools: tuple[Spool, ...] = ()  # of labels and lanes

    def __len__(self) -> int:
        return len(self.labels)

    def let_go(self) -> None:
        """Memory that looking into a long map has taken."""
        for each in self.spools:
            each.let_go()

    def slices(self) -> Iterator[slice]:
        """All positions, some at a time; what was looked at between two of them is let go."""
        for at in range(0, len(self), spool.AT_ONCE):
            yield slice(at, min(at + spool.AT_ONCE, len(self)))
            self.let_go()

    def find_in_passing(self, lanes: Lanes) -> list[int]:
        """What ``find`` returns, by one pass over all ids: no order of them is made."""
        found = np.full(len(lanes), -1, np.int64)
        if len(lanes):
            order = np.argsort(lanes[:, 0])
            words = lanes[order, 0]
            for here in self.slices():
                rows = self.lanes[here]
                at = np.minimum(np.searchsorted(words, rows[:, 0]), len(words) - 1)
                hits = np.flatnonzero(words[at] == rows[:, 0])
                wanted = order[at[hits]]
                same = (lanes[wanted] == rows[hits]).all(axis=1)
                found[wanted[same]] = here.start + hits[same]
        positions: list[int] = found.tolist()
        return positions

    def find(self, lanes: Lanes) -> list[int]:
        """Positions of the ids with these hashes, -1 where there is none."""
        if not len(self) or not len(lanes):
            return [-1] * len(lanes)  # and no order of all ids is made and kept
        order, words = self._by_hash
        at = order[np.minimum(np.searchsorted(words, lanes[:, 0]), len(self) - 1)]
        found: list[int] = np.where((self.lanes[at] == lanes).all(axis=1), at, -1).tolist()
        return found

    @cached_property
    def _by_hash(self) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        order = np.argsort(self.lanes[:, 0])
        return order, self.lanes[order, 0]


EMPTY = IdMap(np.zeros(0, np.int64), np.zeros((0, 2), np.uint64), 0, None, True)


def read_id_map(path: Path, *, most: int | None = None) -> IdMap:
    """Read the pickle at ``path``, of at most ``most`` ids. Raises SourceBroken naming what is wrong, and OSError."""
    with path.open("rb") as file:
        return parse_id_map(file, path.stat().st_size, most=most, folder=path.parent)


def parse_id_map(file: BinaryIO, size: int, *, most: int | None = None, folder: Path | None = None) -> IdMap:
    """The IdMap in the ``size`` bytes of ``file``; spooled in ``folder`` if it is long, and then (1.x form) in bounded
    memory."""
    if size > MAX_BYTES:
        raise _broken(f"is {size} bytes long, which no id map is")
    stream, into = _Stream(file, most), _Kept(most, folder)
    if stream.take(1) != b"\x80":
        raise _broken("does not start like a pickle")
    protocol = stream.take(1)[0]
    if protocol < 4:
        counters = _read_plain(stream, into)
    elif size > MAX_LEGACY_BYTES or protocol > 5:
        raise _broken(f"is of pickle protocol {protocol} and {size} bytes long, which Chroma never wrote")
    else:
        counters = _read_object(stream, into, size // 4 if most is None else most)
    return into.id_map(*counters)


def read_names(path: Path, wanted: NDArray[np.uint64]) -> list[bytes]:
    """The ids whose hashes begin with one of these words, from a pickle that ``read_id_map`` has accepted."""
    entries = _Wanted(wanted)
    with path.open("rb") as file:
        stream = _Stream(file, None)
        protocol = stream.take(2)[1]
        if protocol < 4:
            _read_plain(stream, entries)
        else:
            _read_object(stream, entries, path.stat().st_size)
    return entries.named


def read_cut_off(path: Path) -> IdMap:
    """As much of the ids as a pickle of 1.x holds that was cut off while it was written.

    Its entries are right one by one; that an id is not among them says nothing. Raises SourceBroken if there are none.
    """
    with path.open("rb") as file:
        stream = _Stream(file, None)
        if stream.take(1) != b"\x80" or stream.take(1)[0] > 3:
            raise _broken("is not of the form that can be read in part")
        into = _Kept(None, path.parent)
        total, max_seq_id, _ = _read_plain(stream, into, whole=False)
        return into.id_map(total, max_seq_id, into)


def _broken(what: str) -> SourceBroken:
    return SourceBroken(f"{FILE} {what}")


class _Stream:
    """The file through a window that only moves forward; running off the end of the file is "truncated"."""

    def __init__(self, file: BinaryIO, most: int | None) -> None:
        self.file, self.buffer, self.at, self.passed = file, b"", 0, 0
        self.most = most

    def need(self, count: int) -> None:
        """Have at least ``count`` bytes at ``at``."""
        if len(self.buffer) - self.at < count:
            self.passed += self.at
            self.buffer = self.buffer[self.at :] + self.file.read(max(WINDOW, count))
            self.at = 0
            if len(self.buffer) < count:
                raise _broken(f"is truncated: it ends after {self.passed + len(self.buffer)} bytes, inside a value")

    def take(self, count: int) -> bytes:
        self.need(count)
        self.at += count
        return self.buffer[self.at - count : self.at]

    def number(self, width: int, *, signed: bool = False) -> int:
        return int.from_bytes(self.take(width), "little", signed=signed)

    def text(self, length: int) -> bytes:
        if length > MAX_ID_BYTES:
            raise _broken(f"has a string of {length} bytes, which no id is")
        return self.take(length)

    def expect(self, *opcodes: str) -> str:
        """The next opcode, which must be one of these."""
        opcode = chr(self.take(1)[0])
        if opcode not in opcodes:
            raise self.refused(opcode)
        return opcode

    def refused(self, opcode: str) -> SourceBroken:
        name = _NAMES.get(opcode, f"0x{ord(opcode):02x}")
        if opcode == "c":  # GLOBAL is followed by a module and a name, a line each
            lines = self.buffer[self.at : self.at + 200].split(b"\n")[:2]
            name += " " + ".".join(line.decode(errors="replace") for line in lines)
        return _broken(f"has {name} at byte {self.passed + self.at - 1}, where Chroma never writes it")


class _Entries:
    """The entries of one map: how many, and a fingerprint that tells inverses."""

    def __init__(self, most: int | None) -> None:
        self.most = most
        self.count, self.fingerprint = 0, 0

    def add(self, ids: list[bytes], labels: list[int]) -> None:
        self.count += len(ids)
        if self.most is not None and self.count > self.most:
            raise _broken(f"has more ids than the {self.most} elements of the index")
        numbers = np.array(labels, np.int64)
        # bytes' own keyed hash: the two maps come in different orders, a sum of products does not care
        keyed = np.fromiter(map(hash, ids), np.int64, len(ids)).view(np.uint64)
        self.fingerprint += int((keyed * (numbers.view(np.uint64) * np.uint64(2) + np.uint64(1))).sum())
        self.keep(ids, numbers)

    def keep(self, ids: list[bytes], labels: NDArray[np.int64]) -> None:
        """Nothing of them: the one map is enough."""


class _Wanted(_Entries):
    """Only the ids whose hashes begin with one of some words."""

    def __init__(self, wanted: NDArray[np.uint64]) -> None:
        super().__init__(None)
        self.wanted = wanted
        self.named: list[bytes] = []

    def keep(self, ids: list[bytes], labels: NDArray[np.int64]) -> None:
        self.named += [ids[i] for i in np.flatnonzero(among(hashes(ids)[:, 0], self.wanted))]


class _Kept(_Entries):
    """All of them, as an IdMap holds them."""

    def __init__(self, most: int | None, folder: Path | None) -> None:
        super().__init__(most)
        self.folder = folder
        self.labels, self.lanes = self._spools()

    def _spools(self) -> tuple[Spool, Spool]:
        return Spool(np.int64, self.folder), Spool(np.uint64, self.folder, width=2)

    def keep(self, ids: list[bytes], labels: NDArray[np.int64]) -> None:
        self.labels.add(labels)
        self.lanes.add(hashes(ids))

    def id_map(self, total: int | None, max_seq_id: int | None, inverse: _Entries) -> IdMap:
        if not (total is None or isinstance(total, int)) or not (max_seq_id is None or isinstance(max_seq_id, int)):
            raise _broken("has counters that are no numbers")
        distinct = self.count == inverse.count and (self.fingerprint - inverse.fingerprint) % (1 << 64) == 0
        labels, lanes = self._spools()
        for some, theirs in spool.ascending(self.labels, self.lanes):
            distinct = distinct and bool((np.diff(some) > 0).all())
            labels.add(some)
            lanes.add(theirs)
        self.labels, self.lanes = self._spools()
        words = Spool(np.uint64, self.folder)
        for part in lanes.portions():
            words.add(part[:, 0])
        for (some,) in spool.ascending(words):
            distinct = distinct and bool((some[1:] != some[:-1]).all())
        ordered = labels.whole()
        if len(ordered):
            distinct = distinct and ordered[0] >= 0 and total is not None and int(ordered[-1]) <= total
        return IdMap(ordered, lanes.whole(), total or 0, max_seq_id, bool(distinct), (labels, lanes))


_Counters = tuple[Any, Any, _Entries]  # total_elements_added, max_seq_id, and the inverse map


def _read_plain(stream: _Stream, into: _Entries, *, whole: bool = True) -> _Counters:
    """The form of 1.x: EMPTY_DICT MARK (key value)* SETITEMS STOP; a map is EMPTY_DICT and batches of the same."""
    numbers: dict[bytes, int | None] = {}
    maps: dict[bytes, _Entries] = {}
    try:
        stream.expect("}")
        stream.expect("(")
        while stream.expect("X", "u") == "X":
            key = stream.text(stream.number(4))
            kind = stream.expect("N", "J", "}")
            if kind == "}":
                entries = maps[key] = into if key == b"id_to_label" and key not in maps else _Entries(stream.most)
                while stream.expect("(", "X", "u") == "(":
                    _read_batch(stream, entries, label_first=key == b"label_to_id")
                stream.at -= 1
            else:
                numbers[key] = stream.number(4, signed=True) if kind == "J" else None
        stream.expect(".")
    except SourceBroken:
        if whole:
            raise
    inverse = maps.get(b"label_to_id")
    if maps.get(b"id_to_label") is not into or (whole and not inverse):
        raise _broken("has not both maps of ids and labels")
    return numbers.get(b"total_elements_added"), numbers.get(b"max_seq_id"), inverse or into


_JOINT = struct.Struct("<BiBI")  # BININT label BINUNICODE length: what lies between two ids, in either map


def _read_batch(stream: _Stream, entries: _Entries, *, label_first: bool) -> None:
    """Up to SETITEMS. One loop and one unpacking an entry: a hundred thousand ids pass here at every backup.

    Ten bytes may be read past an id, also past the last: ``id_to_seq_id`` always follows the two maps.
    """
    ids: list[bytes] = []
    labels: list[int] = []
    if stream.expect("J" if label_first else "X", "u") == "u":
        return  # serde_pickle opens another batch after a thousand entries, and may have none left
    if label_first:
        labels.append(stream.number(4, signed=True))
        stream.expect("X")
    length = stream.number(4)
    buffer, at, unpack = stream.buffer, stream.at, _JOINT.unpack_from
    last = len(buffer) - _JOINT.size
    while True:
        end = at + length
        if end > last:
            stream.at = at
            if length > MAX_ID_BYTES:
                stream.text(length)
            try:
                stream.need(length + _JOINT.size)
            except SourceBroken:
                entries.add(ids[: len(labels)], labels[: len(ids)])  # for those who take what there is
                raise
            buffer, at = stream.buffer, stream.at
            last, end = len(buffer) - _JOINT.size, at + length
        ids.append(buffer[at:end])
        binint, label, binunicode, length = unpack(buffer, end)
        if binint != 0x4A or binunicode != 0x58:
            break
        labels.append(label)
        at = end + _JOINT.size
        if len(labels) > 8192:  # serde_pickle closes a batch after 1000
            entries.add(ids, labels[: len(ids)])
            ids, labels = [], labels[len(ids) :]
    stream.at = end
    if not label_first:
        stream.expect("J")
        labels.append(stream.number(4, signed=True))
    stream.expect("u")
    entries.add(ids, labels)


_CLASS, _INSTANCE = object(), object()
_MAX_STACK = 1 << 12  # Python's pickler closes a batch after 1000 entries


def _read_object(stream: _Stream, into: _Entries, most: int) -> _Counters:
    """The form of 0.4 to 0.6: a stack machine for the opcodes of Python's pickler that a PersistentData needs.

    A dict is the flat list of its keys and values. The memo grows by one with each MEMOIZE, never by an index of the
    file's choosing, and nothing grows beyond what ``most`` ids need.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: list[Any] = []
    state: list[Any] = []
    try:
        while (opcode := chr(stream.take(1)[0])) != ".":
            if opcode == "\x8c":
                stack.append(stream.take(stream.number(1)))
            elif opcode == "\x94":
                memo.append(stack[-1])
            elif opcode == "K":
                stack.append(stream.number(1))
            elif opcode == "h":
                stack.append(memo[stream.number(1)])
            elif opcode == "M":
                stack.append(stream.number(2))
            elif opcode == "j":
                stack.append(memo[stream.number(4)])
            elif opcode == "J":
                stack.append(stream.number(4, signed=True))
            elif opcode == "X":
                stack.append(stream.text(stream.number(4)))
            elif opcode == "\x8a":  # LONG1: a sequence number past 2**31
                stack.append(int.from_bytes(stream.take(stream.number(1)), "little", signed=True))
            elif opcode == "N":
                stack.append(None)
            elif opcode == "}":
                stack.append([])
            elif opcode == ")":
                stack.append(())
            elif opcode == "(":
                marks.append(len(stack))
            elif opcode in "us":  # SETITEMS, SETITEM
                start = marks.pop() if opcode == "u" else len(stack) - 2
                stack[start - 1].extend(stack[start:])
                if len(stack[start - 1]) % 2 or len(stack[start - 1]) > 2 * most + 64:
                    raise _broken(f"has more ids than the {most} elements of the index")
                del stack[start:]
            elif opcode == "\x93":  # STACK_GLOBAL
                name = tuple(part.decode(errors="replace") for part in stack[-2:])
                if name != PERSISTENT_DATA:
                    raise _broken(f"names {'.'.join(name)[:200]}; only {'.'.join(PERSISTENT_DATA)} may be named")
                stack[-2:] = [_CLASS]
            elif opcode == "\x81" and stack[-2:] == [_CLASS, ()]:  # NEWOBJ
                stack[-2:] = [_INSTANCE]
            elif opcode == "b" and len(stack) == 2 and stack[0] is _INSTANCE:  # BUILD
                state = stack.pop()
            elif opcode == "\x95":  # FRAME, a hint for buffering
                stream.take(8)
            else:
                raise stream.refused(opcode)
            if len(stack) > _MAX_STACK or len(memo) > most + 64 or len(marks) > 8:
                raise _broken(f"needs more memory than the {most} elements of the index explain")
        fields = dict(zip(state[::2], state[1::2], strict=True))
        inverse = _Entries(most)
        into.add(fields[b"id_to_label"][::2], fields[b"id_to_label"][1::2])
        inverse.add(fields[b"label_to_id"][1::2], fields[b"label_to_id"][::2])
        return fields[b"total_elements_added"], fields.get(b"max_seq_id"), inverse
    except (IndexError, AttributeError, TypeError, KeyError, ValueError, OverflowError):
        raise _broken(f"makes no sense before byte {stream.passed + stream.at}") from None
