"""The verb open: from an address to the Store behind it."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path

from chromakeep.addresses import CLOUD, POSTGRES, Address, parse
from chromakeep.errors import RepositoryNotFound, StoreDenied, UsageError
from chromakeep.events import Observer, ignore
from chromakeep.store.base import Store
from chromakeep.store.local import LocalStore
from chromakeep.store.memory import MemoryStore
from chromakeep.store.retrying import RetryingStore
from chromakeep.store.unconditional import HeadThenPut

_memories: dict[str, MemoryStore] = {}


def open_store(
    address: Address | str,
    *,
    create: bool = False,
    options: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
    conditional_put: bool = True,
    observer: Observer = ignore,
    stop: threading.Event | None = None,
) -> Store:
    """Open the store at an address: a directory, a bucket or container, or ``memory://``.

    ``create`` makes the directory (never a bucket: that is a decision about money and access). ``options`` override
    what ``environ`` (the process's own by default) says of credentials, in obstore's names; a store in a bucket is
    wrapped in a RetryingStore with ``observer`` and ``stop``. ``conditional_put=False`` is for a store whose own does
    not hold (``chromakeep.store.probe``), see HeadThenPut. No request is sent yet.

    Raises UsageError (no such kind of place), RepositoryNotFound (no such directory), StoreDenied (no permission, or
    credentials that cannot be used).
    """
    place = parse(address) if isinstance(address, str) else address
    if place.kind in ("http", CLOUD, POSTGRES):
        raise UsageError(f"{place} is a server, not a place to store objects", hint="name a directory or a bucket")
    store: Store
    if place.kind == "path":
        store = LocalStore(_directory(place, create))
    elif place.kind == "memory":
        store = _memories.setdefault(str(place), MemoryStore()) if place.place else MemoryStore()
    else:
        from chromakeep.store.cloud import CloudStore

        store = CloudStore(place, options=options, environ=os.environ if environ is None else environ)
    if not conditional_put:
        store = HeadThenPut(store)
    return store if place.kind in ("path", "memory") else RetryingStore(store, observer=observer, stop=stop)


def _directory(place: Address, create: bool) -> Path:
    path = Path(place.place)
    try:
        if create:
            path.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            return path
    except FileExistsError:
        pass
    except OSError as error:
        raise StoreDenied(f"{path}: {(error.strerror or str(error)).lower()}") from error
    if path.exists():
        raise UsageError(f"{path} is a file, not a directory")
    raise RepositoryNotFound(f"{path}: no such directory", hint=f"create a repository there: chromakeep init {path}")
