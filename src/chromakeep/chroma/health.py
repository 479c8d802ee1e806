"""Whether a Chroma server is alive behind its heartbeat.

Measured on 1.5.9: one queue row that Chroma cannot read (``"chroma:document": 5``) panics its only compactor. From
then on every write, and every first read of a collection, answers 500, while heartbeat, healthcheck and the reads of
collections already read go on. Counting collections therefore finds a hang and a broken collection, but a dead
compactor only behind collections not read before: a panic in the server's log is answered with a write that changes
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from chromakeep.chroma.client import ChromaClient, Ref
from chromakeep.errors import ServerAnswered, ServerSilent

ALIVE, UNREACHABLE, HUNG, DEAD_INSIDE, BROKEN = "alive", "unreachable", "hung", "dead inside", "collection broken"
# Channel errors of rust/frontend and rust/log at 1.5.9: the compactor's mailbox is closed, or closed while we waited.
_COMPACTOR_GONE = ("Failed to send request", "Failed to receive response", "Error sending message to compactor")


class Health(msgspec.Struct, frozen=True):
    """What a probe found. ``collections`` are the names that failed, with ``message`` of the first of them."""

    state: str
    message: str = ""
    collections: tuple[str, ...] = ()


def compactor_is_gone(error: ServerAnswered) -> bool:
    """Whether an answer says that the thread that applies writes is dead."""
    return error.status >= 500 and any(text in error.message for text in _COMPACTOR_GONE)


def probe(client: ChromaClient, collections: Iterable[Ref], *, timeout: float, suspicious: bool = False) -> Health:
    """Heartbeat, then a count of each collection; ``suspicious`` adds a write that changes nothing.

    ``timeout`` is per request, in seconds: let it be generous, a count waits behind the batch being indexed.
    """
    try:
        client.heartbeat(timeout=timeout)
    except ServerSilent as error:
        return Health(HUNG if error.timed_out else UNREACHABLE, error.message)
    except ServerAnswered as error:
        return Health(DEAD_INSIDE, error.message)
    broken: list[str] = []
    message = ""
    for ref in collections:
        try:
            client.count(ref, timeout=timeout)
            if suspicious:
                client.write_nothing(ref)
                suspicious = False
        except ServerSilent as error:
            return Health(HUNG if error.timed_out else UNREACHABLE, error.message, (ref.name,))
        except ServerAnswered as error:
            if compactor_is_gone(error):
                return Health(DEAD_INSIDE, error.message, (ref.name,))
            if error.status >= 500:
                broken.append(ref.name)
                message = message or error.message
            # 4xx: deleted meanwhile
    return Health(BROKEN, message, tuple(broken)) if broken else Health(ALIVE)
