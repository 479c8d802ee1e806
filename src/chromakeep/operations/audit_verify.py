"""Verify and show an audit log: files, repositories, or both against each other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from chromakeep.errors import ChromakeepError, UsageError
from chromakeep.operations.audit_chain import Break, Chain, Wrong, read
from chromakeep.operations.audit_file import raw_lines
from chromakeep.operations.audit_objects import TRIES, Beginning, instances, lines_in, shelf_of

if TYPE_CHECKING:
    from chromakeep.repository import Repository

Line = tuple[str, int, bytes, bool]  # place, number in it from 1, without its newline, whether it had one


class ChainReport(msgspec.Struct, frozen=True):
    """One chain in one kind of place: records ``first`` to ``last``, ``hash`` of the last one. ``interrupted``: lines
    that a crash cut short and the next start closed; ``open``: it ends in one that nothing has closed yet."""

    where: str
    instance: str
    first: int
    last: int
    hash: str
    interrupted: int
    open: bool


class VerifyReport(msgspec.Struct, frozen=True):
    """``problems``: the first wrong line of each chain, or that there is none."""

    chains: tuple[ChainReport, ...]
    problems: tuple[Break, ...]


def verify(paths: list[Path], repositories: dict[str, Repository]) -> VerifyReport:
    """Follow every chain. One of files must be in the repositories, if there are any, and be the same there, and the
    files must go at least as far: a log that was cut off, or written anew as a whole, is found only so.

    Raises ``UsageError`` for a file that cannot be read or holds nothing.
    """
    chains: list[ChainReport] = []
    problems: list[Break] = []
    kept: dict[str, dict[int, tuple[str, str]]] = {}  # by instance, of the last record of each object: hash, name
    for address, repository in repositories.items():
        for instance in instances(repository):
            chain, marks, begins = _stored(repository, instance)
            kept.setdefault(instance, {}).update(marks)
            _told(address, chain, chains, problems, begins)
    for group in _chains(paths):
        marks, chain = {}, Chain()
        _follow(chain, _in_files(group), marks, whole_end=False, wanted=kept)
        _told(", ".join(map(str, group)), chain, chains, problems)
        if repositories and chain.last and not chain.broken:
            problems += _compared(chain, marks, kept.get(chain.last.instance), group[-1])
    if not chains and not problems:  # what cannot be wrong is not right either
        problems.append(Break(", ".join(repositories), 0, "there is no audit log"))
    return VerifyReport(tuple(chains), tuple(problems))


def records(paths: list[Path], repositories: dict[str, Repository]) -> Iterator[dict[str, Any]]:
    """The fields of all records that are whole, by file and object, oldest first; nothing is verified."""
    for group in _chains(paths):
        yield from _whole(_in_files(group))
    for repository in repositories.values():
        for instance in instances(repository):
            yield from _whole(_in_repository(repository, shelf_of(repository, instance).names))


def _whole(lines: Iterator[Line]) -> Iterator[dict[str, Any]]:
    for _, _, line, _ in lines:
        try:
            yield read(line).fields
        except Wrong:
            continue


def _stored(repository: Repository, instance: str) -> tuple[Chain, dict[int, tuple[str, str]], Beginning | None]:
    """The chain in a repository, from where it begins there; what a prune takes away meanwhile is not missed."""
    for attempt in range(TRIES):
        chain, marks = Chain(instance), dict[int, tuple[str, str]]()
        try:
            shelf = shelf_of(repository, instance)
            chain = Chain(instance, shelf.begins.number, shelf.begins.previous)
            _follow(chain, _in_repository(repository, shelf.names), marks)
            if chain.broken and attempt < TRIES - 1 and shelf_of(repository, instance).begins != shelf.begins:
                continue
        except ChromakeepError as error:
            chain.broken = chain.broken or Break(getattr(error, "name", ""), 0, error.message)
            return chain, marks, None
        if shelf.mark:
            marks[shelf.begins.number - 1] = shelf.begins.previous, shelf.mark
        return chain, marks, shelf.begins if shelf.mark else None
    raise AssertionError("unreachable")


def _follow(
    chain: Chain,
    lines: Iterator[Line],
    marks: dict[int, tuple[str, str]],
    *,
    whole_end: bool = True,
    wanted: dict[str, dict[int, tuple[str, str]]] | None = None,
) -> None:
    """A chain to its end or its first wrong line. ``marks``: gets the hashes of the records that are ``wanted``, or of
    the last one of each place."""
    try:
        for place, number, line, whole in lines:
            link = chain.take(place, number, line, whole=whole)
            if chain.broken:
                break
            if link and (wanted is None or link.number in wanted.get(link.instance, {})):
                if wanted is None and marks and next(reversed(marks.values()))[1] == place:
                    marks.popitem()
                marks[link.number] = link.hash, place
    except ChromakeepError as error:
        chain.broken = chain.broken or Break(getattr(error, "name", ""), 0, error.message)
    if whole_end:
        chain.end()


def _told(
    where: str, chain: Chain, chains: list[ChainReport], problems: list[Break], begins: Beginning | None = None
) -> None:
    if chain.first and chain.last:
        last = chain.last
        chains.append(
            ChainReport(where, last.instance, chain.first.number, last.number, last.hash, chain.closed, chain.torn)
        )
    elif begins and not chain.broken:  # all that was ever there is removed
        last_ = begins.number - 1
        chains.append(ChainReport(where, chain.instance, begins.number, last_, begins.previous, 0, False))
    elif not chain.broken:
        chain.end()
        chain.broken = chain.broken or Break(where, 0, "holds no record")
    if chain.broken:
        problems.append(chain.broken)


def _compared(
    chain: Chain, marks: dict[int, tuple[str, str]], kept: dict[int, tuple[str, str]] | None, file: Path
) -> list[Break]:
    """What is wrong with a chain of files beside what is ``kept`` of it; None: nothing of its instance is there."""
    assert chain.first and chain.last
    first, last = chain.first, chain.last
    if kept is None:  # who wrote the log anew may have chosen another instance, and any time
        what = "of which nothing is in the repository: it is another log, or younger than its first copy"
        return [Break(str(file), 0, f"is of instance {last.instance}, {what}")]
    for number, (hash_, name) in sorted(kept.items()):
        if number > last.number:
            return [Break(str(file), 0, f"ends with record {last.number}; {name} has more, up to {max(kept)}")]
        if number >= first.number - 1:
            found = first.previous if number < first.number else marks[number][0]
            if found != hash_:
                return [Break(str(file), 0, f"record {number} or one before it is not what {name} has")]
    if kept and first.number - 1 > max(kept):
        gone = f"begins with record {first.number}; {kept[max(kept)][1]} ends with {max(kept)}: name the files between"
        return [Break(str(file), 0, gone)]
    return []


def _chains(paths: list[Path]) -> list[list[Path]]:
    """The files of each instance, in the order of their first records. One without any stands for itself."""
    found: dict[str, list[tuple[int, Path]]] = {}
    for path in dict.fromkeys(paths):
        key, first = f"?{path}", 0
        try:
            for line in raw_lines(path):
                try:
                    link = read(line.removesuffix(b"\n"))
                except Wrong:
                    continue
                key, first = link.instance, link.number
                break
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror or error}", hint="name a file of an audit log") from None
        found.setdefault(key, []).append((first, path))
    return [[path for _, path in sorted(group)] for group in found.values()]


def _in_files(paths: list[Path]) -> Iterator[Line]:
    for path in paths:
        for number, line in enumerate(raw_lines(path), 1):
            yield str(path), number, line.removesuffix(b"\n"), line.endswith(b"\n")


def _in_repository(repository: Repository, names: list[str]) -> Iterator[Line]:
    for name in names:
        for number, line in enumerate(lines_in(repository, name), 1):
            yield name, number, line, True
