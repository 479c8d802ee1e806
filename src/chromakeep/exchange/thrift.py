"""Thrift's compact protocol, as far as the end of a Parquet file needs it: structs taken apart and put together."""

from __future__ import annotations

from typing import Any, NamedTuple

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
_NUMBERS = (I16, I32, I64)


class Field(NamedTuple):
    """One field of a struct. ``value``: an int, bytes (of a binary, a double, a byte), a ``List``, or a list of fields;
    of a boolean the kind says it."""

    id: int
    kind: int
    value: Any


class List(NamedTuple):
    """Values of one kind; ``raw`` ones are bytes that are put as they are."""

    kind: int
    values: list[Any]
    raw: bool = False


def load(data: bytes) -> list[Field]:
    """The fields of the struct with which ``data`` begins. Raises ``ValueError`` for what is none."""
    try:
        return _struct(data, 0)[0]
    except (IndexError, RecursionError):
        raise ValueError("the struct has no end") from None


def dump(fields: list[Field]) -> bytes:
    """The bytes of a struct. ``dump(load(x))`` is ``x`` for what was written as briefly as can be."""
    out = bytearray()
    last = 0
    for field in fields:
        step = field.id - last
        if 0 < step < 16:
            out.append(step << 4 | field.kind)
        else:
            out.append(field.kind)
            out += _varint(_zigzag(field.id))
        out += _dumped(field.kind, field.value)
        last = field.id
    out.append(0)
    return bytes(out)


def _dumped(kind: int, value: Any) -> bytes:
    if kind in (TRUE, FALSE):
        return b""
    if kind in _NUMBERS:
        return _varint(_zigzag(value))
    if kind == BINARY:
        return _varint(len(value)) + bytes(value)
    if kind in (BYTE, DOUBLE):
        return bytes(value)
    if kind == STRUCT:
        return dump(value)
    count = len(value.values)
    head = bytes([count << 4 | value.kind]) if count < 15 else bytes([0xF0 | value.kind]) + _varint(count)
    if value.raw:
        return head + b"".join(value.values)
    if value.kind in (TRUE, FALSE):
        return head + bytes(value.values)
    return head + b"".join([_dumped(value.kind, each) for each in value.values])


def _struct(data: bytes, at: int) -> tuple[list[Field], int]:
    fields = []
    last = 0
    while head := data[at]:
        at += 1
        kind = head & 15
        if step := head >> 4:
            last += step
        else:
            number, at = _read_varint(data, at)
            last = _unzigzag(number)
        value, at = _value(data, at, kind)
        fields.append(Field(last, kind, value))
    return fields, at + 1


def _value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in (TRUE, FALSE):
        return None, at
    if kind in _NUMBERS:
        number, at = _read_varint(data, at)
        return _unzigzag(number), at
    if kind in (BINARY, BYTE, DOUBLE):
        size = 1 if kind == BYTE else 8
        if kind == BINARY:
            size, at = _read_varint(data, at)
        if size > len(data) - at:
            raise IndexError
        return data[at : at + size], at + size
    if kind == STRUCT:
        return _struct(data, at)
    if kind not in (LIST, SET):
        raise ValueError(f"a field is of the kind {kind}")
    head = data[at]
    at += 1
    inner, count = head & 15, head >> 4
    if count == 15:
        count, at = _read_varint(data, at)
    if count > len(data) - at:  # each takes a byte
        raise IndexError
    values = []
    for _ in range(count):
        if inner in (TRUE, FALSE):  # in a list each is a byte
            value, at = data[at], at + 1
        else:
            value, at = _value(data, at, inner)
        values.append(value)
    return List(inner, values), at


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
        shift += 7
        if shift > 63:
            raise ValueError("a number has no end")


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _zigzag(number: int) -> int:
    return (number << 1) ^ (number >> 63)


def _unzigzag(number: int) -> int:
    return (number >> 1) ^ -(number & 1)
