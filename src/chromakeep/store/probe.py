"""The verb probe: find out by trying whether a store's conditional put can be relied on."""

from __future__ import annotations

import contextlib
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor

from chromakeep.errors import ChromakeepError, ObjectExists, StoreDenied
from chromakeep.store.base import Store

PREFIX = "probe/"
ROUNDS, WRITERS = 8, 8  # Swift 2.38 looks first and writes then: two winners or more in about 7 of 10 such rounds


def conditional_put_holds(store: Store) -> bool:
    """Whether ``put(if_absent=True)`` never overwrites and lets exactly one of several concurrent writers win.

    Tried, because servers of the S3 protocol differ from what they document: some refuse the condition (Swift 2.30:
    501), some ignore it and overwrite (s3rver), some look first and write then, so that it holds until two writers
    meet (Swift 2.38). All of these answer False; a store that cannot be written to at all, or not reached, raises its
    StoreError. A True is evidence, not proof. Leaves nothing behind under ``probe/``, unless it is interrupted.
    """
    run = PREFIX + secrets.token_hex(8)
    names = [f"{run}.{n}" for n in range(ROUNDS + 1)]
    try:
        return _never_overwrites(store, names[0]) and all(_lets_one_win(store, name) for name in names[1:])
    finally:
        for name in names:
            with contextlib.suppress(ChromakeepError):
                store.delete(name)


def _never_overwrites(store: Store, name: str) -> bool:
    try:
        store.put(name, b"first", if_absent=True)
    except (StoreDenied, ObjectExists):
        store.put(name, b"plain")  # raises if it is not the condition that is refused
        return False
    try:
        store.put(name, b"second", if_absent=True)
    except ObjectExists:
        return store.get(name) == b"first"
    except StoreDenied:
        return False
    return False


def _lets_one_win(store: Store, name: str) -> bool:
    together = threading.Barrier(WRITERS)

    def compete(writer: int) -> bool:
        together.wait()
        try:
            store.put(name, b"writer %d" % writer, if_absent=True)
        except (ObjectExists, StoreDenied):
            return False
        return True

    with ThreadPoolExecutor(WRITERS) as pool:
        winners = [writer for writer, won in enumerate(pool.map(compete, range(WRITERS))) if won]
    return len(winners) == 1 and store.get(name) == b"writer %d" % winners[0]
