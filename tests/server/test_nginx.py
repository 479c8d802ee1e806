"""The shipped nginx configuration before instances of plain sockets: reads find an answer, no write is made twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.instances import BROKE, CREATED, MISSING, QUERY, REFUSED, UNSURE, WRITES, Three
from server.wires import C
from servers.nginx import nginx


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Three]:
    with Three() as made, nginx(tmp_path / "nginx", made.ports) as (made.balanced, made.latest):
        yield made


@pytest.mark.parametrize("request_", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("others", [REFUSED, None], ids=["that refuse", "that are gone"])
def test_a_write_finds_the_one_that_takes_it(three: Three, request_: bytes, others: bytes | None) -> None:
    """Through others; once."""
    three.say(others, CREATED, others)
    for _ in range(5):
        assert three.ask(request_).status == 201
    assert len(three.instances[1].asked) == 5


@pytest.mark.parametrize("request_", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("end", [b"", UNSURE, BROKE], ids=["cut", "504", "502"])
def test_a_write_that_may_have_been_done_is_not_made_again(three: Three, request_: bytes, end: bytes) -> None:
    three.say(end, end, end)
    answer = three.ask(request_)
    assert answer.status == (504 if end == UNSURE else 502)
    assert "retry-after" not in answer.fields
    assert three.asked == 1


def test_a_write_that_nobody_takes(three: Three) -> None:
    """503 says that it may be made again; not one byte of it is anywhere."""
    three.say(None, None, None)
    for _ in range(4):
        answer = three.ask(WRITES["POST"])
        assert (answer.status, answer.fields["retry-after"]) == (503, "1")
    three.say(REFUSED, None, REFUSED)
    answer = three.ask(WRITES["POST"])
    assert (answer.status, answer.fields["retry-after"]) == (503, "1")


def test_a_refusal_then_a_cut(three: Three) -> None:
    """What was not done at one and may have been done at the next one is not tried at the third."""
    three.say(REFUSED, b"", REFUSED)
    answers = [three.ask(WRITES["POST"]).status for _ in range(3)]
    assert len(three.instances[1].asked) == answers.count(502) >= 1


@pytest.mark.parametrize(
    "bad", [None, b"", REFUSED, UNSURE, BROKE, MISSING], ids=["gone", "cut", "503", "504", "502", "404"]
)
def test_a_read_finds_one_that_answers(three: Three, bad: bytes | None) -> None:
    three.say(bad, CREATED, bad)
    for request in (QUERY, f"GET {C} HTTP/1.1\r\nhost: h\r\n\r\n".encode()) * 3:
        assert three.ask(request).status == 201


def test_reads_are_balanced_but_not_those_of_the_latest(three: Three) -> None:
    three.say(CREATED, CREATED, CREATED)
    for _ in range(9):
        assert three.ask(QUERY).status == 201
    assert [len(one.asked) for one in three.instances] == [3, 3, 3]
    three.say(REFUSED, REFUSED, CREATED)
    for _ in range(9):
        assert three.ask(QUERY, three.latest).status == 201
    assert len(three.instances[2].asked) == 9


def test_what_is_not_for_clients(three: Three) -> None:
    three.say(CREATED, CREATED, CREATED)
    for path in ("/_keep/receive", "/_keep/status", "/readyz", "/metrics", "/api/../_keep/status", "//_keep/status"):
        assert three.ask(f"GET {path} HTTP/1.1\r\nhost: h\r\n\r\n".encode()).status == 404
    assert three.asked == 0
