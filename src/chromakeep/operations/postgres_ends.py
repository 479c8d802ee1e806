"""Collections in PostgreSQL as the ends of a copy, by the address of their database."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from chromakeep.addresses import Address
from chromakeep.errors import ServerFailed, UsageError
from chromakeep.events import Observer, ignore
from chromakeep.records import Definition, Intake, Mark, Sink, Source, check_conflict

CONNECTIONS = 2  # of a sink: one that writes, and one that says that it is under way


def source_in(place: Address) -> Source:
    """All collections of a database, in one state. A replica will do.

    Raises ``ServerFailed`` where it cannot be reached or has no collections of ours.
    """
    try:
        from chromakeep.postgres.connecting import connect
        from chromakeep.postgres.source import PostgresSource
    except ImportError as error:
        raise _not_installed(error) from None
    return PostgresSource(lambda: connect(str(place), writing=False))


def sink_in(place: Address, observer: Observer = ignore) -> tuple[Sink, Callable[[], Source]]:
    """The database as a sink, its tables brought up; and what was written there before it is published.

    Raises as ``postgres.migrating.migrate`` does.
    """
    try:
        from chromakeep.postgres.connecting import connect
        from chromakeep.postgres.migrating import migrate
        from chromakeep.postgres.pool import Pool
        from chromakeep.postgres.sink import PostgresSink
        from chromakeep.postgres.source import PostgresSource
    except ImportError as error:
        raise _not_installed(error) from None
    url = str(place)
    migrate(url, observer)
    sink = PostgresSink(Pool(url, CONNECTIONS), quickly=True, observer=observer)
    return sink, lambda: PostgresSource(lambda: connect(url), run=sink.run)


class Untouched:
    """The database as what a copy would find: its collections, perhaps none yet, and nothing can be written."""

    several = True

    def __init__(self, place: Address) -> None:
        """Raises ``ServerFailed`` where it cannot be reached or takes no writes."""
        try:
            from chromakeep.postgres.connecting import connect, has_collections
            from chromakeep.postgres.sink import SPEED
            from chromakeep.postgres.source import described
        except ImportError as error:
            raise _not_installed(error) from None
        self.speed = SPEED
        with connect(str(place), bare=True) as connection:
            self._there = described(connection, None, None) if has_collections(connection) else []

    def definitions(self) -> Sequence[Definition]:
        """As ``records.Sink``."""
        return self._there

    def check(self, definition: Definition, *, conflict: str = "fail") -> None:
        """As ``PostgresSink``."""
        check_conflict(conflict)

    def collection(self, definition: Definition, *, conflict: str = "fail", mark: Mark = None) -> Intake:
        raise AssertionError("a dry run writes nothing")

    def publish(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def _not_installed(error: ImportError) -> Exception:
    if error.name in ("psycopg", "orjson"):
        return UsageError(
            f"a PostgreSQL needs a package that is not installed: {error.name}",
            hint="pip install 'chromakeep[postgres]'",
        )
    return ServerFailed(f"PostgreSQL cannot be used: {error}")
