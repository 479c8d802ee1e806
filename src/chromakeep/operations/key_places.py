"""Where clients' keys lie: in a repository, an object for each event, or in a file of the data directory.

In a repository nothing is ever rewritten, so any number of instances make and revoke keys without losing one:
``access/<id>`` is a key, ``access/<id>.revoked`` its end, whatever its time: the clock of who put it may be ahead;
``access/<id>.rotated`` its end when a rotation's overlap is over; the earlier end counts. A key that cannot be read
opens nothing, and one whose end cannot be read has ended.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import msgspec
from msgspec.structs import replace

from chromakeep.access.keys import MOST_BYTES, MOST_KEYS, Key, Keyring, seconds, timestamp
from chromakeep.errors import (
    ChromakeepError,
    CorruptObject,
    ObjectExists,
    ObjectNotFound,
    UnsupportedFormat,
    UsageError,
    VerificationFailed,
)
from chromakeep.events import Noted, Observer, ignore
from chromakeep.operations.place import KEYS, keys_locked, write_whole
from chromakeep.repository.repository import Repository
from chromakeep.repository.sealed import unseal
from chromakeep.store.base import ObjectInfo

PREFIX = "access/"
REVOKED, ROTATED = ".revoked", ".rotated"
LARGEST = 128 << 10  # bytes of one key or end: 64 patterns of the longest make 100 kB as JSON
_NAME = re.compile(r"access/([0-9a-f]{16})(\.revoked|\.rotated)?", re.ASCII)


class End(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The object ``access/<id>.revoked`` or ``.rotated``: from ``time`` on the key opens nothing."""

    id: str
    time: str

    def __post_init__(self) -> None:
        seconds(self.time)


_KEY, _END = msgspec.json.Decoder(Key), msgspec.json.Decoder(End)


class KeyPlace(Protocol):
    """Keys that are kept. What has been written is durable, and seen by every later ``read``."""

    def present(self) -> None:
        """Raises ``UsageError`` where there can be no keys because nothing is there."""

    def mark(self) -> str:
        """Another one after every change, for the price of one small request; "" where there is nothing to be read."""

    def read(self) -> Keyring:
        """All keys. Raises ``VerificationFailed`` for what is no keyring, ``StoreError``."""

    def put(self, key: Key) -> None:
        """One more key."""

    def end(self, key: Key, time: str, *, rotated: bool = False) -> None:
        """From ``time`` (RFC 3339) on it opens nothing; an earlier end stands."""

    def forget(self, key: Key) -> None:
        """Remove a key that has ended, with its end."""

    @contextmanager
    def changing(self, *, make: bool = False) -> Iterator[None]:
        """Held while keys are looked at and then changed, where others could undo that. ``make`` a missing place."""


def opener(open_repository: Callable[[], Repository] | None, data: Path, observer: Observer) -> Callable[[], KeyPlace]:
    """How a server opens the place of its keys: its repository, or the directory ``data`` where it has none."""

    def place() -> KeyPlace:
        if open_repository:
            return RepositoryKeys(open_repository().brisk, observer)
        return DirectoryKeys(data)

    return place


class RepositoryKeys:
    """The keys of a repository. What cannot be read is told to ``observer``, once."""

    def __init__(self, repository: Repository, observer: Observer = ignore) -> None:
        self._repository, self._observer = repository, observer
        self._read: dict[ObjectInfo, Key | End | None] = {}  # None: damaged, until the object is another one

    def present(self) -> None:
        """See ``KeyPlace``. Whoever opened the repository has found out."""

    def mark(self) -> str:
        told = msgspec.json.encode(self._listed())
        return hashlib.blake2b(told, digest_size=16).hexdigest() if told != b"[]" else ""

    def read(self) -> Keyring:
        listed = self._listed()
        missing = [o for o in listed if o not in self._read]
        with ThreadPoolExecutor(8) as pool:
            found = {**self._read, **dict(zip(missing, pool.map(self._fetch, missing), strict=True))}
        self._read = {o: found[o] for o in listed}
        # Also ends that are not listed any more: a key that is forgotten may have been listed, and its end not.
        by_name = {o.name: one for o, one in found.items()}
        now = timestamp(time.time())
        keys = []
        for one in self._read.values():
            if isinstance(one, Key):
                ends = [] if f"{PREFIX}{one.id}{REVOKED}" not in by_name else [now]
                for suffix in (REVOKED, ROTATED):
                    if (name := f"{PREFIX}{one.id}{suffix}") in by_name:
                        end = by_name[name]
                        ends.append(end.time if isinstance(end, End) else one.created)  # damaged: an end it is
                keys.append(replace(one, revoked=min(ends, key=seconds)) if ends else one)
        return Keyring(keys)

    def put(self, key: Key) -> None:
        self._repository.put_sealed("A", PREFIX + key.id, msgspec.json.encode(key))

    def end(self, key: Key, time: str, *, rotated: bool = False) -> None:
        with suppress(ObjectExists):  # somebody else was quicker
            name = f"{PREFIX}{key.id}{ROTATED if rotated else REVOKED}"
            self._repository.put_sealed("A", name, msgspec.json.encode(End(key.id, time)))

    def forget(self, key: Key) -> None:
        for suffix in ("", ROTATED, REVOKED):  # the key first: without its end it would live again
            self._repository.store.delete(f"{PREFIX}{key.id}{suffix}")

    @contextmanager
    def changing(self, *, make: bool = False) -> Iterator[None]:
        yield

    def _listed(self) -> list[ObjectInfo]:
        found = [o for o in self._repository.store.list(PREFIX) if _NAME.fullmatch(o.name)]
        if sum("." not in o.name for o in found) > MOST_KEYS:
            raise CorruptObject(PREFIX, f"holds more than {MOST_KEYS:,} keys", hint="remove what is not yours")
        return found

    def _fetch(self, info: ObjectInfo) -> Key | End | None:
        try:
            return access_object(self._repository, info.name, info.size)
        except ObjectNotFound:
            return None  # forgotten between the listing and now
        except (VerificationFailed, UnsupportedFormat) as error:
            self._observer(Noted(f"a key cannot be read and opens nothing: {error}", "warning"))
            return None


def access_object(repository: Repository, name: str, size: int) -> Key | End:
    """A key, or its end, by its object's name. Raises ``CorruptObject``, ``ObjectNotFound``."""
    match = _NAME.fullmatch(name)
    if not match:
        raise CorruptObject(name, "does not belong to a repository")
    if size > LARGEST:
        raise CorruptObject(name, f"is larger than any key: {size:,} bytes")
    payload = unseal("A", name, repository.store.get(name), repository.keys, most=LARGEST)
    try:
        one = _END.decode(payload) if match[2] else _KEY.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise CorruptObject(name, f"is no key ({error})") from None
    if one.id != match[1]:
        raise CorruptObject(name, "says something else than its name")
    return one


class DirectoryKeys:
    """The keys of a data directory: ``chromakeep-keys.json``, replaced as a whole, readable by its owner alone."""

    def __init__(self, data: Path) -> None:
        self._data, self.path = data, data / KEYS

    def present(self) -> None:
        if not self._data.is_dir():
            raise UsageError(f"{self._data}: no such directory", hint="name the data directory that holds the keys")

    def mark(self) -> str:
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise self._unreadable(error) from None
        return f"{found.st_ino}-{found.st_size}-{found.st_mtime_ns}"

    def read(self) -> Keyring:
        try:
            with self.path.open("rb") as file:
                data = file.read(MOST_BYTES + 1)
        except FileNotFoundError:
            return Keyring()
        except OSError as error:
            raise self._unreadable(error) from None
        try:
            return Keyring.decode(data)
        except ValueError as error:
            hint = "bring back the file that was there, or move it away and make new keys"
            raise VerificationFailed(f"{self.path}: no keys can be read: {error}", hint=hint) from None

    def put(self, key: Key) -> None:
        self._write([*self.read().keys, key])

    def end(self, key: Key, time: str, *, rotated: bool = False) -> None:
        def ended(one: Key) -> Key:
            return replace(one, revoked=min((t for t in (one.revoked, time) if t), key=seconds))

        self._write([ended(k) if k.id == key.id else k for k in self.read().keys])

    def forget(self, key: Key) -> None:
        self._write([k for k in self.read().keys if k.id != key.id])

    @contextmanager
    def changing(self, *, make: bool = False) -> Iterator[None]:
        if make:
            self._data.mkdir(parents=True, exist_ok=True)
        self.present()
        with keys_locked(self._data):
            yield

    def _write(self, keys: list[Key]) -> None:
        try:
            write_whole(self.path, Keyring(keys).encode())
        except ValueError as error:
            raise ChromakeepError(f"{self.path}: {error}") from None

    def _unreadable(self, error: OSError) -> ChromakeepError:
        return ChromakeepError(
            f"{self.path}: {error.strerror}", hint="run as the user who made it; nobody else may read keys"
        )
