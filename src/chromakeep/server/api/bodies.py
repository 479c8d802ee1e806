"""Bodies: JSON of unknown origin read into values, refused in Chroma's words where it is of another shape.

What is large is decoded by msgspec's compiled types. Only what is found to be wrong is read again, by ``json_reader``,
to say where; and only if it is small, for that is slow.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec
import orjson

from chromakeep.engine import Refused
from chromakeep.server.api.shapes import Record, Shape, first_mistake

T = TypeVar("T")
EXPLAINED = 1 << 16  # bytes of a body of which is said where it is wrong
NO_JSON = "Failed to parse the request body as JSON: "
NO_SHAPE = "Failed to deserialize the JSON body into the target type: "


def mistake(shape: Shape, body: bytes, known: Exception | None = None) -> Refused | None:
    """What is wrong with a body, ``known`` being what another decoder said of it. None: nothing is, and it said
    nothing."""
    if len(body) <= EXPLAINED:
        if found := first_mistake(shape, body):
            syntax, text = found
            return Refused(400, NO_JSON + text) if syntax else Refused(422, NO_SHAPE + text)
        if known is None:
            return None
    if isinstance(known, RecursionError):
        return Refused(400, NO_JSON + "recursion limit exceeded")
    if isinstance(known, msgspec.ValidationError) and "out of range" not in str(known):
        return Refused(422, NO_SHAPE + str(known))
    if known is None or isinstance(known, _Unfit):
        return Refused(422, NO_SHAPE + "a member is of another type")
    return Refused(400, NO_JSON + str(known))


class _Unfit(Exception):
    """JSON of another shape."""


@contextmanager
def read(shape: Shape, body: bytes) -> Iterator[None]:
    """Around the decoding of a body: what is raised there as an error of a decoder becomes a refusal."""
    try:
        yield
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, orjson.JSONDecodeError, _Unfit) as error:
        found = mistake(shape, body, error)
        assert found
        raise found from None


def decoded(shape: Record, body: bytes, decode: Callable[[bytes], T]) -> T:
    """What ``decode``, of msgspec, makes of a body. Raises ``Refused``."""
    with read(shape, body):
        value = decode(body)
        once(shape, body)
        return value


def once(shape: Record, body: bytes) -> None:
    """Of a body that has been decoded: raises ``Refused`` where one of its members stands there twice. Decoders take
    the last one then, Chroma none. ``RecursionError``.
    """
    found = _mentions(tuple(shape.members)).findall(body)
    if len(found) == len(set(found)):
        return
    keys: list[str] = []  # of the object that ends last, which is the whole

    def ended(pairs: list[tuple[str, Any]]) -> None:
        keys[:] = [key for key, _ in pairs]

    _loads(body, object_pairs_hook=ended)
    if twice := next((key for at, key in enumerate(keys) if key in shape.members and key in keys[:at]), None):
        refused = mistake(shape, body, msgspec.ValidationError(f"duplicate field `{twice}`"))
        assert refused
        raise refused


def _loads(body: bytes, **hooks: Any) -> Any:
    """Of what is JSON but for its texts. An integer of more than 64 bits is a float: of more digits than 4,300 Python
    makes none."""
    return json.loads(body.decode("utf-8", "replace"), parse_int=lambda n: int(n) if len(n) < 21 else float(n), **hooks)


@functools.cache
def _mentions(names: tuple[str, ...]) -> re.Pattern[bytes]:
    """Members of these names, wherever they stand. It begins with one byte: what has few of them is passed quickly."""
    return re.compile(rb'"(%b)"\s*:' % "|".join(map(re.escape, names)).encode())


def loose(shape: Record, body: bytes) -> dict[str, Any]:
    """A small body as decoded JSON that fits. Raises ``Refused``."""
    with read(shape, body):
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            if found := mistake(shape, body) or (len(body) > EXPLAINED and mistake(shape, body, error)):
                raise found from None
            value = _loads(body)  # Chroma does not look at texts and numbers that it ignores
        if not shape.fits(value):
            raise _Unfit
        once(shape, body)
    assert isinstance(value, dict)
    return value
