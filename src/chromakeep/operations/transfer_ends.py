"""The ends of a transfer: its addresses, opened again and again, each time as they are now.

A directory is captured hot, into a working copy that the next capture brings up to date; whether it was written to
since is told from the stamps of its files. A server is listed and read anew.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from msgspec.structs import replace

from chromakeep.addresses import CLOUD, Address, parse, split_selector
from chromakeep.chroma.capture import capture
from chromakeep.chroma.directory_source import DirectorySource, state_of
from chromakeep.chroma.server_sink import ServerSink
from chromakeep.chroma.server_source import ServerSource
from chromakeep.chroma.signature import DATABASE
from chromakeep.errors import SourceError, UsageError
from chromakeep.exchange.open import is_exchange
from chromakeep.operations.endpoints import Means, connection_of, destination, open_source
from chromakeep.operations.tracked import TENANT, Options
from chromakeep.operations.transfer import Ends
from chromakeep.operations.transfer_state import State
from chromakeep.records import Sink, Source

WAIT = 120.0  # seconds for a capture


def ends_of(state: State, a: Means, b: Means) -> Ends:
    """The places of a transfer, each opened with what is its own; working copies lie in its own directory. Raises
    ``UsageError`` for a target that is no server."""
    work = Path(state.work)
    to = _server(state.target)
    source, current, still = _source(state.source, replace(a, work=work))

    def sink() -> tuple[Sink, Callable[[], Source]]:
        connection, cloud = connection_of(to, b), to.kind == CLOUD
        at = state.options.tenant, state.options.database
        made = ServerSink(connection, *at, cloud=cloud, observer=b.observer)
        return made, lambda: ServerSource(connection, *at, cloud=cloud)

    return Ends(source, sink, current, still, _directory(state.source))


def placed(options: Options, target: str) -> Options:
    """The options with the tenant and the database that the target's address names. Raises ``UsageError`` if they name
    others."""
    _server(target)
    tenant, database = destination(target, options.tenant, options.database)
    if database is not None:
        tenant = tenant or TENANT
    return replace(options, tenant=tenant, database=database)


def absolute(text: str) -> str:
    """An address that means the same from any directory."""
    if text == "-" or (not is_exchange(text) and parse(split_selector(text)[0]).is_url):
        return text
    return str(Path(text if is_exchange(text) else parse(text).place).absolute())


def _server(text: str) -> Address:
    if not is_exchange(text):
        address, selector = split_selector(text)
        place = parse(address)
        if selector is None and place.kind in ("http", CLOUD):
            return place
    raise UsageError(
        f"{text} cannot be caught up with: it takes no changes while it is served",
        hint="transfer to a server (http://HOST:PORT); for any other place there is `chromakeep copy`",
    )


def _directory(text: str) -> Path | None:
    """The place, if it is a Chroma directory."""
    if is_exchange(text):
        return None
    address, selector = split_selector(text)
    place = parse(address)
    at = Path(place.place)
    return at if selector is None and not place.is_url and (at / DATABASE).exists() else None


def _source(text: str, means: Means) -> tuple[Callable[[str], Source], Callable[[], str], bool]:
    place = None if is_exchange(text) else parse(split_selector(text)[0])
    if (at := _directory(text)) is not None:
        return (lambda resume: _captured(at, means, resume)), (lambda: _current(at)), True

    return (
        (lambda resume: open_source(text, means, resume=resume)),
        (lambda: ""),
        place is None or place.kind not in ("http", CLOUD),
    )


def _captured(directory: Path, means: Means, resume: str) -> Source:
    """The working copy, brought up to date unless it is that of the state ``resume``. One that was made while the
    directory changed is of no state in which the target could be already."""
    into, word = means.work / "capture", means.work / "capture.state"
    if not (resume and word.exists() and word.read_text() == resume):
        word.unlink(missing_ok=True)
        before = state_of(directory)
        capture(directory, into, timeout=WAIT, observer=means.observer)
        word.write_text(before if state_of(directory) == before else secrets.token_hex(16))
    return DirectorySource(into, state=word.read_text())


def _current(directory: Path) -> str:
    with suppress(SourceError):  # whoever reads it will tell
        return state_of(directory)
    return ""
