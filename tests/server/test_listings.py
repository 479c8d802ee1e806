"""Listings: what a key may not touch is not there, and limits count what is left."""

from __future__ import annotations

import json

import pytest

from chromakeep.server.gate import Page, Refusal
from chromakeep.server.listings import counted, shown

ROWS = [{"id": str(n), "name": name, "metadata": {"é": [1, 2.0]}} for n, name in enumerate("abcabc")]
BODY = json.dumps(ROWS).encode()


def names(query: str) -> str:
    page = shown(BODY, query, lambda name: name != "b")
    assert isinstance(page, Page)
    rows = json.loads(page.body)
    assert all(row in ROWS for row in rows)
    return "".join(row["name"] for row in rows)


def test_limits_count_what_is_left() -> None:
    assert names("") == "acac"
    assert names("limit=3") == "aca"
    assert names("offset=1&limit=2") == "ca"
    assert names("offset=9") == names("limit=0") == ""
    assert names("other=1") == "acac"
    assert counted(BODY, lambda name: name != "b").body == b"4"


@pytest.mark.parametrize(
    "query", ["limit=-1", "limit=x", "limit=", "offset=1&offset=2", "limit=99999999999", "limit=%F0"]
)
def test_wrong_limits(query: str) -> None:
    found = shown(BODY, query, lambda name: True)
    assert isinstance(found, Refusal)
    assert found.status == 400
