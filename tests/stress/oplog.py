"""The log of what writers asked for and what was acknowledged, and the states it allows a snapshot to have.

Each writer thread owns its ids and works through its operations one after the other. A line is written before an
operation starts and another when it was acknowledged, with CLOCK_MONOTONIC. Every operation is atomic in Chroma (one
transaction of its queue), so a snapshot taken between ``t0`` and ``t1`` must show each writer's records as they are
after k operations, for one k with acknowledged(t0) <= k <= started(t1).

Vectors are chosen so that equality can be asked for bit by bit even where Chroma normalises them (cosine): 16, 64 or
256 components of one magnitude 2**e have the norm 2**(e+2), 2**(e+3), 2**(e+4) exactly, in whatever order they are
summed.
"""

from __future__ import annotations

import functools
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Record = tuple[bytes, "str | None", dict[str, Any]]  # vector, document, metadata
State = dict[tuple[str, str], Record]  # (collection, id)


@functools.lru_cache(maxsize=200_000)
def vector(seed: int, dimension: int) -> bytes:
    """Little-endian float32: random signs, one random power of two."""
    random = np.random.default_rng(seed)
    signs = random.integers(0, 2, dimension) * 2 - 1
    return (signs * 2.0 ** int(random.integers(-3, 4))).astype("<f4").tobytes()


class OpLog:
    """The writing end: one file per writer thread, each line handed to the kernel before the operation starts."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", buffering=1)

    def started(self, operation: dict[str, Any]) -> None:
        self._file.write(json.dumps({"at": time.monotonic(), **operation}) + "\n")

    def acknowledged(self) -> None:
        self._file.write(json.dumps({"ack": time.monotonic()}) + "\n")


@dataclass
class Replay:
    """The reading end of one writer's log, followed as it grows."""

    path: Path
    operations: list[dict[str, Any]] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    acks: list[float] = field(default_factory=list)
    state: State = field(default_factory=dict)
    collections: dict[str, int] = field(default_factory=dict)  # name -> dimension
    applied: int = 0
    _read: int = 0

    def follow(self) -> None:
        """Take in the complete lines written since."""
        with self.path.open("rb") as file:
            file.seek(self._read)
            lines = file.read().split(b"\n")[:-1]
        for line in lines:
            self._read += len(line) + 1
            entry = json.loads(line)
            if "ack" in entry:
                self.acks.append(entry["ack"])
            else:
                self.starts.append(entry["at"])
                self.operations.append(entry)

    def allowed(self, t0: float, t1: float) -> range:
        """How many operations a snapshot taken within [t0, t1] may show."""
        return range(sum(a <= t0 for a in self.acks), sum(s <= t1 for s in self.starts) + 1)

    def advance(self, count: int) -> None:
        """Bring ``state`` and ``collections`` to what ``count`` operations make of them; never backwards."""
        for operation in self.operations[self.applied : count]:
            self._apply(operation)
        self.applied = max(self.applied, count)

    def latencies(self, windows: list[tuple[float, float]]) -> list[float]:
        """Seconds from start to acknowledgement of the operations that overlap any window."""
        done = zip(self.starts, self.acks)  # noqa: B905 - the last one may be open
        return [a - s for s, a in done if any(s < t1 and a > t0 for t0, t1 in windows)]

    def _apply(self, operation: dict[str, Any]) -> None:
        kind, name = operation["op"], operation["c"]
        if kind == "create":
            self.collections[name] = operation["dim"]
        elif kind == "drop":
            del self.collections[name]
            self.state = {key: r for key, r in self.state.items() if key[0] != name}
        elif kind == "delete":
            for identity in operation["ids"]:
                del self.state[name, identity]
        else:
            size = len(operation["ids"])
            seeds, documents = operation.get("v") or [None] * size, operation.get("d") or [None] * size
            metadatas = operation.get("m") or [{}] * size
            for identity, seed, document, changed in zip(operation["ids"], seeds, documents, metadatas, strict=True):
                old = self.state.get((name, identity), (b"", None, {}))
                metadata = {**old[2], **changed}
                self.state[name, identity] = (
                    old[0] if seed is None else vector(seed, self.collections[name]),
                    old[1] if document is None else document,
                    {k: v for k, v in metadata.items() if v is not None},
                )
