"""Load the real sample into a running Chroma over plain HTTP, vectors as they are, when its collections are empty.

    python sample/load.py --url http://127.0.0.1:8000 [--while-pid PID]

The whole sample is used where SAMPLE_DATA or ../shared/data (beside the repository) has it, else the cut in this
directory. Needs pyarrow; no embedding function and no Chroma client.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NAMES = ("books", "laws")
DATABASE = "/api/v2/tenants/default_tenant/databases/default_database"
BATCH = 1000
# What the vectors were made with, as Chroma's own clients write it: all-MiniLM-L6-v2 is their default.
CONFIGURATION = {
    "hnsw": {"space": "cosine"},
    "embedding_function": {"type": "known", "name": "default", "config": {}},
}


def call(url: str, path: str, body: object = None) -> Any:
    """One JSON request; ``http.client`` errors and ``urllib.error`` errors are the caller's."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def wait(url: str, pid: int | None, seconds: float) -> bool:
    """Whether the server answers before the time is over or the process ``pid`` is gone."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            call(url, DATABASE + "/collections_count")
            return True
        except (OSError, http.client.HTTPException, ValueError):
            time.sleep(0.3)
        if pid is not None and not _alive(pid):
            return False
    return False


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def place() -> Path:
    """The directory with the Parquet files: SAMPLE_DATA, the whole sample beside the repository, or the cut here."""
    whole = HERE.parent.parent / "shared" / "data"
    candidates = [Path(os.environ["SAMPLE_DATA"])] if os.environ.get("SAMPLE_DATA") else [whole, HERE]
    for directory in candidates:
        if all((directory / f"{name}.parquet").is_file() for name in NAMES):
            return directory
    raise SystemExit(f"sample: no {' and '.join(NAMES)}.parquet in {candidates[-1]}")


def load(url: str, name: str, file: Path, batch: int) -> int:
    """Fill the collection ``name`` unless it has records; returns how many were sent."""
    import pyarrow.parquet as pq

    body = {"name": name, "get_or_create": True, "configuration": CONFIGURATION}
    collection = f"{DATABASE}/collections/{call(url, DATABASE + '/collections', body)['id']}"
    if call(url, collection + "/count"):
        return 0
    sent = 0
    for part in pq.ParquetFile(file).iter_batches(batch):
        vectors = part.column("embedding")
        width = vectors.type.list_size
        values = vectors.flatten().to_numpy().astype("<f4", copy=False).reshape(-1, width)
        facts = part.select(["source", "title", "part"]).to_pylist()
        records = {
            "ids": part.column("id").to_pylist(),
            "documents": part.column("document").to_pylist(),
            "metadatas": facts,
            "embeddings": [base64.b64encode(row.tobytes()).decode() for row in values],
        }
        call(url, collection + "/upsert", records)
        sent += part.num_rows
    return sent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--while-pid", type=int, metavar="PID", help="stop waiting for the server when PID is gone")
    parser.add_argument("--wait", type=float, default=120.0, metavar="SECONDS")
    given = parser.parse_args()
    url = given.url.rstrip("/")
    if not wait(url, given.while_pid, given.wait):
        raise SystemExit(1)  # whoever should have served has said why
    directory, started = place(), time.monotonic()
    batch = min(BATCH, call(url, "/api/v2/pre-flight-checks")["max_batch_size"])
    try:
        sent = {name: load(url, name, directory / f"{name}.parquet", batch) for name in NAMES}
    except (OSError, http.client.HTTPException) as error:
        told = error.read(400).decode(errors="replace") if isinstance(error, urllib.error.HTTPError) else ""
        raise SystemExit(f"sample: {error} {told}".rstrip()) from None
    if any(sent.values()):
        counts = ", ".join(f"{name} {count:,}" for name, count in sent.items())
        print(f"sample: {counts} records sent in {time.monotonic() - started:.1f} s", flush=True)
    else:
        print("sample: the collections have records already; nothing was sent", flush=True)
    if given.while_pid is not None:
        print(NEXT.format(url=url), flush=True)


NEXT = """
Chroma serves at {url}; its data is in ./data, the repository in ./keep. Try in another terminal:
  curl {url}/api/v2/tenants/default_tenant/databases/default_database/collections_count
  .venv/bin/chromakeep show ./data
  .venv/bin/chromakeep snapshots ./keep
Then Ctrl-C here, rm -rf ./data, and make up again: it comes back from ./keep.
"""

if __name__ == "__main__":
    main()
