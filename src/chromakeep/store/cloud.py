"""CloudStore: objects in a bucket of S3 (and what speaks its protocol), Google Cloud Storage or Azure, over obstore."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar, cast

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import AzureStore, GCSStore, S3Store

from chromakeep.addresses import Address
from chromakeep.errors import ChromakeepError, ObjectExists, StoreUnavailable
from chromakeep.store.base import ObjectInfo
from chromakeep.store.cloud_errors import is_bucket_missing, is_past_the_end, translated
from chromakeep.store.credentials import configuration
from chromakeep.store.names import checked, checked_prefix, is_name

CONNECT_SECONDS = 10.0
T = TypeVar("T")
BRISK = 10.0  # seconds a request, of a store that is to give up soon
FAILURES = (BaseError, OSError, ValueError)  # obstore's own, and those of Python's that it raises in their place


class CloudStore:
    """A Store in a bucket, below the address's prefix. Thread-safe; one connection pool for all threads.

    Endpoint, region and credentials come from ``environ`` and the address (``chromakeep.store.credentials``), then from
    ``options``, in obstore's own names (``access_key_id``, ``account_key``, ...); for what neither says obstore looks
    into the process's environment. Each request may take ``timeout`` seconds, body included, so an object of ``n``
    bytes needs ``n / timeout`` bytes per second. Nothing is retried here, neither by obstore: wrap it in a
    RetryingStore.

    An object is sent in one request, never as a multipart upload: it is atomic, and a killed process leaves no unseen
    parts that are billed. ``if_absent`` is ``If-None-Match: *`` (S3, Azure) or ``x-goog-if-generation-match: 0``
    (GCS); ``chromakeep.store.probe`` finds out whether the server means it. ``list`` reads the whole listing of the
    prefix's folder before it gives the first object (some 300 bytes of memory each), because not every server sorts.
    """

    def __init__(
        self,
        address: Address,
        *,
        options: Mapping[str, str] | None = None,
        environ: Mapping[str, str] | None = None,
        timeout: float = 120.0,
    ) -> None:
        self.address = address
        self._again = partial(CloudStore, address, options=options, environ=environ)
        self._folder = f"{address.prefix}/" if address.prefix else ""
        try:
            self._store = _connect(address, configuration(address, environ or {}) | dict(options or {}), timeout)
        except ChromakeepError:
            raise
        except FAILURES as error:
            raise translated(error, address, "") from None

    def brisk(self) -> CloudStore:
        """With a connection pool of its own, and ten seconds a request."""
        return self._again(timeout=BRISK)

    def put(self, name: str, data: bytes, *, if_absent: bool = False) -> None:
        path = self._folder + checked(name)
        mode: Any = "create" if if_absent else "overwrite"
        try:
            _interruptibly(lambda: obstore.put(self._store, path, data, mode=mode, use_multipart=False))
        except (AlreadyExistsError, PreconditionError) as error:
            # 409 may also mean that another request for this name was under way, and says nothing of the outcome.
            if if_absent and "ConditionalRequestConflict" not in str(error) and "BeingDeleted" not in str(error):
                raise ObjectExists(name) from None
            raise StoreUnavailable(
                f"{self.address}: {name}: the store answers that another write is under way"
            ) from None
        except FAILURES as error:
            raise translated(error, self.address, "") from None

    def get(self, name: str, *, start: int = 0, length: int | None = None) -> bytes:
        path = self._folder + checked(name)
        if length == 0:
            self.head(name)
            return b""
        options: Any = None
        if length is not None:
            options = {"range": (start, start + length)}
        elif start:
            options = {"range": {"offset": start}}
        try:
            return _interruptibly(lambda: bytes(obstore.get(self._store, path, options=options).bytes()))
        except FAILURES as error:
            if options is not None and is_past_the_end(error):
                return b""
            raise translated(error, self.address, name) from None

    def head(self, name: str) -> ObjectInfo:
        path = self._folder + checked(name)
        try:
            meta = _interruptibly(lambda: obstore.head(self._store, path))
        except FAILURES as error:
            raise translated(error, self.address, name) from None
        return ObjectInfo(name, meta["size"], meta["last_modified"].timestamp())

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        # obstore's prefixes are whole folders: list the prefix's folder and choose.
        folder = self._folder + checked_prefix(prefix).rpartition("/")[0]
        found: list[ObjectInfo] = []

        def read() -> None:
            for page in obstore.list(self._store, prefix=folder or None, chunk_size=1000):
                for meta in page:
                    name = meta["path"][len(self._folder) :]
                    if name.startswith(prefix) and is_name(name):
                        found.append(ObjectInfo(name, meta["size"], meta["last_modified"].timestamp()))

        try:
            _interruptibly(read)
        except FAILURES as error:
            raise translated(error, self.address, "") from None
        return iter(sorted(found, key=lambda info: info.name))

    def delete(self, name: str) -> None:
        path = self._folder + checked(name)
        try:
            _interruptibly(lambda: obstore.delete(self._store, path))
        except FileNotFoundError as error:
            if is_bucket_missing(error):
                raise translated(error, self.address, "") from None
        except FAILURES as error:
            raise translated(error, self.address, "") from None


def _interruptibly(call: Callable[[], T]) -> T:
    """``call()``, such that signals are handled meanwhile.

    Python handles signals in the main thread only, between its own instructions: while the main thread is inside
    obstore, SIGTERM would wait for the request's timeout. So there the call is made by another thread.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()
    done: SimpleQueue[tuple[bool, Any]] = SimpleQueue()

    def work() -> None:
        try:
            done.put((True, call()))
        except BaseException as error:
            done.put((False, error))

    threading.Thread(target=work, name="chromakeep-store", daemon=True).start()
    while True:
        with contextlib.suppress(Empty):
            # Looking up twice a second, because a signal that comes just before the wait does not end the wait.
            worked, result = done.get(timeout=0.5)
            break
    if worked:
        return cast("T", result)
    raise result


def _connect(address: Address, options: dict[str, str], timeout: float) -> S3Store | GCSStore | AzureStore:
    common: Any = {
        "config": options,
        "client_options": {
            "timeout": timedelta(seconds=timeout),
            "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
            "allow_http": options.get("endpoint", "").startswith("http://"),
            "user_agent": "chromakeep",
        },
        "retry_config": {"max_retries": 0, "retry_timeout": timedelta(seconds=timeout)},
    }
    if address.kind == "gs":
        return GCSStore(address.place, **common)
    if address.kind == "az":
        return AzureStore(address.place, **common)
    options["disable_bulk_delete"] = "true"  # a plain DELETE works with every server, DeleteObjects does not
    return S3Store(address.place, **common)
