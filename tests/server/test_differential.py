"""Unmodified clients cannot tell the door from a stock server: the same calls to both, and everything is compared."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable

import chromadb
from chromadb.config import Settings
from hypothesis import given, settings

from server.made_up import EXAMPLES, OPENED, SEQUENCES, several
from server.twins import Call, Side

numbers = itertools.count()
Opening = Callable[[int, str], Awaitable[Side]]


async def same(opening: Opening, ports: tuple[int, int], calls: list[Call]) -> list[object]:
    """Make the calls to both, in a database of their own; what came of them on both."""
    database = f"d{next(numbers)}-{os.getpid()}"
    stock, ours = [await opening(port, database) for port in ports]
    outcomes = []
    for one in [*OPENED, *calls]:
        expected, found = await stock.outcome(one), await ours.outcome(one)
        assert found == expected, (
            f"{one!r:.500}: {expected!r:.1000} of the stock server, {found!r:.1000} through the door"
        )
        outcomes.append(expected)
    return outcomes


async def opened(port: int, database: str) -> Side:
    """By the ordinary client."""
    quiet = Settings(anonymized_telemetry=False)
    client = chromadb.HttpClient("127.0.0.1", port, settings=quiet)
    client._admin_client.create_database(database)
    client.set_database(database)
    return Side(client, client._admin_client)


async def opened_async(port: int, database: str) -> Side:
    """By the one for asyncio."""
    client = await chromadb.AsyncHttpClient("127.0.0.1", port, settings=Settings(anonymized_telemetry=False))
    await client._admin_client.create_database(database)
    await client.set_database(database)
    return Side(client, client._admin_client)


def test_chromadbs_client_gets_the_same(ports: tuple[int, int]) -> None:
    """Results and errors, types and texts; and the calls were such that both came about in numbers."""
    failed, total = 0, 0

    @several
    @given(calls=SEQUENCES)
    def go(calls: list[Call]) -> None:
        nonlocal failed, total
        outcomes = asyncio.run(same(opened, ports, calls))
        failed += sum(isinstance(one, tuple) for one in outcomes)
        total += len(outcomes)

    go()
    assert total / 10 < failed < total * 9 / 10


@settings(several, max_examples=max(2, EXAMPLES // 3))
@given(calls=SEQUENCES)
def test_its_asynchronous_client_gets_the_same(ports: tuple[int, int], calls: list[Call]) -> None:
    asyncio.run(same(opened_async, ports, calls))
