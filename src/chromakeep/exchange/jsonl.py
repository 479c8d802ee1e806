"""JSONL as a source: a file, plain or zstd, or a stream that is read once."""

from __future__ import annotations

import itertools
import stat
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec
import pyarrow as pa
from msgspec.structs import replace

from chromakeep.errors import SourceError, UsageError
from chromakeep.exchange.files import reading
from chromakeep.exchange.jsonl_records import dimension_of, head_of, id_in, record_batch
from chromakeep.exchange.lines import is_packed, lines
from chromakeep.exchange.once import Once
from chromakeep.exchange.position import fingerprint, numbers
from chromakeep.records import Definition, Mark

if TYPE_CHECKING:
    from chromakeep.conditions import Where

BATCH_RECORDS = 2048
BATCH_BYTES = 32 << 20
AHEAD_RECORDS = 4096
AHEAD_BYTES = 64 << 20

_BOM = b"\xef\xbb\xbf"
_Numbered = tuple[bytes, int, int]  # a line, the offset behind it, its number


class _Section(msgspec.Struct):
    """The lines of one collection: from offset ``start``, where line ``line`` begins, to offset ``end``."""

    definition: Definition
    start: int
    line: int
    end: int = 0
    ids: Once = msgspec.field(default_factory=Once)


class JsonlSource:
    """The collections in a JSONL file. Without a line that begins a collection, its records are one, of the file's
    name. ``definitions`` reads the file once from end to end, in little memory, to find those lines.

    A mark is ``[offset, line]``, both behind the last record; the offset is in the content where the file is zstd,
    which is then read again up to there. For one thread at a time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: list[_Section] | None = None

    def definitions(self) -> Sequence[Definition]:
        """The collections, with the number of their records. Raises ``SourceError``."""
        return [section.definition for section in self._sections()]

    def batches(
        self, definition: Definition, *, after: Mark = None, where: Where | None = None
    ) -> Iterator[tuple[pa.RecordBatch, Mark]]:
        """As of ``Source``; the records in the file's order."""
        section = next((each for each in self._sections() if each.definition.place == definition.place), None)
        if section is None:
            raise UsageError(f"{self.path} has no collection {definition.name!r}")
        offset, line = numbers(after, 2) if after is not None else (section.start, section.line)
        if not section.start <= offset <= section.end:
            raise UsageError(f"{self.path}: this mark is of another collection")
        return self._batches(section, offset, line, where)

    def state(self) -> str:
        with reading(self.path):
            return fingerprint([self.path])

    def close(self) -> None:
        """Nothing stays open."""

    def _batches(
        self, section: _Section, offset: int, line: int, where: Where | None
    ) -> Iterator[tuple[pa.RecordBatch, Mark]]:
        own = self._lines(section, offset, line)
        yield from batched(own, section.definition.dimension, str(self.path), where)

    def _lines(self, section: _Section, offset: int, line: int) -> Iterator[_Numbered]:
        with self._open() as file:
            found = _numbered(file, str(self.path), offset, line)
            yield from itertools.takewhile(lambda each: each[1] <= section.end, found)

    def _ids(self, section: _Section) -> Iterator[tuple[int, str]]:
        for line, _, number in self._lines(section, section.start, section.line):
            if line and not line.isspace():
                yield number, id_in(line, f"{self.path}: line {number}")

    def _open(self) -> IO[bytes]:
        with reading(self.path):
            if not stat.S_ISREG(self.path.stat().st_mode):  # a pipe would be waited for
                raise SourceError(f"{self.path} is no regular file", hint="read a pipe as -")
            return self.path.open("rb", buffering=1 << 20)

    def _sections(self) -> list[_Section]:
        if self._found is None:
            name = self.path.name
            for ending in (".zst", ".jsonl"):
                name = name.removesuffix(ending)
            with self._open() as file:
                found = list(_sections(_numbered(file, str(self.path)), name, str(self.path)))
            if len({section.definition.place for section in found}) < len(found):
                raise SourceError(f"{self.path} has two collections of one name")
            for section in found:
                section.ids.check(partial(self._ids, section), str(self.path), "line")
            self._found = found
        return self._found


class JsonlStream:
    """One collection from a stream such as standard input, read once and in order.

    ``definitions`` reads the first line; ``batches`` may be called once, and ``after`` leads nowhere. A stream with
    several collections is refused where the second one begins: it is saved to a file first. Where no line says a
    dimension, that of the first vector within 4096 records or 64 MiB counts.
    """

    def __init__(self, stream: IO[bytes], name: str = "stdin") -> None:
        """The stream is the caller's, and stays open."""
        self._name = name
        self._lines: Iterator[_Numbered] | None = _numbered_lines(lines(stream, name))
        self._definition: Definition | None = None
        self._ahead: list[_Numbered] = []

    def definitions(self) -> Sequence[Definition]:
        """The one collection; none if the stream is empty."""
        if self._definition is None and self._lines is not None:
            self._look_ahead(self._lines)
        return [self._definition] if self._definition is not None else []

    def batches(
        self, definition: Definition, *, after: Mark = None, where: Where | None = None
    ) -> Iterator[tuple[pa.RecordBatch, Mark]]:
        """As of ``Source``, once."""
        own = self.definitions()
        if self._lines is None or after is not None or not own or own[0].place != definition.place:
            raise UsageError(f"{self._name} is read only once, from its beginning", hint="save it to a file first")
        found, self._lines = itertools.chain(self._ahead, self._lines), None
        return batched(self._checked(found), own[0].dimension, self._name, where)

    def state(self) -> str:
        """Empty: what was read does not come again."""
        return ""

    def close(self) -> None:
        """Read no more."""
        self._lines = None

    def _look_ahead(self, found: Iterator[_Numbered]) -> None:
        """Take the line of the collection, and records up to the first with a vector where it says no dimension."""
        size = 0
        for each in found:
            line, place = each[0], f"{self._name}: line {each[2]}"
            if not line.strip():
                continue
            if self._definition is None and (head := head_of(line, place)) is not None:
                self._definition = replace(head, count=None)
            else:
                self._ahead.append(each)
                size += len(line)
                self._definition = replace(
                    self._definition or Definition(self._name), dimension=dimension_of(line, place)
                )
            if self._definition.dimension is not None or len(self._ahead) > AHEAD_RECORDS or size > AHEAD_BYTES:
                return

    def _checked(self, found: Iterable[_Numbered]) -> Iterator[_Numbered]:
        ids = Once()
        for each in found:
            if head_of(each[0], place := f"{self._name}: line {each[2]}") is not None:
                raise SourceError(f"{place} begins a second collection", hint="save the stream to a file first")
            if each[0].strip():
                ids.add(id_in(each[0], place))
            yield each
        if repeated := len(ids.repeated()):
            raise SourceError(
                f"{self._name}: {repeated:,} ids are those of several records each",
                hint="save the stream to a file first, and see which; give each record an id of its own",
            )


def batched(
    found: Iterable[_Numbered], dimension: int | None, place: str, where: Where | None
) -> Iterator[tuple[pa.RecordBatch, Mark]]:
    """Batches of lines, of at most 2048 records and about 32 MiB, each with the mark behind it."""
    waiting: list[tuple[int, bytes]] = []
    size = 0
    mark = [0, 0]

    def batch() -> tuple[pa.RecordBatch, Mark]:
        records = record_batch(waiting, dimension, place)
        return where.select(records) if where else records, mark

    for line, offset, number in found:
        mark = [offset, number + 1]
        if line and not line.isspace():
            waiting.append((number, line))
            size += len(line)
        if len(waiting) >= BATCH_RECORDS or size >= BATCH_BYTES:
            yield batch()
            waiting, size = [], 0
    if waiting:
        yield batch()


def _numbered(file: IO[bytes], place: str, offset: int = 0, line: int = 1) -> Iterator[_Numbered]:
    """The lines of a file from an offset of its content on, which is where line ``line`` begins."""
    packed = is_packed(file.read(4))
    file.seek(0 if packed else offset)
    found = lines(file, place, first=1 if packed else line)
    if packed:
        return _numbered_lines(itertools.dropwhile(lambda each: each[1] <= offset, found), line)
    return _numbered_lines(((text, offset + behind) for text, behind in found), line)


def _numbered_lines(found: Iterable[tuple[bytes, int]], first: int = 1) -> Iterator[_Numbered]:
    for number, (line, offset) in enumerate(found, first):
        yield line.removeprefix(_BOM) if number == 1 else line, offset, number


def _sections(found: Iterable[_Numbered], name: str, place: str) -> Iterator[_Section]:
    """The collections there are; ``name`` is for one that no line begins."""
    section: _Section | None = None
    count = behind = 0

    def ended(section: _Section) -> _Section:
        return replace(section, definition=replace(section.definition, count=count), end=behind)

    for line, offset, number in found:
        if (head := head_of(line, f"{place}: line {number}")) is not None:
            if section is not None:
                yield ended(section)
            section, count = _Section(head, offset, number + 1), 0
        elif line and not line.isspace():
            section = section or _Section(Definition(name), 0, 1)
            count += 1
            section.ids.add(id_in(line, f"{place}: line {number}"))
            if section.definition.dimension is None:
                dimension = dimension_of(line, f"{place}: line {number}")
                section.definition = replace(section.definition, dimension=dimension)
        behind = offset
    if section is not None:
        yield ended(section)
