"""Open a snapshot with chromadb and compare every record with the states that the writers' logs allow."""

from __future__ import annotations

import os
import sqlite3
import sys
import traceback
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from oplog import Replay, State

PAGE = 2000


def in_fresh_process(check: Callable[[], str]) -> str:
    """The answer of ``check`` in a fork of this process (which imported chromadb, and made no client), or the crash."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            answer = check()
        except BaseException:
            answer = "raised: " + traceback.format_exc(limit=-3)
        os.write(writer, answer.encode()[:60_000])
        sys.stdout.flush()
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read().decode()
    status = os.waitpid(child, 0)[1]
    return answer if status == 0 else f"the process that opened it died with status {status}"


def compare(path: Path, replays: list[Replay], t0: float, t1: float) -> str:
    """Empty if the snapshot at ``path`` (which this may change) is exact, else what is wrong with it."""
    problem = integrity(path)
    if problem:
        return problem
    names, found = read(path)
    for number, replay in enumerate(replays):
        mine = {key: record for key, record in found.items() if owner(key) == number}
        window = replay.allowed(t0, t1)
        why = ""
        for count in window:
            replay.advance(count)
            why = difference(names, mine, replay, number)
            if not why:
                break
        else:
            window_text = f"{window.start}..{window.stop - 1}"
            return f"writer {number}: no state after {window_text} operations fits; against the last: {why}"
    return ""


def owner(key: tuple[str, str]) -> int:
    return int(key[1].split("-")[0][1:])


def difference(names: set[str], found: State, replay: Replay, number: int) -> str:
    mine = {n for n in names if n.startswith(f"tmp-w{number}-")} | {n for n in names if not n.startswith("tmp-")}
    if mine != set(replay.collections):
        return f"collections {sorted(mine ^ set(replay.collections))}"
    if found == replay.state:
        return ""
    missing, extra = replay.state.keys() - found.keys(), found.keys() - replay.state.keys()
    if missing or extra:
        return f"{len(missing)} records missing {sorted(missing)[:3]}, {len(extra)} too many {sorted(extra)[:3]}"
    changed = [key for key, record in replay.state.items() if found[key] != record]
    parts = zip(("vector", "document", "metadata"), found[changed[0]], replay.state[changed[0]], strict=True)
    fields = [(f, a[:12], b[:12]) if f == "vector" else (f, a, b) for f, a, b in parts if a != b]
    return f"{len(changed)} records differ, first {changed[0]}: {fields}"


def integrity(path: Path) -> str:
    """SQLite's own checks, the full-text index included."""
    with closing(sqlite3.connect(path / "chroma.sqlite3")) as connection:
        answer = connection.execute("PRAGMA integrity_check").fetchone()[0]
        if answer != "ok":
            return f"integrity_check: {answer}"
        connection.execute(
            "INSERT INTO embedding_fulltext_search(embedding_fulltext_search) VALUES ('integrity-check')"
        )
        connection.rollback()
    return ""


def read(path: Path) -> tuple[set[str], State]:
    """Everything in the directory, as Chroma tells it; each index is asked a question too."""
    import chromadb

    client: Any = chromadb.PersistentClient(str(path))
    state: State = {}
    names = set()
    for listed in client.list_collections():
        collection = client.get_collection(listed.name, embedding_function=None)
        names.add(listed.name)
        count, got = collection.count(), 0
        while got < count:
            page = collection.get(include=["embeddings", "documents", "metadatas"], limit=PAGE, offset=got)
            rows = zip(page["ids"], page["embeddings"], page["documents"], page["metadatas"], strict=True)
            for identity, embedding, document, metadata in rows:
                state[listed.name, identity] = (embedding.astype("<f4").tobytes(), document, dict(metadata or {}))
            if not page["ids"]:
                raise AssertionError(f"{listed.name}: count is {count}, get ends after {got}")
            got += len(page["ids"])
        if count:
            answer = collection.query(query_embeddings=[page["embeddings"][0]], n_results=min(5, count))
            if len(answer["ids"][0]) < min(5, count):
                raise AssertionError(f"{listed.name}: a query finds {len(answer['ids'][0])} of {count}")
    return names, state
