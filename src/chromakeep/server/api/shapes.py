"""Shapes: what a JSON body must look like, as Chroma's own types say it.

``fits`` looks at decoded JSON and is quick; ``read`` looks at the text as Chroma's parser would, and raises its
``Mistake``. What ``fits`` refuses ``read`` refuses, but for bodies whose objects are written as arrays, member by
member, which Chroma takes and we do not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from chromakeep.server.api.json_reader import JsonReader, Mistake, show

_NULL, _QUOTE, _OPEN, _CLOSE, _LIST, _END = b'n"{}[]'
_NUMBERS, _FLAGS = frozenset(b"-0123456789"), frozenset(b"tf")


class Shape(Protocol):
    """What a value must be."""

    def fits(self, value: Any) -> bool: ...

    def read(self, reader: JsonReader) -> object:
        """Raises ``Mistake``."""


class Text:
    """A string."""

    def fits(self, value: Any) -> bool:
        return isinstance(value, str)

    def read(self, reader: JsonReader) -> object:
        return reader.string() if reader.peek() == _QUOTE else reader.unexpected("a string")


class Flag:
    """A boolean."""

    def fits(self, value: Any) -> bool:
        return isinstance(value, bool)

    def read(self, reader: JsonReader) -> object:
        return reader.scalar() if reader.peek() in _FLAGS else reader.unexpected("a boolean")


class Number:
    """A number that a type of Rust's holds: ``u32``, ``usize``, ``f32`` or ``f64``."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._below = {"u32": 2**32, "usize": 2**64}.get(kind, 0)

    def fits(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return not self._below or (isinstance(value, int) and 0 <= value < self._below)

    def read(self, reader: JsonReader) -> object:
        if reader.peek() not in _NUMBERS:
            reader.unexpected(self._kind)
        start = reader.at
        value = reader.number()
        if self._below and isinstance(value, float):
            reader.at = start
            reader.unexpected(self._kind)
        if not self.fits(value):
            reader.wrong(f"invalid value: integer `{value}`, expected {self._kind}")
        return value


class Optional:
    """A value, or null."""

    def __init__(self, of: Shape) -> None:
        self._of = of

    def fits(self, value: Any) -> bool:
        return value is None or self._of.fits(value)

    def read(self, reader: JsonReader) -> object:
        return reader.scalar() if reader.peek() == _NULL else self._of.read(reader)


class Sequence:
    """An array of values of one shape."""

    def __init__(self, of: Shape) -> None:
        self._of = of

    def fits(self, value: Any) -> bool:
        return isinstance(value, list) and all(map(self._of.fits, value))

    def read(self, reader: JsonReader) -> object:
        if reader.peek() != _LIST:
            reader.unexpected("a sequence")
        return items(reader, lambda: self._of.read(reader))


class Table:
    """An object with any keys."""

    def __init__(self, of: Shape) -> None:
        self._of = of

    def fits(self, value: Any) -> bool:
        return isinstance(value, Mapping) and all(map(self._of.fits, value.values()))

    def read(self, reader: JsonReader) -> object:
        if reader.peek() != _OPEN:
            reader.unexpected("a map")
        return members(reader, lambda key: self._of.read(reader))


class Anything:
    """Any JSON; or what ``accepts`` of decoded JSON, else ``otherwise`` is said, or what that says of it."""

    def __init__(
        self, accepts: Callable[[Any], bool] | None = None, otherwise: str | Callable[[Any], str] = ""
    ) -> None:
        self._accepts, self._otherwise = accepts, otherwise

    def fits(self, value: Any) -> bool:
        return self._accepts is None or self._accepts(value)

    def read(self, reader: JsonReader) -> object:
        value = read_any(reader)
        if not self.fits(value):
            text = self._otherwise
            reader.wrong(text if isinstance(text, str) else text(value), here=False)
        return value


class Choice:
    """One of several strings."""

    def __init__(self, *names: str) -> None:
        self._names = names

    def fits(self, value: Any) -> bool:
        return value in self._names if isinstance(value, str) else False

    def read(self, reader: JsonReader) -> object:
        return variant(reader, self._names, self._unit)

    def _unit(self, reader: JsonReader, name: str) -> None:
        if reader.peek() != _NULL:
            reader.unexpected("unit")
        reader.scalar()


class Record:
    """An object with these members. ``strict``: no others; ``loose``: others are read before they are ignored."""

    def __init__(
        self,
        name: str,
        needed: Mapping[str, Shape] | None = None,
        more: Mapping[str, Shape] | None = None,
        *,
        strict: bool = False,
        loose: bool = False,
        order: tuple[str, ...] = (),
    ) -> None:
        self.name = name if " " in name else f"struct {name}"
        self._needed = dict(needed or {})
        self.members: dict[str, Shape] = {**self._needed, **(more or {})}
        self._order = order or tuple(self.members)
        self._strict, self._loose = strict, loose

    def fits(self, value: Any) -> bool:
        if not isinstance(value, Mapping) or not all(name in value for name in self._needed):
            return False
        if self._strict and not all(name in self.members for name in value):
            return False
        return all(shape.fits(value[name]) for name, shape in self.members.items() if name in value)

    def read(self, reader: JsonReader) -> object:
        byte = reader.peek()
        if byte == _LIST and not self._loose:
            return self._by_position(reader)
        if byte != _OPEN:
            reader.unexpected(self.name)
        seen: set[str] = set()
        late: list[str] = []

        def member(key: str) -> object:
            if key in self.members:
                return self.members[key].read(reader)
            return read_any(reader) if self._loose else reader.skip()

        def check(key: str) -> None:
            if key not in self.members:
                if self._strict:
                    reader.path.append(key)
                    reader.wrong(f"unknown field `{key}`, {one_of(self._order)}")
            elif key in seen:
                if not self._loose or key not in ("where", "where_document"):
                    reader.wrong(f"duplicate field `{key}`", here=False)
                late.append(key)
            seen.add(key)

        def done() -> None:
            for name in self._needed:
                if name not in seen:
                    reader.wrong(f"missing field `{name}`", here=False)
            if late:
                reader.wrong(f"duplicate field `{late[0]}`", here=False)

        return members(reader, member, check, done)

    def _by_position(self, reader: JsonReader) -> object:
        left = list(self._order)
        short = f"expected {self.name} with {len(left)} element{'s' if len(left) != 1 else ''}"

        def item() -> object:
            if not left:
                reader.path.pop()
                reader.broken("trailing characters")
            return self.members[left.pop(0)].read(reader)

        def done() -> None:
            missing = len(self._order) - len(left)
            if left:
                reader.wrong(f"invalid length {missing}, {short}", here=False)

        return items(reader, item, done)


class Variants:
    """An object with one member: the name of a variant and what it holds."""

    def __init__(self, variants: Callable[[], Mapping[str, Shape]]) -> None:
        self._variants = variants

    def fits(self, value: Any) -> bool:
        if not isinstance(value, Mapping) or len(value) != 1:
            return False
        ((name, held),) = value.items()
        return name in self._variants() and self._variants()[name].fits(held)

    def read(self, reader: JsonReader) -> object:
        quoted, held = reader.peek() == _QUOTE, {}
        name = variant(
            reader,
            tuple(self._variants()),
            lambda reader, name: held.update({name: self._variants()[name].read(reader)}),
        )
        if quoted:
            reader.path.append(name)
            reader.wrong("invalid type: unit variant, expected newtype variant", here=False)
        return held


class Tagged:
    """An object whose ``type`` tells what else is needed in it."""

    def __init__(self, name: str, kinds: Mapping[str, Mapping[str, Shape]]) -> None:
        self._name, self._kinds = name, kinds

    def fits(self, value: Any) -> bool:
        if not isinstance(value, Mapping) or not isinstance(value.get("type"), str):
            return False
        needed = self._kinds.get(value["type"])
        return needed is not None and all(name in value and needed[name].fits(value[name]) for name in needed)

    def read(self, reader: JsonReader) -> object:
        byte = reader.peek()
        if byte not in (_OPEN, _LIST):
            reader.unexpected(f"internally tagged enum {self._name}")
        value = members(reader, lambda key: self._member(reader, key)) if byte == _OPEN else read_any(reader)
        if not isinstance(value, dict) or "type" not in value:
            reader.wrong("missing field `type`")
        for name, shape in self._kinds[value["type"]].items():
            if name in value and not shape.fits(value[name]):
                reader.wrong(f"invalid type: {kind(value[name])}, expected a string", here=False)
        for name in self._kinds[value["type"]]:
            if name not in value:
                reader.wrong(f"missing field `{name}`", here=False)
        return value

    def _member(self, reader: JsonReader, key: str) -> object:
        if key != "type":
            return read_any(reader)
        if reader.peek() != _QUOTE:
            reader.unexpected("variant identifier")
        name = reader.string()
        if name not in self._kinds:
            reader.wrong(f"unknown variant `{name}`, {one_of(tuple(self._kinds))}")
        return name


def kind(value: Any) -> str:
    """What a value is, in the words of serde."""
    return "sequence" if isinstance(value, list) else "map" if isinstance(value, Mapping) else show(value)


def variant(reader: JsonReader, names: tuple[str, ...], held: Callable[[JsonReader, str], object]) -> str:
    """The name of a variant, alone or as the only key of an object, where ``held`` reads what it holds."""
    byte = reader.peek()
    if byte not in (_OPEN, _QUOTE):
        reader.broken("EOF while parsing a value" if byte == -1 else "expected value")
    if byte == _OPEN:
        reader.deeper()
    if reader.peek() != _QUOTE:
        reader.unexpected("variant identifier")
    name = reader.string()
    if name not in names:
        reader.wrong(f"unknown variant `{name}`, {one_of(names)}")
    if byte == _QUOTE:
        return name
    reader.colon()
    reader.path.append(name)
    try:
        held(reader, name)
    except Mistake as mistake:
        raise mistake.placed(reader.at) from None
    reader.path.pop()
    if reader.peek() != _CLOSE:
        reader.broken("EOF while parsing an object" if reader.peek() == -1 else "expected value", 0)
    reader.at += 1
    reader.depth += 1
    return name


def items(reader: JsonReader, item: Callable[[], object], done: Callable[[], None] | None = None) -> list[object]:
    """The array that begins here."""
    found: list[object] = []
    reader.deeper()
    try:
        while reader.has_item(not found):
            reader.path.append(len(found))
            found.append(item())
            reader.path.pop()
        if done:
            done()
    except Mistake as mistake:
        if mistake.at is None:
            reader.close(_END)
        raise mistake.placed(reader.at) from None
    reader.at += 1
    reader.depth += 1
    return found


def members(
    reader: JsonReader,
    member: Callable[[str], object],
    check: Callable[[str], None] | None = None,
    done: Callable[[], None] | None = None,
) -> dict[str, object]:
    """The object that begins here. ``check`` sees a key before its value is read, ``done`` is called at its end."""
    found: dict[str, object] = {}
    reader.deeper()
    first = True
    try:
        while True:
            reader.path.append("?")  # until the key is known
            if not reader.has_key(first):
                break
            key = reader.string()
            reader.path.pop()
            if check:
                check(key)
            reader.colon()
            reader.path.append(key)
            found[key] = member(key)
            reader.path.pop()
            first = False
        reader.path.pop()
        if done:
            done()
    except Mistake as mistake:
        if mistake.at is None:
            reader.close(_CLOSE)
        raise mistake.placed(reader.at) from None
    reader.at += 1
    reader.depth += 1
    return found


def read_any(reader: JsonReader) -> object:
    """Any JSON, decoded."""
    byte = reader.peek()
    if byte == _LIST:
        return items(reader, lambda: read_any(reader))
    if byte == _OPEN:
        return members(reader, lambda key: read_any(reader))
    return reader.scalar()


def one_of(names: tuple[str, ...]) -> str:
    """What was expected, in the words of serde."""
    shown = [f"`{name}`" for name in names]
    if not shown:
        return "there are no fields"
    if len(shown) == 1:
        return f"expected {shown[0]}"
    return f"expected {shown[0]} or {shown[1]}" if len(shown) == 2 else f"expected one of {', '.join(shown)}"


def first_mistake(shape: Shape, data: bytes) -> tuple[bool, str] | None:
    """Whether the first mistake in a body is that it is no JSON, and what Chroma says of it; None: there is none."""
    reader = JsonReader(data)
    try:
        shape.read(reader)
        reader.path.clear()
        if reader.peek() != -1:
            reader.broken("trailing characters")
    except Mistake as mistake:
        return mistake.syntax, mistake.placed(reader.at).line(data)
    return None
