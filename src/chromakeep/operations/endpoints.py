"""Endpoints: an address, opened as the source or the sink of a copy.

=================================== =======================================================================
a Chroma data directory             read from an exact copy of it, taken hot; written by a Chroma of its own
``REPO``, ``REPO@TIME``             read from the state that is restored to a working directory, verified
``http://host:8000/tenant/database`` read and written over HTTP
``chroma-cloud://tenant/database``  the same, within Chroma Cloud's limits
``postgresql://user@host/database``  read in one exact state; written by COPY, visible when it is whole
``x.parquet``, ``dir.parquet/``     read and written as files
``x.jsonl``, ``x.jsonl.zst``, ``-`` the same
=================================== =======================================================================
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import msgspec

from chromakeep.addresses import CLOUD, POSTGRES, Address, parse, split_selector
from chromakeep.chroma.directory_source import DirectorySource
from chromakeep.errors import NotAChromaDirectory, UsageError
from chromakeep.events import Observer, ignore
from chromakeep.exchange.open import STREAM, is_exchange, sink_of, source_of
from chromakeep.records import Sink, Source

if TYPE_CHECKING:  # each place imports what it needs when it is opened: a third of the time of a small export
    from chromakeep.chroma.connection import Connection
    from chromakeep.chroma.tokens import Token
    from chromakeep.repository import Repository

DATABASE = "chroma.sqlite3"
CLOUD_URL = "https://api.trychroma.com:443"
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Means(msgspec.Struct, frozen=True):
    """With what places are opened: each end of a copy may have its own.

    ``work``: a directory for working copies, that a later process which goes on finds again. ``open_repository``: by
    its address. ``token``: for servers; ``cloud_token``: for Chroma Cloud. ``env`` and ``program``: to run Chroma
    with. ``stream``: what ``-`` stands for.
    """

    work: Path
    open_repository: Callable[[str], Repository]
    env: Mapping[str, str]
    program: str | None = None
    token: Token | None = None
    cloud_token: Token | None = None
    observer: Observer = ignore
    stream: IO[bytes] | None = None


def open_source(text: str, means: Means, *, resume: str = "") -> Source:
    """The place as a source. ``resume``: the state of which marks are kept; a working copy of just that is used again,
    and so are lists of ids.

    Raises ``UsageError`` for what is no source, and what opening raises.
    """
    if is_exchange(text):
        return source_of(text, stream=means.stream, observer=means.observer)
    address, selector = split_selector(text)
    place = parse(address)
    if selector is None and place.kind in ("http", CLOUD):
        from chromakeep.chroma.server_source import ServerSource

        tenant, database = _database(place)
        plan, cloud = means.work / "ids", place.kind == CLOUD
        if not resume:  # lists of ids of another time
            shutil.rmtree(plan, ignore_errors=True)
        return ServerSource(connection_of(place, means), tenant, database, plan=plan, cloud=cloud)
    if selector is None and place.kind == POSTGRES:
        from chromakeep.operations.postgres_ends import source_in

        return source_in(place)
    if selector is None and not place.is_url and _is_directory(Path(place.place)):
        from chromakeep.chroma.capture import capture

        return _working_copy(
            means.work / "capture",
            resume,
            lambda into: capture(Path(place.place), into, timeout=120.0, observer=means.observer),
        )
    if not place.is_url and not (Path(place.place) / "config").exists():
        raise NotAChromaDirectory(
            f"{text}: neither a Chroma directory, a repository nor a file that is known",
            hint="the one holds chroma.sqlite3, the other is made by `chromakeep init`; files end in .parquet, .jsonl",
        )
    from chromakeep.operations.restore import restore

    repository = means.open_repository(address)
    return _working_copy(
        means.work / "restored",
        resume,
        lambda into: restore(repository, selector, into, observer=means.observer),
    )


def open_sink(text: str, means: Means, *, resume: bool = False, dry: bool = False) -> tuple[Sink, Callable[[], Source]]:
    """The place as a sink, and how to read what was written there before it is published, where it is not visible yet.

    ``resume``: what a killed process has finished is part of it; False: it is removed. ``dry``: only
    to be looked at. Raises ``UsageError`` for what is no sink.
    """
    if is_exchange(text):
        files = sink_of(text, stream=means.stream, resume=resume, observer=means.observer)
        return files, files.reader
    address, selector = split_selector(text)
    place = parse(address)
    if selector is not None:
        raise UsageError(f"{text}: a moment of a repository cannot be written", hint="back a directory up instead")
    if place.kind == POSTGRES:
        from chromakeep.operations.postgres_ends import Untouched, sink_in, source_in

        if dry:  # to open it for writing makes its tables
            return Untouched(place), lambda: source_in(place)
        return sink_in(place, means.observer)
    from chromakeep.chroma.server_sink import ServerSink

    if place.kind in ("http", CLOUD):
        from chromakeep.chroma.server_source import ServerSource
        from chromakeep.operations.joined import Joined

        tenant, database = _database(place)
        connection = connection_of(place, means)
        cloud = place.kind == CLOUD
        sink = ServerSink(connection, tenant, database, cloud=cloud, observer=means.observer)
        return sink, lambda: Joined([ServerSource(connection, *each, cloud=cloud) for each in sorted(sink.databases)])
    if place.is_url or (Path(place.place) / "config").exists():
        raise UsageError(
            f"{place}: a repository takes snapshots of directories, no single records",
            hint="copy into a directory, then: chromakeep backup DIRECTORY REPO",
        )
    from chromakeep.chroma.connection import Connection
    from chromakeep.operations.directory_sink import DirectorySink

    directory = DirectorySink(
        Path(place.place),
        lambda client: ServerSink(Connection(f"http://{client.host}:{client.port}"), None, None),
        env=means.env,
        program=means.program,
        resume=resume,
        observer=means.observer,
    )
    return directory, directory.reader


def destination(text: str, tenant: str | None, database: str | None) -> tuple[str | None, str | None]:
    """Tenant and database to which all goes that is written to an address, by what that names and by the options; None
    where neither names one. Raises ``UsageError`` if they name different ones."""
    if is_exchange(text):
        return tenant, database
    place = parse(split_selector(text)[0])
    named = _database(place) if place.kind in ("http", CLOUD) else (None, None)
    if named[0] not in (None, tenant or named[0]) or named[1] not in (None, database or named[1]):
        raise UsageError(
            f"{place} and the options name different tenants or databases", hint="leave out --tenant and --database"
        )
    return named[0] or tenant, named[1] or database


def is_same(one: str, other: str) -> bool:
    """Whether two addresses lead to one place, as far as they tell: of a server whatever tenant and database it is."""
    if STREAM in (one, other):
        return False
    if is_exchange(one) or is_exchange(other):
        return _resolved(parse(one)) == _resolved(parse(other))
    here, there = split_selector(one), split_selector(other)
    return here[1] == there[1] is None and _resolved(parse(here[0])) == _resolved(parse(there[0]))


def _resolved(place: Address) -> tuple[str, ...]:
    if place.kind == "http":
        parts = urlsplit(place.place)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        return place.kind, "localhost" if host in LOOPBACK else host, str(port)
    if place.kind == CLOUD:  # which is one, whoever asks
        return (place.kind,)
    if place.kind == POSTGRES:
        return place.kind, place.place.rpartition("@")[2].removesuffix(":5432"), place.prefix
    return (place.kind, str(place) if place.is_url else str(Path(place.place).resolve()))


def _working_copy(at: Path, resume: str, make: Callable[[Path], object]) -> Source:
    """A directory at rest: the one an earlier process left, if it is that of ``resume``, else a new one."""
    token = at.with_name(f"{at.name}.state")
    if not (resume and token.exists() and token.read_text() == resume and at.exists()):
        shutil.rmtree(at, ignore_errors=True)
        token.unlink(missing_ok=True)
        at.parent.mkdir(parents=True, exist_ok=True)
        make(at)
        token.write_text(secrets.token_hex(16))
    return DirectorySource(at, state=token.read_text())


def _is_directory(path: Path) -> bool:
    return (path / DATABASE).exists()


def _database(place: Address) -> tuple[str | None, str | None]:
    """Tenant and database that an address names; None where it names none."""
    if place.kind == CLOUD:
        return place.place, place.prefix
    parts = [unquote(part) for part in place.prefix.split("/")] if place.prefix else []
    if len(parts) > 2:
        raise UsageError(
            f"{place}: after the host come tenant and database", hint="write http://HOST:PORT/TENANT/DATABASE"
        )
    return (parts[0] if parts else None), (parts[1] if len(parts) == 2 else None)


def connection_of(place: Address, means: Means) -> Connection:
    """A connection to the server that an address names."""
    from chromakeep.chroma.connection import Connection

    if place.kind == CLOUD:
        return Connection(CLOUD_URL, token=means.cloud_token, observer=means.observer)
    return Connection(place.place, token=means.token, observer=means.observer)
