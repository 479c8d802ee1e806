"""What a collection may be created with or changed to.

Of Chroma 1.5.9 an array or a sparse vector in a collection's metadata ends the request without an answer; with
``max_neighbors`` 0 the process dies (SIGSEGV) of the collection's first records, and with 10,000 of them one write
keeps the only thread that writes busy for minutes. See tests/server/test_shield_chroma.py.
"""

from __future__ import annotations

from typing import Any

import msgspec

from chromakeep.server.fields import Malformed
from chromakeep.server.gathered import Gathered

MOST_NEIGHBORS = 2048  # HNSW's own papers and defaults stay below 100
_DEEPEST = 128  # where Chroma stops reading
_SHAPE = "Failed to deserialize the JSON body into the target type: "


class CollectionWatch(Gathered):
    """``metadata`` and ``configuration`` are the names that the two have in the request."""

    def __init__(self, metadata: str, configuration: str) -> None:
        super().__init__()
        self._metadata, self._configuration = metadata, configuration

    def look(self, body: bytes) -> None:
        """Raises ``Malformed`` with 422."""
        # Of a key that comes twice the last value counts, as in Chroma where it takes that at all.
        described = msgspec.json.decode(body)
        if isinstance(described, list):  # Chroma would take its elements for the fields
            raise Malformed(_SHAPE + "the body must be an object", 422)
        if not isinstance(described, dict):
            return
        metadata = described.get(self._metadata)
        if isinstance(metadata, dict):
            for key, value in metadata.items():
                if isinstance(value, list | dict):
                    where = f"{self._metadata}.{key[:100]}"
                    raise Malformed(f"{_SHAPE}{where}: neither an array nor an object can be stored there", 422)
            _check_neighbors(metadata.get("hnsw:M"), f"{self._metadata}.hnsw:M")
        for name in (self._configuration, "schema"):
            _check(described.get(name), name)


def _check(node: Any, name: str, depth: int = 0) -> None:
    """Look for ``max_neighbors`` wherever Chroma may: its value, and no array that could hold it by position."""
    if depth > _DEEPEST:
        raise RecursionError("recursion limit exceeded")
    if isinstance(node, list):
        raise Malformed(f"{_SHAPE}{name}: an array where an object must be", 422)
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "max_neighbors":
                _check_neighbors(value, f"{name}: max_neighbors")
            if key != "embedding_function":  # its configuration is the client's affair
                _check(value, name, depth + 1)


def _check_neighbors(value: Any, name: str) -> None:
    if isinstance(value, int | float) and not 1 <= value <= MOST_NEIGHBORS:
        raise Malformed(f"{name} must be from 1 to {MOST_NEIGHBORS}", 422)
