"""An intake: the records of one collection on their way into a Chroma server."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from chromakeep.chroma.api import Api
from chromakeep.chroma.client import Ref
from chromakeep.chroma.cloud import Quotas, check_quotas
from chromakeep.chroma.connection import ANYTHING
from chromakeep.chroma.fetch import Fetcher
from chromakeep.chroma.portions import Portions
from chromakeep.chroma.replacing import change
from chromakeep.chroma.rows import Rows
from chromakeep.chroma.wire import AnswerTooLarge
from chromakeep.errors import ServerAnswered, ServerSilent
from chromakeep.records import Limits, Mark

if TYPE_CHECKING:
    import pyarrow as pa

START = 512  # records of the first request
RECORDS = 4096  # of a batch
BODY = 32 << 20  # bytes of a request; Chroma's own limit is 40 MiB
SIZE_AIM, SECONDS_AIM = 8 << 20, 4.0  # of a request
ADD, REPLACE = "add", "replace"
_OF_ALL = re.compile(r"billing limit|collection size|number of collections", re.IGNORECASE)  # no record is to blame


class ServerIntake:
    """``way``: ``add`` leaves a record that is there as it is; ``replace`` makes it the new one in all it has.

    To replace, what is stored of the same ids is read first (see ``replacing``). A record that is to lose its document
    or URI is deleted and written anew: whoever is killed between these two has lost it at the target until the copy
    goes on.
    """

    def __init__(
        self,
        api: Api,
        ref: Ref,
        *,
        way: str,
        fetcher: Fetcher,
        cosine: bool,
        base64: bool,
        most: int,
        writers: int,
        mark: Mark,
        finish: Callable[[], None],
        stop: threading.Event,
        quotas: Quotas | None = None,
    ) -> None:
        """``fetcher``: of the same collection; ``cosine``: whether that is its space. ``most``: records of a request.
        ``finish``: what is to be done when all is written."""
        self.limits = Limits(writers, RECORDS)
        self._api, self._ref, self._way, self._base64 = api, ref, way, base64
        self._fetcher, self._cosine = fetcher, cosine
        self._mark, self._finish, self._stop, self._quotas = mark, finish, stop, quotas
        self._portions = Portions(min(START, most), most, size_aim=SIZE_AIM, seconds_aim=SECONDS_AIM)

    def write(self, batch: pa.RecordBatch) -> None:
        """Write records; when it returns they are in the server's log and index.

        Raises ``UsageError`` for a record that is known not to be taken, before any is sent, and ``ServerAnswered``
        that names the record which the server refuses.
        """
        if self._quotas is not None:
            check_quotas(batch, self._quotas)
        rows, at = Rows.of(batch), 0
        while at < len(rows):
            part = rows.part(at, self._portions.now)
            self._send(part if self._way == ADD else self._replacing(batch.slice(at, len(part)), part))
            at += len(part)

    def mark(self) -> Mark:
        """Which collection it is: what was written is durable already."""
        return self._mark

    def finish(self) -> None:
        """Give the collection its name; twice is once."""
        self._finish()

    def _send(self, rows: Rows) -> None:
        if not len(rows):
            return
        began = time.monotonic()
        try:
            body = rows.body(base64=self._base64)
            if len(body) > BODY and len(rows) > 1:
                raise ServerAnswered(413, "the request would be too large")
            self._request("add" if self._way == ADD else "upsert", body, patient=len(rows) == 1)
            self._portions.went(len(rows), len(body), time.monotonic() - began)
        except (AnswerTooLarge, ServerSilent, ServerAnswered) as error:
            if _OF_ALL.search(error.message):
                raise
            refused = isinstance(error, ServerAnswered) and error.status in (400, 422, 501)
            smaller = self._portions.blame(error, len(rows))
            if len(rows) == 1 and isinstance(error, ServerAnswered) and (refused or smaller):
                raise ServerAnswered(
                    error.status,
                    f"the record {rows.ids[0][:80]!r} is refused: {error.message}",
                    hint=error.hint or "leave it out with --where, or change it at the source",
                ) from None
            if len(rows) == 1 or not (refused or smaller):
                raise
            step = max(1, min(len(rows) // 2, self._portions.now if smaller else self._portions.most))
            for at in range(0, len(rows), step):
                self._send(rows.part(at, step))

    def _replacing(self, records: pa.RecordBatch, rows: Rows) -> Rows:
        """What is to be upserted of these; that of which a text has to go is deleted."""
        rows, gone = change(records, rows, self._fetcher.get(rows.ids), cosine=self._cosine)
        if gone:
            self._request("delete", msgspec.json.encode({"ids": gone}), patient=True)
        return rows

    def _request(self, verb: str, body: bytes, *, patient: bool) -> None:
        self._api.connection.request(
            "POST",
            f"{self._ref.path}/{verb}",
            body,
            decoder=ANYTHING,
            timeout=self._api.connection.slow,
            patient=patient,
            stop=self._stop,
        )
