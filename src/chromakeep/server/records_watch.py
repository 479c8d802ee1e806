"""What the bodies of add, upsert and update may hold, and how many records that is.

Two kinds of them ruin a Chroma 1.5.9 (tests/server/test_shield_chroma.py shows it):

* ``chroma:document`` in a record's metadata with a value that is no string ends the thread that reads the log: all
  collections of all tenants answer 500 from then on, after a restart again.
* More than 5461 values in one record's metadata, elements of arrays counted: its collection answers 500 for ever.
"""

from __future__ import annotations

from chromakeep.server.fields import Malformed
from chromakeep.server.pieces import SPACE, Cutter, Value, means

SLOT = b"chroma:document"
MOST_VALUES = 5459  # in one record's metadata: Chroma binds six variables for each, and for the document and the URI
_NOT_A_STRING = "metadatas: chroma:document is where Chroma keeps a record's document: its value must be a string"
_TOO_MANY = f"metadatas: more than {MOST_VALUES} values in the metadata of one record: Chroma cannot store that"
_BETWEEN = SPACE + b","
_LONGEST = 3 * len("\\u0069")
_NO_OBJECT = "Failed to deserialize the JSON body into the target type: the body must be an object"


class RecordsWatch:
    """A ``Watch``. Keeps nothing back: what has passed is an unfinished body as long as it has not passed whole."""

    __slots__ = ("_cutter", "_ids", "_object", "_value", "_values")

    def __init__(self) -> None:
        self._cutter = Cutter()
        self._ids = _Ids()
        self._object = False  # the bracket that opens the body has come
        self._value: Value | None = None  # of a key that has come and whose value has not
        self._values: int | None = None  # commas of the metadata that is open

    @property
    def records(self) -> int | None:
        """How many elements ``ids`` has. None where that has not been seen whole."""
        return self._ids.count

    def feed(self, payload: bytes, *, last: bool) -> bytes:
        """All of it. Raises ``Malformed`` with 422."""
        pieces = self._cutter.cut(payload)
        self._slots(pieces)
        structure = b"".join(pieces[::2]) if len(pieces) > 1 else pieces[0]
        if not self._object:
            structure = structure.lstrip(SPACE)
            if structure.startswith(b"["):  # Chroma would take its elements for the fields
                raise Malformed(_NO_OBJECT, 422)
            self._object = bool(structure) or len(pieces) > 1
            structure = structure[1:]
        self._metadata(structure)
        if not self._ids.done:
            self._ids.read(pieces)
        return payload

    def _slots(self, pieces: list[bytes]) -> None:
        if self._value:
            self._decide(pieces[0], string=len(pieces) > 1)
        found = range(0)
        if SLOT in pieces or self._cutter.escapes:
            found = range(1, len(pieces), 2)
        for index in found:
            if not means(pieces[index], SLOT):
                continue
            self._value = Value()
            self._decide(pieces[index + 1], string=index + 2 < len(pieces))

    def _decide(self, outside: bytes, *, string: bool) -> None:
        assert self._value
        begins = self._value.begins(outside, string=string)
        if begins not in (None, b"", b'"'):
            raise Malformed(_NOT_A_STRING, 422)
        if begins is not None:
            self._value = None

    def _metadata(self, structure: bytes) -> None:
        """Count the commas of each object in the body; a list of values has one less than it has values."""
        most = MOST_VALUES - 1
        if b"{" not in structure:
            if self._values is not None:
                inside, closed, _ = structure.partition(b"}")
                self._count(self._values + inside.count(b","))
                if closed:
                    self._values = None
            return
        first, _, rest = structure.partition(b"{")
        if self._values is not None:
            self._count(self._values + first.partition(b"}")[0].count(b","))
        if rest.count(b",") > most:
            for piece in rest.split(b"{"):
                self._count(piece.partition(b"}")[0].count(b","))
        inside, closed, _ = structure[structure.rfind(b"{") + 1 :].partition(b"}")
        self._values = None if closed else inside.count(b",")

    def _count(self, commas: int) -> None:
        self._values = commas
        if commas >= MOST_VALUES:
            raise Malformed(_TOO_MANY, 422)


class RecordsCount:
    """A ``Watch`` that lets everything pass, and counts."""

    __slots__ = ("_cutter", "_ids")

    def __init__(self) -> None:
        self._cutter, self._ids = Cutter(), _Ids()

    @property
    def records(self) -> int | None:
        """See ``RecordsWatch``."""
        return self._ids.count

    def feed(self, payload: bytes, *, last: bool) -> bytes:
        """All of it."""
        if not self._ids.done:
            self._ids.read(self._cutter.cut(payload))
        return payload


class _Ids:
    """Counts the elements of the array ``ids`` of the body's own object. Chroma takes nothing but strings there."""

    __slots__ = ("_array", "_depth", "_seen", "_value", "count", "done")

    def __init__(self) -> None:
        self.count: int | None = None
        self.done = False  # no more can be learned
        self._depth = 0
        self._value: Value | None = None  # of what may be the key
        self._array = False  # its array is open
        self._seen = 0

    def read(self, pieces: list[bytes]) -> None:
        """The pieces of the next portion. Only while not ``done``."""
        size = len(pieces)
        for index in range(0, size, 2):
            outside, string = pieces[index], index + 1 < size
            if self._value:
                begins = self._value.begins(outside, string=string)
                if begins is None:
                    return
                self._value = None
                if begins == b"[":
                    self._array, outside = True, outside.partition(b"[")[2]
                elif begins:
                    self.done = True
                    return
            if self._array:
                if outside != b"," and outside.strip(_BETWEEN):
                    self.done = True
                    if outside.lstrip(_BETWEEN).startswith(b"]"):
                        self.count = self._seen
                    return
                self._seen += string
                continue
            if outside not in (b",", b":"):
                self._depth += outside.count(b"{") + outside.count(b"[") - outside.count(b"}") - outside.count(b"]")
            if string and self._depth == 1 and len(pieces[index + 1]) <= _LONGEST and means(pieces[index + 1], b"ids"):
                self._value = Value()
