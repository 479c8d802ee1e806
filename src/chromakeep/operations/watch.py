"""Watch: whether a server that runs must be replaced all the same, and why."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from chromakeep.chroma.client import ChromaClient, Ref
from chromakeep.chroma.health import ALIVE, BROKEN, DEAD_INSIDE, HUNG, UNREACHABLE, Health, probe
from chromakeep.chroma.server import ChromaServer
from chromakeep.errors import ServerAnswered, ServerSilent
from chromakeep.records import Collection

PROBED = 3  # collections counted in each probe
SILENT = 10.0  # seconds without any answer, the process alive, after which a server is given up


class Watching(threading.Thread):
    """Probes one server every ``every`` seconds until ``over`` is set; ``verdict`` says why it must be replaced.

    A request may take ``patience`` seconds. ``known`` tells collections, of any tenant, with their sizes; those of the
    default database are asked of the server. ``spared`` are names that are not probed; ``broken`` those of a verdict.
    ``alive`` is called after each probe that found nothing wrong.
    """

    def __init__(
        self,
        server: ChromaServer,
        *,
        every: float,
        patience: float,
        known: Callable[[], Iterable[Collection]],
        spared: Iterable[str] = (),
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(name="watch", daemon=True)
        self.over = threading.Event()
        self.verdict: str | None = None
        self.broken: tuple[str, ...] = ()
        self._server, self._every, self._known, self._spared = server, every, known, frozenset(spared)
        self._alive = alive
        self._client = ChromaClient(server.client.host, server.client.port, timeout=patience)

    def run(self) -> None:
        silent_since: float | None = None
        next_probe = 0.0
        while not self.over.wait(0.25):
            suspicious = self._server.panicked.is_set()
            if not suspicious and time.monotonic() < next_probe:
                continue
            self._server.panicked.clear()
            health = self._probe(suspicious)
            next_probe = time.monotonic() + self._every
            if health.state == ALIVE:
                silent_since = None
                self._alive()
                continue
            if suspicious:
                self._server.panicked.set()  # look again: the confirming write did not get through
            silent_since = silent_since or time.monotonic()
            self.verdict = self._judge(health, time.monotonic() - silent_since)
            if self.verdict:
                return

    def _probe(self, suspicious: bool) -> Health:
        try:
            return probe(self._client, self._refs(), timeout=self._client.timeout, suspicious=suspicious)
        except ServerSilent as error:
            return Health(HUNG if error.timed_out else UNREACHABLE, error.message)
        except ServerAnswered as error:
            return Health(UNREACHABLE, error.message)

    def _refs(self) -> list[Ref]:
        """Small collections first: a count loads the index, and any collection shows a hang or a dead compactor."""
        known = {c.id: c for c in self._known()}
        refs = {c.id: Ref(c.id, c.name, c.tenant, c.database) for c in known.values()}
        refs |= {ref.id: ref for ref in self._client.list_collections()}
        chosen = [ref for ref in refs.values() if ref.name not in self._spared]
        return sorted(chosen, key=lambda ref: known[ref.id].count if ref.id in known else 0)[:PROBED]

    def _judge(self, health: Health, lasted: float) -> str | None:
        names = ", ".join(health.collections)
        if health.state == DEAD_INSIDE:
            return f"chroma is dead inside, its heartbeat notwithstanding (seen in {names}: {health.message})"
        if health.state == BROKEN:
            self.broken = health.collections
            return f"chroma cannot read {names}: {health.message}"
        if health.state == HUNG:
            return f"chroma hangs in {names or 'its heartbeat'}: {health.message}"
        return f"chroma does not answer: {health.message}" if lasted > SILENT else None
