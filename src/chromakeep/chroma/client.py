"""A Chroma server as its HTTP API shows it (v2, as measured on 1.5.9), without the chromadb package."""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import msgspec
import numpy as np
from numpy.typing import NDArray

from chromakeep.errors import ServerAnswered, ServerSilent

Vectors = NDArray[np.float32]
_BATCH_BYTES = 8 << 20  # of base64 text in one request; the server's body limit is 40 MiB
_PAGE = 1000
_MAX_ANSWER = 1 << 30
_MAX_BEAT = 64 << 10  # bytes of a heartbeat's answer: it has 40


class Ref(msgspec.Struct, frozen=True):
    """Which collection: the server finds it by ``id``; tenant and database only make the path."""

    id: str
    name: str
    tenant: str = "default_tenant"
    database: str = "default_database"

    @property
    def path(self) -> str:
        """Its place below ``/api/v2``."""
        return (
            f"/tenants/{quote(self.tenant, safe='')}/databases/{quote(self.database, safe='')}"
            f"/collections/{quote(self.id, safe='')}"
        )


class ChromaClient:
    """Requests to one server, each on a connection of its own, so that threads may share it.

    Every method raises ``ServerAnswered`` (the server said no) or ``ServerSilent`` (no answer within ``timeout``
    seconds, or none at all).
    """

    def __init__(self, host: str, port: int, *, timeout: float = 30.0, secure: bool = False) -> None:
        self.host, self.port, self.timeout = host, port, timeout
        self._connection = http.client.HTTPSConnection if secure else http.client.HTTPConnection

    def request(
        self, method: str, path: str, body: object = None, *, timeout: float | None = None, most: int = _MAX_ANSWER
    ) -> Any:
        """The parsed JSON answer to one request below ``/api/v2``."""
        seconds = timeout or self.timeout
        connection = self._connection(self.host, self.port, timeout=seconds)
        payload = None if body is None else json.dumps(body).encode()
        try:
            connection.request(method, f"/api/v2{path}", payload, {"content-type": "application/json"})
            answer = connection.getresponse()
            data = answer.read(most)
            if len(data) == most:
                raise http.client.HTTPException(f"more than {most} bytes")
            if answer.length:  # read(n) says nothing of an answer that was cut off
                raise http.client.IncompleteRead(data, answer.length)
        except TimeoutError:
            raise ServerSilent(f"no answer to {method} {path} in {seconds:g} s", timed_out=True) from None
        except (OSError, http.client.HTTPException) as error:
            what = str(error) or type(error).__name__
            raise ServerSilent(f"{self.host}:{self.port} does not answer: {what}", timed_out=False) from None
        finally:
            connection.close()
        try:
            parsed = json.loads(data) if data else None
        except ValueError:
            parsed = None
        if not 200 <= answer.status < 300:
            said = parsed.get("message") if isinstance(parsed, dict) else None
            raise ServerAnswered(answer.status, str(said or data[:200].decode("utf-8", "replace") or answer.reason))
        return parsed

    def heartbeat(self, *, timeout: float | None = None) -> Any:
        """What the front of the server answers; says nothing of the data behind it."""
        return self.request("GET", "/heartbeat", timeout=timeout, most=_MAX_BEAT)

    def list_collections(self, tenant: str = "default_tenant", database: str = "default_database") -> list[Ref]:
        """The collections of one database. Tenants cannot be listed over HTTP."""
        found: list[Ref] = []
        path = Ref("", "", tenant, database).path.rstrip("/")
        while page := self.request("GET", f"{path}?limit={_PAGE}&offset={len(found)}"):
            found += [Ref(str(c["id"]), str(c["name"]), tenant, database) for c in page]
        return found

    def count(self, ref: Ref, *, timeout: float | None = None) -> int:
        """Live records. The first count of a collection in a server's life replays its queue, as any first read."""
        return int(self.request("GET", f"{ref.path}/count", timeout=timeout))

    def ids(self, ref: Ref) -> Iterator[list[str]]:
        """All ids in the order of insertion, in pages."""
        offset = 0
        while page := self.request("POST", f"{ref.path}/get", {"limit": _PAGE, "offset": offset, "include": []})["ids"]:
            yield page
            offset += len(page)

    def get_vectors(self, ref: Ref, ids: Sequence[str] | None = None, *, limit: int = _PAGE) -> dict[str, Vectors]:
        """Vectors by id, of the given ids or of the first ``limit`` records."""
        which: dict[str, object] = {"limit": limit} if ids is None else {"ids": list(ids)}
        answer = self.request("POST", f"{ref.path}/get", {**which, "include": ["embeddings"]})
        return {i: np.asarray(v, "<f4") for i, v in zip(answer["ids"], answer["embeddings"], strict=True)}

    def query(self, ref: Ref, vector: Vectors, *, n: int = 10) -> list[str]:
        """Ids of the nearest records, nearest first."""
        body = {"query_embeddings": [vector.tolist()], "n_results": n, "include": ["distances"]}
        return list(self.request("POST", f"{ref.path}/query", body)["ids"][0])

    def upsert_vectors(self, ref: Ref, vectors: Mapping[str, Vectors]) -> None:
        """Give records these vectors and leave their documents and metadata as they are."""
        base64_taken = bool(self.request("GET", "/pre-flight-checks").get("supports_base64_encoding"))
        ids = list(vectors)
        width = max((v.nbytes for v in vectors.values()), default=4)
        step = max(1, min(_PAGE, _BATCH_BYTES // (width * (2 if base64_taken else 5))))
        for start in range(0, len(ids), step):
            part = ids[start : start + step]
            rows = [np.ascontiguousarray(vectors[i], "<f4") for i in part]
            sent = [base64.b64encode(r.tobytes()).decode() if base64_taken else r.tolist() for r in rows]
            # The single compactor answers after the whole batch is indexed: seconds per thousand wide vectors.
            self.request("POST", f"{ref.path}/upsert", {"ids": part, "embeddings": sent}, timeout=300)

    def delete(self, ref: Ref, ids: Sequence[str]) -> None:
        """Remove records."""
        for start in range(0, len(ids), _PAGE):
            self.request("POST", f"{ref.path}/delete", {"ids": list(ids[start : start + _PAGE])}, timeout=300)

    def write_nothing(self, ref: Ref) -> None:
        """A write that changes no record, through the log and the compactor: an update of an id that cannot exist."""
        self.request("POST", f"{ref.path}/update", {"ids": ["chromakeep-probe-3f1c9a52"]})
