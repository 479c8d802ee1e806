"""Inspect a data directory at rest: what it holds, with digests, and everything that is wrong with it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from chromakeep.chroma.catalog import DATABASE, Catalog, untrusted_rows
from chromakeep.chroma.problems import Problem
from chromakeep.chroma.survey import Survey
from chromakeep.errors import SourceBroken
from chromakeep.events import Observer, PhaseStarted, ignore
from chromakeep.records import Collection


class Inspection(msgspec.Struct, frozen=True):
    """What a directory holds. With a ``problem`` no exact copy of it is possible, or Chroma cannot serve it; Chroma
    lives with ``warnings``. ``version`` is the newest release line of Chroma whose schema the database has."""

    collections: tuple[Collection, ...]
    problems: tuple[Problem, ...]
    version: str
    warnings: tuple[Problem, ...] = ()


def inspect(
    path: Path,
    *,
    digests: bool = True,
    quick_check: bool = True,
    index_files: Callable[[], None] = lambda: None,
    observer: Observer = ignore,
) -> Inspection:
    """Read the whole of a directory nobody writes to, and write nothing.

    A damaged directory gives problems, never a traceback. Raises NotAChromaDirectory when it is none. Without
    ``digests`` vectors, documents and metadata are not read; ``quick_check`` runs SQLite's check beside the rest.

    ``index_files`` is for who is still writing the files of the segments: it is called before the first of them is
    read, when all must be there but the content of data_level0.bin, and once more before that is. It returns when they
    are. What it raises, this raises.
    """
    observer(PhaseStarted("inspect"))
    try:
        with Catalog(path) as catalog, ThreadPoolExecutor(1, "quick-check") as pool:
            checking = pool.submit(_quick_check, catalog) if quick_check else None
            try:
                with untrusted_rows():
                    survey = Survey(catalog, digests=digests, index_files=index_files)
            except SourceBroken as error:
                found = tuple(
                    Collection(e.id, e.name, e.tenant, e.database, 0, e.dimension, e.space, e.configuration.model)
                    for e in catalog.entries
                )
                problems: tuple[Problem, ...] = (_unreadable(error.message),)
                warnings: tuple[Problem, ...] = ()
            else:
                found, problems, warnings = survey.collections, tuple(survey.problems), tuple(survey.warnings)
            verdict = checking.result() if checking else None
            if verdict:
                problems = (_unreadable(f"quick_check: {verdict}"), *problems)
            return Inspection(found, problems, catalog.version, warnings)
    except SourceBroken as error:
        return Inspection((), (_unreadable(error.message),), "unknown")


def check_structure(path: Path) -> tuple[Problem, ...]:
    """What keeps Chroma from opening some collection: ``inspect`` without digests and ``quick_check``."""
    return inspect(path, digests=False, quick_check=False).problems


def _unreadable(message: str) -> Problem:
    return Problem(None, None, None, DATABASE, "sqlite", message)


def _quick_check(catalog: Catalog) -> str | None:
    """What SQLite finds wrong, in its first words, or None. ``step`` releases the GIL: this costs a core, not time."""
    connection = catalog.connect()
    try:
        rows = [str(row[0]) for row in connection.execute("PRAGMA quick_check(3)")]
    except sqlite3.Error as error:
        rows = [str(error)]
    finally:
        connection.close()
    return None if rows == ["ok"] else "; ".join(rows)[:500]
