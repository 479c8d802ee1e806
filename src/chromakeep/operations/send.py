"""send: a directory, in use or not, to a running chromakeep on another machine, which serves it from then on."""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path
from threading import Lock
from typing import Any

import msgspec
import zstandard

from chromakeep.chroma.aside import ALL, aside
from chromakeep.chroma.capture import capture
from chromakeep.chroma.catalog import DATABASE, collection_count
from chromakeep.chroma.layout import file_layouts
from chromakeep.errors import ServerAnswered, SnapshotNotFound, VerificationFailed
from chromakeep.events import Noted, Observer, PhaseStarted, Progressed, ignore
from chromakeep.operations.backup import PATIENCE, empty, refuse_broken, staging
from chromakeep.operations.courier import Courier, Cut, told
from chromakeep.operations.manifest import Manifest, read
from chromakeep.records import Collection

LINES = 4  # connections
LEVEL = 3  # of zstd
PART = 64 << 10  # bytes: what a link must carry before it is cut
AGAIN = 3  # times that a transfer is offered anew, because chunks were damaged over there
TOO_LARGE = 413
POLL = 0.1  # seconds between two questions how it stands


class SendResult(msgspec.Struct, frozen=True):
    """What is served over there now. ``sent_bytes``: of chunks, compressed; ``chunks_sent`` of ``chunks``: the others
    were there already; ``kept``: where the receiver has what it served before, ``snapshot_before`` the id of its own
    backup of that, ``snapshot`` of what it serves now; ``down_seconds``: for which it had no server."""

    target: str
    transfer: str
    total_bytes: int
    sent_bytes: int
    chunks: int
    chunks_sent: int
    seconds: float
    pause_seconds: float
    down_seconds: float
    kept: str | None
    snapshot_before: str | None
    snapshot: str | None
    collections: tuple[Collection, ...]


class SendBackResult(msgspec.Struct, frozen=True):
    """``restored`` is served over there again; what was, is ``kept`` there."""

    target: str
    restored: str
    kept: str
    snapshot: str | None
    down_seconds: float
    seconds: float


def send(
    source: Path,
    url: str,
    token: str,
    *,
    stage: Path | None = None,
    patience: float | None = None,
    take_over: bool = False,
    observer: Observer = ignore,
) -> SendResult:
    """Capture ``source`` exactly, send it to the chromakeep at ``url``, and have it served there.

    Chunks that are there already are not sent again: those of an earlier transfer of this directory that was cut off,
    wherever it was. A link that is cut is taken up again, for ``patience`` seconds in which nothing succeeds.
    ``take_over``: end what another sender has under way there, instead of raising ``RepositoryBusy``. When this
    returns, the receiver has verified every chunk and every record, has what it served before in its repository (if it
    has one) and on its disk, and serves this. On any error it serves what it served before.

    Raises what ``capture`` raises; ``SourceBroken`` and ``NotAChromaDirectory`` for what should not be served;
    ``ServerAnswered``, ``ServerSilent`` and what the receiver tells: ``RepositoryBusy``, ``DiskFull``,
    ``VerificationFailed``, ``NotNow``, ``ServerFailed`` (its Chroma does not serve this directory).
    """
    started = time.monotonic()
    more = {} if patience is None else {"patience": patience}
    with closing(Courier(url, token, observer=observer, **more)) as courier, staging(source, stage) as into:
        courier.ask("GET")  # that is not worth a capture
        captured = capture(source, into, timeout=PATIENCE, observer=observer)
        if not collection_count(captured.path / DATABASE):  # not worth that other senders wait over there
            raise empty(source)
        with aside(captured.path) as validating:
            validating.go(ALL)
            paths = sorted(file_layouts(captured.path))
            manifest = Manifest.of(captured.path, paths, _name(source))
            sending = _Sending(courier, captured.path, manifest, observer)
            sending.all("?take_over=true" if take_over else "")
            inspection = validating.result()
        refuse_broken(source, inspection, allow_empty=False, observer=observer)
        body = msgspec.json.encode({"collections": inspection.collections})
        courier.begin()
        for attempt in range(1, AGAIN + 1):
            try:
                standing = _followed(courier, f"/{manifest.id}", f"/{manifest.id}/finish", body, observer)
                break
            except (VerificationFailed, SnapshotNotFound) as error:  # over there the disk, or all of it, was lost
                if attempt == AGAIN:
                    raise
                observer(Noted(f"{error.message}; sending it again", "warning"))
                sending.all()
        return SendResult(
            courier.url,
            manifest.id,
            manifest.total,
            sending.sent_bytes,
            len(manifest.chunks),
            len(sending.sent),
            round(time.monotonic() - started, 3),
            captured.pause,
            float(standing["down_seconds"]),
            standing["kept"],
            standing["snapshot_before"],
            standing["snapshot"],
            inspection.collections,
        )


def _name(source: Path) -> str:
    """What the receiver calls a sender: the same whenever the same directory is sent."""
    return f"{socket.gethostname()}:{os.fsencode(source.resolve()).decode('utf-8', 'replace')}"[:500]


def send_back(url: str, token: str, *, patience: float | None = None, observer: Observer = ignore) -> SendBackResult:
    """Have the receiver at ``url`` serve again what the last transfer replaced; what it serves now is kept in its turn.

    Raises ``SnapshotNotFound`` where nothing is kept, and as ``send``.
    """
    started = time.monotonic()
    more = {} if patience is None else {"patience": patience}
    with closing(Courier(url, token, observer=observer, **more)) as courier:
        kept = str(courier.ask("GET")["kept"] or "")
        body = msgspec.json.encode({"kept": kept})
        standing = _followed(courier, "", "/rollback", body, observer)
        seconds = round(time.monotonic() - started, 3)
        down = float(standing["down_seconds"])
        return SendBackResult(courier.url, kept, str(standing["kept"]), standing["snapshot"], down, seconds)


def _followed(courier: Courier, look: str, begin: str, body: bytes, observer: Observer) -> Any:
    """Have something done over there, and how it stands when it is. Raises what the receiver says.

    One that was started anew meanwhile has forgotten that it was asked, unless it had done it.
    """
    standing = courier.ask("POST", begin, body)
    phase = ""
    while standing["state"] != "done":
        if standing["state"] == "failed":
            raise told(standing["failure"])
        if standing["state"] != phase:
            phase = standing["state"]
            observer(PhaseStarted(phase))
        time.sleep(POLL)
        standing = courier.ask("GET", look)
        if standing["state"] in ("idle", "receiving"):
            standing = courier.ask("POST", begin, body)
    return standing


class _Sending:
    """Of one directory at rest."""

    def __init__(self, courier: Courier, directory: Path, manifest: Manifest, observer: Observer) -> None:
        self.sent: set[int] = set()
        self.sent_bytes = 0
        self._courier, self._directory, self._manifest, self._observer = courier, directory, manifest, observer
        self._lock = Lock()
        self._most = 1 << 30  # bytes of a request that what is on the way takes
        self._part = self._most  # bytes of a request: less, once a link was cut
        self._done = 0

    def all(self, how: str = "") -> None:
        """Offer, and send what is missing, over a few connections."""
        self._courier.begin()
        answer = self._courier.ask("POST", how, self._manifest.encoded)
        missing = deque(int(number) for number in answer["missing"])
        total = sum(map(self._manifest.size, missing))
        if missing and (there := len(self._manifest.chunks) - len(missing)):
            self._observer(Noted(f"{there} of {len(self._manifest.chunks)} chunks are there already"))
        self._observer(PhaseStarted("send", total))
        self._done = 0
        with ThreadPoolExecutor(LINES, "send") as pool:
            lines = [pool.submit(self._line, missing) for _ in range(min(LINES, len(missing)))]
            try:
                wait(lines, return_when=FIRST_EXCEPTION)
            except BaseException:  # a signal: nobody waits until a broken link is given up
                self._courier.close()
                raise
            finally:
                missing.clear()  # whoever failed, failed for all
        for line in lines:
            line.result()

    def _line(self, missing: deque[int]) -> None:
        packer = zstandard.ZstdCompressor(level=LEVEL)
        while True:
            try:
                number = missing.popleft()
            except IndexError:
                return
            chunk = read(self._directory, self._manifest.pieces[number])
            packed = packer.compress(chunk)
            self._send(number, packed)
            with self._lock:
                self.sent.add(number)
                self.sent_bytes += len(packed)
                self._done += len(chunk)
                self._observer(Progressed("send", self._done))

    def _send(self, number: int, packed: bytes) -> None:
        """A chunk as a whole; in parts, over a link that is cut, or refuses it, before that is through."""
        path, have, cuts = f"/{self._manifest.id}/{number}", 0, 0
        while have < len(packed):
            part = packed[have : have + self._part]
            headers = {}
            if len(part) < len(packed):
                headers["content-range"] = f"bytes {have}-{have + len(part) - 1}/{len(packed)}"
            try:
                have = int(self._courier.ask("PUT", path, part, headers, cuts=cuts)["have"])
            except Cut:
                cuts += 1
                self._part = max(PART, min(self._part, len(part)) // 2)
            except ServerAnswered as error:  # of a proxy that takes no large bodies
                if error.status != TOO_LARGE or len(part) <= PART:
                    raise
                self._most = self._part = len(part) // 2
            else:
                cuts = 0
                self._part = min(2 * self._part, self._most)
