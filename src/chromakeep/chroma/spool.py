"""Spools: columns as long as a directory has records, in memory while they are short, else in a file without a name.

The file lies in the directory that is inspected: where its content had room there is room for these, a few per cent of
it, and memory is no disk (as the system's place for temporary files may be). Nothing of it is ever seen: it has no name
from the beginning (Linux, O_TMPFILE) or after a moment. Where that directory may not be written the system's place
serves. A file is written through the end of it and read in portions; whoever needs any row at any time maps it, and
lets the pages go that were touched.
"""

from __future__ import annotations

import errno
import mmap
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from chromakeep.errors import ChromakeepError, DiskFull
from chromakeep.sets import distinct

IN_MEMORY = 4 << 20  # bytes of one spool
AT_ONCE = 1 << 17  # rows of a longer one that are in memory at a time
SAMPLE = 1 << 16  # rows by which a longer one is divided
instead: Path | None = None  # where files lie in this process: set by one that inspects what is not its own


class Spool:
    """Rows of ``dtype``, each one number or ``width`` of them, in the order in which they were added."""

    def __init__(self, dtype: Any, folder: Path | None, *, width: int | None = None) -> None:
        """``folder``: where the file would lie (None: in the system's place for temporary files)."""
        self.dtype, self.folder = np.dtype(dtype), folder
        self.shape = () if width is None else (width,)
        self._row = self.dtype.itemsize * (width or 1)
        self._length = 0
        self._parts: list[NDArray[Any]] = []
        self._file: BinaryIO | None = None
        self._map: mmap.mmap | None = None

    def __len__(self) -> int:
        return self._length

    def add(self, rows: NDArray[Any]) -> None:
        """Append rows, which must not change any more, before any is read. Raises DiskFull."""
        self._length += len(rows)
        if self._file is None and self._length * self._row <= IN_MEMORY:
            self._parts.append(rows)
            return
        try:
            if self._file is None:
                self._file = _file(self.folder)
            for part in (*self._parts, rows):
                self._file.write(np.ascontiguousarray(part, self.dtype).reshape(-1).data.cast("B"))
            self._parts.clear()
        except OSError as error:
            raise _explained(error, self.folder) from None

    def whole(self) -> NDArray[Any]:
        """All rows as one array: of a file, a mapping to read from."""
        if self._file is None:
            if len(self._parts) != 1:
                self._parts = [np.concatenate([np.zeros((0, *self.shape), self.dtype), *self._parts])]
            return self._parts[0]
        if self._map is None:
            self._flush()
            self._map = mmap.mmap(self._file.fileno(), self._length * self._row, access=mmap.ACCESS_READ)
        return np.frombuffer(self._map, self.dtype).reshape(-1, *self.shape)

    def scattered(self) -> None:
        """To be called before rows are looked up here and there: else the system maps sixteen pages for each."""
        self.whole()
        if self._map is not None and hasattr(mmap, "MADV_RANDOM"):
            self._map.madvise(mmap.MADV_RANDOM)

    def let_go(self) -> None:
        """Memory that reading of ``whole`` has taken; the system has it all still, and takes it back when it must."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def portions(self) -> Iterator[NDArray[Any]]:
        """All rows in order, at most ``AT_ONCE`` at a time."""
        if self._file is None:
            rows = self.whole()
            yield from (rows[at : at + AT_ONCE] for at in range(0, len(rows), AT_ONCE))
            return
        self._flush()
        for at in range(0, self._length, AT_ONCE):
            self._file.seek(at * self._row)
            data = self._file.read(min(AT_ONCE, self._length - at) * self._row)
            yield np.frombuffer(data, self.dtype).reshape(-1, *self.shape)

    def _flush(self) -> None:
        assert self._file is not None
        try:
            self._file.flush()
        except OSError as error:
            raise _explained(error, self.folder) from None

    @property
    def long(self) -> bool:
        """Whether it is in a file."""
        return self._file is not None


def cuts(spool: Spool) -> list[tuple[Any, Any]]:
    """Ranges of a spool's first numbers, [low, high) with None for no bound, ascending, of about ``AT_ONCE`` rows each
    (more only where so many are equal); one range if it is in memory."""
    if not spool.long:
        return [(None, None)]
    step = max(1, len(spool) // SAMPLE)
    sample = np.sort(np.concatenate([_first(rows)[::step].copy() for rows in spool.portions()]))  # no view of it all
    parts = -(-len(spool) // AT_ONCE)
    bounds = distinct(sample[np.arange(1, parts) * len(sample) // parts]).tolist()
    return list(zip([None, *bounds], [*bounds, None], strict=True))


def within(low: Any, high: Any, *spools: Spool) -> list[NDArray[Any]]:
    """Of several spools of one length the rows whose first number in the first of them is in [low, high), in order."""
    if low is None and high is None:
        return [spool.whole() for spool in spools]
    found = [[np.zeros((0, *spool.shape), spool.dtype)] for spool in spools]
    for parts in zip(*(spool.portions() for spool in spools), strict=True):
        keys = _first(parts[0])
        chosen = np.ones(len(keys), bool) if low is None else keys >= low
        if high is not None:
            chosen &= keys < high
        for part, rows in zip(found, parts, strict=True):
            part.append(rows[chosen])
    return [np.concatenate(parts) for parts in found]


def ascending(*spools: Spool) -> Iterator[list[NDArray[Any]]]:
    """All rows of several spools of one length, by the first numbers of the first one, in portions of about ``AT_ONCE``
    rows. Equal numbers are in one portion, in the order of their adding."""
    for low, high in cuts(spools[0]):
        columns = within(low, high, *spools)
        if len(columns) == 1 and columns[0].ndim == 1:
            yield [np.sort(columns[0])]
            continue
        order = np.argsort(_first(columns[0]), kind="stable")
        yield [column[order] for column in columns]


def _first(rows: NDArray[Any]) -> NDArray[Any]:
    return rows if rows.ndim == 1 else rows[:, 0]


def _file(folder: Path | None) -> BinaryIO:
    folder = instead or folder
    if folder is not None:
        try:
            return tempfile.TemporaryFile(dir=folder)
        except OSError:
            pass  # it may not be written, or is gone
    return tempfile.TemporaryFile()


def _explained(error: OSError, folder: Path | None) -> ChromakeepError:
    where = folder or tempfile.gettempdir()
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DiskFull(
            f"{where}: no space left for the lists of ids that comparing this many records takes",
            hint="free some space: some 60 bytes a record, for as long as they are compared",
        )
    return ChromakeepError(f"{where}: {error.strerror} (a temporary file of the inspection)")
