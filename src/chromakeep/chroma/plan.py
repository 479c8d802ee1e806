"""Plans: what a copy from a server keeps on disk so that a killed one goes on: a word, and the lists of ids."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from chromakeep.chroma.roll import explained, sync
from chromakeep.errors import UsageError

_NAME = "plan.json"


class _Content(msgspec.Struct):
    place: str
    state: str


_DECODER = msgspec.json.Decoder(_Content)


class Plan:
    """A directory. Once it has a word, marks of lists that lie in it lead on, whatever happens at the server."""

    def __init__(self, folder: Path, place: str) -> None:
        """``place``: server, tenant and database in one text."""
        self.folder, self.place = folder, place

    def state(self, collections: Callable[[], Iterable[tuple[str, int]]]) -> str:
        """The word: kept since the first call, which makes it of the ids and numbers of records of all collections.

        Raises ``UsageError`` if the directory is the plan of another place.
        """
        path = self.folder / _NAME
        try:
            found = _DECODER.decode(path.read_bytes())
        except FileNotFoundError:
            pass
        except OSError as error:
            raise explained(error, path) from None
        except msgspec.MsgspecError:
            raise UsageError(f"{path} is no plan of a copy", hint="remove that directory to begin anew") from None
        else:
            if found.place != self.place:
                raise UsageError(f"{path} is the plan of another copy", hint="remove that directory to begin anew")
            return found.state
        words = "\n".join([self.place, *sorted(f"{id_} {count}" for id_, count in collections())])
        state = hashlib.blake2b(words.encode(), digest_size=16).hexdigest()
        self._write(path, msgspec.json.encode(_Content(self.place, state)))
        return state

    def roll(self, collection: str, where: Mapping[str, Any] | None) -> Path:
        """Where the list of a collection's ids lies; another one for each condition. The directory is there then."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explained(error, self.folder) from None
        words = collection.encode() + b"\n" + msgspec.json.encode(where, order="sorted")
        return self.folder / f"{hashlib.blake2b(words, digest_size=16).hexdigest()}.ids"

    def _write(self, path: Path, data: bytes) -> None:
        new = path.with_name(f"{path.name}.new")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            new.write_bytes(data)
            new.replace(path)
            sync(self.folder)
        except OSError as error:
            raise explained(error, path) from None
