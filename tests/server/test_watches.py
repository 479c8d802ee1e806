"""What a body must not say with a certain key, however it is cut."""

from __future__ import annotations

import json

import pytest

from chromakeep.server.fields import Malformed
from chromakeep.server.guard import Watch
from chromakeep.server.watches import Named, Sized, together


def through(watch: Watch, body: bytes, size: int = 7) -> bytes:
    parts = [body[i : i + size] for i in range(0, len(body), size)] or [b""]
    return b"".join(watch.feed(part, last=n == len(parts)) for n, part in enumerate(parts, 1))


def test_a_body_is_no_longer_than_the_key_may_send() -> None:
    assert through(Sized(20), b"x" * 20) == b"x" * 20
    with pytest.raises(Malformed, match="20 bytes") as error:
        through(Sized(20), b"x" * 21)
    assert error.value.status == 413


@pytest.mark.parametrize("field", ["name", "new_name"])
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_name_that_the_key_may_not_touch(field: str, size: int) -> None:
    """Written in any way that JSON knows."""
    good = json.dumps({"metadata": {field: "secret"}, "other": "secret", field: "docs-1"}).encode()
    assert through(Named(field, lambda name: name.startswith("docs-")), good, size) == good
    for bad in (b'{"%s": "secret"}', b'{"a": [1], "%s" : "\\u0073ecret"}'):
        with pytest.raises(Malformed, match="secret") as error:
            through(Named(field, lambda name: name.startswith("docs-")), bad % field.encode(), size)
        assert error.value.status == 403


def test_a_name_whose_field_is_written_with_escapes() -> None:
    with pytest.raises(Malformed):
        through(Named("name", lambda name: False), b'{"n\\u0061me": "secret"}')


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'["docs", null, null, null, true]',
        b'{"name": 5}',
        b"\xff",
        b'{"name": "x"} y',
        b"[" * 900_000,
    ],
)
def test_what_is_no_object_with_a_name_is_refused(body: bytes) -> None:
    """Chroma takes an array for an object, field by field."""
    with pytest.raises(Malformed) as error:
        through(Named("name", lambda name: True), body, 100_000)
    assert error.value.status == 400


def test_a_long_body_is_not_gathered() -> None:
    with pytest.raises(Malformed) as error:
        through(Named("name", lambda name: True), b" " * (2 << 20), 1 << 16)
    assert error.value.status == 413


def test_several() -> None:
    both = together(Sized(100), None, Named("name", lambda name: True))
    assert both and through(both, b'{"name": "docs"}') == b'{"name": "docs"}'
    assert both.records is None
    assert together(None, None) is None
