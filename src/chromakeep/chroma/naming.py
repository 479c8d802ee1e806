"""Names of collections while they are built and when they are replaced: what a server has instead of a transaction."""

from __future__ import annotations

import re
import secrets
import time
from contextlib import suppress

from chromakeep.chroma.api import Api
from chromakeep.chroma.client import Ref
from chromakeep.errors import ServerAnswered, ServerFailed, TargetNotEmpty, UsageError
from chromakeep.events import Noted, Observer

LONGEST = 512
_NAME = re.compile(r"(?:[A-Za-z0-9._-]+\+)?[A-Za-z0-9][A-Za-z0-9._-]{1,510}[A-Za-z0-9]")
_IP = re.compile(r"(?:[0-9]{1,3}\.){3}[0-9]{1,3}")
_NEW = re.compile(r"\.new-[0-9a-f]{8}$")


def check_name(name: str, longest: int = LONGEST) -> None:
    """Raises ``UsageError`` for a name that a server would refuse when all is written."""
    if not _NAME.fullmatch(name) or ".." in name or _IP.fullmatch(name) or len(name) > longest:
        raise UsageError(
            f"{name[:80]!r} cannot be the name of a collection at a server",
            hint=f"3 to {longest} of A-Z a-z 0-9 . _ - that begin and end with a letter or digit; give --rename A=B",
        )


def temporary(name: str, longest: int = LONGEST) -> str:
    """A name for the collection while it is built, that nobody else has."""
    return f"{_stem(name, longest, 13)}.new-{secrets.token_hex(4)}"


def is_temporary(name: str) -> bool:
    """Whether ``temporary`` may have made it."""
    return bool(_NEW.search(name))


def is_left(other: str, name: str, longest: int = LONGEST) -> bool:
    """Whether ``other`` was the temporary name of a collection that was to become ``name``."""
    return bool(_NEW.search(other)) and other.rpartition(".new-")[0] == _stem(name, longest, 13)


def settle(api: Api, ref: Ref, name: str, *, replace: bool, observer: Observer, longest: int = LONGEST) -> None:
    """Give the collection its name; twice is once. One that has that name is kept under another one if ``replace``.

    Between the two renames there is a moment without a collection of that name; whoever holds the old one goes on with
    it. Raises ``TargetNotEmpty``.
    """
    there = api.collection(ref.tenant, ref.database, name)
    if there is not None and there.id == ref.id:
        return
    old = None
    if there is not None:
        if not replace:
            raise _taken(ref, name)
        moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        old = Ref(there.id, f"{_stem(name, longest, 26)}.old-{moment}", ref.tenant, ref.database)
        if api.collection(ref.tenant, ref.database, old.name) is not None:
            old = Ref(old.id, f"{old.name}-{secrets.token_hex(2)}", ref.tenant, ref.database)
        api.change(old, new_name=old.name)
        observer(Noted(f"the collection that was {name} is kept as {old.name}; delete it when you do not need it"))
    try:
        api.change(ref, new_name=name)
    except ServerFailed as error:
        there = api.collection(ref.tenant, ref.database, name)
        if there is not None and there.id == ref.id:
            return
        if there is None and old is not None:
            with suppress(ServerFailed):
                api.change(old, new_name=name)
        if there is not None and isinstance(error, ServerAnswered):
            raise _taken(ref, name) from None
        raise


def _taken(ref: Ref, name: str) -> TargetNotEmpty:
    return TargetNotEmpty(
        f"a collection {name!r} was created by somebody else meanwhile; all that was copied is in {ref.name!r}",
        hint="rename one of the two; or delete the copy, and say --on-conflict skip, upsert or replace",
    )


def _stem(name: str, longest: int, room: int) -> str:
    return name[: longest - room].rstrip("._-")
