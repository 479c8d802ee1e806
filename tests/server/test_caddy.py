"""The shipped Caddyfile before instances of plain sockets: as nginx, but it asks them how they are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from run.running import eventually
from server.instances import BROKE, CREATED, QUERY, REFUSED, UNSURE, WRITES, Three
from servers.caddy import caddy


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Three]:
    with Three() as made, caddy(tmp_path_factory.mktemp("caddy"), made.ports) as (made.balanced, made.latest):
        yield made


def ready(three: Three) -> None:
    """Wait until Caddy has heard that all are there."""
    three.say(CREATED, CREATED, CREATED)
    for port in (three.balanced, three.latest):
        eventually(lambda port=port: three.ask(WRITES["POST"], port).status == 201, "all instances")
    for one in three.instances:
        one.asked.clear()


@pytest.mark.parametrize("request_", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("end", [b"", UNSURE, BROKE], ids=["cut", "504", "502"])
def test_a_write_that_may_have_been_done_is_not_made_again(three: Three, request_: bytes, end: bytes) -> None:
    ready(three)
    for one in three.instances:
        one.says = end
    assert three.ask(request_).status == (504 if end == UNSURE else 502)
    assert three.asked == 1


@pytest.mark.parametrize("others", [REFUSED, None], ids=["that refuse", "that are gone"])
def test_writes_come_to_the_one_that_is_ready(three: Three, others: bytes | None) -> None:
    """Each once, whatever it was answered until Caddy knew."""
    ready(three)
    three.say(others, CREATED, others)
    done = 0
    for request in list(WRITES.values()) * 3:
        while (answer := three.ask(request)).status != 201:
            assert answer.status in (502, 503)
        done += 1
    assert len(three.instances[1].asked) == done


def test_reads_come_to_those_that_are_ready(three: Three) -> None:
    ready(three)
    eventually(lambda: three.ask(QUERY).status == 201 and all(one.asked for one in three.instances), "reads by all")
    three.say(REFUSED, CREATED, REFUSED)
    eventually(lambda: all(three.ask(QUERY).status == 201 for _ in range(6)), "that the others are left out")


def test_what_is_not_for_clients(three: Three) -> None:
    ready(three)
    for path in ("/_keep/receive", "/_keep/status", "/readyz", "/metrics", "/api/../_keep/status", "//_keep/status"):
        for port in (three.balanced, three.latest):
            assert three.ask(f"GET {path} HTTP/1.1\r\nhost: h\r\n\r\n".encode(), port).status == 404
    assert three.asked == 0
