"""Searching: places that can be asked for what is nearest, for ``recall``."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

import msgspec
from msgspec.structs import replace

from chromakeep.addresses import CLOUD, parse, split_selector
from chromakeep.chroma.client import Ref
from chromakeep.chroma.connection import Connection
from chromakeep.chroma.directory_source import DirectorySource
from chromakeep.chroma.server import ChromaServer
from chromakeep.operations.endpoints import Means, connection_of
from chromakeep.operations.recall import Recall, Search, Vectors, recall
from chromakeep.records import Definition, Source

AT_ONCE = 20  # queries in one request


class _Found(msgspec.Struct):
    distances: list[list[float]]


_FOUND = msgspec.json.Decoder(_Found)


@contextmanager
def searching(text: str, source: Source, means: Means) -> Iterator[Callable[[Definition], Search] | None]:
    """How the collections of a place are searched; None for a file, which nobody can search.

    A directory or a moment of a repository is served for the purpose from a copy of its working copy: the source may go
    on reading that.
    """
    address, selector = split_selector(text)
    if isinstance(source, DirectorySource):
        copy = means.work / "search"
        shutil.rmtree(copy, ignore_errors=True)
        try:
            shutil.copytree(source.directory, copy)
            with ChromaServer(copy, env=means.env, program=means.program) as server:
                yield _by(Connection(f"http://{server.client.host}:{server.client.port}"))
        finally:
            shutil.rmtree(copy, ignore_errors=True)
        return
    if selector is None and "://" in address and (place := parse(address)).kind in ("http", CLOUD):
        with closing(connection_of(place, means)) as connection:
            yield _by(connection)
        return
    yield None


def _by(connection: Connection) -> Callable[[Definition], Search]:
    def search(definition: Definition) -> Search:
        path = Ref(definition.id, definition.name, definition.tenant, definition.database).path

        def nearest(vectors: Vectors, n: int) -> Sequence[Sequence[float]]:
            found: list[list[float]] = []
            for at in range(0, len(vectors), AT_ONCE):
                some = vectors[at : at + AT_ONCE].tolist()
                body = msgspec.json.encode({"query_embeddings": some, "n_results": n, "include": ["distances"]})
                found += connection.request("POST", f"{path}/query", body, decoder=_FOUND).distances
            return found

        return nearest

    return search


Place = tuple[str, Source, Means]


def recalls(a: Place, b: Place, pairs: Sequence[tuple[Definition, Definition]], queries: int) -> list[Recall]:
    """The recall of each collection that both places have, at those that can be searched. Queries are records of the
    first place, and so are the exact answers; where the spaces differ, each place answers for its own records."""
    with searching(*a) as one, searching(*b) as two:
        found = []
        for mine, theirs in pairs:
            sides = [None if one is None else one(mine), None if two is None else two(theirs)]
            some = recall(a[1], mine, [side for side in sides if side], queries=queries)
            if (other := sides[1]) and mine.space != theirs.space:  # what is nearest is another thing there
                own = recall(b[1], theirs, [other], queries=queries)
                some = replace(some, shares=(*some.shares[:-1], *own.shares))
            shares = iter(some.shares)
            found.append(replace(some, shares=tuple(next(shares) if side else None for side in sides)))
    return found
