"""Keys: tokens open what they were made for, nothing else does, and what is kept gives nothing away."""

from __future__ import annotations

import hmac
import json
from typing import Any

import msgspec
import pytest

from chromakeep.access import keys as module
from chromakeep.access.keys import MOST_KEYS, Key, Keyring, mint, seconds, timestamp
from chromakeep.errors import UsageError

NOW = 1_800_000_000.0


def key(**changes: Any) -> Key:
    return msgspec.structs.replace(mint("app", "reader", now=NOW)[0], **changes)


def test_a_token_finds_its_key_and_no_other() -> None:
    made = [mint(f"app-{n}", "writer", now=NOW) for n in range(20)]
    ring = Keyring(k for k, _ in made)
    for one, token in made:
        assert ring.find(token, NOW) is one
        assert token.startswith(f"ck_{one.id}_")
        assert len(token) == 3 + 16 + 1 + 43


def test_nothing_near_a_token_opens_anything() -> None:
    """One character changed, added or taken away, parts of two keys put together, and what is no token at all."""
    (one, token), (other, foreign) = mint("a", "admin"), mint("b", "admin")
    ring = Keyring([one, other])
    for at in range(len(token)):
        changed = token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
        assert ring.find(changed, NOW) is None, at
        assert ring.find(token[:at] + token[at + 1 :], NOW) is None, at
    mixed = f"ck_{one.id}_{foreign[20:]}"
    for wrong in (mixed, "", "ck_", token + "A", token + "\n", " " + token, token.upper(), one.digest, "x" * 100_000):
        assert ring.find(wrong, NOW) is None
    assert Keyring().find(token, NOW) is None
    assert Keyring([key(id=one.id, digest="0" * 64)]).find(f"ck_{one.id}_", NOW) is None


@pytest.mark.parametrize("token", ["unknown", "malformed", "wrong", "right"])
def test_every_search_makes_one_comparison_of_whole_digests(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    """What is done does not tell whether an id is known."""
    compared: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def comparing(a: str, b: str) -> bool:
        compared.append((len(a), len(b)))
        return compare(a, b)

    monkeypatch.setattr(module.hmac, "compare_digest", comparing)
    one, right = mint("app", "reader")
    shown = {"unknown": mint("x", "reader")[1], "malformed": "nonsense", "wrong": right[:20] + "A" * 43, "right": right}
    Keyring([one]).find(shown[token], NOW)
    assert compared == [(64, 64)]


def test_a_token_that_was_right_is_right_until_its_key_ends() -> None:
    key, token = mint("a", "reader", expires=timestamp(1_000.0), now=0.0)
    ring = Keyring([key])
    assert [ring.find(token, now) for now in (1.0, 999.0, 1_000.0, 1_001.0)] == [key, key, None, None]
    assert ring.find(token[:-1] + ("a" if token[-1] != "a" else "b"), 1.0) is None
    assert ring.find(token, 2.0) is key


def test_expired_and_revoked_keys_open_nothing_from_their_time_on() -> None:
    one, token = mint("app", "reader", now=NOW)
    at = timestamp(NOW + 60)
    for ring in (Keyring([msgspec.structs.replace(one, **{field: at})]) for field in ("expires", "revoked")):
        assert ring.find(token, NOW + 59.9) is not None
        assert ring.find(token, NOW + 60) is None
    both = msgspec.structs.replace(one, expires=timestamp(NOW + 90), revoked=at)
    assert both.ends == NOW + 60
    assert Keyring([both]).holders("app", NOW) == ()
    assert Keyring([both]).named("app", NOW) == (both,)


def test_neither_secret_nor_digest_is_shown() -> None:
    one, token = mint("app", "reader")
    shown = repr(one) + str(one) + repr(one.__rich_repr__()) + repr(Keyring([one])) + f"{[one]}"
    assert one.digest not in shown
    assert token[20:] not in shown
    assert token[20:] not in Keyring([one]).encode().decode()


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""}, {"name": "a b"}, {"name": "a\n"}, {"name": "-a"}, {"name": "a" * 65}, {"name": "\x1b[2J"},
        {"role": "root"}, {"tenant": ""}, {"tenant": "a\0"}, {"database": "x" * 513}, {"collections": ("",)},
        {"collections": ("x",) * 65}, {"collections": ("a\n",)}, {"role": "admin", "collections": ("docs-*",)},
        {"rate": 0.0}, {"rate": -1.0}, {"rate": float("nan")}, {"rate": float("inf")}, {"concurrency": 0}, {"body": 0},
        {"time": 0.0}, {"time": 1e7}, {"time": float("nan")},
        {"expires": "tomorrow"}, {"expires": "2026-13-01T00:00:00Z"}, {"expires": "2026-01-01T00:00:00+02:00"},
    ],
)  # fmt: skip
def test_values_out_of_bounds_make_no_key(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        mint(**{"name": "app", "role": "reader", **wrong})
    fields = json.loads(Keyring([key()]).encode())
    fields["keys"][0].update(wrong)
    with pytest.raises(ValueError, match=r"\S"):
        Keyring.decode(json.dumps(fields).encode())


def test_a_ring_is_read_as_it_was_written() -> None:
    ring = Keyring(
        [key(id=f"{n:016x}", name=f"k{n}", collections=("docs-*", "x"), rate=1.5, time=9.5) for n in range(9)]
    )
    assert Keyring.decode(ring.encode()).keys == ring.keys


def test_a_limit_that_a_key_has_not_is_not_written() -> None:
    """Who does not know that limit can read what does not need it."""
    assert b'"time"' not in Keyring([key()]).encode()
    assert b'"time": 0.5' in Keyring([key(time=0.5)]).encode()


def _stored(**changes: Any) -> bytes:
    fields = json.loads(Keyring([key()]).encode())
    fields["keys"][0].update(changes)
    return json.dumps(fields).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"{}", b'{"format": 2, "keys": []}', b'{"format": 1}', b'{"format": 1, "keys": [], "more": 1}',
        b'{"format": 1, "keys": [{}]}', b"[" * 100_000, b'{"format":1,"keys":[' + b"[" * 100_000,
        b" " * ((16 << 20) + 1), b"\xff", _stored(id="x"), _stored(id="A" * 16), _stored(digest="00"),
        _stored(body="1"), _stored(concurrency=1.5), _stored(more=1), _stored(revoked=0), _stored(name=None),
    ],
)  # fmt: skip
def test_what_is_no_keyring_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        Keyring.decode(data)


def test_a_ring_has_bounds() -> None:
    one = key()
    with pytest.raises(ValueError, match="one id"):
        Keyring([one, one])
    many = [msgspec.structs.replace(one, id=f"{n:016x}") for n in range(MOST_KEYS + 1)]
    with pytest.raises(ValueError, match="10,000"):
        Keyring(many)


def test_times_are_there_and_back() -> None:
    assert timestamp(NOW) == "2027-01-15T08:00:00.000Z"
    assert seconds(timestamp(NOW + 0.25)) == NOW + 0.25
    assert seconds("2027-01-15T08:00:00Z") == NOW
    with pytest.raises(ValueError, match="bounds"):
        timestamp(1e15)
