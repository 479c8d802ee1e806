"""A server that anybody may use is started on purpose or not at all."""

from __future__ import annotations

import pytest

from chromakeep.errors import RefusedToServe
from chromakeep.operations.openness import IGNORED, loopback, refuse_open

LOCAL = ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "LOCALHOST."]
OPEN = ["0.0.0.0", "::", "10.0.0.5", "192.168.1.2", "example.org", "localhost.example.org", ""]


def test_which_addresses_are_local() -> None:
    assert all(loopback(host) for host in LOCAL)
    assert not any(loopback(host) for host in OPEN)


@pytest.mark.parametrize("host", OPEN)
def test_an_open_address_needs_a_key_or_a_word(host: str) -> None:
    with pytest.raises(RefusedToServe, match="no key") as error:
        refuse_open(host, {}, keys=False, accepted=False)
    assert "keys create" in (error.value.hint or "")
    refuse_open(host, {}, keys=True, accepted=False)
    refuse_open(host, {}, keys=False, accepted=True)


@pytest.mark.parametrize("name", IGNORED)
def test_who_believes_that_chroma_checks_is_told(name: str) -> None:
    """Even on a local address: Chroma 1.x reads none of these."""
    with pytest.raises(RefusedToServe, match=name):
        refuse_open("127.0.0.1", {name: "x"}, keys=False, accepted=False)
    refuse_open("127.0.0.1", {name: ""}, keys=False, accepted=False)
    refuse_open("127.0.0.1", {name: "x"}, keys=True, accepted=False)
