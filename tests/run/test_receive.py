"""Receiving: a directory sent to a run takes the place of what it serves, whole or not at all, whatever goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import numpy as np
import pytest
from msgspec.structs import replace

from chromakeep.chroma.capture import capture
from chromakeep.chroma.client import ChromaClient, Ref
from chromakeep.chroma.inspection import inspect
from chromakeep.chroma.ports import free_port
from chromakeep.chroma.reader import read_collection
from chromakeep.errors import (
    ChromakeepError,
    DiskFull,
    NotAChromaDirectory,
    NotNow,
    RepositoryBusy,
    ServerAnswered,
    ServerFailed,
    SnapshotNotFound,
    UsageError,
)
from chromakeep.operations import courier, incoming, manifest, receive, restore
from chromakeep.operations.beside import Beside
from chromakeep.operations.changeover import Changeover
from chromakeep.operations.incoming import Incoming
from chromakeep.operations.keep import Keeping
from chromakeep.operations.receive import Receiver
from chromakeep.operations.send import SendResult, send, send_back
from chromakeep.records import Collection
from chromakeep.repository import Repository
from chromakeep.repository.sessions import Session
from chromakeep.server.front import open_door
from chromakeep.server.receiving import ReceivingDesk
from chromakeep.store.local import LocalStore
from operations.directories import write_generations
from run.running import ENV, PATIENCE, SRC, Running, add, create, eventually, kill, ready, running
from servers.fault_proxy import Link

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-for-tests-0123456789"
LONG = 3600.0
Content = dict[tuple[str, str, str], Collection]


@pytest.fixture(scope="module")
def generations(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three directories of a few collections, each some changes after the one before. Not to be written to."""
    return write_generations(tmp_path_factory.mktemp("generations"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 32 KB, on both sides."""
    monkeypatch.setattr(manifest, "CHUNK", 32 << 10)
    monkeypatch.setattr(manifest, "SMALL", 4 << 10)


def receiving(data: Path, keep: Path | None, **settings: Any) -> Any:
    """A run that receives."""
    settings = {"every": LONG, "durability": "sync" if keep else "snapshots", **settings}
    return running(data, keep, door=open_door, receive_token=TOKEN, **settings)


@contextmanager
def serving(data: Path, keep: Path | None, **settings: Any) -> Iterator[tuple[Running, Ref]]:
    """One that serves fifty records of its own."""
    with receiving(data, keep, **settings) as one:
        one.until("serving on")
        ref = create(one.client, "mine")
        add(one.client, ref, 0, 50)
        yield one, ref


def sent(source: Path, one: Running | int, **more: Any) -> SendResult:
    port = one if isinstance(one, int) else one.port
    return send(source, f"http://127.0.0.1:{port}", TOKEN, **{"patience": 30.0, **more})


def content(directory: Path, scratch: Path) -> Content:
    """What a directory, in use or not, holds: counts and digests of every id, vector, document and metadata value."""
    shutil.rmtree(scratch, ignore_errors=True)
    found = inspect(capture(directory, scratch).path)
    assert not found.problems
    return {(c.tenant, c.database, c.name): c for c in found.collections}


def mine(count: int = 50) -> set[str]:
    return {f"i{n}" for n in range(count)}


def ids_served(client: ChromaClient, name: str) -> set[str] | None:
    """The ids of a collection as the server tells them, None where there is none of that name."""
    for ref in client.list_collections():
        if ref.name == name:
            return {id_ for page in client.ids(ref) for id_ in page}
    return None


def ask(one: Running | int, method: str, path: str = "", body: bytes | None = None) -> tuple[int, Any]:
    """A request to the receiver, by hand."""
    port = one if isinstance(one, int) else one.port
    url = f"http://127.0.0.1:{port}/_keep/receive{path}"
    request = urllib.request.Request(url, body, {"authorization": f"Bearer {TOKEN}"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except HTTPError as error:
        return error.code, json.loads(error.read())


# -- all of it --------------------------------------------------------------------------------------------------------


BUILD = """
import sys, chromadb, pyarrow.parquet as pq
path, sample = sys.argv[1:]
client = chromadb.PersistentClient(path)
quick = {"hnsw": {"ef_construction": 20, "max_neighbors": 8}}
for name in ("books", "laws"):
    rows = pq.read_table(f"{sample}/{name}.parquet")
    vectors = rows["embedding"].combine_chunks().flatten().to_numpy().reshape(len(rows), -1)
    ids, documents = rows["id"].to_pylist(), rows["document"].to_pylist()
    facts = rows.select(["source", "title", "part"]).to_pylist()
    collection = client.create_collection(name, embedding_function=None, configuration=quick)
    for at in range(0, len(rows), 5000):
        b = slice(at, at + 5000)
        collection.add(ids=ids[b], documents=documents[b], embeddings=vectors[b], metadatas=facts[b])
"""


def test_the_sample_arrives_id_by_id(tmp_path: Path, keep: Path) -> None:
    """12,423 records (the shipped cut where the whole sample is not beside the repository): every id, vector, document
    and metadata value, as the target's own server tells them and as its files hold them; and back again."""
    whole = ROOT.parent / "shared" / "data"
    sample, count = (whole, 12_423) if (whole / "books.parquet").exists() else (ROOT / "sample", 2_071)
    source, data = tmp_path / "source", tmp_path / "data"
    subprocess.run([sys.executable, "-c", BUILD, source, sample], check=True, timeout=240)
    with serving(data, keep) as (one, ref):
        done = sent(source, one)
        assert sum(c.count for c in done.collections) == count
        assert done.chunks_sent == done.chunks > 1
        assert done.snapshot and done.snapshot_before and done.kept
        assert content(data, tmp_path / "a") == content(source, tmp_path / "b")
        seen = 0
        for found in one.client.list_collections():
            records = {}
            for portion in read_collection(source, found.id):
                for at, id_ in enumerate(portion.ids):
                    records[id_] = portion.vectors[at].tobytes(), portion.documents[at], portion.metadatas[at]
            pages = list(one.client.ids(found))
            assert {id_ for page in pages for id_ in page} == records.keys()
            for page in pages[::4]:  # JSON of all would take longer than all else
                include = ["embeddings", "documents", "metadatas"]
                got = one.client.request("POST", f"{found.path}/get", {"ids": page, "include": include})
                told = zip(got["embeddings"], got["documents"], got["metadatas"], strict=True)
                for id_, (vector, document, metadata) in zip(got["ids"], told, strict=True):
                    assert (np.asarray(vector, "<f4").tobytes(), document, metadata) == records[id_]
            seen += len(records)
        assert seen == count
        assert one.client.list_collections() and ids_served(one.client, "mine") is None
        back = send_back(f"http://127.0.0.1:{one.port}", TOKEN)
        assert ids_served(one.client, "mine") == mine()
        assert one.client.count(ref) == 50
        assert content(Path(back.kept), tmp_path / "c") == content(source, tmp_path / "b")
        one.end()


@pytest.mark.parametrize("durability", ["sync", "snapshots"])
def test_what_is_received_is_kept_as_what_is_written_is(
    tmp_path: Path, keep: Path, generations: list[Path], small: None, durability: str
) -> None:
    """The repository has what was there before, and from then on what was received and all that is written to it: a
    lost disk brings back just that; and any moment before can be restored."""
    data = tmp_path / "data"
    with dying(data, keep, "never", durability) as (child, port):
        client = ChromaClient("127.0.0.1", port)
        ref = create(client, "mine")
        add(client, ref, 0, 50)
        done = sent(generations[1], port)
        (queued,) = [c for c in client.list_collections() if c.name == "queued"]
        vector = next(iter(client.get_vectors(queued, limit=1).values())).tolist()
        client.request("POST", f"{queued.path}/add", {"ids": ["later"], "embeddings": [vector]})
        received = content(data, tmp_path / "b")
        kill(child, data, "both")
        lose(data)
    with receiving(data, keep, durability=durability) as one:
        one.until("serving on")
        assert one.said("restored")
        expected = received if durability == "sync" else content(generations[1], tmp_path / "c")
        assert content(data, tmp_path / "d") == expected
        assert ask(one, "GET")[1]["kept"] is None  # the disk is another one
        one.end()
    assert done.snapshot_before
    restore.restore(Repository.open(LocalStore(keep)), done.snapshot_before, tmp_path / "old")
    before = content(tmp_path / "old", tmp_path / "e")
    assert {(name, c.count) for (_, _, name), c in before.items()} == {("mine", 50)}


def lose(data: Path) -> None:
    """The disk is gone."""
    shutil.rmtree(data)
    shutil.rmtree(data.with_name(f".{data.name}.chromakeep"))


def kill_with_its_disk(one: Running, data: Path) -> None:
    """As a container goes: what is not in the repository is lost."""
    server = Beside(data)._read().server
    assert server
    os.kill(server.pid, signal.SIGKILL)
    one.stop.set()
    one.hurry.set()
    one.thread.join(PATIENCE)
    assert not one.thread.is_alive()
    lose(data)


def test_after_a_rollback_a_lost_disk_brings_back_what_was_rolled_back_to(
    tmp_path: Path, keep: Path, generations: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a write after it; and although a snapshot of what was received was still on its way when it was swapped
    back: it becomes the base of no log."""
    data = tmp_path / "data"
    keepers: list[Keeping] = []
    start = Keeping.start
    monkeypatch.setattr(Keeping, "start", lambda self: (keepers.append(self), start(self)))
    with serving(data, keep) as (one, ref):
        sent(generations[0], one)
        (some,) = [c for c in one.client.list_collections() if c.name == "cosine"]
        one.client.request("POST", f"{some.path}/delete", {"ids": ["c1"]})  # so that there is something to keep
        committing, go, real = threading.Event(), threading.Event(), Session.commit

        def held(self: Session, snapshot: Any) -> None:
            committing.set()
            assert go.wait(PATIENCE)
            real(self, snapshot)

        Session.commit = held  # type: ignore[method-assign]
        try:
            keepers[0].soon()
            assert committing.wait(PATIENCE)
            rolling = threading.Thread(target=send_back, args=(f"http://127.0.0.1:{one.port}", TOKEN))
            rolling.start()
            eventually(lambda: ids_or_none(one, "mine") == mine(), "the rollback")
        finally:
            Session.commit = real  # type: ignore[method-assign]
            go.set()
        rolling.join(PATIENCE)
        assert not rolling.is_alive()
        add(one.client, ref, 50, 10)
        expected = content(data, tmp_path / "a")
        kill_with_its_disk(one, data)
    with receiving(data, keep) as one:
        one.until("serving on")
        assert content(data, tmp_path / "b") == expected
        one.end()


def ids_or_none(one: Running, name: str) -> set[str] | None:
    try:
        return ids_served(one.client, name)
    except ServerFailed:
        return None


def test_a_run_without_a_repository_receives_too(tmp_path: Path, generations: list[Path], small: None) -> None:
    """What it served is on its disk, and the next start serves what was received; a rollback is remembered, too."""
    data = tmp_path / "data"
    with serving(data, None) as (one, _):
        done = sent(generations[2], one)
        assert (done.snapshot, done.snapshot_before) == (None, None)
        assert done.chunks > 10
        one.end()
    with receiving(data, None) as one:
        one.until("serving on")
        assert content(data, tmp_path / "a") == content(generations[2], tmp_path / "b")
        assert ask(one, "GET")[1]["kept"] == done.kept
        assert ask(one, "GET", f"/{done.transfer}")[1]["state"] == "done"
        send_back(f"http://127.0.0.1:{one.port}", TOKEN)
        assert ids_served(one.client, "mine") == mine()
        status, again = ask(one, "POST", "/rollback", json.dumps({"kept": done.kept}).encode())
        assert (status, again["state"]) == (200, "done")  # asked for twice, done once
        assert ids_served(one.client, "mine") == mine()
        one.end()
    with receiving(data, None) as one:
        one.until("serving on")
        assert ids_served(one.client, "mine") == mine()
        send_back(f"http://127.0.0.1:{one.port}", TOKEN)
        assert ids_served(one.client, "mine") is None
        shutil.rmtree(ask(one, "GET")[1]["kept"])
        with pytest.raises(SnapshotNotFound):
            send_back(f"http://127.0.0.1:{one.port}", TOKEN)
        one.end()


def test_an_empty_directory_keeps_nobody_waiting(tmp_path: Path, generations: list[Path]) -> None:
    """It is refused before the receiver hears of it: the right one can be sent at once."""
    import chromadb

    chromadb.PersistentClient(str(tmp_path / "empty")).list_collections()
    with serving(tmp_path / "data", None) as (one, _):
        with pytest.raises(NotAChromaDirectory, match="without any collection"):
            sent(tmp_path / "empty", one)
        assert ask(one, "GET")[1]["state"] == "idle"
        sent(generations[0], one)
        one.end()


def test_a_rollback_while_another_transfer_is_half_way(tmp_path: Path, generations: list[Path], small: None) -> None:
    """What is kept is told all the same, and swapped back; no rollback that names nothing is called done."""
    data = tmp_path / "data"
    with serving(data, None) as (one, _):
        done = sent(generations[2], one)
        other = manifest.Manifest.of(generations[1], ["chroma.sqlite3"], "me:/x")
        assert ask(one, "POST", "", other.encoded)[1]["state"] == "receiving"
        found = ask(one, "GET")[1]
        assert (found["state"], found["kept"]) == ("receiving", done.kept)
        assert ask(one, "POST", "/rollback", b'{"kept": ""}')[0] != 200
        back = send_back(f"http://127.0.0.1:{one.port}", TOKEN)
        assert back.restored == done.kept
        assert ids_served(one.client, "mine") == mine()
        assert ask(one, "GET", f"/{other.id}")[1]["state"] == "receiving"
        one.end()


def test_a_directory_in_use_is_sent(tmp_path: Path, generations: list[Path]) -> None:
    """Between two runs, while the first one is written to: an exact state of it arrives."""
    source, data = tmp_path / "source", tmp_path / "data"
    with serving(source, None) as (first, ref), receiving(data, None) as second:
        second.until("serving on")
        over = threading.Event()

        def write() -> None:
            number = 50
            while not over.is_set():
                add(first.client, ref, number, 1)
                number += 1

        writing = threading.Thread(target=write)
        writing.start()
        try:
            done = sent(source, second)
        finally:
            over.set()
            writing.join()
        count = done.collections[0].count
        assert count >= 50
        assert ids_served(second.client, "mine") == mine(count)
        second.end()


# -- the link ---------------------------------------------------------------------------------------------------------


def test_a_link_cut_at_any_byte_goes_on(
    tmp_path: Path, generations: list[Path], small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every connection is cut off at another place, on its way there or back: within heads, bodies and answers."""
    monkeypatch.setattr(courier, "LONGEST_WAIT", 0.05)
    data = tmp_path / "data"
    cuts = [1, 10, 90, 150, 200, 260, 400, 1000, 3000, 9000, 20_000, 33_000, 50_000, 100_000]
    with serving(data, None) as (one, _):
        sends = [cut + step for step in (0, 7) for cut in cuts]
        back = [None if at % 3 else 1 + 17 * at for at in range(len(sends))]
        link = Link(one.port, sent=sends, answered=back)
        done = sent(generations[1], link.port)
        link.stop()
        assert link.broken >= len(cuts)
        assert link.through > done.sent_bytes
        assert content(data, tmp_path / "a") == content(generations[1], tmp_path / "b")
        one.end()


def test_a_link_that_never_carries_a_whole_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each connection is cut off after 150 KB, and chunks have a megabyte: they are sent in parts."""
    monkeypatch.setattr(courier, "LONGEST_WAIT", 0.05)
    data = tmp_path / "data"
    source = tmp_path / "source"
    program = (
        "import sys, chromadb, random\n"
        "c = chromadb.PersistentClient(sys.argv[1]).create_collection('some', embedding_function=None)\n"
        "r = random.Random(5)\n"
        "c.add(ids=[str(n) for n in range(500)], embeddings=[[r.random() for _ in range(600)] for _ in range(500)])\n"
    )
    subprocess.run([sys.executable, "-c", program, source], check=True, timeout=120)
    with serving(data, None) as (one, _):
        link = Link(one.port, sent=[150_000] * 1000)
        done = sent(source, link.port)
        link.stop()
        assert done.sent_bytes / done.chunks > 150_000
        assert link.broken > 5
        assert content(data, tmp_path / "a") == content(source, tmp_path / "b")
        one.end()


def test_a_proxy_that_takes_no_large_bodies(
    tmp_path: Path, generations: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As nginx, which answers 413 to more than a megabyte: chunks are sent in parts that it takes."""
    admit, refused = ReceivingDesk.admit, 0

    async def narrow(self: ReceivingDesk, request: Any, account: Any) -> Any:
        nonlocal refused
        admitted = await admit(self, request, account)
        if request.method == "PUT" and int(request.field(b"content-length")) > 200_000:
            refused += 1
            return 0
        return admitted

    monkeypatch.setattr(ReceivingDesk, "admit", narrow)
    with serving(tmp_path / "data", None) as (one, _):
        done = sent(generations[1], one)
        assert done.sent_bytes / done.chunks > 200_000
        assert 0 < refused < 10
        assert content(tmp_path / "data", tmp_path / "a") == content(generations[1], tmp_path / "b")
        one.end()


def test_tls_and_a_stranger(tmp_path: Path, generations: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """https checks the certificate by the system's default context: one that nobody vouches for is sent nothing."""
    certificate = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with serving(tmp_path / "data", None) as (one, _):
        link = Link(one.port, tls=context)
        with pytest.raises(ServerFailed, match="cannot be trusted"):
            send(generations[0], f"https://localhost:{link.port}", TOKEN)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        send(generations[0], f"https://localhost:{link.port}/_keep/receive", TOKEN)
        link.stop()
        assert content(tmp_path / "data", tmp_path / "a") == content(generations[0], tmp_path / "b")
        one.end()


def self_signed(folder: Path) -> Path:
    """A certificate for localhost, and its key, in one file."""
    from datetime import datetime, timedelta, timezone

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(timezone.utc)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(7).not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "certificate.pem"
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


# -- deaths -----------------------------------------------------------------------------------------------------------


SENDER = """
import sys
from pathlib import Path
from chromakeep.operations import manifest
manifest.CHUNK, manifest.SMALL = 32 << 10, 4 << 10
from chromakeep.operations.send import send
print(send(Path(sys.argv[1]), sys.argv[2], sys.argv[3], patience=30).chunks_sent)
"""


def test_a_killed_sender_run_again_sends_only_what_is_missing(
    tmp_path: Path, generations: list[Path], small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL when some chunks are there; the directory has changed a little since. And a second sender is told what
    is under way, until the first has been silent for ten minutes."""
    data, source = tmp_path / "data", tmp_path / "source"
    shutil.copytree(generations[0], source)
    with serving(data, None) as (one, _):
        held, real = threading.Event(), Incoming.put

        def put(self: Incoming, number: int, packed: bytes) -> None:
            if len(self.had) >= 5:
                held.set()
                raise NotNow("not more than five")
            real(self, number, packed)

        monkeypatch.setattr(Incoming, "put", put)
        command = [sys.executable, "-c", SENDER, source, f"http://127.0.0.1:{one.port}", TOKEN]
        sender = subprocess.Popen(list(map(str, command)), env={**ENV, "PYTHONPATH": str(SRC)})
        assert held.wait(PATIENCE)
        with pytest.raises(RepositoryBusy, match=f"from .*:{source} is under way here: .* of .* chunks"):
            sent(generations[1], one)
        sender.kill()
        sender.wait()
        monkeypatch.setattr(Incoming, "put", real)
        assert 5 <= ask(one, "GET")[1]["chunks_here"] < ask(one, "GET")[1]["chunks"]
        database = bytearray((source / "chroma.sqlite3").read_bytes())
        subprocess.run(
            [sys.executable, "-c", "import sys, chromadb; c = chromadb.PersistentClient(sys.argv[1]).get_collection"
             "('cosine'); c.delete(ids=['c0'])", source], check=True, timeout=120,
        )  # fmt: skip
        assert bytes(database) != (source / "chroma.sqlite3").read_bytes()
        with monkeypatch.context() as patched:
            patched.setattr(socket, "gethostname", lambda: "the-next-container")
            with pytest.raises(RepositoryBusy, match="is under way here") as refused:
                sent(source, one)
            assert "--take-over" in str(refused.value.hint)
            done = sent(source, one, take_over=True)
        assert 0 < done.chunks_sent < done.chunks
        assert content(data, tmp_path / "a") == content(source, tmp_path / "b")
        one.end()


DYING = """
import os, signal, sys
step, marker = sys.argv[1], sys.argv[2]
from chromakeep.operations import beside, incoming, keep, manifest, receive
from chromakeep.chroma.server import ChromaServer
manifest.CHUNK, manifest.SMALL = 32 << 10, 4 << 10
armed = False

def die(*_):
    open(marker, "w").close()
    os.kill(os.getpid(), signal.SIGKILL)

def before(owner, name, condition=lambda *a, **k: True):
    real = getattr(owner, name)
    def call(*arguments, **more):
        if armed and condition(*arguments, **more):
            die()
        return real(*arguments, **more)
    setattr(owner, name, call)

def after(owner, name, condition=lambda *a, **k: True):
    real = getattr(owner, name)
    def call(*arguments, **more):
        found = real(*arguments, **more)
        if armed and condition(*arguments, **more):
            die()
        return found
    setattr(owner, name, call)

def arm(owner, name):
    real = getattr(owner, name)
    def call(*arguments, **more):
        global armed
        armed = True
        return real(*arguments, **more)
    setattr(owner, name, call)

if step == "never":
    pass
elif step == "chunk":
    before(incoming.Incoming, "_journal", lambda self, lines: len(self.had) == 6)
    armed = True
else:
    arm(receive.Receiver, "finish")
{
    "never": lambda: None,
    "chunk": lambda: None,
    "kept": lambda: after(keep.Keeping, "settle"),
    "log ended": lambda: after(keep.Keeping, "begin_anew"),
    "decided": lambda: after(beside.Beside, "remember", lambda self, **more: "swap" in more and more["swap"]),
    "exchanged": lambda: after(beside, "exchange"),
    "renamed": lambda: before(beside.Beside, "remember", lambda self, **more: "swap" in more and not more["swap"]),
    "started": lambda: after(ChromaServer, "start"),
}[step]()
sys.argv[1:] = sys.argv[3:]
from chromakeep.cli import main
main()
"""
STEPS = [
    "chunk", "kept", "log ended", "decided", "exchanged", "renamed", "started",
]  # fmt: skip
EARLY = STEPS[:3]  # at which the old directory is served afterwards


def is_ready(port: int) -> bool:
    """Whether a run takes writes."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10):
            return True
    except HTTPError:
        return False


@contextmanager
def dying(data: Path, keep: Path, step: str, durability: str = "sync") -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """``chromakeep run`` with a receiver in a process of its own, which kills itself at a step."""
    port = free_port()
    log = data.with_name("run.log")
    command = [
        sys.executable, "-c", DYING, step, str(data.with_name("died")), "run",
        "--data", str(data), "--repository", str(keep), "--every", "1h", "--port", str(port),
        "--durability", durability,
    ]  # fmt: skip
    env = {**ENV, "PYTHONPATH": str(SRC), "CHROMAKEEP_RECEIVE_TOKEN": TOKEN, "RUST_LOG": "error"}
    with log.open("ab") as output:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=env)
    try:
        eventually(partial(ready, child, port, log), "the server")
        eventually(lambda: is_ready(port), "readiness")
        yield child, port
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("step", STEPS)
def test_a_receiver_killed_at_any_step_serves_the_old_or_the_new(
    tmp_path: Path, generations: list[Path], small: None, step: str
) -> None:
    """SIGKILL within the chunks, before and after each step of the exchange; then it is started again: what its server
    tells is all of the one or all of the other, the same sender goes on to the end, and a disk lost after that brings
    back what was sent."""
    data, keep = tmp_path / "data", tmp_path / "repository"
    keep.mkdir()
    Repository.create(LocalStore(keep))
    failure: list[BaseException] = []
    with dying(data, keep, step) as (child, port):
        add(ChromaClient("127.0.0.1", port), create(ChromaClient("127.0.0.1", port), "mine"), 0, 50)

        def work() -> None:
            try:
                sent(generations[0], port, patience=0.3)
            except ChromakeepError as error:
                failure.append(error)

        sending = threading.Thread(target=work)
        sending.start()
        child.wait(PATIENCE)
        assert (tmp_path / "died").exists()
        sending.join(PATIENCE)
        assert failure
    with dying(data, keep, "never") as (child, port):
        client = ChromaClient("127.0.0.1", port)
        served = {ref.name for ref in client.list_collections()}
        if step in EARLY:
            assert served == {"mine"} and ids_served(client, "mine") == mine()
        else:
            assert "mine" not in served
            assert content(data, tmp_path / "a") == content(generations[0], tmp_path / "b")
            assert (data.parent / ask(port, "GET")[1]["kept"]).is_dir()
        done = sent(generations[0], port)
        if step in ("chunk", *EARLY):
            assert done.chunks_sent < done.chunks
        kill(child, data, "both")
    lose(data)
    restore.restore(Repository.open(LocalStore(keep)), None, data)
    assert content(data, tmp_path / "a") == content(generations[0], tmp_path / "b")


# -- what is not put in place -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("repository", [True, False])
def test_a_directory_that_chroma_does_not_serve_is_taken_back(
    tmp_path: Path, keep: Path, generations: list[Path], repository: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that does not start on it, and one that counts other records: what was served before is served again,
    takes writes, and goes on being kept."""
    data = tmp_path / "data"
    program = tmp_path / "chroma"
    serve = tmp_path / "serve.py"  # as the program does, without all that it imports
    serve.write_text("import sys; from chromadb_rust_bindings import cli; cli(['chroma', *sys.argv[1:]])")
    program.write_text(f"""#!/bin/sh
if [ -e {tmp_path}/refuse ] && [ -e {data}/refused ]; then echo cannot read this schema; exit 1; fi
exec {sys.executable} {serve} "$@"
""")
    program.chmod(0o755)
    with serving(data, keep if repository else None, program=str(program)) as (one, ref):
        (tmp_path / "refuse").touch()
        complete = Incoming.complete

        def marked(self: Incoming) -> None:
            complete(self)
            (self.files / "refused").touch()

        with monkeypatch.context() as patched:
            patched.setattr(Incoming, "complete", marked)
            with pytest.raises(ServerFailed, match=r"serves again what it had: .*cannot read this schema"):
                sent(generations[0], one)
        (tmp_path / "refuse").unlink()
        assert ids_served(one.client, "mine") == mine()
        add(one.client, ref, 50, 5)

        def miscounting(self: Changeover, change: Any) -> None:
            some = change.collections
            change.collections = [*some[:-1], replace(some[-1], count=some[-1].count + 1)]
            asked(self, change)

        asked = Changeover.ask
        with monkeypatch.context() as patched:
            patched.setattr(Changeover, "ask", miscounting)
            with pytest.raises(ServerFailed, match="chroma counts"):
                sent(generations[0], one)
        assert ids_served(one.client, "mine") == mine(55)
        add(one.client, ref, 55, 5)
        assert ask(one, "GET")[1]["kept"] is None
        expected = content(data, tmp_path / "a")
        assert len(list(tmp_path.glob("data.old-*"))) == 0
        sent(generations[0], one)  # and the next one, that it serves, is taken
        send_back(f"http://127.0.0.1:{one.port}", TOKEN)
        assert content(data, tmp_path / "b") == expected
        if repository:
            kill_with_its_disk(one, data)
    if repository:
        restore.restore(Repository.open(LocalStore(keep)), None, data)
        assert content(data, tmp_path / "c") == expected


def test_what_is_not_as_offered_is_not_put_in_place(
    tmp_path: Path, generations: list[Path], small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records other than those told of, chunks that change on the target's disk, a torn directory, what is no Chroma
    directory at all: the target goes on with its own, without a moment's rest."""
    data = tmp_path / "data"
    with serving(data, None) as (one, _):
        pid = server_of(data)
        told = manifest.Manifest.of(
            generations[0], sorted(str(p.relative_to(generations[0])) for p in whole(generations[0])), "me:/x"
        )

        def offer(one_: manifest.Manifest, folder: Path) -> None:
            status, answer = ask(one, "POST", "", one_.encoded)
            assert status == 200, answer
            for number in answer["missing"]:
                assert ask(one, "PUT", f"/{one_.id}/{number}", packed(one_, folder, number))[0] == 200

        def finished(one_: manifest.Manifest, collections: list[Any]) -> Any:
            status, answer = ask(one, "POST", f"/{one_.id}/finish", json.dumps({"collections": collections}).encode())
            assert status == 200, answer
            eventually(lambda: ask(one, "GET", f"/{one_.id}")[1]["state"] in ("failed", "done"), "the end")
            return ask(one, "GET", f"/{one_.id}")[1]["failure"]

        offer(told, generations[0])
        whole_of_it = json.loads(json_of(content(generations[0], tmp_path / "a")))
        assert "records that" in str(finished(told, [])) or "that the sender does not" in str(finished(told, []))
        for field in ("ids", "vectors", "documents", "metadata"):
            wrong = json.loads(json.dumps(whole_of_it))
            wrong[0]["digest"][field] = "0" * 32
            failure = finished(told, wrong)
            assert failure[0] == "VerificationFailed" and field in failure[1]
        path = tmp_path / ".data.chromakeep" / "receiving" / told.id / "files" / "chroma.sqlite3"
        changed = bytearray(path.read_bytes())
        changed[40_000] ^= 1
        path.write_bytes(changed)
        assert "1 of" in finished(told, whole_of_it)[1]
        status, answer = ask(one, "POST", f"/{told.id}/finish", b'{"collections": []}')
        assert (status, answer["message"]) == (422, "1 chunks are missing")

        torn = tmp_path / "torn"
        shutil.copytree(generations[0], torn)
        level0 = max(torn.rglob("data_level0.bin"), key=lambda p: p.stat().st_size)
        level0.write_bytes(level0.read_bytes()[:1000])
        other = manifest.Manifest.of(torn, [f.path for f in told.files], "me:/x")
        offer(other, torn)
        assert "is not whole" in finished(other, whole_of_it)[1]
        (torn / "chroma.sqlite3").write_bytes(b"no database" * 100)
        other = manifest.Manifest.of(torn, ["chroma.sqlite3"], "me:/x")
        offer(other, torn)
        assert finished(other, [])[0] != "ServerFailed"

        for body in (b"", b"{", b'{"collections": 5}', b'{"collections": [{"id": 5}]}', b"[" * 10_000):
            assert ask(one, "POST", f"/{other.id}/finish", body)[0] == 400
            assert ask(one, "POST", "/rollback", body)[0] == 400
        assert ask(one, "POST", "/rollback", b'{"kept": "/etc"}')[0] == 404
        assert ask(one, "PUT", f"/{told.id}/0", b"x")[0] == 404  # another one is under way
        with pytest.raises(RepositoryBusy, match="from me:/x is under way here"):
            sent(generations[0], one)
        assert server_of(data) == pid
        assert ids_served(one.client, "mine") == mine()
        monkeypatch.setattr(receive, "QUIET", 0.0)  # ten minutes later
        sent(generations[0], one)
        one.end()


def whole(directory: Path) -> list[Path]:
    from chromakeep.chroma.layout import file_layouts

    return [directory / name for name in file_layouts(directory)]


def packed(one: manifest.Manifest, folder: Path, number: int) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor().compress(manifest.read(folder, one.pieces[number]))


def json_of(found: Content) -> bytes:
    import msgspec

    return msgspec.json.encode(list(found.values()))


def server_of(data: Path) -> int:
    server = Beside(data)._read().server
    assert server
    return server.pid


def test_a_sender_whose_chunks_were_damaged_over_there_sends_them_again(
    tmp_path: Path, generations: list[Path], small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one whose receiver was started anew in the middle of putting it in place, or has lost it, goes on."""
    with serving(tmp_path / "data", None) as (one, _):
        verify, times = Incoming.verify, 0

        def spoiled(self: Incoming) -> None:
            nonlocal times
            times += 1
            if times == 1:
                with (self.files / "chroma.sqlite3").open("r+b") as file:
                    file.write(b"x")
            verify(self)

        monkeypatch.setattr(Incoming, "verify", spoiled)
        done = sent(generations[0], one)
        assert times == 2
        assert done.chunks_sent == done.chunks
        forgotten = False

        def forgetful(self: Receiver, transfer: str | None = None) -> Any:
            nonlocal forgotten
            if transfer and not forgotten and self._standing.state == "verifying":
                forgotten = True
                raise SnapshotNotFound("no such transfer is known here")
            return status(self, transfer)

        status = Receiver.status
        monkeypatch.setattr(Receiver, "status", forgetful)
        sent(generations[1], one)
        assert forgotten
        assert content(tmp_path / "data", tmp_path / "a") == content(generations[1], tmp_path / "b")
        one.end()


def test_a_full_disk_over_there_is_told(
    tmp_path: Path, generations: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, without a chunk sent; status 17 of the command."""
    with serving(tmp_path / "data", None) as (one, _):
        monkeypatch.setattr(incoming, "HEADROOM", 1 << 60)
        with pytest.raises(DiskFull, match="receiver"):
            sent(generations[0], one)
        assert ids_served(one.client, "mine") == mine()
        one.end()


def test_a_repository_that_does_not_answer_keeps_the_old(tmp_path: Path, keep: Path, generations: list[Path]) -> None:
    """The target keeps its own backup first; where it cannot, nothing is put in place. Later it can."""
    data = tmp_path / "data"
    with serving(data, keep) as (one, ref):
        keep.rename(tmp_path / "unplugged")
        with pytest.raises(ChromakeepError):
            sent(generations[0], one)
        assert one.client.count(ref) == 50
        (tmp_path / "unplugged").rename(keep)
        done = sent(generations[0], one)
        assert done.chunks_sent == 0  # all of them were there
        assert content(data, tmp_path / "a") == content(generations[0], tmp_path / "b")
        one.end()


# -- whoever else is there --------------------------------------------------------------------------------------------


def test_writes_are_refused_only_while_directories_are_exchanged(
    tmp_path: Path, keep: Path, generations: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write is taken while chunks come, while they are verified and while the target makes its own backup; it is 503
    with Retry-After while there is no server; and after that it is taken by what was received."""
    data = tmp_path / "data"
    with serving(data, keep) as (one, ref):
        taken: list[str] = []

        def write(where: str) -> None:
            add(one.client, ref, 100 + len(taken), 1)
            taken.append(where)

        def hook(owner: type, name: str, where: str) -> None:
            real = getattr(owner, name)

            def call(*arguments: Any, **more: Any) -> Any:
                write(where)
                return real(*arguments, **more)

            monkeypatch.setattr(owner, name, call)

        hook(Incoming, "put", "receiving")
        hook(Incoming, "verify", "verifying")
        hook(Changeover, "ask", "kept")
        refused: list[HTTPError] = []
        exchange = Beside.replace

        def closed(self: Beside, *arguments: Any, **more: Any) -> Any:
            path = f"http://127.0.0.1:{one.port}/api/v2{ref.path}/add"
            body = json.dumps({"ids": ["x"], "embeddings": [[1, 1, 1, 1]]}).encode()
            request = urllib.request.Request(path, body, {"content-type": "application/json"})
            try:
                urllib.request.urlopen(request, timeout=PATIENCE)
            except HTTPError as error:
                refused.append(error)
            return exchange(self, *arguments, **more)

        monkeypatch.setattr(Beside, "replace", closed)
        done = sent(generations[0], one)
        assert {"receiving", "verifying", "kept"} <= set(taken)
        assert [error.code for error in refused] == [503]
        assert refused[0].headers["retry-after"] == "1"
        assert b"exchanging" in refused[0].read()
        assert create(one.client, "new")
        assert done.kept
        kept = content(Path(done.kept), tmp_path / "a")
        assert kept["default_tenant", "default_database", "mine"].count == 50 + len(taken)  # all that was acknowledged
        one.end()


def test_a_standby_receives_nothing(tmp_path: Path, keep: Path, generations: list[Path]) -> None:
    """503 with its reason: what it has is another instance's. That one receives, and the standby follows."""
    with serving(tmp_path / "first", keep) as (first, _), receiving(tmp_path / "second", keep) as second:
        second.until("another instance writes")
        eventually(lambda: "another instance" in ask(second, "GET")[1].get("message", ""), "the standby")
        status, answer = ask(second, "POST", "", b"{}")
        assert status == 503 and "another instance" in answer["message"]
        with pytest.raises(NotNow, match="stands by"):
            sent(generations[0], second, patience=0.5)
        sent(generations[0], first)
        new = ids_served(first.client, "cosine")
        assert new
        eventually(lambda: ids_or_none(second, "cosine") == new, "the standby's new data")
        first.end()
        second.until("serving on")
        assert content(tmp_path / "second", tmp_path / "a") == content(generations[0], tmp_path / "b")
        second.end()


def test_a_closed_receiver_says_nothing(tmp_path: Path, keep: Path, generations: list[Path]) -> None:
    """Without a token the routes are 404; with one, whoever has another is told 401 and nothing is changed."""
    with running(tmp_path / "data", keep, door=open_door, every=LONG) as one:
        one.until("serving on")
        assert ask(one, "GET")[0] == ask(one, "POST", "", b"{}")[0] == ask(one, "PUT", "/x/0", b"")[0] == 404
        with pytest.raises(ServerAnswered, match="404") as caught:
            sent(generations[0], one)
        assert "CHROMAKEEP_RECEIVE_TOKEN" in str(caught.value.hint)
        one.end()
    with receiving(tmp_path / "data", keep) as one:
        one.until("serving on")
        with pytest.raises(ServerAnswered, match="401"):
            send(generations[0], f"http://127.0.0.1:{one.port}", TOKEN + "x")
        assert not (tmp_path / ".data.chromakeep" / "receiving").exists()
        one.end()


def test_a_mount_point_is_received_into(
    tmp_path: Path, generations: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory that cannot be renamed, as a container's volume: the contents move, and back."""
    data = tmp_path / "data"
    data.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == data)
    monkeypatch.setattr(Path, "is_mount", lambda self: self == data)
    with serving(data, None) as (one, _):
        done = sent(generations[0], one)
        assert done.kept and Path(done.kept).parent == data
        assert content(data, tmp_path / "a") == content(generations[0], tmp_path / "b")
        send_back(f"http://127.0.0.1:{one.port}", TOKEN)
        assert ids_served(one.client, "mine") == mine()
        sent(generations[1], one)
        assert content(data, tmp_path / "a") == content(generations[1], tmp_path / "c")
        assert {p.name.partition("-")[0] for p in data.iterdir() if p.name.startswith(".")} == {".chromakeep", ".old"}
        one.end()


def test_a_link_to_a_directory_is_not_received_into(tmp_path: Path, generations: list[Path]) -> None:
    """What lies beside the link may be another disk, which goes with the container."""
    (tmp_path / "volume").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "volume")
    with serving(tmp_path / "data", None) as (one, ref):
        with pytest.raises(UsageError, match="is a link"):
            sent(generations[0], one)
        assert one.client.count(ref) == 50
        one.end()


def test_nothing_begins_at_the_end(tmp_path: Path, generations: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is told to stop while a directory waits to be put in place ends with its own."""
    data = tmp_path / "data"
    with serving(data, None) as (one, _):
        ask_ = Changeover.ask

        def stopping(self: Changeover, change: Any) -> None:
            one.stop.set()
            time.sleep(0.3)
            ask_(self, change)

        monkeypatch.setattr(Changeover, "ask", stopping)
        with pytest.raises(ChromakeepError):
            sent(generations[0], one, patience=1.0)
        one.end()
    with running(data) as one:
        one.until("serving on")
        assert ids_served(one.client, "mine") == mine()
        one.end()
