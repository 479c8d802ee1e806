"""Two servers that are asked the same: a stock one, and one behind a door. What differs by nature is taken out.

By nature: ids that a server draws itself (of collections and databases), so the order of lists by them; the time; the
order in which it writes maps, a new one each time; and so which of several keys of metadata that are wrong it tells;
the order of records at one distance, and which of them are there where a limit cuts them off.
"""

from __future__ import annotations

import inspect
import json
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import msgspec
import numpy as np

from server.wires import Answer, Wire

UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
BEATS = re.compile(r'("nanosecond heartbeat":)\d+')
WRONG_KEY = re.compile(r"(metadata: Metadata key) cannot.*?(?=\n|\\n|\"|$)")  # to the end of its line, as JSON too
OF_THE_HOP = frozenset({"date", "connection", "transfer-encoding", "content-length"})
DROPPED = "the connection ended without an answer"


class Call(msgspec.Struct, frozen=True):
    """One call of chromadb's client. ``on``: "client", "admin", or the name of a collection as it was opened last."""

    on: str
    method: str
    arguments: dict[str, Any]


class Side:
    """One client, what it has opened, and the names of the ids that its server drew."""

    def __init__(self, client: Any, admin: Any = None) -> None:
        self.client, self.admin = client, admin
        self.opened: dict[str, Any] = {}
        self.names: dict[str, str] = {}

    async def outcome(self, call: Call) -> object:
        """What came of it, comparable with what came of it on the other side."""
        target = {"client": self.client, "admin": self.admin}.get(call.on) or self.opened.get(call.on)
        if target is None:
            return "not opened"
        try:
            found = getattr(target, call.method)(**call.arguments)
            if inspect.isawaitable(found):
                found = await found
        except Exception as error:  # whatever it is, it must be the same
            return type(error).__qualname__, ordered(str(self.plain(str(error))))
        if call.method in ("create_collection", "get_or_create_collection", "get_collection"):
            self.opened[call.arguments["name"]] = found
            self.names[str(found.id)] = call.arguments["name"]
        if call.method == "list_collections":  # in the order of their ids
            return sorted(map(repr, map(self.plain, found)))
        plain = self.plain(found)
        if call.method == "query" and isinstance(plain, dict):
            whole = target.query(**{**call.arguments, "n_results": 1000, "include": ["distances"]})
            untied(plain, self.plain((await whole if inspect.isawaitable(whole) else whole)["distances"]))
        return plain

    def plain(self, value: Any) -> object:
        """A value without the server's own ids, types told apart (1, 1.0 and True are three values)."""
        if hasattr(value, "_model"):
            value = vars(value._model)
        if isinstance(value, Mapping):
            return {key: self.plain(value[key]) for key in sorted(value, key=repr)}
        if isinstance(value, list | tuple):
            return [self.plain(one) for one in value]
        if isinstance(value, np.ndarray):
            return str(value.dtype), value.tolist()
        if isinstance(value, str) or type(value).__name__ == "UUID":
            return UUID.sub(lambda found: f"<{self.names.get(found[0], 'an id')}>", str(value))
        if value is None or isinstance(value, bool | int | float):
            return repr(value)
        return type(value).__qualname__, repr(vars(value)) if hasattr(value, "__dict__") else repr(value)


def untied(found: dict[str, Any], distances: Any) -> None:
    """Put what a query found at one distance into the order of the ids: an index has none for it. Where not all at the
    last one are there any more, nothing is left of them but that one is. ``distances`` are those of a query for all."""
    columns = [rows for name, rows in found.items() if isinstance(rows, list) and name not in ("included", "distances")]
    for number, ids in enumerate(found["ids"]):
        there = distances[number][: len(ids)]
        order = sorted(range(len(ids)), key=lambda i: (there.index(there[i]), ids[i]))
        cut = there[-1] if there and distances[number].count(there[-1]) > there.count(there[-1]) else None
        for rows in columns:
            rows[number] = [rows[number][i] if there[i] != cut else "one of several" for i in order]


def ordered(text: str) -> str:
    """A message; the words of one that lists what is not valid, in order: Rust shows it from a map."""
    text = WRONG_KEY.sub(r"\1", text)
    return " ".join(sorted(re.split(r"(?:\\n|[\s,{}\[\]\"])+", text))) if "Validation error" in text else text


class Sender:
    """Requests over one kept connection to one server."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._wire: Wire | None = None
        self.collection = ""  # an id that stands where a request says ``{c}``

    def create(self, target: str, body: object) -> str:
        """The id that the server draws for what is created by this request."""
        wire = Wire(socket.create_connection(("127.0.0.1", self._port)))
        payload = json.dumps(body).encode()
        wire.send(f"POST {target} HTTP/1.1\r\nhost: h\r\ncontent-length: {len(payload)}\r\n\r\n".encode() + payload)
        answer = wire.answer()
        wire.close()
        assert answer.status == 200, answer
        return str(json.loads(answer.body)["id"])

    def ask(self, method: str, target: str, body: bytes | None = None, kind: str | None = "application/json") -> object:
        """Status, fields and body of the answer to one request, or ``DROPPED``."""
        lines = [f"{method} {target.replace('{c}', self.collection)} HTTP/1.1", "host: h"]
        if body is not None:
            lines.append(f"content-length: {len(body)}")
        if kind is not None:
            lines.append(f"content-type: {kind}")
        head = "\r\n".join([*lines, "", ""]).encode()
        for _ in range(2):
            fresh = self._wire is None
            wire = self._wire = self._wire or Wire(socket.create_connection(("127.0.0.1", self._port)))
            try:
                wire.send(head + (body or b""))
                answer = wire.answer(method)
            except (EOFError, ConnectionError):
                self.close()
                if fresh:
                    return DROPPED
                continue  # it may have been closed after the answer before: asked once more on a new one
            if answer.fields.get("connection") == "close":
                self.close()
            return plain(answer)
        return DROPPED

    def close(self) -> None:
        if self._wire:
            with suppress(OSError):
                self._wire.close()
        self._wire = None


def plain(answer: Answer) -> object:
    """An answer without what differs by nature and what belongs to the hop."""
    text = BEATS.sub(r"\1 0", UUID.sub("<an id>", answer.body.decode("utf-8", "backslashreplace")))
    with suppress(ValueError):
        text = json.dumps(json.loads(text), sort_keys=True)  # Chroma writes maps in any order
    text = ordered(text.replace('\\"', '"'))
    if answer.status == 502 and "Chroma ended the connection without an answer" in text:
        return DROPPED  # the same news in words
    return answer.status, {k: v for k, v in answer.fields.items() if k not in OF_THE_HOP}, text
