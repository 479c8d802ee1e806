"""The chain of the audit log: what a line is, and what makes one follow another (``docs/format.md``).

A line is a JSON object in ASCII that ends with ``"previous"``, the hash of the line before, and ``"hash"``: SHA-256 of
the line's bytes up to the comma before ``"hash"``. So no line can be changed, taken out, added or moved without another
that no longer fits; but whoever may write the file can write all of it anew, which the copies in a repository show.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import msgspec

NOTHING = "0" * 64  # before the first line
LONGEST = 1 << 16  # bytes of a line that are believed
TORN = "torn"  # the event that closes a line which a crash has cut short
_END = re.compile(rb'"previous":"([0-9a-f]{64})","hash":"([0-9a-f]{64})"\}', re.ASCII)
_INSTANCE = re.compile(r"[0-9a-f]{16}", re.ASCII)
_TAIL = len(b',"hash":""}') + 64


class Link(msgspec.Struct, frozen=True):
    """A line that is whole and has its own hash. ``fields`` are all of it, of unknown origin."""

    number: int
    instance: str
    previous: str
    hash: str
    fields: dict[str, Any]

    @property
    def event(self) -> str:
        return str(self.fields.get("event", ""))


class Wrong(Exception):
    """A line is not what it should be; the message says what, in a few words."""


def forge(number: int, instance: str, previous: str, fields: Mapping[str, object]) -> tuple[bytes, str]:
    """The line of a record, with its newline, and its hash."""
    whole = {"number": number, "instance": instance, **fields, "previous": previous}
    body = json.dumps(whole, separators=(",", ":")).encode("ascii")[:-1]
    found = hashlib.sha256(body).hexdigest()
    return body + b',"hash":"' + found.encode() + b'"}\n', found


def read(line: bytes) -> Link:
    """A line without its newline. Raises ``Wrong``."""
    if len(line) > LONGEST:
        raise Wrong(f"is longer than {LONGEST} bytes")
    ending = _END.fullmatch(line[-(_TAIL + 64 + 13) :])
    if not ending:
        raise Wrong("is no record, or not all of one")
    if hashlib.sha256(line[:-_TAIL]).hexdigest().encode() != ending[2]:
        raise Wrong("was changed: its hash is another")
    try:
        fields: dict[str, Any] = msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise Wrong("is no JSON object") from None
    number, instance = fields.get("number"), fields.get("instance")
    if type(number) is not int or number < 1 or not isinstance(instance, str) or not _INSTANCE.fullmatch(instance):
        raise Wrong("has no number or instance")
    return Link(number, instance, ending[1].decode(), ending[2].decode(), fields)


class Break(msgspec.Struct, frozen=True):
    """Where a chain breaks: the ``line`` (from 1) of a file or object, and what is wrong with it."""

    place: str
    line: int
    what: str


class Chain:
    """Takes lines in their order and stops believing at the first wrong one, which ``broken`` then names.

    It may begin anywhere, unless it is known of which ``instance`` it is and what it begins with: the record
    ``number``, behind one whose hash is ``previous``.
    """

    def __init__(self, instance: str | None = None, number: int = 1, previous: str = NOTHING) -> None:
        self.instance = instance or ""
        self._begins = (instance, number, previous) if instance else None
        self.first: Link | None = None
        self.last: Link | None = None
        self.records = 0
        self.closed = 0  # pieces of lines that a crash left and the next start closed
        self.broken: Break | None = None
        self._torn: tuple[str, int, bytes, str] | None = None

    @property
    def torn(self) -> bool:
        """Whether it ends in a piece of a line that nothing has closed yet, as after a crash."""
        return self._torn is not None and self.broken is None

    def take(self, place: str, number: int, line: bytes, *, whole: bool = True) -> Link | None:
        """The next line, without its newline; not ``whole``: it had none. The record, unless something is wrong."""
        if self.broken:
            return None
        try:
            link = read(line)
        except Wrong as error:
            if self._torn:
                self._break(*self._torn[:2], self._torn[3])
            self._torn = (place, number, line, str(error))
            return None
        if not whole:
            self._torn = (place, number, line, "has no end")
            return None
        if self._torn and not _closes(link, self._torn[2]):
            self._break(*self._torn[:2], self._torn[3])
            return None
        self.closed += self._torn is not None
        self._torn = None
        before = self.last
        if wrong := _misfit(before, link) if before or not self._begins else _wrong_first(link, *self._begins):
            self._break(place, number, wrong)
            return None
        self.first = self.first or link
        self.last = link
        self.records += 1
        return link

    def end(self) -> None:
        """No more comes, and there must be nothing torn: what follows was taken elsewhere."""
        if self._torn and not self.broken:
            self._break(*self._torn[:2], self._torn[3])

    def _break(self, place: str, line: int, what: str) -> None:
        self.broken = self.broken or Break(place, line, what)


def _misfit(before: Link | None, link: Link) -> str | None:
    """Why a line does not follow another one, if so."""
    if before is None:
        first = link.number == 1 and link.previous != NOTHING
        return "is the first record, but says that another came before it" if first else None
    if link.instance != before.instance:
        return f"is of another instance, {link.instance}"
    if link.number > before.number + 1:
        more = f" to {link.number - 1}" if link.number > before.number + 2 else ""
        return f"is record {link.number}: record {before.number + 1}{more} is missing before it"
    if link.number <= before.number:
        return f"is record {link.number}: out of order after {before.number}"
    if link.previous != before.hash:
        return "does not follow the line before it: one of the two was replaced"
    return None


def _wrong_first(link: Link, instance: str, number: int, previous: str) -> str | None:
    """Why a line is not the one that a chain begins with, if so."""
    if link.instance != instance:
        return f"is of another instance, {link.instance}"
    if link.number != number:
        return f"is record {link.number}, where the chain begins with record {number}"
    if link.previous != previous:
        return "does not follow what was before it" if number > 1 else _misfit(None, link)
    return None


def torn(piece: bytes) -> dict[str, object]:
    """The fields of the record that closes a torn line."""
    return {"event": TORN, "bytes": len(piece), "sha256": hashlib.sha256(piece).hexdigest()}


def _closes(link: Link, piece: bytes) -> bool:
    return all(link.fields.get(name) == value for name, value in torn(piece).items())
